"""A run's identity is everything that shapes its results: what changed is named, what shapes nothing does not block."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import CHATML, TinyCheckpoint
from steermoe.config import Config
from steermoe.errors import RunDirectoryError
from steermoe.pipeline import run_pipeline
from steermoe.store.names import RUN_JSON
from tiny import Listener, tiny_config


@pytest.fixture
def model(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "model"))


@pytest.fixture
def collected(model: Path, small_prompts: Path, tmp_path: Path) -> Config:
    """A run that has its replies and no more."""
    config = tiny_config(model, tmp_path / "run", small_prompts)
    run_pipeline(config, only="collect", reporter=Listener())
    return config


def refused(config: Config) -> str:
    before = (config.run_dir / RUN_JSON).read_bytes()
    with pytest.raises(RunDirectoryError) as caught:
        run_pipeline(config, reporter=Listener())
    assert (config.run_dir / RUN_JSON).read_bytes() == before
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer_config.json"],
)
def test_a_file_that_shapes_replies_and_was_edited_is_named(
    collected: Config, model: Path, name: str
) -> None:
    path = model / name
    if name.endswith(".jinja"):
        path.write_text(CHATML.replace("assistant\n", "assistant: "))
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), "note": "edited"}))
    assert f"before {name} of " in refused(collected)


def test_a_template_that_came_or_went_is_named(collected: Config, model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    (model / "added_tokens.json").write_text("{}")
    assert "before added_tokens.json, chat_template.jinja of " in refused(collected)


def test_what_shapes_no_reply_does_not_block(collected: Config, model: Path) -> None:
    (model / "README.md").write_text("Ours.")
    (model / "eval_results.json").write_text("{}")
    listener = Listener()
    run_pipeline(collected, only="collect", reporter=listener)
    assert "collect: done already; --force does it again" in listener.said


def test_a_run_that_knew_no_such_files_yet_goes_on_and_knows_them_then(
    collected: Config, model: Path
) -> None:
    path = collected.run_dir / RUN_JSON
    state = json.loads(path.read_text())
    known = state["model"].pop("files")
    assert {"chat_template.jinja", "config.json", "tokenizer.json"} <= known.keys()
    path.write_text(json.dumps(state))
    run_pipeline(collected, only="collect", reporter=Listener())
    assert json.loads(path.read_text())["model"]["files"] == known


# ---- a model of the hub -----------------------------------------------------------------------------------


@pytest.fixture
def hub(tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the hub, with one model in it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--somebody--tiny"
    snapshot = folder / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_checkpoint("mixtral"), snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    return folder


def move_main(hub: Path) -> None:
    """The branch moves on to a commit with other weights."""
    moved = shutil.copytree(hub / "snapshots" / ("a" * 40), hub / "snapshots" / ("b" * 40))
    weights = load_file(moved / "model.safetensors")
    weights["lm_head.weight"] = torch.flip(weights["lm_head.weight"], [0])
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    (hub / "refs" / "main").write_text("b" * 40)


def test_a_hub_model_is_known_by_its_commit_and_goes_on_with_it(
    hub: Path, small_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_config(Path("somebody/tiny"), tmp_path / "run", small_prompts)
    run_pipeline(config, only="collect", reporter=Listener())
    state = json.loads((config.run_dir / RUN_JSON).read_text())
    assert state["model"]["commit"] == "a" * 40
    move_main(hub)
    message = refused(config)
    assert "other weights of somebody/tiny" in message
    assert f"model.revision={'a' * 40}" in message
    pinned = tiny_config(
        Path("somebody/tiny"), tmp_path / "run", small_prompts, model={"revision": "a" * 40}
    )
    listener = Listener()
    run_pipeline(pinned, only="collect", reporter=listener)
    assert "collect: done already; --force does it again" in listener.said


def test_a_hub_model_whose_weights_are_no_safetensors_is_refused_before_it_replies(
    hub: Path, small_prompts: Path, tmp_path: Path
) -> None:
    snapshot = hub / "snapshots" / ("a" * 40)
    torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    config = tiny_config(Path("somebody/tiny"), tmp_path / "run", small_prompts)
    listener = Listener()
    with pytest.raises(Exception, match="only safetensors checkpoints can be used"):
        run_pipeline(config, reporter=listener)
    assert "collected" not in listener.text and not config.run_dir.exists()
