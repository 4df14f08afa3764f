"""Which variants of the model a run has tables of, beside the base and the hardened one."""

from __future__ import annotations

from steermoe.analysis.ablation import INTACT, RANDOM, Ablation
from steermoe.store.directory import RunDirectory
from steermoe.store.names import CONTROL, WITHOUT


def ablated_variants(run: RunDirectory, folder: str) -> list[str]:
    """The ablated variants that have a table in a folder: `replies` or `scored`."""
    return sorted(path.stem for path in run.file(folder).glob(f"*{WITHOUT}*.parquet"))


def control_variants(run: RunDirectory, folder: str) -> list[str]:
    """The controls that have a table in a folder."""
    return sorted(path.stem for path in run.file(folder).glob(f"{CONTROL}*.parquet"))


def variant_name(model: str, ablation: Ablation) -> str:
    """`base-without-selected`, `hardened-without-random-03`, `base-without-none`."""
    name = "none" if ablation.name == INTACT else ablation.name
    draw = f"-{ablation.draw:02d}" if ablation.name == RANDOM else ""
    return f"{model}{WITHOUT}{name}{draw}"


def intact_variant(model: str) -> str:
    """The variant of a model in which no expert is switched off, though its routers are masked as in the others."""
    return variant_name(model, Ablation(INTACT))
