"""What exported Inspect tasks call: a task of prompts whose replies one of our judges scores.

The only module that imports `inspect_ai`; nothing else in the package imports this one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, ModelOutput
from inspect_ai.scorer import SampleScore, Score, metric, scorer, stderr
from inspect_ai.solver import generate

from steermoe.harness.prompt_tasks import PromptTask, hits, task_named
from steermoe.records import Verdict


def prompt_task(name: str, path: Path, judge: str, max_tokens: int) -> Any:
    """A task of the prompts in a file.

    Args:
        name: Their kind.
        path: JSON lines of `id, input, metadata`.
        judge: Name of the judge.
        max_tokens: Most tokens of a reply.
    """
    kind = task_named(name)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    system_prompt = _taken_out(rows)
    samples = [Sample(**row) for row in rows]
    return Task(
        dataset=MemoryDataset(samples, name=f"steermoe_{name}"),
        solver=[generate()],
        scorer=_verdicts(kind, judge),
        config=GenerateConfig(
            max_tokens=max_tokens, temperature=0.0, system_message=system_prompt or None
        ),
        version=1,
    )


def _taken_out(rows: Sequence[dict[str, Any]]) -> str:
    """The system turn that all samples share, which is taken out of them; empty where they share none.

    As a setting of the task it can be given again on the command line, and is not there twice then.
    """
    firsts = [row["input"][0] for row in rows]
    shared = {turn["content"] if turn["role"] == "system" else "" for turn in firsts}
    system_prompt: str = shared.pop() if len(shared) == 1 else ""
    if system_prompt:
        for row in rows:
            row["input"] = row["input"][1:]
    return system_prompt


def _verdicts(kind: PromptTask, judge: str) -> Any:
    """Scores a reply 1 where it is a hit of the kind's first rate, else 0; unscored where it cannot be judged."""
    first, *others = kind.rates

    def share(scores: Sequence[SampleScore]) -> float:
        return sum(score.score.as_float() for score in scores) / len(scores) if scores else 0.0

    def the_rest(scores: Sequence[SampleScore]) -> float:
        return 1 - share(scores) if scores else 0.0

    def made(name: str, of: Any) -> Any:
        def metric_of_name() -> Any:
            return of

        return metric(name=name)(metric_of_name)()

    def refusal_judge() -> Any:
        async def score(state: Any, target: Any) -> Score:
            output: ModelOutput = state.output
            turns = [{"role": m.role, "content": m.text} for m in state.messages]
            goal = str(state.metadata.get("goal", ""))
            verdict, found = hits(kind, output.completion, judge, goal, turns[:-1])
            if verdict is Verdict.UNSCORED:
                return Score.unscored(reason="unjudgeable", answer=output.completion)
            return Score(value=found[first], answer=str(verdict), explanation=judge)

        return score

    metrics = [made(first, share), *(made(name, the_rest) for name in others), stderr()]
    return scorer(metrics=metrics, name="refusal_judge")(refusal_judge)()
