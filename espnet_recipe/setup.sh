#!/usr/bin/env bash
# Installs a recipe into an ESPnet checkout and lists what the checkout still lacks.
#
#   espnet_recipe/setup.sh ~/espnet/egs2/libritts_wavcube/tts1      # around its own tts.sh; then: cd there && ./run.sh
#   espnet_recipe/setup.sh ~/espnet/egs2/librispeech_wavcube/asr1   # around its own asr.sh
#   espnet_recipe/setup.sh ~/espnet/egs3/mini_wavcube/tts           # for ESPnet3; then: cd there and see run.py
#   espnet_recipe/setup.sh ~/espnet/egs3/mini_wavcube/asr
#
# The folder is created if missing. Our own files in it are replaced, nothing else is touched. Run it again for the list
# alone.

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
[ $# -eq 1 ] || die "expected one argument, the recipe's folder in a checkout, such as ESPNET/egs2/CORPUS/tts1"

case "$1" in
    /*) folder=${1%/} ;;
    *) folder=${PWD}/${1%/} ;;
esac
task=$(basename "${folder}")
corpus=$(dirname "${folder}")
egs=$(dirname "${corpus}")
case "${task}" in
    tts1 | asr1) needed=TEMPLATE/${task}/${task%1}.sh source=${here}/${task} version=egs2 ;;
    tts | asr) needed=TEMPLATE/asr/run.py source=${here}/egs3/${task} version=egs3 ;;
    *) die "$1: the folder must be called tts1 or asr1, as in ESPNET/egs2/CORPUS/tts1, or tts or asr in egs3" ;;
esac
[ -f "${egs}/${needed}" ] || die "${egs}: no ${needed} there; it must be ${version} of an ESPnet checkout"
[ "$(basename "${corpus}")" != TEMPLATE ] || die "$1: choose a folder of its own beside TEMPLATE, such as ${version}/libritts_wavcube/${task}"
for file in run.sh run.py; do
    if [ -e "${folder}/${file}" ] && ! grep -q wavcube "${folder}/${file}"; then
        die "$1: has a recipe of its own; choose another corpus name, such as ${version}/$(basename "${corpus}")_wavcube/${task}"
    fi
done
checkout=$(cd "${egs}/.." && pwd -P)

mkdir -p "${folder}"
cd "${folder}"
if [ "${version}" = egs3 ]; then
    cp -RL "${source}/." .
else
    cp "${source}/run.sh" "${source}/cmd.sh" "${source}/README.md" .
    cp -RL "${source}/conf" "${source}/local" .
    [ -e local/path.sh ] || : > local/path.sh # path.sh sources it last, for the user's own settings
    for name in "${task}/${task%1}.sh" "${task}/path.sh" asr1/db.sh asr1/scripts asr1/pyscripts asr1/utils asr1/steps; do
        if [ -e "../../TEMPLATE/${name}" ] || [ -L "../../TEMPLATE/${name}" ]; then ln -sfn "../../TEMPLATE/${name}" .; fi
    done
fi

# What the checkout's scripts need, seen as they see it: through path.sh.
needs=()
need() { needs+=("$*"); }
in_checkout() { # COMMAND...: in the environment of path.sh
    (
        set +eu
        . ./path.sh > /dev/null 2>&1
        set -eu
        "$@"
    ) 2> /dev/null
}
[ -f "${checkout}/tools/activate_python.sh" ] \
    || need "tools/activate_python.sh, or path.sh takes the wrong Python: cd ${checkout}/tools && ./setup_python.sh \"\$(command -v python3)\""
python=$(in_checkout command -v python3 || echo python3)
install="uv pip install --python ${python}"
found=$(in_checkout python3 -c "import importlib.util as u, os; print(os.path.realpath(u.find_spec('espnet2').origin))" || true)
case "${found}" in
    "${checkout}"/*) ;;
    "") need "ESPnet in ${python}: ${install} -e ${checkout}" ;;
    *) need "the checkout's own espnet2 (${python} has ${found}): ${install} -e ${checkout}, or export PYTHONPATH=${checkout}" \
        "in local/path.sh" ;;
esac
in_checkout python3 -c "import wavcube_plugins" || need "this package in ${python}: ${install} $(dirname "${here}")"
if [ "${version}" = egs3 ]; then
    in_checkout python3 -c "import dask.distributed, dask_jobqueue, espnet_model_zoo, jiwer" \
        || need "the packages of ESPnet3: ${install} dask distributed dask-jobqueue espnet_model_zoo jiwer"
else
    in_checkout python3 -c "import resampy" || need "resampy, for recordings that are not at 16 kHz: ${install} resampy"
fi
[ "${task}" != asr1 ] || in_checkout command -v sclite > /dev/null \
    || need "sclite, for scoring: make -C ${checkout}/tools sctk, or Debian's package sctk"

echo "installed into ${folder}"
if [ ${#needs[@]} -gt 0 ]; then
    echo "still needed:"
    printf '  * %s\n' "${needs[@]}"
fi
if [ "${version}" = egs2 ]; then
    echo "then fill in db.sh and ./run.sh (options: ./run.sh --help)"
else
    echo "then . ./path.sh and python run.py (options: python run.py --help)"
fi
