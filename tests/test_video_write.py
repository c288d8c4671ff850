"""Writing clips: every container gives back what went in, the same bytes each time; a failure leaves nothing."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import OutputError, UsageError
from animx.video import (
    AudioSource,
    check_output,
    has_alpha_container,
    open_frames,
    open_writer,
    probe,
    read_alpha_frames,
)
from tests.clips import clicks_of, number_of, numbered, write_clicks

CONTAINERS = (".mp4", ".mov", ".webm", ".gif", ".webp")
SATURATED = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255], [255, 255, 255], [0, 0, 0]],
    np.uint8,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def target(folder: Path, kind: str) -> Path:
    return folder / {"pattern": "f_%03d.png", "folder": "out"}.get(kind, f"a{kind}")


def write(path: Path, count: int = 12, alpha: bool = False, fps: Fraction = Fraction(24), **how: object) -> Path:
    with open_writer(path, Canvas(96, 64), fps, **how) as writer:  # type: ignore[arg-type]
        for index in range(count):
            pixels = numbered(index)
            writer.write(with_alpha(pixels) if alpha else pixels)
    return path


def with_alpha(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The lower third transparent, a strip above it half transparent."""
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[40:], alpha[48:] = 128, 0
    return np.dstack([pixels, alpha])


@pytest.mark.parametrize("kind", [*CONTAINERS, "pattern", "folder"])
def test_what_is_written_reads_back_in_order(tmp_path: Path, kind: str) -> None:
    path = write(target(tmp_path, kind))
    stream = open_frames(path, fps=None if kind in CONTAINERS else Fraction(24))
    assert stream.fps == 24
    assert (stream.frames, stream.canvas) == (12, Canvas(96, 64))
    assert [number_of(frame.pixels) for frame in stream] == list(range(12))


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(16), Fraction(4887, 277), Fraction(12)])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm"])
def test_the_rate_is_written_as_a_rational(tmp_path: Path, suffix: str, fps: Fraction) -> None:
    info = probe(write(tmp_path / f"a{suffix}", 30, fps=fps))
    assert abs(info.fps / fps - 1) < (1e-9 if suffix != ".webm" else 1e-3)
    assert info.frames == 30
    assert not info.variable


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(30000, 1001), Fraction(60)])
def test_a_gif_keeps_time_on_its_coarse_clock(tmp_path: Path, fps: Fraction) -> None:
    info = probe(write(tmp_path / "a.gif", 60, fps=fps))
    assert abs(info.duration - 60 / fps) < 0.03
    assert info.frames == (60 if fps < 50 else 50)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".webp", ".gif"])
def test_saturated_colours_survive_and_the_tags_say_bt709(tmp_path: Path, suffix: str) -> None:
    bars = np.repeat(np.repeat(SATURATED[None], 16, 1), 64, 0)
    with open_writer(tmp_path / f"a{suffix}", Canvas(128, 64), Fraction(24)) as writer:
        for _ in range(4):
            writer.write(bars)
    for one in open_frames(tmp_path / f"a{suffix}"):
        shown = one.pixels[10:54, 8::16].astype(int)
        assert np.abs(shown - SATURATED).max() <= 4
    if suffix in (".mp4", ".mov", ".webm"):
        with av.open(str(tmp_path / f"a{suffix}")) as container:
            frame = next(container.decode(video=0))
            assert (frame.colorspace, frame.color_range) == (1, 1)
            if suffix != ".webm":
                assert (frame.color_primaries, frame.color_trc) == (1, 1)


