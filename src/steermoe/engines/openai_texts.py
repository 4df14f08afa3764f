"""Replies from a server that speaks OpenAI's protocol, as token ids.

A server is asked in the richest form that it knows: given the prompt's token ids, so that its template and tokenizer
have no say; then given the rendered text; then, where it only chats, given the messages. Some return the ids of what
they generated, and those are taken; the text of others is tokenised again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any

from pydantic import Field, ValidationError

from steermoe.chat import encode
from steermoe.config import Section
from steermoe.engines.chat_engine import Rendered
from steermoe.errors import ConfigError, EngineError
from steermoe.records import Sampling
from steermoe.servers.asking import HopelessError, PassingError, Patience, StopError
from steermoe.servers.client import Address, Server
from steermoe.servers.together import answers_of


class ServerArguments(Section):
    """What `collect.engine_args` may hold for a server."""

    model: str | None = None
    key_variable: str = Field("OPENAI_API_KEY", min_length=1)
    concurrency: int = Field(8, ge=1, le=256)
    timeout: float = Field(120.0, gt=0)
    max_retries: int = Field(6, ge=0)


@dataclass(frozen=True, slots=True)
class Form:
    """One form of request.

    Attributes:
        chats: Whether the server is given messages, which it renders itself.
        as_tokens: Whether it is given token ids instead of text.
        extended: Whether it is asked for more than OpenAI's protocol knows: the ids of what it generated, and not to
            sample by settings of its own.
    """

    chats: bool
    as_tokens: bool
    extended: bool


FORMS = (
    Form(chats=False, as_tokens=True, extended=True),
    Form(chats=False, as_tokens=True, extended=False),
    Form(chats=False, as_tokens=False, extended=False),
    Form(chats=True, as_tokens=False, extended=True),
    Form(chats=True, as_tokens=False, extended=False),
)
"""From the richest down."""


class ServerTexts:
    """Asks a server for replies, many at once.

    Args:
        base_url: Its address.
        engine_args: How it is asked.
        tokenizer: Of the model it is said to run.
        stop_token_ids: What ends a reply.
        chat_template_kwargs: Passed on where the server renders messages itself.

    Raises:
        ConfigError: It does not take these arguments, or the `openai` package is missing.
    """

    def __init__(
        self,
        base_url: str,
        engine_args: Mapping[str, Any],
        tokenizer: Any,
        stop_token_ids: Sequence[int],
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._arguments = arguments = server_arguments(engine_args)
        self._url = base_url
        self._server = _connection(base_url, arguments)
        self._model = arguments.model or ""
        self._tokenizer = tokenizer
        self._stops = list(stop_token_ids)
        self._template_kwargs = dict(chat_template_kwargs or {})
        self._form = 0
        self._lock = Lock()
        self.first_wait = 0.5

    def replies(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[list[int]]:
        """The token ids of a reply to each prompt, its end of turn included where it has one.

        Raises:
            EngineError: The server failed, or reads other tokens. What was answered is lost with the others of its
                group.
        """
        stop = Event()
        patience = Patience(self._arguments.max_retries, stop, self.first_wait)
        if not self._model:
            self._model = _only_model(self._server, patience, self._url)
        answers: Iterator[tuple[int, list[int] | Exception]] = answers_of(
            range(len(prompts)),
            lambda place: patience(lambda: self._ask(prompts[place], sampling, place)),
            min(self._arguments.concurrency, len(prompts)),
            stop,
        )
        replies: dict[int, list[int]] = {}
        for place, outcome in answers:
            if not isinstance(outcome, Exception):
                replies[place] = outcome
            elif isinstance(outcome, StopError | HopelessError | PassingError):
                raise EngineError(
                    f"the server at {self._url} failed: {outcome}; finished groups are kept, and the same command "
                    "goes on from there"
                )
            else:
                raise outcome
        return [replies[place] for place in range(len(prompts))]

    def _ask(self, prompt: Rendered, sampling: Sampling, place: int) -> list[int]:
        """One reply; asked for again in a plainer form where the server does not know this one."""
        while True:
            number = self._form
            form = FORMS[number]
            arguments = self._arguments_of(form, prompt, sampling, place)
            try:
                response = self._server.call(_chat if form.chats else _complete, **arguments)
            except (HopelessError, self._server.bad_request, self._server.not_found) as error:
                if not self._plainer_than(number):
                    raise StopError(
                        f"the server refuses the request: {self._server.safe(error)}"
                    ) from None
            else:
                return self._ids_of(response, form, prompt)

    def _plainer_than(self, refused: int) -> bool:
        """Take a plainer form than one that was refused; whether there is one, or another thread found one."""
        with self._lock:
            if self._form == refused and refused + 1 < len(FORMS):
                self._form += 1
                return True
            return self._form != refused

    def _arguments_of(
        self, form: Form, prompt: Rendered, sampling: Sampling, place: int
    ) -> dict[str, object]:
        """What the client's call is given."""
        arguments: dict[str, object] = {
            "model": self._model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": 1.0,
        }
        if sampling.temperature:
            arguments["seed"] = (sampling.seed * 1_000_003 + place) % 2**31
        more: dict[str, object] = {
            "return_token_ids": True,
            "stop_token_ids": self._stops,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        if form.chats:
            arguments["messages"] = [dict(message) for message in prompt.messages]
            if self._template_kwargs:
                more["chat_template_kwargs"] = self._template_kwargs
        else:
            arguments["prompt"] = prompt.token_ids if form.as_tokens else prompt.text
        return arguments | {"extra_body": more} if form.extended else arguments

    def _ids_of(self, response: Any, form: Form, prompt: Rendered) -> list[int]:
        choice = next(iter(getattr(response, "choices", None) or ()), None)
        if choice is None:
            raise PassingError("the server's answer cannot be read")
        read = getattr(response if form.chats else choice, "prompt_token_ids", None)
        if read and list(read) != prompt.token_ids:
            raise EngineError(
                f"the server at {self._url} reads a prompt of {len(read)} tokens where the model's own template and "
                f"tokenizer make {len(prompt.token_ids)}, or other ones: it has another template or tokenizer"
            )
        ids = getattr(choice, "token_ids", None)
        if ids is None:
            text = choice.message.content if form.chats else choice.text
            if not isinstance(text, str):
                raise PassingError("the server's answer cannot be read")
            ids = self._tokenised(prompt, text)
        ids = list(ids)
        ended = next((i for i, token in enumerate(ids) if token in self._stops), None)
        if ended is not None:
            return ids[: ended + 1]
        return [*ids, self._end] if choice.finish_reason == "stop" or not ids else ids

    def _tokenised(self, prompt: Rendered, text: str) -> list[int]:
        """A reply's text as token ids: those that follow the prompt's, where the two can be told apart."""
        together = encode(self._tokenizer, prompt.text + text)
        start = len(prompt.token_ids)
        if together[:start] == prompt.token_ids:
            return together[start:]
        return encode(self._tokenizer, text)

    @property
    def _end(self) -> int:
        own = self._tokenizer.eos_token_id
        return int(own) if own in self._stops else self._stops[0]


def _chat(client: Any) -> Any:
    return client.chat.completions.create


def _complete(client: Any) -> Any:
    return client.completions.create


def server_arguments(engine_args: Mapping[str, Any]) -> ServerArguments:
    """What `collect.engine_args` says of a server.

    Raises:
        ConfigError: It holds something else.
    """
    try:
        return ServerArguments(**engine_args)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"collect.engine_args.{where}: {first['msg']}; a server takes {', '.join(ServerArguments.model_fields)}"
        ) from None


