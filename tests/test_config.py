"""Config: strict YAML, strict building, overrides; every refusal is one line with file, line, key and the mend."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from animx.config import (
    MAX_BYTES,
    FieldError,
    Located,
    Range,
    apply_overrides,
    as_mapping,
    build,
    parse_override,
    read_yaml,
)
from animx.errors import AnimxError, InputError, UsageError


@dataclass(frozen=True)
class Window:
    frames: int = 32
    overlap: Annotated[int, Range(0)] = 8

    def __post_init__(self) -> None:
        if self.overlap >= self.frames:
            raise UsageError(f"overlap {self.overlap} leaves no new frames in a window of {self.frames}")


@dataclass(frozen=True)
class Job:
    name: str
    window: Window = Window()
    strength: Annotated[float, Range(0, 1, above=True)] = 0.5
    mode: Literal["fast", "exact"] = "exact"
    fps: Fraction = Fraction(25)
    out: Path | None = None
    tags: tuple[str, ...] = ()
    size: tuple[int, int] = (512, 768)
    factors: Mapping[str, float | tuple[float, float]] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    extra: Any = None
    loud: bool = False


@dataclass(frozen=True)
class Knowing:
    parts: Mapping[str, int]

    def __post_init__(self) -> None:
        for name, count in self.parts.items():
            if count > 3:
                raise FieldError(f"parts: too many {name}", ("parts", name))


def load(tmp_path, text, cls=Job):
    file = tmp_path / "job.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return build(cls, read_yaml(file), file)


def refusal(tmp_path, text, cls=Job):
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, cls)
    message = str(caught.value)
    assert "\n" not in message
    assert "job.yaml" in message
    return message[message.index("job.yaml") + len("job.yaml") :]


def test_what_is_left_out_keeps_its_default(tmp_path):
    assert load(tmp_path, "name: a") == Job("a")


def test_every_kind_of_field_is_built(tmp_path):
    text = """
