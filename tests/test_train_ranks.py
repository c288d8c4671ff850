"""Two processes train as one with the doubled batch does: DDP and FSDP2, checkpoints across numbers of processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
torch.set_num_threads(1)

from training import LEAN, awake, tiny_config, tiny_run, weights  # noqa: E402

from animx.errors import OutputError, WeightsError  # noqa: E402
from animx_trainer import checkpointing  # noqa: E402
from animx_trainer.config import ModelConfig, OptimizerConfig  # noqa: E402
from animx_trainer.distributed import World, clip_gradients, joined  # noqa: E402
from animx_trainer.ema import local  # noqa: E402
from animx_trainer.loop import gradients, resume, save, take_step  # noqa: E402
from animx_trainer.sources import serial_batches  # noqa: E402

pytestmark = pytest.mark.slow

MODEL = ModelConfig(unet=LEAN, encoders="none")
RATES = OptimizerConfig(lr=1e-3, lr_ipi=1e-5, ema=0.9, warmup=1)
CONFIG = tiny_config(model=MODEL, precision="float64", batch=4, accumulate=2, optimizer=RATES)


def _whole(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _samples(run: Any, step: int) -> Any:
    world = run.world
    return next(
        serial_batches(run.source, seed=0, batch=run.config.batch, start_step=step, ranks=world.size, rank=world.rank)
    )


def _two(work: Callable[[World, Path], None], folder: Path) -> None:
    """Run `work` in two processes of a gloo group (forked: nothing is imported again); both must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ.update(
                    RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
                )
                torch.set_num_threads(1)
                with joined("cpu") as world:
                    work(world, folder)
                code = 0
            except BaseException:
                import traceback

                (folder / f"failure-{rank}.txt").write_text(traceback.format_exc())
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = "\n".join(path.read_text() for path in sorted(folder.glob("failure-*.txt")))
    assert codes == [0, 0], said


def _apart(one: dict[str, Any], two: dict[str, Any]) -> float:
    assert one.keys() == two.keys()
    largest = max(float(value.norm()) for value in one.values())
    return max(float((one[name] - two[name]).norm()) for name in one) / largest


def _named_gradients(run: Any) -> dict[str, Any]:
    return {name: _whole(p.grad).clone() for name, p in run.trained.parameters.items()}


@pytest.mark.parametrize(("precision", "limit"), [("float64", 1e-10), ("float32", 1e-5)])
def test_two_processes_have_the_gradient_of_one_with_the_doubled_batch(
    precision: Any, limit: float, tmp_path: Path
) -> None:
    config = replace(CONFIG, precision=precision)

    def work(world: World, folder: Path) -> None:
        run = awake(tiny_run(config, world=world))
        loss = gradients(run, _samples(run, 0), 0)
        if world.is_first:
            torch.save((loss, _named_gradients(run)), folder / "gradients.pt")

    _two(work, tmp_path)
    loss, theirs = torch.load(tmp_path / "gradients.pt")
    alone = awake(tiny_run(config))
    assert gradients(alone, _samples(alone, 0), 0) == pytest.approx(loss, rel=limit)
    assert _apart(_named_gradients(alone), theirs) < limit


def test_shards_begin_with_the_weights_of_the_whole_network_which_one_process_alone_builds(tmp_path: Path) -> None:
    config = replace(CONFIG, parallel="fsdp", precision="float32")

    def work(world: World, folder: Path) -> None:
        from torch.distributed.tensor import DTensor

        from animx_trainer import sharded

        if not world.is_first:

            def whole(*_: Any) -> None:
                raise AssertionError("the whole network was built")

            sharded.build_unet = whole  # type: ignore[assignment]
        run = tiny_run(config, world=world)
        state = {name: _whole(p).clone() for name, p in run.denoiser.named_parameters()}
        state |= {name: value.clone() for name, value in run.denoiser.named_buffers()}
        assert all(isinstance(p, DTensor) for p in run.denoiser.parameters())
        torch.save(state, folder / f"state-{world.rank}.pt")
        nowhere = replace(config, model=replace(MODEL, initialise=str(folder / "nowhere.pth")))
        with pytest.raises(WeightsError, match="nowhere"):
            tiny_run(nowhere, world=world)

    _two(work, tmp_path)
    alone = tiny_run(replace(config, parallel="auto")).denoiser
    wanted = {**dict(alone.named_parameters()), **dict(alone.named_buffers())}
    for rank in (0, 1):
        found = torch.load(tmp_path / f"state-{rank}.pt")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name].detach()) for name in wanted)


