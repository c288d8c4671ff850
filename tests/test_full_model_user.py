"""The full model as a user meets it: backgrounds, leftovers of a refused render, and every command of its page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hall import FAKE_POSE, animx, installed, make_package, refused

pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from wet import Stage, good

from animx.diffusion import engine as engine_module
from animx.errors import InputError
from animx.image import write_picture

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- backgrounds: the network repaints the whole frame, so the picture it is shown has to carry them ----


class Shown(InputError):
    """Ends a render once the network's reference is known."""


@pytest.fixture
def reference(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`reference(*options)` -> the picture RGB that the network would be shown; no model is loaded."""
    seen: list[np.ndarray] = []

    class Spy:
        def prepare(self, picture: np.ndarray, *_: Any, **__: Any) -> None:
            seen.append(picture)
            raise Shown("stopped by the test")

    monkeypatch.setattr(engine_module, "_load", lambda *_: Spy())

    def render(*more: object, on: Stage = stage) -> np.ndarray:
        refused(on.render("out.mp4", "-q", *more), 3, "stopped by the test")
        return seen[-1].astype(int)

    return render


def test_a_cut_out_figure_stands_before_white_or_what_is_asked_for(reference: Any) -> None:
    edge = (slice(0, 4), slice(0, 4))
    white, green = reference(), reference("--background", "#00ff00")
    assert (white[edge] == 255).all()
    assert (green[edge] == (0, 255, 0)).all()
    centre = (slice(40, 56), slice(28, 36))
    assert np.array_equal(white[centre], green[centre]), "the figure changed with what is behind it"
    assert white[centre].std() > 0 or (white[centre] != 255).any()
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (96, 64, 3))
    write_picture(Path("room.png"), np.dstack([ramp, np.full((96, 64), 255, np.uint8)]))
    assert np.array_equal(reference("--background", "room.png")[0], ramp[0])


def test_an_opaque_picture_keeps_its_ground_until_another_is_asked_for(stage: Stage, reference: Any) -> None:
    from animx.image import read_picture

    whole = read_picture(stage.figure).pixels.copy()
    whole[..., 3] = 255
    mask = read_picture(stage.figure).pixels[..., 3]
    write_picture(Path("opaque.png"), whole)
    write_picture(Path("mask.png"), np.dstack([mask, mask, mask, np.full_like(mask, 255)]))
    opaque = Stage.__new__(Stage)
    opaque.__dict__.update(stage.__dict__, figure=Path("opaque.png"))
    ways = ("keep", "#0000ff", "blur")
    found = {how: reference("--mask", "mask.png", "--background", how, on=opaque) for how in ways}
    assert (found["#0000ff"][:4, :4] == (0, 0, 255)).all()
    assert not (found["keep"][:4, :4] == (0, 0, 255)).all(axis=-1).any()
    assert np.abs(found["blur"][:8] - found["keep"][:8]).max() < 60
    assert not np.array_equal(found["blur"], found["keep"])


def test_transparency_is_refused_and_a_transparent_picture_is_said_to_lie_on_white(stage: Stage) -> None:
    refused(
        stage.render("out.webm", "-q", "--background", "transparent"), 2, "fills the whole frame", "--engine puppet"
    )
    ran = good(stage.render("out.webm", "--dry-run"))
    assert "white is put behind it" in ran.err


# ---- leftovers ----


def test_a_render_that_was_refused_leaves_no_job_behind(stage: Stage, reference: Any) -> None:
    reference()
    assert not list(Path().iterdir()), "an empty job folder would ask for --resume next time"
    line = refused(stage.render("out.mp4", "--model", "nowhere"), 6, "nowhere")
    assert line.endswith("animx weights list")


# ---- weights that load and mean nothing ----


SIZES = [
    {"unet": {"width": -3}},
    {"unet": {"width": 10**9}},
    {"unet": {"widht": 32}},
    {"unet": {"width": "x"}},
    {"vae": {"width": "x"}},
    {"vae": {"wdth": 3}},
    {"vision": {"heads": 0}},
    {"text": {"heads": 0}},
]


@pytest.mark.parametrize("change", SIZES, ids=[str(one) for one in SIZES])
def test_sizes_that_describe_no_model_are_exit_6(stage: Stage, change: dict[str, Any]) -> None:
    shutil.copytree(stage.release, "model")
    path = Path("model/animx.json")
    sizes = json.loads(path.read_text())
    path.write_text(json.dumps({**sizes, **{part: {**sizes[part], **more} for part, more in change.items()}}))
    refused(stage.render("out.mp4", "-q", "--model", "model"), 6, "animx.json")
    assert [one.name for one in Path().iterdir()] == ["model"]


def test_a_network_that_gives_no_numbers_is_exit_6_and_not_a_black_film(stage: Stage) -> None:
    import torch

    from animx.weights import read_state

    shutil.copytree(stage.release, "model")
    path = Path("model/animate-x_ckpt.pth")
    state = {name: value.clone() for name, value in read_state(path).items()}
    state["out.2.bias"].fill_(float("nan"))
    torch.save(state, path)
    refused(stage.render("out.mp4", "-q", "--model", "model"), 6, "no numbers", "step 1", "animx weights check")
    assert [one.name for one in Path().iterdir()] == ["model"]


# ---- the page ----


PAGE = (DOCS / "full-model.md").read_text(encoding="utf-8")
WRITTEN = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
COMMANDS = [line for line in WRITTEN if line.startswith("animx render")]


def test_the_page_shows_what_is_run_here_and_under_torchrun() -> None:
    assert len(COMMANDS) == 6
    # Run by the tests of several processes.
    assert [line.split()[0] for line in WRITTEN if line not in COMMANDS] == ["torchrun"]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_page_runs(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    from animx.canvas import Canvas
    from animx.image import read_picture, resize
    from animx.pose.formats import write_poses
    from animx.video import open_frames, open_writer

    monkeypatch.setenv("ANIMX_WEIGHTS", str(tmp_path / "weights"))
    shutil.copytree(stage.release, tmp_path / "weights" / "animate-x")
    write_picture(Path("ref.png"), resize(read_picture(stage.figure).pixels, Canvas(64, 96)))
    write_poses(stage.poses.cut(0, 2), Path("dance.pose.json"))
    with open_writer("dance.mp4", Canvas(128, 192), stage.poses.fps) as writer:
        for frame in list(open_frames(stage.clip))[:2]:
            writer.write(frame.pixels)
    make_package(tmp_path, "fakepose", FAKE_POSE, {"animx.pose_backends": {"fake": "fakepose:Fake"}})
    # The best net that is installed, and the 31 steps by default, are not this test's.
    more = ["--ref-pose", "fit"] if "pose.json" in line else ["--backend", "fake"]
    with installed(tmp_path):
        good(animx(*shlex.split(line)[1:], *more, "--device", "cpu", "--steps", "2", "-q"))
    made = sorted(path.name for path in Path().glob("ref_*"))
    assert made == ([] if "--dry-run" in line else ["ref_dance.mp4", "ref_dance.mp4.json"])
