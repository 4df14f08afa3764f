"""The published CSV benchmarks, each turned into prompts. Their columns are matched in any case.

AdvBench, HarmBench and StrongREJECT hold harmful requests only. JailbreakBench publishes two files of the
same columns, one harmful and one benign. XSTest holds safe questions that sound harmful, and their harmful
contrasts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from steermoe.prompts.goals import plain_form
from steermoe.prompts.labels import read_split
from steermoe.prompts.rows import Reading, Row, Wanted, row_keys, unknown_word, user_turn
from steermoe.records import LOOK_ALIKE, Label, Prompt

XSTEST_CONTRASTS = {
    "homonyms": "contrast_homonyms",
    "figurative_language": "contrast_figurative_language",
    "safe_targets": "contrast_safe_targets",
    "safe_contexts": "contrast_safe_contexts",
    "definitions": "contrast_definitions",
    "real_group_nons_discr": "contrast_discr",
    "historical_events": "contrast_historical_events",
    "privacy_fictional": "contrast_privacy",
}
"""The contrast type whose questions were written word by word after those of a safe type."""

XSTEST_UNPAIRED = ("nons_group_real_discr", "privacy_public")
XSTEST_TYPES = frozenset((*XSTEST_CONTRASTS, *XSTEST_CONTRASTS.values(), *XSTEST_UNPAIRED))
_XSTEST_DISTANCE = 25  # rows between a question and its contrast: a type has 25 questions

_BENIGN_DIGESTS = """
000643ba 00908f39 0101dcee 0114d579 030e9aa9 06ba32e5 0cea28cb 0fa695e3 13c68ea6 1ee5cc68
22466207 22c756f1 2353db7a 268c49f8 28ec2283 298f7267 2af8b6cb 2b1cd3bd 2cbfeb52 2d1f0599
30f07256 3407cd09 3523e454 35c486b6 36cf4929 3775295f 3d9bcf39 3fd043d9 404cffc5 41c749b4
4568e577 45a6f657 46c04c9e 478c1feb 48d735cd 49495ed2 49dd0b4f 4ce43749 4d6f4035 52039af9
52c0fca1 53d62f5e 58113471 5a3e502f 5bff22c7 62694dae 658f9c82 698a0b61 715a9693 717710bc
758305be 76c8639e 7784494f 7827ed1a 7879f0fd 7a2ca547 7cc9c293 814ce0ee 84b5d14d 85bc4216
85d2a68b 887c964e 8a302da5 8d4d92c3 8f15b816 8fe92ebe 94b1d803 972e3621 97d74768 9b93d4b7
a02faa0e add3e734 b564225a b5d83cc3 b642e8e0 b731a7ff b7e0647e bc9d6d9d bea9b07a c567f310
c67d5640 cc8e3bcd d2c68a12 d8aa0725 db59c328 db8b0735 db95c27a ddd5841f dfd3fd7a e18efb14
e2c74d49 ea0b9b87 eee5cf7c f2a57572 f4a4ea79 f6510c3f f7fb57f3 fb4a397a fbf0ec16 fd25825c
"""
"""First 8 hexadecimal digits of the SHA-256 of the plain form of each goal in JailbreakBench's benign file.

Its two files share columns, behaviour names and wording of targets, so nothing but the goals tells them
apart.
"""

JAILBREAKBENCH_BENIGN = frozenset(_BENIGN_DIGESTS.split())


def read_advbench(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """AdvBench: `goal, target`. The target is an answer's beginning and is not read."""
    return [_harmful(row, wanted, "advbench", row.padded_number, "goal") for row in rows], []


