"""`steermoe plan`: what a run would cost, from the prompts and the model's config alone."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steermoe.cli.options import Options, print_result
from steermoe.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from steermoe.config import Config
    from steermoe.costs.placement import Need, Placement
    from steermoe.devices import Widths
    from steermoe.moe.description import MoEDescription
    from steermoe.moe.shape import ModelShape
    from steermoe.records import Prompt
    from steermoe.reporter import Reporter
    from steermoe.stages.collect import Planned

CHARACTERS_OF_A_TOKEN = 4
"""A rule of thumb: the tokenizer is not loaded for a plan."""

TEMPLATE_TOKENS = 24
"""What a chat template adds to a prompt, about."""

VLLM_SHARE = 0.9
"""Of each device's memory, what vLLM takes if it is not told otherwise."""


@dataclass(frozen=True)
class Machine:
    """The devices that a plan is made for.

    Attributes:
        devices: How many, all processes together; None takes those that there are.
        device_gib: Memory of one in GiB; None takes that of those that there are.
        processes: How many processes run; None takes what `torchrun` says.
    """

    devices: int | None = None
    device_gib: float | None = None
    processes: int | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is this one."""
        return self.devices is None and self.device_gib is None


def plan(
    options: Options,
    devices: Annotated[
        int | None,
        typer.Option("--devices", min=1, help="Plan for so many GPUs.", show_default="those here"),
    ] = None,
    device_gib: Annotated[
        float | None,
        typer.Option(
            "--device-memory",
            metavar="GIB",
            min=0,
            help="Memory of each.",
            show_default="as here; not known where --devices is given",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=1,
            help="Processes that torchrun starts.",
            show_default="WORLD_SIZE, or 1",
        ),
    ] = None,
) -> None:
    """Print memory, disk and steps of a run, from the model's config alone, and do nothing else.

    No model is built or downloaded; of a hub id, the config is read.
    """
    from steermoe.cli.steps import note_settings_without_effect

    config, reporter = options.new_config(), options.reporter
    note_settings_without_effect(config, reporter)
    print_result(plan_run(config, reporter, Machine(devices, device_gib, processes)))


def plan_run(config: Config, reporter: Reporter, machine: Machine | None = None) -> Table:
    """Memory, disk and steps of a run.

    Args:
        config: The settings of the run.
        reporter: Takes the notes about prompts.
        machine: What it is to run on; by default, this one.

    Returns:
        The plan as a table.

    Raises:
        SteerMoEError: Whatever would keep the run from starting: prompts, settings, an unsupported model.
    """
    from rich.table import Table

    from steermoe.loading import describe_named, shape_named, widths_named
    from steermoe.stages.collect import plan_groups, prepare_prompts
    from steermoe.stages.doubts import doubts_about_routing, doubts_about_training
    from steermoe.stages.ready import check_ready, check_replies_are_fed

    prompts = prepare_prompts(config, reporter)
    groups = plan_groups(prompts, config, reporter)
    description = describe_named(config.model)
    for doubt in (*doubts_about_routing(description), *doubts_about_training(config.train)):
        reporter.note(doubt)
    # Of a model that is not here, the config alone is.
    if Path(config.model.id, "tokenizer_config.json").is_file():
        check_ready(config, prompts)
    else:
        check_replies_are_fed(config)
    planned = [one for group in groups for one in group]
    num_batches = 1 + max(one.batch_idx for one in planned)

    table = Table(
        title=f"plan for {config.run_dir}", title_justify="left", show_header=False, box=None
    )
    table.add_row("model", f"{config.model.id} ({description.architecture})")
    _add_prompts(table, config, prompts, groups, num_batches)
    _add_training(table, config, description, num_batches)
    machine = machine or Machine()
    widths = widths_named(config.model, machine.is_here)
    _add_bytes(table, config, description, num_batches, widths)
    work = _Work(
        [_tokens(one, config) for one in planned],
        _most_selected(config, description, num_batches),
        _rows_of_a_step(config, prompts, num_batches),
    )
    _add_placement(table, config, shape_named(config.model), work, machine, widths)
    return table


def _add_prompts(
    table: Table,
    config: Config,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Planned]],
    num_batches: int,
) -> None:
    """What is generated: prompts, batches, tokens, benchmarks."""
    from steermoe.records import Label, Split

    num_planned = sum(map(len, groups))
    num_held_out = sum(p.split == config.evaluate.split for p in prompts)
    table.add_row(
        "prompts",
        ", ".join(f"{sum(p.label is label for p in prompts)} {label}" for label in Label)
        + f"; {sum(p.split is Split.TRAIN for p in prompts)} to train, {num_held_out} to evaluate",
    )
    table.add_row("mixed batches", f"{num_batches} of {config.collect.batch_size}")
    table.add_row(
        "generated tokens",
        f"at most {(num_planned + num_held_out) * config.collect.max_new_tokens:,}, in "
        f"{len(groups)} groups and once more for the {num_held_out} held-out prompts",
    )
    if config.evaluate.benchmarks:
        limit = config.evaluate.benchmark_limit
        most = "" if limit is None else f", at most {limit:,} samples of each"
        table.add_row("benchmarks", f"{', '.join(config.evaluate.benchmarks)} of both models{most}")


def _add_training(
    table: Table, config: Config, description: MoEDescription, num_batches: int
) -> None:
    """What is trained, and in how many steps."""
    num_experts = description.num_layers * description.num_experts
    most = config.train.batch_size or config.collect.batch_size
    parts_of_a_batch = math.ceil(config.collect.batch_size / most)
    steps = config.train.num_steps(num_batches * parts_of_a_batch)
    num_trained = _most_selected(config, description, num_batches)
    if config.train.trains_experts:
        table.add_row("trained experts", f"at most {num_trained} of {num_experts}")
    else:
        table.add_row("trained", f"{config.train.all_parameters}, a baseline")
    epochs = sum(phase.epochs for phase in config.train.all_phases())
    table.add_row("training steps", f"{steps} ({epochs:g} epochs)")


def _add_bytes(
    table: Table, config: Config, description: MoEDescription, num_batches: int, widths: Widths
) -> None:
    """Memory and disk that do not depend on devices."""
    from steermoe.units import gibibytes

    weights = description.num_parameters * widths.in_memory
    num_trained = _most_selected(config, description, num_batches)
    training, checkpoint = _bytes_to_train(config, description, num_trained, weights)
    table.add_row("memory, weights", gibibytes(weights))
    table.add_row(
        "memory, training",
        f"{gibibytes(training)} beside the weights, and activations",
    )
    table.add_row("disk, model", gibibytes(description.num_parameters * widths.stored))
    table.add_row("disk, checkpoints", f"{gibibytes(2 * checkpoint)} while training")


@dataclass(frozen=True)
class _Work:
    """What a run feeds and trains.

    Attributes:
        lengths: Tokens of each response, at most.
        num_trained: Experts that train, at most.
        rows: Of a micro-batch, benign ones among them.
    """

    lengths: list[int]
    num_trained: int
    rows: int


def _rows_of_a_step(config: Config, prompts: Sequence[Prompt], num_batches: int) -> int:
    """Most rows of a micro-batch, and the benign ones beside them."""
    from steermoe.records import Label, Split

    train, size = config.train, config.collect.batch_size
    parts = math.ceil(size / (train.batch_size or size))
    benign = train.benign_per_batch
    if benign is None:
        in_all = sum(p.label is Label.BENIGN and p.split is Split.TRAIN for p in prompts)
        benign = math.ceil(in_all / num_batches)
    return (train.batch_size or size) + math.ceil(benign / parts)


def _add_placement(
    table: Table,
    config: Config,
    shape: ModelShape,
    work: _Work,
    machine: Machine,
    widths: Widths,
) -> None:
    """Arithmetic, and what each device has to hold."""
    from steermoe.costs import passes
    from steermoe.costs.placement import Need, advice, fits, memory_of_a_device
    from steermoe.units import gibibytes

    total, longest = sum(work.lengths), max(work.lengths)
    context = total / len(work.lengths) / 2
    table.add_row("disk, routing", gibibytes(passes.routing_bytes(shape, len(work.lengths), total)))
    table.add_row(
        "arithmetic",
        f"{passes.forward_flops(shape, total, context) / 1e12:,.1f} TFLOP to collect, "
        f"{passes.step_flops(shape, 1, context, work.num_trained) / 1e9:,.1f} GFLOP to train on a token",
    )
    placement, device_bytes = _placement(config, machine)
    table.add_row("devices", str(placement))
    width = widths.in_memory
    rows = config.collect.generation_batch_size
    new = max(config.collect.max_new_tokens, config.evaluated_tokens)
    generating = Need(
        working=passes.generation_bytes(shape, rows, longest - config.collect.max_new_tokens, new)
    )
    training = _training_need(config, shape, work, longest, width)

    def judged(num_bytes: float) -> str:
        if device_bytes is None:
            return f"{gibibytes(num_bytes)} on the fullest device"
        fitting = "fits" if fits(num_bytes, device_bytes) else "does not fit"
        return (
            f"{gibibytes(num_bytes)} of {gibibytes(device_bytes)} on the fullest device: {fitting}"
        )

    if config.collect.engine == "vllm":
        table.add_row("device, vllm", _of_vllm(config, shape, device_bytes, widths.stored))
    to_generate = memory_of_a_device(shape, placement, generating, width)
    table.add_row("device, replies", judged(to_generate))
    to_train = memory_of_a_device(shape, placement, training, width, is_training=True)
    fitting = device_bytes is None or fits(to_train, device_bytes)
    more = "" if fitting else f"; {advice(shape, placement, training, device_bytes or 0, width)}"
    table.add_row("device, training", judged(to_train) + more)


def _training_need(
    config: Config, shape: ModelShape, work: _Work, longest: int, width: int
) -> Need:
    """What a training step holds; a baseline's weights, gradients and moments are its weights three times more."""
    from steermoe.costs import passes
    from steermoe.costs.placement import Need

    working = passes.activation_bytes(
        shape,
        work.rows * longest,
        work.rows * config.collect.max_new_tokens,
        config.train.arguments.gradient_checkpointing,
    )
    if config.train.trains_experts:
        return Need(passes.bytes_to_train(shape, work.num_trained), working)
    if config.train.all_parameters == "routers":
        return Need(0, working)
    copies = 4 if config.train.retention_weight > 0 else 3
    return Need(copies * width * shape.num_parameters, working)


