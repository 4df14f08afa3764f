"""The transformers engine against a plain loop: one prompt, no padding, no cache, one full pass a token.

Shape legend: P prompt tokens, G generated tokens, L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from architectures import ARCHITECTURES, Architecture
from conftest import TinyCheckpoint, counted_tokens
from steermoe.analysis.counts import count_response
from steermoe.chat import encode
from steermoe.engines.transformers import TransformersEngine
from steermoe.errors import ModelError, PromptError, RoutingError
from steermoe.moe.masking import masked_experts
from steermoe.records import Message, Output, Sampling

NEAR_TIE = 1e-4
"""Logits closer than this at the edge of the top-k may fall either way in fp32."""

TEXTS = [
    "Hi",
    "Kill a process, please, and tell me afterwards what became of its children.",
    "x",
    "Bake bread " * 12,
    "Why is the sky blue?",
    "Ünïcödé \U0001f600 too",
    "?",
]


def conversation(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


CONVERSATIONS = [conversation(text) for text in TEXTS]
GREEDY = Sampling(max_tokens=12)


def load(path: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module", params=["olmoe", "mixtral", "qwen3_moe"])
def engine(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint) -> TransformersEngine:
    return TransformersEngine(*load(tiny_checkpoint(request.param)))


@pytest.fixture
def mixtral(tiny_checkpoint: TinyCheckpoint) -> tuple[Any, Any]:
    return load(tiny_checkpoint("mixtral"))


# ---- the reference ------------------------------------------------------------------------------------


@contextmanager
def router_logits(model: Any) -> Iterator[list[torch.Tensor]]:
    """The logits `(tokens, E)` that each router computes from what it reads, one entry a layer and pass."""
    seen: list[torch.Tensor] = []

    def read(router: Any, arguments: tuple[Any, ...], _: Any) -> None:
        hidden = arguments[0].reshape(-1, router.weight.shape[-1])
        seen.append(hidden @ router.weight.T)

    hooks = [layer.mlp.gate.register_forward_hook(read) for layer in model.model.layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def full_pass(model: Any, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Next-token logits of the last position, and router logits `(tokens, L, E)`."""
    with router_logits(model) as seen:
        logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    return logits, torch.stack(seen, dim=1)


def reply_by_hand(model: Any, prompt: Sequence[int], stops: set[int], limit: int) -> list[int]:
    """Greedy decoding, one full pass a token."""
    ids = list(prompt)
    while len(ids) - len(prompt) < limit:
        ids.append(int(full_pass(model, ids)[0].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


def differing_rows(routes: np.ndarray, logits: torch.Tensor, top_k: int) -> tuple[int, int]:
    """How many (token, layer) rows differ from the reference's top-k, and how many are near-ties."""
    best = logits.sort(dim=-1, descending=True)
    near_tie = (best.values[..., top_k - 1] - best.values[..., top_k]) < NEAR_TIE
    expected = best.indices[..., :top_k].sort(dim=-1).values
    same = torch.from_numpy(np.sort(routes.astype(np.int64), axis=-1)).eq(expected).all(dim=-1)
    return int((~same & ~near_tie).sum()), int(near_tie.sum())


# ---- text and routes ----------------------------------------------------------------------------------


def test_a_padded_batch_replies_and_routes_as_one_prompt_at_a_time(
    engine: TransformersEngine,
) -> None:
    outputs = engine.generate(CONVERSATIONS, GREEDY)
    num_near_ties = num_rows = 0
    for messages, output in zip(CONVERSATIONS, outputs, strict=True):
        prompt = encode(engine.tokenizer, engine.render(messages))
        stops = set(engine.stop_token_ids)
        reply = reply_by_hand(engine.model, prompt, stops, GREEDY.max_tokens)
        assert output.prompt_token_ids == tuple(prompt)
        assert output.generated_token_ids == tuple(reply)
        assert output.generated_text == engine.tokenizer.decode(reply, skip_special_tokens=True)
        # A teacher-forced pass over the prompt and all of the reply but its last token, which is never fed.
        _, logits = full_pass(engine.model, [*prompt, *reply[:-1]])
        assert output.routed_experts.shape == (len(prompt) + len(reply) - 1, 2, 2)
        wrong, ties = differing_rows(output.routed_experts, logits, engine.top_k)
        assert wrong == 0
        num_near_ties += ties
        num_rows += logits.shape[0] * logits.shape[1]
    assert num_near_ties < num_rows / 50


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_batch_size_changes_neither_text_nor_routes(
    engine: TransformersEngine, batch_size: int
) -> None:
    together = engine.generate(CONVERSATIONS, GREEDY)
    apart: list[Output] = []
    for start in range(0, len(CONVERSATIONS), batch_size):
        apart += engine.generate(CONVERSATIONS[start : start + batch_size], GREEDY)
    num_differing = 0
    for one, other in zip(together, apart, strict=True):
        assert one.generated_token_ids == other.generated_token_ids
        differs = np.sort(one.routed_experts, -1) != np.sort(other.routed_experts, -1)
        num_differing += int(differs.any(axis=-1).sum())
    assert num_differing <= 2, "more than near-ties can explain"


def letters_tokenizer(vocabulary: int) -> Any:
    """A letter or a space is a token; for models of few tokens. Chats are their turns, one after the other."""
    core = Tokenizer(WordLevel({chr(ord("A") + i): i for i in range(vocabulary)}, unk_token="A"))
    core.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="A", eos_token="B")
    tokenizer.chat_template = "C{% for message in messages %}D{{ message['content'] }}{% endfor %}E"
    return tokenizer


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda entry: entry.name)
def test_every_architecture_gives_a_batch_what_it_gives_each_prompt(
    architecture: Architecture,
) -> None:
    model = architecture.build()
    engine = TransformersEngine(
        model, letters_tokenizer(model.get_input_embeddings().weight.shape[0])
    )
    texts = ["F", "GHIJKLMNOP" * 2, "KLM", "SRQPONM", "PQR", "GHIJKLMNOPQ"]
    together = engine.generate([conversation(text) for text in texts], Sampling(max_tokens=4))
    for text, one in zip(texts, together, strict=True):
        (alone,) = engine.generate([conversation(text)], Sampling(max_tokens=4))
        assert one.generated_token_ids == alone.generated_token_ids
        expected = np.sort(alone.routed_experts, axis=-1)
        assert (np.sort(one.routed_experts, axis=-1) == expected).all()


