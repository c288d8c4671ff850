"""A batch becomes a loss: keyed draws, condition drop, keyed dropout, noise levels, and a clip that can be learned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
torch.set_num_threads(1)

from training import UNET, awake, samples, tiny_config, tiny_run  # noqa: E402

from animx.errors import InputError, UsageError  # noqa: E402
from animx.model.checkpoint import released_names, to_ours  # noqa: E402
from animx.model.conditions import Inputs  # noqa: E402
from animx.model.config import CONDITIONS, UNetConfig  # noqa: E402
from animx.model.schedule import zero_snr_schedule  # noqa: E402
from animx.model.unet import AnimateXUNet  # noqa: E402
from animx_trainer.batch import collate  # noqa: E402
from animx_trainer.config import LossConfig, ModelConfig, OptimizerConfig  # noqa: E402
from animx_trainer.denoiser import Denoiser  # noqa: E402
from animx_trainer.draws import DROPPED, draw, kept, noise  # noqa: E402
from animx_trainer.keyed_dropout import KeyedDropout  # noqa: E402
from animx_trainer.loop import clip_gradients, gradients, take_step  # noqa: E402
from animx_trainer.optimizer import rate, set_rate  # noqa: E402
from animx_trainer.sample import clip_of, generator  # noqa: E402
from animx_trainer.task import min_snr_weight, velocity_loss  # noqa: E402

SCHEDULE = zero_snr_schedule()


def test_a_sample_draws_the_same_numbers_in_any_company() -> None:
    both = draw(LossConfig(), 3, 7, [10, 11], (4, 2, 4, 4))
    alone = draw(LossConfig(), 3, 7, [11], (4, 2, 4, 4))
    assert torch.equal(both.noise[1:], alone.noise)
    assert both.t[1] == alone.t[0]
    assert both.dropout[1:] == alone.dropout
    assert all(torch.equal(both.keep[name][1:], alone.keep[name]) for name in alone.keep)
    later = draw(LossConfig(), 3, 8, [11], (4, 2, 4, 4))
    assert not torch.equal(later.noise, alone.noise)


def test_timesteps_are_uniform_over_all_thousand() -> None:
    times = np.array([draw(LossConfig(), 0, s, range(40), (1, 1, 1, 1)).t.numpy() for s in range(100)]).ravel()
    assert times.min() >= 0
    assert times.max() <= 999
    share = np.histogram(times, 10, (0, 1000))[0] / times.size
    assert abs(share - 0.1).max() < 0.02


def test_conditions_are_dropped_as_often_as_released() -> None:
    """All-zero 10 %, all-keep 10 % beyond chance, each of three conditions by a coin in the rest."""
    rows = [kept(LossConfig(), generator(0, 0, key, "drop")) for key in range(8000)]
    table = np.array([[row[name] for name in (*DROPPED, "motion")] for row in rows])
    assert 1 - table[:, 3].mean() == pytest.approx(0.1, abs=0.01)
    assert (table[:, :3].sum(1) == 0).mean() == pytest.approx(0.1 + 0.8 / 8, abs=0.015)
    assert (table[:, :3].sum(1) == 3).mean() == pytest.approx(0.1 + 0.8 / 8, abs=0.015)
    assert table[:, :3].mean(0) == pytest.approx([0.5] * 3, abs=0.015)
    free = table[table[:, 3] == 1, :3]
    assert abs(np.corrcoef(free.T)[np.triu_indices(3, 1)] - 0.11).max() < 0.04  # only through the all-keep share
    faithful = kept(LossConfig(drop_all=1, drop_none=0, drop_motion=False), generator(0, 0, 0, "drop"))
    assert faithful == {"image": 0, "local_image": 0, "dwpose": 0, "motion": 1}


def test_offset_noise_moves_whole_frames_of_a_channel() -> None:
    shape = (4, 50, 8, 8)
    plain, offset = (noise(share, np.random.default_rng(0), shape) for share in (0.0, 0.5))
    moved = offset - plain
    assert np.ptp(moved, axis=(2, 3)).max() < 1e-6
    assert moved[:, :, 0, 0].std() == pytest.approx(0.5, rel=0.2)


def test_the_last_step_holds_no_signal_and_velocity_leads_back_to_the_clip() -> None:
    clean, drawn = (torch.randn(3, 4, 2, 4, 4, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0, 500, 999])
    x, v = SCHEDULE.add_noise(clean, drawn, t), SCHEDULE.velocity(clean, drawn, t)
    assert torch.equal(x[2], drawn[2])
    assert torch.equal(v[2], -clean[2])
    signal, share = SCHEDULE.signal_noise(t, clean)
    assert (signal * x - share * v - clean).abs().max() < 1e-12


def test_min_snr_weights_bound_the_clean_steps() -> None:
    t = torch.arange(1000)
    weight = min_snr_weight(SCHEDULE, t, 5.0).numpy()
    ac = SCHEDULE.alphas_cumprod
    assert weight[999] == 0
    assert weight[ac > 5 / 6] == pytest.approx(5 * (1 - ac[ac > 5 / 6]))
    assert weight[ac < 5 / 6] == pytest.approx(ac[ac < 5 / 6])
    assert torch.equal(min_snr_weight(SCHEDULE, t, 0.0), torch.ones(1000, dtype=torch.float64))


def _network(checkpointing: bool = False) -> Denoiser:
    torch.manual_seed(0)
    unet = AnimateXUNet.build(UNetConfig(**{**UNET, "slots": 4, "conditions": CONDITIONS}), text_length=4)
    made = Denoiser(unet.double(), checkpointing=checkpointing)
    with torch.no_grad():
        for p in made.parameters():
            if not p.any():
                p.copy_(torch.randn(p.shape) * 0.1)
    return made


def _inputs() -> tuple[Any, Any, Inputs]:
    torch.manual_seed(1)

    def some(*shape: int) -> Any:
        return torch.randn(*shape, dtype=torch.float64)

    inputs = Inputs(
        some(2, 1, 16), some(2, 3, 1, 16, 16), some(2, 3, 4, 16, 16), some(2, 4, 1, 4, 4), some(2, 4, 2, 18),
        some(2, 4, 16),
    )  # fmt: skip
    return some(2, 4, 3, 4, 4), torch.tensor([3, 700]), inputs


def _row(inputs: Inputs, i: int) -> Inputs:
    return Inputs(**{name: value[i : i + 1] for name, value in vars(inputs).items() if value is not None})


def test_a_dropped_condition_equals_an_absent_one() -> None:
    net, (x, t, inputs) = _network().eval(), _inputs()
    names = ("image", "local_image", "dwpose", "motion")
    with torch.no_grad():
        keep = {name: torch.tensor([1.0, 0.0], dtype=torch.float64) for name in names}
        mixed = net(x, t, inputs, keep)
        assert (mixed[1:] - net(x[1:], t[1:], Inputs())).abs().max() < 1e-12
        assert (mixed[:1] - net(x[:1], t[:1], _row(inputs, 0))).abs().max() < 1e-12
        for name, field in (("image", "image"), ("local_image", "local_image")):
            one = net(x, t, inputs, {name: torch.zeros(2, dtype=torch.float64)})
            assert (one - net(x, t, replace(inputs, **{field: None}))).abs().max() < 1e-12
            assert (one - net(x, t, inputs)).abs().max() > 1e-6


def _gradients(net: Denoiser, run: Any) -> dict[str, Any]:
    net.zero_grad()
    run().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def _apart(one: dict[str, Any], two: dict[str, Any]) -> float:
    largest = max(value.norm() for value in one.values())
    assert one.keys() == two.keys()
    return float(max((one[name] - two[name]).norm() / largest for name in one))


def test_dropout_masks_belong_to_samples_and_repeat_under_activation_checkpointing() -> None:
    net, (x, t, inputs) = _network().train(), _inputs()

    def together() -> Any:
        with KeyedDropout([5, 6]):
            return (net(x, t, inputs) ** 2).mean()

    def apart() -> Any:
        losses = []
        for i, seed in enumerate((5, 6)):
            with KeyedDropout([seed]):
                losses.append((net(x[i : i + 1], t[i : i + 1], _row(inputs, i)) ** 2).mean())
        return sum(losses) / 2

    def others() -> Any:
        with KeyedDropout([7, 8]):
            return (net(x, t, inputs) ** 2).mean()

    first = _gradients(net, together)
    assert _apart(first, _gradients(net, apart)) < 1e-12
    assert _apart(first, _gradients(net, others)) > 1e-3
    net = _network(checkpointing=True).train()
    assert _apart(first, _gradients(net, together)) == 0


def test_keyed_attention_is_the_library_s_where_nothing_is_dropped() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 16, 0.5, batch_first=True).double()
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    mode = KeyedDropout([1, 2, 3])
    mode.mask = lambda y, p: torch.ones_like(y)  # type: ignore[method-assign]
    with mode:
        ours = layer.train()(x)
    assert (ours - layer.eval()(x)).abs().max() < 1e-12


def test_parts_that_no_active_condition_uses_are_not_trained() -> None:
    unet = AnimateXUNet.build(UNetConfig(**{**UNET, "slots": 3}), text_length=4)
    frozen = {name.split(".")[1] for name, p in Denoiser(unet).named_parameters() if not p.requires_grad}
    assert frozen == {"reference_pose", "reference_pose_frames", "reference_latent", "reference_latent_frames"}


def test_gradients_of_the_released_batch_come_out_of_the_trainer_s_loss(shared: Path) -> None:
    from test_model import LATENT, Fixture, fixture_inputs
    from test_model import TINY as REDUCED

    fixture = Fixture(shared / "reference" / "fixtures" / "unet.npz")
    grads = Fixture(shared / "reference" / "fixtures" / "unet_grads.npz")
    config = replace(REDUCED, conditions=tuple(fixture.meta["conditions"]["all"]))
    unet = AnimateXUNet.build(config, text_length=7)
    unet.load_state_dict(to_ours(unet, fixture.weights()))
    unet.text.copy_(fixture["zero_y"])
    net = Denoiser(unet.double(), checkpointing=False).eval()
    keep = {name: torch.ones(1, dtype=torch.float64) for name in (*DROPPED, "motion")}
    velocity = net(fixture["in/x"].double(), fixture["t"], fixture_inputs(fixture).to(torch.float64), keep)
    assert velocity.shape[-2:] == LATENT
    loss = velocity_loss(velocity, grads["target"]).mean()
    loss.backward()
    assert loss.item() == pytest.approx(float(grads["loss"]), rel=1e-5)
    ours = {released: dict(unet.named_parameters()).get(key) for key, released in released_names(unet).items()}
    checked = 0
    for key in grads.arrays.files:
        if key.startswith("grad/"):
            expected = grads[key]
            assert (ours[key[5:]].grad - expected).abs().max() <= 1e-4 * expected.abs().max()  # type: ignore[union-attr]
            checked += 1
    assert checked > 3
    assert json.dumps(grads.meta)


def _learn(draws_of_step: Any, steps: int, **unet: Any) -> tuple[list[float], Any]:
    """Train the tiny network on one clip shown 8 times a step; returns the losses."""
    config = tiny_config(
        model=ModelConfig(unet={**UNET, "dropout": 0.0, **unet}, encoders="none"),
        optimizer=OptimizerConfig(lr=3e-3, lr_ipi=None, warmup=10, ema=0, schedule="cosine"),
        loss=LossConfig(drop_all=0, drop_none=1), batch=8, steps=steps,
    )  # fmt: skip
    run = tiny_run(config, clips=1)
    shown = run.task.prepare(samples(run), 0)
    losses = []
    for step in range(steps):
        set_rate(run.trained.optimizer, rate(config.optimizer, step, steps))
        run.trained.optimizer.zero_grad()
        loss = run.task.loss(run.module, shown, run.task.draws(shown, draws_of_step(step))).mean()
        loss.backward()
        clip_gradients(run.parameters, 1.0)
        run.trained.optimizer.step()
        losses.append(loss.item())
    return losses, run


def test_one_clip_with_eight_fixed_draws_is_learned_to_a_twentieth() -> None:
    losses, _ = _learn(lambda step: 0, 36)
    assert losses[0] > 0.5
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.long
def test_one_clip_with_fresh_draws_is_learned_to_a_fifth() -> None:
    # The motion attention is left out to save time: there is nothing for it to tell clips apart by.
    losses, _ = _learn(lambda step: step, 150, motion="none", conditions=("image", "local_image"))
    assert np.mean(losses[-15:]) < 0.2 * losses[0]


def test_rounds_of_accumulation_give_the_gradient_of_the_whole_batch() -> None:
    one, two = (awake(tiny_run(tiny_config(precision="float64", batch=4, accumulate=n))) for n in (1, 4))
    assert gradients(one, samples(one), 0) == pytest.approx(gradients(two, samples(two), 0), rel=1e-12)
    named = [{name: p.grad for name, p in run.trained.parameters.items()} for run in (one, two)]
    assert _apart(named[0], named[1]) < 1e-12


def test_bf16_computes_near_float32_on_float32_weights() -> None:
    full, half = (awake(tiny_run(tiny_config(precision=kind))) for kind in ("float32", "bf16"))
    assert {p.dtype for p in half.parameters} == {torch.float32}
    loss = [gradients(run, samples(run), 0) for run in (full, half)]
    assert loss[1] != loss[0]
    assert loss[1] == pytest.approx(loss[0], rel=0.02)


def test_a_loss_that_is_not_finite_stops_before_any_weight_is_touched() -> None:
    run = tiny_run()
    shown = samples(run)
    with torch.no_grad():
        run.denoiser.unet.out_conv.bias.fill_(float("inf"))
    before = run.denoiser.unet.down[0][0].weight.clone()
    with pytest.raises(InputError, match=r"step 1: the loss is .*lr"):
        take_step(run, shown, 0)
    assert torch.equal(before, run.denoiser.unet.down[0][0].weight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: replace(s, keypoints=np.full_like(s.keypoints, np.nan)), "keypoints holds NaN"),
        (lambda s: replace(s, reference=s.reference[:, :8]), r"reference is \[3, 8, 16\]"),
        (lambda s: replace(s, latents=None), "latents is missing"),
        (lambda s: replace(s, clip=s.clip[:2]), r"clip is \[2, 16\]"),
    ],
)
def test_a_bad_sample_is_named(change: Any, words: str) -> None:
    good, other = samples(tiny_run())
    with pytest.raises(InputError, match=words) as found:
        collate([good, replace(change(other), origin="bad.mp4")])
    assert "bad.mp4" in str(found.value)


def test_samples_and_encoders_of_another_width_than_the_network_are_refused() -> None:
    with pytest.raises(UsageError, match="context_dim"):
        tiny_run(tiny_config(model=ModelConfig(unet={**UNET, "context_dim": 32}, encoders="none")))
    run = tiny_run()
    wide = [replace(one, clip=np.tile(one.clip, (1, 2))) for one in samples(run)]
    with pytest.raises(InputError, match="CLIP vectors are 32 wide"):
        run.task.prepare(wide, 0)


def test_every_epoch_shows_every_clip_once_in_another_order() -> None:
    epochs = [[clip_of(5, epoch * 7 + i, 7) for i in range(7)] for epoch in range(3)]
    assert all(sorted(order) == list(range(7)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3
