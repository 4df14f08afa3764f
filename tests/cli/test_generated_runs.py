"""Any file and any settings end in a result or in one line, and nothing is dropped; the long version is a benchmark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, settings

import generated_files
from conftest import TinyCheckpoint
from generated_files import GeneratedFile
from generated_runs import assignments, try_plan, try_prompts, working_in

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder(
    tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder with the config and the tokenizer of a model, which is all that a plan reads of it."""
    path = tmp_path_factory.mktemp("generated")
    ignore = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(tiny_checkpoint("mixtral"), path / "model", ignore=ignore)
    with working_in(path):
        yield path


@given(generated_files.files())
@FEW
def test_any_file_through_steermoe_prompts(folder: Path, file: GeneratedFile) -> None:
    ran, fault = try_prompts(folder, file)
    note(f"{file.kind} {file.options} {file.data!r}\n{ran.out}\n{ran.err}")
    assert not fault


@given(generated_files.files(), assignments())
@FEW
def test_any_file_with_any_settings_through_steermoe_plan(
    folder: Path, file: GeneratedFile, given_settings: list[str]
) -> None:
    ran, fault = try_plan(folder, file, given_settings)
    note(f"{file.kind} {file.options} {given_settings} {file.data!r}\n{ran.out}\n{ran.err}")
    assert not fault
