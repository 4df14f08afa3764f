"""Measure speed and memory, and print them as a table: `python -m benchmarks [measure ...]`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

MEASURES = (
    "full_gradient",
    "full_gradient_fused",
    "memory",
    "full_size",
    "lora",
    "masked",
    "trainer_step",
    "lower_states",
    "distinct_tokens",
    "counting",
    "recording",
    "reading",
    "decoding",
)
SIDES = ("slices", "full gradient", "LoRA")
THREADS = 2


def in_a_process(*arguments: str) -> Any:
    """Run one measure in a fresh process; its last line is JSON."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "--alone", *arguments]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def memory_rows() -> list[dict[str, str]]:
    """Memory beyond the weights, of each side in a process of its own."""
    beyond = {side: in_a_process("memory_of", side) for side in SIDES}
    detail = ", ".join(f"{side} {gib:.2f} GiB" for side, gib in beyond.items())
    return [
        {
            "measure": f"memory beyond the weights, against {against}",
            "target": f"at most {target} x",
            "result": f"{beyond['slices'] / beyond[against]:.2f} x",
            "detail": detail,
        }
        for against, target in (("full gradient", 0.2), ("LoRA", 0.5))
    ]


def alone(name: str, arguments: list[str], repeats: int) -> Any:
    """One measure, in this process."""
    from benchmarks import measures

    if name == "memory_of":
        return measures.memory_of(*arguments)
    if name == "profile":
        return measures.profile()
    return [asdict(row) for row in getattr(measures, name)(repeats)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("measures", nargs="*", help=f"any of {', '.join(MEASURES)}, profile")
    parser.add_argument("--repeats", type=int, default=9, help="turns that count")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.alone:
        print(json.dumps(alone(chosen.measures[0], chosen.measures[1:], chosen.repeats)))
        return
    print("| measure | target | result | figures |\n| --- | --- | --- | --- |")
    for name in chosen.measures or MEASURES:
        if name == "profile":
            print(in_a_process("profile"))
            continue
        repeats = f"--repeats={chosen.repeats}"
        for row in memory_rows() if name == "memory" else in_a_process(name, repeats):
            print("| " + " | ".join(row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
