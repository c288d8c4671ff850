"""What one operator costs on a GPU: launches, FLOPs, bytes read and written.  An unknown operator is an error.

FLOPs are 2 per multiply-add of matrix products, convolutions and attention; everything else counts bytes only.  Bytes
are those of the elements a kernel touches: a dimension that is expanded (stride 0) counts once.  One operator of
PyTorch counts as one launch even where the library launches more, and copies that cuDNN makes inside are not visible.
An operator of ours states its own cost (`animx_kernels.dispatch.OPS`), because a log sees it as one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._pytree import tree_leaves

from animx.counting.fakes import replaced
from animx.errors import AnimxError


class UnknownOperatorError(AnimxError):
    """An operator that no cost is known for: the count would lie, so there is none."""


@dataclass(frozen=True)
class Priced:
    """What one call costs."""

    kind: str
    """What it does: `matmul`, `conv 3x3`, `attention`, `group norm`, `pointwise`, `cast`, `copy` ..."""
    launches: int = 1
    flops: int = 0
    read: int = 0
    """Bytes."""
    written: int = 0
    """Bytes."""


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor that lie in memory: expanded dimensions count once."""
    held = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 0]
    return math.prod(held) * tensor.element_size()


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FREE = _names("""
    _unsafe_view _reshape_alias empty empty_like empty_strided new_empty new_empty_strided lift lift_fresh detach
    detach_ alias resize_ resize_as_ set_ sym_size sym_stride sym_numel sym_storage_offset is_pinned
""")
"""Operators that launch nothing although they are no views by their schema."""

FACTORIES = _names("""
    zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full arange fill zero eye scalar_tensor
    linspace
""")
COPIES = _names("""
    clone cat stack repeat index_select index gather flip roll constant_pad_nd slice_scatter select_scatter index_put
    masked_fill embedding tril triu block_diag
""")
"""Pure movement of data: what a layout costs."""

POINTWISE = _names("""
    add sub rsub mul div neg abs exp expm1 log log1p sqrt rsqrt pow square reciprocal sin cos tanh sigmoid silu gelu
    relu hardtanh clamp clamp_min clamp_max maximum minimum where softplus erf floor round sign threshold lerp addcmul
    addcdiv logical_not logical_and logical_or bitwise_and bitwise_or bitwise_not eq ne lt le gt ge isnan isinf isfinite
""")
REDUCTIONS = _names("""
    sum mean amax amin max min any all var var_mean std prod cumsum cumprod _softmax _log_softmax logsumexp norm
    linalg_vector_norm argmax argmin
""")
RESAMPLING = _names("""
    upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d avg_pool2d _adaptive_avg_pool2d
""")
MATMULS = _names("mm bmm addmm baddbmm mv addmv dot")


def tensors_of(found: Any) -> list[Tensor]:
    """All tensors in a nest of arguments or results, each once."""
    seen: dict[int, Tensor] = {}
    for leaf in tree_leaves(found):
        if isinstance(leaf, Tensor):
            seen.setdefault(id(leaf), leaf)
    return list(seen.values())


