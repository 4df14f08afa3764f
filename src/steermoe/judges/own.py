"""Judges of the user's own: a callable that is given replies and says of each what it thinks."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from steermoe.contracts import check_takes, made_of
from steermoe.errors import ConfigError, JudgeError, on_one_line
from steermoe.judges.keyword import unjudgeable
from steermoe.records import Exchange, Judgement, Verdict

_MAY_SAY = f"a Judgement or one of {', '.join(verdict.value for verdict in Verdict)}"


class OwnJudge:
    """A user's callable, called with a batch of exchanges, whose answers are checked.

    Replies that say nothing, or were cut inside their reasoning, are `unscored` before it is asked.

    Attributes:
        name: `package.module:callable`.
        version: The callable's own `version` where it has one, otherwise a hash of its source.
        ask: The callable.
    """

    def __init__(self, name: str, judge: Callable[[Sequence[Exchange]], Any]) -> None:
        self.name = name
        self.version = str(getattr(judge, "version", "")) or _hash_of(judge)
        self.ask = judge

    def judge(self, exchanges: Sequence[Exchange]) -> list[Judgement]:
        """Judge a batch of replies.

        Raises:
            JudgeError: The callable raises, or answers anything but one verdict or judgement for each reply.
        """
        judged = [unjudgeable(exchange.answer) for exchange in exchanges]
        asked = [e for e, known in zip(exchanges, judged, strict=True) if known is None]
        answers = iter(self._ask(asked) if asked else [])
        return [known if known is not None else next(answers) for known in judged]

    def _ask(self, exchanges: Sequence[Exchange]) -> list[Judgement]:
        try:
            said = self.ask(exchanges)
        except Exception as error:  # the user's code may fail in any way
            raise JudgeError(
                f"the judge {self.name} failed on {len(exchanges)} replies ({type(error).__name__}: "
                f"{on_one_line(error)}); mend it, or name another with judge.main"
            ) from error
        try:
            answers = list(said) if not isinstance(said, str) else None
        except TypeError:
            answers = None
        if answers is None or len(answers) != len(exchanges):
            got = f"{len(answers)} answers" if answers is not None else type(said).__name__
            raise JudgeError(
                f"the judge {self.name} must answer a list of one judgement for each reply: "
                f"{got} for {len(exchanges)} replies"
            )
        return [self._checked(answer, place) for place, answer in enumerate(answers)]

    def _checked(self, answer: Any, place: int) -> Judgement:
        if isinstance(answer, str):
            try:
                return Judgement(Verdict(answer))
            except ValueError:
                pass
        elif isinstance(answer, Judgement):
            score = answer.score
            if not isinstance(answer.verdict, Verdict):
                raise JudgeError(
                    f"the judge {self.name} answers verdict {answer.verdict!r} for reply {place}: it must be one of "
                    f"{', '.join(Verdict)}"
                )
            if score is not None and not (_is_number(score) and 0 <= score <= 1):
                raise JudgeError(
                    f"the judge {self.name} answers score {score!r} for reply {place}: it must be in [0, 1] or None"
                )
            return answer
        shown = repr(answer)[:60]
        raise JudgeError(
            f"the judge {self.name} answers {shown} for reply {place}: it must be {_MAY_SAY}"
        )


def own_judge(name: str, found: Any) -> Any:
    """The judge that a user's name led to: an object or a class with a `judge` method, or a callable.

    Args:
        name: As the setting names it.
        found: What was imported.

    Raises:
        ConfigError: A class cannot be made without arguments, or it cannot be called with a list of exchanges.
    """
    found = made_of("judge", name, found)
    method = getattr(found, "judge", None)
    if method is None and not callable(found):
        raise ConfigError(f"judge.main: the judge {name} has no judge method and cannot be called")
    judge = OwnJudge(name, method if method is not None else found)
    check_takes("judge", name, judge.ask, "a list of Exchange")
    if method is not None and getattr(found, "version", None):
        judge.version = str(found.version)
    return judge


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _hash_of(judge: Any) -> str:
    """A hash of the code; of its name alone where there is no code to be had."""
    try:
        source = inspect.getsource(getattr(judge, "__func__", judge))
    except (OSError, TypeError):
        source = repr(getattr(judge, "__qualname__", type(judge).__qualname__))
    return hashlib.sha256(source.encode()).hexdigest()[:12]
