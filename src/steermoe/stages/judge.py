"""Judge: from the replies that are there to verdicts, by every judge of the run.

Cheap beside generating, and so a step of its own: another judge says something else of the same replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from steermoe.config import Config
from steermoe.judges.kinds import judge_named
from steermoe.reasoning import final_answer
from steermoe.records import Exchange, Judgement, Prompt
from steermoe.reporter import Reporter
from steermoe.stages.ablate import ablated_variants
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE, HARDENED
from steermoe.store.state import Figures

TOGETHER = 256
"""Replies that a judge is given at once."""


def judge_base(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Judge the base model's replies. Writes its part of `verdicts.parquet`."""
    return _judge(run, config, reporter, [BASE])


def judge_hardened(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Judge the hardened model's replies. Writes its part of `verdicts.parquet`."""
    return _judge(run, config, reporter, [HARDENED])


def judge_ablated(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Judge the replies of the ablated variants. Writes their part of `verdicts.parquet`."""
    return _judge(run, config, reporter, ablated_variants(run, "replies"))


def _judge(
    run: RunDirectory, config: Config, reporter: Reporter, variants: Sequence[str]
) -> Figures:
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts()}
    replies = {variant: run.read_replies(variant) for variant in variants}
    names = list(dict.fromkeys((config.judge.main, *config.judge.others)))
    judgements: dict[tuple[str, str, str], Judgement] = {}
    figures: Counter[str] = Counter()
    total = sum(map(len, replies.values())) * len(names)
    with reporter.bar(total, "judge") as bar:
        for name in names:
            judge = judge_named(name, config.judge)
            for variant, table in replies.items():
                exchanges = _exchanges(variant, table, prompts)
                for start in range(0, len(exchanges), TOGETHER):
                    part = exchanges[start : start + TOGETHER]
                    for exchange, found in zip(part, judge.judge(part), strict=True):
                        judgements[(variant, exchange.prompt_id, name)] = found
                        label = prompts[exchange.prompt_id].label
                        if name == config.judge.main:
                            figures[f"{label}/{found.verdict}"] += 1
                    bar.advance(len(part))
    run.write_verdicts(judgements, variants)
    return {"num_judged": total, "verdicts": dict(sorted(figures.items()))}


def _exchanges(variant: str, table: pd.DataFrame, prompts: Mapping[str, Prompt]) -> list[Exchange]:
    """The replies of a variant, as judges are given them."""
    found = []
    for row in table.to_dict("records"):
        prompt = prompts[row["prompt_id"]]
        text = str(row["generated_text"])
        found.append(
            Exchange(
                variant=variant,
                prompt_id=prompt.prompt_id,
                goal=prompt.goal,
                messages=prompt.messages,
                prompt=prompt.rendered,
                reply=text,
                answer=final_answer(prompt.rendered, text),
            )
        )
    return found
