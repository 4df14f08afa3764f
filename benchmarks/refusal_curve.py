"""Refusal against over-refusal with a share of what the hardened model differs in from its base.

    python -m benchmarks.refusal_curve runs/smollm2-moe [--shares 1 0.9 0.8 0.7 0.6] [--split test]
        [--more-runs runs/seed1 runs/seed2] [--svg docs/refusal-curve.svg]

For each share s the weights are `base + s * (hardened - base)`. The run is copied, never changed. Where it was
trained with `train.kept_change` below 1, shares are of what was kept. Of several runs, means come last.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.arguments import parser_of_a_run
from benchmarks.statistics import show
from benchmarks.svg import Axes, document
from steermoe.loading import model_source
from steermoe.pipeline import run_pipeline
from steermoe.store.names import EVALUATION, MODEL
from steermoe.store.run import load_run

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.4)
SHARE = "share of the change"
OVER_REFUSAL = {"look-alikes": "over_refusal_rate_look_alike", "benign": "over_refusal_rate"}
RATES = {"refusal": "refusal_rate"} | OVER_REFUSAL


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    found: dict[str, Tensor] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        found |= load_file(file)
    return found


def write_share(base: dict[str, Tensor], hardened: Path, share: float, to: Path) -> None:
    """A checkpoint with a share of the change, in the files and the layout of the hardened one."""
    shutil.copytree(hardened, to, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in sorted(hardened.glob("*.safetensors")):
        tensors = load_file(file)
        for name, after in tensors.items():
            before = base[name]
            if not before.equal(after):
                mixed = before.float().lerp(after.float(), share)
                tensors[name] = mixed.to(after.dtype)
        save_file(tensors, to / file.name, metadata={"format": "pt"})


def points(run_dir: Path, shares: list[float], split: str) -> Iterator[dict[str, object]]:
    """The figures of each share."""
    source = load_run(run_dir)
    settings = source.config
    base = tensors_of(Path(model_source(settings.model)))
    for share in shares:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "run"
            # Without its figures: where they are of the same split, they would be taken for those of the new weights.
            left_out = shutil.ignore_patterns(MODEL, EVALUATION, ".lock")
            shutil.copytree(run_dir, copy, ignore=left_out)
            write_share(base, run_dir / MODEL, share, copy / MODEL)
            config = settings.model_copy(
                update={
                    "run": str(copy),
                    "evaluate": settings.evaluate.model_copy(update={"split": split}),
                }
            )
            figures = run_pipeline(config, only="evaluate").evaluation
        hardened, divergence = figures["hardened"], figures["paired"]["kl_per_token"]
        yield (
            {SHARE: share}
            | {heading: 100 * hardened[name]["value"] for heading, name in RATES.items()}
            | {"KL": divergence["value"]}
        )


def picture(means: pd.DataFrame) -> str:
    """Refusal against each kind of over-refusal, a point a share."""
    curve = Axes(
        "Keeping a share of the change", "over-refusal, %", "refusal of harmful requests, %"
    )
    for kind in OVER_REFUSAL:
        curve.line(kind, means[kind], means["refusal"])
        curve.points(means[kind], means["refusal"])
    return document([curve])


def show_points(table: pd.DataFrame) -> None:
    """Print rates in whole per cents."""
    show(
        table.assign(
            **{name: table[name].map("{:.0f}".format) for name in RATES},
            KL=table["KL"].map("{:.3f}".format),
        )
    )


def main() -> None:
    parser = parser_of_a_run("refusal_curve", __doc__)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument(
        "--more-runs", type=Path, nargs="+", default=(), help="runs with other seeds"
    )
    parser.add_argument("--svg", type=Path, help="draw the mean of the runs into this file")
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found = []
    for run in (chosen.run, *chosen.more_runs):
        for point in points(run, chosen.shares, chosen.split):
            found.append(point)
            # One table a row, so that nothing is lost where somebody stops it.
            show_points(pd.DataFrame([{"run": run.name} | point]))
    means = pd.DataFrame(found).groupby(SHARE, sort=False, as_index=False).mean()
    show_points(means)
    if chosen.svg is not None:
        chosen.svg.write_text(picture(means), encoding="utf-8")


if __name__ == "__main__":
    main()
