"""Atomic output: whole or not at all, whatever stops the writing."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from animx.atomic import check_folder_target, check_target, writing, writing_folder
from animx.errors import OutputError, UsageError


class Stop(Exception):
    """Stands for anything that may go wrong."""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_final_name_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    with writing(tmp_path / "a.txt") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".txt"
        temporary.write_text("whole")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing_and_passes_through(tmp_path: Path, failure: type[BaseException]) -> None:
    def fail() -> None:
        with writing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert names(tmp_path) == []


def test_a_failure_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")

    def fail() -> None:
        with writing(tmp_path / "a.txt", overwrite=True) as temporary:
            temporary.write_text("half")
            raise Stop

    with pytest.raises(Stop):
        fail()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_existing_file_is_replaced_only_when_told(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(UsageError, match=r"a\.txt exists.*--overwrite"), writing(target):
        pass
    assert target.read_text() == "old"
    with writing(target, overwrite=True) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"

    def race() -> None:
        with writing(target) as temporary:
            temporary.write_text("mine")
            target.write_text("theirs")

    with pytest.raises(UsageError, match="exists"):
        race()
    assert target.read_text() == "theirs"
    assert names(tmp_path) == ["a.txt"]


def test_missing_folder_and_file_in_the_path_are_output_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="does not exist"):
        check_target(tmp_path / "none" / "a.txt")
    with pytest.raises(OutputError, match="not a folder"):
        check_target(tmp_path / "file" / "a.txt")
    with pytest.raises(OutputError, match="too long"), writing(tmp_path / ("n" * 300)):
        pass
    with pytest.raises(UsageError, match="is a folder"):
        check_target(tmp_path)
    assert names(tmp_path) == ["file"]


def test_a_long_name_that_the_system_takes_is_taken(tmp_path: Path) -> None:
    with writing(tmp_path / ("n" * 250 + ".json")) as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == ["n" * 250 + ".json"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*a\.bin"), writing(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


def test_an_error_about_an_input_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="input"), writing(tmp_path / "a.txt"):
        (tmp_path / "input").read_text()
    error = OSError(errno.ENOSPC, "full", str(tmp_path / "other"))
    with pytest.raises(OSError, match="full"), writing(tmp_path / "a.txt"):
        raise error


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    with writing(tmp_path / "link.txt", overwrite=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "new"


def test_a_device_is_written_to_and_never_replaced() -> None:
    with writing("/dev/null") as temporary:
        temporary.write_text("gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert not temporary.exists()


def test_the_new_file_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with writing(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(old)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_ctrl_c_in_another_process_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom animx.atomic import writing\n"
        "with writing(sys.argv[1]) as t:\n    t.write_text('half'); print('in', flush=True); time.sleep(30)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.txt")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert len(names(tmp_path)) == 1
    time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=10)
    assert names(tmp_path) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with writing_folder(tmp_path / "out") as temporary:
        (temporary / "1.png").write_text("x")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path / "out") == ["1.png"]

    def fail() -> None:
        with writing_folder(tmp_path / "other") as temporary:
            (temporary / "1.png").write_text("x")
            raise Stop

    with pytest.raises(Stop):
        fail()
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_free_and_a_full_one_needs_the_word(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with writing_folder(out, own="*.png") as temporary:
        (temporary / "1.png").write_text("x")
    with pytest.raises(UsageError, match="--overwrite"):
        check_folder_target(out, own="*.png")
    with writing_folder(out, overwrite=True, own="*.png") as temporary:
        (temporary / "2.png").write_text("x")
    assert names(out) == ["2.png"]
    assert names(tmp_path) == ["out"]


def test_a_folder_with_anything_else_in_it_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "1.png").write_text("x")
    with pytest.raises(UsageError, match="'sub'"), writing_folder(out, overwrite=True, own="*.png"):
        pass
    assert names(out) == ["1.png", "sub"]


KILLED = """
import os, signal, sys
from pathlib import Path
from animx.atomic import writing, writing_folder
target = Path(sys.argv[1])
with (writing_folder if sys.argv[2] == "folder" else writing)(target) as part:
    ((part / "0.png") if part.is_dir() else part).write_text("half")
    print("writing", flush=True)
    if sys.argv[3] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_command_left_goes_with_the_next_writing_of_that_target(tmp_path: Path, kind: str) -> None:
    target, other = tmp_path / "a.mp4", tmp_path / "b.mp4"
    for path in (target, other):
        subprocess.run([sys.executable, "-c", KILLED, str(path), kind, "kill"], check=False, stdout=subprocess.DEVNULL)
    assert len(names(tmp_path)) == 2
    write = writing_folder if kind == "folder" else writing
    with write(target) as part:
        assert len(names(tmp_path)) == 2, "the new part, and that of the other target"
        (part / "0.png" if kind == "folder" else part).write_text("whole")
    assert len(names(tmp_path)) == 2
    assert "a.mp4" in names(tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_part_of_a_command_that_still_writes_is_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a.mp4"
    command = [sys.executable, "-c", KILLED, str(target), kind, "wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as busy:
        assert busy.stdin is not None
        assert busy.stdout is not None
        assert busy.stdout.readline() == "writing\n"
        seen: list[str] = []
        with contextlib.suppress(Stop), (writing_folder if kind == "folder" else writing)(target):
            seen = names(tmp_path)
            raise Stop
        assert len(seen) == 2
        assert len(names(tmp_path)) == 1
        busy.stdin.close()
    assert busy.returncode == 0
    assert names(tmp_path) == ["a.mp4"]


def test_what_was_replaced_is_never_swept_while_it_is_the_only_copy(tmp_path: Path) -> None:
    target = tmp_path / "frames"
    with writing_folder(target) as part:
        (part / "0.png").write_text("mine")
        hidden = part.with_suffix(".old")
    target.rename(hidden)  # killed between the two renames
    with pytest.raises(Stop), writing_folder(target):
        raise Stop
    assert (hidden / "0.png").read_text() == "mine"
    with writing_folder(target) as part:
        (part / "0.png").write_text("new")
    with pytest.raises(Stop), writing_folder(target, overwrite=True):
        raise Stop
    assert names(tmp_path) == ["frames"]
