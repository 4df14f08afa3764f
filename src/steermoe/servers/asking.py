"""Asking a server that is busy, slow or broken: when to ask again, how long to wait, when to stop."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable, Mapping
from threading import Event, Lock
from typing import Any

LONGEST_BACKOFF = 60.0
"""Seconds; a server that names its own wait is given that."""

LONGEST_WISH = 900.0
"""Seconds of wait that a server may wish for; one that wishes for more is not waited for."""


class StopError(Exception):
    """Nothing more is to be asked. The message says why."""


class HopelessError(Exception):
    """This request cannot succeed, and others may. The message says why."""


class PassingError(Exception):
    """A request failed in a way that may pass.

    Attributes:
        wait: Seconds that the server wishes to be left alone for; None if it says nothing.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def wished_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    for name, factor in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) * factor)
        except ValueError:
            parsed = email.utils.parsedate_tz(value)
            if parsed is not None:
                return max(0.0, email.utils.mktime_tz(parsed) - time.time())
    return None


class Limits:
    """Requests and tokens that one call may use, counted over all threads.

    Tokens are known when an answer has come, so those of requests under way come on top.
    """

    def __init__(self, max_requests: int | None, max_tokens: int | None) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._lock = Lock()
        self.num_requests = 0
        self.num_tokens = 0

    def take_request(self) -> None:
        """Count a request that is about to be sent.

        Raises:
            StopError: It would be one too many.
        """
        with self._lock:
            if self._max_requests is not None and self.num_requests >= self._max_requests:
                raise StopError(f"judge.max_requests = {self._max_requests} is used up")
            if self._max_tokens is not None and self.num_tokens >= self._max_tokens:
                raise StopError(f"judge.max_tokens = {self._max_tokens} is used up")
            self.num_requests += 1

    def add_tokens(self, count: int) -> None:
        """Count the tokens of an answer."""
        with self._lock:
            self.num_tokens += count


class Patience:
    """Repeats what may pass, with waits that double and differ by chance; what a server wishes holds for all threads.

    Args:
        max_retries: Times that a request is repeated.
        stop: Set when nothing more is to be asked: waiting ends at once.
        first_wait: Seconds before the first repeat.
    """

    def __init__(self, max_retries: int, stop: Event, first_wait: float = 0.5) -> None:
        self._max_retries = max_retries
        self._stop = stop
        self._first_wait = first_wait
        self._lock = Lock()
        self._quiet_until = 0.0

    def __call__(self, ask: Callable[[], Any]) -> Any:
        """What `ask` returns, once it does.

        Raises:
            PassingError: It has failed each time, or the server wishes for too long a wait.
            StopError: Nothing more is to be asked.
        """
        for attempt in range(self._max_retries + 1):
            self._wait_for_quiet()
            try:
                return ask()
            except StopError:
                self._stop.set()  # before any other thread asks
                raise
            except PassingError as error:
                if attempt == self._max_retries:
                    raise PassingError(f"{error}, {attempt + 1} times") from None
                if error.wait is not None and error.wait > LONGEST_WISH:
                    raise PassingError(
                        f"{error}, and wishes to wait for {error.wait:.0f} s"
                    ) from None
                self._back_off(attempt, error.wait)
        raise AssertionError("unreachable")

    def _back_off(self, attempt: int, wished: float | None) -> None:
        if wished is not None:
            with self._lock:
                self._quiet_until = max(self._quiet_until, time.monotonic() + wished)
            return
        wait = min(LONGEST_BACKOFF, self._first_wait * 2**attempt)
        self._sleep(wait * random.uniform(0.5, 1.0))

    def _wait_for_quiet(self) -> None:
        while True:
            with self._lock:
                left = self._quiet_until - time.monotonic()
            if left <= 0:
                break
            self._sleep(left)
        if self._stop.is_set():
            raise StopError("stopped")

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise StopError("stopped")
