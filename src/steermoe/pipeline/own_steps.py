"""The steps that only some runs have: longer replies, named sets of prompts, a text of the user's.

Each set has steps of its own, so that one more set, or another setting of one, generates nothing for the others.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from steermoe.config import Config, SetSection
from steermoe.hashes import sha256_of
from steermoe.pipeline import inputs
from steermoe.pipeline.inputs import Input, Ledger
from steermoe.pipeline.judged import is_judged, judging
from steermoe.pipeline.step import Step, StepFunction, stage
from steermoe.pipeline.steps import (
    EVALUATE,
    GENERATION,
    JUDGE_HARDENED,
    MODEL_ASIDE,
    PROMPTS,
    REPLY,
    REPORT,
)
from steermoe.reporter import Reporter
from steermoe.store import names
from steermoe.store.directory import RunDirectory
from steermoe.store.state import Figures

SHARD_NUMBER = "[0-9]" * 5
"""As `names.shard_of` writes it: set `a` does not go on from the pieces of set `a-b`."""


def with_own_steps(steps: tuple[Step, ...], config: Config) -> tuple[Step, ...]:
    """The steps of a command, with those that the settings of this run add to them.

    Where the hardened model replies, all of them come before the evaluation; where its replies are only judged, those
    that judge come last. An evaluation reads what they leave, whichever command it is part of.

    Args:
        steps: As `pipeline.commands.COMMANDS` has them.
        config: All settings.
    """
    own, known = own_steps(config), {step.name for step in steps}
    if REPLY.name not in known:
        judges = [step for step in own if names.VERDICTS in step.writes]
        own_here = judges if JUDGE_HARDENED.name in known else []
    else:
        own_here = own
    read = [name for step in own for name in step.writes if name != names.VERDICTS]
    replied = names.replies_of(names.on_set(names.BASE, config.evaluate.split))
    full: list[Step] = []
    for step in steps:
        if step.name == EVALUATE.name:
            full += own_here
            own_here = []
            step = replace(step, reads=(*step.reads, *_results(read)))
        elif step.name == REPORT.name and replied in read:
            step = replace(step, reads=(*step.reads, *_results([replied])))
        full.append(step)
    return (*full, *own_here)


def own_steps(config: Config) -> list[Step]:
    """The steps that the settings of a run add, in order."""
    steps: list[Step] = []
    if config.evaluates_other_replies:
        table = names.on_set(names.BASE, config.evaluate.split)
        steps += [_reply_base(table), _judge(table)]
    for one in config.evaluate.sets:
        on_base, on_hardened = (names.on_set(m, one.name) for m in (names.BASE, names.HARDENED))
        steps += [
            _reply_base_on(one),
            _judge(on_base),
            _reply_hardened_on(one),
            _judge(on_hardened),
        ]
    if config.evaluate.text_file is not None:
        steps += [_read_text(names.BASE), _read_text(names.HARDENED)]
    return steps


def _results(files: list[str]) -> tuple[Input, ...]:
    """Files that such steps leave, and the verdicts on those that are replies."""
    found = [inputs.whole_file(name) for name in files]
    for name in files:
        folder, _, table = name.removesuffix(".parquet").partition("/")
        if folder == names.REPLIES:
            found.append(inputs.verdicts_on(table))
    return tuple(found)


# ---- longer replies -----------------------------------------------------------------------------------


def _reply_base(table: str) -> Step:
    return Step(
        "reply base",
        stage("reply", "reply_base"),
        settings=("seed", "model", *GENERATION, "evaluate.split", "evaluate.max_new_tokens"),
        aside=MODEL_ASIDE,
        reads=(inputs.BASE_MODEL, PROMPTS),
        writes=(names.replies_of(table),),
        goes_on_from=_pieces(table),
        needs_model=True,
        by_all=True,
    )


def _judge(table: str) -> Step:
    """The step that judges one table of replies."""
    replies = names.replies_of(table)
    on = names.set_of(table)
    prompts = () if on in ("test", "dev") else (inputs.whole_file(names.set_prompts_of(on)),)

    def judge(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
        from steermoe.stages.judge import judge_table

        return judge_table(run, config, reporter, table)

    return judging(
        f"judge {table}",
        judge,
        *prompts,
        inputs.whole_file(replies),
        only_where=replies,
        is_there=is_judged(table),
    )


def _pieces(table: str) -> tuple[str, ...]:
    return (f"{names.SHARDS}/*{table}-{SHARD_NUMBER}.parquet*",)


# ---- sets of prompts ----------------------------------------------------------------------------------

OF_SETS = (
    *("seed", "model", "evaluate.split", "evaluate.sets", "evaluate.max_new_tokens"),
    *("collect.generation_batch_size", "collect.max_new_tokens", "collect.temperature"),
    *("prompts.system_prompt", "prompts.include_failed"),
)
AS_THE_SET_SAYS = (
    *("evaluate.sets", "evaluate.max_new_tokens", "collect.max_new_tokens"),
    *("collect.temperature", "prompts.system_prompt", "prompts.include_failed"),
)
"""What a set reads of them is part of its own digest: the settings of another set are no part of it."""


def _set_input(one: SetSection) -> Input:
    """What makes a set: its settings with nothing left open, and the content of its prompt files."""

    def digest(ledger: Ledger) -> str:
        config = ledger.config
        own = one.model_dump(mode="json", exclude={"prompts"})
        own["max_new_tokens"] = one.max_new_tokens or config.evaluated_tokens
        if one.temperature is None:
            own["temperature"] = config.collect.temperature
        if one.prompts:
            own["files"] = [inputs.content_of(source) for source in one.prompts]
            own["system"] = one.system or config.prompts.system_prompt
            own["replaces"] = one.system is not None
            own["include_failed"] = config.prompts.include_failed
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()

    return Input(f"set {one.name}", (), digest)


def _reply_base_on(one: SetSection) -> Step:
    table, prompts = names.on_set(names.BASE, one.name), names.set_prompts_of(one.name)
    return Step(
        f"reply {table}",
        _on(one.name, "reply_base_on"),
        settings=OF_SETS,
        aside=(*MODEL_ASIDE, *AS_THE_SET_SAYS),
        reads=(inputs.BASE_MODEL, PROMPTS, _set_input(one)),
        writes=(prompts, names.replies_of(table)),
        goes_on_from=_pieces(table),
        check_run=partial(_check_set, name=one.name),
        needs_model=True,
        by_all=True,
    )


def _reply_hardened_on(one: SetSection) -> Step:
    table, prompts = names.on_set(names.HARDENED, one.name), names.set_prompts_of(one.name)
    return Step(
        f"reply {table}",
        _on(one.name, "reply_hardened_on"),
        settings=OF_SETS,
        aside=(*MODEL_ASIDE, *AS_THE_SET_SAYS),
        reads=(inputs.HARDENED_MODEL, inputs.whole_file(prompts), _set_input(one)),
        writes=(names.replies_of(table),),
        goes_on_from=_pieces(table),
        needs_model=True,
        only_where=names.MODEL,
        by_all=True,
    )


def _on(name: str, function: str) -> StepFunction:
    def reply(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
        from steermoe.stages import reply_sets

        found: Figures = getattr(reply_sets, function)(run, config, reporter, name)
        return found

    return reply


def _check_set(config: Config, run: RunDirectory, name: str) -> None:
    from steermoe.stages.ready import check_set

    check_set(config, name, run.read_prompts())


# ---- a text of the user's -----------------------------------------------------------------------------


def _text_file(ledger: Ledger) -> str:
    path = ledger.config.evaluate.text_file
    try:
        return sha256_of(Path(path)) if path is not None else ""
    except OSError:
        return "unreadable"  # reading it says why


TEXT_FILE = Input("text file", (), _text_file)


def _check_text(config: Config) -> None:
    from steermoe.stages.ready import check_text

    check_text(config)


def _read_text(model: str) -> Step:
    is_base = model == names.BASE
    return Step(
        f"read text {model}",
        stage("read_text", f"read_text_{model}"),
        settings=("model", "evaluate.text_file"),
        aside=(*MODEL_ASIDE, "evaluate.text_file"),
        reads=(inputs.BASE_MODEL if is_base else inputs.HARDENED_MODEL, TEXT_FILE),
        writes=(names.text_of(model),),
        check=_check_text,
        needs_model=True,
        only_where="" if is_base else names.MODEL,
    )