def test_mp4_is_what_players_expect(tmp_path: Path) -> None:
    data = write(tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "the index comes first, so it plays while it loads"
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        assert "creation_time" not in container.metadata


@pytest.mark.parametrize("kind", [".mov", ".webm", ".webp", ".gif", "pattern", "folder"])
def test_transparency_survives(tmp_path: Path, kind: str) -> None:
    path = write(target(tmp_path, kind), 5, alpha=True)
    found = list(read_alpha_frames(path))
    assert len(found) == 5
    for index, frame in enumerate(found):
        assert frame.shape == (64, 96, 4)
        assert number_of(frame) == index
        assert (frame[:38, :, 3] >= 254).all()
        assert (frame[50:, :, 3] <= 1).all()
        middle = frame[42:46, :, 3].mean()
        assert middle > 250 if kind == ".gif" else abs(middle - 128) < 4
    assert has_alpha_container(path)


def test_mp4_refuses_transparency_with_the_mend(tmp_path: Path) -> None:
    assert not has_alpha_container("a.mp4")
    with pytest.raises(UsageError, match=r"\.webm"):
        write(tmp_path / "a.mp4", alpha=True)
    assert names(tmp_path) == []
    with open_writer(tmp_path / "a.mp4", Canvas(96, 64), Fraction(24)) as writer:
        writer.write(np.dstack([numbered(3), np.full((64, 96), 255, np.uint8)]))
    assert number_of(next(iter(open_frames(tmp_path / "a.mp4"))).pixels) == 3


@pytest.mark.parametrize("kind", [*CONTAINERS, "folder"])
def test_an_odd_last_row_and_column_are_dropped_where_the_codec_needs_it(tmp_path: Path, kind: str) -> None:
    path = target(tmp_path, kind)
    with open_writer(path, Canvas(97, 65), Fraction(24)) as writer:
        for index in range(3):
            writer.write(numbered(index, 97, 65))
    expected = Canvas(96, 64) if kind in (".mp4", ".webm") else Canvas(97, 65)
    assert probe(path).canvas == expected
    assert [number_of(frame.pixels) for frame in open_frames(path)] == [0, 1, 2]


@pytest.mark.parametrize("kind", [*CONTAINERS, "folder"])
def test_a_single_pixel_is_a_clip_too(tmp_path: Path, kind: str) -> None:
    path = target(tmp_path, kind)
    with open_writer(path, Canvas(1, 1), Fraction(24)) as writer:
        writer.write(np.full((1, 1, 3), 200, np.uint8))
    assert np.abs(next(iter(open_frames(path))).pixels.astype(int) - 200).max() <= 4


def test_the_comment_is_in_the_container(tmp_path: Path) -> None:
    text = '{"tool": "animx", "note": "größer \\" 🎬"}'
    for suffix in (".mp4", ".mov", ".webm"):
        path = write(tmp_path / f"a{suffix}", comment=text)
        with av.open(str(path)) as container:
            assert {key.lower(): value for key, value in container.metadata.items()}["comment"] == text


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_the_same_frames_give_the_same_bytes_on_one_core_and_on_all(tmp_path: Path, suffix: str) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "if sys.argv[2] == 'one': os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "sys.path.insert(0, sys.argv[3])\nfrom tests.test_video_write import write\n"
        "write(Path(sys.argv[1]), 40, alpha=not sys.argv[1].endswith('mp4'), comment='x')\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    for cores in ("one", "all"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / f"{cores}{suffix}"), cores, root], check=True)
    write(tmp_path / f"here{suffix}", 40, alpha=suffix != ".mp4", comment="x")
    assert len({(tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "all", "here")}) == 1


@pytest.mark.parametrize(("source", "codec", "video"), [(".mp4", "aac", "libx264"), (".webm", "libopus", "libvpx-vp9")])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm"])
@pytest.mark.parametrize("part", [(None, None), (1.0, 2.6)])
def test_sound_stays_with_the_picture(
    tmp_path: Path, source: str, codec: str, video: str, suffix: str, part: tuple[float | None, float | None]
) -> None:
    start, end = part
    clip = write_clicks(tmp_path / f"in{source}", codec, video)
    stream = open_frames(clip, start=start, end=end)
    sound = AudioSource(clip, start or 0.0, None if end is None else end - (start or 0.0))
    with open_writer(tmp_path / f"out{suffix}", stream.canvas, stream.fps, audio=sound) as writer:
        for frame in stream:
            writer.write(frame.pixels)
    name, onsets = clicks_of(tmp_path / f"out{suffix}")
    copied = {".mp4": True, ".mov": codec == "aac", ".webm": codec == "libopus"}[suffix]
    assert name == ({"aac": "aac", "libopus": "opus"}[codec] if copied else "opus" if suffix == ".webm" else "aac")
    expected = np.arange(8) / 2 if end is None else np.arange(4) / 2
    # A copied packet that lies across the start may be lost with a click in it.
    assert len(onsets) >= len(expected) - (end is not None)
    assert all(np.abs(expected - onset).min() < 0.003 for onset in onsets)
    flashes = [frame.time for frame in open_frames(tmp_path / f"out{suffix}") if frame.pixels.mean() > 128]
    assert flashes[0] == 0.0
    assert probe(tmp_path / f"out{suffix}").duration == pytest.approx(stream.duration, abs=1e-3)


def test_sound_is_cut_where_the_video_ends(tmp_path: Path) -> None:
    clip = write_clicks(tmp_path / "in.mp4")
    write(tmp_path / "out.mp4", 20, audio=AudioSource(clip))
    assert len(clicks_of(tmp_path / "out.mp4")[1]) == 2


def test_formats_without_sound_say_so_and_a_silent_source_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    clip = write_clicks(tmp_path / "in.mp4")
    write(tmp_path / "a.gif", audio=AudioSource(clip))
    assert caplog.text.count("holds no sound") == 1
    write(tmp_path / "b.mp4", audio=AudioSource(write(tmp_path / "silent.mp4")))
    assert not probe(tmp_path / "b.mp4").has_audio
    write(tmp_path / "c.mp4", audio=AudioSource(tmp_path / "missing.mp4"))
    assert "the output is silent" in caplog.text


@pytest.mark.parametrize("kind", [*CONTAINERS, "pattern", "folder"])
def test_a_failure_leaves_nothing(tmp_path: Path, kind: str) -> None:
    def stop() -> None:
        with open_writer(target(tmp_path, kind), Canvas(96, 64), Fraction(24)) as writer:
            for index in range(9):
                writer.write(numbered(index))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert names(tmp_path) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("animx")]


