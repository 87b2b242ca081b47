"""What the recipes in `speechbrain_hparams/` share: the command line, data, cached latents, and the training loop."""
