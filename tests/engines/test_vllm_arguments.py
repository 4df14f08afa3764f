"""What vLLM is started with, and what is refused before it is: none of it needs vLLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from steermoe.config import ModelSection
from steermoe.config.sections import CollectSection
from steermoe.engines.vllm_arguments import check_arguments, check_recording, vllm_arguments
from steermoe.errors import ConfigError
from steermoe.stages.opening import check_engine
from tiny import CommandLine, arguments_of, tiny_config


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if vLLM were there: whether it is found is all that is asked."""
    found = importlib.util.find_spec("json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)


def test_what_a_run_says_of_its_model_reaches_vllm_and_the_user_adds_to_it() -> None:
    settings = ModelSection(id="owner/name", revision="v2", trust_remote_code=True)
    arguments = vllm_arguments(settings, "owner/name", "bfloat16", {"tensor_parallel_size": 4})
    assert arguments == {
        "model": "owner/name",
        "revision": "v2",
        "trust_remote_code": True,
        "dtype": "bfloat16",
        "skip_tokenizer_init": True,
        "tensor_parallel_size": 4,
    }


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pipeline_parallel_size": 2}, "set tensor_parallel_size instead"),
        ({"data_parallel_size": 2}, "set tensor_parallel_size instead"),
        ({"dtype": "float16"}, "follows from model.dtype"),
        ({"model": "other"}, "follows from model.id"),
        ({"enable_return_routed_experts": False}, "follows from collect.engine"),
    ],
)
def test_what_cannot_be_had_is_refused_without_vllm(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_arguments(given)
    check_arguments({"pipeline_parallel_size": 1, "tensor_parallel_size": 8})


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ({"enable_prefix_caching": False}, {}, "prefix cache; leave it on"),
        ({}, {"VLLM_USE_V2_MODEL_RUNNER": "0"}, "Model Runner V2 only; unset it"),
    ],
)
def test_what_vllm_returns_no_routes_with_is_refused_on_a_gpu(
    arguments: dict[str, Any], environment: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_recording(arguments, environment, on_processor=False)
    # On a processor the routes are seen otherwise, and neither matters.
    assert check_recording(arguments, environment, on_processor=True) == {}


def test_a_gpu_returns_routes_and_a_processor_is_one_process() -> None:
    assert check_recording({"tensor_parallel_size": 4}, {}, on_processor=False) == {
        "enable_return_routed_experts": True
    }
    with pytest.raises(ConfigError, match="one process only"):
        check_recording({"tensor_parallel_size": 2}, {}, on_processor=True)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is there")
def test_a_missing_vllm_is_one_line_before_anything_is_loaded(
    checkpoint: Path, small_prompts: Path, tmp_path: Path, steermoe: CommandLine
) -> None:
    options = arguments_of(checkpoint, tmp_path / "run", small_prompts)
    said = steermoe.refusal("collect", *options, "--set", "collect.engine=vllm")
    assert said.startswith("collect.engine = 'vllm' needs vLLM: pip install 'steermoe[vllm]'")
    assert not (tmp_path / "run" / "prompts.jsonl").exists()


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("vllm:x", "vllm takes nothing after a colon"),
        ("ollama", "use transformers, vllm, openai:ADDRESS or package.module:callable"),
        ("openai:localhost:8000", "not an address such as"),
        ("openai:http://me:secret@host/v1", "collect.engine_args.key_variable names"),
    ],
)
def test_an_engine_that_is_none_is_refused(engine: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CollectSection(engine=engine)


def test_arguments_that_no_engine_takes_are_refused(tmp_path: Path) -> None:
    settings = {"engine_args": {"tensor_parallel_size": 2}}
    config = tiny_config(tmp_path, tmp_path / "run", tmp_path / "p.csv", collect=settings)
    with pytest.raises(ConfigError, match=r"collect\.engine is transformers"):
        check_engine(config)