@pytest.mark.long
def test_shards_train_and_save_what_one_process_does_and_load_in_any_number(tmp_path: Path) -> None:
    config = replace(CONFIG, parallel="fsdp")

    def work(world: World, folder: Path) -> None:
        from torch.distributed.tensor import DTensor

        run = awake_shards(world)
        assert all(isinstance(p, DTensor) for p in run.parameters)
        assert sum(local(p).numel() for p in run.parameters) < 0.75 * sum(p.numel() for p in run.parameters)
        norms = []
        shown = _samples(run, 0)
        norms.append(take_step(run, shown, 0)[1])
        with torch.no_grad(), run.trained.ema.applied():  # as a sample strip does; leaves no trace
            prepared = run.task.prepare(shown[:1], 0)
            run.task.loss(run.module, prepared, run.task.draws(prepared, 0))
        run.trained.step = 1
        gradients(run, _samples(run, 1), 1)
        norms.append(clip_gradients(run.parameters, 1e-3))
        kept = clip_gradients(run.parameters, 0)
        save(run, folder)
        state = {name: _whole(value).clone() for name, value in run.trained.tensors().items()}
        again = tiny_run(config, world=world)
        assert resume(again, folder) == 1
        for name, value in again.trained.tensors().items():
            assert torch.equal(_whole(value), state[name]), name
        assert {float(one["step"]) for one in again.trained.optimizer.state.values()} == {1.0}
        if world.is_first:
            torch.save((norms, kept, state), folder / "state.pt")
        take_step(again, _samples(again, 1), 1)  # what was loaded goes on training

    def awake_shards(world: World) -> Any:
        run = tiny_run(config, world=world)
        assert checkpointing.load(run.trained, tmp_path / CHECKED, world) == 0
        return run

    start = awake(tiny_run(CONFIG))
    assert start.trained.ema is not None
    start.trained.ema.average = {name: p.detach().clone() for name, p in start.trained.parameters.items()}
    saved = save(start, tmp_path / "start")
    saved.rename(tmp_path / CHECKED)

    _two(work, tmp_path)
    norms, kept, theirs = torch.load(tmp_path / "state.pt")
    alone = tiny_run(CONFIG)
    assert resume(alone, tmp_path) == 1
    assert all(torch.equal(value, theirs[name]) for name, value in weights(alone).items())
    mine = []
    mine.append(take_step(start, _samples(start, 0), 0)[1])
    gradients(start, _samples(start, 1), 1)
    mine.append(clip_gradients(start.parameters, 1e-3))
    assert norms == pytest.approx(mine, rel=1e-10)
    assert kept == pytest.approx(1e-3, rel=1e-3)
    for kind in ("weight", "ema", "exp_avg"):
        ours = {name: value for name, value in weights(start).items() if name.startswith(f"{kind}.")}
        assert _apart(ours, {name: theirs[name] for name in ours}) < 1e-10, kind
    rates = {g["name"]: g["lr"] for g in alone.trained.optimizer.param_groups}
    assert rates["ipi"] == 1e-5
    assert rates["rest"] == 1e-3


CHECKED = "begun"


def test_when_one_process_cannot_write_all_say_so_and_no_checkpoint_appears(tmp_path: Path) -> None:
    def work(world: World, folder: Path) -> None:
        run = tiny_run(CONFIG, world=world)
        if not world.is_first:  # only the second one fails, in the middle of its own share
            import torch.distributed.checkpoint.filesystem as files

            def full(*_: Any, **__: Any) -> None:
                raise OSError(28, "No space left on device")

            files._write_item = full  # type: ignore[assignment]
        run.trained.step = 1
        with pytest.raises(OutputError, match="cannot write"):
            save(run, folder)
        assert not checkpointing.list_checkpoints(folder / "checkpoints")

    _two(work, tmp_path)
