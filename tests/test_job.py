"""The job folder: finished chunks survive a kill, damaged ones are made again, another plan is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from animx.errors import InputError, UsageError
from animx.job import ChunkStore, job_folder, plan_hash

PLAN = {"frames": 10, "seed": 1}


def chunk(index: int) -> dict[str, np.ndarray]:
    return {"latents": np.full((2, 3), index, np.float32)}


def test_a_chunk_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    store = ChunkStore(job_folder(tmp_path / "out.mp4"), PLAN, resume=False)
    store.save(0, chunk(0))
    store.save(3, chunk(3))
    again = ChunkStore(store.folder, PLAN, resume=True)
    assert again.finished() == [0, 3]
    loaded = again.load(3)
    assert loaded is not None
    assert np.array_equal(loaded["latents"], chunk(3)["latents"])
    assert again.load(1) is None


@pytest.mark.parametrize("damage", ["data", "record", "no data"])
def test_a_damaged_chunk_counts_as_not_done(tmp_path: Path, damage: str) -> None:
    store = ChunkStore(tmp_path / "job", PLAN, resume=False)
    store.save(0, chunk(0))
    data, record = tmp_path / "job" / "chunk_00000.npz", tmp_path / "job" / "chunk_00000.json"
    if damage == "data":
        raw = bytearray(data.read_bytes())
        raw[len(raw) // 2] ^= 1
        data.write_bytes(bytes(raw))
    elif damage == "record":
        record.write_text("{")
    else:
        data.unlink()
    assert ChunkStore(tmp_path / "job", PLAN, resume=True).load(0) is None


def test_another_plan_is_refused_and_named(tmp_path: Path) -> None:
    ChunkStore(tmp_path / "job", PLAN, resume=False)
    with pytest.raises(UsageError, match="another seed"):
        ChunkStore(tmp_path / "job", {**PLAN, "seed": 2}, resume=True)
    with pytest.raises(UsageError, match="--resume"):
        ChunkStore(tmp_path / "job", PLAN, resume=False)
    (tmp_path / "job" / "plan.json").write_text("nonsense")
    with pytest.raises(InputError):
        ChunkStore(tmp_path / "job", PLAN, resume=True)


def test_resume_without_a_job_starts_one(tmp_path: Path) -> None:
    assert ChunkStore(tmp_path / "job", PLAN, resume=True).finished() == []


def test_leftovers_of_a_kill_are_swept_and_the_plan_is_kept(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path / "job", PLAN, resume=False)
    store.save(0, chunk(0))
    (store.folder / "chunk_00001.npz").write_bytes(b"half")
    (store.folder / ".chunk_00002.npz.tmp").write_bytes(b"half")
    again = ChunkStore(store.folder, PLAN, resume=True)
    assert sorted(p.name for p in store.folder.iterdir()) == ["chunk_00000.json", "chunk_00000.npz", "plan.json"]
    again.remove()
    assert not store.folder.exists()


def test_a_kill_at_any_moment_leaves_only_whole_chunks(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom animx.job import ChunkStore\n"
        "store = ChunkStore(Path(sys.argv[1]), {'frames': 10, 'seed': 1}, resume=True)\n"
        "print('ready', flush=True)\n"
        "i = 0\n"
        "while True:\n    store.save(i % 50, {'latents': np.full((200, 300), i % 50, np.float32)}); i += 1\n"
    )
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "job")], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(timeout=float(rng.uniform(0.02, 0.3)))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = ChunkStore(tmp_path / "job", PLAN, resume=True)
        for index in store.finished():
            loaded = store.load(index)
            assert loaded is None or (loaded["latents"] == index).all()
        assert store.finished()


def test_a_plan_hash_ignores_key_order_and_nothing_else() -> None:
    assert plan_hash({"a": 1, "b": 2}) == plan_hash({"b": 2, "a": 1})
    assert plan_hash({"a": 1}) != plan_hash({"a": 2})
