#!/usr/bin/env bash
# Zero-shot TTS on the WavCube latent.
#
#   ./run.sh --corpus mini                                     # offline, on a CPU
#   ./run.sh --ngpu 8 --cache_latents true                     # LibriTTS, the paper's setting; LIBRITTS in db.sh
#   ./run.sh --corpus mini --stage 7 --stop_stage 8            # synthesis and scores again
#
# In an ESPnet checkout (see setup.sh) it runs the stages of tts.sh, otherwise those of local/tts_pip.sh, which are the
# same with pip-installed ESPnet alone: 1 data, 2 format, 3 length filter, 4 tokens, 5 statistics, 6 training,
# 7 zero-shot synthesis, 8 scores. A run that was stopped goes on with --stage; training goes on where it was.
#
#   --corpus       mini, or libritts                                                            (libritts)
#   --driver       tts.sh, pip, or auto: tts.sh where it is in this folder                      (auto)
#   --stage, --stop_stage                                                                       (1, 8)
#   --ngpu         GPUs to train on; 0 is the CPU                                               (8; mini 0)
#   --python       Python that has this package and ESPnet                                      (python3)
#   --train_config, --inference_config                     (conf/train.yaml, conf/decode.yaml; mini conf/tuning/train_mini.yaml)
#   --inference_model                                                                           (valid.loss.best.pth)
#   --inference_args                                                                            ()
#   --test_sets                                                                                 (test)
#   --dumpdir, --expdir                                                                         (dump, exp)
#   --local_data_opts                                      for local/data.sh: other parts, sizes of the mini corpus
#
# Anything else goes to the driver: --cache_latents true (the mini corpus has it), --train_args "--max_epoch 10", --nj 8, …

set -euo pipefail

corpus=libritts
driver=auto
stage=1
stop_stage=8
ngpu=
python=python3
train_config=
inference_config=conf/decode.yaml
inference_model=valid.loss.best.pth
inference_args=
test_sets=test
dumpdir=dump
expdir=exp
local_data_opts=
fs=16000
options="corpus driver stage stop_stage ngpu python train_config inference_config inference_model inference_args
 test_sets dumpdir expdir local_data_opts fs"
options=${options//$'\n'/}
passed_on=()

cd "$(dirname "$0")"
. local/common.sh
parse_options "$@"

case "${corpus}" in
    mini)
        train_config=${train_config:-conf/tuning/train_mini.yaml}
        ngpu=${ngpu:-0}
        prompt_set=train # the speakers are the same in all sets
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

shared=(--ngpu "${ngpu}" --train_set train --valid_set valid --test_sets "${test_sets}" --dumpdir "${dumpdir}"
    --expdir "${expdir}" --token_type char --cleaner none --g2p none --fs 16000 --min_wav_duration 0.3 --max_wav_duration 30
    --train_config "${train_config}" --inference_config "${inference_config}" --inference_model "${inference_model}"
    ${passed_on[@]+"${passed_on[@]}"})
data_opts="--corpus ${corpus} ${local_data_opts}"

if [ "${driver}" = pip ]; then
    # Many epochs of a small corpus: the encoder need not run in each. What the caller says of it comes later, and counts.
    [ "${corpus}" != mini ] || shared=(--cache_latents true "${shared[@]}")
    exec local/tts_pip.sh --stage "${stage}" --stop_stage "${stop_stage}" --python "${python}" \
        --prompt_set "${prompt_set}" --inference_args "${inference_args}" --local_data_opts "${data_opts}" "${shared[@]}"
fi
[ "${driver}" = tts.sh ] || die "--driver ${driver}: expected tts.sh, pip or auto"
[ -e tts.sh ] || die "no tts.sh in this folder; install the recipe into an ESPnet checkout with setup.sh, or --driver pip"
[[ "${python}" != *[[:space:]]* ]] || die "--python ${python}: tts.sh would split it at its spaces; give a path without, or --driver pip"

if [ -f path.sh ]; then # activates the checkout's Python
    set +u
    . ./path.sh
    set -u
fi

stock=(./tts.sh --lang en --feats_type raw --feats_extract wavcube --n_shift 320 --vocoder_file none --audio_format flac
    --python "${python} -m wavcube_plugins.espnet.run" --local_data_opts "--python ${python} ${data_opts}"
    --srctexts data/train/text "${shared[@]}")
raw=${dumpdir}/raw
tag=$(basename "${inference_config}" .yaml)

if wanted 1 || wanted 2 || wanted 3 || wanted 4 || wanted 5 || wanted 6; then
    "${stock[@]}" --stage "${stage}" --stop_stage "$((stop_stage < 6 ? stop_stage : 6))"
fi
if wanted 7; then
    for set in ${test_sets}; do
        # tts.sh gives each utterance its own recording; prompts come along by these options.
        "${python}" -m wavcube_plugins.espnet.recipe prompts "${raw}/${set}" --given "data/${set}" \
            --source "${raw}/${prompt_set:-${set}}" --token_list "${dumpdir}/token_list/char/tokens.txt"
        "${stock[@]}" --stage 7 --stop_stage 7 --test_sets "${set}" --inference_tag "${tag}" --inference_args \
            "--data_path_and_name_and_type ${raw}/${set}/prompt_text,prompt_text,text --data_path_and_name_and_type ${raw}/${set}/prompt.scp,prompt_speech,sound ${inference_args}"
    done
fi
if wanted 8; then
    for set in ${test_sets}; do
        [ -f "data/${set}/phones" ] || continue
        for wav in "${expdir}"/*/"${tag}/${set}/wav/wav.scp"; do
            "${python}" -m wavcube_plugins.evaluation.tts_scores speech "data/${set}/phones" "${wav}" "${raw}/${set}/wav.scp"
        done
    done
fi
