"""What the scripts that make a run share: their arguments, and where a run and its model are put.

`--output_dir D` keeps the run in `D/run`, so that any stage can go on from there, and puts the hardened model into
`D/final_model`.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steermoe.config import EMBEDDED_MODEL, Config, load_config
from steermoe.errors import SteerMoEError, TrainingError

if TYPE_CHECKING:
    from steermoe.store.run import Run

FINAL_MODEL = "final_model"


def parser_of(description: str, output_dir: str) -> argparse.ArgumentParser:
    """The arguments that all of the scripts take. What is not given is left to the package's defaults."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What is not given has its default of docs/settings.md.",
    )
    parser.add_argument(
        "--model_name",
        default=EMBEDDED_MODEL,
        help="a local directory or a hub id [default: %(default)s]",
    )
    parser.add_argument("--output_dir", default=output_dir, help="[default: %(default)s]")
    parser.add_argument("--prompts", action="append", help="a prompt file; repeatable")
    parser.add_argument("--batch_size", type=int, help="prompts of a mixed batch")
    parser.add_argument("--safe_ratio", type=float, help="share of safe prompts of a mixed batch")
    parser.add_argument("--seed", type=int, help="seeds everything random")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="any other setting"
    )
    parser.add_argument("--quiet", action="store_true", help="plain lines instead of bars")
    return parser


def training_parser_of(description: str, output_dir: str) -> argparse.ArgumentParser:
    """The same, and those of training."""
    parser = parser_of(description, output_dir)
    parser.add_argument("--num_epochs", type=float, help="passes over the mixed batches")
    parser.add_argument("--learning_rate", type=float, help="peak learning rate")
    parser.add_argument(
        "--gradient_accumulation_steps", type=int, help="micro-batches of one optimizer step"
    )
    return parser


def run_config(arguments: argparse.Namespace, train: dict[str, Any] | None = None) -> Config:
    """The settings of a run.

    Args:
        arguments: Of one of the parsers above.
        train: Training settings that the script itself decides on.

    Raises:
        ConfigError: A value is not allowed.
    """
    given = vars(arguments)
    overrides = {
        "run": str(Path(arguments.output_dir) / "run"),
        "seed": arguments.seed,
        "model": {"id": arguments.model_name},
        "prompts": {"sources": arguments.prompts},
        "collect": {"batch_size": arguments.batch_size, "safe_ratio": arguments.safe_ratio},
        "train": {
            "epochs": given.get("num_epochs"),
            "learning_rate": given.get("learning_rate"),
            "arguments": {"gradient_accumulation_steps": given.get("gradient_accumulation_steps")},
            **(train or {}),
        },
    }
    return load_config(settings=given["set"], overrides=overrides)


def train_and_publish(arguments: argparse.Namespace, train: dict[str, Any]) -> None:
    """Run every stage that is not done yet, print the figures, and put the model into `final_model`."""
    from steermoe.cli.display import summary
    from steermoe.pipeline import run_pipeline
    from steermoe.reporter import Reporter, plain_stdout

    config = run_config(arguments, train)
    run = run_pipeline(config, reporter=Reporter(quiet=arguments.quiet))
    plain_stdout().print(summary(run))
    print(f"the hardened model is in {_publish(run, Path(arguments.output_dir) / FINAL_MODEL)}")


def _publish(run: Run, final: Path) -> Path:
    """Make `final` an ordinary model directory of its own; where links can be made it takes no space."""
    from steermoe.store.names import MODEL

    model = run.directory.file(MODEL)
    shutil.rmtree(final, ignore_errors=True)
    if not model.is_dir():
        raise TrainingError(f"no expert was selected, so there is no {final}; see the note above")
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(model, partial, copy_function=_link_or_copy)
    partial.replace(final)
    return final


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Print what the user can mend as one line, and exit with 1; with 130 when interrupted."""
    try:
        yield
    except SteerMoEError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped")
        raise SystemExit(130) from None
