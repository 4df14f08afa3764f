"""Replication and confounds, worked by hand."""

import numpy as np
import pandas as pd
import pytest

from steermoe.analysis.confounds import confound_differences, flag_confounded
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.replication import replicate
from steermoe.errors import RoutingError


def table_of(values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"layer": 0, "expert": range(len(values)), "risk_diff": values})


def pooled(values: list[float]) -> pd.DataFrame:
    """A table whose mean over batches says something else."""
    return table_of([-9.0 * value for value in values]).assign(risk_diff_pooled=values)


def test_replication_worked_by_hand() -> None:
    train = pooled([0.4, 0.2, 0.0, -0.1])
    heldout = pooled([0.2, -0.1, 0.3, -0.2]).iloc[::-1]
    result = replicate(train, heldout, [(0, 1), (0, 0)])
    assert (result.num_experts, result.num_selected, result.estimator) == (4, 2, "pooled")
    assert result.overlap == 1  # {0, 1} and {2, 0}
    assert result.overlap_by_chance == 1.0
    assert result.overlap_p_value is None and result.overlap_when_relabelled is None
    assert result.shrinkage_ci_low is None and result.shrinkage_ci_high is None
    assert result.sign_agreement == pytest.approx(2 / 3)  # Expert 2 has no sign in training.
    assert result.sign_agreement_selected == pytest.approx(1 / 2)
    assert result.shrinkage == pytest.approx(((0.2 - 0.1) / 2) / ((0.4 + 0.2) / 2))
    assert result.correlation == pytest.approx(np.corrcoef([4, 2, 0, -1], [2, -1, 3, -2])[0, 1])
    # Ranks 4 3 2 1 and 3 2 4 1: differences 1 1 -2 0, so 1 - 6 * 6 / (4 * 15) = 0.4.
    assert result.rank_correlation == pytest.approx(0.4)


def test_the_selected_experts_are_compared_and_not_the_largest() -> None:
    train, heldout = pooled([0.4, 0.2, 0.1, -0.1]), pooled([0.3, 0.2, -0.1, 0.1])
    result = replicate(train, heldout, [(0, 2)])
    assert (result.num_selected, result.overlap, result.sign_agreement_selected) == (1, 0, 0.0)
    assert result.shrinkage == pytest.approx(-1.0)
    assert result.overlap_by_chance == 1 / 4
    # Controls of negative difference have no shrinkage.
    assert replicate(train, heldout, [(0, 3)]).shrinkage is None


def test_ties_of_held_out_differences_go_to_the_first_expert() -> None:
    heldout = pooled([0.1, 0.1, 0.1])
    chosen = [replicate(pooled([0.3, 0.2, 0.1]), heldout, [(0, e)]).overlap for e in range(3)]
    assert chosen == [1, 0, 0]


def test_a_table_replicates_itself_perfectly() -> None:
    table = pooled([0.3, -0.2, 0.1, 0.05])
    result = replicate(table, table, [(0, 0), (0, 2), (0, 3)])
    assert (result.overlap, result.shrinkage, result.sign_agreement) == (3, 1.0, 1.0)
    assert result.correlation == pytest.approx(1) and result.rank_correlation == pytest.approx(1)


def test_what_is_undefined_is_none() -> None:
    result = replicate(pooled([0.0, 0.0]), pooled([0.1, 0.2]), [(0, 0), (0, 1)])
    assert result.correlation is None and result.rank_correlation is None
    assert result.sign_agreement is None and result.shrinkage is None
    nothing = replicate(pooled([0.2, 0.1]), pooled([0.1, 0.3]), [])
    assert (nothing.num_selected, nothing.overlap, nothing.overlap_by_chance) == (0, 0, 0.0)
    assert nothing.shrinkage is None and nothing.sign_agreement_selected is None
    assert nothing.sign_agreement == 1.0


def test_tables_of_different_models_are_refused() -> None:
    with pytest.raises(RoutingError, match="share 2 experts of 3 and 2"):
        replicate(pooled([0.1, 0.2, 0.3]), pooled([0.1, 0.2]), [])
    with pytest.raises(RoutingError, match=r"no expert \(7, 0\)"):
        replicate(pooled([0.1]), pooled([0.1]), [(7, 0)])


def four_responses() -> RoutingCounts:
    """One layer, two experts, top-1, ten tokens each; expert 1 fires 1, 3, 6 and 9 times."""
    active = np.array([[9, 1], [7, 3], [4, 6], [1, 9]]).reshape(4, 1, 1, 2).repeat(2, axis=1)
    return RoutingCounts(active, np.full((4, 2), 10), (3,))


def test_confounds_worked_by_hand() -> None:
    table = confound_differences(
        four_responses(),
        is_benign=[True, True, False, False],
        is_look_alike=[False, False, True, False],
        is_benign_in_format=[False, False, False, True],
    )
    assert table.columns.tolist() == ["layer", "expert", "topic_diff", "format_diff"]
    assert table["layer"].tolist() == [3, 3]
    assert table["topic_diff"].tolist() == pytest.approx([-0.4, 0.4])
    assert table["format_diff"].tolist() == pytest.approx([-0.7, 0.7])


def test_a_contrast_without_responses_has_no_column() -> None:
    nobody = [False] * 4
    table = confound_differences(
        four_responses(),
        is_benign=[True, True, False, False],
        is_look_alike=nobody,
        is_benign_in_format=[False, False, True, True],
    )
    assert table.columns.tolist() == ["layer", "expert", "format_diff"]


def test_one_response_cannot_have_two_roles() -> None:
    with pytest.raises(RoutingError, match="1 responses are both plain and exposed for topic_diff"):
        confound_differences(four_responses(), is_benign=[1, 1, 0, 0], is_look_alike=[0, 1, 1, 0])
    with pytest.raises(RoutingError, match="is_look_alike has shape"):
        confound_differences(four_responses(), is_benign=[1, 1, 0, 0], is_look_alike=[0, 1])


def test_experts_are_flagged_with_what_explains_them() -> None:
    table = table_of([0.20, 0.20, 0.20, 0.20, 0.04, -0.3])
    table["topic_diff"] = [0.10, 0.09, 0.15, -0.3, 0.04, 0.0]
    table["format_diff"] = [0.00, 0.10, 0.30, -0.3, 0.04, 0.0]
    expected = ["topic", "format", "topic and format", "", "", ""]
    assert flag_confounded(table).tolist() == expected
    assert (
        flag_confounded(table.drop(columns="format_diff")).tolist()
        == ["topic", "", "topic"] + [""] * 3
    )
    assert flag_confounded(table, threshold=0.03).tolist()[4] == "topic and format"


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_an_expert_that_never_fires_is_not_explained_by_anything(threshold: float) -> None:
    table = table_of([0.0, -0.1, 0.01]).assign(topic_diff=[0.0, 0.2, 0.01])
    assert flag_confounded(table, threshold).tolist() == ["", "", "topic"]
