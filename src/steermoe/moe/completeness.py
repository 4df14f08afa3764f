"""Whether the files of a checkpoint hold what a run needs of them, told before any weight is loaded.

transformers stacks the numbered matrices of a layer's experts in the order of their numbers. A number that is missing
would move every later expert up by one, without a word.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from steermoe.errors import ModelError

ADAPTER_CONFIG = "adapter_config.json"

_NUMBERED = re.compile(r"^(.*\.experts)\.(\d+)\.(.+)$")


def check_no_adapter(folder: str | Path, name: str = "") -> None:
    """Refuse a folder that holds an adapter, alone or beside whole weights.

    An adapter is no part of the tensors that are hashed, recorded, trained and compared: a run would be of one model
    with peft installed and of another without.

    Args:
        folder: The folder.
        name: What to call it; by default, its path.

    Raises:
        ModelError: It does.
    """
    if (Path(folder) / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{name or folder} holds an adapter ({ADAPTER_CONFIG}), which is no model of its own: merge it into its "
            "base model (merge_and_unload of peft) and give the folder of the merged model, or take the adapter's "
            "files out"
        )


def check_expert_numbers(names: Iterable[str], model: str | Path) -> None:
    """Check that the numbered experts of every layer are numbered without a gap, and have the same tensors each.

    Args:
        names: Of all tensors of a checkpoint.
        model: What to call it.

    Raises:
        ModelError: Names the first tensor that is missing.
    """
    found: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if match := _NUMBERED.match(name):
            found[match[1]][match[3]].add(int(match[2]))
    for experts, tensors in sorted(found.items()):
        numbers = set.union(*tensors.values())
        count = max(map(len, tensors.values()))
        if numbers != set(range(count)) and all(own == numbers for own in tensors.values()):
            missing = min(set(range(max(numbers))) - numbers)
            raise ModelError(
                f"the files of {model} have no expert {missing} in {experts}, but one with the number {max(numbers)}: "
                "the later ones would move up; name them as they were, or fetch them again"
            )
        for rest, own in sorted(tensors.items()):
            if lacking := numbers - own:
                raise ModelError(
                    f"the files of {model} lack {experts}.{min(lacking)}.{rest}; fetch them again"
                )
