"""Identify on a hand-made run: one layer of three experts, top-1, and numbers a reader can check."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import TinyCheckpoint
from hand_made import BENIGN, SAFE, TWO_BATCHES, UNSAFE, Reply, make_run, selected_experts, settings
from steermoe.cli.display import expert_lines
from steermoe.errors import RoutingError, SelectionError, SteerMoEError
from steermoe.records import (
    JAILBREAK_FORMAT,
    LOOK_ALIKE,
    PLAIN_GOAL,
    Prompt,
    Split,
    Verdict,
)
from steermoe.stages.contrast import pairs_without_contrast
from steermoe.stages.identify import identify
from steermoe.store.directory import RunDirectory
from steermoe.store.names import RISK, RISK_PER_BATCH, UNSAFE_EXPERTS
from tiny import Listener, copy_of, finished_run, tiny_config


def rows_of(table: pd.DataFrame) -> dict[int, dict[str, Any]]:
    return {row["expert"]: row for row in table.to_dict("records")}


def test_risk_differences_by_hand(tmp_path: Path) -> None:
    run = make_run(tmp_path, TWO_BATCHES)
    listener = Listener()
    figures = identify(run, settings(), listener)
    table = run.read_table(RISK)
    row = rows_of(table)
    assert table["layer"].unique().tolist() == [7]
    # Batch 0: 3/4 - 1/4; batch 1: 1/5 - 0. Their mean is unweighted.
    assert row[0]["risk_diff"] == pytest.approx((0.5 + 0.2) / 2)
    assert row[2]["risk_diff"] == pytest.approx((0.0 + 0.8) / 2)
    assert row[1]["risk_diff"] == pytest.approx(((1 / 4 - 3 / 4) + (0 - 1)) / 2)
    # Pooled, the reply in no batch counts too: 14 of 19 unsafe tokens, 1 of 6 safe ones.
    assert row[0]["risk_diff_pooled"] == pytest.approx(14 / 19 - 1 / 6)
    assert [row[0][name] for name in ("a_safe", "a_unsafe", "n_safe", "n_unsafe")] == [1, 14, 6, 19]
    for expert in range(3):
        difference = row[expert]["a_unsafe_n"] - row[expert]["a_safe_n"]
        assert row[expert]["risk_diff"] == pytest.approx(difference, abs=1e-12)
    assert table["Layer_Expert"].tolist() == ["L07_E02", "L07_E00", "L07_E01"]
    assert table["risk_diff"].is_monotonic_decreasing
    assert figures["num_unsafe_experts"] == 2 and figures["num_experts_in_all"] == 3
    assert (figures["num_safe_responses"], figures["num_unsafe_responses"]) == (3, 4)
    assert "1 responses are in no mixed batch" in listener.text

    batches = run.read_table(RISK_PER_BATCH)
    assert list(batches.columns) == [
        "batch_idx",
        "layer",
        "expert",
        "a_safe",
        "a_unsafe",
        "n_safe",
        "n_unsafe",
        "a_safe_n",
        "a_unsafe_n",
        "risk_diff",
    ]
    first = batches[(batches["batch_idx"] == 0) & (batches["expert"] == 0)].iloc[0]
    assert (first["a_safe"], first["a_unsafe"], first["n_safe"], first["n_unsafe"]) == (1, 3, 4, 4)
    assert first["risk_diff"] == pytest.approx(0.5)
    assert set(batches["batch_idx"]) == {0, 1}


def test_the_selection_is_kept_per_batch_and_global(tmp_path: Path) -> None:
    run = make_run(tmp_path, TWO_BATCHES)
    identify(run, settings(), Listener())
    selection = run.read_selection().as_json()
    assert [row["Layer_Expert"] for row in selection["unsafe_experts"]] == ["L07_E02", "L07_E00"]
    assert selection["unsafe_experts"][0] == {
        "layer": 7,
        "expert": 2,
        "Layer_Expert": "L07_E02",
        "risk_diff": pytest.approx(0.4),
    }
    assert selection["per_batch"] == [
        {"batch_idx": 0, "unsafe_experts": [[7, 0]]},
        {"batch_idx": 1, "unsafe_experts": [[7, 2], [7, 0]]},
    ]
    assert selection["union"] == [[7, 0], [7, 2]]
    assert selected_experts(run) == [(7, 2), (7, 0)]
    assert selected_experts(run, "union") == [(7, 0), (7, 2)]
    assert selection["layer_indices"] == [7] and selection["num_experts"] == 3
    rule = selection["rule"]
    assert rule["name"] == "threshold" and rule["threshold"] == 0.05
    assert rule["estimator"] == "mean_over_batches"
    assert rule["max_q_value"] == 0.05 and rule["min_stability"] == 0.75


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"top_k": 1}, [(7, 2)]),
        ({"threshold": 0.4}, [(7, 2)]),
        ({"threshold": -1.0}, [(7, 2), (7, 0), (7, 1)]),
        ({"threshold": -1.0, "top_k": 2}, [(7, 2), (7, 0)]),
        ({"rule": "lowest", "top_k": 1}, [(7, 1)]),
    ],
)
def test_threshold_and_top_k_take_the_largest(
    tmp_path: Path, values: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    run = make_run(tmp_path, TWO_BATCHES)
    identify(run, settings(**values), Listener())
    assert selected_experts(run) == expected


def test_the_prompt_segment_reads_prompt_tokens_alone(tmp_path: Path) -> None:
    replies = [
        dataclasses.replace(reply, prompt_experts=[1, 1] if reply.label is UNSAFE else [0, 2])
        for reply in TWO_BATCHES
    ]
    run = make_run(tmp_path, replies)
    identify(run, settings(segment="prompt"), Listener())
    row = rows_of(run.read_table(RISK))
    assert [row[expert]["risk_diff"] for expert in range(3)] == pytest.approx([-0.5, 1.0, -0.5])


def test_the_effect_of_a_jailbreaks_format_stands_beside_the_risk_difference(
    tmp_path: Path,
) -> None:
    """Expert 0 fires in half of the tokens of unsafe replies, and of benign ones in a jailbreak's wrapping."""
    replies = [
        *[Reply(UNSAFE, 0, (0, 1)) for _ in range(4)],
        *[Reply(SAFE, 0, (1, 1)) for _ in range(4)],
        *[Reply(BENIGN, -1, (1, 1)) for _ in range(2)],
        *[Reply(BENIGN, -1, (0, 1), category=JAILBREAK_FORMAT) for _ in range(2)],
    ]
    run = make_run(tmp_path, replies)
    identify(run, settings(), Listener())
    row = rows_of(run.read_table(RISK))[0]
    assert row["risk_diff"] == 0.5 and row["format_diff"] == 0.5
    assert row["confounded_by"] == "format"
    shown = expert_lines(run.read_table(RISK), {(7, 0)}).plain
    first, *others = [line for line in shown.splitlines() if line.startswith("L07")]
    assert first.endswith("* format") and not any("format" in line for line in others)
    assert "topic, format: at least half of the risk difference may be that" in shown


