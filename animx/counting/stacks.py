"""The networks that are counted: which stack, at which size, with which inputs, run once on fake CUDA tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from animx.counting.fakes import autocast, blank, faked, pretend
from animx.counting.log import Entry, listen
from animx.counting.released import released_velocity
from animx.errors import UsageError
from animx.model.conditions import Inputs
from animx.model.config import UNetConfig, variant
from animx.model.eight_bit import EightBit, eight_bit
from animx.model.fused import FusedUNet
from animx.model.schedule import ddim_steps
from animx.model.unet import AnimateXUNet
from animx_kernels.temporal_attention import MOST_SLOTS

Stack = Literal["released", "plain", "animx", "fp8"]
STACKS: tuple[Stack, ...] = ("released", "plain", "animx", "fp8")

TINY = UNetConfig(
    width=32, multipliers=(1, 1, 2, 2), res_blocks=1, head_dim=16, stem_heads=2, context_dim=32, keypoint_heads=4,
    keypoint_ff=32, keypoint_layers=1, resampler_depth=1, resampler_heads=2, resampler_head_dim=16,
)  # fmt: skip
"""A network of the same build, for tests."""

SIZES: Mapping[str, tuple[UNetConfig, tuple[int, int]]] = {
    "official": (UNetConfig(), (512, 768)),
    "tiny": (TINY, (64, 64)),
}
"""Networks by name, and the frames (width, height) they are counted at."""


def network(size: str, kind: str = "release") -> UNetConfig:
    """The network of a size (`SIZES`) in a variant (`release` or `paper`)."""
    like = variant(kind)
    return replace(SIZES[size][0], temporal=like.temporal, motion=like.motion, conditions=like.conditions)


STEPS = 30
"""Steps asked for by the released configuration (31 are run); their time embeddings are prepared at once."""


@dataclass(frozen=True)
class Setting:
    """What is counted."""

    stack: Stack = "animx"
    """`released` (the released operator sequence under autocast), `plain` (our network), `animx` (our fused one) or
    `fp8` (the fused one with its large linears and attentions in 8 bits)."""
    frames: int = 32
    """Frames of the window, without the reference slot."""
    width: int = 512
    """Width of the frames [px]."""
    height: int = 768
    """Height of the frames [px]."""
    batch: int = 1
    """Windows at once; 2 for both branches of the guidance."""
    conditional: bool = True
    """The branch that sees the conditions."""
    config: UNetConfig = field(default_factory=UNetConfig)
    """The network."""
    dtype: torch.dtype = torch.float16
    """Type of weights and activations (of autocast in `released`)."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise UsageError(f"--frames {self.frames}: use a whole number from 1")
        if self.stack in ("animx", "fp8") and self.frames >= MOST_SLOTS:
            raise UsageError(
                f"--frames {self.frames}: the fused network looks over {MOST_SLOTS} slots of time, of which one is the "
                f"reference. Use at most {MOST_SLOTS - 1}, or --stack plain"
            )
        if self.batch < 1:
            raise UsageError(f"--batch {self.batch}: use a whole number from 1")
        if self.stack == "released" and self.config.temporal != "transformer":
            raise UsageError(
                "--stack released: its operators belong to --variant release. Use --stack plain, animx or fp8"
            )
        grain = 8 * 2 ** (len(self.config.multipliers) - 1)
        if self.width < grain or self.height < grain or self.width % grain or self.height % grain:
            raise UsageError(f"--res {self.width}x{self.height}: use multiples of {grain} in both")

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.height // 8, self.width // 8

    @property
    def slots(self) -> int:
        """Frames and the reference slot."""
        return self.frames + 1


@dataclass(frozen=True)
class Counted:
    """The log of one forward pass, and of what is computed once per window before it."""

    setting: Setting
    forward: tuple[Entry, ...]
    """One step after the first."""
    prepared: tuple[Entry, ...]
    """Conditions and whatever else is computed once; nothing in `released`, which does it on every step."""


def fake_inputs(setting: Setting, dtype: torch.dtype) -> Inputs:
    """Conditions of the setting's sizes, laid out in memory as a loader leaves them (frames before channels)."""
    b, t, d = setting.batch, setting.slots, setting.config.context_dim

    def pictures(count: int) -> Tensor:
        frames = torch.zeros(b, count, 3, setting.height, setting.width, dtype=dtype, device="cuda")
        return frames.permute(0, 2, 1, 3, 4)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device="cuda")

    if not setting.conditional:
        return Inputs()
    active = setting.config.conditions
    shared = 1 if setting.stack != "released" else setting.frames
    return Inputs(
        image=zeros(b, 1, d), local_image=pictures(shared), dwpose=pictures(t), keypoints=zeros(b, t, 2, 18),
        clip=zeros(b, t, d), randomref=zeros(b, 4, 1, *setting.latent) if "randomref" in active else None,
    )  # fmt: skip


def count(setting: Setting) -> Counted:
    """Run the setting's stack on fakes and log it.  Nothing is computed, no GPU and no weights are needed."""
    unet = blank(lambda: AnimateXUNet.build(replace(setting.config, slots=setting.slots)))
    with pretend():
        return _COUNTS[setting.stack](setting, faked(unet, setting.dtype))


def _count_released(setting: Setting, unet: AnimateXUNet) -> Counted:
    # Latents, context and CLIP vectors reach the released network in float32, its weights are float16.
    unet.text = unet.text.float()
    x, t = _latents(setting, torch.float32)
    inputs = fake_inputs(setting, torch.float32)
    with autocast(setting.dtype):
        _, entries = listen(lambda: released_velocity(unet, x, t, inputs), unet)
    return Counted(setting, tuple(entries), ())


def _count_plain(setting: Setting, unet: AnimateXUNet) -> Counted:
    return _steps(setting, unet, unet)


def _count_animx(setting: Setting, unet: AnimateXUNet) -> Counted:
    fused, packed = listen(lambda: FusedUNet(unet), unet)
    counted = _steps(setting, unet, fused)
    return replace(counted, prepared=(*packed, *counted.prepared))


def _count_fp8(setting: Setting, unet: AnimateXUNet) -> Counted:
    # Weights are put into 8 bits when a model is loaded, which belongs to no forward pass.
    return _count_animx(setting, eight_bit(unet, EightBit(linears=True, attention=True)))


def _steps(setting: Setting, unet: AnimateXUNet, network: nn.Module) -> Counted:
    inputs = fake_inputs(setting, setting.dtype)
    x, t = _latents(setting, setting.dtype)

    def prepare() -> Any:
        conditions = unet.encode(inputs, frames=setting.frames, latent=setting.latent, batch=setting.batch)
        return conditions, unet.times(ddim_steps(STEPS))

    (conditions, times), prepared = listen(prepare, unet)
    roots = [unet] if network is unet else [network, unet]
    _, entries = listen(lambda: network(x, t, conditions, times), *roots)
    return Counted(setting, tuple(entries), tuple(prepared))


def _latents(setting: Setting, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.zeros(setting.batch, 4, setting.frames, *setting.latent, dtype=dtype, device="cuda")
    return x, torch.zeros(setting.batch, dtype=torch.int64, device="cuda")


_COUNTS: dict[str, Callable[[Setting, Any], Counted]] = {
    "released": _count_released,
    "plain": _count_plain,
    "animx": _count_animx,
    "fp8": _count_fp8,
}
