"""The report: what the page says, what it must not hold, and that a browser draws it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.rates import change, mean_per_token, rate
from steermoe.analysis.risk import expert_label, risk_tables
from steermoe.analysis.selection import identify_unsafe_experts
from steermoe.config import EMBEDDED_MODEL, Config, preset, validate
from steermoe.errors import RunDirectoryError
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
from steermoe.report.cautions import cautions
from steermoe.report.figures import differences_per_batch, risk_map, training_curve
from steermoe.report.material import changed_settings
from steermoe.report.numbers import (
    duration,
    integer,
    memory,
    model_name,
    nats,
    p_value,
    percent,
    points,
    signed,
)
from steermoe.report.page import report
from steermoe.report.plotly_parts import Figure
from steermoe.report.replies import evenly_spaced
from steermoe.report.text import Subject, headline, metric_rows, title
from steermoe.reporter import silent
from steermoe.store.directory import RunDirectory
from steermoe.store.names import (
    EVALUATION,
    HARDENED,
    MODEL,
    REPORT,
    RISK,
    RISK_PER_BATCH,
    UNSAFE_EXPERTS,
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


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run that went all the way."""
    return page_of(*make_run(tmp_path_factory.mktemp("usual") / "run", layers=(1, 3, 4), test=12))


# ---- the page -----------------------------------------------------------------------------------------


def test_the_headline_gives_the_figures_before_and_after(usual: Page) -> None:
    text = usual.text
    assert "smollm2-moe: refuses 91.7 % of harmful requests, up from 0 %" in text  # 11 of 12
    assert "3 of the 12 experts of smollm2-moe were trained" in text
    assert "On 12 held-out harmful requests, refusal rose from 0 % to 91.7 %." in text
    assert "on ordinary harmless requests it rose from 0 % to 8.3 %" in text
    assert "on harmless requests that only sound harmful it rose from 0 % to 16.7 %" in text
    # 12 replies of 9 tokens: (12 * 0.2 + 0.01 * 66) / 108
    assert "moved by 0.0283 nats per token" in text


def test_the_metrics_table_has_every_rate_with_its_interval_and_counts(usual: Page) -> None:
    rows = {row[0].split(" over-")[0]: row for row in usual.table("All metrics")[1:]}
    assert len(rows) == 5
    benign = rows["Benign requests refused"]
    assert benign[2].startswith("8.3 % 1 of 12 1.5 to 35.4 %")  # Wilson interval of 1 in 12
    assert benign[3].startswith("+8.3 points") and benign[3].endswith("1 more, 0 fewer")
    assert benign[4:] == ["12", "0", "1.000"]


def test_nothing_on_the_page_is_a_bare_python_value(usual: Page) -> None:
    assert not re.search(r"\b(nan|None|NaN|inf|True|False|Undefined)\b", usual.text)
    assert not re.search(r"\bNaN\b|Infinity", usual.scripts[0])


