"""Another tool, run in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steermoe.errors import ConfigError, SteerMoEError, on_one_line

LOG = "output.txt"
"""What the tool prints, in the folder of its run."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model that another tool loads, and how.

    Attributes:
        checkpoint: Directory, or hub id.
        revision: Branch, tag or commit of a hub model.
        dtype: As transformers names it.
        device: The same; empty lets the tool choose.
        trust_remote_code: Whether the model's own code may run.
        system_prompt: Text of a system turn before each prompt; none where empty.
        template_kwargs: Passed to the chat template, as far as the tool can.
        batch_size: Prompts that are run together.
        limit: Most samples of a task; all where None.
        python: The interpreter that has the tool.
    """

    checkpoint: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = ""
    trust_remote_code: bool = False
    system_prompt: str = ""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    limit: int | None = None
    python: str = sys.executable


def tool_version(python: str, distribution: str, extra: str) -> str:
    """The version of a tool that an interpreter has.

    Args:
        python: The interpreter.
        distribution: What the tool is called on the package index.
        extra: Our extra that brings it.

    Raises:
        ConfigError: It is not installed there.
    """
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"{python} cannot be run: {error.strerror}") from None
    if found.returncode:
        raise ConfigError(
            f"{distribution} is not installed for {python}: pip install 'steermoe[{extra}]'"
        )
    return found.stdout.strip()


def missing_by(python: str, code: str, names: Sequence[str]) -> list[str]:
    """Which of some names a tool does not know, by code that is asked in its interpreter.

    Args:
        python: The interpreter.
        code: Reads the names from `sys.argv[1:]`, and prints those that the tool does not know as a JSON list.
        names: The names.

    Returns:
        Those that are missing; none where the tool does not say, for then its run will.
    """
    asked = [python, "-c", code, *names]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    try:
        return [str(name) for name in json.loads(found.stdout.strip().rpartition("\n")[2])]
    except (ValueError, TypeError):
        return []


def run_tool(command: Sequence[str], folder: Path) -> None:
    """Run a command to its end. What it prints goes to a file in a folder, which is made.

    The process is ended with ours, as when the user interrupts.

    Raises:
        SteerMoEError: It failed, with the last line it printed and where the others are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with log.open("w", encoding="utf-8") as out:
        result = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False
        )
    if result.returncode:
        said = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        last = on_one_line(Exception(said[-1])) if said else "it printed nothing"
        raise SteerMoEError(
            f"{Path(command[0]).name} {' '.join(command[1:4])} ended with {result.returncode}: {last} (all of it is in "
            f"{log})"
        )
