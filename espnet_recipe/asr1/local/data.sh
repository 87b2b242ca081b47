#!/usr/bin/env bash
# Makes data/train, data/valid and data/test.
#
#   local/data.sh                                   # LibriSpeech, unpacked where LIBRISPEECH in db.sh says
#   local/data.sh --corpus mini                     # sentences synthesised by espeak-ng, a minute, no download
#   local/data.sh --train train-clean-100,train-clean-360      # other parts of LibriSpeech
#
# With run.sh:  --local_data_opts "--train train-clean-100,train-clean-360".
#
#   --corpus      librispeech or mini                                (librispeech)
#   --train       parts of LibriSpeech to train on                   (train-clean-100)
#   --valid       for validation                                     (dev-clean)
#   --test        for recognition                                    (test-clean)
#   --mini_train  utterances of the mini corpus to train on          (400)
#   --mini_valid  for validation                                     (20)
#   --mini_test   for recognition                                    (20)
#   --speakers    speakers of the mini corpus                        (12)
#   --datadir     folder for the sets                                (data)
#   --python      Python that has this package                       (python3)

set -euo pipefail

corpus=librispeech
train=train-clean-100
valid=dev-clean
test=test-clean
mini_train=400
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
        "${python}" -m wavcube_plugins.espnet.recipe mini "${datadir}" --speakers "${speakers}" \
            --train "${mini_train}" --valid "${mini_valid}" --test "${mini_test}"
        ;;
    librispeech)
        . ./db.sh
        folder=$(corpus_folder LIBRISPEECH openslr.org/12)
        "${python}" -m wavcube_plugins.espnet.recipe librispeech "${folder}" "${datadir}" \
            --train "${train}" --valid "${valid}" --test "${test}"
        ;;
    *) die "--corpus ${corpus}: expected librispeech or mini" ;;
esac
