"""From the name of a judge to the judge, and judges of the user's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from judges.own_judges import SEEN
from steermoe.config import JudgeSection
from steermoe.errors import ConfigError, JudgeError
from steermoe.judges.keyword import KeywordJudge
from steermoe.judges.kinds import judge_named, judge_version, judges_named, not_refusals
from steermoe.records import Exchange, Judgement, Verdict


def exchange(reply: str, answer: str | None = "same") -> Exchange:
    messages = ({"role": "user", "content": "Say something."},)
    shown = reply if answer == "same" else answer
    return Exchange("base", "p", "The goal", messages, "the prompt", reply, shown)


def own(name: str) -> str:
    return f"judges.own_judges:{name}"


def test_a_callable_of_the_users_is_given_the_batch_with_goal_and_prompt() -> None:
    SEEN.clear()
    judge = judge_named(own("short_ones_refuse"), JudgeSection())
    judged = judge.judge(
        [exchange("No."), exchange("", ""), exchange("x", None), exchange("Sure, here.")]
    )
    assert [j.verdict for j in judged] == [
        Verdict.REFUSED, Verdict.UNSCORED, Verdict.UNSCORED, Verdict.ANSWERED,
    ]  # fmt: skip
    assert SEEN == [["No.", "Sure, here."]], "one call, without the replies that say nothing"
    assert judge.name == own("short_ones_refuse") and len(judge.version) == 12


def test_it_may_answer_verdicts_in_words_and_judgements() -> None:
    judged = judge_named(own("in_words"), JudgeSection()).judge([exchange("One two")] * 3)
    assert judged == [
        Judgement(Verdict.REFUSED),
        Judgement(Verdict.ANSWERED, 0.25, "why"),
        Judgement(Verdict.UNSCORED),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fails", "failed on 2 replies (RuntimeError: no good)"),
        ("too_few", "1 answers for 2 replies"),
        ("one_text", "str for 2 replies"),
        ("nothing", "NoneType for 2 replies"),
        (
            "no_verdict",
            "answers 'safe' for reply 0: it must be a Judgement or one of refused, answered, unscored",
        ),
        ("a_number", "answers 0.5 for reply 0"),
        ("too_large", "answers score 7.0 for reply 0: it must be in [0, 1] or None"),
    ],
)
def test_one_that_fails_or_answers_anything_else_is_one_clear_line(name: str, words: str) -> None:
    judge = judge_named(own(name), JudgeSection())
    with pytest.raises(JudgeError) as caught:
        judge.judge([exchange("One two"), exchange("Three four")])
    message = str(caught.value)
    assert words in message and own(name) in message and "\n" not in message


def test_a_class_with_a_judge_method_is_made_and_its_version_kept() -> None:
    judge = judge_named(own("WithMethod"), JudgeSection())
    assert judge.judge([exchange("One two")]) == [Judgement(Verdict.ANSWERED)]
    assert judge.version == "3"
    with pytest.raises(ConfigError, match="it must need no arguments"):
        judge_named(own("NeedsArguments"), JudgeSection())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "oracle",
            "judge.main = 'oracle' is not known: use one of keyword, classifier, guard, openai",
        ),
        ("keyword:loud", "keyword takes nothing after a colon"),
        ("classifier", "names no model: write classifier:ID"),
        ("guard:", "names no model: write guard:ID"),
        ("openai", "names no model: write openai:MODEL"),
        ("no.such:thing", "cannot import the judge 'no.such:thing'"),
        (own("SEEN"), "name a callable"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_with_the_setting(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        judge_named(name, JudgeSection())
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_judges_of_a_run_are_made_in_order_and_each_once() -> None:
    settings = JudgeSection(others=(own("in_words"), "keyword", own("in_words")))
    assert [judge.name for judge in judges_named(settings)] == ["keyword", own("in_words")]
    with pytest.raises(ConfigError, match=r"judge\.others = 'oracle'"):
        judges_named(JudgeSection(others=("oracle",)))


def test_the_version_of_a_servers_judge_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    versions = {
        judge_version("openai:m", JudgeSection(base_url=address))
        for address in (None, "http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1")
    }
    assert len(versions) == 2
    assert judge_version("keyword", JudgeSection()) == KeywordJudge().version
    with pytest.raises(ConfigError, match="names no model"):
        judge_version("openai", JudgeSection())


def test_targets_that_the_judge_would_not_call_refusals_are_named() -> None:
    targets = ["I can't help with that.", "Have a nice day.", "Sorry, no."]
    assert not_refusals(KeywordJudge(), targets) == ["Have a nice day."]


def test_a_missing_client_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['openai'] = None\n"
        "from steermoe.config import JudgeSection\nfrom steermoe.judges.kinds import judge_named\n"
        "try:\n    judge_named('openai:m', JudgeSection())\nexcept Exception as error:\n"
        "    print(type(error).__name__, error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (
        result.stdout.startswith("ConfigError ")
        and "pip install 'steermoe[judge]'" in result.stdout
    )
