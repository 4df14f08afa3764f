"""Results of jailbreak attacks: what was asked for, how it was put, and whether the model gave in.

Several programs write such results. They differ in names, and in what stands for a success:

    id, goal, all_prompt, judge_success_gpt4                          the files of this project's users
    prompt, target, all_prompt or attack_prompt, and a score           `prompt` is the goal
    goal, prompt, jailbroken                                           JailbreakBench artifacts
    forbidden_prompt, jailbroken_prompt, score                         StrongREJECT results
    behaviorid, test_case, label                                       HarmBench results: no goal, so no pair
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from steermoe.errors import PromptError
from steermoe.prompts.columns import Role, fields_of, meaning
from steermoe.prompts.conversations import TurnsTally, read_conversation, read_turns
from steermoe.prompts.labels import NO, YES, read_split
from steermoe.prompts.rows import (
    Reading,
    Row,
    Wanted,
    counted,
    is_blank,
    plain_word,
    row_keys,
    shown,
)
from steermoe.prompts.strict_json import load_json
from steermoe.records import PLAIN_GOAL, Label, Prompt

PLAIN_SYSTEM_MESSAGE = "You are a helpful assistant."
"""Put before a jailbreak's goal when the goal is asked plainly."""

JAILBREAK_CATEGORY = "jailbreak"

GOALS = ("goal", "forbidden_prompt", "prompt")
"""Where the goal stands; the first that a file has. `prompt` is one only beside an attack of another name."""

ATTACKS = (
    "all_prompt", "attack_prompt", "jailbroken_prompt", "jailbreak_prompt", "adversarial_prompt", "prompt",
)  # fmt: skip
"""Where the attack stands; in each row the first that holds anything."""

_SUCCESS_FIELDS = ("judge_success_gpt4", "judge_success", "attack_success", "success", "jailbroken")
_SCORES = ("inception_attack_score", "judge_result.score", "judge_result")
_STRONGREJECT_SCORE = "score"


