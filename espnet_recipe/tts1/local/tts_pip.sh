#!/usr/bin/env bash
# The stages of ESPnet's tts.sh with pip-installed ESPnet alone: no checkout, no Kaldi tools. run.sh calls it.
#
#   1 data  2 format to 16 kHz  4 length filter  5 token list  6 statistics  7 training  8 zero-shot synthesis  9 scores
#   (numbers as in tts.sh; without speaker embeddings)
#
#   --stage, --stop_stage    first and last stage                                            (1, 9)
#   --ngpu                   GPUs for training; 0 is the CPU                                 (0)
#   --nj, --inference_nj     processes for statistics and synthesis                          (1, 1)
#   --cache_latents          true: write the latents to disk in stage 4 and train from them  (false)
#   --model                  the WavCube, instead of the train config's
#   --prompt_set             set to choose prompts from where data/SET/prompt.scp gives none (the test set)
#   --score_args             for `python -m wavcube_plugins.evaluation.tts_scores speech`
#   --train_config, --train_args, --inference_config, --inference_args, --inference_model, --tag, --tts_exp    as in tts.sh
#   --train_set, --valid_set, --test_sets, --token_type, --cleaner, --g2p, --bpemodel, --min_wav_duration,
#   --max_wav_duration, --fs, --datadir, --dumpdir, --expdir, --local_data_opts, --python           as in tts.sh

set -euo pipefail

stage=1
stop_stage=9
ngpu=0
nj=1
inference_nj=1
cache_latents=false
model=
score_args=
prompt_set=
train_set=train
valid_set=valid
test_sets=test
train_config=conf/train.yaml
train_args=
inference_config=conf/decode.yaml
inference_args=
inference_model=valid.loss.best.pth
tag=
tts_exp=
token_type=char
cleaner=none
g2p=none
bpemodel=none
min_wav_duration=0.3
max_wav_duration=30
fs=16000
datadir=data
dumpdir=dump
expdir=exp
local_data_opts=
python=python3
options="stage stop_stage ngpu nj inference_nj cache_latents model score_args prompt_set train_set valid_set test_sets train_config train_args
 inference_config inference_args inference_model tag tts_exp token_type cleaner g2p bpemodel min_wav_duration max_wav_duration fs
 datadir dumpdir expdir local_data_opts python"
