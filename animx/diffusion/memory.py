"""What a render needs in memory, and which tier fits: windows at once, precision, offload, decoded frames, tiles.

The activations are counted, not guessed: the greatest sum of live tensors during a pass of the full-size networks on
the meta device (tests/test_memory_model.py counts again).  What a device adds of its own (context, workspaces of its
libraries, fragments) is not in them; a tenth is kept to spare.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from animx.errors import UsageError
from animx.model.config import UNetConfig

GIB = 1024**3

# Parameters of the released parts (released facts 2).
UNET_PARAMETERS = 1_817_708_556
CLIP_PARAMETERS = 632_076_800
VAE_PARAMETERS = 83_653_863
EIGHT_BIT_PARAMETERS = {"transformer": 611_848_192, "mamba": 198_246_400}
"""Parameters of the network that `linears=fp8` keeps in 8 bits (mamba: with the paper's motion attention)."""

PASS = {"transformer": ((31.5, 0.0),), "mamba": ((42.0, 0.0),)}
"""Peak of a pass in feature maps of the first level: (per slot, besides), of which the greater one counts."""
DECODE = 6.05
"""Peak of the decoder in feature maps of 128 channels on the frame's pixels, per frame."""
FULL_PASS = 33 * 6144
"""Slots times latent cells of the released size: such a pass fills a large card, and more at once gains little."""

BATCHED = {"cpu": 1024, "cuda": 16384}
"""Slots times latent cells of a window up to which both guidance branches share a pass.  On a CPU measured: 1.1 to 1.4
times less for both below, next to nothing above.  On CUDA predicted: so long launching takes longer than computing."""


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
    batch: int
    """Windows that go through the network at once."""
    decode_batch: int
    """Frames decoded at once."""
    tile: int = 0
    """Largest side of what is decoded at once [latent cells]; 0 = whole frames."""


TIERS: tuple[Tier, ...] = (
    Tier("full", "bfloat16", False, 32, 4, 8),
    Tier("offload", "bfloat16", True, 32, 2, 2),
    Tier("small", "bfloat16", True, 16, 1, 1),
    Tier("tiny", "bfloat16", True, 8, 1, 1),
)
TILES = (128, 96, 64, 48, 32)
"""Sides of tiles that are tried when a whole frame does not fit [latent cells]."""


def config_of(folder: Path) -> UNetConfig:
    """The shape of the network in a model folder, as its small files tell; the released one where they tell nothing."""
    for name, key in (("animx.json", "unet"), ("unet/config.json", "shape")):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))[key]
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
            return UNetConfig(**given)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
            continue  # loading the weights tells what is wrong with it
    return UNetConfig()


def pass_bytes(latent: tuple[int, int], window: int, rows: int, dtype: str, config: UNetConfig | None = None) -> int:
    """Peak bytes of the activations of one pass of the network: `rows` windows (or branches) on a grid (h, w)."""
    config = config or UNetConfig()
    one = latent[0] * latent[1] * config.width * _size(dtype)
    return int(rows * one * max(a * (window + 1) + b for a, b in PASS[config.temporal]))


def pays_batched(latent: tuple[int, int], window: int, device: str) -> bool:
    """Whether both guidance branches of windows of so many frames on a grid (h, w) should share a pass."""
    most = BATCHED["cuda" if device.startswith("cuda") else "cpu"]
    return (window + 1) * latent[0] * latent[1] <= most


def condition_bytes(latent: tuple[int, int], window: int, dtype: str, config: UNetConfig | None = None) -> int:
    """Bytes of the conditions of one window: the dense feature, the context's keys and values, the motion's folds."""
    config = config or UNetConfig()
    slots = window + 1
    # Sums over the 16 spatial transformers: channels 39 widths, their squares 121.
    context = 81 * 2 * 39 * config.width
    folds = (
        0 if config.motion == "none" else slots * 2 * 121 * config.width**2 * config.motion_tokens // config.head_dim
    )
    dense = (config.concat_channels * slots + config.in_channels) * latent[0] * latent[1]
    return int((context + folds * 1.01 + dense) * _size(dtype))  # a hundredth for the folds' biases


def decode_bytes(latent: tuple[int, int], frames: int, tile: int, dtype: str) -> int:
    """Peak bytes of decoding `frames` at once, in tiles of `tile` latent cells or (0) whole."""
    cells, size = latent[0] * latent[1], _size(dtype)
    cut = min(latent[0], tile) * min(latent[1], tile) if tile else cells
    peak = cut * 64 * 128 * size * DECODE
    if cut < cells:
        # What goes into the tiles, and the result with its weights; before that, the part that is never cut.
        peak = max(peak + cells * (512 * size + 64 * 4 * 4), cells * 512 * size * 8.05)
    return int(frames * peak)


