"""`AnimateXPipeline`: the full model in the manner of diffusers.

    pipeline = AnimateXPipeline.from_pretrained("path/to/model").to("cuda", torch.bfloat16)
    pipeline.scheduler = "unipc"  # or any diffusers scheduler object that predicts velocities
    video = pipeline(picture, poses, driving_frames, num_inference_steps=12, generator=torch.manual_seed(1)).frames
    pipeline.save_pretrained("converted")

`from_pretrained` takes released files or a converted folder.  For long clips use `stream`, which yields frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animx import __version__
from animx.diffusion.clip import Clip, make_clip
from animx.diffusion.components import Components, load_components, save_components
from animx.diffusion.placing import Placing
from animx.diffusion.ranks import Ranks
from animx.diffusion.render import Drift, Hooks, Settings, render_clip
from animx.diffusion.sampler import Guidance
from animx.errors import UsageError, WeightsError
from animx.job import ChunkStore
from animx.model.eight_bit import EightBit, eight_bit, state_of
from animx.pose.sequence import PoseSequence
from animx.weights import find_model, write_hashes

StepCallback = Callable[["AnimateXPipeline", int, int, dict[str, Any]], Mapping[str, Any] | None]
"""(pipeline, index of the step, timestep, {"latents": [1, 4, F, h, w], "segment": number}); what it returns under
"latents" takes the latents' place."""


@dataclass(frozen=True)
class AnimateXOutput:
    """What a call returns."""

    frames: NDArray[np.uint8]  # [N, H, W, 3] RGB
    drift: Drift


LatentHook = Callable[[int, int, int, Tensor], Tensor | None]


def _finite(inner: LatentHook | None) -> LatentHook:
    """`inner` after a look at the latents: what is no number would come out as a black picture, and be kept."""

    def on_latents(segment: int, index: int, timestep: int, latents: Tensor) -> Tensor | None:
        if not bool(torch.isfinite(latents).all()):
            raise WeightsError(
                f"the network gave no numbers (NaN or infinity) at step {index + 1} of segment {segment + 1}. Try "
                "--dtype bfloat16 or float32, or compare the weights: animx weights check"
            )
        return None if inner is None else inner(segment, index, timestep, latents)

    return on_latents