def test_held_out_and_benign_replies_are_never_read(tmp_path: Path) -> None:
    planted = [
        Reply(UNSAFE, -1, [1] * 50, split=Split.TEST),
        Reply(SAFE, -1, [2] * 50, split=Split.DEV),
        Reply(BENIGN, -1, [2] * 50),
        Reply(BENIGN, -1, [2] * 50, split=Split.TEST),
    ]
    alone = make_run(tmp_path / "alone", TWO_BATCHES)
    beside = make_run(tmp_path / "beside", [*TWO_BATCHES, *planted])
    for run in (alone, beside):
        identify(run, settings(), Listener())
    for name in (RISK, RISK_PER_BATCH, UNSAFE_EXPERTS):
        assert alone.file(name).read_bytes() == beside.file(name).read_bytes()


def test_no_expert_above_the_threshold_is_said_with_the_largest(tmp_path: Path) -> None:
    run = make_run(tmp_path, TWO_BATCHES)
    listener = Listener()
    figures = identify(run, settings(threshold=0.9), listener)
    assert figures["num_unsafe_experts"] == 0
    assert "L07_E02" in listener.text and "+0.4000" in listener.text
    selection = run.read_selection().as_json()
    assert selection["unsafe_experts"] == []
    assert selection["largest_risk_diff"] == {
        "Layer_Expert": "L07_E02",
        "risk_diff": pytest.approx(0.4),
    }


