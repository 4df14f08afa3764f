"""The scores of a run: each with its uncertainty, on the train goals and on held-out ones, and the one to rank by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from steermoe.analysis.estimators import Estimator
from steermoe.analysis.scores import (
    SCORE_COLUMNS,
    Compared,
    Resampled,
    plain_values,
    score_rows,
    values_per_batch,
)
from steermoe.analysis.selection import SCORE, in_order
from steermoe.analysis.shrinkage import shrink
from steermoe.analysis.uncertainty import round_significant
from steermoe.config import Config
from steermoe.errors import RoutingError
from steermoe.records import Prompt, ResponseSums, Split
from steermoe.reporter import Reporter
from steermoe.scores import KNOWN, RECORDED, RISK_DIFF, pass_of, score_named
from steermoe.scores.selectivity import GRADIENT
from steermoe.scores.source import Source
from steermoe.stages.contrast import Contrast, contrast_of, train_contrast
from steermoe.stages.evidence import Evidence
from steermoe.store.directory import RunDirectory

OF_THE_SCORE = ("q_value", "stability", "ci_low", "ci_high", "p_value")
"""Columns of a risk table that are the score's where experts are ranked by one."""

OF_RISK = (*OF_THE_SCORE, "local_fdr", "shrunken", "fcr_low", "fcr_high")
"""Columns of a risk table that say nothing of experts that are ranked by another score."""


@dataclass(frozen=True, slots=True)
class Scored:
    """All scores, and what experts are ranked by.

    Attributes:
        table: `scores.parquet`.
        rank_by: The score that experts are ranked by.
        per_batch: Its values within batches, `batch_idx, layer, expert, score`; None for the risk difference.
        sums: Its sums of all responses of the run; None for the risk difference.
    """

    table: pd.DataFrame
    rank_by: str
    per_batch: pd.DataFrame | None = None
    sums: ResponseSums | None = None

    @property
    def is_by_risk(self) -> bool:
        """Whether experts are ranked by risk difference."""
        return self.rank_by == RISK_DIFF

    @property
    def ranking(self) -> pd.DataFrame:
        """The rows of the score that experts are ranked by."""
        return self.table[self.table["score"] == self.rank_by]

    def ranked(self, table: pd.DataFrame) -> pd.DataFrame:
        """A risk table as selection rules get it: with a column `score` and that score's evidence.

        `local_fdr` is then the chance that the score is not higher in unsafe content, among the rows given.
        """
        if self.is_by_risk:
            return table
        own = self.ranking.rename(columns={"score": "name", "value": SCORE})
        known = [name for name in OF_THE_SCORE if own[name].notna().any()]
        kept = table.drop(columns=[name for name in OF_RISK if name in table.columns])
        keys = ["layer", "expert"]
        joined = kept.merge(own[[*keys, SCORE, *known]], on=keys, validate="one_to_one")
        if "p_value" in known:
            half = joined["p_value"].to_numpy() / 2
            p_higher = np.where(joined[SCORE] > 0, half, 1 - half)
            joined["local_fdr"] = round_significant(shrink(p_higher).local_fdr)
        return in_order(joined)

    def ranked_per_batch(self, tables: pd.DataFrame) -> pd.DataFrame:
        """The tables of the batches as selection rules get them.

        A batch in which the score was not measured in both classes has no value of its own, and takes that of all.
        """
        if self.per_batch is None:
            return tables
        keys = ["layer", "expert"]
        overall = self.ranking.set_index(keys)["value"].rename("overall")
        joined = tables.merge(self.per_batch, on=["batch_idx", *keys], how="left")
        joined = joined.join(overall, on=keys)
        return joined.assign(score=joined[SCORE].fillna(joined["overall"])).drop(columns="overall")


def score_experts(
    run: RunDirectory, contrast: Contrast, evidence: Evidence, config: Config, reporter: Reporter
) -> Scored:
    """Compute every score that is recorded or asked for.

    Args:
        run: A collected run.
        contrast: The train responses that are compared.
        evidence: The risk table, whose rows are those of the score `risk_diff`.
        config: The settings.
        reporter: Told which scores the run does not have.

    Raises:
        RoutingError: The score to rank by cannot be had.
    """
    settings = config.identify
    held_out = _held_out(run, config)
    parts, per_batch, ranked_sums = [], None, None
    for name in wanted_scores(config):
        if name == RISK_DIFF:
            parts.append(_risk_rows(evidence.table, held_out, config))
            continue
        try:
            sums = _sums_of(name, run, config)
        except RoutingError as error:
            if name == settings.rank_by or name in settings.scores:
                raise
            reporter.note(str(error))
            continue
        rows = score_rows(
            name,
            sums.select(contrast.positions),
            compared(contrast, config, name),
            _resampled(config, evidence.layers, name),
        )
        parts.append(rows.assign(held_out=_held_out_values(name, sums, held_out, config)))
        if name == settings.rank_by:
            ranked_sums = sums
            per_batch = values_per_batch(
                sums.select(contrast.positions), compared(contrast, config, name)
            )
    table = pd.concat(parts, ignore_index=True)
    return Scored(table, settings.rank_by, per_batch, ranked_sums)


