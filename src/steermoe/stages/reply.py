"""Reply: what the hardened model says to the held-out prompts, and how far it is from the base model on theirs.

This is the dear half of an evaluation: it needs the models. What is made of it (verdicts, rates, intervals) is cheap,
and done by later steps. The hardened model replies to the same prompts in the same groups as the base model did, with
the same padding, sampling and seeds.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from steermoe.config import Config, ModelSection
from steermoe.contracts import Engine
from steermoe.engines.scoring import by_continuation, completion_logits, kl_per_token, passes
from steermoe.engines.transformers import TransformersEngine
from steermoe.loading import LoadedModel, load_model, load_tokenizer, model_source
from steermoe.moe.slices import attach_expert_slices
from steermoe.processes import current
from steermoe.records import Continuation, Expert, Label, Output, Prompt, Sampling, Split
from steermoe.reporter import Reporter
from steermoe.stages.collect import (
    check_lengths,
    evaluated_sampling,
    generate_group,
    group_sampling,
    missing_shards,
    plan_groups,
    share_work,
)
from steermoe.stages.opening import VLLM, kind_of, vllm_engine
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE, HARDENED, MODEL, on_set, replies_of, scored_of
from steermoe.store.run import Run
from steermoe.store.state import Figures

KL = "kl"
"""Divergence from the base model of each token, in nats."""

BaseSide = dict[str, Tensor] | Any
"""The base model's trained experts, which make the hardened model the base model again; or the base model itself."""