def test_a_rule_of_the_users_own_sees_the_table_and_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("my_rules")
    module.last = lambda table: [
        (int(row["layer"]), int(row["expert"])) for row in table.tail(1).to_dict("records")
    ]
    monkeypatch.setitem(sys.modules, "my_rules", module)
    run = make_run(tmp_path, TWO_BATCHES)
    identify(run, settings(rule="my_rules:last"), Listener())
    assert selected_experts(run) == [(7, 1)]
    assert run.read_selection().as_json()["rule"]["name"] == "my_rules:last"
    for name in ("my_rules:first", "nowhere:rule", "best"):
        with pytest.raises(SelectionError, match=name.split(":")[0]):
            identify(run, settings(rule=name), Listener())


# ---- the verdict filter -------------------------------------------------------------------------------


def pair(name: str, plain: Verdict, jailbreak: Verdict, batch_idx: int = 0) -> list[Reply]:
    return [
        Reply(SAFE, batch_idx, [1], verdict=plain, pair_id=name, category=PLAIN_GOAL),
        Reply(UNSAFE, batch_idx, [0], verdict=jailbreak, pair_id=name),
    ]


REFUSED, ANSWERED, UNSCORED = Verdict.REFUSED, Verdict.ANSWERED, Verdict.UNSCORED


@pytest.mark.parametrize("plain", list(Verdict))
@pytest.mark.parametrize("jailbreak", list(Verdict))
def test_a_pair_counts_if_the_plain_goal_was_refused_and_the_jailbreak_was_not(
    tmp_path: Path, plain: Verdict, jailbreak: Verdict
) -> None:
    replies = [*pair("kept", REFUSED, ANSWERED), *pair("other", plain, jailbreak)]
    run = make_run(tmp_path, replies)
    listener = Listener()
    figures = identify(run, settings(), listener)
    counts = plain is REFUSED and jailbreak is ANSWERED
    assert figures["num_pairs_left_out_by_verdict"] == int(not counts)
    assert figures["num_unsafe_responses"] == figures["num_safe_responses"] == 1 + counts
    assert ("1 pairs are left out" in listener.text) is not counts


def test_pairs_without_a_plain_goal_are_not_filtered(tmp_path: Path) -> None:
    replies = [
        Reply(SAFE, 0, [1], verdict=ANSWERED, pair_id="a", category=LOOK_ALIKE),
        Reply(UNSAFE, 0, [0], verdict=REFUSED, pair_id="a"),
        Reply(UNSAFE, 0, [0], verdict=UNSCORED),
    ]
    run = make_run(tmp_path, replies)
    figures = identify(run, settings(), Listener())
    assert figures["num_pairs_left_out_by_verdict"] == 0
    assert figures["num_unsafe_responses"] == 2


def test_the_filter_can_be_switched_off(tmp_path: Path) -> None:
    run = make_run(tmp_path, pair("a", ANSWERED, REFUSED))
    figures = identify(run, settings(filter_by_verdict=False), Listener())
    assert figures["num_pairs_left_out_by_verdict"] == 0
    assert figures["num_unsafe_responses"] == 1


