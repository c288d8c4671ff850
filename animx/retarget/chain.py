"""The chain: align -> presets in the order given -> single factors (`--set`) -> drop -> add -> further operations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from animx import plugins
from animx.canvas import Canvas, Fit
from animx.errors import UsageError, nearest
from animx.pose.sequence import PoseSequence
from animx.retarget.align import MODES, Mode, fit
from animx.retarget.align import align as align_to
from animx.retarget.ops import add as add_joints
from animx.retarget.ops import drop as drop_joints
from animx.retarget.ops import rescale as rescale_bones
from animx.retarget.preset import Preset, load_preset


def apply_preset(poses: PoseSequence, preset: Preset | str) -> PoseSequence:
    """One preset: rescale, then drop, then add.  Ranges take their mean; an empty part does nothing at all."""
    if isinstance(preset, str):
        preset = load_preset(preset)
    if preset.rescale:
        poses = rescale_bones(poses, preset.factors, preset.keep, preset=preset.name or None)
    if preset.drop:
        poses = drop_joints(poses, preset.drop)
    return add_joints(poses, preset.add) if preset.add else poses


def _operation(name: str, parameters: Mapping[str, Any]) -> Callable[..., PoseSequence]:
    """The operation `name` of the plugin door, once it is clear that it can take the parameters (`UsageError`)."""
    operation = cast("Callable[..., PoseSequence]", plugins.load("retarget_ops", name))
    known = dict(list(inspect.signature(operation).parameters.items())[1:])  # the first one takes the poses
    if any(one.kind is one.VAR_KEYWORD for one in known.values()):
        return operation
    for key, value in parameters.items():
        if key not in known:
            raise UsageError(f"--op {name}: unknown parameter '{key}'.{nearest(key, known)} Known: {', '.join(known)}")
        given, usual = type(value), type(known[key].default)
        if usual in (int, float, str, bool) and given is not usual and (given, usual) != (int, float):
            raise UsageError(f"--op {name}: {key}={value}: expected {_WORDS[usual]}")
    for key, one in known.items():
        if one.default is one.empty and one.kind is not one.VAR_POSITIONAL and key not in parameters:
            raise UsageError(f"--op {name}: needs {key}=VALUE, as in --op {name}:{key}=VALUE")
    return operation


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def retarget(
    poses: PoseSequence,
    presets: Preset | str | Sequence[Preset | str] = (),
    reference: PoseSequence | Canvas | None = None,
    align: Mode = "robust",
    rescale: Mapping[str, float] | None = None,
    drop: Iterable[str] = (),
    add: Iterable[str] = (),
    *,
    ops: Iterable[tuple[str, Mapping[str, Any]]] = (),
    fit_how: Fit = "cover",
) -> PoseSequence:
    """Align `poses` to `reference` and change bone lengths; nothing asked for gives `poses` back.

    `reference` None: nothing is aligned.  A canvas, or `align="none"`: only fitted to that canvas, as `fit_how` says.
    `presets` are names, paths or `Preset`s; `rescale` holds single factors, kept to the ground; `ops` are (name,
    parameters) of plugins of the group `retarget_ops`, run last.  Errors: `UsageError` for unknown names and modes.
    """
    if align not in MODES:
        raise UsageError(f"--align {align}: use robust, released or none.{nearest(str(align), MODES)}")
    wanted = [presets] if isinstance(presets, Preset | str) else list(presets)
    loaded = [load_preset(preset) if isinstance(preset, str) else preset for preset in wanted]
    steps = [(_operation(name, parameters), parameters) for name, parameters in ops]
    drop, add = tuple(drop), tuple(add)
    if isinstance(reference, Canvas):
        poses = fit(poses, reference, fit_how)
    elif reference is not None:
        poses = fit(poses, reference.canvas, fit_how) if align == "none" else align_to(poses, reference, align)
    for preset in loaded:
        poses = apply_preset(poses, preset)
    if rescale:
        poses = rescale_bones(poses, rescale)
    if drop:
        poses = drop_joints(poses, drop)
    if add:
        poses = add_joints(poses, add)
    for operation, parameters in steps:
        poses = operation(poses, **parameters)
    return poses
