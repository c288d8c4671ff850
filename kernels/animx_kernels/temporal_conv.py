"""Convolution of three taps over time on token-major activations, with the GroupNorm before and the sums after it.

x [B, T, N, C], weight [C2, C, 3], bias [C2] -> y [B, T, N, C2]: y at t from the frames t-1, t, t+1, zeros outside the
clip.  The prologue `act(x * scale + offset)` is a GroupNorm with (or without) SiLU whose statistics were folded by
`norm_affine`; padding is zero after it.  The epilogue adds bias and residual and, with `stats`, sums what it writes for
the next GroupNorm.  Two levels of float32 sums: within a part, then over parts, in float64, in `norm_affine`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from animx_kernels.dispatch import Build, Case, Cost, Inputs, Op, draw, nbytes, register, use_triton, wide

PART = 16
"""Pixels behind one partial sum of the epilogue."""

TOKENS_PER_PART = 512
"""Tokens behind one partial sum of `channel_sums`."""


def _prologue(x: Tensor, scale: Tensor | None, offset: Tensor | None, silu: bool) -> Tensor:
    x = x.to(wide(x))
    if scale is not None:
        x = x * scale.to(x.dtype)[:, None, None]
    if offset is not None:
        x = x + offset.to(x.dtype)[:, None, None]
    return F.silu(x) if silu else x


def temporal_conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    silu: bool = False,
    residual: Tensor | None = None,
    stats: bool = False,
) -> tuple[Tensor, Tensor]:
    """(y, sums) as `temporal_conv` has them; all sums in the first part, zeros in the others."""
    frames = x.shape[1]
    active = _prologue(x, scale, offset, silu)
    padded = F.pad(active, (0, 0, 0, 0, 1, 1))
    taps = weight.to(active.dtype).unbind(2)
    y = sum((F.linear(padded[:, k : k + frames], taps[k]) for k in range(3)), bias.to(active.dtype))
    if residual is not None:
        y = y + residual.to(y.dtype)
    y = y.to(x.dtype)
    sums = active.new_zeros(sums_shape(x, weight, stats))
    if stats:
        sums[:, 0] = _sums(y)
    return y, sums


def sums_shape(x: Tensor, weight: Tensor, stats: bool) -> tuple[int, ...]:
    """Shape of the partial sums: [B, parts, C2, 2], or [0] without `stats`."""
    return (x.shape[0], -(-x.shape[2] // PART), weight.shape[0], 2) if stats else (0,)


def _sums(x: Tensor) -> Tensor:
    """Sum and sum of squares [B, C, 2] over T and N."""
    x = x.to(wide(x))
    return torch.stack([x.sum((1, 2)), (x * x).sum((1, 2))], -1)


@torch.library.custom_op("animx::temporal_conv", mutates_args=())
def _temporal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    silu: bool = False,
    residual: Tensor | None = None,
    stats: bool = False,
) -> tuple[Tensor, Tensor]:
    mixed = None if x.dtype == weight.dtype else f"weights of type {weight.dtype} with activations of {x.dtype}"
    if use_triton("temporal_conv", x, weight, bias, scale, offset, residual, refusal=mixed):
        from animx_kernels.temporal_conv_triton import temporal_conv_forward

        return temporal_conv_forward(x, weight, bias, scale, offset, silu, residual, stats)
    return temporal_conv_reference(x, weight, bias, scale, offset, silu, residual, stats)


@_temporal_conv.register_fake
def _temporal_conv_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    silu: bool = False,
    residual: Tensor | None = None,
    stats: bool = False,
) -> tuple[Tensor, Tensor]:
    y = x.new_empty((*x.shape[:3], weight.shape[0]))
    return y, x.new_empty(sums_shape(x, weight, stats), dtype=wide(x))


def temporal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    silu: bool = False,
    residual: Tensor | None = None,
    stats: bool = False,
) -> tuple[Tensor, Tensor]:
    """y [B, T, N, C2] and, with `stats`, its partial sums [B, parts, C2, 2] float32 (sum, sum of squares), else [0].

    x [B, T, N, C] and residual [B, T, N, C2] of any strides with the channels adjacent, weight [C2, C, 3] (fastest when
    stored as [C2, 3, C]: `weight.transpose(1, 2).contiguous().transpose(1, 2)`), scale and offset [B, C] float32.  Hand
    the sums to `norm_affine` as they are; their total over parts is what has a meaning.  For inference: no gradient.
    """
    fits = weight.shape[1:] == (x.shape[-1], 3) and bias.shape == weight.shape[:1]
    fits &= all(one is None or one.shape == (x.shape[0], x.shape[-1]) for one in (scale, offset))
    if x.ndim != 4 or not fits or (residual is not None and residual.shape != (*x.shape[:3], weight.shape[0])):
        raise ValueError(
            f"temporal_conv: x {tuple(x.shape)} and weight {tuple(weight.shape)}, scale, offset or residual do not fit"
        )
    y, sums = _temporal_conv(x, weight, bias, scale, offset, silu, residual, stats)
    return y, sums


def channel_sums_reference(x: Tensor) -> Tensor:
    """Sums of x [B, T, N, C] as `channel_sums` has them; all in the first part, zeros in the others."""
    sums = x.new_zeros(channel_sums_shape(x), dtype=wide(x))
    sums[:, 0] = _sums(x)
    return sums


def channel_sums_shape(x: Tensor) -> tuple[int, ...]:
    """[B, parts, C, 2]."""
    return (x.shape[0], -(-x.shape[1] * x.shape[2] // TOKENS_PER_PART), x.shape[3], 2)


@torch.library.custom_op("animx::channel_sums", mutates_args=())
def channel_sums(x: Tensor) -> Tensor:
    """Sum and sum of squares over T and N of x [B, T, N, C], in parts [B, parts, C, 2] for `norm_affine`."""
    if use_triton("channel_sums", x):
        from animx_kernels.temporal_conv_triton import channel_sums_forward

        return channel_sums_forward(x)
    return channel_sums_reference(x)


@channel_sums.register_fake
def _channel_sums_fake(x: Tensor) -> Tensor:
    return x.new_empty(channel_sums_shape(x), dtype=wide(x))


def norm_affine_reference(
    sums: Tensor, count: int, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """(scale, offset) as `norm_affine` has them, in float64 inside."""
    total = sums.double()
    total = total.sum(1) if total.ndim == 4 else total  # [B, C, 2]
    batch, channels, _ = total.shape
    grouped = total.view(batch, groups, channels // groups, 2).sum(2) / (count * (channels // groups))
    mean = grouped[..., 0]
    inverse = ((grouped[..., 1] - mean * mean).clamp_min(0) + eps).rsqrt()
    each = channels // groups
    scale = inverse.repeat_interleave(each, 1) * weight.double()
    offset = bias.double() - mean.repeat_interleave(each, 1) * scale
    return scale.to(sums.dtype), offset.to(sums.dtype)


@torch.library.custom_op("animx::norm_affine", mutates_args=())
def norm_affine(
    sums: Tensor, count: int, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """A GroupNorm over (T, N, channels of a group) as a factor and an addend per clip and channel, both [B, C] float32.

    `sums`: [B, parts, C, 2] or [B, C, 2], sum and sum of squares; `count`: T * N, what each channel's sum runs over.
    """
    if use_triton("norm_affine", sums, weight, bias):
        from animx_kernels.temporal_conv_triton import norm_affine_forward

        return norm_affine_forward(sums, count, weight, bias, groups, eps)
    return norm_affine_reference(sums, count, weight, bias, groups, eps)


@norm_affine.register_fake
def _norm_affine_fake(
    sums: Tensor, count: int, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    shape = (sums.shape[0], sums.shape[-2])
    return sums.new_empty(shape), sums.new_empty(shape)


def _total(sums: Tensor) -> Tensor:
    """Partial sums added up: how they are spread over the parts is the implementation's choice."""
    return sums.sum(1) if sums.ndim == 4 else sums


