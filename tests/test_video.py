"""Reading clips: the right frame at the right time whatever the clock, turn, shape and colours; damage is told."""

from __future__ import annotations

import re
import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from animx.canvas import Canvas
from animx.container import is_cut_short
from animx.errors import InputError, UsageError
from animx.image import write_picture
from animx.video import FrameStream, VideoWriter, open_frames, open_writer, probe
from animx.video_damage import units_are_sound
from tests.clips import number_of, numbered, write_clip


def frames(count: int, width: int = 96, height: int = 64) -> list[NDArray[np.uint8]]:
    return [numbered(index, width, height) for index in range(count)]


def numbers(stream: FrameStream) -> list[int]:
    return [number_of(frame.pixels) for frame in stream]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames at 24 a second, a key frame every 12."""
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", frames(60), options={"g": "12"})


@pytest.mark.parametrize(
    "kind",
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mkv", "libx264", "yuv420p"),
        ("a.avi", "libx264", "yuv420p"),
        ("a.ts", "libx264", "yuv420p"),
        ("a.mp4", "libx264", "yuv420p10le"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.mov", "prores_ks", "yuv422p10le"),
        ("a.avi", "mjpeg", "yuvj420p"),
        ("a.gif", "gif", "rgb8"),
    ],
    ids=lambda kind: f"{kind[1]}-{kind[2]}-{kind[0][2:]}",
)
def test_every_container_gives_the_same_frames_whole_and_in_part(tmp_path: Path, kind: tuple[str, str, str]) -> None:
    name, codec, pixel_format = kind
    path = write_clip(tmp_path / name, frames(30), codec=codec, pixel_format=pixel_format, options={"g": "10"})
    info = probe(path)
    assert (info.fps, info.frames, info.variable) == (24, 30, False)
    assert info.bit_depth == (10 if "10" in pixel_format else 8)
    assert abs(info.duration - 30 / 24) < 0.011
    stream = open_frames(path)
    assert stream.frames == 30
    assert numbers(stream) == list(range(30))
    assert numbers(stream) == list(range(30)), "a stream can be read again"
    assert numbers(open_frames(path, start=0.5, end=1.0)) == list(range(12, 24))


@pytest.mark.parametrize(
    "rate", [Fraction(24000, 1001), Fraction(30000, 1001), Fraction(25), Fraction(60), Fraction(8)]
)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_the_rate_is_kept_as_a_rational(tmp_path: Path, rate: Fraction, name: str) -> None:
    path = write_clip(tmp_path / name, frames(40, 32, 32), fps=rate)
    assert probe(path).fps == rate
    assert open_frames(path).frames == 40


def test_times_and_indices_count_from_the_start_of_the_range(clip: Path) -> None:
    found = [(frame.index, frame.time) for frame in open_frames(clip, start=1.0, end=1.5)]
    assert found == [(index, index / 24) for index in range(12)]


@pytest.mark.parametrize("start", [0.0, 0.01, 0.49, 0.5, 0.51, 1.7, 2.45])
def test_a_range_by_seek_equals_the_same_part_of_the_whole(clip: Path, start: float) -> None:
    whole = [frame.pixels for frame in open_frames(clip)]
    part = [frame.pixels for frame in open_frames(clip, start=start)]
    first = round(start * 24 - 1e-6)
    assert len(part) == round((2.5 - start) * 24)
    assert all((one == whole[min(first + index, 59)]).all() for index, one in enumerate(part))


def test_the_end_is_exclusive_and_nothing_behind_it_is_shown(clip: Path) -> None:
    assert numbers(open_frames(clip, end=0.5))[-1] == 11
    assert max(numbers(open_frames(clip, end=0.5, fps=Fraction(100)))) == 11
    assert numbers(open_frames(clip, start=1.0, end=1.01)) == [24]


def test_a_range_outside_the_clip_is_a_usage_error(clip: Path) -> None:
    for start, end, says in (
        (9, None, "behind the end"),
        (1, 1, "not after"),
        (-1, None, "from 0"),
        (0, -2, "not after"),
    ):
        with pytest.raises(UsageError, match=says):
            open_frames(clip, start=start, end=end)
    with pytest.raises(UsageError, match="--fps"):
        open_frames(clip, fps=Fraction(0))


@pytest.mark.parametrize("fps", [5, 12, 23, 25, 48, 60])
def test_another_rate_shows_the_nearest_frame_without_drift(clip: Path, fps: int) -> None:
    found = numbers(open_frames(clip, fps=Fraction(fps)))
    assert len(found) == round(2.5 * fps)
    for index, number in enumerate(found):
        assert abs(number / 24 - index / fps) <= 0.5 / 24 + 1e-6 or number == 59


def test_a_variable_rate_becomes_its_average_by_time(tmp_path: Path) -> None:
    steps = [Fraction(1, 30) if index // 8 % 2 == 0 else Fraction(2, 25) for index in range(48)]
    times = [sum(steps[:index], Fraction(0)) for index in range(48)]
    path = write_clip(tmp_path / "a.mp4", frames(48), times=times, options={"bf": "2"})
    info = probe(path)
    assert info.variable
    assert info.duration == pytest.approx(float(sum(steps)), abs=0.05)
    assert float(info.fps) == pytest.approx(48 / info.duration, rel=1e-4)
    stream = open_frames(path)
    found = numbers(stream)
    assert len(found) == stream.frames == round(info.duration * info.fps)
    for index, number in enumerate(found):
        distance = [abs(float(moment) - index / float(stream.fps)) for moment in times]
        assert distance[number] <= min(distance) + 1e-3
    assert found == sorted(found)


def test_a_missing_frame_is_held_and_the_rest_stays_in_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = [Fraction(index, 24) for index in range(100) if index not in (50, 51, 52, 53, 54, 55, 56, 57)]
    path = write_clip(tmp_path / "a.mp4", (numbered(int(moment * 24)) for moment in times), times=times)
    assert probe(path).fps == 24
    found = numbers(open_frames(path))
    assert found[:50] == list(range(50))
    assert set(found[50:58]) <= {49, 58}
    assert found[58:] == list(range(58, 100))
    assert "no frames from 2.042" in caplog.text


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_display_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    corner = np.full((64, 96, 3), 40, np.uint8)
    corner[:32, :48] = (220, 30, 30)
    path = write_clip(tmp_path / "a.mp4", [corner] * 3, rotate=degrees)
    info = probe(path)
    assert info.canvas == (Canvas(96, 64) if degrees % 180 == 0 else Canvas(64, 96))
    expected = np.rot90(corner, degrees // 90)  # the header counts against the clock
    assert info.rotation == -degrees % 360
    shown = next(iter(open_frames(path))).pixels
    assert np.abs(shown.astype(int) - expected)[4:-4, 4:-4].mean() < 6
    assert next(iter(open_frames(path, max_side=48))).pixels.shape == (
        (32, 48, 3) if degrees % 180 == 0 else (48, 32, 3)
    )


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames(5), aspect=Fraction(4, 3))
    assert probe(path).canvas == Canvas(128, 64)
    assert numbers(open_frames(path)) == list(range(5))
    assert next(iter(open_frames(path))).pixels.shape == (64, 128, 3)
    absurd = write_clip(tmp_path / "b.mp4", frames(5), aspect=Fraction(900, 1))
    assert probe(absurd).canvas == Canvas(96, 64)


def test_an_odd_size_is_read_whole(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames(4, 97, 63), pixel_format="yuv444p")
    assert probe(path).canvas == Canvas(97, 63)
    assert next(iter(open_frames(path))).pixels.shape == (63, 97, 3)


def test_a_long_side_above_the_limit_is_reduced_and_said(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    stream = open_frames(clip, max_side=48)
    assert stream.canvas == Canvas(48, 32)
    assert stream.info.canvas == Canvas(96, 64)
    assert numbers(stream) == list(range(60))
    assert caplog.text.count("48x32 instead of 96x64") == 1
    assert open_frames(clip, max_side=200).canvas == Canvas(96, 64)


@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_follow_the_matrix_and_range_in_the_file(tmp_path: Path, matrix: int, full_range: bool) -> None:
    colours = np.array([[220, 30, 30], [30, 200, 40], [40, 40, 230], [240, 220, 20], [128, 128, 128]], np.uint8)
    bars = np.repeat(np.repeat(colours[None], 24, 1), 64, 0)
    path = write_clip(tmp_path / "a.mp4", [bars] * 3, options={"crf": "8"}, colours=(matrix, 2 if full_range else 1))
    shown = next(iter(open_frames(path))).pixels[:, 12::24][10:50].astype(int)
    assert np.abs(shown - colours).max() <= 5


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animated_picture_is_a_clip_and_transparency_lies_on_white(tmp_path: Path, suffix: str) -> None:
    pictures = [Image.fromarray(numbered(index)).convert("RGBA") for index in range(6)]
    for picture in pictures:
        picture.paste((0, 0, 0, 0), (0, 48, 96, 64))
    how = {"disposal": 2} if suffix == ".gif" else {"lossless": True}
    pictures[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=pictures[1:], duration=40, **how)
    stream = open_frames(tmp_path / f"a{suffix}")
    assert (stream.fps, stream.frames) == (25, 6)
    assert numbers(stream) == list(range(6))
    assert next(iter(stream)).pixels[60, 50].tolist() == [255, 255, 255]


def test_a_folder_is_read_in_natural_order_at_25_or_the_given_rate(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(12):
        write_picture(tmp_path / "in" / f"f{index}.png", numbered(index))
    (tmp_path / "in" / "notes.txt").write_text("not a frame")
    stream = open_frames(tmp_path / "in")
    assert (stream.fps, stream.frames, stream.info.canvas) == (25, 12, Canvas(96, 64))
    assert numbers(stream) == list(range(12))
    assert open_frames(tmp_path / "in", fps=Fraction(10)).info.duration == pytest.approx(1.2)
    assert numbers(open_frames(tmp_path / "in", start=0.2)) == list(range(5, 12))
    (tmp_path / "in" / "f7.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"last good frame is at 0\.240 s.*--end 0\.280"):
        list(open_frames(tmp_path / "in"))
    assert numbers(open_frames(tmp_path / "in", end=0.28)) == list(range(7))
    write_picture(tmp_path / "in" / "f7.png", numbered(7, 50, 50))
    with pytest.raises(InputError, match="one size"):
        list(open_frames(tmp_path / "in"))


def damage(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Hurt the coded pictures (behind `mdat`) of an mp4 whose index is at the front.

    No single flipped bytes: H.264 has no checksum, so some give another valid picture.
    """
    found = bytearray(data)
    at = int(rng.integers(data.index(b"mdat") + 900, len(data) - 300))
    if kind == "cut":
        return data[:at]
    length = {"zero": 40, "zeros": 250, "random": 60}[kind]
    found[at : at + length] = bytes(length) if kind.startswith("zero") else rng.bytes(length)
    return bytes(found)


