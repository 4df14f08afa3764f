"""The house keeps its floors: imports point down, siblings do not meet, and torch stays where it belongs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from house import House, room_of
from tiny import copy_of

FLOORS = (
    {"__main__"},
    {"cli"},
    {"pipeline", "api", "hub"},
    {"stages", "report"},
    {"variants", "measures", "scores"},
    {"store", "loading", "harness"},
    {"training", "engines", "judges", "prompts", "embedded", "capability", "costs"},
    {"turns"},
    {"analysis", "moe", "servers", "chat", "reasoning", "reporter"},
    {"contracts", "unused_settings", "processes"},
    {"records", "metrics", "config", "hashes", "devices", "spreadsheets"},
    {"errors", "version", "units", "hub_names"},
)
"""Rooms from the top down. A room imports only from floors below its own."""

STAGE_ORDER = (
    "collect",
    "score",
    "identify",
    "train",
    "reply",
    "reply_sets",
    "read_text",
    "capability",
    "benchmarks",
    "ablate",
    "judge",
    "evaluate",
    "ablation",
)
"""A stage may use what an earlier one defines, never the other way round."""

TORCH_ROOMS = {
    *("moe", "embedded", "engines", "training", "loading", "stages", "devices", "processes"),
}
TORCH_MODULES = {f"steermoe.judges.{name}" for name in ("classifier", "guard", "judge_models")}
"""Judges that are models: they import torch when one is made, so their room stays light."""

HEAVY = ("torch", "transformers", "accelerate")


HOUSE = House(Path(__file__).parents[1])


def floor_of(name: str) -> int:
    """Floors are numbered from the top."""
    room = room_of(name)
    floors = [i for i, rooms in enumerate(FLOORS) if room in rooms]
    assert floors, f"{name} is in no room of the house: give {room!r} a floor"
    return floors[0]


INSIDE = [name for name in HOUSE.imports if name != "steermoe"]


def test_imports_only_point_down_and_siblings_do_not_meet() -> None:
    wrong = [
        f"{name} imports {other}"
        for name in INSIDE
        for other in HOUSE.own_imports(name)
        if room_of(other) != room_of(name) and floor_of(other) <= floor_of(name)
    ]
    assert not wrong


def test_every_room_of_the_house_exists() -> None:
    assert {room for rooms in FLOORS for room in rooms} == {room_of(name) for name in INSIDE}


def test_a_stage_uses_only_stages_before_it() -> None:
    def rank(name: str) -> int:
        part = name.split(".")[-1]
        return STAGE_ORDER.index(part) if part in STAGE_ORDER else -1

    for name in INSIDE:
        if room_of(name) != "stages" or rank(name) < 0:
            continue
        used = [other for other in HOUSE.own_imports(name) if room_of(other) == "stages"]
        assert all(rank(other) < rank(name) for other in used), (name, used)


def test_no_module_imports_itself_by_a_detour() -> None:
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in finished:
            for other in HOUSE.own_imports(name):
                visit(other, (*path, name))
            finished.add(name)

    for name in INSIDE:
        visit(name, ())


def test_torch_appears_only_where_models_are() -> None:
    wrong = [
        f"{name} imports {other}"
        for name in INSIDE
        for other in HOUSE.imports[name]
        if other.split(".")[0] in HEAVY
        and room_of(name) not in TORCH_ROOMS
        and name not in TORCH_MODULES
    ]
    assert not wrong


def test_only_the_embedded_model_is_read_from_gguf() -> None:
    readers = {name for name in INSIDE if "gguf" in {i.split(".")[0] for i in HOUSE.imports[name]}}
    assert {room_of(name) for name in readers} == {"embedded"}
    # Loading any other model needs no gguf: the room's front door, which loading opens, imports it when it builds.
    code = "import importlib\nfor name in ('embedded.model', 'loading'): importlib.import_module(f'steermoe.{name}')"
    result = run_without(("gguf",), code)
    assert result.returncode == 0, result.stderr


def test_analysis_touches_no_files() -> None:
    files = {"os", "io", "pathlib", "shutil", "tempfile", "json"}
    for name in INSIDE:
        assert room_of(name) != "analysis" or not HOUSE.imports[name] & files, name


def test_only_the_run_directory_knows_its_file_names() -> None:
    from steermoe.store import names as rundir

    names = {
        value
        for key, value in vars(rundir).items()
        if key.isupper() and isinstance(value, str) and Path(value).suffix
    }
    assert "responses.parquet" in names
    for path, tree in HOUSE.trees.items():
        constants = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert path == "store/names.py" or not constants & names, (path, constants & names)


BLOCKER = """
import sys

class Blocker:
    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} is blocked")
"""


def run_without(blocked: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which some packages cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", f"{BLOCKER}sys.meta_path.insert(0, Blocker({blocked!r}))\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_analysis_prompts_judging_and_reading_a_run_need_no_torch() -> None:
    names = [name for name in INSIDE if room_of(name) in ("analysis", "prompts", "judges")]
    names += [
        "steermoe",
        "steermoe.store.run",
        "steermoe.config",
        "steermoe.chat",
        "steermoe.reasoning",
        "steermoe.cli.judge",
        "steermoe.pipeline.judged",
        "steermoe.stages.judge",
    ]
    result = run_without(
        HEAVY, f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    )
    assert result.returncode == 0, result.stderr


def test_commands_that_read_a_finished_run_need_no_torch(finished: Path, tmp_path: Path) -> None:
    run = copy_of(finished, tmp_path / "run")
    table = tmp_path / "tables"
    for arguments in (
        ("show", "--run", str(run)),
        ("export", "--run", str(run), "--format", "csv", "--output", str(table)),
        ("report", "--run", str(run), "--force"),
    ):
        code = f"from steermoe.cli.app import main\nsys.argv = ['steermoe', *{arguments!r}]\nmain()"
        result = run_without(HEAVY, code)
        assert result.returncode == 0, result.stderr
    assert (table / "risk_diff.csv").exists()


def test_help_needs_neither_torch_nor_tables() -> None:
    blocked = (*HEAVY, "pandas", "numpy", "pyarrow", "scipy", "plotly")
    code = "from steermoe.cli.app import main\nsys.argv = ['steermoe', '--help']\nmain()"
    result = run_without(blocked, code)
    assert result.returncode == 0, result.stderr
    for command in (
        "collect",
        "identify",
        "train",
        "evaluate",
        "ablate",
        "report",
        "run",
        "show",
        "export",
        "models",
    ):
        assert command in result.stdout


def test_importing_the_package_loads_nothing_else() -> None:
    code = (
        "import steermoe\nassert steermoe.__version__\n"
        "loaded = {name for name in sys.modules if name.startswith('steermoe.')}\n"
        "assert loaded == {'steermoe.version'}, loaded"
    )
    result = run_without((*HEAVY, "pandas", "numpy", "pydantic"), code)
    assert result.returncode == 0, result.stderr


def test_the_public_names_are_there_and_no_others() -> None:
    import steermoe

    for name in steermoe.__all__:
        assert getattr(steermoe, name) is not None
        assert name in dir(steermoe)
    with pytest.raises(AttributeError, match="no attribute 'run_pipelines'"):
        _ = steermoe.run_pipelines
