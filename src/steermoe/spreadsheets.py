"""Cells of a CSV file that a spreadsheet shows and never computes, and the way back to their texts.

A spreadsheet takes a cell that begins with `=` for a formula, whoever wrote it: a model's reply is enough. An
apostrophe before it makes it a text. A text that begins with an apostrophe gets one more, so that the way back is
the same for every cell: an apostrophe at the beginning is left out.
"""

from __future__ import annotations

_APOSTROPHE = "'"
_COMPUTED = (*"=+-@", *"\uff1d\uff0b\uff0d\uff20", "\t", "\r", "\n")
"""How cells begin that some spreadsheet computes: signs, their full-width forms, and what it leaves out before them."""


def quoted_cell(text: str) -> str:
    """The cell that holds a text."""
    return f"{_APOSTROPHE}{text}" if text.startswith((*_COMPUTED, _APOSTROPHE)) else text


def text_of_cell(cell: str) -> str:
    """The text that a cell of `quoted_cell` holds."""
    return cell.removeprefix(_APOSTROPHE)