def wanted_scores(config: Config) -> tuple[str, ...]:
    """The scores of a run: those that are recorded, those asked for, and the one to rank by."""
    settings = config.identify
    return tuple(dict.fromkeys((*RECORDED, *settings.scores, settings.rank_by)))


def check_scores(config: Config) -> None:
    """Refuse names of scores that there are not.

    Raises:
        ConfigError: There is no such score, or it cannot be imported.
    """
    for name in wanted_scores(config):
        score_named(name)


def passes_of(config: Config) -> tuple[str, ...]:
    """The passes over the model that a run's scores and its forecast need."""
    asked = [GRADIENT] if config.identify.forecast else []
    asked += [pass_of(name) for name in wanted_scores(config)]
    return tuple(dict.fromkeys(name for name in asked if name))


def ranks_by_gradients(config: Config) -> bool:
    """Whether a score is made of the gradient pass, so that it is wanted of held-out prompts too."""
    return any(pass_of(name) == GRADIENT for name in wanted_scores(config))


def source_of(run: RunDirectory, config: Config, loaded: Any = None) -> Source:
    """What scores are computed from; `loaded` is the model, for those that need it."""
    contrast = train_contrast(run, config)
    return Source(
        prompts=_in_order_of_replies(run),
        counts=run.read_counts(),
        recorded=run.read_sums,
        outputs=lambda: (output for _, output in run.iter_outputs()),
        unsafe=contrast.positions[contrast.is_unsafe],
        safe=contrast.positions[~contrast.is_unsafe],
        loaded=loaded,
    )


def compared(contrast: Contrast, config: Config, name: str) -> Compared:
    """The train responses, compared as the settings say.

    Of a score of passes only some prompts are measured, which need not fill batches: each counts once.
    """
    settings = config.identify
    estimator: Estimator = "mean_over_responses" if pass_of(name) else settings.estimator
    return Compared(
        contrast.is_unsafe, contrast.batch_idx, contrast.clusters, settings.segment, estimator
    )


def _in_order_of_replies(run: RunDirectory) -> list[Prompt]:
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts()}
    return [prompts[prompt_id] for prompt_id in run.read_replies()["prompt_id"]]


def _sums_of(name: str, run: RunDirectory, config: Config) -> ResponseSums:
    """Of all responses of the run. A user's own score that needs the model has left them in a pass of its own."""
    if name not in KNOWN and pass_of(name):
        return source_of(run, config).recorded_sums(name)
    return score_named(name).sums(source_of(run, config))


def _resampled(config: Config, layers: Sequence[int], name: str) -> Resampled:
    """The draws of the settings; the threshold is that of the score that experts are ranked by."""
    settings = config.identify
    return Resampled(
        settings.num_permutations,
        settings.num_bootstrap,
        settings.num_subsamples,
        config.seed,
        settings.threshold if name == settings.rank_by else 0.0,
        settings.top_k,
        settings.rank_within,
        layers,
    )


def _risk_rows(table: pd.DataFrame, held_out: Contrast | None, config: Config) -> pd.DataFrame:
    """The risk table as rows of `scores.parquet`, in the order of layer and expert."""
    renamed = table.rename(columns={"risk_diff_se": "se"})
    value = renamed["estimate"] if "estimate" in renamed.columns else renamed["risk_diff"]
    rows = renamed.assign(score=RISK_DIFF, value=value).sort_values(["layer", "expert"])
    rows = rows.reindex(columns=SCORE_COLUMNS).reset_index(drop=True)
    if held_out is None:
        return rows
    counts = held_out.counts
    sums = ResponseSums(counts.active, counts.num_tokens, counts.layer_indices)
    return rows.assign(held_out=plain_values(sums, _pooled(held_out, config, RISK_DIFF))["value"])


def _held_out(run: RunDirectory, config: Config) -> Contrast | None:
    """The held-out responses; None where they cannot be compared, which replication says aloud."""
    splits = [split for split in (Split.DEV, Split.TEST) if split in config.identify.replicate_on]
    try:
        contrast = contrast_of(run, config, splits, filtered=False)
        contrast.seen_by("pooled", config.identify.segment)
    except RoutingError:
        return None
    return contrast


def _held_out_values(
    name: str, sums: ResponseSums, held_out: Contrast | None, config: Config
) -> pd.Series[float] | float:
    """The score on held-out goals, which are in no batches; unknown without them."""
    if held_out is None:
        return np.nan
    try:
        values = plain_values(sums.select(held_out.positions), _pooled(held_out, config, name))
    except RoutingError:
        return np.nan
    return values["value"]


def _pooled(contrast: Contrast, config: Config, name: str) -> Compared:
    """Held-out responses, which are in no batches."""
    of_train = compared(contrast, config, name)
    return of_train if pass_of(name) else replace(of_train, estimator="pooled")