def test_experts_compute_what_prompts_begin_with_once_and_no_padding(
    engine: TransformersEngine,
) -> None:
    with counted_tokens(engine.model) as counted:
        outputs = engine.generate(CONVERSATIONS[:3], Sampling(max_tokens=2))
    prompts = [output.prompt_token_ids for output in outputs]
    # The mark of a turn, "user" and a line break.
    assert len({ids[:6] for ids in prompts}) == 1 and len({ids[6] for ids in prompts}) == 3
    distinct = sum(map(len, prompts)) - 2 * 6
    assert counted == [distinct, distinct, 3, 3]


def test_a_router_is_never_asked_about_a_pad_where_a_token_is_expected(
    engine: TransformersEngine,
) -> None:
    # The longest prompt has no padding, the shortest much: alone, each gives the rows it gives together.
    alone = engine.generate([CONVERSATIONS[2]], GREEDY)[0]
    beside_long = engine.generate([CONVERSATIONS[2], CONVERSATIONS[3]], GREEDY)[0]
    assert len(beside_long.prompt_token_ids) < len(CONVERSATIONS[3][0]["content"])
    assert len(alone.routed_experts) == len(beside_long.routed_experts)
    assert (np.sort(alone.routed_experts, -1) == np.sort(beside_long.routed_experts, -1)).all()


def test_a_single_token_reply_has_no_row_of_its_own(engine: TransformersEngine) -> None:
    for output in engine.generate(CONVERSATIONS, Sampling(max_tokens=1)):
        assert len(output.generated_token_ids) == 1
        assert len(output.routed_experts) == len(output.prompt_token_ids)


def test_an_output_can_be_read_by_key_and_names_its_layers(engine: TransformersEngine) -> None:
    output = engine.generate(CONVERSATIONS[:1], GREEDY)[0]
    assert output["generated_text"] == output.generated_text
    assert output["messages"] == tuple(CONVERSATIONS[0])
    assert output.layer_indices == engine.layer_indices == (0, 1)
    assert engine.num_experts == 8 and engine.top_k == 2
    assert np.issubdtype(output.routed_experts.dtype, np.integer)


def test_no_conversation_gives_no_output(engine: TransformersEngine) -> None:
    assert engine.generate([], GREEDY) == []


def test_text_alone_is_the_same_text(engine: TransformersEngine) -> None:
    bare = TransformersEngine(engine.model, engine.tokenizer, engine.description, record=False)
    recorded = engine.generate(CONVERSATIONS, GREEDY)
    for with_routes, without in zip(recorded, bare.generate(CONVERSATIONS, GREEDY), strict=True):
        assert with_routes.generated_token_ids == without.generated_token_ids
        assert len(without.routed_experts) == 0


