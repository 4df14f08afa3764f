"""Loading: what is ready to run, and one clear line for each reason not to load."""

from __future__ import annotations

import gc
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import TinyCheckpoint, byte_tokenizer
from steermoe.config import ModelSection
from steermoe.errors import ModelError, SteerMoEError
from steermoe.loading import (
    check_not_offloaded,
    describe_model,
    describe_named,
    load_model,
    load_tokenizer,
    model_source,
)


@pytest.fixture
def checkpoint(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "checkpoint"))


def settings(path: Path | str, **fields: Any) -> ModelSection:
    return ModelSection(id=str(path), **fields)


def refusal(path: Path | str, **fields: Any) -> str:
    with pytest.raises(SteerMoEError) as caught:
        load_model(settings(path, **fields))
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def test_a_loaded_model_is_frozen_ready_and_described(tiny_checkpoint: TinyCheckpoint) -> None:
    loaded = load_model(settings(tiny_checkpoint("mixtral")))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.tokenizer.padding_side == "left"
    assert loaded.tokenizer.chat_template
    assert loaded.description.layer_indices == (0, 1)
    assert (loaded.description.num_experts, loaded.description.top_k) == (8, 2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_weights_are_no_longer_mapped_from_the_files(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mapped-once"
    shutil.copytree(checkpoint, copy)
    loaded = load_model(ModelSection(id=str(copy)))
    gc.collect()
    assert str(copy) not in Path("/proc/self/maps").read_text()
    stored = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, stored.get_parameter(name)), name


def test_dtype_and_kernels_are_those_asked_for(tiny_checkpoint: TinyCheckpoint) -> None:
    model = load_model(
        settings(
            tiny_checkpoint("olmoe"),
            dtype="bfloat16",
            attn_implementation="eager",
            experts_implementation="eager",
        )
    ).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert model.config._experts_implementation == "eager"


@pytest.mark.parametrize("kernel", ["grouped_mm", "batched_mm", "eager"])
def test_every_experts_kernel_computes_the_same(
    tiny_checkpoint: TinyCheckpoint, kernel: str
) -> None:
    path = tiny_checkpoint("mixtral")
    ids = torch.tensor([[5, 70, 90, 12]])
    with torch.no_grad():
        logits = load_model(settings(path, experts_implementation=kernel)).model(ids).logits
        stock = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
    torch.testing.assert_close(logits, stock, rtol=1e-4, atol=1e-4)


def test_a_tokenizer_without_template_gets_a_plain_one_and_that_is_said(checkpoint: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    (checkpoint / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(checkpoint)
    said: list[str] = []
    loaded = load_tokenizer(settings(checkpoint), str(checkpoint), said.append)
    assert loaded.chat_template
    assert len(said) == 1 and "no chat template: a plain one is used" in said[0]


def test_a_tokenizer_without_pad_token_pads_with_the_end_of_turn(checkpoint: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(checkpoint)
    loaded = load_tokenizer(settings(checkpoint), str(checkpoint))
    assert loaded.pad_token_id == loaded.eos_token_id is not None


def test_a_tokenizer_without_pad_and_end_token_pads_with_what_the_model_ends_with(
    checkpoint: Path,
) -> None:
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(checkpoint)
    assert load_model(settings(checkpoint)).pad_token_id == end


# ---- where a model is looked for ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "~/nowhere", "a/b/c", "nowhere"])
def test_a_path_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="does not exist: give a local directory, a hub id"):
        model_source(settings(name))


def test_a_hub_id_is_left_to_the_hub_and_a_directory_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_source(settings("owner/name")) == "owner/name"
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert Path(model_source(settings("owner/name"))).is_dir()


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert model_source(settings("~/model")) == str(tmp_path / "model")


def test_a_repository_of_the_hub_that_holds_an_adapter_alone_is_refused_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models--somebody--adapter"
    snapshot = folder / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c" * 40)
    (snapshot / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"^somebody/adapter holds an adapter .*merge it"):
        describe_named(ModelSection(id="somebody/adapter"))


def test_a_hub_model_that_is_not_cached_is_refused_without_network() -> None:
    message = refusal("nobody/has-this-model")
    assert "nobody/has-this-model" in message


# ---- what keeps a model from loading ------------------------------------------------------------------


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(keep * len(content))])

    return damage


def change(**values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def lose_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (remove("config.json"), "config"),
        (cut("config.json", 0.5), "config"),
        (cut("config.json", 0), "config"),
        (change(model_type="no_such_model"), "no_such_model"),
        (remove("model.safetensors"), "model"),
        (cut("model.safetensors", 0), "not a safetensors file"),
        (cut("model.safetensors", 0.001), "not a safetensors file"),
        (cut("model.safetensors", 0.9), "cut short"),
        (lose_tensor, "q_proj"),
        (change(num_local_experts=4), "cannot be loaded"),
        (change(num_hidden_layers=3), "layers.2"),
        (change(vocab_size=500), "of other sizes than its config.json says"),
        (remove("tokenizer.json"), "tokenizer"),
        (cut("tokenizer.json", 0.5), "tokenizer"),
        (cut("tokenizer_config.json", 0.5), "tokenizer"),
    ],
    ids=[
        "no_config",
        "half_a_config",
        "empty_config",
        "unknown_type",
        "no_weights",
        "empty_weights",
        "a_thousandth_of_the_weights",
        "most_of_the_weights",
        "a_tensor_lost",
        "other_number_of_experts",
        "a_layer_more",
        "another_vocabulary",
        "no_tokenizer",
        "half_a_tokenizer",
        "half_a_tokenizer_config",
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    checkpoint: Path, damage: Callable[[Path], None], word: str
) -> None:
    damage(checkpoint)
    message = refusal(checkpoint)
    assert str(checkpoint) in message
    assert word in message


def test_weights_of_a_type_without_kernels_are_refused_and_may_be_read_as_another(
    checkpoint: Path,
) -> None:
    change(dtype="float64")(checkpoint)
    assert "of type float64" in refusal(checkpoint)
    assert load_model(settings(checkpoint, dtype="float32")).model.dtype is torch.float32


def test_a_checkpoint_without_tokenizer_is_refused_in_a_whole_sentence(checkpoint: Path) -> None:
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    message = refusal(checkpoint)
    assert "one of: (1)" in message and ":;" not in message
    assert message.endswith(
        "see that the checkpoint has its tokenizer.json and tokenizer_config.json"
    )


def test_an_empty_directory_is_no_model(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(tmp_path)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in refusal(tmp_path / "file")


def test_a_dense_model_is_refused_before_its_weights_load(checkpoint: Path) -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=1
    )
    shutil.rmtree(checkpoint)
    config.save_pretrained(checkpoint)  # no weights at all: the config alone must refuse
    with pytest.raises(ModelError, match="llama"):
        load_model(settings(checkpoint))
    with pytest.raises(ModelError, match="llama"):
        describe_model(settings(checkpoint), str(checkpoint))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"device": "toaster"}, "model.device = 'toaster'"),
        ({"device": "cuda:99"}, "model.device = 'cuda:99'"),
        ({"device_map": "nonsense"}, "nonsense"),
        ({"attn_implementation": "nonsense"}, "nonsense"),
        ({"experts_implementation": "nonsense"}, "nonsense"),
    ],
)
def test_a_setting_that_the_machine_or_the_model_lacks_is_refused(
    tiny_checkpoint: TinyCheckpoint, fields: dict[str, str], word: str
) -> None:
    assert word in refusal(tiny_checkpoint("mixtral"), **fields)


