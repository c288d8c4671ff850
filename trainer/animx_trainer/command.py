"""`animx train CONFIG`: one run, from its config to a model that renders; also under torchrun."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from animx.cli import Terminated
from animx.cli import options as o
from animx.cli.output import Output
from animx.errors import MissingExtraError, UsageError
from animx.lock import holding
from animx.processes import is_first

if TYPE_CHECKING:
    from animx_trainer.config import TrainConfig
    from animx_trainer.distributed import World
    from animx_trainer.loop import Outcome

OWN = ("config.yaml", "initialise.json", "log.jsonl", "tensorboard", "samples", "checkpoints", "model")
"""What a run's folder holds; `--overwrite` removes these and nothing else."""


@o.command(
    "train",
    writes=True,
    examples=(
        "animx train smoke -o runs/smoke",
        "animx train my.yaml -o runs/mine --set optimizer.lr=1e-4 --resume",
        "animx train runs/mine --proof 200",
        "animx train paper --dry-run",
        "animx train finetune --show > my.yaml",
        "torchrun --nproc-per-node 8 -m animx train paper -o runs/paper --set parallel=fsdp",
    ),
)
@click.argument("config", metavar="CONFIG")
@click.option("-o", "--output", metavar="FOLDER", help="Folder of the run.  [CONFIG's own, or train-CONFIG]")
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change a field of the config (data.frames=16)."
)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in the folder, if there is one.")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Steps of the whole run.  [the config's]")
@click.option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N.  [auto]")
@click.option("--export", metavar="FOLDER", help="Only write the model of the newest checkpoint into a new folder.")
@click.option("--proof", type=click.IntRange(2, 100_000), metavar="N",
              help="Only measure what the newest checkpoint has learned, on N unseen characters.")  # fmt: skip
@click.option("--against", metavar="RUN", help="With --proof: also measure this run, and the two in pairs.")
@click.option("--show", is_flag=True, help="Only print the whole config as YAML: every field, as it would be used.")
@click.option("--dry-run", is_flag=True, help="Say what would be trained and how much memory it takes; write nothing.")
def train(
    out: Output,
    config: str,
    overwrite: bool,
    output: str | None,
    sets: tuple[str, ...],
    resume: bool,
    steps: int | None,
    device: str,
    export: str | None,
    proof: int | None,
    against: str | None,
    show: bool,
    dry_run: bool,
) -> None:
    """Train the full model as CONFIG says: a YAML file, the folder of a run, or paper, finetune, nano or smoke.

    The folder gets config, log (JSONL, TensorBoard), sample strips, checkpoints and, at the end, a model for
    `animx render --model FOLDER/model`. Ctrl-C and SIGTERM write a checkpoint first; --resume gives the same numbers.
    """
    _needs_torch()
    from animx_trainer.config import load_config, with_steps

    chosen = load_config(config, sets)
    if steps is not None:
        chosen = with_steps(chosen, steps)
    if show:
        _show(out, chosen)
        return
    if dry_run:
        _say_plan(out, chosen)
        return
    folder = Path(output) if output else _folder_of(config)
    if against is not None and proof is None:
        raise UsageError("--against goes with --proof N. Give both, or neither")
    if proof is not None:
        _prove(out, chosen, folder, proof, against, device)
        return
    if export is not None:
        _export(out, chosen, folder, Path(export), overwrite)
        return
    if resume and overwrite:
        raise UsageError("--resume and --overwrite cannot be given together. Leave one out")
    _check_folder(folder, resume, overwrite)
    with holding(folder) if is_first() else nullcontext():
        _train(out, chosen, folder, resume, device)


