"""The options of the `animate-x` engine: names, types, defaults, and what is refused before any work.  No torch here.

Those with a command-line name are `--steps` and so on; all can be given as `--set animate-x.NAME=VALUE`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from animx.diffusion.speed import SPEEDS, with_speed
from animx.errors import UsageError, nearest

DEFAULT_MODEL = "animate-x"
DTYPES = ("float32", "bfloat16", "float16")
STACKS = ("plain", "fused", "auto")
LINEARS = ("exact", "fp8", "auto")
ATTENTIONS = ("exact", "int8", "auto")
IMAGE_ENCODERS = ("transformers", "open_clip")
SMALLEST_TILE = 16
"""Smaller tiles are mostly overlap [latent cells]."""
UNRECORDED = frozenset({"device", "vram", "resume", "preview", "stream", "graph"})
"""Options that change no byte of the output by themselves, so that the recipe leaves them out."""


@dataclass(frozen=True)
class EngineOptions:
    """Options as given; None = chosen by the memory tier or the device."""

    model: str = DEFAULT_MODEL
    """Model by name or folder."""
    speed: str = "exact"
    """exact, fast or fastest: a word for scheduler, steps and guidance; options given by name win over it."""
    steps: int = 30
    """Denoising steps asked for (the released spacing makes 31 of 30)."""
    scheduler: str = "released"
    """released, ddim, dpm++2m or unipc."""
    eta: float = 0.0
    """Share of fresh noise in each step, 0..1; ddim only."""
    guidance: float = 2.5
    """Guidance scale; 1 = none."""
    guidance_start: float = 0.0
    """Share of the steps after which guidance begins, 0..1."""
    guidance_end: float = 1.0
    """Share of the steps after which guidance ends, 0..1."""
    guidance_every: int = 1
    """Run the unconditional branch in every so many guided steps and reuse its difference in between; 1 = in all."""
    guidance_batched: bool | None = None
    """Run both guidance branches as one batch (the results differ in the last bits); None = where it pays: small
    canvases and short windows, see `memory.pays_batched`."""
    window: int | None = None
    """Frames the network sees at once."""
    overlap: int | None = None
    """Frames that two windows share; None = a quarter of the window, at most 8."""
    windows: int = 4
    """Windows blended per segment."""
    window_batch: int | None = None
    """Windows that go through the network at once (the results differ in the last bits); None = by the tier."""
    colour: bool = True
    """Pull the colours of later segments back to the first one's."""
    stack: str = "auto"
    """Form of the network: plain, fused (token-major, our kernels), or auto (fused on CUDA)."""
    compiled: bool = False
    """Compile the plain network's parts with torch.compile (minutes at the first start; kept in a folder)."""
    linears: str = "exact"
    """Large linear layers of the network: exact, fp8 (8 bits; emulated where the device has none, slowly), or auto (fp8
    where the device has it)."""
    attention: str = "exact"
    """Large attentions of the network: exact, int8 (queries and keys in 8 bits; likewise), or auto."""
    graph: bool = False
    """Record a step as a CUDA graph (CUDA, without offloading); changes no byte."""
    device: str | None = None
    """cpu, cuda or cuda:N; None = CUDA where there is one."""
    dtype: str | None = None
    """float32, bfloat16 or float16; None = bfloat16 on CUDA, float32 on the CPU."""
    vram: float | None = None
    """Memory of the device to stay within [GB]; None = what is free."""
    image_encoder: str = "transformers"
    """Library that runs the image encoder: transformers, or open_clip (extra `openclip`)."""
    decode_batch: int | None = None
    """Frames decoded at once."""
    tile: int | None = None
    """Largest side of what is decoded at once [latent cells of 8 px]; 0 = whole frames; None = by the tier."""
    stream: bool | None = None
    """Decode in a thread beside the denoising of the next segment; None = on CUDA."""
    resume: bool = False
    """Go on with the job folder of a broken render."""
    preview: int | None = None
    """Write a puppet preview first, and a decoded picture every so many steps."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> EngineOptions:
        """Check types and ranges; a `UsageError` names the option as it was given."""
        hints = get_type_hints(cls)
        filled = with_speed(given)
        values = {name: _typed(name, value, hints[name]) for name, value in filled.items() if value is not None}
        return cls(**values)

    def __post_init__(self) -> None:
        if self.speed not in SPEEDS:
            raise UsageError(f"--speed '{self.speed}': use {', '.join(SPEEDS)}.{nearest(self.speed, SPEEDS)}")
        for name in ("steps", "windows", "window", "window_batch", "decode_batch", "preview", "guidance_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{shown(name)} {value}: use a whole number from 1")
        if self.overlap is not None and self.overlap < 0:
            raise UsageError(f"--overlap {self.overlap}: use a whole number from 0")
        if self.overlap is not None and self.window is not None and self.overlap >= self.window:
            raise UsageError(f"--overlap {self.overlap} leaves no new frames in a window of {self.window}")
        if self.tile is not None and self.tile != 0 and self.tile < SMALLEST_TILE:
            raise UsageError(f"{shown('tile')} {self.tile}: use 0 for whole frames, or at least {SMALLEST_TILE}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype}: use {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
        if self.stack not in STACKS:
            raise UsageError(f"{shown('stack')} {self.stack}: use {', '.join(STACKS[:-1])} or {STACKS[-1]}")
        for name, known in (("linears", LINEARS), ("attention", ATTENTIONS)):
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"{shown(name)} {value}: use {', '.join(known[:-1])} or {known[-1]}")
        if self.compiled and self.stack == "fused":
            raise UsageError(f"{shown('compiled')}: is for the plain network. Add {shown('stack')}=plain")
        if self.image_encoder not in IMAGE_ENCODERS:
            raise UsageError(f"{shown('image_encoder')} {self.image_encoder}: use {' or '.join(IMAGE_ENCODERS)}")
        if self.vram is not None and self.vram <= 0:
            raise UsageError(f"--vram {self.vram:g}: use the memory in GB, such as 24")
        if not 0 <= self.guidance_start < self.guidance_end <= 1:
            raise UsageError(
                f"{shown('guidance_start')} {self.guidance_start:g} and {shown('guidance_end')} {self.guidance_end:g}: "
                "use shares of the steps, 0 to 1, the start before the end"
            )


NAMES = frozenset(one.name for one in fields(EngineOptions))


def shown(name: str) -> str:
    """How a user writes the option."""
    named = {"speed", "steps", "guidance", "scheduler", "window", "overlap", "model", "device", "dtype", "vram"}
    return f"--{name}" if name in named | {"resume", "preview"} else f"--set animate-x.{name}"


def _typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type; refused when it is of another."""
    kinds = set(getattr(hint, "__args__", (hint,))) - {type(None)}
    (kind,) = kinds
    if kind is str and isinstance(value, (str, Path)):
        return str(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    wanted = {str: "a word", bool: "true or false", int: "a whole number", float: "a number"}[kind]
    raise UsageError(f"{shown(name)} {value!r}: expected {wanted}")
