"""Numbers and sentences of the page."""

from __future__ import annotations

import pytest

from steermoe.config import EMBEDDED_MODEL, preset, validate
from steermoe.report.cautions import cautions
from steermoe.report.material import changed_settings
from steermoe.report.numbers import (
    duration,
    integer,
    memory,
    model_name,
    nats,
    p_value,
    percent,
    points,
    signed,
)
from steermoe.report.replies import evenly_spaced
from steermoe.report.text import Subject, headline, metric_rows, title


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (percent(0.0), "0 %"),
        (percent(1.0), "100 %"),
        (percent(1 / 12), "8.3 %"),
        (percent(0.9996), "100.0 %"),  # nearly all is not all
        (percent(float("nan")), "\N{EN DASH}"),
        (points(-0.05), "\N{MINUS SIGN}5.0 points"),
        (points(0.0), "0 points"),
        (signed(0.0), "0.000"),
        (signed(-0.00001), "0.000"),
        (signed(None), "\N{EN DASH}"),
        (p_value(0.0004), "< 0.001"),
        (p_value(1.0), "1.000"),
        (nats(0.00002), "< 0.0001"),
        (nats(0.0), "0.0000"),
        (integer(12345), "12,345"),
        (duration(3725.2), "1 h 2 min 5 s"),
        (duration(60), "1 min"),
        (duration(59.94), "59.9 s"),
        (memory(3_210_000_000), "2.99 GiB"),
        (model_name("/models/own-moe/"), "own-moe"),
        (model_name("Qwen/Qwen3-30B-A3B"), "Qwen/Qwen3-30B-A3B"),
    ],
)
def test_numbers_are_printed_as_people_read_them(printed: str, expected: str) -> None:
    assert printed.replace("\N{NO-BREAK SPACE}", " ") == expected


def test_a_rate_that_falls_is_said_to_fall_and_a_baseline_to_be_one() -> None:
    subject = Subject("m", "routers", "threshold", 3, 8, ("L00_E00", 0.1), 0.05, True, 4, "test")
    side = {"n": 4, "num_unscored": 0, "ci_low": 0.0, "ci_high": 1.0}
    evaluation = {
        "base": {"refusal_rate": side | {"value": 0.5}},
        "hardened": {"refusal_rate": side | {"value": 0.25}},
        "paired": {},
    }
    said = " ".join(headline(subject, evaluation)).replace("\N{NO-BREAK SPACE}", " ")
    assert "the routers of m were trained" in said and "baseline" in said
    assert "refusal fell from 50.0 % to 25.0 %" in said
    assert (
        title(subject, evaluation).replace("\N{NO-BREAK SPACE}", " ").endswith("down from 50.0 %")
    )


def test_a_change_of_nothing_is_not_called_chance() -> None:
    none = {"value": 0.0, "ci_low": 0.0, "ci_high": 0.0, "n": 4, "num_unscored": 0, "p_value": 1.0}
    said = cautions(
        {"base": {}, "hardened": {}, "paired": {"refusal_rate": none}}, "keyword", "test"
    )
    assert len(said) == 1 and "chance" not in said[0]
    some = none | {"value": 0.25}
    said = cautions(
        {"base": {}, "hardened": {}, "paired": {"refusal_rate": some}}, "keyword", "test"
    )
    assert "could be chance (p = 1.000)" in said[0]


def test_a_metric_of_one_side_only_leaves_the_other_cells_empty() -> None:
    only = {"value": 0.5, "ci_low": 0.1, "ci_high": 0.9, "n": 4, "num_unscored": 1}
    (row,) = metric_rows({"base": {"refusal_rate": only}, "hardened": {}, "paired": {}})
    assert row["after"]["value"] == "\N{EN DASH}" and row["n"] == "4"
    assert row["num_unscored"] == "1" and row["moved"] is None


def test_examples_are_spread_over_all_prompts() -> None:
    assert evenly_spaced(list(range(12)), 3) == [0, 4, 8]
    assert evenly_spaced([1, 2], 3) == [1, 2]


def test_settings_that_differ_are_listed_and_those_of_the_preset_marked() -> None:
    epsilon = preset(EMBEDDED_MODEL)["train"]["arguments"]["adam_epsilon"]
    arguments = {"save_steps": 10, "adam_epsilon": epsilon, "weight_decay": 0.5}
    config = validate(
        {"seed": 3, "collect": {"generation_batch_size": 192}, "train": {"arguments": arguments}}
    )
    rows = {row["key"]: row for row in changed_settings(config)}
    names = ["train.arguments.adam_epsilon", "train.arguments.weight_decay"]
    assert list(rows) == ["seed", "collect.generation_batch_size", *names]
    assert [rows[name]["shipped"] for name in names] == ["yes", ""]
    assert [(rows[name]["value"], rows[name]["default"]) for name in names] == [
        (str(epsilon), "empty"),
        ("0.5", "empty"),
    ]
    assert (rows["seed"]["value"], rows["seed"]["default"]) == ("3", "0")
    size = rows["collect.generation_batch_size"]
    assert (size["shipped"], rows["seed"]["shipped"]) == ("yes", "")
