"""The engine contract: what every way of making frames takes and gives.

An engine gets a `RenderJob` (a reference picture with its pose, the retargeted driving poses, the options) and yields
RGBA frames, one per driving frame, in order.  It opens no file and knows no container; the hall (`pipeline.py`) reads
and writes.  Engines are reached through the plugin door (group `animx.engines`), never imported by the hall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.pose.sequence import PoseSequence

Progress = Callable[[int, int], None]
"""`on_progress(done, total)`; total 0 = unknown."""


def no_progress(done: int, total: int) -> None:
    """The progress callback that reports nothing."""


def no_stage(stage: str, done: int, total: int) -> None:
    """The callback of further stages that reports nothing."""


@dataclass(frozen=True)
class Background:
    """What lies behind the figure."""

    mode: Literal["keep", "blur", "transparent", "colour", "image"] = "keep"
    """keep: the reference's own, filled in behind the figure; transparent: alpha 0."""
    colour: tuple[int, int, int] = (0, 0, 0)
    """RGB 0..255 for `colour`."""
    image: NDArray[np.uint8] | None = None
    """RGB [H, W, 3] on the job's canvas for `image`."""


@dataclass(frozen=True)
class RenderJob:
    """All an engine needs for one clip.  Pictures, poses and canvas share one pixel grid: `canvas`."""

    picture: NDArray[np.uint8]
    """The reference image, RGBA [H, W, 4], not premultiplied."""
    canvas: Canvas
    poses: PoseSequence
    """Driving poses, one person, already retargeted to the reference and on `canvas`."""
    reference_pose: PoseSequence | None = None
    """The reference's own pose (one frame, one person) on `canvas`; None = no skeleton, move the figure as a whole."""
    driving_poses: PoseSequence | None = None
    """The driving poses before alignment (same frames), for engines that read motion relative to the driver."""
    mask: NDArray[np.float32] | None = None
    """The figure's coverage 0..1 [H, W]; None = the engine finds it."""
    background: Background = Background()
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    """Engine options by their command-line name (`steps`, `guidance`, ...), only those this engine lists."""
    threads: int = 1
    driving_frames: Callable[[], Iterator[NDArray[np.uint8]]] | None = None
    """The driving pictures, RGB, one per pose, each call from the start; for engines with `needs_driving_frames`."""
    folder: Path | None = None
    """Where a long render keeps finished chunks; None = nowhere."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What besides the engine's own options decides about the frames: inputs by hash, retargeting, canvas."""
    fixed_size: bool = False
    """Whether the user named the canvas; an engine may otherwise work on a smaller one and enlarge."""
    on_preview: Callable[[NDArray[np.uint8]], None] | None = None
    """Takes a picture (RGB) of how the work stands, for engines with the option `preview`."""
    on_stage: Callable[[str, int, int], None] = no_stage
    """Progress (stage, done, total) of stages besides the two in `stages`, such as loading a model."""
    report: dict[str, Any] = field(default_factory=dict)
    """What the engine tells about its render, by the time it yields its first frame: `options` (its own, resolved, for
    the recipe) and other facts for the recipe by name; after the last frame `measured` (numbers for the side-car)."""


@dataclass(frozen=True)
class Plan:
    """What a render would cost, for `--dry-run`."""

    engine: str
    frames: int
    windows: int
    memory_mb: float
    seconds: float
    notes: tuple[str, ...] = ()


@runtime_checkable
class Engine(Protocol):
    """The contract of `animx.engines` plugins.

    An engine may also have: `require(options)`, which refuses before any work what `render` would refuse;
    `fills_frame`: its frames are opaque, so that the hall puts the background behind the figure of the picture;
    `needs_hands`, `needs_driving_frames`, `keeps_chunks` (it uses `RenderJob.folder`); `stages`, the names of what its
    `on_progress` counts and of what a yielded frame means; `unrecorded`, its options that change no byte; `reason`,
    why `--engine auto` takes it.
    """

    name: str
    options: frozenset[str]
    """Names of the engine-specific options it understands; any other one given by the user is a usage error."""

    def available(self) -> str | None:
        """None when it can run here, else one line: what is missing and the mend."""

    def plan(self, job: RenderJob) -> Plan:
        """Estimate without rendering."""

    def render(self, job: RenderJob, on_progress: Progress = no_progress) -> Iterator[NDArray[np.uint8]]:
        """Yield RGBA frames [H, W, 4] on `job.canvas`, one per frame of `job.poses`, in order and deterministic."""
