"""Attention whose scores are products of 8-bit integers: queries and keys int8 with a scale per row, sums in int32.

Softmax does not see what all keys have in common, so the mean of the keys is taken away first; what is left of real
networks' keys is small, and 8 bits hold it.  Softmax is in float32, in base 2, over blocks of keys; the shares times
the values are a product of 16-bit numbers (the storage type's) with float32 sums.  On a CPU the same numbers are
emulated, in pieces of limited size.
Letters: B batch, h heads, N tokens, M keys, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from animx_kernels.dispatch import (
    LEAST_CAPABILITY,
    Build,
    Case,
    Cost,
    Inputs,
    Op,
    card,
    draw,
    has_triton,
    mode,
    nbytes,
    register,
    wide,
)
from animx_kernels.dispatch import use_triton as use_triton

LARGEST = 127.0
"""The largest int8 number that is used; -128 is not."""

TINY = 1e-30
"""What the largest of a row counts at least, so that nothing divides by zero."""

MOST_WIDTH = 128
"""Head width that the Triton body takes; sums of 128 products of int8 are exact in float32 too."""

PIECE = 1 << 24
"""Scores that the emulation holds at a time."""


def attention8_refusal(device: torch.device | str, width: int) -> str | None:
    """Why attention with heads of `width` gains nothing from 8 bits on a device, or None.

    `attention8` works everywhere; where this has a reason it computes the same numbers slowly.
    """
    place = torch.device(device)
    if place.type != "cuda":
        return f"8-bit scores are emulated on {place.type}"
    if mode() == "reference":
        return "ANIMX_KERNELS=reference"
    if not has_triton():
        return "triton is not installed (pip install 'animx[kernels]')"
    if card(place) < LEAST_CAPABILITY:
        return f"compute capability {card(place)} is below {LEAST_CAPABILITY}"
    return _width_refusal(width)


def _width_refusal(width: int) -> str | None:
    return f"head width {width}: more than {MOST_WIDTH}" if width > MOST_WIDTH else None


def common_part(k: Tensor) -> Tensor:
    """k [B, h, M, d] -> the mean of its keys [B, h, 1, d] float32, rounded to 12 significant bits.

    Any number does as well, as long as all keys of a head have it taken away; rounded, it does not depend on the order
    of the sum.
    """
    mean = k.float().mean(-2, keepdim=True)
    return (mean.view(torch.int32) + 0x800 & ~0xFFF).view(torch.float32)


def rows_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., d] float32 -> int8 [..., d] and scale [...] float32, NaN for rows that are not finite."""
    top = x.abs().amax(-1, keepdim=True).clamp_min(TINY)  # NaN where there is one
    finite = top.isfinite()
    values = (x * (torch.full_like(top, LARGEST) / top)).round()
    values = torch.where(finite, values, 0).to(torch.int8)
    return values, torch.where(finite, top * (1 / LARGEST), torch.nan)[..., 0]


def keys_reference(k: Tensor) -> tuple[Tensor, Tensor]:
    """k [B, h, M, d] -> int8 [B, h, M, d] and scale [B, h, M] float32 of the keys without what they have in common."""
    return rows_to_int8(k.float() - common_part(k))


@torch.library.custom_op("animx::quantise_keys", mutates_args=())
def _quantise_keys(k: Tensor) -> tuple[Tensor, Tensor]:
    if use_triton("quantise_keys", k, refusal=_width_refusal(k.shape[-1])):
        from animx_kernels.attention8_triton import keys_forward

        return keys_forward(k)
    values, scale = keys_reference(k)
    return values.contiguous(), scale.contiguous()


@_quantise_keys.register_fake
def _quantise_keys_fake(k: Tensor) -> tuple[Tensor, Tensor]:
    return k.new_empty(k.shape, dtype=torch.int8), k.new_empty(k.shape[:-1], dtype=torch.float32)


