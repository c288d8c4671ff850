"""Every Triton body compiles for three cards that are not here, spills nothing, and takes what the table says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the 'model' extra")

from kernel_gates import environment

from animx_kernels.ahead import CARDS, MOST_SHARED, asked_for
from animx_kernels.dispatch import load_ops

REGISTERS = 16
"""Registers per thread by which a launch may differ from the committed table before it is to be written anew."""

LEAST = dict.fromkeys(
    ("quantise_rows", "linear8", "geglu_linear8", "geglu_rows8", "layer_norm8", "add_layer_norm8"), 89
)
"""Capability from which cards have an operator, where that is not the first of them."""


@pytest.fixture(scope="module")
def compiled(root: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The first part of the table, compiled now, in a process without the interpreter.

    What did not change since the last run is in pytest's cache.
    """
    cache = request.config.cache
    folder = cache.mkdir("triton") if cache else tmp_path_factory.mktemp("triton")
    code = "import json, triton; from animx_kernels.ahead import launches as made\n"
    code += "print(json.dumps({'triton': triton.__version__, 'launches': made()}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=root,
        env={**environment(root), "TRITON_CACHE_DIR": str(folder)},
        stdout=subprocess.PIPE,
    )
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def committed(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "docs" / "benchmarks" / "kernels-aot.json").read_text(encoding="utf-8")))


AGAIN = "write it anew: python -m animx_kernels.ahead docs/benchmarks/kernels-aot.json"


@pytest.mark.slow
def test_every_operator_with_a_body_compiles_for_every_card(compiled: dict[str, Any]) -> None:
    found = {(key.split("/")[0], key.rsplit("_", 1)[1]) for key in compiled["launches"]}
    assert found == {(name, str(card)) for name in load_ops() for card in CARDS
                     if card >= LEAST.get(name, 0)}  # fmt: skip


def fits(key: str, row: dict[str, Any]) -> None:
    card = int(re.findall(r"sm_(\d+)$", key)[0])
    assert row["spilled"] == 0, f"{key} spills {row['spilled']} bytes a thread: smaller blocks or more warps"
    assert row["shared"] <= MOST_SHARED[card], key
    assert row["registers"] * 32 * row["num_warps"] <= 65536, key


@pytest.mark.slow
def test_no_launch_spills_or_asks_for_more_than_a_card_has(compiled: dict[str, Any]) -> None:
    for key, row in compiled["launches"].items():
        fits(key, row)


def test_all_that_the_full_model_asks_for_is_in_the_committed_table_as_it_is_now_and_spills_nothing(
    committed: dict[str, Any],
) -> None:
    """By the fingerprints of what the compiler is given; that the networks ask for no more, their log tells."""
    import triton

    if triton.__version__ != committed["triton"]:
        pytest.skip(f"triton {triton.__version__} here, {committed['triton']} in the table: other fingerprints")
    wanted = {mark: place for mark, place, _, _ in asked_for()}
    assert len(wanted) > 300
    missing = sorted({place for mark, place in wanted.items() if mark not in committed["asked"]})
    assert not missing, f"not compiled as they are now: {', '.join(missing)}; {AGAIN}"
    assert set(committed["asked"]) == set(wanted), AGAIN
    for row in committed["asked"].values():
        fits(row["launch"], row)


def test_a_changed_body_constant_or_card_is_another_fingerprint() -> None:
    from animx_kernels import ahead

    _, _, card, build = next(asked_for((80,)))
    other = build._replace(num_warps=build.num_warps * 2)
    marks = [ahead.fingerprint(build, card), ahead.fingerprint(build, 90), ahead.fingerprint(other, card)]
    body = ahead._bodies
    try:
        ahead._bodies = lambda file: body(file).replace("sqrt_rn", "rsqrt", 1)  # type: ignore[assignment]
        marks.append(ahead.fingerprint(build, card))
    finally:
        ahead._bodies = body
    assert len(set(marks)) == 4


@pytest.mark.slow
def test_the_committed_table_is_what_is_compiled_now(compiled: dict[str, Any], committed: dict[str, Any]) -> None:
    assert set(compiled["launches"]) == set(committed["launches"]), AGAIN
    if compiled["triton"] != committed["triton"]:
        pytest.skip(f"triton {compiled['triton']} here, {committed['triton']} in the table: numbers differ by compiler")
    for key, row in compiled["launches"].items():
        told = committed["launches"][key]
        assert (row["num_warps"], row["num_stages"]) == (told["num_warps"], told["num_stages"]), f"{key}: {AGAIN}"
        assert abs(row["registers"] - told["registers"]) <= REGISTERS, f"{key}: {row} was {told}; {AGAIN}"
        assert row["shared"] == pytest.approx(told["shared"], rel=0.1, abs=1024), f"{key}: {row} was {told}; {AGAIN}"


