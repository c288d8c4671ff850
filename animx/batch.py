"""Many renders from a list, one after the other or on a Ray cluster; each job ends in a result, none ends the others.

The list is `animx.batch_jobs`, what counts as finished is `animx.batch_resume`, the cluster is `animx.batch_ray`.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from animx import resident
from animx.batch_jobs import Job, parse_shard, read_jobs
from animx.errors import AnimxError, OutOfMemoryError, UsageError

__all__ = ["Job", "JobResult", "parse_shard", "read_jobs", "run_batch", "run_job", "shard"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobResult:
    """What became of a job."""

    number: int
    """Line number in the list, from 1."""
    output: str
    status: str
    """done, skipped (its output is there already), failed, or pending (not begun)."""
    seconds: float = 0.0
    exit_code: int = 0
    """What `animx render` would have returned."""
    error: str = ""
    frames: int = 0
    engine: str = ""
    warnings: tuple[str, ...] = ()
    worker: str = ""
    """host:process that did it."""
    loads: int = 0
    """Models that this worker had loaded by the end of the job."""

    def record(self) -> dict[str, Any]:
        """As one JSON object; what says nothing is left out."""
        shown = {one.name: getattr(self, one.name) for one in fields(self)}
        shown["warnings"] = list(self.warnings)
        shown["seconds"] = round(self.seconds, 3)
        needed = ("number", "output", "status", "seconds", "exit_code")
        return {name: value for name, value in shown.items() if value or name in needed}


def shard(jobs: Sequence[Job], part: tuple[int, int]) -> list[Job]:
    """Every Nth job from the Ith on: shards differ by at most one job and together hold each job once."""
    return list(jobs[part[0] - 1 :: part[1]])


def run_job(job: Job, *, overwrite: bool = False, resume: bool = False) -> JobResult:
    """Render one job.  Failures become a result; only an interruption passes.

    resume: an output whose recipe is that of the job is skipped; a broken long render is taken up; an output that is
    there but is not what the job would make fails, or is replaced with `overwrite`.
    """
    from animx.pipeline import render

    began = time.monotonic()

    def result(status: str, **facts: Any) -> JobResult:
        worker = f"{platform.node()}:{os.getpid()}"
        seconds = time.monotonic() - began
        return JobResult(job.number, job.output, status, seconds, worker=worker, loads=resident.made(), **facts)

    def failed(code: int, text: str) -> JobResult:
        log.debug("line %d", job.number, exc_info=True)
        return result("failed", exit_code=code, error=" ".join(text.split()))

    try:
        options = dict(job.options)
        if resume:
            if _is_finished(job, overwrite):
                return result("skipped")
            options = _taking_up(job, options)
            overwrite = overwrite or _only_side_car(job)
        made = render(job.reference, job.driving, job.output, overwrite=overwrite, **options)
    except AnimxError as error:
        return failed(error.exit_code, str(error))
    except MemoryError:
        return failed(OutOfMemoryError.exit_code, "out of memory. Try a smaller size or a shorter duration")
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return failed(3, f"{where}{error.strerror or error}")
    except Exception as error:  # a bug in one job must not cost the others; it is reported as one
        from animx.provenance import bug_report

        return failed(1, bug_report(error))
    return result("done", frames=made.frames, engine=made.engine, warnings=tuple(made.warnings))


def _is_finished(job: Job, overwrite: bool) -> bool:
    """Whether the output is there and is the job's; one that is not raises, unless it may be replaced."""
    from animx.batch_resume import difference, is_there

    if not is_there(job.output):
        return False
    different = difference(job)
    if different is not None and not overwrite:
        raise UsageError(
            f"{job.output} exists and is not what this job makes ({different}). "
            "Replace it with -y/--overwrite, or name another output"
        )
    if different is not None:
        log.info("line %d: %s is made again (%s)", job.number, job.output, different)
    return different is None


def _only_side_car(job: Job) -> bool:
    """Whether the output was taken away and its recipe left behind: then that may be replaced."""
    from animx.batch_resume import is_there, recorded

    return not is_there(job.output) and not Path(job.output).exists() and recorded(job.output) is not None


def _taking_up(job: Job, options: dict[str, Any]) -> dict[str, Any]:
    """The options with which a job folder that a broken render left is gone on with."""
    from animx.job import job_folder

    if not (job_folder(Path(job.output)) / "plan.json").exists():
        return options
    return {**options, "engine_options": {**options.get("engine_options", {}), "resume": True}}


def run_batch(
    jobs: Sequence[Job],
    *,
    overwrite: bool = False,
    resume: bool = False,
    keep_going: bool = False,
    ray_address: str | None = None,
    on_result: Callable[[JobResult], None] = lambda _: None,
) -> list[JobResult]:
    """Run jobs and report each as it ends; without `keep_going` no job begins after the first failure.

    A model is loaded once for all jobs of a process that use it.  Returns a result for every job in the list's order;
    those not begun are `pending`.  ray_address: see `animx.batch_ray`.
    """
    results: dict[int, JobResult] = {}
    source: Generator[JobResult, None, None] = _here(jobs, overwrite, resume)
    if ray_address is not None:
        from animx.batch_ray import run_on_ray

        source = run_on_ray(jobs, ray_address, overwrite=overwrite, resume=resume, keep_going=keep_going)
    with closing(source):
        for result in source:
            results[result.number] = result
            on_result(result)
            if result.status == "failed" and not keep_going and ray_address is None:
                break
    return [results.get(job.number, JobResult(job.number, job.output, "pending")) for job in jobs]


def _here(jobs: Sequence[Job], overwrite: bool, resume: bool) -> Generator[JobResult, None, None]:
    with resident.kept():
        for job in jobs:
            yield run_job(job, overwrite=overwrite, resume=resume)
