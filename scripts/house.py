"""Count what keeps the house small: `python scripts/house.py [FOLDER] [--names]`.

FOLDER is a checkout of the repository, by default the one that this file is in; another commit is counted in a work
tree of its own (`git worktree add FOLDER COMMIT`). Nothing of it is imported: files are parsed, so that a commit whose
dependencies are gone can be counted too. With `--names`, what is counted is listed.

Who uses a function is told by names alone: it counts as used where its name occurs anywhere else in the package: in
code, in a comment, in a text that may name it (a setting, `getattr`, the list of public names) or in a template. So one
that is not used stays hidden where something else has its name. Not looked at are dunder methods, what a decorator
takes in (a command, a validator), and methods of a class with a base from outside the package, which may call them.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

MOST_LINES_OF_A_MODULE = 400
MOST_LINES_OF_A_FUNCTION = 60
UNTYPED = re.compile(r"dict\[str, Any\]")
UNTYPED_TO_READ = re.compile(r"Mapping\[str, Any\]")
WORD = re.compile(r"\w+")
PLAIN_DECORATORS = {
    *("property", "cached_property", "cache", "lru_cache", "contextmanager", "dataclass"),
    *("staticmethod", "classmethod", "no_grad", "setter", "torch", "total_ordering", "override"),
}
"""Decorators that hand what they decorate to nobody."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@dataclass(frozen=True)
class House:
    """The package of one checkout.

    Attributes:
        folder: The checkout.
    """

    folder: Path

    @property
    def source(self) -> Path:
        """Where the package lies."""
        return self.folder / "src" / "steermoe"

    @cached_property
    def texts(self) -> dict[str, str]:
        """Every module's text, by its path in the package."""
        return {
            path.relative_to(self.source).as_posix(): path.read_text(encoding="utf-8")
            for path in sorted(self.source.rglob("*.py"))
        }

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """Every module, parsed."""
        return {path: ast.parse(text) for path, text in self.texts.items()}

    @cached_property
    def other_texts(self) -> str:
        """What is no Python and may name something: templates, presets, and the package's description."""
        files = [p for p in self.source.rglob("*") if p.suffix in (".j2", ".toml")]
        return "\n".join(
            p.read_text(encoding="utf-8") for p in [*files, self.folder / "pyproject.toml"]
        )

    @cached_property
    def test_words(self) -> set[str]:
        """Every word of the tests, benchmarks and scripts."""
        folders = [self.folder / name for name in ("tests", "benchmarks", "scripts")]
        return {
            word
            for folder in folders
            for path in folder.rglob("*.py")
            if path != Path(__file__)
            for word in WORD.findall(path.read_text(encoding="utf-8"))
        }

    def long_modules(self) -> list[str]:
        """Modules of more lines than one should have."""
        lengths = {path: len(text.splitlines()) for path, text in self.texts.items()}
        return [f"{path} {n}" for path, n in lengths.items() if n > MOST_LINES_OF_A_MODULE]

    def long_functions(self) -> list[str]:
        """Functions of more lines than one should have, from `def` to the end, docstring included."""
        return [
            f"{path}:{node.name} {length}"
            for path, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, Function)
            and (length := (node.end_lineno or node.lineno) - node.lineno + 1)
            > MOST_LINES_OF_A_FUNCTION
        ]

    def untyped(self, pattern: re.Pattern[str] = UNTYPED) -> list[str]:
        """Where a dictionary of anything is written, a path for each time; a name that stands for one counts once."""
        return [path for path, text in self.texts.items() for _ in pattern.findall(text)]

    def settings(self) -> list[str]:
        """Names of all settings, from the classes that describe them."""
        classes = {
            node.name: node
            for path, tree in self.trees.items()
            if path.startswith("config")
            for node in tree.body
            if isinstance(node, ast.ClassDef)
        }
        return list(_settings_of(classes["Config"], classes, ""))

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """What each module imports, inside functions too, by its dotted name: modules where a name is one.

        Asking the package for something that is no module of its own, its version say, is an import of `steermoe`.
        """
        names = {_dotted(path): tree for path, tree in self.trees.items()}
        return {name: set(_imports_of(tree, names.keys())) for name, tree in names.items()}

    def own_imports(self, name: str) -> set[str]:
        """The package's own modules among what a module imports; the front door is none."""
        return {other for other in self.imports[name] if other.startswith("steermoe.")}

    def arrows(self) -> set[tuple[str, str]]:
        """Pairs of rooms of which one imports the other; the front door is `__init__`."""
        return {
            (room_of(name), "__init__" if other == "steermoe" else room_of(other))
            for name, imported in self.imports.items()
            if name != "steermoe"
            for other in imported
            if other.split(".")[0] == "steermoe"
            and (other == "steermoe" or room_of(other) != room_of(name))
        }

    def upward_arrows(self) -> list[str]:
        """Arrows to the same floor or to one above, by the floors that the checkout's own test names."""
        floors = {room: i for i, rooms in enumerate(self._floors) for room in rooms}
        floors["__init__"] = -1
        return [
            f"{room} -> {other}"
            for room, other in sorted(self.arrows())
            if floors.get(other, -1) <= floors.get(room, len(floors))
        ]

    def unused(self) -> list[str]:
        """Functions, classes and methods whose name occurs nowhere else in the package."""
        words = Counter(word for text in self.texts.values() for word in WORD.findall(text))
        words.update(WORD.findall(self.other_texts))
        return [
            f"{path}:{node.name}"
            for path, tree in self.trees.items()
            for node in _own_definitions(tree, self._own_names)
            if words[node.name] == _occurrences(node, self.texts[path])
        ]

    def reached_from_tests_alone(self) -> list[str]:
        """Those of the unused that tests, benchmarks or scripts name."""
        return [name for name in self.unused() if name.split(":")[1] in self.test_words]

    @cached_property
    def _floors(self) -> tuple[set[str], ...]:
        tree = ast.parse(
            (self.folder / "tests" / "test_architecture.py").read_text(encoding="utf-8")
        )
        values = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        floors: tuple[set[str], ...] = ast.literal_eval(values["FLOORS"])
        return floors

    @cached_property
    def _own_names(self) -> set[str]:
        classes = (node for tree in self.trees.values() for node in ast.walk(tree))
        return {node.name for node in classes if isinstance(node, ast.ClassDef)} | {
            *(
                "Protocol",
                "NamedTuple",
                "TypedDict",
                "Enum",
                "StrEnum",
                "Exception",
                "Generic",
                "str",
            ),
        }


