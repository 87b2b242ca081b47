#!/usr/bin/env bash
# The stages of ESPnet's asr.sh with pip-installed ESPnet alone: no checkout, no Kaldi tools. run.sh calls it.
#
#   1 data  3 format to 16 kHz  4 drop too short and too long ones  5 token list  10 statistics  11 training
#   12 decoding  13 scores                 (numbers as in asr.sh; without language model and speed perturbation)
#
#   --stage, --stop_stage    first and last stage                                            (1, 13)
#   --ngpu                   GPUs to train on; 0 is the CPU                                  (0)
#   --nj, --inference_nj     processes for statistics and decoding                           (1, 1)
#   --cache_latents          true: write the latents to disk in stage 4 and use them; for features: latent   (false)
#   --model                  the WavCube, instead of the train config's
#   --asr_config, --asr_args, --inference_config, --inference_args, --inference_asr_model, --asr_tag    as in asr.sh
#   --train_set, --valid_set, --test_sets, --token_type (char or bpe), --nbpe, --min_wav_duration, --max_wav_duration,
#   --fs, --datadir, --dumpdir, --expdir, --local_data_opts, --python                                   as in asr.sh

set -euo pipefail

stage=1
stop_stage=13
ngpu=0
nj=1
inference_nj=1
cache_latents=false
model=
train_set=train
valid_set=valid
test_sets=test
asr_config=conf/train.yaml
asr_args=
inference_config=conf/decode.yaml
inference_args=
inference_asr_model=valid.loss.best.pth
asr_tag=
token_type=char
nbpe=5000
min_wav_duration=0.1
max_wav_duration=30
fs=16000
datadir=data
dumpdir=dump
expdir=exp
local_data_opts=
python=python3
options="stage stop_stage ngpu nj inference_nj cache_latents model train_set valid_set test_sets asr_config asr_args
 inference_config inference_args inference_asr_model asr_tag token_type nbpe min_wav_duration max_wav_duration fs datadir
 dumpdir expdir local_data_opts python"
options=${options//$'\n'/}

. local/common.sh
parse_options "$@"

for file in "${asr_config}" "${inference_config}"; do
    [ -f "${file}" ] || die "${file}: no such configuration file"
done
case "${token_type}" in
    char) nbpe= ;;
    bpe) ;;
    *) die "--token_type ${token_type}: expected char or bpe" ;;
esac
case "${cache_latents}" in
    true | false) ;;
    *) die "--cache_latents ${cache_latents}: expected true or false" ;;
esac
"${python}" -c "import wavcube_plugins.espnet" 2> /dev/null \
    || die "${python} has no ESPnet with WavCube; uv pip install 'wavcube-plugins[espnet]', or name another --python"

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUNBUFFERED=1
espnet=("${python}" -m wavcube_plugins.espnet.run -m)
data=("${python}" -m wavcube_plugins.espnet.data)
raw=${dumpdir}/raw
token_dir=${dumpdir}/token_list/${token_type}${nbpe}
tokens=${token_dir}/tokens.txt
asr_tag=${asr_tag:-$(basename "${asr_config}" .yaml)_${token_type}${nbpe}}
stats=${expdir}/asr_stats_${token_type}${nbpe}
exp=${expdir}/asr_${asr_tag}
decoded=${exp}/$(basename "${inference_config}" .yaml)_$(basename "${inference_asr_model}" .pth)
bpemodel=none
[ "${token_type}" = char ] || bpemodel=${token_dir}/bpe.model
text_options=(--use_preprocessor true --token_type "${token_type}" --token_list "${tokens}" --bpemodel "${bpemodel}"
    --cleaner none --g2p none)
frontend=(--frontend wavcube --frontend_conf "fs=${fs}")
[ -z "${model}" ] || frontend+=(--frontend_conf "model=${model}")

# The recordings of a set as ESPnet's options want them.
speech_of() {
    if ${cache_latents}; then echo "${dumpdir}/latents/$1/feats.scp,speech,npy"; else echo "${raw}/$1/wav.scp,speech,sound"; fi
}

if wanted 1; then
    log "stage 1: data preparation"
    local/data.sh --datadir "${datadir}" --python "${python}" ${local_data_opts}
fi

if wanted 3; then
    log "stage 3: ${fs} Hz, mono: ${datadir}/ -> ${raw}/"
    "${data[@]}" format "${datadir}" "${raw}/org" ${train_set} ${valid_set} --fs "${fs}"
    "${data[@]}" format "${datadir}" "${raw}" ${test_sets} --fs "${fs}"
fi

if wanted 4; then
    log "stage 4: leave out what is not between ${min_wav_duration} and ${max_wav_duration} s"
    "${data[@]}" format "${raw}/org" "${raw}" ${train_set} ${valid_set} --fs "${fs}" \
        --min_wav_duration "${min_wav_duration}" --max_wav_duration "${max_wav_duration}"
    if ${cache_latents}; then
        # Whose latents is what ESPnet makes of the configuration and the arguments behind it.
        found=$("${data[@]}" latents asr --config "${asr_config}" "${frontend[@]}" ${asr_args})
        latents=()
        while IFS= read -r word; do latents+=("${word}"); done <<< "${found}"
        log "stage 4: latents (${latents[*]}) -> ${dumpdir}/latents/"
        extract=("${python}")
        [ "${ngpu}" -le 1 ] || extract+=(-m torch.distributed.run --standalone --nproc_per_node "${ngpu}")
        extract+=(-m wavcube_plugins.cli extract)
        for set in ${train_set} ${valid_set}; do
            "${extract[@]}" "${raw}/${set}/wav.scp" "${dumpdir}/latents/${set}" "${latents[@]}"
        done
    fi
