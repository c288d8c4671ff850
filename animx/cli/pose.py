"""`animx pose`: extract, retarget, draw, convert, info and check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from animx.cli import Group
from animx.cli import options as o
from animx.cli.output import Output
from animx.errors import UsageError

if TYPE_CHECKING:
    from animx.pose.sequence import PoseSequence


@click.group("pose", cls=Group, context_settings=o.CONTEXT)
def pose() -> None:
    """Extract, retarget, draw, convert and check poses.

    A pose file is .pose.json (readable) or .npz (compact), both with the same bits; - is stdin or stdout (JSON).
    Other formats: OpenPose JSON folders, ComfyUI POSE_KEYPOINT and COCO-WholeBody JSON both ways; DWPose, Animate-X
    and UniAnimate pickles and BVH are read.
    """


def _write(out: Output, poses: PoseSequence, output: str, overwrite: bool, **extra: Any) -> None:
    """Write a pose file and say so; `-` is stdout."""
    from animx.pose.formats import write_poses

    if output == "-":
        out.take_stdout("-o -")
    lost = write_poses(poses, output if output == "-" else Path(output), overwrite=overwrite)
    if lost:
        out.warn(f"{output}: this format cannot hold {', '.join(lost)}")
    if output == "-":
        return
    out.say(f"animx: wrote {output}: {_shape(poses)}")
    data = {"output": output, "frames": poses.frames, "persons": poses.persons, "lost": lost, **extra}
    out.wrote(data, [output, *([extra["joints"]] if extra.get("joints") else [])])


def _shape(poses: PoseSequence) -> str:
    people = f", {poses.persons} people" if poses.persons > 1 else ""
    return f"{poses.frames} frame{'s' if poses.frames > 1 else ''}{people}, {poses.canvas} px, {float(poses.fps):g} fps"


def _check_target(output: str, overwrite: bool, **inputs: str | None) -> None:
    """Refuse an output that cannot be written before any work is done."""
    if output == "-":
        return
    from animx.atomic import check_target
    from animx.driving import check_apart

    if not Path(output).is_dir() or Path(output).suffix:
        check_target(output, overwrite)
    check_apart(output, dict(inputs))


@o.command(
    "extract",
    writes=True,
    examples=(
        "animx pose extract dance.mp4",
        "animx pose extract two.mp4 --person track:1 --start 3 -o second.npz",
        "animx pose extract ref.png --edit              also writes ref.joints.yaml to correct by hand",
        "animx pose extract dance.mp4 -o - | animx pose info -",
    ),
)
@click.argument("source", metavar="INPUT")
@click.option("-o", "--output", metavar="POSE", help="Pose file (.pose.json, .npz), or - for stdout.  "
              "[INPUT.pose.json]")  # fmt: skip
@o.extraction
@click.option("--hands/--no-hands", default=True, help="Extract hands and face too.  [hands]")
@o.ranges
@click.option("--edit", is_flag=True, help="Of a picture: also write its joints as INPUT.joints.yaml to correct.")
def extract(
    out: Output, source: str, output: str | None, overwrite: bool, edit: bool, backend: str | None, **values: Any
) -> None:
    """Find the pose in every frame of a video or folder of frames, or of the figure in a picture."""
    from animx import driving, poses
    from animx.pose.formats import writable_kind

    if source == "-":
        raise UsageError("pose extract -: a video does not come from stdin. Name a file")
    stem = driving.stem(source)
    output = output or f"{stem}.pose.json"
    if output == "-":
        out.take_stdout("-o -")
    joints = f"{stem}.joints.yaml" if edit else None
    writable_kind(output)
    _check_target(output, overwrite, input=source)
    if joints is not None:
        _check_target(joints, overwrite, input=source)
    still = driving.is_still(source)
    if edit and not still:
        raise UsageError(f"--edit: {source} is no picture. It writes the joints of a reference image to correct")
    if still:
        found = poses.still_pose(source, backend=backend, blank=edit)
        if joints is not None:
            from animx.pose.joints import write_joints

            write_joints(found, joints, Path(source).name, overwrite=overwrite)
            out.say(
                f"animx: wrote {joints}: correct the joints, then: animx render {source} DRIVING --ref-pose {joints}"
            )
        _write(out, found, output, overwrite, origin=found.source.get("origin"), joints=joints)
        return
    found = poses.extract_pose(source, backend=backend, on_progress=out.progress(), **values)
    _write(out, found, output, overwrite, backend=found.source.get("backend"))


@o.command(
    "retarget",
    writes=True,
    examples=(
        "animx pose retarget dance.pose.json --preset short-legs",
        "animx pose retarget dance.pose.json --preset no-arms --set head=1.4 -o toon.npz",
        "animx pose retarget dance.pose.json --reference ref.png -o fitted.pose.json",
        "animx pose retarget dance.pose.json --op fill --op smooth:seconds=0.4 -o calm.pose.json",
    ),
)
@click.argument("source", metavar="POSE")
@click.option("-o", "--output", metavar="POSE", help="Pose file, or - for stdout.  [- if POSE is -, else "
              "POSE.PRESET.pose.json]")  # fmt: skip
@o.retargeting
@click.option("--reference", metavar="IMAGE|POSE", help="Align to the figure of this picture or pose file first.")
@click.option("--backend", metavar="NAME", help="Pose backend for a reference image.  [best installed]")
@click.option(
    "--op",
    "ops",
    multiple=True,
    metavar="NAME[:KEY=VALUE,...]",
    help="Run one more operation at the end: fill, smooth or a plugin's. See: animx plugins",
)
def retarget(
    out: Output,
    source: str,
    output: str | None,
    overwrite: bool,
    presets: tuple[str, ...],
    sets: tuple[str, ...],
    drop: tuple[str, ...],
    add: tuple[str, ...],
    align: Any,
    reference: str | None,
    backend: str | None,
    ops: tuple[str, ...],
) -> None:
    """Change bone lengths, leave out or invent limbs, and fit the poses to a reference.

    The order is always: align, presets as given, --set, --drop and --add, --op.
    """
    from animx import driving
    from animx.pose.formats import writable_kind
    from animx.poses import retarget as retarget_poses

    rescale, dotted = o.split_sets(sets)
    for key in dotted:
        raise UsageError(f"--set {key}: pose retarget has no engine. Use a bone group, as in legs=0.5")
    if source == "-" and reference == "-":
        raise UsageError("'-' is stdin at most once. Name a file for POSE or --reference")
    if output is None and source == "-":
        output = "-"
    if output is None:
        label = driving.stem(presets[-1]) if presets else "retargeted"
        output = f"{driving.stem(source)}.{label}.pose.json"
    if output == "-":
        out.take_stdout("-o -")
    writable_kind(output)
    _check_target(output, overwrite, input=source, reference=reference)
    made = retarget_poses(
        source,
        presets,
        reference,
        align=align,
        rescale=rescale,
        drop=o.words(drop),
        add=o.words(add),
        ops=o.operations(ops),
        backend=backend,
    )
    _write(out, made, output, overwrite)


@o.command(
    "draw",
    writes=True,
    examples=(
        "animx pose draw dance.pose.json",
        "animx pose draw dance.pose.json --over dance.mp4 -o check.mp4",
        "animx pose draw dance.pose.json --frame 12 -o frame.png",
    ),
)
@click.argument("source", metavar="POSE")
@click.option("-o", "--output", metavar="VIDEO|PNG", help="Output video, GIF, picture or frames.  [POSE.drawn.mp4, of "
              "one frame .png]")  # fmt: skip
@click.option("--style", type=o.Choice(("animate-x", "plain")), default="animate-x", metavar="HOW",
              help="animate-x (bit-exact with the released drawing) or plain.  [animate-x]")  # fmt: skip
@click.option("--over", metavar="VIDEO", help="Draw over the frames of this video or picture.")
@click.option("--frame", type=int, metavar="N", help="Draw frame N alone, as a picture.")
@click.option("--person", default="largest", metavar="WHO", help="Whom to draw: largest, first or track:N.  [largest]")
@click.option("--hands/--no-hands", default=True, help="Draw hands.  [hands]")
@click.option("--face/--no-face", default=False, help="Draw the face's points.  [no-face]")
@click.option("--min-score", type=float, default=0.3, metavar="S", help="Leave out joints below this score.  [0.3]")
def draw(out: Output, source: str, output: str | None, overwrite: bool, **values: Any) -> None:
    """Draw poses as pose images: a video, or one picture."""
    from animx import drawing, driving

    if source == "-" and output is None:
        raise UsageError("pose draw -: name the output with -o")
    one = values["frame"] is not None
    target = Path(output) if output is not None else None
    result = drawing.draw(
        source,
        target,
        default=lambda frames: Path(f"{driving.stem(source)}.drawn.{'png' if frames == 1 or one else 'mp4'}"),
        overwrite=overwrite,
        on_progress=out.progress(),
        **values,
    )
    out.say(f"animx: wrote {result.path}: {result.frames} frame{'s' if result.frames > 1 else ''}, {result.canvas} px")
    out.wrote({"output": str(result.path), "frames": result.frames, "size": list(result.canvas.size)}, [result.path])


@o.command(
    "convert",
    writes=True,
    examples=(
        "animx pose convert dance.pose.json dance.npz",
        "animx pose convert openpose_folder/ dance.pose.json",
        "animx pose convert dance.npz keypoints.json --to pose-keypoint",
    ),
)
@click.argument("source", metavar="IN")
@click.argument("output", metavar="OUT")
@click.option("--from", "kind_in", metavar="KIND", help="Format of IN.  [by content]")
@click.option("--to", "kind_out", metavar="KIND", help="Format of OUT: json, npz, openpose, pose-keypoint or coco.  "
              "[by name]")  # fmt: skip
@click.option("--fps", type=o.FPS, metavar="RATE", help="Frame rate of formats that hold none.  [25]")
def convert(
    out: Output, source: str, output: str, overwrite: bool, kind_in: str | None, kind_out: str | None, fps: Any
) -> None:
    """Convert a pose file; what the other format cannot hold is named."""
    from animx.pose.formats import read_poses, write_poses

    if output == "-":
        out.take_stdout("OUT -")
    _check_target(output, overwrite, input=source)
    poses = read_poses(source if source == "-" else Path(source), kind=kind_in)
    if fps is not None:
        import numpy as np

        poses = replace(poses, fps=fps, times=np.arange(poses.frames) / float(fps))
    lost = write_poses(poses, output if output == "-" else Path(output), kind=kind_out, overwrite=overwrite)
    if lost:
        out.warn(f"{output}: this format cannot hold {', '.join(lost)}")
    if output != "-":
        out.say(f"animx: wrote {output}: {_shape(poses)}")
        out.wrote({"output": output, "frames": poses.frames, "persons": poses.persons, "lost": lost}, [output])


@o.command("info", examples=("animx pose info dance.pose.json", "animx pose info dance.npz --json"))
@click.argument("source", metavar="POSE")
def info(out: Output, source: str) -> None:
    """Summarise a pose file."""
    from animx.pose.formats import describe_poses, read_poses

    found = describe_poses(read_poses(source if source == "-" else Path(source)))
    out.result({"file": source, **found}, _lines(found))


def _lines(values: Mapping[str, Any], indent: str = "") -> list[str]:
    """A mapping as aligned lines; mappings inside it are indented, lists of mappings numbered by their place."""
    lines = []
    for key, value in values.items():
        parts = value if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict) else None
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}", *_lines(value, indent + "  ")]
        elif parts is not None:
            for place, part in enumerate(parts):
                lines += [f"{indent}{key} {place}", *_lines(part, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<{18 - len(indent)}} {_shown(value)}")
    return lines


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(one) for one in value) or "-"
    return "-" if value is None or value == {} else str(value)


@o.command("check", examples=("animx pose check dance.pose.json && echo usable",))
@click.argument("source", metavar="POSE")
def check(out: Output, source: str) -> None:
    """Check a pose file; exit 3 with the field's name when it is not valid.

    A valid file whose poses look odd (a jump, a side that swaps) is usable: what to look at is printed, exit 0.
    """
    from animx.pose.formats import check_poses

    found = check_poses(source if source == "-" else Path(source))
    lines = [f"{source}: valid", *(f"look at: {finding}" for finding in found)]
    out.result({"file": source, "valid": True, "findings": found}, lines)


for one in (extract, retarget, draw, convert, info, check):
    pose.add_command(one)
