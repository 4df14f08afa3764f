"""What is not finite is found wherever it stands, and nothing else is."""

import math

import pytest
import torch
from torch import nn

from steermoe.errors import ModelError
from steermoe.moe.finite import check_logits, check_weights, first_not_finite, is_finite

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 7, 14])
def test_one_number_that_is_not_finite_is_found(
    dtype: torch.dtype, value: float, place: int
) -> None:
    tensor = torch.linspace(-3, 3, 15, dtype=dtype).reshape(3, 5)
    assert is_finite(tensor)
    tensor.view(-1)[place] = value
    assert not is_finite(tensor)


def test_the_largest_numbers_of_a_type_whole_numbers_and_nothing_are_finite() -> None:
    for dtype in DTYPES:
        largest = torch.finfo(dtype).max
        assert is_finite(torch.tensor([largest, -largest], dtype=dtype))
    assert is_finite(torch.tensor([1, 2])) and is_finite(torch.empty(0))


def test_the_first_parameter_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert first_not_finite(model) == ""
    check_weights(model, "m")
    with torch.no_grad():
        model[1].bias[1] = math.nan
    assert first_not_finite(model) == "1.bias"
    with pytest.raises(ModelError, match=r"^1\.bias of the/model holds numbers"):
        check_weights(model, "the/model")


def test_a_stored_buffer_counts_and_one_that_is_made_anew_does_not() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("correction", torch.tensor([0.0, 1.0]))
    model.register_buffer("mask", torch.tensor([-math.inf, 0.0]), persistent=False)
    assert first_not_finite(model) == ""
    model.correction[0] = math.nan
    assert first_not_finite(model) == "correction"


class Half(nn.Module):
    dtype = torch.float16


class Single:
    dtype = torch.float32


def test_tokens_that_a_model_never_says_are_no_error_but_a_nan_is() -> None:
    logits = torch.tensor([[1.0, -math.inf], [2.0, 3.0]])
    check_logits(logits, Half())
    for value in (math.nan, math.inf):
        logits[0, 1] = value
        with pytest.raises(ModelError, match=r"not finite in float16.*model\.dtype"):
            check_logits(logits, Half())
        with pytest.raises(ModelError, match=r"in float32.*config\.json"):
            check_logits(logits, Single())
    check_logits(torch.empty(0, 3), Half())
    with pytest.raises(ModelError):
        check_logits(torch.full((1, 3), -math.inf), Half())
