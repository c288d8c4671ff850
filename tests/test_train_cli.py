"""`animx train` as a user meets it: a toy run to a model that renders, interruptions, refusals."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hall import animx, refused
from wet import Stage, pictures

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
torch.set_num_threads(1)

from animx_trainer import checkpointing  # noqa: E402
from animx_trainer.journal import read_log  # noqa: E402

TINY = (
    "--set", "data.frames=2", "--set", "data.size=[32,32]", "--set", "data.options={clips: 1}",
    "--set", "model.unet.multipliers=[1]", "--set", "log.strips_every=0", "--set", "log.checkpoint_every=2",
    "--set", "log.tensorboard=false",
)  # fmt: skip
"""The preset `smoke`, smaller still."""


def _train(folder: Path, *more: object) -> Any:
    return animx("train", "smoke", "-o", folder, *TINY, *more)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "animx", "train", "smoke", "-o", str(folder), *TINY, *more]


def _weights(folder: Path, kind: str = "weight") -> dict[str, Any]:
    newest = checkpointing.list_checkpoints(folder / "checkpoints")[-1]
    return checkpointing.read_weights(newest, kind)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The shipped smoke run, shortened to 6 steps, its options untouched."""
    folder = tmp_path_factory.mktemp("train") / "smoke"
    ran = animx("train", "smoke", "-o", folder, "--steps", 6, "--set", "log.strips_every=6",
                "--set", "log.strip_steps=2", "--set", "log.checkpoint_every=3", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    return folder, ran


def test_the_smoke_run_trains_logs_and_leaves_a_model(smoke: tuple[Path, Any]) -> None:
    folder, ran = smoke
    log = read_log(folder)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in log)
    assert log[0]["lr_rest"] == pytest.approx(2.5e-4)
    assert ran.json["steps"] == 6
    assert ran.json["loss"] == log[-1]["loss"]
    assert ran.json["model"] == str(folder / "model")
    assert json.loads((folder / "initialise.json").read_text())["source"] == "scratch"
    start, end = _weights(folder, "weight"), _weights(folder, "ema")
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[name], end[name]) for name in start)


def test_tensorboard_reads_the_numbers_and_the_strip_back_and_the_page_names_them(
    smoke: tuple[Path, Any], root: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from animx.image import read_picture

    folder, log = smoke[0], read_log(smoke[0])
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    names = set(log[0]) - {"step"}
    assert set(board.Tags()["scalars"]) == names
    for name in names:
        assert [(one.step, one.value) for one in board.Scalars(name)] == [
            (line["step"], pytest.approx(line[name], rel=1e-6)) for line in log
        ]
    (strip,) = board.Images("samples")
    picture = read_picture(folder / "samples" / "step-00000006.png").pixels
    assert (strip.step, strip.height, strip.width) == (6, *picture.shape[:2])
    page = (root / "docs" / "training.md").read_text()
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.M)))) >= {*names, "step"}


def test_a_strip_shows_poses_truth_and_what_was_painted(smoke: tuple[Path, Any]) -> None:
    from animx.image import read_picture

    picture = read_picture(smoke[0] / "samples" / "step-00000006.png").pixels[..., :3]
    assert picture.shape == (3 * 64, 5 * 64, 3)  # reference and four frames at 64 px
    poses, truth = picture[:64, 64:], picture[64:128, 64:]
    assert (poses.max(-1) < 32).mean() > 0.5  # skeletons on black, behind a JPEG
    assert poses.max() > 100
    assert truth.std() > 5
    assert not picture[128:, :64].any()


def test_the_exported_model_has_the_averaged_weights_and_renders(
    smoke: tuple[Path, Any], stage: Stage, tmp_path: Path
) -> None:
    from animx.diffusion.components import load_components

    folder = smoke[0]
    assert animx("weights", "check", folder / "model").code == 0
    own = dict(load_components(folder / "model").unet.named_parameters())
    averages = _weights(folder, "ema")
    assert averages
    assert all(torch.equal(own[name.removeprefix("unet.")], value) for name, value in averages.items())
    out = tmp_path / "out.mp4"
    ran = stage.render(out, "--model", folder / "model", "--size", "64x64", "--window", 4, "--overlap", 1,
                       "--duration", "3f")  # fmt: skip
    assert ran.code == 0, ran.err
    assert pictures(out).shape == (3, 64, 64, 3)


