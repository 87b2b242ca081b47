# Shared by the recipes' scripts, which source it. Works with bash 3.2 and without Kaldi's tools.

log() {
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (${0##*/}) $*"
}

# Background jobs do not receive Ctrl-C, and must stop when one of them has failed.
stop_jobs() {
    local running
    running=$(jobs -p)
    [ -z "${running}" ] || kill ${running} 2> /dev/null || true
}
trap stop_jobs EXIT

# Print one sentence and exit with code 2.
die() {
    echo "${0##*/}: error: $*" >&2
    exit 2
}

# Print the comment at the head of the running script.
usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

# Set the variable of every `--name value`. Names that are not in ${options} are errors, or go to the array `passed_on` if
# the script has one.
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

# wanted N: whether to run stage N.
wanted() {
    [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ]
}

# expect_stage SCRIPT NUMBER NAME: check that a stock script of the checkout calls its stage NUMBER by this NAME.
expect_stage() {
    local found
    found=$(sed -n "/log \"Stage [0-9]*: $3/{s/.*log \"Stage \([0-9]*\):.*/\1/p;q;}" "$1")
    [ "${found}" = "$2" ] \
        || die "$1: \"$3\" is stage ${found:-unknown} there, but this recipe follows newer checkouts of ESPnet, where it is" \
            "stage $2; update the checkout, or use --driver pip"
}

# refuse_pip_options SCRIPT NAME...: options of the pip driver that a stock script does not have.
refuse_pip_options() {
    local script=$1 name given
    shift
    for name in "$@"; do
        for given in ${passed_on[@]+"${passed_on[@]}"}; do
            [ "${given//-/_}" != "__${name}" ] || die "--${name}: ${script} has no such option; use it with --driver pip"
        done
    done
}

# corpus_folder NAME URL: the folder that db.sh has in the variable NAME.
corpus_folder() {
    case "${!1:-}" in
        "") die "$1 in db.sh is empty; write there the folder where the corpus is unpacked ($2)" ;;
        downloads) die "$1 in db.sh is \"downloads\", but this recipe does not download; write there the folder where the" \
            "corpus is unpacked ($2)" ;;
        *) echo "${!1}" ;;
    esac
}

# explain LOG CODE: print the error in a failed command's log and exit with its code.
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

# watched LOG COMMAND...: the same, but show each epoch's results as they come.
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

# parallel N LOG COMMAND...: run N jobs at once, JOB in COMMAND and LOG replaced by 1 to N, each with one of the GPUs if
# there are any.
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

# The rest is shared by tts_pip.sh and asr_pip.sh, and reads their variables.

# set_up: checks and variables before the first stage.
set_up() {
    local set name
    case "${cache_latents}" in
        true | false) ;;
        *) die "--cache_latents ${cache_latents}: expected true or false" ;;
    esac
    "${python}" -c "import wavcube_plugins.espnet" 2> /dev/null \
        || die "${python} has no ESPnet with WavCube; from a clone: uv pip install '.[espnet]', or name another --python"
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUNBUFFERED=1
    espnet=("${python}" -m wavcube_plugins.espnet.run -m)
    data=("${python}" -m wavcube_plugins.espnet.recipe)
    raw=${dumpdir}/raw
    paths=()
    for set in train valid; do
        name=${set}_set
        paths+=("--${set}_data_path_and_name_and_type" "${raw}/${!name}/text,text,text"
            "--${set}_data_path_and_name_and_type" "$(speech_of "${!name}")")
    done
}

# speech_of SET: its recordings, or their latents, in the form of ESPnet's options.
speech_of() {
    if ${cache_latents}; then echo "${dumpdir}/latents/$1/feats.scp,speech,npy"; else echo "${raw}/$1/wav.scp,speech,sound"; fi
}

