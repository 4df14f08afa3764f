"""A server of OpenAI's protocol that rates replies, and fails in every way that real ones do.

It runs in this process, on this machine's own address. What it does with a request depends on the reply that is asked
about and on how often it has been asked, so that runs can be repeated and their results are known.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from steermoe.records import Judgement, Verdict

KEY = "sk-a-key-that-must-not-be-seen"

Plan = Callable[[int], Sequence[str]]
"""From a reply's number to what happens to the first requests about it; after those, it is rated. A last item that ends
in `*` happens to all that follow."""

FAULTS = (
    "429", "429-ms", "500", "503", "slow", "drop", "cut-http", "html",
    "cut-json", "wrong-json", "wrong-values", "prose", "empty",
)  # fmt: skip
"""Those that pass. `refuse`, `refuse-text`, `filter` are refusals to rate, which are final."""


def reply_text(number: int) -> str:
    """A reply that the server knows by its number."""
    return f"This is reply {number} and it says something."


def expected(number: int) -> Judgement:
    """What the server says of a reply once it rates it."""
    convincing, specific = 1 + number % 5, 1 + (number // 5) % 5
    if number % 3 == 0:
        return Judgement(Verdict.REFUSED, 0.0, f"because of {number}")
    return Judgement(Verdict.ANSWERED, (convincing + specific - 2) / 8, f"because of {number}")


def rating_text(number: int) -> str:
    """The server's rating as JSON."""
    return json.dumps(
        {
            "reason": f"because of {number}",
            "refused": number % 3 == 0,
            "convincing": 1 + number % 5,
            "specific": 1 + (number // 5) % 5,
        }
    )


class FaultyServer:
    """The server, running in threads between `with` and its end.

    Args:
        plan: What happens to the requests about each reply.
        refuses: Fields of a request, types of `response_format`, or words of its schema, that it answers with 400.
        slow: Seconds that a slow answer takes.
        retry_after: What it says in `Retry-After`, in seconds.
        status: Answers every request with this status, if given.

    Attributes:
        requests: `(number of the reply, what was done)` of every request, in order.
        bodies: The JSON of every request.
        keys: Every key that was sent.
    """

    def __init__(
        self,
        plan: Plan = lambda number: (),
        refuses: Sequence[str] = (),
        slow: float = 1.0,
        retry_after: float = 0.02,
        status: int | None = None,
    ) -> None:
        self.plan, self.refuses, self.slow = plan, tuple(refuses), slow
        self.retry_after, self.status = retry_after, status
        self.requests: list[tuple[int, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self._asked: Counter[int] = Counter()
        self._lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            server_of = owner

        self._http = QuietServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        """For `judge.base_url`."""
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> FaultyServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def next_deed(self, number: int, body: dict[str, Any], key: str) -> str:
        """What is done with a request; noted when it is decided."""
        with self._lock:
            self.bodies.append(body)
            self.keys.add(key)
            if self.status is not None:
                deed = str(self.status)
            elif any(self._has(body, field) for field in self.refuses):
                deed = "400"
            else:
                planned = list(self.plan(number))
                place = self._asked[number]
                self._asked[number] += 1
                if planned and planned[-1].endswith("*") and place >= len(planned) - 1:
                    deed = planned[-1][:-1]
                else:
                    deed = planned[place] if place < len(planned) else "rate"
            self.requests.append((number, deed))
            return deed

    @staticmethod
    def _has(body: dict[str, Any], field: str) -> bool:
        form = body.get("response_format") or {}
        return field in body or form.get("type") == field or f'"{field}":' in json.dumps(form)

    def named_refusals(self, body: dict[str, Any]) -> str:
        """What a refusing server names in its message."""
        return ", ".join(field for field in self.refuses if self._has(body, field))


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that are gone, as they are when they are killed."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over it."""


class _Handler(BaseHTTPRequestHandler):
    server_of: FaultyServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """One request for a rating."""
        length = int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(length))
        material = json.loads(body["messages"][-1]["content"])
        words = material["reply"].split()
        number = int(words[3]) if words[:3] == ["This", "is", "reply"] else -1
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        deed = self.server_of.next_deed(number, body, key)
        try:
            self._do(deed, number, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _do(self, deed: str, number: int, body: dict[str, Any]) -> None:
        contents = {
            "rate": rating_text(number),
            "fenced": f"```json\n{rating_text(number)}\n```",
            "thinking": f'<think>{{"refused": maybe}}</think>\n{rating_text(number)}',
            "cut-json": rating_text(number)[:-20],
            "wrong-json": '{"verdict": "safe"}',
            "wrong-values": '{"reason": "", "refused": false, "convincing": 9, "specific": 1}',
            "prose": "The reply is fine.",
            "empty": "",
            "refuse-text": "I'm sorry, but I can't assist with that.",
        }
        if deed == "slow":
            time.sleep(self.server_of.slow)
            deed = "rate"
        if deed in contents:
            self._answer(contents[deed])
        elif deed == "refuse":
            self._answer(None, refusal="I can't rate this.")
        elif deed == "filter":
            self._send(400, {"error": {"message": "filtered", "code": "content_filter"}})
        elif deed == "400":
            said = f"unknown field {self.server_of.named_refusals(body)}"
            self._send(400, {"error": {"message": said}})
        elif deed == "429-ms":
            self._send(429, {}, {"retry-after-ms": str(self.server_of.retry_after * 1000)})
        elif deed == "429":
            self._send(429, {}, {"Retry-After": str(self.server_of.retry_after)})
        elif deed == "drop":
            self.close_connection = True
        elif deed == "cut-http":
            self._send_raw(200, b'{"id": "1", "choi', 5000)
            self.close_connection = True
        elif deed == "html":
            self._send_raw(200, b"<html>busy</html>", 17, "text/html")
        else:
            self._send(int(deed), {"error": {"message": f"status {deed} for {KEY}"}})

    def _answer(self, content: str | None, refusal: str | None = None) -> None:
        message = {"role": "assistant", "content": content, "refusal": refusal}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
        self._send(
            200,
            {
                "id": "1", "object": "chat.completion", "created": 0, "model": "m",
                "choices": [choice], "usage": usage,
            },
        )  # fmt: skip

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        raw = json.dumps(body).encode()
        self._send_raw(status, raw, len(raw), headers=headers)

    def _send_raw(
        self,
        status: int,
        raw: bytes,
        length: int,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)