def test_a_run_is_proved_by_one_command_and_compared_with_another(smoke: tuple[Path, Any], tmp_path: Path) -> None:
    folder = smoke[0]
    ran = animx("train", folder, "--proof", 2, "--against", folder, "--json", "--set", "precision=bf16")
    assert ran.code == 0, ran.err
    found = ran.json["proof"]
    assert (found["step"], found["characters"], found["sampling_steps"]) == (6, 2, 2)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["over_mean_colour"]["met"] == "no", "six steps teach nothing"
    assert rows["over_other_model"]["mean"] == 0, "the same model, the same noise, float32 on a CPU"
    refused(animx("train", folder, "--proof", 1), 2, "--proof")
    refused(animx("train", folder, "--against", folder), 2, "--proof N")
    refused(animx("train", "smoke", "-o", tmp_path / "none", "--proof", 2), 2, "holds no checkpoint")


def test_export_writes_the_same_model_again_and_replaces_nothing_else(smoke: tuple[Path, Any], tmp_path: Path) -> None:
    folder = smoke[0]
    config = str(folder / "config.yaml")
    assert animx("train", config, "-o", folder, "--export", tmp_path / "again").code == 0
    for path in (folder / "model").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder / "model")).read_bytes()
    refused(animx("train", folder, "--export", tmp_path / "again"), 2, "exists", "with --export")
    (tmp_path / "again" / "mine.txt").touch()
    refused(animx("train", config, "-o", folder, "--export", tmp_path / "again", "-y"), 2, "mine.txt")


def test_a_folder_that_holds_a_run_is_refused_resumed_or_replaced(tmp_path: Path) -> None:
    assert _train(tmp_path / "run", "--steps", 1).code == 0
    refused(_train(tmp_path / "run", "--steps", 2), 2, "--resume", "--overwrite")
    ran = _train(tmp_path / "run", "--steps", 2, "--resume")
    assert ran.code == 0
    assert "going on after step 1" in ran.err
    assert "scratch" not in ran.err
    assert [line["step"] for line in read_log(tmp_path / "run")] == [1, 2]
    config = (tmp_path / "run" / "config.yaml").read_text()
    refused(_train(tmp_path / "run", "--steps", 1, "--resume"), 2, "2 steps are done", "--steps")
    assert (tmp_path / "run" / "config.yaml").read_text() == config
    refused(_train(tmp_path / "run", "--steps", 2, "--resume", "--set", "seed=5"), 2, "another seed")
    assert _train(tmp_path / "run", "--steps", 1, "-y", "--set", "seed=5").code == 0
    assert [line["step"] for line in read_log(tmp_path / "run")] == [1]
    (tmp_path / "run" / "thesis.txt").touch()
    refused(_train(tmp_path / "run", "-y"), 2, "thesis.txt")
    refused(_train(tmp_path / "run", "-y", "--resume"), 2, "together")


SHRUNK = (
    "--set", "model.unet.width=32", "--set", "model.unet.multipliers=[1, 2]", "--set", "model.unet.res_blocks=1",
    "--set", "model.unet.attention_levels=[0]", "--set", "model.unet.head_dim=16", "--set", "model.unet.stem_heads=2",
    "--set", "model.unet.context_dim=32", "--set", "model.unet.keypoint_heads=4", "--set", "model.unet.keypoint_ff=32",
    "--set", "model.unet.keypoint_layers=1", "--set", "model.unet.resampler_depth=1",
    "--set", "model.unet.resampler_heads=2", "--set", "model.unet.resampler_head_dim=16",
    "--set", "model.initialise=scratch", "--set", "model.encoders=random", "--set", "data.source=synth",
    "--set", "data.options={clips: 1}", "--set", "data.frames=2",
    "--set", "data.size=[32, 32]", "--set", "data.workers=0", "--set", "log.tensorboard=false", "--set", "batch=2",
    "--set", "optimizer.warmup=0", "--set", "log.strips_every=0", "--set", "parallel=auto",
)  # fmt: skip
"""A preset with its recipe untouched and everything large made small."""


