"""Whether the translated pages say what the English ones do.

`python scripts/translations.py` prints what differs: headings, code, tables, and in every section the numbers, code
spans and links. It also prints the sections whose English text has changed in any way since they were translated: below
each heading of a translation, a mark holds the hash of the English section that it says. Once the translation says the
same again, `python scripts/translations.py --mark` renews the marks. What differs cannot be marked away.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRANSLATIONS = {
    ROOT / "README.md": ROOT / "README.zh-CN.md",
    ROOT / "docs" / "usage.md": ROOT / "docs" / "zh" / "usage.md",
    ROOT / "docs" / "prompts.md": ROOT / "docs" / "zh" / "prompts.md",
}
"""Each English page, and the page that says the same in Chinese."""

HEADING = re.compile(r"(#+) (.+)")
MARK = re.compile(r"<!-- translates ([0-9a-f]{8}) -->")
LANGUAGES = re.compile(r"(English|\[English\]\(\S+\)) · (简体中文|\[简体中文\]\(\S+\))")
COMMENTED = ("sh", "toml", "python")
"""Languages of blocks in which `#` begins a comment, which a translation may translate."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, down to the next one of any level.

    Attributes:
        level: How many `#` the heading has.
        title: The heading.
        mark: Hash of the English section that this one was translated from; empty where it does not say.
        languages: The line that leads to the page in the other language; empty where there is none.
        lines: What stands below, without these two.
    """

    level: int
    title: str
    mark: str
    languages: str
    lines: tuple[str, ...]

    @property
    def hash(self) -> str:
        """Of all its words; wrapped otherwise, they are the same."""
        words = " ".join([self.title, *self.lines]).split()
        return hashlib.sha256(" ".join(words).encode()).hexdigest()[:8]

    @property
    def anchor(self) -> str:
        """What a link to it says behind `#`."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


def sections(page: Path) -> list[Section]:
    """The sections of a page, from its title on."""
    parts: list[tuple[re.Match[str], list[str]]] = []
    in_block = False
    for line in page.read_text(encoding="utf-8").splitlines():
        in_block ^= line.startswith("```")
        heading = None if in_block else HEADING.fullmatch(line)
        if heading:
            parts.append((heading, []))
        elif parts:
            parts[-1][1].append(line)
    return [_section(heading, lines) for heading, lines in parts]


def _section(heading: re.Match[str], lines: list[str]) -> Section:
    marks = [found[1] for line in lines if (found := MARK.fullmatch(line))]
    languages = [line for line in lines if LANGUAGES.fullmatch(line)]
    kept = [line for line in lines if not MARK.fullmatch(line) and line not in languages]
    return Section(
        len(heading[1]), heading[2], "".join(marks[:1]), "".join(languages[:1]), tuple(kept)
    )


# ---- what a translation must have in common with its original -----------------------------------------------


@dataclass(frozen=True)
class Content:
    """What a section is made of.

    Attributes:
        blocks: Fenced blocks, comments in them left out.
        rows: Rows of its tables, in cells.
        prose: The rest.
    """

    blocks: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    prose: str


def content(section: Section) -> Content:
    """Take a section apart."""
    blocks: list[str] = []
    rows: list[tuple[str, ...]] = []
    prose: list[str] = []
    block: list[str] | None = None
    for line in section.lines:
        if block is not None:
            block.append(line)
            if line == "```":
                blocks.append(_without_comments(block))
                block = None
        elif line.startswith("```"):
            block = [line]
        elif line.startswith("|"):
            rows.append(tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]))
        else:
            prose.append(line)
    return Content(tuple(blocks), tuple(rows), "\n".join(prose))


def _without_comments(block: list[str]) -> str:
    if block[0].removeprefix("```") in COMMENTED:
        block = [re.sub(r"(^|\s+)# .*$", " #", line) for line in block]
    return "\n".join(block)


CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def code_spans(text: str) -> Counter[str]:
    """How often each code span stands in a text."""
    return Counter(" ".join(span.split()) for span in CODE.findall(text))


def links(text: str) -> list[str]:
    """The targets of a text's links."""
    return LINK.findall(CODE.sub("", text))


def numbers(text: str) -> Counter[str]:
    """How often each number stands in a text, outside code spans and addresses."""
    return Counter(NUMBER.findall(LINK.sub("]", CODE.sub("", text))))


def paragraphs(prose: str) -> int:
    """How many paragraphs and list items a text has."""
    return sum(bool(part.strip()) for part in re.split(r"\n\s*\n|\n(?=- )", prose))


# ---- comparing ----------------------------------------------------------------------------------------------


def differences(original: Path, translation: Path, pages: Mapping[Path, Path]) -> list[str]:
    """What differs between a page and its translation, a line each.

    Args:
        original: The English page.
        translation: The translated page.
        pages: Every English page that is translated, and its translation: links lead there.
    """
    ours, theirs = sections(original), sections(translation)
    for ours_of, theirs_of in zip_longest(ours, theirs):
        if ours_of is None or theirs_of is None or ours_of.level != theirs_of.level:
            here = f"'{theirs_of.title}'" if theirs_of else "its end"
            there = f"'{ours_of.title}'" if ours_of else "its end"
            return [
                f"{_name(translation)}: at {here}, {_name(original)} has {there}; "
                "give both pages the same headings"
            ]
    found = _check_languages(ours[0], theirs[0], original, translation)
    for english, translated in zip(ours, theirs, strict=True):
        place = _place(original, translation, english, translated)
        found += [f"{place}: {line}" for line in _differing_content(english, translated)]
        wanted = [
            _for_translation(target, original, translation, pages)
            for target in links("\n".join(english.lines))
        ]
        given = links("\n".join(translated.lines))
        found += [
            f"{place}: {line}"
            for line in _differing_counts("links", Counter(wanted), Counter(given))
        ]
    return found


