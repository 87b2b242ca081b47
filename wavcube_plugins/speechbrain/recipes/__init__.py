"""What the training scripts in `speechbrain_hparams/` share: command line, experiments, data, cache, exact resuming."""
