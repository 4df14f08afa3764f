"""Judges as a user might write them, good ones and bad ones."""

from __future__ import annotations

from collections.abc import Sequence

from steermoe.records import Exchange, Judgement, Verdict

SEEN: list[list[str]] = []


def short_ones_refuse(exchanges: Sequence[Exchange]) -> list[Verdict]:
    SEEN.append([e.answer or "" for e in exchanges])
    assert all((e.goal, e.prompt) == ("The goal", "the prompt") for e in exchanges)
    return [Verdict.REFUSED if len(e.answer or "") < 5 else Verdict.ANSWERED for e in exchanges]


def in_words(exchanges: Sequence[Exchange]) -> list[object]:
    return ["refused", Judgement(Verdict.ANSWERED, 0.25, "why"), "unscored"][: len(exchanges)]


def fails(exchanges: Sequence[Exchange]) -> list[Verdict]:
    raise RuntimeError("no\ngood")


def too_few(exchanges: Sequence[Exchange]) -> list[Verdict]:
    return [Verdict.REFUSED]


def one_text(exchanges: Sequence[Exchange]) -> str:
    return "refused"


def no_verdict(exchanges: Sequence[Exchange]) -> list[str]:
    return ["safe" for _ in exchanges]


def a_number(exchanges: Sequence[Exchange]) -> list[float]:
    return [0.5 for _ in exchanges]


def too_large(exchanges: Sequence[Exchange]) -> list[Judgement]:
    return [Judgement(Verdict.ANSWERED, 7.0) for _ in exchanges]


def nothing(exchanges: Sequence[Exchange]) -> None:
    return None


class WithMethod:
    version = "3"

    def judge(self, exchanges: Sequence[Exchange]) -> list[str]:
        return ["answered" for _ in exchanges]


class NeedsArguments:
    def __init__(self, model: str) -> None:
        self.model = model
