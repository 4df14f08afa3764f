"""Which judges there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from steermoe.config import JudgeSection
from steermoe.contracts import Judge, Kind, named
from steermoe.errors import ConfigError
from steermoe.judges.keyword import KeywordJudge
from steermoe.records import Exchange, Judgement, Verdict


def judge_named(name: str, settings: JudgeSection) -> Judge:
    """The judge of that name, ready to judge.

    Raises:
        ConfigError: There is none.
    """
    kind = Kind("judge", "judge.main", {"keyword": lambda _: KeywordJudge()})
    found = named(kind, name)
    return found if isinstance(found, KeywordJudge) else OwnJudge(name, found)


class OwnJudge:
    """A judge of the user's own: a callable from a batch of exchanges to one verdict or judgement each.

    Args:
        name: Where it is, as `package.module:callable`.
        judge: The callable.
    """

    def __init__(self, name: str, judge: Callable[[Sequence[Exchange]], Sequence[Any]]) -> None:
        self.name = name
        self.version = str(getattr(judge, "version", ""))
        self._judge = judge

    def judge(self, exchanges: Sequence[Exchange]) -> list[Judgement]:
        """Ask the callable, and check what it says.

        Raises:
            ConfigError: It failed, or did not say one verdict for each reply.
        """
        try:
            said = list(self._judge(exchanges))
        except Exception as error:
            raise ConfigError(
                f"the judge {self.name!r} failed with {type(error).__name__}: {error}; mend the judge"
            ) from error
        if len(said) != len(exchanges):
            raise ConfigError(
                f"the judge {self.name!r} gave {len(said)} judgements for {len(exchanges)} replies; give one each"
            )
        return [self._checked(item) for item in said]

    def _checked(self, item: Any) -> Judgement:
        if isinstance(item, Judgement):
            return item
        try:
            return Judgement(Verdict(str(item)))
        except ValueError:
            raise ConfigError(
                f"the judge {self.name!r} said {item!r}; say refused, answered or unscored, or return a Judgement"
            ) from None
