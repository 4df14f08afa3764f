"""Collect: prompts in, replies with their routed experts out.

Prompts are planned into groups that are generated together: whole mixed batches first, then everything else
(leftovers, benign prompts, held-out splits). Each finished group is a shard on disk, so memory does not grow
with the number of batches and an interrupted run goes on with the next group.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steermoe.analysis.counts import find_shared_tokens
from steermoe.chat import encode, render
from steermoe.config import Config
from steermoe.contracts import Engine
from steermoe.engines.chat_engine import ChatEngine
from steermoe.engines.route_check import SAMPLE, check_agreement, compare_routes
from steermoe.engines.transformers import TransformersEngine
from steermoe.errors import RoutingError
from steermoe.loading import describe_model, load_model, load_tokenizer, model_source
from steermoe.processes import current
from steermoe.prompts.batches import plan_batches
from steermoe.prompts.limits import take_some
from steermoe.prompts.resolve import resolve_prompts
from steermoe.prompts.splits import assign_splits
from steermoe.records import NO_BATCH, Label, Prompt, Sampling, Split
from steermoe.reporter import Bar, Reporter
from steermoe.stages.doubts import (
    doubts_about_rendering,
    doubts_about_routing,
    doubts_about_tokens,
)
from steermoe.stages.opening import SERVER, TRANSFORMERS, kind_of, open_engine
from steermoe.store.directory import RunDirectory
from steermoe.store.names import SHARDS
from steermoe.store.response_tables import shard_row
from steermoe.store.state import Figures


@dataclass(frozen=True, slots=True)
class Planned:
    """A prompt with its place in a mixed batch; `NO_BATCH` where it has none."""

    prompt: Prompt
    batch_idx: int = NO_BATCH
    in_batch_idx: int = NO_BATCH


def sampling_of(config: Config) -> Sampling:
    """How replies are generated, for the base model and for the hardened one alike."""
    collect = config.collect
    return Sampling(collect.max_new_tokens, collect.temperature, config.seed)


def evaluated_sampling(config: Config) -> Sampling:
    """How the replies that are evaluated are generated: as long as they may be there."""
    return replace(sampling_of(config), max_tokens=config.evaluated_tokens)


def group_sampling(sampling: Sampling, group: int) -> Sampling:
    """The sampling of one group: its own seed, so that a group depends on no other."""
    return replace(sampling, seed=sampling.seed * 1_000_003 + group)


def prepare_prompts(config: Config, reporter: Reporter) -> tuple[Prompt, ...]:
    """Read, complete and split the prompts of a run, and say what was changed."""
    settings = config.prompts
    read = resolve_prompts(
        settings.sources,
        format=settings.format,
        include_failed=settings.include_failed,
    )
    for note in read.notes:
        reporter.note(note)
    prompts = assign_splits(read.prompts, config.seed, settings.split_fractions)
    limits = {
        Split(split): {Label(label): most for label, most in of_labels.items()}
        for split, of_labels in settings.limits.items()
    }
    prompts, notes = take_some(prompts, limits, config.seed)
    for note in notes:
        reporter.note(note)
    if settings.system_prompt is None:
        return prompts
    system = {"role": "system", "content": settings.system_prompt}
    return tuple(
        p if p.messages[0]["role"] == "system" else replace(p, messages=(system, *p.messages))
        for p in prompts
    )


def plan_groups(
    prompts: Sequence[Prompt], config: Config, reporter: Reporter | None = None
) -> list[list[Planned]]:
    """Which prompts are generated together, in order.

    Raises:
        PromptError: A label has no train prompts, or too few for one mixed batch.
    """
    settings = config.collect
    contrast = [p for p in prompts if p.split is Split.TRAIN and p.label is not Label.BENIGN]
    plan = plan_batches(
        contrast, settings.batch_size, settings.safe_ratio, settings.num_batches, config.seed
    )
    if reporter is not None:
        for note in plan.notes("training prompts", "count in pooled figures only"):
            reporter.note(note)
    batches = [
        [Planned(prompt, batch_idx, position) for position, prompt in enumerate(batch)]
        for batch_idx, batch in enumerate(plan.batches)
    ]
    per_group = max(1, settings.generation_batch_size // settings.batch_size)
    groups = [
        [planned for batch in batches[start : start + per_group] for planned in batch]
        for start in range(0, len(batches), per_group)
    ]
    placed = {planned.prompt.prompt_id for batch in batches for planned in batch}
    size = settings.generation_batch_size
    # A split has groups of its own, so that evaluating one split can repeat exactly its groups.
    for split in Split:
        rest = [Planned(p) for p in prompts if p.split is split and p.prompt_id not in placed]
        groups += [rest[start : start + size] for start in range(0, len(rest), size)]
    return groups


SHARD_PREFIX = "responses"


def collect(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Generate a reply to every prompt of the run and record its routing.

    Writes `prompts.jsonl`, `responses.parquet`, `tokens.parquet` and `routing.safetensors`.

    Returns:
        Figures for `run.json`: prompts and tokens.
    """
    processes = current()
    prompts = prepare_prompts(config, reporter)
    groups = plan_groups(prompts, config, reporter)
    source = model_source(config.model, reporter.line)
    description = describe_model(config.model, source)
    for doubt in doubts_about_routing(description):
        reporter.note(doubt)
    tokenizer = load_tokenizer(config.model, source, reporter.line)
    for doubt in doubts_about_tokens(tokenizer, prompts):
        reporter.note(doubt)
    missing = missing_shards(run, SHARD_PREFIX, range(len(groups)))
    if missing:
        with open_engine(config, source, tokenizer) as engine:
            if processes.is_first:
                prompts = _rendered(run, config, prompts, tokenizer)
                for doubt in doubts_about_rendering(prompts):
                    reporter.note(doubt)
                check_lengths(engine, prompts, sampling_of(config))
                # Nothing is written before this, so prompts that are refused replace none.
                run.write_prompts(prompts)
            processes.barrier()
            if not processes.is_first:
                prompts = run.read_prompts()
            if isinstance(engine, TransformersEngine):  # the others keep no sums
                ids = (encode(tokenizer, prompt.rendered) for prompt in prompts)
                engine.shared_tokens = find_shared_tokens(ids)
            _generate_shards(run, config, reporter, engine, plan_groups(prompts, config), missing)
    if not processes.is_first:
        return {}
    if kind_of(config) not in (TRANSFORMERS, SERVER):  # whose routes are the local model's own
        _check_routes(run, config, reporter, source, tokenizer, len(groups))
    metadata = {
        "layer_indices": json.dumps(list(description.layer_indices)),
        "top_k": str(description.top_k),
        "num_experts": str(description.num_experts),
        "model": config.model.name,
    }
    shape = (description.num_layers, description.num_experts)
    run.merge_shards(SHARD_PREFIX, len(groups), shape, metadata)
    return _figures(run, reporter)


