"""What the files of a checkpoint lack is told before a weight is loaded."""

from pathlib import Path

import pytest

from steermoe.errors import ModelError
from steermoe.moe.completeness import check_expert_numbers, check_no_adapter

MATRICES = ("w1.weight", "w2.weight", "w3.weight")


def names(numbers: list[int], layer: int = 0) -> list[str]:
    return [f"model.layers.{layer}.mlp.experts.{i}.{m}" for i in numbers for m in MATRICES]


def test_experts_numbered_without_a_gap_pass_whatever_else_is_there() -> None:
    rest = ["lm_head.weight", "model.layers.0.mlp.shared_experts.up_proj.weight"]
    fused = ["model.layers.3.mlp.experts.gate_up_proj"]
    check_expert_numbers([*names([2, 0, 1]), *names([0, 1, 2, 3], layer=1), *rest, *fused], "m")


def test_a_gap_is_named_with_the_layer_and_the_number_that_follows() -> None:
    with pytest.raises(ModelError) as caught:
        check_expert_numbers([*names([0, 1, 2]), *names([0, 1, 9], layer=1)], "the/model")
    message = str(caught.value)
    assert "the/model have no expert 2 in model.layers.1.mlp.experts" in message
    assert "number 9" in message and "\n" not in message


def test_a_missing_matrix_of_one_expert_is_named() -> None:
    lacking = [n for n in names([0, 1, 2, 3]) if n != "model.layers.0.mlp.experts.2.w3.weight"]
    with pytest.raises(ModelError, match=r"lack model\.layers\.0\.mlp\.experts\.2\.w3\.weight;"):
        check_expert_numbers(lacking, "m")


@pytest.mark.parametrize("beside", [(), ("config.json",)])
def test_an_adapter_is_refused_with_the_advice_to_merge(
    tmp_path: Path, beside: tuple[str, ...]
) -> None:
    check_no_adapter(tmp_path)
    for name in ("adapter_config.json", *beside):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=r"holds an adapter .*merge it into its base model"):
        check_no_adapter(tmp_path)
