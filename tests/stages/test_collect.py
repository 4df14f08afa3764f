"""Collect: the Python interface on an engine worked by hand, and the stage on tiny checkpoints."""

from __future__ import annotations

import json
import types
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import TinyCheckpoint
from steermoe.api import process_mixed_batches
from steermoe.config import Config
from steermoe.engines.transformers import TransformersEngine
from steermoe.errors import ConfigError, PromptError, SteerMoEError
from steermoe.loading import load_model
from steermoe.records import Label, Message, Output, Prompt, Sampling, Split
from steermoe.stages import collect as stage
from steermoe.stages.collect import collect, plan_groups, prepare_prompts
from steermoe.store.directory import RunDirectory
from steermoe.store.names import RESPONSES, SHARDS
from steermoe.store.run import load_run
from tiny import Listener, files_of, tiny_config, write_prompts

# ---- process_mixed_batches ----------------------------------------------------------------------------


class EngineByHand:
    """Replies "reply to X" in three tokens; every token of a prompt is routed by the prompt's length."""

    layer_indices = (2, 5)
    num_experts = 4
    top_k = 1

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.samplings: list[Sampling] = []

    def generate(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling
    ) -> list[Output]:
        self.calls.append([messages[-1]["content"] for messages in conversations])
        self.samplings.append(sampling)
        return [self._output(tuple(messages)) for messages in conversations]

    def _output(self, messages: tuple[Message, ...]) -> Output:
        text = messages[-1]["content"]
        num_prompt = len(text)
        routed = np.zeros((num_prompt + 2, 2, 1), np.uint8)
        routed[num_prompt:, 0] = num_prompt % 4
        routed[num_prompt:, 1] = 3
        return Output(
            f"<{text}>", messages, f"reply to {text}", (0,) * num_prompt, (7, 8, 9), routed, (2, 5)
        )


SAFE = ["a", "bb", "ccc"]
UNSAFE = ["dddd", "eeeee", "ffffff"]


def quietly(*args: Any, **kwargs: Any) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return process_mixed_batches(*args, **kwargs)


def test_a_batch_can_be_read_by_attribute_and_by_key() -> None:
    engine = EngineByHand()
    (batch,) = process_mixed_batches(engine, None, SAFE, UNSAFE, {"max_tokens": 3}, batch_size=6)
    assert batch.batch_idx == batch["batch_idx"] == 0
    assert len(batch["batch_outputs"]) == 6
    texts = [output["messages"][-1]["content"] for output in batch.batch_outputs]
    assert sorted(texts[i] for i in batch.safe_indices) == SAFE
    assert sorted(texts[i] for i in batch["unsafe_indices"]) == UNSAFE
    assert sorted([*batch.safe_indices, *batch.unsafe_indices]) == list(range(6))
    for indices, routings in (
        (batch.safe_indices, batch["safe_routings"]),
        (batch.unsafe_indices, batch.unsafe_routings),
    ):
        for position, routing in zip(indices, routings, strict=True):
            # Two rows for three generated tokens, and none of the prompt.
            expert = len(texts[position]) % 4
            assert routing.tolist() == [[[expert], [3]]] * 2
    assert batch.layer_indices == (2, 5)
    output = batch.batch_outputs[0]
    assert output.prompt == f"<{texts[0]}>" and output["generated_text"] == f"reply to {texts[0]}"
    with pytest.raises(KeyError):
        batch["nothing"]


@pytest.mark.parametrize(
    ("size", "ratio", "num_safe"),
    [(16, 0.5, 8), (8, 0.3, 2), (32, 0.7, 22), (5, 0.5, 3), (2, 0.9, 1)],
)
def test_sizes_and_ratios(size: int, ratio: float, num_safe: int) -> None:
    prompts = [f"prompt {i}" for i in range(40)]
    batches = quietly(EngineByHand(), None, prompts, prompts, {}, size, ratio)
    assert batches
    for index, batch in enumerate(batches):
        assert batch.batch_idx == index
        assert (len(batch.safe_indices), len(batch.unsafe_indices)) == (num_safe, size - num_safe)


def test_prompts_that_fill_no_batch_are_counted_aloud() -> None:
    engine = EngineByHand()
    with pytest.warns(UserWarning) as warned:
        batches = process_mixed_batches(engine, None, SAFE, UNSAFE[:2], {}, batch_size=4)
    assert len(batches) == 1
    assert [str(warning.message) for warning in warned] == [
        "1 prompts fill no batch (1 safe, 0 unsafe) and are left out: they are not collected"
    ]
    assert sum(map(len, engine.calls)) == 4


