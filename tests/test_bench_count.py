"""`animx bench count`: calibrated on the released operators, and gates for ours, at the official size without a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hall import animx

pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

import torch
from counts import counted, heard, looked_at, rows, tiny

from animx.counting import report
from animx.counting.log import Entry
from animx.counting.released import released_velocity
from animx.counting.stacks import STACKS, TINY, Counted, Setting, count, network
from animx.diffusion.tiny import fill
from animx.model.conditions import Inputs
from animx.model.unet import AnimateXUNet


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- the released operators give the published figures -------------------------------------------------------------

PUBLISHED = {
    "conv 3x3": (52, 19.83, 8.1),
    "conv 1x1 skip": (14, 0.89, 2.5),
    "temporal conv": (88, 8.35, 10.1),
    "spatial self-attention": (16, 9.10, 4.6),
    "pose twin self-attention": (16, 9.10, 4.6),
    "cross-attention, context": (16, 0.19, 2.4),
    "cross-attention, motion tokens": (16, 0.01, 2.3),
    "temporal self-attention": (136, 0.18, 10.8),
    "linears spatial": (128, 5.07, 18.5),
    "linears pose twin": (128, 5.07, 18.5),
    "linears temporal": (170, 7.32, 27.1),
    "feed-forward": (98, 24.07, 51.8),
    "cross K/V projections": (64, 0.14, 0.4),
    "GEGLU": (98, 0.0, 72.8),
    "group norm": (182, 0.0, 69.9),
    "silu": (155, 0.0, 32.4),
    "pose and local-image encoders": (56, 0.08, 9.2),
}
"""Operator: (calls, TFLOP, GB) of one conditional forward pass, from the log of the official modules."""

LEVELS = {
    "conv 3x3": (6.84, 6.45, 4.95, 1.59),
    "conv 1x1 skip": (0.29, 0.29, 0.25, 0.06),
    "temporal conv": (2.49, 2.49, 2.49, 0.87),
    "spatial self-attention": (7.97, 1.00, 0.13, 0.0),
    "linears spatial": (1.66, 1.66, 1.66, 0.08),
    "linears temporal": (3.06, 2.08, 2.08, 0.10),
    "feed-forward": (8.75, 7.47, 7.47, 0.38),
}


def unseen(found: Counted) -> list[Entry]:
    """Copies right in front of a group norm, where PyTorch lays a strided input out.  The published log has none."""
    pairs = pairwise(found.forward)
    return [one for one, after in pairs if one.kind == "copy" and after.kind == "group norm"]


def test_the_released_operators_give_the_published_totals() -> None:
    found = counted("released")
    whole = report.total(found.forward)
    assert f"{whole.flops / 1e12:.2f}" == "89.40"
    assert whole.launches == pytest.approx(4380, rel=0.03)
    assert whole.moved / 1e9 == pytest.approx(699, rel=0.03)
    assert rows(found)["casts"].calls == pytest.approx(1523, abs=4)
    # What differs is explained to the last launch: copies that a real GPU makes too.
    hidden = unseen(found)
    assert len(hidden) == 40
    assert whole.launches - len(hidden) == pytest.approx(4380, abs=2)
    assert (whole.moved - sum(one.moved for one in hidden)) / 1e9 == pytest.approx(699, abs=1)
    assert rows(found)["copies: transposes, contiguous, cat"].calls - len(hidden) == pytest.approx(581, rel=0.02)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_released_operators_give_the_published_row(name: str) -> None:
    calls, teraflops, gigabytes = PUBLISHED[name]
    row = rows(counted("released"))[name]
    assert row.calls == calls
    assert round(row.flops / 1e12, 2) == pytest.approx(teraflops, abs=0.005)
    assert row.moved / 1e9 == pytest.approx(gigabytes, abs=0.06)


@pytest.mark.parametrize("name", LEVELS)
def test_levels_share_the_work_as_published(name: str) -> None:
    row = rows(counted("released"))[name]
    for level, teraflops in enumerate(LEVELS[name]):
        assert row.level_flops.get(level, 0) / 1e12 == pytest.approx(teraflops, abs=0.011), level


def test_the_unconditional_branch_gives_the_published_totals() -> None:
    whole = report.total(counted("released", conditional=False).forward)
    assert f"{whole.flops / 1e12:.2f}" == "89.32"
    assert whole.launches == pytest.approx(4323, rel=0.03)
    assert whole.moved / 1e9 == pytest.approx(690, rel=0.03)


GROWTH = {
    "16 frames": ({"frames": 16}, 46.0),
    "64 frames": ({"frames": 64}, 176.4),
    "832x1216": ({"width": 832, "height": 1216}, 303.4),
}
"""By the same log: 512x512 55.6 and 576x1024 147.7 TFLOP; left out here for time."""


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWTH)
def test_work_grows_with_frames_and_size_as_published(name: str) -> None:
    changes, teraflops = GROWTH[name]
    whole = report.total(count(Setting("released", **changes)).forward)  # type: ignore[arg-type]
    assert round(whole.flops / 1e12, 1) == teraflops


@pytest.mark.parametrize("sees", [True, False])
def test_the_released_operators_compute_what_the_network_computes(sees: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    unet = AnimateXUNet.build(TINY, text_length=7).eval()
    fill(unet, generator)
    unet.text = torch.randn(unet.text.shape, generator=generator)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    inputs = Inputs(draw(1, 1, 32), draw(1, 3, 1, 64, 64).expand(-1, -1, 3, -1, -1), draw(1, 3, 4, 64, 64), None,
                    draw(1, 4, 2, 18), draw(1, 4, 32))  # fmt: skip
    inputs = inputs if sees else Inputs()
    x, t = draw(1, 4, 3, 16, 16) - 0.5, torch.tensor([541])
    with torch.no_grad():
        ours = unet(x, t, unet.encode(inputs, frames=3, latent=(16, 16)))
        theirs = released_velocity(unet, x, t, inputs)
    assert ours.abs().mean() > 1e-3
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()


def test_the_committed_figures_are_these_and_the_page_shows_them(root: Path) -> None:
    folder = root / "docs" / "benchmarks"
    stacks = json.loads((folder / "count-2026-11.json").read_text(encoding="utf-8"))["stacks"]
    assert stacks["released"] == report.as_json(counted("released"))
    page = (folder / "README.md").read_text(encoding="utf-8")
    names = {"launches": ".0f", "teraflops": ".2f", "gigabytes": ".1f", "casts": ".0f", "copies": ".0f"}
    for name, form in names.items():
        shown = " | ".join(format(stacks[stack]["figures"][name], form) for stack in STACKS)
        assert f"| {shown} |" in page, name


# ---- gates for ours -------------------------------------------------------------------------------------------------

GATES = {"launches": 1500, "gigabytes": 260, "casts": 0, "copies": 20, "conditions": 0}


@pytest.mark.parametrize("name", GATES)
def test_the_fused_network_stays_within_its_gate(name: str) -> None:
    assert report.figures(counted("animx"))[name] <= GATES[name]


PAPER_GATES = {"launches": 1000, "gigabytes": 190, "casts": 0, "copies": 10, "conditions": 0}
"""Of the paper's network, whose temporal blocks are Mamba."""