@pytest.mark.parametrize("kind", [*CONTAINERS, "pattern", "folder"])
@pytest.mark.parametrize("limit", [0, 3000])
def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path, kind: str, limit: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (9, 64, 96, 3), np.uint8)

    def fill() -> None:
        with open_writer(target(tmp_path, kind), Canvas(96, 64), Fraction(24)) as writer:
            for pixels in noise:
                writer.write(pixels)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot write") as caught:
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_no_frame_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frame"), open_writer(tmp_path / "a.mp4", Canvas(96, 64), Fraction(24)):
        pass
    assert names(tmp_path) == []


def test_a_frame_of_the_wrong_size_or_kind_is_a_bug_and_leaves_nothing(tmp_path: Path) -> None:
    for wrong in (numbered(0, 64, 64), numbered(0).astype(np.float32), numbered(0)[..., 0]):
        with pytest.raises(ValueError, match="frame of"):
            write_one(tmp_path / "a.mp4", wrong)
    assert names(tmp_path) == []


def write_one(path: Path, pixels: NDArray[np.uint8]) -> None:
    with open_writer(path, Canvas(96, 64), Fraction(24)) as writer:
        writer.write(pixels)


def test_a_buffer_may_be_reused_after_write(tmp_path: Path) -> None:
    buffer = np.zeros((64, 96, 3), np.uint8)
    with open_writer(tmp_path / "a.mov", Canvas(96, 64), Fraction(24)) as writer:
        for index in range(12):
            buffer[...] = numbered(index)
            writer.write(buffer)
    assert [number_of(frame.pixels) for frame in open_frames(tmp_path / "a.mov")] == list(range(12))


@pytest.mark.parametrize("failing_at", [0, 2, 3, 5])
def test_numbered_frames_are_exchanged_all_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_at: int
) -> None:
    place = tmp_path / "f_%03d.png"

    def write(count: int, grey: int) -> None:
        with open_writer(place, Canvas(8, 8), Fraction(25), overwrite=True) as writer:
            for _ in range(count):
                writer.write(np.full((8, 8, 3), grey, np.uint8))

    write(3, 10)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    replace, calls = os.replace, iter(range(1000))

    def interrupted(*names: Path) -> None:
        if next(calls) == failing_at:
            raise KeyboardInterrupt
        replace(*names)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(4, 200)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", [".mp4", "pattern", "folder"])
def test_what_exists_is_replaced_only_when_told_and_then_whole(tmp_path: Path, kind: str) -> None:
    path = write(target(tmp_path, kind), 9)
    with pytest.raises(UsageError, match="--overwrite"):
        open_writer(path, Canvas(96, 64), Fraction(24))
    with pytest.raises(UsageError, match="--overwrite"):
        check_output(path)
    check_output(path, overwrite=True)
    write(path, 5, overwrite=True)
    assert len(list(open_frames(path))) == 5


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("a.mkv", UsageError, "cannot write '.mkv'"),
        ("a.mp5", UsageError, r"Did you mean '\.mp4'"),
        ("a.png", UsageError, r"a_%05d\.png"),
        ("a_%05d.jpg", UsageError, "PNG"),
        ("none/a.mp4", OutputError, "does not exist"),
        ("none/a_%05d.png", OutputError, "does not exist"),
        ("none/out", OutputError, "does not exist"),
        ("file/a.mp4", OutputError, "is a file"),
        ("folder.mp4", UsageError, "is a folder"),
        ("full", UsageError, "exists"),
        ("file", UsageError, "is a file"),
        ("n" * 300 + ".mp4", OutputError, "too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_early(
    tmp_path: Path, name: str, error: type[Exception], says: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = names(tmp_path)
    for attempt in (check_output, lambda path: open_writer(path, Canvas(4, 4), Fraction(24))):
        with pytest.raises(error, match=says):
            attempt(tmp_path / name)
    assert names(tmp_path) == before
    with pytest.raises(UsageError, match=r"notes\.txt"):
        check_output(tmp_path / "full", overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_a_long_clip_takes_no_more_memory_than_a_short_one(tmp_path: Path, suffix: str) -> None:
    code = (
        "import os, sys\nfrom fractions import Fraction\nfrom pathlib import Path\nimport numpy as np\n"
        "from animx.canvas import Canvas\nfrom animx.video import open_frames, open_writer\n"
        "frame = np.random.default_rng(1).integers(0, 255, (30, 40, 3), np.uint8).repeat(8, 0).repeat(8, 1)\n"
        "with open_writer(sys.argv[1], Canvas(320, 240), Fraction(24)) as writer:\n"
        "    for index in range(int(sys.argv[2])): writer.write(np.roll(frame, index % 50, 1))\n"
        "for _ in open_frames(sys.argv[1]) if not sys.argv[1].endswith('webp') else (): pass\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    peaks = []  # KiB; WebP is only written, because Pillow reads the whole (coded) file
    for count in (80, 700):
        out = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / f"{count}{suffix}"), str(count)],
            check=True,
            capture_output=True,
            text=True,
        )
        peaks.append(int(out.stdout))
    assert peaks[1] - peaks[0] < 30_000, "KiB; the frames themselves are 140 MB"


def test_nothing_but_the_file_remains(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4")
    assert os.listdir(tmp_path) == ["a.mp4"]
