"""The exact rewrites of the network: what is prepared once gives what computing it anew would give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

from animx.model import attention as attention_module  # noqa: E402
from animx.model.attention import Attention, MotionFold  # noqa: E402
from animx.model.conditions import Conditions  # noqa: E402
from animx.model.config import UNetConfig, variant  # noqa: E402
from animx.model.layers import TemporalConv  # noqa: E402
from animx.model.unet import AnimateXUNet  # noqa: E402
from tests.small_unet import LATENT, TINY, random_inputs, randomised  # noqa: E402

F = torch.nn.functional
PAPER = replace(variant("paper"), width=32, multipliers=(1, 2, 2, 2), head_dim=16, stem_heads=4, context_dim=64,
                keypoint_heads=8, keypoint_ff=96, resampler_heads=4, resampler_head_dim=16)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def relative(found: Any, wanted: Any) -> float:
    """Largest error in units of the largest value."""
    return (found - wanted).abs().max().item() / wanted.abs().max().item()


@pytest.mark.parametrize("config", [TINY, PAPER, replace(TINY, motion_order="parallel", alpha=0.3)],
                         ids=["release", "paper", "parallel"])  # fmt: skip
def test_what_is_prepared_once_equals_what_is_computed_at_every_step(config: UNetConfig) -> None:
    unet = randomised(AnimateXUNet.build(config, text_length=7)).double()
    inputs = random_inputs(3, torch.float64)
    x = torch.randn(1, 4, 3, *LATENT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        plain = unet.encode(inputs, frames=3, latent=LATENT, fold=False)
        folded = unet.encode(inputs, frames=3, latent=LATENT)
        assert all(isinstance(one, MotionFold) for one in folded.motion)
        times = unet.times([991, 496, 1])
        for t in (496, 1):
            step = torch.tensor([t])
            assert relative(unet(x, step, folded, times), unet(x, step, plain)) <= 1e-12


def test_gradients_are_recorded_through_the_unfolded_attention() -> None:
    unet = randomised(AnimateXUNet.build(TINY, text_length=7))
    conditions = unet.encode(random_inputs(2, torch.float32), frames=2, latent=LATENT)
    assert not any(isinstance(one, MotionFold) for one in conditions.motion)


def test_stacked_folds_serve_each_row_its_own_motion() -> None:
    unet = randomised(AnimateXUNet.build(TINY, text_length=7)).double()
    x = torch.randn(2, 4, 3, *LATENT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    times = unet.times([20, 700])
    with torch.no_grad():
        rows = [unet.encode(random_inputs(3, torch.float64, seed), frames=3, latent=LATENT) for seed in (1, 2)]
        t = torch.tensor([700, 20])
        together = unet(x, t, Conditions.stack(rows), times)
        apart = [unet(x[i : i + 1], t[i : i + 1], rows[i], times) for i in (0, 1)]
    assert relative(together, torch.cat(apart)) <= 1e-12
    assert relative(apart[0], apart[1]) > 1e-3


def test_a_timestep_outside_the_prepared_schedule_is_refused() -> None:
    unet = AnimateXUNet.build(TINY, text_length=7)
    with pytest.raises(IndexError):
        unet.times([991, 1]).at(torch.tensor([2]))


def test_shared_keys_equal_repeated_ones() -> None:
    attention = Attention(32, 2, 16, 24).double()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 32, generator=g, dtype=torch.float64)
    k, v = attention.key_value(torch.randn(2, 7, 24, generator=g, dtype=torch.float64))
    repeated = attention(x, (k.repeat_interleave(3, 0), v.repeat_interleave(3, 0)))
    assert relative(attention(x, (k, v)), repeated) <= 1e-14


@pytest.mark.parametrize("most", [1, 3, 4, 6])
def test_a_batch_beyond_the_grid_of_a_card_is_attended_in_parts(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's attention takes 65535 rows; 256 x 256 latent pixels of one window have one more."""
    g = torch.Generator().manual_seed(0)
    wholes = [torch.randn(6, 2, 5, 4, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    rows: list[int] = []
    attention = F.scaled_dot_product_attention

    def spy(*given: Any) -> Any:
        rows.append(len(given[0]))
        assert [len(one) for one in given] == rows[-1:] * 3
        return attention(*given)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    assert attention_module.MOST_ROWS == 65535
    monkeypatch.setattr(attention_module, "MOST_ROWS", most)
    found = attention_module.attend(*wholes)
    assert max(rows) <= most
    assert sum(rows) == 6
    truth = attention(*wholes)
    assert torch.equal(found, truth)
    slopes, wanted = (torch.autograd.grad(y.sin().sum(), wholes) for y in (found, truth))
    assert max(relative(one, other) for one, other in zip(slopes, wanted, strict=True)) <= 1e-14


def test_the_plain_network_mixes_slots_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = randomised(AnimateXUNet.build(TINY, text_length=7)).double()
    x = torch.randn(1, 4, 3, *LATENT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        conditions = unet.encode(random_inputs(3, torch.float64), frames=3, latent=LATENT)
        whole = unet(x, torch.tensor([496]), conditions)
        monkeypatch.setattr(attention_module, "MOST_ROWS", LATENT[0] * LATENT[1] // 2 + 1)
        assert relative(unet(x, torch.tensor([496]), conditions), whole) <= 1e-13


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_slot_convolutions_equal_three_dimensional_ones(slots: int) -> None:
    part: Any = TemporalConv(32, 0.1).double().eval()
    g = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(part.conv4.weight, generator=g)
    x = torch.randn(2 * slots, 32, 3, 4, generator=g, dtype=torch.float64)
    y = x.view(2, slots, 32, 3, 4).transpose(1, 2)
    for i in (1, 2, 3, 4):
        y = getattr(part, f"conv{i}")(F.silu(getattr(part, f"norm{i}")(y)))
    assert relative(part(x, slots), x + y.transpose(1, 2).reshape(x.shape)) <= 1e-13