def _train(out: Output, config: TrainConfig, folder: Path, resume: bool, device: str) -> None:
    from animx_trainer.distributed import joined
    from animx_trainer.export import MODEL, export
    from animx_trainer.journal import read_log
    from animx_trainer.loop import CHECKPOINTS, make_run
    from animx_trainer.loop import resume as go_on
    from animx_trainer.loop import train as run_training
    from animx_trainer.sources import loader_of, open_source

    with joined(device) as world:
        source = open_source(config.data, config.seed)
        run = make_run(config, source, loader_of(config.data), world)
        done = go_on(run, folder) if resume else 0  # first: what is refused must not have touched the folder
        if done > config.steps:
            raise UsageError(f"{folder}: {done} steps are done, more than the {config.steps} asked for. Raise --steps")
        _prepare_folder(folder, config, run.report.record(), resume, world)
        begun = f"going on after step {done}" if done else run.report.line()
        if resume and not done:
            begun = f"no checkpoint yet, beginning anew; {begun}"
        out.say(f"animx: {begun}; {sum(p.numel() for p in run.parameters):,} parameters on {world.device}")
        with _stopping(out) as stop:
            outcome = run_training(run, folder, should_stop=lambda: bool(stop), on_progress=out.progress())
        if not outcome.is_complete:
            left = f"after step {outcome.step}; its checkpoint is written. Go on with --resume"
            raise (
                KeyboardInterrupt(f"interrupted {left}")
                if stop == [signal.SIGINT]
                else Terminated(f"terminated {left}")
            )
        model = None
        newest = outcome.checkpoint or _newest(folder / CHECKPOINTS)
        if run.task.encoders.components is not None:
            del run
            if world.is_first:
                model = export(config, newest, folder / MODEL, overwrite=True)
            world.barrier()
        _say_end(out, folder, outcome, newest, model, read_log(folder))


def _say_end(
    out: Output, folder: Path, outcome: Outcome, newest: Path, model: Path | None, log: list[dict[str, Any]]
) -> None:
    loss = log[-1]["loss"] if log else None
    shown = "" if loss is None else f", loss {loss:.4g}"
    out.say(f"animx: {outcome.step} steps done{shown}; {'model in ' + str(model) if model else newest}")
    data = {
        "folder": str(folder),
        "steps": outcome.step,
        "loss": loss,
        "checkpoint": str(newest),
        "model": None if model is None else str(model),
    }
    out.wrote(data, [model or newest])


def _export(out: Output, config: TrainConfig, folder: Path, target: Path, overwrite: bool) -> None:
    from animx_trainer.export import export
    from animx_trainer.loop import CHECKPOINTS

    newest = _newest(folder / CHECKPOINTS)
    try:
        export(config, newest, target, overwrite=overwrite)
    except UsageError as error:  # elsewhere -o names what is written; here it is the run
        raise UsageError(str(error).replace("with -o", "with --export")) from error
    out.say(f"animx: wrote the model of {newest}")
    out.wrote({"folder": str(target), "checkpoint": str(newest)}, [target])


def _prove(out: Output, config: TrainConfig, folder: Path, count: int, against: str | None, device: str) -> None:
    from animx_trainer.config import load_config
    from animx_trainer.distributed import choose_device
    from animx_trainer.examine import examine, lines_of, open_model
    from animx_trainer.loop import CHECKPOINTS

    place = choose_device(device)
    model = open_model(config, _newest(folder / CHECKPOINTS), place)
    rival = None
    if against is not None:
        rival = open_model(load_config(against), _newest(Path(against) / CHECKPOINTS), place)
    report = examine(model, count, against=rival, on_progress=out.progress())
    out.result({"proof": report}, lines_of(report))


def _folder_of(config: str) -> Path:
    """Where a run lies when `-o` does not say: in the folder whose config was named, or in one named after it."""
    path = Path(config)
    home = path.parent if path.name == "config.yaml" else path
    return home if home.is_dir() and _holds_run(home) else Path(f"train-{path.stem}")


def _newest(checkpoints: Path) -> Path:
    from animx_trainer.checkpointing import list_checkpoints

    found = list_checkpoints(checkpoints)
    if not found:
        raise UsageError(f"{checkpoints}: holds no checkpoint. Name the folder of a run with -o")
    return found[-1]