def test_a_masked_reply_counts_its_spare_slots_for_no_expert(engine: TransformersEngine) -> None:
    allowed = np.zeros((2, 8), dtype=bool)
    allowed[0, 3] = True  # one expert for two slots; the other layer is not masked
    with masked_experts(engine.model, allowed):
        outputs = engine.generate(CONVERSATIONS, GREEDY)
    for output in outputs:
        first, second = output.routed_experts[:, 0], output.routed_experts[:, 1]
        assert np.sort(first, axis=-1).tolist() == [[-1, 3]] * len(first)
        assert second.min() >= 0
        counts, num_tokens = count_response(
            output.routed_experts, len(output.prompt_token_ids), engine.num_experts
        )
        assert counts[:, 0].sum(axis=-1).tolist() == counts[:, 0, 3].tolist() == num_tokens.tolist()
        assert counts[:, 1].sum(axis=-1).tolist() == (2 * num_tokens).tolist()


# ---- where a reply ends -------------------------------------------------------------------------------


def test_a_reply_ends_with_its_end_of_turn_and_nothing_after_it_counts(
    mixtral: tuple[Any, Any],
) -> None:
    model, tokenizer = mixtral
    free = TransformersEngine(model, tokenizer).generate(CONVERSATIONS, GREEDY)
    # Whatever the first prompt says fourth becomes an end of turn; the others go on without it.
    stop = free[0].generated_token_ids[3]
    model.generation_config.eos_token_id = [model.generation_config.eos_token_id, stop]
    engine = TransformersEngine(model, tokenizer)
    assert stop in engine.stop_token_ids
    lengths = []
    for before, after in zip(free, engine.generate(CONVERSATIONS, GREEDY), strict=True):
        expected = list(before.generated_token_ids)
        if stop in expected:
            expected = expected[: expected.index(stop) + 1]
        assert list(after.generated_token_ids) == expected
        rows = len(after.prompt_token_ids) + len(expected) - 1
        assert len(after.routed_experts) == rows
        assert (after.routed_experts == before.routed_experts[:rows]).all()
        lengths.append(len(expected))
    assert lengths[0] <= 4 and len(set(lengths)) > 1, "rows must end at different places"


def test_a_stop_token_of_config_tokenizer_or_generation_config_ends_a_turn(
    mixtral: tuple[Any, Any],
) -> None:
    model, tokenizer = mixtral
    model.generation_config.eos_token_id = [7, 8]
    model.config.eos_token_id = 9
    assert TransformersEngine(model, tokenizer).stop_token_ids == [7, 8, 9, tokenizer.eos_token_id]


def test_a_model_without_end_of_turn_is_refused(mixtral: tuple[Any, Any]) -> None:
    model, tokenizer = mixtral
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    tokenizer.eos_token = None
    with pytest.raises(PromptError, match="end-of-turn"):
        TransformersEngine(model, tokenizer)


def test_a_tokenizer_without_pad_token_pads_with_an_end_of_turn(mixtral: tuple[Any, Any]) -> None:
    model, tokenizer = mixtral
    with_pad = TransformersEngine(model, tokenizer).generate(CONVERSATIONS, GREEDY)
    tokenizer.pad_token = None
    model.generation_config.pad_token_id = None
    engine = TransformersEngine(model, tokenizer)
    assert engine.pad_token_id == engine.stop_token_ids[0]
    for one, other in zip(with_pad, engine.generate(CONVERSATIONS, GREEDY), strict=True):
        assert one.generated_token_ids == other.generated_token_ids
        assert (one.routed_experts == other.routed_experts).all()


# ---- sampling -----------------------------------------------------------------------------------------


def test_sampling_repeats_with_its_seed_and_leaves_other_randomness_alone(
    mixtral: tuple[Any, Any],
) -> None:
    engine = TransformersEngine(*mixtral)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (
        [o.generated_token_ids for o in engine.generate(CONVERSATIONS, Sampling(12, 1.0, seed))]
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), before)


def test_a_low_temperature_comes_near_greedy(mixtral: tuple[Any, Any]) -> None:
    engine = TransformersEngine(*mixtral)
    cold = engine.generate(CONVERSATIONS, Sampling(12, 1e-4, 0))
    for one, other in zip(engine.generate(CONVERSATIONS, GREEDY), cold, strict=True):
        assert one.generated_token_ids == other.generated_token_ids


