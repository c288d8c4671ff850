"""`animx batch`: many renders from a list."""

from __future__ import annotations

import json
import sys

import click

from animx.cli import options as o
from animx.cli.output import Output
from animx.errors import BatchError


@o.command(
    "batch",
    writes=True,
    examples=(
        "animx batch jobs.jsonl",
        "animx batch jobs.jsonl --shard 2/4 --keep-going --resume",
        "animx batch jobs.jsonl --ray auto --json",
    ),
)
@click.argument("jobs", metavar="JOBS")
@click.option("--shard", metavar="I/N", help="Do every Nth job from the Ith on, counted from 1.  [all]")
@click.option("--resume", is_flag=True, help="Skip jobs whose output is there and theirs; take up broken long renders.")
@click.option("--keep-going", is_flag=True, help="Do the other jobs when one fails.")
@click.option("--ray", "ray_address", metavar="ADDRESS", help="Run on a Ray cluster: its address, auto, or local.")
def batch(
    out: Output,
    jobs: str,
    overwrite: bool,
    shard: str | None,
    resume: bool,
    keep_going: bool,
    ray_address: str | None,
) -> None:
    """Render every job of JOBS, a file with one JSON object a line (- is stdin).

    A job: {"reference": "a.png", "driving": "b.mp4", "output": "c.mp4", "presets": ["chibi"], "start": 2}. Prints a
    JSON line per job as it ends. Exit 7 when some failed.
    """
    from animx import batch as b

    part = None if shard is None else b.parse_shard(shard)
    chosen = b.read_jobs(jobs)
    if part is not None:
        chosen = b.shard(chosen, part)
    progress = out.progress()
    ended = 0

    def on_result(result: b.JobResult) -> None:
        nonlocal ended
        ended += 1
        if not out.as_json:
            sys.stdout.write(json.dumps(result.record()) + "\n")
            sys.stdout.flush()
        if result.status == "failed":
            out.say(f"animx: line {result.number} failed: {result.error}")
        progress("jobs", ended, len(chosen))

    results = b.run_batch(
        chosen,
        overwrite=overwrite,
        resume=resume,
        keep_going=keep_going,
        ray_address=ray_address,
        on_result=on_result,
    )
    states = ("done", "skipped", "failed", "pending")
    counts = {state: sum(result.status == state for result in results) for state in states}
    data = {"counts": counts, "jobs": [result.record() for result in results]}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    failed = [result for result in results if result.status == "failed"]
    if failed:
        mend = " Go on with --resume" if keep_going else " Go on with --resume, or do all others with --keep-going"
        raise BatchError(f"{said}; the first is line {failed[0].number}: {failed[0].error.rstrip('.')}.{mend}", data)
    out.say(f"animx: {said or 'no jobs in this shard'}")
    if out.as_json:
        out.result(data)