fi

if wanted 5; then
    log "stage 5: token list -> ${tokens}"
    mkdir -p "${token_dir}"
    if [ "${token_type}" = bpe ]; then
        logged "${token_dir}/bpe.log" "${data[@]}" bpe "${raw}/${train_set}/text" "${token_dir}" "${nbpe}"
    else
        logged "${token_dir}/tokenize.log" \
            "${espnet[@]}" espnet2.bin.tokenize_text --token_type char --field 2- \
            --input "${raw}/${train_set}/text" --output "${tokens}" --write_vocabulary true \
            --add_symbol "<blank>:0" --add_symbol "<unk>:1" --add_symbol "<sos/eos>:-1"
    fi
fi

if wanted 10 || wanted 11; then
    "${data[@]}" check "${raw}/${train_set}" "${raw}/${valid_set}" --token_list "${tokens}" --token_type "${token_type}" \
        --fs "${fs}"
fi

if wanted 10; then
    log "stage 10: statistics -> ${stats} (log: ${stats}/logdir/stats.*.log)"
    jobs=$("${data[@]}" split "${stats}/logdir" "${nj}" \
        "train=${raw}/${train_set}/utt2num_samples" "valid=${raw}/${valid_set}/utt2num_samples")
    parallel "${jobs}" "${stats}/logdir/stats.JOB.log" \
        "${espnet[@]}" espnet2.bin.asr_train --collect_stats true --ngpu "$((ngpu > 0 ? 1 : 0))" --config "${asr_config}" \
        "${text_options[@]}" "${frontend[@]}" --normalize none \
        --train_data_path_and_name_and_type "${raw}/${train_set}/text,text,text" \
        --train_data_path_and_name_and_type "$(speech_of "${train_set}")" \
        --valid_data_path_and_name_and_type "${raw}/${valid_set}/text,text,text" \
        --valid_data_path_and_name_and_type "$(speech_of "${valid_set}")" \
        --train_shape_file "${stats}/logdir/train.JOB.scp" --valid_shape_file "${stats}/logdir/valid.JOB.scp" \
        --output_dir "${stats}/logdir/stats.JOB" ${asr_args}
    inputs=()
    for job in $(seq "${jobs}"); do inputs+=(--input_dir "${stats}/logdir/stats.${job}"); done
    logged "${stats}/logdir/aggregate.log" \
        "${espnet[@]}" espnet2.bin.aggregate_stats_dirs "${inputs[@]}" --output_dir "${stats}" --skip_sum_stats
    # Batches are counted in numbers, for which asr.sh has each token as long as the token list.
    for set in train valid; do
        awk -v N="$(wc -l < "${tokens}" | tr -d ' ')" '{ print $0 "," N }' "${stats}/${set}/text_shape" \
            > "${stats}/${set}/text_shape.${token_type}"
    done
fi

if wanted 11; then
    # Lengths are those of the waveforms, latents from disk or not, so that one batch_bins serves both.
    log "stage 11: training -> ${exp} (log: ${exp}/train.log)"
    watched "${exp}/train.log" \
        "${espnet[@]}" espnet2.bin.asr_train --config "${asr_config}" --ngpu "${ngpu}" \
        --multiprocessing_distributed true --resume true "${text_options[@]}" "${frontend[@]}" \
        --train_data_path_and_name_and_type "${raw}/${train_set}/text,text,text" \
        --train_data_path_and_name_and_type "$(speech_of "${train_set}")" \
        --valid_data_path_and_name_and_type "${raw}/${valid_set}/text,text,text" \
        --valid_data_path_and_name_and_type "$(speech_of "${valid_set}")" \
        --train_shape_file "${raw}/${train_set}/utt2num_samples" \
        --train_shape_file "${stats}/train/text_shape.${token_type}" \
        --valid_shape_file "${raw}/${valid_set}/utt2num_samples" \
        --valid_shape_file "${stats}/valid/text_shape.${token_type}" \
        --output_dir "${exp}" ${asr_args}
fi

if wanted 12; then
    for set in ${test_sets}; do
        out=${decoded}/${set}
        log "stage 12: decoding ${set} -> ${out}/text (log: ${out}/log/inference.*.log)"
        [ -e "${exp}/${inference_asr_model}" ] || die "${exp}/${inference_asr_model}: no such model; run --stage 11 first"
        "${data[@]}" check "${raw}/${set}" --fs "${fs}"
        jobs=$("${data[@]}" split "${out}/log" "${inference_nj}" "keys=${raw}/${set}/wav.scp")
        parallel "${jobs}" "${out}/log/inference.JOB.log" \
            "${espnet[@]}" espnet2.bin.asr_inference --config "${inference_config}" --ngpu "$((ngpu > 0 ? 1 : 0))" \
            --data_path_and_name_and_type "${raw}/${set}/wav.scp,speech,sound" --key_file "${out}/log/keys.JOB.scp" \
            --asr_train_config "${exp}/config.yaml" --asr_model_file "${exp}/${inference_asr_model}" \
            --output_dir "${out}/log/output.JOB" ${inference_args}
        for job in $(seq "${jobs}"); do cat "${out}/log/output.${job}/1best_recog/text"; done | LC_ALL=C sort > "${out}/text"
    done
fi

if wanted 13; then
    for set in ${test_sets}; do
        log "stage 13: scores of ${set} -> ${decoded}/${set}/score.json"
        "${python}" -m wavcube_plugins.espnet.score text "${raw}/${set}/text" "${decoded}/${set}/text" \
            --out "${decoded}/${set}/score.json"
    done
fi

log "done in ${SECONDS} s"
