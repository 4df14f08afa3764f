"""A real vLLM against the transformers engine, in fp32: the same tokens and the same routes.

Run by `make test-vllm`. On a processor, vLLM's attention wants heads of 32.
"""

from __future__ import annotations

import os
import signal
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import (
    ARCHITECTURES,
    TURN_ENDS,
    byte_tokenizer,
    save_with_tokenizer,
    silence_all_but,
    tiny_model,
)
from steermoe import process_mixed_batches
from steermoe.errors import ConfigError, EngineError, RoutingError
from steermoe.records import Output, Sampling
from steermoe.stages import collect as stage
from steermoe.store.directory import RunDirectory
from steermoe.store.names import SHARDS
from tiny import CommandLine, Listener, as_arguments, tiny_config

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 2**28, "max_model_len": 512}
"""Arguments with which vLLM starts in seconds and takes little memory."""

NEAR_TIES = 3
"""Choices that rounding may decide otherwise in fp32."""


def save_for_vllm(architecture: str, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """A tiny checkpoint with heads of 32."""
    import torch

    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 2}
    shape |= ARCHITECTURES[architecture]
    shape |= {} if architecture == "olmoe" else {"head_dim": 32}
    shape |= {"moe_intermediate_size": 32} if architecture == "qwen3_moe" else {}
    model = tiny_model(architecture, tokenizer, **shape | settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    silence_all_but({*string.ascii_letters, " ", TURN_ENDS}, model, tokenizer)
    save_with_tokenizer(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("for-vllm")
    made = {name: save_for_vllm(name, folder / name) for name in ARCHITECTURES}
    # Its first layer is dense, and vLLM returns a row for it.
    made["dense first"] = save_for_vllm(
        "qwen3_moe", folder / "dense", num_hidden_layers=3, mlp_only_layers=[0]
    )
    return made


def collected(
    checkpoint: Path, folder: Path, prompts: Path, engine: str, **collect: Any
) -> tuple[RunDirectory, Listener]:
    arguments = SMALL if engine == "vllm" else {}
    settings = {"engine": engine, "engine_args": arguments, "max_new_tokens": 12, **collect}
    config = tiny_config(checkpoint, folder, prompts, collect=settings)
    run, listener = RunDirectory(config.run_dir), Listener()
    run.create()
    stage.collect(run, config, listener)
    return run, listener


def differing(found: Output, expected: Output) -> int:
    """Choices that differ; -1 where tokens do."""
    if found.generated_token_ids != expected.generated_token_ids:
        return -1
    assert found.routed_experts.dtype == expected.routed_experts.dtype
    assert found.routed_experts.shape == expected.routed_experts.shape
    differs = np.sort(found.routed_experts, -1) != np.sort(expected.routed_experts, -1)
    return int(differs.any(-1).sum())


@pytest.mark.parametrize("name", [*ARCHITECTURES, "dense first"])
def test_a_collection_has_the_tokens_and_routes_of_transformers(
    checkpoints: dict[str, Path], small_prompts: Path, tmp_path: Path, name: str
) -> None:
    runs = [
        collected(checkpoints[name], tmp_path / engine, small_prompts, engine)
        for engine in ("transformers", "vllm")
    ]
    (ours, _), (theirs, listener) = runs
    assert ours.file("prompts.jsonl").read_bytes() == theirs.file("prompts.jsonl").read_bytes()
    num_differing = 0
    for (row, expected), (other, found) in zip(
        ours.iter_outputs(), theirs.iter_outputs(), strict=True
    ):
        assert row["prompt_id"] == other["prompt_id"] and row["batch_idx"] == other["batch_idx"]
        assert found.layer_indices == ((1, 2) if name == "dense first" else (0, 1))
        between = differing(found, expected)
        assert between >= 0, "other tokens"
        num_differing += between
    assert num_differing <= NEAR_TIES
    assert "routes of vllm on 20 replies" in listener.text


def test_a_sampled_collection_goes_on_where_it_stopped(
    checkpoints: dict[str, Path],
    small_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampled = {"temperature": 1.0}
    checkpoint = checkpoints["mixtral"]
    through, _ = collected(checkpoint, tmp_path / "a", small_prompts, "vllm", **sampled)
    real, calls = stage.generate_group, []

    def stopping(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "generate_group", stopping)
        with pytest.raises(KeyboardInterrupt):
            collected(checkpoint, tmp_path / "b", small_prompts, "vllm", **sampled)
    assert len(list((tmp_path / "b" / SHARDS).iterdir())) == 2
    stopped, listener = collected(checkpoint, tmp_path / "b", small_prompts, "vllm", **sampled)
    assert "going on after 24 of 60 prompts" in listener.text
    for name in ("responses.parquet", "routing.safetensors"):
        assert through.file(name).read_bytes() == stopped.file(name).read_bytes()
    texts = through.read_replies()["generated_text"]
    assert texts.nunique() > 50, "replies are sampled apart"


def test_routes_that_are_not_the_local_models_are_refused_and_removed(
    checkpoints: dict[str, Path],
    small_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = save_for_vllm("olmoe", tmp_path / "other", seed=1)
    real = stage.load_model

    def load_other(settings: Any, source: str, **more: Any) -> Any:
        return real(settings, str(other), **more)

    monkeypatch.setattr(stage, "load_model", load_other)
    with pytest.raises(RoutingError, match="the routes of vllm are not this model's"):
        collected(checkpoints["olmoe"], tmp_path / "run", small_prompts, "vllm")
    assert not (tmp_path / "run" / SHARDS).exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"no_such_argument": 1}, "no_such_argument"),
        ({"max_model_len": 10**9}, "max_model_len"),
        ({"tensor_parallel_size": 2}, "routes are seen in one process only"),
    ],
)
def test_vllm_checks_its_arguments_and_the_refusal_is_one_line(
    checkpoints: dict[str, Path], small_prompts: Path, tmp_path: Path, given: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        collected(
            checkpoints["olmoe"], tmp_path, small_prompts, "vllm", engine_args={**SMALL, **given}
        )
    assert "\n" not in str(error.value)


def test_a_process_that_dies_is_said_with_its_last_words(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    from steermoe.engines.vllm_process import VLLMProcess

    arguments = {"model": str(checkpoints["olmoe"]), "dtype": "float32", **SMALL}
    process = VLLMProcess({**arguments, "skip_tokenizer_init": True})
    process._process.kill()
    with pytest.raises(EngineError, match=r"vLLM's process ended with -9: .*\.log\)"):
        process.replies([[1, 2]], Sampling(2), [257])
    process.close()


def test_it_ends_with_the_command_that_started_it(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    arguments = {"model": str(checkpoints["olmoe"]), "dtype": "float32", **SMALL}
    code = (
        "import os, signal\n"
        "from steermoe.engines.vllm_process import VLLMProcess\n"
        f"process = VLLMProcess({arguments | {'skip_tokenizer_init': True}!r})\n"
        "print(process._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    for _ in range(200):
        if not Path(f"/proc/{int(killed.stdout)}").exists():
            break
        time.sleep(0.05)
    else:
        pytest.fail("vLLM's process outlives the one that started it")


def test_a_whole_run_replies_with_vllm_on_both_sides(
    checkpoints: dict[str, Path], small_prompts: Path, tmp_path: Path, steermoe: CommandLine
) -> None:
    from tiny import SETTINGS, merged

    settings = merged(SETTINGS, {"collect": {"engine": "vllm"}, "model": {"dtype": "float32"}})
    arguments = as_arguments(settings)
    for key, value in SMALL.items():
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        arguments += ["--set", f"collect.engine_args.{key}={shown}"]
    code = steermoe(
        *("run", "--model", checkpoints["mixtral"], "--prompts", small_prompts),
        *("--run", tmp_path / "run", "--quiet", *arguments),
    )
    assert code == 0, steermoe.err
    replies = RunDirectory(tmp_path / "run").read_replies("hardened")
    assert len(replies) == 12 and (tmp_path / "run" / "report.html").exists()


# ---- the caller's own vllm.LLM --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm(checkpoints: dict[str, Path]) -> Iterator[Any]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    yield LLM(str(checkpoints["qwen3_moe"]), dtype="float32", **SMALL)
    del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]


def test_mixed_batches_of_a_vllm_are_those_of_transformers(
    llm: Any, checkpoints: dict[str, Path]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from vllm import SamplingParams

    path = checkpoints["qwen3_moe"]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    safe = [f"Bake a loaf {i}" for i in range(4)]
    unsafe = [f"Kill the neighbour {i}" for i in range(4)]
    sampling = SamplingParams(temperature=0, max_tokens=10)
    theirs = process_mixed_batches(llm, tokenizer, safe, unsafe, sampling, batch_size=4)
    ours = process_mixed_batches(model, tokenizer, safe, unsafe, sampling, batch_size=4)
    assert len(theirs) == len(ours) == 2
    for found, expected in zip(theirs, ours, strict=True):
        assert found.safe_indices == expected.safe_indices
        assert found.unsafe_indices == expected.unsafe_indices
        for one, other in zip(found.batch_outputs, expected.batch_outputs, strict=True):
            assert one.prompt == other.prompt and one.generated_text == other.generated_text
            assert 0 <= differing(one, other) <= NEAR_TIES
        for one, other in zip(found.safe_routings, expected.safe_routings, strict=True):
            assert one.shape == other.shape
    with pytest.warns(UserWarning, match=r"not used: top_p = 0\.5"):
        nucleus = SamplingParams(temperature=0, max_tokens=2, top_p=0.5)
        nucleus.top_p = 0.5  # vLLM itself resets it where the temperature is 0
        process_mixed_batches(llm, tokenizer, safe[:1], unsafe[:1], nucleus, batch_size=2)
