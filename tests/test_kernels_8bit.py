"""Eight bits: linear layers of e4m3 numbers and attention with int8 scores, their gates, laws and drift."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")

import kernel_gates as gates  # noqa: E402
from kernel_gates import TYPES  # noqa: E402

from animx_kernels import attention8 as attending  # noqa: E402
from animx_kernels import dispatch, quantise8  # noqa: E402
from animx_kernels.attention8 import attention8, attention8_keys, quantise_keys, rows_to_int8  # noqa: E402
from animx_kernels.dispatch import OPS, load_ops  # noqa: E402
from animx_kernels.layer_norm8 import add_layer_norm8  # noqa: E402
from animx_kernels.linear8 import geglu_linear8, geglu_rows8, linear8  # noqa: E402
from animx_kernels.quantise8 import E4M3, Rows8, dequantised, quantise_rows, quantise_weight, refusal8  # noqa: E402

F = torch.nn.functional
load_ops()
MINE = ("quantise_rows", "linear8", "geglu_linear8", "geglu_rows8", "quantise_keys", "attention8")
CASES = [(name, case) for name in MINE for case in gates.small_cases(OPS[name])]
STORED = [(name, case, dtype) for name in MINE for number, case in enumerate(gates.small_cases(OPS[name]))
          for dtype in TYPES if dtype == "float32" or number < 2]  # fmt: skip


@pytest.fixture(autouse=True)
def _the_same_numbers() -> None:
    torch.manual_seed(0)


def first(name: str) -> Any:
    return next(iter(gates.small_cases(OPS[name]).values()))


def drift(found: Any, exact: Any) -> float:
    return float((found.double() - exact).norm() / exact.norm())


# Gates


@pytest.mark.parametrize(("name", "case", "dtype"), STORED)
def test_the_triton_body_equals_the_quantised_operation_in_float64(name: str, case: str, dtype: str) -> None:
    gates.check_forward(OPS[name], OPS[name].cases()[case], TYPES[dtype])


@pytest.mark.parametrize("name", MINE)
def test_inputs_may_lie_apart_in_memory(name: str) -> None:
    gates.check_forward(OPS[name], first(name), torch.float16, apart=True)


@pytest.mark.parametrize("name", MINE)
def test_the_operator_is_registered_as_torch_wants_it(name: str) -> None:
    op, inputs = OPS[name], first(name).make("cpu", torch.float32, 0)
    if any(isinstance(one, torch.Tensor) and one.dtype == E4M3 for one in inputs.args):
        # torch's own check of the schema cannot compare e4m3 tensors; the gate above finds inputs that change.
        utils = ("test_autograd_registration", "test_faketensor")
        torch.library.opcheck(getattr(torch.ops.animx, name).default, inputs.args, test_utils=utils)
    else:
        gates.check_opcheck(op, first(name))
    gates.check_compiles(op, first(name))


@pytest.mark.skipif(gates.CUDA, reason="counts in the interpreter")
@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_declared_cost_is_what_the_body_loads_and_stores(name: str, case: str) -> None:
    gates.check_cost(OPS[name], OPS[name].cases()[case])


def test_the_same_inputs_give_the_same_bytes() -> None:
    for name in MINE:
        inputs = first(name).make(gates.DEVICE, torch.float16, 3)
        with gates.triton_bodies():
            one, other = (gates.results(OPS[name].function(*inputs.args)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


OFFICIAL = [(name, case) for name in MINE for case, made in OPS[name].cases().items() if made.official]


@pytest.mark.gpu
@pytest.mark.skipif(not gates.CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "case"), OFFICIAL)
def test_official_sizes_on_a_card(name: str, case: str) -> None:
    op = OPS[name]
    inputs = op.cases()[case].make("cuda", torch.bfloat16, 0)
    with gates.triton_bodies():
        found = op.function(*inputs.args, **inputs.kwargs)
    with gates.mode("reference"):
        truth = op.reference(*inputs.args)
    assert gates.worst(op, found, truth) <= op.tolerance[torch.bfloat16]


# Rows of 8 bits


def test_numbers_go_to_the_nearest_e4m3_number_and_half_way_ones_to_the_even() -> None:
    """Every e4m3 number, what lies half-way to the next one, and the neighbours of that."""
    grid = torch.arange(127, dtype=torch.uint8).view(E4M3).float()
    middle = (grid[1:] + grid[:-1]) / 2
    row = torch.cat([grid, middle, middle.nextafter(grid[1:]), middle.nextafter(grid[:-1])])
    row = torch.stack([row, -row]).to(gates.DEVICE)
    with gates.triton_bodies():
        found = quantise_rows(row)
    assert torch.equal(found.scale, torch.ones_like(found.scale))
    assert torch.equal(found.values.float(), row.to(E4M3).float())


def test_whole_numbers_of_8_bits_round_half_way_ones_to_the_even() -> None:
    row = torch.cat([torch.arange(-127, 127.5, 0.5), torch.tensor([0.49999997, 1.4999999, 2.5000002])])
    k = torch.stack([row, -row]).unflatten(-1, (4, 128)).movedim(0, 1).reshape(1, 4, 2, 128)
    values, scale = rows_to_int8(row[None])
    assert torch.equal(values[0].float(), row.round())
    assert float(scale) == 1.0
    with gates.triton_bodies():  # two keys that are each other's negative have nothing in common
        body, sizes = quantise_keys(k.contiguous().to(gates.DEVICE))
    plain, expected = rows_to_int8(k)
    assert torch.equal(body.cpu(), plain)
    assert torch.equal(sizes.cpu(), expected)


def test_a_weight_in_8_bits_is_near_itself_and_a_factor_of_two_changes_only_the_scale() -> None:
    weight = torch.randn(20, 64).exp() * torch.randn(20, 64).sign()
    weight[3] = 0
    values, scale = quantise_weight(weight)
    assert (values.dtype, scale.dtype, scale.shape) == (E4M3, torch.float32, (20,))
    back = values.float() * scale[:, None]
    assert torch.equal(back[3], weight[3])
    step = torch.maximum(weight.abs() / 16, weight.abs().amax(1, keepdim=True) / 448 * 2**-10)
    assert ((back - weight).abs() <= 1.0001 * step).all()
    torch.testing.assert_close(back.abs().amax(1), weight.abs().amax(1), rtol=1e-6, atol=0)
    again, doubled = quantise_weight(4 * weight)
    assert torch.equal(again, values)
    assert torch.equal(torch.cat([doubled[:3], doubled[4:]]), 4 * torch.cat([scale[:3], scale[4:]]))
    assert torch.equal(quantise_weight(back)[0], values)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bodies", [False, True])
def test_what_is_not_finite_stays_visible_in_its_row_and_in_no_other(bodies: bool) -> None:
    with torch.device(gates.DEVICE):
        x, bias = torch.randn(5, 32), torch.randn(16)
        weight, scale = quantise_weight(torch.randn(16, 32))
    x[1, 3], x[2, 0], x[3, :] = float("nan"), float("-inf"), 0
    with gates.triton_bodies() if bodies else gates.mode("auto"):
        for found in (linear8(x, weight, scale), geglu_linear8(x, weight, scale, bias)):
            assert found[[0, 3, 4]].isfinite().all()
            assert not found[[1, 2]].isfinite().any()
        assert not linear8(x, weight, scale)[3].any()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bodies", [False, True])
@pytest.mark.parametrize("odd", ["nan", "inf"])
def test_what_is_not_finite_stays_visible_in_its_query_or_in_the_head_of_its_key(odd: str, bodies: bool) -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 32, device=gates.DEVICE).unbind()
    q[0, 0, 1, 4] = k[0, 1, 2, 5] = float(odd)
    with gates.triton_bodies() if bodies else gates.mode("auto"):
        found = attention8(q, k, v)
    assert found[0, 0, [0, 2, 3, 4, 5]].isfinite().all()
    assert not found[0, 0, 1].isfinite().any()
    assert not found[0, 1].isfinite().any()


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")
def test_extreme_rows_give_the_same_numbers_everywhere_and_a_scale_that_is_not_finite_is_a_nan() -> None:
    x = torch.randn(7, 32)
    x[0], x[1], x[2] = 0, x[1] * 1e-38, x[2] * 1e37
    x[3, 4], x[4, 5], x[5] = float("inf"), float("nan"), float("-inf")
    told = (True, True, True, False, False, False, True)
    with gates.triton_bodies():
        pairs = [(OPS["quantise_rows"].function(x.to(gates.DEVICE)), OPS["quantise_rows"].reference(x))]
        k = x[:, None, None].expand(-1, 1, 2, -1) * torch.tensor([1.0, -1.0])[:, None]  # nothing in common
        pairs += [(OPS["quantise_keys"].function(k.to(gates.DEVICE)), OPS["quantise_keys"].reference(k))]
    for found, expected in pairs:
        values, scale = (one.cpu() for one in found)
        assert torch.equal(values.float(), expected[0].float())
        torch.testing.assert_close(scale, expected[1], rtol=0, atol=0, equal_nan=True)
        assert tuple(scale.flatten(1)[:, 0].isfinite().tolist()) == told
        assert not scale.isinf().any()


# Linear layers


def test_a_layer_in_8_bits_is_within_5_percent_of_the_exact_one_and_not_exact() -> None:
    x, weight, bias = torch.randn(200, 640), torch.randn(320, 640) / 25, torch.randn(320)
    exact = F.linear(x.double(), weight.double())
    eight = quantise_weight(weight)
    assert 0.03 < drift(linear8(x, *eight), exact) < 0.045
    assert 0.02 < drift(F.linear(x, dequantised(Rows8(eight[0], eight[1][:, None]))), exact) < 0.032
    residual = torch.randn(200, 320)
    added = linear8(x, *eight, bias, residual)
    torch.testing.assert_close(added, linear8(x, *eight) + bias + residual, rtol=1e-5, atol=1e-5)
    value, gate = F.linear(x.double(), weight.double(), bias.double()).chunk(2, -1)
    exact = value * F.gelu(gate)
    assert 0.03 < drift(geglu_linear8(x, *eight, bias), exact) < 0.06


def test_a_loud_channel_costs_the_others_nothing_because_8_bits_float() -> None:
    x, weight = torch.randn(100, 256), torch.randn(64, 256) / 16
    x[:, 7] *= 100  # the others keep 2^-9 of the largest and more
    exact = F.linear(x.double(), weight.double())
    assert drift(linear8(x, *quantise_weight(weight)), exact) < 0.05


def test_numbers_that_8_bits_hold_are_multiplied_exactly() -> None:
    x = torch.randint(-8, 9, (7, 48)).double()
    weight = torch.randint(-8, 9, (16, 48)).double()
    x[:, 0], weight[:, 0] = 448, 448  # scales of 1
    found = linear8(x.float(), *quantise_weight(weight.float()))
    assert torch.equal(found.double(), F.linear(x, weight))


def test_the_emulation_is_what_torchs_own_8_bit_product_gives() -> None:
    rows, (weight, scale) = quantise_rows(torch.randn(40, 128)), quantise_weight(torch.randn(48, 128))
    theirs = torch._scaled_mm(rows.values, weight.t(), rows.scale, scale[None], out_dtype=torch.float32)
    torch.testing.assert_close(linear8(rows, weight, scale, dtype=torch.float32), theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(gates.CUDA, reason="routes by the interpreter")
@pytest.mark.parametrize("name", ["linear8", "geglu_linear8"])
def test_the_library_route_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    product = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", lambda *given, **more: calls.append(1) or product(*given, **more))
    with dispatch.configured(name, route="library"):
        gates.check_forward(OPS[name], first(name), torch.bfloat16)
        assert calls == [1]
        gates.check_forward(OPS[name], first(name), torch.float32)  # it has no product with float32 results
    assert calls == [1]


@pytest.mark.skipif(gates.CUDA, reason="chooses blocks for the interpreter")
def test_blocks_join_without_a_seam() -> None:
    small = {"rows": 16, "columns": 16, "inner": 32, "group": 2}
    with dispatch.configured("linear8", **small):
        for case in ("small", "stretches"):
            gates.check_forward(OPS["linear8"], OPS["linear8"].cases()[case], torch.float32)
    with dispatch.configured("geglu_linear8", **small):
        gates.check_forward(OPS["geglu_linear8"], OPS["geglu_linear8"].cases()["small"], torch.float32)
    with dispatch.configured("attention8", BM=16, BN=32):
        gates.check_forward(OPS["attention8"], OPS["attention8"].cases()["81 keys"], torch.float32)
    with dispatch.configured("quantise_keys", elements=512):
        gates.check_forward(OPS["quantise_keys"], OPS["quantise_keys"].cases()["81 keys"], torch.float32)


def test_rows_quantised_once_serve_several_layers() -> None:
    x, one, other = torch.randn(2, 3, 32), quantise_weight(torch.randn(16, 32)), quantise_weight(torch.randn(8, 32))
    rows, bias = quantise_rows(x), torch.randn(8)
    assert torch.equal(linear8(rows, *one, dtype=torch.float32), linear8(x, *one))
    assert torch.equal(geglu_linear8(rows, *other, bias), geglu_linear8(x, *other, bias))
    assert linear8(rows, *one, residual=torch.randn(2, 3, 16).half()).dtype == torch.float16
    with pytest.raises(ValueError, match="give dtype"):
        linear8(rows, *one)


def test_rows_that_geglu_leaves_are_the_nearest_to_the_exact_ones() -> None:
    """Within half a step of e4m3 of the float64 result, with its own scale for each 128 channels."""
    x, bias = torch.randn(9, 64), torch.randn(512)
    weight = torch.randn(512, 64)
    weight[:128] *= 1000  # the first 128 channels are loud
    eight = quantise_weight(weight)
    rows = quantise_rows(x)
    given = gates.widened(gates.Inputs((*rows, *eight, bias, None, torch.float64), {})).args
    value, gate = OPS["linear8"].reference(*given).chunk(2, -1)
    exact = value * F.gelu(gate)
    with gates.triton_bodies():
        found = geglu_rows8(x.to(gates.DEVICE), *(one.to(gates.DEVICE) for one in (*eight, bias)))
    assert found.scale.shape == (9, 2)
    top = exact.unflatten(-1, (2, 128)).abs().amax(-1)
    torch.testing.assert_close(found.scale.cpu().double(), top / 448, rtol=1e-5, atol=0)
    top = top.repeat_interleave(128, -1)
    step = torch.maximum(exact.abs() / 16, top / 448 * 2**-10)
    away = (dequantised(found, torch.float64).cpu() - exact).abs()
    assert (away <= 1.001 * step + 1e-6 * top).all()


def test_rows_of_widths_that_128_does_not_divide_are_quantised_afterwards() -> None:
    x, eight, bias = torch.randn(5, 32), quantise_weight(torch.randn(160, 32)), torch.randn(160)
    found, expected = geglu_rows8(x, *eight, bias), quantise_rows(geglu_linear8(x, *eight, bias))
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.scale, expected.scale)


def test_a_feed_forward_in_8_bits_moves_three_fifths_of_the_bytes() -> None:
    """Official size, by declared costs: half between the layers and before them; residual and result stay."""
    rows, width, half = 33 * 6144, 320, torch.float16

    def empty(*shape: int, dtype: Any = half) -> Any:
        return torch.empty(shape, device="meta", dtype=dtype)

    def layer(inner: int, out: int, scales: int) -> tuple[Any, ...]:
        """x and weight in 8 bits, each before its scales."""
        x, weight = empty(rows, inner, dtype=E4M3), empty(out, inner, dtype=E4M3)
        return x, empty(rows, scales, dtype=torch.float32), weight, empty(out, dtype=torch.float32)

    exact = OPS["geglu_linear"].cost(empty(rows, width), empty(8 * width, width), empty(8 * width)).bytes
    exact += 2 * (rows * 4 * width + 4 * width * width + width + 2 * rows * width)
    one, two = layer(width, 8 * width, 1), layer(4 * width, width, 4 * width // 128)
    eight = OPS["geglu_rows8"].cost(*one, empty(8 * width))
    out = OPS["linear8"].cost(*two, empty(width), empty(rows, width), half)
    assert eight.flops == 2 * rows * width * 8 * width
    assert out.flops == 2 * rows * width * 4 * width
    assert (eight.launches, out.launches) == (1, 1)
    assert eight.bytes + out.bytes < 0.61 * exact


# Attention


@pytest.mark.parametrize("common", [0.0, 4.0, 100.0])
def test_attention_in_8_bits_is_within_1_percent_whatever_the_keys_have_in_common(common: float) -> None:
    """And 20 times as far off where the common part is left in, so that the 8 bits are spent on it."""
    q, k, v = torch.randn(3, 1, 2, 300, 64, dtype=torch.float64).unbind()
    k = k + common * torch.randn(1, 2, 1, 64, dtype=torch.float64)
    exact = F.scaled_dot_product_attention(q, k, v)
    assert 0.004 < drift(attention8(q.float(), k.float(), v.float()), exact) < 0.01
    left_in = drift(attention8_keys(q.float(), *rows_to_int8(k.float()), v.float()), exact)
    assert (left_in > 0.2) if common == 100 else (left_in > 0.015) if common else left_in < 0.01


def test_attention_with_loud_queries_is_within_3_percent() -> None:
    q, k, v = torch.randn(3, 1, 2, 200, 64, dtype=torch.float64).unbind()
    exact = F.scaled_dot_product_attention(3 * q, k, v)
    assert drift(attention8(3 * q.float(), k.float(), v.float()), exact) < 0.03


def test_the_order_of_keys_is_of_no_account_and_heads_do_not_mix() -> None:
    q, k, v = torch.randn(3, 2, 3, 21, 16).unbind()
    k = (k * 32).round() / 32  # sums of these are exact in any order
    found, order = attention8(q, k, v), torch.randperm(21)
    torch.testing.assert_close(attention8(q, k[:, :, order], v[:, :, order]), found, rtol=1e-5, atol=1e-5)
    alone = attention8(q[1:, 2:], k[1:, 2:], v[1:, 2:])
    torch.testing.assert_close(alone, found[1:, 2:], rtol=1e-6, atol=1e-6)


def test_the_result_is_laid_out_by_tokens() -> None:
    q, k, v = torch.randn(3, 2, 3, 5, 16).unbind()
    for bodies in (False, True):
        with gates.triton_bodies() if bodies else gates.mode("auto"):
            found = attention8(q.to(gates.DEVICE), k.to(gates.DEVICE), v.to(gates.DEVICE))
        rows = found.transpose(1, 2).flatten(2)
        assert rows.is_contiguous()
        assert rows.data_ptr() == found.data_ptr()


def test_the_emulation_goes_in_pieces_and_they_join(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 2, 2, 30, 16).unbind()
    whole, shapes = attention8(q, k, v), []
    monkeypatch.setattr(attending, "PIECE", 2 * 30 * 7)
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, *rest: shapes.append(x.numel()) or softmax(x, *rest))
    torch.testing.assert_close(attention8(q, k, v), whole, rtol=1e-6, atol=1e-6)
    assert max(shapes) <= 2 * 30 * 7
    assert len(shapes) == 2 * 5


def test_any_number_of_heads_fits_the_grid() -> None:
    """The second and third axis of a grid end at 65535; the first does not."""
    from animx_kernels import attention8_triton as body

    q = torch.empty(70000, 4, 2, 3, 16, device="meta", dtype=torch.float16).permute(2, 0, 3, 1, 4)[0]
    k8, scale = torch.empty(q.shape, device="meta", dtype=torch.int8), torch.empty(q.shape[:3], device="meta")
    mean = torch.empty(210000, 16, device="meta")
    plans = [body.plan_attention(q, k8, scale, q, q, 90, False), *body.plan_keys(q, mean, k8, scale, 90)]
    assert [launch.grid for launch in plans] == [(210000,)] * 3


def test_a_whole_block_agrees_between_bodies_and_references() -> None:
    """Norm, q k v, attention, projection with residual, norm, feed-forward: a few numbers round to the other side."""
    width, heads = 64, 2
    shapes = ((3 * width, width), (width, width), (8 * width, width), (width, 4 * width))
    with torch.device(gates.DEVICE):
        x, norm, shift = torch.randn(2, 40, width), 1 + torch.randn(width) / 5, torch.randn(width) / 5
        qkv, out, inner, outer = (quantise_weight(torch.randn(shape) * shape[1] ** -0.5) for shape in shapes)
        bias, wide = torch.randn(width), torch.randn(8 * width)

    def block() -> Any:
        y, rows = add_layer_norm8(x, None, norm, shift, 1e-5)
        parts = linear8(rows, *qkv, dtype=torch.float32).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attention8(*parts.unbind()).transpose(1, 2).flatten(2)
        y, rows = add_layer_norm8(y, linear8(attended, *out, bias), norm, shift, 1e-5)
        return linear8(geglu_rows8(rows, *inner, wide), *outer, bias, residual=y)

    with gates.mode("reference"):
        plain = block()
    with gates.triton_bodies():
        found = block()
    assert drift(found, plain.double()) < 1e-2
    assert float((found != plain).double().mean()) > 0  # two computations, not one


# Where


def test_a_caller_learns_before_it_quantises_whether_a_device_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal8("cpu", 320, 320) == "8-bit products are emulated on cpu"
    assert attending.attention8_refusal("cpu", 64) == "8-bit scores are emulated on cpu"
    monkeypatch.delenv("ANIMX_KERNELS", raising=False)
    for capability, linears, attention in ((75, False, False), (80, False, True), (89, True, True), (90, True, True)):
        monkeypatch.setattr(quantise8, "card", lambda device, found=capability: found)
        monkeypatch.setattr(attending, "card", lambda device, found=capability: found)
        assert (refusal8("cuda", 320, 960) is None) == linears
        assert (attending.attention8_refusal("cuda", 64) is None) == attention
    assert "multiples of 16" in str(refusal8("cuda", 320, 40))
    assert "head width 160" in str(attending.attention8_refusal("cuda", 160))
    with gates.mode("reference"):
        assert refusal8("cuda", 320, 320) == "ANIMX_KERNELS=reference"
        assert attending.attention8_refusal("cuda", 64) == "ANIMX_KERNELS=reference"
    monkeypatch.setattr(quantise8, "card", lambda device: 80)
    x = torch.empty(3, 16, device="meta")
    assert "below 89" in str(quantise8.body_refusal(x))
    assert quantise8.body_refusal(torch.empty(3, 16)) is None


def test_wide_heads_and_short_stretches_go_to_the_reference_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "animx.kernels")
    q, k, v = torch.randn(3, 1, 1, 4, 160).unbind()
    with gates.mode("interpret"):
        found = attention8(q, k, v)
        rows = Rows8(torch.randn(3, 48).to(E4M3), torch.rand(3, 2))
        y = linear8(rows, *quantise_weight(torch.eye(48)), dtype=torch.float32)
    assert torch.equal(found, attention8(q, k, v))
    torch.testing.assert_close(y, dequantised(rows))
    told = [one.getMessage() for one in caplog.records]
    assert any("attention8: plain PyTorch is used (head width 160" in one for one in told)
    assert any("linear8: plain PyTorch is used (a scale for 24 channels" in one for one in told)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w, s: linear8(x[:, :16], w, s),
        lambda x, w, s: linear8(x, w, s[:4]),
        lambda x, w, s: linear8(x, w, s, residual=x),
        lambda x, w, s: geglu_linear8(x, w[:7], s[:7], s[:7]),
        lambda x, w, s: geglu_rows8(Rows8(x.to(E4M3), s[None]), w.repeat(32, 1), s.repeat(32), s.repeat(32)),
        lambda x, w, s: quantise_weight(x[0]),
        lambda x, w, s: quantise_keys(x),
        lambda x, w, s: attention8(x[None, None], x[None, None, :, :16], x[None, None]),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_shapes(call: Any) -> None:
    with pytest.raises(ValueError, match=r"\(\d"):
        call(torch.randn(3, 32), *quantise_weight(torch.randn(8, 32)))


# Addresses

FAR = 2**30


def far(near: Any, axis: int) -> Any:
    """The same numbers with `axis` 2^30 elements apart, the last axis adjacent."""
    strides = list(near.contiguous().stride())
    strides[axis] = FAR
    room = torch.empty((near.shape[axis] - 1) * FAR + near.numel(), dtype=near.dtype)
    return room.as_strided(near.shape, strides).copy_(near)


@pytest.mark.skipif(gates.CUDA, reason="runs in the interpreter")
def test_inputs_may_lie_beyond_31_bits() -> None:
    half = torch.float16
    x, eight = torch.randn(3, 32).half(), quantise_weight(torch.randn(16, 32))
    rows, residual, bias = quantise_rows(x), torch.randn(3, 16).half(), torch.randn(16).half()
    with gates.mode("interpret"), gates.fenced():
        for near, distant in zip(quantise_rows(x), quantise_rows(far(x, 0)), strict=True):
            assert torch.equal(near, distant)
        distant = Rows8(far(rows.values, 0), rows.scale)
        near = linear8(rows, *eight, bias, residual)
        assert torch.equal(near, linear8(distant, *eight, bias, far(residual, 0)))
        near = geglu_linear8(rows, *eight, bias, half)
        assert torch.equal(near, geglu_linear8(distant, *eight, bias, half))
        for axis in range(3):
            shape = [1, 1, 1, 16]
            shape[axis] = 3
            q = torch.randn(shape, dtype=half)
            assert torch.equal(attention8(q, q, q), attention8(*[far(q, axis)] * 3))


@pytest.mark.skipif(gates.CUDA, reason="runs single programs in the interpreter")
def test_outputs_may_reach_beyond_31_bits() -> None:
    """More than 2^31 elements; only the last program runs, and only what it touches takes memory."""
    from animx_kernels import attention8_triton, linear8_triton, quantise8_triton
    from animx_kernels.launch import Launch, run

    half, many = torch.float16, 2**27 + 3
    x, (weight, scale) = torch.randn(1, 16).half(), quantise_weight(torch.randn(32, 16))
    values, size = quantise_rows(x)
    bias = torch.randn(32).half()

    def last(launch: Launch) -> None:
        with gates.mode("interpret"):
            assert dispatch.use_triton("linear8", x)
            with gates.last_program_only():
                run(launch)

    y, sizes = torch.empty(many, 16, dtype=E4M3), torch.empty(many)
    last(quantise8_triton.plan_rows(x.expand(many, -1), y, sizes, 90, True))
    assert torch.equal(y[-1].float(), values[0].float())
    assert torch.equal(sizes[-1:], size[0])
    sizes = torch.empty(many, 1)
    sizes[-1] = size
    given = (values.expand(many, -1), sizes, weight, scale)
    out = torch.empty(many, 32, dtype=half)
    last(linear8_triton.plan_linear8(*given, None, None, out, 90, True))
    torch.testing.assert_close(out[-1:], linear8(Rows8(values, size), weight, scale, dtype=half), rtol=2e-3, atol=2e-3)
    out = torch.empty(many, 16, dtype=half)
    last(linear8_triton.plan_geglu_linear8(*given, bias, out, None, 90, True))
    torch.testing.assert_close(out[-1:], geglu_linear8(Rows8(values, size), weight, scale, bias), rtol=4e-3, atol=4e-3)
    q = torch.randn(1, 1, 3, 16).half()
    k8, k_scale = quantise_keys(q)
    batch, out = 2**26, torch.empty(2**26, 3, 1, 16, dtype=half).transpose(1, 2)
    assert out.numel() > 2**31
    everywhere = [one.expand(batch, *one.shape[1:]) for one in (q, k8, k_scale, q)]
    last(attention8_triton.plan_attention(*everywhere, out, 90, False))
    torch.testing.assert_close(out[-1:], attention8(q, q, q), rtol=4e-3, atol=4e-3)


# Machine code

SIZES_OF_ONE = """
import torch
from animx_kernels import attention8_triton as a, linear8_triton as l, quantise8_triton as q
from animx_kernels.ahead import compile_for
from animx_kernels.launch import build

