"""States of the lower layers, kept for all epochs: which rows, how many, and when not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from architectures import BY_NAME
from steermoe.errors import TrainingError
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.partial_passes import LowerLayers
from steermoe.records import Label
from steermoe.training import lower_states
from steermoe.training.dataset import TrainingRow, collate
from steermoe.training.lower_states import LowerStates


def rows_of(*lengths: int) -> list[TrainingRow]:
    """One row for each number of tokens; its last two are the completion."""
    made = []
    for number, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(3, 64, (length,), generator=generator).tolist()
        made.append(
            TrainingRow(
                f"p{number}",
                Label.UNSAFE,
                0,
                "refusal",
                (),
                "",
                tuple(ids[:-2]),
                tuple(ids[-2:]),
            )
        )
    return made


def kept(model: Any, rows: list[TrainingRow]) -> LowerStates:
    return LowerStates(model, LowerLayers(model, find_moe_layers(model), 1), rows, 0)


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "deepseek_v3", "qwen3_next", "deepseek_v4"])
@torch.no_grad()
def test_kept_states_give_what_a_whole_pass_gives(name: str) -> None:
    model = BY_NAME[name].build()
    rows = rows_of(*range(3, 40))  # three groups, each with its own padding
    states = kept(model, rows)
    assert states.is_usable
    chosen = [rows[i] for i in (30, 2, 17, 9)]
    fed = collate([chosen], 0)
    asked = {name: fed[name] for name in ("input_ids", "attention_mask")}
    whole = model(**asked, use_cache=False).logits
    with states.in_place([row.prompt_id for row in chosen], "cpu"):
        skipped = model(**asked, use_cache=False).logits
    real = fed["attention_mask"].bool()
    torch.testing.assert_close(skipped[real], whole[real], rtol=1e-4, atol=1e-5)
    assert skipped.isfinite().all()


def test_states_do_not_depend_on_the_order_of_rows() -> None:
    model = BY_NAME["mixtral"].build()
    rows = rows_of(*[5, 9, 7, 5, 12] * 8)
    first, second = kept(model, rows), kept(model, rows[::-1])
    assert first._states.keys() == second._states.keys()
    assert all(torch.equal(x, second._states[name]) for name, x in first._states.items())


def test_a_prompt_is_computed_once_and_padding_never_kept() -> None:
    model = BY_NAME["mixtral"].build()
    rows = rows_of(4, 11)
    states = kept(model, [*rows, *rows])
    assert {name: len(x) for name, x in states._states.items()} == {"p0": 3, "p1": 10}


def test_more_than_fits_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BY_NAME["mixtral"].build()
    rows = rows_of(*[10] * 40)
    needed = 40 * 10 * 32 * 4  # tokens x width x bytes of fp32
    monkeypatch.setattr(lower_states, "MOST_BYTES", needed)
    assert kept(model, rows).is_usable
    monkeypatch.setattr(lower_states, "MOST_BYTES", needed - 1)
    states = kept(model, rows)
    assert not states.is_usable and not states._states


def test_a_model_that_needs_its_lower_layers_is_not_run_without_them() -> None:
    model = BY_NAME["glm_moe_dsa"].build()
    assert not kept(model, rows_of(5, 6)).is_usable


def test_a_model_that_fails_without_its_lower_layers_is_run_with_them() -> None:
    model = BY_NAME["mixtral"].build()
    lower, upper = model.model.layers
    left: list[torch.Tensor] = []
    lower.mlp.register_forward_hook(lambda _, __, output: left.append(output))
    upper.register_forward_hook(
        lambda _, __, output: output + left.pop()
    )  # nothing left: IndexError
    states = kept(model, rows_of(5, 6))
    assert not states.is_usable and not states._states


def test_two_rows_of_one_prompt_id_must_be_the_same() -> None:
    model = BY_NAME["mixtral"].build()
    first, other = rows_of(5, 6)
    with pytest.raises(TrainingError, match="the prompt id 'p0' and different tokens"):
        kept(model, [first, dataclasses.replace(other, prompt_id="p0")])


def test_a_model_whose_upper_layers_look_past_their_input_is_found_out() -> None:
    model = BY_NAME["mixtral"].build()
    lower, upper = model.model.layers
    seen: list[torch.Tensor] = []
    lower.mlp.register_forward_hook(lambda _, __, output: seen.append(output))
    upper.register_forward_hook(lambda _, __, output: output + (seen.pop() if seen else 0))
    assert not kept(model, rows_of(5, 6)).is_usable
