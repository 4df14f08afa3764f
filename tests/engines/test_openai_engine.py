"""Text from a real server, routes from the local model: the same outputs as the local model makes alone."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import TinyCheckpoint, save_tiny_checkpoint
from model_server import ModelServer
from steermoe.engines.openai import Likelihood, OpenAIEngine, likelihood
from steermoe.engines.openai_texts import ServerTexts
from steermoe.engines.transformers import TransformersEngine
from steermoe.errors import ConfigError, EngineError
from steermoe.records import Message, Output, Sampling
from steermoe.stages.collect import collect
from steermoe.stages.opening import check_engine
from steermoe.store.directory import RunDirectory
from tiny import CommandLine, Listener, as_arguments, tiny_config

pytest.importorskip("openai")

CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": text}]
    for text in ("Hi", "Kill a process, please.", "Bake bread " * 12, "Ünïcödé \U0001f600 too", "?")
]
GREEDY = Sampling(max_tokens=12)


def engine_of(path: Path) -> TransformersEngine:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return TransformersEngine(model, AutoTokenizer.from_pretrained(path))


@pytest.fixture(scope="module")
def local(tiny_checkpoint: TinyCheckpoint) -> TransformersEngine:
    return engine_of(tiny_checkpoint("mixtral"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    """The same shape and tokenizer, other weights."""
    folder = tmp_path_factory.mktemp("stranger")
    save_tiny_checkpoint("mixtral", folder, seed=1)
    return engine_of(folder)


def remote(server: ModelServer, local: TransformersEngine, **arguments: Any) -> OpenAIEngine:
    given = {"timeout": 30, **arguments}
    texts = ServerTexts(server.address, given, local.tokenizer, local.stop_token_ids)
    texts.first_wait = 0.01
    return OpenAIEngine(texts, local, f"openai:{server.address}")


def assert_same(found: list[Output], expected: list[Output]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.prompt == other.prompt and one.messages == other.messages
        assert one.prompt_token_ids == other.prompt_token_ids
        assert one.generated_token_ids == other.generated_token_ids
        assert (one.generated_text, one.answer) == (other.generated_text, other.answer)
        assert one.routed_experts.dtype == other.routed_experts.dtype
        assert one.routed_experts.shape == other.routed_experts.shape
        assert (np.sort(one.routed_experts, -1) == np.sort(other.routed_experts, -1)).all()


# ---- the same outputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knows", "field", "requests"),
    [
        (("tokens", "completions", "extensions"), "prompt", 5),
        (("tokens", "completions"), "prompt", 6),
        (("completions",), "prompt", 7),
        (("extensions",), "messages", 8),
        ((), "messages", 9),
    ],
)
def test_every_kind_of_server_gives_what_the_local_model_gives(
    local: TransformersEngine, knows: tuple[str, ...], field: str, requests: int
) -> None:
    expected = local.generate(CONVERSATIONS, GREEDY)
    with ModelServer(local, knows) as server:
        found = remote(server, local, concurrency=1).generate(CONVERSATIONS, GREEDY)
    assert_same(found, expected)
    body = server.bodies[-1]
    assert field in body and body["model"] == "tiny"
    assert isinstance(body.get("prompt"), list) == ("tokens" in knows)
    # One request for each prompt, and one for each form that it did not know.
    assert len(server.bodies) == requests


def test_faults_that_pass_change_nothing(local: TransformersEngine) -> None:
    faults = ["429", "500", "drop", "slow", "html", "503", "reply", "reply", "reply"]

    def plan(number: int) -> str:
        return faults[hashlib.sha256(str(number).encode()).digest()[0] % len(faults)]

    conversations = CONVERSATIONS * 4
    expected = local.generate(conversations, GREEDY)
    with ModelServer(local, plan=plan) as server:
        found = remote(server, local, timeout=0.5, max_retries=20).generate(conversations, GREEDY)
    assert_same(found, expected)
    assert {"429", "500", "503", "drop", "slow", "html"} <= set(server.done), "all have happened"


def test_sampled_replies_of_one_prompt_differ_and_are_known_for_the_models(
    local: TransformersEngine, stranger: TransformersEngine
) -> None:
    sampling = Sampling(max_tokens=24, temperature=1.0, seed=5)
    with ModelServer(local) as server:
        outputs = remote(server, local).generate([CONVERSATIONS[0]] * 8, sampling)
        again = remote(server, local).generate([CONVERSATIONS[0]] * 8, sampling)
    assert len({output.generated_text for output in outputs}) > 4, "seeds of their own"
    assert [o.generated_text for o in again] == [o.generated_text for o in outputs]
    with (
        ModelServer(stranger) as server,
        pytest.raises(EngineError, match="does not run this model"),
    ):
        remote(server, local).generate([CONVERSATIONS[0]] * 8, sampling)


# ---- what is refused ----------------------------------------------------------------------------------


def test_another_model_is_refused(local: TransformersEngine, stranger: TransformersEngine) -> None:
    with (
        ModelServer(stranger) as server,
        pytest.raises(EngineError, match="does not run this model"),
    ):
        remote(server, local).generate(CONVERSATIONS, GREEDY)


@pytest.mark.parametrize("knows", [("extensions",), ()])
def test_a_server_with_another_template_is_refused(
    tiny_checkpoint: TinyCheckpoint, local: TransformersEngine, knows: tuple[str, ...]
) -> None:
    other = engine_of(tiny_checkpoint("mixtral"))
    other.tokenizer.chat_template = "Be brief.\n" + str(other.tokenizer.chat_template)
    expected = "another template" if knows else "does not run this model, template or tokenizer"
    with ModelServer(other, knows) as server, pytest.raises(EngineError, match=expected):
        remote(server, local).generate(CONVERSATIONS, GREEDY)
    # Given tokens, its template has no say.
    with ModelServer(other) as server:
        assert_same(
            remote(server, local).generate(CONVERSATIONS, GREEDY),
            local.generate(CONVERSATIONS, GREEDY),
        )


def test_a_server_that_never_answers_is_given_up(local: TransformersEngine) -> None:
    with (
        ModelServer(local, plan=lambda number: "500") as server,
        pytest.raises(EngineError, match=r"HTTP 500\), 3 times; finished groups are kept"),
    ):
        remote(server, local, max_retries=2).generate(CONVERSATIONS, GREEDY)


def test_a_model_is_named_where_a_server_has_several(local: TransformersEngine) -> None:
    with ModelServer(local, models=("one", "tiny")) as server:
        with pytest.raises(EngineError, match=r"2 models \(one, tiny\)"):
            remote(server, local).generate(CONVERSATIONS, GREEDY)
        found = remote(server, local, model="tiny").generate(CONVERSATIONS[:1], GREEDY)
    assert_same(found, local.generate(CONVERSATIONS[:1], GREEDY))


def test_what_a_server_is_asked_with_is_checked_before_anything_is_loaded(
    checkpoint: Path, small_prompts: Path, tmp_path: Path, local: TransformersEngine
) -> None:
    def check(address: str, **arguments: Any) -> None:
        settings = {"engine": f"openai:{address}", "engine_args": arguments}
        check_engine(tiny_config(checkpoint, tmp_path / "run", small_prompts, collect=settings))

    with ModelServer(local) as server:
        check(server.address)
        with pytest.raises(ConfigError, match=r"engine_args\.retries: .* a server takes model,"):
            check(server.address, retries=3)
    with pytest.raises(EngineError, match="does not say which models it has"):
        check("http://127.0.0.1:9/v1", max_retries=0)


# ---- likelihood, by hand ------------------------------------------------------------------------------


def test_likelihood_of_greedy_tokens_counts_those_far_below_the_likeliest() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.7, 0.0], [0.0, 0.0, 5.0]])
    assert likelihood(logits, [0, 1, 2], 0) == Likelihood(3, 0)
    assert likelihood(logits, [1, 2, 2], 0) == Likelihood(3, 2)
    assert Likelihood(3, 2).is_foreign and not Likelihood(3, 1).is_foreign
    assert not Likelihood(1000, 30).is_foreign and Likelihood(1000, 31).is_foreign


def test_likelihood_of_sampled_tokens_by_hand() -> None:
    # p = (3/4, 1/4) at temperature 1: log p has mean -.5623 and variance 3/16 * ln(3)^2 = .2263.
    logits = torch.log(torch.tensor([[3.0, 1.0]])).expand(16, 2)
    found = likelihood(logits, [1] * 16, 1.0)
    assert found.shortfall == pytest.approx(1.3863 - 0.5623, abs=1e-4)
    assert found.z == pytest.approx(-0.8240 * 16 / (16 * 0.2263) ** 0.5, abs=1e-3)
    assert found.is_foreign
    # As often as they should be, they are as likely as they should be.
    assert likelihood(logits, [0] * 12 + [1] * 4, 1.0).z == pytest.approx(0, abs=1e-5)
    # At temperature 2 the probabilities are as the square roots: .634 and .366.
    assert likelihood(logits[:1], [0], 2.0).shortfall == pytest.approx(
        0.6340 * -0.4558 + 0.3660 * -1.0052 + 0.4558, abs=1e-3
    )


# ---- whole collections --------------------------------------------------------------------------------


@pytest.fixture
def served(local: TransformersEngine) -> Iterator[ModelServer]:
    with ModelServer(local) as server:
        yield server


def assert_same_routes(local: RunDirectory, served: RunDirectory) -> None:
    """The same counts and routes; the sums of gates and outputs are recorded only where the model itself generates."""
    one, other = (load_file(run.file("routing.safetensors")) for run in (local, served))
    assert one.keys() - other.keys() == {"gate_mass", "contribution"}
    assert other.keys() <= one.keys()
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_collection_equals_the_local_one(
    checkpoint: Path, small_prompts: Path, tmp_path: Path, served: ModelServer
) -> None:
    runs = []
    for engine in ("transformers", f"openai:{served.address}"):
        config = tiny_config(
            checkpoint, tmp_path / engine[:4], small_prompts, collect={"engine": engine}
        )
        run = RunDirectory(config.run_dir)
        run.create()
        collect(run, config, Listener())
        runs.append(run)
    for name in ("responses.parquet", "prompts.jsonl"):
        assert runs[0].file(name).read_bytes() == runs[1].file(name).read_bytes()
    assert_same_routes(*runs)


def test_killed_and_started_again_it_asks_for_nothing_twice(
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    local: TransformersEngine,
    steermoe: CommandLine,
) -> None:
    through = tiny_config(checkpoint, tmp_path / "through", small_prompts)
    whole = RunDirectory(through.run_dir)
    whole.create()
    collect(whole, through, Listener())
    folder = tmp_path / "killed"
    with ModelServer(local, plan=lambda number: "slow" if number == 40 else "reply") as server:
        settings = {"collect": {"engine": f"openai:{server.address}", "generation_batch_size": 16}}
        settings["collect"] |= {"batch_size": 8, "max_new_tokens": 6}
        arguments = [
            *("collect", "--model", str(checkpoint), "--prompts", str(small_prompts)),
            *("--run", str(folder), "--quiet", *as_arguments(settings)),
        ]
        process = subprocess.Popen([sys.executable, "-m", "steermoe", *arguments])
        while server.done["slow"] == 0:
            assert process.poll() is None, "it must still run"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        shards = len(list((folder / "shards").iterdir()))
        asked = len(server.bodies)
        assert steermoe(*arguments) == 0, steermoe.err
    # Groups of 16, 8, 12, 12 and 12: the first three were done when the 41st request was under way.
    assert shards == 3
    prompts = [tuple(body["prompt"]) for body in server.bodies]
    assert not set(prompts[:36]) & set(prompts[asked:])
    assert len(set(prompts[asked:])) == 24
    assert (folder / "responses.parquet").read_bytes() == whole.file(
        "responses.parquet"
    ).read_bytes()
    assert_same_routes(whole, RunDirectory(folder))
