"""Pictures: every common kind reads as upright sRGB RGBA, bad ones are refused in one line, edges stay clean."""

from __future__ import annotations

import contextlib
import resource
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from animx.canvas import Canvas, Placement, place
from animx.errors import InputError, OutputError, UsageError
from animx.image import file_sha256, read_picture, resize, write_picture

BMP_BOMB = b"BM" + struct.pack("<IHHIIiiHHIIIIII", 70, 0, 0, 54, 40, 60000, 60000, 1, 24, *[0] * 6)
WEBP_BOMB = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\x3f\xff\xff\x3f" + bytes(8)


def scene(width: int = 60, height: int = 40) -> NDArray[np.uint8]:
    """A smooth picture whose four corners differ."""
    y, x = np.mgrid[0:height, 0:width]
    return np.dstack([x * 255 // (width - 1), y * 255 // (height - 1), 255 - x * 255 // (width - 1)]).astype(np.uint8)


def png_head(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = b"IDAT" + zlib.compress(bytes(10))
    return head + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_is_written_lossless_reads_back_the_same(tmp_path: Path, suffix: str, channels: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (7, 5, channels), np.uint8)
    write_picture(tmp_path / f"a{suffix}", pixels)
    found = read_picture(tmp_path / f"a{suffix}")
    assert found.canvas == Canvas(5, 7)
    assert found.has_alpha == (channels == 4)
    expected = np.repeat(pixels, 3, 2) if channels == 1 else pixels
    assert (found.pixels[..., : expected.shape[2]] == expected).all()
    assert found.sha256 == file_sha256(tmp_path / f"a{suffix}")


def test_a_jpeg_is_near_and_cannot_be_transparent(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", scene())
    assert np.abs(read_picture(tmp_path / "a.jpg").pixels[..., :3].astype(int) - scene()).max() <= 8
    clear = np.dstack([scene(), np.full((40, 60), 9, np.uint8)])
    with pytest.raises(UsageError, match="transparent"):
        write_picture(tmp_path / "b.jpg", clear)
    with pytest.raises(UsageError, match=r"Did you mean '\.png'"):
        write_picture(tmp_path / "b.pn", scene())


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "YCbCr", "HSV", "I;16"])
def test_every_mode_shows_the_same_picture(tmp_path: Path, mode: str) -> None:
    grey = np.repeat(scene()[..., :1], 3, 2)
    picture = Image.fromarray(grey)
    if mode == "I;16":
        picture = Image.fromarray(grey[..., 0].astype(np.uint16) * 257)
    elif mode == "P":
        picture = picture.quantize(256)
    else:
        picture = picture.convert(mode)
    name = {"CMYK": "a.tif", "YCbCr": "a.jpg", "HSV": None}.get(mode, "a.png")
    if name is None:
        picture, name = picture.convert("RGB"), "a.bmp"
    picture.save(tmp_path / name)
    found = read_picture(tmp_path / name)
    assert not found.has_alpha
    if mode != "1":
        assert np.abs(found.pixels[..., :3].astype(int) - grey).max() <= 4


def test_sixteen_bit_values_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values)
    assert read_picture(tmp_path / "a.png").pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_float_tiff_is_read_as_zero_to_one(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif").pixels[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = scene()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert (read_picture(tmp_path / "a.png").pixels[..., :3] == upright).all()


def test_an_opaque_alpha_channel_is_not_transparency(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", np.dstack([scene(), np.full((40, 60), 255, np.uint8)]))
    assert not read_picture(tmp_path / "a.png").has_alpha


def test_an_animated_picture_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_picture(tmp_path / "a.gif").pixels[0, 0].tolist() == [255, 0, 0, 255]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("zero.png", b"", "empty"),
        ("text.png", b"hello, this is no picture\n" * 9, "not a picture"),
        ("bomb.png", png_head(65000, 65000), "megapixels"),
        ("wide.png", png_head(90000, 1), "limit of 16384"),
        ("edge.png", png_head(10001, 10000), "megapixels"),
        ("cut.png", png_head(100, 100), "damaged or cut short"),
        ("none.png", png_head(0, 5), "damaged|no pixels"),
        (
            "bomb.bmp",
            BMP_BOMB,
            "megapixels",
        ),
        (
            "bomb.webp",
            WEBP_BOMB,
            "damaged|megapixels",
        ),
        ("bomb.gif", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\0;", "megapixels"),
    ],
)
def test_a_bad_picture_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_picture(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_a_jpeg_bomb_takes_no_memory(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    (tmp_path / "a.jpg").write_bytes(data)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_kb()
    with pytest.raises(InputError, match="megapixels"):
        read_picture(tmp_path / "a.jpg")
    assert peak_kb() - before < 100_000


def test_missing_folder_and_neighbour_are_named(tmp_path: Path) -> None:
    (tmp_path / "hero.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no such file\. Did you mean 'hero\.png'"):
        read_picture(tmp_path / "hreo.png")
    with pytest.raises(InputError, match="is a folder"):
        read_picture(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_picture(tmp_path / "hero.png" / "below.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damaged_bytes_never_raise_anything_but_input_error(tmp_path: Path, kind: str) -> None:
    Image.fromarray(scene(64, 64)).save(tmp_path / "a", kind)
    clean = (tmp_path / "a").read_bytes()
    rng = np.random.default_rng(3)
    for trial in range(40):
        data = bytearray(clean)
        at = int(rng.integers(0, min(len(data), 200) if trial % 2 else len(data)))
        data[at : at + 8] = rng.bytes(len(data[at : at + 8])) if trial % 3 else bytes(len(data[at : at + 8]))
        (tmp_path / "b").write_bytes(data if trial % 5 else data[:at])
        with contextlib.suppress(InputError):
            assert read_picture(tmp_path / "b").pixels.shape[2] == 4


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            write_picture(tmp_path / "a.png", np.random.default_rng(1).integers(0, 255, (99, 99, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_nothing_changes_when_nothing_is_asked() -> None:
    assert (resize(scene(), Canvas(60, 40)) == scene()).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([(), (3,), (4,)]))
def test_a_flat_picture_stays_flat_at_any_size(width: int, height: int, channels: tuple[int, ...]) -> None:
    flat = np.full((31, 17, *channels), 77, np.uint8)
    found = resize(flat, Canvas(width, height))
    assert found.shape == (height, width, *channels)
    assert (np.abs(found.astype(int) - 77) <= 1).all()


def test_halving_is_the_mean_of_four() -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (8, 6, 3), np.uint8)
    mean = pixels.reshape(4, 2, 3, 2, 3).mean((1, 3))
    assert np.abs(resize(pixels, Canvas(3, 4)) - mean).max() <= 0.51


def test_a_transparent_colour_never_bleeds_into_the_edge() -> None:
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[...] = (0, 255, 0, 0)
    pixels[:, 20:] = (255, 0, 0, 255)
    for side in (13, 97):
        found = resize(pixels, Canvas(side, side))
        seen = found[found[..., 3] > 0]
        assert seen[:, 1].max() <= 2
        assert seen[:, 0].min() >= 250


def test_contain_leaves_the_rest_transparent_and_cover_leaves_none() -> None:
    pixels = np.dstack([scene(), np.full((40, 60), 255, np.uint8)])
    target = Canvas(50, 50)
    contained = resize(pixels, target, place(Canvas(60, 40), target, "contain"))
    assert (contained[:8, :, 3] == 0).all()
    assert (contained[10:40, :, 3] == 255).all()
    assert (resize(pixels, target, place(Canvas(60, 40), target, "cover"))[..., 3] == 255).all()


@pytest.mark.parametrize("factor", [0.4, 0.77, 1.3, 2.6])
def test_a_dot_lands_where_the_placement_maps_its_middle(factor: float) -> None:
    pixels = np.zeros((60, 80), np.uint8)
    pixels[28:32, 48:52] = 255
    where = Placement(factor, factor, 3.3, 7.8)
    found = resize(pixels, Canvas(230, 180), where).astype(float)
    y, x = np.mgrid[0:180, 0:230] + 0.5
    centre = np.array([(x * found).sum(), (y * found).sum()]) / found.sum()
    assert np.abs(centre - where.points(np.array([50.0, 30.0]))).max() < 0.1


def test_shared_pictures_read_as_the_contract_says(shared: Path) -> None:
    bad = shared / "data" / "bad"
    for name in ("zero.png", "bomb_header.png", "cut.jpg"):
        with pytest.raises(InputError):
            read_picture(bad / name)
    straight = read_picture(bad / "rgb16.png").pixels
    for name in ("gray8.jpg", "gray16.png", "cmyk.jpg", "palette.png", "exif_rotate6.jpg", "still.webp"):
        found = read_picture(bad / name)
        assert found.canvas == Canvas(280, 409)
        small = resize(found.pixels, Canvas(140, 204))[..., :3].mean(2)
        difference = np.abs(small - (straight @ np.array([1, 1, 1, 0])) / 3).mean()
        assert difference < 14, f"{name} shows another picture ({difference:.1f})"
    assert read_picture(bad / "transparent.png").has_alpha
    assert read_picture(bad / "one_pixel.png").canvas == Canvas(1, 1)
