"""The recipe: what it holds, what it must not hold, and the warnings that go with it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from animx import provenance


def recipe(**more: object) -> dict[str, object]:
    return provenance.recipe(
        command="render",
        engine="puppet",
        options={"size": [64, 96]},
        seed=0,
        presets=[{"name": "chibi", "sha256": "00"}],
        inputs=[provenance.input_record("reference", "/somewhere/ref.png", "11")],
        backend="fake 1",
        **more,
    )


def test_inputs_are_named_without_their_folder() -> None:
    assert recipe()["inputs"] == [{"role": "reference", "name": "ref.png", "sha256": "11"}]


def test_comment_is_one_line_and_the_same_facts_as_the_side_car() -> None:
    whole = recipe(mask="alpha")
    comment = provenance.as_comment(whole)
    assert "\n" not in comment
    assert json.loads(comment) == json.loads(provenance.as_text(whole)) == whole
    assert "generative" in comment


def test_side_car_lies_beside_the_output_also_of_a_folder() -> None:
    assert provenance.side_car_path("a/out.mp4") == Path("a/out.mp4.json")
    assert provenance.side_car_path("a/frames/") == Path("a/frames.json")


def test_content_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert provenance.content_hash({"a": 1, "b": 2}) == provenance.content_hash({"b": 2, "a": 1})
    assert provenance.content_hash({"a": 1}) != provenance.content_hash({"a": 2})


def test_warnings_are_collected_once_each_and_only_inside_the_block() -> None:
    log = logging.getLogger("animx.some.room")
    with provenance.collected_warnings() as found:
        log.warning("the figure turns its back for %d %%", 31)
        log.warning("the figure turns its back for %d %%", 31)
        log.info("nothing to worry about")
    log.warning("too late")
    assert found == ["the figure turns its back for 31 %"]


def test_a_bug_report_is_one_line_with_version_and_kind() -> None:
    line = provenance.bug_report(KeyError("a\nb"))
    assert "\n" not in line
    assert "KeyError" in line
