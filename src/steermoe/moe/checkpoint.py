"""Checkpoints on disk: save a hardened one, and prove what differs from the base.

Checkpoints are read tensor by tensor, as bytes (`stored.py`), and no model is held. They keep the names that
their architecture was published with: mostly one tensor for each expert and matrix
(`model.layers.3.mlp.experts.17.up_proj.weight`), sometimes one for all experts of a layer, with the expert as
first axis. Which expert a tensor or a row of it belongs to is read off its name and shape alone, and a
difference that cannot be put down to a selected expert is an error: a mistake here can refuse a good
checkpoint, never pass a bad one.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import GENERATION_CONFIG_NAME

from steermoe.errors import TrainingError
from steermoe.moe.description import MoEDescription
from steermoe.moe.layers import auto_model_class, load_description
from steermoe.moe.quantization import (
    dequantization_arguments,
    forget_quantization,
    quantization_method,
)
from steermoe.moe.slices import ExpertId
from steermoe.moe.stored import StoredTensor, local_folder, stored_tensors
from steermoe.moe.trained_stack import STACK_NAME
from steermoe.moe.writing import write_weights

SHARD_SIZE = "2GB"
"""Largest file of a saved checkpoint."""

_LAYER = re.compile(r"(?:^|\.)(\w+)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


def save_hardened(
    model: Any, tokenizer: Any, folder: str | Path, base: str | Path | None = None
) -> None:
    """Save a model in its architecture's published layout, with its tokenizer.

    Args:
        model: Has no expert slices attached.
        tokenizer: As it is to be saved: one that pads and splits for a run may differ from the one that was read.
        folder: Where to.
        base: Folder of the checkpoint that it was read from, whose types its tensors are saved in.

    Raises:
        TrainingError: If expert slices are still attached: plain transformers could not load the result.
    """
    attached = [name for name, _ in model.named_modules() if name.endswith(f".{STACK_NAME}")]
    if attached:
        raise TrainingError(f"{attached[0]} is still attached; fold and detach the expert slices")
    _save_model(model, folder, base)
    tokenizer.save_pretrained(folder)


def _save_model(model: Any, folder: str | Path, base: str | Path | None) -> None:
    """Weights, config and generation config.

    transformers before 5.23 refuses to save a generation config that it would not write itself (greedy, with a
    temperature), though it reads it. So it is given none of the model's own, which is written as it was read.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # transformers left it untyped
    try:
        model.save_pretrained(folder, state_dict={})  # configs, and code that a model brings along
    finally:
        model.generation_config = own
    stored = {} if base is None else {n: t.dtype for n, t in stored_tensors(base).items()}
    write_weights(model, Path(folder), SHARD_SIZE, stored)
    save_generation_config(own, Path(folder))


def save_generation_config(config: GenerationConfig, folder: Path) -> None:
    """Write a generation config as it was read, even one that transformers would not write itself."""
    try:
        config.save_pretrained(folder)
    except ValueError:
        config.to_json_file(folder / GENERATION_CONFIG_NAME, keys_to_pop=["compile_config"])


