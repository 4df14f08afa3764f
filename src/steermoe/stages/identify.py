"""Identify: from counts per response to the risk table and the unsafe experts.

Reads train responses only. The selection of every mixed batch is kept beside the global one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from steermoe.analysis.after_selection import (
    TOLERABLE_FALSE_SHARE,
    expected_false_share,
    with_false_coverage_intervals,
)
from steermoe.analysis.batch_selection import Selection, same_as_uncontrolled, select_experts
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.power import check_findable, prompts_needed, risk_diffs_to_find
from steermoe.analysis.risk import expert_label, risk_tables
from steermoe.analysis.selection import (
    Expert,
    SelectionSettings,
    how_to_select_more,
    selectable_layers,
)
from steermoe.analysis.sensitivity import sensitivity_of
from steermoe.analysis.variance import cluster_kinds
from steermoe.config import Config
from steermoe.errors import RoutingError
from steermoe.records import NO_BATCH
from steermoe.reporter import Reporter
from steermoe.stages.contrast import train_contrast
from steermoe.stages.evidence import add_evidence, replication_of
from steermoe.store.directory import RISK, RISK_PER_BATCH, UNSAFE_EXPERTS, RunDirectory

AFTER_SELECTION = ("estimate", "shrunken", "fcr_low", "fcr_high", "q_value", "local_fdr")
"""What `unsafe_experts.json` says of each selected expert, where it is known."""


def identify(run: RunDirectory, config: Config, reporter: Reporter) -> dict[str, Any]:
    """Compute the risk tables and select the unsafe experts.

    Writes `risk_diff_per_batch.parquet`, `risk_diff.parquet`, `unsafe_experts.json` and, to compare with,
    `risk_diff_heldout.parquet`.

    Returns:
        Figures for `run.json`: how many experts were selected, what was left out.
    """
    settings = config.identify
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
    by = SelectionSettings(
        settings.threshold,
        settings.top_k,
        settings.max_q_value,
        settings.min_stability,
        config.seed,
    )
    selection = select_experts(eligible, tables.per_batch, settings.rule, by)
    experts = selection.overall
    run.write_table(RISK_PER_BATCH, tables.per_batch)
    aggregated = with_false_coverage_intervals(aggregated, experts, len(eligible))
    run.write_table(RISK, aggregated)
    run.write_json(
        UNSAFE_EXPERTS,
        describe_selection(aggregated.loc[eligible.index], selection, contrast.counts, config),
    )
    false_share = expected_false_share(eligible, experts)
    _say_selection(reporter, config, experts, eligible, false_share)
    for which in same_as_uncontrolled(eligible, tables.per_batch, settings.rule, by):
        reporter.note(
            f"identify.rule = {settings.rule!r} selects the same experts as 'threshold' (train.experts = {which!r}), "
            "so it is no control: too many of the candidates are selected; raise identify.threshold, or allow more "
            "layers"
        )
    replication = replication_of(eligible, experts, run, config, reporter)
    return {
        "num_unsafe_experts": len(experts),
        "num_experts_in_all": len(aggregated),
        "num_candidates": len(eligible),
        "num_pairs_left_out_by_verdict": contrast.num_pairs_left_out,
        "num_safe_responses": int((~contrast.is_unsafe).sum()),
        "num_unsafe_responses": int(contrast.is_unsafe.sum()),
        "expected_false_share": false_share,
        "fixed_before": {"estimator": settings.estimator, "segment": settings.segment},
        "sensitivity": sensitivity_of(eligible, experts),
        **evidence.figures(settings.max_q_value, settings.min_stability),
        "replication": replication,
    }


def _say_selection(
    reporter: Reporter,
    config: Config,
    experts: Sequence[Expert],
    eligible: pd.DataFrame,
    false_share: float | None,
) -> None:
    """How many experts were selected, and how many of them falsely; where none was, what would select some."""
    settings = config.identify
    largest = eligible.iloc[0]
    if not experts:
        reporter.note(
            f"no expert was selected by rule {settings.rule!r} (threshold {settings.threshold}); the largest risk "
            f"difference is {largest['risk_diff']:+.4f} ({largest['Layer_Expert']}): "
            f"{how_to_select_more(settings.rule, settings.threshold, largest['risk_diff'])}"
        )
    else:
        reporter.line(
            f"identified {len(experts)} unsafe experts of {len(eligible)}; the largest risk difference is "
            f"{largest['risk_diff']:+.4f} ({largest['Layer_Expert']})"
        )
    if false_share is not None:
        reporter.line(f"expected to be false among the selected: {false_share:.0%}")
        if false_share > TOLERABLE_FALSE_SHARE:
            reporter.note(
                f"{false_share:.0%} of the selected experts are expected not to fire more often on unsafe content at "
                "all: select by identify.rule=fdr, raise identify.threshold, or use more prompts"
            )


def power_table(
    run: RunDirectory, config: Config, risk_diffs: Sequence[float] = ()
) -> pd.DataFrame:
    """How many prompts a class are needed to find an expert, by its true risk difference; the run is the pilot.

    Args:
        run: An identified run.
        config: Its settings; the threshold and the q-value are what an expert must reach.
        risk_diffs: True risk differences to ask about; by default `risk_diffs_to_find`.

    Returns:
        Columns `risk_diff, num_prompts, power, num_unsafe, note`: at least one row. Where no number of prompts is
        enough, `note` says why and the numbers are None.

    Raises:
        RunDirectoryError: The run has no risk table.
        RoutingError: Its table has no standard errors, or a risk difference asked for cannot be found reliably.
    """
    pilot = run.read_table(RISK)
    if "risk_diff_se" not in pilot.columns:
        raise RoutingError(
            "the run's risk table has no standard errors: set identify.num_permutations and num_bootstrap above 0"
        )
    rule = run.read_unsafe_experts()["rule"]
    layers = selectable_layers(pilot["layer"].unique(), rule["first_layer"], rule["last_layer"])
    pilot = pilot[pilot["layer"].isin(layers)]
    threshold = config.identify.threshold
    asked = list(risk_diffs) or risk_diffs_to_find(pilot, threshold)
    for risk_diff in asked:
        check_findable(risk_diff, threshold)
    # The responses that the standard errors come from: the table's own estimator's, in its own segment.
    used = train_contrast(run, config).seen_by(pilot["estimator"].iloc[0], rule["segment"])
    num_unsafe = int(used.is_unsafe.sum())
    has_unsafe, has_safe = cluster_kinds(used)
    pilot = pilot.assign(n_unsafe=used.tokens[used.is_unsafe].sum())
    rows: list[dict[str, Any]] = []
    for risk_diff in asked:
        row = {"risk_diff": risk_diff, "num_prompts": None, "power": None, "num_unsafe": None}
        try:
            found = prompts_needed(
                pilot,
                min(num_unsafe, len(used) - num_unsafe),
                risk_diff=risk_diff,
                max_q_value=config.identify.max_q_value,
                threshold=threshold,
                paired=bool((has_unsafe & has_safe).any()),
            )
            row |= {name: getattr(found, name) for name in ("num_prompts", "power", "num_unsafe")}
            rows.append(row | {"note": ""})
        except RoutingError as error:
            rows.append(row | {"note": str(error)})
    return pd.DataFrame(rows)


def describe_selection(
    table: pd.DataFrame,
    selection: Selection,
    counts: RoutingCounts,
    config: Config,
) -> dict[str, Any]:
    """What `unsafe_experts.json` holds: the experts, the rule that selected them, per batch and global."""
    keys = zip(table["layer"], table["expert"], strict=True)
    risk_of = dict(zip(keys, table["risk_diff"].tolist(), strict=True))
    largest = table.iloc[0]
    shown = [name for name in AFTER_SELECTION if name in table.columns]
    rows = zip(table["layer"], table["expert"], table[shown].to_dict("records"), strict=True)
    evidence_of = {(layer, expert): record for layer, expert, record in rows}
    return {
        "rule": {
            "name": config.identify.rule,
            "threshold": config.identify.threshold,
            "top_k": config.identify.top_k,
            "max_q_value": config.identify.max_q_value,
            "min_stability": config.identify.min_stability,
            "first_layer": config.identify.first_layer,
            "last_layer": config.identify.last_layer,
            "segment": config.identify.segment,
            "estimator": config.identify.estimator,
            "seed": config.seed,
        },
        "layer_indices": list(counts.layer_indices),
        "num_experts": counts.num_experts,
        "num_unsafe_experts": len(selection.overall),
        "expected_false_share": expected_false_share(table, selection.overall),
        "unsafe_experts": [
            {
                "layer": layer,
                "expert": expert,
                "Layer_Expert": expert_label(layer, expert),
                "risk_diff": risk_of[(layer, expert)],
                **evidence_of.get((layer, expert), {}),
            }
            for layer, expert in selection.overall
        ],
        "per_batch": [
            {"batch_idx": batch_idx, "unsafe_experts": [list(pair) for pair in chosen]}
            for batch_idx, chosen in sorted(selection.per_batch.items())
            if batch_idx != NO_BATCH
        ],
        "union": [list(pair) for pair in selection.union],
        "largest_risk_diff": {
            "Layer_Expert": str(largest["Layer_Expert"]),
            "risk_diff": float(largest["risk_diff"]),
        },
    }


def selected_experts(run: RunDirectory, which: str = "global") -> list[Expert]:
    """The experts of a run: the global selection, or the union of the batches' own."""
    selection = run.read_unsafe_experts()
    if which == "union":
        return [(int(layer), int(expert)) for layer, expert in selection["union"]]
    return [(int(row["layer"]), int(row["expert"])) for row in selection["unsafe_experts"]]
