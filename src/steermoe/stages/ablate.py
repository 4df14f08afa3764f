"""Ablate: what the model does on held-out prompts while the selected experts are switched off.

It is the causal check of a selection, and a measurement of fragility for the model's owner: how much hangs on a few
experts, and, of the hardened model, how much of the repair is lost where the repaired experts fail or are removed.
The same is done with random experts that are matched to them, and with those of lowest risk difference. Nothing is
written but figures: no replies, no weights.

Every set of experts is a shard on disk as soon as it is done, so an interrupted ablation goes on with the next set.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from steermoe.analysis.ablation import (
    BENIGN,
    INTACT,
    LOOK_ALIKES,
    RANDOM,
    UNSAFE,
    Ablation,
    matching_figures,
    plan_ablations,
    summarise,
)
from steermoe.analysis.risk import expert_label
from steermoe.analysis.selection import Expert
from steermoe.config import Config
from steermoe.loading import LoadedModel, load_model, model_source
from steermoe.moe.masking import masked_experts
from steermoe.prompts.goals import normalised_goal
from steermoe.reporter import Bar, Reporter
from steermoe.stages.ablation_scores import Score, Scorer, Subject, choose_subjects, verdict_score
from steermoe.stages.evaluate import intervals_of, load_hardened
from steermoe.stages.identify import selected_experts
from steermoe.store.directory import (
    ABLATION,
    ABLATION_FIGURES,
    MODEL,
    RISK,
    RunDirectory,
    files_left,
)

BASE, HARDENED = "base", "hardened"

ENOUGH_DRAWS = 20
"""Random draws below which a set that lies outside all of them has a p-value above 0.05."""

PURPOSE = "fragility, for the model's owner: what changes where these experts fail, are pruned or are removed"


def ablate(run: RunDirectory, config: Config, reporter: Reporter) -> dict[str, Any]:
    """Deactivate the selected experts, random ones and the lowest, and score each on held-out prompts.

    Of the base model, and of the hardened one where there is one. The experts are those that training repairs
    (`train.experts`). Writes `ablation.json` and `ablation.parquet`, or removes them where nothing is to be done.

    Returns:
        Figures for `run.json`, with the stages that this one is built on.
    """
    figures = {"built_on": built_on(run.read_run()["stages"])}
    subjects = choose_subjects(run, config)
    selected = selected_experts(run, config.train.experts)
    ablations = _plan(run, config, selected) if selected else []
    num_deactivated = len(ablations[1].deactivated) if ablations else 0
    if not num_deactivated or not subjects:
        for name in (ABLATION, ABLATION_FIGURES):
            run.remove(name)
        why = (
            "no expert is selected"
            if not selected
            else f"no {config.evaluate.split} prompts are held out"
            if not subjects
            else "every selected expert is needed for its layer to have top-k experts"
        )
        reporter.note(f"{why}, so there is nothing to ablate")
        return figures | {"num_ablated_experts": 0}
    _say_plan(ablations, reporter)
    models = [BASE]
    if figures["built_on"]["train"] is not None and run.file(MODEL).is_dir():
        models.append(HARDENED)
    else:
        reporter.note("there is no hardened model, so the base model alone is measured")
    _score(run, config, reporter, models, ablations, subjects)
    _summarise(run, config, models, ablations, subjects)
    reporter.line(
        f"ablated {num_deactivated} experts, and {len(ablations) - 2} sets to compare with, of the "
        f"{' and the '.join(models)} model, on {len(subjects)} {config.evaluate.split} prompts"
    )
    return figures | {
        "num_prompts": len(subjects),
        "num_ablated_experts": num_deactivated,
        **matching_figures(ablations),
    }


def built_on(stages: Mapping[str, Any]) -> dict[str, dict[str, str] | None]:
    """The files of the selection and of the hardened model that an ablation measures; None for one not made."""
    return {name: files_left(stages, name) for name in ("identify", "train")}


# ---- what is compared ---------------------------------------------------------------------------------


def _plan(run: RunDirectory, config: Config, selected: Sequence[Expert]) -> list[Ablation]:
    top_k = int(run.routing_metadata()["top_k"])
    table = run.read_table(RISK)
    return plan_ablations(table, selected, config.ablate.num_draws, top_k, config.seed)


def _say_plan(ablations: Sequence[Ablation], reporter: Reporter) -> None:
    """Which experts stay on, and how like the random draws are to the selected set."""
    selected, lowest = ablations[1:3]
    found = matching_figures(ablations)
    reporter.line(
        f"random draws share {found['least_overlap']} to {found['largest_overlap']} (mean "
        f"{found['mean_overlap']:.1f}) of {len(selected.experts)} experts with the selected set, the lowest share "
        f"{lowest.overlap}; {found['num_distinct_draws']} of {found['num_draws']} draws are distinct"
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
    if found["num_draws"] < ENOUGH_DRAWS:
        reporter.note(
            f"with {found['num_draws']} random draws no rank has a p-value below {1 / (1 + found['num_draws']):.2g}: "
            f"set ablate.num_draws to {ENOUGH_DRAWS} or more"
        )


# ---- scores -------------------------------------------------------------------------------------------


def _score(
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    models: Sequence[str],
    ablations: Sequence[Ablation],
    subjects: Mapping[str, Subject],
) -> None:
    """Score every set of every model that has no shard yet; each becomes a shard."""
    missing = {
        name: [i for i in range(len(ablations)) if not run.file(_shard(run, name, i)).exists()]
        for name in models
    }
    if not any(missing.values()):
        return
    base = load_model(config.model, model_source(config.model))
    scorer = Scorer(run, config, base, subjects)
    reference = scorer.reference(base)

    def cost(name: str, indices: Sequence[int]) -> int:
        """Rows and replies."""
        generated = sum(_is_generated(name, ablations[i], config) for i in indices)
        return scorer.num_rows * len(indices) + len(subjects) * generated

    total = sum(cost(name, range(len(ablations))) for name in models)
    done = total - sum(cost(name, indices) for name, indices in missing.items())
    if done:
        reporter.line("ablate: going on after the sets that are done")
    with reporter.bar(total, "ablate", done) as bar:

        def score_model(loaded: LoadedModel, name: str) -> None:
            for index in missing[name]:
                ablation = ablations[index]
                is_generated = _is_generated(name, ablation, config)
                scores = _score_set(loaded, ablation, scorer, reference, is_generated, bar)
                if name == BASE and ablation.name == INTACT:
                    scores += _verdicts_of_run(run, subjects)
                run.write_table(_shard(run, name, index), pd.DataFrame(scores))

        if missing[BASE]:
            score_model(base, BASE)
        del base
        gc.collect()  # it sits in reference cycles, and the next model needs the room
        if missing.get(HARDENED):
            score_model(load_hardened(run, config), HARDENED)


def _score_set(
    loaded: LoadedModel,
    ablation: Ablation,
    scorer: Scorer,
    reference: Mapping[str, Tensor],
    is_generated: bool,
    bar: Bar,
) -> list[Score]:
    """Every score of a model with one set of experts deactivated."""
    description = loaded.description
    allowed = ablation.allowed(description.layer_indices, description.num_experts)
    with masked_experts(loaded.model, allowed, description=description):
        scores = scorer.teacher_forced(loaded, reference, bar)
        return scores + scorer.replied(loaded, bar) if is_generated else scores


def _is_generated(model: str, ablation: Ablation, config: Config) -> bool:
    """Whether replies are generated; those of the intact base model are the run's own."""
    if ablation.name == INTACT:
        return model == HARDENED
    return ablation.name != RANDOM or ablation.draw < config.ablate.num_generated_draws


