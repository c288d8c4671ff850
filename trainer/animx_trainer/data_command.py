"""`animx data`: prepare videos for training, make a pose pool, look at augmentations, measure the loader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from animx.cli import Group, Terminated
from animx.cli import options as o
from animx.cli.output import Output
from animx.errors import UsageError


@click.group("data", cls=Group, context_settings=o.CONTEXT)
def data() -> None:
    """Make and look at training data.

    prepare turns videos into checked clips, synth draws clips of characters that dance, pool collects anchor poses,
    preview draws what training does to poses, bench measures how fast samples come.
    """


@contextmanager
def _resumable() -> Iterator[None]:
    """Let a stop say what is left: these commands keep what is done."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        word = "terminated" if isinstance(stop, Terminated) else "interrupted"
        raise type(stop)(f"{word}; what is done is kept. The same command goes on there") from stop


@o.command(
    "prepare",
    writes=True,
    examples=(
        "animx data prepare dances/ -o clips",
        "animx data prepare dances/ -o clips --workers 8 --encode animate-x",
    ),
)
@click.argument("videos", metavar="VIDEOS...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="DIR", required=True, help="Folder of the clips.")
@click.option("--format", "kind", type=o.Choice(("shards", "folder")), default="shards", metavar="HOW",
              help="shards (webdataset tars) or folder (one a clip).  [shards]")  # fmt: skip
@click.option("--size", type=o.SIZE, default=None, metavar="WxH", help="Size of the clips.  [512x768]")
@click.option("--fps", type=o.FPS, metavar="RATE", help="Frame rate of the clips.  [the video's own]")
@click.option("--workers", type=click.IntRange(1, 256), default=1, metavar="N", help="Videos at a time.  [1]")
@click.option("--backend", metavar="NAME", help="Pose backend.  [best installed; see: animx doctor]")
@click.option("--encode", default=None, metavar="MODEL", help="Also store latents and image vectors of this model.")
@click.option("--device", default="auto", metavar="NAME", help="Where --encode computes: auto, cpu, cuda.  [auto]")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE",
              help="A check or another field: checks.min_frames=48, quality=90, shard_mb=256.")  # fmt: skip
def prepare(
    out: Output,
    videos: tuple[str, ...],
    output: str,
    overwrite: bool,
    kind: str,
    size: tuple[int, int] | None,
    fps: Any,
    workers: int,
    backend: str | None,
    encode: str | None,
    device: str,
    sets: tuple[str, ...],
) -> None:
    """Turn VIDEOS (files or folders) into clips for training.

    Finds cuts, extracts poses, keeps the frames that show one whole moving person, and reports what was dropped.
    Stopped in any way, the same command goes on where it was.
    """
    from animx.config import apply_overrides, build
    from animx_trainer.prepare import PrepareOptions
    from animx_trainer.prepare import prepare as run

    given: dict[str, Any] = {"format": kind, "encode": encode or "", "cutting": {}}
    cutting: dict[str, Any] = {"size": list(size) if size else None, "fps": float(fps) if fps else None,
                               "backend": backend}  # fmt: skip
    given["cutting"] = {name: value for name, value in cutting.items() if value is not None}
    own = ("format", "shard_mb", "encode", "cutting")
    spelled = [text if text.split("=")[0].split(".")[0] in own else f"cutting.{text}" for text in sets]
    options = build(PrepareOptions, apply_overrides(given, spelled), "--set", error=UsageError)
    with _resumable():
        report = run(videos, output, options, workers=workers, overwrite=overwrite, device=device,
                     on_progress=out.progress())  # fmt: skip
    out.say(f"animx: wrote {output}: {report['clips']} clips, {report['frames']} of {report['frames_read']} frames of "
            f"{report['videos']} videos; the report: {output}/report.json")  # fmt: skip
    for reason, count in report["dropped"].items():
        out.say(f"animx: dropped {count} x {reason}")
    short = {name: value for name, value in report.items() if name != "per_video"}
    out.wrote({"output": output, "report": f"{output}/report.json", **short}, [output])


