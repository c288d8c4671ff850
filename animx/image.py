"""Pictures: any common file to RGBA bytes and back, and resizing that keeps edges clean.

In: jpg, png, webp, bmp, tiff, gif (first frame); grey, CMYK, 16-bit, palette, alpha, EXIF orientation, colour profile.
Out: `Picture`, RGBA uint8 [H, W, 4], not premultiplied, sRGB.  A size bomb is refused from the header.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from animx.atomic import writing
from animx.canvas import MAX_PIXELS, MAX_SIDE, Canvas, Placement, place
from animx.errors import InputError, UsageError, nearest

log = logging.getLogger(__name__)

IMAGE_SUFFIXES: frozenset[str] = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Lower-case suffixes of the pictures that `read_picture` reads (it goes by content, not by name)."""
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_WRITABLE = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Picture:
    """A picture as it is meant to be seen: upright, sRGB, 8 bit."""

    pixels: NDArray[np.uint8]
    """RGBA [H, W, 4], not premultiplied."""
    has_alpha: bool
    """True only when some pixel is really transparent."""
    name: str
    """File name without its folder."""
    sha256: str
    """Hash of the file's bytes, hexadecimal."""

    @property
    def canvas(self) -> Canvas:
        """The picture's pixel grid."""
        return Canvas(self.pixels.shape[1], self.pixels.shape[0])


def read_picture(path: str | Path) -> Picture:
    """Read one picture (the first of several).  Missing, damaged, cut, foreign or too large: `InputError`.

    Sizes are checked from the header, before any pixel takes memory: `canvas.MAX_SIDE` and `canvas.MAX_PIXELS`.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not a picture. Name a file in it")
        check_no_pipe(path)
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes). Save or download it again")
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = _decode(file, str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.{_near(path)}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    opaque = bool(pixels[..., 3].min() == 255)
    return Picture(pixels, not opaque, path.name, file_sha256(path))


def check_no_pipe(path: Path) -> None:
    """Refuse (`InputError`) a named pipe, which could be read only once; a missing file is an `OSError`."""
    if stat.S_ISFIFO(path.stat().st_mode):
        raise InputError(f"{path} is a pipe; only poses can come from one. Save it to a file first")


def check_size(width: int, height: int, where: str) -> None:
    """Refuse (`InputError`) a picture or clip of impossible or too large size [px], as its header states it."""
    if width < 1 or height < 1:
        raise InputError(f"{where} has no pixels ({width}x{height})")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"{where} is {width}x{height} px, more than the limit of {MAX_SIDE} px a side and "
            f"{MAX_PIXELS // 1_000_000} megapixels. Make it smaller first"
        )


def write_picture(path: str | Path, pixels: NDArray[np.uint8], *, overwrite: bool = True) -> None:
    """Write grey [H, W], RGB or RGBA [H, W, C] as PNG, JPEG (quality 95, 4:4:4) or WebP (lossless), by suffix, atomic.

    An unknown suffix, and transparency in a JPEG, are a `UsageError`; an impossible place is an `OutputError`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITABLE:
        raise UsageError(f"{path}: pictures are written as {', '.join(_WRITABLE)}.{nearest(suffix, _WRITABLE)}")
    if suffix in (".jpg", ".jpeg") and pixels.ndim == 3 and pixels.shape[2] == 4:
        if pixels[..., 3].min() < 255:
            raise UsageError(f"{path}: a JPEG cannot be transparent. Use .png or .webp")
        pixels = pixels[..., :3]
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    with writing(path, overwrite) as temporary, temporary.open("wb") as file:
        if suffix == ".png":
            picture.save(file, "PNG", compress_level=6)
        elif suffix == ".webp":
            picture.save(file, "WEBP", lossless=True, exact=True, quality=60)
        else:
            picture.save(file, "JPEG", quality=95, subsampling=0)


