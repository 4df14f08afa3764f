"""The notebook of a finished run: it runs from top to bottom, changes nothing in the run, and keeps no outputs."""

from __future__ import annotations

import ast
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from steermoe.config import load_config
from tiny import copy_of, files_of

NOTEBOOK = Path(__file__).parents[1] / "examples" / "finished_run.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    """The cells of a kind, `code` or `markdown`."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def run_cell(source: str, namespace: dict[str, Any]) -> Any:
    """Run a cell as Jupyter does: what its last line gives is shown."""
    body = ast.parse(source)
    last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
    exec(compile(body, NOTEBOOK.name, "exec"), namespace)
    if last is None:
        return None
    assert isinstance(last, ast.Expr)
    return eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), namespace)


@pytest.fixture
def run_in_place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run where the notebook looks for one, seen from its own folder."""
    place = copy_of(finished, tmp_path / load_config().run_dir)
    (tmp_path / NOTEBOOK.parent.name).mkdir()
    monkeypatch.chdir(tmp_path / NOTEBOOK.parent.name)
    return place


def all_shown(show_harmful: bool) -> list[Any]:
    """What the cells of the notebook show, one after the other."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in cells("code"):
        source = "".join(cell["source"])
        if show_harmful:
            source = source.replace("SHOW_HARMFUL = False", "SHOW_HARMFUL = True")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a reader would see go by, and not stumble over
            shown.append(run_cell(source, namespace))
    return [value for value in shown if value is not None]


def test_the_notebook_runs_from_top_to_bottom_and_changes_nothing(run_in_place: Path) -> None:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    before = {name: (run_in_place / name).read_bytes() for name in files_of(run_in_place)}
    shown = all_shown(show_harmful=False)
    assert {name: (run_in_place / name).read_bytes() for name in files_of(run_in_place)} == before
    tables = [value for value in shown if isinstance(value, DataFrame)]
    pictures = [value for value in shown if isinstance(value, Figure)]
    assert len(tables) + len(pictures) == len(shown)
    assert all(len(table) for table in tables)
    assert all(json.loads(picture.to_json())["data"] for picture in pictures)
    assert len(pictures) >= 4
    heat_map = pictures[0].data[0].z  # 2 layers of 8 experts; a layer's differences cancel out
    assert heat_map.shape == (2, 8)
    assert abs(heat_map.sum(axis=1)).max() < 1e-9


def test_replies_to_harmful_prompts_are_shown_only_to_who_asks(run_in_place: Path) -> None:
    assert "unsafe" not in set(all_shown(show_harmful=False)[-1]["label_base"])
    assert "unsafe" in set(all_shown(show_harmful=True)[-1]["label_base"])


def test_the_notebook_is_stored_without_outputs() -> None:
    for cell in cells("code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(?:home|root|work|Users|tmp)/", text)


def test_the_links_of_the_notebook_lead_somewhere() -> None:
    text = "".join(line for cell in cells("markdown") for line in cell["source"])
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    assert targets
    assert [target for target in targets if not (NOTEBOOK.parent / target).exists()] == []
