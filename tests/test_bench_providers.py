"""Other ways to compute an operator, and plugins that stand in for one: checked first, named where they fail."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hall import animx, installed, make_package, refused

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from torch.nn import functional as F  # noqa: E402
from wet import Stage  # noqa: E402

from animx import kernel_plugins  # noqa: E402
from animx.cli import explain  # noqa: E402
from animx.errors import UsageError  # noqa: E402
from animx.measuring import libraries  # noqa: E402
from animx.measuring import ops as measured_ops  # noqa: E402
from animx.measuring.subjects import several, widened  # noqa: E402
from animx_kernels import providers  # noqa: E402
from animx_kernels.dispatch import Op, load_ops  # noqa: E402
from animx_kernels.geglu import geglu  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checked(*arguments: object) -> dict[str, Any]:
    """`bench ops --check` on small shapes of one operator: its rows."""
    found = animx("bench", "ops", "--check", "--shapes", "small", "--device", "cpu", "--json", *arguments).json
    return {row["shape"]: row for row in found["rows"]}


# ---- torch.compile ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_reference_is_compiled_into_one_graph_and_measured() -> None:
    found = measured_ops.bench_ops(["geglu"], ["compile", "animx"], ["small"], seconds=0.01)
    for row in found["rows"]:
        assert row["errors"]["compile"] <= 1e-5
        assert row["times"]["compile"]["ms"] > 0
        assert row["ratios"]["compile"] > 0
    assert len(found["rows"]) == 3


def test_a_graph_that_does_not_compile_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    load_ops()
    from dataclasses import replace

    from animx_kernels.dispatch import OPS

    right = OPS["geglu"].reference

    def looking(x: Any) -> Any:
        return right(x) if float(x.sum()) > -1e30 else x  # what a graph cannot hold: a number of the data decides

    monkeypatch.setitem(OPS, "geglu", replace(OPS["geglu"], reference=looking))
    row = checked("--op", "geglu", "--providers", "compile,animx")["small"]
    assert set(row["errors"]) == {"animx"}
    assert "data-dependent" in row["unavailable"]["compile"]


# ---- libraries ----------------------------------------------------------------------------------------------------


def mamba_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):  # type: ignore[no-untyped-def]
    """What mamba_ssm documents: u, delta, z (batch, E, L), A (E, N), B, C (batch, N, L); spelled out over time."""
    batch, width, length = u.shape
    states = A.shape[1]
    assert delta.shape == u.shape
    assert A.shape == (width, states)
    assert B.shape == C.shape == (batch, states, length)
    assert all(x is None or x.shape == (width,) for x in (D, delta_bias))
    assert all(x is None or x.dtype == torch.float32 for x in (A, D, delta_bias))
    step = delta if delta_bias is None else delta + delta_bias[:, None]
    step = F.softplus(step) if delta_softplus else step
    h, found = u.new_zeros(batch, width, states), []
    for t in range(length):
        h = torch.exp(step[:, :, t, None] * A) * h + (step[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        found.append((h * C[:, None, :, t]).sum(-1))
    y = torch.stack(found, -1) + D[:, None] * u
    return y if z is None else y * F.silu(z)


def conv1d(x, weight, bias=None, activation=None):  # type: ignore[no-untyped-def]
    """What causal_conv1d documents: x (batch, E, L), weight (E, taps)."""
    assert weight.shape[0] == x.shape[1]
    assert activation == "silu"
    return libraries._convolved(x, weight, bias, activation)


@pytest.fixture
def mamba(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for mamba_ssm and causal_conv1d that hold their callers to the documented shapes; what was called."""
    calls: list[str] = []

    def put(name: str, **functions: Any) -> None:
        module = ModuleType(name)
        module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec(name, None)
        for key, function in functions.items():
            setattr(module, key, lambda *a, key=key, function=function, **k: calls.append(key) or function(*a, **k))
        monkeypatch.setitem(sys.modules, name, module)

    put("mamba_ssm")
    put("mamba_ssm.ops")
    put("mamba_ssm.ops.selective_scan_interface", selective_scan_fn=mamba_scan)
    put("causal_conv1d", causal_conv1d_fn=conv1d)
    return calls


