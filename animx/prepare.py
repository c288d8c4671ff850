"""Prepare the reference image: its figure, its pose, its place on the output's canvas, and what lies behind it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas, Fit, Placement, place
from animx.engine import Background
from animx.errors import InputError, NoFigureError, UsageError, nearest
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import JOINTS, TEMPLATE
from animx.times import parse_colour, resolve_size

if TYPE_CHECKING:
    from animx.image import Picture
    from animx.pose.backend import PoseBackend

log = logging.getLogger(__name__)

MAX_LONG_SIDE = 1280
"""Long side of the output unless `--size` says otherwise, and of what the nets look at [px]."""


BLUR = 0.02
"""Width of the blur of `--background blur` [long sides]."""


@dataclass(frozen=True)
class Reference:
    """The reference image with its figure; all on one canvas, the picture's own or a smaller one."""

    picture: Picture
    pixels: NDArray[np.uint8]  # RGBA [H, W, 4] on `canvas`
    canvas: Canvas
    mask: NDArray[np.float32] | None  # coverage 0..1 [H, W]
    pose: PoseSequence | None
    """One frame, one person, on `canvas`; None = no skeleton."""
    origin: str
    """Where the pose comes from: detected, fitted, file or none."""
    mask_method: str
    backend: str | None = None

    def on(self, canvas: Canvas, placement: Placement) -> Reference:
        """The same on another canvas; what `placement` leaves uncovered is transparent and no figure."""
        from animx.image import resize

        if canvas == self.canvas and placement == Placement(1.0, 1.0, 0.0, 0.0):
            return self
        if (placement.sx, placement.sy, placement.dx, placement.dy) == (1.0, 1.0, 0.0, 0.0):
            pixels = np.ascontiguousarray(self.pixels[: canvas.height, : canvas.width])
            mask = None if self.mask is None else np.ascontiguousarray(self.mask[: canvas.height, : canvas.width])
        else:
            pixels = resize(self.pixels, canvas, placement)
            mask = None if self.mask is None else _place_mask(self.mask, canvas, placement)
        return replace(
            self,
            pixels=pixels,
            canvas=canvas,
            mask=mask,
            pose=None if self.pose is None else self.pose.on(canvas, placement),
        )


def _place_mask(mask: NDArray[np.float32], canvas: Canvas, placement: Placement) -> NDArray[np.float32]:
    from animx.image import resize

    as_alpha = np.zeros((*mask.shape, 4), np.uint8)
    as_alpha[..., 3] = np.clip(mask * 255 + 0.5, 0, 255).astype(np.uint8)
    return resize(as_alpha, canvas, placement)[..., 3].astype(np.float32) / 255


def prepare_reference(
    picture: Picture,
    *,
    ref_pose: str = "auto",
    mask_file: Path | None = None,
    backend: PoseBackend | None = None,
    long_side: int = MAX_LONG_SIDE,
    advise: bool = True,
) -> Reference:
    """Find the figure of `picture` and its pose, on the picture's canvas reduced to `long_side` [px].

    `ref_pose`: `auto` (detect, else fit to the outline), `fit`, `none`, or the path of a pose file or joints YAML.
    `backend` None detects nothing: `auto` then fits.  `advise`: say how to give joints to a figure without.
    Errors: `NoFigureError` (the mask covers under 3 %),
    `InputError` (a file that does not match the picture).
    """
    from animx.image import resize
    from animx.puppet.figure import find_pose
    from animx.puppet.mask import find_mask

    canvas = picture.canvas.limited(long_side)
    pixels = picture.pixels if canvas == picture.canvas else resize(picture.pixels, canvas)
    given = None if ref_pose in ("auto", "fit", "none") else read_reference_pose(Path(ref_pose), picture.canvas, canvas)
    drawn = None if mask_file is None else read_mask(mask_file, picture.canvas, canvas)
    small = replace(picture, pixels=pixels)
    try:
        mask = find_mask(small, joints=given, mask=drawn)
    except NoFigureError as error:
        raise NoFigureError(f"{picture.name}: {error}") from error
    for note in mask.notes:
        level = logging.WARNING if mask.method == "grabcut" else logging.INFO  # a guess is worth a warning
        log.log(level, "%s: %s", picture.name, note)
    if given is not None:
        return Reference(picture, pixels, canvas, mask.alpha, given, "file", mask.method)
    figure = find_pose(pixels, mask.alpha, backend if ref_pose == "auto" else None, mode=cast(Any, ref_pose))
    if figure.pose is None and ref_pose != "none" and advise:
        # The engine warns of it; this is how to mend it.
        log.info(
            "to give %s joints: animx pose extract %s --edit, correct the file, then --ref-pose FILE",
            picture.name,
            picture.name,
        )
    used = backend.name if backend is not None and figure.origin == "detected" else None
    return Reference(picture, pixels, canvas, mask.alpha, figure.pose, figure.origin, mask.method, used)