class AnimateXPipeline:
    """Reference picture, poses and driving frames in; frames out."""

    def __init__(self, components: Components) -> None:
        self.components = components
        self.scheduler: Any = "released"
        """Name of the scheduler (released, ddim, dpm++2m, unipc), or a diffusers scheduler object."""
        self.placing = Placing(components)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, image_encoder: str = "transformers", **changes: Any
    ) -> AnimateXPipeline:
        """Load a model by path or name, strictly.  `changes` are fields of `UNetConfig` (conditions, alpha, ...).

        image_encoder: library that runs the image encoder, transformers or open_clip (extra `openclip`).
        """
        return cls(load_components(find_model(str(name)), changes, image_backend=image_encoder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the converted form (safetensors, config, hashes) into a new or empty folder."""
        target = Path(folder)
        if state_of(self.components.unet).linears:
            raise UsageError(
                "the network of this pipeline is in 8 bits: its weights are no model to keep. Load it again"
            )
        if target.exists() and any(target.iterdir()):
            raise UsageError(f"{target}: is not empty. Name a new folder")
        target.mkdir(parents=True, exist_ok=True)
        save_components(self.components, target, __version__)
        write_hashes(target)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> AnimateXPipeline:
        """Move all networks (and cast them, with `dtype`); returns itself.  Ends offloading."""
        self.components.to(torch.device(device), dtype or self.placing.dtype)
        self.placing = Placing(self.components)
        return self

    def to_eight_bits(
        self, *, linears: bool = True, attention: bool = True, on: str | torch.device | None = None
    ) -> AnimateXPipeline:
        """Put the network's large linear layers, large attentions or both into 8 bits, in place; returns itself.

        The exact weights are let go, and settings have to ask for the same (`linears="fp8"`, `attention="int8"`).
        Without this, such settings keep both.  Best called before `to`, on the file's own numbers.  on: device that
        works the weights out.
        """
        place = None if on is None else torch.device(on)
        eight_bit(self.components.unet, EightBit(linears, attention), on=place)
        self.placing = Placing(self.components, self.placing.offload)
        return self

    @property
    def device(self) -> torch.device:
        """Where the networks work."""
        return self.placing.device

    def enable_model_cpu_offload(self, device: str | torch.device = "cuda") -> None:
        """Keep every network on the CPU except while it works (less memory, a little slower)."""
        self.components.to(torch.device("cpu"), self.placing.dtype)
        self.placing = Placing(self.components, torch.device(device))

    def prepare(
        self,
        picture: NDArray[np.uint8],
        poses: PoseSequence,
        driving_frames: Iterable[NDArray[np.uint8]],
        *,
        keypoints: PoseSequence | None = None,
        reference_pose: PoseSequence | None = None,
        generator: torch.Generator | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Clip:
        """Encode all that does not depend on how the clip is sampled; the driving frames are read once.

        picture: reference, RGB [H, W, 3].  poses: aligned, on a canvas of sides that are multiples of 8.  keypoints:
        the driving poses before alignment (default: `poses`).  generator: for the reference latent of `paper` models.
        on_progress: (done, total) pictures seen by the image encoder.
        """
        canvas = poses.canvas
        if canvas.width % 8 or canvas.height % 8:
            raise UsageError(f"--size {canvas}: the full model needs sides that are multiples of 8")
        return make_clip(
            self.placing,
            canvas,
            picture,
            poses,
            keypoints or poses,
            driving_frames,
            reference_pose,
            generator,
            on_progress,
        )

    def frames(
        self,
        clip: Clip,
        settings: Settings,
        *,
        store: ChunkStore | None = None,
        drift: Drift | None = None,
        hooks: Hooks | None = None,
        ranks: Ranks | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield the RGB frames [H, W, 3] of a prepared clip as its segments are finished; see `render_clip`."""
        custom = None if isinstance(self.scheduler, str) else self.scheduler
        if store is not None and (custom is not None or generator is not None):
            raise UsageError("a job folder cannot keep a scheduler object or a generator. Use names and seeds")
        hooks = hooks or Hooks()
        yield from render_clip(
            self.placing,
            clip,
            settings,
            store=store,
            drift=drift,
            hooks=replace(hooks, on_latents=_finite(hooks.on_latents)),
            ranks=ranks,
            scheduler=custom,
            generator=generator,
        )

    def stream(
        self,
        picture: NDArray[np.uint8],
        poses: PoseSequence,
        driving_frames: Iterable[NDArray[np.uint8]],
        *,
        settings: Settings | None = None,
        keypoints: PoseSequence | None = None,
        reference_pose: PoseSequence | None = None,
        generator: torch.Generator | None = None,
        drift: Drift | None = None,
        hooks: Hooks | None = None,
        callback_on_step_end: StepCallback | None = None,
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield RGB frames [H, W, 3] on the canvas of `poses`, one per pose, as segments are finished.

        `generator` draws all start noise in place of the settings' seed; a fresh one seeded alike gives the same
        frames for a clip of one segment.
        """
        if settings is None:
            settings = Settings(scheduler=self.scheduler) if isinstance(self.scheduler, str) else Settings()
        hooks = hooks or Hooks()
        if callback_on_step_end is not None:
            hooks = replace(hooks, on_latents=self._calling(callback_on_step_end))
        own = torch.Generator().manual_seed(settings.seed) if generator is None else generator.clone_state()
        clip = self.prepare(
            picture, poses, driving_frames, keypoints=keypoints, reference_pose=reference_pose, generator=own
        )
        yield from self.frames(clip, settings, drift=drift, hooks=hooks, generator=generator)

    def __call__(
        self,
        picture: NDArray[np.uint8],
        poses: PoseSequence,
        driving_frames: Iterable[NDArray[np.uint8]],
        *,
        num_inference_steps: int = 30,
        guidance_scale: float = 2.5,
        eta: float = 0.0,
        seed: int = 13,
        settings: Settings | None = None,
        **kwargs: Any,
    ) -> AnimateXOutput:
        """All frames of a clip at once.  `settings` overrules the named numbers; further arguments as `stream`."""
        drift = Drift()
        settings = settings or Settings(
            steps=num_inference_steps,
            guidance=Guidance(guidance_scale),
            eta=eta,
            seed=seed,
            scheduler=self.scheduler if isinstance(self.scheduler, str) else "ddim",
        )
        frames = list(self.stream(picture, poses, driving_frames, settings=settings, drift=drift, **kwargs))
        return AnimateXOutput(np.stack(frames), drift)

    def _calling(self, callback: StepCallback) -> Callable[[int, int, int, Tensor], Tensor | None]:
        def on_latents(segment: int, index: int, timestep: int, latents: Tensor) -> Tensor | None:
            answer = callback(self, index, timestep, {"latents": latents, "segment": segment})
            changed = None if answer is None else answer.get("latents")
            if changed is not None and changed.shape != latents.shape:
                raise ValueError(
                    f"callback_on_step_end returned latents {list(changed.shape)}, not {list(latents.shape)}"
                )
            return changed

        return on_latents