def _show(out: Output, config: TrainConfig) -> None:
    import yaml

    from animx.config import as_mapping

    whole = as_mapping(config)
    out.result({"config": whole}, yaml.safe_dump(whole, sort_keys=False).splitlines())


def _say_plan(out: Output, config: TrainConfig) -> None:
    from animx_trainer.plan import plan

    found = plan(config)
    rows = [
        f"{name:<16}{count:>15,} parameters   lr {lr:g}   weight decay {decay:g}"
        for name, (count, lr, decay) in found.groups.items()
    ]
    lines = [
        f"network: {config.model.variant}, {found.trained:,} parameters trained, {found.frozen:,} unused",
        *rows,
        f"memory:  {_size(found.training_bytes)} for weights, gradients and AdamW in float32"
        + (f", {_size(found.ema_bytes)} for averages" if found.ema_bytes else "")
        + "; encoders and activations come on top",
        f"steps:   {config.steps:,} of {config.batch} samples x {config.data.frames} frames at "
        f"{config.data.size[0]}x{config.data.size[1]}",
    ]
    out.result({"plan": found.record()}, lines)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse what is no folder of a run, and a run that is neither to be resumed nor replaced."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder. Choose another name with -o")
    held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if held and not resume and not overwrite:
        raise UsageError(f"{folder} exists. Go on with --resume, replace it with -y/--overwrite, or choose another -o")
    if resume and any(not name.startswith(".animx-") for name in held) and not _holds_run(folder):
        raise UsageError(
            f"{folder} holds '{held[-1]}', but no run to go on with. Choose another name with -o; to begin anew "
            "there, empty it first"
        )
    foreign = [name for name in held if name not in OWN]
    if overwrite and foreign:
        raise UsageError(f"{folder} also holds '{foreign[0]}', which no run wrote. Choose another name with -o")


def _holds_run(folder: Path) -> bool:
    """Whether a run began in `folder`; one that was killed at once has written no more than its report."""
    from animx_trainer.checkpointing import list_checkpoints
    from animx_trainer.loop import CHECKPOINTS

    return (folder / "initialise.json").is_file() or bool(list_checkpoints(folder / CHECKPOINTS))


def _prepare_folder(folder: Path, config: TrainConfig, report: dict[str, Any], resume: bool, world: World) -> None:
    """Make the folder (an earlier run in it is removed unless resumed) and write config and report, in one process."""
    import json
    import shutil

    import yaml

    from animx.atomic import output_error, writing
    from animx_trainer.loop import whole_config

    if world.is_first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in OWN if not resume else ():
                entry = folder / name
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        except OSError as error:
            raise output_error(folder, error) from error
        # The report first: it marks the folder as a run's (see `_holds_run`).
        with writing(folder / "initialise.json", overwrite=True) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        with writing(folder / "config.yaml", overwrite=True) as temporary:
            temporary.write_text(yaml.safe_dump(whole_config(config), sort_keys=False), encoding="utf-8")
    world.barrier()


@contextmanager
def _stopping(out: Output) -> Iterator[list[int]]:
    """While inside, the first SIGTERM or SIGINT is noted in the list, and told; the second one ends the process."""
    caught: list[int] = []

    def note(number: int, _frame: object) -> None:
        if caught:
            at_once = "stopped at once; go on from the last checkpoint with --resume"
            raise KeyboardInterrupt(at_once) if number == signal.SIGINT else Terminated(at_once)
        caught.append(number)
        with suppress(RuntimeError):  # the signal came amid another line
            out.say("animx: stopping: this step is finished and a checkpoint written, please wait; again: at once")

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: whoever runs the command there handles signals
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _needs_torch() -> None:
    import importlib.util

    if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers", "transformers")):
        raise MissingExtraError("training", "train")
