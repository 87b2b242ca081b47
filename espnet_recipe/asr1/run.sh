#!/usr/bin/env bash
# Speech recognition with WavCube as the frontend.
#
#   ./run.sh --corpus mini                                     # offline, on a CPU
#   ./run.sh --ngpu 4                                          # LibriSpeech train-clean-100; LIBRISPEECH in db.sh
#   ./run.sh --ngpu 4 --asr_config conf/tuning/train_layers.yaml     # weighted sum of layers instead of the latent
#
# In an ESPnet checkout (see setup.sh) this runs the stages of asr.sh, otherwise those of local/asr_pip.sh, which have the
# same numbers and need only pip-installed ESPnet: 1 data, 3 format, 4 length filter, 5 tokens, 10 statistics,
# 11 training, 12 decoding, 13 scores. Resume with --stage; training resumes by itself.
#
#   --corpus       mini or librispeech                                                          (librispeech)
#   --driver       asr.sh, pip, or auto: asr.sh where it is in this folder                      (auto)
#   --stage, --stop_stage                                                                       (1, 13)
#   --ngpu         GPUs to train on; 0 is the CPU                                               (4; mini 0)
#   --python       Python that has this package and ESPnet                                      (python3)
#   --asr_config, --inference_config                                     (conf/train.yaml, conf/decode.yaml; mini: conf/tuning/*_mini.yaml)
#   --local_data_opts                                      for local/data.sh: other parts, sizes of the mini corpus
#
# Everything else goes to the driver, such as --asr_args "--max_epoch 10" or --nj 8. Only the pip driver has
# --cache_latents true (the default for the mini corpus), --datadir and --model.

set -euo pipefail

corpus=librispeech
driver=auto
stage=1
stop_stage=13
ngpu=
python=python3
asr_config=
inference_config=
local_data_opts=
options="corpus driver stage stop_stage ngpu python asr_config inference_config local_data_opts"
passed_on=()

cd "$(dirname "$0")"
. local/common.sh
parse_options "$@"

case "${corpus}" in
    mini)
        asr_config=${asr_config:-conf/tuning/train_mini.yaml}
        inference_config=${inference_config:-conf/tuning/decode_mini.yaml}
        tokens=(--token_type char)
        ngpu=${ngpu:-0}
        ;;
    librispeech)
        asr_config=${asr_config:-conf/train.yaml}
        inference_config=${inference_config:-conf/decode.yaml}
        tokens=(--token_type bpe --nbpe 5000)
        ngpu=${ngpu:-4}
        ;;
    *) die "--corpus ${corpus}: expected mini or librispeech" ;;
esac
if [ "${driver}" = auto ]; then
    if [ -e asr.sh ]; then driver=asr.sh; else driver=pip; fi
fi

shared=(--stage "${stage}" --stop_stage "${stop_stage}" --ngpu "${ngpu}" --train_set train --valid_set valid
    --test_sets test "${tokens[@]}" --asr_config "${asr_config}" --inference_config "${inference_config}"
    --inference_asr_model valid.loss.best.pth ${passed_on[@]+"${passed_on[@]}"})
data_opts="--corpus ${corpus} ${local_data_opts}"

if [ "${driver}" = pip ]; then
    # A small corpus has many epochs, so the encoder should not run in each. The caller's own option follows, and wins.
    [ "${corpus}" != mini ] || shared=(--cache_latents true "${shared[@]}")
    exec local/asr_pip.sh --python "${python}" --local_data_opts "${data_opts}" "${shared[@]}"
fi
[ "${driver}" = asr.sh ] || die "--driver ${driver}: expected asr.sh, pip or auto"
[ -e asr.sh ] || die "no asr.sh in this folder; install the recipe into an ESPnet checkout with setup.sh, or --driver pip"
[[ "${python}" != *[[:space:]]* ]] || die "--python ${python}: asr.sh would split it at its spaces; give a path without, or --driver pip"
refuse_pip_options asr.sh cache_latents datadir model
expect_stage asr.sh 10 "ASR collect stats"
expect_stage asr.sh 11 "ASR Training"
expect_stage asr.sh 12 "Decoding"
expect_stage asr.sh 13 "Scoring"
exec ./asr.sh --lang en --feats_type raw --fs 16k --audio_format flac --use_lm false --feats_normalize utterance_mvn \
    --python "${python} -m wavcube_plugins.espnet.run" --local_data_opts "--python ${python} ${data_opts}" \
    --bpe_train_text data/train/text --lm_train_text data/train/text \
    "${shared[@]}"
