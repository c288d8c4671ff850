"""Fused operators of the full model: plain PyTorch first (the truth), faster versions beside it.  Tensors only."""
