"""Fused operators of the full model: plain PyTorch first (the truth), Triton beside it.  Tensors only.

Each operator is a file of its own (`animx_kernels.geglu`: reference, contract, operator) with its Triton bodies beside
it (`geglu_triton`, imported when they are needed).  `animx_kernels.dispatch.load_ops()` names them all.  Importing this
package alone imports no torch.
"""