name: a
window: {frames: 16, overlap: 4}
strength: 1
mode: fast
fps: 30000/1001
out: some/where.mp4
tags: [x, y]
size: [640, 960]
factors: {legs: 0.5, arms: [1, 1e-1]}
windows: [{frames: 9}, {}]
extra: {anything: [1, two]}
loud: true
"""
    job = load(tmp_path, text)
    assert job.window == Window(16, 4)
    assert (job.strength, type(job.strength)) == (1.0, float)
    assert (job.fps, job.out, job.tags, job.size) == (
        Fraction(30000, 1001),
        Path("some/where.mp4"),
        ("x", "y"),
        (640, 960),
    )
    assert job.factors == {"legs": 0.5, "arms": (1.0, 0.1)}
    assert job.windows == [Window(9), Window()]
    assert job.extra == {"anything": [1, "two"]}
    assert job.loud is True


def test_a_built_config_goes_to_yaml_and_back(tmp_path):
    job = load(tmp_path, "name: a\nfps: 24000/1001\nfactors: {legs: [0.5, 1]}\nout: x\nwindows: [{frames: 9}]")
    again = load(tmp_path, yaml.safe_dump(as_mapping(job)))
    assert again == job
    json.dumps(as_mapping(job))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nam: a", ":1: unknown key 'nam'. Did you mean 'name'?"),
        ("name: a\nwindow:\n  frame: 3", ":3: window: unknown key 'frame'. Did you mean 'frames'?"),
        ("mode: fast", ": key 'name' is missing"),
        ("name: 3", ":1: name: 3 is a number, expected text"),
        ("name: [a]", ":1: name: ['a'] is a list, expected text"),
        ("name:", ":1: name: nothing, expected text"),
        ("name: a\nloud: yes", ":2: loud: 'yes' is a text, expected true or false"),
        ("name: a\nloud: 1", ":2: loud: 1 is a number, expected true or false"),
        ("name: a\nwindow: {frames: true}", ":2: window.frames: True is a truth value, expected a whole number"),
        ("name: a\nwindow: {frames: 1.5}", ":2: window.frames: 1.5 is a number, expected a whole number"),
        ("name: a\nwindow: 3", ":2: window: 3 is a number, expected 'key: value' lines"),
        ("name: a\nwindow: {overlap: -1}", ":2: window.overlap: -1 is less than 0"),
        ("name: a\nwindow: {overlap: 40}", ":2: window: overlap 40 leaves no new frames in a window of 32"),
        ("name: a\nstrength: 0", ":2: strength: 0 is not above 0"),
        ("name: a\nstrength: 2", ":2: strength: 2 is larger than 1"),
        ("name: a\nstrength: 1e999", ":2: strength: not a finite number"),
        ("name: a\nmode: fsat", ":2: mode: 'fsat' is none of fast, exact. Did you mean 'fast'?"),
        ("name: a\nfps: fast", ":2: fps: 'fast' is no number like"),
        ("name: a\nfps: 1/0", ":2: fps: '1/0' is no number like"),
        ("name: a\ntags: x", ":2: tags: 'x' is a text, expected a list like [a, b]"),
        ("name: a\nsize: [1, 2, 3]", ":2: size: 3 entries, expected 2"),
        ("name: a\nfactors:\n  legs: [1]", ":3: factors.legs: 1 entries, expected 2"),
        ("name: a\nfactors:\n  legs: x", ":3: factors.legs: 'x' is a text, expected a number"),
        ("name: a\nwindows:\n  - frames: x", ":3: windows.frames: 'x' is a text, expected a whole number"),
        ("name: a\nout: 3", ":2: out: 3 is a number, expected a path"),
    ],
)
def test_a_wrong_value_is_refused_by_line_and_key(tmp_path, text, says):
    assert refusal(tmp_path, text).startswith(says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ": empty"),
        ("# only a comment", ": empty"),
        ("- a", ":1: a list, expected"),
        ("just text", ":1: a text, expected"),
        ("name: a\nname: b", ":2: key 'name' stands twice"),
        ("window:\n  frames: 1\n  frames: 2", ":3: key 'frames' stands twice"),
        ("1: a", ":1: key 1 is not text"),
        ("[a]: b", ":1: key ['a'] is not text"),
        ("a: &x 1\nb: *x", ":2: aliases (*name) are not allowed"),
        ("a: !!python/object/apply:os.system [ls]", ":1: tags ("),
        ("a: !mine 3", ":1: tags ("),
        ("---\na: 1\n---\nb: 1", ":3: more than one document"),
        ("a: [1", ":"),
        ("a:\n\tb: 1", ":2: "),
        ("a: " + "[" * 60 + "]" * 60, ":1: more than 32 levels"),
        ("a: b\x00", ": not YAML"),
        (b"a: \xff\xfe", ":1: not UTF-8"),
        (b"a: 1\nb: \xe4", ":2: not UTF-8"),
        ("a: " + "9" * 5000, ": not YAML"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_by_line(tmp_path, text, says):
    assert refusal(tmp_path, text).startswith(says)


def test_a_bomb_of_aliases_costs_nothing(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    start = time.process_time()
    assert "aliases" in refusal(tmp_path, "\n".join(lines))
    assert time.process_time() - start < 1


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path):
    assert f"larger than {MAX_BYTES} bytes" in refusal(tmp_path, b"#" * (MAX_BYTES + 1))


def test_missing_files_and_folders_are_bad_inputs(tmp_path):
    for path, says in ((tmp_path / "gone.yaml", "no such file"), (tmp_path, "a folder, not a file")):
        with pytest.raises(InputError, match=says):
            read_yaml(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml("a\0b.yaml")


def test_words_of_old_yaml_are_text_and_numbers_are_numbers(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "a: yes\nb: off\nc: 2020-01-01\nd: 1:30\ne: 1e-4\nf: 010\ng: ~\nh:\ni: -3\nj: .5\nk: 0x10\nl: null\n"
    )
    assert dict(read_yaml(file)) == {
        "a": "yes", "b": "off", "c": "2020-01-01", "d": "1:30", "e": 1e-4, "f": 10, "g": None, "h": None,
        "i": -3, "j": 0.5, "k": "0x10", "l": None,
    }  # fmt: skip


def test_a_byte_order_mark_does_no_harm(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_yaml(file) == {"a": 1, "b": 2}


def test_a_dataclass_that_knows_its_key_gets_its_line(tmp_path):
    says = refusal(tmp_path, "parts:\n  arms: 2\n  legs: 4\n", Knowing)
    assert says == ":3: parts: too many legs"


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text("abc xyz:-#'\"[]{}&*!%\n", max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abcd", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abcd", min_size=1, max_size=4), plain, min_size=1, max_size=4))
def test_what_a_yaml_writer_writes_is_read_back(tmp_path_factory, mapping):
    file = tmp_path_factory.mktemp("yaml") / "a.yaml"
    text = yaml.dump(mapping, Dumper=NoAlias, allow_unicode=True)
    file.write_text(text, encoding="utf-8")
    assert read_yaml(file) == mapping


class NoAlias(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text("ab:-[]{}&*!#%@`,'\"|>?\n\t 0123.~", max_size=60).map(str.encode))
def test_any_bytes_at_all_end_in_a_mapping_or_one_line(tmp_path_factory, raw):
    file = tmp_path_factory.mktemp("yaml") / "a.yaml"
    file.write_bytes(raw)
    found: object
    try:
        found = read_yaml(file)
    except AnimxError as error:
        found = str(error)
    assert isinstance(found, Located) or (isinstance(found, str) and "\n" not in found)


# ---- overrides -----------------------------------------------------------------------------------------------------


def test_overrides_are_read_like_yaml():
    assert parse_override("a.b=1e-3") == (("a", "b"), 0.001)
    assert parse_override("legs=[0.3, 0.6]") == (("legs",), [0.3, 0.6])
    assert parse_override("a=b=c") == (("a",), "b=c")
    assert parse_override("a=true") == (("a",), True)
    assert parse_override("a={b: 1}") == (("a",), {"b": 1})


@pytest.mark.parametrize("text", ["a", "=1", "a.=1", ".a=1", "a=", "a= ", "a=[", "a=*x", "a=!x 1", "a=" + "x" * 20_000])
def test_a_bad_override_is_a_usage_error(text):
    with pytest.raises(UsageError, match="--set") as caught:
        parse_override(text)
    assert "\n" not in str(caught.value)


def test_overrides_lie_over_the_mapping_and_leave_it_alone():
    mapping = {"window": {"frames": 32, "overlap": 4}, "name": "x"}
    done = apply_overrides(mapping, ["window.frames=16", "new.deep.key=1", "name=y", "name=z"])
    assert done == {"window": {"frames": 16, "overlap": 4}, "name": "z", "new": {"deep": {"key": 1}}}
    assert mapping == {"window": {"frames": 32, "overlap": 4}, "name": "x"}
    with pytest.raises(UsageError, match="'name' is a text, it has no keys"):
        apply_overrides(mapping, ["name.first=a"])


def test_an_overridden_value_is_not_blamed_on_a_line_of_the_file(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("name: a\nstrength: 0.5\n")
    with pytest.raises(UsageError) as caught:
        build(Job, apply_overrides(read_yaml(file), ["strength=7"]), file, error=UsageError)
    assert str(caught.value) == f"{file}: strength: 7 is larger than 1"
