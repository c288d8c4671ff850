"""The training loop: samples in, steps, log lines and checkpoints out.

`Run` puts the parts of a config together once; `train` is the loop, visible as a whole.  Order of a step: draw, forward
and backward in `accumulate` rounds, clip, AdamW, average, log.  The same config gives the same numbers, however often
it is interrupted and resumed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from animx.config import as_mapping
from animx.errors import InputError, UsageError
from animx_trainer import checkpointing
from animx_trainer.checkpointing import Trained
from animx_trainer.config import TrainConfig, differing, settled
from animx_trainer.denoiser import Denoiser
from animx_trainer.distributed import World, clip_gradients, spread, sync_gradients
from animx_trainer.ema import Ema
from animx_trainer.encoders import Encoders, find_encoders
from animx_trainer.initialise import Report, build_unet, initialise
from animx_trainer.journal import Journal
from animx_trainer.optimizer import groups, make_optimizer, named, rate, set_rate
from animx_trainer.sample import Batches, ClipSource, Sample
from animx_trainer.sharded import build_sharded
from animx_trainer.strips import strip
from animx_trainer.task import Diffusion

log = logging.getLogger("animx.train")

CHECKPOINTS = "checkpoints"
DTYPES = {"float32": torch.float32, "bf16": torch.float32, "float64": torch.float64}
"""Precision of weights and loss for each `precision`; bf16 computes in bf16 on float32 weights."""


@dataclass
class Run:
    """All parts of a run, ready for its next step."""

    config: TrainConfig
    world: World
    task: Diffusion
    denoiser: Denoiser
    """The module itself; its parameters are the trained ones."""
    module: nn.Module
    """What is called: the denoiser, or the denoiser behind DDP."""
    trained: Trained
    report: Report
    source: ClipSource
    batches: Batches

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Trained parameters."""
        return list(self.trained.parameters.values())


@dataclass(frozen=True)
class Outcome:
    """How a start of `train` ended."""

    step: int
    """Steps that are done."""
    loss: float
    """Loss of the last step; NaN when none was taken."""
    checkpoint: Path | None
    """The last checkpoint."""
    is_complete: bool
    """Whether all steps are done; else it was asked to stop."""


def make_run(
    config: TrainConfig, source: ClipSource, batches: Batches, world: World | None = None,
    encoders: Encoders | None = None,
) -> Run:  # fmt: skip
    """Build network, optimiser and task of `config`, its weights initialised.

    encoders: instead of those `model.encoders` names.
    """
    here = world or World()
    if config.batch % (here.size * config.accumulate):
        raise UsageError(
            f"batch: {config.batch} is not a multiple of {here.size} processes times accumulate {config.accumulate}"
        )
    dtype = DTYPES[config.precision]
    frozen = encoders if encoders is not None else find_encoders(config.model.encoders, config.seed)[0]
    frozen.check_network(config.unet().context_dim, config.unet().in_channels)
    frozen.check_size(config.data.size)
    if config.parallel == "fsdp":
        denoiser, report = build_sharded(config, frozen.prompt, here, dtype)
        module: nn.Module = denoiser
    else:
        unet = build_unet(config.unet(), config.seed, frozen.prompt)
        report = initialise(unet, config.model.initialise)
        denoiser = Denoiser(unet, checkpointing=config.activation_checkpointing).to(here.device, dtype).train()
        module = spread(denoiser, here)
    parts = groups(denoiser, config.optimizer)
    parameters = dict(named(parts))
    average = Ema(parameters, config.optimizer.ema) if config.optimizer.ema > 0 else None
    trained = Trained(parameters, make_optimizer(parts, config.optimizer), average)
    half = torch.bfloat16 if here.device.type == "cuda" and config.precision == "bf16" else dtype
    task = Diffusion(config, config.unet(), frozen.to(here.device, half), here.device, dtype)
    return Run(config, here, task, denoiser, module, trained, report, source, batches)


def resume(run: Run, folder: Path) -> int:
    """Continue from the newest readable checkpoint of the run in `folder`; returns the steps it holds (0: none there).

    A checkpoint of another config is a `UsageError` that names the keys; a damaged one is left out with a warning.
    """
    found = checkpointing.list_checkpoints(folder / CHECKPOINTS)
    for path in reversed(found):
        try:
            state = checkpointing.read_state(path)
            keys = differing(state["config"], settled(run.config))
            if keys:
                raise UsageError(
                    f"{folder}: was begun with another {', '.join(keys[:4])}. Give the config it was begun with, or "
                    "another folder with -o"
                )
            return checkpointing.load(run.trained, path, run.world)
        except InputError as error:
            log.warning("%s. Trying the one before", str(error).partition(". Delete")[0])
    if found:
        raise InputError(f"{folder / CHECKPOINTS}: none of {len(found)} checkpoints can be read. Name another folder")
    return 0


