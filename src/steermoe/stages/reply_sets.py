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
from steermoe.loading import load_model, model_source
from steermoe.processes import current
from steermoe.records import Output, Prompt, Sampling
from steermoe.reporter import Reporter
from steermoe.stages.collect import group_sampling, missing_shards, share_work
from steermoe.stages.reply import load_hardened, text_engine
from steermoe.stages.set_prompts import next_turns, prompts_of_set, sampling_of_set, set_named
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE, HARDENED, on_set, set_prompts_of
from steermoe.store.response_tables import shard_row
from steermoe.store.state import Figures


def reply_base_on(run: RunDirectory, config: Config, reporter: Reporter, name: str) -> Figures:
    """Resolve the prompts of a set, and let the base model reply to them.

    Writes `sets/<name>.jsonl` and the replies of `base` on the set.

    Raises:
        PromptError: A file cannot be read, or all goals were trained on.
    """
    chosen = set_named(config, name)
    prompts = prompts_of_set(config, chosen, run.read_prompts(), reporter)
    loaded = load_model(config.model, model_source(config.model))
    engine = text_engine(loaded, config)
    if current().is_first:
        _write_prompts(run, engine, prompts, chosen)
    current().barrier()
    return _reply(run, config, reporter, engine, BASE, chosen)


def _write_prompts(
    run: RunDirectory, engine: TransformersEngine, prompts: Sequence[Prompt], chosen: SetSection
) -> None:
    """Write the prompts of a set with the texts that the models are fed, each as often as it is sampled."""
    rendered = {p.prompt_id: p.rendered or engine.render(p.messages) for p in prompts}
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
    return _reply(run, config, reporter, engine, HARDENED, set_named(config, name))


# ---- replies ------------------------------------------------------------------------------------------


def _reply(
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    engine: TransformersEngine,
    model: str,
    chosen: SetSection,
) -> Figures:
    table, sampling = on_set(model, chosen.name), sampling_of_set(config, chosen)
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
            [(*o.messages, *next_turns(o.answer or o.generated_text, follow_up)) for o in outputs],
            group_sampling(sampling, index + turn * num_groups),
        )
    return outputs
