"""What the UNet sees besides noise: raw inputs of a clip, and what is computed from them once per window.

`Inputs` are the tensors of one clip; `Conditions` hold everything constant over the denoising steps: the dense
feature on the latent grid, and keys and values of every cross-attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from animx.model.attention import KeyValue, MotionFold


@dataclass(frozen=True)
class Inputs:
    """Raw conditions of a clip of F frames; None = absent.  T = F + 1, slot 0 = the reference."""

    image: Tensor | None = None  # [B, 1, D] CLIP vector of the reference
    local_image: Tensor | None = None  # [B, 3, 1 or F, H, W] reference picture in 0..1; one frame serves all
    dwpose: Tensor | None = None  # [B, 3, T, H, W] pose pictures in 0..1
    randomref: Tensor | None = None  # [B, 4, 1 or F, h, w] scaled reference latent; only frame 0 is read
    keypoints: Tensor | None = None  # [B, T, 2, 18]
    clip: Tensor | None = None  # [B, T, D] CLIP vectors, slot 0 = reference

    def window(self, frames: Tensor) -> Inputs:
        """The inputs of the frames with these indices [n] (0-based, without the reference slot, which is kept)."""
        slots = torch.cat([frames.new_zeros(1), frames + 1])

        def cut(name: str, value: Tensor) -> Tensor:
            if name == "dwpose":
                return value.index_select(2, slots)
            if name in ("keypoints", "clip"):
                return value.index_select(1, slots)
            if name == "local_image" and value.shape[2] > 1:
                return value.index_select(2, frames)
            return value

        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: cut(name, v) for name, v in given.items() if v is not None})

    def to(self, *args: Any, **kwargs: Any) -> Inputs:
        """All tensors moved or cast as by `Tensor.to`."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v.to(*args, **kwargs) for name, v in given.items() if v is not None})


@dataclass(frozen=True)
class Conditions:
    """Constants of one window over all denoising steps."""

    dense: Tensor  # [B, concat, F, h, w]
    reference: Tensor  # [B, in + concat, 1, h, w], the reference slot
    context: tuple[KeyValue, ...]  # per spatial transformer, batch B
    motion: tuple[KeyValue | MotionFold | None, ...] = field(default=())  # per spatial transformer, batch B*T

    @classmethod
    def stack(cls, rows: Sequence[Conditions]) -> Conditions:
        """Several conditions of equal frames as one batch, in the order given."""

        def join(parts: Sequence[KeyValue]) -> KeyValue:
            return torch.cat([k for k, _ in parts]), torch.cat([v for _, v in parts])

        def motion(parts: Sequence[KeyValue | MotionFold | None]) -> KeyValue | MotionFold | None:
            folds = [part for part in parts if isinstance(part, MotionFold)]
            if folds:
                a, a_bias, b = (torch.cat([fold[i] for fold in folds]) for i in range(3))
                return MotionFold(a, a_bias, b, folds[0].b_bias)
            given = [part for part in parts if part is not None and not isinstance(part, MotionFold)]
            return join(given) if given else None

        return cls(
            torch.cat([one.dense for one in rows]),
            torch.cat([one.reference for one in rows]),
            tuple(join(parts) for parts in zip(*(one.context for one in rows), strict=True)),
            tuple(motion(parts) for parts in zip(*(one.motion for one in rows), strict=True)),
        )
