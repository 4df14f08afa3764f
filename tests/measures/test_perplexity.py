"""Windows that predict each token once, and perplexities by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from made_evidence import by_kind
from steermoe.analysis.perplexity import perplexity_change
from steermoe.errors import PromptError
from steermoe.measures.evidence import Intervals, Side, VariantEvidence
from steermoe.measures.perplexity import Perplexity, read_text, windows_of


def test_every_token_is_predicted_once_from_half_a_window_or_more() -> None:
    windows = windows_of(range(10), None, size=4)
    assert [(w.prompt_token_ids, w.completion_token_ids) for w in windows] == [
        ((0,), (1, 2, 3)),
        ((2, 3), (4, 5)),
        ((4, 5), (6, 7)),
        ((6, 7), (8, 9)),
    ]


@pytest.mark.parametrize(("length", "size"), [(1, 2), (2, 2), (7, 3), (100, 8), (513, 512)])
def test_nothing_is_left_out_or_read_twice(length: int, size: int) -> None:
    windows = windows_of(range(length), 999, size)
    predicted = [token for window in windows for token in window.completion_token_ids]
    assert predicted == list(
        range(length)
    )  # with a first token, the text's own first is predicted too
    assert all(len(w.prompt_token_ids) + len(w.completion_token_ids) <= size for w in windows)


def test_one_token_without_a_first_predicts_nothing() -> None:
    assert windows_of([5], None) == []


def sides(own: list[list[float]], before: list[list[float]] | None = None) -> VariantEvidence:
    reference = None if before is None else Side(text=before)
    name = "base" if before is not None else ""
    return VariantEvidence(
        "hardened",
        "text:a.txt",
        {},
        Side(text=own),
        reference,
        name,
        "keyword",
        Intervals(0.95, 1000, 0),
    )


def test_the_exponential_of_the_mean_over_tokens() -> None:
    half, quarter = math.log(1 / 2), math.log(1 / 4)
    # Four tokens, two of chance 1/2 and two of 1/4: exp(1.5 log 2) = 2.83, whatever windows they stand in.
    (row,) = Perplexity().of(sides([[half, quarter], [half], [quarter]]))
    assert row.metric.value == pytest.approx(2**1.5) and row.metric.n == 4
    low, high = row.metric.ci_low, row.metric.ci_high
    assert low == pytest.approx(2.0) and high == pytest.approx(4.0)
    (one,) = Perplexity().of(sides([[half, half]]))
    assert one.metric.value == pytest.approx(2) and one.metric.ci_low is None


def test_the_change_is_drawn_on_the_same_windows() -> None:
    half, quarter, eighth = (math.log(1 / 2**k) for k in (1, 2, 3))
    before = [[half] * 2, [quarter] * 2]
    after = [[quarter] * 2, [quarter] * 2]
    rows = by_kind(Perplexity().of(sides(after, before)))
    assert rows["own"].metric.value == pytest.approx(4)
    assert rows["change"].metric.value == pytest.approx(4 - 2**1.5)
    # A draw of the first window twice changes by 2, of the second by nothing.
    assert rows["change"].metric.ci_low == pytest.approx(0)
    assert rows["change"].metric.ci_high == pytest.approx(2)
    with pytest.raises(ValueError, match="windows"):
        perplexity_change(before, [[eighth], [half]], confidence=0.95, num_bootstrap=10, seed=0)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe\x00a"])
def test_a_text_that_holds_nothing_or_is_of_another_encoding(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=r"text\.txt"):
        read_text(str(path))


def test_a_text_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="cannot be read"):
        read_text(str(tmp_path / "none.txt"))