def test_mamba_ssm_is_called_as_documented_and_agrees_with_the_operator(mamba: list[str]) -> None:
    op = load_ops()["selective_scan"]
    library = libraries.LIBRARIES[op.name]
    assert library.missing(torch.device("cuda")) is None
    assert library.missing(torch.device("cpu")) == "mamba-ssm runs on CUDA only"
    names = ("L=1", "L=2", "L=33", "odd, batch of 2", "one direction", "bare")
    for name in names:
        inputs = op.cases()[name].make("cpu", torch.float32, 0)
        assert library.prepare is not None
        made = library.prepare(*providers.arguments_of(op.name, *inputs))
        assert isinstance(made, libraries.Way)
        wide = widened(inputs)
        assert torch.allclose(made.back(made.call()).double(), op.reference(*wide.args), rtol=1e-4, atol=1e-5), name
    assert mamba.count("selective_scan_fn") == 3 * 2 + 3  # three of them run in both directions of time
    assert mamba.count("causal_conv1d_fn") == 3 * 2 + 2  # the last has no convolution


def test_causal_conv1d_is_called_as_documented_and_agrees_with_the_operator(mamba: list[str]) -> None:
    op, library = load_ops()["causal_conv_silu"], libraries.LIBRARIES["causal_conv_silu"]
    assert library.prepare is not None
    for name, case in op.cases().items():
        if case.official:
            continue
        inputs = case.make("cpu", torch.float32, 0)
        made = library.prepare(*providers.arguments_of(op.name, *inputs))
        if isinstance(made, str):
            assert made == f"causal-conv1d has no {inputs.args[1].shape[1]} taps"
            continue
        wide = widened(inputs)
        assert torch.allclose(made.back(made.call()).double(), op.reference(*wide.args), rtol=1e-4, atol=1e-5), name
    assert len(mamba) >= 2 * 6 + 1


def test_pytorchs_own_8_bit_product_stands_beside_ours_where_it_takes_the_rows() -> None:
    rows = checked("--op", "linear8", "--providers", "library,animx", "--dtype", "bfloat16")
    assert rows["small"]["errors"]["library"] <= 1.6e-2
    assert "one scale a row" in rows["stretches"]["unavailable"]["library"]


def test_a_library_that_is_not_installed_is_named_with_the_line_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None)
    for operator, words in (
        ("selective_scan", ("mamba-ssm is not installed", "pip install --no-build-isolation 'animx[mamba]'")),
        ("geglu", ("liger-kernel", "another function")),
        ("guided_step", ("no library",)),
    ):
        case = next(case for case in load_ops()[operator].cases().values() if not case.official)
        inputs = case.make("cpu", torch.float32, 0)
        told = libraries.way(operator, inputs, torch.device("cuda"))
        assert isinstance(told, str)
        assert all(word in told for word in words)


def test_attention_of_pytorch_stands_beside_ours_in_its_own_layout() -> None:
    for shape, row in checked("--op", "temporal_attention", "--providers", "library,animx").items():
        assert row["errors"]["library"] <= 1e-5, shape


# ---- plugins ------------------------------------------------------------------------------------------------------

BAD = """
import torch

class Made:
    def __init__(self, operator, call):
        self.operator, self.made = operator, call
    def supports(self, device, dtype, shapes):
        return True
    def call(self, *arguments):
        return self.made(*arguments)

def fail(x):
    raise RuntimeError("no such\\nthing")

wrong = Made("geglu", lambda x: x[..., : x.shape[-1] // 2].contiguous())
shaped = Made("geglu", lambda x: x.clone())
failing = Made("geglu", fail)
unknown = Made("gegloo", lambda x: x)
mute = 3
"""


