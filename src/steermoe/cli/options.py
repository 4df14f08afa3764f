"""What the commands share: the options of a run, and how a function becomes a command.

Nothing heavy is imported here before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from steermoe.errors import ConfigError, OtherProcessFailed, SteerMoEError

if TYPE_CHECKING:
    from steermoe.config import Config, Values
    from steermoe.reporter import Reporter
    from steermoe.store.run import Run

DEFAULT_RUN = "runs/smollm2-moe"
"""Where the embedded model's run is kept, unless another place is named."""

RunOption = Annotated[
    str | None,
    typer.Option(
        "--run", metavar="DIR", help="The run directory.", show_default="runs/<model name>"
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Do finished steps again.")]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Hash the model and every result whole, also where size and time of change are as they were.",
    ),
]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")
]


@dataclass(frozen=True)
class Options:
    """The options of every command that works on a run. Each field is one option of the command line."""

    config: Annotated[
        str | None,
        typer.Option("--config", metavar="FILE", help="Settings in TOML; every key is checked."),
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="One setting, for instance train.epochs=2; with no value, the setting is emptied. Repeatable.",
        ),
    ] = None
    run_dir: RunOption = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="ID_OR_PATH",
            help="A local directory or a hub id.",
            show_default="smollm2-moe",
        ),
    ] = None
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="A prompt file, unsafe:FILE for one of unsafe prompts alone, or builtin:starter. Repeatable.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Seeds everything random.", show_default="0"),
    ] = None
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Plain log lines instead of progress bars.")
    ] = False

    @property
    def reporter(self) -> Reporter:
        """Where lines, notes and progress go."""
        from steermoe.processes import launched
        from steermoe.reporter import Reporter, silent

        return Reporter(quiet=self.quiet) if launched()[0] == 0 else silent()

    def new_config(self) -> Config:
        """The settings of a run that may not exist yet."""
        from steermoe.config import load_config

        return load_config(
            self.config, self.settings or (), self._overrides(), note=self.reporter.note
        )

    def stored_config(self) -> Config:
        """The settings stored in a run, with the ones that are given here on top.

        Raises:
            RunDirectoryError: There is no run.
        """
        from steermoe.config import load_config
        from steermoe.store.run import load_run

        run = load_run(self.new_config().run_dir)
        overrides = self._overrides() | {"run": str(run.path)}
        stored = run.config.model_dump(mode="json")
        return load_config(self.config, self.settings or (), overrides, base=stored)

    def run_as_stored(self) -> Config:
        """The settings stored in a run, as they are.

        Raises:
            RunDirectoryError: There is no run.
        """
        from steermoe.store.run import load_run

        return load_run(self.new_config().run_dir).config

    def _overrides(self) -> Values:
        check_run_named(self.run_dir)
        return {
            "run": self.run_dir,
            "seed": self.seed,
            "model": {"id": self.model},
            "prompts": {"sources": self.prompts},
        }


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """A function as the command line takes it.

    A parameter of type `Options` becomes the options that are its fields, and `--debug` is added. A user's error is
    one line and exit code 1; with `--debug` it goes on as it is.
    """
    parameters: list[inspect.Parameter] = []
    takes_options = ""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if hints[name] is Options:
            takes_options = name
            parameters += _option_parameters()
        else:
            parameters.append(_by_name(name, hints[name], parameter.default))
    parameters.append(_by_name("debug", DebugOption, False))

    def command(debug: bool, **given: Any) -> None:
        if takes_options:
            own = {field.name: given.pop(field.name) for field in fields(Options)}
            given[takes_options] = Options(**own)
        try:
            function(**given)
        except SteerMoEError as error:
            if debug:
                raise
            _say(error)
            raise typer.Exit(1) from None

    command.__doc__ = function.__doc__
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect
    return command


def _say(error: SteerMoEError) -> None:
    """Print a user's error; of several processes each names itself, but for the one that leads."""
    from steermoe.processes import launched

    try:
        rank, _ = launched()
    except ConfigError:  # the error itself
        rank = 0
    if rank == 0:
        typer.echo(f"error: {error}", err=True)
    elif not isinstance(error, OtherProcessFailed):  # whose own line says more
        typer.echo(f"error: rank {rank}: {error}", err=True)


def _option_parameters() -> list[inspect.Parameter]:
    hints = get_type_hints(Options, include_extras=True)
    return [_by_name(field.name, hints[field.name], field.default) for field in fields(Options)]


def _by_name(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


def check_run_named(run_dir: str | None) -> None:
    """Refuse an empty name, which would mean the current directory.

    Raises:
        ConfigError: `--run` was given nothing, as a shell does with a variable that is not set.
    """
    if run_dir is not None and not run_dir.strip():
        raise ConfigError(
            f"--run {run_dir!r} names no directory; give one, or leave --run out for {DEFAULT_RUN}"
        )


def open_run(run_dir: str | None) -> Run:
    """The run in a directory, for reading; the embedded model's where none is named."""
    from steermoe.store.run import load_run

    check_run_named(run_dir)
    return load_run(expand(run_dir) if run_dir is not None else DEFAULT_RUN)


def expand(path: str) -> Path:
    """A path as it was typed, with `~` as the home directory, which a shell leaves alone after an `=`."""
    from steermoe.config import expand_home

    return Path(expand_home(path))


def leave_unless_first() -> None:
    """End a command that was done together with other processes: the first one prints its results."""
    from steermoe.processes import launched

    if launched()[0] > 0:
        raise typer.Exit


def print_result(renderable: Any) -> None:
    """Print to standard output, which keeps the results."""
    from steermoe.reporter import plain_stdout

    plain_stdout().print(renderable)
