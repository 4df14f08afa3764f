"""Texts that are something else than prompt files: what a download left in the place of one, and other formats."""

from __future__ import annotations

import re

from steermoe.errors import PromptError

_MOST = 0.5
"""Share of the lines that have to look like another format."""

_JSON_LINE = re.compile(r"\s*[{\[]")
_XML_LINE = re.compile(r"\s*</?[A-Za-z][^<>]*>")
_YAML_LINE = re.compile(r"\s*(?:- )?[A-Za-z_][\w-]*: ?(?:\S|$)")


def check_no_leftover(text: str, source: str) -> None:
    """Refuse what stands for a file that was not fetched.

    Raises:
        PromptError: It is a pointer of Git LFS, a page of a web site, or XML.
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


def check_holds_lines(text: str, source: str) -> None:
    """Refuse a text whose lines are rows of another format, and no prompts.

    Raises:
        PromptError: Most lines are of JSON, YAML or XML.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    for pattern, name, instead in (
        (_JSON_LINE, "JSON", "mend the lines that are none"),
        (_YAML_LINE, "YAML", "save it as JSON or CSV"),
        (_XML_LINE, "XML", "save it as JSON or CSV"),
    ):
        number = sum(pattern.match(line) is not None for line in lines)
        if number > 1 and number >= _MOST * len(lines):
            raise PromptError(
                f"{source} looks like {name} and not like one prompt a line: {instead}; '{source}:format=lines' takes "
                "every line for a prompt all the same"
            )
