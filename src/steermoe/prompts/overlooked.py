"""What a column that nobody reads seems to hold, so that nothing of ours is overlooked.

Its name says it, or its values do: words of labels or of splits alone, chat turns, or sentences under a name that
speaks of what is asked. Such a column is refused, with the words that read it or leave it out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from steermoe.errors import PromptError
from steermoe.prompts.columns import (
    NOUNS,
    REPLIES,
    Role,
    fields_of,
    filled_cells,
    is_empty,
    role_of,
    same_in_every_row,
)
from steermoe.prompts.conversations import OTHER_ROLES, ROLES, looks_like_turns
from steermoe.prompts.labels import LABEL_WORDS, NO, SPLIT_WORDS, YES, loose
from steermoe.prompts.rows import Row, plain_word, shown
from steermoe.records import Label, Split

_ASKING = (
    "prompt", "question", "instruction", "query", "request", "utterance", "behavior", "behaviour", "goal",
    "jailbreak", "adversarial", "attack", "context", "history", "prefix", "suffix",
)  # fmt: skip
"""Parts of names of what is asked, or is said around it."""
_ASKING_ALONE = frozenset(
    {"user", "human", "input", "inputs", "adv", "turn"}
    | {"document", "passage", "article", "preamble", "persona"}
)
"""The same, as words of their own."""
_ABOUT = frozenset({"context", "document", "passage", "article"})
"""Those of what a prompt is about."""
_JUDGING = ("harm", "toxic", "malicious", "unsafe", "safe", "benign", "dangerous", "refuse")
"""Parts of names that tell the harmful from the harmless, where yes and no stand below."""
_GOOD = ("harmless", "safe", "benign")
"""Those of which a yes means harmless."""
_OF_SOMETHING_ELSE = (
    *REPLIES, "target", "expected", "chosen", "rejected", "refusal", "description", "explanation", "note", "comment",
    "reason", "rationale", "source", "category", "type", "style", "title", "url", "name", "author", "topic", "focus",
)  # fmt: skip
"""Parts of names of replies, and of what is said about a prompt."""
_FEWEST_WORDS = 3
_OUTCOME = (
    "success", "jailbroken", "score", "verdict", "outcome", "asr", "fail", "refus", "judge", "judgment", "result",
    "rating", "broken", "complied", "compliance",
)  # fmt: skip
"""Parts of names of what became of an attack."""
_MOST_OUTCOMES = 12
"""Different words of a column that says what became of attacks."""


def check_unread(
    rows: Sequence[Row],
    unread: Sequence[str],
    read: Sequence[str],
    layout: str,
    settled: Collection[Role] = (),
    label: Label | None = None,
) -> None:
    """Refuse a column that seems to hold something of ours, and that nobody reads.

    Args:
        rows: The rows of the file.
        unread: Columns that are not read, but for those that the layout or the user says to leave.
        read: Columns that are read.
        layout: How the file is read.
        settled: What the user has said where to find; no other column is meant.
        label: That of all rows, where the user has said it.

    Raises:
        PromptError: There is such a column.
    """
    labels = [field for field in read if role_of(field, rows) is Role.LABEL]
    for field in unread:
        role = seems_to_hold(field, rows)
        if role not in NOUNS or role in settled or is_empty(field, rows):
            continue
        if any(same_in_every_row(Role.PROMPT, rows, field, other) for other in read):
            continue
        if role is Role.LABEL and any(_agree(field, other, rows) for other in labels):
            continue
        source = rows[0].source
        said = source if label is None else f"{label}:{source}"  # with what is known already
        raise PromptError(
            f"{source}: {shown(field)} seems to hold {NOUNS[role]}, which is not read from a file of {layout}; "
            f"'{said}:ignore={field}' leaves it out{_other_reading(said, field, role, rows, label is not None)}"
        )


def check_whole_conversations(rows: Sequence[Row], unread: Sequence[str]) -> None:
    """Refuse rows that are turns, not conversations: replies would be read as prompts.

    Args:
        rows: The rows of the file.
        unread: Columns that are not read, but for those that the user says to leave.

    Raises:
        PromptError: One of them says whose turn each row is.
    """
    for field in unread:
        roles = {plain_word(row.values.get(field)) for row in rows}
        ours = {OTHER_ROLES.get(role, role) for role in roles}
        if "assistant" in ours and ours <= set(ROLES):
            source = rows[0].source
            raise PromptError(
                f"{source}: each row is one turn of a conversation, as {shown(field)} says, and a prompt file has a "
                f"conversation a row: put the turns of each into a list 'messages'; '{source}:ignore={field}' takes "
                "every row for a prompt"
            )


def check_tells_success(rows: Sequence[Row], unread: Sequence[str]) -> None:
    """Refuse results of attacks where nothing that is read tells the successes, and something else may.

    Args:
        rows: The rows of the file.
        unread: Columns that are not read, but for those that the user says to leave.

    Raises:
        PromptError: One of them may tell.
    """
    for field in unread:
        values = filled_cells(field, rows)
        if values and any(part in loose(field) for part in _OUTCOME) and _may_be_outcomes(values):
            source = rows[0].source
            raise PromptError(
                f"{source}: {shown(field)} may tell which attacks succeeded, and no column is read that does; "
                f"'{source}:success={field}' reads it, if a yes (1, true) there is a success, "
                f"'{source}:ignore={field}' takes all attacks for successes"
            )


def _may_be_outcomes(values: Sequence[object]) -> bool:
    """Whether these are numbers, yes and no, or a few words that differ: the name of a judge is the same everywhere."""
    words = {plain_word(value) for value in values}
    if all(_is_number(value) for value in values) or words <= {*YES, *NO}:
        return True
    return 1 < len(words) <= _MOST_OUTCOMES and all(len(word.split()) <= 2 for word in words)


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def seems_to_hold(field: str, rows: Sequence[Row]) -> Role | None:
    """What a column holds, by its name or by its values; None if it is nothing of ours."""
    role = role_of(field, rows)
    if role is not None:
        return role
    if _names_a_split(field, rows):
        return Role.SPLIT
    values = filled_cells(field, rows)
    plain = field.casefold()
    if not values or plain.startswith(("model", "num")):
        return None
    if any(word in plain for word in _OF_SOMETHING_ELSE):
        # A type or a source may tell the label or the split even so; a reply's does not.
        return None if any(word in plain for word in REPLIES) else _of_words(values)
    asks = _speaks_of_asking(plain)
    if any(looks_like_turns(value) or (asks and _are_texts(value)) for value in values):
        return Role.MESSAGES
    if asks and _are_sentences(values):
        return Role.PROMPT
    if any(word in plain for word in _JUDGING) and _are_yes_and_no(values):
        return None if _has_replies(rows) else Role.LABEL  # it may be said of those
    return _of_words(values)


def _names_a_split(field: str, rows: Sequence[Row]) -> bool:
    """Whether a column says yes or no to a split: `is_test`, `holdout`."""
    name = loose(field).removeprefix("is").removeprefix("in")
    values = filled_cells(field, rows)
    words = {plain_word(value) for value in values}
    return name in (*SPLIT_WORDS, "holdout", "heldout") and bool(words) and words <= {*YES, *NO}


def hint_of_label(rows: Sequence[Row], fields: Sequence[str]) -> str:
    """Which column may hold the labels of a file that has none by that name; empty if none seems to."""
    source = rows[0].source
    for field in fields:
        values = filled_cells(field, rows)
        words = {plain_word(value) for value in values}
        if len(words) > 1 and words <= set(LABEL_WORDS):
            return f"; '{source}:label={field}' reads the labels from {shown(field)}"
        if len(words) > 1 and _are_yes_and_no(values):
            yes, no = (next(w for w in sorted(words) if w in side) for side in (YES, NO))
            options = f"label={field},unsafe={yes},safe={no}"
            return f"; '{source}:{options}' reads the labels from {shown(field)}, if that is its meaning"
    return ""


def _of_words(values: Sequence[object]) -> Role | None:
    """Whether a column holds nothing but words of a label or of a split, and more than one of them."""
    words = {plain_word(value) for value in values}
    if len(words) < 2:
        return None  # what is the same in every row tells nothing apart
    if words <= set(LABEL_WORDS):
        return Role.LABEL
    return Role.SPLIT if words <= set(SPLIT_WORDS) else None


def _speaks_of_asking(name: str) -> bool:
    words = set(re.split(r"[^a-z0-9]+", name))
    return bool(words & _ASKING_ALONE) or any(part in loose(name) for part in _ASKING)


def _has_replies(rows: Sequence[Row]) -> bool:
    return any(
        any(word in field for word in REPLIES) and not is_empty(field, rows)
        for field in fields_of(rows)
    )


def _are_texts(value: object) -> bool:
    """Whether this is a list of texts, or of lists of them, as some programs keep earlier turns."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(item, str) or _are_texts(item) for item in value)


