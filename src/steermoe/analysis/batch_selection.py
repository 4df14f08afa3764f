"""The one way from risk tables to experts: a rule, applied to all batches together and to each of them.

Training may take the global selection or the union of the batches' own, and expert masks may go by the batch. Both
follow the same rule, so that a control (`random`, `lowest`) is a control whichever of them is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from steermoe.analysis.selection import (
    CONTROLS,
    SelectionSettings,
    in_order,
    matched_random,
    resolve_rule,
)
from steermoe.records import Expert


@dataclass(frozen=True, slots=True)
class Selection:
    """The unsafe experts.

    Attributes:
        overall: The global selection, in the order of the rule.
        per_batch: For each mixed batch, what the rule selects in its own table.
    """

    overall: list[Expert]
    per_batch: Mapping[int, list[Expert]]

    @property
    def union(self) -> list[Expert]:
        """What any batch selects, by layer and expert."""
        return sorted({expert for chosen in self.per_batch.values() for expert in chosen})


def select_experts(
    table: pd.DataFrame, per_batch: pd.DataFrame, rule: str, settings: SelectionSettings
) -> Selection:
    """Apply a rule to the aggregated table and to the table of every mixed batch.

    A batch's table has the batch's own differences, scores, frequencies and counts. What it has no value of its own for
    (q-value, stability, intervals) is that of all batches together: evidence of one batch alone would be none.

    The control `random` draws one matched counterpart for every expert that `threshold` selects anywhere, and puts it
    in that expert's place everywhere: its union is as large as the one it is the control of, and its batches overlap
    as much.

    Args:
        table: The aggregated risk table of the experts that may be selected.
        per_batch: The tables of the batches, one under the other, with `batch_idx`; other layers are left out.
        rule: One of `RULES`, or `package.module:callable`.
        settings: What the named rules go by.

    Returns:
        The global selection and those of the batches.

    Raises:
        SelectionError: There is no such rule, it cannot be applied to the tables, or it returned what is no selection.
    """
    if rule == "random":
        chosen = select_experts(table, per_batch, "threshold", settings)
        selected = [*chosen.overall, *(e for e in chosen.union if e not in set(chosen.overall))]
        drawn = matched_random(table, selected, settings.seed)
        counterpart = dict(zip(selected, drawn, strict=True))
        return Selection(
            [counterpart[expert] for expert in chosen.overall],
            {
                batch_idx: [counterpart[expert] for expert in experts]
                for batch_idx, experts in chosen.per_batch.items()
            },
        )
    resolved = resolve_rule(rule, settings)
    keys = ["layer", "expert"]
    own = set(per_batch.columns) | {"risk_diff_pooled"}
    evidence = table[[*keys, *(name for name in table.columns if name not in own)]]
    rows = per_batch.merge(evidence, on=keys, how="inner", validate="many_to_one")
    rows = rows.assign(risk_diff_pooled=rows["risk_diff"])
    return Selection(
        resolved(table),
        {
            batch_idx: resolved(in_order(rows[rows["batch_idx"] == batch_idx]))
            for batch_idx in sorted({int(i) for i in rows["batch_idx"]})
        },
    )


def same_as_uncontrolled(
    table: pd.DataFrame, per_batch: pd.DataFrame, rule: str, settings: SelectionSettings
) -> list[str]:
    """Which selections of a control are those that it should be compared with: `global`, `union`, both or none.

    Where a rule selects every candidate, no other selection of as many experts exists.
    """
    if rule not in CONTROLS:
        return []
    control = select_experts(table, per_batch, rule, settings)
    selected = select_experts(table, per_batch, "threshold", settings)
    same = []
    if selected.overall and set(control.overall) == set(selected.overall):
        same.append("global")
    if selected.union and control.union == selected.union:
        same.append("union")
    return same
