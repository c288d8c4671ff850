"""The documentation holds: links lead somewhere, included files are the files, every page is in the index."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest

from animx.cli import run
from animx.plugins import GROUPS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_included_files_are_the_files(page: Path) -> None:
    included = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    for name, body in included:
        assert body == (DOCS.parent / name).read_text(encoding="utf-8"), f"{page.name}: {name} has changed"
    if page.stem == "plugins":
        assert len(included) == 4


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem in ("media", "formats")], ids=lambda p: p.stem)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = DOCS.parent / "examples"
    shutil.copy(examples / "dance.mp4", tmp_path / "dance.mp4")
    shutil.copy(examples / "dance.pose.npz", tmp_path / "dance.npz")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert code
    for block in code:
        exec(compile(block, page.name, "exec"), {})
    assert len(list(tmp_path.iterdir())) == 3  # each of them writes one file


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((\S+\.md)\)", index))
    assert linked == {page.name for page in PAGES} - {"README.md"}


def test_the_page_on_plugins_names_every_group() -> None:
    text = (DOCS / "plugins.md").read_text(encoding="utf-8")
    for group in GROUPS:
        assert f"`animx.{group}`" in text


def test_decisions_give_a_reason_for_every_dependency_of_the_base_install() -> None:
    import tomllib

    text = (DOCS / "decisions.md").read_text(encoding="utf-8").lower()
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in project["dependencies"]:
        name = re.split(r"[<>=;\[ ]", line)[0]
        assert name in text, f"docs/decisions.md: nothing on {name}"


def test_the_picture_of_the_house_shows_every_room_and_the_files_of_pose_and_retarget() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    package = DOCS.parent / "animx"
    named = {path.stem.split("_")[0] for path in package.glob("[a-z]*.py")}
    named |= {path.parent.name for path in package.glob("*/__init__.py")}
    named |= {path.stem for room in ("pose", "retarget") for path in (package / room).glob("[a-z]*.py")}
    for name in sorted(named):
        assert re.search(rf"\b{name}\b", text), f"docs/architecture.md does not mention {name}"


def written_commands() -> list[str]:
    """Every `animx ...` of the pages, their code blocks and the help's examples; the ends of a pipe apart."""
    found: list[str] = []
    for page in [*PAGES, DOCS.parent / "README.md"]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)
        lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
        named = [" ".join(inline.split()) for inline in re.findall(r"`(animx [a-z][^`]*)`", text)]
        lines += [one for one in named if "." in one]  # a call names a file; the others name a command
        for line in lines:
            if re.match(r"(\w+=\w+ )?animx [a-z]", line):
                parts = re.split(r"\||&&|>|\s{4,}", line)
                found.extend(part.strip() for part in parts if re.match(r"\s*(\w+=\w+ )?animx [a-z]", part))
    return sorted(set(found))


def test_every_written_command_is_one_that_the_program_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(click.Command, "invoke", lambda *_: None)  # parsed with all its options, not run
    commands = written_commands()
    assert len(commands) > 50
    for command in commands:
        words = shlex.split(command.partition("animx ")[2])
        assert run(words) == 0, f"{command}\n{capsys.readouterr().err}"
    assert run(["render", "a.png", "b.mp4", "--prest", "chibi"]) == 2  # a wrong one would be seen
