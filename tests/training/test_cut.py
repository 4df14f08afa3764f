"""Cutting a mixed batch into micro-batches: the mix is kept, and no pair is torn apart."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from steermoe.records import Label
from steermoe.training.dataset import MicroBatches, TrainingRow

TURN = ({"role": "user", "content": "x"},)


def row(name: str, objective: str, pair: str = "") -> TrainingRow:
    return TrainingRow(name, Label.SAFE, 0, objective, TURN, "text", (1,), (2,), pair)


def parts(rows: list[TrainingRow], batch_size: int) -> list[list[TrainingRow]]:
    data = MicroBatches(rows, batch_size=batch_size)
    return [data[i] for i in range(len(data))]


def test_both_sides_of_every_pair_are_in_one_part() -> None:
    # Five refusals and five replies: dealt one objective after the other, pair 0 would be in parts 0 and 1.
    rows = [row(f"u{i}", "refusal", f"pair-{i}") for i in range(5)]
    rows += [row(f"s{i}", "retention", f"pair-{i}") for i in range(5)]
    cut = parts(rows, 4)
    assert [len(part) for part in cut] == [4, 4, 2]
    for part in cut:
        assert set(Counter(one.pair_id for one in part).values()) == {2}
        assert Counter(one.objective for one in part)["refusal"] == len(part) / 2


def test_pairs_that_fill_no_part_evenly_take_one_part_more() -> None:
    rows = [row(f"{side}{i}", side, f"p{i}") for i in range(4) for side in ("refusal", "retention")]
    cut = parts(rows, 3)  # a pair and one row more would be 3, but every row is of a pair
    assert [len(part) for part in cut] == [2, 2, 2, 2]


def test_single_rows_are_dealt_as_ever() -> None:
    rows = [row(f"u{i}", "refusal") for i in range(4)] + [
        row(f"s{i}", "retention") for i in range(4)
    ]
    named = [[one.prompt_id for one in part] for part in parts(rows, 4)]
    assert named == [["u0", "u2", "s0", "s2"], ["u1", "u3", "s1", "s3"]]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=24),
    st.integers(2, 9),
)
def test_every_row_is_in_one_part_and_no_part_is_too_large(
    drawn: list[tuple[int, bool]], batch_size: int
) -> None:
    rows = [
        row(f"r{i}", "refusal" if refusal else "retention", f"p{pair}" if pair else "")
        for i, (pair, refusal) in enumerate(drawn)
    ]
    cut = parts(rows, batch_size)
    assert Counter(one.prompt_id for part in cut for one in part) == Counter(
        one.prompt_id for one in rows
    )
    assert max(map(len, cut)) <= batch_size
    for pair, size in Counter(one.pair_id for one in rows if one.pair_id).items():
        if size <= batch_size:
            assert sum(any(one.pair_id == pair for one in part) for part in cut) == 1
