"""`steermoe plan`: what a run would cost, from the prompts and the model's config alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from steermoe.cli.options import Options, print_result

if TYPE_CHECKING:
    from rich.table import Table

    from steermoe.config import Config
    from steermoe.moe.layers import MoEDescription
    from steermoe.reporter import Reporter
    from steermoe.stages.collect import Planned

BYTES_OF_A_ROUTED_EXPERT = 1
"""One id in `tokens.parquet`, for layers of up to 256 experts; two beyond."""

CHARACTERS_OF_A_TOKEN = 4
"""A rule of thumb: the tokenizer is not loaded for a plan."""

TEMPLATE_TOKENS = 24
"""What a chat template adds to a prompt, about."""


def plan(options: Options) -> None:
    """Print memory, disk and steps of a run, from the model's config alone, and do nothing else.

    No model is built or downloaded; of a hub id, the config is read.
    """
    from steermoe.cli.steps import note_settings_without_effect

    config, reporter = options.new_config(), options.reporter
    note_settings_without_effect(config, reporter)
    print_result(plan_run(config, reporter))


def plan_run(config: Config, reporter: Reporter) -> Table:
    """Memory, disk and steps of a run.

    Args:
        config: The settings of the run.
        reporter: Takes the notes about prompts.

    Returns:
        The plan as a table.

    Raises:
        SteerMoEError: Whatever would keep the run from starting: prompts, settings, an unsupported model.
    """
    from rich.table import Table

    from steermoe.loading import describe_named
    from steermoe.records import Label, Split
    from steermoe.stages.collect import plan_groups, prepare_prompts
    from steermoe.stages.doubts import doubts_about_routing, doubts_about_training
    from steermoe.stages.ready import check_ready, check_replies_are_fed

    prompts = prepare_prompts(config, reporter)
    groups = plan_groups(prompts, config, reporter)
    description = describe_named(config.model)
    for doubt in (*doubts_about_routing(description), *doubts_about_training(config.train)):
        reporter.note(doubt)
    if Path(
        config.model.id, "tokenizer_config.json"
    ).is_file():  # of others, the config alone is here
        check_ready(config, prompts)
    else:
        check_replies_are_fed(config)
    planned = [one for group in groups for one in group]
    num_batches = 1 + max(one.batch_idx for one in planned)
    held_out = [p for p in prompts if p.split == config.evaluate.split]

    table = Table(
        title=f"plan for {config.run_dir}", title_justify="left", show_header=False, box=None
    )
    table.add_row("model", f"{config.model.id} ({description.architecture})")
    table.add_row(
        "prompts",
        ", ".join(f"{sum(p.label is label for p in prompts)} {label}" for label in Label)
        + f"; {sum(p.split is Split.TRAIN for p in prompts)} to train, {len(held_out)} to evaluate",
    )
    table.add_row("mixed batches", f"{num_batches} of {config.collect.batch_size}")
    table.add_row(
        "generated tokens",
        f"at most {(len(planned) + len(held_out)) * config.collect.max_new_tokens:,}, in "
        f"{len(groups)} groups and once more for the {len(held_out)} held-out prompts",
    )
    if config.evaluate.benchmarks:
        limit = config.evaluate.benchmark_limit
        most = "" if limit is None else f", at most {limit:,} samples of each"
        table.add_row("benchmarks", f"{', '.join(config.evaluate.benchmarks)} of both models{most}")
    _add_training(table, config, description, num_batches)
    tokens = sum(_tokens(one, config) for one in planned)
    _add_bytes(table, config, description, num_batches, (len(planned), tokens))
    return table


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
    table: Table,
    config: Config,
    description: MoEDescription,
    num_batches: int,
    recorded: tuple[int, int],
) -> None:
    """Memory and disk; `recorded` are the responses and tokens whose routing is kept."""
    from steermoe.units import gibibytes

    weights = description.bytes_in_bfloat16
    if config.model.dtype == "float32":
        weights *= 2
    num_trained = _most_selected(config, description, num_batches)
    training, checkpoint = _bytes_to_train(config, description, num_trained, weights)
    table.add_row("memory, weights", gibibytes(weights))
    table.add_row(
        "memory, training",
        f"{gibibytes(training)} beside the weights, and activations",
    )
    table.add_row("disk, model", gibibytes(weights))
    table.add_row("disk, checkpoints", f"{gibibytes(2 * checkpoint)} while training")
    table.add_row("disk, routing", gibibytes(_routing_bytes(description, *recorded)))


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


def _routing_bytes(description: MoEDescription, num_responses: int, num_tokens: int) -> int:
    layers, experts = description.num_layers, description.num_experts
    counts = num_responses * 2 * layers * experts * 4
    width = BYTES_OF_A_ROUTED_EXPERT if experts <= 256 else 2 * BYTES_OF_A_ROUTED_EXPERT
    return counts + num_tokens * layers * description.top_k * width
