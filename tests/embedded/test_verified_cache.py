"""The verified cache: every kind of damage is seen, named and mended, and nothing is ever half there."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from steermoe import hashes
from steermoe.embedded import verified_cache
from steermoe.embedded.verified_cache import MANIFEST, find_fault, verified_directory

RECIPE = "recipe one"


class Builder:
    """Writes two small files and counts how often it is asked to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, destination: Path) -> None:
        self.calls += 1
        (destination / "config.json").write_text("{}")
        (destination / "weights").mkdir()
        (destination / "weights" / "model.bin").write_bytes(bytes(range(256)) * 40)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def builder() -> Builder:
    return Builder()


@pytest.fixture
def directory(tmp_path: Path, builder: Builder, lines: list[str]) -> Path:
    return verified_directory(tmp_path / "model", RECIPE, builder, lines.append)


def test_it_is_built_once_and_says_so(directory: Path, builder: Builder, lines: list[str]) -> None:
    for _ in range(2):
        assert verified_directory(directory, RECIPE, builder, lines.append) == directory
    assert builder.calls == 1
    assert lines == [f"{directory} does not exist yet: building it"]
    assert (directory / "weights" / "model.bin").stat().st_size == 10240


def test_a_process_hashes_files_that_have_long_been_there_once(
    directory: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def sha256_of(path: Path) -> str:
        hashed.append(path.name)
        return hashes.sha256_of(path)

    monkeypatch.setattr(verified_cache, "sha256_of", sha256_of)
    for _ in range(2):  # just built: a change to come might have the same time
        verified_directory(directory, RECIPE, builder, print)
    assert hashed == ["config.json", "model.bin"] * 2
    long_ago = time.time() - 3600
    for path in directory.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    for _ in range(3):
        verified_directory(directory, RECIPE, builder, print)
    assert hashed == ["config.json", "model.bin"] * 3
    (directory / "weights" / "model.bin").write_bytes(bytes(10240))
    verified_directory(directory, RECIPE, builder, print)
    assert builder.calls == 2


def truncate(directory: Path) -> None:
    with (directory / "weights" / "model.bin").open("r+b") as file:
        file.truncate(10000)


def flip_one_bit_and_keep_the_date(directory: Path) -> None:
    path = directory / "weights" / "model.bin"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove_a_file(directory: Path) -> None:
    (directory / "config.json").unlink()


def remove_the_manifest(directory: Path) -> None:
    (directory / MANIFEST).unlink()


def cut_the_manifest(directory: Path) -> None:
    text = (directory / MANIFEST).read_text()
    (directory / MANIFEST).write_text(text[: len(text) // 2])


def empty_the_manifest(directory: Path) -> None:
    (directory / MANIFEST).write_text("[]")


def garble_the_manifest(directory: Path) -> None:
    (directory / MANIFEST).write_bytes(b"\xff\xfe\x00")


def lie_in_the_manifest(directory: Path) -> None:
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["files"]["config.json"] = "fine"
    (directory / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "weights/model.bin has 10000 bytes, not 10240"),
        (flip_one_bit_and_keep_the_date, "weights/model.bin has another SHA-256"),
        (remove_a_file, "config.json is missing"),
        (remove_the_manifest, "manifest.json is missing"),
        (cut_the_manifest, "manifest.json cannot be read"),
        (empty_the_manifest, "manifest.json cannot be read"),
        (garble_the_manifest, "manifest.json cannot be read"),
        (lie_in_the_manifest, "manifest.json cannot be read"),
    ],
)
def test_damage_is_named_and_mended(
    directory: Path,
    builder: Builder,
    lines: list[str],
    damage: Callable[[Path], None],
    said: str,
) -> None:
    damage(directory)
    verified_directory(directory, RECIPE, builder, lines.append)
    assert builder.calls == 2
    assert lines[1:] == [f"{directory} is damaged ({said}): building it"]
    assert find_fault(directory, RECIPE) is None


def test_another_recipe_is_built_again(directory: Path, builder: Builder, lines: list[str]) -> None:
    verified_directory(directory, "recipe two", builder, lines.append)
    assert builder.calls == 2
    assert lines[1:] == [
        f"{directory} was made by another recipe ({RECIPE}, now recipe two): building it"
    ]


def test_files_beside_the_manifest_are_left_alone(directory: Path, builder: Builder) -> None:
    (directory / "note.txt").write_text("mine")
    verified_directory(directory, RECIPE, builder, print)
    assert builder.calls == 1


def test_a_file_in_its_place_is_replaced(
    tmp_path: Path, builder: Builder, lines: list[str]
) -> None:
    (tmp_path / "model").write_text("not a directory")
    assert verified_directory(tmp_path / "model", RECIPE, builder, lines.append).is_dir()


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, builder: Builder) -> None:
    def fail(destination: Path) -> None:
        builder(destination)
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        verified_directory(tmp_path / "model", RECIPE, fail, print)
    assert [path.name for path in tmp_path.iterdir()] == ["model.lock"]


def test_a_build_that_fails_leaves_the_old_directory(directory: Path, builder: Builder) -> None:
    def fail(destination: Path) -> None:
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        verified_directory(directory, "recipe two", fail, print)
    assert find_fault(directory, RECIPE) is None


def _build_slowly(destination: Path) -> None:
    (destination / "config.json").write_text("half")
    time.sleep(60)


def test_a_killed_build_is_cleaned_up_by_the_next(
    tmp_path: Path, builder: Builder, lines: list[str]
) -> None:
    directory = tmp_path / "model"
    process = multiprocessing.get_context("fork").Process(
        target=verified_directory, args=(directory, RECIPE, _build_slowly, print)
    )
    process.start()
    leftover = tmp_path / "model.unfinished"
    while not (leftover / "config.json").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert leftover.exists()
    assert not directory.exists()

    verified_directory(directory, RECIPE, builder, lines.append)
    assert (directory / "config.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.lock"]


def _build_and_log(log: Path, destination: Path) -> None:
    with log.open("a") as file:
        file.write("built\n")
    time.sleep(0.2)
    Builder()(destination)


def _use_together(directory: Path, log: Path) -> None:
    verified_directory(directory, RECIPE, lambda d: _build_and_log(log, d), print)
    assert (directory / "config.json").read_text() == "{}"


def test_of_processes_that_start_together_one_builds(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_use_together, args=(tmp_path / "model", log)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "built\n"