def price(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> Priced | None:
    """The cost of one call of an operator (an `OpOverload`), None when it launches nothing.

    Raises `UnknownOperatorError` for an operator without a known cost.
    """
    library, name = func.namespace, func._schema.name.partition("::")[2]
    if library == "animx":
        return _ours(name, args, kwargs)
    if library == "animx_count":
        return _attention(*args[:3])
    if library == "prim" or func.is_view or name in FREE:
        return None
    given, made = tensors_of((args, kwargs)), tensors_of(result)
    if not any(tensor.device.type == "cuda" for tensor in (*given, *made)):
        return None  # the host's own arithmetic
    read, written = sum(map(size_of, given)), sum(map(size_of, made))
    if library == "aten":
        base = name.removesuffix("_")
        if name in ("_to_copy", "copy_"):
            source = given[-1]
            is_cast = source.dtype != made[0].dtype and source.is_floating_point()
            return Priced("cast" if is_cast else "copy", 1, 0, size_of(source), written)
        if base in ("native_group_norm", "native_layer_norm"):
            # The statistics come out too; they are small.  A group norm reads its input twice.
            again = size_of(given[0]) if base == "native_group_norm" else 0
            return Priced("group norm" if again else "layer norm", 1, 0, read + again, size_of(made[0]))
        if base in MATMULS:
            return Priced("matmul", 1, _matmul_flops(base, args), read, written)
        if base == "convolution":
            return Priced(_conv_kind(args), 1, _conv_flops(args, made[0]), read, written)
        if base in FACTORIES:
            return Priced("fill", 1, 0, 0, written)
        for kinds, kind in ((COPIES, "copy"), (REDUCTIONS, "reduction"), (RESAMPLING, "resampling")):
            if base in kinds:
                return Priced(kind, 1, 0, read, written)
        if base in POINTWISE:
            return Priced(base if base in ("silu", "gelu") else "pointwise", 1, 0, read, written)
    raise UnknownOperatorError(
        f"bench count: the operator {func} has no known cost. Add it to animx/counting/costs.py, or give it a cost of "
        "its own"
    )


def _ours(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Priced:
    from animx_kernels.dispatch import load_ops

    op = load_ops().get(name)
    if op is None:
        raise UnknownOperatorError(f"bench count: the operator animx::{name} states no cost in animx_kernels")
    refused = refusal(name, args, kwargs)
    if refused:
        raise UnknownOperatorError(
            f"bench count: animx::{name} states the cost of its kernel, which would not take this call ({refused})"
        )
    cost = op.cost(*args, **kwargs)
    return Priced(f"animx::{name}", cost.launches, cost.flops, cost.bytes_read, cost.bytes_written)


class _Answer(Exception):
    """Carries the outcome of the question out of the operator before it does anything."""


def refusal(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> str | None:
    """Why the Triton body of `animx::name` would leave this call to the reference on a GPU, or None.

    The operator is entered up to the point where it asks for its body (`use_triton`), which here answers instead.
    """
    from animx_kernels.dispatch import FLOATS

    function = OPDEFS[f"animx::{name}"]._init_fn
    module = sys.modules[function.__module__]

    def use_triton(asked: str, *tensors: Tensor | None, refusal: str | None = None) -> bool:
        odd = [tensor.dtype for tensor in tensors if tensor is not None and tensor.dtype not in FLOATS]
        raise _Answer(refusal or (f"type {odd[0]}" if odd else None))

    with replaced(module, "use_triton", use_triton):
        try:
            function(*args, **kwargs)
        except _Answer as answer:
            found: str | None = answer.args[0]
            return found
    return "it never asks for a kernel"


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Priced:
    """softmax(q k^T) v of [..., N, d] x [..., M, d]: two products, one launch, nothing else written."""
    rows = math.prod(q.shape[:-1])
    flops = 2 * rows * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    out = math.prod((*q.shape[:-1], v.shape[-1])) * q.element_size()
    return Priced("attention", 1, flops, sum(map(size_of, (q, k, v))), out)


def _matmul_flops(name: str, args: Sequence[Any]) -> int:
    a, b = args[1:3] if name in ("addmm", "baddbmm", "addmv") else args[:2]
    columns = b.shape[-1] if b.ndim > 1 else 1
    return int(2 * math.prod(a.shape) * columns)


def _conv_flops(args: Sequence[Any], out: Tensor) -> int:
    weight = args[1]
    return int(2 * math.prod(out.shape) * math.prod(weight.shape[1:]))


def _conv_kind(args: Sequence[Any]) -> str:
    return "conv " + "x".join(str(n) for n in args[1].shape[2:])


@torch.library.custom_op("animx_count::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Stands for one fused attention kernel: in a count it is one launch, as on a GPU."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.ndim != 4:
        return q.new_empty((*q.shape[:-1], v.shape[-1]))
    batch, heads, rows, _ = q.shape  # the kernels of CUDA write the heads of a token side by side
    return q.new_empty((batch, rows, heads, v.shape[-1])).transpose(1, 2)
