"""The replies that the page shows: a few to harmless prompts, and to unsafe ones only if asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from steermoe.records import Verdict
from steermoe.report.material import HARMLESS, KIND_NAMES, Material, kind_of

T = TypeVar("T")

EXAMPLES_OF_A_KIND = 3
"""Harmless prompts shown of each kind."""

MAX_LISTED = 200
"""Prompts that a list shows; the page says how many there are."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as the page shows it; its text is empty where it stays hidden."""

    verdict: str
    text: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A prompt with the replies of both models, as far as there are any."""

    kind: str
    goal: str
    turns: list[dict[str, str]]
    before: Reply
    after: Reply | None

    @property
    def last(self) -> str:
        """The verdict on the newest reply."""
        return (self.after or self.before).verdict


def replies(material: Material) -> dict[str, object]:
    """What the template reads of the replies, those to unsafe prompts sorted by their newest verdict."""
    entries = _entries(material)
    harmless = [entry for entry in entries if entry.kind in HARMLESS]
    harmful = [entry for entry in entries if entry.kind not in HARMLESS]
    order = {Verdict.ANSWERED: 0, Verdict.UNSCORED: 1, Verdict.REFUSED: 2}
    harmful.sort(key=lambda entry: order[Verdict(entry.last)])
    not_answered = [entry for entry in harmless if entry.last != Verdict.ANSWERED]
    examples = [
        entry
        for kind in HARMLESS
        for entry in evenly_spaced([e for e in harmless if e.kind == kind], EXAMPLES_OF_A_KIND)
    ]
    return {
        "examples": examples,
        "not_answered": not_answered[:MAX_LISTED],
        "num_not_answered": len(not_answered),
        "num_harmless": len(harmless),
        "harmful": harmful[:MAX_LISTED],
        "num_harmful": len(harmful),
        "harmful_verdicts": sorted(Counter(entry.last for entry in harmful).items()),
        "show_harmful": material.config.report.show_harmful,
        "has_after": material.hardened is not None,
        "kind_names": KIND_NAMES,
    }


def _entries(material: Material) -> list[Entry]:
    """The prompts of the evaluated split with their verdicts; replies only where they may be shown."""
    prompts = {prompt.prompt_id: prompt for prompt in material.prompts}
    after = {}
    if material.hardened is not None:
        after = {row["prompt_id"]: row for row in material.hardened.to_dict("records")}
    entries = []
    responses = material.responses
    for row in responses[responses["split"] == material.split].to_dict("records"):
        prompt = prompts[row["prompt_id"]]
        kind = kind_of(prompt)
        show = kind in HARMLESS or material.config.report.show_harmful
        hardened = after.get(row["prompt_id"])
        entries.append(
            Entry(
                kind=kind,
                goal=prompt.goal,
                turns=[dict(message) for message in prompt.messages] if show else [],
                before=_reply(row, show),
                after=None if hardened is None else _reply(hardened, show),
            )
        )
    return entries


def _reply(row: Mapping[Any, Any], show: bool) -> Reply:
    return Reply(str(row["verdict"]), str(row["generated_text"]) if show else "")


def evenly_spaced(entries: Sequence[T], count: int) -> list[T]:
    """So many of the entries, spread over all of them."""
    if len(entries) <= count:
        return list(entries)
    return [entries[i * len(entries) // count] for i in range(count)]
