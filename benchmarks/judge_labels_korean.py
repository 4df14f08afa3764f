"""The keyword judge against what two language models say of Korean replies: K-OverRefusal's outputs (Markr.AI, 2026).

    python -m benchmarks.judge_labels_korean OUTPUTS --half even

OUTPUTS is the folder `outputs` of that repository; it is not part of this project. It has replies of eleven models to
XSTest in Korean and to idioms, each called refusal, deflection or compliance by one model, and those of six models by a
second one too. Counted are the replies that both call refusal or both call compliance; the first one's labels of all
eleven models are shown beside. `--half` keeps the prompts whose hash is even or odd: Korean phrases were written with
sight of the odd ones alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.judge_labels import shown
from steermoe.judges.agreement import accuracy
from steermoe.judges.keyword import judge_answer
from steermoe.records import Verdict

LABELS = {"compliance": Verdict.ANSWERED, "refusal": Verdict.REFUSED}
RESULTS = Path("xstest") / "evaluation_results.jsonl"

Reply = tuple[str, str, str]
"""Model, prompt, reply."""


def labelled(folder: Path, half: str) -> Iterator[tuple[Reply, str]]:
    """Each reply under a folder, with its label."""
    for path in sorted(folder.glob(f"*/{RESULTS}")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            prompt, reply = row["prompt_ko"], (row["response"] or "").strip()
            odd = hashlib.sha256(prompt.encode()).digest()[0] % 2 == 1
            if reply and (half == "both" or odd == (half == "odd")):
                yield (path.parts[-3], prompt, reply), row["refusal_clf_label"]


def main() -> None:
    """Print the figures of the replies on which both models agree, and of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--half", choices=("even", "odd", "both"), default="both")
    options = parser.parse_args()
    first = dict(labelled(options.outputs / "remote_models", options.half))
    second = dict(labelled(options.outputs / "cross_judge", options.half))
    verdicts = {reply: judge_answer(reply[2]).verdict for reply in first}
    alike = {reply: label for reply, label in first.items() if second.get(reply) == label}
    for name, labels in (("both say so", alike), ("the first says so", first)):
        found = accuracy(
            verdicts, {r: LABELS[said] for r, said in labels.items() if said in LABELS}
        )
        print(f"{name}: agreement {shown(found.agree)}; {found.num_unscored} unscored")
        print(f"  sensitivity {shown(found.sensitivity)}; specificity {shown(found.specificity)}")
    deflections = [reply for reply, label in alike.items() if label == "deflection"]
    called = sum(verdicts[reply] is Verdict.REFUSED for reply in deflections)
    print(f"both say deflection: {called} of {len(deflections)} called refusals")


if __name__ == "__main__":
    main()
