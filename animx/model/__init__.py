"""The Animate-X network: UNet, implicit pose indicator, condition encoders, schedule.  Tensors in, tensors out.

Letters: B batch, F output frames, T = F + 1 slots (the reference slot first), C channels, h w latent px, H W image px,
N tokens, D width, K = 18 keypoints.  Facts are those of the released code (commit e41d3f0) unless a docstring says
paper.
"""
