"""What is printed of judges: how far they agree, and how good they are by labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from steermoe.judges.agreement import Accuracy, Reply, Share, accuracy, compare_all
from steermoe.measures.corrected import with_corrections
from steermoe.measures.groups import parts_of_group_name
from steermoe.records import Verdict
from steermoe.report import numbers
from steermoe.store.names import MEASURES, VERDICTS
from steermoe.store.run import Run

MAX_LISTED = 20
"""Disagreements and mistakes that are listed; the others are counted."""


def verdicts_of(run: Run) -> dict[str, dict[tuple[str, str], Verdict]]:
    """Every verdict of a run: by judge, and then by `(variant, prompt_id)`."""
    table = run.directory.read_table(VERDICTS)
    found: dict[str, dict[tuple[str, str], Verdict]] = {}
    for row in table.to_dict("records"):
        of_judge = found.setdefault(str(row["judge"]), {})
        of_judge[(row["variant"], row["prompt_id"])] = Verdict(row["verdict"])
    return found


def agreement_of(run: Run) -> Group:
    """How many replies each judge calls what, and how far every two of them agree."""
    by_judge = verdicts_of(run)
    counts = Table("judge", "refused", "answered", "unscored", box=None)
    for name, verdicts in by_judge.items():
        number = [list(verdicts.values()).count(verdict) for verdict in Verdict]
        counts.add_row(name, *map(str, number))
    parts: list[Table | Text] = [counts]
    for first, second, found in compare_all(by_judge):
        kappa = "undefined"
        if found.kappa is not None:
            kappa = f"{found.kappa:.2f} [{found.kappa_low:.2f}, {found.kappa_high:.2f}]"
        disagree = [
            reply
            for reply, verdict in by_judge[first].items()
            if by_judge[second].get(reply, verdict) != verdict
        ]
        parts.append(
            Text(f"{first} and {second}: agree {_shown(found.agree)}, Cohen's kappa {kappa}")
        )
        parts.append(Text(_listed("they disagree on", disagree)))
    return Group(*parts)


def accuracy_of(run: Run, labels: Mapping[tuple[str, str], Verdict]) -> Group:
    """Sensitivity and specificity of every judge by labels, and the rates of the run corrected for its errors."""
    confidence = run.config.evaluate.confidence
    judges = Table("judge", "sensitivity", "specificity", "agrees", "unscored", box=None)
    parts: list[Table | Text] = [judges]
    for name, verdicts in verdicts_of(run).items():
        found = accuracy(verdicts, labels, confidence)
        judges.add_row(
            name,
            _shown(found.sensitivity),
            _shown(found.specificity),
            _shown(found.agree),
            str(found.num_unscored),
        )
        parts.append(Text(_listed(f"{name} is wrong on", list(found.mistakes))))
        if name == run.config.judge.main:
            parts.append(_corrected(run, found, confidence))
    return Group(*parts)


def _corrected(run: Run, judge: Accuracy, confidence: float) -> Table:
    """The rates of verdicts as they were measured, and as they would be without the judge's errors.

    Those of categories and styles are in `measures.parquet` alone: there are dozens, and few prompts in each.
    """
    table = Table("variant", "prompts", "rate", "as judged", "corrected", title="rates", box=None)
    measures = run.measures if run.directory.has(MEASURES) else []
    for row in with_corrections(measures, run.config.judge.main, judge, confidence):
        metric = row.metric
        if "num_labels_refused" not in metric.more or parts_of_group_name(row.set):
            continue
        raw = f"{metric.value:.1%} [{metric.ci_low:.1%}, {metric.ci_high:.1%}] n={metric.n}"
        table.add_row(row.variant, row.set, row.measure, raw, numbers.corrected(metric.as_json()))
    return table


def _shown(share: Share) -> str:
    if share.value is None:
        return "undefined (n=0)"
    return f"{share.value:.1%} [{share.ci_low:.1%}, {share.ci_high:.1%}] n={share.n}"


def _listed(what: str, replies: Sequence[Reply]) -> str:
    if not replies:
        return f"{what} no reply"
    shown = ", ".join(
        "/".join(map(str, reply)) if isinstance(reply, tuple) else str(reply)
        for reply in replies[:MAX_LISTED]
    )
    more = f" and {len(replies) - MAX_LISTED} more" if len(replies) > MAX_LISTED else ""
    return f"{what} {len(replies)} replies: {shown}{more}"
