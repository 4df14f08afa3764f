"""In which form a server of OpenAI's protocol wants to be asked: not all of them know all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from threading import Lock

from steermoe.judges.rubric import SCHEMA, SHORT_SCHEMA

_SCHEMAS = {"short": SHORT_SCHEMA, "schema": SCHEMA}
_FORMATS = (*_SCHEMAS, "object", "none")


@dataclass(frozen=True, slots=True)
class Form:
    """One form of request.

    Attributes:
        answer_tokens: Most tokens of the answer.
        answer_format: `short` (structured output whose reason has a bound), `schema` (the same without the bound),
            `object` (any JSON object), or `none`.
        tokens_field: Name of the limit: servers know one or both.
        temperature: Whether temperature 0 is asked for: some models take no temperature.
    """

    answer_tokens: int
    answer_format: str = "short"
    tokens_field: str = "max_completion_tokens"
    temperature: bool = True

    def arguments(self) -> Mapping[str, object]:
        """For the client's call."""
        arguments: dict[str, object] = {self.tokens_field: self.answer_tokens}
        if self.temperature:
            arguments["temperature"] = 0.0
        if self.answer_format in _SCHEMAS:
            schema = {"name": "rating", "schema": _SCHEMAS[self.answer_format], "strict": True}
            arguments["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.answer_format == "object":
            arguments["response_format"] = {"type": "json_object"}
        return arguments


class Dialect:
    """The richest form that a server has not refused, shared by all threads."""

    def __init__(self, answer_tokens: int) -> None:
        self._form = Form(answer_tokens)
        self._lock = Lock()

    @property
    def form(self) -> Form:
        """The form to ask in now."""
        with self._lock:
            return self._form

    def plainer_than(self, refused: Form, message: str) -> bool:
        """Take a plainer form than one that was refused.

        Args:
            refused: The form.
            message: What the server said: it names what it does not know, or else the format is taken to be meant.

        Returns:
            Whether there is one, or another thread has found one meanwhile.
        """
        with self._lock:
            if self._form != refused:
                return True
            if "temperature" in message and refused.temperature:
                self._form = replace(refused, temperature=False)
            elif "max_completion_tokens" in message and refused.tokens_field != "max_tokens":
                self._form = replace(refused, tokens_field="max_tokens")
            elif refused.answer_format != _FORMATS[-1]:
                step = _FORMATS.index(refused.answer_format) + 1
                self._form = replace(refused, answer_format=_FORMATS[step])
            else:
                return False
            return True
