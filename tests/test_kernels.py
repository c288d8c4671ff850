"""Operators of `animx_kernels`: every Triton body does what the plain torch function beside it does."""

from __future__ import annotations

import ast
import logging
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")

import kernel_gates as gates  # noqa: E402
from kernel_gates import TYPES  # noqa: E402

from animx_kernels import dispatch, providers, tuning  # noqa: E402
from animx_kernels.add_layer_norm import add_layer_norm  # noqa: E402
from animx_kernels.dispatch import OPS, Case, load_ops  # noqa: E402
from animx_kernels.geglu import geglu, geglu_linear  # noqa: E402
from animx_kernels.group_norm_silu import group_norm_silu, parts  # noqa: E402
from animx_kernels.temporal_conv import channel_sums, norm_affine, temporal_conv  # noqa: E402

load_ops()
MINE = (
    "geglu", "geglu_backward", "geglu_linear", "group_norm_silu", "group_norm_silu_backward", "add_layer_norm",
    "layer_norm", "layer_norm_backward", "temporal_conv", "channel_sums", "norm_affine",
)  # fmt: skip
CASES = [(name, case) for name in MINE for case in gates.small_cases(OPS[name])]


def _case(name: str, case: str) -> Case:
    return OPS[name].cases()[case]


def test_triton_is_there_wherever_torch_is() -> None:
    """A suite that skipped the kernels would prove nothing: install the extra 'kernels'."""
    assert dispatch.has_triton(), "torch is installed and triton is not: pip install 'animx[kernels]'"


STORED = [(name, case, dtype) for name in MINE for number, case in enumerate(gates.small_cases(OPS[name]))
          for dtype in TYPES if dtype == "float32" or number < 2]  # fmt: skip


@pytest.mark.parametrize(("name", "case", "dtype"), STORED)
def test_the_triton_body_equals_the_float64_reference(name: str, case: str, dtype: str) -> None:
    gates.check_forward(OPS[name], _case(name, case), TYPES[dtype])


@pytest.mark.parametrize("name", [name for name in MINE if name != "norm_affine"])
def test_inputs_may_lie_apart_in_memory(name: str) -> None:
    case = next(iter(gates.small_cases(OPS[name]).values()))
    gates.check_forward(OPS[name], case, torch.float16, apart=True)


TRAINED = [(name, case, dtype) for name, case in CASES if OPS[name].gradients for dtype in TYPES
           if dtype == "float32" or case == "small"]  # fmt: skip


@pytest.mark.parametrize(("name", "case", "dtype"), TRAINED)
def test_gradients_equal_those_of_the_float64_reference(name: str, case: str, dtype: str) -> None:
    gates.check_gradients(OPS[name], _case(name, case), TYPES[dtype])


@pytest.mark.parametrize("name", MINE)
def test_the_operator_is_registered_as_torch_wants_it(name: str) -> None:
    gates.check_opcheck(OPS[name], next(iter(gates.small_cases(OPS[name]).values())))


@pytest.mark.parametrize("name", MINE)
def test_the_operator_compiles_in_a_full_graph(name: str) -> None:
    gates.check_compiles(OPS[name], next(iter(gates.small_cases(OPS[name]).values())))


@pytest.mark.skipif(gates.CUDA, reason="counts in the interpreter")
@pytest.mark.parametrize(("name", "case"), [(n, c) for n, c in CASES if "frames" not in c])
def test_the_declared_cost_is_what_the_body_loads_and_stores(name: str, case: str) -> None:
    gates.check_cost(OPS[name], _case(name, case))