def _conv_cost(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    silu: bool = False,
    residual: Tensor | None = None,
    stats: bool = False,
) -> Cost:
    batch, frames, tokens, channels = x.shape
    out = batch * frames * tokens * weight.shape[0]
    sums = 4 * batch * -(-tokens // PART) * weight.shape[0] * 2 if stats else 0
    return Cost(
        1,
        2 * out * 3 * channels,
        nbytes(x, weight, bias, scale, offset, residual),
        out * x.element_size() + sums,
    )


def _sums_cost(x: Tensor) -> Cost:
    batch, parts, channels, two = channel_sums_shape(x)
    return Cost(1, 0, nbytes(x), 4 * batch * parts * channels * two)


def _affine_cost(sums: Tensor, count: int, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Cost:
    return Cost(1, 0, nbytes(sums, weight, bias), 2 * 4 * sums.shape[0] * sums.shape[-2])


def _conv_case(
    shape: tuple[int, int, int, int],
    out: int,
    *,
    norm: bool = False,
    silu: bool = False,
    residual: bool = False,
    stats: bool = False,
    official: bool = False,
) -> Case:
    def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
        batch, frames, tokens, channels = shape
        x = draw(shape, device, dtype, seed)
        weight = draw((out, 3, channels), device, dtype, seed + 1, (3 * channels) ** -0.5).transpose(1, 2)
        affine = torch.float64 if dtype == torch.float64 else torch.float32
        scale, offset = (draw((batch, channels), device, affine, seed + i) if norm else None for i in (2, 3))
        added = draw((batch, frames, tokens, out), device, dtype, seed + 4) if residual else None
        return Inputs((x, weight, draw((out,), device, dtype, seed + 5), scale, offset, silu, added, stats), {})

    return Case(make, official)


def _conv_cases() -> dict[str, Case]:
    def official(tokens: int, channels: int) -> Case:
        return _conv_case(
            (1, 33, tokens, channels), channels, norm=True, silu=True, residual=True, stats=True, official=True
        )

    return {
        "all": _conv_case((2, 5, 19, 24), 40, norm=True, silu=True, residual=True, stats=True),
        "plain": _conv_case((1, 4, 33, 16), 24),
        "one frame": _conv_case((1, 1, 7, 8), 5, norm=True, stats=True),
        "two frames": _conv_case((1, 2, 5, 9), 12, silu=True, residual=True),
        "31 frames": _conv_case((1, 31, 3, 16), 16, norm=True, silu=True, stats=True),
        "33 frames": _conv_case((1, 33, 17, 16), 16, norm=True, silu=True, residual=True, stats=True),
        "64 frames": _conv_case((1, 64, 4, 16), 16, norm=True, silu=True, residual=True),
        "L0": official(6144, 320),
        "L1": official(1536, 640),
        "L2": official(384, 1280),
        "L3": official(96, 1280),
    }


def _sums_cases() -> dict[str, Case]:
    def case(*shape: int, official: bool = False) -> Case:
        return Case(lambda device, dtype, seed: Inputs((draw(shape, device, dtype, seed),), {}), official)

    return {
        "small": case(2, 5, 19, 24),
        "odd": case(1, 1, 1, 7),
        "parts": case(1, 3, 400, 20),
        "L0": case(1, 33, 6144, 320, official=True),
    }


def _affine_cases() -> dict[str, Case]:
    def case(batch: int, tokens: int, channels: int, groups: int, official: bool = False) -> Case:
        def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
            affine = torch.float64 if dtype == torch.float64 else torch.float32
            sums = channel_sums_reference(draw((batch, 2, tokens, channels), device, affine, seed) + 1)
            weight, bias = (draw((channels,), device, dtype, seed + i) for i in (1, 2))
            return Inputs((sums, 2 * tokens, weight, bias, groups, 1e-5), {})

        return Case(make, official)

    return {"small": case(2, 300, 24, 4), "odd": case(1, 5, 21, 3), "L0": case(1, 101376, 320, 32, official=True)}


def _builds(which: str, capability: int) -> list[Build]:
    from animx_kernels import temporal_conv_triton

    return temporal_conv_triton.builds(which, capability)


register(
    Op(
        "temporal_conv",
        temporal_conv,
        temporal_conv_reference,
        _conv_cases,
        _conv_cost,
        lambda capability: _builds("temporal_conv", capability),
        "matrix units: 2 * B * T * N * C2 * 3C FLOP; at C = 320 memory is close behind",
        compared=lambda found: (found[0], _total(found[1])),
    )
)
register(
    Op(
        "channel_sums",
        channel_sums,
        channel_sums_reference,
        _sums_cases,
        _sums_cost,
        lambda capability: _builds("channel_sums", capability),
        "memory: one read",
        compared=lambda found: (_total(found[0]),),
    )
)
register(
    Op(
        "norm_affine",
        norm_affine,
        norm_affine_reference,
        _affine_cases,
        _affine_cost,
        lambda capability: _builds("norm_affine", capability),
        "a launch: a few thousand numbers",
    )
)