def _are_sentences(values: Sequence[object]) -> bool:
    """Whether these are texts of several words, and not the same in every row."""
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values) or (len(texts) > 1 and len(set(texts)) == 1):
        return False
    return sum(len(text.split()) for text in texts) >= _FEWEST_WORDS * len(texts)


def _are_yes_and_no(values: Sequence[object]) -> bool:
    words = {plain_word(value) for value in values}
    return bool(words & set(YES)) and bool(words & set(NO)) and words <= {*YES, *NO}


def _harmful_rows(field: str, rows: Sequence[Row]) -> list[bool | None]:
    """Which rows a column of labels, or of yes and no, calls harmful; None where it says nothing."""
    good = any(word in field.replace("unsafe", "").casefold() for word in _GOOD)
    found: list[bool | None] = []
    for row in rows:
        word = plain_word(row.values.get(field))
        is_yes = word in YES
        label = LABEL_WORDS.get(word)
        if is_yes or word in NO:
            found.append(is_yes is not good)
        else:
            found.append(None if label is None else label is Label.UNSAFE)
    return found


def _agree(first: str, other: str, rows: Sequence[Row]) -> bool:
    """Whether two columns call the same rows harmful, as far as both say it."""
    pairs = zip(_harmful_rows(first, rows), _harmful_rows(other, rows), strict=True)
    return all(a is b for a, b in pairs if a is not None and b is not None)


def _other_reading(
    said: str, field: str, role: Role, rows: Sequence[Row], is_labelled: bool
) -> str:
    """The words that read the column; `said` is the file, behind the label if the user has said it."""
    if role is Role.PROMPT and set(re.split(r"[^a-z0-9]+", field.casefold())) & _ABOUT:
        return f", '{said}:input={field}' puts it below the prompt"
    if role in (Role.PROMPT, Role.MESSAGES):
        is_labelled |= any(role_of(name, rows) is Role.LABEL for name in fields_of(rows))
        more = "" if is_labelled else ",label=unsafe"
        return f", '{said}:{'column' if role is Role.PROMPT else role}={field}{more}' reads it"
    if role is Role.SUCCESS:
        return f", '{rows[0].source}:success={field},format=jailbreak' reads the file as results of attacks"
    if role is Role.SPLIT and _names_a_split(field, rows):
        return f"; a column 'split' says {', '.join(Split)} in every row"
    if role_of(field, rows) is None:  # its values tell, and its name does not
        return f", '{said}:{role}={field}' reads it as the {role}"
    return f", '{said}:format=rows' reads the file as plain rows"
