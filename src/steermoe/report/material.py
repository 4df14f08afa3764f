"""What the report is made from, and how a run says it was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from steermoe.analysis.ablation_figures import AblationFigures
from steermoe.config import EMBEDDED_MODEL, ArgumentsSection, Config, fields_of, preset
from steermoe.prompts.sources import parse_source
from steermoe.records import NO_BATCH, Expert, Label, Prompt, Split, Verdict
from steermoe.report.numbers import counted, integer, is_number, number, words
from steermoe.store.controls_file import ControlFigures
from steermoe.store.directory import RunDirectory
from steermoe.store.forecast_file import Forecast
from steermoe.store.names import (
    ABLATION,
    BASE,
    CONTROL_FIGURES,
    EVALUATION,
    FORECAST,
    HARDENED,
    MODEL,
    RISK,
    RISK_PER_BATCH,
    SCORES,
    UNSAFE_EXPERTS,
    on_set,
    replies_of,
)
from steermoe.store.published import without_places
from steermoe.store.run import Run
from steermoe.store.selection_file import ExpertSet
from steermoe.store.state import RunState
from steermoe.version import __version__

KINDS = {
    "unsafe": "harmful requests",
    "plain_goal": "harmful goals asked plainly",
    "look_alike": "look-alikes",
    "safe": "other harmless requests",
    "benign": "benign requests",
}
KIND_NAMES = {
    "unsafe": "harmful request",
    "plain_goal": "harmful goal asked plainly",
    "look_alike": "look-alike",
    "safe": "harmless request",
    "benign": "benign request",
}
HARMLESS = ("benign", "look_alike", "safe")


@dataclass(frozen=True, slots=True)
class Material:
    """What the page is made from; None where the run did not get so far.

    Attributes:
        state: `run.json`.
        config: The settings.
        prompts: All prompts of the run.
        responses: The base model's replies.
        evaluated: Those of them, or longer ones, that the hardened model's are compared with.
        hardened: The hardened model's replies to the evaluated split.
        evaluation: `evaluation.json`.
        selection: `unsafe_experts.json`.
        risk: The aggregated risk table.
        per_batch: The risk tables of the batches.
        ablation: `ablation.json`.
        scores: `scores.parquet`.
        forecast: `forecast.json`.
        controls: `controls.json`.
        is_trained: Whether there is a hardened model.
        trained_experts: What it was trained on; empty for a baseline, or without one.
    """

    state: RunState
    config: Config
    prompts: tuple[Prompt, ...]
    responses: pd.DataFrame
    evaluated: pd.DataFrame
    hardened: pd.DataFrame | None
    evaluation: Mapping[str, Any] | None
    selection: ExpertSet | None
    risk: pd.DataFrame | None
    per_batch: pd.DataFrame | None
    ablation: AblationFigures | None
    scores: pd.DataFrame | None
    forecast: Forecast | None
    controls: ControlFigures | None
    is_trained: bool
    trained_experts: list[Expert]

    @property
    def split(self) -> str:
        """The split that was evaluated, or would be."""
        return str((self.evaluation or {}).get("split", self.config.evaluate.split))

    @property
    def selectable_layers(self) -> set[int]:
        """The decoder layers that experts may be selected from."""
        settings = self.config.identify
        known = set() if self.risk is None else {int(layer) for layer in self.risk["layer"]}
        last = max(known, default=0) if settings.last_layer is None else settings.last_layer
        return {layer for layer in known if settings.first_layer <= layer <= last}

    @property
    def experts(self) -> list[Expert]:
        """The experts that were trained, or are to be; largest risk difference first."""
        if self.selection is None or self.risk is None:
            return []
        if not self.trained_experts and self.config.train.experts == "global":
            return self.selection.chosen("global")
        chosen = set(self.trained_experts) or set(self.selection.union)
        ranked = zip(self.risk["layer"].tolist(), self.risk["expert"].tolist(), strict=True)
        return [Expert(*pair) for pair in ranked if pair in chosen]


def read_material(run: RunDirectory, config: Config) -> Material:
    """Read what there is of a run.

    Raises:
        RunDirectoryError: No run was started here, its replies are missing, or a file is damaged.
    """

    def table(name: str) -> pd.DataFrame | None:
        return run.read_table(name) if run.file(name).is_file() else None

    state = run.read_state()
    is_trained = run.file(MODEL).is_dir()
    evaluated = is_trained and run.file(EVALUATION).is_file()
    responses = Run(run).responses
    longer = on_set(BASE, config.evaluate.split)
    others = config.evaluates_other_replies and run.has(replies_of(longer))
    selected = run.file(UNSAFE_EXPERTS).is_file() and run.file(RISK).is_file()
    return Material(
        state=state,
        config=config,
        prompts=run.read_prompts(),
        responses=responses,
        evaluated=Run(run).replies(longer) if others else responses,
        # Replies that no evaluation belongs to are those of an earlier model.
        hardened=Run(run).replies(HARDENED) if evaluated else None,
        evaluation=run.read_evaluation() if evaluated else None,
        selection=run.read_selection() if selected else None,
        risk=table(RISK) if selected else None,
        per_batch=table(RISK_PER_BATCH),
        ablation=run.read_ablation() if run.has(ABLATION) else None,
        scores=table(SCORES) if selected else None,
        forecast=run.read_forecast() if selected and run.has(FORECAST) else None,
        controls=run.read_controls() if evaluated and run.has(CONTROL_FIGURES) else None,
        is_trained=is_trained,
        trained_experts=Run(run).trained_experts if is_trained else [],
    )


def kind_of(prompt: Prompt) -> str:
    """Which key of `KINDS` a prompt belongs to."""
    if prompt.is_plain_goal:
        return "plain_goal"
    return "look_alike" if prompt.is_look_alike else str(prompt.label)


# ---- how it was made ----------------------------------------------------------------------------------


def provenance(material: Material) -> dict[str, object]:
    """The last part of the page: model, prompts, settings, stages, packages, and what was left out."""
    state, config = material.state, material.config
    counts = Counter((kind_of(p), str(p.split)) for p in material.prompts)
    splits = [str(split) for split in Split]
    table = [
        (KINDS[kind], [counts[kind, split] for split in splits])
        for kind in KINDS
        if any(counts[kind, split] for split in splits)
    ]
    return {
        "model": {
            "id": config.model.name,
            "revision": state.model.commit or state.model.revision,
            "hash": state.model.hash,
        },
        "seed": state.seed,
        "sources": [parse_source(source).name for source in config.prompts.sources],
        "splits": splits,
        "prompt_counts": table,
        "prompt_totals": [sum(row[1][i] for row in table) for i in range(len(splits))],
        "settings": changed_settings(config),
        "packages": dict(state.packages),
        "stages": _stages(state),
        "left_out": _left_out(material),
        "version": __version__,
    }


def changed_settings(config: Config) -> list[dict[str, str]]:
    """The settings that differ from the defaults; `shipped` marks those of the embedded model's preset.

    Paths are shown by their last part, and what says where a run was made is left out: pages are sent around.
    """
    published = without_places(config)
    is_embedded = config.model.id == EMBEDDED_MODEL
    shipped = preset(EMBEDDED_MODEL) if is_embedded else {}
    rows = []
    for key, value, default, description in _settings_of(config):
        shown = value
        if value and isinstance(value, str | tuple | Mapping):
            shown = _at_key(published, key)
        if value == default or shown is None:
            continue
        rows.append(
            {
                "key": key,
                "value": _setting(shown),
                "default": _setting(default),
                "description": description,
                "shipped": "yes" if _at_key(shipped, key) == value else "",
            }
        )
    return rows


def _settings_of(config: Config) -> Iterator[tuple[str, Any, Any, str]]:
    """Every setting as `(key, value, default, description)`; each argument of training is one."""
    for key, _, default, description in fields_of(Config):
        value = _at(config, key)
        if not isinstance(value, ArgumentsSection):
            yield key, value, default, description
            continue
        for name, given in value.model_dump(exclude_none=True).items():
            usual = getattr(ArgumentsSection(), name, None)
            yield f"{key}.{name}", given, usual, f"{name} of transformers.TrainingArguments."


def _at_key(values: Mapping[str, Any], key: str) -> Any:
    """What nested mappings hold under a dotted key; None if nothing."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _at(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _setting(value: Any) -> str:
    if value is None or value == () or value == {}:
        return "empty"
    if isinstance(value, tuple | list):
        return "\n".join(str(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _stages(state: RunState) -> list[dict[str, object]]:
    """The finished stages; this one is still at work."""
    rows: list[dict[str, object]] = []
    for name, stage in state.stages.items():
        if name == "report":
            continue
        figures = stage.figures
        rows.append(
            {
                "name": name,
                "status": stage.status,
                "seconds": stage.seconds,
                "attempts": stage.attempts,
                "peak_memory_bytes": stage.peak_memory_bytes,
                "figures": [
                    (words(key), _figure_text(value))
                    for key, value in figures.items()
                    if isinstance(value, str) or is_number(value)
                ],
            }
        )
    return rows


def _figure_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return integer(value) if value == int(value) else number(value, 4)


def _left_out(material: Material) -> list[str]:
    """What is in the run but not in its figures, a sentence each."""
    said = []
    responses = material.responses
    contrast = (responses["split"] == Split.TRAIN) & (responses["label"] != Label.BENIGN)
    unbatched = int((contrast & (responses["batch_idx"] == NO_BATCH)).sum())
    if unbatched:
        said.append(
            f"{counted(unbatched, 'train prompt')} filled no mixed batch: only in pooled figures."
        )
    identified = material.state.figures_of("identify")
    pairs = identified.get("num_pairs_left_out_by_verdict") or 0
    if pairs:
        said.append(
            f"{counted(pairs, 'pair')} left out of identification, because the plain goal was not refused or "
            "the jailbreak was (identify.filter_by_verdict). Choosing by the replies makes a difference of its own: "
            "estimate_unfiltered (all pairs) and at_same_verdict are free of it."
        )
    sides: Iterable[tuple[str, pd.DataFrame | None]] = (
        ("base", responses),
        ("hardened", material.hardened),
    )
    for side, table in sides:
        unscored = 0 if table is None else int((table["verdict"] == Verdict.UNSCORED).sum())
        if unscored:
            said.append(
                f"{counted(unscored, 'reply', 'replies')} of the {side} model could not be "
                "scored; they count as neither refused nor answered."
            )
    return said
