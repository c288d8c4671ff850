"""Training samples out of prepared clips: a segment, one reference frame, and the driving poses under EPI.

A sample of F frames: stride uniform in 1..`stride` as far as the clip is long enough, start uniform; ONE random frame
of the same clip serves as reference picture, image vector, latent and reference pose.  The poses of the segment are
transformed by the explicit pose indicator and drawn; the reference's pose is not.  Everything random comes from the
sample's seed, each purpose from a stream of its own.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas, place
from animx.config import Range, build
from animx.errors import InputError, UsageError
from animx.pose.detection import MIN_JOINT_SCORE
from animx.pose.npz import Archive, load
from animx.pose.paint import draw_poses
from animx.pose.sequence import PoseSequence
from animx_trainer.arrays import scaled
from animx_trainer.config import DataConfig
from animx_trainer.pool import PosePool, load_pool
from animx_trainer.pose_augment import Choice, Epi, EpiConfig, load_epi
from animx_trainer.sample import ClipSource, Sample, generator
from animx_trainer.shards import DATASET, Dataset, StoredClip, clip_lengths, open_dataset

Floats = NDArray[np.float32]
CLIP_SIZE = 224
"""Side of the pictures for the image encoder [px]."""
OWN_POOL = 2000
"""Anchors that are taken from the data themselves when no pool is given."""


@dataclass(frozen=True)
class DataOptions:
    """What a source of prepared clips can be told (`data.options` of a training config)."""

    epi: str | Mapping[str, Any] = "epi"
    """Explicit pose indicator: a preset's name, a file, or its fields (`base` names a preset to start from)."""
    pool: str = ""
    """Pose pool (made by `animx data pool`); empty = anchors from the data themselves."""
    stride: Annotated[int, Range(1, 64)] = 4
    """Largest step between the frames of a segment [frames]."""
    clip_size: Annotated[int, Range(14, 1024)] = CLIP_SIZE
    """Side of the pictures for the image encoder [px]."""
    pose_scale: Annotated[int, Range(1, 16)] = 1
    """Poses are drawn at this many times the size and shrunk: thinner lines on small canvases."""
    pose_jpeg: bool = True
    """Whether drawn poses pass through the JPEG and the channel order of the released pipeline, as in `render`."""
    hands: bool = True
    """Whether hands are drawn."""
    encoded: Literal["auto", "never"] = "auto"
    """Whether latents and image vectors that were made beforehand are used when all clips hold them."""


def data_options(options: Mapping[str, Any] | DataOptions | None) -> DataOptions:
    """Options from a mapping; unknown keys and wrong types are an `InputError`."""
    if isinstance(options, DataOptions):
        return options
    return build(DataOptions, dict(options or {}), "data.options")