def e(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, device="meta", dtype=dtype)

f, e8, o = torch.float32, torch.float8_e4m3fn, e(1, 1, 1, 1)
k8, size = e(1, 1, 1, 1, dtype=torch.int8), e(1, 1, 1, dtype=f)
one = (e(1, 1, dtype=e8), e(1, 1, dtype=f))
wide = (e(256, 1, dtype=e8), e(256, dtype=f), e(256), e(1, 128, dtype=e8), e(1, 1, dtype=f))
for launch in (
    q.plan_rows(e(1, 1), e(1, 1, dtype=e8), e(1, dtype=f), 89, False),
    l.plan_linear8(*one, e(1, 1, dtype=e8), e(1, dtype=f), e(1), e(1, 1), e(1, 1), 89, False),
    l.plan_linear8(*one, e(1, 1, dtype=e8), e(1, dtype=f), None, None, e(1, 1), 89, False),
    l.plan_geglu_linear8(*one, e(2, 1, dtype=e8), e(2, dtype=f), e(2), e(1, 1), None, 89, False),
    l.plan_geglu_linear8(*one, *wide, 89, False),
    *a.plan_keys(o, e(1, 1, dtype=f), k8, size, 89),
    a.plan_attention(o, k8, size, o, o, 89, False),
):
    compile_for(build(launch), 89)
