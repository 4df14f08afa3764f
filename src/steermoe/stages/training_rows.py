"""From the replies of a run to the rows that a training has: which prompts, for which objective, in which batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from steermoe.chat import stop_token_ids
from steermoe.config import Config
from steermoe.contracts import Objective
from steermoe.loading import LoadedModel
from steermoe.records import NO_BATCH, Label, Split, Verdict
from steermoe.reporter import Reporter
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE
from steermoe.training.dataset import Example, TrainingRow
from steermoe.training.objectives import objectives_of
from steermoe.training.phases import Phase


def training_rows(
    run: RunDirectory,
    config: Config,
    tokenizer: Any,
    objectives: Sequence[Objective] | None = None,
    stops: Sequence[int] = (),
) -> tuple[list[TrainingRow], list[TrainingRow], Counter[str]]:
    """Rows of the train split: those of mixed batches, the benign ones to spread, and how many were left out why.

    Micro-batches are the mixed batches of the analysis, so prompts that filled none are left out. A prompt's row is
    made by the first of the objectives that it belongs to; by default those of `train.objectives`. `stops` are the
    tokens at which generation ends.
    """
    if objectives is None:
        objectives = objectives_of(config.train, config.train.objectives)
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts()}
    train_ids = {p.prompt_id for p in prompts.values() if p.split is Split.TRAIN}
    rows: list[TrainingRow] = []
    benign: list[TrainingRow] = []
    left_out: Counter[str] = Counter()
    num_made: Counter[str] = Counter()
    verdicts = run.read_verdicts(BASE, config.judge.main)
    for row, output in run.iter_outputs(train_ids):
        prompt = prompts[row["prompt_id"]]
        batch_idx = int(row["batch_idx"])
        if batch_idx == NO_BATCH and prompt.label is not Label.BENIGN:
            left_out["are in no mixed batch"] += 1
            continue
        example = Example(
            prompt,
            Verdict(verdicts[prompt.prompt_id]),
            output,
            batch_idx,
            tokenizer,
            config.model.chat_template_kwargs,
            tuple(stops),
        )
        made = _first_row(objectives, example, num_made)
        if made is None:
            left_out["belong to no objective"] += 1
        elif not made.completion_token_ids:
            left_out["have an empty reply"] += 1
        elif prompt.label is Label.BENIGN:
            benign.append(made)
        else:
            rows.append(replace(made, pair_id=prompt.pair_id))
            num_made[made.objective] += 1
    return rows, benign, left_out


def _first_row(
    objectives: Sequence[Objective], example: Example, num_made: Counter[str]
) -> TrainingRow | None:
    for objective in objectives:
        made: TrainingRow | None = objective.row(example, num_made[objective.name])
        if made is not None:
            return made
    return None


def rows_for(
    run: RunDirectory,
    config: Config,
    loaded: LoadedModel,
    objectives: Sequence[str],
    reporter: Reporter,
) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """The rows of a phase and the benign ones to spread over them; says which prompts were left out, and why."""
    made = objectives_of(config.train, objectives)
    stops = stop_token_ids(loaded.model, loaded.tokenizer)
    rows, benign, left_out = training_rows(run, config, loaded.tokenizer, made, stops)
    for reason, count in sorted(left_out.items()):
        reporter.note(f"{count} prompts {reason} and are not trained on")
    return rows, benign


def all_rows(phases: Sequence[Phase]) -> Iterator[TrainingRow]:
    """What any phase trains on, each row once."""
    seen = set()
    for phase in phases:
        for row in [*phase.rows, *phase.benign]:
            key = (row.objective, row.prompt_id, row.completion_token_ids)
            if key not in seen:
                seen.add(key)
                yield row
