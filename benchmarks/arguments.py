"""The command line of benchmarks that read a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser_of_a_run(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser that asks for a run directory.

    Args:
        name: The benchmark's module.
        description: Its docstring, shown as it is.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path)
    return parser
