"""Selection: from a risk table to the unsafe experts.

A rule is a callable from a risk table to a list of `(layer, expert)`. The named ones are in `RULES`; a
user's own is named as `package.module:callable`, and what it returns is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from steermoe.contracts import check_takes, own_callable
from steermoe.errors import ConfigError, SelectionError
from steermoe.records import BoolArray, Expert

RankWithin = Literal["model", "layer"]
"""Whether experts are ranked among all of the model, or the first of every layer come before the second of any."""

SCORE = "score"
"""Column of a table whose experts are ranked by another score than the risk difference."""

Rule = Callable[[pd.DataFrame], list[Expert]]


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    """What the named rules go by.

    Attributes:
        threshold: Least risk difference of an unsafe expert, or of the score that experts are ranked by.
        top_k: Most experts selected: the ones of largest risk difference or score.
        max_q_value: Largest false discovery rate, for `fdr` and `combined`.
        min_stability: Least selection frequency, for `stability` and `combined`.
        seed: Seeds `random`.
        rank_within: What experts are ranked among.
    """

    threshold: float = 0.05
    top_k: int = 50
    max_q_value: float = 0.05
    min_stability: float = 0.75
    seed: int = 0
    rank_within: RankWithin = "model"


def identify_unsafe_experts(
    risk_diff_df: pd.DataFrame,
    threshold: float = 0.05,
    top_k: int = 50,
    layer_indices: Iterable[int] | None = None,
    rank_within: RankWithin = "model",
) -> list[Expert]:
    """The experts that fire most on unsafe content, or score highest.

    Args:
        risk_diff_df: A risk table: columns `layer, expert, risk_diff`, one row an expert, in any order. Where it has a
            column `score`, experts are ranked by that instead.
        threshold: Least risk difference, or score.
        top_k: Most experts to return.
        layer_indices: Decoder layers to choose from; by default all in the table.
        rank_within: `layer` takes the largest of every layer first, then the second of every layer, and so on.

    Returns:
        At most `top_k` pairs with `risk_diff >= threshold`, largest first, ties by layer and expert.

    Raises:
        SelectionError: If a column is missing, an expert has two rows, a difference is not a number,
            or `top_k` is negative.

    Example:
        >>> table = pd.DataFrame({"layer": [0, 0], "expert": [0, 1], "risk_diff": [-0.75, 0.75]})
        >>> identify_unsafe_experts(table)
        [(0, 1)]
    """
    table = _check_table(risk_diff_df)
    if top_k < 0:
        raise SelectionError(f"top_k is {top_k}; give 0 or more")
    if layer_indices is not None:
        table = table[table["layer"].isin(list(layer_indices))]
    return _pairs(in_order(table[table[ranked_by(table)] >= threshold], rank_within).head(top_k))


def ranked_by(table: pd.DataFrame) -> str:
    """The column that a table's experts are ranked by."""
    return SCORE if SCORE in table.columns else "risk_diff"


def in_order(
    table: pd.DataFrame, rank_within: RankWithin = "model", lowest_first: bool = False
) -> pd.DataFrame:
    """Largest risk difference or score first, or the smallest; ties by layer, then expert.

    Within layers, the first of every layer come before the second of any.
    """
    keys = [ranked_by(table), "layer", "expert"]
    ordered = table.sort_values(keys, ascending=[lowest_first, True, True], kind="stable")
    if rank_within == "layer":
        place = ordered.groupby("layer").cumcount()
        ordered = ordered.iloc[np.argsort(place.to_numpy(), kind="stable")]
    return ordered.reset_index(drop=True)


def selectable_layers(
    layer_indices: Iterable[int], first_layer: int = 0, last_layer: int | None = None
) -> list[int]:
    """The decoder layers that may be selected from.

    Args:
        layer_indices: Those that are MoE layers.
        first_layer: The lowest to select from.
        last_layer: The highest; None for no bound.

    Raises:
        SelectionError: If no MoE layer lies between the two.
    """
    known = list(layer_indices)
    last = max(known) if last_layer is None else last_layer
    layers = [layer for layer in known if first_layer <= layer <= last]
    if not layers:
        upper = "" if last_layer is None else f" and identify.last_layer {last_layer}"
        raise SelectionError(
            f"identify.first_layer is {first_layer}{upper}, but the MoE layers are {_span(known)}; "
            "leave one of them to select from"
        )
    return layers


