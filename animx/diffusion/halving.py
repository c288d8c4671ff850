"""What to try next when memory runs out: half of what did not fit, in a fixed order, so that all ranks agree."""

from __future__ import annotations

from dataclasses import replace

from animx.diffusion.options import SMALLEST_TILE
from animx.diffusion.render import Settings
from animx.diffusion.windows import cut_segments, cut_windows

CHANGEABLE = ("window", "overlap", "window_batch", "guidance_batched", "decode_batch", "tile")
"""Settings that follow from the memory unless they are named."""


def changeable(settings: Settings) -> dict[str, int]:
    """The values of `CHANGEABLE`, as a job folder remembers them."""
    return {name: getattr(settings, name) for name in CHANGEABLE}


def halved(settings: Settings, frames: int) -> Settings | None:
    """One branch of the guidance at once, fewer windows at once, then shorter windows, for a clip of `frames`.

    None when one frame was too much.
    """
    s = settings
    if s.guidance_batched:
        return replace(s, guidance_batched=False)
    segment = cut_segments(frames, s.window, s.overlap, s.windows)[0]
    together = min(s.window_batch, len(cut_windows(segment.frames, s.window, s.overlap)))
    if together > 1:
        return replace(s, window_batch=together // 2)
    window = min(s.window, frames) // 2
    return replace(s, window=window, overlap=min(s.overlap, window // 4), window_batch=1) if window else None


def decoding_halved(settings: Settings, latent: tuple[int, int]) -> Settings | None:
    """Fewer frames decoded at once, then tiles of half the side; None at the smallest tile.

    latent: (h, w) of the grid.
    """
    s = settings
    if s.decode_batch > 1:
        return replace(s, decode_batch=s.decode_batch // 2)
    side = min(s.tile or max(latent), max(latent))
    tile = -(-side // 16) * 8  # half of it, in eights
    return replace(s, tile=tile) if SMALLEST_TILE <= tile < side else None


def sizes(settings: Settings) -> str:
    """The sizes in words, for a message."""
    s = settings
    at_once = f", {s.window_batch} at once" if s.window_batch > 1 else ""
    at_once += ", both branches of the guidance in one pass" if s.guidance_batched else ""
    tiles = f" in tiles of {s.tile * 8} px" if s.tile else ""
    return f"windows of {s.window} frames (overlap {s.overlap}){at_once} and {s.decode_batch} decoded at once{tiles}"
