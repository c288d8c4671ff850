"""Operators over the slots of a pixel and after the network: temporal attention, motion attention, the guided step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")

import kernel_gates as gates  # noqa: E402
from kernel_gates import TYPES  # noqa: E402

from animx.diffusion.steppers import ReleasedStepper  # noqa: E402
from animx.model.schedule import guided  # noqa: E402
from animx_kernels.dispatch import OPS, load_ops  # noqa: E402
from animx_kernels.guided_step import guided_step  # noqa: E402
from animx_kernels.motion_attention import fold_motion, motion_attention  # noqa: E402
from animx_kernels.motion_attention import refusal as motion_refusal  # noqa: E402
from animx_kernels.temporal_attention import refusal as attention_refusal  # noqa: E402
from animx_kernels.temporal_attention import temporal_attention  # noqa: E402

F = torch.nn.functional
load_ops()
MINE = ("motion_attention", "temporal_attention", "temporal_attention_backward", "guided_step")
CASES = [(name, case) for name in MINE for case in gates.small_cases(OPS[name])]
BODIES = [(name, case) for name, case in CASES if "by the reference" not in case]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_triton_body_equals_the_float64_reference(name: str, case: str, dtype: str) -> None:
    gates.check_forward(OPS[name], OPS[name].cases()[case], TYPES[dtype])


@pytest.mark.parametrize("name", MINE)
def test_inputs_may_lie_apart_in_memory(name: str) -> None:
    gates.check_forward(OPS[name], next(iter(gates.small_cases(OPS[name]).values())), torch.float16, apart=True)


@pytest.mark.parametrize("case", ["T=1", "T=33", "T=64", "fused views", "long, by the reference"])
def test_gradients_of_temporal_attention_equal_those_of_the_float64_reference(case: str) -> None:
    op = OPS["temporal_attention"]
    gates.check_gradients(op, op.cases()[case], torch.float32)


@pytest.mark.parametrize("name", MINE)
def test_the_operator_is_registered_as_torch_wants_it(name: str) -> None:
    gates.check_opcheck(OPS[name], next(iter(gates.small_cases(OPS[name]).values())))
    gates.check_compiles(OPS[name], next(iter(gates.small_cases(OPS[name]).values())))


@pytest.mark.skipif(gates.CUDA, reason="counts in the interpreter")
@pytest.mark.parametrize(("name", "case"), [(n, c) for n, c in BODIES if c not in ("T=1", "T=2", "T=31", "T=64")])
def test_the_declared_cost_is_what_the_body_loads_and_stores(name: str, case: str) -> None:
    gates.check_cost(OPS[name], OPS[name].cases()[case])


# Motion attention


class Unfolded:
    """Layer norm, cross-attention on m motion tokens, output projection: what `fold_motion` folds."""

    def __init__(self, channels: int, slots: int, dtype: Any, heads: int, motion: int = 4) -> None:
        generator = torch.Generator().manual_seed(channels)

        def some(*shape: int, scale: float = 1.0) -> Any:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(scale).to(dtype)

        d = channels // heads
        self.norm = (1 + some(channels, scale=0.2), some(channels, scale=0.2))
        self.to_q, self.to_out = (some(channels, channels, scale=channels**-0.5) for _ in range(2))
        self.bias = some(channels)
        self.k, self.v = some(slots, heads, motion, d), some(slots, heads, motion, d)
        self.heads = heads

    def __call__(self, x: Any, alpha: float = 1.0) -> Any:
        q = (F.layer_norm(x, x.shape[-1:], *self.norm) @ self.to_q.T).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, self.k, self.v).transpose(1, 2).flatten(-2)
        return x + alpha * F.linear(y, self.to_out, self.bias)

    def folded(self) -> tuple[Any, ...]:
        return fold_motion(*self.norm, self.to_q, self.to_out, self.bias, self.k, self.v)


@pytest.mark.parametrize(("channels", "heads", "alpha"), [(64, 2, 1.0), (320, 5, 0.3), (48, 3, 0.0)])
def test_folding_the_motion_attention_is_exact(channels: int, heads: int, alpha: float) -> None:
    unfolded = Unfolded(channels, 3, torch.float64, heads)
    x = 3 + 2 * torch.randn(3, 17, channels, dtype=torch.float64)
    wanted = unfolded(x, alpha)
    found = motion_attention(x, *unfolded.folded(), heads, 1e-5, alpha)
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-12
    branch = motion_attention(x, *unfolded.folded(), heads, 1e-5, alpha, residual=False)
    assert float((x + branch - wanted).norm() / wanted.norm()) <= 1e-12
    if alpha:
        other = motion_attention(x, *unfolded.folded(), heads, 1e-5, alpha / 2)
        assert float((other - wanted).norm() / wanted.norm()) > 1e-3


def test_a_large_mean_costs_the_motion_attention_no_digits() -> None:
    unfolded = Unfolded(64, 1, torch.float32, 2)
    x = 500 + torch.randn(1, 20, 64)
    truth = OPS["motion_attention"].reference(x.double(), *(t.double() for t in unfolded.folded()), 2, 1e-5)
    with gates.triton_bodies():
        found = motion_attention(x, *unfolded.folded(), 2, 1e-5)
    assert float((found - truth).abs().max()) < 2e-3  # x itself is stored to 3e-5, and its spread is 1


@pytest.mark.parametrize("loud", [20.0, 40000.0])
def test_a_loud_first_channel_costs_the_motion_attention_no_digits_in_halves(loud: float) -> None:
    """Sums are taken about a row's first value; what is multiplied in 16 bits must not be."""
    op = OPS["motion_attention"]
    x, *rest = op.cases()["small 2x40x64"].make(gates.DEVICE, torch.float16, 0).args
    x[..., 0], x[..., 1] = loud, -loud
    truth = op.reference(*gates.widened(gates.Inputs((x, *rest), {})).args, residual=False)
    with gates.triton_bodies():
        found = motion_attention(x, *rest, 1.0, False)
    assert gates.worst(op, found, truth) <= 1e-3