def read_reference_pose(path: Path, picture: Canvas, canvas: Canvas) -> PoseSequence:
    """Read a pose file or joints YAML made for a picture of size `picture`; returns it on `canvas`."""
    found = read_single(path)
    _same_shape(str(path), found.canvas, picture)
    return found.on(canvas, place(found.canvas, canvas))


def read_single(path: Path) -> PoseSequence:
    """Read the one pose (one frame, one person) of a pose file or joints YAML."""
    from animx.pose.formats import read_poses
    from animx.pose.joints import read_joints
    from animx.pose.select import single

    poses = read_joints(path) if path.suffix.lower() in (".yaml", ".yml") else read_poses(path)
    return single(poses, str(path))


def template_pose(found: Reference) -> PoseSequence:
    """A standing template body laid over the figure's box, on its canvas: a start for a person to correct."""
    canvas = found.canvas
    mask = np.ones(canvas.size[::-1], np.float32) if found.mask is None else found.mask
    rows, columns = np.flatnonzero((mask > 0.5).any(1)), np.flatnonzero((mask > 0.5).any(0))
    height = float(rows[-1] - rows[0] + 1)
    keypoints = np.zeros((1, 1, JOINTS, 2), np.float32)
    scores = np.zeros((1, 1, JOINTS), np.float32)
    for joint, (x, y) in TEMPLATE.items():
        keypoints[0, 0, joint] = (columns.mean() + x * height, rows[0] + (y + 0.5) * height)
        scores[0, 0, joint] = 0.5
    return PoseSequence(keypoints, scores, canvas)


def read_mask(path: Path, picture: Canvas, canvas: Canvas) -> NDArray[np.float32]:
    """Read a mask picture (white = figure, or its alpha) made for a picture of size `picture`; coverage on `canvas`."""
    from animx.image import read_picture

    found = read_picture(path)
    _same_shape(str(path), found.canvas, picture)
    rgba = found.pixels
    values = rgba[..., 3] if found.has_alpha else rgba[..., :3].max(2)
    coverage = values.astype(np.float32) / 255
    return coverage if found.canvas == canvas else _place_mask(coverage, canvas, place(found.canvas, canvas))


def _same_shape(where: str, found: Canvas, wanted: Canvas) -> None:
    if abs(found.width * wanted.height - found.height * wanted.width) > 0.01 * found.width * wanted.height:
        raise InputError(f"{where}: made for a picture of {found} px, but the reference image has {wanted} px")


# ---- canvas and background ----


def place_reference(found: Reference, size: tuple[int | None, int | None] | None, fit: Fit) -> tuple[Reference, Canvas]:
    """The reference on the output's canvas: its own aspect and at most 1280 px unless `size` is given; even sides."""
    if size is None:
        if found.canvas != found.picture.canvas:
            log.info("the output is %s px: the picture's %s reduced (use --size to keep it)",
                     found.canvas.even(), found.picture.canvas)  # fmt: skip
        canvas = found.canvas.even()
        return found.on(canvas, Placement(1.0, 1.0, 0.0, 0.0)), canvas
    canvas = resolve_size(size, found.picture.canvas)
    if canvas.long_side > found.canvas.long_side and found.canvas != found.picture.canvas:
        found = _full_size(found)
    placed = found.on(canvas, place(found.canvas, canvas, fit))
    if fit == "contain" and not found.picture.has_alpha:
        # Black bars, as users of ffmpeg's pad expect.
        placed = replace(
            placed, pixels=np.dstack([_on_black(placed.pixels), np.full(canvas.size[::-1], 255, np.uint8)])
        )
    return placed, canvas


