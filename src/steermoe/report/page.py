"""Report: the whole story of a run on one page, for a person who hosts models.

The page needs no network: script, style and data are in the file. Prompts and replies are untrusted text, so the
template escapes all it prints. Replies to harmful requests are left out of the file unless asked for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from steermoe.analysis.risk import expert_label
from steermoe.analysis.selection import RULES
from steermoe.config import Config
from steermoe.records import Expert
from steermoe.report import numbers, text
from steermoe.report.card import write_card_figures
from steermoe.report.cautions import cautions
from steermoe.report.controls import controls_part
from steermoe.report.figures import (
    MAX_EXPERTS_SHOWN,
    differences_per_batch,
    risk_map,
    training_curve,
)
from steermoe.report.material import (
    Material,
    provenance,
    read_material,
)
from steermoe.report.plotly_parts import Figure
from steermoe.report.replies import replies
from steermoe.report.scoring import correlation_map, correlations_of, scores_part
from steermoe.report.side_by_side import benchmark_lines
from steermoe.report.trust import ablation_tables, possible_sets, trust_rows
from steermoe.reporter import Reporter
from steermoe.scores import RISK_DIFF, title_of
from steermoe.store.directory import RunDirectory
from steermoe.store.names import REPORT
from steermoe.store.published import without_place
from steermoe.store.state import Figures

BESIDE = {
    "at_equal_length": "At equal length",
    "at_same_verdict": "At one verdict",
    "estimate_unfiltered": "All pairs",
}
"""Columns of the risk table that stand beside the difference: what is left of it otherwise, where it was asked."""

# Control characters would vanish or upset a reader; their pictures are shown in their place.
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {
    127: 0x2421
}


def report(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Write `report.html`.

    Returns:
        Figures for `run.json`: whether replies to harmful requests are in the file.
    """
    page = render(read_material(run, config))
    with run.writing(REPORT) as path:
        path.write_text(page, "utf-8", newline="\n")
    write_card_figures(run, config.evaluate.confidence)
    reporter.line(f"report: {run.file(REPORT)}")
    return {"shows_harmful_replies": config.report.show_harmful}


def render(material: Material) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("steermoe", "report/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": shown,
        "integer": numbers.integer,
        "duration": numbers.duration,
    }
    environment.filters |= {"memory": numbers.memory, "words": numbers.words}
    figures = _figures(material)
    return environment.get_template("report.html.j2").render(
        **_opening(material),
        **_experts(material, figures),
        **_trust(material),
        **scores_part(
            material.scores, material.selectable_layers, material.forecast, material.evaluation
        ),
        **controls_part(material.controls),
        **replies(material),
        **provenance(material),
        figures={figure.name: figure for figure in figures},
        specifications=_as_script_data(figures),
        plotly=Markup(get_plotlyjs()),  # the library itself, not text of the run
    )


def shown(value: str) -> str:
    """Text of a prompt or a reply, with pictures in the place of control characters."""
    return value.translate(_CONTROL_PICTURES)


def _as_script_data(figures: Sequence[Figure]) -> Markup:
    """The figures as JSON that cannot end the script element it stands in."""
    values = {f.name: {"data": f.data, "layout": f.layout, "zoom": f.zoom} for f in figures}
    encoded = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        encoded = encoded.replace(character, f"\\u{ord(character):04x}")
    return Markup(encoded)  # without <, > and & it is text in any element


# ---- parts of the page --------------------------------------------------------------------------------


def _opening(material: Material) -> dict[str, object]:
    config, selection = material.config, material.selection
    largest = selection.largest if selection is not None else None
    held_out = sum(1 for prompt in material.prompts if prompt.split == material.split)
    subject = text.Subject(
        model=numbers.model_name(config.model.id),
        parameters=config.train.all_parameters,
        rule=config.identify.rule,
        num_selected=None if selection is None else len(material.experts),
        num_experts=None if material.risk is None else len(material.risk),
        largest=(largest[0].label, largest[1]) if largest else None,
        threshold=config.identify.threshold
        if config.identify.rule in RULES and config.identify.rank_by == RISK_DIFF
        else None,
        is_trained=material.is_trained,
        num_held_out=held_out,
        split=material.split,
        is_union=config.train.experts == "union",
    )
    evaluation = material.evaluation
    return {
        "title": text.title(subject, evaluation),
        "headline": text.headline(subject, evaluation),
        "cautions": cautions(evaluation, without_place(config.judge.main), material.split),
        "metrics": text.metric_rows(evaluation) if evaluation else [],
        "sets": text.set_tables(evaluation) if evaluation else [],
        "groups": text.group_tables(evaluation) if evaluation else [],
        "tiles": text.tiles(evaluation) if evaluation else [],
        "benchmarks": list(benchmark_lines(evaluation)) if evaluation else [],
        "divergence": _divergence(evaluation),
        "confidence": f"{100 * config.evaluate.confidence:g}{numbers.NBSP}%",
        "split": material.split,
        "is_trained": material.is_trained,
        "is_evaluated": evaluation is not None,
    }


