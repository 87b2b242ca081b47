#!/usr/bin/env bash
# Zero-shot TTS on the WavCube latent.
#
#   ./run.sh --corpus mini                                     # offline, on a CPU
#   ./run.sh --ngpu 8 --cache_latents true                     # LibriTTS, the paper's setting; LIBRITTS in db.sh
#   ./run.sh --corpus mini --stage 8 --stop_stage 9            # repeat synthesis and scoring
#
# In an ESPnet checkout (see setup.sh) this runs the stages of tts.sh, otherwise those of local/tts_pip.sh, which have the
# same numbers and need only pip-installed ESPnet: 1 data, 2 format, 4 length filter, 5 tokens, 6 statistics, 7 training,
# 8 zero-shot synthesis, 9 scores. Resume with --stage; training resumes by itself.
#
#   --corpus       mini or libritts                                                             (libritts)
#   --driver       tts.sh, pip, or auto: tts.sh where it is in this folder                      (auto)
#   --stage, --stop_stage                                                                       (1, 9)
#   --ngpu         GPUs for training; 0 is the CPU                                              (8; mini 0)
#   --python       Python that has this package and ESPnet                                      (python3)
#   --train_config, --inference_config                     (conf/train.yaml, conf/decode.yaml; mini conf/tuning/train_mini.yaml)
#   --inference_model                                                                           (valid.loss.best.pth)
#   --inference_args                                                                            ()
#   --test_sets                                                                                 (test)
#   --dumpdir, --expdir                                                                         (dump, exp)
#   --tag, --tts_exp        name and folder of the experiment    (the train config's name with _char, EXPDIR/tts_TAG)
#   --local_data_opts       for local/data.sh: other parts, sizes of the mini corpus
#
# Everything else goes to the driver, such as --train_args "--max_epoch 10" or --nj 8. Only the pip driver has
# --cache_latents true (the default for the mini corpus), --datadir, --model, --prompt_set and --score_args.

set -euo pipefail

corpus=libritts
driver=auto
stage=1
stop_stage=9
ngpu=
python=python3
train_config=
inference_config=conf/decode.yaml
inference_model=valid.loss.best.pth
inference_args=
test_sets=test
dumpdir=dump
expdir=exp
tag=
tts_exp=
local_data_opts=
fs=16000
options="corpus driver stage stop_stage ngpu python train_config inference_config inference_model inference_args
 test_sets dumpdir expdir tag tts_exp local_data_opts fs"
options=${options//$'\n'/}
passed_on=()

cd "$(dirname "$0")"
. local/common.sh
parse_options "$@"

case "${corpus}" in
    mini)
        train_config=${train_config:-conf/tuning/train_mini.yaml}
        ngpu=${ngpu:-0}
        prompt_set=train # all sets have the same speakers
        ;;
    libritts)
        train_config=${train_config:-conf/train.yaml}
        ngpu=${ngpu:-8}
        prompt_set= # each set's own
        ;;
    *) die "--corpus ${corpus}: expected mini or libritts" ;;
esac
case "${fs}" in
    16000 | 16k) ;;
    *) die "--fs ${fs}: WavCube works at 16000 Hz; leave --fs out, stage 2 resamples recordings of any rate" ;;
esac
if [ "${driver}" = auto ]; then
    if [ -e tts.sh ]; then driver=tts.sh; else driver=pip; fi
fi

tts_exp=${tts_exp:-${expdir}/tts_${tag:-$(basename "${train_config}" .yaml)_char}}
shared=(--ngpu "${ngpu}" --train_set train --valid_set valid --test_sets "${test_sets}" --dumpdir "${dumpdir}"
    --expdir "${expdir}" --token_type char --cleaner none --g2p none --fs 16000 --min_wav_duration 0.3 --max_wav_duration 30
    --train_config "${train_config}" --inference_config "${inference_config}" --inference_model "${inference_model}"
    --tts_exp "${tts_exp}" ${passed_on[@]+"${passed_on[@]}"})
data_opts="--corpus ${corpus} ${local_data_opts}"

if [ "${driver}" = pip ]; then
    # A small corpus has many epochs, so the encoder should not run in each. The caller's own option follows, and wins.
    [ "${corpus}" != mini ] || shared=(--cache_latents true "${shared[@]}")
    exec local/tts_pip.sh --stage "${stage}" --stop_stage "${stop_stage}" --python "${python}" \
        --prompt_set "${prompt_set}" --inference_args "${inference_args}" --local_data_opts "${data_opts}" "${shared[@]}"
fi
[ "${driver}" = tts.sh ] || die "--driver ${driver}: expected tts.sh, pip or auto"
[ -e tts.sh ] || die "no tts.sh in this folder; install the recipe into an ESPnet checkout with setup.sh, or --driver pip"
[[ "${python}" != *[[:space:]]* ]] || die "--python ${python}: tts.sh would split it at its spaces; give a path without, or --driver pip"
refuse_pip_options tts.sh cache_latents datadir model prompt_set score_args
expect_stage tts.sh 6 "TTS collect stats"
expect_stage tts.sh 7 "TTS Training"
expect_stage tts.sh 8 "Decoding"

if [ -f path.sh ]; then # activates the checkout's Python
    set +u
    . ./path.sh
    set -u
fi

stock=(./tts.sh --lang en --feats_type raw --feats_extract wavcube --n_shift 320 --vocoder_file none --audio_format flac
    --python "${python} -m wavcube_plugins.espnet.run" --local_data_opts "--python ${python} ${data_opts}"
    --srctexts data/train/text "${shared[@]}")
raw=${dumpdir}/raw
inference_tag=$(basename "${inference_config}" .yaml)_$(basename "${inference_model}" .pth)

if [ "${stage}" -le 7 ]; then
    "${stock[@]}" --stage "${stage}" --stop_stage "$((stop_stage < 7 ? stop_stage : 7))"
fi
if wanted 8; then
    for set in ${test_sets}; do
        # tts.sh passes each utterance's own recording; the prompts come with these options.
        "${python}" -m wavcube_plugins.espnet.recipe prompts "${raw}/${set}" --given "data/${set}" \
            --source "${raw}/${prompt_set:-${set}}" --token_list "${dumpdir}/token_list/char/tokens.txt"
        "${stock[@]}" --stage 8 --stop_stage 8 --test_sets "${set}" --inference_tag "${inference_tag}" --inference_args \
            "--data_path_and_name_and_type ${raw}/${set}/prompt_text,prompt_text,text --data_path_and_name_and_type ${raw}/${set}/prompt.scp,prompt_speech,sound ${inference_args}"
    done
fi
if wanted 9; then
    for set in ${test_sets}; do
        out=${tts_exp}/${inference_tag}/${set}
        if [ -f "data/${set}/phones" ]; then
            "${python}" -m wavcube_plugins.evaluation.tts_scores speech "data/${set}/phones" "${out}/wav/wav.scp" \
                "${raw}/${set}/wav.scp" --out "${out}/score.json"
        else
            log "stage 9: data/${set} has no phones, and the phone recogniser knows the mini corpus only; score" \
                "${out}/wav/wav.scp with VERSA (stage 9 of tts.sh itself) or scripts/utils/evaluate_asr.sh"
        fi
    done
fi
