"""Presets: the grammar, the shipped ones, where they are found, the contact sheet, the examples of the manual."""

from __future__ import annotations

import logging
import os
import re
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from skeletons import dancing, standing

from animx.config import read_yaml
from animx.errors import InputError, NoFigureError, UsageError
from animx.retarget import chain, groups, ops, preset
from animx.retarget.preset import Preset, list_presets, load_preset, parse_preset, parse_rescale, preset_paths
from animx.retarget.preview import contact_sheet

SHIPPED = [
    "identity",
    "short-legs",
    "long-legs",
    "no-arms",
    "no-legs",
    "one-arm",
    "big-head",
    "small-head",
    "chibi",
    "long-limbs",
    "wide-shoulders",
    "narrow",
    "tall",
    "stout",
    "long-neck",
    "no-neck",
]


@pytest.fixture(autouse=True)
def no_presets_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("ANIMX_PRESETS", raising=False)
    monkeypatch.delenv("ANIMX_PLUGINS", raising=False)
    monkeypatch.setattr(preset, "entry_points", lambda group: [])


def write(folder, name, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


# ---- shipped -------------------------------------------------------------------------------------------------------


def test_all_shipped_presets_are_found_and_sound(root):
    found = list_presets()
    assert sorted(SHIPPED) == [entry.name for entry in found]
    assert {entry.origin for entry in found} == {"shipped"}
    for entry in found:
        assert entry.preset is not None, entry.problem
        assert entry.preset.name == entry.name
        assert entry.preset.description.endswith(".")
    assert {file.stem for file in (root / "presets" / "rescale").glob("*.yaml")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_preset_gives_a_finite_pose_and_a_history(name):
    poses = dancing()
    done = chain.retarget(poses, name)
    assert np.isfinite(done.keypoints).all()
    changed = done.keypoints.tobytes() != poses.keypoints.tobytes()
    assert changed == (name != "identity")
    assert bool(done.history) == (name != "identity")


def heights(name):
    points = chain.retarget(standing(), name).keypoints[0, 0]
    return points, float(points[[10, 13], 1].max() - points[24:92, 1].min())


def test_shipped_presets_do_what_they_say():
    plain, height = heights("identity")
    assert heights("short-legs")[1] < 0.8 * height
    assert heights("tall")[1] > 1.2 * height
    small, total = heights("chibi")
    head = float(np.ptp(small[24:92, 1])) * 1.45  # the points of a face end at the brows
    assert 2 < total / head < 3.2
    assert np.ptp(heights("wide-shoulders")[0][[2, 5], 0]) == pytest.approx(1.6 * np.ptp(plain[[2, 5], 0]), rel=1e-3)
    for name, joints in (
        ("no-arms", (3, 4, 6, 7, 100, 120)),
        ("no-legs", (9, 10, 12, 13, 18, 23)),
        ("one-arm", (6, 7, 100)),
    ):
        scores = chain.retarget(standing(), name).scores[0, 0]
        assert not scores[list(joints)].any()
        assert scores[[2, 5, 8, 11]].all()
    assert chain.retarget(standing(), "one-arm").scores[0, 0, [3, 4, 120]].all()


# ---- grammar -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("rescal:\n  legs: 1", 1, "unknown key 'rescal'. Did you mean 'rescale'?"),
        ("name: x\nrescale:\n  leg: 0.5", 3, "unknown bone group 'leg'. Did you mean 'legs'?"),
        ("rescale:\n  legs: 0", 2, "legs: a factor of 0"),
        ("rescale:\n  legs: -1", 2, "legs: a factor of -1"),
        ("rescale:\n  legs: big", 2, "'big' is a text, expected a number"),
        ("rescale:\n  legs: [0.6, 0.3]", 2, "runs downwards"),
        ("rescale:\n  legs: [0.3]", 2, "1 entries, expected 2"),
        ("rescale:\n  legs: true", 2, "truth value"),
        ("rescale: [legs]", 1, "expected 'key: value' lines"),
        ("rescale:\n  legs: .nan", 2, "expected a number"),
        ("drop: arms", 1, "expected a list like [a, b]"),
        ("drop: [arm]", 1, "drop: unknown bone group or joint 'arm'. Did you mean 'arms'?"),
        ("add: [wigns]", 1, "add: unknown bone group or joint 'wigns'"),
        ("keep: grond", 1, "Did you mean 'ground'?"),
        ("probability: 1.5", 1, "1.5 is larger than 1"),
        ("name: a\nname: b", 2, "key 'name' stands twice"),
        ("rescale: &r {legs: 1}\nadd: *r", 2, "aliases"),
        ("- legs", 1, "a list, expected 'key: value' lines"),
    ],
)
def test_a_bad_preset_is_one_line_with_file_key_and_mend(tmp_path, text, line, says):
    file = write(tmp_path, "bad.yaml", text)
    with pytest.raises(InputError) as caught:
        load_preset(str(file))
    message = str(caught.value)
    assert says in message
    assert message.startswith(f"{file}:{line}: ")
    assert "\n" not in message


