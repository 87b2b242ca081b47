#!/usr/bin/env bash
# Makes data/train, data/valid and data/test.
#
#   local/data.sh                                   # LibriTTS, unpacked where LIBRITTS in db.sh says
#   local/data.sh --corpus mini                     # sentences synthesised by espeak-ng, a minute, no download
#   local/data.sh --train train-clean-100,train-clean-360      # other parts of LibriTTS
#
# With run.sh:  --local_data_opts "--train train-clean-100,train-clean-360".
#
#   --corpus      libritts or mini                                   (libritts)
#   --train       parts of LibriTTS for training                     (train-clean-100,train-clean-360,train-other-500)
#   --valid       for validation                                     (dev-clean)
#   --test        for synthesis                                      (test-clean)
#   --mini_train  sentences of the mini corpus to train on, one to three of a speaker in an utterance  (1000)
#   --mini_valid  for validation                                     (20)
#   --mini_test   for synthesis                                      (20)
#   --speakers    speakers of the mini corpus                        (12)
#   --datadir     folder for the sets                                (data)
#   --python      Python that has this package                       (python3)

set -euo pipefail

corpus=libritts
train=train-clean-100,train-clean-360,train-other-500
valid=dev-clean
test=test-clean
mini_train=1000
mini_valid=20
mini_test=20
speakers=12
datadir=data
python=python3
options="corpus train valid test mini_train mini_valid mini_test speakers datadir python"

. local/common.sh
parse_options "$@"

case "${corpus}" in
    mini)
        "${python}" -m wavcube_plugins.espnet.recipe mini "${datadir}" --speakers "${speakers}" --join 3 \
            --train "${mini_train}" --valid "${mini_valid}" --test "${mini_test}"
        ;;
    libritts)
        . ./db.sh
        folder=$(corpus_folder LIBRITTS openslr.org/60)
        "${python}" -m wavcube_plugins.espnet.recipe libritts "${folder}" "${datadir}" \
            --train "${train}" --valid "${valid}" --test "${test}"
        ;;
    *) die "--corpus ${corpus}: expected libritts or mini" ;;
esac
