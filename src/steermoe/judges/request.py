"""What was asked for, as a judge is shown it."""

from __future__ import annotations

from steermoe.records import Exchange


def goal_of(exchange: Exchange) -> str:
    """What was asked for: the goal, or the last turn of the user's where there is none."""
    return exchange.goal if exchange.goal.strip() else last_request(exchange)


def last_request(exchange: Exchange) -> str:
    """The last turn of the user's: a jailbreak with all its wrapping."""
    asked = [turn["content"] for turn in exchange.messages if turn.get("role") == "user"]
    return asked[-1] if asked else exchange.prompt
