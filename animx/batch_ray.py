"""A batch on a Ray cluster: one worker per GPU (per CPU core where there is none), each with its model loaded once.

The workers see the same files: paths are made absolute here, so the list, its inputs and its outputs must lie on a file
system that all nodes mount at the same place.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO, cast

from animx.batch import JobResult, run_job
from animx.batch_jobs import Job
from animx.errors import InputError, MissingExtraError

log = logging.getLogger(__name__)

PASSED = ("ANIMX_", "HF_", "CUBLAS_", "PYTORCH_")
"""Environment variables with these beginnings go to the workers."""
CONNECT_S = 10
"""How long to wait for the cluster's node to answer [s]."""


def run_on_ray(
    jobs: Sequence[Job], address: str, *, overwrite: bool = False, resume: bool = False, keep_going: bool = False
) -> Generator[JobResult, None, None]:
    """Run jobs on the cluster at `address` (`auto`: the one of this machine; `local`: start one) as workers come free.

    Yields results as jobs end.  A worker that dies costs the job it was at, which fails, and is replaced.  Without
    `keep_going` no job begins after the first failure; those at work are finished.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("--ray", "ray") from error
    with contextlib.redirect_stdout(cast(TextIO, _OwnThread(sys.stdout))):
        _connect(ray, address)
        try:
            yield from _spread(ray, deque(map(_absolute, jobs)), overwrite, resume, keep_going)
        finally:
            ray.shutdown()


class _OwnThread:
    """Stdout for the thread that makes it; what others write is logged.

    Ray prints what happens to workers to the driver's stdout, from a thread and whatever its settings; ours carries
    results.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._owner = threading.get_ident()

    def write(self, text: str) -> int:
        """Write `text`, or log it."""
        if threading.get_ident() == self._owner:
            return self._stream.write(text)
        if text.strip():
            log.debug("ray: %s", text.strip())
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _connect(ray: Any, address: str) -> None:
    variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    variables["PYTHONPATH"] = os.pathsep.join(str(Path(one).absolute()) for one in sys.path if one)
    before = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": variables},
        )
    except Exception as error:  # ray raises many kinds; each means the same to a user
        why = str(error).strip().splitlines()
        raise InputError(
            f"--ray {address}: no cluster can be reached ({why[0] if why else type(error).__name__}). "
            "Start one with: ray start --head"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # ray takes it over, and would end the process its own way


def _knock(address: str) -> None:
    """Refuse an address where nobody listens at once; ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def _absolute(job: Job) -> Job:
    options = dict(job.options)
    for name in ("mask", "driving_video"):
        if options.get(name) is not None:
            options[name] = str(Path(options[name]).absolute())
    for name in ("ref_pose", "background"):
        if name in options and Path(options[name]).exists():
            options[name] = str(Path(options[name]).absolute())
    if "presets" in options:
        given = [options["presets"]] if isinstance(options["presets"], str) else options["presets"]
        options["presets"] = [str(Path(one).absolute()) if Path(one).is_file() else one for one in given]
    reference, driving, output = (str(Path(path).absolute()) for path in (job.reference, job.driving, job.output))
    return replace(job, reference=reference, driving=driving, output=output, options=options)


class _Worker:
    """What runs in each worker process: one job at a time, with the model kept between them."""

    def __init__(self) -> None:
        from animx.resident import kept

        self._kept = kept()
        self._kept.__enter__()

    def ready(self) -> None:
        """Answer once the process is up."""

    def run(self, job: Job, overwrite: bool, resume: bool) -> JobResult:
        """Run one job; failures are results."""
        return run_job(job, overwrite=overwrite, resume=resume)


def _spread(ray: Any, waiting: deque[Job], overwrite: bool, resume: bool, keep_going: bool) -> Iterator[JobResult]:
    """Hand each worker that is free the next job."""
    has = ray.cluster_resources()
    gpus = int(has.get("GPU", 0)) if any(job.options.get("engine") != "puppet" for job in waiting) else 0
    count = min(len(waiting), gpus or max(1, int(has.get("CPU", 1))))
    log.info("ray: %d worker(s), each with %s", count, "one GPU" if gpus else "one CPU core")
    kind = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(_Worker)
    busy: dict[Any, tuple[Any, Job | None]] = {}

    def begin() -> None:
        worker = kind.remote()
        busy[worker.ready.remote()] = (worker, None)

    for _ in range(count):
        begin()
    while busy:
        (done,), _ = ray.wait(list(busy), num_returns=1)
        worker, job = busy.pop(done)
        try:
            result = ray.get(done)
        except ray.exceptions.RayError as error:
            if job is None:
                raise InputError(f"--ray: a worker cannot start ({_first_line(error)})") from error
            result = JobResult(
                job.number, job.output, "failed", exit_code=1, error=f"its worker died: {_first_line(error)}"
            )
            if waiting and keep_going:
                begin()
            worker = None
        if job is not None:
            assert isinstance(result, JobResult)
            if result.status == "failed" and not keep_going:
                waiting.clear()
            yield result
        if worker is not None and waiting:
            job = waiting.popleft()
            busy[worker.run.remote(job, overwrite, resume)] = (worker, job)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