def outdated(original: Path, translation: Path) -> list[str]:
    """The sections of a page that have changed since they were translated, a line each.

    Raises:
        ValueError: The pages do not have the same headings, which `differences` says.
    """
    return [
        f"{_place(original, translation, english, translated)}: the English text has changed since it was translated; "
        "translate the change, then run `python scripts/translations.py --mark`"
        for english, translated in zip(sections(original), sections(translation), strict=True)
        if english.hash != translated.mark
    ]


def _place(original: Path, translation: Path, english: Section, translated: Section) -> str:
    return f"{_name(translation)}, '{translated.title}' ({_name(original)}, '{english.title}')"


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name


def _check_languages(
    english: Section, translated: Section, original: Path, translation: Path
) -> list[str]:
    """The line below both titles, by which each page leads to the other."""
    to_translation = os.path.relpath(translation, original.parent)
    to_original = os.path.relpath(original, translation.parent)
    wanted = {
        original: (english, f"English · [简体中文]({to_translation})"),
        translation: (translated, f"[English]({to_original}) · 简体中文"),
    }
    return [
        f"{_name(page)}: below its title, the line '{line}' is missing"
        for page, (section, line) in wanted.items()
        if section.languages != line
    ]


def _differing_content(original: Section, translation: Section) -> Iterable[str]:
    english, translated = content(original), content(translation)
    for number, (ours, theirs) in enumerate(zip_longest(english.blocks, translated.blocks), 1):
        if ours != theirs:
            yield f"code block {number} differs: {_first_difference(ours or '', theirs or '')}"
    if len(english.rows) != len(translated.rows):
        yield f"its tables have {len(translated.rows)} rows, the English ones {len(english.rows)}"
    else:
        for ours_of, theirs_of in zip(english.rows, translated.rows, strict=True):
            if len(ours_of) != len(theirs_of):
                yield f"the row '{theirs_of[0]}' has {len(theirs_of)} cells, the English one {len(ours_of)}"
            for ours, theirs in zip(ours_of, theirs_of, strict=False):
                yield from _differing_text(f"in the row '{theirs_of[0]}', ", ours, theirs)
    ours_count, theirs_count = paragraphs(english.prose), paragraphs(translated.prose)
    if ours_count != theirs_count:
        yield f"it has {theirs_count} paragraphs and list items, the English one {ours_count}"
    yield from _differing_text("", english.prose, translated.prose)


def _first_difference(ours: str, theirs: str) -> str:
    """The first line that two blocks do not share."""
    pairs = zip_longest(ours.splitlines(), theirs.splitlines(), fillvalue="nothing")
    ours_line, theirs_line = next(pair for pair in pairs if pair[0] != pair[1])
    return f"English: {ours_line} | translated: {theirs_line}"


def _differing_text(where: str, english: str, translated: str) -> Iterable[str]:
    for what, of in (("numbers", numbers), ("code spans", code_spans)):
        yield from _differing_counts(where + what, of(english), of(translated))


def _differing_counts(what: str, english: Counter[str], translated: Counter[str]) -> Iterable[str]:
    missing, added = english - translated, translated - english
    if missing or added:
        sides = [
            f"{side} {', '.join(counts.elements())}"
            for side, counts in (("only in English:", missing), ("only translated:", added))
            if counts
        ]
        yield f"{what} differ: {'; '.join(sides)}"


def _for_translation(
    target: str, original: Path, translation: Path, pages: Mapping[Path, Path]
) -> str:
    """What a link of the original is in the translation: it leads to translated pages where there are any."""
    if target.startswith("https://"):
        return target
    file, _, anchor = target.partition("#")
    path = Path(os.path.normpath(original.parent / file)) if file else original
    if path in pages:
        places = [section.anchor for section in sections(path)]
        if anchor in places:
            anchor = sections(pages[path])[places.index(anchor)].anchor
        path = pages[path]
    relative = "" if path == translation else os.path.relpath(path, translation.parent)
    return f"{relative}#{anchor}" if anchor else relative


def mark(original: Path, translation: Path) -> None:
    """Write below every heading of a translation which English section it says."""
    hashes = iter([section.hash for section in sections(original)])
    lines: list[str] = []
    in_block = False
    for line in translation.read_text(encoding="utf-8").splitlines():
        in_block ^= line.startswith("```")
        if MARK.fullmatch(line):
            continue
        lines.append(line)
        if not in_block and HEADING.fullmatch(line):
            lines.append(f"<!-- translates {next(hashes)} -->")
    translation.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Print what differs, or renew the marks where nothing else does."""
    status = 0
    for original, translation in TRANSLATIONS.items():
        found = differences(original, translation, TRANSLATIONS)
        if not found and arguments == ["--mark"]:
            mark(original, translation)
        found = found or outdated(original, translation)
        for line in found:
            print(line)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