def train(
    run: Run,
    folder: Path,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Outcome:
    """Train up to `config.steps`, writing log, strips and checkpoints into the existing `folder`.

    should_stop: asked after each step in every process; where one says yes, all write a checkpoint and return.
    on_progress: (stage, done, total steps).
    """
    config, world, trained = run.config, run.world, run.trained
    losses = float("nan")
    last: Path | None = None
    began = time.monotonic()
    loader = run.batches(
        run.source, seed=config.seed, batch=config.batch, start_step=trained.step, ranks=world.size, rank=world.rank,
        workers=config.data.workers,
    )  # fmt: skip
    board = Journal(folder, step=trained.step, tensorboard=config.log.tensorboard, silent=not world.is_first)
    with board as journal:
        while trained.step < config.steps:
            step = trained.step
            samples = next(loader)
            losses, norm = take_step(run, samples, step)
            trained.step += 1
            if on_progress is not None:
                on_progress("training", trained.step, config.steps)
            now = time.monotonic()
            if trained.step % config.log.every == 0 or trained.step == config.steps:
                journal.scalars(trained.step, {**_scalars(run, losses, norm), "seconds": round(now - began, 4)})
            began = now
            stops = world.any(should_stop())
            if config.log.strips_every and trained.step % config.log.strips_every == 0:
                _strip(run, journal)
                began = time.monotonic()
            if stops or trained.step % config.log.checkpoint_every == 0 or trained.step == config.steps:
                last = save(run, folder)
                began = time.monotonic()
            if stops:
                break
    _close(loader)
    return Outcome(trained.step, losses, last, trained.step >= config.steps)


def take_step(run: Run, samples: list[Sample], step: int) -> tuple[float, float]:
    """One optimiser step on this process's `samples`: (mean loss, gradient norm before clipping), over all processes.

    A loss or norm that is not finite is an `InputError`, before any weight is touched.
    """
    set_rate(run.trained.optimizer, rate(run.config.optimizer, step, run.config.steps))
    total = gradients(run, samples, step)
    norm = clip_gradients(run.parameters, run.config.optimizer.clip)
    if not (total == total and abs(total) != float("inf") and norm == norm and norm != float("inf")):
        raise InputError(
            f"step {step + 1}: the loss is {total:g}, its gradient's norm {norm:g}. Lower optimizer.lr, raise "
            "optimizer.warmup, or set precision: float32; go on from the last checkpoint with --resume"
        )
    run.trained.optimizer.step()
    if run.trained.ema is not None:
        run.trained.ema.update(step)
    return total, norm


def gradients(run: Run, samples: list[Sample], step: int) -> float:
    """Fill the gradients of the step's mean loss over all processes' samples; returns that loss."""
    run.trained.optimizer.zero_grad(set_to_none=True)
    rounds = run.config.accumulate
    share = len(samples) // rounds
    total = torch.zeros((), dtype=torch.float64, device=run.world.device)
    for i in range(rounds):
        part = samples[i * share : (i + 1) * share]
        prepared = run.task.prepare(part, step)
        with sync_gradients(run.module, now=i == rounds - 1):
            loss: Tensor = run.task.loss(run.module, prepared, run.task.draws(prepared, step)).sum() / len(samples)
            loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach().double()
    return float(run.world.sum(total) / run.world.size)


def save(run: Run, folder: Path) -> Path:
    """Write a checkpoint of the run as it stands."""
    return checkpointing.save(
        run.trained, folder / CHECKPOINTS, settled(run.config), run.world, keep=run.config.log.keep
    )


def whole_config(config: TrainConfig) -> dict[str, Any]:
    """Every field of the config as plain values, for `config.json` of the run."""
    content: dict[str, Any] = as_mapping(config)
    return content


def _scalars(run: Run, loss: float, norm: float) -> dict[str, float]:
    rates = {group["name"].partition(",")[0]: float(group["lr"]) for group in run.trained.optimizer.param_groups}
    found = {"loss": loss, "gradient_norm": norm, **{f"lr_{name}": lr for name, lr in rates.items()}}
    if run.world.device.type == "cuda":
        found["memory_gb"] = torch.cuda.max_memory_allocated(run.world.device) / 1e9
    return found


def _strip(run: Run, journal: Journal) -> None:
    """The fixed sample 0 as the averaged weights see it; every process computes, the first one writes."""
    if run.task.encoders.components is None:
        return
    sample = replace(run.source.sample(0, run.config.seed), key=0)
    average = run.trained.ema
    if average is None:
        picture = strip(run.task, run.denoiser, sample, run.config.log.strip_steps)
    else:
        with average.applied():
            picture = strip(run.task, run.denoiser, sample, run.config.log.strip_steps)
    journal.strip(run.trained.step, picture)


def _close(loader: Iterator[Any]) -> None:
    close = getattr(loader, "close", None)
    if close is not None:
        close()
