"""The loop, its checkpoints and its log: interrupted runs end like uninterrupted ones, and nothing good is lost."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
torch.set_num_threads(1)

from training import LEAN, UNET, samples, tiny_config, tiny_run, weights  # noqa: E402

from animx.config import as_mapping  # noqa: E402
from animx.errors import InputError, OutputError, UsageError  # noqa: E402
from animx_trainer import checkpointing  # noqa: E402
from animx_trainer.config import LogConfig, ModelConfig, OptimizerConfig  # noqa: E402
from animx_trainer.denoiser import Denoiser  # noqa: E402
from animx_trainer.distributed import World, clip_gradients  # noqa: E402
from animx_trainer.ema import Ema  # noqa: E402
from animx_trainer.journal import Journal, read_log  # noqa: E402
from animx_trainer.loop import CHECKPOINTS, resume, save, take_step, train  # noqa: E402
from animx_trainer.optimizer import groups, make_optimizer, rate, set_rate  # noqa: E402

LONG = tiny_config(
    model=ModelConfig(unet=LEAN, encoders="none"),
    steps=5,
    log=LogConfig(strips_every=0, checkpoint_every=2, tensorboard=False, keep=2),
)


def _same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    run = tiny_run(LONG)
    outcome = train(run, folder)
    assert outcome.is_complete
    return folder, weights(run)


def _losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in read_log(folder)]


def test_a_run_that_was_stopped_and_resumed_has_the_same_bits(
    uninterrupted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, final = uninterrupted
    first, steps = tiny_run(LONG), 3
    outcome = train(first, tmp_path, should_stop=lambda: first.trained.step >= steps)
    assert (outcome.step, outcome.is_complete) == (steps, False)
    second = tiny_run(LONG)
    assert resume(second, tmp_path) == steps
    assert _same(weights(second), weights(first))
    train(second, tmp_path)
    assert _same(weights(second), final)
    assert _losses(tmp_path) == _losses(folder)


def test_a_run_taken_up_at_an_older_checkpoint_writes_its_log_anew(
    uninterrupted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, final = uninterrupted
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    newest = checkpointing.list_checkpoints(tmp_path / CHECKPOINTS)
    assert [path.name for path in newest] == ["step-00000004", "step-00000005"]
    shutil.rmtree(newest[-1])
    run = tiny_run(LONG)
    assert resume(run, tmp_path) == 4
    train(run, tmp_path)
    assert _same(weights(run), final)
    assert _losses(tmp_path) == _losses(folder)


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    uninterrupted: tuple[Path, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    older, newest = checkpointing.list_checkpoints(tmp_path / CHECKPOINTS)
    share = next(newest.glob("*.distcp"))
    share.write_bytes(share.read_bytes()[: share.stat().st_size // 2])
    assert resume(tiny_run(LONG), tmp_path) == 4
    assert newest.name in caplog.text
    (older / checkpointing.STATE).write_text("{")
    with pytest.raises(InputError, match="none of 2 checkpoints"):
        resume(tiny_run(LONG), tmp_path)


def test_another_config_is_not_continued_and_free_fields_are(
    uninterrupted: tuple[Path, dict[str, Any]],
) -> None:
    folder = uninterrupted[0]
    other = replace(LONG, seed=1, optimizer=replace(LONG.optimizer, lr=2e-3))
    with pytest.raises(UsageError, match=r"another optimizer\.lr, seed"):
        resume(tiny_run(other), folder)
    free = replace(LONG, steps=9, activation_checkpointing=True, log=LogConfig(every=3), accumulate=2)
    assert resume(tiny_run(free), folder) == 5


def test_a_full_disk_ends_with_one_line_and_leaves_the_last_good_checkpoint(
    uninterrupted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / CHECKPOINTS).rglob("*")}
    run = tiny_run(LONG)
    resume(run, tmp_path)
    run.trained.step = 6
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*step-00000006") as found:
            save(run, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert "\n" not in str(found.value)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / CHECKPOINTS).rglob("*")} == before
    assert resume(tiny_run(LONG), tmp_path) == 5


def test_a_disk_that_is_full_is_called_so_whatever_torch_s_writer_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    run = tiny_run(LONG)
    monkeypatch.setattr(checkpointing, "write_shares", fails)
    with pytest.raises(OutputError, match="unexpected pos"):
        save(run, tmp_path)
    monkeypatch.setattr(checkpointing.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 0))
    with pytest.raises(OutputError, match="the disk is full"):
        save(run, tmp_path)


def test_a_checkpoint_half_written_is_no_checkpoint(uninterrupted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    newest = checkpointing.list_checkpoints(tmp_path / CHECKPOINTS)[-1]
    newest.rename(newest.with_name(".step-00000005.part"))
    assert resume(tiny_run(LONG), tmp_path) == 4


def test_the_log_forgets_what_a_crash_cut_short(tmp_path: Path) -> None:
    with Journal(tmp_path, tensorboard=False) as journal:
        for step in (1, 2, 3):
            journal.scalars(step, {"loss": 1 / step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with Journal(tmp_path, step=2, tensorboard=False) as journal:
        journal.scalars(3, {"loss": float("nan")})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": None}]


def test_every_trained_parameter_is_in_one_group_and_norms_biases_and_tables_do_not_decay() -> None:
    net = tiny_run().denoiser
    config = OptimizerConfig(lr=5e-5, lr_ipi=5e-7, weight_decay=0.01)
    found = {group.name: group for group in groups(net, config)}
    assert {name: (group.lr, group.weight_decay) for name, group in found.items()} == {
        "ipi": (5e-7, 0.01), "ipi, no decay": (5e-7, 0.0), "rest": (5e-5, 0.01), "rest, no decay": (5e-5, 0.0),
    }  # fmt: skip
    names = [name for group in found.values() for name in group.parameters]
    assert sorted(names) == sorted(name for name, p in net.named_parameters() if p.requires_grad)
    assert len(set(names)) == len(names)
    assert "unet.resampler.latents" in found["ipi, no decay"].parameters
    assert "unet.down.1.1.motion.block.cross_attention.to_k.weight" in found["rest"].parameters
    assert "unet.out_norm.weight" in found["rest, no decay"].parameters
    assert "unet.keypoint_encoder.token2.weight" in found["ipi"].parameters


def test_mamba_tables_do_not_decay() -> None:
    config = tiny_config(model=ModelConfig(variant="paper", unet=UNET, encoders="none"))
    plain = {g.name: g.parameters for g in groups(tiny_run(config).denoiser, config.optimizer)}["rest, no decay"]
    assert {"A_log", "D"} <= {name.rpartition(".")[2] for name in plain}


def test_the_rate_warms_up_and_falls_by_a_cosine() -> None:
    config = OptimizerConfig(warmup=4, schedule="cosine")
    shares = [rate(config, step, 12) for step in range(12)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(a > b for a, b in pairwise(shares[4:]))
    assert rate(config, 8, 12) == pytest.approx(0.5)
    assert rate(config, 12, 12) == pytest.approx(0)
    run = tiny_run()
    set_rate(run.trained.optimizer, 0.5)
    assert {group["lr"] for group in run.trained.optimizer.param_groups} == {5e-4, 2.5e-4}


def test_decay_shrinks_weights_without_gradient_and_only_those() -> None:
    weight, bias = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    layer = torch.nn.Module()
    layer.weight, layer.bias = weight, bias
    made = make_optimizer(groups(layer, OptimizerConfig(lr=0.1, lr_ipi=None, weight_decay=0.5)), OptimizerConfig())
    weight.grad, bias.grad = torch.zeros(3), torch.zeros(3)
    made.step()
    assert torch.equal(bias, torch.ones(3))
    assert weight.tolist() == pytest.approx([0.95] * 3)


def test_gradients_are_clipped_to_a_joint_norm() -> None:
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([2.0, 4.0]), torch.tensor([4.0])
    assert clip_gradients([a, b], 0) == pytest.approx(6)
    assert a.grad.tolist() == [2.0, 4.0]
    assert clip_gradients([a, b], 1.5) == pytest.approx(6)
    assert (a.grad.norm() ** 2 + b.grad.norm() ** 2).sqrt().item() == pytest.approx(1.5, rel=1e-5)


def test_averages_follow_the_weights_and_give_them_back() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    average = Ema({"w": weight}, 0.5)
    expected = torch.zeros(2)
    for step in range(20):
        with torch.no_grad():
            weight.fill_(step)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.average["w"].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    with average.applied():
        assert weight.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert weight.tolist() == [19.0, 19.0]


def test_weights_move_and_unused_parts_stay(uninterrupted: tuple[Path, dict[str, Any]]) -> None:
    run = tiny_run(LONG)
    before = {name: p.detach().clone() for name, p in run.denoiser.named_parameters()}
    for step in range(3):  # the first steps wake zero-initialised layers, whose inner parts follow
        take_step(run, samples(run, step), step)
    moved = {name for name, p in run.denoiser.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in run.denoiser.named_parameters() if p.requires_grad}
    assert moved <= trained
    assert len(moved) > 0.9 * len(trained)


def test_a_process_without_others_needs_no_group() -> None:
    world = World()
    assert world.any(True)
    assert not world.any(False)
    assert world.sum(torch.tensor(2.0)).item() == 2
    with pytest.raises(UsageError, match="torchrun"):
        tiny_run(tiny_config(parallel="fsdp"))
    with pytest.raises(UsageError, match="multiple"):
        tiny_run(tiny_config(batch=3), world=World(0, 2))
    assert as_mapping(LONG)["steps"] == 5
    assert isinstance(tiny_run().module, Denoiser)
