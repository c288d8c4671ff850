"""Many renders from a list: one JSON object a line, done in shards, resumed, or spread over a Ray cluster.

A job line: {"reference": "a.png", "driving": "b.mp4", "output": "c.mp4", ...}; the other keys are render options by
their Python name (`presets`, `start`, `engine`, ...).  Paths are relative to the list's folder.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from animx.errors import AnimxError, InputError, MissingExtraError, UsageError, nearest

log = logging.getLogger(__name__)

MAX_JOBS = 1_000_000
MAX_LINE = 1_000_000
"""Longest job line [characters]."""


@dataclass(frozen=True)
class Job:
    """One line of a job list."""

    number: int
    """Line number in the list, from 1."""
    reference: str
    driving: str
    output: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JobResult:
    """What became of a job."""

    number: int
    output: str
    status: str
    """done, skipped (its output is there already) or failed."""
    seconds: float = 0.0
    exit_code: int = 0
    error: str = ""
    frames: int = 0

    def record(self) -> dict[str, Any]:
        """As one JSON object."""
        shown = {one.name: getattr(self, one.name) for one in fields(self)}
        if self.status != "failed":
            shown.pop("error")
        return {**shown, "seconds": round(self.seconds, 3)}


def read_jobs(source: str | Path) -> list[Job]:
    """Read a JSONL job list (`-`: stdin).  A bad line is an `InputError` with its number and the field's name."""
    stdin = str(source) == "-"
    where = "stdin" if stdin else str(source)
    folder = Path() if stdin else Path(source).parent
    try:
        text = sys.stdin.read() if stdin else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{where}: cannot be read ({reason})") from error
    jobs = [
        _job(line, number, where, folder)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not jobs:
        raise InputError(f"{where}: holds no jobs")
    if len(jobs) > MAX_JOBS:
        raise InputError(f"{where}: {len(jobs)} jobs, at most {MAX_JOBS}")
    taken: dict[str, int] = {}
    for job in jobs:
        if job.output in taken:
            raise InputError(f"{where}:{job.number}: output: {job.output} is also that of line {taken[job.output]}")
        taken[job.output] = job.number
    return jobs


def _job(line: str, number: int, where: str, folder: Path) -> Job:
    from animx.request import RenderOptions

    at = f"{where}:{number}"
    if len(line) > MAX_LINE:
        raise InputError(f"{at}: longer than {MAX_LINE} characters")
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{at}: not a JSON object") from error
    if not isinstance(content, dict):
        raise InputError(f"{at}: not a JSON object")
    for name in ("reference", "driving", "output"):
        value = content.pop(name, None)
        if not isinstance(value, str) or not value or value == "-":
            raise InputError(f"{at}: {name}: expected the path of a file")
        content[f"={name}"] = str(folder / value)
    given = {key[1:]: content.pop(key) for key in [k for k in content if k.startswith("=")]}
    known = [one.name for one in fields(RenderOptions)]
    for name in content:
        if name not in known:
            raise InputError(f"{at}: unknown key '{name}'.{nearest(name, [*known, *given])}")
    for name in ("mask", "driving_video"):
        if isinstance(content.get(name), str):
            content[name] = str(folder / content[name])
    try:
        RenderOptions.of(**content)
    except (AnimxError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{at}: {' '.join(str(error).split())}") from error
    return Job(number, given["reference"], given["driving"], given["output"], content)


def parse_shard(text: str) -> tuple[int, int]:
    """`2/4` -> (2, 4): the second of four shards, counted from 1."""
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise UsageError(f"--shard {text}: use I/N with I from 1 to N, such as 2/4")
    return int(first), int(second)


def shard(jobs: Sequence[Job], part: tuple[int, int]) -> list[Job]:
    """Every Nth job from the Ith on: shards differ by at most one job and together hold each job once."""
    return list(jobs[part[0] - 1 :: part[1]])


def run_job(job: Job, *, overwrite: bool = False, resume: bool = False) -> JobResult:
    """Render one job.  Expected failures become a result; with `resume` a finished output is skipped."""
    from animx.pipeline import render
    from animx.provenance import side_car_path

    began = time.monotonic()
    if resume and Path(job.output).exists() and side_car_path(job.output).exists():
        return JobResult(job.number, job.output, "skipped")
    try:
        made = render(job.reference, job.driving, job.output, overwrite=overwrite, **dict(job.options))
    except AnimxError as error:
        text = " ".join(str(error).split())
        return JobResult(job.number, job.output, "failed", time.monotonic() - began, error.exit_code, text)
    except MemoryError:
        return JobResult(job.number, job.output, "failed", time.monotonic() - began, 5, "out of memory")
    except Exception as error:  # a bug in one job must not cost the others; it is reported as one
        log.debug("job %d", job.number, exc_info=True)
        text = f"internal error ({type(error).__name__}: {error})"
        return JobResult(job.number, job.output, "failed", time.monotonic() - began, 1, text)
    return JobResult(job.number, job.output, "done", time.monotonic() - began, frames=made.frames)


def run_batch(
    jobs: Sequence[Job],
    *,
    overwrite: bool = False,
    resume: bool = False,
    keep_going: bool = False,
    ray_address: str | None = None,
    on_result: Callable[[JobResult], None] = lambda _: None,
) -> list[JobResult]:
    """Run jobs and report each as it ends; without `keep_going` the first failure stops the batch."""
    source = (
        _on_ray(jobs, ray_address, overwrite, resume)
        if ray_address is not None
        else (run_job(job, overwrite=overwrite, resume=resume) for job in jobs)
    )
    results = []
    for result in source:
        results.append(result)
        on_result(result)
        if result.status == "failed" and not keep_going:
            break
    return results


def _on_ray(jobs: Sequence[Job], address: str, overwrite: bool, resume: bool) -> Iterator[JobResult]:
    """Run jobs on a Ray cluster (`local` starts one here); models stay loaded in each worker."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("--ray", "ray") from error
    try:
        ray.init(
            address=None if address == "local" else address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"--ray {address}: no cluster can be reached ({str(error).splitlines()[0]})") from error
    try:
        remote = ray.remote(num_cpus=1)(_remote_job)
        here = str(Path.cwd())
        waiting = [remote.remote(job, here, overwrite, resume) for job in jobs]
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            yield ray.get(ready[0])
    finally:
        ray.shutdown()


def _remote_job(job: Job, folder: str, overwrite: bool, resume: bool) -> JobResult:
    os.chdir(folder)
    return run_job(job, overwrite=overwrite, resume=resume)
