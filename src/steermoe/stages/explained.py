"""What else than unsafety may explain each risk difference of a run, and what the verdict filter did to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from steermoe.analysis.confounds import (
    confound_contrasts,
    explain,
    flag_confounded,
    within_strata,
)
from steermoe.analysis.counts import RoutingCounts, Segment
from steermoe.analysis.influences import cluster_robust_errors
from steermoe.analysis.linear import Linear, OfContrast
from steermoe.analysis.positions import AtEqualPosition, at_equal_position
from steermoe.analysis.uncertainty import expert_frame, of_layers, round_significant
from steermoe.config import Config
from steermoe.errors import RoutingError
from steermoe.prompts.splits import goal_groups
from steermoe.records import FloatArray, IntArray, Label, Prompt, Split, Verdict
from steermoe.stages.contrast import Contrast, contrast_of
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE
from steermoe.store.state import Figures

REFUSALS_DIFFER = 0.05
"""Difference of the sides' refusal rates from which on the texts of refusals are looked at."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What came of it.

    Attributes:
        columns: One row an expert: `layer, expert` and what `confounds.explain` gives.
        undefined: Columns that could not be had, and why.
        refusal_rates: Share of refusals among the scored replies that are compared, `safe` and `unsafe`.
    """

    columns: pd.DataFrame
    undefined: Mapping[str, str] = field(default_factory=dict)
    refusal_rates: Mapping[str, float | None] = field(default_factory=dict)

    def figures(self) -> Figures:
        """For `run.json`."""
        return {
            "refusal_rates": dict(self.refusal_rates),
            "confounds_undefined": dict(self.undefined),
        }


def explain_differences(
    run: RunDirectory, contrast: Contrast, layers: Sequence[int], config: Config
) -> Explanation:
    """Compare with harmless prompts of like topic and format, and replies of equal length, position and verdict.

    Args:
        run: A collected run.
        contrast: The train responses that identification compares.
        layers: Decoder layers that may be selected from: the family of the q-values.
        config: The settings.
    """
    settings = config.identify
    responses = run.read_judged(BASE, config.judge.main)
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts()}
    train = np.flatnonzero((responses["split"] == Split.TRAIN).to_numpy())
    chosen = [prompts[str(prompt_id)] for prompt_id in responses["prompt_id"].iloc[train]]
    owners = np.full(len(responses), -1, dtype=np.int64)
    for number, members in enumerate(goal_groups(chosen)):
        owners[train[members]] = number
    rates = _refusal_rates(responses.iloc[contrast.positions], contrast)
    default = OfContrast(
        contrast.seen_by(settings.estimator, settings.segment), owners[contrast.positions]
    )
    contrasts = _harmless(run.read_counts().select(train), owners[train], chosen, settings.segment)
    matched, undefined = _alike(run, contrast, owners, rates, config)
    columns = explain(default, contrasts, matched, of_layers(contrast.counts, layers))
    if contrast.num_pairs_left_out:
        columns |= _unfiltered(run, config)
    return Explanation(expert_frame(contrast.counts, columns), undefined, rates)


def flagged(table: pd.DataFrame, explanation: Explanation, threshold: float) -> pd.DataFrame:
    """The table with those columns and `confounded_by`; as it was where there are none."""
    if set(explanation.columns) <= {"layer", "expert"}:
        return table
    table = table.merge(
        explanation.columns, on=["layer", "expert"], how="left", validate="one_to_one"
    )
    return table.assign(confounded_by=flag_confounded(table, threshold))


def _refusal_rates(rows: pd.DataFrame, contrast: Contrast) -> dict[str, float | None]:
    verdict = rows["verdict"].to_numpy()
    scored = np.isin(verdict, [Verdict.REFUSED, Verdict.ANSWERED])
    rates: dict[str, float | None] = {}
    for label, side in ((Label.SAFE, ~contrast.is_unsafe), (Label.UNSAFE, contrast.is_unsafe)):
        known = verdict[side & scored]
        rates[str(label)] = float(np.mean(known == Verdict.REFUSED)) if len(known) else None
    return rates


def _harmless(
    counts: RoutingCounts, owners: IntArray, prompts: Sequence[Prompt], segment: Segment
) -> dict[str, Linear]:
    """Contrasts of harmless prompts with one another: topic and format."""
    in_format = [p.is_benign_in_format for p in prompts]
    found = confound_contrasts(
        counts,
        owners,
        is_benign=[p.label is Label.BENIGN and not p.is_benign_in_format for p in prompts],
        is_look_alike=[p.is_look_alike for p in prompts],
        is_benign_in_format=in_format if any(in_format) else None,
        segment=segment,
    )
    return {name: OfContrast(own, owners) for name, own in found.items()}


def _alike(
    run: RunDirectory,
    contrast: Contrast,
    owners: IntArray,
    rates: Mapping[str, float | None],
    config: Config,
) -> tuple[dict[str, Linear], dict[str, str]]:
    """Estimates where replies are alike in length, position or verdict; and why one could not be had."""
    settings = config.identify
    of_compared = owners[contrast.positions]
    matched: dict[str, Linear] = {}
    undefined: dict[str, str] = {}

    def equal_length() -> Linear:
        return OfContrast(contrast.seen_by("equal_length", settings.segment), of_compared)

    def equal_position() -> Linear:
        return _at_equal_position(run, contrast, of_compared)

    def same_verdict() -> Linear:
        whole = contrast_of(run, config, (Split.TRAIN,), filtered=False)
        verdicts = run.read_judged(BASE, config.judge.main)["verdict"].to_numpy()[whole.positions]
        strata = np.select([verdicts == Verdict.REFUSED, verdicts == Verdict.ANSWERED], [0, 1], -1)
        owner_of = owners[whole.positions]
        return OfContrast(
            within_strata(whole.counts, whole.is_unsafe, strata, owner_of, settings.segment),
            owner_of,
        )

    asked = {}
    if settings.estimator != "equal_length":
        asked["length_diff"] = equal_length
    safe, unsafe = (rates[str(label)] or 0.0 for label in (Label.SAFE, Label.UNSAFE))
    if settings.segment == "generation" and (
        contrast.num_pairs_left_out or abs(safe - unsafe) >= REFUSALS_DIFFER
    ):
        asked |= {"position_diff": equal_position, "refusal_text_diff": same_verdict}
    for name, build in asked.items():
        try:
            matched[name] = build()
        except RoutingError as error:
            undefined[name] = str(error)
    return matched, undefined


def _at_equal_position(
    run: RunDirectory, contrast: Contrast, owner_of: IntArray
) -> AtEqualPosition:
    """Read the routed experts of every reply once."""
    prompt_ids = set(run.read_replies()["prompt_id"].iloc[contrast.positions])
    routings = (
        output.routed_experts[len(output.prompt_token_ids) :]
        for _, output in run.iter_outputs(prompt_ids)
    )
    _, num_tokens = contrast.counts.segment("generation")
    return at_equal_position(
        routings, num_tokens, contrast.is_unsafe, owner_of, contrast.counts.num_experts
    )


def _unfiltered(run: RunDirectory, config: Config) -> dict[str, FloatArray]:
    """The estimate of all pairs, whatever their verdicts, and its error."""
    whole = contrast_of(run, config, (Split.TRAIN,), filtered=False)
    seen = whole.seen_by(config.identify.estimator, config.identify.segment)
    return {
        "estimate_unfiltered": round_significant(seen.difference()),
        "estimate_unfiltered_se": round_significant(cluster_robust_errors(seen)),
    }
