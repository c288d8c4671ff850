"""The operator sequence of the released code on our parameters: what `animx bench count` calibrates itself with.

For measuring only; `AnimateXUNet` computes the same numbers with fewer operators.  Everything the released forward pass
does is done here in its order: conditions and context recomputed on every call, q, k and v laid out head by head
in memory, attention over pixels in chunks, layouts changed between spatial and temporal parts, branches multiplied by a
weight of 1.  Under fake CUDA autocast its log is the released one; in float32 its result is that of `AnimateXUNet`.

In: latents [B, 4, F, h, w], timesteps [B], `Inputs` of the whole window.  Out: velocity of the shape of the latents.
Source: the released model at e41d3f0 (its facts, not its text).  Differs: at B > 1 the keypoint encoder keeps samples
apart, as ours does.  Letters: B batch, F frames, T = F + 1 slots, C channels, h w latent px, N tokens, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from animx.counting.log import at
from animx.model.attention import Attention, FeedForward, MotionTransformer, SpatialTransformer, TransformerBlock
from animx.model.condition_encoders import FrameTransformer, PictureEncoder
from animx.model.conditions import Inputs
from animx.model.layers import Downsample, ResBlock, TemporalConv, Upsample
from animx.model.pose_indicator import KeypointEncoder, Resampler
from animx.model.temporal import Temporal
from animx.model.unet import AnimateXUNet, Block

CHUNK = 4096
"""Rows (batch times heads) that one attention call takes at most."""

WEIGHT = 1
"""The factor of the motion branch; a multiplication all the same."""


def released_velocity(unet: AnimateXUNet, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    """One forward pass as the released code runs it.  Absent inputs are the unconditional branch.

    Knows the `release` variant only; another one is a `ValueError`.
    """
    c = unet.shape
    if c.temporal != "transformer" or c.motion != "transformer" or c.motion_order != "serial":
        raise ValueError("the released operator sequence belongs to the variant 'release'")
    batch, frames = x.shape[0], x.shape[2]
    with at("start"):
        torch.zeros((batch,), dtype=torch.bool, device=x.device)  # the mask of frames that attend to themselves
        zero, keep = (torch.zeros(batch, dtype=torch.bool).to(x.device) for _ in range(2))
        (zero & keep).any()  # asserted on by the released code, which waits for the GPU here
        dense = x.new_zeros(batch, c.concat_channels, *x.shape[2:])
    if inputs.local_image is not None:
        dense = dense + _pictures(unet.local_image, unet.local_image_frames, inputs.local_image, x, "local_image")
    if inputs.dwpose is not None:
        inputs.dwpose[:, :, :1].clone()  # the reference's pose image, used with `randomref` only
        dense = dense + _pictures(unet.dwpose, unet.dwpose_frames, inputs.dwpose[:, :, 1:], x, "dwpose")
    with at("start"):
        reference = x.new_zeros(batch, c.in_channels + c.concat_channels, 1, *x.shape[3:])
        y = torch.cat([reference, torch.cat([x, dense], dim=1)], dim=2)
        y = rearrange(y, "b c f h w -> (b f) c h w")
        y = rearrange(y, "(b f) c h w -> b c f h w", b=batch)
    with at("embeddings"):
        time, context = _embeddings(unet, x, t, inputs.image, frames + 1)
    with at("motion_tokens"):
        motion = _motion_tokens(unet, x, inputs, batch, frames + 1)
    y = rearrange(y, "b c f h w -> (b f) c h w")
    return _trunk(unet, y, time, context, motion, batch)


def _trunk(unet: AnimateXUNet, y: Tensor, time: Tensor, context: Tensor, motion: Tensor, batch: int) -> Tensor:
    def run(module: nn.Module, y: Tensor, name: str) -> Tensor:
        for i, part in enumerate(module if isinstance(module, Block) else [module]):
            with at(f"{name}.{i}:{type(part).__name__}"):
                if isinstance(part, ResBlock):
                    y = _residual(part, y.contiguous(), time, batch)
                elif isinstance(part, SpatialTransformer):
                    y = _spatial(part, y, context)
                    assert isinstance(part.motion, MotionTransformer)
                    with at("motion:MotionTransformer"):
                        y = _motion(part.motion, y, motion)
                elif isinstance(part, Temporal):
                    y = rearrange(y, "(b f) c h w -> b c f h w", b=batch)
                    y = rearrange(_temporal(part, y), "b c f h w -> (b f) c h w")
                elif isinstance(part, Upsample):
                    y = part.conv(F.interpolate(y, scale_factor=2, mode="nearest"))
                elif isinstance(part, Downsample):
                    y = part.conv(y)
                else:
                    y = part(y)
        return y

    skips = []
    for i, module in enumerate(unet.down):
        y = run(module, y, f"down.{i}")
        skips.append(y)
    y = run(unet.middle, y, "middle")
    for i, module in enumerate(unet.up):
        with at(f"up.{i}"):
            y = torch.cat([y, skips.pop()], dim=1)
        y = run(module, y, f"up.{i}")
    with at("out"):
        y = unet.out_conv(F.silu(unet.out_norm(y)))
    return rearrange(y, "(b f) c h w -> b c f h w", b=batch)[:, :, 1:]


def _residual(part: ResBlock, x: Tensor, time: Tensor, batch: int) -> Tensor:
    y = part.conv1(F.silu(part.norm1(x)))
    shift = part.time(F.silu(time)).type(y.dtype)[..., None, None]
    y = part.conv2(F.silu(part.norm2(y + shift)))
    y = part.skip(x) + y
    y = rearrange(y, "(b f) c h w -> b c f h w", b=batch)
    with at("temporal:TemporalConv"):
        y = _temporal_conv(part.temporal, y)
    return rearrange(y, "b c f h w -> (b f) c h w")


def _temporal_conv(part: TemporalConv, x: Tensor) -> Tensor:
    y = x
    for i in (1, 2, 3, 4):
        conv = getattr(part, f"conv{i}")
        y = F.conv3d(F.silu(getattr(part, f"norm{i}")(y)), conv.weight, conv.bias, padding=(1, 0, 0))
    return x + y


def _spatial(part: SpatialTransformer, x: Tensor, context: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    y = rearrange(part.norm(x), "b c h w -> b (h w) c").contiguous()
    y = part.proj_out(_block(part.block, part.proj_in(y), context))
    return rearrange(y, "b (h w) c -> b c h w", h=h, w=w).contiguous() + x


def _motion(part: MotionTransformer, x: Tensor, tokens: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    y = rearrange(part.norm(x), "b c h w -> b (h w) c").contiguous()
    y = part.proj_out(_block(part.block, part.proj_in(y), tokens))
    return rearrange(y, "b (h w) c -> b c h w", h=h, w=w).contiguous() * WEIGHT + x


def _temporal(part: Temporal, x: Tensor) -> Tensor:
    b, _, _, h, w = x.shape
    assert isinstance(part.block, TransformerBlock)
    y = rearrange(part.norm(x), "b c f h w -> (b h w) c f").contiguous()
    y = rearrange(F.conv1d(y, part.proj_in.weight, part.proj_in.bias), "n c f -> n f c").contiguous()
    y = _block(part.block, y, None)
    y = rearrange(y, "(b n) f c -> b n f c", b=b).contiguous()
    y = rearrange(y, "b n f c -> (b n) c f").contiguous()
    y = F.conv1d(y, part.proj_out.weight, part.proj_out.bias)
    return rearrange(y, "(b h w) c f -> b c f h w", b=b, h=h, w=w).contiguous() + x


def _block(part: TransformerBlock, x: Tensor, context: Tensor | None) -> Tensor:
    with at("block:TransformerBlock"):
        with at("self_attention"):
            x = _attention(part.self_attention, part.norm1(x), None) + x
        with at("cross_attention"):
            x = _attention(part.cross_attention, part.norm2(x), context) + x
        with at("feed_forward"):
            return _feed_forward(part.feed_forward, part.norm3(x)) + x


def _feed_forward(part: FeedForward, x: Tensor) -> Tensor:
    value, gate = part.proj(x).chunk(2, dim=-1)
    y: Tensor = part.out(value * F.gelu(gate))
    return y


def _attention(part: Attention, x: Tensor, context: Tensor | None) -> Tensor:
    context = x if context is None else context
    b, heads = x.shape[0], part.heads

    def split(y: Tensor) -> Tensor:  # [B, N, heads d] -> [B heads, N, d], in memory
        y = y.unsqueeze(3).reshape(b, y.shape[1], heads, -1).permute(0, 2, 1, 3)
        return y.reshape(b * heads, y.shape[2], y.shape[3]).contiguous()

    q = part.to_q(x)
    with at("key_value"):
        k, v = part.to_k(context), part.to_v(context)
    q, k, v = split(q), split(k), split(v)
    if q.shape[0] > CHUNK:
        count = q.shape[0] // CHUNK
        parts = zip(*(torch.chunk(y, count, dim=0) for y in (q, k, v)), strict=True)
        out = torch.cat([F.scaled_dot_product_attention(*three) for three in parts], dim=0)
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    out = out.unsqueeze(0).reshape(b, heads, out.shape[1], -1).permute(0, 2, 1, 3).reshape(b, out.shape[1], -1)
    y: Tensor = part.to_out(out)
    return y


def _pictures(
    encoder: PictureEncoder, across: FrameTransformer, pictures: Tensor, like: Tensor, name: str
) -> Tensor:  # pictures [B, 3, F, H, W] -> [B, C, F, h, w]
    b, (h, w) = pictures.shape[0], like.shape[-2:]
    with at(name):
        y = F.silu(encoder.conv1(rearrange(pictures, "b c f h w -> (b f) c h w")))
        y = F.adaptive_avg_pool2d(y, (4 * h, 4 * w))
        y = encoder.conv3(F.silu(encoder.conv2(y)))
        y = rearrange(y, "(b f) c h w -> (b h w) f c", b=b)
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", h=2) for part in across.to_qkv(across.norm(y)).chunk(3, dim=-1)
        )
        weight = (torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5).softmax(dim=-1)
        attended = rearrange(torch.einsum("bhij,bhjd->bhid", weight, v), "b h n d -> b n (h d)")
        y = across.to_out(attended) + y
        y = across.out(F.gelu(across.hidden(y))) + y
        return rearrange(y, "(b h w) f c -> b c f h w", b=b, h=h, w=w)


def _embeddings(unet: AnimateXUNet, x: Tensor, t: Tensor, image: Tensor | None, slots: int) -> tuple[Tensor, Tensor]:
    c, batch = unet.shape, x.shape[0]
    half = c.width // 2
    angle = torch.outer(
        t.float(), torch.pow(10000, -torch.arange(half, device=x.device).to(torch.float32).div(half))
    )  # [B, width / 2]
    time = unet.time_embedding(torch.cat([torch.cos(angle), torch.sin(angle)], dim=1))
    context = torch.cat([x.new_zeros(batch, 0, c.context_dim), unet.text.repeat(batch, 1, 1)], dim=1)
    if image is not None:
        tokens = unet.image_tokens(image).view(-1, c.image_tokens, c.context_dim)
    else:
        tokens = torch.zeros_like(unet.text.repeat(batch, 1, 1))[:, : c.image_tokens]
    context = torch.cat([context, tokens], dim=1)  # [B, 81, D]
    return time.repeat_interleave(slots, dim=0), context.repeat_interleave(slots, dim=0)


def _motion_tokens(unet: AnimateXUNet, x: Tensor, inputs: Inputs, batch: int, slots: int) -> Tensor:
    width = unet.shape.context_dim
    keypoints, clip = inputs.keypoints, inputs.clip
    like = unet.text
    keypoints = like.new_zeros(batch, slots, 2, 18) if keypoints is None else keypoints
    clip = like.new_zeros(batch * slots, 1, width) if clip is None else clip.reshape(batch * slots, 1, width)
    pose = _keypoints(unet.keypoint_encoder, rearrange(keypoints, "b f d c -> b f (d c)"))
    return _resample(unet.resampler, clip, pose)


def _keypoints(part: KeypointEncoder, keypoints: Tensor) -> Tensor:
    b, slots, _ = keypoints.shape
    y = part.embed2(part.embed1(keypoints)).permute(1, 0, 2)  # [T, B, D]
    y = y + part.positions[:, :slots].permute(1, 0, 2)
    layer: Any
    for layer in part.layers:
        own = layer.self_attn
        attended, _ = F.multi_head_attention_forward(
            y, y, y, own.embed_dim, own.num_heads, own.in_proj_weight, own.in_proj_bias, None, None, False, 0.0,
            own.out_proj.weight, own.out_proj.bias, training=False,
        )  # fmt: skip
        y = layer.norm1(y + attended)
        y = layer.norm2(y + layer.linear2(F.relu(layer.linear1(y))))
    y = y.transpose(0, 1).reshape(b * slots, 1, -1)
    y = part.token2(F.silu(part.token1(y)))
    return y.reshape(b * slots, part.tokens, -1)


def _resample(part: Resampler, clip: Tensor, pose: Tensor) -> Tensor:
    y = part.latents.repeat(clip.shape[0], 1, 1) * WEIGHT + pose  # [B*T, M, D]
    x = part.proj_in(clip)
    layer: Any
    for layer in part.layers:
        own = layer.attention
        normed, latents = own.norm1(x), own.norm2(y)
        b, m, _ = latents.shape
        q = own.to_q(latents)
        k, v = own.to_kv(torch.cat((normed, latents), dim=-2)).chunk(2, dim=-1)
        q, k, v = (z.view(b, z.shape[1], own.heads, -1).transpose(1, 2) for z in (q, k, v))
        scale = 1 / math.sqrt(math.sqrt(q.shape[-1]))
        weight = (q * scale) @ (k * scale).transpose(-2, -1)
        weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
        y = own.to_out((weight @ v).permute(0, 2, 1, 3).reshape(b, m, -1)) + y
        y = layer.out(F.gelu(layer.hidden(layer.norm(y)))) + y
    out: Tensor = part.norm_out(part.proj_out(y))
    return out