@pytest.mark.parametrize("name", PAPER_GATES)
def test_the_fused_network_of_the_paper_stays_within_its_gate(name: str) -> None:
    found = counted("animx", config=network("official", "paper"))
    assert report.figures(found)[name] <= PAPER_GATES[name]
    assert sum(entry.kind == "animx::selective_scan" for entry in found.forward) == 17


@pytest.mark.parametrize("kind", ["release", "in 8 bits", "paper"])
def test_every_launch_that_a_network_asks_for_is_compiled_ahead_of_time(kind: str) -> None:
    """In each storage type, on each card; what the table of compiled launches says of them is another test."""
    from animx_kernels import asked, launch
    from animx_kernels.ahead import CARDS

    changes = {"config": network("official", kind)} if kind == "paper" else {}
    calls = heard("animx", **changes)[1]
    if kind == "in 8 bits":
        calls = tuple(dict.fromkeys(call for call in heard("fp8")[1] if call not in calls))
    assert len(calls) > 30

    def argument(value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, tuple):
            return dtype if value is torch.float16 else value
        shape, strides, own = value
        return torch.empty_strided(shape, strides, dtype=dtype if own == torch.float16 else own, device="meta")

    for capability in CARDS:
        known = {name: {asked.key(one) for one in asked.builds(name, capability)} for name, _ in calls}
        for dtype in asked.TYPES:
            for name, arguments in calls:
                planned = launch.planned(name, [argument(value, dtype) for value in arguments], capability)
                no_such_units = capability < 89 and name.endswith(("linear8", "rows8", "norm8"))
                assert planned or no_such_units, f"{name} has no body for {arguments}"
                for one in planned:
                    found = asked.key(launch.build(one))
                    assert found in known[name], f"add to animx_kernels/asked.py: {name} {dtype} {arguments}"


