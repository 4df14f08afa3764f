"""What the words of a label, of a success and of a split mean, as far as they can mean one thing only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from steermoe.errors import PromptError
from steermoe.prompts.rows import Row, counted, listed, plain_word, shown, unknown_word
from steermoe.records import Label, Split

YES = ("1", "true", "yes", "y", "t")
NO = ("0", "false", "no", "n", "f")

LABEL_WORDS: Mapping[str, Label] = {
    **{label.value: label for label in Label},
    "harmful": Label.UNSAFE,
    "jailbreak": Label.UNSAFE,
    "harmless": Label.SAFE,
    "unharmful": Label.SAFE,
}
"""Words of a label. What is harmless in a file that tells it from harmful is the other side of the contrast."""

POLARITY: Mapping[str, tuple[Label, Label]] = {
    **dict.fromkeys(
        ("harmful", "isharmful", "unsafe", "isunsafe", "isjailbreak"),
        (Label.UNSAFE, Label.SAFE),
    ),
    **dict.fromkeys(
        ("harmless", "isharmless", "safe", "issafe"),
        (Label.SAFE, Label.UNSAFE),
    ),
    **dict.fromkeys(("benign", "isbenign"), (Label.BENIGN, Label.UNSAFE)),
}
"""Columns whose name says what a yes means: its label, and that of a no. Names without case and punctuation."""

SPLIT_WORDS: Mapping[str, Split] = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "dev": Split.DEV,
    "development": Split.DEV,
    "val": Split.DEV,
    "valid": Split.DEV,
    "validation": Split.DEV,
    "test": Split.TEST,
    "testing": Split.TEST,
}


def loose(name: str) -> str:
    """A name without case, blanks and punctuation: `Pair ID` and `pair_id` are one."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def fits_label(field: str, value: object) -> bool:
    """Whether a value may be the label of a row, in a column of that name."""
    word = plain_word(value)
    return word in LABEL_WORDS or (loose(field) in POLARITY and word in (*YES, *NO))


def read_labels(rows: Sequence[Row], words: Mapping[str, Label]) -> tuple[list[Label], list[str]]:
    """The label of each row, and what to say about words that are not ours.

    Args:
        rows: Rows with a label.
        words: What the user says that words mean; it goes before what they usually mean.

    Raises:
        PromptError: A label is missing, or a word is unknown or may mean two things.
    """
    labels = []
    understood: Counter[tuple[str, Label]] = Counter()
    for row in rows:
        value = row.value("label")
        if not row.has("label"):
            raise row.error("label", "is missing; every row needs it")
        word = plain_word(value)
        label = words.get(word) or _meaning(row, word)
        if label is None:
            raise row.error("label", _problem(row, value, word))
        understood[word, label] += 1
        labels.append(label)
    _check_words_occur(rows, words, {word for word, _ in understood})
    harmless = {word for word, label in understood if label is Label.SAFE} - set(words)
    if {"safe", "harmless"} <= harmless:
        source, column = rows[0].source, rows[0].column("label")
        raise PromptError(
            f"{source}: {column!r} holds 'safe' and 'harmless', and one of them must mean benign; "
            f"'{source}:benign=harmless' says so of the second"
        )
    if all(word == label.value for word, label in understood):
        return labels, []
    said = [
        f"{shown(word)} as {label} ({counted(number, 'row')})"
        for (word, label), number in sorted(understood.items())
    ]
    return labels, [f"{rows[0].column('label')!r} is read: {', '.join(said)}"]


def _check_words_occur(
    rows: Sequence[Row], words: Mapping[str, Label], found: Collection[str]
) -> None:
    """Refuse a word that the user explains and that no row has: it is probably misspelt."""
    for word in words:
        if word not in found:
            column = rows[0].column("label")
            raise PromptError(
                f"{rows[0].source}: no row has {shown(word)} in {shown(column)}, which holds "
                f"{listed(sorted(found))}; check the words behind the path"
            )


def read_split(row: Row) -> Split | None:
    """The split that a row brings; None where it brings none.

    Raises:
        PromptError: The word means no split.
    """
    if not row.has("split"):
        return None
    value = row.value("split")
    split = SPLIT_WORDS.get(plain_word(value)) if isinstance(value, str) else None
    if split is None:
        raise row.error("split", unknown_word(value, [member.value for member in Split]))
    return split


def _meaning(row: Row, word: str) -> Label | None:
    polarity = POLARITY.get(loose(row.column("label")))
    if polarity and word in YES:
        return polarity[0]
    if polarity and word in NO:
        return polarity[1]
    return LABEL_WORDS.get(word)


def _problem(row: Row, value: object, word: str) -> str:
    """What is wrong with a label that is not understood, and how it could be."""
    name = row.column("label")
    column = "" if name == "label" else f"label={name},"
    if word in (*YES, *NO):
        yes, no = next(pair for pair in zip(YES, NO, strict=True) if word in pair)
        return f"{shown(value)} may mean either side; '{row.source}:{column}unsafe={yes},safe={no}' says which is which"
    return (
        f"{unknown_word(value, [member.value for member in Label])}; "
        f"'{row.source}:{column}unsafe=WORD,safe=WORD' says what other words mean"
    )
