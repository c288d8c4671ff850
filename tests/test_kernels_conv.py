"""The causal convolution of a Mamba block, both directions of time at once: bodies, gradients, costs, addresses."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")

import kernel_gates as gates  # noqa: E402

from animx_kernels.causal_conv import causal_conv_silu, convolved, launch_backward  # noqa: E402
from animx_kernels.dispatch import OPS, configured, load_ops  # noqa: E402

load_ops()
CONV, BACKWARD = OPS["causal_conv_silu"], OPS["causal_conv_silu_backward"]
CASES = gates.small_cases(CONV)
FEW = {"PIXELS": 2, "CHANNELS": 16}


def test_it_is_torchs_depthwise_convolution_in_each_direction() -> None:
    u, weight, bias, _ = CASES["a view, both directions"].make("cpu", torch.float64, 0).args
    found = causal_conv_silu(u, weight, bias, True)
    length, half = u.shape[1], u.shape[-1] // 2

    def by_torch(x: Any, own: slice) -> Any:
        rows = x.permute(0, 2, 3, 1).flatten(0, 1)  # [B*N, E, L]
        y = torch.nn.functional.conv1d(rows, weight[own, None], bias[own], padding=3, groups=half)[..., :length]
        return torch.nn.functional.silu(y).unflatten(0, (u.shape[0], -1)).permute(0, 3, 1, 2)

    first = by_torch(u[..., :half], slice(0, half))
    second = by_torch(u[..., half:].flip(1), slice(half, None)).flip(1)
    torch.testing.assert_close(found, torch.cat([first, second], -1), rtol=1e-12, atol=1e-12)
    assert found.is_contiguous()


def test_no_slot_sees_what_its_direction_has_not_reached() -> None:
    u, weight, bias, _ = CASES["L=31"].make("cpu", torch.float64, 0).args
    moved = u.clone()
    moved[:, 10] += 1
    change = (causal_conv_silu(moved, weight, bias, True) - causal_conv_silu(u, weight, bias, True)).abs().amax((0, 2))
    seen = [change[:, :8].amax(1) > 0, change[:, 8:].amax(1) > 0]
    assert seen[0].nonzero().flatten().tolist() == [10, 11, 12, 13]
    assert seen[1].nonzero().flatten().tolist() == [7, 8, 9, 10]


@pytest.mark.parametrize("case", CASES)
def test_the_formulas_of_the_gradient_are_those_of_autograd(case: str) -> None:
    u, weight, bias, both = CASES[case].make("cpu", torch.float64, 0).args
    leaves = [None if x is None else x.clone().requires_grad_() for x in (u, weight, bias)]
    half = u.shape[-1] // 2 if both else u.shape[-1]
    sides = [slice(0, half), slice(half, None)] if both else [slice(0, None)]
    parts = [
        torch.nn.functional.silu(
            convolved(leaves[0][..., own], leaves[1][own], None if bias is None else leaves[2][own], reverse=i == 1)
        )
        for i, own in enumerate(sides)
    ]
    y = torch.cat(parts, -1)
    grad = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    given = [x for x in leaves if x is not None]
    truth = torch.autograd.grad(y, given, grad)
    mine = [x.detach().requires_grad_() for x in given]
    found = torch.autograd.grad(causal_conv_silu(*mine, *[None] * (3 - len(mine)), both), mine, grad)
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_triton_body_equals_the_float64_reference(case: str) -> None:
    with configured("causal_conv_silu", **FEW):
        gates.check_forward(CONV, CASES[case], torch.float32, apart=True)


@pytest.mark.parametrize("case", ["L=1", "L=2", "L=31", "a view, both directions", "one tap, no bias"])
def test_the_triton_body_of_the_gradient_equals_the_float64_formulas(case: str) -> None:
    with configured("causal_conv_silu_backward", programs=2, **FEW):
        gates.check_forward(BACKWARD, BACKWARD.cases()[case], torch.float32, apart=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_stored_and_float32_is_computed(dtype: Any) -> None:
    case = "odd, one direction, three taps"
    with configured("causal_conv_silu", **FEW), configured("causal_conv_silu_backward", programs=3, **FEW):
        gates.check_forward(CONV, CASES[case], dtype)
        gates.check_gradients(CONV, CASES[case], dtype)


def test_the_operators_are_registered_as_torch_wants_them() -> None:
    for op in (CONV, BACKWARD):
        gates.check_opcheck(op, op.cases()["one tap, no bias"])
        gates.check_opcheck(op, op.cases()["L=2"])
    gates.check_compiles(CONV, CASES["L=2"])


@pytest.mark.skipif(gates.CUDA, reason="counts in the interpreter")
@pytest.mark.parametrize("case", ["a view, both directions", "one tap, no bias"])
def test_the_declared_cost_is_what_the_bodies_load_and_store(case: str) -> None:
    gates.check_cost(CONV, CASES[case])
    inputs = BACKWARD.cases()[case].make("cpu", torch.float16, 0)
    told, _ = launch_backward(*inputs.args)
    with gates.triton_bodies():
        BACKWARD.function(*inputs.args)
        with gates.watched() as seen:
            BACKWARD.function(*inputs.args)
    assert seen == [gates.Traffic(told.launches, told.bytes_read, told.bytes_written)]


def test_the_same_inputs_give_the_same_bytes() -> None:
    inputs = BACKWARD.cases()["L=2"].make(gates.DEVICE, torch.float32, 3)
    with gates.triton_bodies():
        first, second = (BACKWARD.function(*inputs.args) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


FAR = 2**30


@pytest.mark.skipif(gates.CUDA, reason="runs in the interpreter")
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_inputs_may_lie_beyond_31_bits(axis: int) -> None:
    shape, strides = [1, 1, 1, 8], [8, 8, 8, 1]
    shape[axis], strides[axis] = 3, FAR
    near = torch.randn(shape, dtype=torch.float16)
    distant = torch.empty(2 * FAR + 8, dtype=torch.float16).as_strided(shape, strides).copy_(near)
    weight, bias = torch.randn(8, 4, dtype=torch.float16), torch.randn(8, dtype=torch.float16)
    with gates.mode("interpret"):
        assert torch.equal(causal_conv_silu(near, weight, bias, True), causal_conv_silu(distant, weight, bias, True))
        one, other = (BACKWARD.function(x, x, weight, bias, True) for x in (near, distant))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.skipif(gates.CUDA, reason="runs single programs in the interpreter")
def test_outputs_may_reach_beyond_31_bits() -> None:
    from animx_kernels import causal_conv_triton as body
    from animx_kernels.dispatch import use_triton
    from animx_kernels.launch import run

    pixels = 2**27 + 1
    u = torch.randn(1, 2, 1, 8, dtype=torch.float16)
    weight, out = torch.randn(8, 4, dtype=torch.float16), torch.empty(1, 2, pixels, 8, dtype=torch.float16)
    assert out.numel() > 2**31
    with gates.mode("interpret"):
        assert use_triton("causal_conv_silu", u)
        launch = body.plan(u.expand(-1, -1, pixels, -1), weight, None, False, out, 90)
        assert launch.grid[1] <= 65535
        with gates.last_program_only():
            run(launch)
    torch.testing.assert_close(out[:, :, -1:], CONV.reference(u, weight), rtol=2e-3, atol=2e-3)
