"""`animx render`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from animx.cli import options as o
from animx.cli.output import Output

ENGINE_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("speed", str, "animate-x: exact, fast or fastest: scheduler, steps and guidance by one word.  [exact]"),
    ("steps", int, "animate-x: denoising steps.  [30, which the released spacing makes 31]"),
    ("guidance", float, "animate-x: guidance scale; 1 = none.  [2.5]"),
    ("scheduler", str, "animate-x: released, ddim, dpm++2m or unipc.  [released]"),
    ("window", int, "animate-x: frames denoised together.  [32, less in little memory]"),
    ("overlap", int, "animate-x: frames that two windows share.  [a quarter of the window, at most 8]"),
    ("model", str, "animate-x: model by name or folder.  [animate-x]"),
    ("device", str, "animate-x: cpu, cuda or cuda:N.  [cuda where there is one]"),
    ("dtype", str, "animate-x: float32, bfloat16 or float16.  [bfloat16 on cuda, float32 on the cpu]"),
    ("vram", float, "animate-x: memory of the device to stay within, in GB.  [what is free]"),
    ("preview", int, "animate-x: first write OUT.preview.mp4 by the puppet, then OUT.preview.png every N steps."),
)
"""Options that only some engines use; shown in the help when an engine besides the puppet is installed."""

RESUME = "animate-x: go on with a broken render of the same job."


def _engine_options(function: Any) -> Any:
    from animx import plugins

    hidden = set(plugins.names("engines")) <= {"puppet"}
    function = click.option(
        "--resume",
        is_flag=True,
        default=None,
        hidden=hidden,
        help="animate-x: go on with a broken render of the same job.",
    )(function)
    for name, kind, line in reversed(ENGINE_OPTIONS):
        function = click.option(f"--{name}", type=kind, hidden=hidden, help=line)(function)
    return function


@o.command(
    "render",
    writes=True,
    examples=(
        "animx render ref.png dance.mp4",
        "animx render ref.png dance.mp4 --preset short-legs --start 2 --duration 5 -o short.mp4",
        "animx render ghost.png dance.mp4 --background transparent -o ghost.webm",
        "animx render ref.png dance.pose.json --driving-video dance.mp4 --side-by-side",
        "animx render ref.png dance.mp4 --dry-run --json",
    ),
)
@click.argument("reference", metavar="REF")
@click.argument("driving", metavar="DRIVING")
@click.option("-o", "--output", metavar="OUT", help="Output: .mp4 .mov .webm .gif .webp, OUT_%05d.png or a folder.  "
              "[REF_DRIVING.mp4]")  # fmt: skip
@click.option("--engine", default="auto", metavar="NAME", help="Engine: auto, puppet or a plugin's.  [auto]")
@o.retargeting
@click.option("--ref-pose", default="auto", metavar="HOW", help="The reference's pose: auto (detect, else fit), fit, "
              "none, or a pose file or joints YAML.  [auto]")  # fmt: skip
@click.option("--mask", metavar="FILE", help="Mask of the figure: white, or opaque, is figure.  [found]")
@o.extraction
@click.option("--hands/--no-hands", default=None, help="Extract hands and face too.  [when the engine uses them]")
@click.option("--driving-video", metavar="FILE", help="The clip that a driving pose file was made from.")
@o.ranges
@click.option("--size", type=o.SIZE, metavar="WxH", help="Output size; 768x keeps the aspect.  [the reference's, at "
              "most 1280]")  # fmt: skip
@click.option("--fit", type=o.Choice(("cover", "contain", "stretch")), default="cover", metavar="HOW",
              help="How the reference fills --size: cover, contain or stretch.  [cover]")  # fmt: skip
@click.option("--background", default="keep", metavar="WHAT", help="keep, blur, transparent, #rrggbb or a picture.  "
              "[keep]")  # fmt: skip
@click.option("--audio/--no-audio", default=True, help="Carry the driving clip's sound over.  [audio]")
@click.option("--seed", type=int, default=0, metavar="N", help="Seed of engines that draw random numbers.  [0]")
@click.option("--side-by-side", is_flag=True, help="Show reference, pose and result beside each other.")
@click.option("--dry-run", is_flag=True, help="Check the inputs and print the plan; write nothing.")
@_engine_options
def render(
    out: Output,
    reference: str,
    driving: str,
    output: str | None,
    overwrite: bool,
    dry_run: bool,
    engine: str,
    presets: tuple[str, ...],
    sets: tuple[str, ...],
    drop: tuple[str, ...],
    add: tuple[str, ...],
    **values: Any,
) -> None:
    """Make the character of the picture REF move like the person of DRIVING.

    DRIVING is a video, a folder of frames, a pose file (- is stdin) or a BVH file. The output gets a side-car
    OUT.json that tells how it was made. Prints the output's path.
    """
    from animx import pipeline

    rescale, dotted = o.split_sets(sets)
    engine_options = {name: values.pop(name) for name in (*(name for name, _, _ in ENGINE_OPTIONS), "resume")}
    engine_options = {name: value for name, value in engine_options.items() if value is not None}
    result = pipeline.render(
        reference,
        driving,
        output,
        overwrite=overwrite,
        dry_run=dry_run,
        on_progress=out.progress(),
        engine=engine,
        presets=presets,
        rescale=rescale,
        drop=o.words(drop),
        add=o.words(add),
        engine_options={**engine_options, **dotted},
        **values,
    )
    data = _describe(result)
    if result.plan is not None:
        out.result(data, _plan_lines(result))
        return
    frames = "1 frame" if result.frames == 1 else f"{result.frames} frames"
    out.say(
        f"animx: wrote {result.path}: {frames}, {result.canvas}, {float(result.fps):g} fps, {result.duration:.2f} s"
    )
    out.wrote(data, [result.path])


def _describe(result: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "output": str(Path(result.path)),
        "side_car": str(result.side_car),
        "frames": result.frames,
        "size": list(result.canvas.size),
        "fps": [result.fps.numerator, result.fps.denominator],
        "duration_s": result.duration,
        "engine": result.engine,
        "engine_reason": result.engine_reason,
        "backend": result.backend,
        "reference_pose": result.reference_pose,
    }
    if result.plan is not None:
        plan = result.plan
        data["dry_run"] = True
        data["plan"] = {
            "engine": plan.engine,
            "frames": plan.frames,
            "windows": plan.windows,
            "memory_mb": round(plan.memory_mb, 1),
            "seconds": round(plan.seconds, 2),
            "notes": list(plan.notes),
        }
    if result.measured:
        data["measured"] = dict(result.measured)
    if result.previews:
        data["previews"] = [str(path) for path in result.previews]
    return {**data, "recipe": dict(result.recipe)}


def _plan_lines(result: Any) -> list[str]:
    plan = result.plan
    return [
        f"would write  {result.path} and {result.side_car.name}",
        f"engine       {result.engine} ({result.engine_reason})",
        f"frames       {plan.frames} in {plan.windows} window(s), {result.canvas} px, {float(result.fps):g} fps",
        f"pose         {result.backend or 'from the pose file'}; the reference's: {result.reference_pose}",
        f"memory       about {plan.memory_mb:.0f} MB",
        f"time         about {plan.seconds:.0f} s",
        *(f"note         {note}" for note in plan.notes),
    ]
