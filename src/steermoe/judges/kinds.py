"""From the name of a judge in the settings to the judge.

Nothing heavy is imported before a judge that needs it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steermoe.config import JudgeSection
from steermoe.contracts import Judge, Kind, named
from steermoe.errors import ConfigError
from steermoe.judges.keyword import KeywordJudge
from steermoe.judges.own import OwnJudge, own_judge
from steermoe.records import Exchange, Verdict


def judge_kind(
    settings: JudgeSection, answers: Path | None = None, setting: str = "judge.main"
) -> Kind:
    """The judges that ship.

    Args:
        settings: How they are set up.
        answers: File in which one that asks a server keeps the answers; without it nothing is kept.
        setting: The setting that names the judge, for messages.
    """

    def keyword(argument: str) -> Judge:
        if argument:
            raise ConfigError(
                f"{setting} = 'keyword:{argument}': keyword takes nothing after a colon"
            )
        return KeywordJudge()

    def classifier(argument: str) -> Judge:
        from steermoe.judges.classifier import ClassifierJudge

        return ClassifierJudge(_needed("classifier:ID", argument, setting), settings)

    def guard(argument: str) -> Judge:
        from steermoe.judges.guard import GuardJudge

        return GuardJudge(_needed("guard:ID", argument, setting), settings)

    def openai(argument: str) -> Judge:
        from steermoe.judges.openai_server import OpenAIJudge

        return OpenAIJudge(_needed("openai:MODEL", argument, setting), settings, answers)

    makers = {"keyword": keyword, "classifier": classifier, "guard": guard, "openai": openai}
    return Kind("judge", setting, makers)


def judge_named(
    name: str, settings: JudgeSection, answers: Path | None = None, setting: str = "judge.main"
) -> Judge:
    """The judge of that name, ready to judge.

    Args:
        name: `keyword`, `classifier:ID`, `guard:ID`, `openai:MODEL` or `package.module:callable`.
        settings: How it is set up.
        answers: File in which a judge that asks a server keeps the answers.
        setting: The setting that names it, for messages.

    Returns:
        The judge. A model's config and tokenizer are read, and a server's settings checked, before this returns;
        weights are loaded when the first reply is judged.

    Raises:
        ConfigError: There is none of that name, or it cannot be set up.
        ModelError: Its model cannot be had, or is none that it understands.
    """
    kind = judge_kind(settings, answers, setting)
    found = named(kind, name)
    if name.partition(":")[0] in kind.known:
        made: Judge = found
        return made
    judge: OwnJudge = own_judge(name, found)
    return judge


def judges_named(settings: JudgeSection, answers: Path | None = None) -> list[Judge]:
    """The main judge and then the others; a judge that is named twice is made once."""
    names = list(dict.fromkeys((settings.main, *settings.others)))
    return [
        judge_named(
            name, settings, answers, "judge.main" if name == settings.main else "judge.others"
        )
        for name in names
    ]


def judge_version(name: str, settings: JudgeSection) -> str:
    """The version of the judge of that name: without the key of a server, and without loading weights.

    Raises:
        ConfigError: There is none of that name.
        ModelError: Its model cannot be had, or is none that it understands.
    """
    head, _, model = name.partition(":")
    if head == "openai" and model:
        from steermoe.judges.openai_server import version_of_server

        return version_of_server(settings)
    return judge_named(name, settings).version


def not_refusals(judge: Judge, responses: Sequence[str], goals: Sequence[str] = ()) -> list[str]:
    """The target responses that a judge would not call a refusal: training towards those cannot be measured by it.

    Args:
        judge: The judge.
        responses: The texts.
        goals: What each would be the reply to, for judges that want to know.
    """
    asked = goals or [""] * len(responses)
    exchanges = [
        Exchange(
            "target", f"target-{i}", goal, ({"role": "user", "content": goal},), "", text, text
        )
        for i, (goal, text) in enumerate(zip(asked, responses, strict=True))
    ]
    judged = judge.judge(exchanges)
    return [
        text
        for text, judgement in zip(responses, judged, strict=True)
        if judgement.verdict is not Verdict.REFUSED
    ]


def _needed(form: str, argument: str, setting: str) -> str:
    if not argument:
        raise ConfigError(f"{setting} = {form.partition(':')[0]!r} names no model: write {form}")
    return argument
