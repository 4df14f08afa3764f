"""`steermoe power`: what it counts in a pilot run, and whether as many prompts as it names are enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from benchmarks.validity.simulate import RoutingModel, SimulatedRun, simulate_run
from safetensors.numpy import save_file
from scipy import stats

from steermoe.analysis.power import prompts_needed, risk_diffs_to_find
from steermoe.analysis.uncertainty import estimate_risk_diff, estimate_uncertainty
from steermoe.cli.power import power_table
from steermoe.config import Config, validate
from steermoe.errors import RoutingError
from steermoe.records import Judgement, Label, Prompt, Split, Verdict
from steermoe.reporter import Reporter
from steermoe.stages.identify import identify
from steermoe.store.directory import RunDirectory
from steermoe.store.names import RESPONSES, RISK, ROUTING
from steermoe.store.run import load_run
from tiny import CommandLine, copy_of, finished_run

MODEL = RoutingModel(num_layers=4, num_experts=32, top_k=4)


def settings(**values: Any) -> Config:
    chosen = {"num_permutations": 200, "num_bootstrap": 200, "num_subsamples": 0} | values
    return validate({"model": {"id": "m"}, "identify": chosen})


def run_of(folder: Path, simulated: SimulatedRun) -> RunDirectory:
    """A run directory that holds simulated routing, as collecting would leave it."""
    run = RunDirectory(folder)
    run.create()
    rows, prompts, verdicts = [], [], {}
    for i, (goal, unsafe) in enumerate(zip(simulated.goals, simulated.is_unsafe, strict=True)):
        label = Label.UNSAFE if unsafe else Label.SAFE
        prompts.append(Prompt(f"p{i}", label, (), goal, split=Split.TRAIN))
        rows.append(
            {
                "prompt_id": f"p{i}",
                "label": str(label),
                "split": str(Split.TRAIN),
                "batch_idx": simulated.batch_idx[i],
            }
        )
        verdicts[("base", f"p{i}", "keyword")] = Judgement(Verdict.ANSWERED)
    run.write_prompts(prompts)
    run.write_table(RESPONSES, pd.DataFrame(rows))
    run.write_verdicts(verdicts, ["base"])
    counts = simulated.counts
    save_file(
        {
            "active": counts.active.astype(np.int32),
            "num_tokens": counts.num_tokens.astype(np.int32),
        },
        run.file(ROUTING),
        metadata={"layer_indices": json.dumps(counts.layer_indices)},
    )
    return run


def concentration(simulated: SimulatedRun, estimator: str) -> float:
    """Sum of the squared weights of unsafe replies, each with a goal of its own: tokens of all, or of their batch."""
    unsafe = simulated.is_unsafe & ((simulated.batch_idx >= 0) | (estimator == "pooled"))
    tokens = simulated.counts.num_tokens[unsafe, 1].astype(float)
    if estimator == "pooled":
        return float(np.sum((tokens / tokens.sum()) ** 2))
    batch = simulated.batch_idx[unsafe]
    weight = tokens / np.bincount(batch, tokens)[batch] / (batch.max() + 1)
    return float(np.sum(weight**2))


def named(run: RunDirectory, config: Config) -> dict[float, Any]:
    table = power_table(run, config)
    return dict(zip(table["risk_diff"], table["num_prompts"], strict=True))


def test_prompts_are_those_that_the_estimator_used(tmp_path: Path) -> None:
    """Of 60 prompts a class, 24 are in mixed batches: the mean over batches knows of no others."""
    simulated = simulate_run(MODEL, 60, 0)
    simulated.batch_idx[simulated.batch_idx >= 3] = -1
    needed = {}
    for estimator, used in (("mean_over_batches", 24), ("pooled", 60)):
        run = run_of(tmp_path / estimator, simulated)
        config = settings(estimator=estimator)
        identify(run, config, Reporter(quiet=True))
        in_use = np.ones(120, bool) if estimator == "pooled" else simulated.batch_idx >= 0
        of_unsafe = simulated.counts.num_tokens[in_use & simulated.is_unsafe, 1].sum()
        pilot = run.read_table(RISK).assign(n_unsafe=of_unsafe)
        needed[estimator] = named(run, config)[0.1]
        expected = prompts_needed(
            pilot, used, risk_diff=0.1, concentration=concentration(simulated, estimator)
        )
        assert needed[estimator] == expected.num_prompts
    # Fewer prompts have larger errors, but what a prompt is worth stays about the same.
    assert needed["mean_over_batches"] == pytest.approx(needed["pooled"], rel=0.3)


def test_the_estimator_and_the_segment_are_the_pilots_own(tmp_path: Path) -> None:
    run = run_of(tmp_path, simulate_run(MODEL, 24, 0))
    identify(run, settings(), Reporter(quiet=True))
    asked = settings(estimator="pooled", segment="prompt")  # the simulation has no prompt tokens
    assert named(run, asked) == named(run, settings())


@pytest.mark.parametrize(("design", "paired"), [("paired", True), ("unpaired", False)])
def test_pairs_are_seen_in_the_goals(tmp_path: Path, design: Any, paired: bool) -> None:
    run = run_of(tmp_path, simulate_run(MODEL, 16, 1, design=design))
    config = settings()
    identify(run, config, Reporter(quiet=True))
    pilot = run.read_table(RISK)
    simulated = simulate_run(MODEL, 16, 1, design=design)
    uneven = concentration(simulated, "mean_over_batches")
    expected = {
        choice: prompts_needed(
            pilot, 16, risk_diff=0.3, paired=choice, concentration=uneven
        ).num_prompts
        for choice in (True, False)
    }
    assert expected[True] > expected[False], "else the test could not tell"
    assert named(run, config)[0.3] == expected[paired]


def test_experts_that_cannot_be_selected_are_not_looked_for(tmp_path: Path) -> None:
    """Of four layers only the highest may be selected from: a quarter as many experts to tell apart."""
    simulated = simulate_run(MODEL, 24, 0)
    run = run_of(tmp_path, simulated)
    config = settings(first_layer=3)
    identify(run, config, Reporter(quiet=True))
    of_unsafe = simulated.counts.num_tokens[simulated.is_unsafe, 1].sum()
    pilot = run.read_table(RISK).assign(n_unsafe=of_unsafe)
    highest = pilot[pilot["layer"] == 3]
    uneven = concentration(simulated, "mean_over_batches")
    of_layer, of_all = (
        prompts_needed(table, 24, risk_diff=0.1, concentration=uneven).num_prompts
        for table in (highest, pilot)
    )
    assert named(run, config)[0.1] == of_layer < of_all


@pytest.mark.slow
@pytest.mark.parametrize("design", ["paired", "unpaired"])
def test_as_many_prompts_as_the_command_names_find_the_expert(tmp_path: Path, design: Any) -> None:
    """A pilot in which a dozen experts differ by a little; then one expert of 0.1 is to be found."""
    model = RoutingModel(num_layers=8, num_experts=64)
    little = [(layer, expert) for layer in range(4) for expert in (1, 2, 3)]
    pilot = simulate_run(model, 160, 500, planted=little, risk_diff=0.03, design=design)
    run = run_of(tmp_path, pilot)
    config = settings(num_permutations=1000, num_bootstrap=1000)
    identify(run, config, Reporter(quiet=True))
    certain = stats.false_discovery_control(run.read_table(RISK)["p_higher"]) <= 0.05
    assert certain.sum() >= 3, "small differences that are certain"
    num_prompts = int(named(run, config)[0.1])
    found = []
    for seed in range(100):
        generator = np.random.default_rng(seed)
        expert = int(generator.integers(8)), int(generator.integers(64))
        drawn = simulate_run(
            model, num_prompts, seed, planted=[expert], risk_diff=0.1, design=design
        )
        table = estimate_uncertainty(
            drawn.counts,
            drawn.is_unsafe,
            drawn.goals,
            drawn.batch_idx,
            num_bootstrap=2,
            seed=seed,
            threshold=config.identify.threshold,
        ).merge(estimate_risk_diff(drawn.counts, drawn.is_unsafe, drawn.batch_idx))
        row = table[(table["layer"] == expert[0]) & (table["expert"] == expert[1])].iloc[0]
        found.append(bool(row["q_value"] <= 0.05 and row["risk_diff"] >= 0.05))
    error = (0.9 * 0.1 / 100) ** 0.5
    assert 0.85 - 2 * error <= np.mean(found) <= 0.95 + 2 * error


# ---- what is asked for --------------------------------------------------------------------------------


def test_sizes_are_multiples_of_the_threshold_or_of_the_largest_difference() -> None:
    pilot = pd.DataFrame({"risk_diff": [0.018, 0.0204, -0.5]})
    assert risk_diffs_to_find(pilot, 0.05) == [0.06, 0.08, 0.1, 0.15, 0.2, 0.3]
    assert risk_diffs_to_find(pilot, 0.0) == [0.0051, 0.01, 0.015, 0.02, 0.031, 0.041]
    assert risk_diffs_to_find(pilot, -1.0) == risk_diffs_to_find(pilot, 0.0)
    assert risk_diffs_to_find(pilot, 0.4) == [0.48, 0.64, 0.8]
    for threshold, differences in ((0.9, [0.95]), (0.0, [-0.1, 0.0])):
        with pytest.raises(RoutingError, match="no natural size to ask about; name one"):
            risk_diffs_to_find(pd.DataFrame({"risk_diff": differences}), threshold)


@pytest.fixture
def pilot_path(checkpoint: Path, small_prompts: Path, tmp_path: Path) -> Path:
    """A finished run of a tiny model, with the threshold 0."""
    return copy_of(finished_run(checkpoint, small_prompts), tmp_path / "run")


def numbers_in(printed: str) -> dict[float, list[str]]:
    """Rows of the printed table by their risk difference."""
    rows = [line.split() for line in printed.splitlines()]
    return {float(row[0]): row[1:] for row in rows if row and row[0][0].isdigit()}


def test_the_command_prints_the_sizes_that_are_asked_for(
    steermoe: CommandLine, pilot_path: Path
) -> None:
    asked = ["--risk-diff", "0.3", "--risk-diff", "0.25"]
    assert steermoe("power", "--run", pilot_path, *asked) == 0, steermoe.err
    rows = numbers_in(steermoe.out)
    assert list(rows) == [0.3, 0.25]
    run = RunDirectory(pilot_path)
    config = load_run(pilot_path).config
    table = power_table(run, config, [0.3, 0.25])
    for row in table.to_dict("records"):
        shown = rows[row["risk_diff"]]
        assert shown == [f"{row['num_prompts']:,}", f"{row['power']:.2f}", str(row["num_unsafe"])]
        assert row["power"] >= 0.9
    assert table["num_prompts"][0] < table["num_prompts"][1]


def test_an_effect_that_varies_more_takes_more_prompts_and_the_assumption_is_said(
    steermoe: CommandLine, pilot_path: Path
) -> None:
    asked = ["identify", "--power", "--run", pilot_path, "--risk-diff", "0.3"]
    needed = {}
    for variation in ("0.5", "2", None):
        own = [] if variation is None else ["--effect-cv", variation]
        assert steermoe(*asked, *own) == 0, steermoe.err
        needed[variation] = int(numbers_in(steermoe.out)[0.3][0].replace(",", ""))
        assert f"by {variation or '0.5'} of its size" in steermoe.out
    assert needed["2"] > needed["0.5"] == needed[None]


def test_without_a_threshold_the_command_asks_about_the_largest_difference(
    steermoe: CommandLine, pilot_path: Path
) -> None:
    assert steermoe("power", "--run", pilot_path) == 0, steermoe.err
    largest = RunDirectory(pilot_path).read_table(RISK)["risk_diff"].max()
    rows = numbers_in(steermoe.out)
    assert len(rows) >= 3 and float(f"{largest:.2g}") in rows
    assert steermoe("power", "--run", pilot_path, "--set", "identify.threshold=0.15") == 0
    assert list(numbers_in(steermoe.out)) == [0.18, 0.24, 0.3, 0.45, 0.6, 0.9]


def test_what_cannot_be_found_is_said(steermoe: CommandLine, pilot_path: Path) -> None:
    power = ["power", "--run", pilot_path]
    assert steermoe(*power, "--risk-diff", "0.999") == 0
    assert "none is enough" in steermoe.out
    assert "no expert of the pilot has room for a risk difference of 0.999" in steermoe.out
    at_threshold = steermoe.refusal(*power, "--risk-diff", "0.1", "--set", "identify.threshold=0.1")
    assert "0.1 is not above the threshold 0.1" in at_threshold
    assert "give one between 0 and 1" in steermoe.refusal(*power, "--risk-diff", "1.5")
    assert "--risk-diff" in steermoe.refusal(*power, "--set", "identify.threshold=0.95")
    assert steermoe(*power, "--risk-diff", "0.3") == 0
    printed = steermoe.out
    old = ["identify", "--power", "--run", pilot_path]
    assert steermoe(*old, "--risk-diff", "0.3") == 0 and steermoe.out == printed
    for option in (["--risk-diff", "0.1"], ["--effect-cv", "1"]):
        assert "goes with --power" in steermoe.refusal("identify", "--run", pilot_path, *option)
    assert "give 0 or more" in steermoe.refusal(*power, "--effect-cv", "-1")


def test_what_is_the_pilots_own_is_said(steermoe: CommandLine, pilot_path: Path) -> None:
    power = ["power", "--run", pilot_path, "--risk-diff", "0.3", "--set", "identify.top_k=3"]
    assert steermoe(*power) == 0
    assert "note" not in steermoe.err
    printed = steermoe.out
    assert steermoe(*power, "--set", "identify.segment=prompt") == 0
    assert "note: identify.segment = 'prompt' has no effect here" in steermoe.err
    assert steermoe.out == printed


def test_a_pilot_without_errors_is_refused(steermoe: CommandLine, pilot_path: Path) -> None:
    without = ["--set", "identify.num_permutations=0", "--quiet"]
    assert steermoe("identify", "--run", pilot_path, *without) == 0
    assert "no standard errors" in steermoe.refusal("power", "--run", pilot_path)