def many_pairs(split: Split = Split.TRAIN) -> list[Reply]:
    """Refusals go to expert 1, answers to expert 0, whichever side they are on; half of either side refuses.

    Replies of four tokens in a position-wise alike way, so that neither length nor position makes a difference.
    """
    replies = []
    for number in range(16):
        for label in (SAFE, UNSAFE):
            refuses = (number // (1 if label is SAFE else 2)) % 2 == 0
            replies.append(
                Reply(
                    label,
                    number // 4 if split is Split.TRAIN else -1,
                    [1, 1, 1, 2] if refuses else [0, 0, 0, 2],
                    split=split,
                    verdict=REFUSED if refuses else ANSWERED,
                    pair_id=f"{split} {number}",
                    category=PLAIN_GOAL if label is SAFE else "",
                )
            )
    return replies


def test_what_the_filter_makes_is_not_there_in_all_pairs_nor_among_replies_of_one_verdict(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, [*many_pairs(), *many_pairs(Split.TEST)])
    drawn = {"num_permutations": 100, "num_bootstrap": 100}
    figures = identify(run, settings(**drawn), Listener())
    row = rows_of(run.read_table(RISK))[0]
    assert row["expert"] == 0 and figures["num_pairs_left_out_by_verdict"] == 12
    assert row["risk_diff"] == 0.75, "the filter keeps refused plain goals and answered jailbreaks"
    assert row["estimate_unfiltered"] == 0 and row["at_same_verdict"] == 0
    assert row["refusal_text_diff"] == 0.75 and row["length_diff"] == 0
    assert row["confounded_by"] == "refusal_text"
    assert figures["refusal_rates"] == {"safe": 1.0, "unsafe": 0.0}
    replication = figures["replication"]
    assert replication["splits"] == ["dev", "test"] and replication["num_goals"] == 16
    assert replication["filtered_by_verdict"] is False
    assert replication["shrinkage"] == 0, "the filter would find the same difference again"


def test_replication_is_on_the_goals_that_are_asked_for(tmp_path: Path) -> None:
    held_out = [
        Reply(label, -1, experts, split=split)
        for split, unsafe in ((Split.DEV, [0, 0, 2]), (Split.TEST, [0, 2, 1]))
        for label, experts in ((SAFE, [1, 2, 1]), (UNSAFE, unsafe))
    ]
    run = make_run(tmp_path, [*TWO_BATCHES, *held_out])
    found = {}
    for splits in (["dev"], ["test"], ["dev", "test"]):
        config = settings(replicate_on=splits, threshold=0.3)
        found[tuple(splits)] = identify(run, config, Listener())["replication"]
        assert found[tuple(splits)]["splits"] == splits
    # Selected are experts 0 and 2: pooled 14/19 and 4/19, less 1/6 and 0. Held out 2/3 and 0 on dev, 1/3 and 0 on test.
    train = (14 / 19 - 1 / 6 + 4 / 19) / 2
    assert found[("dev",)]["shrinkage"] == pytest.approx((2 / 3) / 2 / train)
    assert found[("test",)]["shrinkage"] == pytest.approx((1 / 3) / 2 / train)


def test_other_estimators_stand_beside_without_p_values(tmp_path: Path) -> None:
    run = make_run(tmp_path, TWO_BATCHES)
    figures = identify(run, settings(num_permutations=20, num_bootstrap=20), Listener())
    table = run.read_table(RISK)
    row = rows_of(table)[0]
    assert (row["Layer_Expert"], row["by_pooled"]) == (
        "L07_E00",
        pytest.approx(14 / 19 - 1 / 6, abs=1e-5),
    )
    assert row["by_mean_over_responses"] == pytest.approx(2.7 / 4 - 1 / 9, abs=1e-5)
    assert row["in_prompt"] == 0
    assert not [n for n in table.columns if n.startswith(("by_", "in_")) and n.endswith("_q")]
    assert figures["fixed_before"] == {"estimator": "mean_over_batches", "segment": "generation"}
    assert figures["sensitivity"]["risk_diff"]["mean"] == pytest.approx((0.35 + 0.4) / 2)
    assert figures["sensitivity"]["by_pooled"]["share_positive"] == 1.0
    assert set(figures["spread"]) == {"variance_ratio", "skewness", "is_too_skewed"}


def test_a_selection_says_how_many_of_it_are_false_and_warns(tmp_path: Path) -> None:
    run = make_run(tmp_path, TWO_BATCHES)
    listener = Listener()
    figures = identify(run, settings(num_permutations=50, num_bootstrap=50), listener)
    chosen = run.read_selection().as_json()
    assert figures["expected_false_share"] == chosen["expected_false_share"] > 0.25, "three goals"
    assert "of the selected experts are expected not to fire more often" in listener.text
    false = {
        (row["layer"], row["expert"]): row["local_fdr"]
        for row in run.read_table(RISK).to_dict("records")
    }
    union = [false[tuple(pair)] for pair in chosen["union"]]
    assert figures["expected_false_share_of_union"] == pytest.approx(np.mean(union))
    assert {"shrunken", "fcr_low", "fcr_high", "local_fdr"} <= chosen["after_selection"][0].keys()
    unknown = identify(run, settings(), Listener())
    assert unknown["expected_false_share"] is None


def test_a_filter_that_leaves_nothing_is_told_in_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, pair("a", ANSWERED, ANSWERED))
    with pytest.raises(SteerMoEError) as caught:
        identify(run, settings(), Listener())
    message = str(caught.value)
    assert "\n" not in message and "filter_by_verdict" in message
    assert not run.file(RISK).exists() and not run.file(UNSAFE_EXPERTS).exists()