@pytest.mark.parametrize("name", GATES)
def test_the_network_in_8_bits_stays_within_the_gate_and_moves_less(name: str) -> None:
    exact, eight = (report.figures(counted(stack)) for stack in ("animx", "fp8"))
    assert eight[name] <= GATES[name]
    assert eight["gigabytes"] <= 0.92 * exact["gigabytes"]


def test_the_network_in_8_bits_does_the_same_work() -> None:
    """Four fifths of the large linear layers, and nearly all of the attention among pixels, at the rate of 8 bits."""
    exact, eight = rows(counted("animx")), rows(counted("fp8"))
    for name in ("conv 3x3", "animx::temporal_conv", "animx::temporal_attention", "animx::motion_attention"):
        assert eight[name].flops == exact[name].flops

    def attended(stack: str) -> int:
        kinds = ("attention", "animx::attention8")
        return sum(entry.flops for entry in counted(stack).forward if entry.kind in kinds)

    assert attended("fp8") == attended("animx")
    assert eight["animx::attention8"].flops >= 0.97 * attended("animx")
    in_eight = sum(eight[name].flops for name in ("animx::linear8", "animx::geglu_rows8"))
    linears = [name for name in eight if name.startswith("linears") or name == "feed-forward"]
    assert 0.8 <= in_eight / (in_eight + sum(eight[name].flops for name in linears)) < 1
    card = report.CARDS["H200"]
    least = [report.floor(counted(stack).forward, card)[0] for stack in ("animx", "fp8")]
    assert least[1] < 0.85 * least[0]


def test_fastest_costs_less_than_fast_and_fast_a_quarter_of_exact_at_the_official_size() -> None:
    """By counted work, bytes and least time of a pass, times the passes of a window; in 8 bits and without."""
    from animx.diffusion.options import EngineOptions
    from animx.diffusion.sampler import Guidance
    from animx.diffusion.speed import SPEEDS
    from animx.diffusion.steppers import make_stepper

    assert SPEEDS["fastest"]["linears"] == SPEEDS["fastest"]["attention"] == "auto"

    def cost(speed: str, stack: str) -> tuple[float, float, float]:
        o = EngineOptions.of({"speed": speed})
        guidance = Guidance(o.guidance, o.guidance_start, o.guidance_end, o.guidance_every)
        passes = guidance.passes(len(make_stepper(o.scheduler, o.steps).timesteps))
        whole = report.denoising([(counted(stack), passes)])
        return whole.flops, whole.moved, passes * report.floor(counted(stack).forward, report.CARDS["H200"])[0]

    exact, fast = cost("exact", "animx"), cost("fast", "animx")
    for stack in ("animx", "fp8"):
        fastest = cost("fastest", stack)
        assert all(0 < one <= 0.7 * other for one, other in zip(fastest, fast, strict=True))
    assert all(one <= 0.25 * other for one, other in zip(fast, exact, strict=True))


def test_the_fused_network_computes_less_than_the_released_one() -> None:
    released, ours = (report.figures(counted(stack))["teraflops"] for stack in ("released", "animx"))
    assert 0.97 * released < ours <= (1 - 0.014) * released


