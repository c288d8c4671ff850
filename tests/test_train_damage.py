"""Training meets damaged checkpoints, logs and hopeless configs: nothing good is lost, and the mend is named."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hall import animx, refused

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
torch.set_num_threads(1)

from training import LEAN, RandomClips, tiny_config, tiny_run  # noqa: E402

from animx.errors import BatchError, InputError, UsageError  # noqa: E402
from animx.model.config import UNetConfig  # noqa: E402
from animx_trainer import checkpointing  # noqa: E402
from animx_trainer.config import LogConfig, ModelConfig  # noqa: E402
from animx_trainer.journal import LOG, read_log  # noqa: E402
from animx_trainer.loader import batches  # noqa: E402
from animx_trainer.loop import CHECKPOINTS, resume, save, train  # noqa: E402

SHORT = tiny_config(
    steps=2, model=ModelConfig(unet=LEAN), log=LogConfig(strips_every=0, tensorboard=False, checkpoint_every=1)
)
SMOKE = ("--set", "data.frames=2", "--set", "data.size=[32,32]", "--set", "data.options={clips: 1}",
         "--set", "model.unet.multipliers=[1]", "--set", "log.strips_every=0",
         "--set", "log.tensorboard=false")  # fmt: skip


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints of its steps 1 and 2.  Do not write into it."""
    folder = tmp_path_factory.mktemp("damage")
    train(tiny_run(SHORT), folder)
    return folder


@pytest.fixture
def run_folder(two_steps: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(two_steps, tmp_path / "run"))


def _newest(folder: Path) -> Path:
    return checkpointing.list_checkpoints(folder / CHECKPOINTS)[-1]


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _flip_a_weight(checkpoint: Path) -> None:
    share = next(checkpoint.glob("*.distcp"))
    _flip(share, share.stat().st_size // 2)


def _garble_the_table(checkpoint: Path) -> None:
    (checkpoint / ".metadata").write_bytes(b"\x00no pickle")


def _lose_the_table(checkpoint: Path) -> None:
    (checkpoint / ".metadata").unlink()


@pytest.mark.parametrize("damage", [_flip_a_weight, _garble_the_table, _lose_the_table])
def test_a_checkpoint_that_changed_on_disk_is_never_taken(
    damage: Any, run_folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = _newest(run_folder)
    damage(newest)
    with pytest.raises(InputError, match=r"step-00000002: .*Delete this folder to take the one before") as found:
        checkpointing.read_weights(newest, "weight")
    assert "\n" not in str(found.value)
    assert resume(tiny_run(SHORT), run_folder) == 1
    assert newest.name in caplog.text
    assert "Trying the one before" in caplog.text
    assert "Delete" not in caplog.text
    assert "Traceback" not in capfd.readouterr().err


def test_a_damaged_newest_checkpoint_does_not_push_out_those_that_can_be_read(run_folder: Path) -> None:
    longer = replace(SHORT, steps=4, log=replace(SHORT.log, keep=1))
    newest = _newest(run_folder)
    renamed = newest.rename(newest.with_name("step-00000004"))
    _flip_a_weight(renamed)
    run = tiny_run(longer)
    assert resume(run, run_folder) == 1
    run.trained.step = 3
    written = save(run, run_folder)
    assert checkpointing.list_checkpoints(run_folder / CHECKPOINTS) == [written, renamed]
    assert resume(tiny_run(longer), run_folder) == 3


def test_one_bad_line_costs_a_log_that_line_only(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(b'{"step": 1}\n{"a": 1}\n[1]\n\xff\xfe\n{"step": 2}\n{"st')
    assert read_log(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_refused_resume_touches_nothing_and_another_network_s_model_is_not_exported(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert animx("train", "smoke", "-o", run, *SMOKE, "--steps", 1).code == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused(animx("train", "smoke", "-o", run, *SMOKE, "--resume", "--set", "optimizer.lr=0.5"), 2, "optimizer.lr")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    other = ("train", "smoke", "-o", run, *SMOKE, "--set", "seed=5", "--export", tmp_path / "model")
    refused(animx(*other), 2, "another seed", "config.yaml")  # its encoders, drawn from the seed, would be others
    assert not (tmp_path / "model").exists()


def test_a_resume_in_a_folder_of_another_kind_is_refused_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    (tmp_path / "thesis.txt").touch()
    refused(animx("train", "smoke", "-o", tmp_path, *SMOKE, "--resume"), 2, "no run", "-o", "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "thesis.txt"]
    assert (tmp_path / "config.yaml").read_text() == "mine: 1\n"


@pytest.mark.parametrize("wrong", ["model.unet.context_dim=48", "model.unet.in_channels=3"])
def test_a_network_that_the_encoders_do_not_fit_is_refused_before_anything_is_written(
    wrong: str, tmp_path: Path
) -> None:
    refused(animx("train", "smoke", "-o", tmp_path / "run", *SMOKE, "--set", wrong), 2, wrong.partition("=")[0])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_is_answered_at_once_and_what_is_left_is_said(number: int, code: int, tmp_path: Path) -> None:
    from animx_trainer import loop

    class Stopping(loop.Journal):
        def scalars(self, step: int, values: Any) -> None:
            super().scalars(step, values)
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Journal", Stopping)
        ran = animx("train", "smoke", "-o", tmp_path / "run", *SMOKE, "--steps", 3)
    assert ran.code == code
    assert "stopping: this step is finished" in ran.err
    assert "again: at once" in ran.err
    assert "after step 1; its checkpoint is written. Go on with --resume" in ran.err
    assert "nothing partial" not in ran.err
    assert _newest(tmp_path / "run").name == "step-00000001"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_stop_is_not_kept_waiting(number: int, code: int, tmp_path: Path) -> None:
    from animx_trainer import loop

    def never_ends(*_: object) -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        time.sleep(60)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", never_ends)
        ran = animx("train", "smoke", "-o", tmp_path / "run", *SMOKE, "--steps", 3)
    assert ran.code == code
    assert "stopped at once; go on from the last checkpoint with --resume" in ran.err
    assert "Traceback" not in ran.err


def test_workers_are_deaf_to_a_stop_and_a_death_is_told_when_the_next_step_is_asked_for() -> None:
    others = set(multiprocessing.active_children())
    loader = batches(RandomClips(), seed=0, batch=1, workers=1)
    next(loader)
    next(loader)
    (worker,) = set(multiprocessing.active_children()) - others
    assert worker.pid is not None
    for number in (signal.SIGTERM, signal.SIGINT):  # as a scheduler or a terminal sends them, to every process of a run
        os.kill(worker.pid, number)
    for _ in range(6):
        next(loader)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(5)
    time.sleep(0.05)  # an exception from a signal handler would come here
    with pytest.raises(BatchError, match=r"loader worker died at step \d+"):
        list(islice(loader, 6))  # what it had made before is good


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 0), ("head_dim", 0), ("stem_heads", -1), ("keypoint_heads", 5), ("keypoint_heads", 0),
     ("multipliers", (1, 0)), ("multipliers", (1, -1)), ("multipliers", ()), ("attention_levels", (7,)),
     ("dropout", 2.0), ("dropout", float("nan"))],
)  # fmt: skip
def test_sizes_that_make_no_network_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field):
        UNetConfig(**{field: value})


@pytest.mark.parametrize("name", ["meta", "mps", "tpu", "cuda:99"])
def test_devices_that_cannot_train_are_refused(name: str) -> None:
    from animx_trainer.distributed import choose_device

    with pytest.raises(UsageError, match=f"--device {name}"):
        choose_device(name)
