"""JSON of a run never holds what JSON cannot say."""

import json
import math
from pathlib import Path

import pytest

from steermoe.errors import RunDirectoryError
from steermoe.store.files import RunFiles


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_refused_by_its_name_and_the_old_file_stays(
    tmp_path: Path, number: float
) -> None:
    files = RunFiles(tmp_path)
    files.write_json("figures.json", {"base": {"rates": [1.5, None]}})
    with pytest.raises(RunDirectoryError, match=r"figures\.json .*base\.rates\[1\] is "):
        files.write_json("figures.json", {"base": {"rates": [1.5, number]}})
    assert json.loads((tmp_path / "figures.json").read_text()) == {"base": {"rates": [1.5, None]}}


def test_lines_too(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.write_json_lines("rows.jsonl", [{"a": 1}, {"a": "NaN"}])
    with pytest.raises(RunDirectoryError, match="a is nan"):
        files.write_json_lines("rows.jsonl", [{"a": 1}, {"a": math.nan}])
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
