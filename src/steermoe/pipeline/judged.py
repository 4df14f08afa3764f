"""Steps that judge replies, and whether the judges of a run have judged what one would have them judge."""

from __future__ import annotations

from collections.abc import Callable

from steermoe.config import Config
from steermoe.pipeline import inputs
from steermoe.pipeline.checks import check_judge
from steermoe.pipeline.step import Step, StepFunction
from steermoe.store import names
from steermoe.store.directory import RunDirectory
from steermoe.store.variants import ablated_variants, control_variants


def judging(
    name: str,
    function: StepFunction,
    *replies: inputs.Input,
    is_there: Callable[[RunDirectory, Config], bool],
    only_where: str = "",
) -> Step:
    """A step that has every judge of the run judge some replies; its verdicts go where all verdicts are."""
    return Step(
        name,
        function,
        settings=("judge",),
        reads=(inputs.JUDGES, inputs.whole_file(names.PROMPTS), *replies),
        writes=(names.VERDICTS,),
        check=check_judge,
        only_where=only_where,
        is_there=is_there,
    )


def are_controls_judged(run: RunDirectory, config: Config) -> bool:
    """Whether they have judged the replies of every control."""
    return all(is_judged(variant)(run, config) for variant in control_variants(run, names.REPLIES))


def is_judged(variant: str) -> Callable[[RunDirectory, Config], bool]:
    """Whether all judges of a run have judged a variant's replies, as a function."""

    def judged(run: RunDirectory, config: Config) -> bool:
        return all(
            run.has_verdicts(variant, judge) for judge in (config.judge.main, *config.judge.others)
        )

    return judged


def are_ablated_judged(run: RunDirectory, config: Config) -> bool:
    """Whether they have judged the replies of every ablated variant."""
    return all(is_judged(variant)(run, config) for variant in ablated_variants(run, names.REPLIES))
