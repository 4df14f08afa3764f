"""The command line: parse, call one function, print.

Everything heavy is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steermoe.errors import ConfigError, SteerMoEError
from steermoe.version import __version__

if TYPE_CHECKING:
    from steermoe.config import Config
    from steermoe.reporter import Reporter

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

app = typer.Typer(
    name="steermoe",
    help="Find the unsafe experts of a Mixture-of-Experts model, train only those, measure the result.",
    epilog="Start with `steermoe run`: it needs no arguments. Every setting is described in docs/settings.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings in TOML; every key is checked."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="One setting, for instance train.epochs=2. Repeatable.",
    ),
]
RunOption = Annotated[
    Path | None,
    typer.Option(
        "--run", metavar="DIR", help="The run directory.", show_default="runs/<model name>"
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="ID_OR_PATH",
        help="A local directory or a hub id.",
        show_default="smollm2-moe",
    ),
]
PromptsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prompts", metavar="FILE", help="A prompt file, or builtin:starter. Repeatable."
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Seeds everything random.", show_default="0"),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Do finished stages again.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Plain log lines instead of progress bars.")
]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steermoe {__version__}")
        raise typer.Exit


@app.callback()
def _steermoe(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None: ...


@app.command()
def run(
    config: ConfigOption = None,
    settings: SetOption = None,
    run_dir: RunOption = None,
    model: ModelOption = None,
    prompts: PromptsOption = None,
    seed: SeedOption = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Print memory, disk and steps of the run, and do nothing else."
        ),
    ] = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Do every stage: collect, identify, train, evaluate, report.

    With no argument: the embedded model and the built-in prompts. Interrupted, the same command goes on where it
    stopped.
    """
    resolved = _resolve(config, settings, run_dir, model, prompts, seed)
    if plan:
        from steermoe.cli.plan import plan_run

        _print(plan_run(resolved, _reporter(quiet)))
        return
    from steermoe.cli.display import summary
    from steermoe.pipeline import run_pipeline

    finished = run_pipeline(resolved, force=force, reporter=_reporter(quiet))
    _print(summary(finished))


def _stage_command(name: str, help_text: str) -> None:
    """Add the command of one stage."""
    creates_run = name == "collect"

    def command(
        config: ConfigOption = None,
        settings: SetOption = None,
        run_dir: RunOption = None,
        model: ModelOption = None,
        prompts: PromptsOption = None,
        seed: SeedOption = None,
        force: ForceOption = False,
        quiet: QuietOption = False,
        debug: DebugOption = False,
    ) -> None:
        resolved = _resolve(config, settings, run_dir, model, prompts, seed, stored=not creates_run)
        from steermoe.pipeline import run_pipeline

        run_pipeline(resolved, only=name, force=force, reporter=_reporter(quiet))

    command.__doc__ = help_text
    app.command(name)(command)


_stage_command(
    "collect", "Generate replies to all prompts and record which experts the routers choose."
)
_stage_command("train", "Fine-tune the selected experts, and write the hardened checkpoint.")
_stage_command("evaluate", "Compare the base and the hardened model on held-out prompts.")
_stage_command("report", "Write report.html, the whole story on one page.")


