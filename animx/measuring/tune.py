"""`animx bench ops --tune`: the fastest right launch configuration of each operator and shape, on the card here.

For every question that the operators ask the tables (`dispatch.tuned`) the present entries and all candidates of
`animx_kernels.tuning` are run: one that does not compile, does not fit the card or is wrong in the asked storage type
or in float32 is dropped with the reason; the others are timed in turns, briefly, and the best few again for longer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from animx.atomic import check_parent, output_error, writing
from animx.bench import CheckError, commit
from animx.errors import InputError, UsageError
from animx.measuring.ops import known
from animx.measuring.subjects import poisoned, several, widened
from animx.measuring.timing import SCHEMA, error_of, in_turns, surroundings
from animx_kernels import tuning
from animx_kernels.dispatch import Case, Inputs, LookUp, Op, configured, load_ops, watched

SHAPES = ("small", "official")

SHORTLIST = 8
"""So many of the briefly timed candidates are timed again; the present entries always are."""

ABOUT = "Launch configurations measured here by 'animx bench ops --tune'; they go over the shipped ones."


@dataclass(frozen=True)
class Trial:
    """An operator at one shape."""

    op: Op
    shape: str
    case: Case

    def call(self, inputs: Inputs) -> Any:
        """The operator, as users call it."""
        return self.op.function(*inputs.args, **inputs.kwargs)


@dataclass
class Job:
    """One question to the tables, and the calls that ask it."""

    asked: LookUp
    trials: list[Trial] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As `geglu/sm_90/1280`."""
        return f"{self.asked.op}/sm_{self.asked.capability}/{self.asked.key}"


class Stage(Protocol):
    """Where the configurations of one job are tried."""

    def why_not(self, config: tuning.Config) -> str | None:
        """Why this configuration cannot be used; None where every result is right."""

    def seconds(self, configs: Sequence[tuning.Config], brief: bool) -> list[float]:
        """Median time of each, all taken in turns: one number for all shapes of the job (geometric mean)."""


@dataclass
class Found:
    """What a search found."""

    job: Job
    config: tuning.Config
    seconds: float
    before: float | None
    """Seconds with the entries the tables had; None where those are not right here."""
    tried: int
    dropped: dict[str, int]
    """Reasons, and how many candidates went by each."""

    def as_json(self) -> dict[str, Any]:
        """As one object; milliseconds."""
        return {
            "op": self.job.asked.op,
            "card": f"sm_{self.job.asked.capability}",
            "key": self.job.asked.key,
            "shapes": [f"{one.op.name} {one.shape}" for one in self.job.trials],
            "config": self.config,
            "ms": _ms(self.seconds),
            "before_ms": None if self.before is None else _ms(self.before),
            "tried": self.tried,
            "dropped": self.dropped,
        }


def _ms(seconds: float) -> float:
    return float(f"{1e3 * seconds:.4g}")


def bench_tune(
    names: Sequence[str] = ("all",),
    shapes: Sequence[str] = ("official",),
    *,
    device: str,
    dtype: str = "bfloat16",
    seconds: float = 0.5,
    out: Path | None = None,
    staged: Callable[[Job], Stage] | None = None,
) -> dict[str, Any]:
    """Search for operators by name and write the user's table (`out`, or where dispatch reads it) after each find.

    `staged`: where candidates are tried, instead of `device`.  Errors: `UsageError` without a CUDA device and where no
    Triton body would run; `InputError` for a damaged table at `out`; `CheckError` where no configuration is right.
    """
    if staged is None and not device.startswith("cuda"):
        raise UsageError(f"bench ops --tune: needs a CUDA device, and {device} was chosen or is all there is here")
    ops = load_ops()
    chosen = list(ops) if "all" in names else list(names)
    known("--op", chosen, ops)
    known("--shapes", shapes, SHAPES)
    file = out or tuning.user_file()
    if out is None and str(file) == "off":
        raise UsageError("bench ops --tune: ANIMX_TUNING=off names no table. Name one with --out")
    table = opened(file, shared=out is None)
    place, kind = torch.device(device), getattr(torch, dtype)
    around = surroundings(place)
    marks = {"card": around["machine"]["device"], "date": around["date"], "commit": commit(), "dtype": dtype}
    with torch.no_grad():
        jobs = jobs_of([ops[name] for name in chosen], shapes, place, kind)
        if not jobs:
            raise UsageError("bench ops --tune: no Triton body with a table entry runs here (animx doctor says why)")
        rows = []
        for job in jobs:
            found = search(job, staged(job) if staged else Card(job, place, kind, seconds))
            rows.append(found.as_json())
            keep(table, found, marks)
            save(file, table)
    return {
        "bench": "tune",
        "schema": SCHEMA,
        "ratios": {found_name(row): round(row["before_ms"] / row["ms"], 3) for row in rows if row["before_ms"]},
        "rows": rows,
        "file": str(file),
        "read": file.absolute() == tuning.user_file().absolute(),
        "dtype": dtype,
        **around,
    }


def found_name(row: dict[str, Any]) -> str:
    """How a row of the result is called."""
    return f"{row['op']} {row['card']} {row['key']}/before_over_tuned"