def test_records_of_every_split_are_collected() -> None:
    splits = [Split.TRAIN, Split.DEV, Split.TEST, None]
    safe, unsafe = (
        [
            Prompt(
                f"{label}{i}", label, ({"role": "user", "content": f"{label} {i}"},), "", split=s
            )
            for i, s in enumerate(splits)
        ]
        for label in (Label.SAFE, Label.UNSAFE)
    )
    engine = EngineByHand()
    process_mixed_batches(engine, None, safe, unsafe, {}, batch_size=4)
    asked = sorted(text for call in engine.calls for text in call)
    assert asked == sorted(p.messages[-1]["content"] for p in [*safe, *unsafe])
    test_split = (
        [p for p in safe if p.split is Split.TEST],
        [p for p in unsafe if p.split is Split.TEST],
    )
    assert len(process_mixed_batches(EngineByHand(), None, *test_split, {}, batch_size=2)) == 1


def test_too_few_prompts_are_refused_with_numbers() -> None:
    with pytest.raises(PromptError, match=r"needs 8 safe and 8 unsafe.*3 safe and 3 unsafe"):
        process_mixed_batches(EngineByHand(), None, SAFE, UNSAFE, {})


@pytest.mark.parametrize(("size", "ratio"), [(1, 0.5), (4, 0.0), (4, 1.5), (4, 1.0)])
def test_a_batch_that_cannot_be_mixed_is_refused(size: int, ratio: float) -> None:
    with pytest.raises(ConfigError):
        process_mixed_batches(EngineByHand(), None, SAFE, UNSAFE, {}, size, ratio)


class Slotted:
    __slots__ = ("max_tokens", "seed", "temperature")

    def __init__(self) -> None:
        self.max_tokens, self.temperature, self.seed = 9, 0.5, 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_tokens": 9, "temperature": 0.5, "seed": 4}, (9, 0.5, 4)),
        (types.SimpleNamespace(max_tokens=9, temperature=0.5, seed=4), (9, 0.5, 4)),
        (Slotted(), (9, 0.5, 4)),
        (Sampling(9, 0.5, 4), (9, 0.5, 4)),
        ({"max_tokens": 9}, (9, 0.0, 0)),
        (types.SimpleNamespace(max_tokens=9, seed=None, top_p=1.0), (9, 0.0, 0)),
        ({}, (64, 0.0, 0)),
    ],
)
def test_any_object_or_mapping_may_say_how_to_sample(
    given: Any, expected: tuple[int, float, int]
) -> None:
    engine = EngineByHand()
    process_mixed_batches(engine, None, SAFE, UNSAFE, given, batch_size=6)
    (sampling,) = engine.samplings
    assert (sampling.max_tokens, sampling.temperature) == expected[:2]
    again = EngineByHand()
    process_mixed_batches(again, None, SAFE, UNSAFE, given, batch_size=6)
    assert again.samplings == engine.samplings


def test_what_is_asked_of_sampling_and_not_done_is_said() -> None:
    given = types.SimpleNamespace(max_tokens=9, top_p=0.9, stop=["\n"], repetition_penalty=1.0)
    with pytest.warns(UserWarning, match=r"not used: top_p = 0\.9, stop = \['\\n'\]$"):
        process_mixed_batches(EngineByHand(), None, SAFE, UNSAFE, given, batch_size=6)


def test_batches_have_seeds_of_their_own() -> None:
    engine = EngineByHand()
    process_mixed_batches(engine, None, SAFE, UNSAFE, {"seed": 1}, batch_size=2)
    other = EngineByHand()
    process_mixed_batches(other, None, SAFE, UNSAFE, {"seed": 2}, batch_size=2)
    seeds = [sampling.seed for sampling in [*engine.samplings, *other.samplings]]
    assert len(set(seeds)) == 6


@pytest.mark.parametrize("given", [{"max_tokens": 0}, {"temperature": -1}])
def test_a_sampling_that_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SteerMoEError, match=next(iter(given))):
        process_mixed_batches(EngineByHand(), None, SAFE, UNSAFE, given, batch_size=6)


