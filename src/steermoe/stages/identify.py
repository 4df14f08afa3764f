"""Identify: from counts per response to the risk table and the unsafe experts.

Reads train responses only. The selection of every mixed batch is kept beside the global one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from steermoe.analysis.after_selection import (
    TOLERABLE_FALSE_SHARE,
    expected_false_share,
    with_false_coverage_intervals,
)
from steermoe.analysis.batch_selection import Selection, same_as_uncontrolled, select_experts
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.risk import risk_tables
from steermoe.analysis.selection import (
    SCORE,
    SelectionSettings,
    how_to_select_more,
    ranked_by,
    selectable_layers,
)
from steermoe.analysis.sensitivity import sensitivity_of
from steermoe.config import Config
from steermoe.records import NO_BATCH, Expert
from steermoe.reporter import Reporter
from steermoe.scores import RISK_DIFF
from steermoe.stages.contrast import train_contrast
from steermoe.stages.doubts import doubts_about_replies
from steermoe.stages.evidence import add_evidence, replication_of
from steermoe.stages.scoring import score_experts
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE, RISK, RISK_PER_BATCH, SCORES
from steermoe.store.selection_file import ExpertSet
from steermoe.store.state import Figures

AFTER_SELECTION = (SCORE, "estimate", "shrunken", "fcr_low", "fcr_high", "q_value", "local_fdr")
"""What `unsafe_experts.json` says of each selected expert, where it is known."""


def identify(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Compute the risk tables and select the unsafe experts.

    Writes `risk_diff_per_batch.parquet`, `risk_diff.parquet`, `scores.parquet`, `unsafe_experts.json` and, to compare
    with, `risk_diff_heldout.parquet`.

    Returns:
        Figures for `run.json`: how many experts were selected, what was left out.
    """
    settings = config.identify
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts()}
    for doubt in doubts_about_replies(run.read_judged(BASE, config.judge.main), prompts):
        reporter.note(doubt)
    contrast = train_contrast(run, config, reporter)
    layers = selectable_layers(
        contrast.counts.layer_indices, settings.first_layer, settings.last_layer
    )
    tables = risk_tables(
        contrast.counts, contrast.is_unsafe, contrast.batch_idx, segment=settings.segment
    )
    for note in tables.notes:
        reporter.note(note)
    evidence = add_evidence(tables.aggregated, run, contrast, layers, config, reporter)
    aggregated, eligible = evidence.table, evidence.eligible
    by = _rule_settings(config)
    scored = score_experts(run, contrast, evidence, config, reporter)
    ranked, per_batch = scored.ranked(eligible), scored.ranked_per_batch(tables.per_batch)
    selection = select_experts(ranked, per_batch, settings.rule, by)
    experts = selection.overall
    run.write_table(RISK_PER_BATCH, tables.per_batch)
    aggregated = with_false_coverage_intervals(aggregated, experts, len(eligible))
    eligible = aggregated.loc[eligible.index]
    run.write_table(RISK, aggregated)
    run.write_table(SCORES, scored.table)
    ranked = scored.ranked(eligible)
    false_shares = {
        "expected_false_share": expected_false_share(ranked, experts),
        "expected_false_share_of_union": expected_false_share(ranked, selection.union),
    }
    run.write_selection(
        describe_selection(ranked, selection, contrast.counts, config, false_shares)
    )
    _say_selection(reporter, config, experts, ranked, *false_shares.values())
    for which in same_as_uncontrolled(ranked, per_batch, settings.rule, by):
        reporter.note(_no_control(settings.rule, which))
    replication = replication_of(eligible, experts, run, config, reporter, scored.sums)
    return {
        "num_unsafe_experts": len(experts),
        "num_experts_in_all": len(aggregated),
        "num_candidates": len(eligible),
        "num_pairs_left_out_by_verdict": contrast.num_pairs_left_out,
        "num_safe_responses": int((~contrast.is_unsafe).sum()),
        "num_unsafe_responses": int(contrast.is_unsafe.sum()),
        **false_shares,
        "fixed_before": {"estimator": settings.estimator, "segment": settings.segment},
        "sensitivity": sensitivity_of(eligible, experts),
        **evidence.figures(settings.max_q_value, settings.min_stability),
        "replication": replication,
    }


