"""Downstream heads and their losses in plain PyTorch, independent of any toolkit.

Every head takes features (B, L, C) and frame counts (B,), and its output for an item does not depend on the padding.
The constructor is `Head(in_dim, out_dim, ...)`: the channels of the features, and the size of the output, which usually
follows from the data.
"""