def _of_vllm(config: Config, shape: ModelShape, device_bytes: int | None, width: int) -> str:
    """Weights that vLLM puts on each of its devices, and how many tokens its cache has room for."""
    from steermoe.costs import passes
    from steermoe.units import gibibytes

    parts = int(config.collect.engine_args.get("tensor_parallel_size", 1))
    weights = shape.num_parameters * width / parts
    text = f"{gibibytes(weights)} of weights on each of {parts}"
    if device_bytes is None:
        return text
    share = float(config.collect.engine_args.get("gpu_memory_utilization", VLLM_SHARE))
    room = share * device_bytes - weights
    if room <= 0:
        least = math.floor(shape.num_parameters * width / (share * device_bytes)) + 1
        return (
            f"{text}: does not fit in {share:g} of {gibibytes(device_bytes)}; raise "
            f"collect.engine_args.tensor_parallel_size to {least} or more"
        )
    tokens = int(room * parts / passes.cache_bytes(shape))
    return f"{text}, and room for some {tokens:,} tokens: fits"


def _placement(config: Config, machine: Machine) -> tuple[Placement, int | None]:
    """Where the run goes, and the bytes of one device if they are known.

    Raises:
        ConfigError: Processes do not share the devices evenly.
    """
    from steermoe.costs.placement import Placement
    from steermoe.devices import devices_here

    here, bytes_here = devices_here(config.model.device)
    processes = machine.processes or int(os.environ.get("WORLD_SIZE", 1))
    devices = machine.devices
    if devices is None:
        devices = here if here % processes == 0 else processes
        # One process, told nothing, takes one device.
        devices = processes if processes == 1 and not config.model.device_map else devices
    if devices % processes:
        raise ConfigError(
            f"--processes {processes} cannot share --devices {devices} evenly; give a multiple"
        )
    if machine.device_gib is not None:
        device_bytes: int | None = int(machine.device_gib * 2**30)
    else:
        device_bytes = bytes_here if machine.devices is None else None
    return Placement(devices, processes, config.train.sharding), device_bytes


