"""Ablate: what the model does on held-out prompts while the selected experts are switched off.

It is the causal check of a selection, and a measurement of fragility for the model's owner: how much hangs on a few
experts, and, of the hardened model, how much of the repair is lost where the repaired experts fail or are removed.
The same is done with random experts that are matched to them, and with those of lowest risk difference.

Each set of experts that is switched off makes a variant, with replies and values by token like any other; judging and
measuring them is left to the steps that judge and measure. A variant is a file as soon as it is done, so an
interrupted ablation goes on with the next one.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from steermoe.analysis.ablation import (
    BENIGN,
    DIVERGENCE,
    INTACT,
    RANDOM,
    REFUSAL,
    REPLY,
    UNSAFE,
    Ablation,
    matching_figures,
)
from steermoe.analysis.risk import expert_label
from steermoe.chat import encode, stop_token_ids
from steermoe.config import Config
from steermoe.engines.scoring import kl_per_token, log_prob_per_token
from steermoe.loading import LoadedModel, load_model, model_source
from steermoe.records import Continuation
from steermoe.reporter import Bar, Reporter
from steermoe.stages.ablation_plan import QUANTITIES, Subject, choose_subjects, planned_ablations
from steermoe.stages.collect import group_sampling, sampling_of
from steermoe.stages.reply import as_continuation, greedy_replies, load_hardened, text_engine
from steermoe.store.directory import RunDirectory
from steermoe.store.names import (
    BASE,
    HARDENED,
    MODEL,
    REPLIES,
    SCORED,
    scored_of,
)
from steermoe.store.response_tables import shard_row
from steermoe.store.state import Figures
from steermoe.store.variants import ablated_variants, variant_name
from steermoe.training.targets import resolve_target
from steermoe.turns import assistant_turn
from steermoe.variants import Variant

ENOUGH_DRAWS = 20
"""Random draws below which a set that lies outside all of them has a p-value above 0.05."""


def ablate(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Deactivate the selected experts, random ones and the lowest; reply with each, and feed each some texts.

    Of the base model, and of the hardened one where there is one. The experts are those that training repairs
    (`train.experts`). Writes a table of values by token for each variant, and one of replies for some.

    Returns:
        Figures for `run.json`.
    """
    subjects = choose_subjects(run, config)
    selected = run.read_selection().chosen(config.train.experts)
    ablations = planned_ablations(run, config) if selected else []
    num_deactivated = len(ablations[1].deactivated) if ablations else 0
    if not num_deactivated or not subjects:
        for folder in (REPLIES, SCORED):
            for variant in ablated_variants(run, folder):
                run.remove(f"{folder}/{variant}.parquet")
        why = (
            "no expert is selected"
            if not selected
            else f"no {config.evaluate.split} prompts are held out"
            if not subjects
            else "every selected expert is needed for its layer to have top-k experts"
        )
        reporter.note(f"{why}, so there is nothing to ablate")
        return {"num_ablated_experts": 0, "models": []}
    _say_plan(ablations, reporter)
    models = [BASE, HARDENED] if run.has(MODEL) else [BASE]
    if HARDENED not in models:
        reporter.note("there is no hardened model, so the base model alone is measured")
    _measure(run, config, reporter, models, ablations, subjects)
    reporter.line(
        f"ablated {num_deactivated} experts, and {len(ablations) - 2} sets to compare with, of the "
        f"{' and the '.join(models)} model, on {len(subjects)} {config.evaluate.split} prompts"
    )
    return {
        "num_prompts": len(subjects),
        "num_ablated_experts": num_deactivated,
        "models": models,
        **matching_figures(ablations),
    }


# ---- what is compared ---------------------------------------------------------------------------------


