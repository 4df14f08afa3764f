"""What a refusal row is trained towards: a text, several in turn, or a callable of the user's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from steermoe.errors import ConfigError, on_one_line
from steermoe.records import Prompt

TargetResponse = str | Sequence[str] | Callable[[Prompt], str]


def resolve_target(target: TargetResponse) -> Callable[[Prompt, int], str]:
    """Turn a target response into a function of the prompt and its position.

    Args:
        target: A text; several, which the rows take in turn; a callable of the prompt; or the name of one
            as `package.module:callable`.

    Returns:
        A function that raises `ConfigError` where a user's callable fails or returns no text.

    Raises:
        ConfigError: It is empty, or names nothing that can be called.
    """
    if isinstance(target, str) and names_callable(target):
        return _checked(_import_callable(target), f" {target!r}")
    if callable(target):
        return _checked(target, "")
    texts = [target] if isinstance(target, str) else list(target)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ConfigError(
            "train.target_response is empty: give a refusal, a list of them, or a callable"
        )
    return lambda _, position: texts[position % len(texts)]


def names_callable(text: str) -> bool:
    """Whether a target response is `package.module:callable`, and no text to be learned."""
    module, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and all(p.isidentifier() for p in module.split("."))


def _import_callable(text: str) -> Callable[[Prompt], str]:
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's module raises whatever is wrong with it
        raise ConfigError(
            f"train.target_response = {text!r} cannot be imported: {on_one_line(error)}"
        ) from error
    if not callable(found):
        raise ConfigError(f"train.target_response = {text!r} is not callable")
    return found  # type: ignore[no-any-return]  # imported by name: its type cannot be known


def _checked(function: Callable[[Prompt], str], name: str) -> Callable[[Prompt, int], str]:
    """A user's callable, whose failures and returned values are the user's errors."""

    def target(prompt: Prompt, _: int) -> str:
        try:
            text: object = function(prompt)
        except Exception as error:
            raise ConfigError(
                f"the target response callable{name} failed with {type(error).__name__}: {on_one_line(error)}; it is "
                "given the prompt record and must return a text"
            ) from error
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(
                f"the target response callable{name} returned {text!r}; it must return a text"
            )
        return text

    return target
