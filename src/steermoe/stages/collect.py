"""Collect: prompts in, replies with their routed experts and verdicts out.

Prompts are planned into groups that are generated together: whole mixed batches first, then everything else
(leftovers, benign prompts, held-out splits). Each finished group is a shard on disk, so memory does not grow
with the number of batches and an interrupted run goes on with the next group.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steermoe.analysis.selection import selectable_layers
from steermoe.config import Config
from steermoe.contracts import Engine
from steermoe.engines.transformers import TransformersEngine
from steermoe.errors import PromptError
from steermoe.judges.keyword import judge_named
from steermoe.loading import describe_model, load_model, load_tokenizer, model_source
from steermoe.prompts.batches import as_prompt, plan_batches
from steermoe.prompts.formats import resolve_prompts
from steermoe.prompts.splits import assign_splits
from steermoe.records import (
    NO_BATCH,
    Label,
    MixedBatch,
    Prompt,
    PromptLike,
    Sampling,
    Split,
)
from steermoe.reporter import Reporter
from steermoe.store.directory import RunDirectory
from steermoe.store.response_tables import shard_row
from steermoe.store.run import make_mixed_batch


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


def collect(run: RunDirectory, config: Config, reporter: Reporter) -> dict[str, Any]:
    """Generate a reply to every prompt of the run and record its routing.

    Writes `prompts.jsonl`, `responses.parquet`, `tokens.parquet` and `routing.safetensors`.

    Returns:
        Figures for `run.json`: prompts, tokens, verdicts.
    """
    judge_named(config.collect.judge)  # an unknown one is refused before anything is read
    prompts = prepare_prompts(config, reporter)
    groups = plan_groups(prompts, config, reporter)
    source = model_source(config.model, reporter.line)
    description = describe_model(config.model, source)
    # Collecting takes long, and identify would refuse it afterwards.
    selectable_layers(
        description.layer_indices, config.identify.first_layer, config.identify.last_layer
    )
    missing = [i for i in range(len(groups)) if not run.file(run.shard_name(i)).exists()]
    if missing:
        tokenizer = load_tokenizer(config.model, source, reporter.line)
        loaded = load_model(config.model, source, tokenizer=tokenizer)
        engine = TransformersEngine(
            loaded.model, tokenizer, loaded.description, config.model.chat_template_kwargs
        )
        _check_lengths(engine, prompts, config)
        # Nothing is written before this, so prompts that are refused replace none.
        run.write_prompts(prompts)
        _generate_shards(run, config, reporter, engine, groups, missing)
    metadata = {
        "layer_indices": json.dumps(list(description.layer_indices)),
        "top_k": str(description.top_k),
        "num_experts": str(description.num_experts),
        "model": config.model.id,
    }
    run.merge_shards(len(groups), (description.num_layers, description.num_experts), metadata)
    return _figures(run, reporter)


def _check_lengths(engine: TransformersEngine, prompts: Sequence[Prompt], config: Config) -> None:
    for prompt in prompts:
        engine.check_length(prompt.messages, config.collect.max_new_tokens, prompt.prompt_id)


def _generate_shards(
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    engine: Engine,
    groups: Sequence[Sequence[Planned]],
    missing: Sequence[int],
) -> None:
    judge = judge_named(config.collect.judge)
    sampling = sampling_of(config)
    total = sum(map(len, groups))
    done = total - sum(len(groups[i]) for i in missing)
    if done:
        reporter.line(f"collect: going on after {done} of {total} prompts")
    with reporter.bar(total, "collect", done) as bar:
        for index in missing:
            group = groups[index]
            outputs = engine.generate(
                [p.prompt.messages for p in group], group_sampling(sampling, index)
            )
            rows = [
                shard_row(
                    planned.prompt,
                    output,
                    planned.batch_idx,
                    planned.in_batch_idx,
                    judge(output.prompt, output.generated_text),
                )
                for planned, output in zip(group, outputs, strict=True)
            ]
            run.write_shard(index, rows)
            bar.advance(len(group))


def _figures(run: RunDirectory, reporter: Reporter) -> dict[str, Any]:
    responses = run.read_responses()
    verdicts = Counter(zip(responses["label"], responses["verdict"], strict=True))
    figures = {
        "num_prompts": len(responses),
        "num_prompt_tokens": int(responses["num_prompt_tokens"].sum()),
        "num_generated_tokens": int(responses["num_generated_tokens"].sum()),
        "num_mixed_batches": int(responses["batch_idx"].max()) + 1,
        "verdicts": {f"{label}/{verdict}": n for (label, verdict), n in sorted(verdicts.items())},
    }
    reporter.line(
        f"collected {figures['num_prompts']} prompts in {figures['num_mixed_batches']} mixed batches and beside "
        f"them: {figures['num_prompt_tokens']:,} prompt tokens, {figures['num_generated_tokens']:,} generated tokens"
    )
    return figures


# ---- the Python interface -----------------------------------------------------------------------------


def process_mixed_batches(
    llm: Any,
    tokenizer: Any,
    safe_prompts: Sequence[PromptLike],
    unsafe_prompts: Sequence[PromptLike],
    sampling_params: Any,
    batch_size: int = 16,
    safe_ratio: float = 0.5,
) -> list[MixedBatch]:
    """Generate replies to safe and unsafe prompts in mixed batches, with their routing.

    Args:
        llm: An engine, or a transformers model.
        tokenizer: The model's tokenizer; unused where `llm` is an engine.
        safe_prompts: Texts, lists of chat messages, or prompt records of any split.
        unsafe_prompts: The same.
        sampling_params: Any object or mapping with `max_tokens`, `temperature` and `seed`; a missing one has
            its default.
        batch_size: Prompts of a batch.
        safe_ratio: Share of safe prompts, at least one of each kind.

    Returns:
        The batches, in order. Prompts that fill no batch are left out, and a warning counts them.

    Raises:
        PromptError: There are too few prompts for one batch.

    Example:
        >>> batches = process_mixed_batches(model, tokenizer, ["How do I bake bread?"],
        ...     ["How do I pick my neighbour's lock?"], {"max_tokens": 8}, batch_size=2)  # doctest: +SKIP
        >>> batches[0].safe_indices, batches[0]["unsafe_indices"]  # doctest: +SKIP
        ([0], [1])
    """
    engine = llm if _is_engine(llm) else TransformersEngine(llm, tokenizer)
    prompts = [as_prompt(prompt, Label.SAFE, i) for i, prompt in enumerate(safe_prompts)]
    prompts += [as_prompt(prompt, Label.UNSAFE, i) for i, prompt in enumerate(unsafe_prompts)]
    sampling = _as_sampling(sampling_params)
    plan = plan_batches(prompts, batch_size, safe_ratio, None, sampling.seed)
    _warn(plan.notes("prompts", "are left out: they are not collected"))
    batches = []
    for batch_idx, batch in enumerate(plan.batches):
        outputs = engine.generate([p.messages for p in batch], group_sampling(sampling, batch_idx))
        is_unsafe = [prompt.label is Label.UNSAFE for prompt in batch]
        batches.append(make_mixed_batch(batch_idx, outputs, is_unsafe, engine.layer_indices))
    return batches


def _is_engine(llm: Any) -> bool:
    return all(hasattr(llm, name) for name in ("layer_indices", "num_experts", "top_k", "generate"))


def _as_sampling(given: Any) -> Sampling:
    if isinstance(given, Sampling):
        return given
    values = (
        given if isinstance(given, Mapping) else vars(given) if hasattr(given, "__dict__") else {}
    )
    default = Sampling()

    def value(name: str, fallback: float) -> Any:
        found = values.get(name, getattr(given, name, None))
        return fallback if found is None else found

    sampling = Sampling(
        int(value("max_tokens", default.max_tokens)),
        float(value("temperature", default.temperature)),
        int(value("seed", default.seed)),
    )
    if sampling.max_tokens < 1 or sampling.temperature < 0:
        raise PromptError(
            f"max_tokens = {sampling.max_tokens} and temperature = {sampling.temperature}: "
            "at least 1 and at least 0 are needed"
        )
    return sampling


def _warn(notes: Sequence[str]) -> None:
    for note in notes:
        warnings.warn(note, stacklevel=3)
