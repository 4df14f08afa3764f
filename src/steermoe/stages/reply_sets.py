"""Reply to a set of prompts of its own: another file, another system prompt, several turns, sampled replies.

The base model comes first and leaves the resolved prompts, so that the hardened one is fed the same texts. A prompt
that is sampled several times is several rows of one goal, and every interval takes the goal as the unit. Prompts are
generated in groups with seeds of their own, the same ones for both models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from steermoe.config import Config, SetSection
from steermoe.engines.transformers import TransformersEngine
from steermoe.errors import PromptError
from steermoe.loading import load_model, model_source
from steermoe.processes import current
from steermoe.prompts.goals import normalised_goal
from steermoe.prompts.resolve import resolve_prompts
from steermoe.records import Message, Output, Prompt, Sampling, Split
from steermoe.reporter import Reporter, silent
from steermoe.stages.collect import (
    evaluated_sampling,
    group_sampling,
    missing_shards,
    share_work,
)
from steermoe.stages.reply import load_hardened, text_engine
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE, HARDENED, on_set, set_prompts_of
from steermoe.store.response_tables import shard_row
from steermoe.store.state import Figures


def check_set(config: Config, name: str) -> None:
    """Refuse a set whose prompt files cannot be read.

    Raises:
        PromptError: As `prompts.resolve.resolve_prompts` says.
    """
    _read(config, _set_named(config, name), silent())


def reply_base_on(run: RunDirectory, config: Config, reporter: Reporter, name: str) -> Figures:
    """Resolve the prompts of a set, and let the base model reply to them.

    Writes `sets/<name>.jsonl` and the replies of `base` on the set.

    Raises:
        PromptError: A file cannot be read, a prompt does not fit the context, or all goals were trained on.
    """
    chosen = _set_named(config, name)
    prompts = _held_out(run, config, chosen, reporter)
    loaded = load_model(config.model, model_source(config.model))
    engine = text_engine(loaded, config)
    if current().is_first:
        _write_prompts(run, config, engine, prompts, chosen)
    current().barrier()
    return _reply(run, config, reporter, engine, BASE, chosen)


def _write_prompts(
    run: RunDirectory,
    config: Config,
    engine: TransformersEngine,
    prompts: Sequence[Prompt],
    chosen: SetSection,
) -> None:
    """Write the prompts of a set with the texts that the models are fed, each as often as it is sampled."""
    sampling = _sampling(config, chosen)
    rendered = {}
    for prompt in prompts:
        _check_length(engine, prompt, chosen, sampling)
        rendered[prompt.prompt_id] = prompt.rendered or engine.render(prompt.messages)
    run.write_prompts(
        [
            replace(prompt, prompt_id=sample_id, rendered=rendered[prompt.prompt_id])
            for sample in range(chosen.samples)
            for prompt in prompts
            for sample_id in [
                prompt.prompt_id if chosen.samples == 1 else f"{prompt.prompt_id}#{sample + 1}"
            ]
        ],
        set_prompts_of(chosen.name),
    )


def reply_hardened_on(run: RunDirectory, config: Config, reporter: Reporter, name: str) -> Figures:
    """Let the hardened model reply to a set. Writes its replies on it."""
    engine = text_engine(load_hardened(run, config), config)
    return _reply(run, config, reporter, engine, HARDENED, _set_named(config, name))


# ---- prompts ------------------------------------------------------------------------------------------


def _set_named(config: Config, name: str) -> SetSection:
    (found,) = (one for one in config.evaluate.sets if one.name == name)
    return found


def _sampling(config: Config, chosen: SetSection) -> Sampling:
    usual = evaluated_sampling(config)
    return replace(
        usual,
        max_tokens=chosen.max_new_tokens or usual.max_tokens,
        temperature=usual.temperature if chosen.temperature is None else chosen.temperature,
    )


def _read(config: Config, chosen: SetSection, reporter: Reporter) -> tuple[Prompt, ...]:
    """The prompts of the set's own files, of which none need have every label."""
    if not chosen.prompts:
        return ()
    read = resolve_prompts(
        chosen.prompts,
        include_failed=config.prompts.include_failed,
        complete=False,
    )
    for note in read.notes:
        reporter.note(f"set {chosen.name}: {note}")
    return read.prompts


