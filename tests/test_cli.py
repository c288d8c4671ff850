"""The command line itself: help, errors and exit codes, streams, progress, laziness."""

from __future__ import annotations

import json
import logging
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
from hall import animx, refused
from hypothesis import given, settings
from hypothesis import strategies as st

import animx as package
from animx import cli, plugins
from animx.cli import COMMANDS, Terminated, explain
from animx.cli.output import Output
from animx.errors import InputError, NoFigureError, OutOfMemoryError, OutputError, UsageError, WeightsError

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("numpy", "cv2", "av", "yaml", "PIL", "scipy", "skimage", "numba", "mediapipe", "onnxruntime", "torch", "rich")
LATER = ("eval", "a2bench", "study")


def modules_after(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(' '.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stderr.split())


def leaves() -> list[tuple[str, ...]]:
    """Every command and subcommand."""
    found: list[tuple[str, ...]] = []

    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        found.append(path)
        if isinstance(command, click.Group):
            context = click.Context(command, **command.context_settings)
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                walk(below, (*path, name))

    walk(cli.cli, ())
    return found


# ---- laziness ----


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["pose", "--help"], ["render", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    found = modules_after(f"from animx.cli import run\nassert run({arguments!r}) == 0")
    assert not [name for name in HEAVY if name in found]


def test_importing_the_package_loads_nothing_heavy_and_no_room() -> None:
    found = modules_after("import animx")
    assert not [name for name in HEAVY if name in found]
    assert not [name for name in found if name.startswith("animx.")]


def test_help_starts_in_a_blink() -> None:
    def cpu(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # CPU time, not the clock: the machine is shared.  numpy alone would take twice as long.
    assert min(cpu("-m", "animx", "--help") for _ in range(4)) < 0.3


# ---- help ----


@pytest.mark.parametrize("path", leaves(), ids=lambda path: " ".join(path) or "animx")
def test_every_command_has_help_with_a_line_for_each_option(path: tuple[str, ...]) -> None:
    ran = animx(*path, "--help")
    assert ran.code == 0
    assert ran.err == ""
    command: click.Command = cli.cli
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command, **command.context_settings), name)
        assert found is not None
        command = found
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{path}: {parameter.opts} has no help"
            assert parameter.opts[-1] in ran.out
    assert max(map(len, ran.out.splitlines())) <= 120


def test_commands_of_later_issues_are_not_in_the_help() -> None:
    shown = animx("--help").out
    for name in LATER:
        assert f"\n  {name} " not in shown


@pytest.mark.parametrize("option", ["--steps", "--guidance", "--scheduler", "--window", "--vram", "--resume"])
def test_options_that_the_engine_cannot_use_are_refused_naming_both(option: str) -> None:
    value = [] if option == "--resume" else ["8" if option != "--scheduler" else "ddim"]
    refused(animx("render", "ref.png", "dance.mp4", "--engine", "puppet", option, *value), 2, option, "'puppet'")


def test_version() -> None:
    assert animx("--version").out == f"animx {package.__version__}\n"


def test_no_arguments_show_the_help_on_stderr_and_exit_2() -> None:
    for path in ((), ("pose",), ("presets",), ("bench",)):
        ran = animx(*path)
        assert ran.code == 2
        assert ran.out == ""
        assert "Usage:" in ran.err


def test_docs_hold_the_help_of_every_command() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate
    finally:
        sys.path.pop(0)
        os.environ.pop("ANIMX_PLUGINS", None)
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == generate.page(), (
        "run: python docs/generate.py"
    )


def test_docs_name_every_exit_code() -> None:
    text = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 130, 143, 141):
        assert f"| {code} |" in text


