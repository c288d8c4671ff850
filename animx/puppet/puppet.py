"""A prepared puppet: layers with meshes and weights, ready to be drawn in any pose of a `Motion`.

`build` does the work that is the same for every frame; `Puppet.draw` draws one frame over a background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from animx.pose.skeleton import NECK, NOSE
from animx.puppet import raster, skin
from animx.puppet.anatomy import ARM, LEG, Anatomy
from animx.puppet.mesh import Mesh, cell_size
from animx.puppet.mesh import build as build_mesh
from animx.puppet.motion import Limb, Motion, half_widths
from animx.puppet.parts import Layer, Parts, cut
from animx.puppet.weights import Weights, leg_field, weigh

Image = NDArray[np.uint8]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Sheet:
    """A layer with its mesh and weights."""

    layer: Layer
    mesh: Mesh
    weights: Weights
    upper: Vector  # [C, skin.BONE] bones at rest, this frame's numbers still neutral
    lower: Vector  # [C, skin.BONE]
    packed: raster.Packed  # the layer's texture as the rasteriser reads it [h, w]


@dataclass(frozen=True)
class Puppet:
    """A figure ready to be drawn."""

    body: Anatomy
    parts: Parts
    sheets: tuple[Sheet, ...]
    trunk: Vector = field(default_factory=lambda: np.zeros(skin.TRUNK))  # at rest

    def with_textures(self, textures: Sequence[Image]) -> Puppet:
        """The same puppet with other textures (same shapes): for checks."""
        sheets = [
            replace(
                sheet,
                layer=replace(sheet.layer, texture=texture),
                packed=raster.pack(texture),
                mesh=replace(sheet.mesh, opaque=np.zeros_like(sheet.mesh.opaque)),
            )
            for sheet, texture in zip(self.sheets, textures, strict=True)
        ]
        return replace(self, sheets=tuple(sheets))

    def order(self, motion: Motion, t: int) -> list[int]:
        """Indices of the sheets at frame t, back to front."""
        left_last = bool(len(motion.left_leg_in_front) and motion.left_leg_in_front[t])

        def depth(index: int) -> tuple[int, int]:
            name = self.sheets[index].layer.name
            side, _, kind = name.rpartition("_")
            if kind == "arm":
                behind = bool(motion.behind[side][t]) if side in motion.behind else False
                return (0 if behind else 4, index)
            if kind == "leg":
                return (1 + ((side == "left") == left_last), index)
            return (3, index)

        return sorted(range(len(self.sheets)), key=depth)

    def positions(self, motion: Motion, t: int) -> list[Vector]:
        """Where the vertices of each sheet are at frame t [N, 2] px."""
        found = []
        trunk = self._trunk(motion, t)
        for sheet in self.sheets:
            out = np.empty_like(sheet.mesh.vertices)
            if motion.whole is not None:
                skin.sway(sheet.mesh.vertices, self._whole(motion.whole[t]), out)
            else:
                upper, lower = self._bones(sheet, motion, t)
                w = sheet.weights
                skin.deform(sheet.mesh.vertices, w.loose, w.share, w.near, w.far, trunk, upper, lower, out)
                if motion.zoom[0] != 1.0:
                    centre = np.array(motion.zoom[1:])
                    out = centre + motion.zoom[0] * (out - centre)
            found.append(out)
        return found

    def draw(self, motion: Motion, t: int, frame: Image) -> NDArray[np.int64]:
        """Draw frame t over `frame` (premultiplied RGBA, in place); returns the touched box x0, y0, x1, y1 [px]."""
        dirty = np.array([frame.shape[1], frame.shape[0], 0, 0], np.int64)
        positions = self.positions(motion, t)
        for index in self.order(motion, t):
            sheet = self.sheets[index]
            raster.draw(
                frame, sheet.packed, sheet.layer.origin[0], sheet.layer.origin[1],
                sheet.mesh.vertices, positions[index], sheet.mesh.triangles, sheet.mesh.opaque, dirty,
            )  # fmt: skip
        return dirty

    def _trunk(self, motion: Motion, t: int) -> Vector:
        trunk = self.trunk.copy()
        trunk[7:9] = motion.root[t]
        trunk[9:13] = motion.turn[t], motion.stretch[t], motion.widths[0], motion.widths[1]
        return trunk

    def _whole(self, moves: Vector) -> Vector:
        x0, _, x1, y1 = self.body.box
        return np.array([(x0 + x1) / 2, y1, self.body.height, *moves])

    @staticmethod
    def _bones(sheet: Sheet, motion: Motion, t: int) -> tuple[Vector, Vector]:
        upper, lower = sheet.upper.copy(), sheet.lower.copy()
        for c, name in enumerate(sheet.weights.chains):
            limb: Limb | None = motion.limbs.get(name)
            if limb is None:
                upper[c, 5] = lower[c, 5] = motion.turn[t]
                continue
            upper[c, 5:8] = limb.turn[0, t], limb.stretch[0, t], limb.grow
            lower[c, 5:7] = limb.turn[1, t], limb.stretch[1, t]
            if lower[c, 4] > 0:
                lower[c, 8] = limb.tip
            else:
                upper[c, 8] = limb.tip
        return upper, lower


def build(rgb: Image, mask: NDArray[np.float32], body: Anatomy) -> Puppet:
    """Cut, mesh and weigh the figure of `rgb` [H, W, 3] under `mask` (0..1 [H, W]); deterministic."""
    parts = cut(rgb, mask, body)
    legs = leg_field(body, parts) if body.has_torso else None
    cell = cell_size(body.height)
    sheets = []
    for layer in parts.layers:
        # arms bend most: a finer mesh keeps the elbow round
        fine = 0.6 if layer.name.endswith("_arm") else 1.0
        mesh = build_mesh(layer, cell * fine, body.size)
        if len(mesh.triangles) == 0:
            continue
        weights = weigh(layer.name, mesh.vertices, body, parts, legs)
        bones = [_rest_bones(body, chain) for chain in weights.chains]
        shape = (len(bones), skin.BONE)
        upper = np.array([b[0] for b in bones]).reshape(shape)
        lower = np.array([b[1] for b in bones]).reshape(shape)
        sheets.append(Sheet(layer, mesh, weights, upper, lower, raster.pack(layer.texture)))
    return Puppet(body, parts, tuple(sheets), _rest_trunk(body))


def _bone(root: Vector | None, end: Vector | None) -> Vector:
    bone = np.zeros(skin.BONE)
    bone[2], bone[6:9] = 1.0, 1.0
    if root is not None:
        bone[:2] = root
    if root is not None and end is not None:
        length = float(np.linalg.norm(end - root))
        if length > 1e-6:
            bone[2:4], bone[4] = (end - root) / length, length
    return bone


def _rest_bones(body: Anatomy, chain: str) -> tuple[Vector, Vector]:
    if chain == "head":
        return _bone(body.joints[NECK], body.joints[NOSE]), _bone(None, None)
    side, _, kind = chain.rpartition("_")
    root, joint, end = (ARM if kind == "arm" else LEG)[side]
    lower = _bone(body.joints[joint], body.joints[end]) if body.seen[end] else _bone(None, None)
    return _bone(body.joints[root], body.joints[joint]), lower


def _rest_trunk(body: Anatomy) -> Vector:
    trunk = np.zeros(skin.TRUNK)
    trunk[10:13] = 1.0
    if not body.has_torso:
        return trunk
    trunk[:2] = body.mid_hip
    trunk[2:4], trunk[4] = (body.neck - body.mid_hip) / body.torso_length, body.torso_length
    trunk[5:7] = half_widths(body)
    return trunk
