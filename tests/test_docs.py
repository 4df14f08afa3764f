"""The documentation is true: its commands exist, its settings exist, its links lead somewhere, its Python runs."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

import steermoe
from conftest import TinyCheckpoint
from steermoe.cli.app import app
from steermoe.config import Config, fields_of, load_config
from steermoe.config.old_names import GONE, RENAMED
from steermoe.prompts.formats import PromptFormat, read_prompts
from steermoe.store import names
from translations import TRANSLATIONS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PAGES_WITH_PYTHON = (
    *("README.md", "docs/usage.md", "docs/judges.md", "docs/extending.md"),
    "docs/method.md",
)

FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
SECTIONS = "model|prompts|collect|identify|train|evaluate|ablate|report"
SETTING = re.compile(rf"`(?:--set )?((?:{SECTIONS})\.[a-z_.]+)(?:=([^`]*))?`")
FILE_ENDINGS = {"py", "md", "html", "json", "jsonl", "csv", "parquet", "toml", "safetensors"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of some languages, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, match.start("text")) + 1,
            match["language"],
            match["mark"] or "",
            match["text"],
        )
        for match in FENCE.finditer(text)
        if match["language"] in languages
    ]


def all_blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, *languages)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---- Python -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(
    tiny_checkpoint: TinyCheckpoint,
    small_prompts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """A directory with `runs/smollm2-moe` and `prompts.csv`, in which a tiny model plays the embedded one."""
    from steermoe.pipeline import run_pipeline

    home = tmp_path_factory.mktemp("documentation")
    shutil.copy(small_prompts, home / "prompts.csv")
    model = tiny_checkpoint("mixtral")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steermoe.loading.embedded_model_path", lambda **_: model)
        patch.chdir(home)
        run_pipeline(
            load_config(
                settings=[
                    "collect.batch_size=8",
                    "collect.max_new_tokens=8",
                    "train.epochs=1",
                    "evaluate.benchmark_limit=2",
                ],
                overrides={"prompts": {"sources": ["prompts.csv"]}},
            )
        )
        yield home


@pytest.mark.parametrize("name", PAGES_WITH_PYTHON)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    name: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    monkeypatch.syspath_prepend(str(finished))
    namespace: dict[str, Any] = {"__name__": "documentation"}
    found = blocks(ROOT / name, "python")
    assert found
    for block in found:
        if block.mark.startswith("file: "):
            Path(block.mark.removeprefix("file: ")).write_text(block.text, encoding="utf-8")
        code = compile("\n" * (block.line - 1) + block.text, block.place, "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a user would see go by, and not stumble over
            exec(code, namespace)


def test_the_users_own_rule_and_refusal_can_be_named_as_the_guide_says(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steermoe.analysis.selection import resolve_rule
    from steermoe.training.targets import resolve_target

    monkeypatch.syspath_prepend(str(finished))
    for block in blocks(ROOT / "docs" / "usage.md", "python"):
        if block.mark.startswith("file: "):
            path = finished / block.mark.removeprefix("file: ")
            path.write_text(block.text, encoding="utf-8")
    run = steermoe.load_run(finished / "runs" / "smollm2-moe")
    chosen = resolve_rule("my_rules:largest_of_each_layer")(run.risk_diff)
    assert sorted(layer for layer, _ in chosen) == [0, 1]
    refuse = resolve_target("my_refusals:by_category")
    harmful = next(prompt for prompt in run.prompts if prompt.category == "violence")
    assert "(violence)" in refuse(harmful, 0)


def test_every_public_name_is_shown_in_a_runnable_example() -> None:
    shown = "\n".join(b.text for b in blocks(ROOT / "docs" / "usage.md", "python"))
    types = {"Config", "Prompt", "Run", "Sampling", "SteerMoEError", "__version__"}
    missing = [n for n in steermoe.__all__ if n not in types and not re.search(rf"\b{n}\(", shown)]
    assert not missing


def test_python_blocks_stand_only_on_pages_that_are_run() -> None:
    run = {ROOT / name for name in PAGES_WITH_PYTHON}
    run |= {TRANSLATIONS[page] for page in run & TRANSLATIONS.keys()}  # the same blocks
    assert [block.place for block in all_blocks("python") if block.page not in run] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_dotted_name_of_the_package_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in sorted(set(re.findall(r"`(?:from )?(steermoe(?:\.\w+)+)", text))):
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found: Any = import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for part in parts[cut:]:
                assert hasattr(found, part), f"{page.name}: {name}"
                found = getattr(found, part)
            break


# ---- commands -----------------------------------------------------------------------------------------------


def commands() -> list[tuple[str, str, list[str]]]:
    """Every shell command of the pages: where it stands, its program, its arguments."""
    found = []
    for block in all_blocks("sh"):
        for line in block.text.splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words:
                found.append((block.place, Path(words[0]).name, words[1:]))
    return found


def test_every_command_of_the_pages_is_one_that_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    group: Any = get_command(app)
    programs = set()
    for place, program, words in commands():
        programs.add(program)
        if program == "make":
            assert words[0] in targets, (place, words)
        elif program == "python":
            module = words[1].replace(".", "/") if words[0] == "-m" else ""
            files = (f"{module}.py", f"{module}/__main__.py") if module else words[:1]
            assert any((ROOT / file).is_file() for file in files), (place, words)
        else:
            assert program == "steermoe", (place, program)
            command = group.get_command(None, words[0])
            assert command is not None, (place, words)
            # Parses, and so refuses an option that does not exist, without doing anything.
            command.make_context(words[0], list(words[1:]), resilient_parsing=False)
    assert programs >= {"make", "steermoe"}


def test_every_setting_in_a_command_is_accepted() -> None:
    for place, program, words in commands():
        if program != "steermoe":
            continue
        settings = [value for flag, value in pairwise(words) if flag == "--set"]
        configs = [value for flag, value in pairwise(words) if flag == "--config"]
        for config in configs:
            assert config == "my.toml" or (ROOT / config).is_file(), (place, config)
        load_config(settings=settings)


def test_every_setting_that_a_page_names_exists() -> None:
    known = (
        {key for key, *_ in fields_of(Config)} | RENAMED.keys() | {*RENAMED.values()} | GONE.keys()
    )
    # What is below belongs to the template; what is below the other are splits and labels.
    free = ("model.chat_template_kwargs.", "prompts.limits.")
    named = 0
    for page in PAGES:
        for key, value in SETTING.findall(page.read_text(encoding="utf-8")):
            if key.split(".")[-1] in FILE_ENDINGS or key.startswith(free):
                continue
            assert key in known, f"{page.name} names {key}"
            if value:
                load_config(settings=[f"{key}={value}"])
            named += 1
    assert named > 50


def test_the_toml_of_the_pages_is_accepted(tmp_path: Path) -> None:
    found = all_blocks("toml")
    assert found
    for block in found:
        path = tmp_path / "my.toml"
        path.write_text(block.text, encoding="utf-8")
        load_config(path)
        assert tomllib.loads(block.text)


@pytest.mark.parametrize(
    ("language", "expected"), [("csv", PromptFormat.ROWS), ("json", PromptFormat.JAILBREAK)]
)
def test_the_prompt_files_of_the_guide_are_read_as_it_says(
    language: str, expected: PromptFormat, tmp_path: Path
) -> None:
    (block,) = blocks(ROOT / "docs" / "prompts.md", language)
    path = tmp_path / "prompts"
    path.write_text(block.text, encoding="utf-8")
    assert read_prompts(path).format is expected


# ---- pages that must agree with the code --------------------------------------------------------------------


def test_the_page_of_settings_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    page = import_module("write_settings").settings_page()
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page, (
        "run `python scripts/write_settings.py`"
    )


def test_the_page_of_settings_has_every_setting_with_its_default() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert "| `collect.batch_size` | whole number | `16` |" in text
    for key, *_, description in fields_of(Config):
        assert f"| `{key}` |" in text
        assert description


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_know_every_file_of_a_run() -> None:
    files = {
        value
        for key, value in vars(names).items()
        if key.isupper() and isinstance(value, str) and Path(value).suffix
    }
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert not [file for file in files if f"`{file}`" not in architecture]


def test_the_map_shows_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = Path(steermoe.__file__).parent
    rooms = [path.name for path in package.glob("*.py") if path.name != "__init__.py"]
    rooms += [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
    assert len(rooms) > 15
    assert not [room for room in rooms if room not in text]


def test_the_citation_names_the_software_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"]) == (steermoe.__version__, "Apache-2.0")
    (paper,) = citation["references"]
    assert paper["doi"] == "10.48550/arXiv.2509.09660"
    assert paper["authors"][0]["family-names"] == "Fayyaz"


def test_no_page_or_script_names_a_place_on_somebodys_machine() -> None:
    texts = [*PAGES, *(ROOT / "scripts").glob("*.py"), *(ROOT / "configs").glob("*.toml")]
    for path in texts:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(?:home|root|work|Users)/", text), path.name
