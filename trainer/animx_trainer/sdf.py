"""Figures as signed distances, drawn in batches by torch on CPU or GPU: colour, coverage and part labels at once.

One shape serves for everything: an axis from a to b, a half-width along it (ends and a bulge), and a roundness between
capsule and box.  Only pixels near a part are looked at; parts are laid over each other in the order given.

Same bytes for any batch: each pixel takes only additions, products, quotients, roots, minima and floors, which IEEE
rounds one way, so neither the place in a vector register nor the other frames of the batch can change a result.

Letters: N frames, P parts (later ones lie on top), M pairs of a part and a pixel near it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animx.canvas import Canvas

GEOMETRY = ("ax", "ay", "bx", "by", "w0", "w1", "bulge", "round")
"""Columns of a part's shape [px; roundness 0..1].  Half-width at t = 0..1 of the axis: w0 + t (w1 - w0) + t (1 - t)
bulge.  A part with w0 = w1 = bulge = 0 is absent."""
PAINT = (
    "red", "green", "blue", "red2", "green2", "blue2", "along", "along_phase", "along_edge", "across", "across_phase",
    "across_edge", "shade", "light_x", "light_y", "outline", "line_red", "line_green", "line_blue", "label", "opacity",
)  # fmt: skip
"""Columns of a part's look: two colours 0..1; a pattern (repeats per px along and across the axis, phase, edge of the
triangle wave 0..0.5); shading and direction of light; width [px] and colour of the outline; label (0 = not part of the
figure, drawn but not covered); opacity."""
SHARP = 24.0
"""A pattern's second colour shows where the product of its two waves, each less its edge, is positive: how fast."""
_CHUNK = 60_000
"""Pairs that are worked on at once: their columns stay in the cache."""


@dataclass(frozen=True)
class Picture:
    """N drawn frames."""

    rgb: Tensor  # uint8 [N, H, W, 3]
    coverage: Tensor  # float32 [N, H, W] 0..1, share of a pixel that the figure covers
    labels: Tensor  # uint8 [N, H, W], 0 = background; the topmost part that covers at least half the pixel

    def numpy(self) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
        """All three as arrays on the CPU."""
        return self.rgb.cpu().numpy(), self.coverage.cpu().numpy(), self.labels.cpu().numpy()


def draw(geometry: Tensor, paint: Tensor, background: Tensor, canvas: Canvas) -> Picture:
    """Draw N frames.

    geometry [N, P, 8] (`GEOMETRY`), paint [N, P, 21] (`PAINT`), background float32 [N, H, W, 3] in 0..1, all on one
    device.  What a frame shows does not depend on the other frames.
    """
    count = len(geometry)
    boxes, areas = _boxes(geometry, canvas)
    layers = torch.zeros(count, canvas.height * canvas.width, 5, device=geometry.device)
    layers[..., :3] = background.view(count, -1, 3)
    per_frame = areas.sum(1).tolist()
    start = 0
    while start < count:
        stop, pairs = start + 1, per_frame[start]
        while stop < count and pairs + per_frame[stop] <= _CHUNK:
            pairs += per_frame[stop]
            stop += 1
        part = slice(start, stop)
        _lay(layers[part], geometry[part], paint[part], boxes[part], areas[part], canvas)
        start = stop
    shape = (count, canvas.height, canvas.width)
    rgb = (layers[..., :3] * 255 + 0.5).clamp_(0, 255).to(torch.uint8).view(*shape, 3)
    return Picture(rgb, layers[..., 3].reshape(shape), layers[..., 4].to(torch.uint8).reshape(shape))


def _boxes(geometry: Tensor, canvas: Canvas) -> tuple[Tensor, Tensor]:
    """First column, first row and width of the pixels near each part [N, P, 3], and their number [N, P]; int64."""
    ax, ay, bx, by, w0, w1, bulge, _ = geometry.unbind(-1)
    wide = torch.maximum(w0, w1) + bulge.clamp(min=0) * 0.25 + 1
    # `* 1.45`: the corner of a box lies sqrt(2) half-widths from the axis' end
    wide = torch.where(geometry[..., 7] < 1, wide * 1.45, wide)
    x0 = (torch.minimum(ax, bx) - wide).floor().clamp(0, canvas.width).long()
    y0 = (torch.minimum(ay, by) - wide).floor().clamp(0, canvas.height).long()
    x1 = (torch.maximum(ax, bx) + wide).ceil().clamp(0, canvas.width).long()
    y1 = (torch.maximum(ay, by) + wide).ceil().clamp(0, canvas.height).long()
    absent = (w0 == 0) & (w1 == 0) & (bulge == 0)
    areas = ((x1 - x0) * (y1 - y0)).masked_fill(absent, 0)
    return torch.stack([x0, y0, x1 - x0], dim=-1), areas