def test_a_prompt_may_be_text_messages_or_a_record() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    record = Prompt("mine", Label.UNSAFE, ({"role": "user", "content": "R"},), "goal")
    (batch,) = process_mixed_batches(
        EngineByHand(), None, ["T", messages], [record, "X"], {}, batch_size=4
    )
    said = [[dict(m) for m in output.messages] for output in batch.batch_outputs]
    assert messages in said
    assert [{"role": "user", "content": "R"}] in said
    assert [{"role": "user", "content": "T"}] in said


@pytest.mark.parametrize("bad", ["", "  ", [], [{"role": "user"}], [{"content": "x"}], 3, None])
def test_a_malformed_prompt_is_refused_with_its_place(bad: Any) -> None:
    with pytest.raises(PromptError, match="safe prompt 1"):
        process_mixed_batches(EngineByHand(), None, ["fine", bad], UNSAFE, {}, batch_size=2)


def test_a_transformers_model_may_take_the_engines_place(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    config = tiny_config(tiny_checkpoint("mixtral"), tmp_path, tmp_path)
    loaded = load_model(config.model)
    engine = TransformersEngine(loaded.model, loaded.tokenizer)
    given = (loaded.tokenizer, SAFE, UNSAFE, {"max_tokens": 5}, 6)
    (by_model,) = process_mixed_batches(loaded.model, *given)
    (by_engine,) = process_mixed_batches(engine, *given)
    for one, other in zip(by_model.batch_outputs, by_engine.batch_outputs, strict=True):
        assert one.generated_token_ids == other.generated_token_ids
        assert (one.routed_experts == other.routed_experts).all()
    assert by_model.safe_routings[0].shape[1:] == (2, 2)


# ---- the stage ----------------------------------------------------------------------------------------


def collected(config: Config) -> tuple[RunDirectory, Listener]:
    run, listener = RunDirectory(config.run_dir), Listener()
    run.create()
    collect(run, config, listener)
    return run, listener


def test_every_prompt_is_collected_once_with_its_place(finished: Path) -> None:
    run = load_run(finished)
    responses = run.responses
    prompts = {prompt.prompt_id: prompt for prompt in run.prompts}
    assert sorted(responses["prompt_id"]) == sorted(prompts)
    for row in responses.to_dict("records"):
        prompt = prompts[row["prompt_id"]]
        assert row["label"] == prompt.label and row["split"] == prompt.split
        assert [dict(m) for m in row["messages"]] == [dict(m) for m in prompt.messages]
        in_batch = row["batch_idx"] >= 0
        assert in_batch == (prompt.split == "train" and prompt.label != "benign")
        assert (row["in_batch_idx"] >= 0) == in_batch
    batches = responses[responses["batch_idx"] >= 0]
    for batch_idx, rows in batches.groupby("batch_idx"):
        assert batch_idx in (0, 1, 2)
        assert Counter(rows["label"]) == {"safe": 4, "unsafe": 4}
        assert sorted(rows["in_batch_idx"]) == list(range(8))
    assert len(batches) == 24


def test_pairs_share_a_batch(finished: Path) -> None:
    run = load_run(finished)
    batch_of = dict(zip(run.responses["prompt_id"], run.responses["batch_idx"], strict=True))
    places: dict[str, set[int]] = {}
    for prompt in run.prompts:
        if prompt.pair_id and prompt.split == "train":
            places.setdefault(prompt.pair_id, set()).add(int(batch_of[prompt.prompt_id]))
    assert len(places) == 12 and all(len(found) == 1 for found in places.values())


def test_counts_agree_with_tokens_and_replies(finished: Path) -> None:
    run = load_run(finished)
    num_tokens = run.counts.num_tokens
    responses = run.responses
    metadata = run.directory.routing_metadata()
    shared = sum(json.loads(metadata["shared_prompt_tokens"]))
    # "<|im_start|>user\n" before what is asked, "<|im_end|>\n<|im_start|>assistant\n" after it, a token a letter.
    assert shared == (1 + 5) + (1 + 1 + 1 + 10)
    assert (num_tokens[:, 0] == responses["num_prompt_tokens"] - shared).all()
    assert (num_tokens[:, 1] == responses["num_generated_tokens"] - 1).all()
    assert responses["num_generated_tokens"].between(1, 6).all()
    # Top-2 of 8 experts: each layer's counts sum to twice the tokens.
    assert (run.counts.active.sum(axis=-1) == 2 * num_tokens[..., None]).all()
    assert json.loads(metadata["layer_indices"]) == [0, 1] and metadata["top_k"] == "2"


def test_a_run_gives_back_what_the_python_interface_returned(
    finished: Path, checkpoint: Path, small_prompts: Path
) -> None:
    run = load_run(finished)
    train = [p for p in run.prompts if p.split == "train"]
    loaded = load_model(run.config.model)
    direct = process_mixed_batches(
        loaded.model,
        loaded.tokenizer,
        [p for p in train if p.label == "safe"],
        [p for p in train if p.label == "unsafe"],
        {"max_tokens": 6},
        batch_size=8,
    )
    assert len(direct) == len(run.batches) == 3
    for stored, made in zip(run.batches, direct, strict=True):
        assert stored.batch_idx == made.batch_idx
        assert stored.safe_indices == made.safe_indices
        assert stored.unsafe_indices == made.unsafe_indices
        for one, other in zip(stored.batch_outputs, made.batch_outputs, strict=True):
            assert one.prompt == other.prompt and one.generated_text == other.generated_text
            assert one.prompt_token_ids == other.prompt_token_ids
            assert one.generated_token_ids == other.generated_token_ids
            assert (np.sort(one.routed_experts, -1) == np.sort(other.routed_experts, -1)).all()
        for one, other in zip(stored.unsafe_routings, made.unsafe_routings, strict=True):
            assert (np.sort(one, -1) == np.sort(other, -1)).all()


@pytest.mark.parametrize("size", [1, 24, 100])
def test_how_many_are_generated_together_changes_no_reply(
    finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path, size: int
) -> None:
    config = tiny_config(
        checkpoint, tmp_path / "run", small_prompts, collect={"generation_batch_size": size}
    )
    run, _ = collected(config)
    before = load_run(finished).responses.set_index("prompt_id")
    after = run.read_replies().set_index("prompt_id")
    assert before["generated_text"].to_dict() == after["generated_text"].to_dict()
    assert before["batch_idx"].to_dict() == after["batch_idx"].to_dict()


def test_prompts_beyond_whole_batches_are_collected_in_none_and_counted(
    checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        checkpoint, tmp_path / "run", small_prompts, collect={"batch_size": 10, "num_batches": 1}
    )
    run, listener = collected(config)
    responses = run.read_replies()
    train = responses[(responses["split"] == "train") & (responses["label"] != "benign")]
    assert Counter(train["batch_idx"]) == {0: 10, -1: 14}
    assert "14 training prompts fill no batch (7 safe, 7 unsafe)" in listener.text


def test_prompts_above_the_limits_are_left_out_aloud(small_prompts: Path) -> None:
    listener = Listener()
    given = Config.model_validate(
        {"prompts": {"sources": [str(small_prompts)], "limits": {"dev": 0, "train": {"benign": 1}}}}
    )
    whole = prepare_prompts(
        given.model_copy(update={"prompts": given.prompts.model_copy(update={"limits": {}})}),
        Listener(),
    )
    taken = prepare_prompts(given, listener)
    kept = [p for p in whole if p.split is not Split.DEV]
    benign = [p for p in kept if p.split is Split.TRAIN and p.label is Label.BENIGN]
    assert len(benign) > 1
    assert len(taken) == len(kept) - len(benign) + 1
    assert {p.split for p in taken} == {Split.TRAIN, Split.TEST}
    assert [line.split(" leaves")[0] for line in listener.said[-2:]] == ["note: prompts.limits"] * 2


def test_no_group_mixes_splits_and_whole_batches_come_first(
    checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_config(checkpoint, tmp_path, small_prompts)
    groups = plan_groups(prepare_prompts(config, Listener()), config)
    assert [one.batch_idx for one in groups[0]] == [0] * 8 + [1] * 8
    assert [one.batch_idx for one in groups[1]] == [2] * 8
    for group in groups:
        assert len({one.prompt.split for one in group}) == 1
        assert len(group) <= 16
    assert [group[0].prompt.split for group in groups[2:]] == [Split.TRAIN, Split.DEV, Split.TEST]


def test_a_system_prompt_is_put_before_conversations_that_bring_none(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Hello"}]
    rows = [{"messages": own, "label": "safe"}] + [
        {"prompt": f"{label} {i}", "label": label}
        for i in range(9)
        for label in ("safe", "unsafe", "benign")
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    config = tiny_config(checkpoint, tmp_path, path, prompts={"system_prompt": "Ours."})
    for prompt in prepare_prompts(config, Listener()):
        roles = [message["role"] for message in prompt.messages]
        assert roles == ["system", "user"]
        expected = "Mine." if prompt.messages[-1]["content"] == "Hello" else "Ours."
        assert prompt.messages[0]["content"] == expected


# ---- sampling, resuming -------------------------------------------------------------------------------


def test_a_sampled_group_depends_on_no_other(
    checkpoint: Path, small_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = {"collect": {"temperature": 1.0}}
    through, _ = collected(tiny_config(checkpoint, tmp_path / "a", small_prompts, **sampled))
    config = tiny_config(checkpoint, tmp_path / "b", small_prompts, **sampled)
    stopped = RunDirectory(config.run_dir)
    stopped.create()
    generate, calls = TransformersEngine.generate, Counter[str]()

    def die_at_third(self: Any, *args: Any) -> Any:
        calls["all"] += 1
        if calls["all"] == 3:
            raise KeyboardInterrupt
        return generate(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "generate", die_at_third)
        with pytest.raises(KeyboardInterrupt):
            collect(stopped, config, Listener())
    assert len(list(stopped.file(SHARDS).iterdir())) == 2
    listener = Listener()
    collect(stopped, config, listener)
    assert "going on after 24 of 60 prompts" in listener.text
    for name in (RESPONSES, "tokens.parquet", "routing.safetensors"):
        assert through.file(name).read_bytes() == stopped.file(name).read_bytes()
    other, _ = collected(tiny_config(checkpoint, tmp_path / "c", small_prompts, seed=1, **sampled))
    texts = [
        run.read_replies().set_index("prompt_id")["generated_text"] for run in (through, other)
    ]
    assert (texts[0] != texts[1].loc[texts[0].index]).mean() > 0.5


def test_prompts_are_stored_as_they_were_fed(
    checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run, _ = collected(tiny_config(checkpoint, tmp_path / "run", small_prompts))
    rendered = {prompt.prompt_id: prompt.rendered for prompt in run.read_prompts()}
    assert all(text.endswith("<|im_start|>assistant\n") for text in rendered.values())
    for row, output in run.iter_outputs():
        assert output.prompt == rendered[row["prompt_id"]]


def test_an_interrupted_attempts_prompts_are_fed_as_they_were_rendered_then(
    checkpoint: Path, small_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that prints the date must not give one half of a run other prompts than the other."""
    config = tiny_config(checkpoint, tmp_path / "run", small_prompts)
    run = RunDirectory(config.run_dir)
    run.create()
    real, groups = stage.generate_group, []

    def stopping(engine: Any, *others: Any) -> Any:
        if len(groups) == 2:
            raise KeyboardInterrupt
        groups.append(others)
        return real(engine, *others)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "generate_group", stopping)
        with pytest.raises(KeyboardInterrupt):
            collect(run, config, Listener())
    monkeypatch.setattr(stage, "render", lambda *others: "another day<|im_start|>")
    collect(run, config, Listener())
    texts = {output.prompt for _, output in run.iter_outputs()}
    assert len(texts) == 60 and not any("another day" in text for text in texts)


# ---- what is refused ----------------------------------------------------------------------------------


def test_one_prompt_that_is_too_long_stops_the_run_before_any_reply(
    checkpoint: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"{label} {i}", "label": label}
        for i in range(9)
        for label in ("safe", "unsafe", "benign")
    ]
    rows.append({"prompt": "x" * 1100, "label": "benign"})
    prompts = write_prompts(tmp_path / "prompts.csv", rows)
    config = tiny_config(checkpoint, tmp_path / "run", prompts)
    run = RunDirectory(config.run_dir)
    run.create()
    with pytest.raises(PromptError, match=r"tokens.*context of 1024") as caught:
        collect(run, config, Listener())
    assert "\n" not in str(caught.value)
    assert not any(SHARDS in name or name == RESPONSES for name in files_of(run.path))


def test_an_unknown_prompt_format_is_refused_before_anything_is_made(
    checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    for name, settings in (("prompts.format", {"prompts": {"format": "xlsx"}}),):
        config = tiny_config(checkpoint, tmp_path / "run", small_prompts, **settings)
        run = RunDirectory(config.run_dir)
        run.create()
        with pytest.raises(ConfigError, match=name) as caught:
            collect(run, config, Listener())
        assert "\n" not in str(caught.value)
        assert files_of(run.path) == set()
