"""Small inputs made in code, shared by all tests; `shared` reaches the test data beside the checkout."""

from __future__ import annotations

import contextlib
import os
import signal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest

from animx.canvas import Canvas
from animx.pose.sequence import PoseSequence
from animx_trainer import synthetic

if TYPE_CHECKING:
    from wet import Stage

ROOT = Path(__file__).resolve().parents[1]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a script: commands that are tested would inherit that and be deaf to Ctrl-C.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["ANIMX_TUNING"] = "off"  # launch configurations that somebody tuned on this machine are none of ours


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="takes long: run by `make test-long`")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Test pictures, clips and fixtures beside the checkout; skips where they are absent."""
    path = ROOT.parent / "shared"
    if not (path / "data" / "DATA.md").exists():
        pytest.skip("needs ../shared (test data that is not part of the repository)")
    return path


TINY = Canvas(128, 192)
TINY_FPS = Fraction(12)
TINY_FRAMES = 12


@pytest.fixture(scope="session")
def tiny_poses() -> PoseSequence:
    """12 true poses of a dancing human on 128x192 px at 12 fps: body and feet, score 1, with depth."""
    return synthetic.true_poses(synthetic.character("human"), synthetic.dance("wave"), TINY, TINY_FRAMES, fps=TINY_FPS)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mp4 of the same dance as `tiny_poses`, without sound.  Do not write into its folder."""
    path = tmp_path_factory.mktemp("tiny") / "dance.mp4"
    who, moving = synthetic.character("human"), synthetic.dance("wave")
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=TINY_FPS, options={"crf": "12", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = TINY.width, TINY.height, "yuv420p"
        for rgb, _ in synthetic.draw_clip(who, moving, TINY, TINY_FRAMES, fps=TINY_FPS):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        out.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def tiny_character(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PNG of a bear on a plain ground, 128x192 px.  Do not write into its folder."""
    import cv2

    path = tmp_path_factory.mktemp("tiny") / "bear.png"
    who = synthetic.character("bear")
    rgb, _, _ = synthetic.draw_character(who, synthetic.rest_pose(who, TINY), TINY, background="plain")
    assert cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]))
    return path


@pytest.fixture(scope="session")
def tiny_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model in the released file formats; skips without the extra 'model'.  Do not write into it."""
    for module in ("torch", "diffusers", "transformers"):
        pytest.importorskip(module, reason="needs the 'model' extra")
    import torch

    from animx.diffusion.tiny import write_tiny_release

    torch.set_num_threads(1)
    return write_tiny_release(tmp_path_factory.mktemp("release") / "tiny")


@pytest.fixture(scope="session")
def stage(
    tmp_path_factory: pytest.TempPathFactory, tiny_release: Path, tiny_clip: Path, tiny_poses: PoseSequence
) -> Stage:
    """All that a render of the full model needs, tiny."""
    from wet import Stage

    return Stage(tmp_path_factory.mktemp("stage"), tiny_release, tiny_clip, tiny_poses)
