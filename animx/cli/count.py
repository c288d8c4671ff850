"""`animx bench count`: what a forward pass would launch on a GPU, counted without one."""

from __future__ import annotations

import math
from typing import Any

import click

from animx.cli import options as o
from animx.cli.output import Output

FIGURES = ("launches", "teraflops", "gigabytes", "casts", "copies", "conditions")


@o.command(
    "count",
    examples=(
        "animx bench count",
        "animx bench count --stack all --parts --json",
        "animx bench count --fail-above launches=1500 --fail-above gigabytes=260",
    ),
)
@click.option(
    "--stack",
    type=click.Choice(("released", "plain", "animx", "fp8", "all")),
    default="animx",
    help="Operators of the released code, of the plain network, of the fused one, of that in 8 bits, or all side by "
    "side.  [animx]",
)
@click.option("--variant", type=click.Choice(("release", "paper")), default="release", help="Network.  [release]")
@click.option("--size", type=click.Choice(("official", "tiny")), default="official", help="Its size.  [official]")
@click.option("--frames", type=int, default=32, metavar="N", help="Frames of the window.  [32]")
@click.option("--res", default=None, metavar="WxH", help="Size of the frames.  [512x768; tiny: 64x64]")
@click.option("--batch", type=int, default=1, metavar="N", help="Windows at once.  [1]")
@click.option("--unconditional", is_flag=True, help="The branch of the guidance that sees no conditions.")
@click.option("--parts", is_flag=True, help="Count the picture codec and the image encoder too.")
@click.option(
    "--fail-above",
    multiple=True,
    metavar="NAME=VALUE",
    help=f"Exit 1 when a figure is above VALUE; repeatable. Figures: {', '.join(FIGURES)}.",
)
def count(
    out: Output,
    stack: Any,
    variant: str,
    size: str,
    frames: int,
    res: str | None,
    batch: int,
    unconditional: bool,
    parts: bool,
    fail_above: tuple[str, ...],
) -> None:
    """Count what one forward pass of the full model launches, computes and moves on a GPU.

    Nothing is run: no GPU and no weights are needed, and the same command gives the same figures on every machine.
    Times are bounds reckoned from them (predicted), not measurements.
    """
    limits = dict(map(_limit, fail_above))
    _ready()
    from animx.bench import CheckError, commit, machine
    from animx.counting import report, stacks
    from animx.times import parse_size

    width, height = stacks.SIZES[size][1]
    if res is not None:
        given = parse_size(res, "--res")
        width, height = given[0] or width, given[1] or height
    names: list[Any] = list(stacks.STACKS) if stack == "all" else [stack]
    network = stacks.network(size, variant)
    settings = [stacks.Setting(name, frames, width, height, batch, not unconditional, network) for name in names]
    counted = [stacks.count(setting) for setting in settings]
    ours = next(one for one in counted if one.setting.stack == ("animx" if stack == "all" else stack))
    found = report.figures(ours)
    over = [f"{name} {found[name]:g} (at most {most:g})" for name, most in limits.items() if found[name] > most]
    if over:
        raise CheckError(
            f"bench count: {', '.join(over)}. See the tables: animx bench count --stack {ours.setting.stack}"
        )
    data: dict[str, Any] = {"bench": "count", "size": size, "variant": variant}
    lines: list[str] = []
    if len(counted) > 1:
        data["ratios"] = report.against(ours, counted[0])
        data["ratios_fp8"] = report.against(counted[-1], counted[0])
        for name in ("ratios", "ratios_fp8"):
            told = ", ".join(f"{figure} {share:.3f}" for figure, share in data[name].items())
            lines.append(f"{'fp8' if name == 'ratios_fp8' else 'animx'} / released: {told}")
        lines.append("")
        data["stacks"] = {one.setting.stack: report.as_json(one) for one in counted}
    else:
        data |= report.as_json(ours)
    for one in counted:
        lines += [*report.lines(one), ""]
    if parts:
        data["parts"], more = report.parts(frames, width, height)
        lines += more
    out.result({**data, "machine": machine(), "commit": commit()}, lines[:-1] if lines[-1] == "" else lines)


def _limit(text: str) -> tuple[str, float]:
    """`launches=1500` as a pair."""
    from animx.errors import UsageError, nearest

    name, _, value = text.partition("=")
    if name not in FIGURES:
        raise UsageError(f"--fail-above {text}: unknown figure '{name}'.{nearest(name, FIGURES)} See --help")
    try:
        most = float(value)
    except ValueError:
        most = math.nan
    if not math.isfinite(most):  # nothing is above NaN: such a gate would never fail
        raise UsageError(f"--fail-above {text}: use a number, as in {name}=100")
    return name, most


def _ready() -> None:
    from importlib.util import find_spec

    from animx.errors import MissingExtraError

    if any(find_spec(name) is None for name in ("torch", "diffusers", "transformers", "einops")):
        raise MissingExtraError("bench count", "model")
