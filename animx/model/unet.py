"""The Animate-X UNet: latent and conditions in, velocity out (released facts 3.5 and 4).

conditions = unet.encode(inputs, frames=F, latent=(h, w))     # once per window
velocity = unet(x, t, conditions)                             # every step; x [B, 4, F, h, w], t [B]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from animx.model.attention import MotionCross, MotionTransformer, SpatialTransformer
from animx.model.condition_encoders import FrameTransformer, LatentEncoder, PictureEncoder
from animx.model.conditions import Conditions, Inputs
from animx.model.config import UNetConfig
from animx.model.layers import Downsample, ResBlock, TimeEmbedding, Times, Upsample, sinusoid
from animx.model.pose_indicator import KeypointEncoder, Resampler
from animx.model.schedule import TRAIN_STEPS
from animx.model.temporal import Temporal


class Block(nn.ModuleList):
    """A numbered block of the trunk: its modules in running order, so that numbers equal the released keys."""


class AnimateXUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """3-D UNet with spatial, motion and temporal blocks.  Built from `UNetConfig` fields."""

    RELEASED: ClassVar = {
        "time_embedding": "time_embed",
        "image_tokens": "pre_image_condition",
        "keypoint_encoder": "pose_embedding_before",
        "resampler": "pose_embedding_after",
        "local_image": "local_image_embedding",
        "local_image_frames": "local_image_embedding_after",
        "dwpose": "dwpose_embedding",
        "dwpose_frames": "dwpose_embedding_after",
        "reference_pose": "randomref_pose2_embedding",
        "reference_pose_frames": "randomref_pose2_embedding_after",
        "reference_latent": "randomref_embedding2",
        "reference_latent_frames": "randomref_embedding_after2",
        "down": "input_blocks",
        "middle": "middle_block",
        "up": "output_blocks",
        "out_norm": "out.0",
        "out_conv": "out.2",
    }

    @register_to_config
    def __init__(self, shape: Mapping[str, Any] | None = None, text_length: int = 77) -> None:
        super().__init__()
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in (shape or {}).items()}
        c = UNetConfig(**given)
        self.shape = c
        time = c.width * 4
        grid = c.in_channels + c.concat_channels
        self.time_embedding = TimeEmbedding(c.width, time)
        self.image_tokens = nn.Sequential(
            nn.Linear(c.context_dim, c.context_dim),
            nn.SiLU(),
            nn.Linear(c.context_dim, c.context_dim * c.image_tokens),
        )
        if c.motion != "none":
            self.keypoint_encoder = KeypointEncoder(c)
            self.resampler = Resampler(c)
        self.local_image = PictureEncoder(c.concat_channels)
        self.local_image_frames = FrameTransformer(c.concat_channels)
        self.dwpose = PictureEncoder(c.concat_channels)
        self.dwpose_frames = FrameTransformer(c.concat_channels)
        self.reference_pose = PictureEncoder(grid)
        self.reference_pose_frames = FrameTransformer(grid)
        self.reference_latent = LatentEncoder(c.in_channels, grid)
        self.reference_latent_frames = FrameTransformer(grid)
        self._build_trunk(c, grid, time)
        self.out_norm = nn.GroupNorm(32, c.width)
        self.out_conv = nn.Conv2d(c.width, c.in_channels, 3, padding=1)
        nn.init.zeros_(self.out_conv.weight)
        # The empty prompt's text states; no part of the state dict, because they are computed from the text encoder.
        self.register_buffer("text", torch.zeros(1, text_length, c.context_dim), persistent=False)

    text: Tensor

    @classmethod
    def build(cls, config: UNetConfig, text_length: int = 77) -> AnimateXUNet:
        """The network of a `UNetConfig`."""
        return cls(asdict(config), text_length)

    def _build_trunk(self, c: UNetConfig, grid: int, time: int) -> None:
        widths = [c.width * m for m in c.multipliers]
        last = len(widths) - 1

        def spatial(channels: int) -> SpatialTransformer:
            heads = channels // c.head_dim
            kind: Any = {"transformer": MotionTransformer, "cross": MotionCross}.get(c.motion)
            motion = kind(channels, heads, c.head_dim, c.context_dim) if kind else None
            return SpatialTransformer(
                channels, heads, c.head_dim, c.context_dim, motion,
                alpha=c.alpha, parallel=c.motion_order == "parallel",
            )  # fmt: skip

        def block(channels: int, out: int, level: int) -> Block:
            made = Block([ResBlock(channels, time, out, c.dropout)])
            if level in c.attention_levels:
                made.extend([spatial(out), Temporal(out, out // c.head_dim, c)])
            return made

        self.down = nn.ModuleList([Block([nn.Conv2d(grid, c.width, 3, padding=1), Temporal(c.width, c.stem_heads, c)])])
        channels, skips = c.width, [c.width]
        for level, out in enumerate(widths):
            for _ in range(c.res_blocks):
                self.down.append(block(channels, out, level))
                channels = out
                skips.append(channels)
            if level < last:
                self.down.append(Downsample(channels))
                skips.append(channels)
        self.middle = Block(
            [
                ResBlock(channels, time, channels, c.dropout),
                spatial(channels),
                Temporal(channels, channels // c.head_dim, c),
                ResBlock(channels, time, channels, c.dropout),
            ]
        )
        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for i in range(c.res_blocks + 1):
                made = block(channels + skips.pop(), out, level)
                if level > 0 and i == c.res_blocks:
                    made.append(Upsample(out))
                self.up.append(made)
                channels = out

    def spatial_transformers(self) -> Iterator[SpatialTransformer]:
        """All spatial transformers in running order, the order of `Conditions.context` and `.motion`."""
        return (part for part in self._parts() if isinstance(part, SpatialTransformer))

    def residual_blocks(self) -> Iterator[ResBlock]:
        """All residual blocks in running order."""
        return (part for part in self._parts() if isinstance(part, ResBlock))

    def _parts(self) -> Iterator[nn.Module]:
        for module in (*self.down, self.middle, *self.up):
            yield from module.children() if isinstance(module, Block) else [module]

    def motion_tokens(self, inputs: Inputs, batch: int, slots: int) -> Tensor:
        """Motion tokens [B, T, 4, D].  Absent keypoints or CLIP vectors count as zeros (the unconditional branch)."""
        like = self.text
        width = self.shape.context_dim
        keypoints = inputs.keypoints if inputs.keypoints is not None else like.new_zeros(batch, slots, 2, 18)
        clip = inputs.clip if inputs.clip is not None else like.new_zeros(batch, slots, width)
        tokens: Tensor = self.resampler(self.keypoint_encoder(keypoints), clip)
        return tokens

    def encode(
        self, inputs: Inputs, *, frames: int, latent: tuple[int, int], batch: int = 1, fold: bool | None = None
    ) -> Conditions:
        """Everything that stays the same over the denoising steps of one window of `frames` frames.

        fold: multiply out the motion attention's constants (equal up to rounding, several times faster per step; no
        gradients); None = unless gradients are recorded.
        """
        fold = not torch.is_grad_enabled() if fold is None else fold
        c = self.shape
        like, slots = self.text, frames + 1
        active = c.conditions
        dense = like.new_zeros(batch, c.concat_channels, frames, *latent)
        reference = like.new_zeros(batch, c.in_channels + c.concat_channels, 1, *latent)
        if inputs.local_image is not None and "local_image" in active:
            # Equal frames attend to equal frames: one frame is computed and shared.
            dense = dense + self.local_image_frames(self.local_image(inputs.local_image, latent))
        if inputs.dwpose is not None and "dwpose" in active:
            dense = dense + self.dwpose_frames(self.dwpose(inputs.dwpose[:, :, 1:], latent))
            if inputs.randomref is not None and "randomref" in active:
                reference = reference + self.reference_latent_frames(self.reference_latent(inputs.randomref[:, :, :1]))
                reference = reference + self.reference_pose_frames(self.reference_pose(inputs.dwpose[:, :, :1], latent))
        image = like.new_zeros(batch, c.image_tokens, c.context_dim)
        if inputs.image is not None and "image" in active:
            image = self.image_tokens(inputs.image[:, 0]).unflatten(1, (c.image_tokens, c.context_dim))
        context = torch.cat([like.expand(batch, -1, -1), image], dim=1)  # [B, 81, D]
        layers = list(self.spatial_transformers())
        motion = None
        if c.motion != "none":
            given = inputs if "pose_embeddings" in active else Inputs()
            motion = rearrange(self.motion_tokens(given, batch, slots), "b t m d -> (b t) m d")
        return Conditions(
            dense,
            reference,
            tuple(layer.block.cross_attention.key_value(context) for layer in layers),
            tuple(layer.motion_constants(motion, fold) for layer in layers),
        )

    def shifts(self, t: Tensor) -> tuple[Tensor, ...]:
        """What each residual block adds [B, C'] at timesteps t [B], in running order."""
        time = self.time_embedding(sinusoid(t, self.shape.width).to(self.out_conv.weight.dtype))
        active = F.silu(time)
        return tuple(block.time(active) for block in self.residual_blocks())

    def times(self, timesteps: Sequence[int]) -> Times:
        """The shifts of all steps of a schedule at once, to be handed to `forward` with every step."""
        device = self.out_conv.weight.device
        rows = self.shifts(torch.tensor(timesteps, device=device))
        position = torch.full((max(TRAIN_STEPS, max(timesteps) + 1),), -1)
        position[list(timesteps)] = torch.arange(len(timesteps))
        return Times(torch.cat(rows, dim=1), position.to(device), tuple(row.shape[1] for row in rows))

    def forward(self, x: Tensor, t: Tensor, conditions: Conditions, times: Times | None = None) -> Tensor:
        """Noisy latents x [B, 4, F, h, w] at timesteps t [B] -> velocity of the same shape.

        `times`: the prepared shifts of the schedule that t is of; without it they are computed.
        """
        slots = x.shape[2] + 1
        shifts = iter(self.shifts(t) if times is None else times.at(t))
        grid = torch.cat([conditions.reference, torch.cat([x, conditions.dense], dim=1)], dim=2)
        y = rearrange(grid, "b c t h w -> (b t) c h w")
        keys = iter(zip(conditions.context, conditions.motion, strict=True))

        def run(module: nn.Module, y: Tensor, size: tuple[int, int] | None = None) -> Tensor:
            for part in module if isinstance(module, Block) else [module]:
                if isinstance(part, ResBlock):
                    y = part(y, next(shifts), slots)
                elif isinstance(part, SpatialTransformer):
                    y = part(y, *next(keys))
                elif isinstance(part, Temporal):
                    y = part(y, slots)
                elif isinstance(part, Upsample):
                    y = part(y, size)
                else:
                    y = part(y)
            return y

        skips = []
        for module in self.down:
            y = run(module, y)
            skips.append(y)
        y = run(self.middle, y)
        for module in self.up:
            y = torch.cat([y, skips.pop()], dim=1)
            y = run(module, y, (skips[-1].shape[-2], skips[-1].shape[-1]) if skips else None)
        y = self.out_conv(F.silu(self.out_norm(y)))
        return rearrange(y, "(b t) c h w -> b c t h w", t=slots)[:, :, 1:]
