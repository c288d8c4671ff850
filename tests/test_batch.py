"""`animx batch`: job lists refused by line, results for every job, shards, what --resume takes for finished."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import hall
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from animx import resident
from animx.batch import Job, JobResult, parse_shard, read_jobs, run_batch, run_job, shard
from animx.batch_jobs import ENGINE_KEYS, FILES, KINDS
from animx.errors import InputError, UsageError
from animx.pose.formats import write_poses
from animx.pose.sequence import PoseSequence
from animx.provenance import side_car_path
from animx.request import RenderOptions


@pytest.fixture
def room(tmp_path: Path, tiny_character: Path, tiny_poses: PoseSequence) -> Path:
    """A folder with a character and a driving pose file."""
    shutil.copy(tiny_character, tmp_path / "bear.png")
    write_poses(tiny_poses, tmp_path / "dance.pose.npz")
    return tmp_path


def job(output: str = "out.mp4", **options: Any) -> dict[str, Any]:
    given = {"engine": "puppet", "ref_pose": "fit", "end": "3f", "size": "64x96", **options}
    return {"reference": "bear.png", "driving": "dance.pose.npz", "output": output, **given}


def listed(room: Path, *jobs: dict[str, Any] | str) -> Path:
    path = room / "jobs.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in jobs))
    return path


def lines(ran: hall.Ran) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ran.out.splitlines()]


# ---- the list ----


def test_a_list_is_read_with_line_numbers_and_paths_beside_it(room: Path) -> None:
    path = listed(room, "", "# made by hand", job("a.mp4", mask="mask.png", ref_pose="bear.pose.json"), job("b.webm"))
    first, second = read_jobs(path)
    assert (first.number, second.number) == (3, 4)
    assert first.reference == str(room / "bear.png")
    assert first.output == str(room / "a.mp4")
    assert first.options["mask"] == str(room / "mask.png")
    assert first.options["ref_pose"] == str(room / "bear.pose.json")
    assert second.options["ref_pose"] == "fit"


def test_only_a_line_feed_ends_a_line(room: Path) -> None:
    text = json.dumps(job("a\u2028b\x85.mp4"), ensure_ascii=False) + "\r\n" + json.dumps(job("c.mp4"))
    path = room / "jobs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [(one.number, Path(one.output).name) for one in read_jobs(path)] == [(1, "a\u2028b\x85.mp4"), (2, "c.mp4")]


def test_engine_options_may_stand_beside_the_others(room: Path) -> None:
    (read,) = read_jobs(listed(room, job(steps=4, model="m", engine="animate-x", engine_options={"windows": 2})))
    assert read.options["engine_options"] == {"windows": 2, "steps": 4, "model": "m"}


def test_every_render_option_has_a_check() -> None:
    assert set(KINDS) == {one.name for one in fields(RenderOptions)}
    assert not set(KINDS) & {*ENGINE_KEYS, *FILES}


BAD: list[tuple[str, Any]] = [
    ("not a JSON object", "{"),
    ("not a JSON object", "[]"),
    ("not a JSON object", "7"),
    ("not a JSON object", "[" * 100_000),
    ("not a JSON object", "{'reference': 1}"),
    ("stands twice", '{"reference": "a", "reference": "b"}'),
    ("NaN is no JSON number", '{"seed": NaN}'),
    ("reference: expected", {"driving": "a", "output": "b"}),
    ("driving: expected", job(driving=None)),
    ("output: expected", job("-")),
    ("output: expected", job("a\0b")),
    ("reference: expected", job(reference="\ud800")),
    ("Did you mean 'presets'?", job(preset="chibi")),
    ("Did you mean 'steps'?", job(step=3)),
    ("audio: expected true or false", job(audio="no")),
    ("seed: expected a whole number", job(seed="1")),
    ("seed: expected a whole number", job(seed=True)),
    ("--seed -1", job(seed=-1)),
    ("presets: expected", job(presets=[3])),
    ("chibi", job(presets="chibbi")),
    ("thighs", job(rescale={"thigh": 0.5})),
    ("rescale: expected", job(rescale={"legs": "short"})),
    ("legs", job(rescale={"legs": -1})),
    ("arms", job(drop=["armz"])),
    ("start: expected", job(start=[1])),
    ("--start", job(start="soon")),
    ("--start", job(start=-1)),
    ("--fps", job(fps=0)),
    ("--size", job(size="big")),
    ("size: expected", job(size=[64])),
    ("--fit", job(fit="stretchy")),
    ("--end and --duration", job(duration=1)),
    ("Did you mean 'puppet'?", job(engine="pupet")),
    ("engine_options: expected a table", job(engine_options=3)),
]


@pytest.mark.parametrize(("word", "bad"), BAD, ids=[f"{i}-{word[:20]}" for i, (word, _) in enumerate(BAD)])
def test_a_bad_line_is_named_before_any_work(room: Path, word: str, bad: Any) -> None:
    path = listed(room, job("fine.mp4"), "", bad)
    hall.refused(hall.animx("batch", path), 3, "jobs.jsonl:3:", word)
    assert not (room / "fine.mp4").exists()


def test_two_jobs_may_not_write_one_file(room: Path) -> None:
    path = listed(room, job("a.mp4"), job("./sub/../a.mp4"))
    hall.refused(hall.animx("batch", path), 3, ":2: output", "line 1")


@pytest.mark.parametrize("content", [b"", b"\n\n# nothing\n", b"\xff\xfe{}", b"\x00" * 50])
def test_a_list_without_jobs_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(content)
    hall.refused(hall.animx("batch", path), 3, "jobs.jsonl")
    hall.refused(hall.animx("batch", tmp_path), 3, "cannot be read")
    hall.refused(hall.animx("batch", tmp_path / "none"), 3, "No such file")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from([*KINDS, *FILES, *ENGINE_KEYS]) | st.text(max_size=6)


@given(st.dictionaries(keys, json_values, max_size=6), st.binary(max_size=30))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_line_gets_past_the_reader_as_anything_but_a_job_or_its_number(
    tmp_path: Path, content: dict[str, Any], noise: bytes
) -> None:
    path = tmp_path / "jobs.jsonl"
    for data in (json.dumps({**job(), **content}).encode(), json.dumps(job()).encode()[:-9] + noise):
        path.write_bytes(json.dumps(job("first.mp4")).encode() + b"\r\n" + data)
        try:
            jobs = read_jobs(path)
        except InputError as error:
            message = str(error)
            assert "\n" not in message
            assert "jobs.jsonl:" in message
            assert f"{path}:2" in message or f"{path}:3" in message or "not UTF-8" in message
        else:
            assert all(isinstance(one, Job) for one in jobs)


# ---- shards ----


@given(st.integers(0, 60), st.integers(1, 9))
def test_shards_hold_every_job_once_and_differ_by_one_at_most(count: int, parts: int) -> None:
    jobs = [Job(i, "a", "b", f"{i}.mp4") for i in range(count)]
    cut = [shard(jobs, (i, parts)) for i in range(1, parts + 1)]
    assert sorted(one.number for part in cut for one in part) == list(range(count))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


@pytest.mark.parametrize(
    "text", ["", "1", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3", "1.0/2", "²/3", "1/" + "9" * 5000]
)
def test_a_wrong_shard_is_a_usage_error(room: Path, text: str) -> None:
    with pytest.raises(UsageError):
        parse_shard(text)
    hall.refused(hall.animx("batch", listed(room, job()), "--shard", text), 2, "--shard")


def test_a_shard_does_its_jobs_and_an_empty_one_nothing(room: Path) -> None:
    path = listed(room, job("a.mp4"), job("b.mp4"))
    ran = hall.animx("batch", path, "--shard", "2/2")
    assert ran.code == 0, ran.err
    assert [line["number"] for line in lines(ran)] == [2]
    assert not (room / "a.mp4").exists()
    ran = hall.animx("batch", path, "--shard", "3/3", "--json")
    assert (ran.code, ran.json["jobs"]) == (0, [])


# ---- results ----


def test_each_job_ends_in_a_line_and_the_same_bytes_as_render(room: Path) -> None:
    ran = hall.animx("batch", listed(room, job("a.mp4"), job("b.mp4", presets="chibi", rescale={"legs": 0.5})))
    assert ran.code == 0, ran.err
    first, second = lines(ran)
    assert (first["status"], first["frames"], first["engine"], first["exit_code"]) == ("done", 3, "puppet", 0)
    assert second["number"] == 2
    same = ("--engine", "puppet", "--ref-pose", "fit", "--end", "3f", "--size", "64x96", "--preset", "chibi")
    ran = hall.animx(
        "render", room / "bear.png", room / "dance.pose.npz", "-o", room / "c.mp4", *same, "--set", "legs=0.5"
    )
    assert ran.code == 0, ran.err
    assert (room / "b.mp4").read_bytes() == (room / "c.mp4").read_bytes()


def test_a_list_may_come_from_stdin(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(room)
    ran = hall.animx("batch", "-", stdin=json.dumps(job("a.mp4")).encode())
    assert ran.code == 0, ran.err
    assert (room / "a.mp4").exists()


def test_the_first_failure_stops_a_batch(room: Path) -> None:
    ran = hall.animx("batch", listed(room, job("a.mp4", reference="none.png"), job("b.mp4")))
    assert ran.code == 7
    assert [line["status"] for line in lines(ran)] == ["failed"]
    assert "line 1" in ran.error
    assert "1 failed, 1 pending" in ran.error
    assert "Traceback" not in ran.err
    assert not (room / "b.mp4").exists()


def test_keep_going_does_the_others(room: Path) -> None:
    ran = hall.animx("batch", listed(room, job("a.mp4", reference="none.png"), job("b.mp4")), "--keep-going")
    assert ran.code == 7
    assert [line["status"] for line in lines(ran)] == ["failed", "done"]
    assert lines(ran)[0]["exit_code"] == 3
    assert (room / "b.mp4").exists()


def test_json_is_one_object_with_every_job_and_the_error(room: Path) -> None:
    path = listed(room, job("a.mp4"), job("b.mp4", reference="none.png"), job("c.mp4"))
    ran = hall.animx("batch", path, "--json")
    assert ran.code == 7
    assert [one["status"] for one in ran.json["jobs"]] == ["done", "failed", "pending"]
    assert ran.json["jobs"][1]["error"]
    assert ran.json["counts"] == {"done": 1, "skipped": 0, "failed": 1, "pending": 1}
    assert (ran.json["error"]["kind"], ran.json["error"]["exit_code"]) == ("BatchError", 7)
    ran = hall.animx("batch", path, "--json", "--keep-going", "-y")
    assert (ran.code, ran.json["counts"]["done"]) == (7, 2)


def test_a_bug_in_one_job_is_reported_as_one_and_costs_no_other(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from animx import pipeline

    real = pipeline.render

    def breaking(reference: Any, driving: Any, out: Any, **options: Any) -> Any:
        if "a.mp4" in str(out):
            raise ZeroDivisionError("what a pity")
        if "b.mp4" in str(out):
            raise MemoryError
        if "c.mp4" in str(out):
            raise OSError(28, "No space left on device", "c.mp4")
        return real(reference, driving, out, **options)

    monkeypatch.setattr(pipeline, "render", breaking)
    path = listed(room, *(job(f"{name}.mp4") for name in "abcd"))
    ran = hall.animx("batch", path, "--keep-going")
    assert ran.code == 7
    assert [line["exit_code"] for line in lines(ran)] == [1, 5, 3, 0]
    assert "bug" in lines(ran)[0]["error"]
    assert "Traceback" not in ran.err


def test_an_interruption_ends_the_batch(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from animx import pipeline

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "render", interrupted)
    ran = hall.animx("batch", listed(room, job("a.mp4"), job("b.mp4")), "--keep-going")
    assert (ran.code, ran.out) == (130, "")


# ---- resume ----


def states(ran: hall.Ran) -> list[str]:
    return [line["status"] for line in lines(ran)]


def test_without_resume_an_output_that_is_there_is_refused(room: Path) -> None:
    path = listed(room, job())
    assert states(hall.animx("batch", path)) == ["done"]
    ran = hall.animx("batch", path)
    assert (ran.code, lines(ran)[0]["exit_code"]) == (7, 2)
    assert states(hall.animx("batch", path, "-y")) == ["done"]


def test_resume_skips_what_is_finished_and_does_the_rest(room: Path) -> None:
    path = listed(room, job("a.mp4"), job("b.mp4", presets="chibi"), job("c.gif", size="64x", fps=6, seed=3))
    assert states(hall.animx("batch", path)) == ["done"] * 3
    (room / "b.mp4").unlink()
    stamp = (room / "a.mp4").stat().st_mtime_ns
    ran = hall.animx("batch", path, "--resume")
    assert (ran.code, states(ran)) == (0, ["skipped", "done", "skipped"]), ran.err
    assert (room / "a.mp4").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"presets": "chibi"}, "presets"),
        ({"seed": 5}, "seed"),
        ({"end": "2f"}, "'end'"),
        ({"size": "96x144"}, "'size'"),
        ({"fps": 6}, "'fps'"),
        ({"rescale": {"legs": 0.5}}, "'rescale'"),
        ({"background": "#203040"}, "'background'"),
        ({"side_by_side": True}, "'side_by_side'"),
    ],
)
def test_resume_notices_a_job_that_asks_for_something_else(room: Path, change: dict[str, Any], word: str) -> None:
    assert states(hall.animx("batch", listed(room, job()))) == ["done"]
    ran = hall.animx("batch", listed(room, job(**change)), "--resume")
    assert ran.code == 7
    assert word in lines(ran)[0]["error"]
    assert lines(ran)[0]["exit_code"] == 2
    ran = hall.animx("batch", listed(room, job(**change)), "--resume", "-y")
    assert states(ran) == ["done"], ran.err
    assert states(hall.animx("batch", listed(room, job(**change)), "--resume")) == ["skipped"]
    assert states(hall.animx("batch", listed(room, job()), "--resume", "-y")) == ["done"], "the way back"


def test_resume_notices_inputs_that_changed(room: Path, tiny_poses: PoseSequence) -> None:
    path = listed(room, job())
    assert states(hall.animx("batch", path)) == ["done"]
    picture = (room / "bear.png").read_bytes()
    (room / "bear.png").write_bytes(picture + b"\0")
    assert "reference" in lines(hall.animx("batch", path, "--resume"))[0]["error"]
    (room / "bear.png").write_bytes(picture)
    assert states(hall.animx("batch", path, "--resume")) == ["skipped"]
    write_poses(tiny_poses.on(tiny_poses.canvas.__class__(64, 96), _half()), room / "dance.pose.npz", overwrite=True)
    assert "driving" in lines(hall.animx("batch", path, "--resume"))[0]["error"]


def _half() -> Any:
    from animx.canvas import Placement

    return Placement(0.5, 0.5, 0.0, 0.0)


@pytest.mark.parametrize("side_car", [None, "", "[]", "{", '{"command": "render"}', '{"command": "x", "options": {}}'])
def test_an_output_without_a_usable_recipe_is_not_taken_for_finished(room: Path, side_car: str | None) -> None:
    path = listed(room, job())
    (room / "out.mp4").write_bytes(b"somebody's own film")
    if side_car is not None:
        side_car_path(room / "out.mp4").write_text(side_car)
    ran = hall.animx("batch", path, "--resume")
    assert ran.code == 7
    assert "no recipe" in lines(ran)[0]["error"]
    assert (room / "out.mp4").read_bytes() == b"somebody's own film"


def test_a_side_car_without_its_output_is_not_finished(room: Path) -> None:
    path = listed(room, job())
    hall.animx("batch", path)
    for content in (None, b""):
        (room / "out.mp4").unlink()
        if content is not None:
            (room / "out.mp4").write_bytes(content)
        ran = hall.animx("batch", path, "--resume", "-y")
        assert states(ran) == ["done"], ran.err


@pytest.mark.parametrize("output", ["frames", "frames/OUT_%05d.png"])
def test_resume_knows_folders_and_numbered_pictures(room: Path, output: str) -> None:
    if "/" in output:
        (room / "frames").mkdir()
    path = listed(room, job(output))
    ran = hall.animx("batch", path)
    assert states(ran) == ["done"], ran.err
    assert states(hall.animx("batch", path, "--resume")) == ["skipped"]
    for frame in (room / "frames").glob("*.png"):
        frame.unlink()
    assert states(hall.animx("batch", path, "--resume", "-y")) == ["done"]


def test_an_engine_that_auto_chose_counts_as_finished(room: Path) -> None:
    path = listed(room, job(engine="auto"))
    assert states(hall.animx("batch", path)) == ["done"]
    assert states(hall.animx("batch", path, "--resume")) == ["skipped"]
    assert states(hall.animx("batch", listed(room, job(engine="puppet")), "--resume")) == ["skipped"]


# ---- what stays loaded ----


def test_one_value_is_kept_inside_a_block_and_none_outside() -> None:
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name

    for _ in range(2):
        resident.once("a", lambda: make("a"))
    assert made == ["a", "a"]
    made.clear()
    with resident.kept():
        for name in ("a", "a", "b", "b", "a"):
            assert resident.once(name, lambda name=name: make(name)) == name  # type: ignore[misc]
        with resident.kept():
            resident.once("a", lambda: make("a"))
        resident.once("a", lambda: make("a"))
    assert made == ["a", "b", "a"]
    resident.once("a", lambda: make("a"))
    assert made == ["a", "b", "a", "a"]


def test_the_old_value_is_let_go_before_the_new_one_is_made() -> None:
    import weakref

    class Model:
        pass

    with resident.kept():
        old = weakref.ref(resident.once(1, Model))
        assert old() is not None
        still_there: list[bool] = []
        resident.once(2, lambda: still_there.append(old() is not None) or Model())  # type: ignore[func-returns-value]
        assert still_there == [False]


def test_results_read_back_in_the_order_of_the_list() -> None:
    jobs = [Job(i, "none.png", "none.mp4", f"{i}.mp4") for i in (4, 2, 9)]
    results = run_batch(jobs, keep_going=True)
    assert [result.number for result in results] == [4, 2, 9]
    assert all(isinstance(result, JobResult) and result.status == "failed" for result in results)
    assert run_job(jobs[0]).exit_code == 3
