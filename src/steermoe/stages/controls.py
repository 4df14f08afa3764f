"""Controls that are trained: would other experts have done as well?

As many random experts as were selected, matched by layer and activity and drawn without leaving the selected ones out,
and those of lowest score, are trained with the very same settings. Each is a variant, kept as a delta, which replies
to the same prompts and is judged and measured as the hardened model is.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from steermoe.analysis.controls import Against, compare_controls
from steermoe.analysis.matched_sets import MatchedSets
from steermoe.analysis.selection import (
    SCORE,
    SelectionSettings,
    activation_frequencies,
    resolve_rule,
)
from steermoe.config import Config
from steermoe.errors import ConfigError
from steermoe.loading import LoadedModel, load_model, model_source
from steermoe.moe.checkpoint import save_hardened
from steermoe.moe.delta import apply_delta, read_delta_header, save_delta
from steermoe.moe.stored import local_folder
from steermoe.processes import current
from steermoe.prompts.goals import normalised_goal
from steermoe.records import Expert, Label, Prompt, Split, Verdict
from steermoe.reporter import Reporter
from steermoe.stages.reply import KL, base_side_of, divergence, generate_replies, text_engine
from steermoe.stages.train import train_experts
from steermoe.store.controls_file import ControlFigures, ControlSet
from steermoe.store.directory import RunDirectory
from steermoe.store.names import (
    CONTROL,
    CONTROL_CHECKPOINTS,
    CONTROL_FIGURES,
    CONTROLS,
    HARDENED,
    MODEL,
    RISK,
    SCORES,
    control_of,
    replies_of,
    scored_of,
)
from steermoe.store.run import Run
from steermoe.store.state import Figures

LOWEST, RANDOM = f"{CONTROL}lowest", f"{CONTROL}random"


def check_controls(config: Config) -> None:
    """Refuse settings of training that controls cannot be trained with.

    Raises:
        ConfigError: They train other things than experts, or go by the masks of batches.
    """
    train = config.train
    if not train.controls:
        return
    if train.all_parameters != "experts":
        raise ConfigError(
            f"train.controls = {train.controls}: only experts have random counterparts; set train.parameters = experts"
        )
    if train.mask_scope != "off" and train.mask == "batch":
        raise ConfigError(
            f"train.controls = {train.controls}: batches have no selection of random experts; set train.mask = global"
        )


# ---- training -------------------------------------------------------------------------------------------


def planned_controls(run: RunDirectory, config: Config) -> dict[str, tuple[Expert, ...]]:
    """The controls of a run by name: random sets, each depending on those before it alone, and the lowest."""
    selected = run.read_selection().chosen(config.train.experts)
    table = run.read_table(RISK)
    if config.identify.rank_by != "risk_diff":
        scores = run.read_table(SCORES)
        own = scores[scores["score"] == config.identify.rank_by]
        own = own[["layer", "expert", "value"]].rename(columns={"value": SCORE})
        table = table.merge(own, on=["layer", "expert"], validate="one_to_one")
    draws = MatchedSets(activation_frequencies(table), selected).draw(
        config.train.controls, config.seed
    )
    number = len(selected)
    last = config.identify.last_layer
    may_be_selected = table["layer"] >= config.identify.first_layer
    if last is not None:
        may_be_selected &= table["layer"] <= last
    settings = SelectionSettings(
        -np.inf, number, seed=config.seed, rank_within=config.identify.rank_within
    )
    lowest = resolve_rule("lowest", settings)(table[may_be_selected])
    found = {f"{RANDOM}-{i:02d}": tuple(draw) for i, draw in enumerate(draws)}
    return found | {LOWEST: tuple(lowest)}


def train_controls(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Train every control that is not trained yet.

    Writes `controls/<variant>.safetensors`, a delta each.
    """
    selected = run.read_selection().chosen(config.train.experts)
    leads = current().is_first
    if (not selected or not run.has(MODEL)) and not leads:
        return {}
    if not selected or not run.has(MODEL):
        run.remove(CONTROLS)
        reporter.note("nothing was trained, so there are no controls to train")
        return {"controls": []}
    wanted = planned_controls(run, config)
    random = [name for name in wanted if name != LOWEST]
    if len(random) < config.train.controls:
        reporter.note(
            f"there are only {len(random)} other sets of as many experts of each layer and activity, so no more are "
            "trained"
        )
    for variant, experts in wanted.items():
        if run.has(control_of(variant)):
            continue
        reporter.line(f"{variant}: {len(experts)} experts instead of the selected ones")
        folder = run.file(CONTROL_CHECKPOINTS) / variant
        made = train_experts(run, config, reporter, experts, folder)
        if not leads or made is None:
            continue
        made.fold(config.train.kept_change)
        _save(run, config, made.loaded, variant, experts)
        del made
        gc.collect()
        run.remove_unfinished(f"{CONTROL_CHECKPOINTS}/{variant}")
    return {"controls": list(wanted), "num_experts": len(selected)}


