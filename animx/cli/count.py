"""`animx bench count`: what a forward pass would launch on a GPU, counted without one."""

from __future__ import annotations

from typing import Any

import click

from animx.cli import options as o
from animx.cli.output import Output

FIGURES = ("launches", "teraflops", "gigabytes", "casts", "copies", "conditions", "waits")


@o.command(
    "count",
    examples=(
        "animx bench count",
        "animx bench count --stack released --json",
        "animx bench count --fail-above launches=1500 --fail-above gigabytes=260",
    ),
)
@click.option(
    "--stack",
    type=click.Choice(("released", "plain", "animx")),
    default="animx",
    help="Operators of the released code, of the plain network, or of the fused one.  [animx]",
)
@click.option("--size", type=click.Choice(("official", "tiny")), default="official", help="Network.  [official]")
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
    from animx.bench import CheckError, commit
    from animx.counting import report
    from animx.counting.stacks import SIZES, Setting
    from animx.counting.stacks import count as run
    from animx.times import parse_size

    network, (width, height) = SIZES[size]
    if res is not None:
        given = parse_size(res, "--res")
        width, height = given[0] or width, given[1] or height
    setting = Setting(stack, frames, width, height, batch, not unconditional, network)
    counted = run(setting)
    data: dict[str, Any] = {"bench": "count", "size": size, **report.as_json(counted)}
    lines = report.lines(counted)
    if parts:
        data["parts"], more = report.parts(frames, width, height)
        lines += more
    found = report.figures(counted)
    over = [f"{name} {found[name]:g} (at most {most:g})" for name, most in limits.items() if found[name] > most]
    if over:
        raise CheckError(f"bench count: {', '.join(over)}. See the tables: animx bench count --stack {stack}")
    out.result({**data, "commit": commit()}, lines)


def _limit(text: str) -> tuple[str, float]:
    """`launches=1500` as a pair."""
    from animx.errors import UsageError, nearest

    name, _, value = text.partition("=")
    if name not in FIGURES:
        raise UsageError(f"--fail-above {text}: unknown figure '{name}'.{nearest(name, FIGURES)} See --help")
    try:
        return name, float(value)
    except ValueError:
        raise UsageError(f"--fail-above {text}: use a number, as in {name}=100") from None


def _ready() -> None:
    from importlib.util import find_spec

    from animx.errors import MissingExtraError

    if any(find_spec(name) is None for name in ("torch", "diffusers", "transformers", "einops")):
        raise MissingExtraError("bench count", "model")