def test_shapes_that_no_card_can_launch_go_to_the_reference() -> None:
    def empty(*shape: int, dtype: Any = torch.float16) -> Any:
        return torch.empty(shape, device="meta", dtype=dtype)

    assert attention_refusal(empty(1, 64, 2, 256), 2) is None
    assert "shared memory" in str(attention_refusal(empty(1, 33, 2, 256, dtype=torch.float32), 2))
    assert attention_refusal(empty(1, 33, 2, 128, dtype=torch.float32), 2) is None
    assert "batch of 65536" in str(attention_refusal(empty(65536, 2, 1, 16), 1))
    assert motion_refusal(empty(65535, 1, 16), empty(1, 16, 4), 1) is None
    assert "65536 slots" in str(motion_refusal(empty(65536, 1, 16), empty(1, 16, 4), 1))


def test_motion_attention_refuses_a_gradient_it_does_not_have() -> None:
    unfolded = Unfolded(32, 1, torch.float32, 2)
    x = torch.randn(1, 3, 32, requires_grad=True)
    with pytest.raises(RuntimeError, match="autograd"):
        motion_attention(x, *unfolded.folded(), 2, 1e-5).sum().backward()


def fastest(calls: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Least CPU seconds of each call, taken in turns, so that a busy machine slows all of them."""
    found = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.process_time()
            call()
            found[i] = min(found[i], time.process_time() - start)
    return found


@pytest.mark.parametrize(("channels", "least"), [(320, 2.0), (640, 3.5), (1280, 6.0)])
def test_the_folded_motion_attention_is_faster_than_the_unfolded_one(channels: int, least: float) -> None:
    """4 slots of 1536 tokens, layer norm and residual included, one thread."""
    unfolded = Unfolded(channels, 4, torch.float32, channels // 64)
    x, folded = torch.randn(4, 1536, channels), unfolded.folded()
    with torch.no_grad():
        slow, fast = fastest(
            [lambda: unfolded(x), lambda: motion_attention(x, *folded, channels // 64, 1e-5)],
            {320: 6, 640: 5, 1280: 4}[channels],
        )
    assert slow / fast >= least, f"{slow / fast:.2f} times"


# Temporal attention


def test_temporal_attention_mixes_the_slots_of_one_pixel_and_no_others() -> None:
    q, k, v = torch.randn(3, 1, 5, 4, 32, dtype=torch.float64).unbind()
    found = temporal_attention(q, k, v, 2)
    alone = temporal_attention(q[:, :, 2:3], k[:, :, 2:3], v[:, :, 2:3], 2)
    torch.testing.assert_close(found[:, :, 2:3], alone, rtol=1e-12, atol=1e-12)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(temporal_attention(q, k[:, order], v[:, order], 2), found, rtol=1e-12, atol=1e-12)


# The guided step


def by_the_sampler(
    stepper: ReleasedStepper, index: int, x: Any, cs: Any, us: Any, scale: float, windows: Any, weights: Any
) -> tuple[Any, Any]:
    """What `animx.diffusion.sampler.denoise` does with the velocities of a step."""
    velocity = torch.zeros_like(x)
    for number, (first, last) in enumerate(windows):
        v = cs[number : number + 1]
        v = v if us is None else guided(v, us[number : number + 1], scale)
        velocity[:, :, first:last] += weights[number].view(1, 1, -1, 1, 1) * v
    return stepper.step(x, velocity, index), stepper.clean(x, velocity, index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_guided", [True, False])
def test_a_guided_step_is_the_step_of_the_sampler_to_the_bit(dtype: Any, is_guided: bool) -> None:
    stepper, windows = ReleasedStepper(30), [(0, 4), (3, 7), (5, 9)]
    for index in (0, 11, 30):
        x = torch.randn(1, 4, 9, 3, 5, dtype=dtype)
        cs, us = torch.randn(2, 3, 4, 4, 3, 5, dtype=dtype).unbind()
        us = us if is_guided else None
        weights = torch.rand(3, 4, dtype=dtype)
        wanted = by_the_sampler(stepper, index, x, cs, us, 2.7, windows, weights)
        found = guided_step(
            x, cs, us, torch.tensor(2.7, dtype=dtype), stepper.coefficients(index, x), torch.tensor([0, 3, 5]), weights
        )
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])


# Addresses

FAR = 2**30
"""A stride in elements: the third row of it lies beyond what 31 bits can count."""


def far(near: Any, axis: int) -> Any:
    """The same numbers with `axis` (of length 3, all others of length 1 but the last) 2^30 elements apart."""
    strides = [near.shape[-1]] * near.ndim
    strides[-1], strides[axis] = 1, FAR
    room = torch.empty(2 * FAR + near.shape[-1], dtype=near.dtype).as_strided(near.shape, strides)
    return room.copy_(near)


@pytest.mark.skipif(gates.CUDA, reason="runs in the interpreter")
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_inputs_may_lie_beyond_31_bits(axis: int) -> None:
    shape = [1, 1, 1, 16]
    shape[axis] = 3
    near = torch.randn(shape, dtype=torch.float16)
    distant = far(near, axis)
    backward = OPS["temporal_attention_backward"].function
    with gates.mode("interpret"):
        assert torch.equal(temporal_attention(near, near, near, 1), temporal_attention(distant, distant, distant, 1))
        one, other = (backward(x, x, x, x, 1) for x in (near, distant))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        if axis < 2:
            a, b = torch.randn(1, 16, 4, dtype=torch.float16), torch.randn(1, 4, 16, dtype=torch.float16)
            rest = (a, a[:, 0], b, b[0, 0], 1, 1e-5)
            assert torch.equal(motion_attention(near[:, :, 0], *rest), motion_attention(distant[:, :, 0], *rest))


@pytest.mark.skipif(gates.CUDA, reason="runs single programs in the interpreter")
def test_outputs_may_reach_beyond_31_bits() -> None:
    """More than 2^31 elements; only the last program runs, and only what it touches takes memory."""
    from animx_kernels import guided_step_triton, motion_attention_triton, temporal_attention_triton
    from animx_kernels.dispatch import tuned, use_triton
    from animx_kernels.launch import run

    half = torch.float16
    pixels = 2**26 + 1
    x = torch.randn(1, 3, 1, 16, dtype=half)
    many, out = x.expand(-1, -1, pixels, -1), torch.empty(1, 3, pixels, 16, dtype=half)
    assert out.numel() > 2**31
    wanted = OPS["temporal_attention"].reference(x, x, x, 1)
    config = tuned("temporal_attention", "T3 d16")
    with gates.mode("interpret"):
        assert use_triton("temporal_attention", x)
        given = {"q": many, "k": many, "v": many}
        kernel = temporal_attention_triton.temporal_attention_kernel
        with gates.last_program_only():
            run(temporal_attention_triton.plan(kernel, given, {"out": out}, 1, config, True))
        torch.testing.assert_close(out[:, :, -1:], wanted, rtol=4e-3, atol=4e-3)

        tokens = 2**27 + 1
        a, b = torch.randn(1, 16, 4, dtype=half), torch.randn(1, 4, 16, dtype=half)
        rest = (a, a[:, 0].contiguous(), b, b[0, 0].contiguous())
        row = torch.randn(1, 1, 16, dtype=half)
        out = torch.empty(1, tokens, 16, dtype=half)
        with gates.last_program_only():
            run(motion_attention_triton.plan(row.expand(1, tokens, 16), *rest, out, 1, 1e-5, interpret=True))
        wanted = OPS["motion_attention"].reference(row, *rest, 1, 1e-5)
        torch.testing.assert_close(out[:, -1:], wanted, rtol=4e-3, atol=4e-3)

        frames = 2**27 + 1
        latents, velocity = (torch.empty(1, 4, frames, 2, 2, dtype=half) for _ in range(2))
        weights = torch.empty(1, frames, dtype=half)
        for tensor, value in ((latents, 2.0), (velocity, 3.0), (weights, 1.0)):
            tensor.view(-1)[-2048:] = value
        scale, coefficients = torch.ones((), dtype=half), torch.tensor([1, 1, 1, 1, 5, 1], dtype=half)
        after, clean = torch.empty_like(latents), torch.empty_like(latents)
        starts = torch.zeros(1, dtype=torch.int64)
        with gates.last_program_only():
            run(
                guided_step_triton.plan(latents, velocity, None, scale, coefficients, starts, weights, after, clean, 90)
            )
        assert float(clean[0, -1, -1, -1, -1]) == 2 - 3
        assert float(after[0, -1, -1, -1, -1]) == 5 * (2 - 3) + (2 - (2 - 3))


def test_the_sampler_makes_the_released_step_by_the_operator_and_nothing_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import numpy as np

    from animx.diffusion import sampler
    from animx.diffusion.stepping import Stepping
    from animx.diffusion.windows import blend_weights, cut_windows

    windows = cut_windows(11, 5, 2)
    noise = torch.randn(1, 4, 11, 3, 2)
    known = torch.randn(1, 4, 2, 3, 2)
    calls: list[int] = []
    advance = Stepping.advance

    def spy(self: Stepping, *given: Any) -> Any:
        calls.append(given[-1])
        return advance(self, *given)

    monkeypatch.setattr(Stepping, "advance", spy)

    def render() -> tuple[Any, list[Any]]:
        clean: list[Any] = []
        out = sampler.denoise(
            ReleasedStepper(10), noise, windows, blend_weights(11, windows).astype(np.float64),
            lambda x, t, n: x.sin() * (1 + n), lambda x, t, n: x.cos(), sampler.Guidance(2.7, 0.2, 0.8), known,
            sampler.Watch(on_clean=lambda i, x: clean.append(x), clean_every=3),
        )  # fmt: skip
        return out, clean

    found, seen = render()
    assert calls == list(range(10))
    monkeypatch.setattr(Stepping, "of", staticmethod(lambda *_: None))
    plain, others = render()
    assert len(calls) == 10
    assert torch.equal(found, plain)
    assert [torch.equal(a, b) for a, b in zip(seen, others, strict=True)] == [True] * 3
