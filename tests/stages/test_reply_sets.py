"""Named sets of an evaluation: what is asked, how often, with which seeds, and what is done again."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import TinyCheckpoint
from steermoe.engines.transformers import TransformersEngine
from steermoe.errors import PromptError
from steermoe.metrics import MeasureRow
from steermoe.pipeline import run_pipeline
from steermoe.records import Sampling
from steermoe.store.directory import RunDirectory
from steermoe.store.names import (
    BASE,
    HARDENED,
    MODEL,
    RESPONSES,
    on_set,
    replies_of,
    set_prompts_of,
    text_of,
)
from steermoe.store.run import load_run
from tiny import CommandLine, Listener, copy_of, finished_run, tiny_config, write_prompts

SAMPLED = {"name": "sampled", "temperature": 1.0, "samples": 3}
OTHER_SYSTEM = {"name": "pirate", "system": "You are a pirate."}


@pytest.fixture
def mixtral(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint("mixtral")


@pytest.fixture
def run(tmp_path: Path, mixtral: Path, small_prompts: Path) -> RunDirectory:
    return RunDirectory(copy_of(finished_run(mixtral, small_prompts), tmp_path / "run"))


class Evaluation:
    """Evaluates one run with settings of its own, and tells which of its files were written again."""

    def __init__(self, run: RunDirectory, checkpoint: Path, prompts: Path) -> None:
        self.run, self._checkpoint, self._prompts = run, checkpoint, prompts
        self.listener = Listener()

    def __call__(self, command: str = "evaluate", **settings: Any) -> set[str]:
        before = self._stamps()
        self.listener = Listener()
        config = tiny_config(self._checkpoint, self.run.path, self._prompts, evaluate=settings)
        run_pipeline(config, only=command, reporter=self.listener)
        return {name for name, stamp in self._stamps().items() if before.get(name) != stamp}

    def _stamps(self) -> dict[str, int]:
        files = (f for f in self.run.path.rglob("*.parquet"))
        return {f.relative_to(self.run.path).as_posix(): f.stat().st_mtime_ns for f in files}

    def rows(self, name: str, measure: str) -> dict[str, MeasureRow]:
        """The rows of a measure on a set: `base`, `hardened`, `change`."""
        return {
            "change" if row.compared_with else row.variant: row
            for row in self.run.read_measures()
            if (row.set, row.measure) == (name, measure)
        }


@pytest.fixture
def evaluation(run: RunDirectory, mixtral: Path, small_prompts: Path) -> Evaluation:
    return Evaluation(run, mixtral, small_prompts)


def tables(*names: str) -> set[str]:
    return {replies_of(on_set(model, name)) for name in names for model in (BASE, HARDENED)}


def test_sets_have_rows_of_their_own_and_only_a_set_that_changed_is_asked_again(
    evaluation: Evaluation, run: RunDirectory
) -> None:
    written = evaluation(sets=[SAMPLED, OTHER_SYSTEM])
    assert written == {*tables("sampled", "pirate"), "verdicts.parquet", "measures.parquet"}
    test = [p for p in run.read_prompts() if p.split == "test"]
    sampled = run.read_prompts(set_prompts_of("sampled"))
    assert len(sampled) == 3 * len(test)
    assert {p.prompt_id for p in sampled} >= {f"{test[0].prompt_id}#{k}" for k in (1, 2, 3)}
    texts = run.read_replies(on_set(BASE, "sampled")).set_index("prompt_id")["generated_text"]
    assert any(len({texts[f"{p.prompt_id}#{k}"] for k in (1, 2, 3)}) > 1 for p in test)
    # The prompt is the unit: three replies to each count as many times as one, but are no more goals.
    rows = evaluation.rows("sampled", "refusal_rate")
    unsafe = sum(p.label == "unsafe" for p in test)
    assert rows["hardened"].metric.n + rows["hardened"].metric.num_unscored == 3 * unsafe
    assert set(rows) == {"base", "hardened", "change"}
    assert evaluation.rows("pirate", "repetition_rate")["change"].compared_with == "base"
    pirate = run.read_prompts(set_prompts_of("pirate"))
    assert all(p.messages[0] == {"role": "system", "content": "You are a pirate."} for p in pirate)
    assert all("You are a pirate." in p.rendered for p in pirate)
    assert "sampled" in run.read_evaluation()["sets"]
    assert evaluation(sets=[SAMPLED, OTHER_SYSTEM]) == set()
    again = evaluation(sets=[SAMPLED, {**OTHER_SYSTEM, "system": "You are a sailor."}])
    assert again == {*tables("pirate"), "verdicts.parquet", "measures.parquet"}
    assert evaluation(sets=[SAMPLED]) == {"measures.parquet"}
    assert evaluation.rows("pirate", "refusal_rate") == {}


def test_both_models_are_asked_alike(
    evaluation: Evaluation, run: RunDirectory, mixtral: Path
) -> None:
    shutil.rmtree(run.file(MODEL))
    shutil.copytree(mixtral, run.file(MODEL))
    state = run.read_state()  # as if training had left the base model itself
    state.files.pop(MODEL)
    run.write_state(state)
    evaluation(sets=[SAMPLED | {"follow_ups": ["Go on."]}], max_new_tokens=9)
    base, hardened = (run.read_replies(on_set(m, "sampled")) for m in (BASE, HARDENED))
    assert base["generated_text"].tolist() == hardened["generated_text"].tolist()
    assert evaluation.rows("sampled", "reply_length")["change"].metric.value == 0
    longer = run.read_replies(on_set(BASE, "test")).set_index("prompt_id")["generated_text"]
    mine = run.read_replies(HARDENED).set_index("prompt_id")["generated_text"]
    assert mine.to_dict() == longer.to_dict()


def test_longer_replies_are_compared_with_longer_ones_and_nothing_is_collected_again(
    evaluation: Evaluation, run: RunDirectory
) -> None:
    collected = run.read_replies().set_index("prompt_id")["generated_text"]
    written = evaluation(max_new_tokens=20)
    longer = replies_of(on_set(BASE, "test"))
    assert written == {
        longer,
        replies_of(HARDENED),
        "scored/hardened.parquet",
        "verdicts.parquet",
        "measures.parquet",
    }
    table = run.read_table(longer)
    harmless = [p.prompt_id for p in run.read_prompts() if p.is_harmless and p.split == "test"]
    length = table.set_index("prompt_id")["num_generated_tokens"]
    assert length.max() > 6  # more than the replies that were collected may have
    for row in table.to_dict("records"):  # greedy: the same beginning
        assert row["generated_text"].startswith(collected[row["prompt_id"]])
    rows = evaluation.rows("test", "reply_length")
    assert rows["base"].metric.value == pytest.approx(length[harmless].mean())
    assert evaluation(max_new_tokens=20) == set()
    back = evaluation()
    assert longer not in back and RESPONSES not in back and replies_of(HARDENED) in back
    assert evaluation.rows("test", "reply_length")["base"].metric.value < rows["base"].metric.value  # type: ignore[operator]


def test_a_conversation_goes_on_after_the_models_own_reply(
    evaluation: Evaluation, run: RunDirectory, mixtral: Path
) -> None:
    evaluation(sets=[{"name": "insist", "follow_ups": ["Are you sure?", "Go on."]}])
    row = run.read_replies(on_set(BASE, "insist")).to_dict("records")[0]
    turns = [dict(turn) for turn in row["messages"]]
    assert [turn["role"] for turn in turns[-5:]] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert [turns[-3]["content"], turns[-1]["content"]] == ["Are you sure?", "Go on."]
    base = AutoModelForCausalLM.from_pretrained(mixtral)
    engine = TransformersEngine(base, AutoTokenizer.from_pretrained(mixtral), record=False)
    (first,) = engine.generate([turns[:-4]], Sampling(max_tokens=6))
    assert first.generated_text.strip() == turns[-4]["content"].strip()
    (last,) = engine.generate([turns], Sampling(max_tokens=6))
    assert last.generated_text == row["generated_text"]


def test_goals_that_were_trained_on_are_left_out_and_counted(
    evaluation: Evaluation, run: RunDirectory, tmp_path: Path
) -> None:
    trained = next(p for p in run.read_prompts() if p.split == "train" and p.label == "unsafe")
    known = {"prompt": "attack", "label": "unsafe", "goal": trained.goal.upper()}
    new = {"prompt": "attack as well", "label": "unsafe", "goal": "quite another thing"}
    file = write_prompts(tmp_path / "attacks.csv", [known, new])
    evaluation(sets=[{"name": "attacks", "prompts": [str(file)]}])
    assert "1 of 2 prompts are left out" in evaluation.listener.text
    assert [p.goal for p in run.read_prompts(set_prompts_of("attacks"))] == ["quite another thing"]
    assert evaluation.rows("attacks", "over_refusal_rate")["hardened"].metric.n == 0
    write_prompts(file, [known])
    with pytest.raises(PromptError, match="attacks"):
        evaluation(sets=[{"name": "attacks", "prompts": [str(file)]}])


def test_a_file_that_is_not_there_is_said_before_anything_is_done(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    with pytest.raises(PromptError, match=r"none\.json"):
        evaluation(
            "run", max_new_tokens=9, sets=[{"name": "a", "prompts": [str(tmp_path / "none.json")]}]
        )
    assert not evaluation.run.has(replies_of(on_set(BASE, "test")))


def test_a_conversation_that_does_not_fit_is_said_before_the_longer_replies_are_generated(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    sets = [{"name": "on", "follow_ups": ["Go on."] * 40}]
    with pytest.raises(PromptError, match=r"prompt .* of the set on has"):
        evaluation(max_new_tokens=9, sets=sets)
    assert not evaluation.run.has(replies_of(on_set(BASE, "test")))


def test_the_perplexity_of_a_text_equals_a_plain_pass(
    evaluation: Evaluation, run: RunDirectory, mixtral: Path, tmp_path: Path
) -> None:
    text = "The mixture of experts reads a sentence, and then another one. " * 3
    (tmp_path / "own.txt").write_text(text, "utf-8")
    written = evaluation(text_file=str(tmp_path / "own.txt"))
    assert written == {text_of(BASE), text_of(HARDENED), "measures.parquet"}
    rows = evaluation.rows("text:own.txt", "perplexity")
    ids = AutoTokenizer.from_pretrained(mixtral)(text, return_tensors="pt").input_ids
    for model, folder in ((BASE, mixtral), (HARDENED, run.file(MODEL))):
        with torch.no_grad():
            loss = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids, labels=ids).loss
        assert rows[model].metric.value == pytest.approx(math.exp(float(loss)), rel=1e-4)
        assert rows[model].metric.n == ids.shape[1] - 1
    (tmp_path / "own.txt").write_text(f"{text}And a last one.", "utf-8")
    assert text_of(BASE) in evaluation(text_file=str(tmp_path / "own.txt"))
    assert evaluation() == {"measures.parquet"}
    assert evaluation.rows("text:own.txt", "perplexity") == {}


def test_terminal_and_page_show_every_set(
    evaluation: Evaluation, run: RunDirectory, steermoe: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "own.txt").write_text("A text of some words.", "utf-8")
    settings = {"sets": [OTHER_SYSTEM], "text_file": str(tmp_path / "own.txt"), "max_new_tokens": 9}
    evaluation(**settings)
    evaluation("report", **settings)
    assert steermoe("show", "--run", run.path) == 0, steermoe.err
    page = run.file("report.html").read_text("utf-8")
    for shown in (steermoe.out, page):
        for words in (
            "pirate",
            "own.txt",
            "Perplexity of your text",
            "Harmless replies in circles",
        ):
            assert words in shown
    replies = load_run(run.path).replies(on_set(BASE, "test"))
    longer = [text for text in replies["generated_text"] if len(text) > 6]  # than any collected
    assert longer and any(text in page for text in longer)