def check_server(base_url: str, engine_args: Mapping[str, Any]) -> None:
    """See that the server is there, accepts the key and has the model.

    Raises:
        ConfigError: It does not take these arguments.
        EngineError: It is not there, or has several models.
    """
    arguments = server_arguments(engine_args)
    server = _connection(base_url, arguments)
    if arguments.model is None:
        _only_model(server, Patience(min(arguments.max_retries, 2), Event()), base_url)


def _connection(base_url: str, arguments: ServerArguments) -> Server:
    name = f"collect.engine = 'openai:{base_url}'"
    address = Address(
        base_url,
        arguments.key_variable,
        arguments.timeout,
        "collect.engine_args",
        "collect.engine",
    )
    return Server(name, f"the engine at {base_url}", address, "it serves no such thing (HTTP 404)")


def _only_model(server: Server, patience: Patience, base_url: str) -> str:
    """The name of the one model that a server has.

    Raises:
        EngineError: It has none or several, or does not say.
    """
    try:
        found = [model.id for model in patience(lambda: server.call(lambda c: c.models.list).data)]
    except (StopError, HopelessError, PassingError, server.bad_request, server.not_found) as error:
        raise EngineError(
            f"the server at {base_url} does not say which models it has: {server.safe(error)}; see that it runs, or "
            "set collect.engine_args.model"
        ) from None
    if len(found) != 1:
        raise EngineError(
            f"the server at {base_url} has {len(found)} models ({', '.join(found[:5])}): name one with "
            "collect.engine_args.model"
        )
    return str(found[0])