def test_a_pair_of_another_split_does_not_speak_for_a_train_pair() -> None:
    # The same pair never is on two sides, so only the rows that are handed over are looked at.
    responses = pd.DataFrame({"prompt_id": ["s"], "verdict": ["refused"]})
    prompts = {"s": Prompt("s", SAFE, (), "g", pair_id="x", category=PLAIN_GOAL)}
    assert pairs_without_contrast(responses, prompts) == set()


def test_replies_without_a_row_have_no_risk_difference(tmp_path: Path) -> None:
    # Replies of one token: nothing but the prompt was ever fed.
    run = make_run(tmp_path, [Reply(SAFE, 0, []), Reply(UNSAFE, 0, [])])
    with pytest.raises(RoutingError, match="replies of at least two tokens"):
        identify(run, settings(), Listener())


def test_a_batch_without_one_class_is_left_out_of_the_mean_and_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, [*TWO_BATCHES, Reply(SAFE, 2, [1, 1]), Reply(UNSAFE, 2, [])])
    listener = Listener()
    identify(run, settings(), listener)
    assert rows_of(run.read_table(RISK))[0]["risk_diff"] == pytest.approx(0.35)
    assert "1 of 3 batches" in listener.text
    assert [entry["batch_idx"] for entry in run.read_selection().as_json()["per_batch"]] == [0, 1]


def test_replication_is_of_what_was_selected_and_pooled_on_both_sides(tmp_path: Path) -> None:
    held_out = [
        Reply(SAFE, -1, [0, 1], split=Split.TEST),
        Reply(UNSAFE, -1, [0, 2, 2, 1], split=Split.DEV),
    ]
    run = make_run(tmp_path, [*TWO_BATCHES, *held_out])
    # Of the three experts, only the one of largest risk difference is selected, though top_k is 50.
    figures = identify(run, settings(threshold=0.36), Listener())
    assert selected_experts(run) == [(7, 2)]
    found = figures["replication"]
    assert (found["num_selected"], found["estimator"]) == (1, "pooled")
    # Pooled in training: 4 of 19 unsafe tokens; held out: 2 of 4; no safe ones.
    assert found["shrinkage"] == pytest.approx((2 / 4) / (4 / 19))
    assert (found["overlap"], found["overlap_by_chance"]) == (1, pytest.approx(1 / 3))
    assert found["sign_agreement_selected"] == 1.0


# ---- uncertainty --------------------------------------------------------------------------------------


def test_uncertainty_stands_beside_the_figures_and_changes_none(tmp_path: Path) -> None:
    tables = []
    for number in (0, 50):
        run = make_run(tmp_path / str(number), TWO_BATCHES)
        identify(run, settings(num_permutations=number, num_bootstrap=number), Listener())
        tables.append(run.read_table(RISK))
    plain, with_uncertainty = tables
    pd.testing.assert_frame_equal(plain, with_uncertainty[plain.columns])
    for name in ("ci_low", "ci_high", "p_value", "q_value", "estimator", "estimate"):
        assert name in with_uncertainty.columns
    assert set(with_uncertainty["estimator"]) == {"mean_over_batches"}
    assert with_uncertainty["estimate"].to_numpy() == pytest.approx(plain["risk_diff"].to_numpy())


def test_the_estimate_of_another_estimator_stands_beside_its_interval(tmp_path: Path) -> None:
    run = make_run(tmp_path, TWO_BATCHES)
    config = settings(num_permutations=20, num_bootstrap=20, estimator="mean_over_responses")
    identify(run, config, Listener())
    row = rows_of(run.read_table(RISK))[0]
    # Frequencies of expert 0: 1/3, 0 and 0 in safe replies, 1, 1/2, 1/5 and 1 in unsafe ones.
    assert row["estimate"] == pytest.approx(2.7 / 4 - 1 / 9, abs=1e-5)
    assert row["risk_diff"] == pytest.approx(0.35)
    assert row["ci_low"] <= row["estimate"] <= row["ci_high"]


