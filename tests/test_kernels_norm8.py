"""LayerNorm that leaves rows of 8 bits: the gates of every operator, and that it is the two operators it stands for."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("triton", reason="needs the 'kernels' extra")

import kernel_gates as gates  # noqa: E402
from kernel_gates import TYPES  # noqa: E402

from animx_kernels.add_layer_norm import add_layer_norm  # noqa: E402
from animx_kernels.dispatch import OPS, load_ops  # noqa: E402
from animx_kernels.layer_norm8 import add_layer_norm8  # noqa: E402
from animx_kernels.quantise8 import dequantised, quantise_rows  # noqa: E402

load_ops()
MINE = ("layer_norm8", "add_layer_norm8")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", MINE)
def test_the_body_is_the_reference_for_every_type_of_storage(name: str, dtype: str) -> None:
    cases = gates.small_cases(OPS[name])
    gates.check_forward(OPS[name], cases[{"float32": "small", "float16": "odd", "bfloat16": "one row"}[dtype]],
                        TYPES[dtype])  # fmt: skip


@pytest.mark.parametrize("name", MINE)
def test_it_reads_rows_that_lie_apart_and_touches_what_it_declares(name: str) -> None:
    gates.check_forward(OPS[name], gates.small_cases(OPS[name])["odd"], torch.float16, apart=True)
    for case in gates.small_cases(OPS[name]).values():
        gates.check_cost(OPS[name], case)


@pytest.mark.parametrize("name", MINE)
def test_torch_sees_what_it_does(name: str) -> None:
    gates.check_opcheck(OPS[name], gates.small_cases(OPS[name])["small"])


@pytest.mark.parametrize("added", [True, False])
def test_it_is_the_norm_and_then_its_rows_in_8_bits(added: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(33, 320, generator=g) + 3 for _ in range(2))
    weight, bias = torch.randn(320, generator=g), torch.randn(320, generator=g)
    more = residual if added else None
    total, normed = add_layer_norm(x, more, weight, bias, 1e-5)
    wanted = quantise_rows(normed)
    with gates.triton_bodies():
        found_total, rows = add_layer_norm8(x, more, weight, bias, 1e-5)
    assert torch.equal(found_total, total)
    assert torch.allclose(rows.scale, wanted.scale, rtol=1e-5, atol=0)
    other = rows.values.view(torch.uint8) != wanted.values.view(torch.uint8)
    assert other.float().mean() < 1e-3  # what lay half-way between two numbers
    off = (dequantised(rows) - normed).norm() / normed.norm()
    assert 0.01 < off < 0.03  # 3 bits behind the point


def test_what_is_no_number_stays_visible() -> None:
    x = torch.randn(4, 64)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    with gates.triton_bodies():
        _, rows = add_layer_norm8(x, None, torch.ones(64), torch.zeros(64), 1e-5)
    assert dequantised(rows).isnan().any(1).tolist() == [False, True, True, False]


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, one = torch.zeros(3, 8), torch.ones(8)
    with pytest.raises(ValueError, match="do not fit"):
        add_layer_norm8(x, None, one[:4], one, 1e-5)
    with pytest.raises(ValueError, match="differ"):
        add_layer_norm8(x, x[:2], one, one, 1e-5)
