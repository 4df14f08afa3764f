"""`steermoe power`: how many prompts find an expert, with a run as the pilot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from steermoe.cli.options import Options, print_result
from steermoe.errors import RoutingError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

    from steermoe.analysis.counts import Segment
    from steermoe.analysis.power import PowerEstimate
    from steermoe.config import Config
    from steermoe.store.directory import RunDirectory

USUAL_THRESHOLD = 0.05
"""Risk difference that is asked about where experts are ranked by another score, whose threshold has its own unit."""

OF_THE_PILOT = ("segment", "estimator", "first_layer", "last_layer")
"""Settings of `identify` that are those of the run's risk table, whatever is given here."""


def power(
    options: Options,
    risk_diff: Annotated[
        list[float] | None,
        typer.Option(
            "--risk-diff",
            metavar="DIFFERENCE",
            help="A true risk difference to find. Repeatable.",
            show_default="multiples of the threshold, or of the run's largest",
        ),
    ] = None,
    effect_cv: Annotated[
        float | None,
        typer.Option(
            "--effect-cv",
            metavar="NUMBER",
            help="How much the effect varies between prompts, standard deviation over mean.",
            show_default="0.5",
        ),
    ] = None,
) -> None:
    """Take a run as a pilot: how many prompts would find which experts."""
    from steermoe.store.run import load_run

    config = options.stored_config()
    run = load_run(config.run_dir)
    for name in OF_THE_PILOT:
        pilots, asked = getattr(run.config.identify, name), getattr(config.identify, name)
        if pilots != asked:
            options.reporter.note(
                f"identify.{name} = {asked!r} has no effect here: the pilot was identified with {pilots!r}; "
                "steermoe identify changes that"
            )
    from steermoe.analysis.power import EFFECT_VARIATION

    variation = EFFECT_VARIATION if effect_cv is None else effect_cv
    found = power_table(run.directory, config, risk_diff or (), variation)
    print_result(power_shown(found, variation))


def power_table(
    run: RunDirectory,
    config: Config,
    risk_diffs: Sequence[float] = (),
    effect_variation: float | None = None,
) -> pd.DataFrame:
    """How many prompts a class are needed to find an expert, by its true risk difference; the run is the pilot.

    Args:
        run: An identified run.
        config: Its settings; the threshold and the q-value are what an expert must reach.
        risk_diffs: True risk differences to ask about; by default `risk_diffs_to_find`.
        effect_variation: How much an effect varies between prompts, standard deviation over mean; by default
            `EFFECT_VARIATION`.

    Returns:
        Columns `risk_diff, num_prompts, power, num_unsafe, note`: at least one row. Where no number of prompts is
        enough, `note` says why and the numbers are None.

    Raises:
        RunDirectoryError: The run has no risk table.
        RoutingError: Its table has no standard errors, or a risk difference asked for cannot be found reliably.
    """
    import numpy as np
    import pandas as pd

    from steermoe.analysis.grouping import cluster_kinds
    from steermoe.analysis.power import (
        EFFECT_VARIATION,
        check_findable,
        check_variation,
        prompts_needed,
        risk_diffs_to_find,
        weight_concentration,
    )
    from steermoe.scores import RISK_DIFF
    from steermoe.stages.contrast import train_contrast

    pilot, segment = _pilot(run)
    is_usual = config.identify.rank_by == RISK_DIFF
    threshold = config.identify.threshold if is_usual else USUAL_THRESHOLD
    asked = list(risk_diffs) or risk_diffs_to_find(pilot, threshold)
    variation = EFFECT_VARIATION if effect_variation is None else effect_variation
    check_variation(variation)
    for risk_diff in asked:
        check_findable(risk_diff, threshold)
    # The responses that the standard errors come from: the table's own estimator's, in its own segment.
    used = train_contrast(run, config).seen_by(pilot["estimator"].iloc[0], segment)
    pilot = pilot.assign(n_unsafe=used.tokens[used.is_unsafe].sum())
    needed = partial(
        prompts_needed,
        pilot,
        int(min(used.is_unsafe.sum(), (~used.is_unsafe).sum())),
        max_q_value=config.identify.max_q_value,
        threshold=threshold,
        paired=bool(np.logical_and(*cluster_kinds(used)).any()),
        effect_variation=variation,
        concentration=weight_concentration(used),
    )
    return pd.DataFrame([_row(risk_diff, needed) for risk_diff in asked])


def _row(risk_diff: float, needed: Callable[..., PowerEstimate]) -> dict[str, object]:
    """A row of the table; where no number of prompts is enough, with what is in the way."""
    row: dict[str, object] = {
        "risk_diff": risk_diff,
        "num_prompts": None,
        "power": None,
        "num_unsafe": None,
    }
    try:
        found = needed(risk_diff=risk_diff)
    except RoutingError as error:
        return row | {"note": str(error)}
    return row | {
        "num_prompts": found.num_prompts,
        "power": found.power,
        "num_unsafe": found.num_unsafe,
        "note": "",
    }


def _pilot(run: RunDirectory) -> tuple[pd.DataFrame, Segment]:
    """The risk table of the layers that can be selected in, and the segment that it is of."""
    from steermoe.analysis.selection import selectable_layers
    from steermoe.store.names import RISK

    pilot = run.read_table(RISK)
    if "risk_diff_se" not in pilot.columns:
        raise RoutingError(
            "the run's risk table has no standard errors: set identify.num_permutations and num_bootstrap above 0"
        )
    rule = run.read_selection().rule
    layers = selectable_layers(pilot["layer"].unique(), rule["first_layer"], rule["last_layer"])
    return pilot[pilot["layer"].isin(layers)], rule["segment"]


def power_shown(found: pd.DataFrame, variation: float) -> Group:
    """The table as it is printed, with a note for each difference that no number of prompts finds."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        *("true risk_diff", "prompts a class", "power", "experts like it"),
        title="the run as a pilot",
        box=None,
    )
    for row in found.to_dict("records"):
        numbers = ["none is enough"]
        if not row["note"]:
            numbers = [
                f"{int(row['num_prompts']):,}",
                f"{row['power']:.2f}",
                str(int(row["num_unsafe"])),
            ]
        table.add_row(f"{row['risk_diff']:g}", *numbers)
    assumed = (
        f"if the effect varies between prompts by {variation:g} of its size (--effect-cv); the more it varies, "
        "the more prompts it takes"
    )
    return Group(table, *(Text(note) for note in [*found["note"], assumed] if note))
