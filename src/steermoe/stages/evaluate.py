"""Evaluate: every measure of every variant that has replied, or was fed texts.

It needs no model: replies, verdicts and values by token are there. So another confidence level, or another judge, costs
seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from steermoe.capability.items import BUILTIN_CAPABILITY
from steermoe.config import Config
from steermoe.contracts import Measure
from steermoe.judges.agreement import accuracy
from steermoe.measures import MEASURES
from steermoe.measures.corrected import with_corrections
from steermoe.measures.evidence import Intervals, Side, VariantEvidence
from steermoe.measures.groups import BY_GROUP
from steermoe.metrics import Comparison, Evaluation, MeasureRow, SidesOfSet
from steermoe.records import Prompt, Split, Verdict
from steermoe.reporter import Reporter
from steermoe.stages.benchmark_rows import benchmark_rows
from steermoe.store.capability_table import read_graded
from steermoe.store.directory import RunDirectory
from steermoe.store.label_table import read_labels
from steermoe.store.names import (
    BASE,
    EVALUATION,
    HARDENED,
    SCORED,
    WITHOUT,
    on_set,
    replies_of,
    scored_of,
    set_prompts_of,
    text_of,
)
from steermoe.store.names import MEASURES as MEASURES_FILE
from steermoe.store.state import Figures
from steermoe.store.variants import ablated_variants, intact_variant

ABLATION_SET = "ablation"
"""The set of prompts that ablated variants are measured on: so many of each kind of the evaluated split."""

TEXT = "text:"
"""Begins the name of the set that a text is; the name of its file follows."""

OF_WHOLE_SETS = tuple(measure for measure in MEASURES if measure not in BY_GROUP)
"""Those that do not divide a set: of the few prompts that ablated variants are measured on, nothing would be left."""

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
    collected = side_of(run, BASE, config.judge.main, prompts)
    base = collected
    if config.evaluates_other_replies:
        base = replies_on(run, on_set(BASE, split), config.judge.main, prompts)
    base = _with_capability(run, config, BASE, base)
    hardened = _with_capability(
        run, config, HARDENED, side_of(run, HARDENED, config.judge.main, prompts)
    )
    rows = _measure_both(config, str(split), prompts, base, hardened)
    for one in config.evaluate.sets:
        rows += _measure_set(run, config, one.name, reporter)
    rows += _measure_text(run, config)
    rows += benchmark_rows(run, config, intervals_of(config))
    rows += _measure_ablated(run, config, collected, prompts)
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


def _measure_both(
    config: Config, name: str, prompts: Mapping[str, Prompt], base: Side, hardened: Side
) -> list[MeasureRow]:
    """The measures of both models on a set of prompts, and the changes between them."""
    judge, intervals = config.judge.main, intervals_of(config)
    rows = measure(VariantEvidence(BASE, name, prompts, base, None, "", judge, intervals))
    return rows + measure(
        VariantEvidence(HARDENED, name, prompts, hardened, base, BASE, judge, intervals)
    )


def _measure_set(
    run: RunDirectory, config: Config, name: str, reporter: Reporter
) -> list[MeasureRow]:
    """The measures of both models on a named set; none, with a note, where one of them has not replied to it."""
    tables = [on_set(model, name) for model in (BASE, HARDENED)]
    if not all(run.has(replies_of(table)) for table in tables):
        reporter.note(f"set {name} is not measured: run steermoe evaluate to have replies to it")
        return []
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts(set_prompts_of(name))}
    base, hardened = (replies_on(run, table, config.judge.main, prompts) for table in tables)
    return _measure_both(config, name, prompts, base, hardened)


def _measure_text(run: RunDirectory, config: Config) -> list[MeasureRow]:
    """The perplexity of the user's text, where both models have read it."""
    path = config.evaluate.text_file
    if path is None or not all(run.has(text_of(model)) for model in (BASE, HARDENED)):
        return []
    base, hardened = (
        Side(text=[list(log_probs) for log_probs in run.read_table(text_of(model))["log_probs"]])
        for model in (BASE, HARDENED)
    )
    return _measure_both(config, f"{TEXT}{Path(path).name}", {}, base, hardened)


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
            reference = replace(base, scored=reference.scored)  # its replies are the run's own
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
            ),
            OF_WHOLE_SETS,
        )
    return rows