def test_sampling_follows_the_softmax_at_its_temperature(mixtral: tuple[Any, Any]) -> None:
    model, tokenizer = mixtral
    engine = TransformersEngine(model, tokenizer, record=False)
    messages = CONVERSATIONS[0]
    logits, _ = full_pass(model, encode(tokenizer, engine.render(messages)))
    expected = torch.softmax(logits / 2.5, dim=-1).numpy()
    outputs = engine.generate([messages] * 1500, Sampling(1, 2.5, 0))
    drawn = np.bincount([o.generated_token_ids[0] for o in outputs], minlength=len(expected))
    # Total variation of 1500 draws over some 260 tokens; sampling at 1.0, or of the top 50 alone, is far off.
    assert np.abs(drawn / 1500 - expected).sum() / 2 < 0.2
    colder = torch.softmax(logits, dim=-1).numpy()
    assert np.abs(drawn / 1500 - colder).sum() / 2 > 0.3


@pytest.mark.parametrize(
    "own",
    [
        {"temperature": 0.1, "top_k": 1, "top_p": 0.1, "do_sample": True},
        {"repetition_penalty": 9.0},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 11},
        {"suppress_tokens": list(range(0, 200))},
        {"min_p": 0.9, "do_sample": True},
        {"num_beams": 3},
    ],
    ids=lambda own: "-".join(own),
)
def test_what_a_checkpoint_would_rather_generate_with_changes_nothing(
    mixtral: tuple[Any, Any], own: dict[str, Any]
) -> None:
    model, tokenizer = mixtral
    plain = TransformersEngine(model, tokenizer)
    greedy = [o.generated_token_ids for o in plain.generate(CONVERSATIONS, GREEDY)]
    sampled = [o.generated_token_ids for o in plain.generate(CONVERSATIONS, Sampling(12, 1.3, 1))]
    opinionated = copy.deepcopy(model)
    for name, value in own.items():
        setattr(opinionated.generation_config, name, value)
    engine = TransformersEngine(opinionated, tokenizer)
    assert [o.generated_token_ids for o in engine.generate(CONVERSATIONS, GREEDY)] == greedy
    again = engine.generate(CONVERSATIONS, Sampling(12, 1.3, 1))
    assert [o.generated_token_ids for o in again] == sampled


# ---- prompts that do not fit --------------------------------------------------------------------------


def test_a_prompt_that_leaves_no_room_for_its_reply_is_refused_with_numbers(
    mixtral: tuple[Any, Any],
) -> None:
    model, tokenizer = mixtral
    model.config.max_position_embeddings = 60
    engine = TransformersEngine(model, tokenizer)
    num_tokens = len(encode(tokenizer, engine.render(conversation("a" * 20))))
    fits = 60 - num_tokens
    (output,) = engine.generate([conversation("a" * 20)], Sampling(max_tokens=fits))
    assert len(output.generated_token_ids) <= fits
    with pytest.raises(PromptError, match=rf"has {num_tokens} tokens.*context of 60") as caught:
        engine.generate([CONVERSATIONS[0], conversation("a" * 20)], Sampling(max_tokens=fits + 1))
    assert "\n" not in str(caught.value)


def test_generation_that_is_not_one_pass_a_token_is_refused(mixtral: tuple[Any, Any]) -> None:
    model, tokenizer = mixtral
    engine = TransformersEngine(model, tokenizer)
    generate = model.generate

    def pass_twice(**arguments: Any) -> Any:
        model(arguments["input_ids"])
        return generate(**arguments)

    model.generate = pass_twice
    with pytest.raises(RoutingError, match="one pass a token"):
        engine.generate(CONVERSATIONS[:2], GREEDY)


def test_a_model_left_in_training_mode_replies_as_in_evaluation(
    tiny_checkpoint: TinyCheckpoint,
) -> None:
    path = tiny_checkpoint("mixtral")
    quiet = TransformersEngine(*load(path)).generate(CONVERSATIONS, GREEDY)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attention_dropout=0.5, router_jitter_noise=0.5
    ).train()
    engine = TransformersEngine(model, AutoTokenizer.from_pretrained(path))
    for one, other in zip(quiet, engine.generate(CONVERSATIONS, GREEDY), strict=True):
        assert one.generated_token_ids == other.generated_token_ids
        assert (one.routed_experts == other.routed_experts).all()
    assert model.training, "the caller's model is left as it was"


def test_what_the_models_own_code_cannot_do_is_one_line(
    mixtral: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window of attention that is no window is such a thing: masks and keys then differ in length."""
    model, tokenizer = mixtral
    monkeypatch.setattr(model.config, "sliding_window", 0)
    with pytest.raises(ModelError, match=r"^the model cannot generate: [^\n]+config\.json"):
        TransformersEngine(model, tokenizer).generate([conversation("Hi")], Sampling(max_tokens=4))