def reply(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Generate the hardened model's replies, and feed it the base model's.

    Writes `replies/hardened.parquet` and `scored/hardened.parquet`; removes them where there is no hardened model, or
    no prompt is held out.
    """
    split = Split(config.evaluate.split)
    prompts = {p.prompt_id: p for p in run.read_prompts() if p.split is split}
    why = (
        "there is no hardened model, so there is nothing to evaluate"
        if not run.has(MODEL)
        else f"there are no {split} prompts, so nothing is evaluated"
        if not prompts
        else ""
    )
    if why and not current().is_first:
        return {}
    if why:
        # Those of an earlier model would be taken for this one's.
        run.remove(replies_of(HARDENED))
        run.remove(scored_of(HARDENED))
        reporter.note(why)
        return {}
    if not current().is_first:
        generate_replies(
            run, config, reporter, text_engine(load_hardened(run, config), config), HARDENED
        )
        return {}
    experts = Run(run).trained_experts
    with_vllm = kind_of(config) == VLLM
    if with_vllm:  # before any model is loaded beside it
        source = str(run.file(MODEL))
        tokenizer = load_tokenizer(_settings_of_hardened(config), source)
        with vllm_engine(config, source, tokenizer, record=False) as engine:
            generate_replies(run, config, reporter, engine, HARDENED)
    continuations, base_side = base_side_of(run, config, prompts, experts)
    hardened = load_hardened(run, config)
    if not with_vllm:
        generate_replies(run, config, reporter, text_engine(hardened, config), HARDENED)
    run.write_scored(HARDENED, divergence(reporter, hardened, base_side, continuations, experts))
    replies = run.read_replies(HARDENED)
    tokens = int(replies["num_generated_tokens"].sum())
    reporter.line(
        f"the hardened model replied to {len(replies)} {split} prompts: {tokens:,} generated tokens"
    )
    return {"num_prompts": len(replies), "num_generated_tokens": tokens}


def reply_base(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Let the base model reply to the evaluated split again, at the length of the evaluation.

    Writes the replies of `base` on that split.
    """
    split = Split(config.evaluate.split)
    table = on_set(BASE, split)
    if not any(prompt.split is split for prompt in run.read_prompts()):
        if current().is_first:
            run.remove(replies_of(table))
        return {}
    base = load_model(config.model, model_source(config.model))
    generate_replies(run, config, reporter, text_engine(base, config), table)
    if not current().is_first:
        return {}
    replies = run.read_replies(table)
    tokens = int(replies["num_generated_tokens"].sum())
    reporter.line(
        f"the base model replied to {len(replies)} {split} prompts once more: {tokens:,} generated tokens"
    )
    return {"num_prompts": len(replies), "num_generated_tokens": tokens}


def load_hardened(run: RunDirectory, config: Config) -> LoadedModel:
    """The run's hardened checkpoint, loaded as the base model is."""
    return load_model(_settings_of_hardened(config), str(run.file(MODEL)))


def _settings_of_hardened(config: Config) -> ModelSection:
    """A checkpoint of the run has no revisions."""
    return config.model.model_copy(update={"revision": None})


def text_engine(loaded: LoadedModel, config: Config) -> TransformersEngine:
    """An engine for replies whose routing nobody asks for."""
    return TransformersEngine(
        loaded.model,
        loaded.tokenizer,
        loaded.description,
        config.model.chat_template_kwargs,
        record=False,
    )


def generate_replies(
    run: RunDirectory, config: Config, reporter: Reporter, engine: Engine, table: str
) -> None:
    """Reply to the evaluated split group by group, as the base model did; a finished group is a shard.

    All processes call it, and rank 0 writes the table.

    `table` is the variant whose replies these are, as `store.names.replies_of` takes it.
    """
    split, sampling = Split(config.evaluate.split), evaluated_sampling(config)
    groups = {
        index: group
        for index, group in enumerate(plan_groups(run.read_prompts(), config))
        if group[0].prompt.split is split
    }
    if config.evaluates_other_replies:
        prompts = [planned.prompt for group in groups.values() for planned in group]
        check_lengths(engine, prompts, sampling)

    def generate(index: int) -> int:
        rows = generate_group(engine, groups[index], group_sampling(sampling, index))
        run.write_shard(table, index, rows)
        return len(rows)

    missing = missing_shards(run, table, groups)
    total = sum(map(len, groups.values()))
    with reporter.bar(total, "reply", total - sum(len(groups[i]) for i in missing)) as bar:
        share_work(missing, generate, bar)
    if current().is_first:
        run.merge_reply_shards(table, groups, table)


# ---- divergence ---------------------------------------------------------------------------------------


def base_side_of(
    run: RunDirectory, config: Config, prompts: Mapping[str, Prompt], experts: Sequence[Expert]
) -> tuple[list[Continuation], BaseSide]:
    """What is compared, and with what: the base model's greedy replies to benign prompts, and the base model.

    Of the base model, the experts that were trained are enough; for the baselines it is kept whole.
    """
    base = load_model(config.model, model_source(config.model))
    benign = {i: p for i, p in prompts.items() if p.label is Label.BENIGN}
    continuations = [as_continuation(i, o) for i, o in greedy_replies(run, config, base, benign)]
    if not experts:
        return continuations, base.model
    slices = attach_expert_slices(base.model, experts)
    kept = {name: tensor.clone() for name, tensor in slices.state_dict().items()}
    del base, slices
    gc.collect()
    return continuations, kept


def as_continuation(prompt_id: str, output: Output, max_tokens: int | None = None) -> Continuation:
    """A reply, to be fed to a model; of a long one its leading tokens, where so many are asked for."""
    return Continuation(prompt_id, output.prompt_token_ids, output.generated_token_ids[:max_tokens])


def greedy_replies(
    run: RunDirectory, config: Config, base: LoadedModel, prompts: Mapping[str, Prompt]
) -> list[tuple[str, Output]]:
    """What the base model replies greedily: the run's own replies, or new ones where those were sampled."""
    if config.collect.temperature == 0:
        return [(row["prompt_id"], output) for row, output in run.iter_outputs(set(prompts))]
    engine = text_engine(base, config)
    sampling = Sampling(config.collect.max_new_tokens)
    ids, size = list(prompts), config.collect.generation_batch_size
    outputs: list[Output] = []
    for start in range(0, len(ids), size):
        part = [prompts[i] for i in ids[start : start + size]]
        outputs += engine.generate([p.messages for p in part], sampling, [p.rendered for p in part])
    return list(zip(ids, outputs, strict=True))


def divergence(
    reporter: Reporter,
    hardened: LoadedModel,
    base_side: BaseSide,
    continuations: Sequence[Continuation],
    experts: Sequence[Expert],
) -> list[dict[str, object]]:
    """KL(base || hardened) of every token of the base model's replies, as rows of `scored/hardened.parquet`."""
    base, slices = base_side, None
    if isinstance(base_side, dict):
        # One model serves as both: its stacks hold the base model's experts, so switched off it is the hardened one.
        slices = attach_expert_slices(hardened.model, experts)
        slices.load_state_dict(base_side)
        base = hardened.model
    pad = hardened.pad_token_id
    values: dict[str, list[float]] = {c.prompt_id: [] for c in continuations}
    with reporter.bar(len(continuations), "divergence") as bar:
        for together in passes(continuations):
            base_logits = completion_logits(base, hardened.description, pad, together)
            with slices.switched_off() if slices is not None else nullcontext():
                logits = completion_logits(hardened.model, hardened.description, pad, together)
            per_token = by_continuation(kl_per_token(base_logits, logits), together)
            for continuation, part in zip(together, per_token, strict=True):
                values[continuation.prompt_id] = part.tolist()
            bar.advance(len(together))
    return [{"prompt_id": i, "quantity": KL, "values": found} for i, found in values.items()]
