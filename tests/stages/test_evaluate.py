"""Evaluate: divergence against a plain loop, who enters which rate, and a model against itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import TinyCheckpoint
from steermoe.analysis.rates import wilson
from steermoe.cli.export import export_run
from steermoe.config import Config
from steermoe.engines import scoring
from steermoe.engines.transformers import TransformersEngine
from steermoe.pipeline import run_pipeline
from steermoe.records import Exchange, Judgement, Sampling, Verdict
from steermoe.reporter import Reporter
from steermoe.stages.evaluate import evaluate as measure
from steermoe.stages.judge import judge_base, judge_hardened
from steermoe.stages.reply import reply
from steermoe.store.directory import RunDirectory
from steermoe.store.names import EVALUATION, HARDENED, MODEL, replies_of
from steermoe.store.run import load_run
from steermoe.store.state import Figures
from tiny import Listener, copy_of, finished_run, tiny_config, write_prompts

HARDENED_RESPONSES = replies_of(HARDENED)
RATES = ("attack_success_rate", "refusal_rate", "over_refusal_rate", "over_refusal_rate_look_alike")


def evaluate(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """All steps of the command, from replies to figures."""
    reply(run, config, reporter)
    judge_base(run, config, reporter)
    if run.has(HARDENED_RESPONSES):
        judge_hardened(run, config, reporter)
    return measure(run, config, reporter)


RATES = ("attack_success_rate", "refusal_rate", "over_refusal_rate", "over_refusal_rate_look_alike")


@pytest.fixture(scope="module", params=["mixtral", "olmoe"])
def checkpoint(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint(request.param)


@pytest.fixture
def mixtral(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint("mixtral")


@pytest.fixture
def run(tmp_path: Path, mixtral: Path, small_prompts: Path) -> RunDirectory:
    return RunDirectory(copy_of(finished_run(mixtral, small_prompts), tmp_path / "run"))


@torch.no_grad()
def kl_by_hand(
    base: Any, hardened: Any, replies: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> tuple[float, int]:
    """Sum of KL(base || hardened) over the tokens of replies, one reply at a time, and how many tokens."""
    total, num_tokens = 0.0, 0
    for prompt, text in replies:
        ids = torch.tensor([[*prompt, *text]])
        p, q = (torch.log_softmax(m(ids).logits[0].double(), -1) for m in (base, hardened))
        for place in range(len(prompt) - 1, len(prompt) + len(text) - 1):
            total += float((p[place].exp() * (p[place] - q[place])).sum())
            num_tokens += 1
    return total, num_tokens


def benign_test_replies(run_dir: Path) -> list[tuple[Sequence[int], Sequence[int]]]:
    tokens = pd.read_parquet(run_dir / "tokens.parquet").set_index("prompt_id")
    chosen = [
        p.prompt_id for p in load_run(run_dir).prompts if p.label == "benign" and p.split == "test"
    ]
    return [
        (tokens.loc[i, "prompt_token_ids"], tokens.loc[i, "generated_token_ids"]) for i in chosen
    ]


# ---- divergence ---------------------------------------------------------------------------------------


def test_divergence_equals_a_plain_loop(finished: Path, checkpoint: Path) -> None:
    total, num_tokens = kl_by_hand(
        AutoModelForCausalLM.from_pretrained(checkpoint),
        AutoModelForCausalLM.from_pretrained(finished / MODEL),
        benign_test_replies(finished),
    )
    metric = load_run(finished).evaluation["paired"]["kl_per_token"]
    assert metric["n"] == num_tokens > 0
    assert metric["value"] == pytest.approx(total / num_tokens, rel=1e-3)
    assert metric["value"] > 1e-3
    assert metric["ci_low"] <= metric["value"] <= metric["ci_high"]


@pytest.mark.parametrize("rule", ["lowest", "random"])
def test_a_selection_made_after_training_leaves_the_figures_and_the_delta_as_they_were(
    run: RunDirectory, mixtral: Path, small_prompts: Path, rule: str
) -> None:
    before, experts = run.read_evaluation(), load_run(run.path).trained_experts
    config = tiny_config(mixtral, run.path, small_prompts, identify={"rule": rule, "top_k": 2})
    run_pipeline(config, only="identify")
    assert set(load_run(run.path).unsafe_experts) != set(experts)
    run_pipeline(config, only="evaluate", force=True)
    assert run.read_evaluation() == before
    assert load_run(run.path).trained_experts == experts
    assert export_run(run.path, ["delta"])


def test_divergence_is_the_same_however_many_replies_go_at_once(
    run: RunDirectory, mixtral: Path, small_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run.read_evaluation()["paired"]["kl_per_token"]["value"]
    monkeypatch.setattr(scoring, "TOGETHER", 1)
    evaluate(run, tiny_config(mixtral, run.path, small_prompts), Listener())
    after = run.read_evaluation()["paired"]["kl_per_token"]["value"]
    assert after == pytest.approx(before, rel=1e-4)


def with_untrained_model(run: RunDirectory, checkpoint: Path) -> None:
    shutil.rmtree(run.file(MODEL))
    shutil.copytree(checkpoint, run.file(MODEL))


@pytest.mark.parametrize(
    ("settings", "divergence"),
    [
        ({}, 1e-7),
        ({"collect": {"temperature": 1.0}}, 1e-7),
        ({"model": {"dtype": "bfloat16"}}, 1e-5),
    ],
    ids=str,
)
def test_a_model_against_itself_changes_nothing(
    mixtral: Path,
    small_prompts: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    divergence: float,
) -> None:
    config = tiny_config(mixtral, tmp_path / "own", small_prompts, **settings)
    own = RunDirectory(config.run_dir)
    for name in ("collect", "identify"):
        run_pipeline(config, only=name)
    own.file(MODEL).mkdir()
    with_untrained_model(own, mixtral)
    evaluate(own, config, Listener())
    found = own.read_evaluation()
    assert found["base"] == found["hardened"]
    for name in RATES:
        assert found["paired"][name]["value"] == 0.0
        assert found["paired"][name]["p_value"] == 1.0
    assert abs(found["paired"]["kl_per_token"]["value"]) < divergence
    # The same prompts in the same groups with the same seeds: the same replies, sampled ones too.
    base = own.read_replies().set_index("prompt_id")["generated_text"]
    replies = own.read_table(HARDENED_RESPONSES).set_index("prompt_id")["generated_text"]
    assert len(replies) == 12
    assert replies.to_dict() == base.loc[replies.index].to_dict()


def test_divergence_is_taken_on_greedy_replies_even_where_replies_are_sampled(
    mixtral: Path, small_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_config(mixtral, tmp_path / "sampled", small_prompts, collect={"temperature": 1.5})
    for name in ("collect", "identify", "train", "evaluate"):
        run_pipeline(config, only=name)
    base = AutoModelForCausalLM.from_pretrained(mixtral)
    engine = TransformersEngine(base, AutoTokenizer.from_pretrained(mixtral))
    prompts = [
        p for p in load_run(config.run_dir).prompts if p.label == "benign" and p.split == "test"
    ]
    outputs = engine.generate([p.messages for p in prompts], Sampling(max_tokens=6))
    greedy = [(o.prompt_token_ids, o.generated_token_ids) for o in outputs]
    assert [list(r) for _, r in greedy] != [list(r) for _, r in benign_test_replies(config.run_dir)]
    hardened = AutoModelForCausalLM.from_pretrained(config.run_dir / MODEL)
    total, num_tokens = kl_by_hand(base, hardened, greedy)
    metric = load_run(config.run_dir).evaluation["paired"]["kl_per_token"]
    assert metric["n"] == num_tokens
    assert metric["value"] == pytest.approx(total / num_tokens, rel=1e-3)


@pytest.mark.parametrize("parameters", ["routers", "everything"])
def test_divergence_of_a_baseline_equals_a_plain_loop(
    run: RunDirectory, mixtral: Path, small_prompts: Path, parameters: str
) -> None:
    config = tiny_config(mixtral, run.path, small_prompts, train={"parameters": parameters})
    hardened = AutoModelForCausalLM.from_pretrained(mixtral)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in hardened.named_parameters():
            if parameters == "everything" or name.endswith("gate.weight"):
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    hardened.save_pretrained(run.file(MODEL))
    state = run.read_state()
    state.figures_of("train")["trained_experts"] = []
    run.write_state(state)
    evaluate(run, config, Listener())
    total, num_tokens = kl_by_hand(
        AutoModelForCausalLM.from_pretrained(mixtral), hardened, benign_test_replies(run.path)
    )
    value = run.read_evaluation()["paired"]["kl_per_token"]["value"]
    assert value == pytest.approx(total / num_tokens, rel=1e-3)


# ---- who enters which rate ----------------------------------------------------------------------------


def every_kind(path: Path) -> Path:
    """Prompts of every kind; of each split alike: 8 unsafe, 4 look-alikes, 3 plain goals, 1 safe, 5 benign."""
    rows: list[dict[str, Any]] = []
    for split in ("train", "dev", "test"):
        for i in range(8):
            kind = "look_alike" if i < 4 else "plain_goal" if i < 7 else ""
            goal = f"goal {split} {i}"
            pair = {"pair_id": f"{split}-{i}", "goal": goal, "split": split}
            rows.append({"prompt": f"unsafe {goal}", "label": "unsafe", **pair})
            rows.append({"prompt": f"mild {goal}", "label": "safe", "category": kind, **pair})
        for i in range(5):
            rows.append({"prompt": f"benign {split} {i}", "label": "benign", "split": split})
    return write_prompts(path, rows)


class ByKind:
    """A judge that knows the prompts, and says of each what it is told for its kind."""

    def __init__(self, base: dict[str, str], hardened: dict[str, str]) -> None:
        self.name = "keyword"
        self.verdicts = {"base": base, "hardened": hardened}

    def judge(self, exchanges: Sequence[Exchange]) -> list[Judgement]:
        return [
            Judgement(self._verdict(exchange.variant, exchange.prompt)) for exchange in exchanges
        ]

    def _verdict(self, variant: str, prompt: str) -> Verdict:
        for word, verdict in self.verdicts[variant].items():
            if word in prompt:
                return Verdict(verdict)
        return Verdict.ANSWERED


@pytest.fixture
def judged(
    mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunDirectory, Config, ByKind]:
    """A run of every kind of prompt, collected and ready to be evaluated with the model as its own hardened one."""
    prompts = every_kind(tmp_path / "kinds.csv")
    config = tiny_config(mixtral, tmp_path / "kinds", prompts)
    judge = ByKind(
        # goals 0-3 are look-alikes' pairs, 4-6 plain goals', 7 an ordinary safe prompt's
        {"mild goal test 5": "refused", "mild goal test 6": "refused"},
        {
            "unsafe goal test 7": "unscored",
            "unsafe goal": "refused",
            "mild goal test 0": "refused",
            "mild goal test 4": "refused",
            "mild goal test 5": "refused",
            "mild goal test 7": "refused",
            "benign test 2": "refused",
            "benign test 3": "refused",
        },
    )
    monkeypatch.setattr("steermoe.stages.judge.judges_named", lambda settings, answers: [judge])
    run = RunDirectory(config.run_dir)
    for name in ("collect", "identify"):
        run_pipeline(config, only=name)
    shutil.copytree(mixtral, run.file(MODEL))
    return run, config, judge


def test_every_rate_counts_its_own_prompts(
    judged: tuple[RunDirectory, Config, ByKind],
) -> None:
    run, config, _ = judged
    evaluate(run, config, Listener())
    found = run.read_evaluation()
    base, hardened = found["base"], found["hardened"]
    assert found["split"] == "test"
    n = {name: hardened[name]["n"] for name in RATES}
    # Plain goals and the ordinary safe prompt enter no figure; of 8 unsafe prompts one is unscored.
    assert n == {
        "attack_success_rate": 7,
        "refusal_rate": 7,
        "over_refusal_rate": 5,
        "over_refusal_rate_look_alike": 4,
    }
    assert base["attack_success_rate"]["value"] == 1.0 and base["refusal_rate"]["value"] == 0.0
    assert base["over_refusal_rate"]["value"] == 0.0
    assert base["over_refusal_rate_look_alike"]["value"] == 0.0
    assert hardened["refusal_rate"]["value"] == 1.0
    assert hardened["attack_success_rate"]["value"] == 0.0
    assert hardened["over_refusal_rate"]["value"] == pytest.approx(2 / 5)
    assert hardened["over_refusal_rate_look_alike"]["value"] == pytest.approx(1 / 4)
    metric = hardened["over_refusal_rate"]
    assert (metric["ci_low"], metric["ci_high"]) == pytest.approx(wilson(2, 5))
    # 1 of 8 unscored is above 2 %: at worst it was an attack that succeeded.
    assert hardened["refusal_rate"]["num_unscored"] == 1
    assert hardened["refusal_rate"]["worst_case"] == pytest.approx(7 / 8)
    assert hardened["attack_success_rate"]["worst_case"] == pytest.approx(1 / 8)
    assert "worst_case" not in hardened["over_refusal_rate"]
    paired = found["paired"]
    assert paired["refusal_rate"]["value"] == 1.0 and paired["refusal_rate"]["n"] == 7
    assert paired["refusal_rate"]["p_value"] == pytest.approx(2 / 2**7)
    assert paired["over_refusal_rate"]["only_after"] == 2
    assert set(found) == {"split", "base", "hardened", "paired"}


def test_dev_is_evaluated_where_settings_are_chosen(
    judged: tuple[RunDirectory, Config, ByKind],
) -> None:
    run, config, _ = judged
    dev = config.model_copy(
        update={"evaluate": config.evaluate.model_copy(update={"split": "dev"})}
    )
    evaluate(run, dev, Listener())
    assert run.read_evaluation()["split"] == "dev"
    replies = run.read_table(HARDENED_RESPONSES)
    assert set(replies["split"]) == {"dev"} and len(replies) == 21
    assert run.read_evaluation()["hardened"]["over_refusal_rate"]["value"] == 0.0


def test_a_goal_with_several_prompts_is_counted_as_one(
    judged: tuple[RunDirectory, Config, ByKind],
) -> None:
    run, config, _ = judged
    prompts = [
        dataclasses.replace(p, goal="one goal") if p.split == "test" and p.label == "benign" else p
        for p in run.read_prompts()
    ]
    run.write_prompts(prompts)
    evaluate(run, config, Listener())
    metric = run.read_evaluation()["hardened"]["over_refusal_rate"]
    assert metric["value"] == pytest.approx(2 / 5) and metric["n"] == 5
    # A single goal says nothing of other goals: its interval is wider than that of five.
    low, high = wilson(2, 5)
    assert metric["ci_low"] <= low and metric["ci_high"] >= high


# ---- nothing to evaluate ------------------------------------------------------------------------------


def test_without_a_hardened_model_nothing_is_evaluated_and_that_is_said(
    run: RunDirectory, mixtral: Path, small_prompts: Path
) -> None:
    shutil.rmtree(run.file(MODEL))
    listener = Listener()
    assert evaluate(run, tiny_config(mixtral, run.path, small_prompts), listener) == {}
    assert "no hardened model" in listener.text
    # What an earlier model did would be taken for this one's.
    assert not run.file(EVALUATION).exists() and not run.file(HARDENED_RESPONSES).exists()


def test_without_held_out_prompts_nothing_is_evaluated_and_that_is_said(
    run: RunDirectory, mixtral: Path, small_prompts: Path
) -> None:
    run.write_prompts([dataclasses.replace(p, split="train") for p in run.read_prompts()])
    listener = Listener()
    assert evaluate(run, tiny_config(mixtral, run.path, small_prompts), listener) == {}
    assert "no test prompts" in listener.text
    assert not run.file(EVALUATION).exists() and not run.file(HARDENED_RESPONSES).exists()


def test_held_out_prompts_of_one_kind_leave_the_other_rates_empty(
    judged: tuple[RunDirectory, Config, ByKind],
) -> None:
    run, config, _ = judged
    prompts = [
        dataclasses.replace(p, split="dev") if p.split == "test" and p.label == "benign" else p
        for p in run.read_prompts()
    ]
    run.write_prompts(prompts)
    responses = run.read_replies()
    moved = (responses["split"] == "test") & (responses["label"] == "benign")
    responses.loc[moved, "split"] = "dev"
    run.write_table("responses.parquet", responses)
    # Row groups of the tokens no longer match one to one; evaluating reads none of them without benign rows.
    pd.read_parquet(run.file("tokens.parquet")).to_parquet(run.file("tokens.parquet"))
    evaluate(run, config, Listener())
    found = run.read_evaluation()
    for metric in (found["hardened"]["over_refusal_rate"], found["paired"]["kl_per_token"]):
        assert metric["value"] is None and metric["n"] == 0
    assert found["hardened"]["refusal_rate"]["n"] == 7


def test_evaluating_goes_on_after_the_groups_that_are_done(
    run: RunDirectory, mixtral: Path, small_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(mixtral, run.path, small_prompts, collect={"generation_batch_size": 8})
    # Smaller groups than the base replies had: two of the test split, 8 + 4.
    expected = run.file(HARDENED_RESPONSES).read_bytes()
    generate = TransformersEngine.generate
    calls: list[int] = []

    def counted(self: Any, conversations: Any, *others: Any) -> Any:
        calls.append(len(conversations))
        if calls == [8, 4]:
            raise KeyboardInterrupt
        return generate(self, conversations, *others)

    monkeypatch.setattr(TransformersEngine, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, config, Listener())
    assert run.file(EVALUATION).exists(), "the old one stays until the new one is whole"
    evaluate(run, config, Listener())
    assert calls == [8, 4, 4]
    texts = pd.read_parquet(run.file(HARDENED_RESPONSES))["generated_text"].tolist()
    Path(run.path / "before.parquet").write_bytes(expected)
    assert texts == pd.read_parquet(run.path / "before.parquet")["generated_text"].tolist()


def test_the_file_is_plain_json(finished: Path) -> None:
    text = (finished / EVALUATION).read_text("utf-8")
    assert "NaN" not in text and "Infinity" not in text
    assert set(json.loads(text)["base"]) == {*RATES, "capability"}
