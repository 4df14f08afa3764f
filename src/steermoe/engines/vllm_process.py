"""vLLM in a process of its own, so that all its memory is free as soon as it is no longer needed.

The two processes talk in lines of JSON: settings and prompts go to the other's standard input, replies come back on a
pipe. What vLLM prints goes to a file, which is kept where something failed.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn, TypedDict

import numpy as np

from steermoe.engines.chat_engine import Reply
from steermoe.errors import (
    ConfigError,
    EngineError,
    ModelError,
    RoutingError,
    SteerMoEError,
    on_one_line,
)
from steermoe.records import IntArray, Sampling

Arguments = Mapping[str, Any]
"""What `vllm.LLM` is made with."""

SECONDS_TO_END = 20.0
"""That vLLM is given to end by itself."""


class Asked(TypedDict):
    """A group of prompts, as the other process is asked for its replies."""

    prompts: list[list[int]]
    max_tokens: int
    temperature: float
    seed: int
    stop_token_ids: list[int]


class VLLMProcess:
    """A `vllm.LLM` in a process of its own, which ends with ours.

    Args:
        arguments: What it is made with; vLLM checks them.
        record: Whether it must tell its routes.

    Raises:
        ConfigError: vLLM refuses the arguments.
        ModelError: vLLM cannot load the model.
    """

    def __init__(self, arguments: Arguments, record: bool = True) -> None:
        self._log = Path(tempfile.mkstemp(prefix="steermoe-vllm-", suffix=".log")[1])
        self._failed = False
        read, write = os.pipe()
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "steermoe.engines.vllm_process", str(write)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                start_new_session=True,
                text=True,
            )
        os.close(write)
        self._answers = os.fdopen(read, encoding="utf-8")
        try:
            self._say({"arguments": dict(arguments), "record": record})
            self._hear()
        except BaseException:
            self._end()
            raise

    def replies(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, stop_token_ids: Sequence[int]
    ) -> list[Reply]:
        """As `VLLMGenerator.replies`.

        Raises:
            EngineError: vLLM failed, with what it said last.
        """
        self._say(
            Asked(
                prompts=[list(prompt) for prompt in prompts],
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                seed=sampling.seed,
                stop_token_ids=list(stop_token_ids),
            )
        )
        return [_unpacked(self._hear()) for _ in prompts]

    def close(self) -> None:
        """End it, and wait until its memory is free."""
        self._end()
        if not self._failed:
            self._log.unlink(missing_ok=True)

    def _say(self, what: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._died()

    def _hear(self) -> Mapping[str, Any]:
        line = self._answers.readline()
        if not line.endswith("\n"):
            self._died()
        heard: Mapping[str, Any] = json.loads(line)
        if "error" in heard:
            self._failed = True
            kinds = (ConfigError, RoutingError, ModelError)
            kind = {k.__name__: k for k in kinds}.get(heard["kind"], ModelError)
            raise kind(f"{heard['error']} (all that vLLM printed is in {self._log})")
        return heard

    def _died(self) -> NoReturn:
        self._failed = True
        self._end()
        said = [
            line for line in self._log.read_text("utf-8", "replace").splitlines() if line.strip()
        ]
        last = on_one_line(Exception(said[-1])) if said else "it printed nothing"
        raise EngineError(
            f"vLLM's process ended with {self._process.returncode}: {last} (all that it printed is in {self._log})"
        )

    def _end(self) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it may be gone already
                self._process.stdin.close()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # Workers of its own that outlived it would keep the memory; they are in its session.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._answers.close()


class PackedReply(TypedDict):
    """A reply as one line of JSON: its routed experts in base64, with their shape and type."""

    token_ids: list[int]
    routes: str
    shape: tuple[int, ...]
    dtype: str


def _packed(reply: Reply) -> PackedReply:
    routes = np.ascontiguousarray(reply.routes)
    return PackedReply(
        token_ids=reply.token_ids,
        routes=base64.b64encode(routes.tobytes()).decode("ascii"),
        shape=routes.shape,
        dtype=routes.dtype.str,
    )


def _unpacked(heard: Mapping[str, Any]) -> Reply:
    flat: IntArray = np.frombuffer(base64.b64decode(heard["routes"]), np.dtype(heard["dtype"]))
    return Reply(heard["token_ids"], flat.reshape(heard["shape"]))


# ---- the other process ---------------------------------------------------------------------------------


def _serve(out: IO[str]) -> None:
    """Make the LLM, then reply to groups of prompts until nobody asks any more."""
    asked: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_all, args=(asked,), daemon=True).start()
    try:
        settings = json.loads(asked.get())
        generator = _made(settings["arguments"], settings["record"])
        _write(out, {"ready": True})
        while True:
            group: Asked = json.loads(asked.get())
            sampling = Sampling(group["max_tokens"], group["temperature"], group["seed"])
            for reply in generator.replies(group["prompts"], sampling, group["stop_token_ids"]):
                _write(out, _packed(reply))
    except SteerMoEError as error:
        _write(out, {"error": str(error), "kind": type(error).__name__})


def _read_all(asked: queue.Queue[str]) -> None:
    """Lines as they come. Where they end, the process that asks has ended, and so does this one, whatever it does."""
    for line in sys.stdin:
        asked.put(line)
    os._exit(0)


def _made(arguments: Arguments, record: bool) -> Any:
    from steermoe.engines.vllm_arguments import check_recording
    from steermoe.engines.vllm_generator import VLLMGenerator, on_processor

    if on_processor():
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    more = check_recording(arguments, os.environ, on_processor()) if record else {}
    from vllm import LLM

    try:
        llm = LLM(**arguments, **more)
    except (ValueError, TypeError) as error:  # pydantic's are of the first kind
        raise ConfigError(
            f"vLLM refuses what it is started with (collect.engine_args): {on_one_line(error)}"
        ) from error
    except Exception as error:  # of any kind: out of memory, a model that it does not know
        raise ModelError(f"vLLM cannot load the model: {on_one_line(error)}") from error
    return VLLMGenerator(llm, record)


def _write(out: IO[str], what: Mapping[str, Any]) -> None:
    out.write(json.dumps(what) + "\n")
    out.flush()


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as pipe:
        _serve(pipe)
    os._exit(0)  # vLLM's threads need not be waited for