def jobs_of(ops: Sequence[Op], shapes: Sequence[str], device: torch.device, dtype: torch.dtype) -> list[Job]:
    """What these operators ask the tables at these shapes, by calling each once."""
    jobs: dict[LookUp, Job] = {}
    for op in ops:
        for name, case in op.cases().items():
            if ("official" if case.official else "small") not in shapes:
                continue
            trial = Trial(op, name, case)
            with watched() as seen:
                try:
                    trial.call(case.make(device, dtype, 0))
                except Exception:  # the present entries may not fit this card: that is what the search is for
                    if not seen:
                        raise
            for asked in sorted(seen):
                if asked.op in tuning.SEARCH:
                    jobs.setdefault(asked, Job(asked)).trials.append(trial)
    return list(jobs.values())


def search(job: Job, stage: Stage) -> Found:
    """The fastest right one of the present entries and the candidates.  Error: `CheckError` where none is right."""
    present = {
        name: value for name, value in tuning.looked_up(*job.asked).items() if name not in tuning.MARKS
    }  # fmt: skip
    tried = [present]
    for one in tuning.candidates(job.asked.op):
        if (config := {**present, **one}) not in tried:
            tried.append(config)
    right: list[tuning.Config] = []
    dropped: dict[str, int] = {}
    for config in tried:
        if (why := stage.why_not(config)) is None:
            right.append(config)
        else:
            dropped[why] = dropped.get(why, 0) + 1
    if not right:
        raise CheckError(f"bench ops --tune: {job.name}: none of {len(tried)} configurations is right ({min(dropped)})")
    first = dict(enumerate(stage.seconds(right, brief=True)))
    finalists = [right[at] for at in sorted(first, key=first.__getitem__)[:SHORTLIST]]
    if present in right and present not in finalists:
        finalists.append(present)
    last = stage.seconds(finalists, brief=False)
    best = min(range(len(last)), key=last.__getitem__)
    before = last[finalists.index(present)] if present in finalists else None
    return Found(job, finalists[best], last[best], before, len(tried), dropped)


class Card:
    """The stage that is a device: inputs and float64 truths of a job are made once and kept while it is tried."""

    def __init__(self, job: Job, device: torch.device, dtype: torch.dtype, seconds: float) -> None:
        self.job, self.device, self.for_seconds = job, device, seconds
        self.kinds = list(dict.fromkeys((dtype, torch.float32)))
        self.made: list[tuple[Trial, torch.dtype, Inputs, tuple[Tensor, ...]]] = []
        for trial in job.trials:
            for kind in self.kinds:
                inputs = trial.case.make(device, kind, 0)
                wide = widened(inputs)
                truth = trial.op.compared(several(trial.op.reference(*wide.args, **wide.kwargs)))
                self.made.append((trial, kind, inputs, truth))

    def why_not(self, config: tuning.Config) -> str | None:
        """See `Stage`."""
        for trial, kind, inputs, truth in self.made:
            try:
                with configured(self.job.asked.op, **config), poisoned():
                    found = trial.op.compared(several(trial.call(inputs)))
                off = max(error_of(a, b) for a, b in zip(found, truth, strict=True))
            except Exception as problem:  # triton and the driver raise many kinds; each drops the candidate by name
                self._alive(config)
                return f"does not run: {type(problem).__name__}"
            if not off <= trial.op.tolerance[kind]:
                return f"wrong in {str(kind).removeprefix('torch.')}"
        return None

    def _alive(self, config: tuning.Config) -> None:
        """A card that met a fault answers every later call with the same error: nothing more can be learnt."""
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self.device)
        except Exception as problem:  # whatever a broken card says; the search ends
            raise CheckError(
                f"bench ops --tune: {self.job.name} with {config} stopped the card: {problem}"
            ) from problem

    def seconds(self, configs: Sequence[tuning.Config], brief: bool) -> list[float]:
        """See `Stage`; the storage type that was asked for."""
        logs = [0.0] * len(configs)
        timed = [(trial, inputs) for trial, kind, inputs, _ in self.made if kind == self.kinds[0]]
        for trial, inputs in timed:
            calls = {str(at): self._call(trial, inputs, config) for at, config in enumerate(configs)}
            spreads = in_turns(calls, self.device, 0.0 if brief else self.for_seconds * len(configs))
            for at in range(len(configs)):
                logs[at] += math.log(max(spreads[str(at)].median, 1e-9)) / len(timed)
        return [math.exp(one) for one in logs]

    def _call(self, trial: Trial, inputs: Inputs, config: tuning.Config) -> Callable[[], object]:
        def call() -> object:
            with configured(self.job.asked.op, **config):
                return trial.call(inputs)

        return call


# ---- the user's table ---------------------------------------------------------------------------------------------


def opened(file: Path, shared: bool) -> tuning.Table:
    """The table that is to grow: what `file` holds, or an empty one.  `shared`: make its folder (the config folder).

    Errors, before anything is measured: `InputError` for a damaged table, `OutputError` where none can be written.
    """
    if shared:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(file, error) from error
    check_parent(file)
    try:
        return tuning.read_table(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise InputError(f"{file}: {problem}. Mend or remove it, or name another file with --out") from None


def keep(table: tuning.Table, found: Found, marks: dict[str, Any]) -> None:
    """Put what was found into the table, marked with where and when it was measured."""
    row = found.as_json()
    measured = {**marks, "ms": row["ms"], "before_ms": row["before_ms"]}
    entries = {**found.config, "origin": "measured", "measured": measured}
    table.setdefault(row["op"], {}).setdefault(row["card"], {})[row["key"]] = entries


def save(file: Path, table: tuning.Table) -> None:
    """Write the table whole, or leave the old one; dispatch reads it anew."""
    text = json.dumps({"about": ABOUT, "ops": table}, indent=2, sort_keys=True) + "\n"
    with writing(file, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    tuning.reread()
