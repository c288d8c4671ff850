"""One clip as the network sees it: the reference, the driving poses, and CLIP vectors, cut into windows on demand.

Pose pictures are drawn when a window asks for them, so a long clip never lies drawn in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animx.canvas import Canvas
from animx.diffusion.placing import Placing
from animx.diffusion.preprocess import clip_tensor, keypoint_tensor, picture_tensor, pose_picture
from animx.errors import InputError
from animx.model.conditions import Inputs
from animx.model.image_encoder import encode_images
from animx.model.vae import encode
from animx.pose.draw import draw_pose
from animx.pose.sequence import PoseSequence

CLIP_BATCH = 8
"""Driving frames that go through the image encoder at once."""


@dataclass(frozen=True)
class Clip:
    """Everything about a clip that does not depend on windows; tensors on the device of the networks."""

    canvas: Canvas
    reference: Tensor  # [1, 3, H, W] in 0..1
    poses: PoseSequence
    """Aligned driving poses on `canvas`, drawn as pose pictures."""
    reference_pose: PoseSequence | None
    keypoints: Tensor  # [1, N + 1, 2, 18], slot 0 = reference
    clip: Tensor  # [1, N + 1, D], slot 0 = reference
    reference_latent: Tensor | None
    """Scaled latent [1, 4, 1, h, w] for variants with `randomref`."""

    @property
    def frames(self) -> int:
        """N, the number of output frames."""
        return self.poses.frames

    @property
    def latent(self) -> tuple[int, int]:
        """(h, w) of the latent grid."""
        return self.canvas.height // 8, self.canvas.width // 8

    def pose_pictures(self, frames: range) -> Tensor:
        """Pose pictures [1, 3, len + 1, H, W] in 0..1; the first is the reference's own (or driving frame 0)."""
        first = self.reference_pose if self.reference_pose is not None else self.poses
        drawn = [draw_pose(first, 0), *(draw_pose(self.poses, t) for t in frames)]
        pictures = [picture_tensor(pose_picture(picture), self.canvas) for picture in drawn]
        return torch.stack(pictures, dim=1)[None].to(self.reference.device, self.reference.dtype)

    def window(self, first: int, last: int) -> Inputs:
        """The raw conditions of frames `first` to `last` (exclusive)."""
        slots = [0, *range(first + 1, last + 1)]
        return Inputs(
            image=self.clip[:, :1],
            local_image=self.reference[:, :, None],
            dwpose=self.pose_pictures(range(first, last)),
            randomref=self.reference_latent,
            keypoints=self.keypoints[:, slots],
            clip=self.clip[:, slots],
        )


def make_clip(
    placing: Placing,
    canvas: Canvas,
    picture: NDArray[np.uint8],
    poses: PoseSequence,
    keypoints: PoseSequence,
    driving: Iterable[NDArray[np.uint8]],
    reference_pose: PoseSequence | None = None,
    generator: torch.Generator | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Clip:
    """Encode a clip.

    picture: the reference, RGB [H, W, 3].  poses: aligned, on `canvas`.  keypoints: the driving poses before alignment
    (as released, the keypoint encoder sees those).  driving: RGB frames, one per pose; read once, never held.
    on_progress: (done, total) pictures seen by the image encoder.
    """
    device, dtype = placing.device, placing.dtype
    components = placing.components
    vectors = torch.cat(list(_vectors(placing, picture, driving, poses.frames, on_progress)))
    if len(vectors) <= poses.frames:
        raise InputError(
            f"the driving video has {len(vectors) - 1} frames, but there are {poses.frames} poses. Trim with --end"
        )
    reference = picture_tensor(picture, canvas)[None].to(device, dtype)
    latent = None
    # The released code draws the posterior's noise even where the latent is not used; `released_noise` does that.
    if "randomref" in components.unet.shape.conditions:
        like = placing.use("vae")
        with torch.no_grad():
            latent = encode(components.vae, reference.to(like), generator)[:, :, None].to(device)
    first = keypoint_tensor(reference_pose if reference_pose is not None else keypoints.cut(0, 1))
    points = torch.cat([first, keypoint_tensor(keypoints)])[None].to(device, dtype)
    return Clip(canvas, reference, poses, reference_pose, points, vectors[None].to(device, dtype), latent)


def _vectors(
    placing: Placing,
    picture: NDArray[np.uint8],
    driving: Iterable[NDArray[np.uint8]],
    frames: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """CLIP vectors [n, D] of the reference and then of at most `frames` driving frames, a batch at a time."""
    encoder = placing.components.image_encoder
    like = placing.use("image_encoder")
    size = int(encoder.config.image_size)
    pictures = chain([picture], islice(driving, frames))
    done = 0
    if on_progress is not None:
        on_progress(done, frames + 1)
    while batch := [clip_tensor(one, size) for one in islice(pictures, CLIP_BATCH)]:
        with torch.no_grad():
            yield encode_images(encoder, torch.stack(batch).to(like))
        done += len(batch)
        if on_progress is not None:
            on_progress(done, frames + 1)