def saved_names(model: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """What parameters of a model are called in a checkpoint that `save_hardened` writes."""
    tensors = {name: model.get_parameter(name).detach() for name in names}
    return frozenset(revert_weight_conversion(model, tensors))  # type: ignore[arg-type]  # any transformers model


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between a base and a hardened checkpoint.

    Attributes:
        num_compared: Tensors of the hardened checkpoint; all of them were compared.
        num_changed: Tensors that differ.
        changed_experts: The selected experts of which anything differs, ascending.
        changed_tensors: Those of the tensors that may differ as a whole that do, by name.
        only_in_base: Tensors that the hardened checkpoint lacks, because transformers does not load them
            (layers that predict several tokens, for example) or ties them to others.
    """

    num_compared: int
    num_changed: int
    changed_experts: tuple[ExpertId, ...]
    changed_tensors: tuple[str, ...]
    only_in_base: tuple[str, ...]


def verify_only_selected_changed(
    base: str | Path,
    hardened: str | Path,
    experts: Iterable[ExpertId],
    *,
    tensors: Iterable[str] = (),
    revision: str | None = None,
) -> Comparison:
    """Compare two checkpoints bit for bit, and insist that only what was selected differs.

    Where the base is stored otherwise than transformers saves it (packed, in another dtype, or under older
    names), it is first loaded and saved again into a temporary directory, which takes the memory and the
    disk space of one model.

    Args:
        base: Directory or hub name of the base model.
        hardened: Directory of the hardened one.
        experts: The `(decoder layer, expert)` pairs that may differ.
        tensors: Names of tensors that may differ as a whole: routers, where they were trained.
        revision: Branch, tag or commit of the base on the hub.

    Raises:
        TrainingError: Names the first tensor that differs and should not, or that the base lacks.
    """
    with comparable(local_folder(base, revision), Path(hardened)) as (before, after, _):
        description = load_description(hardened, local_files_only=True)
        return compare(before, after, Owners.of(description, experts, tensors))


@dataclass(frozen=True, slots=True)
class Owners:
    """Which tensors, and rows of tensors, of a checkpoint belong to what was selected.

    Attributes:
        experts: The selected `(decoder layer, expert)` pairs.
        num_experts: Experts of a layer.
        layers_name: What the numbered decoder layers are called, mostly `layers`.
        tensors: Names of selected tensors that belong to no expert.
    """

    experts: frozenset[ExpertId]
    num_experts: int
    layers_name: str
    tensors: frozenset[str] = frozenset()

    @staticmethod
    def of(
        description: MoEDescription, experts: Iterable[ExpertId], tensors: Iterable[str] = ()
    ) -> Owners:
        """For the checkpoints of a model."""
        layers = _LAYER.search(description.layers[0].experts_name)
        assert layers is not None, "the description has its number from there"
        return Owners(
            frozenset(experts), description.num_experts, layers.group(1), frozenset(tensors)
        )

    def owned(self, name: str, shape: Sequence[int]) -> dict[int | None, ExpertId]:
        """The selected expert of each row; under None, of the whole tensor; empty if none has a part.

        A tensor holds all experts of a layer if its first axis is as long as there are experts and it is
        a stack of matrices, or a stack of biases that says so in its name. (A router has two axes.)
        """
        layer = _LAYER.search(name)
        # Other towers of a model can have experts too: their layers have another name, or none of this kind.
        if layer is None or layer.group(1) != self.layers_name:
            return {}
        index = int(layer.group(2))
        expert = _EXPERT.search(name, layer.end() - 1)
        if expert is not None:
            pair = (index, int(expert.group(1)))
            return {None: pair} if pair in self.experts else {}
        is_stack = len(shape) == 3 or (len(shape) == 2 and ".experts." in name)
        if not is_stack or shape[0] != self.num_experts:
            return {}
        return {e: (i, e) for i, e in sorted(self.experts) if i == index}

    def parts(self, tensors: Mapping[str, StoredTensor]) -> dict[str, list[int] | None]:
        """What belongs to selected experts: rows by tensor, None where it is the whole tensor."""
        found: dict[str, list[int] | None] = {}
        for name, tensor in sorted(tensors.items()):
            owned = self.owned(name, tensor.shape)
            if owned:
                found[name] = None if None in owned else [row for row in owned if row is not None]
        return found


def compare(
    before: Mapping[str, StoredTensor], after: Mapping[str, StoredTensor], owners: Owners
) -> Comparison:
    """Compare tensor by tensor; raises for the first difference that nothing selected explains."""
    changed_experts: set[ExpertId] = set()
    changed_tensors: list[str] = []
    num_changed = 0
    for name, tensor in sorted(after.items()):
        if tensor.same_bytes(before[name]):
            continue
        num_changed += 1
        if name in owners.tensors:
            changed_tensors.append(name)
            continue
        owned = owners.owned(name, tensor.shape)
        changed: list[int | None] = [None]
        if owned and None not in owned:
            changed = list(tensor.differing_rows(before[name]))
        for row in changed:
            if row not in owned:
                where = name if row is None or not owned else f"row {row} of {name}"
                raise TrainingError(
                    f"{where} differs from the base model but belongs to no selected expert; "
                    "do not use the hardened checkpoint"
                )
            changed_experts.add(owned[row])
    return Comparison(
        num_compared=len(after),
        num_changed=num_changed,
        changed_experts=tuple(sorted(changed_experts)),
        changed_tensors=tuple(changed_tensors),
        only_in_base=tuple(sorted(before.keys() - after.keys())),
    )


@contextmanager
def comparable(
    base: Path, hardened: Path
) -> Iterator[tuple[dict[str, StoredTensor], dict[str, StoredTensor], str | None]]:
    """Tensors of both under the same names, and the dtype in which the base was saved again if it was."""
    before, after = stored_tensors(base), stored_tensors(hardened)
    if _first_unlike(before, after) is None:
        yield before, after, None
        return
    dtype = str(json.loads((hardened / "config.json").read_text("utf-8"))["dtype"])
    with tempfile.TemporaryDirectory(dir=hardened.parent, prefix=".base-") as folder:
        save_again(base, Path(folder), dtype)
        before = stored_tensors(folder)
        if (name := _first_unlike(before, after)) is not None:
            raise TrainingError(
                f"{name} of the hardened checkpoint is not in the base model, or of another shape or "
                f"dtype; are both of one architecture?"
            )
        yield before, after, dtype


def _first_unlike(before: dict[str, StoredTensor], after: dict[str, StoredTensor]) -> str | None:
    """The first tensor that the base stores otherwise or not at all."""
    for name, tensor in sorted(after.items()):
        other = before.get(name)
        if other is None or (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
            return name
    return None


def save_again(base: Path, folder: Path, dtype: str) -> None:
    """Load a model and save it as transformers does, unpacked and in one dtype."""
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    packed_as = quantization_method(config)
    model = auto_model_class(config).from_pretrained(
        base,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        **dequantization_arguments(packed_as),
    )
    if packed_as is not None:
        forget_quantization(model)
    _save_model(model, folder, base)