# ---- usage errors ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rendr"], ["unknown command 'rendr'", "Did you mean 'render'?"]),
        (["pose", "extrct"], ["unknown command 'extrct' of 'animx pose'", "Did you mean 'extract'?"]),
        (["render", "a", "b", "--strt", "1"], ["unknown option '--strt'", "Did you mean '--start'?"]),
        (["render", "a"], ["DRIVING"]),
        (["render"], ["REF"]),
        (["render", "a", "b", "c"], ["c"]),
        (["render", "a", "b", "--fit", "covr"], ["--fit 'covr'", "Did you mean 'cover'?"]),
        (["render", "a", "b", "--align", "robst"], ["--align 'robst'", "Did you mean 'robust'?"]),
        (["render", "a", "b", "--progress", "loud"], ["--progress 'loud'"]),
        (["render", "a", "b", "-y", "-n"], ["--overwrite and --no-overwrite"]),
        (["render", "a", "b", "--engine", "animat-x"], ["unknown engine 'animat-x'", "Did you mean 'animate-x'?"]),
        (["render", "a", "b", "--engine", "pupet"], ["Did you mean 'puppet'?"]),
        (["render", "a", "b", "--preset", "chib"], ["unknown preset 'chib'", "Did you mean 'chibi'?"]),
        (["render", "a", "b", "--set", "legs"], ["--set legs", "legs=0.5"]),
        (["render", "a", "b", "--set", "leg=0.5"], ["'leg'", "Did you mean 'legs'?"]),
        (["render", "a", "b", "--set", "legs=-1"], ["legs"]),
        (["render", "a", "b", "--set", "legs=nan"], ["legs"]),
        (["render", "a", "b", "--set", "puppet.nonsense=1"], ["puppet.nonsense", "'puppet'"]),
        (["render", "a", "b", "--set", "other.thing=1"], ["other.thing", "'puppet'"]),
        (["render", "a", "b", "--drop", "armz"], ["'armz'", "Did you mean 'arms'?"]),
        (["render", "a", "b", "--end", "3", "--duration", "3"], ["--end and --duration"]),
        (["render", "a", "b", "--seed", "-1"], ["--seed -1"]),
        (["render", "a", "b", "-o", "-"], ["render -o -", "-o out.mp4"]),
        (["render", "a", "b", "-o", "out.avi"], ["out.avi"]),
        (["pose", "extract", "-"], ["pose extract -"]),
        (["pose", "extract", "a.mp4", "-o", "-", "--json"], ["--json"]),
        (["pose", "retarget", "-", "--json"], ["--json"]),
        (["pose", "retarget", "-", "--reference", "-"], ["'-' is stdin at most once"]),
        (["pose", "retarget", "a.json", "--op", "smoth"], ["Did you mean 'smooth'?"]),
        (["presets", "show", "chib"], ["Did you mean 'chibi'?"]),
        (["bench", "puppet", "only-one.png"], ["REF and DRIVING"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_call_is_one_line_that_names_the_nearest_right_one(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = animx(*arguments)
    if "--json" in arguments:
        assert ran.code == 2
        ran = cli_without_stdout(ran)
    refused(ran, 2, *words)
    assert not list(tmp_path.iterdir())


def cli_without_stdout(ran):  # type: ignore[no-untyped-def]
    """The same outcome without the error object that `--json` writes, which must be right."""
    assert ran.json["error"]["exit_code"] == ran.code
    return type(ran)(ran.code, "", ran.err)


BAD_TIMES = ("-1", "1:75", "abc", "nan", "inf", "1e99", "12:", "f", "-3f", "1.5f", "", "99:99:99", "1;2")


@pytest.mark.parametrize("option", ["--start", "--end", "--duration"])
@pytest.mark.parametrize("value", BAD_TIMES)
def test_a_bad_time_is_named_with_its_option(option: str, value: str) -> None:
    refused(animx("render", "a", "b", f"{option}={value}"), 2, option, "hh:mm:ss.fff")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e9", "fast", "1/0", "1/0/2", ""])
def test_a_bad_rate_is_named(value: str) -> None:
    refused(animx("render", "a", "b", f"--fps={value}"), 2, "--fps")


@pytest.mark.parametrize("value", ["0x0", "1x1", "x", "768", "-1x-1", "axb", "99999x99999", "16384x16384", "10x-5", ""])
def test_a_bad_size_is_named(value: str) -> None:
    refused(animx("render", "a", "b", f"--size={value}"), 2, "--size")


@settings(max_examples=60, deadline=None)
@given(
    option=st.sampled_from(
        ["--start", "--end", "--fps", "--size", "--set", "--drop", "--align", "--person", "--preset"]
    ),
    value=st.text(max_size=12).filter(lambda text: "\0" not in text),
)
def test_no_value_of_any_option_ends_in_a_traceback(option: str, value: str) -> None:
    ran = animx("render", "no-such-picture.png", "no-such-clip.mp4", "-o", "never.mp4", f"{option}={value}")
    assert ran.code in (2, 3), (ran.code, ran.err)
    assert "Traceback" not in ran.err
    assert ran.error
    assert not Path("never.mp4").exists()


# ---- errors to exit codes ----


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (InputError("x"), 3),
        (OutputError("x"), 3),
        (NoFigureError("x"), 4),
        (OutOfMemoryError("x"), 5),
        (MemoryError(), 5),
        (WeightsError("x"), 6),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
        (BrokenPipeError(), 141),
        (ZeroDivisionError("x"), 1),
        (AssertionError(), 1),
        (PermissionError(13, "Permission denied", "/there"), 3),
        (ImportError("libGL.so.1: cannot open shared object file"), 2),
        (ModuleNotFoundError("No module named 'rtmlib'", name="rtmlib"), 2),
        (ModuleNotFoundError("No module named 'animx.pup'", name="animx.pup"), 1),
        (OSError("Could not find/load shared object file 'libllvmlite.so'"), 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert explain(error)[1] == code


def test_memory_that_torch_cannot_get_is_exit_5_too() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert explain(raised.value)[1] == 5
    assert explain(torch.OutOfMemoryError("CUDA out of memory"))[1] == 5
    assert explain(RuntimeError("shapes do not match"))[1] == 1


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*args: object, **values: object) -> None:
        raise error

    monkeypatch.setattr("animx.retarget.preset.list_presets", fail)


def test_a_bug_is_exit_1_and_says_how_to_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("two lines\nof it"))
    line = refused(
        animx("presets", "list"), 1, "internal error", "ZeroDivisionError", "report", package.__version__, "-v"
    )
    assert "\n" not in line


def test_verbose_adds_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, InputError("legs.yaml: bad"))
    assert "Traceback" not in animx("presets", "list").err
    ran = animx("presets", "list", "-v")
    assert ran.code == 3
    assert "Traceback" in ran.err
    assert ran.error == "legs.yaml: bad"


def test_with_json_a_failure_is_one_object_on_stdout_too(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, NoFigureError("ref.png: no figure"))
    ran = animx("presets", "list", "--json")
    assert ran.code == 4
    assert ran.json["error"] == {"kind": "NoFigureError", "message": "ref.png: no figure", "exit_code": 4}
    assert ran.error == "ref.png: no figure"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Terminated()])
