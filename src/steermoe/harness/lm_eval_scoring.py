"""What exported lm-evaluation-harness tasks call while they run: their prompts, and the verdicts on the replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steermoe.harness.prompt_tasks import UNSCORED, hits, task_named
from steermoe.records import Verdict


def read_prompts(path: Path) -> Mapping[str, object]:
    """The prompts of one task, as a dataset with the split `test`."""
    import datasets

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {"test": datasets.Dataset.from_list(rows)}


def results(name: str, doc: Mapping[str, Any], replies: Sequence[str]) -> dict[str, float]:
    """What one reply adds to each metric of its task; NaN where it could not be judged."""
    asked = str(doc["prompt"])
    turns = [{"role": "user", "content": asked}]
    verdict, found = hits(task_named(name), replies[0], goal=asked, messages=turns)
    return {**found, UNSCORED: float(verdict is Verdict.UNSCORED)}
