"""Sets of the evaluation that cannot be what was meant, refused before anything is run."""

from __future__ import annotations

from typing import Any

import pytest

from steermoe.config import load_config
from steermoe.errors import ConfigError


@pytest.mark.parametrize(
    ("one", "said"),
    [
        ({"name": "test", "temperature": 1.0}, "test"),
        ({"name": "a/b", "temperature": 1.0}, "name"),
        ({"name": "a@b", "temperature": 1.0}, "name"),
        ({"name": "a-without-b", "temperature": 1.0}, "-without-"),
        ({"temperature": 1.0}, "name"),
        ({"name": "plain"}, "plain"),
        ({"name": "many", "samples": 4}, "samples"),
        ({"name": "many", "samples": 4, "temperature": 0.0}, "samples"),
        ({"name": "cold", "temperature": -1.0}, "temperature"),
        ({"name": "odd", "temprature": 1.0}, "temprature"),
    ],
)
def test_a_set_that_cannot_be_meant(one: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(overrides={"evaluate": {"sets": [one]}})


def test_two_sets_of_one_name() -> None:
    sets = [{"name": "Hot", "temperature": 1.0}, {"name": "hot", "temperature": 0.5}]
    with pytest.raises(ConfigError, match="hot"):
        load_config(overrides={"evaluate": {"sets": sets}})


def test_sets_can_be_given_on_the_command_line() -> None:
    config = load_config(
        settings=['evaluate.sets=[{name = "hot", temperature = 0.7, samples = 3}]']
    )
    (one,) = config.evaluate.sets
    assert (one.name, one.temperature, one.samples) == ("hot", 0.7, 3)
    assert load_config(base=config.model_dump(mode="json")) == config


def test_replies_are_evaluated_at_the_length_of_collecting_unless_another_is_set() -> None:
    assert not load_config().evaluates_other_replies
    same = load_config(settings=["evaluate.max_new_tokens=48", "collect.max_new_tokens=48"])
    assert not same.evaluates_other_replies
    longer = load_config(settings=["evaluate.max_new_tokens=200"])
    assert longer.evaluates_other_replies and longer.evaluated_tokens == 200