@pytest.mark.parametrize("name", ["paper", "finetune", "nano"])
def test_a_scaled_down_step_of_every_preset_moves_its_weights(name: str, tmp_path: Path) -> None:
    ran = animx("train", name, "-o", tmp_path / name, *SHRUNK, "--set", "accumulate=1", "--steps", 2, "--json")
    assert ran.code == 0, ran.err
    weights = _weights(tmp_path / name)
    mamba = [key for key in weights if "forward_scan" in key]
    assert bool(mamba) == (name == "paper")
    (line, *_) = read_log(tmp_path / name)
    assert np.isfinite(line["loss"])
    still = {key: value for key, value in weights.items() if key.endswith("proj_out.weight") and not value.any()}
    assert len(still) < len([key for key in weights if key.endswith("proj_out.weight")]), "no zero start has moved"


def test_refusals_name_what_and_the_mend(tmp_path: Path) -> None:
    refused(animx("train", "smkoe", "-o", tmp_path / "a"), 3, "Did you mean 'smoke'")
    refused(animx("train", "paper", "-o", tmp_path / "a"), 3, "data/dances")
    refused(_train(tmp_path / "a", "--device", "cuda") if not torch.cuda.is_available() else _train(tmp_path / "a",
            "--device", "gpu"), 2, "--device")  # fmt: skip
    refused(_train(tmp_path / "a", "--set", "model.encoders=nowhere"), 6, "nowhere")
    refused(_train(tmp_path / "a", "--set", "model.unet.context_dim=48"), 2, "context_dim")
    refused(_train(tmp_path / "a", "-y", "--set", "model.unet.in_channels=3"), 2, "4 channels", "in_channels=4")
    refused(
        _train(tmp_path / "a", "-y", "--set", "optimizer.lr=1e300"), 2, "--set optimizer.lr=1e300: ", "larger than 1"
    )
    refused(_train(tmp_path / "a", "--set", "data.size=[32,33]"), 2, "32x33", "multiple of 8")
    refused(_train(tmp_path / "a", "--set", "batch=100000"), 2, "65536")
    refused(_train(tmp_path / "a", "--set", "model.unet.multipliers=[]"), 2, "at least one level")
    file = tmp_path / "file"
    file.touch()
    refused(_train(file), 2, "is a file")
    refused(animx("train", "smoke", "-o", tmp_path / "a", "--export", tmp_path / "m"), 2, "holds no checkpoint")
    assert not list(tmp_path.glob("a/checkpoints/*"))


def test_the_dry_run_says_what_the_full_size_takes_and_writes_nothing(tmp_path: Path) -> None:
    ran = animx("train", "paper", "-o", tmp_path / "x", "--dry-run", "--set", "model.variant=release", "--json")
    assert ran.code == 0
    assert ran.json["plan"]["training_gb"] == pytest.approx(29.08, abs=0.05)
    assert ran.json["plan"]["groups"]["ipi"]["lr"] == 5e-7
    assert not (tmp_path / "x").exists()