# format_sets STAGE: convert all sets to ${fs} in ${raw}; training sets go to ${raw}/org, before the length filter.
format_sets() {
    log "stage $1: ${fs} Hz, mono: ${datadir}/ -> ${raw}/"
    "${data[@]}" format "${datadir}" "${raw}/org" ${train_set} ${valid_set} --fs "${fs}"
    "${data[@]}" format "${datadir}" "${raw}" ${test_sets} --fs "${fs}"
}

# filter_sets STAGE: keep what is neither too short nor too long for training.
filter_sets() {
    log "stage $1: leave out what is not between ${min_wav_duration} and ${max_wav_duration} s"
    "${data[@]}" format "${raw}/org" "${raw}" ${train_set} ${valid_set} --fs "${fs}" \
        --min_wav_duration "${min_wav_duration}" --max_wav_duration "${max_wav_duration}"
}

# write_latents STAGE TASK OPTIONS...: with --cache_latents true, extract the latents of the training sets with the model
# that ESPnet's TASK reads from the options and the configuration among them.
write_latents() {
    local found word set latents=() extract=("${python}")
    ${cache_latents} || return 0
    found=$("${data[@]}" latents "${@:2}")
    while IFS= read -r word; do latents+=("${word}"); done <<< "${found}"
    log "stage $1: latents (${latents[*]}) -> ${dumpdir}/latents/"
    [ "${ngpu}" -le 1 ] || extract+=(-m torch.distributed.run --standalone --nproc_per_node "${ngpu}")
    extract+=(-m wavcube_plugins.cli extract)
    for set in ${train_set} ${valid_set}; do
        "${extract[@]}" "${raw}/${set}/wav.scp" "${dumpdir}/latents/${set}" "${latents[@]}"
    done
}

# check_training_data: check that texts and recordings match each other and the token list.
check_training_data() {
    "${data[@]}" check "${raw}/${train_set}" "${raw}/${valid_set}" --token_list "${tokens}" --token_type "${token_type}" \
        --fs "${fs}"
}

# collect_stats STAGE MODULE OPTIONS...: statistics of the training sets, by ${nj} processes of espnet2.bin.MODULE.
collect_stats() {
    local jobs job set inputs=()
    log "stage $1: statistics -> ${stats} (log: ${stats}/logdir/stats.*.log)"
    jobs=$("${data[@]}" split "${stats}/logdir" "${nj}" \
        "train=${raw}/${train_set}/utt2num_samples" "valid=${raw}/${valid_set}/utt2num_samples")
    parallel "${jobs}" "${stats}/logdir/stats.JOB.log" \
        "${espnet[@]}" "espnet2.bin.$2" --collect_stats true --ngpu "$((ngpu > 0 ? 1 : 0))" --normalize none "${paths[@]}" \
        --train_shape_file "${stats}/logdir/train.JOB.scp" --valid_shape_file "${stats}/logdir/valid.JOB.scp" \
        --output_dir "${stats}/logdir/stats.JOB" "${@:3}"
    for job in $(seq "${jobs}"); do inputs+=(--input_dir "${stats}/logdir/stats.${job}"); done
    logged "${stats}/logdir/aggregate.log" \
        "${espnet[@]}" espnet2.bin.aggregate_stats_dirs "${inputs[@]}" --output_dir "${stats}"
    # Batches are sized by numbers; like tts.sh and asr.sh, count each token as long as the token list.
    for set in train valid; do
        awk -v N="$(wc -l < "${tokens}" | tr -d ' ')" '{ print $0 "," N }' "${stats}/${set}/text_shape" \
            > "${stats}/${set}/text_shape.${token_type}"
    done
}

# train STAGE MODULE OPTIONS...: train, or resume training, with espnet2.bin.MODULE. Lengths in the OPTIONS are those of the
# waveforms even for latents from disk, so that one batch_bins serves both.
train() {
    log "stage $1: training -> ${exp} (log: ${exp}/train.log)"
    watched "${exp}/train.log" \
        "${espnet[@]}" "espnet2.bin.$2" --ngpu "${ngpu}" --multiprocessing_distributed true --resume true "${paths[@]}" \
        --output_dir "${exp}" "${@:3}"
}