@pytest.mark.parametrize(
    ("places", "where"),
    [
        ({"model.layers.0": 0, "model.layers.1": "cpu"}, "1 of 2 parts"),
        ({"model.layers.0": 0, "model.layers.1": "disk", "lm_head": "cpu"}, "cpu and disk"),
        ({"model": "cpu", "lm_head": "disk"}, "1 of 2 parts"),
    ],
)
def test_a_model_that_does_not_fit_its_devices_is_refused_when_it_loads(
    places: dict[str, object], where: str
) -> None:
    with pytest.raises(ModelError, match=where):
        check_not_offloaded(places, "owner/name")


def test_a_model_on_one_kind_of_device_is_not_offloaded(tiny_checkpoint: TinyCheckpoint) -> None:
    check_not_offloaded({}, "owner/name")
    check_not_offloaded({"": "cpu"}, "owner/name")
    check_not_offloaded({"model.layers.0": 0, "model.layers.1": 1}, "owner/name")
    loaded = load_model(settings(tiny_checkpoint("mixtral"), device_map="auto"))
    assert not loaded.model.device.type.startswith("meta")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_spread_over_two_devices_computes_what_it_does_on_one(
    tiny_checkpoint: TinyCheckpoint,
) -> None:
    path, ids = tiny_checkpoint("mixtral"), torch.arange(8)[None]
    spread = load_model(settings(path, device_map="balanced")).model
    assert len(set(spread.hf_device_map.values())) == 2
    alone = load_model(settings(path, device="cuda:0")).model
    with torch.no_grad():
        found, expected = (model(ids.to(model.device)).logits.cpu() for model in (spread, alone))
    assert torch.equal(found, expected)
