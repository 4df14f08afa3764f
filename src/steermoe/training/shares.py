"""What each of several processes does of a micro-batch, so that together they do what one process would.

The loss of an objective is a weighted mean over the tokens of its rows. A process computes the mean over its own rows,
times the share that they have of the weight of all rows; the sum over the processes is the mean of one process, and so
is its gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from steermoe.contracts import Objective
from steermoe.training.dataset import MicroBatch, TrainingRow


def deal_rows(rows: Sequence[TrainingRow], count: int) -> list[list[TrainingRow]]:
    """Rows for each process: about as many tokens of each objective, in the order that they had.

    A process that gets no row of an objective gets the first one of them, which then counts nothing: collective
    operations wait until every process calls them.
    """
    dealt: list[list[int]] = [[] for _ in range(count)]
    for name in dict.fromkeys(row.objective for row in rows):
        own = [i for i, row in enumerate(rows) if row.objective == name]
        tokens = [sum(rows[i].num_tokens for i in indices) for indices in dealt]
        parts: list[list[int]] = [[] for _ in range(count)]
        for i in sorted(own, key=lambda i: -rows[i].num_tokens):
            # With as few tokens as any; of such, the one with the fewest rows of this objective.
            process = min(range(count), key=lambda p: (tokens[p], len(parts[p]), p))
            parts[process].append(i)
            tokens[process] += rows[i].num_tokens
        for indices, part in zip(dealt, parts, strict=True):
            indices += part
    return [[rows[i] for i in sorted(indices)] for indices in dealt]


def own_share(
    rows: Sequence[TrainingRow], objectives: Iterable[Objective], rank: int, count: int
) -> tuple[list[TrainingRow], dict[str, float]]:
    """The rows that one of several processes computes, and the factor of each objective's loss.

    Args:
        rows: Of the whole micro-batch.
        objectives: Those of the phase.
        rank: Which process.
        count: How many there are.

    Returns:
        Its rows, and of each objective with rows the factor: `count * own weight / weight of all`, because gradients
        are averaged over the processes.
    """
    by_name = {objective.name: objective for objective in objectives}
    own = deal_rows(rows, count)[rank]
    factors = {}
    for name in dict.fromkeys(row.objective for row in rows):
        objective = by_name.get(name)
        whole = sum(weight_of(objective, row) for row in rows if row.objective == name)
        mine = sum(weight_of(objective, row) for row in own if row.objective == name)
        factors[name] = count * mine / whole if whole else 0.0
        if not any(row.objective == name for row in own):
            own.append(next(row for row in rows if row.objective == name))
    return own, factors


def weight_of(objective: Objective | None, row: TrainingRow) -> float:
    """The weight that a row's tokens have in the mean of its objective; their number, where that does not say."""
    weigh = getattr(objective, "row_weight", None)
    tokens = len(row.completion_token_ids)
    return float(weigh(row)) if weigh is not None else float(tokens)


def factor_of(batch: MicroBatch, objective: str) -> float | None:
    """The factor of an objective's loss in a micro-batch; None where one process trains alone."""
    shares = batch.get("shares")
    return None if shares is None else float(shares[objective])
