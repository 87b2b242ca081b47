"""Speech on disk: manifests, extraction of latents, corpora, and Kaldi folders."""
