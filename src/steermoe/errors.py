"""The exceptions a user may see.

Each carries one line: what is wrong, which value, what to do. The command line prints that line and
exits with 1; library callers catch `SteerMoEError` or the narrower class.
"""


class SteerMoEError(Exception):
    """Something the user can mend. The message is one line that says how."""


def on_one_line(error: Exception | str) -> str:
    """What an error says, its lines joined: the errors of other people's code may have several."""
    return " ".join(str(error).split())


class ConfigError(SteerMoEError):
    """A setting is unknown, has the wrong type, or cannot hold with the others."""


class PromptError(SteerMoEError):
    """A prompt file, a prompt row, or the set of prompts as a whole cannot be used."""


class ModelError(SteerMoEError):
    """A model cannot be found, loaded or understood."""


class EngineError(SteerMoEError):
    """What generates cannot be reached, has failed, or runs another model."""


class RoutingError(SteerMoEError):
    """Routed experts are missing, malformed, or too few to compute what was asked."""


class JudgeError(SteerMoEError):
    """A judge answers what no judgement is, or cannot go on."""


class JudgeStopped(JudgeError):
    """A judge stopped before it had judged every reply. What a server answered is kept.

    Attributes:
        num_replies: Replies that were to be judged.
        num_judged: Those that were.
        num_failed: Those that it failed on.
    """

    def __init__(self, message: str, num_replies: int, num_judged: int, num_failed: int) -> None:
        super().__init__(message)
        self.num_replies = num_replies
        self.num_judged = num_judged
        self.num_failed = num_failed


class SelectionError(SteerMoEError):
    """A selection rule is unknown, or names experts that the model does not have."""


class TrainingError(SteerMoEError):
    """Training cannot start as configured, or its result failed its own checks."""


class HubError(SteerMoEError):
    """What is to be published cannot be prepared, or the hub does not take it."""


class RunDirectoryError(SteerMoEError):
    """A run directory is missing, locked, unwritable, or belongs to something else."""


class OtherProcessFailed(SteerMoEError):
    """Another process of the run failed, which ends this one too.

    Attributes:
        rank: Which.
    """

    def __init__(self, rank: int, error: str) -> None:
        super().__init__(f"rank {rank} failed: {error}")
        self.rank = rank