def test_a_range_is_its_mean_when_retargeting_and_drawn_when_training():
    one = parse_preset({"rescale": {"legs": [0.3, 0.6], "head": 2}}, "x.yaml")
    assert one.factors == {"legs": pytest.approx(0.45), "head": 2.0}
    assert one.fixed().rescale == one.factors
    drawn = [one.sample(np.random.default_rng(seed)).rescale["legs"] for seed in range(200)]
    assert 0.3 <= min(drawn) < 0.33
    assert 0.57 < max(drawn) <= 0.6
    assert one.sample(np.random.default_rng(5)) == one.sample(np.random.default_rng(5))
    assert one.sample(np.random.default_rng(5)).rescale["head"] == 2.0
    poses = dancing()
    assert chain.retarget(poses, one).keypoints.tobytes() == chain.retarget(poses, one.fixed()).keypoints.tobytes()


def test_the_order_of_the_keys_changes_neither_the_result_nor_the_draw():
    a = Preset("a", rescale={"legs": (0.3, 0.6), "thighs": 2.0, "head": (1.0, 2.0)})
    b = Preset("a", rescale={"head": (1.0, 2.0), "thighs": 2.0, "legs": (0.3, 0.6)})
    drawn = [dict(p.sample(np.random.default_rng(1)).rescale) for p in (a, b)]
    assert drawn[0] == drawn[1]
    poses = dancing()
    assert chain.retarget(poses, a).keypoints.tobytes() == chain.retarget(poses, b).keypoints.tobytes()


def test_probability_does_not_touch_retargeting():
    never = Preset("never", rescale={"legs": 0.5}, probability=0.0)
    poses = dancing()
    assert chain.retarget(poses, never).keypoints.tobytes() == ops.rescale(poses, {"legs": 0.5}).keypoints.tobytes()


def test_a_nameless_preset_takes_the_name_of_its_file(tmp_path):
    assert load_preset(write(tmp_path, "mine.yaml", "rescale: {legs: 2}")).name == "mine"


def test_set_takes_bare_groups_and_says_what_is_wrong():
    assert parse_rescale(["legs=0.5", "rescale.head=1.2", "legs=[0.2, 0.4]"]) == {
        "legs": pytest.approx(0.3),
        "head": 1.2,
    }
    for text, says in (
        ("leg=1", "unknown bone group 'leg'"),
        ("legs=0", "factor"),
        ("legs=x", "expected a number"),
        ("legs", "KEY=VALUE"),
        ("a.b=1", "unknown key 'a.b'"),
    ):
        with pytest.raises(UsageError, match=re.escape(says)) as caught:
            parse_rescale([text])
        assert "--set" in str(caught.value)


# ---- search --------------------------------------------------------------------------------------------------------


def test_the_first_folder_wins_from_the_user_to_the_shipped_ones(tmp_path, monkeypatch):
    user, first, second = tmp_path / "config" / "animx" / "presets", tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("ANIMX_PRESETS", os.pathsep.join([str(first), str(second)]))
    write(second, "chibi.yaml", "description: second")
    assert load_preset("chibi").description == "second"
    write(first / "rescale", "chibi.yaml", "description: first")
    assert load_preset("chibi").description == "first"
    write(user, "chibi.yaml", "description: user")
    assert load_preset("chibi").description == "user"
    origins = {entry.name: entry.origin for entry in list_presets()}
    assert origins["chibi"] == "user"
    assert origins["tall"] == "shipped"
    assert preset_paths()[:3] == [user, first, second]


def test_a_path_is_a_file_and_a_missing_one_is_a_bad_input(tmp_path):
    file = write(tmp_path, "mine.yaml", "rescale: {legs: 2}")
    assert load_preset(file).factors == {"legs": 2.0}
    with pytest.raises(InputError, match="no such file"):
        load_preset(tmp_path / "gone.yaml")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"unknown preset 'shortlegs'\. Did you mean 'short-legs'\?"):
        load_preset("shortlegs")


def test_a_broken_file_is_listed_with_its_problem_and_hides_nothing(tmp_path, monkeypatch):
    write(tmp_path / "mine", "broken.yaml", "rescale: {leg: 1}")
    monkeypatch.setenv("ANIMX_PRESETS", str(tmp_path / "mine"))
    found = {entry.name: entry for entry in list_presets()}
    assert found["broken"].preset is None
    assert "Did you mean 'legs'" in found["broken"].problem
    assert set(SHIPPED) < set(found)