def goal_and_attacks(fields: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """The column of the goal and those of the attack, by the names of columns; None if the two are not there."""
    named = [field for field in ATTACKS[:-1] if field in fields]
    goal = next((field for field in GOALS if field in fields), None)
    if goal in (None, "prompt"):
        return (goal, tuple(named)) if goal and named else None
    if named:
        return str(goal), tuple(named)
    tells = any(success_rank(field) is not None for field in fields)
    return (str(goal), ("prompt",)) if "prompt" in fields and tells else None


def success_rank(field: str) -> int | None:
    """The place of a column among those that tell a success: the first with a value decides. None if it tells none."""
    order = (*_SUCCESS_FIELDS, *_SCORES)
    if field in order:
        return order.index(field)
    if meaning(field) is Role.SUCCESS and field != "jailbreak":  # which mostly names the attack
        return len(order)
    return None


def success_fields(fields: Sequence[str]) -> list[str]:
    """Columns that tell whether an attack succeeded, those first that decide."""
    ranked = [(rank, field) for field in fields if (rank := success_rank(field)) is not None]
    if {"forbidden_prompt", "jailbroken_prompt", _STRONGREJECT_SCORE} <= set(fields):
        ranked.append((len(fields) + len(_SCORES) + len(_SUCCESS_FIELDS), _STRONGREJECT_SCORE))
    return [field for _, field in sorted(ranked)]


def read_jailbreaks(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """Each row gives a pair: the attack as it stands, and its goal asked plainly.

    Rows whose success field says no are left out and counted; a row without one counts as a success. Of several
    such fields, the first that holds anything decides.
    """
    fields = fields_of(rows)
    goal, attacks = goal_and_attacks(fields) or ("goal", ("all_prompt",))
    success = _Success(rows, success_fields(fields))
    tally = TurnsTally()
    prompts: list[Prompt] = []
    failed = absent = 0
    for row, key in zip(rows, row_keys(rows, "id"), strict=True):
        succeeded = success.of(row)
        attack = next(
            (field for field in attacks if row.has(field) and row.value(field) != []), None
        )
        if attack is None and not succeeded:
            absent += 1  # artifacts have no prompt where none was found
            continue
        # A malformed row is an error even if it failed.
        pair = _pair(row, key, (goal, attack or attacks[0]), wanted, tally)
        if succeeded or wanted.include_failed:
            prompts.extend(pair)
        else:
            failed += 1
    if not prompts:
        way_out = "; prompts.include_failed = true keeps them" if failed else ""
        raise PromptError(
            f"{rows[0].source}: none of its {len(rows)} jailbreaks succeeded, so no row is left{way_out}"
        )
    read = f"goals are read from {shown(goal)}, attacks from {' or '.join(map(shown, attacks))}"
    notes = [read, *success.notes(), *_left_out(failed, "the jailbreak did not succeed")]
    notes += _left_out(absent, "the jailbreak did not succeed, and its text is missing")
    return prompts, [*notes, *tally.notes()]


def read_harmbench_results(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """HarmBench results: `behaviorid, test_case, label`. They hold no goals, so they give no pairs.

    What a behaviour is called stands for its goal: attacks on one behaviour are never on two sides of a split.
    """
    success = _Success(rows, ["label"])
    tally = TurnsTally()
    prompts = []
    failed = 0
    for row in rows:
        behaviour = row.identifier("behaviorid") or row.text("behaviorid")
        messages = read_conversation(row, "test_case", tally)
        if not success.of(row) and not wanted.include_failed:
            failed += 1
            continue
        prompts.append(
            Prompt(
                prompt_id=f"harmbench-attack-{row.padded_number}",
                label=Label.UNSAFE,
                messages=messages,
                goal=behaviour.replace("_", " "),
                category=JAILBREAK_CATEGORY,
                split=read_split(row),
                source=wanted.name,
            )
        )
    if not prompts:
        raise PromptError(
            f"{rows[0].source}: none of its {failed} attacks succeeded, so no row is left; "
            "prompts.include_failed = true keeps them"
        )
    note = "the file holds no goals: behaviours are told apart by their ids, and there are no pairs"
    left_out = _left_out(failed, "the jailbreak did not succeed")
    return prompts, [note, *success.notes(), *left_out, *tally.notes()]


class _Success:
    """Whether attacks succeeded, by the first of a file's columns that holds anything in a row."""

    def __init__(self, rows: Sequence[Row], fields: Sequence[str]) -> None:
        """Remember the columns.

        Args:
            rows: The rows of the file. The user may have named one column in them, which is then the only one.
            fields: Columns that tell, those first that decide.
        """
        declared = rows[0].columns.get(Role.SUCCESS)
        self.fields = [declared] if declared else list(fields)
        self._told: Counter[str] = Counter()

    def of(self, row: Row) -> bool:
        """Whether a row's attack succeeded; it did where nothing says otherwise.

        Raises:
            PromptError: What the row says is neither a yes nor a no.
        """
        for field in self.fields:
            value = row.value(field)
            if field in _SCORES:
                value = _score_in(value)
            if is_blank(value):
                continue
            self._told[field] += 1
            if field in (*_SCORES, _STRONGREJECT_SCORE):
                return _is_positive(row, field, value)
            word = plain_word(value)
            if word in (*YES, *NO):
                return word in YES
            raise row.error(field, f"{shown(value)} is neither a yes (1, true) nor a no (0, false)")
        self._told[""] += 1
        return True

    def notes(self) -> list[str]:
        """By which columns it was told."""
        notes = []
        for field in self.fields:
            if self._told[field]:
                rule = " (above 0)" if field in (*_SCORES, _STRONGREJECT_SCORE) else ""
                number = counted(self._told[field], "row")
                notes.append(f"success is read from {shown(field)}{rule} in {number}")
        if self._told[""]:
            number = counted(self._told[""], "row")
            notes.append(f"{number} of attacks that nothing says failed count as successes")
        return notes


def _score_in(value: object) -> object:
    """The score in a judge's result, which may be an object of several things, in CSV as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = load_json(value)
        except (ValueError, RecursionError):
            return value
    return value.get("score") if isinstance(value, Mapping) else value


def _is_positive(row: Row, field: str, value: object) -> bool:
    try:
        return float(str(value)) > 0
    except ValueError:
        raise row.error(field, f"{shown(value)} is no score; a number is needed") from None


def _left_out(number: int, why: str) -> list[str]:
    return (
        [f"{number} {'row was' if number == 1 else 'rows were'} left out: {why}"] if number else []
    )


def _pair(
    row: Row, key: str, columns: tuple[str, str], wanted: Wanted, tally: TurnsTally
) -> tuple[Prompt, Prompt]:
    """The plain goal of an attack, and the attack."""
    goal_column, attack_column = columns
    goal = row.text(goal_column)
    name = f"jailbreak-{key}"
    split = read_split(row)
    read = read_turns if attack_column == ATTACKS[0] else read_conversation
    plain = ({"role": "system", "content": PLAIN_SYSTEM_MESSAGE}, {"role": "user", "content": goal})
    unsafe = Prompt(
        prompt_id=f"{name}-unsafe",
        label=Label.UNSAFE,
        messages=read(row, attack_column, tally),
        goal=goal,
        pair_id=name,
        category=row.optional_text("category") or JAILBREAK_CATEGORY,
        split=split,
        source=wanted.name,
    )
    safe = Prompt(
        prompt_id=f"{name}-safe",
        label=Label.SAFE,
        messages=plain,
        goal=goal,
        pair_id=name,
        category=PLAIN_GOAL,
        split=split,
        source=wanted.name,
    )
    return safe, unsafe
