"""`weights pull` against a hub on loopback: resumed, checked, mirrored; every failure one line and exit 6 or 3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hall
import numpy as np
import pytest
from hub import Hub, serving

pytest.importorskip("huggingface_hub", reason="needs the 'model' extra")

from animx.errors import MissingExtraError, OutputError, UsageError, WeightsError
from animx.weights import HASHES, RELEASES, check_hashes, file_hash
from animx.weights_pull import pull

RELEASE = RELEASES["animate-x"]
NAMES = [file.name for file in RELEASE]
SIZE = 3_000_000


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {f"{file.repository}/{file.name}": rng.bytes(SIZE + i) for i, file in enumerate(RELEASE)}


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("ANIMX_WEIGHTS", str(tmp_path / "weights"))
    # What a break loses is one piece of the transfer: 10 MB in the library, more than these files are long.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    with serving(dict(files)) as running:
        yield running


def whole(folder: Path, files: dict[str, bytes]) -> bool:
    return all((folder / file.name).read_bytes() == files[f"{file.repository}/{file.name}"] for file in RELEASE)


def test_a_release_is_fetched_checked_and_recorded(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = pull("animate-x", tmp_path / "here", mirror=hub.url, on_progress=lambda *now: seen.append(now))
    assert whole(folder, files)
    assert set(check_hashes(folder).values()) == {"ok"}
    assert sorted(path.name for path in folder.iterdir()) == sorted([*NAMES, HASHES])
    assert {name for name, done, total in seen if done == total} == set(NAMES)


def test_a_second_pull_sends_for_nothing(hub: Hub, tmp_path: Path) -> None:
    folder = pull("animate-x", tmp_path, mirror=hub.url)
    asked = len(hub.gets)
    stamps = {name: (folder / name).stat().st_mtime_ns for name in NAMES}
    pull("animate-x", tmp_path, mirror=hub.url)
    assert len(hub.gets) == asked
    assert stamps == {name: (folder / name).stat().st_mtime_ns for name in NAMES}


def test_a_broken_transfer_goes_on_where_it_stopped(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.cut_at = 2_000_000
    with pytest.raises(WeightsError, match="again to resume") as caught:
        pull("animate-x", tmp_path, mirror=hub.url)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / NAMES[0]).exists(), "half a file under the final name"
    hub.down, hub.cut_at = False, None
    begun = len(hub.gets)
    assert whole(pull("animate-x", tmp_path, mirror=hub.url), files)
    assert hub.gets[begun] == (NAMES[0], 2_000_000, SIZE - 2_000_000)
    assert not list(tmp_path.glob(".*")), "unfinished files are left"


def test_a_store_that_ignores_ranges_sends_all_again(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.cut_at = 1_000_000
    with pytest.raises(WeightsError):
        pull("animate-x", tmp_path, mirror=hub.url)
    hub.down, hub.cut_at, hub.ranges = False, None, False
    assert whole(pull("animate-x", tmp_path, mirror=hub.url), files)


def test_a_file_that_changed_on_the_hub_is_fetched_from_its_start(hub: Hub, tmp_path: Path) -> None:
    hub.cut_at = 1_000_000
    with pytest.raises(WeightsError):
        pull("animate-x", tmp_path, mirror=hub.url)
    key = f"{RELEASE[0].repository}/{NAMES[0]}"
    hub.files[key] = hub.files[key][::-1]
    hub.down, hub.cut_at = False, None
    assert whole(pull("animate-x", tmp_path, mirror=hub.url), hub.files)
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_local_file_is_fetched_again(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    pull("animate-x", tmp_path, mirror=hub.url)
    damaged = bytearray(files[f"{RELEASE[1].repository}/{NAMES[1]}"])
    damaged[7] ^= 1
    (tmp_path / NAMES[1]).write_bytes(damaged)
    assert check_hashes(tmp_path)[NAMES[1]] == "changed"
    assert whole(pull("animate-x", tmp_path, mirror=hub.url), files)
    assert [name for name, _, _ in hub.gets].count(NAMES[1]) == 2


def test_what_has_not_the_listed_hash_is_refused_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.lies = True
    with pytest.raises(WeightsError, match="has not the hash"):
        pull("animate-x", tmp_path, mirror=hub.url)
    assert list(tmp_path.iterdir()) == []


def test_a_hub_without_sha256_is_taken_at_its_word(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.lfs = False
    assert whole(pull("animate-x", tmp_path, mirror=hub.url), files)
    asked = len(hub.gets)
    pull("animate-x", tmp_path, mirror=hub.url)
    assert len(hub.gets) == asked


def test_the_token_goes_to_the_hub_and_never_to_its_store(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "secret"
    with pytest.raises(WeightsError, match="HF_TOKEN"):
        pull("animate-x", tmp_path, mirror=hub.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert whole(pull("animate-x", tmp_path, mirror=hub.url), files)
    assert set(hub.tokens_at_store) == {None}


def test_without_the_hub_files_that_are_whole_are_kept(hub: Hub, tmp_path: Path) -> None:
    pull("animate-x", tmp_path, mirror=hub.url)
    hub.down = True
    pull("animate-x", tmp_path, mirror=hub.url)
    (tmp_path / NAMES[2]).write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=NAMES[2]):
        pull("animate-x", tmp_path, mirror=hub.url)


def test_two_pulls_at_once_do_not_write_into_one_file(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    import fcntl

    digest = __import__("hashlib").sha256(files[f"{RELEASE[0].repository}/{NAMES[0]}"]).hexdigest()
    part = tmp_path / f".{NAMES[0]}.{digest[:16]}.part"
    with part.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(WeightsError, match="another process"):
            pull("animate-x", tmp_path, mirror=hub.url)
    assert whole(pull("animate-x", tmp_path, mirror=hub.url), files)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["animate-y"], 2, "Did you mean 'animate-x'?"),
        (["--revision", "gone"], 6, "animate-x_ckpt.pth"),
        (["--mirror", "ftp://x"], 2, "mirror"),
        (["--mirror", "http://127.0.0.1:1"], 6, "--mirror"),
        (["--to", "{file}"], 3, "cannot write"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    hub: Hub, tmp_path: Path, arguments: list[str], code: int, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    (tmp_path / "file").write_text("")
    filled = [one.replace("{file}", str(tmp_path / "file")) for one in arguments]
    hall.refused(hall.animx("weights", "pull", *filled), code, word)


def test_the_mirror_may_be_named_in_the_environment(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    ran = hall.animx("weights", "pull", "--json")
    assert ran.code == 0, ran.err
    assert whole(Path(ran.json["folder"]), files)
    assert Path(ran.json["folder"]) == tmp_path / "weights" / "animate-x"
    assert ran.json["hash"]
    ran = hall.animx("weights", "list", "--json")
    (row,) = ran.json["models"]
    assert (row["form"], row["missing"], row["hashed"]) == ("released", [], True)


def test_a_full_disk_is_an_output_error(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from animx import weights_pull

    def full(self: Any, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(weights_pull._Sink, "write", full)
    with pytest.raises(OutputError, match="disk is full"):
        pull("animate-x", tmp_path, mirror=hub.url)


def test_without_the_library_the_mend_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*animx\[model\]"):
        pull("animate-x", tmp_path)


def test_an_unknown_release_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="animate-x"):
        pull("nothing", tmp_path)


def test_hashes_are_those_of_the_bytes(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    import hashlib

    pull("animate-x", tmp_path, mirror=hub.url)
    for file in RELEASE:
        content = files[f"{file.repository}/{file.name}"]
        assert file_hash(tmp_path / file.name) == hashlib.sha256(content).hexdigest()


def test_a_file_that_goes_by_its_other_name_is_fetched(files: dict[str, bytes], tmp_path: Path) -> None:
    network = RELEASE[0]
    given = dict(files)
    given[f"{network.repository}/{network.others[0]}"] = given.pop(f"{network.repository}/{network.name}")
    with serving(given) as running:
        assert whole(pull("animate-x", tmp_path, mirror=running.url), files)


def test_another_repository_is_asked_when_it_is_named(files: dict[str, bytes], tmp_path: Path) -> None:
    moved = {f"someone/copy/{name.rsplit('/', 1)[1]}": content for name, content in files.items()}
    with serving(moved) as running:
        with pytest.raises(WeightsError, match=RELEASE[0].repository):
            pull("animate-x", tmp_path / "a", mirror=running.url)
        ran = hall.animx("weights", "pull", "--to", tmp_path / "b", "--mirror", running.url, "--repo", "someone/copy")
        assert ran.code == 0, ran.err
    assert whole(tmp_path / "b", files)
    for name in ("copy", "a/b/c", "https://hub/x", "../x/y"):
        hall.refused(hall.animx("weights", "pull", "--to", tmp_path / "c", "--repo", name), 2, "OWNER/NAME")