def resize(pixels: NDArray[np.uint8], canvas: Canvas, placement: Placement | None = None) -> NDArray[np.uint8]:
    """Put grey [H, W], RGB or RGBA [H, W, C] on `canvas` where `placement` says (default: stretched to fill it).

    Area average downwards, cubic upwards; colour is weighted by alpha, so that a transparent pixel's colour never
    bleeds into an edge.  What `placement` leaves uncovered is 0 (transparent, or black).  Same pixels when nothing
    changes.
    """
    height, width = pixels.shape[:2]
    source = Canvas(width, height)
    where = placement or place(source, canvas)
    if source == canvas and where == Placement(1.0, 1.0, 0.0, 0.0):
        return pixels.copy()
    if pixels.ndim == 3 and pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        alpha = pixels[..., 3:].astype(np.float32) / 255
        colour = _move(np.concatenate([pixels[..., :3] * alpha, alpha * 255], 2), canvas, where)
        alpha = np.clip(colour[..., 3:], 0, 255)
        colour[..., :3] = np.divide(colour[..., :3] * 255, alpha, out=np.zeros_like(colour[..., :3]), where=alpha > 0)
        colour[..., 3:] = alpha
        return np.clip(np.rint(colour), 0, 255).astype(np.uint8)
    return _move(pixels, canvas, where).astype(np.uint8, copy=False)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal.  Reads 1 MiB at a time; an unreadable file is an `InputError`."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _decode(file: io.BufferedReader, where: str) -> NDArray[np.uint8]:
    """RGBA of an open file.  Pillow's decoders raise all kinds of errors on damaged bytes; each means the same here."""
    try:
        picture: Image.Image = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError:
        raise InputError(f"{where} has more than {MAX_PIXELS // 1_000_000} megapixels. Make it smaller first") from None
    except Exception as error:
        raise InputError(
            f"{where} is not a picture that can be read (jpg, png, webp, bmp, tiff, gif), or its head is damaged"
        ) from error
    check_size(*picture.size, where)
    try:
        with contextlib.suppress(EOFError):
            picture.seek(0)
        picture.load()
        with contextlib.suppress(Exception):  # a broken EXIF block turns nothing
            picture = ImageOps.exif_transpose(picture)
        return np.ascontiguousarray(_to_rgba(_to_srgb(picture)), dtype=np.uint8)
    except MemoryError:
        raise InputError(f"{where} does not fit into memory. Make it smaller first") from None
    except Exception as error:
        raise InputError(f"{where} is damaged or cut short ({error}). Save or download it again") from error


def _to_srgb(picture: Image.Image) -> Image.Image:
    """Apply an embedded colour profile (Display P3, AdobeRGB, CMYK); one that cannot be used is ignored."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("RGB", "RGBA", "CMYK"):
        return picture
    try:
        mode = "RGBA" if picture.mode == "RGBA" else "RGB"
        turned = ImageCms.profileToProfile(
            picture,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode=mode,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        log.debug("colour profile ignored: %s", error)
        return picture
    return turned if turned is not None else picture


def _to_rgba(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture).astype(np.float64)
        # 16-bit greys arrive as I or I;16; a float TIFF is 0..1 unless it says otherwise by its values.
        if picture.mode == "F":
            scale = 255.0 if np.nanmax(values, initial=0) <= 1 else 1.0
        else:
            scale = 1 / 257 if picture.mode != "I" or values.max(initial=0) > 255 else 1.0
        grey = np.clip(np.rint(np.nan_to_num(values) * scale), 0, 255).astype(np.uint8)
        return np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    return np.asarray(picture.convert("RGBA"))


def _move(pixels: NDArray[np.uint8], canvas: Canvas, where: Placement) -> NDArray[np.uint8]:
    """Area average to the nearest whole size, then the remaining sub-pixel map.  dtype and channels are kept."""
    height, width = pixels.shape[:2]
    reduced = (max(1, round(width * min(1.0, where.sx))), max(1, round(height * min(1.0, where.sy))))
    small = cv2.resize(pixels, reduced, interpolation=cv2.INTER_AREA) if reduced != (width, height) else pixels
    rest = Placement(where.sx * width / reduced[0], where.sy * height / reduced[1], where.dx, where.dy)
    if reduced == canvas.size and _is_identity(rest):
        return np.asarray(small)
    moved = cv2.warpAffine(
        small, rest.warp_matrix(), canvas.size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    left, right = max(0, round(where.dx)), min(canvas.width, round(where.dx + where.sx * width))
    top, bottom = max(0, round(where.dy)), min(canvas.height, round(where.dy + where.sy * height))
    moved[:top], moved[bottom:], moved[:, :left], moved[:, right:] = 0, 0, 0, 0
    return np.asarray(moved)


def _is_identity(where: Placement) -> bool:
    return bool(np.allclose((where.sx, where.sy, where.dx, where.dy), (1, 1, 0, 0), rtol=0, atol=1e-9))


def _near(path: Path) -> str:
    """A hint when the folder holds a file of nearly this name."""
    with contextlib.suppress(OSError):
        return nearest(path.name, (entry.name for entry in path.parent.iterdir()))
    return ""
