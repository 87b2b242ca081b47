#!/usr/bin/env bash
# Installs a recipe into an ESPnet checkout, around its own tts.sh or asr.sh, and lists what the checkout still lacks.
#
#   espnet_recipe/setup.sh ~/espnet/egs2/libritts_wavcube/tts1      # then: cd there && ./run.sh --ngpu 8
#   espnet_recipe/setup.sh ~/espnet/egs2/librispeech_wavcube/asr1
#
# The folder must be egs2/CORPUS/tts1 or egs2/CORPUS/asr1; it is created if missing. Our own files in it are replaced,
# nothing else is touched. Run it again for the list alone.

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)

die() {
    echo "setup.sh: error: $*" >&2
    exit 2
}

case "${1:-}" in
    --help | -h)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
esac
[ $# -eq 1 ] || die "expected one argument, the recipe's folder in a checkout: ESPNET/egs2/CORPUS/tts1 (or asr1)"

task=$(basename "$1")
case "${task}" in
    tts1 | asr1) ;;
    *) die "$1: the folder must be called tts1 or asr1, as in ESPNET/egs2/CORPUS/tts1" ;;
esac
corpus=$(dirname "$1")
egs2=$(dirname "${corpus}")
script=${task%1}.sh
template=${egs2}/TEMPLATE/${task}
[ -f "${template}/${script}" ] || die "${egs2}: no TEMPLATE/${task}/${script} there; it must be egs2 of an ESPnet checkout"
[ "$(basename "${corpus}")" != TEMPLATE ] || die "$1: choose a folder of its own beside TEMPLATE, such as egs2/libritts_wavcube/${task}"
if [ -e "$1/run.sh" ] && ! grep -q wavcube "$1/run.sh"; then
    die "$1: has a recipe of its own; choose another corpus name, such as egs2/$(basename "${corpus}")_wavcube/${task}"
fi

egs2_full=$(cd "${egs2}" && pwd)
mkdir -p "$1/local"
cd "$1"
cp "${here}/${task}/run.sh" "${here}/${task}/cmd.sh" .
[ ! -f "${here}/${task}/README.md" ] || cp "${here}/${task}/README.md" .
cp -RL "${here}/${task}/conf" "${here}/${task}/local" .
[ -e local/path.sh ] || : > local/path.sh # path.sh sources it last, for the user's own settings

link() { # FOLDER-IN-TEMPLATE NAME...
    local folder=../../TEMPLATE/$1 name
    shift
    for name in "$@"; do
        if [ -e "${folder}/${name}" ] || [ -L "${folder}/${name}" ]; then ln -sfn "${folder}/${name}" .; fi
    done
}
link "${task}" "${script}" path.sh
link asr1 db.sh scripts pyscripts utils steps

# What the checkout's scripts need, seen as they see it: through path.sh.
needs=()
need() { needs+=("$*"); }
checkout=$(cd "${egs2_full}/.." && pwd)
[ -f "${checkout}/tools/activate_python.sh" ] \
    || need "tools/activate_python.sh, or path.sh takes the wrong Python: cd ${checkout}/tools && ./setup_python.sh \"\$(command -v python3)\""
in_checkout() { # COMMAND...: in the environment of path.sh
    (
        set +eu
        . ./path.sh > /dev/null 2>&1
        set -eu
        "$@"
    ) 2> /dev/null
}
python=$(in_checkout command -v python3 || echo python3)
found=$(in_checkout python3 -c "import importlib.util as u, os; print(os.path.realpath(u.find_spec('espnet2').origin))" || true)
case "${found}" in
    "$(cd "${checkout}" && pwd -P)"/*) ;;
    "") need "ESPnet in ${python}: uv pip install --python ${python} -e ${checkout}" ;;
    *) need "the checkout's own espnet2 (${python} has ${found}): uv pip install --python ${python} -e ${checkout}, or" \
        "export PYTHONPATH=${checkout} in local/path.sh" ;;
esac
in_checkout python3 -c "import wavcube_plugins" \
    || need "this package in ${python}: uv pip install --python ${python} $(dirname "${here}")"
in_checkout python3 -c "import resampy" \
    || need "resampy, for recordings that are not at 16 kHz: uv pip install --python ${python} resampy"
[ "${task}" != asr1 ] || in_checkout command -v sclite > /dev/null \
    || need "sclite, for scoring: make -C ${checkout}/tools sctk, or Debian's package sctk"

echo "installed into $(pwd)"
if [ ${#needs[@]} -gt 0 ]; then
    echo "still needed:"
    printf '  * %s\n' "${needs[@]}"
fi
echo "then fill in db.sh and ./run.sh (options: ./run.sh --help)"
