"""What the settings of each step ask for, and what of them is refused before any step is run.

What knows it is imported when it is asked, so that a step that needs no model loads no torch.
"""

from __future__ import annotations

import re

from steermoe.analysis.selection import resolve_rule
from steermoe.capability.items import BUILTIN_CAPABILITY
from steermoe.config import Config
from steermoe.errors import ConfigError
from steermoe.judges.kinds import judges_named
from steermoe.processes import launched
from steermoe.reporter import silent


def asks_for_passes(config: Config) -> bool:
    """Whether a score that is asked for takes a pass over the model."""
    from steermoe.stages.scoring import passes_of

    return bool(passes_of(config))


def asks_for_controls(config: Config) -> bool:
    """Whether other experts are to be trained as well, to compare with."""
    return config.train.controls > 0


def check_controls(config: Config) -> None:
    """Refuse controls that cannot be trained as the selected experts are.

    Raises:
        ConfigError: With the setting.
    """
    from steermoe.stages import controls

    controls.check_controls(config)


def check_collect(config: Config) -> None:
    """Refuse an engine, prompt files or a model with which collecting would fail late.

    Raises:
        SteerMoEError: With what is wrong.
    """
    from steermoe.stages.collect import plan_groups, prepare_prompts
    from steermoe.stages.opening import check_engine
    from steermoe.stages.ready import check_ready

    check_engine(config)
    prompts = prepare_prompts(config, silent())
    plan_groups(prompts, config)
    check_ready(config, prompts)


def check_judge(config: Config) -> None:
    """Refuse a judge that cannot be used.

    Raises:
        SteerMoEError: As the judge says.
    """
    for judge in judges_named(config.judge):
        check = getattr(judge, "check", None)
        if check is not None:  # a server that is not there, or takes no key, is found out now
            check()


def check_identify(config: Config) -> None:
    """Refuse a rule or a score that does not exist, or that the run cannot compute.

    Raises:
        SteerMoEError: With the setting.
    """
    from steermoe.stages.scoring import check_scores

    resolve_rule(config.identify.rule)
    check_scores(config)


def asks_for_capability(config: Config) -> bool:
    """Whether the package's own questions with one right answer are to be asked."""
    return BUILTIN_CAPABILITY in config.evaluate.benchmarks


def asks_for_other_tools(config: Config) -> bool:
    """Whether a benchmark of another tool is to be run."""
    return bool(set(config.evaluate.benchmarks) - {BUILTIN_CAPABILITY})


def check_benchmarks(config: Config) -> None:
    """Refuse a benchmark whose tool or task is not there.

    Raises:
        SteerMoEError: With the setting.
    """
    from steermoe.stages import benchmarks

    benchmarks.check_benchmarks(config)


def check_train(config: Config) -> None:
    """Refuse names, targets and devices with which training would fail once a model is loaded.

    Raises:
        SteerMoEError: With the setting.
    """
    from steermoe.training.arguments import check_names
    from steermoe.training.spread import check_sharding
    from steermoe.training.targets import resolve_target

    if re.fullmatch(r"cuda:0*[1-9]\d*", config.model.device) and not config.model.device_map:
        raise ConfigError(
            f"model.device = {config.model.device!r}: training takes the first GPU that it sees; set "
            "model.device=cuda and CUDA_VISIBLE_DEVICES"
        )
    resolve_target(config.train.target_response)
    check_names(config.train)
    check_sharding(config.train, launched()[1])


def doubts_about_training(config: Config) -> list[str]:
    """What to say of settings with which training may teach nothing."""
    from steermoe.stages import doubts

    return doubts.doubts_about_training(config.train)
