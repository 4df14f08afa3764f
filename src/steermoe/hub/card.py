"""The card of a repository: the run's model card, under the metadata that the hub reads, with what the files are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from steermoe.hub.files import DELTA, PROVENANCE
from steermoe.store.names import EVALUATION, MODEL_CARD
from steermoe.store.run import Run

_METADATA = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_LICENCE_KEYS = ("license", "license_name", "license_link")


def repository_card(run: Run, base: Path | None, is_delta: bool) -> str:
    """README.md of the repository.

    Args:
        run: The run; its own model card is the text.
        base: The base model's folder, where it is on this machine: its licence is passed on.
        is_delta: Whether the repository holds the trained experts alone.
    """
    with run.directory.reading(MODEL_CARD) as path:
        card = path.read_text("utf-8")
    text = _METADATA.sub("", card).strip()
    # What is JSON is YAML too.
    metadata = "".join(
        f"{key}: {json.dumps(value, ensure_ascii=False)}\n"
        for key, value in _metadata(run, base, is_delta).items()
    )
    use = _DELTA_USE if is_delta else _WEIGHTS_USE
    name = run.config.model.name if is_hub_model(run) else "DIRECTORY_OF_THE_BASE_MODEL"
    revision = run.state.model.commit
    at = f" --revision {revision}" if revision else ""
    use = use.format(delta=DELTA, base=name, at=at, provenance=PROVENANCE, evaluation=EVALUATION)
    return f"---\n{metadata}---\n\n{text}\n\n{use}"


def is_hub_model(run: Run) -> bool:
    """Whether the base model was read from the hub, so that its name means something there."""
    return run.state.model.commit is not None


def _metadata(run: Run, base: Path | None, is_delta: bool) -> dict[str, object]:
    found: dict[str, object] = _licence_of(base) if base is not None else {}
    if is_hub_model(run):
        found |= {"base_model": run.config.model.name, "base_model_relation": "finetune"}
    if not is_delta:
        found |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    return found | {"tags": ["steermoe", "mixture-of-experts", "safety"]}


def _licence_of(base: Path) -> dict[str, object]:
    """What the base model's card says of its licence."""
    try:
        block = _METADATA.match((base / "README.md").read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}
    lines = block[1].splitlines() if block is not None else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {key: said[key].strip("\"'") for key in _LICENCE_KEYS if said.get(key)}


_FILES = """\
`{provenance}` says what it was made of and how: model, prompts, settings, trained experts, versions, and a hash of
every file. `{evaluation}` holds the figures above.
"""

_WEIGHTS_USE = f"""\
## Files

The weights are whole, in the base model's own layout: `AutoModelForCausalLM.from_pretrained` and vLLM load them.
{_FILES}"""

_DELTA_USE = f"""\
## Files

`{{delta}}` holds the trained experts alone. With the base model they make the hardened one, bit for bit:

```sh
pip install steermoe
steermoe apply {{delta}} --model {{base}}{{at}} --output hardened
```

A base model with other weights is refused. {_FILES}"""
