"""Any shared picture with any shared clip ends in a video one can watch; its mask and joints are found, not given."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from animx.engine import RenderJob
from animx.image import read_picture
from animx.pose.formats import read_poses
from animx.pose.mediapipe import MediapipeBackend
from animx.prepare import prepare_reference
from animx.puppet import checks
from animx.puppet.engine import prepare
from animx.retarget.chain import retarget

CLIPS = ("bvh_jumping", "bvh_wave_hello", "kick", "pink", "room", "sea")
PICTURES = (
    "drawing_char1/texture.png", "drawing_char3/texture.png", "ref_boar.jpg", "ref_ghost.jpg", "ref_juice.png",
    "ref_pinkhair.jpg", "ref_rabbit.jpg", "ref_woman.jpg",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_can_be_watched_with_every_clip(name: str, shared: Path) -> None:
    if (missing := MediapipeBackend.available()) is not None:
        pytest.skip(missing)
    found = prepare_reference(read_picture(shared / "data" / name), backend=MediapipeBackend(), long_side=512)
    for clip in CLIPS:
        driving = read_poses(shared / "data" / f"drive_{clip}.pose.npz").person(0)
        poses = retarget(driving, reference=found.pose if found.pose is not None else found.canvas)
        job = RenderJob(found.pixels, found.canvas, poses, found.pose, driving, found.mask)
        stage = prepare(job)
        every = np.linspace(0, poses.frames - 1, 5).astype(int).tolist()
        shown = [stage.frame(t)[..., :3].astype(np.int16) for t in every]
        low, high = checks.area_ratio(stage, every)
        moved = max(float((np.abs(a - b).max(-1) > 24).mean()) for a, b in pairwise(shown))
        said = f"{name} x {clip}: area {low:.2f}..{high:.2f}, moved {moved:.3f}"
        assert np.isfinite(stage.motion.joints).all(), said
        assert low > 0.6, said  # the figure neither shrinks away nor leaves the picture,
        assert high < 1.25, said  # nor is it smeared over it,
        assert checks.hole_share(stage, every) <= 0.005, said  # nor torn,
        assert checks.flipped(stage, every) <= 0.1, said
        assert checks.background_difference(stage, every[:1]) == 0, said
        assert moved > 0.01, said  # and it dances
