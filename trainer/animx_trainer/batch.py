"""Samples as one batch of tensors, checked once more before they reach the network.

In: a list of `Sample` (numpy).  Out: `Batch` (torch float32 on the CPU), whose rows keep the samples' keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from animx.errors import InputError
from animx_trainer.sample import Sample

OPTIONAL = ("video", "latents", "reference_latent")


@dataclass(frozen=True)
class Batch:
    """B samples; letters as in `animx_trainer.sample`."""

    keys: tuple[int, ...]
    """Global sample indices of the rows."""
    reference: Tensor  # [B, 3, H, W] in -1..1
    pose_images: Tensor  # [B, T, 3, H, W] in 0..1
    keypoints: Tensor  # [B, T, 2, 18]
    clip: Tensor  # [B, T, 3, 224, 224] in 0..1, or [B, T, D]
    video: Tensor | None = None  # [B, F, 3, H, W] in -1..1
    latents: Tensor | None = None  # [B, F, 4, h, w]
    reference_latent: Tensor | None = None  # [B, 4, h, w]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def frames(self) -> int:
        """F."""
        return self.pose_images.shape[1] - 1

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """All tensors moved and cast."""
        given: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor):
                given[one.name] = value.to(device, dtype)
        return replace(self, **given)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples in the order given.

    A sample whose arrays are not finite, have a wrong number of dimensions or another shape than those of the first one
    is an `InputError` that names its origin.
    """
    first = samples[0]
    arrays: dict[str, Any] = {}
    for name in ("reference", "pose_images", "keypoints", "clip", *OPTIONAL):
        values = [getattr(sample, name) for sample in samples]
        if all(value is None for value in values):
            arrays[name] = None
            continue
        for sample, value in zip(samples, values, strict=True):
            _check(sample, name, value, getattr(first, name))
        arrays[name] = torch.from_numpy(np.stack(values).astype(np.float32, copy=False))
    if arrays["video"] is None and arrays["latents"] is None:
        raise InputError(f"{first.origin or 'a sample'}: holds neither video nor latents")
    for sample in samples:
        _check_slots(sample)
    return Batch(tuple(sample.key for sample in samples), **arrays)


def _check(sample: Sample, name: str, value: Any, wanted: Any) -> None:
    where = sample.origin or f"sample {sample.key}"
    if value is None or wanted is None:
        raise InputError(f"{where}: {name} is missing here, but other samples of the batch hold it")
    if value.shape != wanted.shape:
        raise InputError(
            f"{where}: {name} is {list(value.shape)}, but {list(wanted.shape)} in the batch. Prepare all clips alike"
        )
    if not np.isfinite(value).all():
        raise InputError(f"{where}: {name} holds NaN or infinity. Remove the clip, or prepare it again")


def _check_slots(sample: Sample) -> None:
    where = sample.origin or f"sample {sample.key}"
    slots = sample.pose_images.shape[0]
    counts = {"keypoints": slots, "clip": slots, "video": slots - 1, "latents": slots - 1}
    for name, wanted in counts.items():
        value = getattr(sample, name)
        if value is not None and value.shape[0] != wanted:
            raise InputError(f"{where}: {name} has {value.shape[0]} entries, expected {wanted} for {slots - 1} frames")
    if sample.keypoints.shape[1:] != (2, 18):
        raise InputError(f"{where}: keypoints are {list(sample.keypoints.shape)}, expected [{slots}, 2, 18]")
