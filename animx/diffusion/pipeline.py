"""`AnimateXPipeline`: the full model in the manner of diffusers.

    pipeline = AnimateXPipeline.from_pretrained("path/to/model").to("cuda", torch.bfloat16)
    video = pipeline(picture, poses, driving_frames, num_inference_steps=30).frames
    pipeline.save_pretrained("converted")

`from_pretrained` takes released files or a converted folder.  For long clips use `stream`, which yields frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animx import __version__
from animx.canvas import Canvas
from animx.diffusion.clip import make_clip
from animx.diffusion.components import Components, load_components, save_components
from animx.diffusion.ranks import Ranks
from animx.diffusion.render import Drift, Settings, StepProgress, render_clip
from animx.diffusion.sampler import Guidance
from animx.errors import UsageError
from animx.job import ChunkStore
from animx.pose.sequence import PoseSequence
from animx.weights import find_model, write_hashes

StepCallback = Callable[["AnimateXPipeline", int, int, dict[str, Tensor]], Any]
"""(pipeline, segment, step, {"latents": ...}), called after every step."""


@dataclass(frozen=True)
class AnimateXOutput:
    """What a call returns."""

    frames: NDArray[np.uint8]  # [N, H, W, 3] RGB
    drift: Drift


class AnimateXPipeline:
    """Reference picture, poses and driving frames in; frames out."""

    def __init__(self, components: Components) -> None:
        self.components = components
        self.scheduler = "released"
        """Name of the scheduler: released, ddim, dpm++2m or unipc."""
        self._offload: torch.device | None = None

    @classmethod
    def from_pretrained(cls, name: str | Path, **changes: Any) -> AnimateXPipeline:
        """Load a model by path or name, strictly.  `changes` are fields of `UNetConfig` (conditions, alpha, ...)."""
        return cls(load_components(find_model(str(name)), changes))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the converted form (safetensors, config, hashes) into a new or empty folder."""
        target = Path(folder)
        if target.exists() and any(target.iterdir()):
            raise UsageError(f"{target}: is not empty. Name a new folder")
        target.mkdir(parents=True, exist_ok=True)
        save_components(self.components, target, __version__)
        write_hashes(target)

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> AnimateXPipeline:
        """Move all networks; returns itself."""
        self.components.to(torch.device(device), dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.components.unet.parameters()).device

    def enable_model_cpu_offload(self, device: str | torch.device = "cuda") -> None:
        """Keep the image encoder and the codec on the CPU except while they work (less memory, a little slower)."""
        from accelerate import cpu_offload_with_hook

        self._offload = torch.device(device)
        hook = None
        for part in (self.components.image_encoder, self.components.unet, self.components.vae):
            _, hook = cpu_offload_with_hook(part, self._offload, prev_module_hook=hook)

    def stream(
        self,
        picture: NDArray[np.uint8],
        poses: PoseSequence,
        driving_frames: Iterable[NDArray[np.uint8]],
        *,
        settings: Settings | None = None,
        keypoints: PoseSequence | None = None,
        reference_pose: PoseSequence | None = None,
        store: ChunkStore | None = None,
        drift: Drift | None = None,
        on_step: StepProgress | None = None,
        callback_on_step_end: StepCallback | None = None,
        ranks: Ranks | None = None,
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield RGB frames [H, W, 3] on the canvas of `poses`, one per pose, as segments are finished.

        picture: reference, RGB [H, W, 3].  keypoints: the driving poses before alignment (default: `poses`).
        """
        settings = settings or Settings(scheduler=self.scheduler)
        canvas = poses.canvas
        if canvas.width % 8 or canvas.height % 8:
            raise UsageError(f"--size {canvas}: the full model needs sides that are multiples of 8")
        generator = torch.Generator().manual_seed(settings.seed)
        clip = make_clip(
            self.components, canvas, picture, poses, keypoints or poses, driving_frames, reference_pose, generator
        )

        def on_latents(segment: int, step: int, latents: Tensor) -> None:
            if callback_on_step_end is not None:
                callback_on_step_end(self, segment, step, {"latents": latents})

        yield from render_clip(
            self.components,
            clip,
            settings,
            store=store,
            drift=drift,
            on_step=on_step,
            on_latents=on_latents,
            ranks=ranks,
        )

    def __call__(
        self,
        picture: NDArray[np.uint8],
        poses: PoseSequence,
        driving_frames: Sequence[NDArray[np.uint8]],
        *,
        num_inference_steps: int = 30,
        guidance_scale: float = 2.5,
        seed: int = 13,
        settings: Settings | None = None,
        **kwargs: Any,
    ) -> AnimateXOutput:
        """All frames of a clip at once.  `settings` overrules the named numbers; further arguments as `stream`."""
        drift = Drift()
        settings = settings or replace(
            Settings(),
            steps=num_inference_steps,
            guidance=Guidance(guidance_scale),
            seed=seed,
            scheduler=self.scheduler,
        )
        frames = list(self.stream(picture, poses, driving_frames, settings=settings, drift=drift, **kwargs))
        return AnimateXOutput(np.stack(frames), drift)


def default_canvas(reference: Canvas, area: int = 512 * 768) -> Canvas:
    """The canvas to render a reference on: its aspect, about the trained area, sides multiples of 64."""
    factor = (area / (reference.width * reference.height)) ** 0.5
    sides = [max(64, round(side * factor / 64) * 64) for side in reference.size]
    return Canvas(*sides)