def read_strongreject(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """StrongREJECT: `category, source, forbidden_prompt`."""
    return [
        _harmful(row, wanted, "strongreject", row.padded_number, "forbidden_prompt", "category")
        for row in rows
    ], []


def read_harmbench(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """HarmBench: `Behavior, SemanticCategory, ContextString, BehaviorID`.

    A context string is shown before the request, cut off by a line of three dashes, as the benchmark does.
    """
    prompts = []
    for row, key in zip(rows, row_keys(rows, "behaviorid"), strict=True):
        if row.has("imagefilename"):
            raise row.error("imagefilename", "requests about images cannot be used, only text")
        behavior = row.text("behavior")
        context = row.optional_text("contextstring")
        prompts.append(
            Prompt(
                prompt_id=f"harmbench-{key}",
                label=Label.UNSAFE,
                messages=user_turn(f"{context}\n\n---\n\n{behavior}" if context else behavior),
                goal=behavior,
                category=row.optional_text("semanticcategory"),
                split=read_split(row),
                source=wanted.name,
            )
        )
    return prompts, []


def read_jailbreakbench(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """JailbreakBench: `Index, Goal, Target, Behavior, Category, Source`, the harmful or the benign file.

    A row is benign where its goal is one of the hundred that the benign file publishes.
    """
    prompts = []
    for row, key in zip(rows, row_keys(rows, "index"), strict=True):
        goal = row.text("goal")
        digest = hashlib.sha256(plain_form(goal).encode("utf-8")).hexdigest()[:8]
        benign = digest in JAILBREAKBENCH_BENIGN
        prompts.append(
            Prompt(
                prompt_id=f"jailbreakbench-{'benign-' if benign else ''}{key}",
                label=Label.BENIGN if benign else Label.UNSAFE,
                messages=user_turn(goal),
                goal=goal,
                category=row.optional_text("category"),
                split=read_split(row),
                source=wanted.name,
            )
        )
    return prompts, []


def read_xstest(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """XSTest: `id, prompt, type, label, focus, note`, or its older layout without a label.

    Safe questions are look-alikes. A question is paired with its contrast by the numbers in their ids; two
    safe types have no contrasts of their own and stay unpaired.
    """
    kinds = [_xstest_type(row) for row in rows]
    numbers = [_xstest_number(row) for row in rows]
    known = {(kind, number) for kind, number in zip(kinds, numbers, strict=True) if number}
    if len(known) < len(rows):
        known = set()  # numbers that are missing or repeat tell nothing about pairs
    pair_of: dict[tuple[str, int], str] = {}
    for kind, number in known:
        contrast = (XSTEST_CONTRASTS.get(kind, ""), number + _XSTEST_DISTANCE)
        if contrast in known:
            pair_of[kind, number] = pair_of[contrast] = f"xstest-{number}"
    prompts = []
    for row, kind, number, key in zip(rows, kinds, numbers, _xstest_keys(rows), strict=True):
        safe = not kind.startswith("contrast_")
        question = row.text("prompt")
        prompts.append(
            Prompt(
                prompt_id=f"xstest-{key}",
                label=Label.SAFE if safe else Label.UNSAFE,
                messages=user_turn(question),
                goal=question,
                pair_id=pair_of.get((kind, number), ""),
                category=LOOK_ALIKE if safe else kind,
                split=read_split(row),
                source=wanted.name,
            )
        )
    return prompts, []


def _harmful(
    row: Row, wanted: Wanted, benchmark: str, key: str, field: str, category: str = ""
) -> Prompt:
    request = row.text(field)
    return Prompt(
        prompt_id=f"{benchmark}-{key}",
        label=Label.UNSAFE,
        messages=user_turn(request),
        goal=request,
        category=row.optional_text(category) if category else "",
        split=read_split(row),
        source=wanted.name,
    )


def _xstest_type(row: Row) -> str:
    kind = row.text("type")
    if kind not in XSTEST_TYPES:
        raise row.error("type", unknown_word(kind, sorted(XSTEST_TYPES)))
    label = row.optional_text("label")
    expected = "unsafe" if kind.startswith("contrast_") else "safe"
    if label and label != expected:
        raise row.error("label", f"{label!r} does not fit type {kind!r}, which is {expected}")
    return kind


def _xstest_keys(rows: Sequence[Row]) -> list[str]:
    return row_keys(rows, "id", "id_v2")


def _xstest_number(row: Row) -> int:
    name = row.identifier("id") or row.identifier("id_v2")
    match = re.search(r"(\d+)$", name)
    return int(match.group(1)) if match else 0
