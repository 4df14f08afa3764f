"""What the fullest device holds, and what is advised where it cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shapes import TINY
from steermoe.costs.placement import (
    Need,
    Placement,
    advice,
    fits,
    least_devices,
    memory_of_a_device,
    weights_on_fullest,
)

# 1,740 numbers: two layers of 800, and 140 at the ends.
NEED = Need(trained=1000, working=600)


def test_one_device_holds_everything() -> None:
    assert memory_of_a_device(TINY, Placement(), NEED) == 2 * 1740 + 1600


def test_layers_are_spread_whole() -> None:
    assert weights_on_fullest(TINY, 1) == 2 * 1740
    assert weights_on_fullest(TINY, 2) == 2 * (800 + 70)
    three = replace(TINY, num_decoder_layers=3)  # of 533 each: two of them lie on one device
    assert weights_on_fullest(three, 2) == pytest.approx(2 * (2 * 1600 / 3 + 70))
    assert memory_of_a_device(TINY, Placement(2), NEED) == 2 * 870 + 800


def test_processes_have_a_model_each_and_shards_do_not() -> None:
    copies, shards = Placement(2, 2), Placement(2, 2, "fsdp2")
    for training in (False, True):
        assert memory_of_a_device(TINY, copies, NEED, is_training=training) == 2 * 1740 + 1600
    # Half of the weights and of what trains, two layers that are whole for a moment, and its own activations.
    layer = 4 * 150 + 200
    assert memory_of_a_device(TINY, shards, NEED, is_training=True) == 1740 + 4 * layer + 500 + 600
    assert memory_of_a_device(TINY, shards, NEED) == 2 * 1740 + 1600, "whole models reply"


def test_a_twentieth_is_not_for_tensors() -> None:
    assert fits(94, 100) and not fits(95, 100)


def test_advice_names_what_fits() -> None:
    spread = (2 * 870 + 800) / 0.94
    assert "device_map=auto in one process over 2" in advice(
        TINY, Placement(2, 2), NEED, spread + 1
    )
    assert "gradient_checkpointing=true" in advice(TINY, Placement(1), NEED, 10)
    many = replace(
        TINY, num_decoder_layers=100, num_moe_layers=100, num_experts=4, num_parameters=60_540
    )
    need = Need()
    least = least_devices(many, need, 20_000, "fsdp2")
    assert least is not None and least > 1
    fullest = memory_of_a_device(many, Placement(least, least, "fsdp2"), need, is_training=True)
    assert fits(fullest, 20_000)
    text = advice(many, Placement(2, 2), need, 20_000)
    assert text == f"take {least} such devices, with train.sharding=fsdp2 in as many processes"
