"""Evaluate: every measure of every variant that has replied, or was fed texts.

It needs no model: replies, verdicts and values by token are there. So another confidence level, or another judge, costs
seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from steermoe.capability.items import BUILTIN_CAPABILITY
from steermoe.config import Config
from steermoe.judges.agreement import accuracy
from steermoe.measures import MEASURES
from steermoe.measures.corrected import with_corrections
from steermoe.measures.evidence import Intervals, Side, VariantEvidence
from steermoe.records import (
    Evaluation,
    MeasureRow,
    Prompt,
    SidesOfSet,
    Split,
    Verdict,
)
from steermoe.reporter import Reporter
from steermoe.stages.ablate import ablated_variants, intact_variant
from steermoe.stages.benchmarks import benchmark_rows
from steermoe.store.capability_table import read_graded
from steermoe.store.directory import RunDirectory
from steermoe.store.label_table import read_labels
from steermoe.store.names import BASE, EVALUATION, HARDENED, SCORED, WITHOUT, replies_of, scored_of
from steermoe.store.names import MEASURES as MEASURES_FILE
from steermoe.store.state import Figures

ABLATION_SET = "ablation"
"""The set of prompts that ablated variants are measured on: so many of each kind of the evaluated split."""

LEADING_TOKENS = ", leading tokens"
"""Of the replies that ablated variants are fed."""


def evaluate(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Measure the base model and the hardened one, and the changes between them.

    Writes `measures.parquet`, and `evaluation.json` from it; removes both where nothing was hardened, or held out.
    """
    split = Split(config.evaluate.split)
    prompts = {p.prompt_id: p for p in run.read_prompts() if p.split is split}
    if not prompts or not run.has(replies_of(HARDENED)):
        run.remove(MEASURES_FILE)
        run.remove(EVALUATION)
        return {}
    intervals = intervals_of(config)
    base = _with_capability(run, config, BASE, side_of(run, BASE, config.judge.main, prompts))
    hardened = _with_capability(
        run, config, HARDENED, side_of(run, HARDENED, config.judge.main, prompts)
    )
    rows = measure(
        VariantEvidence(BASE, str(split), prompts, base, None, "", config.judge.main, intervals)
    )
    rows += measure(
        VariantEvidence(
            HARDENED, str(split), prompts, hardened, base, BASE, config.judge.main, intervals
        )
    )
    rows += benchmark_rows(run, config, intervals)
    rows += _measure_ablated(run, config, base, prompts)
    rows = _corrected(run, config, reporter, rows)
    run.write_measures(rows)
    run.write_json(EVALUATION, as_evaluation(run.read_measures(), str(split)))
    reporter.line(f"evaluated {len(hardened.verdicts)} {split} prompts: {len(rows)} figures")
    return {"num_prompts": len(hardened.verdicts), "num_figures": len(rows)}


def _corrected(
    run: RunDirectory, config: Config, reporter: Reporter, rows: list[MeasureRow]
) -> list[MeasureRow]:
    """The figures, with corrected rates beside those of the judge where people have labelled replies."""
    labels, num_gone = read_labels(run, (BASE, HARDENED))
    if num_gone:
        reporter.note(
            f"{num_gone} labels are of replies that the run no longer holds, and correct nothing; label a new sheet "
            "(steermoe judge --sample)"
        )
    if not labels:
        return rows
    verdicts = {
        (variant, prompt_id): Verdict(verdict)
        for variant in (BASE, HARDENED)
        for prompt_id, verdict in run.read_verdicts(variant, config.judge.main).items()
    }
    found = accuracy(verdicts, labels, config.evaluate.confidence)
    return with_corrections(rows, config.judge.main, found, config.evaluate.confidence)


