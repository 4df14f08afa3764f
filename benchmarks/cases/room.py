"""One case: a folder with a tiny checkpoint in it, the command line, and what came of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import save_tiny_checkpoint
from tiny import SETTINGS, as_arguments, write_prompts

READ, REFUSED, LATE, SILENT, TRACEBACK = (
    "read",
    "refused in one line",
    "misleading or late",
    "silent wrong",
    "traceback",
)
CLASSES = (READ, REFUSED, LATE, SILENT, TRACEBACK)


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        kind: One of `CLASSES`.
        words: What was said.
    """

    kind: str
    words: str = ""


@dataclass(frozen=True)
class Case:
    """One thing that people have.

    Attributes:
        name: Its number.
        what: What is tried.
        before: The class of its outcome before any case was known.
        try_it: Does it in a folder of its own.
    """

    name: str
    what: str
    before: str
    try_it: Callable[[Room], Outcome]


@dataclass(frozen=True)
class Result:
    """What a command did.

    Attributes:
        code: Its exit code.
        out: Standard output.
        err: Standard error.
        error: What escaped the command; empty where nothing did.
    """

    code: int
    out: str
    err: str
    error: str = ""

    @property
    def last(self) -> str:
        """The line of a refusal."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return lines[-1].removeprefix("error: ") if lines else ""

    @property
    def text(self) -> str:
        """All that was printed."""
        return f"{self.out}\n{self.err}"


@dataclass
class Room:
    """Where a case happens.

    Attributes:
        folder: Its files; the model lies in `model`, the prompts in `prompts.csv`, the run in `run`.
        settings: Of every command.
    """

    folder: Path
    settings: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(SETTINGS)))

    @property
    def model(self) -> Path:
        """The checkpoint, made when it is first asked for."""
        path = self.folder / "model"
        if not path.exists():
            made = self.folder.parent / "tiny-mixtral"
            if not made.exists():
                save_tiny_checkpoint("mixtral", made)
            shutil.copytree(made, path)
        return path

    @property
    def prompts(self) -> Path:
        """The prompts: 12 of each label to train on, 4 for dev, 4 for test."""
        path = self.folder / "prompts.csv"
        if not path.exists():
            write_prompts(path, rows())
        return path

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    def steermoe(self, *arguments: str | Path) -> Result:
        """The command line, in this process."""
        from steermoe.cli.app import main

        out, err = io.StringIO(), io.StringIO()
        before = os.getcwd()
        os.chdir(self.folder)
        sys.argv = ["steermoe", *map(str, arguments)]
        error = ""
        code: Any = 0
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            try:
                main()
            except SystemExit as stopped:
                code = stopped.code or 0
            except BaseException as escaped:
                error = f"{type(escaped).__name__}: {escaped}"
        os.chdir(before)
        return Result(int(code), out.getvalue(), err.getvalue(), error)

    def run(self, *more: str | Path, command: str = "run") -> Result:
        """A command on this room's model, prompts and run."""
        options: list[str | Path] = [command, "--run", self.run_dir, "--quiet"]
        if command in ("run", "collect"):
            options += ["--model", self.model, "--prompts", self.prompts]
            options += as_arguments(self.settings)
        return self.steermoe(*options, *more)

    def json(self, name: str) -> Any:
        """A JSON file of the run; a constant that is no JSON is an error."""

        def refuse(constant: str) -> Any:
            raise ValueError(f"{name} holds {constant}")

        return json.loads((self.run_dir / name).read_text("utf-8"), parse_constant=refuse)


def rows() -> list[dict[str, str]]:
    """Sixty short prompts with splits and pairs."""
    found = []
    for i in range(20):
        split = "train" if i < 12 else "dev" if i < 16 else "test"
        pair = {"pair_id": f"pair-{i}", "split": split}
        found.append({"prompt": f"Unsafe request {i}", "label": "unsafe", **pair})
        found.append({"prompt": f"Safe request {i}", "label": "safe", **pair})
        found.append(
            {"prompt": f"Bake a loaf {i}", "label": "benign", "pair_id": "", "split": split}
        )
    return found


def done(result: Result, *said: str, wrong: str = "") -> Outcome:
    """The outcome of a command that should do its work.

    Args:
        result: What it did.
        said: What has to be said for the outcome not to be a silent one.
        wrong: What is wrong with what it left; empty where nothing is.
    """
    if result.error or "Traceback" in result.err:
        return Outcome(TRACEBACK, result.error or result.err.splitlines()[-1])
    if result.code:
        return Outcome(LATE, f"refused though it could be done: {result.last or result.err[-200:]}")
    missing = [words for words in said if words not in result.text]
    if wrong or missing:
        return Outcome(SILENT, wrong or f"nothing says {missing[0]!r}")
    lines = [line for line in result.text.splitlines() if any(words in line for words in said)]
    return Outcome(READ, lines[0].strip() if lines else "")


def refused(result: Result, *said: str, after: str = "collected") -> Outcome:
    """The outcome of a command that should be refused.

    Args:
        result: What it did.
        said: What the line has to say.
        after: What is not to have been printed by then: it tells that hours have passed.
    """
    if result.error or "Traceback" in result.err:
        return Outcome(TRACEBACK, result.error or result.err.splitlines()[-1])
    if not result.code:
        return Outcome(SILENT, "goes on")
    if missing := [words for words in said if words not in result.last]:
        return Outcome(LATE, f"does not say {missing[0]!r}: {result.last or result.err[-200:]}")
    if after in result.err:
        return Outcome(LATE, f"after {after!r}: {result.last}")
    return Outcome(REFUSED, result.last)


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), "utf-8")


def set_json(path: Path, values: Mapping[str, Any]) -> None:
    """Set some of a JSON file's keys."""
    edit_json(path, lambda found: found.update(values))