@o.command(
    "synth",
    writes=True,
    examples=(
        "animx data synth -o drawn -N 1000 --size 128x128 --frames 24",
        "animx data synth -o drawn -N 20 --format mp4 --families animal,robot --seed 7",
    ),
)
@click.option("-o", "--output", metavar="DIR", required=True, help="Folder of the clips.")
@click.option("-N", "--count", type=click.IntRange(1, 10_000_000), default=100, metavar="N", help="Clips.  [100]")
@click.option("--size", type=o.SIZE, default=None, metavar="WxH", help="Size of the clips.  [512x768]")
@click.option("--frames", type=click.IntRange(1, 100_000), default=48, metavar="N", help="Frames of each.  [48]")
@click.option("--fps", type=o.FPS, default="12", metavar="RATE", help="Frame rate.  [12]")
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Which clips.  [0]")
@click.option("--format", "kind", type=o.Choice(("shards", "folder", "mp4")), default="shards", metavar="HOW",
              help="shards (webdataset tars), folder (one a clip), mp4 (videos with poses).  [shards]")  # fmt: skip
@click.option("--families", metavar="NAME,...", help="Kinds of bodies: person, animal, blob, bottle, ...  [all]")
@click.option("--device", default="cpu", metavar="NAME", help="Where to draw: cpu, cuda.  [cpu]")
def synth(
    out: Output,
    output: str,
    overwrite: bool,
    count: int,
    size: tuple[int, int] | None,
    frames: int,
    fps: Any,
    seed: int,
    kind: str,
    families: str | None,
    device: str,
) -> None:
    """Draw N clips of characters that dance, with true poses, masks and part labels.

    A clip depends on its number and the seed alone.  Stopped in any way, the same command goes on where it was.
    """
    from animx.config import build
    from animx_trainer.synth_files import SynthFiles, draw_files

    given: dict[str, Any] = {"clips": count, "frames": frames, "fps": float(fps), "seed": seed, "format": kind}
    if size:
        given["size"] = list(size)
    if families:
        given["families"] = [name.strip() for name in families.split(",")]
    options = build(SynthFiles, given, "animx data synth", error=UsageError)
    with _resumable():
        report = draw_files(output, options, overwrite=overwrite, device=device, on_progress=out.progress())
    out.say(f"animx: wrote {output}: {report['clips']} clips, {report['frames']} frames")
    out.wrote({"output": output, **report}, [output])