def test_the_analytic_error_is_set_beside_the_bootstraps(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    replies = [
        Reply(label, 0, generator.integers(0, 3, 12).tolist())
        for _ in range(40)
        for label in (SAFE, UNSAFE)
    ]
    run = make_run(tmp_path, replies)
    values = {"num_permutations": 20, "num_bootstrap": 2000, "num_subsamples": 0}
    figures = identify(run, settings(**values), Listener())
    assert figures["median_ratio_of_analytic_error"] == pytest.approx(1, abs=0.05)
    without = identify(run, settings(num_subsamples=0), Listener())
    assert "median_ratio_of_analytic_error" not in without


def test_the_figures_tell_how_many_stable_experts_chance_accounts_for(tmp_path: Path) -> None:
    # Every reply of a class is alike, so every half selects expert 0 and nothing else.
    replies = [Reply(SAFE, 0, [1, 2]), Reply(UNSAFE, 0, [0, 2])] * 3
    run = make_run(tmp_path, replies)
    figures = identify(run, settings(num_subsamples=10, min_stability=0.8), Listener())
    assert run.read_table(RISK)["stability"].tolist() == [1.0, 0.0, 0.0]
    assert (figures["min_stability"], figures["num_stable_experts"]) == (0.8, 1)
    assert figures["mean_selected_by_half"] == 1.0
    # 1^2 / ((2 * 0.8 - 1) * 3 experts)
    assert figures["stability_error_bound"] == pytest.approx(1 / (0.6 * 3))


def test_without_halves_there_is_no_bound(tmp_path: Path) -> None:
    for name, values in (("off", {"num_subsamples": 0}), ("too few", {})):
        listener = Listener()
        replies = [Reply(SAFE, 0, [1]), Reply(UNSAFE, 0, [0])]
        figures = identify(make_run(tmp_path / name, replies), settings(**values), listener)
        assert "stability_error_bound" not in figures
        assert ("no stability column" in listener.text) is (name == "too few")


def test_the_same_seed_gives_the_same_bytes_and_json_is_readable(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        run = make_run(tmp_path / name, TWO_BATCHES)
        identify(run, settings(num_permutations=30, num_bootstrap=30), Listener())
        found.append([run.file(f).read_bytes() for f in (RISK, RISK_PER_BATCH, UNSAFE_EXPERTS)])
    assert found[0] == found[1]
    assert json.loads(found[0][2])["num_unsafe_experts"] == 2


# ---- the layers to select from ------------------------------------------------------------------------


@pytest.mark.parametrize(("bounds", "layer"), [({"first_layer": 1}, 1), ({"last_layer": 0}, 0)])
def test_experts_of_other_layers_are_in_the_table_but_never_selected(
    tmp_path: Path,
    tiny_checkpoint: TinyCheckpoint,
    small_prompts: Path,
    bounds: dict[str, int],
    layer: int,
) -> None:
    checkpoint = tiny_checkpoint("mixtral")
    run = RunDirectory(copy_of(finished_run(checkpoint, small_prompts), tmp_path / "run"))
    config = tiny_config(checkpoint, run.path, small_prompts, identify=bounds)
    before = run.read_selection().as_json()
    assert {row["layer"] for row in before["unsafe_experts"]} == {0, 1}
    figures = identify(run, config, Listener())
    selection = run.read_selection().as_json()
    assert bounds.items() <= selection["rule"].items()
    assert {row["layer"] for row in selection["unsafe_experts"]} == {layer}
    assert {chosen for chosen, _ in selection["union"]} == {layer}
    assert all(pair[0] == layer for b in selection["per_batch"] for pair in b["unsafe_experts"])
    table = run.read_table(RISK)
    assert set(table["layer"]) == {0, 1}
    # What comes back on held-out goals is asked of the experts that could be selected.
    assert figures["replication"]["num_experts"] == figures["num_candidates"] == 8
    left = table[(table["layer"] == layer) & (table["risk_diff"] >= 0)]
    assert [row["Layer_Expert"] for row in selection["unsafe_experts"]] == list(
        left["Layer_Expert"].head(4)
    )


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"first_layer": 8}, r"identify.first_layer is 8, but the MoE layers are 7 \.\. 7"),
        (
            {"first_layer": 5, "last_layer": 6},
            r"identify.first_layer is 5 and identify.last_layer 6, but the MoE layers are 7 \.\. 7",
        ),
        ({"first_layer": 8, "last_layer": 7}, "is 8 and identify.last_layer 7, but"),
    ],
    ids=str,
)
def test_layers_that_leave_nothing_to_select_from_are_refused_by_name(
    tmp_path: Path, bounds: dict[str, int], said: str
) -> None:
    hand = make_run(tmp_path, TWO_BATCHES)
    with pytest.raises(SelectionError, match=said):
        identify(hand, settings(**bounds), Listener())
    identify(hand, settings(first_layer=7, last_layer=7), Listener())