SIZES_OF_ONE = """
import torch
from animx_kernels import add_layer_norm_triton as l, geglu_triton as g, group_norm_silu_triton as n
from animx_kernels import causal_conv_triton as c
from animx_kernels import guided_step_triton as u, motion_attention_triton as m, selective_scan_triton as s
from animx_kernels import temporal_attention_triton as a, temporal_conv_triton as t
from animx_kernels.ahead import compile_for
from animx_kernels.launch import build, planned

def e(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, device="meta", dtype=dtype)

f = torch.float32
o, x = e(1, 1, 1, 1), e(1)
long = torch.empty(1, device="meta", dtype=torch.int64)
scan = [s._Given((o, o, e(1, 1, dtype=f), *[e(1, 1, 1, 1)] * 2, x, o, x, e(1, k), x), True, False) for k in (1, 4)]
bare = s._Given((o, o, e(1, 1, dtype=f), o, o, x, None, None, None, None), False, False)
slopes = {"du": o, "ddelta": o, "dz": o}
planned = [
    g.plan_geglu(e(1, 2), e(1, 1), 80), g.plan_geglu_backward(e(1, 1), e(1, 2), e(1, 2), 80),
    g.plan_geglu_linear(e(1, 1), e(2, 1), e(2), e(1, 1), 80, False),
    *n.plan(e(1, 1, 1), e(1), e(1), 1, 1e-5, True, None, None, e(1, 1, 2, 1, dtype=f), e(1, 1, 1), 80),
    *planned("group_norm_silu_backward", (e(1, 1, 1), e(1, 1, 1), e(1), e(1), 1, 1e-5), 80),
    l.plan(e(1, 1), e(1, 1), e(1), e(1), e(1, 1), e(1, 1), 1e-5, 80),
    *l.plan_backward(e(1, 1), e(1, 1), e(1), e(1, 1), e(1, 1), e(1, 2, 1, dtype=f), (e(1), e(1)), 1e-5, 80),
    t.plan_conv(e(1, 1, 1, 1), e(1, 1, 3), e(1), e(1, 1, dtype=f), e(1, 1, dtype=f), True, e(1, 1, 1, 1),
                e(1, 1, 1, 1), e(1, 1, 1, 2, dtype=f), 80, False),
    t.plan_sums(e(1, 1, 1, 1), e(1, 1, 1, 2, dtype=f), 80),
    t.plan_affine(e(1, 1, 1, 2, dtype=f), e(1), e(1), e(1, 1, dtype=f), e(1, 1, dtype=f), 1, 1, 1e-5),
    a.plan(a.temporal_attention_kernel, dict.fromkeys("qkv", o), {"out": o}, 1, a._config(o, 1, "", 80), False),
    a.plan(a.temporal_attention_backward_kernel, dict.fromkeys(("grad", *"qkv"), o),
           dict.fromkeys(("dq", "dk", "dv"), o), 1, a._config(o, 1, "_backward", 80), False),
    m.plan(e(1, 1, 1), e(1, 1, 1), e(1, 1), e(1, 1, 1), e(1), e(1, 1, 1), 1, 1e-5, capability=80),
    u.plan(*[e(1, 1, 1, 1, 1)] * 3, e(), e(6), long, e(1, 1), *[e(1, 1, 1, 1, 1)] * 2, 80),
    *(c.plan(o, e(1, k), shift, False, o, 80) for k, shift in ((1, None), (4, x))),
    c.plan_backward(o, o, e(1, 4), x, False, o, e(1, 5, 1, dtype=f), 80),
    *(s.plan(one, o, 80) for one in (*scan, bare)),
    *(s.plan_backward(one, o, slopes, 80)[0] for one in scan),
    s.plan_backward(bare, o, {**slopes, "dz": None}, 80)[0],
]
for launch in planned:
    compile_for(build(launch), 80)
"""


@pytest.mark.slow
@pytest.mark.long
def test_sizes_of_one_are_compiled_in_and_still_compile(root: Path, request: pytest.FixtureRequest) -> None:
    """The launcher makes constants of arguments that are 1; a body must not treat them as run-time numbers."""
    cache = request.config.cache
    folder = {"TRITON_CACHE_DIR": str(cache.mkdir("triton"))} if cache else {}
    subprocess.run([sys.executable, "-c", SIZES_OF_ONE], check=True, cwd=root, env={**environment(root), **folder})


@pytest.mark.slow
def test_the_interpreter_and_the_compiler_are_not_mixed(root: Path) -> None:
    """In a process where Triton interprets, compiling ahead is refused and not silently something else."""
    code = (
        "from animx_kernels import dispatch; from animx_kernels.ahead import rows; import torch\n"
        "assert dispatch.use_triton('geglu', torch.zeros(2, 2))\n"
        "try:\n    next(rows((90,), ('geglu',)))\n"
        "except RuntimeError as error:\n    assert 'interpreter is on' in str(error)\n"
        "else:\n    raise SystemExit('compiled')\n"
    )
    environ = {**environment(root), "ANIMX_KERNELS": "interpret", "HOME": os.environ.get("HOME", str(root))}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=environ)