def test_packages_bring_presets_and_a_broken_one_is_only_named(tmp_path, monkeypatch, caplog):
    write(tmp_path / "thirdparty_presets", "__init__.py", "")
    write(tmp_path / "thirdparty_presets", "giraffe.yaml", "rescale: {neck: 4}")
    write(tmp_path / "bare_presets" / "rescale", "worm.yaml", "drop: [arms, legs]")  # a namespace package
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        EntryPoint("a", "thirdparty_presets", "animx.presets"),
        EntryPoint("b", "no_such_package", "animx.presets"),
        EntryPoint("c", "bare_presets", "animx.presets"),
    ]
    monkeypatch.setattr(preset, "entry_points", lambda group: points)
    with caplog.at_level(logging.WARNING):
        assert load_preset("giraffe").factors == {"neck": 4.0}
        assert load_preset("worm").drop == ("arms", "legs")
        assert load_preset("chibi")
    assert "presets of b cannot be found" in caplog.text
    monkeypatch.setenv("ANIMX_PLUGINS", "off")
    with pytest.raises(UsageError, match="unknown preset 'giraffe'"):
        load_preset("giraffe")


def test_without_a_checkout_the_shipped_presets_come_from_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(preset, "__file__", str(tmp_path / "site" / "animx" / "retarget" / "preset.py"))
    assert load_preset("chibi").factors["head"] > 1


# ---- contact sheet -------------------------------------------------------------------------------------------------


def test_the_contact_sheet_shows_every_preset_in_its_own_strip():
    sheet = contact_sheet(dancing(), ["identity", "short-legs", "no-arms"], 4, cell_height=120)
    assert sheet.dtype == np.uint8
    assert sheet.shape[2] == 3
    strips = np.array_split(sheet, 3)
    assert len({strip.tobytes() for strip in strips}) == 3
    one = contact_sheet(dancing(), ["identity"], 4, cell_height=120)
    assert one.shape[1] == sheet.shape[1] or one.shape[1] > 0
    assert contact_sheet(dancing(), ["identity"], 4, cell_height=120).tobytes() == one.tobytes()


def test_short_clips_and_empty_ones_are_handled():
    assert contact_sheet(dancing(2), ["chibi"], 6).shape[0] > 200
    empty = ops.drop(dancing(), list(groups.GROUPS))
    with pytest.raises(NoFigureError):
        contact_sheet(empty, ["chibi"])
    with pytest.raises(UsageError):
        contact_sheet(dancing(), [])


# ---- the manual ----------------------------------------------------------------------------------------------------


def blocks(root, language):
    text = (root / "docs" / "presets.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_every_yaml_example_of_the_manual_works(root, tmp_path):
    examples = blocks(root, "yaml")
    assert len(examples) >= 6
    poses = dancing()
    for i, text in enumerate(examples):
        found = load_preset(write(tmp_path, f"example{i}.yaml", text))
        assert np.isfinite(chain.retarget(poses, found).keypoints).all()
        found.sample(np.random.default_rng(i))


def test_the_python_example_of_the_manual_works(root):
    (code,) = blocks(root, "python")
    names = {"poses": dancing(), "reference_pose": standing()}
    exec(code, names)
    assert names["short"].canvas == standing().canvas
    assert not names["again"].scores[0, 0, 7]


def test_the_tables_of_the_manual_name_every_group_and_every_shipped_preset(root):
    text = (root / "docs" / "presets.md").read_text(encoding="utf-8")
    for name in groups.GROUPS:
        if not name.startswith(("left_", "right_")):
            assert re.search(rf"^\|.*`{name}`.*\|", text, re.MULTILINE), name
    for entry in list_presets():
        assert entry.preset is not None
        assert f"| `{entry.name}` | {entry.preset.description} |" in text


def test_the_message_and_the_history_of_the_manual_are_real(root, tmp_path):
    (example,) = blocks(root, "text")
    file = write(tmp_path, "my.yaml", "rescale:\n  legs: 1\n  leg: 2\n")
    with pytest.raises(InputError) as caught:
        load_preset(file)
    assert str(caught.value).replace(str(tmp_path) + os.sep, "") == example.strip()
    done = chain.retarget(dancing(), ["short-legs"], reference=standing(), drop=["left_arms"])
    import json

    (history,) = blocks(root, "json")
    shown = json.loads(history)
    shown[0]["scale"] = done.history[0]["scale"]
    assert shown == [dict(step) for step in done.history]


def test_read_yaml_keeps_the_lines(tmp_path):
    file = write(tmp_path, "a.yaml", "\nname: x\nrescale:\n  legs: 1\n")
    found = read_yaml(file)
    assert found.lines == {"name": 2, "rescale": 3}
    assert found["rescale"].lines == {"legs": 4}
