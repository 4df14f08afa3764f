"""What is printed of how far a selection can be trusted: held-out goals, and experts switched off."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from steermoe.analysis.ablation_figures import AblationFigures, MetricFigures, SetFigures
from steermoe.measures import MEASURES
from steermoe.report.trust import whether_p_values_bear
from steermoe.scores import RISK_DIFF
from steermoe.store.names import ABLATION, RISK_HELD_OUT, SCORES
from steermoe.store.run import Run
from steermoe.store.state import Figures

HELD_OUT = "held_out"
"""Column of the risk difference on held-out goals."""


def with_held_out(run: Run) -> pd.DataFrame:
    """The risk table, with the risk differences of held-out goals beside it where there are some."""
    if not run.directory.file(RISK_HELD_OUT).exists():
        return run.risk_diff
    held_out = run.directory.read_table(RISK_HELD_OUT)[["layer", "expert", "risk_diff"]]
    held_out = held_out.rename(columns={"risk_diff": HELD_OUT})
    return run.risk_diff.merge(held_out, on=["layer", "expert"], how="left", sort=False)


def with_score(run: Run) -> pd.DataFrame:
    """That table as the rule saw it: with the score that experts are ranked by, the largest first."""
    table, by = with_held_out(run), run.config.identify.rank_by
    if by == RISK_DIFF or not run.directory.file(SCORES).exists():
        return table
    scores = run.directory.read_table(SCORES)
    own = scores[scores["score"] == by][["layer", "expert", "value"]]
    joined = table.merge(own.rename(columns={"value": by}), on=["layer", "expert"], how="left")
    return joined.sort_values([by, "layer", "expert"], ascending=[False, True, True])


def stability_line(run: Run) -> Text | None:
    """How many experts the halves of the goals agree on, and how many of those chance accounts for."""
    found = run.state.figures_of("identify")
    if "stability_error_bound" not in found:
        return None
    return Text(
        f"stability: {found['num_stable_experts']} of {found['num_candidates']} experts are selected by "
        f"{found['min_stability']:.0%} of random halves of the goals or more; at most "
        f"{found['stability_error_bound']:.2g} of them are expected to be no better than chance "
        f"(a half selects {found['mean_selected_by_half']:.1f})"
    )


def selection_lines(run: Run) -> Text | None:
    """How much of the selection is expected to be false, and what other estimators say of it."""
    found = run.state.figures_of("identify")
    if "fixed_before" not in found:
        return None
    share = found["expected_false_share"]
    fixed = found["fixed_before"]
    said = "unknown (no p-values)" if share is None else f"{share:.0%}"
    text = f"expected to be false among the {found['num_unsafe_experts']} selected: {said}"
    of_union = found.get("expected_false_share_of_union")
    if of_union is not None and run.config.train.experts == "union":
        text += f"; of the union of the batches' own, which is trained: {of_union:.0%}"
    text += _spread(found.get("spread"))
    text += f"\nfixed before: {fixed['estimator']}, segment {fixed['segment']}; q-values and stars are theirs alone"
    others = found["sensitivity"]
    if others:
        means = ", ".join(
            f"{name.removeprefix('by_')} {value['mean']:+.4f}"
            for name, value in others.items()
            if name != "risk_diff"
        )
        text += (
            f"\nmean of the selected {others['risk_diff']['mean']:+.4f}; as sensitivity: {means}"
        )
    return Text(text)


def _spread(found: Figures | None) -> str:
    """How unlike the classes' spreads are, and whether p-values bear it."""
    if found is None:
        return ""
    borne = whether_p_values_bear(found["is_too_skewed"])
    return (
        f"\nspread: variance between unsafe goals {found['variance_ratio']:.2g} times that between safe ones, skewness "
        f"of the differences {found['skewness']:+.2f}, {borne}"
    )


def replication_table(run: Run) -> Table | None:
    """How far held-out goals tell the same story."""
    found = run.state.figures_of("identify").get("replication")
    if not found:
        return None
    goals = " and ".join(found.get("splits", ["dev", "test"]))
    table = Table(
        title=f"replication on held-out goals of {goals} ({found['estimator']} risk differences on both sides)",
        title_justify="left",
        show_header=False,
        box=None,
    )
    number = found["num_selected"]
    table.add_row(
        f"shrinkage of the {number} selected",
        _number(found["shrinkage"])
        + _interval(found.get("shrinkage_ci_low"), found.get("shrinkage_ci_high")),
        "held-out mean over training mean: 1 is no loss, 0 is luck",
    )
    table.add_row(
        "correlation",
        _number(found["correlation"]),
        f"over {found['num_experts']} experts; of ranks {_number(found['rank_correlation'])}",
    )
    table.add_row(
        "same sign",
        _share(found["sign_agreement"]),
        f"of the selected {_share(found['sign_agreement_selected'])}; by chance 50%",
    )
    table.add_row(
        f"among the top {number} again",
        str(found["overlap"]),
        f"by chance {found['overlap_by_chance']:.1f}" + _when_relabelled(found),
    )
    return table


