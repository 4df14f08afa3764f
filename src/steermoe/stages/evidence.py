"""The evidence beside each risk difference.

Every interval, p-value and half sample respects that groups of prompts which share a goal or a pair are independent of
one another, and that their members are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from steermoe.analysis import estimators
from steermoe.analysis.influences import cluster_robust_errors
from steermoe.analysis.replication import Resampling, replicate
from steermoe.analysis.risk import risk_tables
from steermoe.analysis.sensitivity import other_estimates
from steermoe.analysis.spread import ClassSpread, class_spread
from steermoe.analysis.stability import Stability, selection_stability
from steermoe.analysis.uncertainty import estimate_uncertainty, expert_frame, of_layers
from steermoe.config import Config
from steermoe.errors import RoutingError
from steermoe.records import Expert, ResponseSums, Split
from steermoe.reporter import Reporter
from steermoe.stages.contrast import Contrast, contrast_of, train_contrast
from steermoe.stages.explained import Explanation, explain_differences, flagged
from steermoe.store.directory import RunDirectory
from steermoe.store.names import RISK_HELD_OUT
from steermoe.store.state import Figures


@dataclass(frozen=True, slots=True)
class Evidence:
    """A risk table with what speaks for its differences beside them.

    Attributes:
        table: The aggregated risk table with its uncertainty, stability and confounds, as far as they are switched on.
        layers: The decoder layers that may be selected from.
        stability: What came of the halves of the goals; None where there were none.
        ratio_of_errors: Analytic standard error over the bootstrap's, the median of the experts that have both.
        explanation: What else may explain the differences.
        spread: How unlike the classes' spreads are; None without p-values.
    """

    table: pd.DataFrame
    layers: Sequence[int]
    stability: Stability | None
    ratio_of_errors: float | None
    explanation: Explanation
    spread: ClassSpread | None = None

    @property
    def eligible(self) -> pd.DataFrame:
        """The rows of the experts that may be selected."""
        return self.table[self.table["layer"].isin(self.layers)]

    def figures(self, max_q_value: float, min_stability: float) -> Figures:
        """How many experts pass what is not a threshold of risk difference alone, for `run.json`."""
        found: Figures = {}
        if "q_value" in self.table.columns:
            is_certain = self.eligible["q_value"] <= max_q_value
            found["num_experts_below_max_q_value"] = int(is_certain.sum())
        if self.ratio_of_errors is not None:
            found["median_ratio_of_analytic_error"] = self.ratio_of_errors
        if self.spread is not None:
            found["spread"] = self.spread.as_json()
        if "confounded_by" in self.table.columns:
            found["num_experts_confounded"] = int((self.table["confounded_by"] != "").sum())
        if self.stability is not None:
            is_stable = self.stability.table["stability"] >= min_stability
            found |= {
                "min_stability": min_stability,
                "num_stable_experts": int(is_stable.sum()),
                "mean_selected_by_half": self.stability.mean_selected,
                "stability_error_bound": self.stability.error_bound(min_stability),
            }
        return found | self.explanation.figures()


def add_evidence(
    table: pd.DataFrame,
    run: RunDirectory,
    contrast: Contrast,
    layers: Sequence[int],
    config: Config,
    reporter: Reporter,
) -> Evidence:
    """Put uncertainty, stability and confounds beside the risk differences of an aggregated table.

    `layers` are the decoder layers that may be selected from.
    """
    settings = config.identify
    goals = [str(cluster) for cluster in contrast.clusters]
    ratio, spread = None, None
    if settings.num_permutations and settings.num_bootstrap:
        uncertainty = estimate_uncertainty(
            contrast.counts,
            contrast.is_unsafe,
            goals,
            contrast.batch_idx,
            estimator=settings.estimator,
            segment=settings.segment,
            num_permutations=settings.num_permutations,
            num_bootstrap=settings.num_bootstrap,
            seed=config.seed,
            clusters=contrast.clusters,
            layers=layers,
            threshold=risk_threshold(config),
        )
        table = _joined(table, uncertainty)
        ratio = _ratio_of_errors(contrast, uncertainty, config)
        spread = class_spread(contrast.seen_by(settings.estimator, settings.segment))
        if warning := spread.warning():
            reporter.note(warning)
    stability = None
    if settings.num_subsamples:
        try:
            stability = _stability(contrast, goals, layers, config)
            table = _joined(table, stability.table)
        except RoutingError as error:
            reporter.note(f"no stability column: {error}")
    others = other_estimates(
        contrast.counts,
        contrast.is_unsafe,
        contrast.batch_idx,
        estimator=settings.estimator,
        segment=settings.segment,
    )
    explanation = explain_differences(run, contrast, layers, config)
    for name, reason in explanation.undefined.items():
        reporter.note(f"no column {name}: {reason}")
    table = flagged(_joined(table, others), explanation, risk_threshold(config))
    return Evidence(table, layers, stability, ratio, explanation, spread)


def risk_threshold(config: Config) -> float:
    """What risk differences are compared with: 0 where experts are ranked by another score, in its own unit."""
    settings = config.identify
    return settings.threshold if settings.rank_by == "risk_diff" else 0.0


def _ratio_of_errors(contrast: Contrast, uncertainty: pd.DataFrame, config: Config) -> float | None:
    """The cross-check of the bootstrap; None where no expert has two errors."""
    settings = config.identify
    analytic = cluster_robust_errors(contrast.seen_by(settings.estimator, settings.segment))
    bootstrap = uncertainty["risk_diff_se"].to_numpy()
    known = (analytic > 0) & (bootstrap > 0)
    return round(float(np.median(analytic[known] / bootstrap[known])), 4) if known.any() else None


def _stability(
    contrast: Contrast, goals: Sequence[str], layers: Sequence[int], config: Config
) -> Stability:
    """How often random halves of the goals select each expert."""
    settings = config.identify
    return selection_stability(
        contrast.counts,
        contrast.is_unsafe,
        goals,
        contrast.batch_idx,
        threshold=risk_threshold(config),
        top_k=settings.top_k,
        layers=layers,
        estimator=settings.estimator,
        segment=settings.segment,
        num_subsamples=settings.num_subsamples,
        seed=config.seed,
        clusters=contrast.clusters,
        rank_within=settings.rank_within,
    )


def replication_of(
    table: pd.DataFrame,
    selected: Sequence[Expert],
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    sums: ResponseSums | None = None,
) -> Figures | None:
    """Estimate the risk differences again on held-out goals, and compare. None where there are too few.

    Experts that are ranked by another score are compared by that: its `sums` of all responses are given.
    `table` holds the experts that may be selected; no others are compared. Pairs are taken whatever their verdicts: a
    filter by what became of them would make the same difference again.
    Writes `risk_diff_heldout.parquet`. It comes after the selection, which never sees these goals.
    """
    settings = config.identify
    run.remove(RISK_HELD_OUT)
    splits = [split for split in (Split.DEV, Split.TEST) if split in settings.replicate_on]
    try:
        contrast = contrast_of(run, config, splits, filtered=False)
        held_out = risk_tables(
            contrast.counts, contrast.is_unsafe, contrast.batch_idx, segment=settings.segment
        ).aggregated
    except RoutingError as error:
        reporter.note(f"the risk differences are not estimated again on held-out goals: {error}")
        return None
    run.write_table(RISK_HELD_OUT, held_out)
    layers = table["layer"].unique()
    pooled = contrast.seen_by("pooled", settings.segment, sums)
    if sums is not None:
        train = train_contrast(run, config).seen_by("pooled", settings.segment, sums)
        own = table.drop(columns="risk_diff_pooled")
        table = own.merge(_pooled_values(train, sums), on=["layer", "expert"])
        held_out = _pooled_values(pooled, sums)
    columns = np.flatnonzero(of_layers(contrast.counts, layers))
    found = replicate(
        table,
        held_out[held_out["layer"].isin(layers)],
        selected,
        Resampling(
            pooled.of_experts(columns),
            settings.num_permutations,
            settings.num_bootstrap,
            config.seed,
        ),
    )
    return {
        **asdict(found),
        "splits": [str(split) for split in splits],
        "num_goals": pooled.num_clusters,
        "filtered_by_verdict": False,
    }


def _pooled_values(seen: estimators.Contrast, sums: ResponseSums) -> pd.DataFrame:
    """A score over all tokens at once, in the column that replication compares."""
    return expert_frame(sums, {"risk_diff_pooled": seen.difference()})


def _joined(table: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    return table.merge(more, on=["layer", "expert"], how="left", validate="one_to_one")