@dataclass
class ClipData:
    """A `ClipSource` over prepared clips."""

    dataset: Dataset
    frames: int
    canvas: Canvas
    options: DataOptions
    epi: Epi
    short: int = 0
    """Clips that are shorter than `frames` and left out."""
    _usable: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp), repr=False)
    _latents: bool = False
    _vectors: bool = False

    def __len__(self) -> int:
        return len(self._usable)

    def sample(self, index: int, seed: int) -> Sample:
        """One sample of clip `index`; see `ClipSource`."""
        clip = self.dataset.clip(int(self._usable[index]))
        poses = self._poses(clip)
        if poses.frames < self.frames:
            raise InputError(f"{clip}: {poses.frames} frames, but {DATASET} says more. Prepare the data again")
        rows, reference, choice = self.plan(poses, seed)
        pictures = clip.pictures
        if len(pictures) != poses.frames:
            raise InputError(f"{clip}: {len(pictures)} frames, but {poses.frames} poses. Prepare the clip again")
        first = self._picture(clip, pictures[reference])
        shown = [] if self._latents and self._vectors else [self._picture(clip, pictures[t]) for t in rows]
        raw, drawn = self._pose_sides(poses, rows, reference, choice)
        latents, reference_latent = self._read_latents(clip, rows, reference, seed) if self._latents else (None, None)
        return Sample(
            key=-1,
            reference=_signed([first])[0],
            pose_images=drawn,
            keypoints=raw,
            clip=self._clip_side(clip, first, shown, rows, reference),
            video=None if self._latents else _signed(shown),
            latents=latents,
            reference_latent=reference_latent,
            origin=str(clip),
        )

    def plan(self, poses: PoseSequence, seed: int) -> tuple[NDArray[np.intp], int, Choice]:
        """Frames of the segment [F], the reference frame, and the augmentation of one sample."""
        rng = generator(seed, 0, 0, "segment")
        longest = (poses.frames - 1) // max(1, self.frames - 1) if self.frames > 1 else 1
        stride = int(rng.integers(1, max(1, min(self.options.stride, longest)) + 1))
        start = int(rng.integers(poses.frames - (self.frames - 1) * stride))
        whole = np.flatnonzero((poses.scores[:, 0, :18] >= MIN_JOINT_SCORE).any(axis=1))
        candidates = whole if len(whole) else np.arange(poses.frames)
        reference = int(generator(seed, 0, 0, "reference").choice(candidates))
        choice = self.epi.draw(generator(seed, 0, 0, "epi"))
        return start + stride * np.arange(self.frames), reference, choice

    def _poses(self, clip: StoredClip) -> PoseSequence:
        return read_clip_poses(clip, self.canvas)

    def _picture(self, clip: StoredClip, name: str) -> NDArray[np.uint8]:
        return fitted(decode_picture(clip, name), self.canvas)

    def _pose_sides(
        self, poses: PoseSequence, rows: NDArray[np.intp], reference: int, choice: Choice
    ) -> tuple[Floats, Floats]:
        """Keypoints [T, 2, 18] and drawn poses [T, 3, H, W]; slot 0 is the reference, untouched."""
        points, scores = poses.keypoints[rows, 0], poses.scores[rows, 0]
        moved, trust = self.epi.apply(points, scores, poses.times[rows], choice)
        changed = self.epi.config.keypoints == "transformed"
        first, trust_first = poses.keypoints[reference, 0], poses.scores[reference, 0]
        seen = (moved, trust) if changed else (points, scores)
        slots = keypoint_slots(
            np.concatenate([first[None], seen[0]]), np.concatenate([trust_first[None], seen[1]]), self.canvas
        )
        images = draw_slots(
            np.concatenate([first[None], moved]), np.concatenate([trust_first[None], trust]), self.canvas, self.options
        )
        return slots, images

    def _clip_side(
        self,
        clip: StoredClip,
        first: NDArray[np.uint8],
        shown: Sequence[NDArray[np.uint8]],
        rows: NDArray[np.intp],
        reference: int,
    ) -> Floats:
        if self._vectors:
            vectors = clip.array("clip.npy")
            return np.asarray(vectors[[reference, *rows]], np.float32)
        size = Canvas(self.options.clip_size, self.options.clip_size)
        return scaled([fitted(picture, size) for picture in (first, *shown)], 1 / 255)

    def _read_latents(
        self, clip: StoredClip, rows: NDArray[np.intp], reference: int, seed: int
    ) -> tuple[Floats, Floats]:
        """Latents [F, 4, h, w] and [4, h, w], drawn from the stored posterior as the encoder would."""
        moments = np.stack([clip.array(f"{t:05d}.npy") for t in (reference, *rows)]).astype(np.float32)
        noise = generator(seed, 0, 0, "posterior").standard_normal(moments[:, 0].shape, np.float32)
        latents = moments[:, 0] + moments[:, 1] * noise
        return latents[1:], latents[0]


