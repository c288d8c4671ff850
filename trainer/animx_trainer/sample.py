"""The noun between data and training: one `Sample` of a clip, who gives them, and how every draw is keyed.

numpy only, so that loader workers need no torch.  A `ClipSource` knows clips, a loader (`Batches`) puts their samples
into steps, the task (`animx_trainer.task`) turns a batch into a loss.

Letters: F frames of a clip, T = F + 1 slots with slot 0 = the reference, H W px, h w latent px, D width of CLIP
vectors.

Keys.  Step s of a run holds the global samples s * batch + i, i in 0..batch-1, for any number of ranks and workers.
Every draw comes from `generator(seed, step, global sample, purpose)`, so that no result depends on who made it, on what
was made before it, or on where a run was resumed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """One training clip: F frames of a character, its reference and its poses.  All arrays float32.

    Either `video` or `latents` is given, and either CLIP-sized pictures or CLIP vectors stand in `clip`.
    """

    key: int
    """Global sample index (see above); -1 where a sample stands alone."""
    reference: Array
    """[3, H, W] the reference picture in -1..1."""
    pose_images: Array
    """[T, 3, H, W] drawn poses in 0..1; slot 0 is the reference's own pose."""
    keypoints: Array
    """[T, 2, 18] body joints in units of the picture (x row, y row), -1 where invisible; slot 0 as above."""
    clip: Array
    """[T, 3, 224, 224] pictures in 0..1 for the image encoder, or [T, D] its vectors; slot 0 is the reference."""
    video: Array | None = None
    """[F, 3, H, W] frames in -1..1."""
    latents: Array | None = None
    """[F, 4, h, w] frames encoded beforehand, scaled as the UNet sees them."""
    reference_latent: Array | None = None
    """[4, h, w] the reference encoded beforehand; needed with `latents` where `randomref` is active."""
    origin: str = ""
    """What a message names when the sample is bad: file or clip name."""

    @property
    def frames(self) -> int:
        """F."""
        return self.pose_images.shape[0] - 1


@runtime_checkable
class ClipSource(Protocol):
    """Clips by number.  `sample(index, seed)` is a pure function: the same arguments give the same bytes, in any
    process and any order.  Everything random inside (segment, stride, reference frame, augmentation) comes from `seed`.
    """

    def __len__(self) -> int:
        """Number of clips, at least 1."""
        ...

    def sample(self, index: int, seed: int) -> Sample:
        """One sample of clip `index` (0..len-1), with `key` -1.  Bad data is an `InputError` that names the file."""
        ...


class Batches(Protocol):
    """A loader: for each step from `start_step` on, without end, this rank's samples in order of their keys.

    Rank r of R holds the block r * batch/R .. (r+1) * batch/R - 1 of the step's global samples.  Which clip a global
    sample shows is `clip_of`, its seed is `sample_seed`; both are the same for every number of ranks and workers.
    A worker that dies is an error that says so.
    """

    def __call__(
        self,
        source: ClipSource,
        *,
        seed: int,
        batch: int,
        start_step: int = 0,
        ranks: int = 1,
        rank: int = 0,
        workers: int = 0,
    ) -> Iterator[list[Sample]]:
        """`batch` is the global one [samples a step]; it must be a multiple of `ranks`."""
        ...


def generator(seed: int, step: int, sample: int, purpose: str) -> np.random.Generator:
    """The random numbers of one purpose (`noise`, `drop`, ...) for one global sample of one step."""
    return np.random.default_rng([seed, step, sample, zlib.crc32(purpose.encode())])


def sample_seed(seed: int, step: int, sample: int) -> int:
    """What a loader hands to `ClipSource.sample` for this global sample: 63 bits."""
    return int(generator(seed, step, sample, "sample").integers(2**63))


def clip_of(seed: int, sample: int, clips: int) -> int:
    """Which clip the global sample shows: each epoch (`clips` samples) is its own permutation of all clips."""
    epoch, place = divmod(sample, clips)
    return int(_order(seed, epoch, clips)[place])


_orders: dict[tuple[int, int, int], NDArray[np.int64]] = {}


def _order(seed: int, epoch: int, clips: int) -> NDArray[np.int64]:
    key = (seed, epoch, clips)
    if key not in _orders:
        while len(_orders) >= 2:  # neighbours: a step may reach into the next epoch
            _orders.pop(next(iter(_orders)))
        _orders[key] = generator(seed, epoch, 0, "order").permutation(clips)
    return _orders[key]
