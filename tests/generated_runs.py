"""Generated files and settings through the command line in this process: what each did, and what is wrong with that."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from generated_files import GeneratedFile, Records
from steermoe.config import Config, fields_of
from tiny import write_prompts

SETTINGS = tuple(
    name for name, *_ in fields_of(Config) if name not in ("run", "model.id", "prompts.sources")
)
VALUES = (
    *("", " ", "0", "1", "-1", "2", "3", "0.5", "1e30", "1e-9", "nan", "inf", "9" * 25),
    *("true", "True", "False", "none", "null", "off", "yes", "auto", "cpu", "all", "test"),
    *("[]", "{}", "[1, 2]", '["a"]', '{"a": 1}', "{a = 1}", "{a = False}", "[", '"', "'x'", '"x"'),
    *("x", "threshold", "random", "nosuch.module:thing", "a:b", "~", "~nobody/x", "/", "é", "=", "1970-01-01"),
)  # fmt: skip
"""What people write behind an equals sign."""


@st.composite
def assignments(draw: st.DrawFn) -> list[str]:
    """Some `section.key=value` texts, most of them of settings that exist."""
    names = st.sampled_from(
        [*SETTINGS, "train.lr", "nosuch.key", "train", "train.arguments.optim", ""]
    )
    pairs = draw(st.lists(st.tuples(names, st.sampled_from(VALUES)), max_size=3))
    return [f"{name}={value}" for name, value in pairs]


@dataclass(frozen=True)
class Ran:
    """What a command did.

    Attributes:
        code: Its exit code.
        out: Standard output.
        err: Standard error.
    """

    code: int
    out: str
    err: str

    @property
    def fault(self) -> str:
        """Why this is no way to end; empty where it is: done, or refused in one last line."""
        if self.code == 0:
            return "" if "Traceback" not in self.err else "a traceback is printed"
        if self.code not in (1, 2):
            return f"exit code {self.code}"
        lines = self.err.rstrip("\n").splitlines()
        if self.code == 2:  # wrong usage, in the words of the library that reads the command line
            return "" if lines and "Traceback" not in self.err else "no word on what is wrong"
        errors = [line for line in lines if line.startswith("error: ")]
        if len(errors) != 1 or lines[-1] != errors[0]:
            return f"not refused in one last line: {self.err[-300:]!r}"
        return "" if len(errors[0]) < 1500 else f"a line of {len(errors[0])} characters"


def steermoe(*arguments: str) -> Ran:
    """The command line; what escapes it is raised."""
    from steermoe.cli.app import main

    out, err = io.StringIO(), io.StringIO()
    before, code = sys.argv, 0
    sys.argv = ["steermoe", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as stopped:
                code = stopped.code if isinstance(stopped.code, int) else int(bool(stopped.code))
    finally:
        sys.argv = before
    return Ran(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Within it, that folder is where the process is; of a small complement, `rest.csv` lies in it."""
    before = os.getcwd()
    os.chdir(folder)
    rest = [{"prompt": f"{label} {i} of the rest", "label": label}
            for i in range(9) for label in ("unsafe", "safe", "benign")]  # fmt: skip
    write_prompts(folder / "rest.csv", rest)
    try:
        yield
    finally:
        os.chdir(before)


def source_in(folder: Path, file: GeneratedFile) -> str:
    """Write a generated file, and name it with its options."""
    (folder / "prompts").write_bytes(file.data)
    before, behind = file.options
    return f"{before}prompts{behind}"


def try_prompts(folder: Path, file: GeneratedFile) -> tuple[Ran, str]:
    """`steermoe prompts` on a generated file: what it did, and what is wrong with it."""
    ran = steermoe("prompts", source_in(folder, file), "rest.csv")
    fault = ran.fault
    has_lines = file.kind == "lines" or "format=lines" in file.options[1]  # no rows with names
    if not fault and ran.code == 0 and not file.is_damaged and not has_lines:
        fault = dropped(ran.out, file.records)
    return ran, fault


def try_plan(folder: Path, file: GeneratedFile, settings: list[str]) -> tuple[Ran, str]:
    """`steermoe plan` on a generated file with generated settings: what it did, and what is wrong with it."""
    arguments = [
        "plan",
        "--quiet",
        "--model",
        "model",
        "--run",
        "run",
        "--set",
        "collect.batch_size=2",
    ]
    arguments += ["--prompts", source_in(folder, file), "--prompts", "rest.csv"]
    for setting in settings:
        arguments += ["--set", setting]
    ran = steermoe(*arguments)
    fault = ran.fault or ("the run directory is there" if (folder / "run").exists() else "")
    return ran, fault


def dropped(printed: str, records: Records) -> str:
    """Rows and columns of a file of which nothing printed says what became of them; empty where all is said."""
    text = " ".join(printed.split())  # long lines are wrapped
    own = text.split("rest.csv:")[0]
    if re.search(r"refused: prompts", own):
        return ""
    found = re.search(
        r"prompts.*?: (\d+ (?:unsafe|safe|benign)\b[^:]*?) prompts?, read as (\w+)", own
    )
    if found is None:
        return "nothing says how the file was read"
    num_prompts = sum(int(count) for count in re.findall(r"\d+", found[1]))
    left = re.findall(r": (\d+) (?:rows?|transcripts?) (?:was |were )?left out", own)
    left += re.findall(r": (\d+) empty rows? skipped", own)
    pairs = 2 if found[2] == "jailbreak" else 1
    if num_prompts + pairs * sum(map(int, left)) != pairs * len(records):
        return f"{len(records)} rows, but {num_prompts} prompts and {left} rows left out"
    if not any(name.strip() and name not in own for name in map(str, records[0])):
        return ""
    named = own.lower()
    lost = [name for name in records[0] if name.strip() and name.strip().lower() not in named]
    return (
        f"nothing is said of the columns {lost}" if lost and all(map(str.isprintable, lost)) else ""
    )