def measure(evidence: VariantEvidence, measures: Sequence[Measure] = MEASURES) -> list[MeasureRow]:
    """Every measure that is defined of a variant."""
    return [row for measure in measures for row in measure.of(evidence)]


def intervals_of(config: Config) -> Intervals:
    """How the intervals of all figures are made."""
    return Intervals(config.evaluate.confidence, config.evaluate.num_bootstrap, config.seed)


def side_of(run: RunDirectory, variant: str, judge: str, prompts: Mapping[str, Prompt]) -> Side:
    """What a run knows of a variant on some prompts."""
    replies = replies_on(run, variant, judge, prompts) if run.has(replies_of(variant)) else Side()
    scored: dict[tuple[str, str], Sequence[float]] | None = None
    if run.has(scored_of(variant)):
        table = run.read_scored(variant)
        scored = {
            (row["quantity"], row["prompt_id"]): row["values"].tolist()
            for row in table.to_dict("records")
        }
    return replace(replies, scored=scored)


def replies_on(run: RunDirectory, variant: str, judge: str, prompts: Mapping[str, Prompt]) -> Side:
    """A variant's replies to some prompts, as they were judged."""
    judged = run.read_judged(variant, judge)
    judged = judged[judged["prompt_id"].isin(prompts)]
    ids = judged["prompt_id"].tolist()
    answers, token_ids = run.read_answers(variant), run.read_token_ids(variant)
    return Side(
        verdicts=dict(zip(ids, judged["verdict"].tolist(), strict=True)),
        texts=dict(zip(ids, judged["generated_text"].tolist(), strict=True)),
        answers={i: answers[i] for i in ids},
        num_tokens=dict(zip(ids, judged["num_generated_tokens"].tolist(), strict=True)),
        token_ids={i: token_ids[i] for i in ids if i in token_ids},
    )


def _with_capability(run: RunDirectory, config: Config, variant: str, side: Side) -> Side:
    """The same with its answers to the items of `builtin:capability`, where both models were asked."""
    if BUILTIN_CAPABILITY not in config.evaluate.benchmarks:
        return side
    return replace(side, graded=read_graded(run, variant))


def as_evaluation(rows: Sequence[MeasureRow], split: str) -> Evaluation:
    """What `evaluation.json` holds: figures of both models on the split, and below those on every other set."""
    compared = [row for row in rows if row.variant in (BASE, HARDENED)]
    of_split = comparison([row for row in compared if row.set in (split, BUILTIN_CAPABILITY)])
    evaluation = Evaluation(
        split=split,
        base=of_split["base"],
        hardened=of_split["hardened"],
        paired=of_split["paired"],
    )
    if others := of_benchmarks(compared):
        evaluation["benchmarks"] = others
    own = {
        name: comparison([row for row in compared if row.set == name]) for name in _sets(compared)
    }
    own.pop(split, None)
    if own:
        evaluation["sets"] = own
    return evaluation


def _sets(rows: Sequence[MeasureRow]) -> list[str]:
    """The sets of prompts, their parts, and texts: all that no benchmark has asked."""
    return [name for name in dict.fromkeys(row.set for row in rows) if not _is_of_benchmark(name)]


def _is_of_benchmark(name: str) -> bool:
    """Whether a set is a benchmark's: its name begins with the tool and a colon."""
    return ":" in name.partition("/")[0] and not name.startswith(TEXT)


def comparison(rows: Sequence[MeasureRow]) -> Comparison:
    """The two models' own figures on a set, and the changes between them."""
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
    return Comparison(base=base, hardened=hardened, paired=paired)


def of_benchmarks(rows: Sequence[MeasureRow]) -> dict[str, SidesOfSet]:
    """By set and measure: the figures of benchmarks of both models, side by side.

    These are the categories of `builtin:capability`, and the tasks of other tools. Empty where there are none.
    """
    found: dict[str, SidesOfSet] = {}
    for row in rows:
        if _is_of_benchmark(row.set) and row.set != BUILTIN_CAPABILITY:
            side = "paired" if row.compared_with else row.variant
            figure = row.metric.as_json()
            figure["source"] = row.source
            found.setdefault(row.set, {}).setdefault(row.measure, {})[side] = figure
    return found