def _full_size(found: Reference) -> Reference:
    """The reference on its picture's own canvas, for an output larger than what the nets looked at."""
    own = found.picture.canvas
    grown = found.on(own, place(found.canvas, own))
    return replace(grown, pixels=found.picture.pixels)


def find_background(
    text: str, has_alpha: bool, container_alpha: bool, target: Path, filler: str | None = None
) -> Background:
    """What `--background` asks for; a picture with alpha keeps it where the container can, else lies on white.

    filler: name of an engine whose frames are always opaque.
    """
    if text == "transparent" and filler is not None:
        raise UsageError(
            f"--background transparent: engine '{filler}' fills the whole frame. "
            "Use --engine puppet, or a colour such as --background '#00ff00'"
        )
    if text == "transparent" and not container_alpha:
        raise UsageError(
            f"--background transparent: {target.suffix or target} holds no transparency. "
            "Write .webm, .mov, .gif, .webp or OUT_%05d.png, or choose another --background"
        )
    if text == "keep" and has_alpha:
        if filler is not None:
            log.info(
                "the picture is transparent round the figure; engine '%s' fills the frame: white is put behind it",
                filler,
            )
            return Background("colour", (255, 255, 255))
        if container_alpha:
            log.info("the picture is transparent round the figure, and so is the output")
            return Background("transparent")
        log.info("the picture is transparent round the figure; %s is not: white is put behind it", target.suffix)
        return Background("colour", (255, 255, 255))
    if text in ("keep", "blur", "transparent"):
        return Background(text)  # type: ignore[arg-type]
    if text.startswith("#"):
        return Background("colour", parse_colour(text))
    if not Path(text).exists():
        words = ("keep", "blur", "transparent")
        raise UsageError(
            f"--background '{text}': use keep, blur, transparent, #rrggbb or a picture.{nearest(text, words)}"
        )
    from animx.image import read_picture

    return Background("image", image=_on_black(read_picture(text).pixels))


def _on_black(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * alpha + 0.5).astype(np.uint8)


def seated(picture: NDArray[np.uint8], mask: NDArray[np.float32] | None, background: Background) -> NDArray[np.uint8]:
    """The figure of an RGBA picture [H, W, 4] before the background, opaque: for engines that repaint whole frames.

    The picture's own alpha says where the figure is; an opaque picture's `mask` [H, W] does.
    """
    if background.mode in ("keep", "transparent"):
        return picture
    rgb = picture[..., :3]
    behind: NDArray[Any] | tuple[int, int, int] = background.colour
    if background.mode == "image" and background.image is not None:
        behind = background.image
    elif background.mode == "blur":
        import cv2

        behind = np.asarray(cv2.GaussianBlur(rgb, (0, 0), BLUR * max(rgb.shape)), np.uint8)
    share = picture[..., 3].astype(np.float32) / 255
    if mask is not None and share.min() == 1:
        share = np.clip(mask, 0, 1)
    mixed = rgb * share[..., None] + np.asarray(behind, np.float32) * (1 - share[..., None])
    return np.dstack([(mixed + 0.5).astype(np.uint8), np.full(rgb.shape[:2], 255, np.uint8)])


def on_canvas(background: Background, canvas: Canvas) -> Background:
    """The background with its picture, if any, covering `canvas`."""
    if background.image is None:
        return background
    from animx.image import resize

    height, width = background.image.shape[:2]
    whole = resize(background.image, canvas, place(Canvas(width, height), canvas, "cover"))
    return replace(background, image=np.ascontiguousarray(whole[..., :3]))
