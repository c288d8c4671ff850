"""The selective scan: row blocks and Triton bodies against the loop, transformers' Mamba, a stand-in for mamba_ssm."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")

import kernel_gates as gates  # noqa: E402

from animx.errors import MissingExtraError, UsageError  # noqa: E402
from animx.model import temporal  # noqa: E402
from animx.model.config import UNetConfig  # noqa: E402
from animx_kernels import selective_scan_blocks as row_blocks  # noqa: E402
from animx_kernels.dispatch import OPS, configured, load_ops  # noqa: E402
from animx_kernels.selective_scan import launch_backward, reference_backward, selective_scan  # noqa: E402

load_ops()
SCAN, BACKWARD = OPS["selective_scan"], OPS["selective_scan_backward"]
CASES = gates.small_cases(SCAN)
SMALL = {"CHANNELS": 16}


def given(case: str, dtype: Any = torch.float64) -> tuple[Any, ...]:
    return tuple(CASES[case].make("cpu", dtype, 0).args)


def away(found: Any, wanted: Any) -> float:
    """Largest error in units of the largest value."""
    if not wanted.numel():
        return 0.0
    return (found - wanted).abs().max().item() / max(wanted.abs().max().item(), 1e-30)


@pytest.mark.parametrize("case", CASES)
def test_row_blocks_do_what_the_loop_does_and_so_do_their_gradients(case: str) -> None:
    args = given(case)
    wanted = SCAN.reference(*args)
    assert away(selective_scan(*args), wanted) <= 1e-13
    grad = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).view(wanted.shape)
    slopes, truth = row_blocks.backward(grad, *args), reference_backward(grad, *args)
    assert [x.shape for x in slopes] == [x.shape for x in truth]
    assert max(away(x, y) for x, y in zip(slopes, truth, strict=True)) <= 1e-12
    in_half = given(case, torch.float32)
    assert away(selective_scan(*in_half).double(), SCAN.reference(*(_wide(x) for x in in_half))) <= 5e-6


def _wide(x: Any) -> Any:
    return x.double() if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_the_size_of_a_block_of_rows_changes_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = given("odd, batch of 2")
    wanted = selective_scan(*args)
    slopes = row_blocks.backward(wanted, *args)
    monkeypatch.setattr(row_blocks, "ROWS", {"cpu": rows})
    monkeypatch.setattr(row_blocks, "ROWS_BACKWARD", {"cpu": rows})
    assert away(selective_scan(*args), wanted) <= 1e-14
    assert max(away(x, y) for x, y in zip(row_blocks.backward(wanted, *args), slopes, strict=True)) <= 1e-12


@pytest.mark.parametrize("case", CASES)
def test_the_triton_body_equals_the_float64_reference(case: str) -> None:
    with configured("selective_scan", ROWS=2, **SMALL):
        gates.check_forward(SCAN, CASES[case], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_stored_and_float32_is_computed(dtype: Any) -> None:
    with configured("selective_scan", ROWS=2, **SMALL):
        gates.check_forward(SCAN, CASES["odd, batch of 2"], dtype, apart=True)
    with configured("selective_scan_backward", CHUNK=2, programs=2, **SMALL):
        gates.check_forward(BACKWARD, BACKWARD.cases()["bare"], dtype, apart=True)


@pytest.mark.parametrize("pixels", [1, 262140, 262141, 10**7])
def test_every_number_of_pixels_fits_a_grid(pixels: int) -> None:
    """A card takes 65535 programs along the axis of the pixels."""
    from animx_kernels.selective_scan_triton import _Given, plan

    few, x = torch.empty(1, 2, pixels, 4, device="meta"), torch.empty(1, 2, pixels, 8, device="meta")
    one = torch.empty(8, device="meta")
    sequences = _Given((x, x, torch.empty(8, 4, device="meta"), few, few, one, x, None, None, None), True, False)
    launch = plan(sequences, x, 90)
    assert launch.grid[1] <= 65535
    assert (launch.grid[1] - 1) * launch.constants["ROWS"] < pixels <= launch.grid[1] * launch.constants["ROWS"]


@pytest.mark.parametrize(("case", "chunk"), [("L=1", 8), ("L=2", 1), ("L=31", 8), ("odd, batch of 2", 4)])
def test_gradients_through_the_triton_bodies_equal_those_of_the_reference(case: str, chunk: int) -> None:
    with (
        configured("selective_scan", ROWS=2, **SMALL),
        configured("selective_scan_backward", CHUNK=chunk, programs=3, **SMALL),
    ):
        gates.check_gradients(SCAN, CASES[case], torch.float32)


@pytest.mark.parametrize("op", ["selective_scan", "selective_scan_backward"])
def test_the_operator_is_registered_as_torch_wants_it(op: str) -> None:
    gates.check_opcheck(OPS[op], OPS[op].cases()["bare"])
    gates.check_opcheck(OPS[op], OPS[op].cases()["L=2"])
    gates.check_compiles(OPS[op], OPS[op].cases()["bare"])


@pytest.mark.skipif(gates.CUDA, reason="counts in the interpreter")
@pytest.mark.parametrize("case", ["bare", "L=2"])
def test_the_declared_cost_is_what_the_bodies_load_and_store(case: str) -> None:
    gates.check_cost(SCAN, CASES[case])
    inputs = BACKWARD.cases()[case].make("cpu", torch.float16, 0)
    told, _ = launch_backward(*inputs.args)
    with gates.triton_bodies(), gates.watched() as seen:
        BACKWARD.function(*inputs.args)
    assert seen == [gates.Traffic(told.launches, told.bytes_read, told.bytes_written)]
    assert BACKWARD.cost(*inputs.args).launches > 3  # and the sums that torch makes of the partial ones


FAR = 2**30


@pytest.mark.skipif(gates.CUDA, reason="runs in the interpreter")
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_inputs_may_lie_beyond_31_bits(axis: int) -> None:
    u, delta, a, b, c, d, z, *rest = given("bare", torch.float16)
    shape = [1, 1, 1]
    shape[axis] = 3
    u, delta, z = torch.randn(3, *shape, 8, dtype=torch.float16).unbind()
    b, c = torch.randn(2, *shape, 3, dtype=torch.float16).unbind()

    def far(near: Any) -> Any:
        strides = [near.shape[-1]] * 3
        strides[axis] = FAR
        room = torch.empty(2 * FAR + near.shape[-1], dtype=near.dtype)
        return room.as_strided(near.shape, (*strides, 1)).copy_(near)

    with gates.mode("interpret"):
        near = (u, delta.abs(), a, b, c, d, z, *rest)
        distant = tuple(far(x) if isinstance(x, torch.Tensor) and x.ndim == 4 else x for x in near)
        assert torch.equal(selective_scan(*near), selective_scan(*distant))
        one, other = BACKWARD.function(u, *near), BACKWARD.function(far(u), *distant)
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.long
@pytest.mark.skipif(gates.CUDA, reason="runs single programs in the interpreter")
def test_outputs_may_reach_beyond_31_bits() -> None:
    from animx_kernels import selective_scan_triton as body
    from animx_kernels.dispatch import use_triton
    from animx_kernels.launch import run

    pixels = 2**28 + 1
    u, delta, a, b, c, d, *_ = given("bare", torch.float16)
    small = (u[:, :2, :1], delta[:, :2, :1], a, b[:, :2, :1], c[:, :2, :1], d)
    wide = tuple(x.expand(-1, -1, pixels, -1) if x.ndim == 4 else x for x in small)
    out = torch.empty(1, 2, pixels, 8, dtype=torch.float16)
    assert out.numel() > 2**31
    with gates.mode("interpret"), configured("selective_scan", ROWS=1):
        assert use_triton("selective_scan", u)
        with gates.last_program_only():
            run(body.plan(body._Given((*wide, None, None, None, None), False, False), out, 90))
    torch.testing.assert_close(out[:, :, -1:], SCAN.reference(*small, None, None, None, None, False, False))


# Speed and memory


def full_width(rows: int) -> tuple[Any, ...]:
    """`rows` sequences of 33 slots, 640 channels, 16 states."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Any:
        return torch.randn(shape, generator=generator)

    u, z, few = some(1, 33, rows, 640), some(1, 33, rows, 640), some(2, 1, 33, rows, 16)
    a = -torch.arange(1, 17).float().expand(640, -1) * (1 + 0.1 * torch.rand(640, 16, generator=generator))
    return u, torch.rand(u.shape, generator=generator) * 0.2, a, few[0], few[1], some(640), z


