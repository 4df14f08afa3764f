"""What becomes of files, checkpoints and settings that people have, as a table: `python -m benchmarks.cases [FOLDER]`.

FOLDER holds prompt files; the checkpoints and settings are made here. Each case is one of five classes: read, refused
in one line, misleading or late, silent wrong, traceback.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

CACHE = Path(tempfile.mkdtemp(prefix="cases-"))
os.environ |= {
    "HF_HOME": str(CACHE / "hub"),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

from benchmarks.cases import models, replies, settings  # noqa: E402, F401  # the cache is chosen before
from benchmarks.cases.files import file_cases  # noqa: E402
from benchmarks.cases.room import CLASSES, TRACEBACK, Case, Outcome, Room  # noqa: E402


def outcomes(cases: Sequence[Case]) -> Iterator[tuple[Case, Outcome]]:
    """Each case in a folder of its own."""
    for case in cases:
        folder = CACHE / case.name
        folder.mkdir()
        try:
            yield case, case.try_it(Room(folder))
        except Exception as error:
            yield case, Outcome(TRACEBACK, f"{type(error).__name__}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cases", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="prompt files of the cases")
    parser.add_argument("--only", nargs="*", default=[""], help="cases whose names begin so")
    chosen = parser.parse_args()
    cases = [*(file_cases(chosen.folder) if chosen.folder else []), *models.CASES]
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    print("| case | what | before | now | what is said |\n| --- | --- | --- | --- | --- |")
    for case, outcome in outcomes([c for c in cases if c.name.startswith(tuple(chosen.only))]):
        before[case.before] += 1
        after[outcome.kind] += 1
        words = outcome.words.replace(str(CACHE), "...").replace("|", "\\|").replace("\n", " ")
        if chosen.folder:
            words = words.replace(f"{chosen.folder}/", "")
        print(
            f"| {case.name} | {case.what} | {case.before} | {outcome.kind} | {words} |", flush=True
        )
    print("\n| class | before | now |\n| --- | --- | --- |")
    for kind in CLASSES:
        print(f"| {kind} | {before[kind]} | {after[kind]} |")


if __name__ == "__main__":
    main()