def test_an_interruption_is_quiet_but_for_one_line(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    failing(monkeypatch, error)
    ran = animx("presets", "list")
    assert ran.code == (130 if isinstance(error, KeyboardInterrupt) else 143)
    assert len(ran.err.splitlines()) == 1
    assert ran.out == ""


# ---- streams ----


def test_json_is_one_object_with_schema_command_and_version() -> None:
    found = animx("presets", "list", "--json").json
    assert found["schema"] == 1
    assert found["command"] == "animx presets list"
    assert found["version"] == package.__version__
    assert found["warnings"] == []
    assert {one["name"] for one in found["presets"]} >= {"identity", "chibi", "no-arms"}


def test_warnings_are_said_once_and_are_in_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn() -> list[object]:
        for _ in range(3):
            logging.getLogger("animx.somewhere").warning("the figure turns its back for %d %%", 31)
        return []

    monkeypatch.setattr("animx.retarget.preset.list_presets", warn)
    ran = animx("presets", "list", "--json")
    assert ran.err.count("turns its back for 31 %") == 1
    assert ran.json["warnings"] == ["the figure turns its back for 31 %"]
    quiet = animx("presets", "list", "--json", "-q")
    assert quiet.err == ""
    assert quiet.json["warnings"] == ["the figure turns its back for 31 %"]


def test_logging_is_left_as_it_was() -> None:
    logger = logging.getLogger("animx")
    before = logger.level, list(logger.handlers)
    animx("presets", "list", "-v")
    assert (logger.level, logger.handlers) == before


def test_progress_json_is_one_object_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.progress_mode = "json"
    stages = output.progress()
    for done in range(1, 5):
        stages("render", done, 4)
    stages("pose", 1, 0)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [json.loads(line) for line in shown.err.splitlines()]
    assert all(set(line) == {"stage", "done", "total", "eta_s"} for line in lines)
    assert lines[0] | {"eta_s": 0} == {"stage": "render", "done": 1, "total": 4, "eta_s": 0}
    assert {"stage": "render", "done": 4, "total": 4, "eta_s": 0.0} in lines
    assert lines[-1]["total"] is None


def test_the_time_left_goes_by_what_was_done_since_the_first_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((100.0, 110.0, 120.0, 130.0))
    monkeypatch.setattr("animx.cli.output.time.monotonic", lambda: next(clock))
    output = Output()
    output.progress_mode = "json"
    stages = output.progress()
    for done in (5, 6, 7, 10):
        stages("denoise", done, 10)
    assert [json.loads(line)["eta_s"] for line in capsys.readouterr().err.splitlines()] == [None, 40.0, 30.0, 0.0]


def test_progress_lines_name_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.progress_mode = "bar"
    stages = output.progress()
    for stage in ("denoise", "decode", "encode", "animate-x_ckpt.pth"):
        stages(stage, 2, 2)
    assert capsys.readouterr().err.splitlines() == [
        "denoise: 2 of 2 steps", "decode: 2 of 2 frames", "encode: 2 of 2 pictures", "animate-x_ckpt.pth: 2 of 2 MB",
    ]  # fmt: skip


def test_progress_auto_is_silent_without_a_terminal_and_bar_writes_plain_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = Output()
    output.progress()("render", 4, 4)
    assert capsys.readouterr().err == ""
    output.progress_mode = "bar"
    output.progress()("render", 4, 4)
    shown = capsys.readouterr().err
    assert "render" in shown
    assert "4 of 4" in shown
    assert "\r" not in shown
    assert "\x1b" not in shown


def test_a_terminal_gets_bars_lines_above_them_and_its_cursor_back() -> None:
    code = (
        "from animx.cli.output import Output\n"
        "with Output() as output:\n"
        "    stages = output.progress()\n"
        "    stages('render', 1, 4)\n"
        "    output.say('half way')\n"
        "    stages('render', 4, 4)\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, stdout=subprocess.DEVNULL, env=environment)
    process.wait(timeout=60)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so where other systems say end of file
            break
        if not part:
            break
        shown += part
    os.close(ours)
    text = shown.decode()
    assert "half way\r\n" in text
    assert "4/4" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_no_colour_without_a_terminal_or_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in animx("rendr").err
    monkeypatch.setattr("animx.cli.output._is_terminal", lambda stream: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;31m" in animx("rendr").err
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" not in animx("rendr").err


# ---- the process ----


def test_a_closed_pipe_is_exit_141_and_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "animx", "--help"], stdout=closed, stderr=subprocess.PIPE, cwd=ROOT
        )
    assert done.returncode == 141
    assert done.stderr == b""


def test_the_program_exits_with_the_code_of_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "animx", "rendr"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("animx: error: unknown command 'rendr'")
    assert len(done.stderr.splitlines()) == 1


def test_shell_completion_knows_the_commands() -> None:
    environment = {**os.environ, "_ANIMX_COMPLETE": "bash_complete", "COMP_WORDS": "animx re", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "animx"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert "render" in done.stdout


def test_every_command_of_the_table_can_be_loaded() -> None:
    for name, (target, line) in COMMANDS.items():
        assert isinstance(plugins.Plugin("commands", name, target, "animx").load(), click.Command)
        assert line.endswith(".")