options=${options//$'\n'/}

. local/common.sh
parse_options "$@"

for file in "${train_config}" "${inference_config}"; do
    [ -f "${file}" ] || die "${file}: no such configuration file"
done
set_up

tokens=${dumpdir}/token_list/${token_type}/tokens.txt
tag=${tag:-$(basename "${train_config}" .yaml)_${token_type}}
stats=${expdir}/tts_stats_${token_type}
exp=${tts_exp:-${expdir}/tts_${tag}}
decoded=${exp}/$(basename "${inference_config}" .yaml)_$(basename "${inference_model}" .pth)
text_options=(--use_preprocessor true --token_type "${token_type}" --token_list "${tokens}" --bpemodel "${bpemodel}"
    --cleaner "${cleaner}" --g2p "${g2p}")
features=(--feats_extract wavcube --feats_extract_conf hop_length=320 --feats_extract_conf "fs=${fs}")
[ -z "${model}" ] || features+=(--feats_extract_conf "model=${model}")

if wanted 1; then
    log "stage 1: data preparation"
    local/data.sh --datadir "${datadir}" --python "${python}" ${local_data_opts}
fi

if wanted 2; then
    format_sets 2
fi

if wanted 4; then
    filter_sets 4
    write_latents 4 tts --config "${train_config}" "${features[@]}" ${train_args}
fi

if wanted 5; then
    log "stage 5: token list -> ${tokens}"
    "${data[@]}" check "${raw}/${train_set}" --fs "${fs}"
    mkdir -p "$(dirname "${tokens}")"
    logged "${dumpdir}/token_list/${token_type}/tokenize.log" \
        "${espnet[@]}" espnet2.bin.tokenize_text --token_type "${token_type}" --field 2- --bpemodel "${bpemodel}" \
        --input "${raw}/${train_set}/text" --output "${tokens}" --cleaner "${cleaner}" --g2p "${g2p}" \
        --write_vocabulary true --add_symbol "<blank>:0" --add_symbol "<unk>:1" --add_symbol "<sos/eos>:-1"
fi

if wanted 6 || wanted 7; then
    check_training_data
fi

if wanted 6; then
    collect_stats 6 tts_train --config "${train_config}" "${text_options[@]}" "${features[@]}" ${train_args}
fi

if wanted 7; then
    train 7 tts_train --config "${train_config}" "${text_options[@]}" "${features[@]}" \
        --normalize global_mvn --normalize_conf "stats_file=${stats}/train/feats_stats.npz" \
        --train_shape_file "${stats}/train/text_shape.${token_type}" \
        --train_shape_file "${raw}/${train_set}/utt2num_samples" \
        --valid_shape_file "${stats}/valid/text_shape.${token_type}" \
        --valid_shape_file "${raw}/${valid_set}/utt2num_samples" ${train_args}
fi

if wanted 8; then
    for set in ${test_sets}; do
        out=${decoded}/${set}
        log "stage 8: synthesis of ${set} -> ${out}/wav (log: ${out}/log/inference.*.log)"
        [ -e "${exp}/${inference_model}" ] || die "${exp}/${inference_model}: no such model; run --stage 7 first"
        "${data[@]}" prompts "${raw}/${set}" --given "${datadir}/${set}" --source "${raw}/${prompt_set:-${set}}" \
            --fs "${fs}" --token_list "${tokens}" --token_type "${token_type}"
        jobs=$("${data[@]}" split "${out}/log" "${inference_nj}" "keys=${raw}/${set}/text")
        parallel "${jobs}" "${out}/log/inference.JOB.log" \
            "${espnet[@]}" espnet2.bin.tts_inference --config "${inference_config}" --ngpu "$((ngpu > 0 ? 1 : 0))" \
            --data_path_and_name_and_type "${raw}/${set}/text,text,text" \
            --data_path_and_name_and_type "${raw}/${set}/prompt_text,prompt_text,text" \
            --data_path_and_name_and_type "${raw}/${set}/prompt.scp,prompt_speech,sound" \
            --key_file "${out}/log/keys.JOB.scp" --model_file "${exp}/${inference_model}" \
            --train_config "${exp}/config.yaml" --output_dir "${out}/log/output.JOB" --vocoder_file none ${inference_args}
        mkdir -p "${out}/wav"
        for job in $(seq "${jobs}"); do
            mv "${out}/log/output.${job}"/wav/*.wav "${out}/wav/"
        done
        for wav in "${out}"/wav/*.wav; do echo "$(basename "${wav}" .wav) ${wav}"; done > "${out}/wav/wav.scp"
        log "$(wc -l < "${out}/wav/wav.scp" | tr -d ' ') recordings in ${out}/wav"
    done
fi

if wanted 9; then
    for set in ${test_sets}; do
        out=${decoded}/${set}
        if [ -f "${datadir}/${set}/phones" ]; then
            log "stage 9: phone error rate of ${set}, and of its recordings -> ${out}/score.json"
            "${python}" -m wavcube_plugins.evaluation.tts_scores speech "${datadir}/${set}/phones" "${out}/wav/wav.scp" \
                "${raw}/${set}/wav.scp" --out "${out}/score.json" ${score_args}
        else
            log "stage 9: ${datadir}/${set} has no phones, and the phone recogniser knows the mini corpus only; score" \
                "${out}/wav/wav.scp with a recogniser of your own, or scripts/utils/evaluate_asr.sh of an ESPnet checkout"
        fi
    done
fi

log "done in ${SECONDS} s"
