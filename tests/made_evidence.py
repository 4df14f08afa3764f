"""What a measure is given, made by hand: prompts of a kind, and what two variants said to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steermoe.judges.keyword import judge_answer
from steermoe.measures.evidence import Intervals, Side, VariantEvidence
from steermoe.metrics import MeasureRow
from steermoe.records import Label, Prompt


def prompt(prompt_id: str, label: str = "benign", **fields: Any) -> Prompt:
    goal = fields.pop("goal", f"goal of {prompt_id}")
    return Prompt(prompt_id, Label(label), ({"role": "user", "content": goal},), goal, **fields)


def side(
    texts: Mapping[str, str],
    tokens: Mapping[str, Sequence[int]] | None = None,
    verdicts: Mapping[str, str] | None = None,
) -> Side:
    """Replies by prompt id; verdicts are the keyword judge's, and tokens as many as words, unless they are given."""
    lengths = {i: len(text.split()) for i, text in texts.items()}
    return Side(
        verdicts=verdicts or {i: str(judge_answer(text).verdict) for i, text in texts.items()},
        texts=texts,
        answers=dict(texts),
        num_tokens=lengths if tokens is None else {i: len(ids) for i, ids in tokens.items()},
        token_ids=tokens or {},
    )


def evidence(
    prompts: Sequence[Prompt], own: Side, reference: Side | None = None, judge: str = "keyword"
) -> VariantEvidence:
    """That of a variant, beside the base model's where one is given."""
    return VariantEvidence(
        "hardened" if reference is not None else "base",
        "test",
        {found.prompt_id: found for found in prompts},
        own,
        reference,
        "base" if reference is not None else "",
        judge,
        Intervals(0.95, 1000, 0),
    )


def by_kind(rows: Sequence[MeasureRow]) -> dict[str, MeasureRow]:
    """The rows of one measure: `own` and `change`."""
    return {"change" if row.compared_with else "own": row for row in rows}
