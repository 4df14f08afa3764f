"""Generated prompt files and settings through `steermoe prompts` and `plan`: `python -m benchmarks.cases.generated`.

Counts how many were done and how many refused in one line; any other end, and any row or column of which nothing is
said, is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import benchmarks.cases  # noqa: F401  # the tests' modules can be imported from here on
import generated_files
import generated_runs
from conftest import save_tiny_checkpoint


def tried(folder: Path, examples: int, first: int, command: str) -> tuple[Counter[str], list[str]]:
    """How so many generated inputs of one command ended, and what was wrong with any."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    strategies: list[Any] = [generated_files.files()]
    if command == "plan":
        strategies.append(generated_runs.assignments())

    @seed(first)
    @given(st.tuples(*strategies))
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def one(drawn: tuple[Any, ...]) -> None:
        attempt: Any = generated_runs.try_plan if command == "plan" else generated_runs.try_prompts
        try:
            ran, fault = attempt(folder, *drawn)
        except Exception:
            counts["traceback"] += 1
            faults.append(f"{drawn[1:]} {drawn[0]}\n{traceback.format_exc()}")
            return
        counts[{0: "done", 1: "refused", 2: "wrong usage"}.get(ran.code, "other")] += 1
        if fault:
            counts["fault"] += 1
            faults.append(f"{fault}\n{drawn[1:]} {drawn[0]}\n{ran.out}\n{ran.err}")

    one()
    return counts, faults


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cases.generated", description=__doc__
    )
    parser.add_argument("--examples", type=int, default=1000, help="inputs of each command")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix="generated-"))
    save_tiny_checkpoint("mixtral", folder / "model")
    (folder / "model" / "model.safetensors").unlink()
    bad = False
    with generated_runs.working_in(folder):
        for command in ("prompts", "plan"):
            counts, faults = tried(folder, chosen.examples, chosen.seed, command)
            print(
                f"steermoe {command}: {sum(counts.values()) - counts['fault']} inputs, {dict(counts)}"
            )
            for fault in faults[:10]:
                print(f"  {fault}")
            bad = bad or bool(faults)
    sys.exit(bad)


if __name__ == "__main__":
    main()