"""


@pytest.mark.long
def test_sizes_of_one_are_compiled_in_and_still_compile(root: Path, request: pytest.FixtureRequest) -> None:
    """The launcher makes constants of arguments that are 1; a body must not treat them as run-time numbers."""
    cache = request.config.cache
    folder = {"TRITON_CACHE_DIR": str(cache.mkdir("triton"))} if cache else {}
    environ = {**gates.environment(root), **folder}
    subprocess.run([sys.executable, "-c", SIZES_OF_ONE], check=True, cwd=root, env=environ)


INSTRUCTIONS = """
from animx_kernels import ahead
from animx_kernels.dispatch import load_ops
for name, number in (("linear8", 0), ("linear8", 2), ("geglu_rows8", 0), ("attention8", 0)):
    for card in (80, 89, 90):
        found = load_ops()[name].aot(card)
        if found:
            print(name, card, ahead.compile_for(found[number], card).asm["ptx"].replace(chr(10), " "))
"""


@pytest.mark.slow
def test_what_is_compiled_multiplies_in_8_bits(root: Path, request: pytest.FixtureRequest) -> None:
    """e4m3 products from sm_89 on and int8 products from sm_80 on, by the widest unit the card has."""
    cache = request.config.cache
    folder = {"TRITON_CACHE_DIR": str(cache.mkdir("triton"))} if cache else {}
    environ = {**gates.environment(root), **folder}
    command = [sys.executable, "-c", INSTRUCTIONS]
    told = subprocess.run(command, check=True, cwd=root, env=environ, capture_output=True, text=True)
    lines = told.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("attention8")] == ["80", "89", "90"]
    assert len(lines) == 3 * 2 + 3
    for line in lines:
        name, card = line.split()[:2]
        kind = r"s32\.s8\.s8" if name == "attention8" else r"f32\.e4m3\.e4m3"
        unit = r"wgmma\.mma_async\S*" if card == "90" else r"mma\.sync\S*"
        assert re.search(unit + kind, line), f"{name} on sm_{card}"
        if name == "attention8":  # shares times values stay in 16 bits
            assert re.search(unit + r"f32\.bf16\.bf16", line), card
