"""What identification compares: the safe and unsafe responses of a run, and the filter of pairs by verdict.

The unit is the response, and groups of prompts that share a goal or a pair are independent of one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from steermoe.analysis import estimators
from steermoe.analysis.counts import RoutingCounts, Segment
from steermoe.analysis.estimators import Estimator
from steermoe.config import Config
from steermoe.errors import RoutingError
from steermoe.prompts.splits import goal_groups
from steermoe.records import BoolArray, IntArray, Label, Prompt, ResponseSums, Split, Verdict
from steermoe.reporter import Reporter
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE


@dataclass(frozen=True, slots=True)
class Contrast:
    """The N safe and unsafe responses that are compared, aligned row by row.

    Attributes:
        counts: Their routing counts.
        is_unsafe: `(N,)`.
        batch_idx: `(N,)` mixed batch, -1 for none.
        clusters: `(N,)` ids of groups of prompts that share a goal or a pair: the units that are independent.
        positions: `(N,)` row of each in `responses.parquet`, ascending.
        num_pairs_left_out: Pairs that the verdict filter took away.
    """

    counts: RoutingCounts
    is_unsafe: BoolArray
    batch_idx: IntArray
    clusters: IntArray
    positions: IntArray
    num_pairs_left_out: int = 0

    def seen_by(
        self, estimator: Estimator, segment: Segment, sums: ResponseSums | None = None
    ) -> estimators.Contrast:
        """The responses that an estimator uses of them, by their counts or by sums of all responses of the run."""
        compared = self.counts if sums is None else sums.select(self.positions)
        return estimators.build_contrast(
            compared, self.is_unsafe, self.batch_idx, self.clusters, estimator, segment
        )


def train_contrast(run: RunDirectory, config: Config, reporter: Reporter | None = None) -> Contrast:
    """The train responses that identification compares, after the verdict filter."""
    return contrast_of(run, config, (Split.TRAIN,), reporter)


def contrast_of(
    run: RunDirectory,
    config: Config,
    splits: Sequence[Split],
    reporter: Reporter | None = None,
    filtered: bool = True,
) -> Contrast:
    """The safe and unsafe responses of some splits, after the verdict filter unless that is left out."""
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts()}
    responses = run.read_judged(BASE, config.judge.main)
    chosen = responses["split"].isin(splits) & (responses["label"] != Label.BENIGN)
    left_out: set[str] = set()
    if filtered and config.identify.filter_by_verdict:
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
        positions=positions,
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