def test_row_blocks_are_three_times_as_fast_as_the_loop_at_full_size() -> None:
    """512 rows, L 33, 640 channels, 16 states, one thread, against the loop in the layout of mamba_ssm."""
    args = full_width(512)
    loop = [x[0].permute(1, 2, 0).contiguous() if x.ndim == 4 else x for x in args]
    best, slow = float("inf"), float("inf")
    for turn in range(2):
        start = time.process_time()
        found = selective_scan(*args, softplus=False)
        best = min(best, time.process_time() - start)
        if not turn:
            start = time.process_time()
            wanted = temporal.selective_scan(*loop)
            slow = min(slow, time.process_time() - start)
    assert away(found[0].permute(1, 2, 0), wanted) <= 4e-6
    assert slow / best >= 3, f"{slow / best:.1f} times"


def test_the_scan_forward_and_backward_at_full_size_stay_below_1500_megabytes(root: Path) -> None:
    """Of the whole process, torch and the inputs (200 MB) included; backward at 64 rows."""
    code = (
        "import sys; sys.path[:0] = ['tests']\n"
        "import torch; torch.set_num_threads(1)\n"
        "from test_kernels_scan import full_width, selective_scan\n"
        "with torch.no_grad(): selective_scan(*full_width(512), softplus=False)\n"
        "args = [x.requires_grad_() for x in full_width(64)]\n"
        "selective_scan(*args, softplus=False).sum().backward()\n"
        "assert all(x.grad is not None and x.grad.isfinite().all() for x in args)\n"
        # Not ru_maxrss: a child begins with that of the process it came from.
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=root, env=gates.environment(root), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1_500_000  # kilobytes


# Mamba


def test_the_mamba_block_is_the_sum_of_two_directions() -> None:
    block = temporal.MambaBlock(16, UNetConfig()).double()
    x = torch.randn(5, 7, 16, dtype=torch.float64, requires_grad=True)
    y = block.norm(x)
    apart = x + block.forward_scan(y) + block.backward_scan(y.flip(1)).flip(1)
    together = block(x)
    assert away(together, apart) <= 1e-13
    both = [torch.autograd.grad(found.sin().sum(), [x, *block.parameters()]) for found in (together, apart)]
    assert max(away(one, other) for one, other in zip(*both, strict=True)) <= 1e-11


def test_mamba_equals_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="needs the 'model' extra")
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = transformers.MambaConfig(hidden_size=24, state_size=8, conv_kernel=4, expand=2, num_hidden_layers=1)
    theirs = MambaMixer(config, layer_idx=0)
    mine = temporal.Mamba(24, state=8)
    torch.nn.init.normal_(mine.conv1d.bias)
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(3, 33, 24)
    with torch.no_grad():
        wanted = theirs.eval()(x)  # on a CPU its own plain torch
        assert away(mine(x), wanted) <= 2e-6
        mine.D.add_(0.5)
        assert away(mine(x), wanted) > 1e-2


def test_mamba_ssm_is_used_when_asked_for_and_missing_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (temporal.MambaBlock(16, UNetConfig(scan=scan)).double() for scan in ("animx", "mamba-ssm"))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    if not torch.cuda.is_available():
        with pytest.raises(MissingExtraError, match=r"animx\[mamba\]"):
            theirs(x)
    calls = []

    def selective_scan_fn(u: Any, delta: Any, a: Any, b: Any, c: Any, d: Any, z: Any, **k: Any) -> Any:
        """mamba_ssm's contract: u, delta, z [B, D, L], b, c [B, N, L]."""
        calls.append(u.shape)
        step = torch.nn.functional.softplus(delta + k["delta_bias"][:, None])
        assert k["delta_softplus"]
        return temporal.selective_scan(u, step, a, b, c, d, z)

    module: Any = ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert away(theirs(x), ours(x)) <= 1e-6  # mamba_ssm takes D and the bias in float32
    assert calls == [(2, 32, 5)] * 2
    with pytest.raises(UsageError, match="mamba-ssm"):
        UNetConfig(scan="mamba")  # type: ignore[arg-type]
