"""WavCube's two-stage pretraining: losses, discriminators and the training step, without any framework."""
