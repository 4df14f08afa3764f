"""What a step depends on, as one hash, and in words where it differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from steermoe.pipeline.inputs import Ledger
from steermoe.pipeline.settings import values_of
from steermoe.pipeline.step import Step
from steermoe.store.state import StepRecord

MAX_NAMED = 5
"""Differences that are named; the others are counted."""


def inputs_of(ledger: Ledger, step: Step) -> dict[str, str]:
    """Hash of everything that a step reads, by name."""
    return {found.name: found.digest(ledger) for found in step.reads}


def fingerprint_of(ledger: Ledger, step: Step) -> str:
    """Hash of the settings that shape a step and of everything that it reads."""
    described = {
        "settings": values_of(ledger.config, step.settings, step.aside),
        "inputs": inputs_of(ledger, step),
    }
    text = json.dumps(described, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def difference(record: StepRecord, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """What differs from when a step was done, in words; empty where nothing does.

    Args:
        record: What is known of the step.
        settings: Its settings now.
        inputs: What it would read now; those that are not named are not compared.
    """
    said = [
        f"{name} was {_shown(record.settings.get(name))} and is {_shown(value)}"
        for name, value in settings.items()
        if name not in record.settings or record.settings[name] != value
    ]
    said += [
        f"{name} was {_shown(value)} and is left as it is by default"
        for name, value in record.settings.items()
        if name not in settings
    ]
    said += [
        f"{name} changed" for name, digest in inputs.items() if record.inputs.get(name) != digest
    ]
    more = [f"and {len(said) - MAX_NAMED} more"] if len(said) > MAX_NAMED else []
    return "; ".join([*said[:MAX_NAMED], *more])


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
