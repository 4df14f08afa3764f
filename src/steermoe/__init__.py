"""Safer Mixture-of-Experts models: find the unsafe experts, train only those, measure the result.

The names below are the Python interface. Each is imported when it is first used, so that `import steermoe` costs
nothing and reading a run does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from steermoe.version import __version__

if TYPE_CHECKING:
    from steermoe.analysis.counts import (
        separate_prompt_and_generation_routings as separate_prompt_and_generation_routings,
    )
    from steermoe.analysis.risk import aggregate_batch_risk_diffs as aggregate_batch_risk_diffs
    from steermoe.analysis.risk import calculate_risk_diff as calculate_risk_diff
    from steermoe.analysis.risk import (
        calculate_risk_diff_per_batch as calculate_risk_diff_per_batch,
    )
    from steermoe.analysis.selection import create_expert_mask as create_expert_mask
    from steermoe.analysis.selection import identify_unsafe_experts as identify_unsafe_experts
    from steermoe.api import (
        freeze_model_except_unsafe_experts as freeze_model_except_unsafe_experts,
    )
    from steermoe.api import process_mixed_batches as process_mixed_batches
    from steermoe.config import Config as Config
    from steermoe.config import load_config as load_config
    from steermoe.errors import SteerMoEError as SteerMoEError
    from steermoe.pipeline import run_pipeline as run_pipeline
    from steermoe.records import Prompt as Prompt
    from steermoe.records import Sampling as Sampling
    from steermoe.store.run import Run as Run
    from steermoe.store.run import load_run as load_run
    from steermoe.training.dataset import prepare_sft_dataset as prepare_sft_dataset
    from steermoe.training.trainer import ExpertMaskingTrainer as ExpertMaskingTrainer

_HOME = {
    "Config": "steermoe.config",
    "ExpertMaskingTrainer": "steermoe.training.trainer",
    "Prompt": "steermoe.records",
    "Run": "steermoe.store.run",
    "Sampling": "steermoe.records",
    "SteerMoEError": "steermoe.errors",
    "aggregate_batch_risk_diffs": "steermoe.analysis.risk",
    "calculate_risk_diff": "steermoe.analysis.risk",
    "calculate_risk_diff_per_batch": "steermoe.analysis.risk",
    "create_expert_mask": "steermoe.analysis.selection",
    "freeze_model_except_unsafe_experts": "steermoe.api",
    "identify_unsafe_experts": "steermoe.analysis.selection",
    "load_config": "steermoe.config",
    "load_run": "steermoe.store.run",
    "prepare_sft_dataset": "steermoe.training.dataset",
    "process_mixed_batches": "steermoe.api",
    "run_pipeline": "steermoe.pipeline",
    "separate_prompt_and_generation_routings": "steermoe.analysis.counts",
}
"""The module that each public name lives in."""

__all__ = ["__version__", *_HOME]


if not TYPE_CHECKING:  # a type checker reads the imports above, and so still sees a misspelt name

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOME[name]), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOME})
