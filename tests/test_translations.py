"""The Chinese pages say what the English ones do, and whoever changes one alone is told where."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from translations import TRANSLATIONS, differences, mark, outdated, sections

ENGLISH = """\
# Usage

English · [简体中文](zh/page.md)

Two ways, see [below](#own-prompts).

## Own prompts

It takes 40 seconds and `collect.batch_size` prompts.

```sh
steermoe run --run runs/mine   # a comment
```

| file | holds |
| --- | --- |
| `report.html` | 3 figures |

- Each has an interval ([more](other.md)).
"""

CHINESE = """\
# 用法

[English](../page.md) · 简体中文

两种方法，见[下文](#自己的提示)。

## 自己的提示

需要 40 秒和 `collect.batch_size` 条提示。

```sh
steermoe run --run runs/mine   # 注释
```

| 文件 | 内容 |
| --- | --- |
| `report.html` | 3 张图 |

- 每项都有区间（[详见](../other.md)）。
"""


@pytest.mark.parametrize("original", TRANSLATIONS, ids=lambda page: page.name)
def test_a_translation_says_what_the_english_page_does(original: Path) -> None:
    translation = TRANSLATIONS[original]
    found = differences(original, translation, TRANSLATIONS)
    found = found or outdated(original, translation)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", TRANSLATIONS.values(), ids=lambda page: page.name)
def test_a_translation_is_written_with_chinese_punctuation(page: Path) -> None:
    for section in sections(page):
        text = "\n".join(section.lines)
        text = re.sub(r"^```.*?^```$|`[^`]*`|\]\([^)]*\)", "", text, flags=re.M | re.S)
        assert not re.search(r"[\u4e00-\u9fff] *[,;:?!.()]|[,;:?!()] *[\u4e00-\u9fff]", text), (
            section.title
        )


class Pages:
    """An English page and its translation, in step with it until one of the two is changed."""

    def __init__(self, folder: Path) -> None:
        self.english, self.chinese = folder / "page.md", folder / "zh" / "page.md"
        self.chinese.parent.mkdir()
        self.english.write_text(ENGLISH, encoding="utf-8")
        self.chinese.write_text(CHINESE, encoding="utf-8")
        mark(self.english, self.chinese)

    def change(self, page: Path, before: str, after: str) -> None:
        text = page.read_text(encoding="utf-8")
        assert text.count(before) == 1
        page.write_text(text.replace(before, after), encoding="utf-8")

    def differences(self) -> list[str]:
        return differences(self.english, self.chinese, {self.english: self.chinese})


@pytest.fixture
def pages(tmp_path: Path) -> Pages:
    return Pages(tmp_path)


def test_pages_in_step_are_found_so(pages: Pages) -> None:
    assert pages.differences() == outdated(pages.english, pages.chinese) == []


HERE = "page.md, '自己的提示' (page.md, 'Own prompts'): "


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("40 s", "41 s", HERE + "numbers differ: only in English: 41; only translated: 40"),
        (
            "`collect.batch_size`",
            "`train.epochs`",
            HERE + "code spans differ: only in English: train.epochs; only translated: collect.batch_size",
        ),
        (
            "runs/mine ",
            "runs/ours ",
            HERE
            + "code block 1 differs: English: steermoe run --run runs/ours # | "
            + "translated: steermoe run --run runs/mine #",
        ),
        ("3 figures", "4 figures", HERE + "in the row '`report.html`', numbers differ: "),
        ("| 3 figures |\n", "| 3 figures |\n| `run.json` | settings |\n", HERE + "its tables have 3 rows"),
        ("| 3 figures |", "| 3 figures | new |", HERE + "the row '`report.html`' has 2 cells"),
        ("\n- Each", "\nA paragraph more.\n\n- Each", HERE + "it has 2 paragraphs and list items"),
        ("other.md", "new.md", HERE + "links differ: only in English: ../new.md; only translated: ../other.md"),
        ("#own-prompts", "#else", "links differ: only in English: #else; only translated: #自己的提示"),
        ("- Each has", "### More\n\nEach has", "page.md: at its end, page.md has 'More'"),
        ("English · [简体中文](zh/page.md)\n", "", "below its title, the line 'English · [简体中文](zh/page.md)'"),
    ],
    ids=["number", "span", "code", "cell", "row", "column", "paragraph", "link", "anchor", "heading", "languages"],
)  # fmt: skip
def test_a_change_of_the_english_page_alone_is_told_with_its_place(
    pages: Pages, before: str, after: str, said: str
) -> None:
    pages.change(pages.english, before, after)
    found = pages.differences()
    assert len(found) == 1
    assert said in found[0]


def test_a_change_of_words_alone_is_told_until_the_translation_is_marked_again(
    pages: Pages,
) -> None:
    pages.change(pages.english, "It takes", "At worst it takes")
    assert pages.differences() == []
    (found,) = outdated(pages.english, pages.chinese)
    assert found.startswith(HERE)
    assert "translations.py --mark" in found
    mark(pages.english, pages.chinese)
    assert outdated(pages.english, pages.chinese) == []


def test_a_page_that_is_wrapped_otherwise_has_not_changed(pages: Pages) -> None:
    pages.change(pages.english, "40 seconds and", "40 seconds\nand")
    assert outdated(pages.english, pages.chinese) == []


def test_a_change_of_the_translation_alone_is_told(pages: Pages) -> None:
    pages.change(pages.chinese, "--run runs/mine", "--run runs/wo-de")
    assert len(pages.differences()) == 1
