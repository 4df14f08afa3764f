"""Settings that are set and change nothing are named, with the reason; no others are."""

from __future__ import annotations

import pytest

from steermoe.config import Config, fields_of, load_config
from steermoe.unused_settings import _CONDITIONS, settings_without_effect


def said(*settings: str, model: str = "owner/name") -> list[str]:
    return settings_without_effect(
        load_config(settings=settings, overrides={"model": {"id": model}})
    )


def keys(*settings: str, model: str = "owner/name") -> list[str]:
    """The settings that are named."""
    return [sentence.split(" = ")[0] for sentence in said(*settings, model=model)]


@pytest.mark.parametrize("model", ["smollm2-moe", "owner/name", "./here"])
def test_nothing_is_said_of_defaults_and_of_what_ships(model: str) -> None:
    assert said(model=model) == []
    # A rule of one's own passes the threshold by, and nobody asked for one.
    assert said("identify.rule=my:rule", model=model) == []


@pytest.mark.parametrize(
    ("settings", "void"),
    [
        # A rule of one's own decides alone.
        (["identify.rule=my:rule", "identify.threshold=0.1", "identify.top_k=7"], 2),
        (["identify.threshold=0.1", "identify.top_k=7"], 0),
        # Only two rules look at q-values, two at stability; `random` replaces what `threshold` selects.
        (["identify.max_q_value=0.01"], 1),
        (["identify.max_q_value=0.01", "identify.rule=fdr"], 0),
        (["identify.max_q_value=0.01", "identify.rule=combined"], 0),
        (["identify.min_stability=0.9", "identify.rule=fdr"], 1),
        (["identify.min_stability=0.9", "identify.rule=stability"], 0),
        (["identify.threshold=0.1", "identify.rule=random"], 0),
        # Both kinds of draws are needed; the estimator also belongs to the stability column.
        (["identify.num_bootstrap=100", "identify.num_permutations=0"], 1),
        (["identify.num_bootstrap=0", "identify.num_permutations=100"], 1),
        (["identify.num_bootstrap=0", "identify.estimator=pooled"], 0),
        (
            [
                *("identify.num_bootstrap=0", "identify.num_subsamples=0"),
                "identify.estimator=pooled",
            ],
            1,
        ),
        # The baselines train no selection, unless it is masked; and keep their whole change.
        (["train.parameters=routers", "train.kept_change=0.5", "train.experts=union"], 2),
        (["train.parameters=routers", "train.experts=union", "train.mask_scope=all"], 0),
        (["train.kept_change=0.5", "train.experts=union"], 0),
        (["train.mask=batch"], 1),
        (["train.mask=batch", "train.mask_scope=unsafe"], 0),
        # What is held to the base model weighs nothing.
        (["train.retention_weight=0", "train.retention_tokens=8", "train.benign_per_batch=2"], 2),
        (["train.retention_weight=0.1", "train.retention_tokens=8"], 0),
        # Leading tokens that weigh as much as others.
        (["train.first_tokens=2"], 1),
        (["train.first_tokens=2", "train.first_tokens_weight=3"], 0),
        (["train.first_tokens=0", "train.first_tokens_weight=3"], 1),
        (["model.device=cpu", "model.device_map=auto"], 1),
        (["model.device=cpu"], 0),
        (["model.revision=main"], 0),
        (["prompts.split_fractions=[0.5, 0.25, 0.25]"], 1),
        (["prompts.split_fractions=[0.5, 0.25, 0.25]", "prompts.sources=mine.csv"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_another_setting_makes_void_is_named(settings: list[str], void: int) -> None:
    named = keys(*settings)
    assert len(named) == void
    assert set(named) <= {setting.split("=")[0] for setting in settings}


@pytest.mark.parametrize(("model", "void"), [("smollm2-moe", 1), ("./here", 1), ("owner/name", 0)])
def test_only_the_hub_has_revisions(model: str, void: int) -> None:
    assert len(keys("model.revision=main", model=model)) == void


def test_a_sentence_has_the_value_and_the_reason_once() -> None:
    assert said("train.retention_weight=0", "train.retention_tokens=7") == [
        "train.retention_tokens = 7 has no effect: train.retention_weight is 0"
    ]
    two = ["identify.rule=my:rule", "identify.max_q_value=0.01", "train.mask=batch"]
    assert said(*two) == [
        "identify.max_q_value = 0.01 has no part in the selection: identify.rule = 'my:rule' decides",
        "train.mask = 'batch' has no effect: train.mask_scope is off",
    ]


def test_every_setting_that_may_be_void_exists() -> None:
    known = {key for key, *_ in fields_of(Config)}
    named = {key for _, names in _CONDITIONS for key in names}
    assert named and named <= known
