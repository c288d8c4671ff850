"""`animx bench ops|unet|render|drift|compare`: measurements of the full model and its operators."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from animx.cli import options as o
from animx.cli.output import Output

DEVICE = click.option("--device", default=None, metavar="NAME", help="cpu, cuda or cuda:N.  [cuda where there is one]")
DTYPE = click.option("--dtype", type=o.Choice(("float32", "bfloat16", "float16")), default=None, metavar="TYPE",
                     help="Storage.  [bfloat16 on cuda, float32 on the cpu]")  # fmt: skip


def _place(device: str | None, dtype: str | None, command: str) -> dict[str, str]:
    """The device and type to measure with, or why not (exit 2)."""
    from importlib.util import find_spec

    from animx.errors import MissingExtraError

    if any(find_spec(name) is None for name in ("torch", "diffusers", "transformers", "einops")):
        raise MissingExtraError(command, "model")
    from animx.measuring.stage import place

    return place(device, dtype)


def _words(text: str | None) -> list[str]:
    """The names of a list; none where the option was not given."""
    found = [word.strip() for word in (text or "").split(",") if word.strip()]
    if text is not None and not found:
        from animx.errors import UsageError

        raise UsageError(f"'{text}' names nothing. Give names with commas between them, or leave the option out")
    return found


def _finite(option: str, value: float) -> float:
    """A number above 0 that ends; NaN would switch off what it limits."""
    if not (math.isfinite(value) and value > 0):
        from animx.errors import UsageError

        raise UsageError(f"{option} {value:g}: use a number above 0")
    return value


def _end(found: dict[str, Any]) -> str:
    where = found["machine"]
    return (
        f"on {where['device']} ({where['processor']}, {where['cores']} cores, load {where['load']}), "
        f"commit {found['commit']}"
    )


@o.command(
    "ops",
    examples=(
        "animx bench ops",
        "animx bench ops --op motion_attention --providers torch,animx --json",
        "animx bench ops --op selective_scan --base main~5",
        "animx bench ops --tune --op geglu_linear --device cuda",
    ),
)
@click.option("--op", "ops", multiple=True, metavar="NAME", help="Operator; repeatable.  [all]")
@click.option("--providers", metavar="LIST", help="Of reference,torch,compile,animx,library, and "
              "kernel plugins by name.  [all but compile; with --base: animx]")  # fmt: skip
@click.option("--base", metavar="REF", help="Measure the operators of this commit, branch or tag too, in turns.")
@click.option("--shapes", metavar="LIST", help="Of small,claims,official.  [small,claims; on cuda: official]")
@click.option("--check", is_flag=True, help="Check the results only; time nothing.")
@click.option("--tune", is_flag=True, help="Search for the fastest right launch configurations; needs CUDA.")
@click.option("--out", "target", metavar="FILE",
              help="Table that --tune writes.  [$ANIMX_TUNING, else ~/.config/animx/tuning.json]")  # fmt: skip
@click.option("--seconds", type=float, default=0.5, metavar="S", help="Measured time per operator and shape.  [0.5]")
@DEVICE
@DTYPE
def ops(
    out: Output,
    ops: tuple[str, ...],
    providers: str | None,
    base: str | None,
    shapes: str | None,
    check: bool,
    tune: bool,
    target: str | None,
    seconds: float,
    device: str | None,
    dtype: str | None,
) -> None:
    """Measure operators against their reference, PyTorch's own modules and libraries.

    Each result is compared with float64 first, in memory that was full of NaN before; where animx's own is wrong, the
    command ends with exit 1 and no speed is shown. Ratios say how many times the operator's time another way takes.

    With --base, the operators of another commit of this checkout run in a process of their own, from a copy that is
    removed afterwards: base_over_animx above 1 means that today's are faster.

    With --tune, block sizes, warps and stages are searched instead; the best that are right go into a table that every
    later render reads over the shipped one.
    """
    _tune_alone(tune, {"--check": check, "--providers": providers, "--base": base}, target)
    where = _place(device, dtype, "bench ops")
    if tune:
        _tune(out, ops, _words(shapes or "official"), target, _finite("--seconds", seconds), where)
        return
    from animx.measuring.ops import bench_ops

    usual = "official" if where["device"].startswith("cuda") else "small,claims"
    found = bench_ops(
        ops or ("all",),
        _words(providers) or (("reference", "torch", "animx", "library") if base is None else ("animx",)),
        _words(shapes or usual),
        base=base,
        check_only=check,
        seconds=_finite("--seconds", seconds),
        **where,
    )
    lines = [f"{'operator and shape':<58} {'error':>8} {'ms':>9} {'floor':>6}  ratios"]
    for row in found["rows"]:
        own = row.get("times", {}).get("animx")
        timed = f"{own['ms']:>9.3g} {own['share_of_floor']:>6.0%}" if own else f"{'':>9} {'':>6}"
        ratios = "  ".join(f"{name} {value:.2f}" for name, value in row.get("ratios", {}).items())
        name = f"{row['op']} {row['shape']}"
        lines.append(f"{name:<58} {row['errors'].get('animx', float('nan')):>8.1e} {timed}  {ratios}".rstrip())
    missing: dict[tuple[str, str], set[str]] = {}
    for row in found["rows"]:
        for name, why in row["unavailable"].items():
            missing.setdefault((name, why), set()).add(row["op"])
    lines += [f"not there: {name} of {', '.join(sorted(of))}: {why}" for (name, why), of in sorted(missing.items())]
    if found["base"]:
        lines.append(f"base: {base}, commit {found['base']['commit']}")
    if found["kernels"] != "auto":
        lines.append(f"with ANIMX_KERNELS={found['kernels']}")
    if found["ceilings"]:
        top = found["ceilings"]
        lines.append(f"this machine, now: copies {top['copy_gb_s']:g} GB/s, products {top['matmul_tflop_s']:g} TFLOP/s")
    out.result(found, [*lines, _end(found)])


def _tune_alone(tune: bool, others: dict[str, Any], target: str | None) -> None:
    from animx.errors import UsageError

    if target is not None and not tune:
        raise UsageError("--out: only --tune writes a table. Add --tune, or use --json for results")
    given = [name for name, value in others.items() if value]
    if tune and given:
        raise UsageError(f"--tune: {given[0]} does not go with it; it checks animx's own")


def _tune(
    out: Output, ops: tuple[str, ...], shapes: list[str], target: str | None, seconds: float, where: dict[str, str]
) -> None:
    from animx.measuring.tune import bench_tune

    file = None if target is None else Path(target)
    found = bench_tune(ops or ("all",), shapes, device=where["device"], dtype=where["dtype"], seconds=seconds, out=file)
    lines = [f"{'operator, card and shape':<44} {'before':>9} {'ms':>9}  tried  right  configuration"]
    for row in found["rows"]:
        before = "wrong" if row["before_ms"] is None else f"{row['before_ms']:.3g}"
        name, entries = (
            f"{row['op']} {row['card']} {row['key']}",
            ", ".join(f"{k} {v}" for k, v in row["config"].items()),
        )
        right = row["tried"] - sum(row["dropped"].values())
        lines.append(f"{name:<44} {before:>9} {row['ms']:>9.3g} {row['tried']:>6} {right:>6}  {entries}")
    lines.append(f"written: {found['file']}")
    if not found["read"]:
        lines.append(f"to use it: export ANIMX_TUNING={Path(found['file']).absolute()}")
    out.result(found, [*lines, _end(found)])


@o.command("unet", examples=("animx bench unet", "animx bench unet --size official --device cuda --json"))
@click.option("--size", type=o.Choice(("tiny", "official")), default="tiny", metavar="SIZE",
              help="Network: tiny or official.  [tiny]")  # fmt: skip
@click.option("--providers", metavar="LIST", help="Of released,plain,fused,fp8,compile.  [released,plain,fused]")
@click.option(
    "--frames", type=click.IntRange(1, 1024), metavar="N", help="Frames of the window.  [tiny: 4; official: 32]"
)
@click.option("--seconds", type=float, default=3.0, metavar="S", help="Measured time.  [3]")
@DEVICE
@DTYPE
def unet(
    out: Output, size: str, providers: str | None, frames: int | None, seconds: float, device: str | None,
    dtype: str | None,
) -> None:  # fmt: skip
    """Measure a forward pass of the network in its several forms, on random weights.

    Each form's result is compared with the plain network in more digits first.
    """
    where = _place(device, dtype, "bench unet")
    from animx.measuring.unet import bench_unet

    forms = _words(providers) or ("released", "plain", "fused")
    found = bench_unet(size, forms, frames=frames or 0, seconds=_finite("--seconds", seconds), **where)
    lines = [f"{name:<28} {value:.3g}" for name, value in found["ratios"].items()]
    lines += [
        f"{name:<28} {one['ms']:.4g} ms (error {found['errors'][name]:.1e})" for name, one in found["times"].items()
    ]
    lines += [f"not there: {name}: {why}" for name, why in found["unavailable"].items()]
    lines += [f"fp8 is emulated, so its time means nothing: {why}" for why in found["emulated"]]
    out.result(found, [*lines, _end(found)])


@o.command(
    "render",
    examples=(
        "animx bench render --frames 8",
        "animx bench render --speed exact --speed fast,steps=16 --breakdown",
        "animx bench render --rewrites",
    ),
)
@click.option("--speed", "speeds", multiple=True, metavar="HOW", help="exact, fast, fastest, or such as fast,steps=16; "
              "repeatable.  [exact, fast]")  # fmt: skip
@click.option("--frames", type=click.IntRange(2, 4096), metavar="N", help="Frames of the clip.  [16]")
@click.option("--model", metavar="NAME", help="Model by name or folder.  [a tiny one with random weights]")
@click.option("--size", type=o.SIZE, metavar="WxH", help="Size of the frames.  [64x96]")
@click.option("--breakdown", is_flag=True, help="Show the seconds of every stage.")
@click.option("--rewrites", is_flag=True, help="Measure the exact rewrites instead: eight steps of a reduced network.")
@DEVICE
@DTYPE
def render(
    out: Output, speeds: tuple[str, ...], frames: int | None, model: str | None, size: Any, breakdown: bool,
    rewrites: bool, device: str | None, dtype: str | None,
) -> None:  # fmt: skip
    """Measure a whole render of the full model, by stages, and what overlapping them saves.

    The first way is rendered twice, with its stages one after the other and overlapping: the frames must be equal.

    With --rewrites, eight steps of a reduced network (4 frames of 64x64 px, on the CPU) take turns with the operator
    sequence of the released code and with one rewrite less: what each of them contributes.
    """
    if rewrites:
        _rewrites(
            out, {"--speed": speeds, "--model": model, "--breakdown": breakdown, "--device": device, "--dtype": dtype},
            frames, size,
        )  # fmt: skip
        return
    where = _place(device, dtype, "bench render")
    from animx.measuring.render import bench_render

    found = bench_render(speeds or ("exact", "fast"), model=model, frames=frames or 16, size=_canvas(size), **where)
    lines = [f"{name:<40} {value:.3g}" for name, value in found["ratios"].items()]
    for name, row in found["renders"].items():
        lines.append(f"{name}: {row['fps']:g} frames/s, {row['passes_per_window']} passes a window")
        if breakdown:
            stages = {**found["prepared_s"], **row["seconds"]}
            lines += [f"  {stage:<10} {value:.3f} s" for stage, value in stages.items()]
    for name, far in found["drift"].items():
        lines.append(
            f"{name} against the first: latents {far['latents']:.3g}, PSNR {far['psnr_db']} dB, SSIM {far['ssim']}"
        )
    lines.append(f"peak memory {found['peak_memory_mb']:g} MB; {found['weights']}")
    out.result(found, [*lines, _end(found)])


def _rewrites(out: Output, others: dict[str, Any], frames: int | None, size: Any) -> None:
    from animx.errors import UsageError

    given = [name for name, value in others.items() if value and (name, value) != ("--device", "cpu")]
    if given:
        raise UsageError(f"--rewrites: {given[0]} does not go with it; it measures a reduced network on the CPU")
    _place("cpu", "float32", "bench render")
    from animx.measuring import rewrites

    canvas = _canvas(size)
    found = rewrites.bench_rewrites(frames=frames or 4, size=(64, 64) if canvas is None else canvas.size)
    lines = [f"{name:<24} {value:.3g}" for name, value in found["ratios"].items()]
    lines += [f"{name:<24} {value:.3g} s of CPU time" for name, value in found["seconds"].items()]
    out.result(found, [*lines, _end(found)])


@o.command(
    "drift",
    examples=("animx bench drift", "animx bench drift exact fast,steps=16 --model animate-x --device cuda --json"),
)
@click.argument("ways", metavar="[HOW...]", nargs=-1)
@click.option("--frames", type=click.IntRange(1, 4096), default=8, metavar="N", help="Frames of the clip.  [8]")
@click.option("--many", type=click.IntRange(2, 500), default=250, metavar="N",
              help="Steps of the released schedule that stand for the exact solution.  [250]")  # fmt: skip
@click.option("--model", metavar="NAME", help="Model by name or folder.  [a tiny one with random weights]")
@click.option("--size", type=o.SIZE, metavar="WxH", help="Size of the frames.  [64x96]")
@DEVICE
@DTYPE
def drift(
    out: Output, ways: tuple[str, ...], frames: int, many: int, model: str | None, size: Any, device: str | None,
    dtype: str | None,
) -> None:  # fmt: skip
    """Measure how far ways to sample stray from the first one, and each from many steps.

    HOW: exact, fast, fastest, or such as fast,steps=16 (default: all three). Latents are compared after every step, the
    frames by PSNR and SSIM. What 8 bits alone change is shown beside what one more step changes; a device without them
    emulates.
    """
    where = _place(device, dtype, "bench drift")
    from animx.measuring.drift import bench_drift

    found = bench_drift(
        ways or ("exact", "fast", "fastest"),
        model=model,
        frames=frames,
        size=_canvas(size),
        reference_steps=many,
        **where,
    )
    lines = [f"{name:<40} {value:.3g}" for name, value in found["ratios"].items()]
    for title, key in (
        (f"against {(ways or ('exact',))[0]}", "against_first"),
        (f"against {many} steps", "against_many_steps"),
    ):
        for name, far in found[key].items():
            psnr = "equal frames" if far["psnr_db"] is None else f"PSNR {far['psnr_db']} dB, SSIM {far['ssim']}"
            lines.append(f"{name} {title}: latents {far['latents']:.3g}, {psnr}")
    for name, one in found["eight_bit"].items():
        added, more = one["added_by_8_bits"]["latents"], one["one_more_step"]["latents"]
        lines.append(f"{name}: 8 bits change the latents by {added:.3g}, one more step by {more:.3g}")
    lines += [f"8 bits were emulated: {why}" for why in found["emulated"]]
    out.result(found, [*lines, f"measured on {found['weights']}", _end(found)])


def _canvas(size: Any) -> Any:
    from animx.canvas import Canvas
    from animx.errors import UsageError

    if size is None:
        return None
    if None in size:
        raise UsageError("--size: name both sides, such as 64x96")
    return Canvas(*size)


@o.command(
    "compare",
    examples=("animx bench compare old.json new.json", "animx bench compare old.json new.json --fail-below 0.97"),
)
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option("--fail-below", type=click.FloatRange(min=0, min_open=True), metavar="SHARE",
              help="Exit 8 when a ratio kept less than this share of its old value.")  # fmt: skip
def compare(out: Output, old: str, new: str, fail_below: float | None) -> None:
    """Compare two results (--json) of the same measurement, ratio by ratio: 1 = as good as before, less = worse."""
    from animx.bench_compare import compare as run

    found = run(Path(old), Path(new), None if fail_below is None else _finite("--fail-below", fail_below))
    lines = [f"{value:>7.3f}  {name}" for name, value in found["kept"].items()]
    lines += [f"only in {old}: {name}" for name in found["only_old"]]
    lines += [f"only in {new}: {name}" for name in found["only_new"]]
    if not found["same_machine"]:
        lines.append("taken on different machines")
    out.result(found, lines)