def test_every_case_of_every_size_has_a_cost_and_official_ones_cost_what_they_move() -> None:
    """Official shapes on the meta device: activations once in, once out, twice in for a norm, and little else."""
    x = torch.empty(33 * 6144, 320, device="meta", dtype=torch.float16)
    one = x.numel() * 2
    assert OPS["geglu"].cost(x) == dispatch.Cost(1, 0, one, one // 2)
    norm = OPS["group_norm_silu"].cost(x.view(33, 6144, 320), x[0], x[0], 32, 1e-5)
    assert norm.launches == 2
    assert 3 * one < norm.bytes < 3.03 * one
    assert OPS["add_layer_norm"].cost(x, x, x[0], x[0], 1e-5).bytes == pytest.approx(4 * one, rel=1e-4)
    clip = x.view(1, 33, 6144, 320)
    weight = torch.empty(320, 320, 3, device="meta", dtype=torch.float16)
    conv = OPS["temporal_conv"].cost(clip, weight, x[0], None, None, False, clip, True)
    assert conv.flops == 2 * x.numel() * 320 * 3
    assert 3 * one < conv.bytes < 3.03 * one
    assert OPS["geglu_linear"].cost(x, x.new_empty(2560, 320), x.new_empty(2560)).flops == 2 * x.numel() * 2560


def test_group_norm_is_that_of_torch_and_of_the_concatenation() -> None:
    x, other = torch.randn(2, 9, 12, dtype=torch.float64), torch.randn(2, 9, 6, dtype=torch.float64)
    norm = torch.nn.GroupNorm(3, 18, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    both = torch.cat([x, other], -1)
    expected = torch.nn.functional.silu(norm(both.transpose(1, 2))).transpose(1, 2)
    found = group_norm_silu(x, norm.weight, norm.bias, 3, norm.eps, other=other)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    shift = torch.randn(2, 18, dtype=torch.float64)
    moved = group_norm_silu(both + shift[:, None], norm.weight, norm.bias, 3, norm.eps)
    torch.testing.assert_close(
        group_norm_silu(x, norm.weight, norm.bias, 3, norm.eps, shift=shift, other=other), moved, rtol=1e-12, atol=1e-12
    )


def test_a_large_mean_costs_the_group_norm_no_digits() -> None:
    x = (torch.randn(1, 64, 8) + 1000).to(gates.DEVICE)
    weight, bias = torch.ones(8, device=x.device), torch.zeros(8, device=x.device)
    truth = group_norm_silu(x.double(), weight.double(), bias.double(), 2, 1e-5)
    with gates.triton_bodies():
        found = group_norm_silu(x, weight, bias, 2, 1e-5)
    assert float((found - truth).abs().max()) < 2e-4  # float32 holds 1000 + x to 6e-5


def test_parts_of_an_instance_cover_its_tokens_and_none_is_empty() -> None:
    for instances in (1, 33):
        for tokens in (1, 96, 127, 128, 255, 6144, 33 * 6144, 10_000_019):
            for channels in (24, 320, 2560):
                split = parts(instances, tokens, channels)
                size = -(-tokens // split)
                assert (split - 1) * size < tokens <= split * size


def test_the_sums_of_a_convolution_are_the_next_group_norm() -> None:
    x = torch.randn(2, 4, 21, 16, dtype=torch.float64)
    weight, bias = torch.randn(24, 16, 3, dtype=torch.float64), torch.randn(24, dtype=torch.float64)
    norm = torch.nn.GroupNorm(4, 24, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    y, sums = temporal_conv(x, weight, bias, stats=True)
    expected = norm(y.movedim(-1, 1)).movedim(1, -1)
    for given in (sums, channel_sums(y), sums.sum(1)):
        scale, offset = norm_affine(given, 4 * 21, norm.weight, norm.bias, 4, norm.eps)
        torch.testing.assert_close(y * scale[:, None, None] + offset[:, None, None], expected, rtol=1e-10, atol=1e-10)


def test_temporal_convolution_is_conv3d_after_norm_and_silu() -> None:
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    conv = torch.nn.Conv3d(8, 12, (3, 1, 1), padding=(1, 0, 0), dtype=torch.float64)
    norm = torch.nn.GroupNorm(2, 8, dtype=torch.float64)
    torch.nn.init.normal_(norm.bias)
    volume = x.permute(0, 3, 1, 2)[..., None]  # [B, C, T, N, 1]
    expected = conv(torch.nn.functional.silu(norm(volume)))[..., 0].permute(0, 2, 3, 1)
    scale, offset = norm_affine(channel_sums(x), 5 * 6, norm.weight, norm.bias, 2, norm.eps)
    weight = conv.weight[..., 0, 0]
    assert conv.bias is not None
    y, none = temporal_conv(x, weight, conv.bias, scale, offset, silu=True)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    assert none.shape == (0,)
    added, _ = temporal_conv(x, weight, conv.bias, scale, offset, silu=True, residual=expected)
    torch.testing.assert_close(added, 2 * expected, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(gates.CUDA, reason="chooses blocks for the interpreter")
@pytest.mark.parametrize("segments", [2, 4])
@pytest.mark.parametrize("pixels", [16, 64])
def test_segments_of_a_clip_join_without_a_seam(segments: int, pixels: int) -> None:
    case = _case("temporal_conv", "33 frames" if pixels == 16 else "all")
    with dispatch.configured("temporal_conv", segments=segments, pixels=pixels, columns=32, inner=16):
        gates.check_forward(OPS["temporal_conv"], case, torch.float32)


def test_geglu_linear_is_the_projection_and_geglu() -> None:
    x, linear = torch.randn(2, 5, 8, dtype=torch.float64), torch.nn.Linear(8, 12, dtype=torch.float64)
    torch.testing.assert_close(geglu_linear(x, linear.weight, linear.bias), geglu(linear(x)), rtol=1e-12, atol=1e-12)
    with gates.triton_bodies(), dispatch.configured("geglu_linear", route="library"):
        found = geglu_linear(x.float(), linear.weight.float(), linear.bias.float())
    torch.testing.assert_close(found.double(), geglu(linear(x)), rtol=1e-4, atol=1e-5)


def test_layer_norm_without_residual_hands_the_input_through() -> None:
    x, weight, bias = torch.randn(4, 8), torch.randn(8), torch.randn(8)
    total, normed = add_layer_norm(x, None, weight, bias, 1e-5)
    assert total is x
    torch.testing.assert_close(normed, torch.nn.functional.layer_norm(x, (8,), weight, bias, 1e-5))


def test_the_same_inputs_give_the_same_bytes() -> None:
    for name in ("group_norm_silu", "group_norm_silu_backward", "temporal_conv", "layer_norm_backward"):
        inputs = next(iter(gates.small_cases(OPS[name]).values())).make(gates.DEVICE, torch.float32, 3)
        with gates.triton_bodies():
            first, second = (gates.results(OPS[name].function(*inputs.args)) for _ in range(2))
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: geglu(x[..., :7]),
        lambda x: geglu_linear(x, x[:6, :7], x[0, :6]),
        lambda x: group_norm_silu(x[None], x[0], x[0], 3, 1e-5),
        lambda x: add_layer_norm(x, x[:2], x[0], x[0], 1e-5),
        lambda x: temporal_conv(x[None], x[..., None], x[0]),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_shapes(call: Any) -> None:
    with pytest.raises(ValueError, match=r"\(\d"):
        call(torch.randn(8, 8))


def test_the_table_of_block_sizes_names_operators_cards_and_where_its_numbers_come_from() -> None:
    for name, cards in tuning.shipped().items():
        assert name in OPS
        assert set(cards) <= {"any", "sm_80", "sm_89", "sm_90"}
        assert cards["any"]["default"]["origin"] in ("predicted", "measured")
    assert dispatch.tuned("geglu_linear", "320", 90)["columns"] != dispatch.tuned("geglu_linear", "320", 89)["columns"]
    with dispatch.configured("geglu_linear", columns=7):
        assert dispatch.tuned("geglu_linear", "320", 90)["columns"] == 7
    assert dispatch.tuned("geglu_linear", "320", 90)["columns"] != 7


def test_float64_goes_to_the_reference_in_every_mode() -> None:
    x = torch.randn(3, 8, dtype=torch.float64)
    with gates.mode("interpret"):
        assert not dispatch.use_triton("geglu", x)
        assert torch.equal(geglu(x), OPS["geglu"].reference(x))


def test_an_unknown_mode_is_refused_and_known_ones_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "finder", None)  # animx may have opened its door to third parties
    x = torch.randn(3, 8)
    with gates.mode("fast"), pytest.raises(ValueError, match="auto, reference, interpret"):
        geglu(x)
    with gates.mode("reference"):
        assert not dispatch.use_triton("geglu", x)
    with gates.mode("auto"):
        assert not dispatch.use_triton("geglu", x)
    if not gates.CUDA:  # the interpreter, once on, stays on in this process
        with gates.mode("interpret"):
            assert dispatch.use_triton("geglu", x)


def test_a_reference_taken_for_a_reason_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "animx.kernels")
    x = torch.zeros(1, 9000)
    with gates.mode("interpret"):
        for _ in range(2):
            found = add_layer_norm(x, x, torch.ones(9000), torch.zeros(9000), 1e-5)
    assert torch.equal(found[0], x)
    assert [r.getMessage() for r in caplog.records] == ["add_layer_norm: plain PyTorch is used (rows of 9000 channels)"]


def test_bodies_are_imported_only_where_they_are_launched() -> None:
    """Triton is no dependency of a CPU torch: no file of an operator imports it, or its bodies, at the start."""
    folder = Path(dispatch.__file__).parent
    for path in folder.glob("*.py"):
        if not path.stem.endswith("_triton"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not [n for n in names if n.startswith("triton") or n.endswith("_triton")], path.name


OFFICIAL = [(name, case) for name in MINE for case, made in OPS[name].cases().items() if made.official]


@pytest.mark.gpu
@pytest.mark.skipif(not gates.CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("name", "case"), OFFICIAL)
def test_official_sizes_on_a_card(name: str, case: str, dtype: str) -> None:
    """At full size, against the reference in float32 on the same card (float64 would not fit)."""
    op = OPS[name]
    inputs = op.cases()[case].make("cuda", TYPES[dtype], 0)
    with gates.triton_bodies():
        found = op.function(*inputs.args, **inputs.kwargs)
    with gates.mode("reference"):
        truth = op.reference(*gates.widened(inputs, torch.float32).args)
    assert gates.worst(op, found, truth) <= op.tolerance[TYPES[dtype]]


FAR = 2**30
"""A stride in elements: the third row of it lies beyond what 31 bits can count."""


@pytest.mark.skipif(gates.CUDA, reason="runs single programs in the interpreter")
class TestAddressesBeyond31Bits:
    """Rows 2^30 elements apart, and outputs of more than 2^31 elements, of which only touched pages take memory."""

    @staticmethod
    def _far(*shape: int) -> Any:
        """The same numbers twice: [shape] contiguous, and with the first axis 2^30 elements apart."""
        near = torch.randn(shape, dtype=torch.float16)
        room = torch.empty((shape[0] - 1) * FAR + near[0].numel(), dtype=torch.float16)
        far = room.as_strided(shape, (FAR, *near.stride()[1:]))
        far.copy_(near)
        return near, far

    def test_inputs(self) -> None:
        weight, bias = torch.randn(16, dtype=torch.float16), torch.randn(16, dtype=torch.float16)
        square, taps = torch.randn(24, 16, dtype=torch.float16), torch.randn(16, 16, 3, dtype=torch.float16)
        near, far = self._far(3, 16)
        with gates.mode("interpret"), gates.fenced():
            assert torch.equal(geglu(near), geglu(far))
            assert torch.equal(geglu_linear(near, square, square[:, 0]), geglu_linear(far, square, square[:, 0]))
            one, other = (add_layer_norm(x, x, weight, bias, 1e-5)[1] for x in (near, far))
            assert torch.equal(one, other)
            halves = (near[None, :, :8], far[None, :, :8])
            one, other = (group_norm_silu(x, weight, bias, 4, 1e-5, other=x) for x in halves)
            assert torch.equal(one, other)
            one, other = (group_norm_silu(x[:, None], weight, bias, 4, 1e-5) for x in (near, far))
            assert torch.equal(one, other)
            for axis in range(3):  # clips, frames or pixels far apart
                shape, strides = [1, 1, 1], [16, 16, 16]
                shape[axis], strides[axis] = 3, FAR
                mine, theirs = near.view(*shape, 16), far.as_strided((*shape, 16), (*strides, 1))
                assert torch.equal(channel_sums(mine), channel_sums(theirs))
                one, other = (temporal_conv(x, taps, bias, residual=x)[0] for x in (mine, theirs))
                assert torch.equal(one, other)

    def test_outputs(self) -> None:
        from animx_kernels import add_layer_norm_triton, geglu_triton, group_norm_silu_triton, temporal_conv_triton
        from animx_kernels.launch import Launch, run

        half, rows, width = torch.float16, 2**27 + 3, 16
        weight, bias = torch.randn(width, dtype=half), torch.randn(width, dtype=half)
        x = torch.randn(1, 2 * width, dtype=half)
        wide, narrow = x.expand(rows, -1), x[:, :width].expand(rows, -1)

        def last(launch: Launch, out: torch.Tensor) -> torch.Tensor:
            """What the last program of the launch leaves in the last row of its output."""
            with gates.mode("interpret"):
                assert dispatch.use_triton("geglu", x)
            with gates.fenced(), gates.last_program_only():
                run(launch)
            return out[-1]

        y, z = (torch.empty(rows, width, dtype=half) for _ in range(2))
        assert y.numel() > 2**31
        expected = OPS["geglu"].reference(x)[0]
        torch.testing.assert_close(last(geglu_triton.plan_geglu(wide, y, 90), y), expected, rtol=2e-3, atol=1e-3)
        square = torch.randn(2 * width, width, dtype=half)
        launch = geglu_triton.plan_geglu_linear(narrow, square, x[0], y, 90, widen=True)
        expected = OPS["geglu_linear"].reference(x[:, :width], square, x[0])[0]
        torch.testing.assert_close(last(launch, y), expected, rtol=4e-3, atol=4e-3)
        launch = add_layer_norm_triton.plan(narrow, narrow, weight, bias, z, y, 1e-5, 90)
        expected = OPS["add_layer_norm"].reference(x[:, :width], x[:, :width], weight, bias, 1e-5)
        torch.testing.assert_close(last(launch, y), expected[1][0], rtol=4e-3, atol=4e-3)
        torch.testing.assert_close(z[-1], expected[0][0])

        instances, tokens = 2**22 + 1, 32
        image = torch.randn(1, tokens, width, dtype=half)
        many, out = image.expand(instances, -1, -1), torch.empty(instances, tokens, width, dtype=half)
        partial = torch.empty(instances, 1, 2, width)
        for launch in group_norm_silu_triton.plan(many, weight, bias, 4, 1e-5, True, None, None, partial, out, 90):
            last(launch, out)
        expected = OPS["group_norm_silu"].reference(image, weight, bias, 4, 1e-5)[0]
        torch.testing.assert_close(out[-1], expected, rtol=4e-3, atol=4e-3)

        frames, pixels = 3, 2**26
        clip = torch.randn(1, frames, 1, width, dtype=half)
        out = torch.empty(1, frames, pixels, width, dtype=half)
        taps = torch.randn(width, width, 3, dtype=half)
        given = clip.expand(-1, -1, pixels, -1)
        launch = temporal_conv_triton.plan_conv(given, taps, bias, None, None, False, None, out, None, 90, widen=True)
        last(launch, out)
        expected = OPS["temporal_conv"].reference(clip, taps, bias)[0][0, :, 0]
        torch.testing.assert_close(out[0, :, -1], expected, rtol=4e-3, atol=8e-3)