def _save(
    run: RunDirectory,
    config: Config,
    loaded: LoadedModel,
    variant: str,
    experts: tuple[Expert, ...],
) -> None:
    """Keep what was changed; that nothing else was is proven as the delta is written."""
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".control-") as folder:
        base = local_folder(loaded.source, config.model.revision)
        save_hardened(loaded.model, loaded.tokenizer, folder, base)
        with run.writing(control_of(variant)) as path:
            save_delta(
                loaded.source,
                folder,
                experts,
                path,
                revision=config.model.revision,
                name=config.model.name,
            )


@contextmanager
def _opened(run: RunDirectory, config: Config, variant: str) -> Iterator[LoadedModel]:
    """A control's model, put together from the base model and its delta in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".control-") as folder:
        made = apply_delta(
            model_source(config.model),
            run.file(control_of(variant)),
            Path(folder) / "model",
            revision=config.model.revision,
        )
        yield load_model(config.model.model_copy(update={"revision": None}), str(made))


# ---- replies --------------------------------------------------------------------------------------------


def trained_controls(run: RunDirectory) -> list[str]:
    """The controls that are trained, by name."""
    return sorted(Path(name).stem for name in run.matching((f"{CONTROLS}/*.safetensors",)))


def reply_controls(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Let every control reply, and feed it the base model's replies, as is done with the hardened model."""
    split = Split(config.evaluate.split)
    prompts = {p.prompt_id: p for p in run.read_prompts() if p.split is split}
    done = []
    for variant in trained_controls(run) if prompts else ():
        done.append(variant)
        if run.has(scored_of(variant)):
            continue
        experts = [
            Expert(*pair) for pair in read_delta_header(run.file(control_of(variant))).experts
        ]
        continuations, base_side = base_side_of(run, config, prompts, experts)
        with _opened(run, config, variant) as loaded:
            generate_replies(run, config, reporter, text_engine(loaded, config), variant)
            run.write_scored(
                variant, divergence(reporter, loaded, base_side, continuations, experts)
            )
        del loaded, base_side
        gc.collect()
    reporter.line(f"{len(done)} controls replied to {len(prompts)} {split} prompts each")
    return {"controls": done, "num_prompts": len(prompts)}


# ---- what they say --------------------------------------------------------------------------------------


def summarise_controls(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Compare the hardened model with its controls, prompt by prompt.

    Writes `controls.json`; removes it where there is nothing to compare.
    """
    split = Split(config.evaluate.split)
    prompts = [p for p in run.read_prompts() if p.split is split]
    controls = [name for name in trained_controls(run) if run.has(scored_of(name))]
    if not controls or not prompts or not run.has(replies_of(HARDENED)):
        run.remove(CONTROL_FIGURES)
        return {}
    variants = [HARDENED, *controls]
    rows = {name: _values(run, config, name, prompts) for name in variants}
    random = [name for name in controls if name != LOWEST]
    figures = compare_controls(
        {name: rows[name] for name in random},
        rows[HARDENED],
        rows.get(LOWEST),
        {p.prompt_id: normalised_goal(p.goal) for p in prompts},
        Against(config.evaluate.confidence, config.evaluate.num_bootstrap, config.seed),
    )
    selected = set(Run(run).trained_experts)
    sets = []
    for name in controls:
        experts = read_delta_header(run.file(control_of(name))).experts
        overlap = len(selected & {Expert(*pair) for pair in experts})
        sets.append(ControlSet(name, len(experts), overlap))
    whole = ControlFigures(str(split), len(selected), tuple(sets), figures)
    run.write_json(CONTROL_FIGURES, whole.as_json())
    reporter.line(f"compared the selection with {len(random)} random ones and the lowest")
    return {"num_controls": len(controls)}


MEASURED = {
    "refusal_rate": Label.UNSAFE,
    "over_refusal_rate": Label.BENIGN,
    "over_refusal_rate_look_alike": Label.SAFE,
}
"""Of which prompts a rate of refusals is."""


def _values(
    run: RunDirectory, config: Config, variant: str, prompts: list[Prompt]
) -> dict[str, dict[str, tuple[float, float]]]:
    """By measure and prompt: what is added up, and what that is divided by (answers scored, or tokens)."""
    verdicts = run.read_verdicts(variant, config.judge.main)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for measure, label in MEASURED.items():
        found[measure] = {
            p.prompt_id: (float(verdicts[p.prompt_id] == Verdict.REFUSED), 1.0)
            for p in prompts
            if p.label is label
            and (label is not Label.SAFE or p.is_look_alike)
            and verdicts[p.prompt_id] != Verdict.UNSCORED
        }
    table = run.read_scored(variant)
    kl = table[table["quantity"] == KL]
    found["kl_per_token"] = {
        str(i): (float(sum(values)), float(len(values)))
        for i, values in zip(kl["prompt_id"], kl["values"], strict=True)
    }
    return {measure: values for measure, values in found.items() if values}
