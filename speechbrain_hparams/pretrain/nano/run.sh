#!/usr/bin/env bash
# Makes WavCube-nano from nothing: natural speech, teacher, both stages, the ablation without anchoring, scores, and the
# folder that ships with the package. Stopped, it goes on where it was.
#
#   speechbrain_hparams/pretrain/nano/run.sh WORK [EXPORT]
#
# WORK takes about 3 GB; EXPORT is where the model goes (WORK/nano). On two CPU cores it takes a day and a half, of which
# stage 2 takes nearly all. Each of these may be set in the environment; a name is downloaded from the Hugging Face hub:
#
#   VOICES      Kokoro's weights: a folder, or a name (onnx-community/Kokoro-82M-v1.0-ONNX)
#   WHISPER     what the teacher learns from: a folder, a .safetensors file, or a name (openai/whisper-base)
#   NATURAL     a corpus that Kokoro spoke already, in place of VOICES; Opus will do
#   SENTENCES   a file with a sentence on each line for Kokoro to say, in place of a small grammar's
#   HOURS       of natural speech to make (5), or to take from NATURAL at most (10); three of Opus are 60 MB
#   RECORDINGS  a folder of real speech to measure on
#   GPU=1       large batches, and discriminators in the last third
#   LIMIT       minutes for stage 2 on one GPU or core; its schedule then ends with the time
#   STEPS       of stage 2 without a limit (40000)
#   QUICK=1     a few steps of everything, to see whether it works
set -euo pipefail

if [[ $# -lt 1 || $1 == -h || $1 == --help ]]; then
    sed -n '2,22p' "$0" | sed 's/^# \{0,1\}//'
    exit 0
fi
work=$1
export=${2:-$work/nano}
python=${PYTHON:-python}
nano=$(cd "$(dirname "$0")" && pwd)
pretrain=$(dirname "$nano")
# bfloat16 halves the time where the processor has it; elsewhere it is slower than float32.
precision=${PRECISION:-bf16}
voices=${VOICES:-onnx-community/Kokoro-82M-v1.0-ONNX}
whisper=${WHISPER:-openai/whisper-base}
steps=${STEPS:-40000}
if [[ ${GPU:-} == 1 ]]; then
    device=cuda
    batches=(--batch_size 64 --num_workers 8)
    teacher=(--batch_crops 64 --steps 2000 --steps_per_epoch 500 --num_workers 12)
else
    device=cpu
    batches=(--batch_size 12 --num_workers 1)
    teacher=(--batch_crops 12 --steps 8000 --steps_per_epoch 500)
fi
first=() made=() measured=() ablation=500
if [[ ${QUICK:-} == 1 ]]; then
    steps=4
    batches=(--batch_size 2 --num_workers 0 --warmup_steps 1 --valid_size 2)
    teacher=(--batch_crops 2 --steps 2 --steps_per_epoch 1)
    first=(--total_steps 2)
    ablation=2
    made=(--valid 2 --test 8 --workers 0)
    measured=(--quick)
fi

# Speech: Kokoro's voices, and a fifth as much by espeak-ng and SVOX Pico, which is built from source if it can be.
if [[ -n ${NATURAL:-} ]]; then
    "$python" -m wavcube_plugins.nano.corpus "$work/natural" --take "$NATURAL" --hours "${HOURS:-10}"
else
    "$python" -m wavcube_plugins.nano.corpus "$work/natural" --engine kokoro --voices "$voices" \
        --hours "${HOURS:-5}" "${made[@]}" ${SENTENCES:+--sentences "$SENTENCES"}
fi
if [[ ${QUICK:-} != 1 ]]; then
    "$python" -c 'import ttspico' 2>/dev/null || "$python" -m pip install --quiet ttspico || true
fi
"$python" -m wavcube_plugins.nano.corpus "$work/robots" --hours "${ROBOT_HOURS:-1.5}" "${made[@]}"
corpus=(--train "[$work/natural/train.jsonl, $work/robots/train.jsonl]" --train_weights "[4, 1]"
    --valid "$work/natural/valid.jsonl" --disturb True --precision "$precision" --device "$device")

"$python" -m wavcube_plugins.nano.teacher "$nano/teacher.yaml" --corpus "[$work/natural, $work/robots]" \
    --corpus_weights "[4, 1]" --whisper "$whisper" --disturb True --keep_audio True --output_folder "$work/teacher" \
    --device "$device" --precision "$precision" "${teacher[@]}"

"$python" "$pretrain/train.py" "$pretrain/stage1.yaml" --preset nano "${corpus[@]}" "${batches[@]}" \
    "${first[@]}" --backbone "$work/teacher/export" --output_folder "$work/stage1"
second=(--preset nano "${corpus[@]}" "${batches[@]}" --start "$work/stage1" --total_steps "$steps" --ema_decay 0.999)
if [[ ${GPU:-} == 1 ]]; then
    second+=(--adversarial_from "$((steps * 2 / 3))" --discriminator_lr 0.0003)
fi
"$python" "$pretrain/train.py" "$pretrain/stage2.yaml" "${second[@]}" --output_folder "$work/stage2" \
    ${LIMIT:+--time_limit "$LIMIT"}
# The ablation: the same without the semantic anchoring loss, as far as tells the two apart.
"$python" "$pretrain/train.py" "$pretrain/stage2.yaml" "${second[@]}" --output_folder "$work/no_anchoring" \
    --semantic_weight 0 --stop_at "$ablation"

"$python" -m wavcube_plugins.nano.measure --corpus "$work/natural" --stage1 "$work/stage1" --stage2 "$work/stage2" \
    --no-anchoring "$work/no_anchoring" ${RECORDINGS:+--recordings "$RECORDINGS"} "${measured[@]}" --out "$work/scores.json"
cat "$nano/card.md" "$work/scores.md" > "$work/notes.md"
"$python" -m wavcube_plugins.cli export "$work/stage2" "$export" --dtype float16 --license apache-2.0 --notes "$work/notes.md" \
    --data "speech synthesised by Kokoro-82M, espeak-ng and SVOX Pico; no recordings"
# Stage 1 of the preset starts from it.
"$python" - "$work/teacher/export" "$export/teacher" <<'PYTHON'
import sys

import torch

from wavcube_plugins.checkpoints.backbones import load_backbone, save_backbone

teacher = load_backbone(sys.argv[1])
teacher.metadata.pop("source")
save_backbone(teacher, sys.argv[2], dtype=torch.float16)
PYTHON
