"""Retargeting: `PoseSequence -> PoseSequence`, aligned to a reference and rescaled by presets."""