@pytest.mark.parametrize("kind", ["zero", "zeros", "random", "cut"])
def test_damage_is_told_and_no_wrong_frame_is_shown_before_it(tmp_path: Path, clip: Path, kind: str) -> None:
    clean = [frame.pixels.astype(int) for frame in open_frames(clip)]
    rng = np.random.default_rng(7)
    for _ in range(6):
        (tmp_path / "b.mp4").write_bytes(damage(clip.read_bytes(), kind, rng))
        shown: list[NDArray[np.uint8]] = []
        with pytest.raises(InputError, match="damaged") as caught:
            shown.extend(frame.pixels for frame in open_frames(tmp_path / "b.mp4"))
        assert "\n" not in str(caught.value)
        assert all(np.abs(one - clean[index]).max() <= 12 for index, one in enumerate(shown))
        advised = re.search(r"--end ([\d.]+)", str(caught.value))
        if advised:
            good = [frame.pixels for frame in open_frames(tmp_path / "b.mp4", end=float(advised[1]))]
            assert abs(len(good) - float(advised[1]) * 24) < 1
            assert all(np.abs(one - clean[index]).max() <= 12 for index, one in enumerate(good))
        else:
            assert len(shown) <= 1


def test_damage_behind_the_end_or_before_the_start_is_never_met(tmp_path: Path, clip: Path) -> None:
    data = bytearray(clip.read_bytes())
    body = data.index(b"mdat") + 4
    at = body + (len(data) - body) * 55 // 100
    data[at : at + 120] = bytes(120)
    (tmp_path / "b.mp4").write_bytes(data)
    with pytest.raises(InputError, match="--end"):
        list(open_frames(tmp_path / "b.mp4"))
    assert numbers(open_frames(tmp_path / "b.mp4", end=0.9)) == list(range(22))
    assert numbers(open_frames(tmp_path / "b.mp4", start=2.0)) == list(range(48, 60))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".gif", ".webp"])