def _measure_ablated(
    run: RunDirectory, config: Config, base: Side, prompts: Mapping[str, Prompt]
) -> list[MeasureRow]:
    """The measures of every variant with experts switched off, against the same model with none switched off."""
    rows: list[MeasureRow] = []
    sides = {
        variant: side_of(run, variant, config.judge.main, prompts)
        for variant in ablated_variants(run, SCORED)
    }
    for variant, side in sides.items():
        model = variant.partition(WITHOUT)[0]
        intact = intact_variant(model)
        fed = {prompt_id for _, prompt_id in side.scored or {}}
        chosen = {i: prompt for i, prompt in prompts.items() if i in fed}
        reference = sides.get(intact) if variant != intact else None
        if reference is not None and model == BASE:
            reference = replace(reference, verdicts=base.verdicts)  # its replies are the run's own
        rows += measure(
            VariantEvidence(
                variant,
                ABLATION_SET,
                chosen,
                side,
                reference,
                intact if reference is not None else "",
                config.judge.main,
                intervals_of(config),
                LEADING_TOKENS,
            )
        )
    return rows


def measure(evidence: VariantEvidence) -> list[MeasureRow]:
    """Every measure that is defined of a variant."""
    return [row for measure in MEASURES for row in measure.of(evidence)]


def intervals_of(config: Config) -> Intervals:
    """How the intervals of all figures are made."""
    return Intervals(config.evaluate.confidence, config.evaluate.num_bootstrap, config.seed)


def side_of(run: RunDirectory, variant: str, judge: str, prompts: Mapping[str, Prompt]) -> Side:
    """What a run knows of a variant on some prompts."""
    verdicts: dict[str, str] = {}
    texts: dict[str, str] = {}
    if run.has(replies_of(variant)):
        judged = run.read_judged(variant, judge)
        judged = judged[judged["prompt_id"].isin(prompts)]
        verdicts = dict(zip(judged["prompt_id"], judged["verdict"], strict=True))
        texts = dict(zip(judged["prompt_id"], judged["generated_text"], strict=True))
    scored: dict[tuple[str, str], Sequence[float]] | None = None
    if run.has(scored_of(variant)):
        table = run.read_scored(variant)
        scored = {
            (row["quantity"], row["prompt_id"]): row["values"].tolist()
            for row in table.to_dict("records")
        }
    return Side(verdicts, texts, scored)


def _with_capability(run: RunDirectory, config: Config, variant: str, side: Side) -> Side:
    """The same with its answers to the items of `builtin:capability`, where both models were asked."""
    if BUILTIN_CAPABILITY not in config.evaluate.benchmarks:
        return side
    return replace(side, graded=read_graded(run, variant))


def as_evaluation(rows: Sequence[MeasureRow], split: str) -> Evaluation:
    """What `evaluation.json` holds: the two models' own figures, and the changes between them."""
    all_rows, rows = rows, [row for row in rows if row.set in (split, BUILTIN_CAPABILITY)]
    base, hardened = (
        {
            row.measure: row.metric.as_json()
            for row in rows
            if row.variant == variant and not row.compared_with
        }
        for variant in (BASE, HARDENED)
    )
    paired = {
        row.measure: row.metric.as_json()
        for row in rows
        if row.variant == HARDENED and row.compared_with == BASE
    }
    for found in paired.values():
        if "only_before" in found:
            found.setdefault("p_value", None)  # of no pair there is none
    evaluation = Evaluation(split=split, base=base, hardened=hardened, paired=paired)
    if others := of_other_sets(all_rows, split):
        evaluation["benchmarks"] = others
    return evaluation


def of_other_sets(rows: Sequence[MeasureRow], split: str) -> dict[str, SidesOfSet]:
    """By set and measure: the figures of other sets of both models, side by side.

    These are the categories of `builtin:capability`, and the tasks of other tools. Empty where there are none.
    """
    found: dict[str, SidesOfSet] = {}
    for row in rows:
        if row.variant in (BASE, HARDENED) and row.set not in (split, BUILTIN_CAPABILITY):
            side = "paired" if row.compared_with else row.variant
            figure = row.metric.as_json()
            figure["source"] = row.source
            found.setdefault(row.set, {}).setdefault(row.measure, {})[side] = figure
    return found
