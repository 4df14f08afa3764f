"""Benchmarks: what lm-evaluation-harness and Inspect find of the base model and of the hardened one.

Each runs in a process of its own on the checkpoint, and leaves its logs in a folder of the run. The folder's name tells
of which model and with which settings it ran, so a finished one is only read: after an interruption, and where other
benchmarks are asked for beside it.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from steermoe.capability.items import BUILTIN_CAPABILITY
from steermoe.config import Config
from steermoe.harness.benchmarks import Benchmark, benchmark_named
from steermoe.harness.processes import Target
from steermoe.hashes import sha256_of
from steermoe.loading import computed_in, model_source
from steermoe.moe.configs import read_config
from steermoe.reporter import Reporter
from steermoe.store.benchmark_table import BenchmarkRow, write_benchmarks
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE, BENCHMARKS, HARDENED, MODEL, MODEL_CARD, RUN_JSON
from steermoe.store.state import Figures

MOST_TOGETHER = 32
"""Prompts that a tool runs together: of scored texts it keeps every position, so fewer than are generated."""


def benchmarks_base(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Run every benchmark on the base model. Writes `benchmarks/base.parquet`, and the tools' logs."""
    return _run_all(run, config, reporter, BASE, model_source(config.model))


def benchmarks_hardened(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Run every benchmark on the hardened model. Writes `benchmarks/hardened.parquet`, and the tools' logs."""
    return _run_all(run, config, reporter, HARDENED, str(run.file(MODEL).resolve()))


def benchmarks_of_others(config: Config) -> list[Benchmark]:
    """The benchmarks that other tools run, of those that the settings name.

    Raises:
        ConfigError: There is no such tool, or no task is named.
    """
    return [benchmark_named(n) for n in config.evaluate.benchmarks if n != BUILTIN_CAPABILITY]


def target_of(config: Config, variant: str, checkpoint: str) -> Target:
    """How a tool loads and asks a model."""
    model = config.model
    revision = model.revision if variant == BASE else None
    own = read_config(checkpoint, revision, model.trust_remote_code)
    return Target(
        checkpoint,
        revision=revision,
        dtype=str(computed_in(model, own)).removeprefix("torch."),
        device="" if model.device == "auto" else model.device,
        trust_remote_code=model.trust_remote_code,
        system_prompt=config.prompts.system_prompt or "",
        template_kwargs=model.chat_template_kwargs,
        batch_size=min(MOST_TOGETHER, config.collect.generation_batch_size),
        limit=config.evaluate.benchmark_limit,
    )


def _run_all(
    run: RunDirectory, config: Config, reporter: Reporter, variant: str, checkpoint: str
) -> Figures:
    if config.model.dequantize or config.model.device_map:
        reporter.note(
            "model.dequantize and model.device_map are not known to other tools: they load the checkpoint as it is "
            "stored, on one device"
        )
    target = target_of(config, variant, checkpoint)
    rows: list[BenchmarkRow] = []
    for benchmark in benchmarks_of_others(config):
        folder = run.file(f"{BENCHMARKS}/{variant}") / _folder_name(run, variant, benchmark, target)
        reporter.line(f"{benchmark.name} on the {variant} model, its output in {folder}")
        source = benchmark.version(target)
        rows += [
            BenchmarkRow(
                benchmark.name,
                source,
                figure.task,
                figure.metric,
                figure.value,
                figure.stderr,
                figure.n,
                figure.num_unscored,
                list(figure.values),
                list(figure.values.values()),
            )
            for figure in benchmark.run(target, folder)
        ]
    write_benchmarks(run, variant, rows)
    return {"num_benchmarks": len(benchmarks_of_others(config)), "num_figures": len(rows)}


def _folder_name(run: RunDirectory, variant: str, benchmark: Benchmark, target: Target) -> str:
    """The benchmark's name, and a hash of all that its result depends on."""
    known = run.read_state() if run.has(RUN_JSON) else None
    if variant == BASE:
        model = (known.model.hash or known.model.commit) if known is not None else ""
    else:
        record = known.files.get(MODEL) if known is not None else None
        card = Path(MODEL_CARD).name
        model = record.sha256 if record is not None else sha256_of(run.file(MODEL), (card,))
    asked = [
        *(benchmark.name, benchmark.stamp(), model, target.revision, target.dtype),
        *(target.system_prompt, dict(target.template_kwargs), target.limit),
    ]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode("utf-8")).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', benchmark.name)[:60].strip('-')}-{digest[:8]}"


def check_benchmarks(config: Config) -> None:
    """Refuse benchmarks that cannot run, before anything does: no such tool, not installed, no such task.

    Raises:
        ConfigError: One of them cannot.
    """
    if benchmarks := benchmarks_of_others(config):
        target = target_of(config, BASE, model_source(config.model))
        for benchmark in benchmarks:
            benchmark.check(target)
