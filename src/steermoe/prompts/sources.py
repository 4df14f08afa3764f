"""What the user writes for a prompt file: its path, and how it is to be read.

    prompts.csv
    unsafe:prompts.txt                            every row is of that label
    prompts.csv:column=text,label=unsafe          the column of the prompt, and the label of every row
    prompts.csv:label=is_bad,unsafe=1,safe=0      the column of the label, and what its words mean
    prompts.csv:column="Prompt, English"          a name or word that holds a comma
    builtin:starter                               the prompts that ship with the package

A path that exists as it stands is that file, whatever it looks like.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from steermoe.errors import PromptError
from steermoe.prompts.columns import Role
from steermoe.prompts.labels import LABEL_WORDS
from steermoe.prompts.rows import listed, plain_word, shown, unknown_word
from steermoe.prompts.tables import field_name
from steermoe.records import JAILBREAK_FORMAT, LOOK_ALIKE, PLAIN_GOAL, Label

BUILTIN_STARTER = "builtin:starter"

_ROLES = {"column": Role.PROMPT.value, **{role.value: role.value for role in Role}}
_OTHER_OPTIONS = ("ignore", "format", "encoding", *Label)
OPTIONS = (*_ROLES, *_OTHER_OPTIONS)
"""What may be said of a file behind its path."""


_OPTION = re.compile(r"""(\s*[^\W\d]+\s*)=(?:\s*"((?:[^"]|"")*)"\s*(?=,|\Z)|([^,]*))""")
_FULL_WIDTH = str.maketrans("\uff1a\uff0c\uff1d", ":,=")
"""What a Chinese or Japanese keyboard types for the signs between options."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """A prompt file as the user named it.

    Attributes:
        text: What was written.
        path: The path, or `builtin:starter`.
        label: The label of every row, where one is given.
        category: The category of every row, where one of those with a meaning is given.
        columns: Columns by our name for what they hold.
        words: What words of the label's column mean.
        ignored: Columns to leave out.
        format: The layout; None to find it.
        encoding: How the file's text is encoded; None for UTF-8.
    """

    text: str
    path: str
    label: Label | None = None
    category: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, Label] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    format: str | None = None
    encoding: str | None = None

    @property
    def is_builtin(self) -> bool:
        """Whether the prompts ship with the package."""
        return self.path.startswith("builtin:")

    @property
    def name(self) -> str:
        """What prompts name as their source."""
        return self.path if self.is_builtin else Path(self.path).name

    @property
    def place(self) -> str:
        """The same for every way to write the path of one file."""
        return self.path if self.is_builtin else os.path.realpath(Path(self.path).expanduser())

    @property
    def how(self) -> str:
        """How it is to be read: the same for the same options, in whatever order they were written."""
        chosen = (
            self.label, self.category, sorted(self.columns.items()), sorted(self.words.items()),
            sorted(self.ignored), self.format, self.encoding,
        )  # fmt: skip
        return repr(chosen)

    def read_bytes(self) -> bytes:
        """The content of the file.

        Raises:
            PromptError: There is no such file, or it cannot be read.
        """
        return builtin_bytes(self.path) if self.is_builtin else _file_bytes(self.path)


def parse_source(source: str | Path) -> Declaration:
    """Take apart what the user wrote for a prompt file.

    Raises:
        PromptError: An option is unknown, given twice, or has no value.
    """
    text = str(source)
    if text.startswith("builtin:") or (text and path_exists(text)):
        return Declaration(text, text)
    label, path, options = _taken_apart(text)
    if not path:
        raise PromptError(f"prompts: {shown(text)} names no file")
    if not path.startswith("builtin:") and not path_exists(path):
        _check_kind(text)
        _check_options_behind(path)
    return _with_options(Declaration(text, path, label), options)


def content_hash(source: str | Path) -> str:
    """A hash of what a source's file holds and how it is to be read: the same for every spelling of the path.

    Raises:
        PromptError: The source cannot be read.
    """
    declaration = parse_source(source)
    digest = hashlib.sha256(declaration.read_bytes())
    if declaration.how != Declaration("", "").how:
        digest.update(declaration.how.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def builtin_bytes(source: str) -> bytes:
    """The content of a prompt file that ships with the package.

    Raises:
        PromptError: There is none of that name.
    """
    if source != BUILTIN_STARTER:
        raise PromptError(f"prompts: {unknown_word(source, [BUILTIN_STARTER])}")
    return (resources.files("steermoe.prompts") / "data" / "starter.jsonl").read_bytes()


def path_exists(path: str) -> bool:
    """Whether there is something at a path; not where a text cannot be one."""
    try:
        return Path(path).exists() or Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, no home directory
        return False


def _taken_apart(text: str) -> tuple[Label | None, str, list[tuple[str, str]]]:
    """The label before the path, the path, and the options behind it."""
    word, colon, rest = text.partition(":")
    if not colon or plain_word(word) not in list(Label):
        return (None, *_split_options(text))
    return (Label(plain_word(word)), *_split_options(rest if path_exists(rest) else rest.lstrip()))


def _check_kind(text: str) -> None:
    """Refuse what is meant as the label of a file and is written otherwise."""
    plain = text.translate(_FULL_WIDTH)
    (label, path, options), (said, _, kept) = _taken_apart(plain), _taken_apart(text)
    if label is not said or (len(options) > len(kept) and path_exists(path)):
        raise PromptError(
            f"prompts: {shown(text)} has a colon, comma or equals sign of full width; write {shown(plain)}"
        )
    word, colon, rest = plain.partition(":")
    meant = LABEL_WORDS.get(plain_word(word))
    if meant is not None and label is None and colon:
        or_benign = f" or 'benign:{rest}'" if meant is Label.SAFE else ""
        raise PromptError(
            f"prompts: {shown(text)} begins with no label; write '{meant}:{rest}'{or_benign}"
        )
    if colon and len(word) > 1 and label is None and path_exists(_split_options(rest)[0]):
        raise PromptError(
            f"prompts: {shown(word)} of {shown(text)} is no label; write 'unsafe:{rest}', 'safe:{rest}' or "
            f"'benign:{rest}'"
        )


def _check_options_behind(path: str) -> None:
    """Refuse options that are no `key=value,...` where there is a file before them."""
    for i, letter in enumerate(path):
        if letter != ":" or not path_exists(path[:i]):
            continue
        key, equals, _ = path[i + 1 :].partition("=")
        if equals and key.strip().casefold() in OPTIONS:
            raise PromptError(
                f"prompts: {shown(path[i + 1 :])} behind {path[:i]} is not option=value,option=value; put a name or "
                f"word that holds a comma in quotes: '{path[:i]}:column=\"NAME, WITH COMMA\"'"
            )


def _split_options(text: str) -> tuple[str, list[tuple[str, str]]]:
    r"""The path, and the options behind it.

    A colon may be part of a path (`C:\x.csv`) and of a column's name. The options begin behind the first colon
    before which a file exists; where none does, behind the first that an option follows.
    """
    starts = [i for i, letter in enumerate(text) if letter == ":" and _options(text[i + 1 :])]
    existing = [i for i in starts if path_exists(text[:i])]
    if not starts or path_exists(text):
        return text, []
    start = (existing or starts)[0]
    return text[:start], _options(text[start + 1 :])


def _options(text: str) -> list[tuple[str, str]]:
    """`key=value,key="value, and more"` taken apart; nothing if it is not of that form."""
    found, end = [], -1
    while end < len(text):
        option = _OPTION.match(text, end + 1)
        if option is None:
            return []
        key, quoted, bare = option.groups()
        found.append(
            (
                key.strip().casefold(),
                (bare if quoted is None else quoted.replace('""', '"')).strip(),
            )
        )
        end = option.end()
    return found


def _with_options(declaration: Declaration, options: list[tuple[str, str]]) -> Declaration:
    label, category = declaration.label, ""
    columns: dict[str, str] = {}
    words: dict[str, Label] = {}
    ignored: list[str] = []
    single: dict[str, str] = {}
    for key, value in options:
        problem = f"prompts: {shown(declaration.text)}: "
        if key not in OPTIONS:
            near = difflib.get_close_matches(key, OPTIONS, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {listed(OPTIONS, 30)}"
            raise PromptError(f"{problem}there is no option {shown(key)}; {hint}")
        if not value:
            raise PromptError(f"{problem}option {key!r} has no value")
        if key == "ignore":
            ignored.append(field_name(value))
        elif key in list(Label):
            words[plain_word(value)] = Label(key)
        elif key == "label" and value.casefold() in list(Label):
            if label not in (None, Label(value.casefold())):
                raise PromptError(f"{problem}two labels are given, {label} and {value}")
            label = Label(value.casefold())
        elif key == "category" and value in (LOOK_ALIKE, PLAIN_GOAL, JAILBREAK_FORMAT):
            category = value
        elif _ROLES.get(key, key) in (columns if key in _ROLES else single):
            raise PromptError(f"{problem}option {key!r} is given twice")
        elif key in _ROLES:
            columns[_ROLES[key]] = field_name(value)
        else:
            single[key] = value
    if label is not None and (words or Role.LABEL in columns):
        raise PromptError(
            f"prompts: {shown(declaration.text)}: every row is said to be {label}, so no column and no words of "
            "labels are read; say one or the other"
        )
    encoding = single.get("encoding")
    _check_encoding(declaration, encoding)
    return Declaration(
        declaration.text, declaration.path, label, category, columns, words, tuple(ignored),
        single.get("format"), encoding,
    )  # fmt: skip


def _check_encoding(declaration: Declaration, encoding: str | None) -> None:
    if encoding is None:
        return
    try:
        b"a".decode(encoding)
    except UnicodeError:
        return  # one byte is no character of it
    except (LookupError, ValueError):
        raise PromptError(
            f"prompts: {shown(declaration.text)}: there is no encoding {shown(encoding)}; "
            "cp1252, utf-8, utf-16, gb18030 and shift_jis are some"
        ) from None


def _file_bytes(source: str) -> bytes:
    path = Path(source)
    try:
        source.encode("utf-8")
        if not path.exists():
            path = path.expanduser()
        return path.read_bytes()
    except UnicodeEncodeError:
        raise PromptError(f"the name of {shown(source)} is not UTF-8; rename the file") from None
    except FileNotFoundError:
        raise PromptError(f"{source} does not exist; check the path of the prompt file") from None
    except IsADirectoryError:
        inside = " (its data-*.arrow)" if (path / "dataset_info.json").exists() else ""
        raise PromptError(f"{source} is a directory; name the prompt file in it{inside}") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PromptError(f"{shown(source)} cannot be read: {reason}") from None