def _say_plan(ablations: Sequence[Ablation], reporter: Reporter) -> None:
    """Which experts stay on, and how like the random draws are to the selected set."""
    selected, lowest = ablations[1:3]
    found = matching_figures(ablations)
    possible = (
        f"{found['num_possible_sets']:.4g} sets of as many experts of each layer and frequency"
    )
    if not found["num_draws"]:
        reporter.note(
            "no other set has as many experts of each layer and frequency, so the selected one has nothing to be "
            "ranked among"
        )
    else:
        reporter.line(
            f"{found['num_draws']} random draws, all different, of {possible}; they share {found['least_overlap']} to "
            f"{found['largest_overlap']} (mean {found['mean_overlap']:.1f}) of {len(selected.experts)} experts with "
            f"the selected set, the lowest share {lowest.overlap}"
        )
        reporter.line(
            f"mean activation frequency: selected {found['mean_frequency_selected']:.3f}, random draws "
            f"{found['mean_frequency_draws']:.3f}, lowest {lowest.mean_frequency:.3f}"
        )
    for ablation in (selected, lowest):
        if ablation.kept:
            reporter.note(
                f"{', '.join(expert_label(*expert) for expert in ablation.kept)} of the {ablation.name} set stay "
                "active: their layers would have fewer than top-k experts left"
            )
    if 0 < found["num_draws"] < ENOUGH_DRAWS:
        advice = (
            f"set ablate.num_draws to {ENOUGH_DRAWS} or more"
            if (found["num_possible_sets"] or 0) > ENOUGH_DRAWS
            else "there are no more such sets; select fewer experts of a layer, or more layers"
        )
        reporter.note(
            f"with {found['num_draws']} random draws no rank has a p-value below {1 / (1 + found['num_draws']):.2g}: "
            f"{advice}"
        )


# ---- replies, and values by token -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Texts:
    """What every variant is fed.

    Attributes:
        continuations: By quantity, each of similar lengths together, so that little is padding.
        reference: The intact base model's logits `(C, V)` on its replies to benign prompts, in its own precision.
    """

    continuations: Mapping[tuple[str, str], list[Continuation]]
    reference: Mapping[str, Tensor]

    @property
    def number(self) -> int:
        """How many are fed to each variant."""
        return sum(
            bool(c.completion_token_ids) for part in self.continuations.values() for c in part
        )


def _measure(
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    models: Sequence[str],
    ablations: Sequence[Ablation],
    subjects: Mapping[str, Subject],
) -> None:
    """Do every variant that has no table of values yet: that is written last."""
    missing = {
        model: [a for a in ablations if not run.has(scored_of(variant_name(model, a)))]
        for model in models
    }
    if not any(missing.values()):
        return
    base = load_model(config.model, model_source(config.model))
    texts = _texts(run, config, base, subjects)

    def cost(model: str, of: Sequence[Ablation]) -> int:
        """Texts and replies."""
        generated = sum(_is_generated(model, ablation, config) for ablation in of)
        return texts.number * len(of) + len(subjects) * generated

    total = sum(cost(model, ablations) for model in models)
    done = total - sum(cost(model, of) for model, of in missing.items())
    if done:
        reporter.line("ablate: going on after the sets that are done")
    with reporter.bar(total, "ablate", done) as bar:
        for model in models:
            if model == HARDENED:
                del base
                gc.collect()  # it sits in reference cycles, and the next model needs the room
            if not missing[model]:
                continue
            loaded = base if model == BASE else load_hardened(run, config)
            for ablation in missing[model]:
                variant = Variant(variant_name(model, ablation), ablation.deactivated)
                is_generated = _is_generated(model, ablation, config)
                _do_variant(run, config, loaded, variant, is_generated, texts, subjects, bar)


def _do_variant(
    run: RunDirectory,
    config: Config,
    loaded: LoadedModel,
    variant: Variant,
    is_generated: bool,
    texts: Texts,
    subjects: Mapping[str, Subject],
    bar: Bar,
) -> None:
    """Feed a variant all texts, let it reply where that is asked for, and write both; the values by token last."""
    with variant.opened(loaded) as opened:
        values = _values_by_token(opened, config, texts, subjects, bar)
        if is_generated:
            run.write_replies(variant.name, _replies(opened, config, subjects, bar))
    run.write_scored(variant.name, values)


def _is_generated(model: str, ablation: Ablation, config: Config) -> bool:
    """Whether replies are generated; those of the intact base model are the run's own."""
    if ablation.name == INTACT:
        return model == HARDENED
    return ablation.name != RANDOM or ablation.draw < config.ablate.num_generated_draws


