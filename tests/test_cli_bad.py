"""Every bad input of the shared test data through `render` and `pose extract`: the documented exit code, one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hall import Ran, animx, refused

from animx.image import write_picture
from animx.pose.formats import write_poses
from animx.pose.sequence import PoseSequence

REFUSED = {
    "truncated_no_index.mp4": 3,
    "truncated_half.mp4": 3,
    "zero.png": 3,
    "text.mp4": 3,
    "cut.jpg": 3,
    "bomb_header.png": 3,
    "nan.pose.npz": 3,
    "nobody.mp4": 4,
    "blank.png": 4,
    "one_pixel.png": 4,
}
"""As product.md section 9 settles; all others are exit 0."""

HANDLED = (
    "odd_size.mp4",
    "one_frame.mp4",
    "vfr.mp4",
    "rotated_90.mp4",
    "with_audio.mp4",
    "ten_bit.mp4",
    "two_people.mp4",
    "gray8.jpg",
    "gray16.png",
    "rgb16.png",
    "cmyk.jpg",
    "transparent.png",
    "palette.png",
    "exif_rotate6.jpg",
    "still.webp",
)
NEEDS_NET = ("truncated_half.mp4", "nobody.mp4")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANIMX_PLUGINS", "off")


@pytest.fixture(scope="session")
def other_side(tmp_path_factory: pytest.TempPathFactory, tiny_poses: PoseSequence) -> tuple[Path, Path]:
    """A good reference (a cut-out block) and a good drive (poses)."""
    folder = tmp_path_factory.mktemp("good")
    alpha = np.zeros((192, 128), np.uint8)
    alpha[20:180, 40:90] = 255
    write_picture(folder / "block.png", np.dstack([np.full((192, 128, 3), 120, np.uint8), alpha]))
    write_poses(tiny_poses.cut(0, 3), folder / "wave.npz")
    return folder / "block.png", folder / "wave.npz"


def needs(name: str) -> None:
    if name.endswith(".mp4"):
        pytest.importorskip("mediapipe", reason="needs the 'offline' extra")


def render(bad: Path, other_side: tuple[Path, Path]) -> Ran:
    if bad.suffix in (".mp4", ".npz"):
        return animx("render", other_side[0], bad, "-o", "out.mp4", "--ref-pose", "none", "-q")
    return animx("render", bad, other_side[1], "-o", "out.mp4", "-q")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in NEEDS_NET else n for n in REFUSED])
def test_a_bad_input_is_refused_by_both_commands(shared: Path, name: str, other_side: tuple[Path, Path]) -> None:
    needs(name)
    bad = shared / "data" / "bad" / name
    refused(render(bad, other_side), REFUSED[name], name)
    refused(animx("pose", "extract", bad, "-q"), REFUSED[name], name)
    assert not list(Path().iterdir())


def test_a_clip_that_is_cut_short_names_the_last_good_time_and_end(shared: Path) -> None:
    from animx.errors import InputError
    from animx.video import open_frames

    clip = shared / "data" / "bad" / "truncated_half.mp4"
    with pytest.raises(InputError, match=r"last good frame is at [0-9.]+ s\. Use --end [0-9.]+ ") as caught:
        list(open_frames(clip))
    end = float(str(caught.value).split("--end ")[1].split()[0])
    assert 0.8 < end < 1.0  # 21 of 48 frames at 24 fps are there
    assert len(list(open_frames(clip, end=end))) >= 19


@pytest.mark.slow
@pytest.mark.parametrize("name", HANDLED)
def test_an_odd_input_is_handled_by_both_commands(shared: Path, name: str, other_side: tuple[Path, Path]) -> None:
    needs(name)
    bad = shared / "data" / "bad" / name
    ran = render(bad, other_side)
    assert ran.code == 0, ran.err
    assert Path("out.mp4").stat().st_size > 500
    ran = animx("pose", "extract", bad, "-q")
    assert ran.code == 0, ran.err
    assert len(list(Path().glob("*.pose.json"))) == 1


def test_every_file_of_the_folder_has_its_expectation(shared: Path) -> None:
    found = {path.name for path in (shared / "data" / "bad").iterdir()}
    assert found == {*REFUSED, *HANDLED}