@o.command(
    "pool",
    writes=True,
    examples=("animx data pool poses/ -o pool.npz", "animx data pool poses/ dance.pose.json -o pool.npz --count 500"),
)
@click.argument("poses", metavar="POSES...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="POSE", required=True, help="The pool, a pose file.")
@click.option("--count", type=click.IntRange(1, 1_000_000), default=1000, metavar="N", help="Most anchors.  [1000]")
@click.option("--size", type=o.SIZE, default=None, metavar="WxH", help="Canvas of the anchors.  [512x768]")
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Which frames are drawn.  [0]")
def pool(
    out: Output,
    poses: tuple[str, ...],
    output: str,
    overwrite: bool,
    count: int,
    size: tuple[int, int] | None,
    seed: int,
) -> None:
    """Collect anchor poses for realignment from pose files and folders of them.

    Every file gives frames in turn, upright figures only, until there are enough; the seed decides which.
    """
    from animx.atomic import check_target
    from animx.canvas import Canvas
    from animx.driving import check_apart
    from animx.pose.formats import write_poses
    from animx_trainer.pool import TRAINING, build_pool, pose_files

    check_target(output, overwrite)
    for one in pose_files(poses):
        check_apart(output, {"pose file": one})
    shown = out.progress()
    canvas = Canvas(*size) if size else TRAINING
    made, report = build_pool(poses, count, seed, canvas, lambda done, total: shown("poses", done, total))
    write_poses(made.poses, output, overwrite=overwrite)
    unused = [row for row in report if not row["usable"]]
    for row in unused:
        out.warn(f"{row['file']}: {'skipped' if row['error'] else 'no anchor in it'}: {row['why']}")
    skipped = sum(row["error"] for row in report)
    told = f"; {skipped} {'file' if skipped == 1 else 'files'} skipped" if skipped else ""
    out.say(f"animx: wrote {output}: {len(made)} anchors from {len(report) - len(unused)} files{told}")
    out.wrote({"output": output, "anchors": len(made), "skipped": skipped, "files": report}, [output])


@o.command(
    "preview",
    writes=True,
    examples=(
        "animx data preview dance.pose.json -o sheet.png",
        "animx data preview dance.mp4 --pool pool.npz --epi epi-misaligned -N 20",
    ),
)
@click.argument("clip", metavar="CLIP")
@click.option("-o", "--output", metavar="PNG", default="augmentations.png", help="Contact sheet.  [augmentations.png]")
@click.option("-N", "--count", type=click.IntRange(1, 200), default=14, metavar="N", help="Augmentations.  [14]")
@click.option("--epi", "name", default="epi", metavar="NAME|FILE", help="Preset of the augmentation.  [epi]")
@click.option("--pool", "pool_file", metavar="POSE", help="Pose pool.  [anchors from CLIP itself]")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A field of it: probability=1, without=[drop].")
@click.option("--size", type=o.SIZE, default=None, metavar="WxH", help="Training canvas.  [512x768]")
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Which augmentations.  [0]")
@click.option("--frames", type=click.IntRange(1, 24), default=4, metavar="N", help="Moments of each.  [4]")
def preview(
    out: Output,
    clip: str,
    output: str,
    overwrite: bool,
    count: int,
    name: str,
    pool_file: str | None,
    sets: tuple[str, ...],
    size: tuple[int, int] | None,
    seed: int,
    frames: int,
) -> None:
    """Draw N augmentations of CLIP (a video or a pose file) into a contact sheet."""
    from animx.atomic import check_target
    from animx.canvas import Canvas
    from animx.driving import check_apart, open_driving
    from animx.image import write_picture
    from animx.pose.select import select_person
    from animx_trainer.pool import TRAINING, load_pool, pool_of
    from animx_trainer.pose_augment import Epi, load_epi
    from animx_trainer.preview import augmentation_sheet

    check_target(output, overwrite)
    check_apart(output, {"clip": clip, "pool": pool_file})
    config = load_epi(name, sets)
    drive = open_driving(clip)
    if drive.poses is None:
        from animx.poses import extract_pose

        poses = extract_pose(clip, on_progress=out.progress())
    else:
        poses = select_person(drive.poses)
    canvas = Canvas(*size) if size else TRAINING
    anchors = load_pool(pool_file) if pool_file else pool_of(poses, canvas)
    sheet, choices = augmentation_sheet(poses, Epi(config, anchors, canvas), count, seed, frames=frames)
    write_picture(output, sheet, overwrite=overwrite)
    out.say(f"animx: wrote {output}: {count} augmentations, {sheet.shape[1]}x{sheet.shape[0]} px")
    out.wrote({"output": output, "augmentations": [one.name for one in choices]}, [output])


@o.command(
    "bench",
    examples=("animx data bench", "animx data bench clips --size 512x768 --frames 32 --workers 8 --step-ms 900 --json"),
)
@click.argument("clips", metavar="[CLIPS]", required=False)
@click.option("--batch", type=click.IntRange(1, 4096), default=4, metavar="N", help="Samples a step.  [4]")
@click.option("--frames", type=click.IntRange(1, 1024), default=16, metavar="N", help="Frames of a sample.  [16]")
@click.option("--size", type=o.SIZE, default="128x128", metavar="WxH", help="Size of the samples.  [128x128]")
@click.option("--workers", type=click.IntRange(1, 256), default=2, metavar="N", help="Processes of the loader.  [2]")
@click.option("--step-ms", type=click.FloatRange(0, 60_000), default=50.0, metavar="MS",
              help="What the consumer takes for a step.  [50]")  # fmt: skip
@click.option("--steps", type=click.IntRange(4, 100_000), default=100, metavar="N", help="Steps to time.  [100]")
def bench(
    out: Output,
    clips: str | None,
    batch: int,
    frames: int,
    size: tuple[int, int],
    workers: int,
    step_ms: float,
    steps: int,
) -> None:
    """Measure what samples cost, and whether the loader keeps a consumer fed that takes some time for each step.

    CLIPS is a folder of prepared clips; without it some are drawn.  No speed is printed unless its check passed.
    """
    import tempfile
    from pathlib import Path

    from animx_trainer.data_bench import Feed
    from animx_trainer.data_bench import bench as run

    feed = Feed(batch, workers, step_ms / 1000, steps)
    with tempfile.TemporaryDirectory() as scratch:
        found = run(clips, Path(scratch), feed, size, frames, out.progress()).as_json()
    settings = {"clips": clips, "batch": batch, "frames": frames, "size": list(size), "workers": workers,
                "step_ms": step_ms, "steps": steps}  # fmt: skip
    lines = []
    for kind in ("ratios", "speeds", "checks"):
        lines += [f"{kind[:-1]:<6} {name:<40} {value:.4g}" for name, value in found[kind].items()]
    where = found["machine"]
    lines.append(f"on {where['processor']}, {where['cores']} cores, load {where['load']}, commit {found['commit']}")
    lines.append(f"the consumer of {step_ms:g} ms a step waits {found['ratios']['waiting']:.1%} of its time")
    out.result({**found, "settings": settings}, lines)


for one in (prepare, synth, pool, preview, bench):
    data.add_command(one)