def _held_out(
    run: RunDirectory, config: Config, chosen: SetSection, reporter: Reporter
) -> list[Prompt]:
    """The prompts that count: those of the evaluated split, or of the set's files but for goals of the train split."""
    split = Split(config.evaluate.split)
    own = run.read_prompts()
    if chosen.prompts:
        read = _read(config, chosen, reporter)
        trained = {normalised_goal(p.goal) for p in own if p.split is Split.TRAIN}
        prompts = [p for p in read if normalised_goal(p.goal) not in trained]
        if len(prompts) < len(read):
            reporter.note(
                f"set {chosen.name}: {len(read) - len(prompts)} of {len(read)} prompts are left out, because their "
                "goals are among the train prompts"
            )
        system = chosen.system or config.prompts.system_prompt
    else:
        prompts, system = [p for p in own if p.split is split], chosen.system
    if not prompts:
        raise PromptError(
            f"set {chosen.name} has no prompt whose goal was not trained on; give it others (evaluate.sets)"
        )
    return [_with_system(replace(p, split=split), system, bool(chosen.system)) for p in prompts]


def _with_system(prompt: Prompt, system: str | None, instead: bool) -> Prompt:
    """A prompt with a system turn; `instead` of one that it has, otherwise only where it has none."""
    has_one = prompt.messages[0]["role"] == "system"
    if system is None or (has_one and not instead):
        return prompt
    turn: Message = {"role": "system", "content": system}
    others = prompt.messages[1:] if has_one else prompt.messages
    return replace(prompt, messages=(turn, *others), rendered="")


def _check_length(
    engine: TransformersEngine, prompt: Prompt, chosen: SetSection, sampling: Sampling
) -> None:
    """Refuse a prompt that leaves no room for all replies of its conversation."""
    messages = list(prompt.messages)
    for follow_up in chosen.follow_ups:
        messages += _next_turns("", follow_up)
    tokens = sampling.max_tokens * (1 + len(chosen.follow_ups))
    engine.check_length(messages, tokens, prompt.prompt_id)


# ---- replies ------------------------------------------------------------------------------------------


def _reply(
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    engine: TransformersEngine,
    model: str,
    chosen: SetSection,
) -> Figures:
    table, sampling = on_set(model, chosen.name), _sampling(config, chosen)
    prompts = run.read_prompts(set_prompts_of(chosen.name))
    size = config.collect.generation_batch_size
    groups = [prompts[start : start + size] for start in range(0, len(prompts), size)]

    def generate(index: int) -> int:
        outputs = _converse(engine, groups[index], chosen.follow_ups, sampling, index, len(groups))
        rows = [shard_row(p, o) for p, o in zip(groups[index], outputs, strict=True)]
        run.write_shard(table, index, rows)
        return len(rows)

    missing = missing_shards(run, table, range(len(groups)))
    done = len(prompts) - sum(len(groups[i]) for i in missing)
    with reporter.bar(len(prompts), f"{model} on {chosen.name}", done) as bar:
        share_work(missing, generate, bar)
    if not current().is_first:
        return {}
    run.merge_reply_shards(table, range(len(groups)), table)
    tokens = int(run.read_replies(table)["num_generated_tokens"].sum())
    reporter.line(
        f"the {model} model replied to {len(prompts)} prompts of the set {chosen.name}: {tokens:,} generated tokens"
    )
    return {"num_prompts": len(prompts), "num_generated_tokens": tokens}


def _converse(
    engine: TransformersEngine,
    group: Sequence[Prompt],
    follow_ups: Sequence[str],
    sampling: Sampling,
    index: int,
    num_groups: int,
) -> list[Output]:
    """The last reply of each conversation, in which the user goes on after each reply of the model.

    Every turn of a group has a seed of its own.
    """
    outputs = engine.generate(
        [prompt.messages for prompt in group],
        group_sampling(sampling, index),
        [prompt.rendered for prompt in group],
    )
    for turn, follow_up in enumerate(follow_ups, start=1):
        outputs = engine.generate(
            [(*o.messages, *_next_turns(o.answer or o.generated_text, follow_up)) for o in outputs],
            group_sampling(sampling, index + turn * num_groups),
        )
    return outputs


def _next_turns(reply: str, follow_up: str) -> tuple[Message, Message]:
    return {"role": "assistant", "content": reply}, {"role": "user", "content": follow_up}
