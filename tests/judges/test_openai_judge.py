"""A language model behind a real HTTP server on this machine, which fails in every way that real ones do."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from benchmarks.faulty_server import FAULTS, KEY, FaultyServer, expected, reply_text

from steermoe.config import JudgeSection
from steermoe.errors import ConfigError, JudgeError, JudgeStopped
from steermoe.judges.openai_server import REFUSED_TO_JUDGE, OpenAIJudge
from steermoe.records import Exchange, Judgement, Verdict

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def exchange(number: int, variant: str = "base") -> Exchange:
    reply = reply_text(number)
    messages = ({"role": "user", "content": "Say something."},)
    return Exchange(variant, f"p{number}", "Say something.", messages, "", reply, reply)


def judge_of(server: FaultyServer, answers: Path | None = None, **settings: Any) -> OpenAIJudge:
    given = {"base_url": server.address, "timeout": 0.5, "concurrency": 8, **settings}
    judge = OpenAIJudge("rater", JudgeSection(**given), answers)
    judge.first_wait = 0.01
    return judge


def faults_of(number: int) -> list[str]:
    """Nought to three faults for each reply, all kinds equally often; 4 % of replies are never rated."""
    if number % 50 == 7:
        return ["refuse*"]
    if number % 50 == 23:
        return ["wrong-json*"]
    draw = hashlib.sha256(str(number).encode()).digest()
    passing = [FAULTS[byte % len(FAULTS)] for byte in draw[1 : 1 + draw[0] % 4]]
    nonsense = [
        f for f in passing if f in ("cut-json", "wrong-json", "wrong-values", "prose", "empty")
    ]
    for extra in nonsense[2:]:
        passing.remove(extra)
    return passing


def test_200_replies_survive_every_fault_and_none_is_guessed(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    exchanges = [exchange(number) for number in range(200)]
    with FaultyServer(faults_of, slow=1.2) as server:
        judged = judge_of(server, answers).judge(exchanges)
        done = Counter(deed for _, deed in server.requests)
    assert set(done) == {*FAULTS, "refuse", "rate"}, "every fault has happened"
    for number, judgement in enumerate(judged):
        if number % 50 == 7:
            assert judgement == Judgement(Verdict.UNSCORED, reason=REFUSED_TO_JUDGE)
        elif number % 50 == 23:
            assert judgement.verdict is Verdict.UNSCORED and judgement.score is None
            assert judgement.reason == "the judge's answer has refused = nothing, not true or false"
        else:
            assert judgement == expected(number)
    assert len(answers.read_text("utf-8").splitlines()) == 196, "all but the four without a rating"
    assert server.keys == {KEY}
    assert KEY not in answers.read_text("utf-8")


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    exchanges = [exchange(number) for number in (1, 2, 7)]
    with FaultyServer(lambda n: ["refuse*"] if n == 7 else []) as server:
        first = judge_of(server, answers).judge(exchanges)
        assert len(server.requests) == 3
        assert judge_of(server, answers).judge(exchanges) == first
        assert len(server.requests) == 3
        # The same reply of another variant is the same question, and another model is another.
        judge_of(server, answers).judge([exchange(1, "hardened"), exchange(1), exchange(4)])
        assert [number for number, _ in server.requests[3:]] == [4]
        OpenAIJudge("another", JudgeSection(base_url=server.address), answers).judge([exchange(1)])
        assert [number for number, _ in server.requests[4:]] == [1]


def test_a_line_that_a_killed_process_was_writing_is_asked_again(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    exchanges = [exchange(number) for number in (1, 2)]
    with FaultyServer() as server:
        judge_of(server, answers, concurrency=1).judge(exchanges)
        whole = answers.read_bytes()
        answers.write_bytes(whole[:-15])
        judged = judge_of(server, answers).judge([*exchanges, exchange(4)])
        assert judged == [expected(1), expected(2), expected(4)]
        assert sorted(number for number, _ in server.requests[2:]) == [2, 4]
        assert judge_of(server, answers).judge(exchanges) == judged[:2]
        assert len(server.requests) == 4


@pytest.mark.parametrize("deed", ["rate", "fenced", "thinking"])
def test_a_rating_is_read_in_whatever_it_is_wrapped(deed: str) -> None:
    with FaultyServer(lambda n: [deed]) as server:
        assert judge_of(server).judge([exchange(4)]) == [expected(4)]


@pytest.mark.parametrize(
    ("refused", "sent"),
    [
        ((), {"max_completion_tokens", "temperature", "json_schema", "maxLength"}),
        (("maxLength",), {"max_completion_tokens", "temperature", "json_schema"}),
        (("json_schema",), {"max_completion_tokens", "temperature", "json_object"}),
        (("json_schema", "json_object"), {"max_completion_tokens", "temperature", None}),
        (("max_completion_tokens",), {"max_tokens", "temperature", "json_schema", "maxLength"}),
        (("temperature", "json_schema"), {"max_completion_tokens", "json_object"}),
    ],
)
def test_a_server_is_asked_in_the_richest_form_that_it_knows(
    refused: tuple[str, ...], sent: set[str | None]
) -> None:
    with FaultyServer(refuses=refused) as server:
        assert judge_of(server).judge([exchange(4), exchange(5)]) == [expected(4), expected(5)]
        body = server.bodies[-1]
    shown = {
        field for field in ("max_tokens", "max_completion_tokens", "temperature") if field in body
    }
    form = body.get("response_format") or {}
    shown.add(form.get("type"))
    if '"maxLength":' in json.dumps(form):
        shown.add("maxLength")
    assert shown == sent
    assert body["messages"][0]["role"] == "system"
    assert json.loads(body["messages"][1]["content"])["request"] == "Say something."


def test_the_servers_wish_to_be_left_alone_holds_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    with FaultyServer(lambda n: ["429"], retry_after=0.4) as server:
        judge = judge_of(server, concurrency=2)
        begun = time.monotonic()
        assert judge.judge([exchange(1), exchange(2)]) == [expected(1), expected(2)]
        assert time.monotonic() - begun >= 0.4, (
            "a floor: it waits at least as long as it was asked to"
        )
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("500", "the server failed (HTTP 500), 3 times"),
        ("429", "the server failed (HTTP 429), 3 times"),
        ("slow", "no answer within judge.timeout = 0.5 s, 3 times"),
        ("drop", "the connection failed, 3 times"),
        ("cut-json", "the judge's answer is half a JSON object"),
        ("wrong-values", "the judge's answer has convincing = 9, not a whole number from 1 to 5"),
        ("prose", "the judge's answer has no JSON object"),
        ("empty", "the judge's answer is empty"),
        ("refuse", REFUSED_TO_JUDGE),
        ("refuse-text", REFUSED_TO_JUDGE),
        ("filter", REFUSED_TO_JUDGE),
        ("422", "the server refuses the request (HTTP 422)"),
    ],
)
def test_a_reply_that_is_not_rated_is_unscored_and_says_why(deed: str, reason: str) -> None:
    with FaultyServer(lambda n: [f"{deed}*"], slow=1.0) as server:
        judged = judge_of(server, max_retries=2).judge([exchange(1)])
    assert judged == [Judgement(Verdict.UNSCORED, None, reason)]


def test_a_judge_that_fails_on_more_than_a_tenth_stops_and_keeps_what_it_has(
    tmp_path: Path,
) -> None:
    answers = tmp_path / "answers.jsonl"
    exchanges = [exchange(number) for number in range(40)]
    broken = [True]
    with FaultyServer(lambda n: ["500*"] if broken[0] and n % 4 == 3 else []) as server:
        judge = judge_of(server, answers, max_retries=1, concurrency=1)
        with pytest.raises(JudgeStopped) as caught:
            judge.judge(exchanges)
        error = caught.value
        assert "failed on 5 of 40 replies, more than a tenth" in str(error)
        assert "HTTP 500" in str(error) and KEY not in str(error) and "\n" not in str(error)
        assert (error.num_replies, error.num_failed) == (40, 5)
        assert error.num_judged >= 15, "the thread may be a reply ahead"
        kept = len(answers.read_text("utf-8").splitlines())
        assert kept == error.num_judged
        broken[0] = False
        before = len(server.requests)
        assert judge_of(server, answers).judge(exchanges) == [expected(n) for n in range(40)]
        assert len(server.requests) - before == 40 - kept


@pytest.mark.parametrize(("limit", "asked"), [({"max_requests": 5}, 5), ({"max_tokens": 500}, 5)])
def test_a_limit_stops_the_judge(tmp_path: Path, limit: dict[str, int], asked: int) -> None:
    exchanges = [exchange(number) for number in range(12)]
    with FaultyServer() as server:
        judge = judge_of(server, tmp_path / "answers.jsonl", concurrency=1, **limit)
        with pytest.raises(JudgeStopped, match=f"{next(iter(limit))} = .* is used up") as caught:
            judge.judge(exchanges)
        assert caught.value.num_judged == asked == len(server.requests)
        with pytest.raises(JudgeStopped):
            judge.judge(exchanges)
        assert judge.judge(exchanges) == [expected(n) for n in range(12)]
        assert len(server.requests) == 12


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "does not accept the key of OPENAI_API_KEY"), (404, "knows no model 'rater'")],
)
def test_a_server_that_refuses_all_requests_is_asked_once(status: int, words: str) -> None:
    with FaultyServer(status=status) as server:
        judge = judge_of(server, concurrency=1)
        with pytest.raises(JudgeStopped, match=words) as caught:
            judge.judge([exchange(n) for n in range(20)])
        with pytest.raises(JudgeError, match=words) as checked:
            judge.check()
        assert len(server.requests) == 2
    for error in (caught.value, checked.value):
        assert KEY not in str(error) and "\n" not in str(error)


def test_checking_asks_one_question_that_is_not_kept(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    with FaultyServer() as server:
        judge_of(server, answers).check()
        assert [number for number, _ in server.requests] == [-1]
        address = server.address
    assert not answers.exists()
    gone = JudgeSection(base_url=address, max_retries=0)
    with pytest.raises(JudgeError, match="does not answer as a judge: the connection failed"):
        OpenAIJudge("rater", gone).check()


def test_without_a_key_only_a_server_of_ones_own_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="environment variable OPENAI_API_KEY"):
        OpenAIJudge("rater", JudgeSection())
    with FaultyServer() as server:
        assert judge_of(server).judge([exchange(1)]) == [expected(1)]
        assert server.keys == {"none"}


def test_replies_with_nothing_to_rate_are_not_asked_about() -> None:
    empty = Exchange("base", "p", "g", (), "", "", "")
    cut = Exchange("base", "p", "g", (), "", "<think>", None)
    with FaultyServer() as server:
        judged = judge_of(server).judge([empty, exchange(1), cut])
        assert [j.verdict for j in judged] == [
            Verdict.UNSCORED,
            expected(1).verdict,
            Verdict.UNSCORED,
        ]
        assert [number for number, _ in server.requests] == [1]


def test_an_interrupt_does_not_wait_for_answers(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import os
    import signal
    import threading
    import time

    # A shell may have told its background jobs to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    answers = tmp_path / "answers.jsonl"
    with FaultyServer(lambda n: ["slow*"] if n else [], slow=20) as server:
        judge = judge_of(server, answers, timeout=60, concurrency=3)

        def interrupt() -> None:
            while len(server.requests) < 4:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            judge.judge([exchange(n) for n in range(9)])
        assert len(server.requests) == 4, "nothing new is asked"
    assert len(answers.read_text("utf-8").splitlines()) == 1, "what was answered is kept"
