"""The requests that the routers are made of: many topics, many ways of asking, and none that is measured on."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import pytest

from near_duplicates import near_duplicates

TEXT = (files("steermoe.embedded") / "data" / "topic_prompts.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def topics() -> dict[str, list[str]]:
    """The requests of each topic, read without the reader under test."""
    _, *parts = re.split(r"^## (.+)$", TEXT, flags=re.MULTILINE)
    return {
        name: [line for line in body.splitlines() if line]
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.fixture(scope="module")
def requests(topics: dict[str, list[str]]) -> list[str]:
    return [line for lines in topics.values() for line in lines]


def test_three_hundred_requests_of_sixteen_topics_and_more(
    topics: dict[str, list[str]], requests: list[str]
) -> None:
    assert len(topics) >= 16
    assert len(requests) >= 300
    assert min(len(lines) for lines in topics.values()) >= 6
    assert all(line == " ".join(line.split()) and line.isascii() for line in requests)


def test_ways_of_asking_vary(requests: list[str]) -> None:
    """Roughly, by what can be counted: no way takes most of them, and none is rare."""
    ways = {
        "question": sum(line.endswith("?") for line in requests),
        "two sentences": sum(bool(re.search(r"[.?!] [A-Z]", line)) for line in requests),
        "no capital": sum(line[0].islower() for line in requests),
        "first person": sum(bool(re.search(r"\b(I|my|we|our)\b", line)) for line in requests),
        "please": sum(bool(re.search(r"please|kind|could you", line, re.I)) for line in requests),
    }
    for way, count in ways.items():
        assert 20 <= count <= 0.6 * len(requests), way


def test_no_two_are_near_duplicates(requests: list[str]) -> None:
    assert [(requests[i], requests[j]) for i, j in near_duplicates(requests)] == []


def test_none_is_a_near_duplicate_of_a_prompt_that_is_trained_or_measured_on(
    requests: list[str],
) -> None:
    starter = files("steermoe.prompts") / "data" / "starter.jsonl"
    prompts = [json.loads(line)["prompt"] for line in starter.read_text("utf-8").splitlines()]
    assert len(prompts) >= 1008
    near = near_duplicates(requests, prompts)
    assert [(requests[i], prompts[j]) for i, j in near] == []