def test_the_fused_network_does_all_the_work_that_cannot_be_folded_away() -> None:
    """What must be left: every convolution, and attention between pixels and over slots, to the last FLOP."""
    released, ours = rows(counted("released")), rows(counted("animx"))
    assert ours["conv 3x3"].flops == released["conv 3x3"].flops
    assert ours["animx::temporal_conv"].flops == released["temporal conv"].flops
    assert ours["animx::temporal_attention"].flops == released["temporal self-attention"].flops
    pixels = ("spatial self-attention", "pose twin self-attention", "cross-attention, context")
    mine = sum(entry.flops for entry in counted("animx").forward if entry.kind == "attention")
    assert mine == sum(released[name].flops for name in pixels)


@pytest.mark.parametrize("stack", ["plain", "animx"])
def test_our_networks_cast_nothing_and_prepare_their_conditions(stack: str) -> None:
    found = report.figures(tiny(stack))
    assert (found["conditions"], found["casts"]) == (0, 0)


def test_the_motion_attention_of_the_fused_network_is_folded_before_the_steps() -> None:
    read = {name for entry in tiny("animx").forward for name in entry.weights}
    assert any("down" in name for name in read)
    attended = {name for name in read if "motion.block.cross_attention" in name or "motion.attention." in name}
    assert {name.rsplit("to_", 1)[1] for name in attended} <= {"out.bias"}


def test_no_kernel_of_the_fused_network_has_to_copy_an_operand_first() -> None:
    """A kernel that wants adjacent channels copies what has none, where no log can see it."""
    calls, strided = looked_at()[1:]
    assert calls > 100
    assert strided == []


# ---- the command ----------------------------------------------------------------------------------------------------

SMALL = ("bench", "count", "--size", "tiny", "--frames", "4", "--stack", "released")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts are taken from those the tests above made already."""
    from animx.counting import stacks

    def known_count(setting: Setting) -> Counted:
        found = tiny(setting.stack)
        assert found.setting == setting
        return found

    monkeypatch.setattr(stacks, "count", known_count)


def test_the_command_counts_and_comes_to_the_same_every_time() -> None:
    found = animx(*SMALL, "--json").json
    assert {name: found[name] for name in report.as_json(tiny("released"))} == report.as_json(tiny("released"))


@pytest.mark.usefixtures("known")
def test_the_command_prints_a_table_and_json() -> None:
    lines = animx(*SMALL).out.splitlines()
    assert lines[0].startswith("released: one forward pass of 4 + 1 frames at 64x64")
    assert any(line.startswith("total") for line in lines)
    assert sum(line.startswith("predicted least on") for line in lines) == len(report.CARDS)
    both = animx(*SMALL[:-1], "all", "--json").json
    assert list(both["stacks"]) == ["released", "plain", "animx", "fp8"]
    ours, theirs = (both["stacks"][name]["figures"]["launches"] for name in ("animx", "released"))
    assert both["ratios"]["launches"] == pytest.approx(ours / theirs, abs=1e-4)
    found = animx(*SMALL, "--json").json
    assert found["bench"] == "count"
    assert found["size"] == "tiny"
    assert set(found["figures"]) == {"launches", "teraflops", "gigabytes", "casts", "copies", "conditions"}
    assert sum(row["launches"] for row in found["rows"].values()) == found["figures"]["launches"]
    assert set(found["predicted_least_ms"]) == set(report.CARDS)


@pytest.mark.usefixtures("known")
def test_a_figure_above_its_limit_fails_and_is_named() -> None:
    ran = animx(*SMALL, "--fail-above", "launches=100000", "--fail-above", "casts=10")
    assert ran.code == 1
    assert ran.out == ""
    assert "casts" in ran.error
    assert "at most 10" in ran.error
    assert "launches" not in ran.error


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--fail-above", "launch=3"), "Did you mean 'launches'?"),
        (("--fail-above", "casts=many"), "casts=100"),
        (("--fail-above", "casts=nan"), "casts=100"),
        (("--frames", "64", "--stack", "animx"), "Use at most 63, or --stack plain"),
        (("--res", "60x64"), "multiples of 64"),
        (("--frames", "0"), "--frames 0"),
        (("--batch", "0"), "--batch 0"),
        (("--variant", "paper"), "Use --stack plain, animx or fp8"),
    ],
)
def test_a_wrong_option_is_refused_with_its_mend(given: tuple[str, ...], said: str) -> None:
    ran = animx(*SMALL, *given)
    assert ran.code == 2
    assert said in ran.error
