"""Dense conditions: pictures (or the reference latent) to features on the latent grid (released 3.3).

Split in two so that long clips can cut windows: `features` per frame (convolutions), `across` frames (a one-layer
transformer per pixel, without positions).
"""

from __future__ import annotations

from typing import ClassVar

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class FrameTransformer(nn.Module):
    """One pre-LN attention (2 heads as wide as the feature) and one norm-free feed-forward over frames, per pixel."""

    RELEASED: ClassVar = {
        "norm": "layers.0.0.norm",
        "to_qkv": "layers.0.0.fn.to_qkv",
        "to_out": "layers.0.0.fn.to_out.0",
        "hidden": "layers.0.1.net.0.0",
        "out": "layers.0.1.net.2",
    }
    DROPOUT = 0.05

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * 2 * width, bias=False)
        self.to_out = nn.Linear(2 * width, width)
        self.hidden = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, F, h, w] -> same shape."""
        b, _, _, h, w = x.shape
        y = rearrange(x, "b c f h w -> (b h w) f c")  # [B*h*w, F, C]
        q, k, v = (rearrange(part, "b f (n c) -> b n f c", n=2) for part in self.to_qkv(self.norm(y)).chunk(3, -1))
        attended = rearrange(F.scaled_dot_product_attention(q, k, v), "b n f c -> b f (n c)")
        y = y + F.dropout(self.to_out(attended), self.DROPOUT, self.training)
        hidden = F.dropout(F.gelu(self.hidden(y)), self.DROPOUT, self.training)
        y = y + F.dropout(self.out(hidden), self.DROPOUT, self.training)
        return rearrange(y, "(b h w) f c -> b c f h w", b=b, h=h, w=w)


class PictureEncoder(nn.Module):
    """RGB pictures in 0..1 to the latent grid: conv, SiLU, pool to 4x the latent size, two strided convs."""

    RELEASED: ClassVar = {"conv1": "0", "conv2": "3", "conv3": "5"}

    def __init__(self, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(32, out, 3, stride=2, padding=1)

    def forward(self, pictures: Tensor, latent: tuple[int, int]) -> Tensor:
        """pictures [B, 3, F, H, W], latent size (h, w) -> [B, C, F, h, w].  The pool follows the latent."""
        frames = pictures.shape[2]
        x = F.silu(self.conv1(rearrange(pictures, "b c f h w -> (b f) c h w")))
        x = F.adaptive_avg_pool2d(x, (latent[0] * 4, latent[1] * 4))
        x = self.conv3(F.silu(self.conv2(x)))
        return rearrange(x, "(b f) c h w -> b c f h w", f=frames)


class LatentEncoder(nn.Module):
    """The reference latent to the UNet's input channels, at stride 1."""

    RELEASED: ClassVar = {"conv1": "0", "conv2": "2", "conv3": "4"}

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, out, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """latent [B, 4, F, h, w] -> [B, C, F, h, w]."""
        frames = latent.shape[2]
        x = rearrange(latent, "b c f h w -> (b f) c h w")
        x = self.conv3(F.silu(self.conv2(F.silu(self.conv1(x)))))
        return rearrange(x, "(b f) c h w -> b c f h w", f=frames)
