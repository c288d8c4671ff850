"""The counter itself: what operators cost, fakes that behave, places and weights that are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

import torch
from counts import tiny
from torch import nn
from torch.nn import functional as F

from animx.counting import costs, fakes, report
from animx.counting.costs import UnknownOperatorError
from animx.counting.fakes import autocast, pretend
from animx.counting.log import Entry, HostWaitError, listen
from animx.counting.parts import decoding, encoding, image_vectors


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- the counter itself ---------------------------------------------------------------------------------------------


def log_of(work: Any, *roots: nn.Module) -> list[Entry]:
    return listen(work, *roots)[1]


def test_an_operator_without_a_known_cost_is_an_error() -> None:
    with pretend():
        x = torch.zeros(3, 3, device="cuda")
        with pytest.raises(UnknownOperatorError, match=r"aten\.cholesky.* no known cost"):
            log_of(lambda: torch.ops.aten.cholesky.default(x))


def test_an_operator_of_ours_that_states_no_cost_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from animx_kernels import dispatch, geglu

    dispatch.load_ops()
    monkeypatch.delitem(dispatch.OPS, "geglu")
    with pretend():
        x = torch.zeros(6, 64, device="cuda", dtype=torch.float16)
        with pytest.raises(UnknownOperatorError, match="states no cost"):
            log_of(lambda: geglu.geglu(x))


def test_the_cost_of_a_kernel_does_not_stand_for_a_call_that_the_kernel_would_refuse() -> None:
    from animx_kernels.temporal_attention import temporal_attention

    def attend(slots: int, dtype: torch.dtype) -> list[Entry]:
        q = torch.zeros(1, slots, 8, 64, device="cuda", dtype=dtype)
        return log_of(lambda: temporal_attention(q, q, q, 1))

    with pretend():
        (entry,) = attend(33, torch.float16)
        assert entry.kind == "animx::temporal_attention"
        assert entry.flops > 0
        with pytest.raises(UnknownOperatorError, match="300 slots"):
            attend(300, torch.float16)
        with pytest.raises(UnknownOperatorError, match=r"torch\.float64"):
            attend(33, torch.float64)


def test_views_and_empty_memory_cost_nothing_and_expanded_dimensions_count_once() -> None:
    with pretend():
        x = torch.zeros(4, 1, 8, device="cuda")
        assert log_of(lambda: x.view(32)[3:].unsqueeze(0).expand(5, -1).transpose(0, 1)) == []
        assert log_of(lambda: torch.empty(9, device="cuda")) == []
        (entry,) = log_of(lambda: x.expand(4, 100, 8) + 1.0)
        assert (entry.read, entry.written) == (4 * 8 * 4, 4 * 100 * 8 * 4)


def test_products_count_two_flops_a_multiply_add() -> None:
    def device(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, device="cuda", dtype=torch.float16)

    with pretend():
        (linear,) = log_of(lambda: F.linear(device(1).expand(6, 3, 5), torch.zeros(7, 5, device="cuda").half()))[-1:]
        assert linear.flops == 2 * 6 * 3 * 5 * 7
        x, weight, bias = device(2, 8, 5, 6), device(4, 8, 3, 3), device(4)
        (conv,) = log_of(lambda: F.conv2d(x, weight, bias, padding=1))
        assert (conv.kind, conv.flops) == ("conv 3x3", 2 * 2 * 4 * 5 * 6 * 8 * 9)
        assert conv.moved == 2 * (2 * 8 * 30 + 4 * 8 * 9 + 4 + 2 * 4 * 30)
        q, k = device(2, 3, 10, 16), device(2, 3, 7, 16)
        (attention,) = log_of(lambda: F.scaled_dot_product_attention(q, k, k))
        assert (attention.kind, attention.launches, attention.flops) == ("attention", 1, 4 * 2 * 3 * 10 * 7 * 16)


def test_a_group_norm_reads_its_input_twice_and_a_layer_norm_once() -> None:
    with pretend():
        x, w = torch.zeros(2, 32, 5, 5, device="cuda"), torch.zeros(32, device="cuda")
        (group,) = log_of(lambda: F.group_norm(x, 32, w, w))
        assert (group.read, group.written) == (2 * 6400 + 128, 6400)
        tokens, w = torch.zeros(7, 32, device="cuda"), torch.zeros(32, device="cuda")
        (layer,) = log_of(lambda: F.layer_norm(tokens, (32,), w, w))
        assert (layer.read, layer.written) == (896 + 128, 896)


def test_a_network_that_makes_the_host_wait_cannot_be_counted() -> None:
    with pretend():
        x = torch.zeros(3, device="cuda")
        with pytest.raises(HostWaitError, match="the host waits"):
            log_of(lambda: x.sum().item())


def test_casts_and_copies_are_told_apart() -> None:
    with pretend():
        x = torch.zeros(3, 4, device="cuda")
        kinds = {
            name: [entry.kind for entry in log_of(work)]
            for name, work in {
                "cast": lambda: x.half(),
                "same type": lambda: x.to(torch.float32),
                "transpose": lambda: x.t().contiguous(),
                "laid out already": lambda: x.contiguous(),
                "cat": lambda: torch.cat([x, x]),
                "cast in place": lambda: torch.empty(3, 4, device="cuda", dtype=torch.float16).copy_(x),
                "count to float": lambda: torch.arange(3, device="cuda").float(),
            }.items()
        }
    assert kinds == {
        "cast": ["cast"], "same type": [], "transpose": ["copy"], "laid out already": [], "cat": ["copy"],
        "cast in place": ["cast"], "count to float": ["fill", "copy"],
    }  # fmt: skip


def test_autocast_acts_on_fakes_as_on_a_gpu() -> None:
    with pretend():
        x, w = torch.zeros(2, 32, 4, device="cuda"), torch.zeros(32, device="cuda", dtype=torch.float16)
        with autocast(torch.float16):
            kinds = [entry.kind for entry in log_of(lambda: F.group_norm(x.half(), 32, w, w))]
        assert kinds == ["cast", "cast", "cast", "cast", "group norm"]  # the first is the test's own


def test_the_host_s_own_arithmetic_is_no_launch() -> None:
    with pretend():
        assert log_of(lambda: torch.zeros(3) + 1) == []


KEYS: tuple[Any, ...] = (
    0, -1, slice(1, None), slice(None, -1), (slice(None), 2), (slice(None), None, slice(0, 3, 2)), (Ellipsis, None),
    (None, Ellipsis, 0), (1, slice(None), slice(2, 4)), (Ellipsis,), (slice(None),) * 3, (slice(None), slice(-2, None)),
)  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexing_of_fakes_is_indexing(key: Any) -> None:
    x = torch.arange(60).reshape(3, 4, 5)
    assert fakes._get(x, key).equal(x[key])
    assert fakes._get(x, key).stride() == x[key].stride()
    mine, theirs = x.clone(), x.clone()
    fakes._set(mine, key, 7)
    theirs[key] = 7
    assert mine.equal(theirs)


def test_after_pretending_everything_is_as_before() -> None:
    class Stop(Exception):
        pass

    before = {name: getattr(torch.Tensor, name) for name in ("__getitem__", "contiguous", "copy_", "to")}
    attention, enabled = F.scaled_dot_product_attention, torch.is_autocast_enabled("cuda")

    def break_off() -> None:
        assert F.scaled_dot_product_attention is not attention
        raise Stop

    with pytest.raises(Stop), pretend(), autocast(torch.float16):
        log_of(break_off)
    assert {name: getattr(torch.Tensor, name) for name in before} == before
    assert not set(before) & (set(vars(torch.Tensor)) - {"__getitem__"} if "to" not in vars(torch.Tensor) else set())
    assert F.scaled_dot_product_attention is attention
    assert torch.is_autocast_enabled("cuda") is enabled
    assert torch.zeros(2)[0].device.type == "cpu"


def test_operators_know_their_module_and_the_weights_they_read() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4))
            self.loose = nn.Parameter(torch.zeros(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.inner(x) @ self.loose.t()
            return y

    net = fakes.blank(Two)
    with pretend():
        fakes.faked(net, torch.float16)
        first, second = log_of(lambda: net(torch.zeros(3, 4, device="cuda", dtype=torch.float16)), net)[-2:]
    assert first.place == "inner:Sequential/0:Linear"
    assert set(first.weights) == {"inner.0.weight", "inner.0.bias"}
    assert (second.place, second.weights) == ("", ("loose",))


def test_condition_operators_are_found_on_every_step_of_the_released_code_and_before_the_steps_of_ours() -> None:
    def number(entries: tuple[Entry, ...]) -> int:
        return sum(map(report.is_condition, entries))

    released, plain = tiny("released"), tiny("plain")
    assert number(released.forward) > 100
    assert released.prepared == ()
    assert number(plain.forward) == 0
    assert number(plain.prepared) > 50
    # A key projection that sneaks back into the step is seen by the weight it reads, without any module around it.
    key = "down.1.1.block.cross_attention.to_k.weight"
    assert report.is_condition(dataclasses.replace(plain.forward[-1], place="down.1.1:FusedSpatial", weights=(key,)))
    key = "down.1.2.block.cross_attention.to_k.weight"
    assert not report.is_condition(dataclasses.replace(plain.forward[-1], place="down.1.2:Temporal", weights=(key,)))


def test_a_run_of_the_sampler_is_the_sum_of_its_passes() -> None:
    sees, blind = tiny("released"), tiny("plain")
    run = report.denoising([(sees, 31), (blind, 31)])
    assert run.flops == 31 * (report.total(sees.forward).flops + report.total(blind.forward).flops)
    assert report.denoising([(sees, 0.5)]).moved == pytest.approx(report.total(sees.forward).moved / 2, abs=1)


def test_the_floor_of_an_operator_is_its_slower_bound() -> None:
    entry = Entry("aten.mm.default", "matmul", "", (), 1, 790 * 10**9, 0, 4300 * 10**6 * 2, "float16", (1,))
    whole, bound = report.floor([entry], report.CARDS["H200"])
    assert (whole, bound) == (pytest.approx(2e-3), pytest.approx(2e-3))
    whole, bound = report.floor([dataclasses.replace(entry, written=1)], report.CARDS["H200"])
    assert (whole, bound) == (pytest.approx(1e-3), 0.0)


def test_picture_codec_and_image_encoder_cost_what_was_published() -> None:
    assert report.total(decoding(32, 512, 768)).flops / 1e12 == pytest.approx(121.5, abs=0.05)
    assert report.total(encoding(512, 768)).flops / 1e12 == pytest.approx(1.70, abs=0.005)
    assert report.total(image_vectors(33)).flops / 1e12 == pytest.approx(11.0, abs=0.05)


def test_convolutions_keep_the_layout_that_cudnn_keeps() -> None:
    with pretend():
        x = torch.zeros(2, 8, 5, 6, device="cuda", dtype=torch.float16)
        weight = torch.zeros(4, 8, 3, 3, device="cuda", dtype=torch.float16)
        last = torch.channels_last
        assert F.conv2d(x, weight).is_contiguous()
        for one, other in ((torch.clone(x, memory_format=last), weight), (x, torch.clone(weight, memory_format=last))):
            assert F.conv2d(one, other).is_contiguous(memory_format=last)
            assert not F.conv2d(one, other).is_contiguous()


def test_attention_leaves_the_heads_of_a_token_side_by_side() -> None:
    with pretend():
        q = torch.zeros(2, 3, 10, 16, device="cuda", dtype=torch.float16)
        work = lambda: F.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(2, 10, 48)  # noqa: E731
        assert [entry.kind for entry in log_of(work)] == ["attention"]


def test_zero_size_of_an_empty_tensor() -> None:
    assert costs.size_of(torch.empty(0, 3)) == 0