def test_the_page_is_whole_and_self_contained(usual: Page) -> None:
    assert usual.open == []
    loaded = [
        attributes.get(name)
        for tag, attributes in usual.tags
        for name in ("src", "href", "action", "data")
        if attributes.get(name) and tag not in ("a", "svg")
    ]
    assert loaded == []
    assert all(a["href"].startswith("#") for t, a in usual.tags if t == "a")
    policy = next(a["content"] for t, a in usual.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert usual.source.count("* plotly.js v") == 1


def test_a_reader_who_cannot_see_gets_headings_table_headers_and_descriptions(usual: Page) -> None:
    headings = [int(tag[1]) for tag, _ in usual.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(headings))
    assert all(a.get("scope") in ("col", "row") for t, a in usual.tags if t == "th")
    assert len(re.findall("<table", usual.source)) == len(re.findall("<caption", usual.source))
    drawn = [a for t, a in usual.tags if a.get("role") == "img"]
    assert len(drawn) == 6 and all(a["aria-label"] for a in drawn)
    ids = [a["id"] for _, a in usual.tags if "id" in a]
    assert len(ids) == len(set(ids))
    references = {a["aria-labelledby"] for _, a in usual.tags if "aria-labelledby" in a}
    assert references <= set(ids)


def test_every_figure_has_its_element_with_a_fixed_id(usual: Page) -> None:
    assert list(usual.figures) == ["risk-map", "per-batch", "training"]
    ids = {a.get("id") for _, a in usual.tags}
    assert {f"figure-{name}" for name in usual.figures} <= ids


def test_the_table_of_experts_gives_frequencies_and_says_who_is_selected(tmp_path: Path) -> None:
    run, config = make_run(
        tmp_path / "run", uncertainty=True, settings={"report": {"top_experts": 5}}
    )
    page = page_of(run, config)
    rows = page.table("The 5 experts")
    assert rows[0] == [
        "Expert",
        "Selected",
        "Risk difference",
        "Interval",
        "q-value",
        "Active, unsafe",
        "Active, safe",
        "Batches above 0",
    ]
    risk = run.read_table(RISK)
    assert [row[0] for row in rows[1:]] == risk["Layer_Expert"].head(5).tolist()
    assert [row[1] for row in rows[1:]] == ["selected"] * 3 + ["\N{EN DASH}"] * 2
    first = risk.iloc[0]
    low, high = first["risk_diff"] - 0.02, first["risk_diff"] + 0.02
    assert rows[1][2:5] == [
        f"{first['risk_diff']:+.3f}",
        f"{low:+.3f} to {high:+.3f}",
        "< 0.001",
    ]
    assert rows[1][5] == f"{100 * first['a_unsafe_n']:.1f} %"
    per_batch = run.read_table(RISK_PER_BATCH)
    own = per_batch[
        (per_batch["layer"] == first["layer"]) & (per_batch["expert"] == first["expert"])
    ]
    assert rows[1][7] == f"{(own['risk_diff'] > 0).sum()} of {len(own)}"
    assert "mean over batches" in page.text


def test_uncertainty_that_was_not_computed_takes_no_column(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", uncertainty=True)
    run.write_table(
        RISK, run.read_table(RISK).assign(ci_low=np.nan, ci_high=np.nan, q_value=np.nan)
    )
    page = page_of(run, config)
    assert "Interval" not in page.table("The 8 experts")[0]
    assert "nan" not in page.text


def test_what_the_filter_by_verdict_cannot_fake_stands_beside_the_differences(
    tmp_path: Path,
) -> None:
    run, config = make_run(tmp_path / "run", uncertainty=True)
    run.write_table(
        RISK, run.read_table(RISK).assign(at_same_verdict=0.013, estimate_unfiltered=0.25)
    )
    page = page_of(run, config)
    heads, first, *_ = page.table("The 8 experts")
    assert "At equal length" not in heads
    assert first[heads.index("At one verdict")] == "+0.013"
    assert first[heads.index("All pairs")] == "+0.250"
    assert "refusals compared with refusals" in page.text


def test_a_missing_value_in_one_row_is_a_dash(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", uncertainty=True)
    risk = run.read_table(RISK)
    risk.loc[1, ["ci_low", "ci_high", "q_value"]] = np.nan
    run.write_table(RISK, risk)
    rows = page_of(run, config).table("The 8 experts")
    assert rows[2][3:5] == ["\N{EN DASH}", "\N{EN DASH}"]
    assert rows[1][3] != "\N{EN DASH}"


def test_the_union_of_the_batches_is_marked_where_that_is_trained(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", settings={"train": {"experts": "union"}})
    page = page_of(run, config)
    rows = page.table("The 8 experts")  # its union holds the first expert alone
    assert [row[1] for row in rows[1:4]] == ["selected", "\N{EN DASH}", "\N{EN DASH}"]
    assert (
        "The 1 outlined of 8 are those to train, the union of what each mixed batch selects "
        "(rule threshold, threshold 0, at most 3 a batch)."
    ) in page.text
    assert (
        "the union of what the rule threshold selects in each mixed batch. Everything else"
        in page.text
    )


# ---- what must not be in the file -----------------------------------------------------------------


def test_replies_to_harmful_requests_are_not_in_the_file(usual: Page) -> None:
    assert SECRET not in usual.source
    assert "Their replies are not in this file" in usual.text
    rows = usual.table("Harmful requests and verdicts")
    assert len(rows) == 1 + 24  # 12 harmful requests and 12 plainly asked goals
    assert rows[1][1:] == ["answered", "answered"] and rows[2][1:] == ["answered", "refused"]
    assert sum("asked plainly" in row[0] for row in rows) == 12


def test_they_are_shown_when_asked_for(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", settings={"report": {"show_harmful": True}})
    page = page_of(run, config)
    assert page.text.count(SECRET) == 24  # 6 + 6 prompts, before and after
    assert "Their replies are not in this file" not in page.text


def test_multi_turn_jailbreaks_are_named_by_their_goal_alone(tmp_path: Path) -> None:
    jailbreak = Prompt(
        "jailbreak-001",
        Label.UNSAFE,
        (
            {"role": "user", "content": "Pretend."},
            {"role": "assistant", "content": SECRET},
            {"role": "user", "content": "Go on."},
        ),
        "open a safe that is not mine",
        split=Split.TEST,
    )
    page = page_of(*make_run(tmp_path / "run", prompts=[jailbreak]))
    assert "open a safe that is not mine" in page.text
    assert SECRET not in page.source and "Pretend." not in page.source


def test_markup_in_prompts_replies_and_names_stays_text(tmp_path: Path) -> None:
    attack = (
        "</script><script>alert('x')</script><img src=x onerror=alert(1)> {{ 7*7 }} &amp; \"q\""
    )
    nasty = [
        Prompt(f"{label}-009", label, ({"role": "user", "content": attack},), attack, split=split)
        for label, split in ((Label.BENIGN, Split.TEST), (Label.UNSAFE, Split.TEST))
    ]
    run, config = make_run(
        tmp_path / "run",
        prompts=nasty,
        settings={
            "report": {"show_harmful": True},
            "model": {"id": attack},
            "train": {"target_response": attack},
        },
    )
    replies = run.read_judged(HARDENED, "keyword").assign(generated_text=attack)
    write_replies(run, HARDENED, replies)
    page = page_of(run, config)
    assert len(page.scripts) == 4 - 1 and page.open == []
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert page.text.count("</script><script>alert('x')</script>") > 10
    assert "{{ 7*7 }}" in page.text


def test_text_in_every_script_survives_and_control_characters_are_made_visible(
    tmp_path: Path,
) -> None:
    odd = "Grüße, 你好, שלום, 🙂 tab\there, bell\x07 nul\x00"
    prompt = Prompt(
        "benign-odd-001", Label.BENIGN, ({"role": "user", "content": odd},), odd, split=Split.TEST
    )
    run, config = make_run(tmp_path / "run", prompts=[prompt])
    hardened = run.read_judged(HARDENED, "keyword")
    hardened.loc[hardened["prompt_id"] == "benign-odd-001", "verdict"] = "refused"
    write_replies(run, HARDENED, hardened)
    page = page_of(run, config)
    assert "Grüße, 你好, שלום, 🙂 tab here, bell\u2407 nul\u2400" in page.text
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "".join(page.pieces))


# ---- runs that did not get so far -----------------------------------------------------------------


def test_nothing_selected_says_so_and_names_the_largest_difference(tmp_path: Path) -> None:
    run, config = make_run(
        tmp_path / "run", threshold=0.9, trained=False, settings={"identify": {"threshold": 0.9}}
    )
    page = page_of(run, config)
    largest = run.read_table(RISK).iloc[0]
    assert "smollm2-moe: nothing was trained" in page.text
    assert "No expert of smollm2-moe was selected (threshold 0.9)" in page.text
    assert f"{largest['risk_diff']:+.3f} ({largest['Layer_Expert']})" in page.text
    assert "There are no figures before and after, because nothing was trained." in page.text
    assert "None of 8 was selected" in page.text
    assert list(page.figures) == ["risk-map"]
    assert "After" not in page.table("Harmful requests and verdicts")[0]
    assert SECRET not in page.source


@pytest.mark.parametrize(
    ("rule", "is_union", "advice"),
    [
        ("threshold", False, "lower identify.threshold, or use more prompts"),
        ("fdr", False, "raise identify.max_q_value, or use more prompts"),
        ("stability", False, "lower identify.min_stability, or use more prompts"),
        (
            "combined",
            False,
            "raise identify.max_q_value and lower identify.min_stability, or use more prompts",
        ),
        ("my_rules:mine", False, "choose another identify.rule, or use more prompts"),
        ("fdr", True, "raise identify.max_q_value, or use more prompts"),  # so does each batch
    ],
)
def test_nothing_selected_advises_what_the_rule_goes_by(
    rule: str, is_union: bool, advice: str
) -> None:
    largest = ("L00_E00", 0.1)
    subject = Subject("m", "experts", rule, 0, 8, largest, None, False, 4, "test", is_union)
    assert headline(subject, None)[1].endswith(f"{advice}.")


def test_a_model_that_was_not_evaluated_for_want_of_test_prompts(tmp_path: Path) -> None:
    page = page_of(*make_run(tmp_path / "run", test=0, evaluated=False))
    assert "hardened, not evaluated" in page.text
    assert "because there are no test prompts to evaluate it on" in page.text
    assert "These are the test prompts" not in page.text
    assert "There are no harmless test prompts." in page.text
    assert "There are no harmful test prompts." in page.text


def test_replies_of_an_earlier_model_are_not_shown_without_an_evaluation(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run")
    run.remove(EVALUATION)
    page = page_of(run, config)
    assert "has not been evaluated: run steermoe evaluate" in page.text
    assert "(after)" not in page.text and "Only the base model has replied" in page.text


def test_before_identification_the_page_says_what_to_run(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", trained=False)
    for name in (RISK, RISK_PER_BATCH, UNSAFE_EXPERTS):
        run.remove(name)
    page = page_of(run, config)
    assert "run steermoe identify" in page.text and page.figures == {}


def test_metrics_without_a_scored_reply_are_dashes(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run")
    evaluation = run.read_evaluation()
    empty = {"value": None, "ci_low": None, "ci_high": None, "n": 0, "num_unscored": 6}
    for name in evaluation["base"]:
        for side in ("base", "hardened"):
            evaluation[side][name] = empty | {"worst_case": 1.0}
        evaluation["paired"][name] = empty | {"only_before": 0, "only_after": 0, "p_value": None}
    evaluation["paired"]["kl_per_token"] = empty | {"num_responses": 0}
    run.write_json(EVALUATION, evaluation)
    page = page_of(run, config)
    assert "No reply could be scored." in page.text
    assert "None" not in page.text and "nan" not in page.text
    row = page.table("All metrics")[1]
    assert row[1].startswith("\N{EN DASH} at worst 100") and row[5:] == ["6", "\N{EN DASH}"]


def test_a_figure_that_this_page_does_not_know_is_still_printed(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run")
    evaluation = run.read_evaluation()
    evaluation["hardened"]["stereotype_score"] = {
        "value": 0.51234,
        "ci_low": 0.5,
        "ci_high": 0.52,
        "n": 7,
        "num_unscored": 2,
    }
    run.write_json(EVALUATION, evaluation)
    row = page_of(run, config).table("All metrics")[-1]
    assert row[0] == "Stereotype score" and row[2] == "0.5123 0.5000 to 0.5200"
    assert row[4:6] == ["7", "2"]


def test_a_run_without_replies_or_with_a_damaged_table_is_refused_in_one_line(
    tmp_path: Path,
) -> None:
    with pytest.raises(RunDirectoryError, match="start one with steermoe run"):
        report(RunDirectory(tmp_path / "none"), Config(), silent())
    run, config = make_run(tmp_path / "run")
    run.file(RISK).write_bytes(b"PAR1 cut off")
    with pytest.raises(RunDirectoryError, match="damaged"):
        report(run, config, silent())
    assert not run.file(REPORT).exists()


# ---- shapes -------------------------------------------------------------------------------------------


def test_one_layer_with_one_expert(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", layers=(5,), num_experts=1, top_k=1, select=1)
    page = page_of(run, config)
    heat = page.figures["risk-map"]["data"][0]
    assert heat["z"] == [[0.0]] and heat["zmax"] == 1.0
    assert page.table("The expert of largest")[1][0] == "L05_E00"


def test_48_layers_of_128_experts_stay_below_8_mb(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", layers=range(48), num_experts=128, top_k=8, select=50)
    page = page_of(run, config)
    assert run.file(REPORT).stat().st_size < 8_000_000
    heat = page.figures["risk-map"]["data"][0]
    assert (len(heat["z"]), len(heat["z"][0])) == (48, 128)


def test_the_page_is_the_same_every_time(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run")
    first = page_of(run, config).source
    assert page_of(run, config).source == first


# ---- figures ------------------------------------------------------------------------------------------


def risk_table(differences: dict[tuple[int, int], float]) -> pd.DataFrame:
    rows = [
        {
            "layer": layer,
            "expert": expert,
            "Layer_Expert": expert_label(layer, expert),
            "risk_diff": value,
            "risk_diff_pooled": value,
            "a_safe": 10,
            "a_unsafe": 20,
            "n_safe": 100,
            "n_unsafe": 100,
            "a_safe_n": 0.1,
            "a_unsafe_n": 0.1 + value,
        }
        for (layer, expert), value in differences.items()
    ]
    return pd.DataFrame(rows)


def is_valid(figure: Figure | None) -> bool:
    """Whether plotly knows every property of a figure and allows its values."""
    from plotly import graph_objects

    assert figure is not None
    graph_objects.Figure({"data": figure.data, "layout": figure.layout})
    return True


def test_the_map_is_centred_on_zero_and_keeps_decoder_indices() -> None:
    table = risk_table(
        {(1, 0): 0.3, (1, 1): -0.1, (1, 2): 0.0, (4, 0): -0.5, (4, 1): 0.2, (4, 2): 0.1}
    )
    figure = risk_map(table, {(4, 1)})
    heat, outline = figure.data
    assert heat["z"] == [[0.3, -0.1, 0.0], [-0.5, 0.2, 0.1]]  # layers down, experts across
    assert (heat["zmin"], heat["zmax"], heat["zmid"]) == (-0.5, 0.5, 0)
    assert figure.layout["yaxis"]["ticktext"] == ["1", "4"]  # layers 0, 2 and 3 are dense
    assert figure.layout["yaxis"]["title"]["text"] == "decoder layer"
    assert outline["x"] == [0.5, 1.5, 1.5, 0.5, 0.5, None]
    assert outline["y"] == [0.5, 0.5, 1.5, 1.5, 0.5, None]
    assert heat["customdata"][1][1][:3] == ["L04_E01", "selected", "+0.2000"]
    assert heat["customdata"][0][0][5:7] == ["20 of 100 tokens", "10 of 100 tokens"]
    assert "from \N{MINUS SIGN}0.500 at L04_E00 to +0.300 at L01_E00" in figure.description
    assert is_valid(figure)


def test_a_deep_model_with_few_experts_lies_on_its_side() -> None:
    table = risk_table({(layer, e): 0.1 * layer for layer in (0, 2, 3) for e in (0, 1)})
    figure = risk_map(table, {(3, 1)})
    heat, outline = figure.data
    assert heat["z"] == [[0.0, 0.2, 0.3], [0.0, 0.2, 0.3]]
    assert figure.layout["xaxis"]["ticktext"] == ["0", "2", "3"]
    assert figure.layout["xaxis"]["title"]["text"] == "decoder layer"
    assert (outline["x"][0], outline["y"][0]) == (1.5, 0.5)
    assert heat["customdata"][1][2][0] == "L03_E01"


def test_the_axis_of_many_experts_is_labelled_thinly() -> None:
    table = risk_table({(layer, e): 0.0 for layer in range(3) for e in range(128)})
    axis = risk_map(table, set()).layout["xaxis"]
    assert axis["ticktext"][:3] == ["0", "5", "10"] and axis["tickvals"][:3] == [0, 5, 10]


def test_differences_per_batch_come_in_the_order_of_selection() -> None:
    per_batch = pd.DataFrame(
        {
            "batch_idx": [0, 0, 1, 1],
            "layer": [2, 2, 2, 2],
            "expert": [0, 1, 0, 1],
            "risk_diff": [0.1, 0.4, -0.2, 0.2],
        }
    )
    figure = differences_per_batch(per_batch, [(2, 1), (2, 0)])
    assert figure is not None and is_valid(figure)
    dots, means = figure.data
    assert list(zip(dots["x"], dots["y"], strict=True)) == [(0.4, 0), (0.2, 0), (0.1, 1), (-0.2, 1)]
    assert means["x"] == pytest.approx([0.3, -0.05])
    assert figure.layout["yaxis"]["ticktext"] == ["L02_E01", "L02_E00"]
    assert "2 experts in 2 batches, 1 of them above zero in every batch." in figure.description
    assert differences_per_batch(per_batch, []) is None


def test_the_training_curve_has_a_panel_for_each_loss_that_was_logged() -> None:
    history = [
        {"step": 1, "loss": 3.0, "refusal_loss": 2.5},
        {"step": 2, "loss": 1.0, "refusal_loss": float("nan")},
        {"step": 2, "train_loss": 2.0},
    ]
    figure = training_curve(history)
    assert figure is not None and is_valid(figure)
    assert [(trace["name"], trace["x"]) for trace in figure.data] == [
        ("loss", [1, 2]),
        ("refusal loss (cross entropy)", [1]),
    ]
    assert "Over 2 steps loss went from 3.000 to 1.000" in figure.description
    assert figure.layout["xaxis"]["dtick"] == 1
    assert training_curve([{"step": 2, "train_loss": 2.0}]) is None


# ---- words and numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (percent(0.0), "0 %"),
        (percent(1.0), "100 %"),
        (percent(1 / 12), "8.3 %"),
        (percent(0.9996), "100.0 %"),  # nearly all is not all
        (percent(float("nan")), "\N{EN DASH}"),
        (points(-0.05), "\N{MINUS SIGN}5.0 points"),
        (points(0.0), "0 points"),
        (signed(0.0), "0.000"),
        (signed(-0.00001), "0.000"),
        (signed(None), "\N{EN DASH}"),
        (p_value(0.0004), "< 0.001"),
        (p_value(1.0), "1.000"),
        (nats(0.00002), "< 0.0001"),
        (nats(0.0), "0.0000"),
        (integer(12345), "12,345"),
        (duration(3725.2), "1 h 2 min 5 s"),
        (duration(60), "1 min"),
        (duration(59.94), "59.9 s"),
        (memory(3_210_000_000), "2.99 GiB"),
        (model_name("/models/own-moe/"), "own-moe"),
        (model_name("Qwen/Qwen3-30B-A3B"), "Qwen/Qwen3-30B-A3B"),
    ],
)
def test_numbers_are_printed_as_people_read_them(printed: str, expected: str) -> None:
    assert printed.replace("\N{NO-BREAK SPACE}", " ") == expected


def test_a_rate_that_falls_is_said_to_fall_and_a_baseline_to_be_one() -> None:
    subject = Subject("m", "routers", "threshold", 3, 8, ("L00_E00", 0.1), 0.05, True, 4, "test")
    side = {"n": 4, "num_unscored": 0, "ci_low": 0.0, "ci_high": 1.0}
    evaluation = {
        "base": {"refusal_rate": side | {"value": 0.5}},
        "hardened": {"refusal_rate": side | {"value": 0.25}},
        "paired": {},
    }
    said = " ".join(headline(subject, evaluation)).replace("\N{NO-BREAK SPACE}", " ")
    assert "the routers of m were trained" in said and "baseline" in said
    assert "refusal fell from 50.0 % to 25.0 %" in said
    assert (
        title(subject, evaluation).replace("\N{NO-BREAK SPACE}", " ").endswith("down from 50.0 %")
    )


def test_a_change_of_nothing_is_not_called_chance() -> None:
    none = {"value": 0.0, "ci_low": 0.0, "ci_high": 0.0, "n": 4, "num_unscored": 0, "p_value": 1.0}
    said = cautions(
        {"base": {}, "hardened": {}, "paired": {"refusal_rate": none}}, "keyword", "test"
    )
    assert len(said) == 1 and "chance" not in said[0]
    some = none | {"value": 0.25}
    said = cautions(
        {"base": {}, "hardened": {}, "paired": {"refusal_rate": some}}, "keyword", "test"
    )
    assert "could be chance (p = 1.000)" in said[0]


def test_a_metric_of_one_side_only_leaves_the_other_cells_empty() -> None:
    only = {"value": 0.5, "ci_low": 0.1, "ci_high": 0.9, "n": 4, "num_unscored": 1}
    (row,) = metric_rows({"base": {"refusal_rate": only}, "hardened": {}, "paired": {}})
    assert row["after"]["value"] == "\N{EN DASH}" and row["n"] == "4"
    assert row["num_unscored"] == "1" and row["moved"] is None


def test_examples_are_spread_over_all_prompts() -> None:
    assert evenly_spaced(list(range(12)), 3) == [0, 4, 8]
    assert evenly_spaced([1, 2], 3) == [1, 2]


def test_settings_that_differ_are_listed_and_those_of_the_preset_marked() -> None:
    epsilon = preset(EMBEDDED_MODEL)["train"]["arguments"]["adam_epsilon"]
    arguments = {"save_steps": 10, "adam_epsilon": epsilon, "weight_decay": 0.5}
    config = validate(
        {"seed": 3, "collect": {"generation_batch_size": 192}, "train": {"arguments": arguments}}
    )
    rows = {row["key"]: row for row in changed_settings(config)}
    names = ["train.arguments.adam_epsilon", "train.arguments.weight_decay"]
    assert list(rows) == ["seed", "collect.generation_batch_size", *names]
    assert [rows[name]["shipped"] for name in names] == ["yes", ""]
    assert [(rows[name]["value"], rows[name]["default"]) for name in names] == [
        (str(epsilon), "empty"),
        ("0.5", "empty"),
    ]
    assert (rows["seed"]["value"], rows["seed"]["default"]) == ("3", "0")
    size = rows["collect.generation_batch_size"]
    assert (size["shipped"], rows["seed"]["shipped"]) == ("yes", "")


def test_how_it_was_made(usual: Page) -> None:
    counts = {row[0]: row[1:] for row in usual.table("Prompts by kind")}
    assert counts["harmful requests"] == ["16", "0", "12", "28"]
    assert counts["total"] == ["64", "0", "50", "114"]
    stages = {row[0]: row[1:] for row in usual.table("Time and peak memory")}
    assert stages["collect"][:3] == [
        "done",
        "3 min 23 s",
        "2.99 GiB",
    ]
    assert "report" not in stages
    assert "3fd2" * 16 in usual.text and "torch 2.13.0" in usual.text
    assert "1 pair left out of identification" in usual.text


# ---- in a browser -------------------------------------------------------------------------------------

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

MEASURE = """
<script>
const figures = [...document.querySelectorAll(".canvas")];
document.body.dataset.result = JSON.stringify({
  drawn: figures.filter((f) => f.querySelector("svg.main-svg")).map((f) => f.id),
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  colours: figures.map((f) => f.querySelector("text").style.fill),
});
</script></body>
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium")
@pytest.mark.parametrize(("shape", "width"), [((30, 8), 500), ((48, 128), 1200)])
def test_a_browser_draws_every_figure_without_errors(
    tmp_path: Path, shape: tuple[int, int], width: int
) -> None:
    run, config = make_run(tmp_path / "run", layers=range(shape[0]), num_experts=shape[1])
    source = page_of(run, config).source
    measured = tmp_path / "measured.html"
    head, _, tail = source.rpartition("</body>")
    measured.write_text(head + MEASURE + tail, "utf-8")
    assert BROWSER is not None
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --dump-dom"
    browser = subprocess.run(
        [
            BROWSER,
            *flags.split(),
            "--enable-logging=stderr",
            f"--window-size={width},1500",
            f"--user-data-dir={tmp_path / 'profile'}",
            measured.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert "CONSOLE" not in browser.stderr, browser.stderr[-2000:]
    found = re.search(r'<body[^>]*data-result="([^"]*)"', browser.stdout)
    assert found is not None
    result = json.loads(found.group(1).replace("&quot;", '"'))
    assert result["drawn"] == ["figure-risk-map", "figure-per-batch", "figure-training"]
    assert result["overflow"] == 0
    assert all(colour.startswith("rgb") for colour in result["colours"])
