"""One process at a time in a folder; whoever dies gives it up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from animx.errors import UsageError
from animx.lock import holding

HOLD = """
import sys, time
from animx.lock import holding
with holding(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_one_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "set"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=r"set: another animx process .* Wait"), holding(folder):
            pass
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with holding(folder):
        assert not list(folder.iterdir()), "there is no lock file to be left"
    assert folder.is_dir(), "it was there before"


def test_a_child_that_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with holding(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)  # until the test is over
            os._exit(0)
    with holding(tmp_path):
        pass
    os.close(writer)
    os.waitpid(child, 0)


def test_a_folder_made_for_nothing_is_taken_away(tmp_path: Path) -> None:
    with holding(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with holding(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "mine.txt").touch()
    assert (tmp_path / "a" / "b" / "mine.txt").exists()
