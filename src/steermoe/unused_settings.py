"""Settings that are set and change nothing, because of other settings of the same run.

A setting that is left at its default, or at what the embedded model's preset makes of it, is never one of them: nobody
has asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from steermoe.config import BUILTIN_PROMPTS, EMBEDDED_MODEL, Config, fields_of, load_config

Reason = Callable[[Config], str]
"""Why some settings change nothing in a run; empty where they do something."""


def settings_without_effect(config: Config) -> list[str]:
    """The settings that were set and have no effect in this run, a sentence each.

    Args:
        config: The settings of a run.

    Returns:
        `section.key = value ...: the reason`, in the order of the settings' documentation.
    """
    usual = load_config(overrides={"model": {"id": config.model.id}})
    said = []
    for key, reason in _reasons(config):
        value = setting_at(config, key)
        if value != setting_at(usual, key):
            said.append((key, f"{key} = {_shown(value)} {reason}"))
    order = [key for key, *_ in fields_of(Config)]
    return [sentence for _, sentence in sorted(said, key=lambda entry: order.index(entry[0]))]


def setting_at(config: Config, key: str) -> Any:
    """The value of a setting by its dotted name."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _reasons(config: Config) -> Iterator[tuple[str, str]]:
    """Every setting that changes nothing whatever its value, once, with the reason."""
    seen = set()
    for reason, keys in _CONDITIONS:
        why = reason(config)
        for key in keys if why else ():
            if key not in seen:
                seen.add(key)
                yield key, why


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else repr(value)


# ---- the conditions ------------------------------------------------------------------------------------


def _one_of_many_devices(config: Config) -> str:
    return "has no effect: model.device_map decides" if config.model.device_map else ""


def _no_revisions(config: Config) -> str:
    if config.model.id == EMBEDDED_MODEL:
        return "has no effect: the embedded model has one revision"
    is_path = config.model.id.startswith(("/", ".", "~"))
    return "has no effect: the model is a local directory" if is_path else ""


def _only_builtin_prompts(config: Config) -> str:
    if set(config.prompts.sources) == {BUILTIN_PROMPTS}:
        return f"has no effect: {BUILTIN_PROMPTS} has a format and splits of its own"
    return ""


def _own_rule(config: Config) -> str:
    rule = config.identify.rule
    return f"has no part in the selection: identify.rule = {rule!r} decides" if ":" in rule else ""


def _rule_ignores(*rules: str) -> Reason:
    """Why a setting that only some of the named rules go by has no part in the selection."""

    def reason(config: Config) -> str:
        if config.identify.rule in rules:
            return ""
        return (
            f"has no part in the selection: only the rules {' and '.join(rules)} go by it, and identify.rule is "
            f"{config.identify.rule!r}"
        )

    return reason


def _no_uncertainty(other: str) -> Reason:
    """Why one kind of draws is not made: the uncertainty columns need both."""

    def reason(config: Config) -> str:
        if getattr(config.identify, other):
            return ""
        return f"has no effect: identify.{other} is 0, which leaves the uncertainty columns out"

    return reason


def _no_estimates(config: Config) -> str:
    settings = config.identify
    if settings.num_subsamples or (settings.num_permutations and settings.num_bootstrap):
        return ""
    return "has no effect: uncertainty and stability are both left out"


def _baseline(config: Config) -> str:
    parameters = config.train.all_parameters
    if config.train.trains_experts:
        return ""
    return f"has no effect: train.parameters = {parameters!r} is a baseline, which keeps its whole change"


def _baseline_without_mask(config: Config) -> str:
    parameters = config.train.all_parameters
    if config.train.trains_experts or config.train.mask_scope != "off":
        return ""
    return f"has no effect: train.parameters = {parameters!r} trains no selection"


def _no_mask(config: Config) -> str:
    return "has no effect: train.mask_scope is off" if config.train.mask_scope == "off" else ""


def _no_retention(config: Config) -> str:
    return "has no effect: train.retention_weight is 0" if not config.train.retention_weight else ""


def _no_first_tokens(config: Config) -> str:
    return "has no effect: train.first_tokens is 0" if not config.train.first_tokens else ""


def _first_tokens_weigh_the_same(config: Config) -> str:
    if config.train.first_tokens_weight == 1:
        return "has no effect: these tokens weigh as much as the others (train.first_tokens_weight)"
    return ""


def _no_benchmarks(config: Config) -> str:
    return "has no effect: evaluate.benchmarks is empty" if not config.evaluate.benchmarks else ""


_CONDITIONS: tuple[tuple[Reason, tuple[str, ...]], ...] = (
    (_one_of_many_devices, ("model.device",)),
    (_no_revisions, ("model.revision",)),
    (
        _only_builtin_prompts,
        ("prompts.format", "prompts.include_failed", "prompts.split_fractions"),
    ),
    (
        _own_rule,
        (
            *("identify.threshold", "identify.top_k", "identify.rank_within"),
            *("identify.max_q_value", "identify.min_stability"),
        ),
    ),
    (_rule_ignores("fdr", "combined"), ("identify.max_q_value",)),
    (_rule_ignores("stability", "combined"), ("identify.min_stability",)),
    (_no_uncertainty("num_bootstrap"), ("identify.num_permutations",)),
    (_no_uncertainty("num_permutations"), ("identify.num_bootstrap",)),
    (_no_estimates, ("identify.estimator",)),
    (_baseline, ("train.kept_change",)),
    (_baseline_without_mask, ("train.experts",)),
    (_no_mask, ("train.mask",)),
    (_no_retention, ("train.retention_tokens", "train.benign_per_batch")),
    (_no_first_tokens, ("train.first_tokens_weight",)),
    (_first_tokens_weigh_the_same, ("train.first_tokens",)),
    (_no_benchmarks, ("evaluate.benchmark_limit",)),
)
"""What makes settings void, and which. Of two conditions for one setting the first is said."""