def _divergence(evaluation: Mapping[str, Any] | None) -> dict[str, str] | None:
    metric = (evaluation or {}).get("paired", {}).get("kl_per_token") or {}
    if not numbers.is_number(metric.get("value")):
        return None
    low, high = numbers.nats(metric["ci_low"]), numbers.nats(metric["ci_high"])
    return {"value": numbers.nats(metric["value"]), "interval": f"{low} to {high}"}


def _figures(material: Material) -> list[Figure]:
    found: list[Figure | None] = []
    if material.risk is not None:
        found.append(risk_map(material.risk, set(material.experts)))
        if material.per_batch is not None:
            found.append(differences_per_batch(material.per_batch, material.experts))
    correlations = correlations_of(material.scores, material.selectable_layers)
    if correlations is not None:
        found.append(correlation_map(correlations))
    if material.is_trained:
        trained = material.state.figures_of("train")
        found.append(training_curve(trained.get("history") or []))
    return [figure for figure in found if figure is not None]


def _experts(material: Material, figures: Sequence[Figure]) -> dict[str, object]:
    if material.risk is None:
        return {"experts": [], "uncertainty": [], "num_selected": 0, "num_experts": 0} | {
            "num_in_figure": 0,
            "selection": {},
            "ranked_by": "",
            "is_union": False,
            "estimator": "",
            "beside": {},
        }
    beside = {name: title for name, title in BESIDE.items() if name in material.risk}
    uncertainty = [
        name
        for name in ("ci_low", "ci_high", "shrunken", "q_value")
        if name in material.risk and material.risk[name].notna().any()
    ]
    selected = set(material.experts)
    steadiness = _steadiness(material.per_batch)
    estimator = material.risk["estimator"].iloc[0] if "estimator" in material.risk else ""
    rows = []
    for record in material.risk.head(material.config.report.top_experts).to_dict("records"):
        pair = Expert(int(record["layer"]), int(record["expert"]))
        rows.append(
            {
                "name": expert_label(*pair),
                "selected": pair in selected,
                "risk_diff": numbers.signed(record["risk_diff"]),
                "interval": _interval(record, pair in selected),
                "shrunken": numbers.signed(record.get("shrunken")),
                "q_value": numbers.p_value(record.get("q_value")),
                "unsafe": numbers.percent(record["a_unsafe_n"]),
                "safe": numbers.percent(record["a_safe_n"]),
                "batches": steadiness.get(pair, numbers.MISSING),
                **{name: numbers.signed(record[name]) for name in beside},
            }
        )
    return {
        "experts": rows,
        "uncertainty": uncertainty,
        "beside": beside,
        "estimator": numbers.words(str(estimator)) if uncertainty else "",
        "num_selected": len(selected),
        "num_experts": len(material.risk),
        "num_in_figure": min(len(selected), MAX_EXPERTS_SHOWN),
        "selection": dict(material.selection.rule) if material.selection is not None else {},
        "ranked_by": _ranked_by(material),
        "is_union": material.config.train.experts == "union",
    }


def _interval(record: Mapping[Hashable, Any], is_selected: bool) -> str:
    """The 95 % interval; that of a selected expert allows for its having been selected."""
    name = "fcr" if is_selected and "fcr_low" in record else "ci"
    ends = [record.get(f"{name}_{end}") for end in ("low", "high")]
    if not all(map(numbers.is_number, ends)):
        return numbers.MISSING
    return " to ".join(map(numbers.signed, ends))


def _ranked_by(material: Material) -> str:
    """By which score, where it is not the risk difference."""
    rule = {} if material.selection is None else material.selection.rule
    name = str(rule.get("rank_by", RISK_DIFF))
    return "" if name == RISK_DIFF else f", ranked by {title_of(name).lower()}"


def _steadiness(per_batch: pd.DataFrame | None) -> dict[Expert, str]:
    """For each expert, in how many of its batches the difference is above zero."""
    if per_batch is None or per_batch.empty:
        return {}
    groups = per_batch.assign(above=per_batch["risk_diff"] > 0).groupby(["layer", "expert"])[
        "above"
    ]
    counts = groups.agg(["sum", "size"]).reset_index()
    return {
        Expert(int(layer), int(expert)): f"{int(above)} of {int(size)}"
        for layer, expert, above, size in counts.itertuples(index=False)
    }


def _trust(material: Material) -> dict[str, object]:
    """What stands beside a selection, and what is known of switching it off."""
    confounded: Counter[str] = Counter()
    if material.risk is not None and "confounded_by" in material.risk:
        selected = set(material.experts)
        for row in material.risk[["layer", "expert", "confounded_by"]].itertuples(index=False):
            if (row[0], row[1]) in selected:
                confounded.update(name for name in str(row[2]).split(" and ") if name)
    found = trust_rows(
        material.state.figures_of("identify"),
        dict(sorted(confounded.items())),
        material.config.train.experts == "union",
    )
    return {
        "trust": found if material.risk is not None else [],
        "ablations": ablation_tables(material.ablation),
        "num_possible_sets": possible_sets(material.ablation),
    }


# ---- prompts and replies ------------------------------------------------------------------------------
