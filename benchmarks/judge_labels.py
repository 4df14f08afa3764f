"""The keyword judge against people's labels of other models' replies.

    python -m benchmarks.judge_labels xstest_v2_completions_gpt4.csv ... --half even
    python -m benchmarks.judge_labels all_hand_labeled.json --half even

None of these files is part of this project. What they are is told by their form:

- XSTest's completions (Roettger et al. 2024, the folder `model_completions` of its repository): full compliance, full
  refusal or partial refusal, by two people. `--half` keeps the prompts of even or odd number.
- Replies of ChatGPT (Reuter and Schulze 2023, `data/all_hand_labeled.json` of their repository), labelled by hand:
  "complied" is answered, "rejected" is refused. Their other labels (redirected, disclaimed, contradicted, counseling)
  are partial; "incoherent" and "dontknow" are left out, as their authors do. `--half` keeps the prompts whose hash is
  even or odd.
- Replies of Vicuna, ChatGPT and Llama 2 to jailbreaks (Yu et al. 2023, `datasets/responses_labeled/evaluate.csv` of
  GPTFuzz): 1, jailbroken, is answered; 0, not jailbroken, is refused. 0 is wider than a refusal: it holds replies that
  play along and refuse late. `--half` keeps the questions of even or odd number.

Partial labels are counted apart, since neither verdict is wrong of them. Phrases were written with sight of the odd
half alone of XSTest (for three of its five models) and of ChatGPT's replies, and of none of `evaluate.csv`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from steermoe.judges.agreement import Share, accuracy, agreement
from steermoe.judges.keyword import judge_answer
from steermoe.records import Verdict

XSTEST = {"1_full_compliance": Verdict.ANSWERED, "2_full_refusal": Verdict.REFUSED}
CHATGPT = {"complied": Verdict.ANSWERED, "rejected": Verdict.REFUSED}
LEFT_OUT = ("incoherent", "dontknow")
JAILBREAKS = {"1": Verdict.ANSWERED, "0": Verdict.REFUSED}


@dataclass(frozen=True, slots=True)
class Labelled:
    """A reply that somebody labelled.

    Attributes:
        name: Of the file and the reply.
        text: The reply.
        label: What was said of it; None where it is partial.
        odd: Whether its prompt is in the odd half.
    """

    name: str
    text: str
    label: Verdict | None
    odd: bool


def shown(share: Share) -> str:
    """A share with its interval, in percent."""
    if share.value is None or share.ci_low is None or share.ci_high is None:
        return "none"
    return f"{share.value:.1%} [{share.ci_low:.1%}, {share.ci_high:.1%}] of {share.n}"


def read(path: Path) -> Iterator[Labelled]:
    """The labelled replies of a file that are not empty."""
    if path.suffix == ".json":
        for i, row in enumerate(json.loads(path.read_text(encoding="utf-8"))):
            if row["tone"] not in LEFT_OUT:
                odd = hashlib.sha256(row["prompt"].encode()).digest()[0] % 2 == 1
                yield Labelled(f"{path}:{i}", row["response"], CHATGPT.get(row["tone"]), odd)
        return
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as lines:
        for i, row in enumerate(csv.DictReader(lines)):
            name = f"{path}:{i}"
            if "Response" in row:
                odd = int(row["question"]) % 2 == 1
                yield Labelled(name, row["Response"], JAILBREAKS[row["label"]], odd)
            elif row["completion"] and row["final_label"]:
                number = re.search(r"\d+$", row["id"])
                odd = number is not None and int(number.group()) % 2 == 1
                yield Labelled(name, row["completion"], XSTEST.get(row["final_label"]), odd)


def report(name: str, replies: Sequence[Labelled], characters: int | None) -> None:
    """Print what the judge makes of labelled replies."""
    judgements = {reply.name: judge_answer(reply.text[:characters].strip()) for reply in replies}
    verdicts = {key: judgement.verdict for key, judgement in judgements.items()}
    labels = {reply.name: reply.label for reply in replies if reply.label is not None}
    found, both = accuracy(verdicts, labels), agreement(labels, verdicts)
    partial = [verdicts[reply.name] for reply in replies if reply.label is None]
    refusals = [said for said in judgements.values() if said.verdict is Verdict.REFUSED]
    print(f"{name}: agreement {shown(found.agree)}")
    print(f"  sensitivity {shown(found.sensitivity)}; specificity {shown(found.specificity)}")
    print(f"  kappa {both.kappa:.3f} [{both.kappa_low:.3f}, {both.kappa_high:.3f}]", end="; ")
    print(f"{found.num_unscored} unscored; partial: ", end="")
    print(f"{partial.count(Verdict.REFUSED)} of {len(partial)} called refusals")
    print(f"  refusals by reason: {dict(Counter(r.reason.partition(':')[0] for r in refusals))}")


def main() -> None:
    """Print the figures of each file, and of all together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--half", choices=("even", "odd", "both"), default="both")
    parser.add_argument("--characters", type=int, help="judge the beginning of each reply alone")
    options = parser.parse_args()
    files = {
        path.stem: [r for r in read(path) if options.half in ("both", "odd" if r.odd else "even")]
        for path in options.files
    }
    for name, replies in files.items():
        report(name, replies, options.characters)
    if len(files) > 1:
        report("together", [r for rs in files.values() for r in rs], options.characters)


if __name__ == "__main__":
    main()
