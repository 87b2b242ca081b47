"""The network in plain PyTorch; knows nothing of any toolkit."""
