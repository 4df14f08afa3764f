"""What identification compares, and the evidence beside each risk difference.

The unit is the response, and groups of prompts that share a goal or a pair are independent of one another: every
interval, p-value and half sample respects them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from steermoe.analysis import estimators
from steermoe.analysis.confounds import confound_differences, flag_confounded
from steermoe.analysis.counts import RoutingCounts, Segment
from steermoe.analysis.estimators import Estimator
from steermoe.analysis.replication import replicate
from steermoe.analysis.risk import risk_tables
from steermoe.analysis.selection import Expert
from steermoe.analysis.stability import Stability, selection_stability
from steermoe.analysis.uncertainty import estimate_uncertainty
from steermoe.analysis.variance import cluster_robust_errors
from steermoe.config import Config
from steermoe.errors import RoutingError
from steermoe.prompts.splits import goal_groups
from steermoe.records import BoolArray, IntArray, Label, Prompt, Split, Verdict
from steermoe.reporter import Reporter
from steermoe.store.directory import RISK_HELD_OUT, RunDirectory


@dataclass(frozen=True, slots=True)
class Contrast:
    """The N safe and unsafe responses that are compared, aligned row by row.

    Attributes:
        counts: Their routing counts.
        is_unsafe: `(N,)`.
        batch_idx: `(N,)` mixed batch, -1 for none.
        clusters: `(N,)` ids of groups of prompts that share a goal or a pair: the units that are independent.
        num_pairs_left_out: Pairs that the verdict filter took away.
    """

    counts: RoutingCounts
    is_unsafe: BoolArray
    batch_idx: IntArray
    clusters: IntArray
    num_pairs_left_out: int = 0

    def seen_by(self, estimator: Estimator, segment: Segment) -> estimators.Contrast:
        """The responses that an estimator uses of them."""
        return estimators.build_contrast(
            self.counts, self.is_unsafe, self.batch_idx, self.clusters, estimator, segment
        )


def train_contrast(run: RunDirectory, config: Config, reporter: Reporter | None = None) -> Contrast:
    """The train responses that identification compares, after the verdict filter."""
    return contrast_of(run, config, (Split.TRAIN,), reporter)


def contrast_of(
    run: RunDirectory,
    config: Config,
    splits: Sequence[Split],
    reporter: Reporter | None = None,
) -> Contrast:
    """The safe and unsafe responses of some splits, after the verdict filter."""
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts()}
    responses = run.read_responses()
    chosen = responses["split"].isin(splits) & (responses["label"] != Label.BENIGN)
    left_out: set[str] = set()
    if config.identify.filter_by_verdict:
        left_out = pairs_without_contrast(responses[chosen], prompts)
        pair_ids = responses["prompt_id"].map(lambda prompt_id: prompts[prompt_id].pair_id)
        chosen &= ~pair_ids.isin(left_out)
        if left_out and reporter is not None:
            reporter.note(
                f"{len(left_out)} pairs are left out of identification: their plain goal was not refused, or their "
                "jailbreak was (identify.filter_by_verdict)"
            )
        if left_out and responses[chosen]["label"].nunique() < 2:
            raise RoutingError(
                f"all {len(left_out)} pairs of plain goal and jailbreak are left out, so there is nothing to compare: "
                "the model refuses no plain goal, or every jailbreak; set identify.filter_by_verdict=false"
            )
    positions = np.flatnonzero(chosen.to_numpy())
    rows = responses.iloc[positions]
    clusters = np.zeros(len(rows), dtype=np.int64)
    for cluster, members in enumerate(goal_groups([prompts[i] for i in rows["prompt_id"]])):
        clusters[members] = cluster
    return Contrast(
        counts=run.read_counts().select(positions),
        is_unsafe=(rows["label"] == Label.UNSAFE).to_numpy(dtype=np.bool_),
        batch_idx=rows["batch_idx"].to_numpy(dtype=np.int64),
        clusters=clusters,
        num_pairs_left_out=len(left_out),
    )


def pairs_without_contrast(responses: pd.DataFrame, prompts: Mapping[str, Prompt]) -> set[str]:
    """Pairs of plain goal and jailbreak in which the plain one was not refused or the jailbreak was.

    Only pairs that hold a plain goal are looked at. A verdict that is unscored shows no contrast either.
    """
    verdicts: dict[str, dict[str, list[str]]] = {}
    plain: set[str] = set()
    for row in responses.itertuples():
        prompt = prompts[str(row.prompt_id)]
        if not prompt.pair_id:
            continue
        verdicts.setdefault(prompt.pair_id, {}).setdefault(prompt.label, []).append(
            str(row.verdict)
        )
        if prompt.is_plain_goal:
            plain.add(prompt.pair_id)
    return {
        pair_id
        for pair_id in plain
        if any(v != Verdict.REFUSED for v in verdicts[pair_id].get(Label.SAFE, []))
        or any(v != Verdict.ANSWERED for v in verdicts[pair_id].get(Label.UNSAFE, []))
    }


@dataclass(frozen=True, slots=True)
class Evidence:
    """A risk table with what speaks for its differences beside them.

    Attributes:
        table: The aggregated risk table with its uncertainty, stability and confounds, as far as they are switched on.
        layers: The decoder layers that may be selected from.
        stability: What came of the halves of the goals; None where there were none.
        ratio_of_errors: Analytic standard error over the bootstrap's, the median of the experts that have both.
    """

    table: pd.DataFrame
    layers: Sequence[int]
    stability: Stability | None
    ratio_of_errors: float | None

    @property
    def eligible(self) -> pd.DataFrame:
        """The rows of the experts that may be selected."""
        return self.table[self.table["layer"].isin(self.layers)]

    def figures(self, max_q_value: float, min_stability: float) -> dict[str, float]:
        """How many experts pass what is not a threshold of risk difference alone, for `run.json`."""
        found: dict[str, float] = {}
        if "q_value" in self.table.columns:
            is_certain = self.eligible["q_value"] <= max_q_value
            found["num_experts_below_max_q_value"] = int(is_certain.sum())
        if self.ratio_of_errors is not None:
            found["median_ratio_of_analytic_error"] = self.ratio_of_errors
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
        return found


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
    ratio = None
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
        )
        table = _joined(table, uncertainty)
        ratio = _ratio_of_errors(contrast, uncertainty, config)
    stability = None
    if settings.num_subsamples:
        try:
            stability = _stability(contrast, goals, layers, config)
            table = _joined(table, stability.table)
        except RoutingError as error:
            reporter.note(f"no stability column: {error}")
    return Evidence(_with_confounds(table, run, config), layers, stability, ratio)


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
        threshold=settings.threshold,
        top_k=settings.top_k,
        layers=layers,
        estimator=settings.estimator,
        segment=settings.segment,
        num_subsamples=settings.num_subsamples,
        seed=config.seed,
        clusters=contrast.clusters,
    )


def _with_confounds(table: pd.DataFrame, run: RunDirectory, config: Config) -> pd.DataFrame:
    """Contrasts of harmless prompts with one another: how much of a risk difference is topic or format."""
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts()}
    responses = run.read_responses()
    positions = np.flatnonzero((responses["split"] == Split.TRAIN).to_numpy())
    chosen = [prompts[str(prompt_id)] for prompt_id in responses["prompt_id"].iloc[positions]]
    in_format = [p.is_benign_in_format for p in chosen]
    differences = confound_differences(
        run.read_counts().select(positions),
        is_benign=[p.label is Label.BENIGN and not p.is_benign_in_format for p in chosen],
        is_look_alike=[p.is_look_alike for p in chosen],
        is_benign_in_format=in_format if any(in_format) else None,
        segment=config.identify.segment,
    )
    if set(differences.columns) <= {"layer", "expert"}:
        return table
    table = _joined(table, differences)
    return table.assign(confounded_by=flag_confounded(table, config.identify.threshold))


def replication_of(
    table: pd.DataFrame,
    selected: Sequence[Expert],
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """Estimate the risk differences again on held-out goals, and compare. None where there are too few.

    `table` holds the experts that may be selected; no others are compared.
    Writes `risk_diff_heldout.parquet`. It comes after the selection, which never sees these goals.
    """
    run.remove(RISK_HELD_OUT)
    try:
        contrast = contrast_of(run, config, (Split.DEV, Split.TEST))
        held_out = risk_tables(
            contrast.counts, contrast.is_unsafe, contrast.batch_idx, segment=config.identify.segment
        ).aggregated
    except RoutingError as error:
        reporter.note(f"the risk differences are not estimated again on held-out goals: {error}")
        return None
    run.write_table(RISK_HELD_OUT, held_out)
    return asdict(replicate(table, held_out[held_out["layer"].isin(table["layer"])], selected))


def _joined(table: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    return table.merge(more, on=["layer", "expert"], how="left", validate="one_to_one")
