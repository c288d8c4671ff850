"""`animx bench ops --base REF`: the operators of another commit, checked and timed in turns with today's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hall import animx, refused

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from animx.measuring import base as measured_base  # noqa: E402
from animx.measuring import ops as measured_ops  # noqa: E402

if shutil.which("git") is None:
    pytest.skip("needs git", allow_module_level=True)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _git(folder: Path, *arguments: str) -> None:
    who = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    told = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", folder, *told, *arguments], check=True, capture_output=True, env={**os.environ, **who})


@pytest.fixture(scope="module")
def repository(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose commit `old` has GEGLU alone: slower by a hundred times, its product with a projection wrong."""
    folder = tmp_path_factory.mktemp("checkout")
    package = folder / "kernels" / "animx_kernels"
    (folder / "kernels").mkdir()
    (folder / "README").write_text("nothing yet")
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "no operators")
    _git(folder, "tag", "empty")
    shutil.copytree(root / "kernels" / "animx_kernels", package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    file = package / "dispatch.py"
    file.write_text(re.sub(r"^MODULES = \(.*?\)", 'MODULES = ("geglu",)', file.read_text(), flags=re.M | re.S))
    file = package / "geglu.py"
    text = file.read_text()
    body = "    return geglu_reference(x)\n"
    assert text.count(body) == 1
    text = text.replace(body, "    for _ in range(300):\n        geglu_reference(x)\n" + body)
    body = "def _geglu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:\n"
    assert text.count(body) == 1
    file.write_text(text.replace(body, body + "    x = 1.01 * x\n"))
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "geglu")
    _git(folder, "tag", "old")
    return folder


@pytest.fixture
def beside(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """animx takes that checkout for its own; returns the folder where temporary ones are made."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(measured_base, "checkout", lambda: repository)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def test_another_commit_is_checked_and_timed_and_what_it_lacks_is_listed(beside: Path, repository: Path) -> None:
    asked = ("--op", "geglu", "--op", "geglu_linear", "--op", "guided_step", "--shapes", "small", "--seconds", 0.01)
    found = animx("bench", "ops", *asked, "--device", "cpu", "--base", "old", "--json").json
    assert found["base"]["ref"] == "old"
    assert found["base"]["without"] == ["guided_step"]
    rows = {(row["op"], row["shape"]): row for row in found["rows"]}
    quick = rows["geglu", "small"]
    assert set(quick["times"]) == {"base", "animx"}
    assert quick["errors"]["base"] <= 1e-5
    assert quick["ratios"]["base"] > 3  # it computes the same three hundred times
    assert next(iter(found["ratios"])).endswith("/base_over_animx")
    wrong = rows["geglu_linear", next(shape for op, shape in rows if op == "geglu_linear")]
    assert "its result is off by 0.00" in wrong["unavailable"]["base"]
    assert "base" not in wrong["times"]
    assert all("no such operator" in row["unavailable"]["base"] for row in found["rows"] if row["op"] == "guided_step")
    assert list(beside.iterdir()) == []
    worktrees = subprocess.run(["git", "-C", repository, "worktree", "list"], capture_output=True, text=True).stdout
    assert len(worktrees.splitlines()) == 1


def test_nothing_is_left_after_ctrl_c(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def interrupted(subject: object, asked: measured_ops._Bench) -> None:
        assert asked.base is not None
        assert len(list(beside.iterdir())) == 1
        seen.append(asked.base._worker.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(measured_ops, "_row", interrupted)
    ran = animx("bench", "ops", "--op", "geglu", "--base", "old", "--device", "cpu", "--check")
    assert ran.code == 130
    assert list(beside.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


def test_a_base_that_is_none_is_refused_in_one_line(
    beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("bench", "ops", "--op", "guided_step", "--device", "cpu", "--base")
    refused(animx(*asked, "nowhere"), 2, "--base nowhere", "no such commit")
    refused(animx(*asked, "--all"), 2, "no such commit")
    refused(animx(*asked, "empty"), 2, "no operators yet")
    refused(animx(*asked, "old"), 2, "has none of guided_step")
    refused(animx(*asked, "old", "--tune"), 2, "--base does not go with it")
    with monkeypatch.context() as here:
        here.setattr(shutil, "which", lambda name: None)
        refused(animx(*asked, "old"), 2, "needs git")
    monkeypatch.setattr(measured_base, "checkout", lambda: tmp_path)
    refused(animx(*asked, "old"), 2, "no git checkout", "clone")
    assert list(beside.iterdir()) == []


def test_inputs_that_differ_are_told_apart() -> None:
    from animx.measuring.subjects import digest
    from animx_kernels.dispatch import Inputs

    x = torch.arange(6.0).view(2, 3)
    same = digest(Inputs((x, None, 1e-5), {}))
    assert digest(Inputs((x.clone(), None, 1e-5), {})) == same
    others = (x.view(3, 2), x.double(), x + 1, x.t().contiguous().t())
    assert len({same, *(digest(Inputs((one, None, 1e-5), {})) for one in others)}) == 5
    assert digest(Inputs((x, None, 1e-6), {})) != same
