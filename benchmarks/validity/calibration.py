"""Does the statistics keep its promises? Many simulated runs whose truth is known, counted.

Under no true difference 5 % of the experts should have a p-value of at most 0.05, a discovery at
q <= 0.05 should happen in at most 5 % of the runs, and 95 % of the intervals should hold 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.validity.simulate import Design, RoutingModel, simulate_run
from steermoe.analysis.estimators import Estimator
from steermoe.analysis.uncertainty import estimate_uncertainty
from steermoe.records import FloatArray

BAND_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Bands of activation frequency in which false alarms are counted."""

TAILS = (1e-2, 1e-3, 1e-4, 1e-5)
"""Small p-values at which calibration is checked: as often as this they should be undercut."""


@dataclass(frozen=True, slots=True)
class NullSetting:
    """One kind of data without a true difference.

    Attributes:
        name: What to call it.
        model: How responses route.
        num_per_class: Responses of either class.
        design: How goals and classes are related.
        estimator: Whose uncertainty is checked.
    """

    name: str
    model: RoutingModel
    num_per_class: int
    design: Design
    estimator: Estimator = "mean_over_batches"


@dataclass(frozen=True, slots=True)
class Share:
    """A share over simulated runs, with its Monte Carlo standard error.

    Attributes:
        value: Mean over runs, weighted by the number of experts counted.
        error: Standard error of that mean; the run is the unit.
        num_experts: Experts counted, over all runs.
    """

    value: float
    error: float
    num_experts: int

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} ± {100 * self.error:.2f} %"


@dataclass(frozen=True, slots=True)
class NullCalibration:
    """What came of many runs without a true difference.

    Attributes:
        setting: What was simulated.
        num_runs: How often.
        flagged: Share of experts with p <= 0.05.
        flagged_by_band: The same within each band of activation frequency; None where no expert is.
        covered: Share of intervals that hold the true difference, 0.
        covered_by_band: The same within each band.
        any_discovery: Share of runs with any q <= 0.05.
        tails: Share of experts with a p-value of at most each of `TAILS`.
    """

    setting: NullSetting
    num_runs: int
    flagged: Share
    flagged_by_band: tuple[Share | None, ...]
    covered: Share
    covered_by_band: tuple[Share | None, ...]
    any_discovery: Share
    tails: tuple[Share, ...]


def null_settings(num_per_class: int, estimator: Estimator) -> list[NullSetting]:
    """The kinds of data that routing statistics meet, each paired, unpaired and with clustered goals."""
    models = {
        "plain": RoutingModel(),
        "replies five times longer": RoutingModel(mean_tokens=(12.0, 60.0)),
        "routing depends on position": RoutingModel(position_spread=1.0),
    }
    designs: tuple[Design, ...] = ("paired", "unpaired", "clustered")
    return [
        NullSetting(name, model, num_per_class, design, estimator)
        for name, model in models.items()
        for design in designs
    ]


def unequal_length_settings(
    num_per_class: int, estimator: Estimator = "equal_length"
) -> list[NullSetting]:
    """Replies twice as long on one side, and routing that depends on position: what `equal_length` is for.

    At equal position the classes route alike. Estimators that do not compare replies of equal length see a
    difference that length makes, so only `equal_length` has a true difference of (nearly) 0 here.
    """
    model = RoutingModel(mean_tokens=(24.0, 48.0), token_spread=0.5, position_spread=1.0)
    designs: tuple[Design, ...] = ("paired", "unpaired", "clustered")
    name = "replies twice as long, and position"
    return [NullSetting(name, model, num_per_class, design, estimator) for design in designs]


def calibrate(
    setting: NullSetting,
    num_runs: int,
    *,
    num_permutations: int = 1000,
    num_bootstrap: int = 500,
    seed: int = 0,
) -> NullCalibration:
    """Simulate runs without a true difference and count what the statistics say of them.

    Args:
        setting: What to simulate.
        num_runs: How often.
        num_permutations: As in `estimate_uncertainty`.
        num_bootstrap: As in `estimate_uncertainty`.
        seed: The runs have the seeds `seed, seed + 1, ...`.
    """
    runs = [
        _one_run(setting, seed + number, num_permutations, num_bootstrap)
        for number in range(num_runs)
    ]
    band = [np.digitize(run["frequency"], BAND_EDGES[1:-1]) for run in runs]
    flagged = [run["p_value"] <= 0.05 for run in runs]
    covered = [(run["ci_low"] <= 0) & (run["ci_high"] >= 0) for run in runs]
    bands = range(len(BAND_EDGES) - 1)
    return NullCalibration(
        setting,
        num_runs,
        share_of(flagged),
        tuple(_share_in_band(flagged, band, number) for number in bands),
        share_of(covered),
        tuple(_share_in_band(covered, band, number) for number in bands),
        share_of([np.array([run["q_value"].min() <= 0.05]) for run in runs]),
        tuple(share_of([run["p_value"] <= tail for run in runs]) for tail in TAILS),
    )


def share_of(hits: Sequence[npt.NDArray[np.bool_]]) -> Share:
    """The share of hits over all runs, and its Monte Carlo error from the spread between runs."""
    counts = np.array([len(run) for run in hits], dtype=np.float64)
    sums = np.array([run.sum() for run in hits], dtype=np.float64)
    value = float(sums.sum() / counts.sum())
    deviation = sums - value * counts
    number = len(hits)
    error = np.sqrt(np.sum(deviation**2) * number / max(1, number - 1)) / counts.sum()
    return Share(value, float(error), int(counts.sum()))


def calibration_table(calibrations: Sequence[NullCalibration]) -> pd.DataFrame:
    """One row a setting, shares as text with their Monte Carlo errors."""
    bands = [
        f"flagged {low:.0%}-{high:.0%}" if high < 1 else f"flagged {low:.0%}+"
        for low, high in pairwise(BAND_EDGES)
    ]
    rows = []
    for result in calibrations:
        setting = result.setting
        row = {
            "data": setting.name,
            "goals": setting.design,
            "responses": f"{setting.num_per_class} + {setting.num_per_class}",
            "estimator": setting.estimator,
            "runs": result.num_runs,
            "flagged": str(result.flagged),
        }
        for label, share in zip(bands, result.flagged_by_band, strict=True):
            row[label] = "-" if share is None else str(share)
        row["intervals hold 0"] = str(result.covered)
        row["any q <= 0.05"] = str(result.any_discovery)
        rows.append(row)
    return pd.DataFrame(rows)


def _one_run(
    setting: NullSetting, seed: int, num_permutations: int, num_bootstrap: int
) -> dict[str, FloatArray]:
    run = simulate_run(setting.model, setting.num_per_class, seed, design=setting.design)
    table = estimate_uncertainty(
        run.counts,
        run.is_unsafe,
        run.goals,
        run.batch_idx,
        estimator=setting.estimator,
        num_permutations=num_permutations,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    active, tokens = run.counts.segment("generation")
    frequency = active.sum(axis=0).ravel() / tokens.sum()
    names = ("p_value", "q_value", "ci_low", "ci_high")
    return {"frequency": frequency, **{name: table[name].to_numpy() for name in names}}


def _share_in_band(
    hits: Sequence[npt.NDArray[np.bool_]], bands: Sequence[npt.NDArray[np.intp]], number: int
) -> Share | None:
    chosen = [run[band == number] for run, band in zip(hits, bands, strict=True)]
    return share_of(chosen) if any(len(run) for run in chosen) else None
