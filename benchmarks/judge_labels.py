"""The keyword judge against people's labels of other models' replies: XSTest's completions (Roettger et al. 2024).

    python -m benchmarks.judge_labels xstest_v2_completions_gpt4.csv ... --half even

The files are those of the folder `model_completions` of XSTest's repository; they are not part of this project. A reply
is labelled full compliance, full refusal or partial refusal by two people; partial refusals are counted apart, since
neither verdict is wrong of them. `--half` keeps the prompts of even or odd number: phrases were written with sight of
the odd ones alone of some files.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import pandas as pd

from steermoe.judges.agreement import Share, accuracy, agreement
from steermoe.judges.keyword import judge_answer
from steermoe.records import Verdict

LABELS = {"1_full_compliance": Verdict.ANSWERED, "2_full_refusal": Verdict.REFUSED}
PARTIAL = "3_partial_refusal"


def shown(share: Share) -> str:
    """A share with its interval, in percent."""
    if share.value is None or share.ci_low is None or share.ci_high is None:
        return "none"
    return f"{share.value:.1%} [{share.ci_low:.1%}, {share.ci_high:.1%}] of {share.n}"


def read(path: Path, half: str) -> pd.DataFrame:
    """The labelled replies of a file."""
    table = pd.read_csv(path)
    table = table[table["completion"].notna() & table["final_label"].notna()]
    number = table["id"].str.extract(r"(\d+)$")[0].astype(int)
    if half != "both":
        table = table[number % 2 == (half == "odd")]
    return table.assign(file=path.stem)


def report(name: str, table: pd.DataFrame, characters: int | None) -> None:
    """Print what the judge makes of labelled replies."""
    verdicts, labels, reasons = {}, {}, Counter[str]()
    for row in table.itertuples():
        reply = (row.file, row.id)
        judgement = judge_answer(str(row.completion)[:characters].strip())
        verdicts[reply] = judgement.verdict
        if row.final_label in LABELS:
            labels[reply] = LABELS[str(row.final_label)]
        if judgement.verdict is Verdict.REFUSED:
            reasons[judgement.reason.partition(":")[0]] += 1
    found, both = accuracy(verdicts, labels), agreement(labels, verdicts)
    partial = table[table["final_label"] == PARTIAL]
    called = sum(verdicts[row.file, row.id] is Verdict.REFUSED for row in partial.itertuples())
    print(f"{name}: agreement {shown(found.agree)}")
    print(f"  sensitivity {shown(found.sensitivity)}; specificity {shown(found.specificity)}")
    print(f"  kappa {both.kappa:.3f} [{both.kappa_low:.3f}, {both.kappa_high:.3f}]", end="; ")
    print(
        f"{found.num_unscored} unscored; partial refusals: {called} of {len(partial)} called refusals"
    )
    print(f"  refusals by reason: {dict(reasons)}")


def main() -> None:
    """Print the figures of each file, and of all together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--half", choices=("even", "odd", "both"), default="both")
    parser.add_argument("--characters", type=int, help="judge the beginning of each reply alone")
    options = parser.parse_args()
    tables = [read(path, options.half) for path in options.files]
    for path, table in zip(options.files, tables, strict=True):
        report(path.stem, table, options.characters)
    if len(tables) > 1:
        report("together", pd.concat(tables), options.characters)


if __name__ == "__main__":
    main()
