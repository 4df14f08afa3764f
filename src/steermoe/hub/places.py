"""Where things lie on this machine, which no file that is published may hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from steermoe.errors import HubError
from steermoe.prompts.sources import parse_source
from steermoe.store.published import paths_in
from steermoe.store.run import Run

_SHORTEST_PLACE = 4
"""Characters. Anything may hold `/` or `/a`."""


def places_of(run: Run) -> list[str]:
    """Every path of this machine that what is published might hold: home, run, model, files that settings name."""
    config = run.config
    found = [Path.home(), Path.cwd(), run.path.parent]
    for name in (run.state.model.id, config.model.id):
        if Path(name).is_absolute():
            found.append(Path(name))
    sets = (source for one in config.evaluate.sets for source in one.prompts)
    for source in (*config.prompts.sources, *sets):
        declared = parse_source(source)
        if not declared.is_builtin:
            found.append(Path(declared.path).parent)
    every = {str(path) for place in found for path in (place.absolute(), place.resolve())}
    every |= {place for path in paths_in(config) for place in _places_of_path(path)}
    return sorted(place for place in every if len(place) >= _SHORTEST_PLACE)


def _places_of_path(path: str) -> Iterator[str]:
    """Where a path that a setting names lies, as it was written and in full.

    A folder of one part alone, as `/data`, is a word that any vocabulary may hold: then it is the path itself.
    """
    written = Path(path.rstrip("/\\"))
    for whole in (written, written.absolute(), written.resolve()):
        place = whole.parent if len(whole.parent.parts) > 1 + whole.is_absolute() else whole
        if len(place.parts) > 1:
            yield str(place)


def check_no_places(folder: Path, places: Sequence[str]) -> None:
    """Look through everything that is to be published, but for the numbers of tensors.

    Raises:
        HubError: A file holds a path of this machine.
    """
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = _readable_part(path)
        for place in places:
            forms = {re.escape(form.encode()) for form in (place, json.dumps(place)[1:-1])}
            if re.search(b"(?:" + b"|".join(sorted(forms)) + rb")(?![\w.-])", content):
                raise HubError(
                    f"{path.relative_to(folder)} would publish {place}, a path of this machine; take it out of the "
                    "file of that name in the run's model folder"
                )


def _readable_part(path: Path) -> bytes:
    """All of a file; of a safetensors file, its header."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))
