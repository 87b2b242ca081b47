# Where asr.sh of an ESPnet checkout runs its jobs. Here: on this machine, with Kaldi's run.pl; for a cluster see
# egs2/TEMPLATE/asr1/cmd.sh. Without a checkout (local/asr_pip.sh) this file is not used.
export train_cmd="run.pl"
export cuda_cmd="run.pl"
export decode_cmd="run.pl"
