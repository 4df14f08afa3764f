"""A score of the user's own: any callable from a `Source` to sums per response."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from steermoe.contracts import check_takes, made_of
from steermoe.errors import ConfigError, RoutingError, on_one_line
from steermoe.records import ResponseSums
from steermoe.scores.source import Source


class OwnScore:
    """Calls what the user named, and checks what it returns.

    Args:
        name: `package.module:callable`.
        function: It, or a class with a method `sums`: from a `Source` to `ResponseSums`, or to their `total` alone,
            `(N, 2, L, E)` over the tokens that are counted. Its attribute `needs` says what it needs; by default
            `counts`.

    Raises:
        ConfigError: It cannot be made, or cannot be called with a `Source`.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        made = made_of("score", name, function)
        self.needs: str = getattr(made, "needs", "counts")
        self._function: Callable[[Source], Any] = getattr(made, "sums", made)
        if not callable(self._function):
            raise ConfigError(
                f"the score {name!r} has no method sums; name a class that has one, or a callable"
            )
        check_takes("score", name, self._function, "a Source")

    def sums(self, source: Source) -> ResponseSums:
        """Its sums over the tokens of every response.

        Raises:
            RoutingError: It failed, or returned something else.
        """
        counts = source.counts
        try:
            found = self._function(source)
        except Exception as error:
            raise RoutingError(
                f"the score {self.name!r} failed with {type(error).__name__}: {on_one_line(error)}; mend the score"
            ) from error
        if not isinstance(found, ResponseSums):
            found = ResponseSums(np.asarray(found), counts.num_tokens, counts.layer_indices)
        shape = counts.active.shape
        if found.total.shape != shape or found.num_tokens.shape != shape[:2]:
            raise RoutingError(
                f"the score {self.name!r} returned sums of shape {found.total.shape} over {found.num_tokens.shape} "
                f"tokens; {shape} over {shape[:2]} is needed: one for each response, segment, layer and expert"
            )
        if not np.isfinite(found.total.astype(np.float64)).all():
            raise RoutingError(
                f"the score {self.name!r} returned numbers that are not finite; mend the score"
            )
        return found
