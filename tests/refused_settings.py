"""Settings in a file, and the one line with which settings are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steermoe.config import load_config
from steermoe.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, "utf-8")
    return path


def refusal(*settings: str, file: Path | None = None, **overrides: Any) -> str:
    """The one line with which settings are refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(file, settings, overrides)
    message = str(caught.value)
    assert message and "\n" not in message
    return message
