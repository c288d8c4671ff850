"""Previews of a long render: the puppet dances first, and a picture shows now and then how the work stands."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from animx import plugins
from animx.atomic import check_target
from animx.engine import Engine, RenderJob
from animx.request import Stage

log = logging.getLogger(__name__)


class Previews:
    """What `preview` writes beside the output `OUT.mp4`: `OUT.preview.mp4` and `OUT.preview.png`."""

    def __init__(self, video: Path, picture: Path) -> None:
        self.video, self.picture = video, picture

    @classmethod
    def of(cls, target: Path, overwrite: bool) -> Previews:
        """The previews of an output, refused early where they may not be written."""
        stem = target.name.partition("%")[0].rstrip("_") if "%" in target.name else target.stem
        made = cls(*(target.with_name(f"{stem}.preview{suffix}") for suffix in (".mp4", ".png")))
        for path in (made.video, made.picture):
            check_target(path, overwrite)
        return made

    def dance(self, job: RenderJob, on_progress: Stage) -> None:
        """Let the puppet play the job into the video."""
        from animx.video import open_writer

        puppet = cast(Engine, plugins.load("engines", "puppet")())
        total = job.poses.frames
        with open_writer(self.video, job.canvas, job.poses.fps, overwrite=True) as writer:
            for done, frame in enumerate(puppet.render(replace(job, options={}, folder=None))):
                writer.write(frame[..., :3])
                on_progress("preview", done + 1, total)
        log.info("preview: %s", self.video)

    def show(self, picture: NDArray[np.uint8]) -> None:
        """Write the picture, over the one before."""
        from animx.image import write_picture

        write_picture(self.picture, picture)

    def written(self) -> tuple[Path, ...]:
        """Those that are there."""
        return tuple(path for path in (self.video, self.picture) if path.exists())