def create_expert_mask(
    num_layers: int,
    num_experts: int,
    unsafe_experts: Iterable[tuple[int, int]],
    layer_indices: Sequence[int] | None = None,
) -> BoolArray:
    """Mark the unsafe experts in an array of all experts.

    Args:
        num_layers: MoE layers, L.
        num_experts: Experts of one layer, E.
        unsafe_experts: `(layer, expert)` pairs; `layer` is the index of the decoder layer.
        layer_indices: Decoder-layer index of each of the L rows; 0 .. L-1 by default.

    Returns:
        Boolean `(L, E)`, true where an expert is unsafe.

    Raises:
        SelectionError: If an expert is not one of the model's.
    """
    layers = list(range(num_layers)) if layer_indices is None else list(layer_indices)
    if len(layers) != num_layers:
        raise SelectionError(
            f"{len(layers)} layer indices were given for {num_layers} layers; give one a layer"
        )
    row_of_layer = {layer: row for row, layer in enumerate(layers)}
    mask = np.zeros((num_layers, num_experts), dtype=np.bool_)
    for layer, expert in unsafe_experts:
        if layer not in row_of_layer or not 0 <= expert < num_experts:
            raise SelectionError(
                f"there is no expert {expert} in layer {layer}; the model has {num_experts} experts in "
                f"each of the layers {_span(layers)}"
            )
        mask[row_of_layer[layer], expert] = True
    return mask


def resolve_rule(name: str, settings: SelectionSettings | None = None) -> Rule:
    """The selection rule of that name.

    Args:
        name: One of `RULES`, or `package.module:callable` for a user's own, which takes a risk table
            and returns `(layer, expert)` pairs.
        settings: What the named rules go by.

    Returns:
        A callable from a risk table to pairs. A user's callable is wrapped: what it returns is
        checked against the table it was given.

    Raises:
        SelectionError: If there is no such rule, or it cannot be imported.
    """
    chosen = settings or SelectionSettings()
    if name in RULES:
        rule = RULES[name]
        return lambda table: rule(table, chosen)
    if ":" not in name:
        raise SelectionError(
            f"unknown selection rule '{name}'; choose one of {', '.join(sorted(RULES))}, "
            "or name a callable as package.module:callable"
        )
    return _users_rule(name)