@pytest.fixture
def example(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example of the documentation, and a package of bad ones, installed."""
    monkeypatch.delenv("ANIMX_PLUGINS", raising=False)
    monkeypatch.delenv("ANIMX_KERNELS", raising=False)
    source = root / "examples" / "kernel-plugin"
    entries = tomllib.loads((source / "pyproject.toml").read_text())["project"]["entry-points"]
    site = tmp_path / "site"
    site.mkdir()
    make_package(site, "animx_quick", (source / "animx_quick.py").read_text(), entries)
    bad = {name: f"badkernels:{name}" for name in ("wrong", "shaped", "failing", "unknown", "mute", "absent")}
    make_package(site, "badkernels", BAD, {"animx.kernels": bad})
    providers.forget()
    with installed(site):
        yield site
    providers.forget()


def test_the_example_is_checked_against_float64_and_measured(example: Path) -> None:
    asked = ("--op", "geglu", "--providers", "quick-geglu,animx", "--shapes", "small", "--seconds", 0.01)
    found = animx("bench", "ops", *asked, "--device", "cpu", "--json").json
    for row in found["rows"]:
        assert row["errors"]["quick-geglu"] <= 1e-5
        assert set(row["times"]) == {"quick-geglu", "animx"}
    assert all(name.endswith("/quick-geglu_over_animx") for name in found["ratios"])
    half = checked("--op", "geglu", "--providers", "quick-geglu,animx", "--dtype", "bfloat16")["small"]
    assert half["unavailable"]["quick-geglu"] == "it does not take this shape or type"


def test_a_wrong_plugin_gets_no_speed_and_a_broken_one_is_named(example: Path) -> None:
    asked = ("--op", "geglu", "--shapes", "small", "--device", "cpu", "--seconds", 0.01)
    row = animx("bench", "ops", *asked, "--providers", "wrong,failing,shaped,animx", "--json").json["rows"][0]
    assert set(row["times"]) == {"animx"}
    assert "its result is off by" in row["unavailable"]["wrong"]
    assert (
        "'failing' of badkernels 1.0 failed in operator 'geglu' (RuntimeError: no such thing)"
        in (row["unavailable"]["failing"])
    )
    assert "'shaped' gave" in row["unavailable"]["shaped"]
    bench = ("bench", "ops", *asked, "--providers")
    refused(animx(*bench, "mute"), 2, "'mute' of badkernels 1.0", "no 'operator'")
    refused(animx(*bench, "unknown"), 2, "no operator 'gegloo'")
    refused(animx(*bench, "absent"), 2, "'absent' of badkernels 1.0", "AttributeError")
    refused(animx(*bench, "quick"), 2, "Did you mean 'quick-geglu'?")
    refused(animx("bench", "ops", "--op", "layer_norm", "--providers", "quick-geglu"), 2, "Add --op geglu")


def test_plugins_lists_operators_and_what_is_wrong_with_them(example: Path) -> None:
    found = {one["name"]: one for one in animx("plugins", "--json").json["plugins"] if one["group"] == "kernels"}
    assert found["quick-geglu"]["loaded"]
    assert found["quick-geglu"]["origin"] == "animx_quick 1.0"
    assert "no operator 'gegloo'" in found["unknown"]["problem"]
    assert "no 'operator'" in found["mute"]["problem"]
    assert "AttributeError" in found["absent"]["problem"]


def test_a_plugin_stands_in_only_where_it_is_named(
    example: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(3, 8, requires_grad=True)
    right, seen = geglu(x), []
    made = kernel_plugins.provider("quick-geglu").provider
    monkeypatch.setattr(type(made), "call", lambda self, x: seen.append(tuple(x.shape)) or 2 * right.detach())
    assert torch.equal(geglu(x), right)
    assert seen == []
    monkeypatch.setenv("ANIMX_KERNELS", "reference,quick-geglu")
    assert kernel_plugins.taken() == ["quick-geglu (geglu, animx_quick 1.0)"]
    assert torch.equal(geglu(x), 2 * right)
    assert seen == [(3, 8)]
    assert [r.getMessage() for r in caplog.records] == [
        "geglu: 'quick-geglu' stands in for animx's own, as ANIMX_KERNELS asks"
    ]
    # Float64 and types it does not take go the usual way; so do gradients, which are animx's own.
    assert torch.equal(geglu(x.double()), load_ops()["geglu"].reference(x.double()))
    geglu(x.bfloat16())
    assert seen == [(3, 8)]
    geglu(x).sum().backward()
    monkeypatch.setenv("ANIMX_KERNELS", "auto")
    own = torch.autograd.grad(geglu(x).sum(), x)[0]
    assert torch.equal(x.grad, own)
    assert len(seen) == 2


def test_a_plugin_that_breaks_in_a_render_is_named_and_one_that_is_off_is_unknown(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from animx import plugins

    x = torch.randn(3, 8)
    kernel_plugins.open_door()
    monkeypatch.setenv("ANIMX_KERNELS", "failing")
    with pytest.raises(UsageError, match=r"'failing' of badkernels 1\.0 failed .* leave it out of ANIMX_KERNELS"):
        geglu(x)
    monkeypatch.setenv("ANIMX_KERNELS", "shaped")
    with pytest.raises(providers.ProviderError, match=r"'shaped' gave \(3, 8\).*whose results are \(3, 4\)") as raised:
        geglu(x)
    message, code = explain(raised.value)
    assert code == 2
    assert message.endswith("Leave it out of ANIMX_KERNELS")
    for asked, words in (
        ("quick-geglu,wrong", "both for geglu"),
        ("auto,interpret", "two modes"),
        ("refrence", "Did you mean 'reference'"),
        ("mute", "no 'operator'"),
    ):
        monkeypatch.setenv("ANIMX_KERNELS", asked)
        with pytest.raises(UsageError, match=words):
            kernel_plugins.taken()
        refused(animx("bench", "ops", "--op", "geglu", "--check", "--device", "cpu"), 2, words)
    monkeypatch.setenv("ANIMX_PLUGINS", "off")
    monkeypatch.setenv("ANIMX_KERNELS", "quick-geglu")
    plugins.find.cache_clear()
    providers.forget()
    with pytest.raises(UsageError, match="ANIMX_PLUGINS=off loads none"):
        geglu(x)
    refused(animx("bench", "ops", "--op", "geglu", "--check", "--device", "cpu"), 2, "ANIMX_PLUGINS=off")


def test_every_operator_can_be_stood_in_for() -> None:
    """Each has a body of its own that the door stands in front of, whatever file it is in."""

    def takes(op: Op) -> Any:
        case = next(case for case in op.cases().values() if not case.official)
        inputs = case.make("cpu", torch.float32, 0)
        return several(getattr(torch.ops.animx, op.name)(*inputs.args, **inputs.kwargs))

    for name, op in load_ops().items():
        asked: list[int] = []

        class Watching:
            operator = name

            def supports(self, *_: Any, asked: list[int] = asked) -> bool:
                asked.append(1)
                return False

            def call(self, *_: Any) -> Any:
                raise AssertionError

        with pytest.MonkeyPatch.context() as here:
            here.setattr(providers, "finder", lambda _: Watching())
            here.setenv("ANIMX_KERNELS", f"watching-{name}")
            takes(op)
        assert asked, name
    providers.forget()


def test_a_render_refuses_a_broken_plugin_at_once_and_its_recipe_names_what_it_took(
    example: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned() -> Any:
        return stage.render("out.mp4", "--dry-run", "--json")

    assert "animate-x.kernels" not in planned().json["recipe"]["options"]
    monkeypatch.setenv("ANIMX_KERNELS", "quick-geglu")
    assert planned().json["recipe"]["options"]["animate-x.kernels"] == ["quick-geglu (geglu, animx_quick 1.0)"]
    monkeypatch.setenv("ANIMX_KERNELS", "mute")
    refused(stage.render("out.mp4", "--dry-run"), 2, "'mute' of badkernels 1.0", "no 'operator'")
