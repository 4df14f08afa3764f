"""A hub in this process: the few endpoints that making a repository and uploading a folder need."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_test"


@dataclass
class Hub:
    """What was sent to it.

    Attributes:
        address: Where it listens.
        visibility: Of the repositories that were made, by name.
        files: Their content, by `owner/name/file`.
        asked: Every request: method and path.
    """

    address: str = ""
    visibility: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers, and knows one token."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            return

        def _answer(self) -> None:
            body = self._body()
            path = self.path.partition("?")[0]
            hub.asked.append(f"{self.command} {path}")
            is_upload = path.startswith("/blobs/")  # its address is the permission
            if not is_upload and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._send(401, {"error": "Invalid username or password."})
            if is_upload:
                hub.blobs[path.removeprefix("/blobs/")] = body
                return self._send(200, {})
            return self._send(*_answered(hub, path, body))

        def _body(self) -> bytes:
            """What was sent: of a known length, or in pieces that each say theirs."""
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            pieces = []
            while length := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)

        def _send(self, status: int, values: Any) -> None:
            content = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


def _answered(hub: Hub, path: str, body: bytes) -> tuple[int, Any]:
    if path == "/api/whoami-v2":
        return 200, {"name": "somebody", "type": "user", "orgs": []}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "somebody":
            return 403, {
                "error": "You don't have the rights to create a model under this namespace"
            }
        status = 409 if name in hub.visibility else 200
        hub.visibility.setdefault(name, asked.get("visibility", "public"))
        return status, {"url": f"{hub.address}/{name}"}
    if path.endswith("/info/lfs/objects/batch"):
        objects = [
            {**one, "actions": {"upload": {"href": f"{hub.address}/blobs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}
    name, _, what = path.removeprefix("/api/models/").partition("/")[2].partition("/")
    repository = path.removeprefix("/api/models/").removesuffix(f"/{what}")
    if what.startswith("tree/"):
        own = [n for n in hub.files if n.startswith(f"{repository}/")]
        return 200, [
            {"type": "file", "path": n.removeprefix(f"{repository}/"), "size": 1, "oid": "0"}
            for n in own
        ]
    if what.startswith("preupload/"):
        modes = {True: "lfs", False: "regular"}
        return 200, {
            "files": [
                {
                    "path": one["path"],
                    "uploadMode": modes[one["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
        }
    if what.startswith("commit/"):
        for line in body.splitlines():
            _commit(hub, repository, **json.loads(line))
        return 200, {"commitUrl": f"{hub.address}/{repository}/commit/1", "commitOid": "1" * 40}
    return 404, {"error": f"no such page: {name}"}


def _commit(hub: Hub, repository: str, key: str, value: dict[str, Any]) -> None:
    place = f"{repository}/{value.get('path')}"
    if key == "file":
        hub.files[place] = base64.b64decode(value["content"])
    elif key == "lfsFile":
        hub.files[place] = hub.blobs[value["oid"]]
    elif key == "deletedFile":
        del hub.files[place]
