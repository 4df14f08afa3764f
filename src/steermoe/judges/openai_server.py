"""A language model behind a server that speaks OpenAI's protocol, as a judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from steermoe.config import JudgeSection
from steermoe.errors import JudgeError, JudgeStopped
from steermoe.judges import rubric
from steermoe.judges.answer_cache import AnswerCache
from steermoe.judges.dialect import Dialect
from steermoe.judges.failures import are_too_many
from steermoe.judges.keyword import unjudgeable
from steermoe.judges.request import goal_of
from steermoe.records import Exchange, Judgement, Verdict
from steermoe.servers.asking import HopelessError, Limits, PassingError, Patience, StopError
from steermoe.servers.client import Address, Server
from steermoe.servers.together import answers_of

_NONSENSE_REPEATS = 2
"""Times that an answer which is no rating is asked for again: at temperature 0 the next is often the same."""

REFUSED_TO_JUDGE = "the judge refused to judge"


class OpenAIJudge:
    """Asks a model for StrongREJECT's rubric: refusal as the verdict, the rubric's score, and its reason.

    Whatever the server does, a reply that was not rated is `unscored` and the reason says why. Ratings, and refusals to
    rate, are kept by the hash of what was asked, so nothing is asked twice.

    Args:
        model: As the server names it.
        settings: The server and how it is asked.
        answers: File that keeps the answers; None keeps them in memory.

    Raises:
        ConfigError: The `openai` package or the key is missing.
    """

    def __init__(self, model: str, settings: JudgeSection, answers: Path | None = None) -> None:
        self.name = f"openai:{model}"
        self.version = version_of_server(settings)
        self._model = model
        self._settings = settings
        self._server = Server(
            f"judge.main = {self.name!r}",
            self.name,
            Address(
                settings.base_url,
                settings.key_variable,
                settings.timeout,
                "judge",
                "judge.base_url",
            ),
            f"the server knows no model {model!r} (HTTP 404): check judge.main and judge.base_url",
        )
        self._dialect = Dialect(settings.answer_tokens)
        self._cache = AnswerCache(answers)
        self.first_wait = 0.5

    def judge(self, exchanges: Sequence[Exchange]) -> list[Judgement]:
        """Judge replies, many at once.

        The limits of `judge.max_requests` and `judge.max_tokens`, and the share of failures, are those of one call:
        give it all replies together.

        Raises:
            JudgeStopped: It failed on more than a tenth of the replies (a single failure among fewer than ten is let
                pass), a limit is used up, or the server refuses every request. What was answered is kept.
        """
        judged: dict[int, Judgement] = {}
        to_ask: dict[str, list[int]] = {}
        for i, exchange in enumerate(exchanges):
            known = unjudgeable(exchange.answer)
            if known is not None:
                judged[i] = known
            else:
                to_ask.setdefault(self._hash(exchange), []).append(i)
        call = _Call(self, self._settings, len(exchanges))
        for key, places in to_ask.items():
            kept = self._cache.get(key)
            if kept is not None:
                call.note(judged, places, self._kept_judgement(kept))
        rest = {key: places for key, places in to_ask.items() if places[0] not in judged}
        call.check_failures(judged)
        call.ask_all({key: (exchanges[places[0]], places) for key, places in rest.items()}, judged)
        return [judged[i] for i in range(len(exchanges))]

    def check(self) -> None:
        """See that the server is there, accepts the key, knows the model and rates, with one question that is not kept.

        Raises:
            JudgeError: It does not.
        """
        messages = ({"role": "user", "content": "Say hello."},)
        hello = Exchange("check", "check", "Say hello.", messages, "", "Hello!", "Hello!")
        patience = Patience(min(self._settings.max_retries, 2), Event(), self.first_wait)
        try:
            rubric.rating(patience(lambda: self._ask(hello, Limits(None, None))))
        except (PassingError, HopelessError, StopError, rubric.NonsenseError) as error:
            raise JudgeError(
                f"the judge {self.name} at {self._server.base_url} does not answer as a judge: {error}; check "
                "judge.main, judge.base_url and the server"
            ) from None
        except rubric.RefusedError:
            raise JudgeError(
                f"the judge {self.name} refuses to rate even a greeting: name another"
            ) from None

    def _hash(self, exchange: Exchange) -> str:
        asked = [
            rubric.VERSION,
            self._server.base_url,
            self._model,
            self._settings.answer_tokens,
            goal_of(exchange),
            exchange.answer,
        ]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _kept_judgement(self, kept: Mapping[str, Any]) -> Judgement:
        if kept.get("refused_to_judge"):
            return Judgement(Verdict.UNSCORED, reason=REFUSED_TO_JUDGE)
        return rubric.rating(str(kept.get("text", "")))

    def rate(self, key: str, exchange: Exchange, limits: Limits, patience: Patience) -> Judgement:
        """Ask about one reply until there is a rating, and keep it."""
        problem = ""
        for _ in range(1 + min(_NONSENSE_REPEATS, self._settings.max_retries)):
            try:
                text = patience(lambda: self._ask(exchange, limits))
                judgement = rubric.rating(text)
            except (PassingError, HopelessError) as error:
                return Judgement(Verdict.UNSCORED, reason=str(error))
            except rubric.RefusedError:
                self._cache.put(key, {"refused_to_judge": True})
                return Judgement(Verdict.UNSCORED, reason=REFUSED_TO_JUDGE)
            except rubric.NonsenseError as error:
                problem = str(error)
                continue
            self._cache.put(key, {"text": text, "model": self._model})
            return judgement
        return Judgement(Verdict.UNSCORED, reason=problem)

    def _ask(self, exchange: Exchange, limits: Limits) -> str:
        """The text of one answer; sent again in a plainer form where the server does not know this one."""
        messages: Any = rubric.question(goal_of(exchange), exchange.answer or "")
        while True:
            form = self._dialect.form
            limits.take_request()
            try:
                response = self._server.call(
                    lambda client: client.chat.completions.create,
                    model=self._model,
                    messages=messages,
                    **form.arguments(),
                )
            except self._server.bad_request as error:
                if _is_filtered(error):
                    raise rubric.RefusedError from None
                said = self._server.safe(error)
                too_long = "context" in said and "length" in said
                if too_long or not self._dialect.plainer_than(form, said):
                    raise HopelessError(f"the server refuses the request: {said}") from None
            except self._server.not_found as error:
                raise self._server.understood(error) from None
            else:
                return self._text_of(response, limits)

    def _text_of(self, response: Any, limits: Limits) -> str:
        usage = getattr(response, "usage", None)
        total = getattr(usage, "total_tokens", None)
        limits.add_tokens(total if isinstance(total, int) else 0)
        choices = getattr(response, "choices", None) or []
        message = getattr(choices[0], "message", None) if choices else None
        if message is None:
            raise PassingError("the server's answer cannot be read")
        if getattr(message, "refusal", None) or choices[0].finish_reason == "content_filter":
            raise rubric.RefusedError
        return message.content if isinstance(message.content, str) else ""


class _Call:
    """One call of a judge: its threads, its limits, its failures."""

    def __init__(self, judge: OpenAIJudge, settings: JudgeSection, num_replies: int) -> None:
        self._judge = judge
        self._num_replies = num_replies
        self._limits = Limits(settings.max_requests, settings.max_tokens)
        self._stop = Event()
        self._patience = Patience(settings.max_retries, self._stop, judge.first_wait)
        self._concurrency = settings.concurrency
        self._num_failed = 0
        self._first_failure = ""

    def note(self, judged: dict[int, Judgement], places: Sequence[int], said: Judgement) -> None:
        """Enter what was said of a reply, wherever it stands."""
        for place in places:
            judged[place] = said
        if said.verdict is Verdict.UNSCORED:
            self._num_failed += len(places)
            self._first_failure = self._first_failure or said.reason

    def check_failures(self, judged: Mapping[int, Judgement]) -> None:
        """Stop where there are too many failures."""
        if are_too_many(self._num_failed, self._num_replies):
            raise self._stopped(
                f"failed on {self._num_failed} of {self._num_replies} replies, more than a tenth "
                f"(the first: {self._first_failure})",
                judged,
            )

    def ask_all(
        self, asked: Mapping[str, tuple[Exchange, list[int]]], judged: dict[int, Judgement]
    ) -> None:
        """Rate every reply that is asked about, many at once; where it stops, what is under way ends and is kept."""
        why, broken = "", None
        answers = answers_of(
            asked,
            lambda key: self._judge.rate(key, asked[key][0], self._limits, self._patience),
            min(self._concurrency, len(asked)),
            self._stop,
        )
        for key, outcome in answers:
            if isinstance(outcome, StopError):
                why = why or str(outcome)
            elif isinstance(outcome, Exception):
                broken = broken or outcome
            else:
                self.note(judged, asked[key][1], outcome)
            if why or broken or are_too_many(self._num_failed, self._num_replies):
                self._stop.set()
        if broken is not None:
            raise broken
        self.check_failures(judged)
        if why:
            raise self._stopped(why, judged)

    def _stopped(self, why: str, judged: Mapping[int, Judgement]) -> JudgeStopped:
        num_judged = sum(said.verdict is not Verdict.UNSCORED for said in judged.values())
        return JudgeStopped(
            f"the judge {self._judge.name} stopped after {num_judged} of {self._num_replies} replies: {why}; what it "
            "answered is kept, and the same command goes on from there",
            self._num_replies,
            num_judged,
            self._num_failed,
        )


def version_of_server(settings: JudgeSection) -> str:
    """Changes with the rubric, and with the server: another may have another model of the same name."""
    said = json.dumps([rubric.VERSION, settings.base_url])
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def _is_filtered(error: Any) -> bool:
    """Whether a server would not show the material to the model."""
    return "content_filter" in (getattr(error, "code", None) or "") or "content_filter" in str(
        error
    )
