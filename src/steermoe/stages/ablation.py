"""The figures of an ablation: each variant against the intact model, and the selected experts among random ones.

It needs no model: values by token, replies and verdicts are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from steermoe.analysis.ablation import (
    BENIGN,
    INTACT,
    LOOK_ALIKES,
    UNSAFE,
    VERDICT,
    Ablation,
    matching_figures,
    summarise,
)
from steermoe.analysis.ablation_figures import AblationFigures, DescribedSet, MetricFigures
from steermoe.analysis.risk import expert_label
from steermoe.config import Config
from steermoe.measures.evidence import total
from steermoe.prompts.goals import normalised_goal
from steermoe.reporter import Reporter
from steermoe.stages.ablation_plan import (
    QUANTITIES,
    Subject,
    choose_subjects,
    planned_ablations,
)
from steermoe.stages.evaluate import intervals_of
from steermoe.store.directory import RunDirectory
from steermoe.store.names import ABLATION, ABLATION_FIGURES, BASE, HARDENED, replies_of, scored_of
from steermoe.store.state import Figures
from steermoe.store.variants import variant_name

PURPOSE = "fragility, for the model's owner: what changes where these experts fail, are pruned or are removed"


def summarise_ablation(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Write `ablation.json` and `ablation.parquet`, or remove them where nothing was ablated."""
    subjects = choose_subjects(run, config)
    selected = run.read_selection().chosen(config.train.experts)
    ablations = planned_ablations(run, config) if selected else []
    models = [
        model
        for model in (BASE, HARDENED)
        if ablations and run.has(scored_of(variant_name(model, ablations[0])))
    ]
    if not models:
        run.remove(ABLATION)
        run.remove(ABLATION_FIGURES)
        return {}
    tables: list[pd.DataFrame] = []
    figures: dict[str, dict[str, MetricFigures]] = {}
    for model in models:
        scores = pd.concat([_scores(run, config, model, a, subjects) for a in ablations])
        table, figures[model] = summarise(scores, intervals_of(config).arguments())
        table.insert(0, "model", model)
        tables.append(table)
    whole = pd.concat(tables, ignore_index=True)
    of_set = {(a.name, a.draw): a for a in ablations}
    keys = list(zip(whole["set"], whole["draw"], strict=True))
    whole["num_deactivated"] = [len(of_set[key].deactivated) for key in keys]
    whole["overlap"] = [of_set[key].overlap for key in keys]
    run.write_table(ABLATION_FIGURES, whole)
    kinds = [subject.kind for subject in subjects.values()]
    found: AblationFigures = {
        "measures": PURPOSE,
        "split": config.evaluate.split,
        "num_prompts": {kind: kinds.count(kind) for kind in (UNSAFE, LOOK_ALIKES, BENIGN)},
        "max_tokens": config.ablate.max_tokens,
        "random": matching_figures(ablations),
        "sets": [_described(a) for a in ablations if a.name != INTACT],
        "models": figures,
    }
    run.write_json(ABLATION, found)
    return {"num_figures": len(whole)}


def _scores(
    run: RunDirectory,
    config: Config,
    model: str,
    ablation: Ablation,
    subjects: Mapping[str, Subject],
) -> pd.DataFrame:
    """One prompt's part of every figure of a variant, as `summarise` reads them."""
    variant = variant_name(model, ablation)
    measure_of = {quantity: measure for measure, quantity in QUANTITIES.items()}
    rows = [
        _row(ablation, measure_of[row["quantity"]], row["prompt_id"], row["values"])
        for row in run.read_scored(variant).to_dict("records")
    ]
    replied = BASE if (model, ablation.name) == (BASE, INTACT) else variant
    if run.has(replies_of(replied)):
        verdicts = run.read_verdicts(replied, config.judge.main)
        rows += [_row(ablation, VERDICT, i, (), verdicts[i]) for i in subjects]
    table = pd.DataFrame(rows)
    ids = table["prompt_id"]
    return table.assign(
        kind=ids.map(lambda i: subjects[i].kind),
        goal=ids.map(lambda i: normalised_goal(subjects[i].prompt.goal)),
    )


def _row(
    ablation: Ablation, measure: str, prompt_id: str, values: Sequence[float], verdict: str = ""
) -> dict[str, object]:
    return {
        "set": ablation.name,
        "draw": ablation.draw,
        "measure": measure,
        "prompt_id": prompt_id,
        "total": total(values),
        "num_tokens": len(values),
        "verdict": verdict,
    }


def _described(ablation: Ablation) -> DescribedSet:
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
