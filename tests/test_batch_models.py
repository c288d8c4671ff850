"""`animx batch` with the full model: loaded once a process, the same bytes as apart, resumed, spread over Ray."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hall import Ran, animx, installed, make_package

pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from wet import Stage

from animx import resident
from animx.diffusion import pipeline as pipeline_module
from animx.diffusion.tiny import write_tiny_release
from animx.errors import MissingExtraError
from animx.weights import write_hashes


@pytest.fixture
def model(stage: Stage, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stage.release, tmp_path / "model"))


def job(stage: Stage, output: str, model: Path, **options: Any) -> dict[str, Any]:
    return {"reference": str(stage.figure), "driving": str(stage.dance), "driving_video": str(stage.clip),
            "output": output, "engine": "animate-x", "model": str(model), "device": "cpu", "ref_pose": "fit",
            "size": "64x96", "end": "4f", "steps": 1, "window": 4, "overlap": 1, **options}  # fmt: skip


def puppet(stage: Stage, output: str, **options: Any) -> dict[str, Any]:
    return {"reference": str(stage.figure), "driving": str(stage.dance), "output": output, "engine": "puppet",
            "ref_pose": "fit", "size": "64x96", "end": "3f", **options}  # fmt: skip


def batch(room: Path, jobs: list[dict[str, Any]], *more: str) -> Ran:
    path = room / "jobs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in jobs))
    return animx("batch", path, "-q", *more)


def lines(ran: Ran) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ran.out.splitlines()]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The model folders that were loaded, in order."""
    seen: list[str] = []
    real = pipeline_module.load_components

    def counting(folder: Path, *rest: Any, **more: Any) -> Any:
        seen.append(folder.name)
        return real(folder, *rest, **more)

    monkeypatch.setattr(pipeline_module, "load_components", counting)
    return seen


def test_a_model_is_loaded_once_and_gives_what_it_gives_alone(
    stage: Stage, model: Path, tmp_path: Path, loads: list[str]
) -> None:
    jobs = [job(stage, "a.mp4", model), puppet(stage, "p.mp4"), job(stage, "b.mp4", model, seed=7)]
    ran = batch(tmp_path, jobs)
    assert ran.code == 0, ran.err
    assert loads == ["model"]
    assert [line.get("loads", 0) - lines(ran)[0]["loads"] for line in lines(ran)] == [0, 0, 0]
    alone = batch(tmp_path, [job(stage, "c.mp4", model, seed=7)])
    assert alone.code == 0, alone.err
    assert loads == ["model", "model"], "nothing is held after a batch"
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()
    assert (tmp_path / "a.mp4").read_bytes() != (tmp_path / "b.mp4").read_bytes()


def test_another_precision_or_other_weights_are_loaded_anew_and_equal_ones_are_not(
    stage: Stage, model: Path, tmp_path: Path, loads: list[str]
) -> None:
    twin = Path(shutil.copytree(model, tmp_path / "twin"))
    other = write_tiny_release(tmp_path / "other", seed=1)
    jobs = [job(stage, "a.mp4", model), job(stage, "b.mp4", twin), job(stage, "c.mp4", model, dtype="bfloat16"),
            job(stage, "d.mp4", other)]  # fmt: skip
    ran = batch(tmp_path, jobs)
    assert ran.code == 0, ran.err
    assert loads == ["model", "model", "other"]


def test_resume_goes_by_the_weights_and_the_models_options(stage: Stage, model: Path, tmp_path: Path) -> None:
    def states(*more: str, **options: Any) -> list[str]:
        return [line["status"] for line in lines(batch(tmp_path, [job(stage, "a.mp4", model, **options)], *more))]

    assert states() == ["done"]
    assert states("--resume") == ["skipped"]
    for change in ({"steps": 2}, {"guidance": 1.0}, {"dtype": "bfloat16"}, {"engine_options": {"colour": False}}):
        assert states("--resume", **change) == ["failed"], change
    assert states("--resume", engine_options={"stream": False}) == ["skipped"], "changes no byte"
    assert states("--resume", engine_options={"guidance_start": 0.0}) == ["skipped"], "the default"
    shutil.rmtree(model)
    write_tiny_release(model, seed=1)
    ran = batch(tmp_path, [job(stage, "a.mp4", model)], "--resume")
    assert "weights" in lines(ran)[0]["error"]
    assert states("--resume", "-y") == ["done"]
    assert states("--resume") == ["skipped"]
    (model / "hashes.json").unlink()
    assert states("--resume") == ["skipped"], "the hash is that of the files"
    write_hashes(model)
    assert states("--resume") == ["skipped"]