@pytest.mark.long
def test_a_run_killed_anywhere_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL after a random time, once more after another, then to the end: all state equals an untouched run's."""
    assert _train(tmp_path / "whole", "--steps", 7).code == 0
    folder = tmp_path / "killed"
    rng = random.Random()  # no seed: the law holds for every moment
    for number in range(2):
        process = subprocess.Popen(
            _command(folder, "--steps", "7", "--resume"), env=_environment(), stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        target = rng.randint(1, 3) + 2 * number
        deadline = time.monotonic() + 240
        while process.poll() is None and len(read_log(folder)) < target and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.wait()
    assert _train(folder, "--steps", 7, "--resume").code == 0
    for kind in ("weight", "ema", "exp_avg", "exp_avg_sq"):
        one, two = _weights(tmp_path / "whole", kind), _weights(folder, kind)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), kind
    losses = [[line["loss"] for line in read_log(tmp_path / name)] for name in ("whole", "killed")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_exits_143(tmp_path: Path) -> None:
    process = subprocess.Popen(
        _command(tmp_path / "run", "--steps", "500", "--set", "log.checkpoint_every=400"), env=_environment(),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while process.poll() is None and len(read_log(tmp_path / "run")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 143
    assert said.index("stopping:") < said.index("--resume")  # at once, and again when it is done
    assert "nothing partial" not in said
    assert "Traceback" not in said
    saved = checkpointing.list_checkpoints(tmp_path / "run" / "checkpoints")
    assert len(saved) == 1
    assert saved[0].name == f"step-{len(read_log(tmp_path / 'run')):08d}"


@pytest.mark.slow
def test_torchrun_trains_on_two_processes_and_one_speaks(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "animx"]
    command = [*run, *_command(tmp_path / "run", "--steps", "2")[3:]]
    ran = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [str(tmp_path / "run" / "model")]
    assert ran.stderr.count("steps done") == 1
    assert _train(tmp_path / "one", "--steps", 2).code == 0
    one, two = _weights(tmp_path / "one"), _weights(tmp_path / "run")
    largest = max(float(value.norm()) for value in one.values())
    assert max(float((one[name] - two[name]).norm()) for name in one) / largest < 1e-4


@pytest.mark.slow
def test_accelerate_launches_it_too(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "animx"]
    command = [*launch, *_command(tmp_path / "run", "--steps", "1", "--json")[3:]]
    ran = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["steps"] == 1


def test_the_commands_of_the_page_are_understood(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `animx train` of docs/training.md, as a dry run; the toy run itself is the first test here."""
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for name in ("my.yaml", "runs/mine/config.yaml"):
        (tmp_path / name).write_text("steps: 5\n")
    monkeypatch.chdir(tmp_path)
    page = (root / "docs" / "training.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", page, re.S)
    lines = [line for block in blocks for line in block.splitlines() if "animx train" in line]
    assert len(lines) == 6 + 2 + 19
    plain = animx("train", "paper", "--show", "--json").json["config"]
    for line in lines:
        words = shlex.split(line[line.index("animx train") :])[1:]
        ran = animx(*words, "--show", "--json")
        assert ran.code == 0, (line, ran.err)
        if ("runs/no-" in line and words[1] == "paper") or "runs/lambda-" in line:
            (key, value) = words[-1].split("=")
            found, before = ran.json["config"], plain
            for part in key.split("."):
                found, before = found[part], before.get(part) if isinstance(before, dict) else None
            assert str(found).replace("'", "").lower() == value, line
            assert found != before, line
    block = next(re.finditer(r"```yaml\n(.*?)```", page, re.S))[1]
    (tmp_path / "mine.yaml").write_text(block)
    found = animx("train", "mine.yaml", "--show", "--json").json["config"]
    assert (found["data"]["frames"], found["optimizer"]["lr"], found["optimizer"]["lr_ipi"]) == (24, 2e-5, 5e-7)
    assert found["model"]["initialise"] == "animate-x", "what the file does not name is its base's"


def test_the_ablations_of_the_page_are_those_of_the_augmentation() -> None:
    """Every value that `without` knows, and every lambda of the paper's table 6, has its line."""
    from typing import get_args

    from animx_trainer.config import load_config
    from animx_trainer.pose_augment import Ablation, load_epi

    page = (Path(__file__).resolve().parents[1] / "docs" / "training.md").read_text()
    sets = re.findall(r"--set (data\.options\.epi\.\S+)", page)
    told = [load_epi(load_config("paper", [text]).data.options["epi"]) for text in sets]
    assert {name for epi in told for name in epi.without} == set(get_args(Ablation))
    assert {epi.probability for epi in told if not epi.without} == {1.0, 0.98, 0.95, 0.9, 0.8}
    assert all(epi.rescales for epi in told), "the rescale pool is still that of the preset"