def room_of(name: str) -> str:
    """`analysis` for `steermoe.analysis.risk`, `cli` for `steermoe.cli.app`."""
    return name.split(".")[1]


def _dotted(path: str) -> str:
    """`steermoe.analysis` for `analysis/__init__.py`."""
    parts = ["steermoe", *path.removesuffix(".py").split("/")]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports_of(tree: ast.Module, known: Collection[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else str(node.module)


def _settings_of(
    section: ast.ClassDef, classes: dict[str, ast.ClassDef], prefix: str
) -> Iterator[str]:
    for node in section.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = f"{prefix}{node.target.id}"
        inner = node.annotation.id if isinstance(node.annotation, ast.Name) else ""
        if inner in classes:
            yield from _settings_of(classes[inner], classes, f"{name}.")
        else:
            yield name


def _own_definitions(tree: ast.Module, known: set[str]) -> Iterator[Definition]:
    """Functions and classes of a module, and methods of classes that only the package calls."""
    for node in tree.body:
        if isinstance(node, Definition) and not _is_taken_in(node):
            yield node
        if isinstance(node, ast.ClassDef) and all(_last_name(base) in known for base in node.bases):
            for inner in node.body:
                if isinstance(inner, Function) and not _is_taken_in(inner):
                    yield inner


def _is_taken_in(node: Definition) -> bool:
    """Whether a decorator hands it to somebody, or Python calls it by itself."""
    is_dunder = node.name.startswith("__") and node.name.endswith("__")
    return is_dunder or any(_last_name(d) not in PLAIN_DECORATORS for d in node.decorator_list)


def _last_name(node: ast.expr) -> str:
    """`field` of `a.b.field(...)[int]`."""
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _occurrences(node: Definition, text: str) -> int:
    """How often a definition names itself."""
    own = "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])
    return sum(word == node.name for word in WORD.findall(own))


def table(house: House) -> dict[str, list[str]]:
    """What is counted, by what it is."""
    return {
        "modules": list(house.texts),
        f"modules over {MOST_LINES_OF_A_MODULE} lines": house.long_modules(),
        f"functions over {MOST_LINES_OF_A_FUNCTION} lines": house.long_functions(),
        "settings": house.settings(),
        "`dict[str, Any]`": house.untyped(),
        "`Mapping[str, Any]`, to be read only": house.untyped(UNTYPED_TO_READ),
        "arrows between rooms": [f"{room} -> {other}" for room, other in sorted(house.arrows())],
        "arrows that do not point down": house.upward_arrows(),
        "definitions reached from tests alone": house.reached_from_tests_alone(),
    }


def main(arguments: list[str]) -> None:
    """Print the counts of a checkout."""
    folders = [Path(a) for a in arguments if not a.startswith("--")]
    house = House(folders[0].resolve() if folders else Path(__file__).parents[1])
    for what, found in table(house).items():
        print(f"{what}: {len(found)}")
        if "--names" in arguments and what != "modules":
            print(*(f"  {name}" for name in found), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
