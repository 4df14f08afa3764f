"""The counts of the house, of a package made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from house import House, main, table

FILES = {
    "pyproject.toml": '[project.scripts]\nsmall = "steermoe.cli:started"\n',
    "tests/test_architecture.py": (
        'FLOORS = ({"cli"}, {"store"}, {"records", "config"})\nfrom steermoe.records import only_tested\n'
    ),
    "src/steermoe/__init__.py": '_HOME = {"offered": "steermoe.store"}\n',
    "src/steermoe/cli.py": (
        "from steermoe.config import Config\n"
        "from steermoe.store import read\nfrom steermoe.records import Record\n\n\n"
        "def started() -> None:\n    read(Record())\n"
    ),
    "src/steermoe/store.py": (
        "import json\nfrom typing import Any\n\nimport steermoe.cli\n\n\n"
        "def read(record: Any) -> dict[str, Any]:\n    found: dict[str, Any] = json.loads(record.text)\n"
        "    return found\n\n\ndef offered() -> None:\n    pass\n"
    ),
    "src/steermoe/records.py": (
        "import ast\n\n\nclass Record:\n    text = ''\n\n"
        "    def forgotten(self) -> None:\n        self.forgotten()\n\n\n"
        "class Visitor(ast.NodeVisitor):\n    def visit_Name(self, node: ast.Name) -> None:\n        pass\n\n\n"
        "Visitor()\n\n\ndef only_tested() -> None:\n    pass\n"
    ),
    "src/steermoe/config/__init__.py": (
        "class ModelSection:\n    id: str = ''\n    dtype: str = 'auto'\n\n\n"
        "class Config:\n    seed: int = 0\n    model: ModelSection = ModelSection()\n"
    ),
}


@pytest.fixture
def house(tmp_path: Path) -> House:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return House(tmp_path)


def test_length_is_counted_in_lines_of_a_file_and_from_def_to_the_end(house: House) -> None:
    lines = ["def long() -> None:", *["    pass"] * 60, *["X = 1"] * 340]
    (house.source / "long.py").write_text("\n".join(lines) + "\n")
    assert house.long_modules() == ["long.py 401"]
    assert house.long_functions() == ["long.py:long 61"]
    again = House(house.folder)
    (house.source / "long.py").write_text("\n".join(lines[2:]) + "\n")
    assert again.long_modules() == []


def test_settings_are_the_fields_below_the_config(house: House) -> None:
    assert house.settings() == ["seed", "model.id", "model.dtype"]


def test_dictionaries_of_anything_are_counted_where_they_are_written(house: House) -> None:
    assert house.untyped() == ["store.py", "store.py"]


def test_arrows_are_pairs_of_rooms_and_some_do_not_point_down(house: House) -> None:
    down = {("cli", "store"), ("cli", "records"), ("cli", "config")}
    assert house.arrows() == {*down, ("store", "cli")}
    assert house.upward_arrows() == ["store -> cli"]


def test_asking_the_front_door_points_up(house: House) -> None:
    (house.source / "records.py").write_text("from steermoe import __version__\n")
    assert House(house.folder).upward_arrows() == ["records -> __init__", "store -> cli"]


def test_what_only_itself_tests_or_nobody_names_is_not_used(house: House) -> None:
    # `started` is an entry point, `offered` a public name, and what visits names is called by `ast`.
    assert house.unused() == ["records.py:forgotten", "records.py:only_tested"]
    assert house.reached_from_tests_alone() == ["records.py:only_tested"]


def test_this_house_is_counted_and_keeps_to_its_measures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main([])
    shown = dict(line.rsplit(": ", 1) for line in capsys.readouterr().out.splitlines())
    own = table(House(Path(__file__).parents[1]))
    assert shown == {what: str(len(found)) for what, found in own.items()}
    assert not own["modules over 400 lines"]
    assert not own["arrows that do not point down"]
    assert len(own["`dict[str, Any]`"]) < 40