def attention8_reference(q: Tensor, k: Tensor, k_scale: Tensor, v: Tensor) -> Tensor:
    """q [B, h, N, d], k int8 [B, h, M, d], k_scale [B, h, M], v [B, h, M, d] -> [B, h, N, d]."""
    kind = wide(q)
    rows, q_scale = rows_to_int8(q.float())
    q_scale = q_scale.to(kind) * q.shape[-1] ** -0.5
    keys, key_scale, values = k.to(torch.float32).transpose(-1, -2), k_scale.to(kind)[..., None, :], v.to(kind)
    out = q.new_empty(_as_tokens(q.shape)).transpose(1, 2)
    batch, heads, tokens, _ = q.shape
    step = max(1, PIECE // max(1, heads * k.shape[2]))
    for b in range(batch):
        for at in range(0, tokens, step):
            part = slice(at, at + step)
            score = (rows[b, :, part].float() @ keys[b]).to(kind)  # whole numbers below 2^24: exact
            share = (score * q_scale[b, :, part, None] * key_scale[b]).softmax(-1)
            out[b, :, part] = (share @ values[b]).to(q.dtype)
    return out


def _as_tokens(shape: torch.Size) -> tuple[int, int, int, int]:
    batch, heads, tokens, width = shape
    return batch, tokens, heads, width


@torch.library.custom_op("animx::attention8", mutates_args=())
def _attention8(q: Tensor, k: Tensor, k_scale: Tensor, v: Tensor) -> Tensor:
    if use_triton("attention8", q, k_scale, v, refusal=_refusal(q, k, v)):
        from animx_kernels.attention8_triton import attention_forward

        return attention_forward(q, k, k_scale, v)
    return attention8_reference(q, k, k_scale, v)


def _refusal(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if q.dtype != v.dtype:
        return f"values of type {v.dtype} with queries of {q.dtype}"
    return _width_refusal(q.shape[-1])


@_attention8.register_fake
def _attention8_fake(q: Tensor, k: Tensor, k_scale: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(_as_tokens(q.shape)).transpose(1, 2)


def quantise_keys(k: Tensor) -> tuple[Tensor, Tensor]:
    """k [B, h, M, d], any strides -> int8 [B, h, M, d] and scale [B, h, M] float32, contiguous, for `attention8_keys`.

    Keys that do not change (those of a context) need this once.
    """
    if k.ndim != 4 or not k.shape[2]:
        raise ValueError(f"quantise_keys: keys [B, heads, M, d] are wanted, not {tuple(k.shape)}")
    return _quantise_keys(k)


def attention8_keys(q: Tensor, k: Tensor, k_scale: Tensor, v: Tensor) -> Tensor:
    """`attention8` with keys that `quantise_keys` has made."""
    fits = q.ndim == 4 and q.shape[:2] == k.shape[:2] and q.shape[3] == k.shape[3] and k.shape[2] > 0
    if not fits or v.shape != k.shape or k_scale.shape != k.shape[:3]:
        shapes = ", ".join(f"{name} {tuple(one.shape)}" for name, one in (("q", q), ("k", k), ("v", v)))
        raise ValueError(f"attention8: {shapes} do not fit [B, heads, N, d]")
    return _attention8(q, k, k_scale, v)


def attention8(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax(q k^T d^-0.5) v without mask: q [B, h, N, d], k and v [B, h, M, d] -> [B, h, N, d].

    Any strides: the three may be views of one projection.  The result is laid out [B, N, h, d], so that
    `.transpose(1, 2).flatten(2)` is a view.  Against the exact attention it is off by about 1 % of its norm on
    normally distributed numbers.  For inference: no gradient.
    """
    return attention8_keys(q, *quantise_keys(k), v)


def _keys_cost(k: Tensor) -> Cost:
    """Two launches: the means, then differences to them.  Both read the keys."""
    means = k.numel() // k.shape[2] * 4
    return Cost(2, 0, 2 * nbytes(k) + means, means + k.numel() + k.numel() // k.shape[3] * 4)


def _attention_cost(q: Tensor, k: Tensor, k_scale: Tensor, v: Tensor) -> Cost:
    flops = 4 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3]
    return Cost(1, flops, nbytes(q, k, k_scale, v), nbytes(q))


def _qkv(
    batch: int, tokens: int, heads: int, width: int, keys: int | None, device: torch.device | str, dtype: torch.dtype,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Views of one token-major projection, or with other keys of two; the keys have much in common."""
    q, k, v = (
        draw((batch, tokens, 3, heads, width), device, dtype, seed).permute(2, 0, 3, 1, 4).unbind()
        if keys is None
        else (
            draw((batch, tokens, heads, width), device, dtype, seed).transpose(1, 2),
            *draw((2, batch, heads, keys, width), device, dtype, seed + 1).unbind(),
        )
    )
    return q, k.add_(draw((batch, heads, 1, width), device, dtype, seed + 2, 4)), v


SMALL = {
    "views 2x48x2x32": (2, 48, 2, 32, None),
    "81 keys": (1, 33, 2, 64, 81),
    "odd 1x37x3x24": (1, 37, 3, 24, None),
    "one key": (2, 3, 1, 16, 1),
}
"""Batch, tokens, heads, width, keys (None: the tokens)."""

OFFICIAL = {
    "L0 33x6144": (33, 6144, 5, 64, None),
    "L1 33x1536": (33, 1536, 10, 64, None),
    "L2 33x384": (33, 384, 20, 64, None),
    "L0 81 keys": (1, 33 * 6144, 5, 64, 81),
}


def _cases(which: str) -> dict[str, Case]:
    def case(size: tuple[int, int, int, int, int | None], official: bool) -> Case:
        def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
            q, k, v = _qkv(*size, device, dtype, seed)
            return Inputs((k,) if which == "keys" else (q, *quantise_keys(k), v), {})

        return Case(make, official)

    found = {name: case(size, False) for name, size in SMALL.items()}
    return found | {name: case(size, True) for name, size in OFFICIAL.items()}


def _builds(which: str, capability: int) -> list[Build]:
    from animx_kernels import attention8_triton

    return attention8_triton.builds(which, capability)


register(
    Op(
        "quantise_keys",
        quantise_keys,
        keys_reference,
        lambda: _cases("keys"),
        _keys_cost,
        lambda capability: _builds("quantise_keys", capability),
        "memory: two reads of the keys, one byte written per number",
    )
)
register(
    Op(
        "attention8",
        attention8_keys,
        attention8_reference,
        lambda: _cases("attention"),
        _attention_cost,
        lambda capability: _builds("attention8", capability),
        "exponentials, and matrix units: 2 * N * M * d FLOP in 8 bits, as many in 16",
    )
)