def test_a_file_that_ends_early_is_noticed_in_every_container(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".webp":
        pictures = [Image.fromarray(frame) for frame in frames(30)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40)
    else:
        codec, pixel_format = {
            ".webm": ("libvpx-vp9", "yuv420p"),
            ".gif": ("gif", "rgb8"),
        }.get(suffix, ("libx264", "yuv420p"))
        write_clip(path, frames(30), codec=codec, pixel_format=pixel_format, options={"g": "5"})
    assert not is_cut_short(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    assert is_cut_short(path)
    with pytest.raises(InputError, match=r"--end|cut short"):
        list(open_frames(path))


def test_an_index_that_is_missing_is_told(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames(30), movflags="write_colr")
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(InputError, match="cut short"):
        probe(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("zero.mp4", b"", "empty"),
        ("text.mp4", b"this is no video\n" * 50, "damaged or no video"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n", ""),
        ("list.txt", b"ffconcat version 1.0\nfile a.mp4\n", ""),
        ("random.mov", bytes(np.random.default_rng(1).integers(0, 256, 4000, np.uint8)), "cannot be read"),
        ("zeros.avi", bytes(5000), "cannot be read"),
        ("riff.avi", b"RIFF\xff\xff\xff\x7fAVI LIST", "cannot be read"),
        ("ebml.mkv", b"\x1a\x45\xdf\xa3\xff\xff\xff\xff\xff\xff\xff\xff" * 9, ""),
        ("half.webp", b"RIFF\x40\0\0\0WEBPVP8X", "cut short"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says or name) as caught:
        list(open_frames(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_missing_folder_and_sound_only_are_refused(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(InputError, match=r"no such file\. Did you mean 'a\.mp4'"):
        probe(clip.parent / "b.mp4")
    (tmp_path / "empty.mp4").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        probe(tmp_path / "empty.mp4")
    with pytest.raises(InputError, match="cannot be read"):
        probe(clip / "below.mp4")
    import av

    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as container:
        track = container.add_stream("aac", rate=44100, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 44100
        container.mux(track.encode(silence))
        container.mux(track.encode(None))
    with pytest.raises(InputError, match="holds no video"):
        probe(tmp_path / "sound.m4a")


def test_a_name_cannot_open_another_protocol(tmp_path: Path) -> None:
    for name in ("concat:a.mp4|b.mp4", "http://127.0.0.1:9/a.mp4", "pipe:0", "subfile,,start,0,end,9,,:a.mp4"):
        with pytest.raises(InputError):
            probe(name)


@pytest.mark.parametrize("size", [(65000, 65000), (16400, 8), (12000, 12000)])
def test_a_size_bomb_is_refused_before_its_memory(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_clip(tmp_path / "a.mov", frames(2), codec="mjpeg", pixel_format="yuvj420p")
    data = bytearray(path.read_bytes())
    entry = data.index(b"jpeg", data.index(b"stsd"))
    data[entry + 28 : entry + 32] = struct.pack(">HH", *size)
    at = -1
    while (at := data.find(b"\xff\xc0", at + 1)) >= 0:
        data[at + 5 : at + 9] = struct.pack(">HH", size[1], size[0])
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"megapixels|limit of 16384|no pixels"):
        list(open_frames(path))


def test_damaged_headers_never_raise_anything_but_input_error(tmp_path: Path, clip: Path) -> None:
    clean = clip.read_bytes()
    head = clean.index(b"mdat")
    rng = np.random.default_rng(11)
    refused = 0
    for trial in range(60):
        data = bytearray(clean)
        at = int(rng.integers(0, head))
        length = int(rng.integers(1, 9))
        data[at : at + length] = bytes(length) if trial % 2 else rng.bytes(length)
        (tmp_path / "b.mp4").write_bytes(data)
        try:
            for count, _ in enumerate(open_frames(tmp_path / "b.mp4", max_side=64)):
                if count > 200:
                    break
        except (InputError, UsageError):
            refused += 1
    assert refused > 5


def test_leaving_early_closes_the_file(clip: Path) -> None:
    import os

    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        stream = iter(open_frames(clip))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_shared_bad_clips_read_as_the_contract_says(shared: Path) -> None:
    bad = shared / "data" / "bad"
    for name in ("truncated_no_index", "truncated_half", "text"):
        with pytest.raises(InputError):
            list(open_frames(bad / f"{name}.mp4"))
    with pytest.raises(InputError, match=r"--end 0\.\d+"):
        list(open_frames(bad / "truncated_half.mp4"))
    assert len(list(open_frames(bad / "truncated_half.mp4", end=0.8))) == 19
    sizes = {"odd_size": (255, 377), "rotated_90": (256, 378), "ten_bit": (256, 378), "one_frame": (256, 378)}
    for name, size in sizes.items():
        stream = open_frames(bad / f"{name}.mp4")
        assert stream.canvas == Canvas(*size)
        assert len(list(stream)) == stream.frames
    upright = next(iter(open_frames(bad / "ten_bit.mp4"))).pixels.astype(float)
    turned = next(iter(open_frames(bad / "rotated_90.mp4"))).pixels.astype(float)
    assert np.abs(upright - turned).mean() < 12, "both are the same dancer, upright"
    assert probe(bad / "vfr.mp4").variable
    assert len(list(open_frames(bad / "vfr.mp4"))) == 48
    assert probe(bad / "with_audio.mp4").has_audio


def test_frames_are_steadily_spaced(clip: Path) -> None:
    moments = [frame.time for frame in open_frames(clip, fps=Fraction(30000, 1001))]
    assert all(abs(b - a - 1001 / 30000) < 1e-12 for a, b in pairwise(moments))


def test_the_public_names_stay(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.webp", Canvas(4, 4), Fraction(25)) as writer:
        assert isinstance(writer, VideoWriter)
        writer.write(np.zeros((4, 4, 3), np.uint8))


def test_a_hole_of_zeros_in_a_coded_unit_is_seen_and_stuffing_is_not() -> None:
    unit = bytes(range(1, 200))

    def packet(*units: bytes) -> bytes:
        return b"".join(struct.pack(">I", len(one)) + one for one in units)

    assert units_are_sound(packet(unit, b"\x01", unit + bytes(9)), 4)
    assert not units_are_sound(packet(unit, unit[:50] + bytes(4) + unit[50:]), 4)
    assert not units_are_sound(packet(unit)[:-1], 4)
