"""Judge: from the replies that are there to verdicts, by every judge of the run.

Cheap beside generating, and so a step of its own: another judge says something else of the same replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from steermoe.config import Config
from steermoe.judges.kinds import judges_named
from steermoe.records import Judgement
from steermoe.reporter import Reporter
from steermoe.store.directory import RunDirectory
from steermoe.store.exchanges import exchanges_of, prompts_of
from steermoe.store.names import BASE, HARDENED, JUDGE_ANSWERS, REPLIES
from steermoe.store.state import Figures
from steermoe.store.variants import ablated_variants, control_variants


def judge_base(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Judge the base model's replies. Writes its part of `verdicts.parquet`."""
    return _judge(run, config, reporter, [BASE])


def judge_hardened(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Judge the hardened model's replies. Writes its part of `verdicts.parquet`."""
    return _judge(run, config, reporter, [HARDENED])


def judge_ablated(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Judge the replies of the ablated variants. Writes their part of `verdicts.parquet`."""
    return _judge(run, config, reporter, ablated_variants(run, REPLIES))


def judge_table(run: RunDirectory, config: Config, reporter: Reporter, table: str) -> Figures:
    """Judge a variant's replies on a set of prompts. Writes their part of `verdicts.parquet`."""
    return _judge(run, config, reporter, [table])


def judge_controls(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Judge the replies of the controls. Writes their part of `verdicts.parquet`."""
    variants = control_variants(run, REPLIES)
    return _judge(run, config, reporter, variants) if variants else {}


def _judge(
    run: RunDirectory, config: Config, reporter: Reporter, variants: Sequence[str]
) -> Figures:
    exchanges = [found for variant in variants for found in exchanges_of(run, variant)]
    labels = {
        (variant, prompt.prompt_id): prompt.label
        for variant in variants
        for prompt in prompts_of(run, variant)
    }
    judgements: dict[tuple[str, str, str], Judgement] = {}
    figures: Counter[str] = Counter()
    judges = judges_named(config.judge, run.file(JUDGE_ANSWERS))
    for judge in judges:
        for exchange, found in zip(exchanges, judge.judge(exchanges), strict=True):
            judgements[(exchange.variant, exchange.prompt_id, judge.name)] = found
            if judge.name == config.judge.main:
                label = labels[exchange.variant, exchange.prompt_id]
                figures[f"{label}/{found.verdict}"] += 1
    run.write_verdicts(judgements, variants)
    names = " and ".join(judge.name for judge in judges)
    reporter.line(f"judged {len(exchanges):,} replies of {' and '.join(variants)} by {names}")
    return {"num_judged": len(judgements), "verdicts": dict(sorted(figures.items()))}