def _verdicts_of_run(run: RunDirectory, subjects: Mapping[str, Subject]) -> list[Score]:
    responses = run.read_responses()
    verdicts = dict(zip(responses["prompt_id"], responses["verdict"], strict=True))
    return [verdict_score(prompt_id, verdicts[prompt_id]) for prompt_id in subjects]


def _shard(run: RunDirectory, model: str, index: int) -> str:
    return run.shard_name(index, f"ablation-{model}")


# ---- figures ------------------------------------------------------------------------------------------


def _summarise(
    run: RunDirectory,
    config: Config,
    models: Sequence[str],
    ablations: Sequence[Ablation],
    subjects: Mapping[str, Subject],
) -> None:
    """Write `ablation.parquet` and `ablation.json` from the shards."""
    tables, figures = [], {}
    for name in models:
        scores = pd.concat(
            [
                run.read_table(_shard(run, name, index)).assign(set=a.name, draw=a.draw)
                for index, a in enumerate(ablations)
            ]
        )
        ids = scores["prompt_id"]
        scores = scores.assign(
            kind=ids.map(lambda i: subjects[i].kind),
            goal=ids.map(lambda i: normalised_goal(subjects[i].prompt.goal)),
        )
        table, figures[name] = summarise(scores, intervals_of(config))
        table.insert(0, "model", name)
        tables.append(table)
    whole = pd.concat(tables, ignore_index=True)
    of_set = {(a.name, a.draw): a for a in ablations}
    keys = list(zip(whole["set"], whole["draw"], strict=True))
    whole["num_deactivated"] = [len(of_set[key].deactivated) for key in keys]
    whole["overlap"] = [of_set[key].overlap for key in keys]
    run.write_table(ABLATION_FIGURES, whole)
    kinds = [subject.kind for subject in subjects.values()]
    run.write_json(
        ABLATION,
        {
            "measures": PURPOSE,
            "split": config.evaluate.split,
            "num_prompts": {kind: kinds.count(kind) for kind in (UNSAFE, LOOK_ALIKES, BENIGN)},
            "max_tokens": config.ablate.max_tokens,
            "random": matching_figures(ablations),
            "sets": [_described(a) for a in ablations if a.name != INTACT],
            "models": figures,
        },
    )


def _described(ablation: Ablation) -> dict[str, Any]:
    return {
        "set": ablation.name,
        "draw": ablation.draw,
        "num_experts": len(ablation.experts),
        "num_deactivated": len(ablation.deactivated),
        "overlap_with_selected": ablation.overlap,
        "mean_frequency": ablation.mean_frequency,
        "kept_active": [expert_label(*expert) for expert in ablation.kept],
        "experts": [expert_label(*expert) for expert in ablation.experts],
    }
