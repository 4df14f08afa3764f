"""A server of OpenAI's protocol that replies with a small model of this process, and fails as real ones do."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

from benchmarks.faulty_server import QuietServer

from steermoe.chat import encode
from steermoe.engines.transformers import TransformersEngine
from steermoe.records import Sampling

EXTENSIONS = ("return_token_ids", "stop_token_ids", "top_k", "min_p", "repetition_penalty")

Plan = Callable[[int], str]
"""From the number of a request to what is done with it: `reply`, a status, `drop`, `slow`, `html`."""


class ModelServer:
    """The server, running in threads between `with` and its end.

    Args:
        engine: The model, its tokenizer and its template: those of the server.
        knows: What it knows of `tokens` (prompts as token ids), `completions` and `extensions`.
        plan: What happens to each request.
        models: What it says it serves.

    Attributes:
        done: How often each thing was done.
        bodies: The JSON of every request.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        knows: Sequence[str] = ("tokens", "completions", "extensions"),
        plan: Plan = lambda number: "reply",
        models: Sequence[str] = ("tiny",),
    ) -> None:
        # A copy: where a request is given up, its thread replies on while the caller computes with its own model.
        self.engine = TransformersEngine(copy.deepcopy(engine.model), engine.tokenizer)
        self.knows, self.plan, self.models = set(knows), plan, list(models)
        self.done: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self._number = 0
        self._lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            server_of = owner

        self._http = QuietServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """For `collect.engine`, after `openai:`."""
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def next_deed(self, body: dict[str, Any]) -> str:
        """What is done with a request; noted when it is decided."""
        with self._lock:
            deed = self.plan(self._number)
            self._number += 1
            self.done[deed] += 1
            self.bodies.append(body)
            return deed

    def reply(self, prompt: str | list[int], body: dict[str, Any]) -> list[int]:
        """The token ids of a reply, its end of turn included."""
        engine = self.engine
        ids = prompt if isinstance(prompt, list) else encode(engine.tokenizer, prompt)
        sampling = Sampling(body["max_tokens"], body["temperature"], body.get("seed") or 0)
        with self._lock:  # one model, one thread
            generated = engine._generate(*engine._pad_left([ids]), sampling)[0]
        return engine._until_stop(generated[0])


class _Handler(BaseHTTPRequestHandler):
    server_of: ModelServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [_model(i) for i in self.server_of.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            self._do(self.server_of.next_deed(body), body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _do(self, deed: str, body: dict[str, Any]) -> None:
        if deed == "slow":
            time.sleep(1.0)
        if deed == "drop":
            self.close_connection = True
        elif deed == "html":
            self._send_raw(200, b"<html>busy</html>", "text/html")
        elif deed in ("reply", "slow"):
            self._reply(body)
        else:
            self._send(int(deed), {"error": {"message": "busy"}}, {"Retry-After": "0.01"})

    def _reply(self, body: dict[str, Any]) -> None:
        owner, chats = self.server_of, self.path.endswith("/chat/completions")
        if not chats and "completions" not in owner.knows:
            self._send(404, {"detail": "Not Found"})
            return
        unknown = [name for name in EXTENSIONS if name in body]
        if "extensions" not in owner.knows and unknown:
            self._send(400, {"error": {"message": f"unknown: {unknown}"}})
            return
        if isinstance(body.get("prompt"), list) and "tokens" not in owner.knows:
            self._send(400, {"error": {"message": "prompt must be a string"}})
            return
        prompt = owner.engine.render(body["messages"]) if chats else body["prompt"]
        ids = owner.reply(prompt, body)
        ended = ids[-1] in owner.engine.stop_token_ids
        text = owner.engine.tokenizer.decode(ids, skip_special_tokens=True)
        said = {"message": {"role": "assistant", "content": text}} if chats else {"text": text}
        choice = {"index": 0, "finish_reason": "stop" if ended else "length", **said}
        answer = {"id": "1", "created": 0, "model": "tiny", "choices": [choice]}
        if body.get("return_token_ids"):
            choice["token_ids"] = ids
            read = prompt if isinstance(prompt, list) else encode(owner.engine.tokenizer, prompt)
            (answer if chats else choice)["prompt_token_ids"] = read
        self._send(200, answer | {"object": "chat.completion" if chats else "text_completion"})

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self._send_raw(status, json.dumps(body).encode(), "application/json", headers)

    def _send_raw(
        self,
        status: int,
        raw: bytes,
        kind: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "nobody"}
