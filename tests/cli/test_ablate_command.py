"""`steermoe ablate`: what it prints, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from steermoe.store.directory import RunDirectory
from tiny import CommandLine, copy_of


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run, not ablated."""
    return copy_of(finished, tmp_path / "run")


def test_the_command_prints_its_table_and_show_prints_it_again(
    steermoe: CommandLine, run: Path
) -> None:
    few = ["--set", "ablate.num_draws=2", "--set", "ablate.num_generated_draws=1"]
    assert steermoe("ablate", "--run", run, "--quiet", *few) == 0, steermoe.err
    assert "2 random draws, all different, of " in steermoe.err
    assert "no rank has a p-value below 0.33: set ablate.num_draws" in steermoe.err
    found = RunDirectory(run).read_ablation()["random"]
    printed = f"selected {found['mean_frequency_selected']:.3f}, random draws {found['mean_frequency_draws']:.3f}"
    assert printed in steermoe.err
    table = steermoe.out
    assert printed in table
    for words in (
        "base model, 4 of 4 selected experts switched off; 4 unsafe, 4 look-alike, 4 benign",
        "hardened model",
        "Log p refusal, harmful",
        "Change on harmless text",
        "Look-alikes refused",
        "2 random draws, all different, of ",
        "Mean activation frequency: selected ",
        "fragility, for the model's owner",
    ):
        assert words in table, words
    value = RunDirectory(run).read_ablation()["models"]["base"]["kl_per_token"]["selected"][
        "effect"
    ]["value"]
    assert f"{value:+.3f}" in table
    assert all(len(line) <= 130 for line in table.splitlines())
    assert steermoe("ablate", "--run", run, "--quiet", *few) == 0
    assert "done already" in steermoe.err and steermoe.out == table
    assert steermoe("show", "--run", run) == 0
    assert table.strip() in steermoe.out
    assert "changed since" not in steermoe.out
    again = ["--set", "identify.top_k=2", "--quiet"]
    assert steermoe("identify", "--run", run, *again) == 0
    assert steermoe("show", "--run", run) == 0
    assert "The run has changed since: `steermoe ablate`" in steermoe.out


def test_the_command_says_that_nothing_is_selected_and_exits_with_zero(
    steermoe: CommandLine, run: Path
) -> None:
    assert steermoe("identify", "--run", run, "--quiet", "--set", "identify.threshold=1.0") == 0
    assert steermoe("ablate", "--run", run, "--quiet") == 0
    assert "nothing to ablate" in steermoe.err
    assert steermoe.out.strip() == ""


def test_the_command_refuses_what_cannot_be(
    steermoe: CommandLine, run: Path, tmp_path: Path
) -> None:
    assert "no run" in steermoe.refusal("ablate", "--run", tmp_path / "none")
    wrong = steermoe.refusal("ablate", "--run", run, "--set", "ablate.num_drawz=2")
    assert "ablate.num_draws" in wrong
    assert "num_draws" in steermoe.refusal("ablate", "--run", run, "--set", "ablate.num_draws=0")
    (run / "unsafe_experts.json").unlink()
    assert "steermoe identify" in steermoe.refusal("ablate", "--run", run, "--quiet")
    assert "keeps the prompts" in steermoe.refusal("ablate", "--run", run, "--prompts", "x.csv")