def matched_random(
    risk_diff_df: pd.DataFrame, selected: Sequence[Expert], seed: int, num_candidates: int = 8
) -> list[Expert]:
    """As many random experts as were selected, matched by layer and activation frequency.

    Each selected expert is replaced by one drawn evenly from the experts of its own layer whose
    activation frequency is nearest to its own: the nearest quarter of the layer, but at least two of
    them and at most `num_candidates`. Selected experts are not drawn, unless a layer has too few
    others; no expert is drawn twice.

    Args:
        risk_diff_df: A risk table with `layer, expert, a_safe_n, a_unsafe_n, risk_diff`.
        selected: The experts to match.
        seed: Seeds the draw.
        num_candidates: How many of the nearest experts to draw from, at most.

    Returns:
        As many pairs as `selected`, in the same order of layers.
    """
    frequency = activation_frequencies(risk_diff_df)
    generator = np.random.default_rng(seed)
    chosen: set[Expert] = set(selected)
    drawn: list[Expert] = []
    for target in selected:
        if target not in frequency:
            raise SelectionError(f"the risk table has no expert {target}; select from this table")
        layer_mates = [e for e in frequency if e[0] == target[0]]
        left = [e for e in layer_mates if e not in drawn]
        free = [e for e in left if e not in chosen] or left
        nearest = sorted(free, key=lambda e: (abs(frequency[e] - frequency[target]), e))
        # In a layer of few experts the eight nearest would be any of it.
        pool = nearest[: max(2, min(num_candidates, len(layer_mates) // 4))]
        drawn.append(pool[int(generator.integers(len(pool)))])
    return drawn


def activation_frequencies(risk_diff_df: pd.DataFrame) -> dict[Expert, float]:
    """How often each expert fires, the mean of the two classes.

    Args:
        risk_diff_df: A risk table with `layer, expert, a_safe_n, a_unsafe_n, risk_diff`.
    """
    table = _check_table(risk_diff_df, ["a_safe_n", "a_unsafe_n"])
    frequencies = (table["a_safe_n"] + table["a_unsafe_n"]) / 2
    return dict(zip(_pairs(table), frequencies.tolist(), strict=True))


def _threshold(table: pd.DataFrame, settings: SelectionSettings) -> list[Expert]:
    """Risk difference of at least the threshold; the largest top_k."""
    return identify_unsafe_experts(
        table, settings.threshold, settings.top_k, rank_within=settings.rank_within
    )


def _fdr(table: pd.DataFrame, settings: SelectionSettings) -> list[Expert]:
    """Also a q-value of at most the allowed false discovery rate."""
    _check_table(table, ["q_value"])
    return _threshold(table[table["q_value"] <= settings.max_q_value], settings)


def _stability(table: pd.DataFrame, settings: SelectionSettings) -> list[Expert]:
    """Also selected in a large enough share of the subsamples of goals."""
    _check_table(table, ["stability"])
    return _threshold(table[table["stability"] >= settings.min_stability], settings)


def _combined(table: pd.DataFrame, settings: SelectionSettings) -> list[Expert]:
    """What both `fdr` and `stability` let pass."""
    _check_table(table, ["stability", "q_value"])
    return _fdr(table[table["stability"] >= settings.min_stability], settings)


def _lowest(table: pd.DataFrame, settings: SelectionSettings) -> list[Expert]:
    """Control: as many experts as `threshold` selects, those of smallest risk difference or score."""
    number = len(_threshold(table, settings))
    return _pairs(in_order(table, settings.rank_within, lowest_first=True).head(number))


def _random(table: pd.DataFrame, settings: SelectionSettings) -> list[Expert]:
    """Control: as many experts as `threshold` selects, drawn to match their layer and frequency."""
    return matched_random(table, _threshold(table, settings), settings.seed)


RULES: dict[str, Callable[[pd.DataFrame, SelectionSettings], list[Expert]]] = {
    "threshold": _threshold,
    "fdr": _fdr,
    "stability": _stability,
    "combined": _combined,
    "lowest": _lowest,
    "random": _random,
}
"""The named rules. Those in `CONTROLS` are to compare a selection with."""

CONTROLS = ("lowest", "random")

RULE_ADVICE = {
    "threshold": "lower identify.threshold",
    "fdr": "raise identify.max_q_value",
    "stability": "lower identify.min_stability",
    "combined": "raise identify.max_q_value and lower identify.min_stability",
}
"""What lets a selection rule take more experts."""


def how_to_select_more(rule: str, threshold: float, largest: float) -> str:
    """What to tell somebody whose rule selected nothing; `largest` is the largest risk difference, or score."""
    if rule in RULES and largest < threshold:
        rule = "threshold"  # which all the others require too
    return RULE_ADVICE.get(rule, "choose another identify.rule")


def _users_rule(name: str) -> Rule:
    try:
        rule = own_callable("selection rule", name)
        check_takes("selection rule", name, rule, "a risk table")
    except ConfigError as error:
        raise SelectionError(str(error)) from error

    def checked(table: pd.DataFrame) -> list[Expert]:
        try:
            returned = rule(table.copy())
        except Exception as error:
            raise SelectionError(
                f"the selection rule '{name}' failed with {type(error).__name__}: {error}; mend the rule"
            ) from error
        return _check_pairs(name, returned, _check_table(table))

    return checked


def _check_pairs(name: str, returned: Any, table: pd.DataFrame) -> list[Expert]:
    known = set(_pairs(table))
    pairs: list[Expert] = []
    try:
        rows = [tuple(row) for row in returned]
    except TypeError:
        raise SelectionError(
            f"the selection rule '{name}' returned a {type(returned).__name__}; "
            "return a list of (layer, expert)"
        ) from None
    for row in rows:
        if len(row) != 2 or not all(_is_integer(value) for value in row):
            raise SelectionError(
                f"the selection rule '{name}' returned {row!r}; return (layer, expert) pairs of integers"
            )
        pair = Expert(int(row[0]), int(row[1]))
        if pair not in known:
            raise SelectionError(
                f"the selection rule '{name}' returned {tuple(pair)}, which is not in the risk table; "
                "use its layer and expert columns"
            )
        if pair in pairs:
            raise SelectionError(
                f"the selection rule '{name}' returned {tuple(pair)} twice; return it once"
            )
        pairs.append(pair)
    return pairs


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_table(table: pd.DataFrame, also: Sequence[str] = ()) -> pd.DataFrame:
    needed = ["layer", "expert", "risk_diff", *also]
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise SelectionError(
            f"the risk table has no column {', '.join(missing)}, which the selection rule needs; "
            "run identify with what computes it"
        )
    if bool(table[["risk_diff", ranked_by(table), *also]].isna().to_numpy().any()):
        raise SelectionError("the risk table holds values that are not numbers; run identify again")
    if bool(table.duplicated(["layer", "expert"]).any()):
        raise SelectionError(
            "the risk table has two rows for one expert; aggregate the batches before selecting"
        )
    return table


def _pairs(table: pd.DataFrame) -> list[Expert]:
    return [
        Expert(int(layer), int(expert))
        for layer, expert in zip(table["layer"], table["expert"], strict=True)
    ]


def _span(layers: Sequence[int]) -> str:
    return f"{layers[0]} .. {layers[-1]}" if layers else "(none)"
