"""What a render is measured on: a model by name or a tiny random one, and a figure and dance drawn by code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from animx.bench import synthetic_frames
from animx.canvas import Canvas
from animx.canvas import place as mapped
from animx.diffusion.clip import Clip
from animx.diffusion.engine import model_canvas
from animx.diffusion.options import EngineOptions
from animx.diffusion.pipeline import AnimateXPipeline
from animx.diffusion.precision import obstacles, taken
from animx.diffusion.render import Settings
from animx.diffusion.running import resolved
from animx.diffusion.sampler import Guidance
from animx.diffusion.steppers import make_stepper
from animx.errors import UsageError
from animx.model.config import UNetConfig

RANDOM = "random weights (tiny)"
"""What the model is called where nobody named one: its frames mean nothing."""


def place(device: str | None, dtype: str | None) -> dict[str, str]:
    """The device and storage type to measure with; a `UsageError` for a device that is not there."""
    found = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if found.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"--device {found}: use cpu, cuda or cuda:N")
    if found.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {found}: no CUDA device here. Use --device cpu")
    return {"device": found, "dtype": dtype or ("bfloat16" if found.startswith("cuda") else "float32")}


@dataclass(frozen=True)
class Setup:
    """One way to sample, by name."""

    name: str
    settings: Settings

    @classmethod
    def of(cls, text: str, device: str = "cpu", emulated: bool = False, **fixed: Any) -> Setup:
        """`exact`, `fast`, `fastest`, or options `steps=20,scheduler=unipc`, or both: `fast,steps=20`.

        emulated: what a way takes in 8 bits where the device can, it takes on this device too.
        """
        given: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = part.strip().partition("=")
            given |= {name: _value(value)} if equals else {"speed": name}
        if unknown := [name for name in given if name not in EngineOptions.__dataclass_fields__]:
            raise UsageError(f"{text}: unknown option '{unknown[0]}'. Use a speed, or such as fast,steps=16")
        o = EngineOptions.of({**given, **fixed})
        stands_in_the_way = obstacles(device, UNetConfig())
        arithmetic = taken(o, dict.fromkeys(stands_in_the_way) if emulated else stands_in_the_way)
        window = o.window or 32
        settings = Settings(
            seed=13,
            steps=o.steps,
            scheduler=o.scheduler,
            eta=o.eta,
            guidance=Guidance(o.guidance, o.guidance_start, o.guidance_end, o.guidance_every),
            guidance_batched=bool(o.guidance_batched),
            window=window,
            overlap=o.overlap if o.overlap is not None else min(8, window // 4),
            windows=o.windows,
            stack=resolved(o.stack, device),
            compiled=o.compiled,
            linears=arithmetic.linears,
            attention=arithmetic.attention,
        )
        make_stepper(settings.scheduler, settings.steps, eta=settings.eta)  # refuses what cannot be
        return cls(text, settings)

    @property
    def passes(self) -> int:
        """Passes of the network for one window."""
        s = self.settings
        return s.guidance.passes(len(make_stepper(s.scheduler, s.steps, eta=s.eta).timesteps))


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@contextmanager
def model_folder(model: str | None) -> Iterator[Path]:
    """The folder of a model by name; None: a tiny random one, written into a temporary folder."""
    if model is not None:
        from animx.weights import find_model

        yield find_model(model)
        return
    from animx.diffusion.tiny import write_tiny_release

    with TemporaryDirectory(prefix="animx-bench-") as folder:
        yield write_tiny_release(Path(folder) / "model")


def loaded(folder: Path, device: str, dtype: str) -> AnimateXPipeline:
    """The model on its device."""
    return AnimateXPipeline.from_pretrained(folder).to(device, getattr(torch, dtype))


def drawn_clip(pipeline: AnimateXPipeline, frames: int, size: Canvas) -> Clip:
    """A plain figure that waves, prepared for the model on a canvas near `size`."""
    from animx.puppet.bench import example

    job = example(size.height, frames)
    canvas = model_canvas(size, fixed=True)
    where = mapped(job.canvas, canvas)
    assert job.reference_pose is not None
    return pipeline.prepare(
        np.ascontiguousarray(job.picture[..., :3]),
        job.poses.on(canvas, where),
        synthetic_frames(frames, Canvas(224, 224)),
        reference_pose=job.reference_pose.on(canvas, where),
        generator=torch.Generator().manual_seed(13),
    )


def weights_named(model: str | None, folder: Path) -> str:
    """What the result says about the weights."""
    if model is None:
        return RANDOM
    from animx.weights import model_hash

    return f"{folder.name} {model_hash(folder)[:12]}"