@app.command()
def identify(
    config: ConfigOption = None,
    settings: SetOption = None,
    run_dir: RunOption = None,
    model: ModelOption = None,
    seed: SeedOption = None,
    power: Annotated[
        bool,
        typer.Option(
            "--power", help="Take the run as a pilot: how many prompts would find which experts."
        ),
    ] = False,
    risk_diff: Annotated[
        list[float] | None,
        typer.Option(
            "--risk-diff",
            metavar="DIFFERENCE",
            help="With --power: a true risk difference to find. Repeatable. [default: multiples of the threshold, or "
            "of the run's largest]",
        ),
    ] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Compute risk differences with their uncertainty, and select the unsafe experts."""
    if risk_diff and not power:
        raise ConfigError(f"--risk-diff {risk_diff[0]} goes with --power; add it")
    resolved = _resolve(config, settings, run_dir, model, None, seed, stored=True)
    if power:
        from steermoe.cli.display import power_of

        _print(power_of(resolved, risk_diff or ()))
        return
    from steermoe.pipeline import run_pipeline

    run_pipeline(resolved, only="identify", force=force, reporter=_reporter(quiet))


@app.command()
def ablate(
    config: ConfigOption = None,
    settings: SetOption = None,
    run_dir: RunOption = None,
    model: ModelOption = None,
    seed: SeedOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Switch the selected experts off and measure what changes, against random and the lowest experts.

    On held-out prompts, of the base model and of the hardened one. It tells a model's owner how much hangs on a few
    experts; no replies and no weights are written.
    """
    resolved = _resolve(config, settings, run_dir, model, None, seed, stored=True)
    from steermoe.cli.display_evidence import ablation
    from steermoe.pipeline import run_pipeline

    _print(ablation(run_pipeline(resolved, only="ablate", force=force, reporter=_reporter(quiet))))


@app.command()
def show(
    run_dir: RunOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many experts to print.")] = 20,
    layer: Annotated[
        int | None, typer.Option("--layer", help="Print every expert of one decoder layer.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Print one mixed batch: prompts and counts.")
    ] = None,
    batches: Annotated[
        bool, typer.Option("--batches", help="Print one line a mixed batch.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Print a run: its experts, its batches, its figures."""
    from steermoe.cli import display
    from steermoe.store.run import load_run

    found = load_run(run_dir if run_dir is not None else Path("runs/smollm2-moe"))
    if batch is not None:
        _print(display.one_batch(found, batch, top))
    elif batches:
        _print(display.all_batches(found))
    elif layer is not None:
        _print(display.one_layer(found, layer))
    else:
        _print(display.overview(found, top))


@app.command()
def export(
    run_dir: RunOption = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="csv, jsonl (the tables) or delta (the trained experts alone). Repeatable.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Where to write.", show_default="<run>/export"
        ),
    ] = None,
    apply: Annotated[
        Path | None,
        typer.Option(
            "--apply", metavar="DELTA", help="Put a delta onto its base model, into --output."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="ID_OR_PATH",
            help="With --apply: the base model.",
            show_default="the one that the delta names",
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            help="With --apply: branch, tag or commit of a hub model.",
            show_default="the delta's",
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Write a run's tables and trained experts in other formats, or apply a delta."""
    from steermoe.cli.export import apply_delta_file, export_run

    if apply is not None:
        if output is None:
            raise ConfigError(
                "--apply needs --output DIR, the directory of the hardened model to write"
            )
        written = [apply_delta_file(apply, output, model, revision)]
    elif model is not None or revision is not None:
        raise ConfigError("--model and --revision belong to --apply DELTA; a run knows its model")
    else:
        written = export_run(
            run_dir if run_dir is not None else Path("runs/smollm2-moe"), formats or ["csv"], output
        )
    for path in written:
        typer.echo(str(path))


@app.command()
def models(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[ID_OR_PATH]", help="A model to describe; without it, the list."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """List the supported architectures, or describe one model from its config alone."""
    from steermoe.cli import display

    _print(display.one_model(model, revision) if model is not None else display.all_models())


def main() -> None:
    """Run the command line; one line and exit code 1 for a user's error, 130 when interrupted."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app(standalone_mode=True)
    except SteerMoEError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
    except SystemExit as stopped:
        if stopped.code == INTERRUPTED:  # typer has caught the interruption itself
            typer.echo("interrupted: the same command goes on where it stopped", err=True)
        raise


def _resolve(
    config: Path | None,
    settings: list[str] | None,
    run_dir: Path | None,
    model: str | None,
    prompts: list[str] | None,
    seed: int | None,
    stored: bool = False,
) -> Config:
    """The settings of a command; stages that need a run start from the settings stored in it."""
    from steermoe.config import load_config

    overrides: dict[str, Any] = {
        "run": str(run_dir) if run_dir is not None else None,
        "seed": seed,
        "model": {"id": model},
        "prompts": {"sources": prompts},
    }
    resolved = load_config(config, settings or (), overrides)
    if not stored:
        return resolved
    from steermoe.store.run import load_run

    run = load_run(resolved.run_dir)
    overrides["run"] = str(run.path)
    return load_config(config, settings or (), overrides, base=run.state["config"])


def _reporter(quiet: bool) -> Reporter:
    from steermoe.reporter import Reporter

    return Reporter(quiet=quiet)


def _print(renderable: Any) -> None:
    from steermoe.reporter import plain_stdout

    plain_stdout().print(renderable)