def _rule_settings(config: Config) -> SelectionSettings:
    """What the named rules go by."""
    settings = config.identify
    return SelectionSettings(
        settings.threshold,
        settings.top_k,
        settings.max_q_value,
        settings.min_stability,
        config.seed,
        settings.rank_within,
    )


def _no_control(rule: str, which: str) -> str:
    return (
        f"identify.rule = {rule!r} selects the same experts as 'threshold' (train.experts = {which!r}), so it is no "
        "control: too many of the candidates are selected; raise identify.threshold, or allow more layers"
    )


def _say_selection(
    reporter: Reporter,
    config: Config,
    experts: Sequence[Expert],
    eligible: pd.DataFrame,
    false_share: float | None,
    of_union: float | None,
) -> None:
    """How many experts were selected, and how many of them falsely; where none was, what would select some."""
    settings = config.identify
    largest = eligible.iloc[0]
    value = float(largest[ranked_by(eligible)])
    of = "risk difference" if settings.rank_by == RISK_DIFF else settings.rank_by
    leader = f"the largest {of} is {value:+.4{'f' if of == 'risk difference' else 'g'}} ({largest['Layer_Expert']})"
    if not experts:
        reporter.note(
            f"no expert was selected by rule {settings.rule!r} (threshold {settings.threshold}); {leader}: "
            f"{how_to_select_more(settings.rule, settings.threshold, value)}"
        )
    else:
        reporter.line(f"identified {len(experts)} unsafe experts of {len(eligible)}; {leader}")
    if false_share is not None:
        union = "" if of_union is None else f"; of the union of the batches' own: {of_union:.0%}"
        reporter.line(f"expected to be false among the selected: {false_share:.0%}{union}")
        if false_share > TOLERABLE_FALSE_SHARE:
            what = (
                "fire more often"
                if settings.rank_by == RISK_DIFF
                else f"have more {settings.rank_by}"
            )
            reporter.note(
                f"{false_share:.0%} of the selected experts are expected not to {what} on unsafe content at "
                "all: select by identify.rule=fdr, raise identify.threshold, or use more prompts"
            )


def describe_selection(
    table: pd.DataFrame,
    selection: Selection,
    counts: RoutingCounts,
    config: Config,
    false_shares: Mapping[str, float | None],
) -> ExpertSet:
    """What `unsafe_experts.json` holds: the experts, the rule that selected them, per batch and global."""
    settings = config.identify
    keys = zip(table["layer"], table["expert"], strict=True)
    risk_of = dict(zip(keys, table["risk_diff"].tolist(), strict=True))
    largest = table.iloc[0]
    return ExpertSet(
        rule={
            "name": settings.rule,
            "rank_by": settings.rank_by,
            "rank_within": settings.rank_within,
            "threshold": settings.threshold,
            "top_k": settings.top_k,
            "max_q_value": settings.max_q_value,
            "min_stability": settings.min_stability,
            "first_layer": settings.first_layer,
            "last_layer": settings.last_layer,
            "segment": settings.segment,
            "estimator": settings.estimator,
            "seed": config.seed,
        },
        layer_indices=counts.layer_indices,
        num_experts=counts.num_experts,
        overall=tuple((Expert(*pair), risk_of[pair]) for pair in selection.overall),
        per_batch={
            batch_idx: tuple(Expert(*pair) for pair in chosen)
            for batch_idx, chosen in selection.per_batch.items()
            if batch_idx != NO_BATCH
        },
        largest=(
            Expert(int(largest["layer"]), int(largest["expert"])),
            float(largest["risk_diff"]),
        ),
        more={
            **false_shares,
            "after_selection": _after_selection(table, selection.overall),
        },
    )


def _after_selection(table: pd.DataFrame, experts: Sequence[Expert]) -> list[dict[str, object]]:
    """What may be said of each selected expert, in the order of the rule, as far as it is known."""
    shown = ["Layer_Expert", *(name for name in AFTER_SELECTION if name in table.columns)]
    keys = zip(table["layer"], table["expert"], strict=True)
    row_of = dict(zip(keys, table[shown].to_dict("records"), strict=True))
    return [{str(name): value for name, value in row_of[expert].items()} for expert in experts]
