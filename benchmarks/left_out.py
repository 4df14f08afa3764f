"""How much less a model refuses where requests are asked in a way that it was not trained on.

    python -m benchmarks.left_out RUN --out DIR [--epochs 0.5] [--style typos ...]

For every style of the run's prompts, the run's experts are trained on the rows of all other styles with the run's
settings, and measured on the train prompts of that style, none of which they saw; and once on all styles, measured on
the held-out prompts by style. A prompt counts as refused where a greedy reply begins as a refusal does
(`benchmarks.refusal_margins`). The experts are the run's own, which were selected with the style left out in sight.
What is measured is kept in DIR, a file a style, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arguments import parser_of_a_run
from benchmarks.selection import trained_and_measured
from benchmarks.statistics import show
from steermoe.analysis.rates import wilson
from steermoe.config import Config
from steermoe.records import Expert, Label, Prompt, Split
from steermoe.store.directory import RunDirectory
from steermoe.store.names import MODEL
from steermoe.store.run import Run

KINDS = {"harmful": Label.UNSAFE, "look-alikes": Label.SAFE, "benign": Label.BENIGN}
ALL = "all styles"


@contextmanager
def without_style(run: RunDirectory, style: str) -> Iterator[RunDirectory]:
    """A copy of a run whose dev prompts are the train prompts of a style, which is in no other split."""
    with tempfile.TemporaryDirectory(dir=run.path.parent) as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run.path, copy, ignore=shutil.ignore_patterns(MODEL, ".lock"))
        changed = RunDirectory(copy)
        changed.write_prompts(
            [
                replace(p, split=Split.DEV if p.style == style else Split.TRAIN)
                if p.split is Split.TRAIN
                else replace(p, split=Split.TEST)
                for p in run.read_prompts()
            ]
        )
        yield changed


def measured(run: RunDirectory, config: Config, style: str, work: Path) -> dict[str, float]:
    """Margins of the prompts of a style that was left out; of all held-out prompts where none was."""
    experts: Sequence[Expert] = run.read_selection().chosen(config.train.experts)
    shares = [config.train.kept_change]
    if style == ALL:
        held_out = [p for p in run.read_prompts() if p.split is not Split.TRAIN]
        found = trained_and_measured(run, config, experts, work, held_out, shares)
    else:
        with without_style(run, style) as changed:
            own = [p for p in changed.read_prompts() if p.split is Split.DEV]
            found = trained_and_measured(changed, config, experts, work, own, shares)
    margins: dict[str, float] = found[0]["margins"]
    return margins


def rates(margins: dict[str, float], prompts: list[Prompt]) -> dict[str, object]:
    """The share of each kind that is refused, with its interval."""
    row: dict[str, object] = {}
    for kind, label in KINDS.items():
        refused = [margins[p.prompt_id] > 0 for p in prompts if p.label is label]
        if not refused:
            row[kind] = "none"
            continue
        low, high = wilson(sum(refused), len(refused))
        share = sum(refused) / len(refused)
        row[kind] = f"{share:.0%} [{low:.0%}, {high:.0%}] of {len(refused)}"
    return row


def main() -> None:
    parser = parser_of_a_run("left_out", __doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, help="passes over the rows; the run's by default")
    parser.add_argument("--style", nargs="*", help="styles to leave out; by default each of them")
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run = RunDirectory(chosen.run)
    config = Run(run).config
    if chosen.epochs:
        train = config.train.model_copy(update={"epochs": chosen.epochs})
        config = config.model_copy(update={"train": train})
    prompts = run.read_prompts()
    styles = sorted({p.style for p in prompts if p.style})
    chosen.out.mkdir(parents=True, exist_ok=True)
    of_styles: dict[str, dict[str, float]] = {}
    for style in (ALL, *(chosen.style or styles)):
        file = chosen.out / f"{style.replace(' ', '-')}.json"
        if not file.exists():
            found: Any = measured(run, config, style, chosen.out / "checkpoints" / file.stem)
            file.write_text(json.dumps(found), "utf-8")
        of_styles[style] = json.loads(file.read_text("utf-8"))
    rows, pooled = [], {}
    for style, margins in of_styles.items():
        if style == ALL:
            continue
        trained = [p for p in prompts if p.style == style and p.prompt_id in of_styles[ALL]]
        left_out = [p for p in prompts if p.style == style and p.prompt_id in margins]
        rows.append({"style": style, "trained on": "all others"} | rates(margins, left_out))
        rows.append({"style": style, "trained on": "all"} | rates(of_styles[ALL], trained))
        pooled |= margins
    left_out = [p for p in prompts if p.prompt_id in pooled]
    trained = [p for p in prompts if p.prompt_id in of_styles[ALL]]
    rows.append({"style": "each", "trained on": "all others"} | rates(pooled, left_out))
    rows.append({"style": "each", "trained on": "all"} | rates(of_styles[ALL], trained))
    show(rows)


if __name__ == "__main__":
    main()
