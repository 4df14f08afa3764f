"""A server that speaks OpenAI's protocol: the connection, and what its errors mean."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from steermoe.errors import ConfigError
from steermoe.servers.asking import HopelessError, PassingError, StopError, wished_wait


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and how long it is waited for.

    Attributes:
        base_url: Its address; None is OpenAI's own.
        key_variable: Environment variable that holds the key.
        timeout: Seconds of silence after which a request counts as lost.
        section: What the settings begin with that set this up, for messages: `judge`, `collect.engine_args`.
        base_url_setting: The setting that holds the address.
    """

    base_url: str | None
    key_variable: str
    timeout: float
    section: str
    base_url_setting: str


class Server:
    """A connection, which several threads may use.

    Args:
        user: The setting that wants it, as `setting = value`, for messages.
        name: What it is called in messages.
        address: Where it is.
        not_found: What is said of HTTP 404.

    Raises:
        ConfigError: The `openai` package or the key is missing.
    """

    def __init__(self, user: str, name: str, address: Address, not_found: str) -> None:
        try:
            import openai
        except ImportError:
            raise ConfigError(
                f"{user} needs the openai package: pip install 'steermoe[judge]'"
            ) from None
        self._openai = openai
        self._name = name
        self._address = address
        self._not_found = not_found
        self._key = os.environ.get(address.key_variable, "").strip()
        if not self._key and address.base_url is None:
            raise ConfigError(
                f"{user} needs a key: set the environment variable {address.key_variable}, or "
                f"{address.base_url_setting} to a server that wants none"
            )
        self._client = openai.OpenAI(
            api_key=self._key or "none",
            base_url=address.base_url,
            timeout=address.timeout,
            max_retries=0,
        )
        self.bad_request: type[Exception] = openai.BadRequestError
        self.not_found: type[Exception] = openai.NotFoundError

    @property
    def base_url(self) -> str:
        """Its address, as the client writes it."""
        return str(self._client.base_url)

    def call(self, method: Callable[[Any], Callable[..., Any]], **arguments: Any) -> Any:
        """One request: a method of the client, with its arguments.

        Raises:
            PassingError: It failed in a way that may pass.
            HopelessError: The server refuses this request.
            StopError: Nothing more need be asked.
            Exception: `bad_request` and `not_found`, as they are: what they mean depends on what was asked.
        """
        try:
            return method(self._client)(**arguments)
        except (self.bad_request, self.not_found):
            raise
        except self._openai.APIError as error:
            raise self.understood(error) from None
        except ValueError:  # the client lets the errors of its JSON parser through
            raise PassingError("the server's answer cannot be read") from None

    def understood(self, error: Any) -> Exception:
        """What an error of the client means: it may pass, or nothing more need be asked."""
        openai, address = self._openai, self._address
        if isinstance(error, openai.APITimeoutError):
            return PassingError(
                f"no answer within {address.section}.timeout = {address.timeout:g} s"
            )
        if isinstance(error, openai.APIConnectionError):
            return PassingError("the connection failed")
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            return StopError(
                f"the server does not accept the key of {address.key_variable} for {self._name} (HTTP {status})"
            )
        if status == 404:
            return StopError(self._not_found)
        if getattr(error, "code", None) == "insufficient_quota":
            return StopError(f"the quota of the key in {address.key_variable} is used up")
        if status in (408, 409, 425, 429) or (isinstance(status, int) and status >= 500):
            return PassingError(
                f"the server failed (HTTP {status})", wished_wait(error.response.headers)
            )
        if status is None:  # the body is no JSON, or not of the protocol
            return PassingError("the server's answer cannot be read")
        return HopelessError(f"the server refuses the request (HTTP {status})")

    def safe(self, error: Exception) -> str:
        """What a server says, on one line, without the key."""
        text = " ".join(str(error).split())[:200]
        return text.replace(self._key, "...") if self._key else text
