"""Dropout whose masks belong to samples: the same sample loses the same numbers in any batch, rank or order.

torch draws one mask for a whole batch from one stream, so that a gradient would depend on who shares the batch.  Inside
`KeyedDropout` every `F.dropout` (and the dropout of `F.multi_head_attention_forward`) draws a mask per sample from
(the sample's seed, number of the call).  The first dimension of each input must be batch-major, as it is in the UNet.

Works with activation checkpointing: `recomputing` gives the context in which a block repeats its masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: consecutive calls get seeds far apart


class KeyedDropout(TorchFunctionMode):
    """The context of one forward pass.  `seeds`: one per sample of the batch."""

    def __init__(self, seeds: Sequence[int], call: int = 0) -> None:
        super().__init__()
        self.seeds, self.call = tuple(seeds), call

    def __enter__(self) -> KeyedDropout:
        _active.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _active.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **given)
        if func is F.multi_head_attention_forward and _drops(given, args):
            return self._attention(*args, **given)
        if func is F.scaled_dot_product_attention and float(given.get("dropout_p", args[4] if len(args) > 4 else 0)):
            raise RuntimeError("attention with dropout of its own cannot be keyed")
        return func(*args, **given)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return x
        return x * self.mask(x, p)

    def mask(self, x: Tensor, p: float) -> Tensor:
        """0 or 1 / (1 - p) for each number of `x` [B*n, ...]."""
        if x.shape[0] % len(self.seeds):
            raise RuntimeError(f"dropout on {list(x.shape)}: not batch-major for {len(self.seeds)} samples")
        rows = x.shape[0] // len(self.seeds)
        made = []
        for seed in self.seeds:
            stream = torch.Generator(x.device).manual_seed((seed + _ODD * (self.call + 1)) % 2**63)
            made.append(torch.rand(rows, *x.shape[1:], generator=stream, device=x.device) >= p)
        self.call += 1
        return torch.cat(made).to(x.dtype) / (1 - p)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, width: int, heads: int,
        in_weight: Tensor, in_bias: Tensor, bias_k: None, bias_v: None, add_zero: bool, p: float,
        out_weight: Tensor, out_bias: Tensor, **rest: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """Self-attention on [T, B, D] as `nn.MultiheadAttention` computes it, its weights dropped per sample."""
        if query is not key or key is not value or rest.get("attn_mask") is not None or rest.get("need_weights"):
            raise RuntimeError("only plain self-attention can be keyed")
        slots, batch, _ = query.shape
        q, k, v = F.linear(query, in_weight, in_bias).chunk(3, -1)
        q, k, v = (y.reshape(slots, batch, heads, width // heads).permute(1, 2, 0, 3) for y in (q, k, v))
        weights = (q @ k.transpose(-2, -1) * (width // heads) ** -0.5).softmax(-1)  # [B, heads, T, T]
        weights = weights * self.mask(weights, p)
        out = (weights @ v).permute(2, 0, 1, 3).reshape(slots, batch, width)
        return F.linear(out, out_weight, out_bias), None


def _drops(given: dict[str, Any], args: tuple[Any, ...]) -> bool:
    return bool(given.get("training", True)) and float(given.get("dropout_p", args[10] if len(args) > 10 else 0)) > 0


_active: list[KeyedDropout] = []


def recomputing() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For `torch.utils.checkpoint`: contexts of a block's first run and of its repetition, with the same masks."""
    if not _active:
        return nullcontext(), nullcontext()
    return nullcontext(), KeyedDropout(_active[-1].seeds, _active[-1].call)
