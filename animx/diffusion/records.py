"""What is kept about a run of the full model: in its job folder, in the recipe, in the report."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animx import kernel_plugins
from animx.canvas import Canvas
from animx.diffusion.options import EngineOptions
from animx.engine import RenderJob

if TYPE_CHECKING:
    from animx.diffusion.render import Drift, Settings

log = logging.getLogger(__name__)

NOTABLE_DRIFT = 0.5
"""Colour drift between segments that is worth a warning [deviations of the first segment]."""


def job_plan(
    job: RenderJob, settings: Settings, options: EngineOptions, weights: str, dtype: str, device: str, canvas: Canvas
) -> dict[str, Any]:
    """What a job folder must have been planned with to be gone on with; `canvas` is the network's.

    Sizes that follow from the memory stand in it as they were asked for; what they came to is remembered beside it, so
    that a resume with less free memory goes on with the same ones.
    """
    from animx.diffusion.halving import CHANGEABLE

    return {
        **asdict(settings),
        **{name: getattr(options, name) for name in CHANGEABLE},
        "weights": weights,
        "dtype": dtype,
        "image_encoder": options.image_encoder,
        "device": device.partition(":")[0],
        "canvas": list(canvas.size),
        "frames": job.poses.frames,
        **stand_ins(),
        **job.identity,
    }


def record(settings: Settings, options: EngineOptions, dtype: str) -> dict[str, Any]:
    """The resolved options for the recipe."""
    found = asdict(settings)
    guidance = found.pop("guidance")
    found.pop("seed")
    named = {"guidance": guidance.pop("scale"), **{f"guidance_{name}": value for name, value in guidance.items()}}
    chosen = {name: getattr(options, name) for name in ("speed", "image_encoder")}
    return {**found, **named, **chosen, "model": Path(options.model).name, "dtype": dtype, **stand_ins()}


def stand_ins() -> dict[str, Any]:
    """Operators by third parties, where `ANIMX_KERNELS` took some: they decide about the last bits."""
    names = kernel_plugins.taken()
    return {"kernels": names} if names else {}


def facts(job: RenderJob) -> dict[str, str]:
    """What the network was shown, as a user may want to know it."""
    return {
        "pose_images": "driving poses, aligned",
        "motion_keypoints": "driving poses, not aligned (as released)",
        "reference_slot": "the reference's own pose" if job.reference_pose is not None else "the first driving pose",
    }


def say_drift(job: RenderJob, drift: Drift) -> None:
    """Put the colour drift between segments into the report, and warn where it is notable."""
    job.report["measured"] = {
        "colour_drift": round(drift.largest, 4),
        "colour_drift_corrected": round(drift.corrected, 4),
    }
    if drift.largest > NOTABLE_DRIFT:
        log.warning(
            "colours strayed by %.2f deviations between segments (%.2f left after the correction)",
            drift.largest,
            drift.corrected,
        )