def _when_relabelled(found: Figures) -> str:
    """The overlap where the labels of held-out goals are exchanged, and its p-value."""
    expected = found.get("overlap_when_relabelled")
    if expected is None:
        return ""
    return f"; with labels exchanged {expected:.1f} (p {found['overlap_p_value']:.2g})"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"


def ablation(run: Run) -> Group:
    """What changes while the selected experts are switched off, and what random experts change."""
    if not run.directory.file(ABLATION).exists():
        return Group()
    found = run.directory.read_ablation()
    if "num_possible_sets" not in found["random"]:
        return Group(
            Text(
                "ablation: measured by an older steermoe, whose ranks did not hold; steermoe ablate measures it again"
            )
        )
    prompts = ", ".join(f"{n} {kind.replace('_', '-')}" for kind, n in found["num_prompts"].items())
    (selected,) = (entry for entry in found["sets"] if entry["set"] == "selected")
    parts: list[Any] = []
    for name, figures in found["models"].items():
        table = Table(
            *("", "intact", "selected off", "lowest off", "random off", "draws below"),
            title=f"{name} model, {selected['num_deactivated']} of {selected['num_experts']} selected experts switched "
            f"off; {prompts} {found['split']} prompts",
            title_justify="left",
            box=None,
        )
        for measure in MEASURES:
            if measure.name in figures:
                of_measure = figures[measure.name]
                is_rate = measure.unit == "share"
                cells = _ablation_cells(is_rate, of_measure, found["random"]["num_draws"])
                table.add_row(measure.title, *cells)
        parts += [table, Text()]
    parts.append(Text(_legend(found)))
    if not (run.is_current("ablate") and run.is_current("ablation")):
        parts.append(
            Text("The run has changed since: `steermoe ablate` brings these figures up to date.")
        )
    return Group(*parts)


def _legend(found: AblationFigures) -> str:
    """How to read the table, and how different the random draws are."""
    random = found["random"]
    lines = [
        "off: change to the intact model, [interval over goals]; of random experts the mean (least, largest) of draws.",
        "log p: mean log-probability per token of the target refusal, and of the base model's own reply.",
    ]
    if random["num_draws"]:
        lines += [
            f"{random['num_draws']} random draws, all different, of {random['num_possible_sets']:.4g} sets of as many "
            "experts of each layer",
            f"and frequency as the selected one; they share {random['mean_overlap']:.1f} experts with it on average.",
            f"Mean activation frequency: selected {random['mean_frequency_selected']:.3f}, random draws "
            f"{random['mean_frequency_draws']:.3f}. What differs there may be their work rather than their kind.",
            "The last column ranks the selected set among the draws; p cannot be below 1 / (1 + draws).",
        ]
    else:
        lines.append(
            "No other set has as many experts of each layer and frequency, so nothing is ranked."
        )
    return "\n".join([*lines, f"This measures {found['measures']}."])


def _ablation_cells(is_rate: bool, figures: MetricFigures, num_draws: int) -> list[str]:
    """Intact value, changes, the range of the random draws, and where the selected set lies among them."""

    def shown(value: float | None, sign: str = "+") -> str:
        if value is None:
            return "-"
        return f"{value:{sign}.1%}" if is_rate else f"{value:{sign}.3f}"

    def change(of_set: SetFigures) -> str:
        effect = of_set["effect"]
        if effect["ci_low"] is None:
            return shown(effect["value"])
        return f"{shown(effect['value'])} [{shown(effect['ci_low'])}, {shown(effect['ci_high'])}]"

    drawn = figures["random"]
    digits = "+.0%" if is_rate else "+.2f"
    spread = "-"
    if drawn["num_draws"]:
        extremes = f"{drawn['least_effect']:{digits}}, {drawn['largest_effect']:{digits}}"
        spread = f"{shown(drawn['mean_effect'])} ({extremes})"
    position = figures["selected"]["among_random"]
    rank = "-" if position is None else f"{position['percentile']:.0%}"
    if position is not None and position["num_draws"] == num_draws:
        rank += f" p {position['p_value']:.2g}"
    elif position is not None:
        rank += f" of {position['num_draws']}"
    return [
        shown(figures["intact"]["value"], ""),
        change(figures["selected"]),
        change(figures["lowest"]),
        spread,
        rank,
    ]


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.0%}"