def predicted_bytes(
    tier: Tier,
    latent: tuple[int, int],
    config: UNetConfig | None = None,
    *,
    branches: int = 1,
    windows: int = 4,
    stream: bool = False,
    linears: str = "exact",
) -> int:
    """Peak bytes on the device for a tier on a latent grid (h, w).

    branches: 2 where both guidance branches run as one batch.  windows: windows of a segment, whose conditions are
    held.  stream: frames are decoded while the next segment is denoised (never with offloading).  linears: fp8 where
    the network's large linear layers are in 8 bits.
    """
    config = config or UNetConfig()
    size = _size(tier.dtype)
    unet = UNET_PARAMETERS * size - (EIGHT_BIT_PARAMETERS[config.temporal] * (size - 1) if linears == "fp8" else 0)
    unet = int(unet * (config.width / 320) ** 2)
    clip, vae = CLIP_PARAMETERS * size, VAE_PARAMETERS * size
    rows = tier.batch * branches
    # Every window's, one for all unconditional rows, and both stacked where rows share a pass.
    copies = windows + 1 + (2 * windows if rows > 1 else 0)
    held = copies * condition_bytes(latent, tier.window, tier.dtype, config)
    denoise = held + pass_bytes(latent, tier.window, rows, tier.dtype, config)
    decode = decode_bytes(latent, tier.decode_batch, tier.tile, tier.dtype)
    if tier.offload:
        return max(unet + denoise, clip, vae + held + decode)
    return unet + clip + vae + (denoise + decode if stream else max(denoise, held + decode))


def choose_tier(
    free: int,
    latent: tuple[int, int],
    config: UNetConfig | None = None,
    dtype: str = "bfloat16",
    *,
    branches: int = 1,
    windows: int = 4,
    stream: bool = False,
    linears: str = "exact",
) -> Tier:
    """The first tier whose prediction in `dtype` fits into `free` bytes with a tenth to spare, or the smallest."""
    tier = TIERS[-1]
    for tier in _ways(latent, dtype, windows):
        need = predicted_bytes(
            tier,
            latent,
            config,
            branches=branches,
            windows=windows,
            stream=stream and not tier.offload,
            linears=linears,
        )
        if need <= free * 0.9:
            return tier
    return tier


def tier_table(
    latent: tuple[int, int], config: UNetConfig | None = None, dtype: str = "bfloat16", **how: Any
) -> list[tuple[Tier, int]]:
    """Every tier as it would be used on the grid, with its predicted bytes in `dtype`; `how` as `predicted_bytes`."""
    tiers = [_suited(tier, latent, dtype, how.get("windows", 4)) for tier in TIERS]
    return [
        (tier, predicted_bytes(tier, latent, config, **{**how, "stream": bool(how.get("stream")) and not tier.offload}))
        for tier in tiers
    ]


def tier_lines(
    latent: tuple[int, int], dtype: str = "bfloat16", config: UNetConfig | None = None, **how: Any
) -> list[str]:
    """The table for `--dry-run`, a line per tier."""
    return [
        f"{tier.name:<8} {size / GIB:5.1f} GiB: windows of {tier.window}, {tier.batch} at once, "
        f"{tier.decode_batch} frames decoded at once, "
        f"{'one network at a time' if tier.offload else 'all networks'} on the device"
        for tier, size in tier_table(latent, config, dtype, **how)
    ]


def _size(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _suited(tier: Tier, latent: tuple[int, int], dtype: str, windows: int) -> Tier:
    """A tier for a grid: no more windows at once than fill the device, or than a segment has."""
    filling = FULL_PASS // ((tier.window + 1) * latent[0] * latent[1])
    return replace(tier, dtype=dtype, batch=max(1, min(tier.batch, filling, windows)))


def _ways(latent: tuple[int, int], dtype: str, windows: int) -> Iterator[Tier]:
    """Ways to run from the fastest to the smallest: each tier with fewer windows at once, the last one in tiles too."""
    for tier in TIERS:
        suited = _suited(tier, latent, dtype, windows)
        while True:
            yield suited
            if suited.batch == 1:
                break
            suited = replace(suited, batch=suited.batch // 2)
    yield from (replace(suited, tile=tile) for tile in TILES if tile < max(latent))
