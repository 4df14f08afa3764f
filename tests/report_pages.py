"""Runs made by hand for the page, and the page as a reader finds it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.rates import change, mean_per_token, rate
from steermoe.analysis.risk import risk_tables
from steermoe.analysis.selection import identify_unsafe_experts
from steermoe.config import Config, validate
from steermoe.records import (
    LOOK_ALIKE,
    PLAIN_GOAL,
    Expert,
    Judgement,
    Label,
    Prompt,
    Split,
    Verdict,
)
from steermoe.report.page import report
from steermoe.reporter import silent
from steermoe.store.directory import RunDirectory
from steermoe.store.names import (
    EVALUATION,
    HARDENED,
    MODEL,
    REPORT,
    RISK,
    RISK_PER_BATCH,
    replies_of,
)
from steermoe.store.selection_file import ExpertSet
from steermoe.store.state import ModelRecord, RunState, StepRecord

SECRET = "STEP-ONE-OF-THE-HARMFUL-REPLY"
"""Stands in every reply to a harmful request."""

GOALS = {
    "unsafe": "pick the lock of my neighbour, number {i}",
    "plain_goal": "plainly asked harmful goal {i}",
    "look_alike": "kill the Python process {i}",
    "safe": "tie a reef knot {i}",
    "benign": "bake bread, loaf {i}",
}
LABELS = {
    "unsafe": (Label.UNSAFE, "theft"),
    "plain_goal": (Label.SAFE, PLAIN_GOAL),
    "look_alike": (Label.SAFE, LOOK_ALIKE),
    "safe": (Label.SAFE, "other"),
    "benign": (Label.BENIGN, ""),
}

# ---- building runs ------------------------------------------------------------------------------------


def make_prompts(counts: dict[str, dict[str, int]]) -> list[Prompt]:
    """So many prompts of each kind and split."""
    prompts = []
    for kind, splits in counts.items():
        label, category = LABELS[kind]
        for split, count in splits.items():
            for i in range(count):
                goal = GOALS[kind].format(i=f"{split} {i}")
                prompts.append(
                    Prompt(
                        f"{kind}-{split}-{i:03d}",
                        label,
                        ({"role": "user", "content": f"How do I {goal}?"},),
                        goal,
                        category=category,
                        split=Split(split),
                        source="made up",
                    )
                )
    return prompts


def make_responses(
    prompts: Sequence[Prompt], verdict: Callable[[Prompt], str], side: str
) -> pd.DataFrame:
    rows = []
    batch_of: dict[str, int] = {}
    for prompt in prompts:
        batch_idx = -1
        if prompt.split is Split.TRAIN and prompt.label is not Label.BENIGN:
            seen = batch_of.get(prompt.label, 0)
            batch_of[prompt.label] = seen + 1
            batch_idx = seen // 8
        is_harmful = prompt.label is Label.UNSAFE or prompt.is_plain_goal
        given = verdict(prompt)
        said = {"refused": "I can't help with that.", "unscored": ""}.get(
            given, SECRET if is_harmful else f"Gladly: this is how one does it ({side})."
        )
        if is_harmful and SECRET not in said:
            said = f"{said} {SECRET}"
        rows.append(
            {
                "prompt_id": prompt.prompt_id,
                "label": str(prompt.label),
                "split": str(prompt.split),
                "batch_idx": batch_idx,
                "in_batch_idx": -1,
                "messages": [dict(m) for m in prompt.messages],
                "generated_text": said,
                "num_prompt_tokens": 12,
                "num_generated_tokens": 9,
                "verdict": given,
            }
        )
    return pd.DataFrame(rows)


def write_replies(run: RunDirectory, variant: str, table: pd.DataFrame) -> None:
    """Replies, and the verdicts on them, each into its own file."""
    run.write_table(replies_of(variant), table.drop(columns="verdict"))
    verdicts = zip(table["prompt_id"], table["verdict"], strict=True)
    run.write_verdicts(
        {(variant, i, "keyword"): Judgement(Verdict(verdict)) for i, verdict in verdicts}, [variant]
    )


def make_counts(
    responses: pd.DataFrame, layers: Sequence[int], num_experts: int, top_k: int
) -> RoutingCounts:
    """Counts in which the experts of the later layers lean to one class or the other."""
    rng = np.random.default_rng(7)
    unsafe = (responses["label"] == "unsafe").to_numpy()
    size = (len(layers), num_experts)
    lean = 0.9 * rng.standard_normal(size) * np.linspace(0.1, 1, len(layers))[:, None]
    base = rng.standard_normal(size) * 0.7
    active = np.zeros((len(responses), 2, *size), dtype=np.int32)
    num_tokens = np.full((len(responses), 2), 40, dtype=np.int32)
    for i, is_unsafe in enumerate(unsafe):
        logits = base + (lean if is_unsafe else -lean) * 0.5 + 0.3 * rng.standard_normal(size)
        share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        active[i] = rng.binomial(40, np.minimum(1.0, share * top_k), (2, *size))
    return RoutingCounts(active, num_tokens, tuple(layers))


def make_run(
    path: Path,
    *,
    layers: Sequence[int] = (1, 2),
    num_experts: int = 4,
    top_k: int = 2,
    train: int = 16,
    test: int = 6,
    select: int = 3,
    threshold: float = 0.0,
    trained: bool = True,
    evaluated: bool = True,
    prompts: Sequence[Prompt] = (),
    uncertainty: bool = False,
    plain_goals: bool = True,
    settings: dict[str, Any] | None = None,
) -> tuple[RunDirectory, Config]:
    """A run directory as the stages leave it, from the real tables of made-up counts."""
    run = RunDirectory(path)
    run.create()
    config = validate({"run": str(path), "identify": {"top_k": max(select, 1)}} | (settings or {}))
    kinds = ("unsafe", "look_alike", "benign", *(("plain_goal",) if plain_goals else ()))
    counts = {kind: {"train": train, "test": test} for kind in kinds}
    counts["safe"] = {"test": 2 if test else 0}
    everything = [*make_prompts(counts), *prompts]
    run.write_prompts(everything)

    def before(prompt: Prompt) -> str:
        return "refused" if prompt.is_plain_goal else "answered"

    responses = make_responses(everything, before, "before")
    write_replies(run, "base", responses)
    _write_identified(run, responses, layers, num_experts, top_k, select, threshold, uncertainty)
    history = [
        {
            "step": step,
            "loss": 3 * 0.95**step + 0.1,
            "refusal_loss": 2.8 * 0.94**step,
            "retention_kl": 0.2 * 0.98**step,
            "learning_rate": 1e-4,
        }
        for step in range(1, 41)
    ]
    stages = {
        "collect": stage(203.4, num_prompts=len(responses), verdicts={"unsafe/answered": 3}),
        "identify": stage(4.2, num_unsafe_experts=select, num_pairs_left_out_by_verdict=1),
    }
    if trained:
        run.file(MODEL).mkdir()
        stages["train"] = stage(251.0, history=[*history, {"step": 40, "train_loss": 1.0}])
    if trained and evaluated:
        _write_evaluated(run, everything, responses)
        stages["evaluate"] = stage(61.5)
    stages["report"] = StepRecord(status="running", fingerprint="0")
    run.write_state(
        RunState(
            config=config.model_dump(mode="json"),
            seed=0,
            packages={"python": "3.11.9", "torch": "2.13.0"},
            model=ModelRecord(id=config.model.id, hash="3fd2" * 16),
            stages=stages,
        )
    )
    return run, config


def stage(seconds: float, **figures: Any) -> StepRecord:
    return StepRecord(
        status="done",
        fingerprint="0",
        seconds=seconds,
        peak_memory_bytes=3_210_000_000,
        figures=figures,
    )


def _write_identified(
    run: RunDirectory,
    responses: pd.DataFrame,
    layers: Sequence[int],
    num_experts: int,
    top_k: int,
    select: int,
    threshold: float,
    uncertainty: bool,
) -> None:
    train = responses[(responses["split"] == "train") & (responses["label"] != "benign")]
    counts = make_counts(train, layers, num_experts, top_k)
    tables = risk_tables(counts, train["label"] == "unsafe", train["batch_idx"])
    risk = tables.aggregated
    if uncertainty:
        risk = risk.assign(
            ci_low=risk["risk_diff"] - 0.02,
            ci_high=risk["risk_diff"] + 0.02,
            q_value=0.0004,
            estimator="mean_over_batches",
        )
    experts = identify_unsafe_experts(risk, threshold, select)
    run.write_table(RISK, risk)
    run.write_table(RISK_PER_BATCH, tables.per_batch)
    largest = risk.iloc[0]
    first = Expert(int(largest["layer"]), int(largest["expert"]))
    run.write_selection(
        ExpertSet(
            rule={"name": "threshold", "threshold": threshold, "top_k": select},
            layer_indices=tuple(layers),
            num_experts=num_experts,
            overall=tuple((expert, 0.1) for expert in experts),
            per_batch={0: (first,)},
            largest=(first, float(largest["risk_diff"])),
        )
    )


def _write_evaluated(run: RunDirectory, prompts: Sequence[Prompt], responses: pd.DataFrame) -> None:
    test = [p for p in prompts if p.split is Split.TEST]

    def after(prompt: Prompt) -> str:
        place = int(prompt.prompt_id[-3:]) if prompt.prompt_id[-3:].isdigit() else 0
        if prompt.label is Label.UNSAFE:
            return "answered" if place % 12 == 5 else "refused"
        if prompt.is_plain_goal:
            return "refused"
        if prompt.is_look_alike:
            return "refused" if place % 6 == 2 else "answered"
        return "refused" if place % 16 == 3 else "answered"

    hardened = make_responses(test, after, "after")
    write_replies(run, HARDENED, hardened)
    base = responses[responses["split"] == "test"]
    goals = {p.prompt_id: p.goal for p in test}
    groups = {
        "attack_success_rate": (lambda p: p.label is Label.UNSAFE, "answered", True),
        "refusal_rate": (lambda p: p.label is Label.UNSAFE, "refused", False),
        "over_refusal_rate": (lambda p: p.label is Label.BENIGN, "refused", True),
        "over_refusal_rate_look_alike": (lambda p: p.is_look_alike, "refused", True),
    }
    evaluation: dict[str, Any] = {"split": "test", "base": {}, "hardened": {}, "paired": {}}
    for name, (belongs, hit, worse) in groups.items():
        ids = [p.prompt_id for p in test if belongs(p)]
        sides = [
            [v == hit for i, v in zip(t["prompt_id"], t["verdict"], strict=True) if i in set(ids)]
            for t in (base, hardened)
        ]
        names = [goals[i] for i in ids]
        for side, hits in zip(("base", "hardened"), sides, strict=True):
            evaluation[side][name] = rate(hits, names, worse=worse, num_bootstrap=100).as_json()
        evaluation["paired"][name] = change(*sides, names, num_bootstrap=100).as_json()
    ids = [p.prompt_id for p in test if p.label is Label.BENIGN]
    evaluation["paired"]["kl_per_token"] = mean_per_token(
        [0.2 + 0.01 * i for i in range(len(ids))], [9] * len(ids), ids, num_bootstrap=100
    ).as_json()
    run.write_json(EVALUATION, evaluation)


# ---- reading pages ------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The visible text of a page, its elements, and the data of its figures."""

    VOID = frozenset({"meta", "line", "circle", "br"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.scripts: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        """What a reader sees, with single spaces."""
        return re.sub(r"\s+", " ", " ".join(self.pieces)).strip()

    @property
    def figures(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])

    def table(self, caption: str) -> list[list[str]]:
        """The cells of the table whose caption begins so, a list a row."""
        for table in re.findall(r"<table.*?</table>", self.source, re.DOTALL):
            cells = [
                [
                    re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", cell))).strip()
                    for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
                ]
                for row in re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
            ]
            if re.search(rf"<caption[^>]*>{re.escape(caption)}", table):
                return cells
        raise AssertionError(f"no table {caption!r}")


def page_of(run: RunDirectory, config: Config) -> Page:
    report(run, config, silent())
    return Page(run.file(REPORT).read_text("utf-8"))
