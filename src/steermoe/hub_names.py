"""Names of repositories on the model hub: what is wrong with one, before the hub is asked."""

from __future__ import annotations

import re

_LONGEST = 96
_ALLOWED = re.compile(r"[A-Za-z0-9._-]+")
_ADDRESS = re.compile(
    r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)(?P<name>[^/?#\s]+/[^/?#\s]+)"
)


def problem_of_name(name: str) -> str:
    """What keeps a text from being `OWNER/NAME` of the hub, and what to write instead; empty where nothing does."""
    if found := _ADDRESS.match(name.strip()):
        return f"an address is no name: give {found['name']!r}"
    if name != name.strip():
        return f"a blank stands around it: give {name.strip()!r}"
    owner, slash, rest = name.partition("/")
    if not slash or not owner or not rest or "/" in rest:
        return "it does not say whose it is and what it is called: give OWNER/NAME"
    plain, at, revision = name.partition("@")
    if at:
        return f"a revision is given by model.revision: give {plain!r} and --set model.revision={revision}"
    if odd := sorted({letter for letter in owner + rest if not _ALLOWED.fullmatch(letter)}):
        return f"{odd[0]!r} is in no name: letters from a to z, digits, '-', '_' and '.' are"
    if part := next((p for p in (owner, rest) if p[0] in "-." or p[-1] in "-."), None):
        return f"{part!r} begins or ends with '-' or '.', which no name does"
    if pair := next((p for p in ("--", "..") if p in name), None):
        return f"{pair!r} is in no name"
    if name.endswith(".git"):
        return f"'.git' ends no name: give {name.removesuffix('.git')!r}"
    return f"{rest[:20]!r}... is longer than {_LONGEST} characters" if len(rest) > _LONGEST else ""
