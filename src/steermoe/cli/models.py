"""`steermoe models`: the architectures that are supported, and what one model looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from steermoe.cli.options import print_result

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

TRAINED_COSTS = 50
"""How many trained experts the cost is given of."""


def models(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[ID_OR_PATH]", help="A model to describe; without it, the list."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")
    ] = None,
) -> None:
    """List the supported architectures, or describe one model from its config alone."""
    print_result(one_model(model, revision) if model is not None else all_models())


def all_models() -> Group:
    """Every architecture, supported or refused with its reason."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from steermoe.moe.support import supported_architectures

    known = supported_architectures()
    supported = [entry for entry in known if entry.is_supported]
    table = Table(
        "architecture", "class", title=f"{len(supported)} supported architectures", box=None
    )
    for entry in supported:
        table.add_row(entry.model_type, entry.class_name)
    refused = Table("architecture", "why not", title="refused", box=None)
    for entry in known:
        if not entry.is_supported:
            refused.add_row(entry.model_type, entry.reason)
    return Group(table, Text(), refused)


def one_model(model: str, revision: str | None) -> Table:
    """What a model looks like, from its config alone."""
    from rich.table import Table
    from rich.text import Text

    from steermoe.config import load_config
    from steermoe.loading import describe_named
    from steermoe.report.numbers import ranges
    from steermoe.units import gibibytes

    own = {"id": model, "revision": revision, "dequantize": True}
    description = describe_named(load_config(overrides={"model": own}).model)
    layers = description.layers
    table = Table(
        title=Text(f"{model} ({description.architecture})"),
        title_justify="left",
        show_header=False,
        box=None,
    )
    table.add_row(
        "MoE layers", f"{len(layers)} (decoder layers {ranges(description.layer_indices)})"
    )
    table.add_row(
        "experts of a layer",
        f"{description.num_experts}, of which {description.top_k} run for a token",
    )
    shares = any(layer.has_shared_experts for layer in layers)
    table.add_row("shared experts", "yes" if shares else "no")
    table.add_row("parameters of an expert", f"{description.parameters_per_expert:,}")
    unpacked = gibibytes(description.bytes_in_bfloat16)
    table.add_row("all weights in bfloat16", unpacked)
    if description.quantization is not None:
        table.add_row(
            "weights are packed as", f"{description.quantization}; packed experts cannot be trained"
        )
        table.add_row("to unpack them", f"model.dequantize=true, with {unpacked} of memory for all")
    cost = description.bytes_to_train(TRAINED_COSTS)
    table.add_row(
        f"{TRAINED_COSTS} trained experts",
        f"{gibibytes(cost)} beyond the weights (masters, gradients, Adam)",
    )
    return table
