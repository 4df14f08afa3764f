"""Pushing a prepared repository to the hub: the only part that needs a network, and done only when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steermoe.errors import HubError, on_one_line
from steermoe.hub_names import problem_of_name

_REPLACED = ("*.safetensors", "*.safetensors.index.json")
"""Files of an earlier push that would be taken for the new weights, or stand beside them."""


def check_can_push(repo_id: str) -> None:
    """Check what can be known without the network.

    Raises:
        HubError: The name is none that the hub takes, there is no token, or the network is switched off.
    """
    from huggingface_hub import constants, get_token

    if problem := problem_of_name(repo_id):
        raise HubError(f"--push {repo_id!r} is no name that the hub takes: {problem}")
    if constants.is_offline_mode():
        raise HubError(f"--push {repo_id} needs the network, and HF_HUB_OFFLINE switches it off")
    if not get_token():
        raise HubError(
            f"--push {repo_id} needs a token that may write: log in with `hf auth login`, or set HF_TOKEN"
        )


def check_token(repo_id: str) -> None:
    """Ask the hub whether it takes the token.

    Raises:
        HubError: It does not, or it cannot be reached.
    """
    from huggingface_hub import HfApi

    with _errors_of_the_hub(repo_id, "nothing is written"):
        HfApi().whoami()


def push(folder: Path, repo_id: str, is_public: bool) -> str:
    """Push a prepared repository.

    Args:
        folder: The repository.
        repo_id: `OWNER/NAME`; made where it is not there yet.
        is_public: Whether a repository that is made can be read by everybody. One that is there stays as it is.

    Returns:
        Its address.

    Raises:
        HubError: The hub refuses it or cannot be reached. What was prepared stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _errors_of_the_hub(repo_id, f"what is prepared stays in {folder}"):
        made = api.create_repo(repo_id, private=not is_public, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Hardened with SteerMoE",
            delete_patterns=[*_REPLACED],
        )
    return str(made)


@contextmanager
def _errors_of_the_hub(repo_id: str, and_then: str) -> Iterator[None]:
    """Within it, what goes wrong at the hub is one line."""
    try:
        yield
    except (
        Exception
    ) as error:  # those of a network have another class in each version of the hub's client
        causes = (one for one in (error, error.__cause__) if isinstance(one, Exception))
        said = ": ".join(on_one_line(one) or type(one).__name__ for one in causes)
        raise HubError(f"--push {repo_id}: the hub says no: {said}; {and_then}") from None