def decode_picture(clip: StoredClip, name: str) -> NDArray[np.uint8]:
    """A stored frame as RGB [H, W, 3]."""
    bgr = cv2.imdecode(np.frombuffer(clip.read(name), np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise InputError(f"{clip}: {name} is no picture. Prepare the clip again")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def fitted(picture: NDArray[np.uint8], canvas: Canvas) -> NDArray[np.uint8]:
    """RGB [H, W, 3] resized straight to `canvas`, aspect ignored: bilinear, anti-aliased when it shrinks.

    Shrinking is Pillow's, as the released loader does it; enlarging is OpenCV's, the same within one grey level and
    several times as fast.
    """
    height, width = picture.shape[:2]
    if (width, height) == canvas.size:
        return picture
    if canvas.width >= width and canvas.height >= height:
        return np.asarray(cv2.resize(picture, canvas.size, interpolation=cv2.INTER_LINEAR), np.uint8)
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize(canvas.size, Image.Resampling.BILINEAR))


def read_clip_poses(clip: StoredClip, canvas: Canvas) -> PoseSequence:
    """The poses of a stored clip on `canvas` (stretched, as its frames are)."""
    poses = load(Archive(io.BytesIO(clip.read("pose.npz")), f"{clip}: pose.npz"))
    if poses.persons != 1:
        raise InputError(f"{clip}: pose.npz holds {poses.persons} persons, expected 1")
    return poses if poses.canvas == canvas else poses.on(canvas, place(poses.canvas, canvas, "stretch"))


def keypoint_slots(points: Floats, scores: Floats, canvas: Canvas) -> Floats:
    """Body joints [T, 2, 18] as shares of the canvas, -1 where the score is below 0.3, from [T, K, 2] px, [T, K]."""
    shares = np.asarray(points[:, :18], np.float64) / canvas.size
    shares = np.where((scores[:, :18] >= MIN_JOINT_SCORE)[..., None], shares, -1.0)
    return np.ascontiguousarray(shares.astype(np.float32).transpose(0, 2, 1))


def draw_slots(points: Floats, scores: Floats, canvas: Canvas, options: DataOptions) -> Floats:
    """Drawn poses [T, 3, H, W] in 0..1, as the network sees them, from [T, K, 2] px and scores [T, K]."""
    large = Canvas(canvas.width * options.pose_scale, canvas.height * options.pose_scale)
    images = list(draw_poses(points, scores, canvas, large, hands=options.hands))
    if large != canvas:
        images = [np.asarray(cv2.resize(one, canvas.size, interpolation=cv2.INTER_AREA), np.uint8) for one in images]
    if options.pose_jpeg:
        from animx.diffusion.preprocess import pose_picture

        images = [pose_picture(one) for one in images]
    return scaled(images, 1 / 255)


def _signed(pictures: Sequence[NDArray[np.uint8]]) -> Floats:
    """RGB [H, W, 3] each -> [N, 3, H, W] in -1..1."""
    return scaled(pictures, 2 / 255, -1.0)


def own_pool(dataset: Dataset, canvas: Canvas, seed: int = 0) -> PosePool:
    """Anchors from the data themselves: one drawn frame each of at most `OWN_POOL` clips spread over them."""
    from animx_trainer.pool import usable_anchors

    rng = np.random.default_rng([seed, len(dataset)])
    points, scores = [], []
    for number in np.unique(np.linspace(0, len(dataset) - 1, min(OWN_POOL, len(dataset))).round().astype(int)):
        poses = read_clip_poses(dataset.clip(int(number)), canvas)
        rows = usable_anchors(poses)
        if len(rows):
            t = int(rng.choice(rows))
            points.append(poses.keypoints[t])
            scores.append(np.where(poses.scores[t] >= MIN_JOINT_SCORE, poses.scores[t], np.float32(0)))
    if not points:
        raise InputError(f"{dataset.folder}: no clip shows an upright figure that could be an anchor. Give a pool")
    return PosePool(PoseSequence(np.stack(points), np.stack(scores), canvas, source={"name": "own pool"}))


def clip_source(
    path: str | Path,
    frames: int = 32,
    size: tuple[int, int] = (512, 768),
    options: Mapping[str, Any] | DataOptions | None = None,
) -> ClipData:
    """The `ClipSource` of a prepared folder: samples of `frames` frames on `size` = (width, height) px.

    Clips shorter than `frames` are left out (`short` counts them).  Errors: `InputError` for data that cannot be used
    (empty, damaged, all too short, latents of another size), `UsageError` for what contradicts itself.
    """
    chosen, canvas, dataset = data_options(options), Canvas(*size), open_dataset(path)
    if frames < 1:
        raise UsageError(f"{frames} frames: a sample has at least one")
    config: EpiConfig = load_epi(chosen.epi)
    lengths = np.array(clip_lengths(dataset), np.intp)
    usable = np.flatnonzero(lengths >= frames)
    if not len(usable):
        raise InputError(f"{path}: all {len(dataset)} clips are shorter than {frames} frames; the longest has "
                         f"{int(lengths.max())}. Use fewer frames")  # fmt: skip
    pool = None
    if config.active and config.realigning:
        pool = load_pool(chosen.pool) if chosen.pool else own_pool(dataset, canvas)
    latents, vectors = (dataset.clip(int(usable[0])).encoded) if chosen.encoded == "auto" else (False, False)
    if latents:
        stored = dataset.about.get("canvas")
        if stored != [canvas.width, canvas.height]:
            raise InputError(
                f"{path}: latents were made at {stored}, training wants {canvas}. Set data.size, or encoded: never"
            )
    source = ClipData(dataset, frames, canvas, chosen, Epi(config, pool, canvas), len(lengths) - len(usable))
    source._usable, source._latents, source._vectors = usable, latents, vectors
    return source


def open_clips(data: DataConfig, seed: int) -> ClipSource:
    """The source `shards` of a training config; `seed` is not needed: samples bring their own."""
    if not data.path:
        raise UsageError("data.path: names no folder. Prepare one with: animx data prepare VIDEOS -o FOLDER")
    return clip_source(data.path, data.frames, (data.size[0], data.size[1]), data.options)


__all__ = ["ClipData", "DataOptions", "clip_source", "data_options", "open_clips", "scaled"]
