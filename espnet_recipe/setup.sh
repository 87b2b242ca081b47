#!/usr/bin/env bash
# Installs a recipe into an ESPnet checkout, around its own tts.sh or asr.sh.
#
#   espnet_recipe/setup.sh ~/espnet/egs2/libritts_wavcube/tts1      # then: cd there && ./run.sh --ngpu 8
#   espnet_recipe/setup.sh ~/espnet/egs2/librispeech_wavcube/asr1
#
# The folder must be egs2/CORPUS/tts1 or egs2/CORPUS/asr1; it is made if missing. Files of ours that are there are
# replaced, nothing else is touched. In the checkout's Python; from a clone: uv pip install '.[espnet]'.

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

mkdir -p "$1/local"
cd "$1"
cp "${here}/${task}/run.sh" "${here}/${task}/cmd.sh" .
[ ! -f "${here}/${task}/README.md" ] || cp "${here}/${task}/README.md" .
cp -RL "${here}/${task}/conf" "${here}/${task}/local" .
[ -e local/path.sh ] || : > local/path.sh # the checkout's path.sh ends in it, for settings of one's own

link() { # FOLDER-IN-TEMPLATE NAME...
    local folder=../../TEMPLATE/$1 name
    shift
    for name in "$@"; do
        if [ -e "${folder}/${name}" ] || [ -L "${folder}/${name}" ]; then ln -sfn "${folder}/${name}" .; fi
    done
}
link "${task}" "${script}" path.sh
link asr1 db.sh scripts pyscripts utils steps
echo "installed into $(pwd); fill in db.sh, then ./run.sh (options: ./run.sh --help)"
