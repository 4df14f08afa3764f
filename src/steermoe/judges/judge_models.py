"""Loading a model that judges: on its device, from a folder or from the hub, with one line for what cannot be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from steermoe.config import JudgeSection
from steermoe.devices import pick_device, type_in_memory
from steermoe.errors import ModelError, on_one_line


def load(what: str, model_id: str, loader: Callable[..., Any], **settings: Any) -> Any:
    """Call a `from_pretrained`, and say in one line what is wrong with a model that it cannot load.

    Args:
        what: `the config`, `the tokenizer`, `the model`.
        model_id: A folder or a hub id.
        loader: The function.
        settings: Its further arguments.

    Raises:
        ModelError: It fails.
    """
    try:
        return loader(model_id, **settings)
    except Exception as error:  # transformers raises errors of many kinds
        raise ModelError(
            f"{what} of the judge {model_id!r} cannot be loaded ({type(error).__name__}: {on_one_line(error)[:300]}); "
            "give a folder that holds it, or a hub id that may be downloaded"
        ) from None


def processor_template(model_id: str) -> str | None:
    """The chat template that a model of text and images keeps with its processor; None if there is none."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(model_id, "chat_template.json")
        found = json.loads(Path(str(path)).read_text("utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


class Weights:
    """A model that is loaded, onto its device, when it is first asked for.

    Args:
        model_id: A folder or a hub id.
        loader: A `from_pretrained`.
        stored: Type of the checkpoint's weights, by its config.
        settings: The device, which has to be there now, and the type.

    Raises:
        ConfigError: There is no such device.
    """

    def __init__(
        self, model_id: str, loader: Callable[..., Any], stored: Any, settings: JudgeSection
    ) -> None:
        self._model_id, self._loader = model_id, loader
        self._stored, self._dtype = stored, settings.dtype
        self._device = pick_device(settings.device, "judge.device")

    @cached_property
    def model(self) -> Any:
        """The model, ready to judge.

        Raises:
            ModelError: It cannot be loaded.
        """
        import transformers

        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers left it untyped
        dtype = type_in_memory(self._dtype, self._stored, self._device)
        model = load("the model", self._model_id, self._loader, dtype=dtype)
        return model.to(self._device).eval()


def version_of(model_id: str, config: Any, *rules: object) -> str:
    """A hash of a judge's weights, as far as they can be told cheaply, and of the rules by which it is read.

    Of a hub model the commit; of a folder the names, sizes and times of its weight files.
    """
    known = getattr(config, "_commit_hash", None)
    if known is None and Path(model_id).is_dir():
        files = sorted(Path(model_id).glob("*.safetensors")) + sorted(Path(model_id).glob("*.bin"))
        known = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((model_id, known, rules)).encode()).hexdigest()[:12]
