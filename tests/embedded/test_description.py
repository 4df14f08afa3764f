"""What is said of the embedded model without building it is what the recipe builds."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from steermoe.embedded.description import embedded_config
from steermoe.embedded.model import embedded_model_path
from steermoe.moe.layers import describe_config

ABOUT_THE_FILE = ("dtype", "transformers_version", "_name_or_path")
"""Settings that say how a checkpoint was saved, not what the model looks like."""


def test_it_has_the_size_that_the_specification_names() -> None:
    description = describe_config(embedded_config())
    assert description.layer_indices == tuple(range(30))
    assert (description.num_experts, description.top_k) == (8, 2)
    # Three matrices of 576 x 1536.
    assert description.parameters_per_expert == 3 * 576 * 1536
    assert round(description.bytes_in_bfloat16 / 2 / 1e6) == 692


@pytest.mark.embedded
def test_it_is_the_config_of_the_built_model() -> None:
    built = AutoConfig.from_pretrained(embedded_model_path(offline=True)).to_dict()
    said = embedded_config().to_dict()
    for name in ABOUT_THE_FILE:
        built.pop(name, None)
        said.pop(name, None)
    assert said == built