def _most_selected(config: Config, description: MoEDescription, num_batches: int) -> int:
    """How many experts may be selected; a rule of the user's own may take any of the candidates."""
    from steermoe.analysis.selection import RULES, selectable_layers

    layers = selectable_layers(
        description.layer_indices, config.identify.first_layer, config.identify.last_layer
    )
    num_candidates = description.num_experts * len(layers)
    if config.identify.rule not in RULES:
        return num_candidates
    num_selections = num_batches if config.train.experts == "union" else 1
    return min(config.identify.top_k * num_selections, num_candidates)


def _bytes_to_train(
    config: Config, description: MoEDescription, num_trained: int, weights: int
) -> tuple[int, int]:
    """Bytes that training takes beside the weights, and those of one checkpoint."""
    if config.train.trains_experts:
        training = description.bytes_to_train(num_trained)
        return training, training * 3 // 4  # all but the gradients
    # The baselines train in the weights' own type. Routers are small, and switched back where the base model is needed.
    if config.train.all_parameters == "routers":
        return 0, 0
    copy = weights if config.train.retention_weight > 0 else 0
    return 3 * weights + copy, 3 * weights


def _tokens(planned: Planned, config: Config) -> int:
    characters = sum(len(message["content"]) for message in planned.prompt.messages)
    return TEMPLATE_TOKENS + characters // CHARACTERS_OF_A_TOKEN + config.collect.max_new_tokens