def _lay(layers: Tensor, geometry: Tensor, paint: Tensor, boxes: Tensor, areas: Tensor, canvas: Canvas) -> None:
    """Lay all parts of a few frames over `layers` [N, H*W, 5], in place."""
    count, parts = areas.shape
    flat = areas.t().reshape(-1)  # [P*N] part by part
    total = int(flat.sum())
    if total == 0:
        return
    numbers = torch.arange(parts * count, device=flat.device)
    which = torch.repeat_interleave(numbers, flat, output_size=total)  # [M]
    first = flat.cumsum(0) - flat
    x0, y0, wide = boxes.transpose(0, 1).reshape(-1, 3).t()
    frame = torch.arange(count, device=flat.device).repeat(parts) * (canvas.height * canvas.width)
    inside = (torch.arange(total, device=flat.device) - first[which]).float()
    own = torch.stack([wide.float(), x0.float(), y0.float()]).index_select(1, which)
    # halves keep the quotient away from whole numbers, so that rounding cannot move a pixel to another row
    row = ((inside + 0.5) / own[0]).floor()
    x, y = own[1] + inside - row * own[0], own[2] + row
    shapes = _prepared(geometry).transpose(0, 1).reshape(parts * count, -1).t().contiguous()
    distance, cover, along, across, half, ux, uy = _measured(x + 0.5, y + 0.5, shapes.index_select(1, which))
    near = cover.nonzero().squeeze(1)
    which, x, y = which[near], x[near], y[near]
    pixel = frame[which] + (y * canvas.width + x).long()
    looks = paint.transpose(0, 1).reshape(parts * count, -1).t().contiguous().index_select(1, which)
    colour, alpha = _painted(
        distance[near], cover[near], along[near], across[near], half[near], ux[near], uy[near], looks
    )
    bottom = layers.view(-1, 5)
    stops = torch.searchsorted(which, numbers.view(parts, count)[:, -1].contiguous(), right=True).tolist()
    start = 0
    for stop in stops:
        if stop > start:
            place = pixel[start:stop]
            under = bottom.index_select(0, place)
            bottom.index_copy_(0, place, under + alpha[start:stop] * (colour[start:stop] - under))
        start = stop


def _prepared(geometry: Tensor) -> Tensor:
    """Shapes [N, P, 8] -> start, direction, length, 1 / length, widths, roundness [N, P, 10]."""
    ax, ay, bx, by, w0, w1, bulge, round_ = geometry.unbind(-1)
    dx, dy = bx - ax, by - ay
    dx = torch.where((dx == 0) & (dy == 0), torch.full_like(dx, 1e-3), dx)  # a dot points to the right
    length = (dx * dx + dy * dy).sqrt()
    return torch.stack([ax, ay, dx / length, dy / length, length, 1 / length, w0, w1 - w0, bulge, round_], dim=-1)


def _measured(px: Tensor, py: Tensor, shapes: Tensor) -> tuple[Tensor, ...]:
    """Of M pixels under shapes [10, M]: signed distance [px], coverage, place along and across the axis [px],
    half-width there, and the axis' direction."""
    ax, ay, ux, uy, length, inverse, w0, dw, bulge, round_ = shapes.unbind(0)
    qx, qy = px - ax, py - ay
    u, v = qx * ux + qy * uy, qy * ux - qx * uy
    t = (u * inverse).clamp_(0, 1)
    half = w0 + t * (dw + (1 - t) * bulge)
    corner = half * round_
    beyond = torch.maximum(-u, u - length)
    aside = v.abs() - (half - corner)
    out, off = beyond.clamp(min=0), aside.clamp(min=0)
    # inside a box's core the nearer side counts; a capsule has no core (aside >= 0)
    distance = (out * out + off * off).sqrt_() - corner + torch.maximum(beyond, aside).clamp_(max=0)
    return distance, (0.5 - distance).clamp_(0, 1), u, v, half, ux, uy


def _painted(
    distance: Tensor, cover: Tensor, u: Tensor, v: Tensor, half: Tensor, ux: Tensor, uy: Tensor, looks: Tensor
) -> tuple[Tensor, Tensor]:
    """Colour, covered, label [M, 5] and their weights [M, 5] of M measured pixels with the `looks` [21, M]."""
    (along, along_phase, along_edge, across, across_phase, across_edge, shade, light_x, light_y,
     outline) = looks[6:16].unbind(0)  # fmt: skip
    label, opacity = looks[19:].unbind(0)
    waves = (_wave(u * along + along_phase) - along_edge) * (_wave(v * across + across_phase) - across_edge)
    mix = (waves * SHARP + 0.5).clamp_(0, 1)
    side = (v / half.clamp(min=1e-3)).clamp_(-1, 1)
    lit = 1 + shade * (side * (light_y * ux - light_x * uy) - 0.5 * side * side)
    line = (distance + outline + 0.5).clamp_(0, 1)
    plain = ((looks[:3] + mix * (looks[3:6] - looks[:3])) * lit).clamp_(0, 1)  # [3, M]
    belongs = (label > 0).float()
    colour = torch.cat([plain + line * (looks[16:19] - plain), belongs[None], label[None]]).t().contiguous()
    light = cover * opacity
    weight = torch.stack([light, light, light, light, (cover >= 0.5).float() * belongs]).t().contiguous()
    return colour, weight


def _wave(x: Tensor) -> Tensor:
    """A triangle wave of period 1 between 0 and 0.5."""
    return (x - x.floor() - 0.5).abs()
