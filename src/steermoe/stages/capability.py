"""Capability: which tasks with one right answer the base model and the hardened one solve.

The answers of the base model hang on it alone, so training again asks only the hardened model again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from steermoe.capability.asking import measure_capability, plan_groups
from steermoe.capability.grading import Graded
from steermoe.capability.items import builtin_items, chosen_items
from steermoe.config import Config
from steermoe.loading import LoadedModel, load_model, model_source
from steermoe.reporter import Reporter
from steermoe.stages.reply import load_hardened, text_engine
from steermoe.store.capability_table import read_answers, write_answers, write_graded
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE, HARDENED
from steermoe.store.state import Figures


def capability_base(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Ask the base model. Writes `capability/base.parquet`."""

    def load() -> LoadedModel:
        return load_model(config.model, model_source(config.model))

    return ask(run, config, reporter, BASE, load)


def capability_hardened(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Ask the hardened model. Writes `capability/hardened.parquet`."""
    return ask(run, config, reporter, HARDENED, lambda: load_hardened(run, config))


def ask(
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    variant: str,
    load: Callable[[], LoadedModel],
) -> Figures:
    """Ask a variant the tasks of `builtin:capability`, and grade its answers. A group that is answered is a shard.

    Args:
        run: The run; `capability/<variant>.parquet` is written.
        config: Its settings.
        reporter: Takes the progress.
        variant: Its name.
        load: Opens it.

    Returns:
        How many items were asked, and how many of them are right.
    """
    items = chosen_items(builtin_items(), config.evaluate.benchmark_limit)
    groups = plan_groups(items)
    finished = read_answers(run, variant, len(groups))
    num_answered = sum(map(len, finished.values()))
    loaded = load()
    with reporter.bar(len(items), f"capability of the {variant} model", num_answered) as bar:

        def keep(group: int, rows: Sequence[Graded]) -> None:
            write_answers(run, variant, group, rows)
            bar.advance(len(rows))

        graded = measure_capability(
            text_engine(loaded, config),
            loaded.tokenizer,
            items,
            system_prompt=config.prompts.system_prompt,
            template_kwargs=config.model.chat_template_kwargs,
            answer_of=lambda output: output.answer,
            finished=finished,
            on_group=keep,
        )
    write_graded(run, variant, graded)
    num_right = int(graded["correct"].sum())
    reporter.line(f"the {variant} model solved {num_right} of {len(items)} tasks")
    return {"num_items": len(items), "num_right": num_right}
