"""`animx pose`, `animx presets` and `animx doctor`: what they write, print and refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from hall import FAKE_POSE, Ran, animx, installed, make_package, refused

from animx import doctor
from animx.canvas import Canvas
from animx.drawing import template_dance
from animx.image import read_picture, write_picture
from animx.pose.draw import draw_pose
from animx.pose.formats import read_poses, write_poses
from animx.pose.sequence import PoseSequence
from animx.video import open_frames, open_writer, probe


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("ANIMX_PLUGINS", raising=False)
    work, site = tmp_path / "work", tmp_path / "site"
    work.mkdir()
    site.mkdir()
    make_package(site, "fakepose", FAKE_POSE, {"animx.pose_backends": {"fake": "fakepose:Fake"}})
    monkeypatch.chdir(work)
    with installed(site):
        yield


@pytest.fixture
def dance(tiny_poses: PoseSequence) -> Path:
    write_poses(tiny_poses, Path("dance.pose.json"))
    return Path("dance.pose.json")


def done(ran: Ran) -> Ran:
    assert ran.code == 0, ran.err
    return ran


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


# ---- extract ----


def test_extract_writes_beside_and_says_what(tiny_clip: Path) -> None:
    ran = done(animx("pose", "extract", tiny_clip, "--backend", "fake"))
    assert files() == ["dance.pose.json"]
    assert ran.out == "dance.pose.json\n"
    poses = read_poses(Path("dance.pose.json"))
    assert (poses.frames, poses.canvas, poses.fps) == (12, Canvas(128, 192), Fraction(12))
    assert poses.source["name"] == "dance.mp4"
    assert str(poses.source["backend"]).startswith("fake")


def test_both_spellings_hold_the_same_bits(tiny_clip: Path) -> None:
    for name in ("a.pose.json", "a.npz"):
        done(animx("pose", "extract", tiny_clip, "--backend", "fake", "-o", name, "-q"))
    one, two = read_poses(Path("a.pose.json")), read_poses(Path("a.npz"))
    assert (one.keypoints == two.keypoints).all()
    assert (one.scores == two.scores).all()
    assert (one.times == two.times).all()


def test_extract_takes_a_range_a_rate_and_leaves_hands_out(tiny_clip: Path) -> None:
    arguments = ("--backend", "fake", "--start", "0.25", "--duration", "0.5", "--fps", "24", "--no-hands")
    found = done(animx("pose", "extract", tiny_clip, "--json", "-q", *arguments)).json
    assert found["frames"] == 12
    assert read_poses(Path(found["output"])).fps == 24


def test_no_smooth_gives_the_backends_own_joints(tiny_clip: Path) -> None:
    done(animx("pose", "extract", tiny_clip, "--backend", "fake", "-o", "s.npz", "-q"))
    done(animx("pose", "extract", tiny_clip, "--backend", "fake", "-o", "r.npz", "--no-smooth", "-q"))
    assert "smooth" in {step["op"] for step in read_poses(Path("s.npz")).history}
    assert "smooth" not in {step["op"] for step in read_poses(Path("r.npz")).history}


def test_edit_is_for_pictures(tiny_clip: Path) -> None:
    refused(animx("pose", "extract", tiny_clip, "--backend", "fake", "--edit", "-q"), 2, "--edit", "dance.mp4")


def test_a_pose_file_is_not_extracted_again(dance: Path) -> None:
    refused(animx("pose", "extract", dance, "-o", "o.npz", "-q"), 3, "already holds poses", "animx pose retarget")


def test_a_figure_without_limbs_is_exit_4_but_edit_gives_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[0:160, 0:120]
    alpha = np.where((x - 60) ** 2 + (y - 80) ** 2 < 45**2, 255, 0).astype(np.uint8)
    write_picture("ball.png", np.dstack([np.full((160, 120, 3), 90, np.uint8), alpha]))
    monkeypatch.setenv("ANIMX_PLUGINS", "off")  # a ball must not be found by the backend that always finds somebody
    ran = animx("pose", "extract", "ball.png", "-q")
    refused(ran, 4, "ball.png", "--edit")
    assert files() == ["ball.png"]
    ran = done(animx("pose", "extract", "ball.png", "--edit", "--json", "-q"))
    assert ran.json["origin"] == "template"
    assert any("standing body" in line for line in ran.json["warnings"])
    assert files() == ["ball.joints.yaml", "ball.png", "ball.pose.json"]
    pose = read_poses(Path("ball.pose.json"))
    seen = pose.keypoints[0, 0][pose.scores[0, 0] > 0]
    assert (seen >= 0).all()
    assert (seen <= (120, 160)).all()


# ---- retarget ----


def test_retarget_names_its_output_after_the_preset(dance: Path) -> None:
    done(animx("pose", "retarget", dance, "--preset", "identity", "--preset", "short-legs", "-q"))
    done(animx("pose", "retarget", dance, "--set", "legs=0.5", "-q"))
    assert files() == ["dance.pose.json", "dance.retargeted.pose.json", "dance.short-legs.pose.json"]


def test_retarget_to_a_reference_pose_and_to_its_canvas_alone(dance: Path, tiny_poses: PoseSequence) -> None:
    from dataclasses import replace

    still = replace(tiny_poses.cut(0, 1), canvas=Canvas(256, 384), keypoints=tiny_poses.keypoints[:1] * 2)
    write_poses(still, Path("ref.npz"))
    done(animx("pose", "retarget", dance, "--reference", "ref.npz", "-o", "a.npz", "-q"))
    aligned = read_poses(Path("a.npz"))
    assert aligned.canvas == Canvas(256, 384)
    assert "align" in {step["op"] for step in aligned.history}
    done(animx("pose", "retarget", dance, "--reference", "ref.npz", "--align", "none", "-o", "n.npz", "-q"))
    fitted = read_poses(Path("n.npz"))
    assert np.allclose(fitted.keypoints, tiny_poses.keypoints * 2, atol=1e-3)


def test_operations_of_the_plugin_door_run_last(dance: Path) -> None:
    done(animx("pose", "retarget", dance, "--op", "fill", "--op", "smooth:seconds=0.5", "-o", "o.npz", "-q"))
    steps = [step for step in read_poses(Path("o.npz")).history if step["op"] in ("fill", "smooth")]
    assert [step["op"] for step in steps][-2:] == ["fill", "smooth"]
    assert steps[-1]["seconds"] == 0.5


# ---- draw ----


def test_draw_is_the_released_drawing_frame_by_frame(dance: Path, tiny_poses: PoseSequence) -> None:
    done(animx("pose", "draw", dance, "-o", "p_%02d.png", "-q"))
    for t in (0, 5, 11):
        drawn = read_picture(f"p_{t:02d}.png") if Path("p_00.png").exists() else read_picture(f"p_{t + 1:02d}.png")
        assert (drawn.pixels[..., :3] == draw_pose(tiny_poses, t)).all()
    done(animx("pose", "draw", dance, "-q"))
    assert probe("dance.drawn.mp4").frames == 12


def test_draw_one_frame_as_a_picture(dance: Path, tiny_poses: PoseSequence) -> None:
    ran = done(animx("pose", "draw", dance, "--frame", "3"))
    assert ran.out == "dance.drawn.png\n"
    assert (read_picture("dance.drawn.png").pixels[..., :3] == draw_pose(tiny_poses, 3)).all()
    refused(animx("pose", "draw", dance, "--frame", "12", "-y", "-q"), 2, "--frame 12", "0 to 11")
    refused(animx("pose", "draw", dance, "-o", "one.png", "-q"), 2, "one.png", "--frame")


@pytest.mark.parametrize("style", ["animate-x", "plain"])
def test_draw_over_the_clip_keeps_it_where_nothing_is_drawn(dance: Path, tiny_clip: Path, style: str) -> None:
    done(animx("pose", "draw", dance, "--over", tiny_clip, "--style", style, "-o", "over_%02d.png", "-q"))
    first = sorted(Path().glob("over_*.png"))[0]
    drawn = read_picture(first).pixels[..., :3].astype(int)
    clip = next(iter(open_frames(tiny_clip))).pixels.astype(int)
    changed = np.abs(drawn - clip).max(2) > 0
    assert 0.005 < changed.mean() < 0.4


def test_draw_over_a_clip_that_is_too_short_is_exit_3_and_leaves_nothing(dance: Path) -> None:
    with open_writer(Path("short.mp4"), Canvas(128, 192), Fraction(12)) as writer:
        for _ in range(4):
            writer.write(np.zeros((192, 128, 3), np.uint8))
    refused(animx("pose", "draw", dance, "--over", "short.mp4", "-o", "o.mp4", "-q"), 3, "short.mp4", "frame 4")
    assert files() == ["dance.pose.json", "short.mp4"]


# ---- convert, info, check ----


def test_convert_there_and_back_is_the_same(dance: Path, tiny_poses: PoseSequence) -> None:
    done(animx("pose", "convert", dance, "a.npz", "-q"))
    done(animx("pose", "convert", "a.npz", "b.pose.json", "-q"))
    assert (read_poses(Path("b.pose.json")).keypoints == tiny_poses.keypoints).all()
    assert Path("b.pose.json").read_bytes() == dance.read_bytes()


def test_convert_names_what_the_other_format_cannot_hold(dance: Path) -> None:
    ran = done(animx("pose", "convert", dance, "openpose", "--to", "openpose", "--json"))
    assert ran.json["lost"]
    assert any("cannot hold" in line for line in ran.json["warnings"])
    assert len(list(Path("openpose").iterdir())) == 12
    found = done(animx("pose", "info", "openpose", "--json")).json
    assert found["frames"] == 12


def test_convert_to_stdout_and_from_stdin(dance: Path) -> None:
    ran = done(animx("pose", "convert", dance, "-", "-q"))
    again = done(animx("pose", "convert", "-", "-", "-q", stdin=ran.out.encode()))
    assert again.out == ran.out
    refused_json = animx("pose", "convert", dance, "-", "--json")
    assert refused_json.code == 2


def test_info_tells_frames_size_rate_and_persons(dance: Path) -> None:
    found = done(animx("pose", "info", dance, "--json")).json
    assert found["frames"] == 12
    text = done(animx("pose", "info", dance)).out
    assert "12" in text
    assert "128" in text


def test_check_passes_a_good_file_and_names_the_field_of_a_bad_one(dance: Path) -> None:
    assert done(animx("pose", "check", dance)).out == "dance.pose.json: valid\n"
    data = json.loads(dance.read_text())
    data["keypoints"] = data["keypoints"][:-1]
    Path("bad.pose.json").write_text(json.dumps(data))
    refused(animx("pose", "check", "bad.pose.json"), 3, "bad.pose.json")


DAMAGE = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "list": lambda text: "[]",
    "number": lambda text: "3",
    "nan": lambda text: text.replace('"scores"', '"scores": NaN, "old"', 1),
    "no keypoints": lambda text: text.replace('"keypoints"', '"keypoint"', 1),
    "fps zero": lambda text: json.dumps({**json.loads(text), "fps": [0, 1]}),
    "fps text": lambda text: json.dumps({**json.loads(text), "fps": "fast"}),
    "canvas": lambda text: json.dumps({**json.loads(text), "canvas": [0, -5]}),
    "times": lambda text: json.dumps({**json.loads(text), "times": [0, 1]}),
    "layout": lambda text: json.dumps({**json.loads(text), "layout": "octopus"}),
    "schema": lambda text: json.dumps({**json.loads(text), "schema": 99}),
    "scores": lambda text: json.dumps({**json.loads(text), "scores": [[[2.0]]]}),
    "ids": lambda text: json.dumps({**json.loads(text), "person_ids": [1, 2, 3]}),
    "deep": lambda text: "[" * 100_000,
    "binary": lambda text: "\x00\x01\x02" * 50,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", [("pose", "check"), ("pose", "info"), ("pose", "retarget", "--preset", "chibi")])
def test_a_damaged_pose_file_is_exit_3_for_every_reader(dance: Path, damage: str, command: tuple[str, ...]) -> None:
    Path("x.pose.json").write_text(DAMAGE[damage](dance.read_text()))
    refused(animx(*command, "x.pose.json"), 3)
    assert files() == ["dance.pose.json", "x.pose.json"]


# ---- presets ----


def test_show_prints_yaml_that_check_accepts_and_that_means_the_same(dance: Path) -> None:
    for name in ("chibi", "no-arms", "identity"):
        Path("mine.yaml").write_text(done(animx("presets", "show", name)).out)
        assert done(animx("presets", "check", "mine.yaml")).out == "mine.yaml: valid\n"
        done(animx("pose", "retarget", dance, "--preset", name, "-o", "a.npz", "-y", "-q"))
        done(animx("pose", "retarget", dance, "--preset", "mine.yaml", "-o", "b.npz", "-y", "-q"))
        assert (read_poses(Path("a.npz")).keypoints == read_poses(Path("b.npz")).keypoints).all()


def test_check_names_file_key_and_nearest() -> None:
    Path("bad.yaml").write_text(yaml.safe_dump({"name": "bad", "rescale": {"thigh": 0.5}}))
    ran = animx("presets", "check", "bad.yaml")
    assert ran.code in (2, 3)
    assert "bad.yaml" in ran.error
    assert "Did you mean 'thighs'?" in ran.error
    refused(animx("presets", "check", "gone.yaml"), 3, "gone.yaml")


def test_presets_are_found_in_the_users_folder_and_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("ANIMX_PRESETS", str(tmp_path / "more"))
    for folder, name in ((tmp_path / "config" / "animx" / "presets", "mine"), (tmp_path / "more", "theirs")):
        folder.mkdir(parents=True)
        (folder / f"{name}.yaml").write_text(f"name: {name}\nrescale:\n  legs: 0.9\n")
    (tmp_path / "more" / "broken.yaml").write_text("rescale: [1, 2")
    listed = {one["name"]: one for one in done(animx("presets", "list", "--json")).json["presets"]}
    assert listed["mine"]["origin"] == "user"
    assert listed["theirs"]["origin"] == "ANIMX_PRESETS"
    assert listed["broken"]["problem"]
    assert "chibi" in listed


def test_preview_writes_one_sheet_and_refuses_to_replace_it(dance: Path) -> None:
    ran = done(animx("presets", "preview", dance, "--preset", "identity", "--preset", "no-arms", "--frames", "3"))
    assert ran.out == "presets.png\n"
    assert len(np.unique(read_picture("presets.png").pixels.reshape(-1, 4), axis=0)) > 10
    refused(animx("presets", "preview", dance), 2, "presets.png", "-y")
    done(animx("presets", "preview", "--preset", "chibi", "-o", "template.png", "-q"))


def test_the_template_dances_and_stays_on_its_canvas() -> None:
    poses = template_dance()
    seen = poses.keypoints[poses.scores > 0]
    assert (seen >= 0).all()
    assert (seen <= poses.canvas.size).all()
    assert np.ptp(poses.keypoints[:, 0, 4], axis=0).min() > 20


# ---- doctor ----


def test_doctor_says_that_the_main_job_works_and_what_gets_the_rest() -> None:
    ran = done(animx("doctor"))
    assert "the main job (animx render) works here" in ran.out
    for word in ("python", "numpy", "libx264", "mediapipe", "numba", "presets"):
        assert word in ran.out
    found = done(animx("doctor", "--json")).json
    assert found["usable"]
    assert {one["state"] for one in found["findings"]} <= {"ok", "missing", "broken"}
    for one in found["findings"]:
        if one["area"] == "extras" and one["state"] == "missing":
            assert one["mend"] == f"pip install -c constraints.txt 'animx[{one['name']}]'"


def test_doctor_names_the_system_libraries_that_opencv_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    real = importlib.import_module

    def without_libgl(name: str, package: str | None = None) -> object:
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
        return real(name, package)

    monkeypatch.setattr("animx.doctor.importlib.import_module", without_libgl)
    ran = animx("doctor", "-q")
    assert ran.code == 2
    assert "apt install libgl1 libglib2.0-0" in ran.error
    assert "does not work here" in ran.out


def test_doctor_survives_whatever_falls_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    def ill() -> None:
        raise RuntimeError("nothing works")

    monkeypatch.setattr("animx.pose.backend.available_backends", ill)
    found = {one.area: one for one in doctor.examine()}
    assert found["pose backends"].state == "broken"
    assert "nothing works" in found["pose backends"].detail


def test_doctor_knows_the_extras_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

    def name(line: str) -> str:
        return line.split(";")[0].split(">")[0].split("=")[0].split("<")[0].strip()

    extras = {
        extra: {name(line) for line in lines if not line.startswith("animx[")}
        for extra, lines in project["optional-dependencies"].items()
    }
    for extra, names in doctor.EXTRAS.items():
        assert set(names) == extras[extra], extra
    assert set(doctor.BASE) == {name(line) for line in project["dependencies"]}
