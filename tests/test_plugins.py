"""The plugin door: built-ins and third parties by the same way; a broken plugin is named and stops nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hall import FAKE_POSE, animx, installed, make_package, refused

from animx import plugins
from animx.errors import UsageError

COMMAND = """
import click

@click.command("hello", help="Say hello.")
@click.option("--to", default="you")
def hello(to):
    click.echo(f"hello {to}")
"""

SHIFT = """
from animx.pose.sequence import PoseSequence

def shift(poses, x=0.0):
    return poses.with_poses(poses.keypoints + (x, 0), op="shift", x=x)
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("ANIMX_PLUGINS", raising=False)
    folder = tmp_path / "site"
    folder.mkdir()
    make_package(folder, "fakepose", FAKE_POSE, {"animx.pose_backends": {"fake": "fakepose:Fake"}})
    make_package(folder, "hellocmd", COMMAND, {"animx.commands": {"hello": "hellocmd:hello"}})
    make_package(folder, "shiftop", SHIFT, {"animx.retarget_ops": {"shift": "shiftop:shift"}})
    make_package(
        folder,
        "brokenthing",
        "raise RuntimeError('cannot\\nwork here')",
        {"animx.commands": {"oops": "brokenthing:x"}, "animx.pose_backends": {"brokenpose": "brokenthing:Pose"}},
    )
    make_package(folder, "thief", "mediapipe = None", {"animx.pose_backends": {"mediapipe": "thief:mediapipe"}})
    make_package(folder, "nocommand", "thing = 3", {"animx.commands": {"number": "nocommand:thing"}})
    with installed(folder):
        yield folder


def test_unknown_plugin_names_the_nearest_and_the_known() -> None:
    with pytest.raises(UsageError, match=r"unknown engine 'pupet'.*'puppet'"):
        plugins.load("engines", "pupet")
    with pytest.raises(UsageError, match="unknown plugin group"):
        plugins.find("engine")


def test_third_party_is_found_with_its_origin(third_party: Path) -> None:
    found = plugins.find("pose_backends")["fake"]
    assert found.origin == "fakepose 1.0"
    assert found.load().name == "fake"


def test_help_lists_third_party_commands_without_importing_them(third_party: Path) -> None:
    shown = animx("--help").out
    assert "hello" in shown
    assert "from hellocmd 1.0" in shown
    assert "oops" in shown
    assert "hellocmd" not in sys.modules
    assert "brokenthing" not in sys.modules


def test_a_third_party_command_runs(third_party: Path) -> None:
    ran = animx("hello", "--to", "world")
    assert (ran.code, ran.out) == (0, "hello world\n")
    assert "--to" in animx("hello", "--help").out


def test_a_broken_command_is_named_in_one_line_and_the_others_work(third_party: Path) -> None:
    refused(animx("oops"), 2, "'oops'", "brokenthing 1.0", "RuntimeError", "ANIMX_PLUGINS=off")
    refused(animx("number"), 2, "'number'", "nocommand 1.0", "no click command")
    assert animx("presets", "list").code == 0


def test_plugins_lists_all_with_origin_and_what_is_broken(third_party: Path) -> None:
    ran = animx("plugins", "--json")
    assert ran.code == 0
    entries = {(one["group"], one["name"], one["origin"]): one for one in ran.json["plugins"]}
    assert entries["engines", "puppet", "animx"]["loaded"]
    assert entries["pose_backends", "fake", "fakepose 1.0"]["loaded"]
    assert entries["retarget_ops", "shift", "shiftop 1.0"]["loaded"]
    broken = entries["commands", "oops", "brokenthing 1.0"]
    assert not broken["loaded"]
    assert "RuntimeError" in broken["problem"]
    assert "\n" not in broken["problem"]
    assert entries["pose_backends", "mediapipe", "thief 1.0"]["problem"] == "its name is taken"
    assert any("oops" in line for line in ran.json["warnings"])


def test_a_third_party_never_replaces_a_built_in(third_party: Path) -> None:
    assert plugins.find("pose_backends")["mediapipe"].origin == "animx"


def test_off_loads_no_third_party(third_party: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIMX_PLUGINS", "off")
    plugins.find.cache_clear()
    assert "hello" not in animx("--help").out
    assert "fake" not in plugins.names("pose_backends")
    assert "puppet" in plugins.names("engines")
    refused(animx("hello"), 2, "unknown command 'hello'")


def test_doctor_names_broken_plugins_and_still_ends_well(third_party: Path) -> None:
    ran = animx("doctor", "--json")
    assert ran.code == 0
    broken = {one["name"]: one for one in ran.json["findings"] if one["area"] == "plugins" and one["state"] == "broken"}
    assert "brokenthing 1.0" in broken["oops"]["detail"]
    assert "mediapipe" not in broken


def test_preset_packages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANIMX_PLUGINS", raising=False)
    folder = tmp_path / "site"
    (folder / "mypresets").mkdir(parents=True)
    (folder / "mypresets" / "__init__.py").write_text("")
    (folder / "mypresets" / "giraffe.yaml").write_text("name: giraffe\nrescale:\n  neck: 3\n")
    make_package(folder, "mypresets_dist", "", {"animx.presets": {"mine": "mypresets"}})
    with installed(folder):
        listed = {one["name"]: one for one in animx("presets", "list", "--json").json["presets"]}
        assert "giraffe" in listed
        assert animx("presets", "show", "giraffe", "--json").json["preset"]["rescale"] == {"neck": 3}
        origins = {one["origin"] for one in animx("plugins", "--json").json["presets"]}
    assert "mypresets_dist" in origins
