"""A repository on disk: weights or delta, card with the measures, provenance; nothing of this machine in it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steermoe.errors import HubError, ModelError, RunDirectoryError
from steermoe.hashes import sha256_of
from steermoe.hub.card import is_hub_model, repository_card
from steermoe.hub.delta import check_has_delta, write_delta
from steermoe.hub.files import CARD, LICENCES, PROVENANCE
from steermoe.hub.places import check_no_places, places_of
from steermoe.store.names import EVALUATION, MODEL, MODEL_CARD, PROMPTS, UNSAFE_EXPERTS
from steermoe.store.published import without_places
from steermoe.store.run import Run
from steermoe.version import __version__

_LATER_STEPS = (
    "report",
    "ablat",
    "control",
    "train controls",
    "reply controls",
    "compare controls",
)
"""How steps begin that add to a finished run, and change nothing of it."""

_LOCAL_NAMES = ("_name_or_path", "name_or_path")
"""Where configs of transformers keep the path that something was read from."""


def check_can_be_published(run: Run, folder: Path, is_delta: bool) -> None:
    """Check all that preparing a repository needs, before anything is written.

    Raises:
        RunDirectoryError: The run is not finished, or its files are not as it left them.
        HubError: The folder holds something else, or what was edited since it was prepared.
    """
    if is_delta:
        check_has_delta(run)
    for name, command in ((MODEL, "train"), (EVALUATION, "evaluate")):
        if not run.directory.has(name):
            raise RunDirectoryError(
                f"{run.path} is not finished, it has no {name}: run `steermoe {command} --run {run.path}` first"
            )
    for step, record in run.state.stages.items():
        if step.startswith(_LATER_STEPS):
            continue
        if record.status != "done" or not run.is_current(step):
            raise RunDirectoryError(
                f"{run.path} is not finished, its step {step!r} is to be done again: run `steermoe run --run "
                f"{run.path}` first"
            )
    known, card = run.state.files.get(MODEL), Path(MODEL_CARD).name
    if known is None or sha256_of(run.directory.file(MODEL), but=(card,)) != known.sha256:
        raise RunDirectoryError(
            f"{run.directory.file(MODEL)} was changed or damaged since it was trained; make it again with "
            f"`steermoe train --force --run {run.path}`"
        )
    _check_folder(folder)


def prepare(run: Run, folder: Path, is_delta: bool) -> list[Path]:
    """Write the repository of a finished run.

    Args:
        run: As `check_can_be_published` wants it.
        folder: Where to; an earlier repository there is replaced.
        is_delta: The trained experts alone, instead of the whole weights.

    Returns:
        The files.

    Raises:
        HubError: Something of this machine would be published.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
        made = Path(staging) / "repository"
        made.mkdir()
        if is_delta:
            write_delta(run, made)
        else:
            _copy_model(run, made)
        base = _base_folder(run)
        for file in _licences(base) if base is not None else ():
            shutil.copyfile(file, made / file.name)
        (made / CARD).write_text(repository_card(run, base, is_delta), "utf-8", newline="\n")
        with run.directory.reading(EVALUATION) as path:
            shutil.copyfile(path, made / EVALUATION)
        _write_json(made / PROVENANCE, provenance(run, made))
        check_no_places(made, places_of(run))
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def provenance(run: Run, folder: Path) -> Mapping[str, object]:
    """What the repository was made of and how, with a hash of each file that is in it by now."""
    state, config = run.state, run.config
    prompts = Counter((str(prompt.label), str(prompt.split)) for prompt in run.prompts)
    settings = without_places(config)
    return {
        "schema_version": 1,
        "steermoe": __version__,
        "packages": state.packages,
        "base_model": {
            "name": config.model.name,
            "commit": state.model.commit,
            "sha256": state.model.hash or None,
            "files": state.model.files,
        },
        "prompts": {
            "sources": settings["prompts"]["sources"],
            "sha256": state.files[PROMPTS].sha256,
            "counts": {f"{label}/{split}": n for (label, split), n in sorted(prompts.items())},
        },
        "seed": state.seed,
        "settings": settings,
        "selection_rule": dict(run.selection.rule),
        "selection_sha256": state.files[UNSAFE_EXPERTS].sha256,
        "trained_experts": [list(pair) for pair in run.trained_experts],
        "seconds": {step: record.seconds for step, record in state.stages.items()},
        "files": {
            path.relative_to(folder).as_posix(): sha256_of(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }


def _check_folder(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        known = json.loads((folder / PROVENANCE).read_text("utf-8"))["files"]
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    except (OSError, ValueError, KeyError, TypeError):
        raise HubError(
            f"{folder} holds something that is no prepared repository; choose another place with --output"
        ) from None
    changed = sorted(found ^ {*known, PROVENANCE})
    changed += [n for n, digest in known.items() if n in found and sha256_of(folder / n) != digest]
    if changed:
        raise HubError(
            f"{folder / changed[0]} was edited since it was prepared, and would be overwritten: edit the run's model "
            "card instead, or choose another place with --output"
        )


def _copy_model(run: Run, folder: Path) -> None:
    """The checkpoint; weights by another name for the same file where the disk can do that."""
    for file in sorted(run.directory.file(MODEL).iterdir()):
        if file.name == CARD or not file.is_file():
            continue
        if file.suffix == ".safetensors":
            _link(file, folder / file.name)
        else:
            shutil.copyfile(file, folder / file.name)
        if file.suffix == ".json":
            values = json.loads(file.read_text("utf-8"))
            if (named := _without_local_names(values)) != values:
                _write_json(folder / file.name, named)


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


def _without_local_names(values: Any) -> Any:
    """A config without the paths that transformers notes in it."""
    if not isinstance(values, dict):
        return values
    return {
        key: _without_local_names(value)
        for key, value in values.items()
        if not (key in _LOCAL_NAMES and isinstance(value, str) and Path(value).is_absolute())
    }


def _base_folder(run: Run) -> Path | None:
    """Where the base model lies on this machine; None where it does not."""
    from steermoe.loading import model_source
    from steermoe.moe.stored import local_folder

    try:
        source = run.config.model.id if is_hub_model(run) else model_source(run.config.model)
        return local_folder(source, run.state.model.commit)
    except ModelError:
        return None


def _licences(base: Path) -> Iterator[Path]:
    for pattern in LICENCES:
        yield from sorted(path for path in base.glob(pattern) if path.is_file())


def _write_json(path: Path, values: Any) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", "utf-8", newline="\n")