def test_resume_takes_up_a_render_that_broke(
    stage: Stage, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from animx.job import ChunkStore

    whole = job(stage, "whole.mp4", model, end="9f", engine_options={"windows": 1})
    assert batch(tmp_path, [whole]).code == 0
    real = ChunkStore.save
    saved: list[int] = []

    def breaking(self: ChunkStore, index: int, *rest: Any, **more: Any) -> None:
        if index >= 1 and not saved.count(99):
            saved.append(99)
            raise KeyboardInterrupt
        saved.append(index)
        real(self, index, *rest, **more)

    monkeypatch.setattr(ChunkStore, "save", breaking)
    broken = {**whole, "output": "out.mp4"}
    assert batch(tmp_path, [broken]).code == 130
    assert (tmp_path / "out.mp4.animx" / "plan.json").exists()
    assert lines(batch(tmp_path, [broken]))[0]["exit_code"] == 2, "an unfinished render is not begun anew unasked"
    saved[:] = [99]
    ran = batch(tmp_path, [broken], "--resume")
    assert ran.code == 0, ran.err + ran.out
    assert 0 not in saved, "the finished segment was made again"
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not (tmp_path / "out.mp4.animx").exists()


def test_bad_weights_are_the_jobs_failure_alone(stage: Stage, model: Path, tmp_path: Path) -> None:
    (model / "animate-x_ckpt.pth").write_bytes(b"x")
    ran = batch(tmp_path, [job(stage, "a.mp4", model), puppet(stage, "p.mp4")], "--keep-going")
    assert ran.code == 7
    assert [line["exit_code"] for line in lines(ran)] == [6, 0]


def test_ray_is_asked_for_with_the_mend_when_it_is_not_there(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    ran = batch(tmp_path, [puppet(stage, "p.mp4")], "--ray", "local")
    assert ran.code == 2
    assert str(MissingExtraError("--ray", "ray")) == ran.error


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the 'ray' extra")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster of this machine with two CPU cores; its address."""
    pytest.importorskip("ray", reason="needs the 'ray' extra")
    from ray.cluster_utils import Cluster

    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield running.address
    running.shutdown()


@pytest.mark.slow
@needs_ray
def test_a_cluster_makes_the_same_bytes_and_loads_the_model_once_a_worker(
    stage: Stage, model: Path, tmp_path: Path, cluster: str
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    names = [f"{i}.mp4" for i in range(6)]
    jobs = [job(stage, name, model, seed=i) for i, name in enumerate(names)]
    jobs += [puppet(stage, "p.mp4"), puppet(stage, "bad.mp4", reference="none.png")]
    assert batch(here, jobs, "--keep-going").code == 7
    ran = batch(there, jobs, "--keep-going", "--json", "--ray", cluster)
    assert ran.code == 7, ran.err
    assert [one["status"] for one in ran.json["jobs"]] == ["done"] * 7 + ["failed"]
    assert ran.json["jobs"][7]["exit_code"] == 3
    for name in (*names, "p.mp4"):
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    by_worker: dict[str, set[int]] = {}
    for one in ran.json["jobs"][:6]:
        by_worker.setdefault(one["worker"], set()).add(one["loads"])
    assert 1 <= len(by_worker) <= 2
    assert set(map(frozenset, by_worker.values())) == {frozenset({1})}, "a worker loaded its model more than once"
    ran = batch(there, jobs[:7], "--resume", "--json", "--ray", cluster)
    assert ran.json["counts"] == {"done": 0, "skipped": 7, "failed": 0, "pending": 0}


KILLER = """
import os


class Killer:
    name = "killer"
    options = frozenset()

    def available(self):
        return None

    def plan(self, job): ...

    def render(self, job, on_progress=None):
        os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@needs_ray
def test_on_a_cluster_no_job_begins_after_a_failure_and_a_dead_worker_costs_its_job(
    stage: Stage, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = puppet(stage, "bad.mp4", reference="none.png")
    jobs = [bad, *(puppet(stage, f"{i}.mp4") for i in range(12))]
    ran = batch(tmp_path, jobs, "--json", "--ray", cluster)
    assert ran.code == 7
    assert ran.json["counts"]["pending"] > 0
    assert ran.json["counts"]["failed"] == 1
    killer = tmp_path / "site"
    killer.mkdir()
    make_package(killer, "killer_engine", KILLER, {"animx.engines": {"killer": "killer_engine:Killer"}})
    with installed(killer):
        jobs = [puppet(stage, "k.mp4", engine="killer"), *(puppet(stage, f"x{i}.mp4") for i in range(3))]
        ran = batch(tmp_path, jobs, "--json", "--keep-going", "--ray", cluster)
    assert ran.code == 7, ran.err
    assert [one["status"] for one in ran.json["jobs"]] == ["failed", "done", "done", "done"]
    assert "worker died" in ran.json["jobs"][0]["error"]


@pytest.mark.slow
@needs_ray
def test_a_cluster_that_is_not_there_is_one_line(stage: Stage, tmp_path: Path) -> None:
    ran = batch(tmp_path, [puppet(stage, "p.mp4")], "--ray", "127.0.0.1:1")
    assert ran.code == 3
    assert "no cluster can be reached" in ran.error


def test_nothing_is_held_after_the_tests() -> None:
    assert resident._shelf.value is None
