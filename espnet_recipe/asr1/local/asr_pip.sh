#!/usr/bin/env bash
# The stages of ESPnet's asr.sh with pip-installed ESPnet alone: no checkout, no Kaldi tools. run.sh calls it.
#
#   1 data  3 format to 16 kHz  4 length filter  5 token list  10 statistics  11 training
#   12 decoding  13 scores                 (numbers as in asr.sh; without language model and speed perturbation)
#
#   --stage, --stop_stage    first and last stage                                            (1, 13)
#   --ngpu                   GPUs for training; 0 is the CPU                                  (0)
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
set_up

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

if wanted 1; then
    log "stage 1: data preparation"
    local/data.sh --datadir "${datadir}" --python "${python}" ${local_data_opts}
fi

if wanted 3; then
    format_sets 3
fi

if wanted 4; then
    filter_sets 4
    write_latents 4 asr --config "${asr_config}" "${frontend[@]}" ${asr_args}
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
    check_training_data
fi

if wanted 10; then
    collect_stats 10 asr_train --config "${asr_config}" "${text_options[@]}" "${frontend[@]}" ${asr_args}
fi

if wanted 11; then
    train 11 asr_train --config "${asr_config}" "${text_options[@]}" "${frontend[@]}" \
        --train_shape_file "${raw}/${train_set}/utt2num_samples" \
        --train_shape_file "${stats}/train/text_shape.${token_type}" \
        --valid_shape_file "${raw}/${valid_set}/utt2num_samples" \
        --valid_shape_file "${stats}/valid/text_shape.${token_type}" ${asr_args}
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
        "${python}" -m wavcube_plugins.evaluation.tts_scores text "${raw}/${set}/text" "${decoded}/${set}/text" \
            --out "${decoded}/${set}/score.json"
    done
fi

log "done in ${SECONDS} s"
