"""Downstream heads in plain PyTorch: classification, sequence labels, restoration, voice conversion."""