def _rendered(
    run: RunDirectory, config: Config, prompts: Sequence[Prompt], tokenizer: Any
) -> tuple[Prompt, ...]:
    """The prompts with the texts that the model is fed; an interrupted attempt's, where there was one."""
    before: dict[str, str] = {}
    if run.has_shards(SHARD_PREFIX):
        before = {prompt.prompt_id: prompt.rendered for prompt in run.read_prompts()}
    kwargs = config.model.chat_template_kwargs
    return tuple(
        replace(
            prompt,
            rendered=before.get(prompt.prompt_id) or render(tokenizer, prompt.messages, kwargs),
        )
        for prompt in prompts
    )


def check_lengths(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> None:
    """Refuse a prompt that leaves no room for its reply; an engine of the user's own may know no limit."""
    if isinstance(engine, ChatEngine):
        for prompt in prompts:
            engine.check_length(
                prompt.messages, sampling.max_tokens, prompt.prompt_id, prompt.rendered
            )


def _check_routes(
    run: RunDirectory, config: Config, reporter: Reporter, source: str, tokenizer: Any, count: int
) -> None:
    """Compare the routes of some replies, of all parts of the run, with the local model's own.

    Raises:
        RoutingError: They are not the model's. The replies are removed: nothing can be gone on from.
    """
    loaded = load_model(config.model, source, tokenizer=tokenizer)
    shape = (loaded.description.num_layers, loaded.description.top_k)
    replies = []
    for index in sorted({round(i * (count - 1) / (SAMPLE - 1)) for i in range(SAMPLE)}):
        shard = run.read_shard_routes(SHARD_PREFIX, index, *shape)
        replies += shard[: -(-SAMPLE // min(count, SAMPLE))]
    found = compare_routes(loaded.model, loaded.description, replies)
    try:
        check_agreement(found, config.collect.engine)
    except RoutingError:
        run.remove_unfinished(f"{SHARDS}/*{SHARD_PREFIX}-*")
        raise
    reporter.line(f"routes of {config.collect.engine} on {len(replies)} replies: {found}")


def _generate_shards(
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    engine: Engine,
    groups: Sequence[Sequence[Planned]],
    missing: Sequence[int],
) -> None:
    total = sum(map(len, groups))
    done = total - sum(len(groups[i]) for i in missing)
    if done:
        reporter.line(f"collect: going on after {done} of {total} prompts")
    sampling = sampling_of(config)

    def generate(index: int) -> int:
        rows = generate_group(engine, groups[index], group_sampling(sampling, index))
        run.write_shard(SHARD_PREFIX, index, rows)
        return len(rows)

    with reporter.bar(total, "collect", done) as bar:
        share_work(missing, generate, bar)


def missing_shards(run: RunDirectory, prefix: str, indices: Iterable[int]) -> list[int]:
    """Which of these groups are not done yet, in order; the same for every process."""
    return current().from_first(lambda: [i for i in indices if not run.has_shard(prefix, i)])


def share_work(items: Sequence[int], do: Callable[[int], int], bar: Bar) -> None:
    """Do work with the other processes, and wait until all of it is done.

    Args:
        items: What is to be done.
        do: Does one of them, and returns how far that moves the bar.
        bar: Moved by what all processes have done.
    """
    dealt = current().deal(items)
    for item in dealt:
        bar.advance(dealt.finish(do(item)))
    current().barrier()
    if others := dealt.finish(0):
        bar.advance(others)


def generate_group(
    engine: Engine, group: Sequence[Planned], sampling: Sampling
) -> list[dict[str, object]]:
    """The replies to one group of prompts, as rows of a shard; whichever model replies, they are made alike."""
    prompts = [planned.prompt for planned in group]
    outputs = engine.generate(
        [prompt.messages for prompt in prompts],
        sampling,
        [prompt.rendered for prompt in prompts],
    )
    return [
        shard_row(planned.prompt, output, planned.batch_idx, planned.in_batch_idx)
        for planned, output in zip(group, outputs, strict=True)
    ]


def _figures(run: RunDirectory, reporter: Reporter) -> Figures:
    responses = run.read_replies()
    figures = {
        "num_prompts": len(responses),
        "num_prompt_tokens": int(responses["num_prompt_tokens"].sum()),
        "num_generated_tokens": int(responses["num_generated_tokens"].sum()),
        "num_mixed_batches": int(responses["batch_idx"].max()) + 1,
    }
    reporter.line(
        f"collected {figures['num_prompts']} prompts in {figures['num_mixed_batches']} mixed batches and beside "
        f"them: {figures['num_prompt_tokens']:,} prompt tokens, {figures['num_generated_tokens']:,} generated tokens"
    )
    return figures
