#!/usr/bin/env bash
# Makes WavCube-nano from nothing: speech, teacher, both stages, the ablation without anchoring, scores, and the folder
# that ships with the package. Stopped, it goes on where it was.
#
#   speechbrain_hparams/pretrain/nano/run.sh WORK [EXPORT]
#
# WORK takes about 2 GB; EXPORT is where the model goes (WORK/nano). About six hours on one CPU core, of which stage 2
# takes nearly all; RECORDINGS=folder measures on recordings of your own too.
set -euo pipefail

if [[ $# -lt 1 || $1 == -h || $1 == --help ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 0
fi
work=$1
export=${2:-$work/nano}
python=${PYTHON:-python}
nano=$(cd "$(dirname "$0")" && pwd)
pretrain=$(dirname "$nano")
# bfloat16 halves the time where the processor has it; elsewhere it is slower than float32.
precision=${PRECISION:-bf16}
corpus=(--train "$work/corpus/train.jsonl" --valid "$work/corpus/valid.jsonl")
# Four times as much as the preset, which is for a first try.
long=(--batch_size 12 --total_steps 14000)

# `ttspico` adds natural voices; it is built from source, and without it espeak-ng speaks alone.
"$python" -c 'import ttspico' 2>/dev/null || "$python" -m pip install --quiet ttspico || true
"$python" -m wavcube_plugins.nano.corpus "$work/corpus"
"$python" -m wavcube_plugins.nano.teacher "$nano/teacher.yaml" --corpus "$work/corpus" --output_folder "$work/teacher"

"$python" "$pretrain/train.py" "$pretrain/stage1.yaml" --preset nano "${corpus[@]}" --precision "$precision" \
    --backbone "$work/teacher/export" --output_folder "$work/stage1"
"$python" "$pretrain/train.py" "$pretrain/stage2.yaml" --preset nano "${corpus[@]}" --precision "$precision" \
    "${long[@]}" --start "$work/stage1" --output_folder "$work/stage2"
# The ablation: the same without the semantic anchoring loss, as far as tells the two apart.
"$python" "$pretrain/train.py" "$pretrain/stage2.yaml" --preset nano "${corpus[@]}" --precision "$precision" \
    "${long[@]}" --start "$work/stage1" --output_folder "$work/no_anchoring" --semantic_weight 0 --stop_at 500

"$python" -m wavcube_plugins.nano.measure --corpus "$work/corpus" --stage1 "$work/stage1" --stage2 "$work/stage2" \
    --no-anchoring "$work/no_anchoring" ${RECORDINGS:+--recordings "$RECORDINGS"} --out "$work/scores.json"
cat "$nano/card.md" "$work/scores.md" > "$work/notes.md"
"$python" -m wavcube_plugins.cli export "$work/stage2" "$export" --dtype float16 --license apache-2.0 --notes "$work/notes.md" \
    --data "ten hours of speech synthesised by espeak-ng and SVOX Pico; no recordings"
# Stage 1 of the preset starts from it.
"$python" - "$work/teacher/export" "$export/teacher" <<'PYTHON'
import sys

import torch

from wavcube_plugins.checkpoints.backbones import load_backbone, save_backbone

teacher = load_backbone(sys.argv[1])
teacher.metadata.pop("source")
save_backbone(teacher, sys.argv[2], dtype=torch.float16)
PYTHON
