"""What a render needs in memory, and which tier fits: window batch, precision, offload, decode batch.

Figures are counted from the network's shapes (weights) plus an activation term fitted to the op counts of the released
size; they are predictions until a run on the card in question has been recorded in docs/benchmarks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from animx.model.config import UNetConfig

GIB = 1024**3

# Parameters of the released parts (released facts 2).
UNET_PARAMETERS = 1_817_708_556
CLIP_PARAMETERS = 632_076_800
VAE_PARAMETERS = 83_653_863


@dataclass(frozen=True)
class Tier:
    """One way to run: smaller tiers trade speed for memory."""

    name: str
    dtype: str
    """Precision of the networks: float32, bfloat16 or float16."""
    offload: bool
    """Keep only the network in use on the device."""
    window: int
    """Largest window; smaller ones follow when memory runs out."""
    decode_batch: int
    """Frames decoded at once."""


TIERS: tuple[Tier, ...] = (
    Tier("full", "bfloat16", False, 32, 8),
    Tier("offload", "bfloat16", True, 32, 2),
    Tier("small", "bfloat16", True, 16, 1),
    Tier("tiny", "bfloat16", True, 8, 1),
)


def predicted_bytes(tier: Tier, latent: tuple[int, int], config: UNetConfig | None = None) -> int:
    """Peak bytes on the device for a window of the tier on a latent grid (h, w)."""
    config = config or UNetConfig()
    size = 4 if tier.dtype == "float32" else 2
    scale = (config.width / 320) ** 2
    unet, others = int(UNET_PARAMETERS * scale) * size, (CLIP_PARAMETERS + VAE_PARAMETERS) * size
    weights = max(unet, others) if tier.offload else unet + others
    slots = tier.window + 1
    # The widest moment of a step: 12 skips on their levels, and a GEGLU of 8 times the channels at the first level.
    pass_bytes = slots * latent[0] * latent[1] * config.width * size
    activations = int(pass_bytes * (3 * (1 + 1 / 2 + 1 / 4 + 1 / 16) + 8 + 6))
    decode = tier.decode_batch * latent[0] * latent[1] * 64 * 128 * size * 6
    return weights + max(activations, decode)


def choose_tier(free: int, latent: tuple[int, int], config: UNetConfig | None = None, dtype: str = "bfloat16") -> Tier:
    """The first tier whose prediction in `dtype` fits into `free` bytes with a tenth to spare, or the last one."""
    for tier in TIERS:
        if predicted_bytes(replace(tier, dtype=dtype), latent, config) <= free * 0.9:
            return tier
    return TIERS[-1]


def tier_table(
    latent: tuple[int, int], config: UNetConfig | None = None, dtype: str = "bfloat16"
) -> list[tuple[Tier, float]]:
    """Every tier with its predicted GiB in `dtype`."""
    tiers = [replace(tier, dtype=dtype) for tier in TIERS]
    return [(tier, predicted_bytes(tier, latent, config) / GIB) for tier in tiers]


def tier_lines(latent: tuple[int, int], dtype: str = "bfloat16") -> list[str]:
    """The table for `--dry-run`, a line per tier."""
    return [
        f"{tier.name:<8} {gib:5.1f} GiB: windows of {tier.window}, {tier.decode_batch} decoded at once, "
        f"{'one network at a time' if tier.offload else 'all networks'} on the device"
        for tier, gib in tier_table(latent, dtype=dtype)
    ]