def _texts(
    run: RunDirectory, config: Config, base: LoadedModel, subjects: Mapping[str, Subject]
) -> Texts:
    """The base model's own replies, and the target refusal after harmful requests."""
    prompts = {prompt_id: subject.prompt for prompt_id, subject in subjects.items()}
    replies = dict(greedy_replies(run, config, base, prompts))
    target = resolve_target(config.train.target_response)
    found: dict[tuple[str, str], list[Continuation]] = {}
    for prompt_id, subject in subjects.items():
        reply = as_continuation(prompt_id, replies[prompt_id], config.ablate.max_tokens)
        found.setdefault((REPLY, subject.kind), []).append(reply)
    unsafe = [(i, subject.prompt) for i, subject in subjects.items() if subject.kind == UNSAFE]
    for position, (prompt_id, prompt) in enumerate(unsafe):
        turn = assistant_turn(
            base.tokenizer,
            prompt.messages,
            prompt.rendered,
            target(prompt, position),
            config.model.chat_template_kwargs,
            stop_token_ids(base.model, base.tokenizer),
        )
        prompt_ids = tuple(encode(base.tokenizer, prompt.rendered))
        refusal = Continuation(prompt_id, prompt_ids, turn.token_ids)
        found.setdefault((REFUSAL, UNSAFE), []).append(refusal)
    ordered = {key: sorted(of_kind, key=_length) for key, of_kind in found.items()}
    benign = ordered.get((REPLY, BENIGN), [])
    reference = {c.prompt_id: logits.cpu() for c, logits in text_engine(base, config).score(benign)}
    return Texts(ordered, reference)


def _values_by_token(
    loaded: LoadedModel,
    config: Config,
    texts: Texts,
    subjects: Mapping[str, Subject],
    bar: Bar,
) -> list[dict[str, object]]:
    """Log-probability of every token, and the divergence from the base model on benign replies."""
    engine = text_engine(loaded, config)
    found: dict[tuple[str, str], list[float]] = {}
    for (measure, kind), continuations in texts.continuations.items():
        for continuation in continuations:
            found[QUANTITIES[measure], continuation.prompt_id] = []
            if (measure, kind) == (REPLY, BENIGN):
                found[QUANTITIES[DIVERGENCE], continuation.prompt_id] = []
        for continuation, logits in engine.score(continuations):
            values = log_prob_per_token(logits, continuation.completion_token_ids)
            found[QUANTITIES[measure], continuation.prompt_id] = values.tolist()
            if (measure, kind) == (REPLY, BENIGN):
                base = texts.reference[continuation.prompt_id].to(logits.device)
                divergence = kl_per_token(base, logits).tolist()
                found[QUANTITIES[DIVERGENCE], continuation.prompt_id] = divergence
            bar.advance()
    order = {prompt_id: position for position, prompt_id in enumerate(subjects)}
    return [
        {"prompt_id": prompt_id, "quantity": quantity, "values": values}
        for (quantity, prompt_id), values in sorted(
            found.items(), key=lambda item: (item[0][0], order[item[0][1]])
        )
    ]


def _replies(
    loaded: LoadedModel, config: Config, subjects: Mapping[str, Subject], bar: Bar
) -> list[dict[str, object]]:
    """The replies of a variant, as rows of its table."""
    engine = text_engine(loaded, config)
    prompts = [subject.prompt for subject in subjects.values()]
    size = config.collect.generation_batch_size
    rows: list[dict[str, object]] = []
    for group, start in enumerate(range(0, len(prompts), size)):
        part = prompts[start : start + size]
        outputs = engine.generate(
            [p.messages for p in part],
            group_sampling(sampling_of(config), group),
            [p.rendered for p in part],
        )
        rows += [shard_row(p, output) for p, output in zip(part, outputs, strict=True)]
        bar.advance(len(part))
    return rows


def _length(continuation: Continuation) -> int:
    return len(continuation.prompt_token_ids) + len(continuation.completion_token_ids)
