"""The page's tables are what the script prints, and the shapes are those of the published models."""

from __future__ import annotations

import pytest
from benchmarks.scaling import CONFIGS, PAGE, TABLES, filled, shape_of

PUBLISHED = {
    "OLMoE-1B-7B": (6.9, 1.3),
    "Qwen3-30B-A3B": (30.5, 3.3),
    "Qwen3-235B-A22B": (235, 22),
    "gpt-oss-120b": (117, 5.7),
    "DeepSeek-V3": (671, 37),
}
"""Billions of parameters, and of those that a token uses, by the model cards. (That of gpt-oss says 5.1, without the
embedding's .6.)"""


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_has_the_published_size(name: str) -> None:
    total, active = PUBLISHED[name]
    assert shape_of(name).num_parameters / 1e9 == pytest.approx(total, rel=0.01)
    assert shape_of(name).active / 1e9 == pytest.approx(active, rel=0.05)


def test_the_tables_of_the_page_are_those_of_the_script() -> None:
    text = PAGE.read_text("utf-8")
    assert all(f"<!-- table: {name} -->" in text for name in TABLES)
    assert filled(text) == text, "python -m benchmarks.scaling --write"
