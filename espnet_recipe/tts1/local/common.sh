# Shared by the scripts of the recipes; to be sourced. Works with bash 3.2 and without Kaldi's tools.

log() {
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (${0##*/}) $*"
}

# Jobs in the background do not hear Ctrl-C, and must not go on when one of them has failed.
stop_jobs() {
    local running
    running=$(jobs -p)
    [ -z "${running}" ] || kill ${running} 2> /dev/null || true
}
trap stop_jobs EXIT

# One sentence, exit code 2.
die() {
    echo "${0##*/}: error: $*" >&2
    exit 2
}

# The text between `#` at the head of the running script.
usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

# Sets the variable of every `--name value`, which must have a default already. Others are errors, or go to the array
# `passed_on` where the script has made one.
parse_options() {
    local name
    while [ $# -gt 0 ]; do
        case "$1" in
            --help | -h)
                usage
                exit 0
                ;;
            --*)
                [ $# -ge 2 ] || die "$1 needs a value (see --help)"
                name=${1#--}
                name=${name//-/_}
                if [[ " ${options} " == *" ${name} "* ]]; then
                    printf -v "${name}" '%s' "$2"
                elif declare -p passed_on > /dev/null 2>&1; then
                    passed_on+=("$1" "$2")
                else
                    die "unknown option $1 (see --help)"
                fi
                shift 2
                ;;
            *)
                die "unexpected argument $1; options have the form --name value (see --help)"
                ;;
        esac
    done
}

# wanted N: whether stage N is to be run.
wanted() {
    [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ]
}

# explain LOG CODE: what a failed command's log says, and leave with its code.
explain() {
    local reason
    reason=$(grep -E '[Ee]rror: ' "$1" | tail -n 1 | cut -c 1-500 || true)
    echo "${0##*/}: error: ${reason:-failed without a message} (log: $1)" >&2
    exit "$2"
}

# logged LOG COMMAND...: run with its output in LOG.
logged() {
    local file=$1 code=0
    shift
    mkdir -p "$(dirname "${file}")"
    "$@" > "${file}" 2>&1 || code=$?
    [ "${code}" -eq 0 ] || explain "${file}" "${code}"
}

# watched LOG COMMAND...: likewise, but show each epoch's line of results as it comes.
watched() {
    local file=$1 code=0
    shift
    mkdir -p "$(dirname "${file}")"
    set +e
    "$@" 2>&1 | tee "${file}" | grep --line-buffered -E '[0-9]+epoch results: ' \
        | sed -u -E 's/^.* ([0-9]+epoch results: )/\1/; s/, total_count=[0-9]+//g; s/^(.{240}).*/\1 …/'
    code=${PIPESTATUS[0]}
    set -e
    [ "${code}" -eq 0 ] || explain "${file}" "${code}"
}

# parallel N LOG COMMAND...: run COMMAND with JOB replaced by 1 to N, all at once, each with one of the GPUs if there
# are any; LOG may have JOB in its name.
parallel() {
    local count=$1 file=$2 job code pids=() devices=()
    shift 2
    mkdir -p "$(dirname "${file}")"
    [ "${ngpu}" -eq 0 ] || IFS=, read -r -a devices <<< "${CUDA_VISIBLE_DEVICES:-$(seq -s , 0 $((ngpu - 1)))}"
    for job in $(seq "${count}"); do
        (
            if [ "${ngpu}" -gt 0 ]; then export CUDA_VISIBLE_DEVICES=${devices[(job - 1) % ${#devices[@]}]}; fi
            exec "${@//JOB/${job}}"
        ) > "${file//JOB/${job}}" 2>&1 &
        pids+=($!)
    done
    for job in $(seq "${count}"); do
        code=0
        wait "${pids[job - 1]}" || code=$?
        [ "${code}" -eq 0 ] || explain "${file//JOB/${job}}" "${code}"
    done
}
