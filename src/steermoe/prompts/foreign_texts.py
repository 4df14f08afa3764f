"""Texts that are something else than prompt files: what a download left in the place of one, and other formats."""

from __future__ import annotations

import re

from steermoe.errors import PromptError

_MOST = 0.5
"""Share of the lines that have to look like another format."""

_JSON_LINE = re.compile(r"\s*[{\[]")
_XML_LINE = re.compile(r"\s*</?[A-Za-z][^<>]*>")
_YAML_LINE = re.compile(r"\s*(?:- )?[A-Za-z_][\w-]*: ?(?:\S|$)")
_PROGRAM_LINE = re.compile(r"""\s*(["']).*\1,\s*$""")
"""Of a list as a program has it: a text and a comma."""
_PROGRAM = re.compile(r"\s*[A-Za-z_]\w*\s*=\s*[\[({]")
_MARKDOWN_TABLE = re.compile(r"\s*\|.*\|[ \t]*\r?\n\s*\|[ \t:|-]+\|[ \t]*\r?\n")
"""The names of the columns and the line below them."""
_RULE = re.compile(r"\s*([-=_*#~+.])(?:\s*\1){2,}\s*$")
"""A line that separates what is above it from what is below."""


def check_no_leftover(text: str, source: str) -> None:
    """Refuse what stands for a file that was not fetched, and texts that are not for a program to read.

    Raises:
        PromptError: It is a pointer of Git LFS, a page of a web site, XML, a list in a program, or a table in Markdown.
    """
    start = text.lstrip()[:200].lower()
    if start.startswith("version https://git-lfs.github.com/spec/"):
        raise PromptError(
            f"{source} is a pointer of Git LFS to the file, not the file; fetch it with `git lfs pull`"
        )
    if start.startswith(("<!doctype html", "<html")):
        raise PromptError(
            f"{source} is a page of a web site, not a prompt file; fetch the file itself, by its raw address"
        )
    if start.startswith("<?xml"):
        raise PromptError(f"{source} is XML; save its prompts as JSON or CSV")
    if _PROGRAM.match(text):
        raise PromptError(f"{source} is a list in a program; save its prompts as JSON")
    if _MARKDOWN_TABLE.match(text):
        raise PromptError(f"{source} is a table in Markdown; save it as CSV")


def check_holds_lines(text: str, source: str) -> None:
    """Refuse a text whose lines are rows of another format, and no prompts.

    Raises:
        PromptError: Most lines are of JSON, YAML, XML or a program's list; or one only separates.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    for pattern, name, instead in (
        (_JSON_LINE, "JSON", "mend the lines that are none"),
        (_YAML_LINE, "YAML", "save it as JSON or CSV"),
        (_XML_LINE, "XML", "save it as JSON or CSV"),
        (_PROGRAM_LINE, "a list in a program", "save it as JSON"),
    ):
        number = sum(pattern.match(line) is not None for line in lines)
        if number > 1 and number >= _MOST * len(lines):
            raise PromptError(
                f"{source} looks like {name} and not like one prompt a line: {instead}; '{source}:format=lines' takes "
                "every line for a prompt all the same"
            )
    for number, line in enumerate(text.splitlines(), start=1):
        if _RULE.match(line):
            raise PromptError(
                f"{source}, line {number}: {line.strip()[:20]!r} separates, and is no prompt; remove such lines, or "
                f"'{source}:format=lines' takes every line for a prompt all the same"
            )
