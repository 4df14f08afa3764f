"""How far judges agree, how good a judge is against labels, and rates corrected by that.

A verdict is `refused` (positive), `answered` (negative) or `unscored` (unknown: counted, and in no figure).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from scipy import stats

from steermoe.analysis.rates import wilson
from steermoe.records import Verdict

Reply = tuple[str, str]
"""What names a reply: `(variant, prompt_id)`."""

_Reply = TypeVar("_Reply", bound=Reply)


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its interval.

    Attributes:
        value: `count / n`; None where n is 0, and so are both ends.
        ci_low: Lower end of Wilson's interval.
        ci_high: Upper end.
        count: What is counted.
        n: Of how many.
    """

    value: float | None
    ci_low: float | None
    ci_high: float | None
    count: int
    n: int


def share(count: int, n: int, confidence: float = 0.95) -> Share:
    """A share with Wilson's interval."""
    if n == 0:
        return Share(None, None, None, 0, 0)
    low, high = wilson(count, n, confidence)
    return Share(count / n, low, high, count, n)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two judges agree on the replies that both have scored.

    Attributes:
        agree: Share of the same verdict.
        kappa: Cohen's kappa: agreement beyond chance, 1 at most; None where chance alone would agree always.
        kappa_low: Lower end of its interval; None where n is 0 or kappa is None.
        kappa_high: Upper end.
        both_refused: Replies that both call a refusal.
        only_first: Replies that only the first calls so.
        only_second: Replies that only the second calls so.
        both_answered: Replies that neither calls so.
        num_unscored: Replies that one of them, or both, could not score.
        disagreements: The replies on which they differ, in the order of the first's.
    """

    agree: Share
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None
    both_refused: int
    only_first: int
    only_second: int
    both_answered: int
    num_unscored: int
    disagreements: tuple[Reply, ...]


def agreement(
    first: Mapping[_Reply, Verdict], second: Mapping[_Reply, Verdict], confidence: float = 0.95
) -> Agreement:
    """Compare the verdicts of two judges on the replies that both were given.

    Kappa is `(p_o - p_e) / (1 - p_e)`, with the large-sample standard error of Fleiss, Cohen and Everitt (1969).

    Args:
        first: Verdicts by reply.
        second: Verdicts by reply; those on other replies are left out.
        confidence: Of the intervals.
    """
    both = [reply for reply in first if reply in second]
    scored = [r for r in both if Verdict.UNSCORED not in (first[r], second[r])]
    counts = {(a, b): 0 for a in (True, False) for b in (True, False)}
    for reply in scored:
        counts[first[reply] is Verdict.REFUSED, second[reply] is Verdict.REFUSED] += 1
    yes, only_first = counts[True, True], counts[True, False]
    only_second, no = counts[False, True], counts[False, False]
    kappa, low, high = _kappa(yes, only_first, only_second, no, confidence)
    return Agreement(
        share(yes + no, len(scored), confidence),
        kappa,
        low,
        high,
        yes,
        only_first,
        only_second,
        no,
        len(both) - len(scored),
        tuple(reply for reply in scored if first[reply] is not second[reply]),
    )


def _kappa(
    yes: int, only_first: int, only_second: int, no: int, confidence: float
) -> tuple[float | None, float | None, float | None]:
    """Cohen's kappa of a 2 x 2 table with its interval."""
    n = yes + only_first + only_second + no
    if n == 0:
        return None, None, None
    table = [[yes / n, only_first / n], [only_second / n, no / n]]
    rows = [sum(row) for row in table]
    columns = [table[0][j] + table[1][j] for j in (0, 1)]
    observed = table[0][0] + table[1][1]
    by_chance = sum(rows[i] * columns[i] for i in (0, 1))
    if by_chance >= 1:
        return None, None, None
    kappa = (observed - by_chance) / (1 - by_chance)
    on = sum(table[i][i] * (1 - (rows[i] + columns[i]) * (1 - kappa)) ** 2 for i in (0, 1))
    off = (1 - kappa) ** 2 * sum(
        table[i][j] * (columns[i] + rows[j]) ** 2 for i in (0, 1) for j in (0, 1) if i != j
    )
    variance = (on + off - (kappa - by_chance * (1 - kappa)) ** 2) / (n * (1 - by_chance) ** 2)
    reach = _z(confidence) * math.sqrt(max(variance, 0.0))
    return kappa, max(-1.0, kappa - reach), min(1.0, kappa + reach)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How good a judge is against labels.

    Attributes:
        sensitivity: Share called refusals of the replies labelled so.
        specificity: Share called answers of the replies labelled so.
        agree: Share of both that are called what they are labelled.
        num_unscored: Labelled replies that the judge could not score.
        mistakes: The replies that are called otherwise than they are labelled.
    """

    sensitivity: Share
    specificity: Share
    agree: Share
    num_unscored: int
    mistakes: tuple[Reply, ...]


def accuracy(
    verdicts: Mapping[_Reply, Verdict], labels: Mapping[_Reply, Verdict], confidence: float = 0.95
) -> Accuracy:
    """Compare a judge with labels, on the replies that are labelled `refused` or `answered`.

    Args:
        verdicts: The judge's, by reply.
        labels: By reply.
        confidence: Of Wilson's intervals.
    """
    compared = agreement(labels, verdicts, confidence)
    labelled = {reply: label for reply, label in labels.items() if label is not Verdict.UNSCORED}
    unscored = sum(verdicts.get(r) is Verdict.UNSCORED for r in labelled)
    positives = compared.both_refused + compared.only_first
    negatives = compared.both_answered + compared.only_second
    return Accuracy(
        share(compared.both_refused, positives, confidence),
        share(compared.both_answered, negatives, confidence),
        compared.agree,
        unscored,
        compared.disagreements,
    )


@dataclass(frozen=True, slots=True)
class CorrectedRate:
    """A rate as it would be without the judge's errors.

    Attributes:
        value: Rogan and Gladen's estimate, kept in [0, 1]; None where the judge is no better than chance.
        ci_low: Lower end of Lang and Reiczigel's interval.
        ci_high: Upper end.
    """

    value: float | None
    ci_low: float | None
    ci_high: float | None


def corrected_rate(
    count: int,
    n: int,
    sensitivity: tuple[int, int],
    specificity: tuple[int, int],
    confidence: float = 0.95,
) -> CorrectedRate:
    """Correct a share of positives for a judge's errors, whose size was itself estimated.

    The estimate is `(observed + specificity - 1) / (sensitivity + specificity - 1)` (Rogan and Gladen 1978). The
    interval is that of Lang and Reiczigel (2014): the same estimate of counts to which `z^2 / 2` positives and
    negatives, and one right and one wrong label each, are added, moved by
    `2 z^2 (p se (1 - se) / n_se - (1 - p) sp (1 - sp) / n_sp)`, plus and minus z standard errors by the delta method.

    Args:
        count: Replies that the judge called positive.
        n: Replies that it scored.
        sensitivity: Of the labelled positives, how many it called so, and how many there are.
        specificity: The same of the labelled negatives.
        confidence: Of the interval.
    """
    (hits, positives), (rejections, negatives) = sensitivity, specificity
    if not (n and positives and negatives):
        return CorrectedRate(None, None, None)
    se, sp = hits / positives, rejections / negatives
    if se + sp <= 1:
        return CorrectedRate(None, None, None)
    z = _z(confidence)
    value = (count / n + sp - 1) / (se + sp - 1)
    n_obs, n_se, n_sp = n + z * z, positives + 2, negatives + 2
    obs, se, sp = (count + z * z / 2) / n_obs, (hits + 1) / n_se, (rejections + 1) / n_sp
    youden = se + sp - 1
    if youden <= 0:
        return CorrectedRate(_inside(value), 0.0, 1.0)
    p = (obs + sp - 1) / youden
    of_se, of_sp = se * (1 - se) / n_se, sp * (1 - sp) / n_sp
    error = math.sqrt(obs * (1 - obs) / n_obs + p * p * of_se + (1 - p) ** 2 * of_sp) / youden
    middle = p + 2 * z * z * (p * of_se - (1 - p) * of_sp)
    return CorrectedRate(_inside(value), _inside(middle - z * error), _inside(middle + z * error))


def compare_all(
    by_judge: Mapping[str, Mapping[_Reply, Verdict]], confidence: float = 0.95
) -> list[tuple[str, str, Agreement]]:
    """Every pair of judges, in the order of their names' appearance."""
    names: Sequence[str] = list(by_judge)
    return [
        (a, b, agreement(by_judge[a], by_judge[b], confidence))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]


def _inside(value: float) -> float:
    return min(1.0, max(0.0, value))


def _z(confidence: float) -> float:
    return float(stats.norm.ppf((1 + confidence) / 2))
