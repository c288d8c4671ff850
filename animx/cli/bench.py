"""`animx bench`: measurements; no speed is printed unless its correctness check passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from animx.cli import Group
from animx.cli import options as o
from animx.cli.count import count
from animx.cli.measure import compare, drift, ops, render, unet
from animx.cli.output import Output


@click.group("bench", cls=Group, context_settings=o.CONTEXT)
def bench() -> None:
    """Measure on this machine. Ratios come first: they can be compared, absolute speeds of a busy machine cannot.

    No speed is printed unless its correctness check passed.
    """


def _show(out: Output, *measured: Any) -> None:
    found = [one.as_json() for one in measured]
    lines = []
    for one in found:
        lines.append(f"{one['bench']}:")
        for kind in ("ratios", "speeds", "checks"):
            for name, value in one[kind].items():
                shown = f"{value:.3g}" if isinstance(value, float) else str(value)
                lines.append(f"  {kind[:-1]:<6} {name:<46} {shown}")
    where = found[0]["machine"]
    lines.append(f"on {where['processor']}, {where['cores']} cores, load {where['load']}, commit {found[0]['commit']}")
    data: dict[str, Any] = found[0] if len(found) == 1 else {"benches": found}
    out.result(data, lines)


@o.command("puppet", examples=("animx bench puppet", "animx bench puppet ref.png dance.mp4 --json"))
@click.argument("reference", metavar="[REF", required=False)
@click.argument("driving", metavar="DRIVING]", required=False)
def puppet(out: Output, reference: str | None, driving: str | None) -> None:
    """Measure the puppet engine against a plain cv2.remap of the same frame.

    With REF and DRIVING (a video) also the whole chain: CPU time of render against pose extraction and encoding alone.
    """
    from animx.bench import bench_chain, bench_puppet
    from animx.errors import UsageError

    if (reference is None) != (driving is None):
        raise UsageError("bench puppet: name both REF and DRIVING, or neither")
    found = [bench_puppet()]
    if reference is not None and driving is not None:
        found.append(bench_chain(Path(reference), Path(driving)))
    _show(out, *found)


@o.command("pose", examples=("animx bench pose dance.mp4", "animx bench pose dance.mp4 --backend mediapipe --json"))
@click.argument("clip", metavar="CLIP")
@click.option("--backend", metavar="NAME", help="Pose backend.  [best installed]")
@click.option("--hands/--no-hands", default=False, help="Extract hands and face too.  [no-hands]")
def pose(out: Output, clip: str, backend: str | None, hands: bool) -> None:
    """Measure pose extraction of CLIP: frames per second and CPU time per frame, against decoding alone."""
    from animx.bench import bench_pose

    _show(out, bench_pose(Path(clip), backend, hands))


@o.command("io", examples=("animx bench io", "animx bench io --frames 240 --json"))
@click.option("--frames", type=click.IntRange(8, 2000), default=96, metavar="N", help="Frames to write and read.  [96]")
def io(out: Output, frames: int) -> None:
    """Measure writing and reading an mp4 of a synthetic clip, and JPG and PNG pictures of its frames."""
    from animx.bench import bench_io

    _show(out, bench_io(frames))


for one in (puppet, pose, io, count, ops, unet, render, drift, compare):
    bench.add_command(one)
