"""Identify: from counts per response to the risk table and the unsafe experts.

Reads train responses only. The selection of every mixed batch is kept beside the global one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from steermoe.analysis.batch_selection import Selection, same_as_uncontrolled, select_experts
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.power import (
    EFFECT_VARIATION,
    check_findable,
    check_variation,
    prompts_needed,
    risk_diffs_to_find,
)
from steermoe.analysis.risk import risk_tables
from steermoe.analysis.selection import (
    SelectionSettings,
    how_to_select_more,
    selectable_layers,
)
from steermoe.analysis.variance import cluster_kinds
from steermoe.config import Config
from steermoe.errors import RoutingError
from steermoe.records import NO_BATCH, Expert
from steermoe.reporter import Reporter
from steermoe.stages.evidence import add_evidence, replication_of, train_contrast
from steermoe.store.directory import RunDirectory
from steermoe.store.names import RISK, RISK_PER_BATCH
from steermoe.store.selection_file import ExpertSet
from steermoe.store.state import Figures


def identify(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
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
    run.write_table(RISK, aggregated)
    run.write_selection(describe_selection(eligible, selection, contrast.counts, config))
    _say_selection(reporter, config, experts, eligible)
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
        **evidence.figures(settings.max_q_value, settings.min_stability),
        "replication": replication,
    }


def _say_selection(
    reporter: Reporter, config: Config, experts: Sequence[Expert], eligible: pd.DataFrame
) -> None:
    """How many experts were selected; where none was, what would select some."""
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


def power_table(
    run: RunDirectory,
    config: Config,
    risk_diffs: Sequence[float] = (),
    effect_variation: float = EFFECT_VARIATION,
) -> pd.DataFrame:
    """How many prompts a class are needed to find an expert, by its true risk difference; the run is the pilot.

    Args:
        run: An identified run.
        config: Its settings; the threshold and the q-value are what an expert must reach.
        risk_diffs: True risk differences to ask about; by default `risk_diffs_to_find`.
        effect_variation: How much an effect varies between prompts, standard deviation over mean.

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
    rule = run.read_selection().rule
    layers = selectable_layers(pilot["layer"].unique(), rule["first_layer"], rule["last_layer"])
    pilot = pilot[pilot["layer"].isin(layers)]
    threshold = config.identify.threshold
    asked = list(risk_diffs) or risk_diffs_to_find(pilot, threshold)
    check_variation(effect_variation)
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
                effect_variation=effect_variation,
            )
            row |= {name: getattr(found, name) for name in ("num_prompts", "power", "num_unsafe")}
            rows.append(row | {"note": ""})
        except RoutingError as error:
            rows.append(row | {"note": str(error)})
    return pd.DataFrame(rows)


def describe_selection(
    table: pd.DataFrame, selection: Selection, counts: RoutingCounts, config: Config
) -> ExpertSet:
    """What `unsafe_experts.json` holds: the experts, the rule that selected them, per batch and global."""
    settings = config.identify
    keys = zip(table["layer"], table["expert"], strict=True)
    risk_of = dict(zip(keys, table["risk_diff"].tolist(), strict=True))
    largest = table.iloc[0]
    return ExpertSet(
        rule={
            "name": settings.rule,
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
    )
