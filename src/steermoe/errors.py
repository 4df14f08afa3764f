"""The exceptions a user may see.

Each carries one line: what is wrong, which value, what to do. The command line prints that line and
exits with 1; library callers catch `SteerMoEError` or the narrower class.
"""


class SteerMoEError(Exception):
    """Something the user can mend. The message is one line that says how."""


def on_one_line(error: Exception) -> str:
    """What an error says, its lines joined: the errors of other people's code may have several."""
    return " ".join(str(error).split())


class ConfigError(SteerMoEError):
    """A setting is unknown, has the wrong type, or cannot hold with the others."""


class PromptError(SteerMoEError):
    """A prompt file, a prompt row, or the set of prompts as a whole cannot be used."""


class ModelError(SteerMoEError):
    """A model cannot be found, loaded or understood."""


class RoutingError(SteerMoEError):
    """Routed experts are missing, malformed, or too few to compute what was asked."""


class SelectionError(SteerMoEError):
    """A selection rule is unknown, or names experts that the model does not have."""


class TrainingError(SteerMoEError):
    """Training cannot start as configured, or its result failed its own checks."""


class RunDirectoryError(SteerMoEError):
    """A run directory is missing, locked, unwritable, or belongs to something else."""
