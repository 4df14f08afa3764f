"""A model's config: read it, and say in one line why no model can be made of it.

A config is a file that anybody may have edited, and transformers checks little of it: a wrong value shows up
as whatever Python error the code that builds the model runs into first. Here it becomes a `ModelError` that
names the setting.
"""

from __future__ import annotations

import inspect
import json
import linecache
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from traceback import walk_tb
from typing import Any

import transformers
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils.hub import cached_file

from steermoe.errors import ModelError
from steermoe.moe.completeness import ADAPTER_CONFIG, check_no_adapter

SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
"""What every language model has at least one of."""

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What configs call the number of routed experts."""

CHOSEN_COUNTS = (
    *("num_experts_per_tok", "num_experts_per_token", "top_k_experts"),
    *("moe_topk", "moe_k", "top_k"),
)
"""What configs call the number of experts chosen for a token; `top_k` last, which may also be a sampling setting."""


def read_config(
    model: str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
) -> PretrainedConfig:
    """Read a model's config.

    Args:
        model: Directory, or name on the model hub.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether code that ships with the checkpoint may run.
        local_files_only: Whether the hub must not be asked.

    Raises:
        ModelError: If there is no config, or it cannot be read, or it names no known architecture.
    """
    stored = _stored_config(model, revision, local_files_only)
    _check_stored(stored, model)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            str(model),
            revision=revision,
            trust_remote_code=trust_remote_code,
            local_files_only=local_files_only,
        )
    except Exception as error:
        # A config's class raises whatever a value of the wrong kind leads to.
        raise ModelError(f"the config of {model} cannot be read: {one_line(error)}") from error
    return config


def check_config(config: PretrainedConfig) -> None:
    """Refuse numbers that fit no model.

    Raises:
        ModelError: With the setting and its value.
    """
    given = _integers(language_config(config))
    for name in SIZES:
        if given.get(name, 1) < 1:
            raise ModelError(
                f"no {config.model_type} model fits its config: {name} = {given[name]}, and must be at least 1"
            )
    for names in (EXPERT_COUNTS, CHOSEN_COUNTS):
        if negative := {name: given[name] for name in names if given.get(name, 0) < 0}:
            raise ModelError(
                f"no {config.model_type} model fits its config: {_equations(negative)}, and cannot be negative"
            )


def language_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a config that is about the language model, which may be the whole of it."""
    return config.get_text_config(decoder=True)


def reason_not_built(error: Exception) -> str:
    """What made the code that builds a model fail, with the settings it read that the config leaves unset.

    Default configs leave out what every checkpoint has, and Python then complains about a `None` without
    naming it. The settings are looked for on the line that failed, and else in the function around it.

    Args:
        error: What was raised, with its traceback.
    """
    reason = one_line(error)
    for frame, line in reversed(list(walk_tb(error.__traceback__))):
        config = frame.f_locals.get("config")
        if isinstance(error, TypeError) and isinstance(config, PretrainedConfig):
            unset = _unset_settings(config, linecache.getline(frame.f_code.co_filename, line))
            with suppress(OSError):  # there may be no source to read
                unset = unset or _unset_settings(config, inspect.getsource(frame.f_code))
            return f"{reason} (unset: {', '.join(unset)})" if unset else reason
    return reason


def _unset_settings(config: PretrainedConfig, source: str) -> list[str]:
    """Settings that a piece of source reads from a config, and that are None there."""
    values = _settings(config)
    names = dict.fromkeys(re.findall(r"\bconfig(?:\.|, *[\"'])(\w+)", source))
    unset = (name for name in names if name in values and values[name] is None)
    return [config.attribute_map.get(name, name) for name in unset]


def reason_without_experts(model_type: str, config: object, has_fused_kin: bool) -> str:
    """Why a model in which no fused experts were found cannot be used.

    Args:
        model_type: What the model is called.
        config: Its config, if it has one.
        has_fused_kin: Whether other models of this architecture have fused experts.
    """
    given = _integers(language_config(config)) if isinstance(config, PretrainedConfig) else {}
    counts = {name: given[name] for name in EXPERT_COUNTS if name in given}
    if has_fused_kin:
        values = f" ({_equations(counts)})" if counts else ""
        return f"this {model_type} model is dense: its config{values} gives no layer routed experts"
    if any(count > 1 for count in counts.values()):
        return (
            f"{model_type} is not supported: its experts do not use the common fused interface of "
            "transformers, so single experts cannot be trained"
        )
    return f"{model_type} is not supported: it is dense, it has no routed experts"


def one_line(error: Exception) -> str:
    """The first line of an error, or of its cause where the error only announces it."""
    text = str(error).strip()
    if isinstance(error, KeyError):
        return f"{text} is not known"
    if error.__cause__ is not None and text.partition("\n")[0].endswith(":"):
        text = str(error.__cause__).strip() or text
    return text.splitlines()[0] if text else type(error).__name__


def _stored_config(model: str | Path, revision: str | None, local_files_only: bool) -> Any:
    """What `config.json` holds, as it stands there."""
    folder = Path(model)
    try:
        if folder.is_dir():
            check_no_adapter(folder)
            return json.loads((folder / "config.json").read_bytes())
        stored, _ = PretrainedConfig.get_config_dict(
            str(model), revision=revision, local_files_only=local_files_only
        )
    except FileNotFoundError:
        raise ModelError(
            f"{model} has no config.json, so it is no model: give the directory of a checkpoint"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the config of {model} is not JSON: {one_line(error)}") from error
    except OSError as error:
        if not folder.exists():
            _check_no_adapter_on_hub(str(model), revision, local_files_only)
            # What looks like owner/name may be a path that was mistyped.
            raise ModelError(
                f"model {str(model)!r} is no directory here, and cannot be read from the hub; check the path or the "
                f"name ({one_line(error)})"
            ) from error
        raise ModelError(f"the config of {model} cannot be read: {one_line(error)}") from error
    return stored


def _check_no_adapter_on_hub(name: str, revision: str | None, local_files_only: bool) -> None:
    """Refuse a repository of the hub that holds an adapter and no model."""
    with suppress(OSError, ValueError):
        found = cached_file(
            name, ADAPTER_CONFIG, revision=revision, local_files_only=local_files_only
        )
        if found is not None:
            check_no_adapter(Path(found).parent, name)


def _check_stored(stored: Any, model: str | Path) -> None:
    """Refuse a `config.json` of which transformers would make nonsense, or an error that names nothing."""
    if not isinstance(stored, dict):
        raise ModelError(
            f"config.json of {model} must hold an object of settings, not {json.dumps(stored)[:40]}"
        )
    for part in (stored, stored.get("text_config")):
        if isinstance(part, dict):
            _check_packing(part.get("quantization_config"), model)
    if "auto_map" in stored:  # the code that ships with the checkpoint knows its own type
        return
    model_type = stored.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelError(
            f"config.json of {model} has no model_type, so its architecture is not known"
        )
    if model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"the architecture {model_type!r} of {model} is not in transformers "
            f"{transformers.__version__}; a newer release may have it"
        )


def _check_packing(settings: Any, model: str | Path) -> None:
    """Refuse packing settings that do not say how the weights are packed."""
    if settings is None:
        return
    if not isinstance(settings, dict):
        raise ModelError(
            f"quantization_config of {model} is {settings!r}, not the settings of a packing method"
        )
    packed_by_bitsandbytes = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    if not isinstance(settings.get("quant_method"), str) and not packed_by_bitsandbytes:
        raise ModelError(
            f"quantization_config of {model} has no quant_method, so how its weights are packed is not known"
        )


def _settings(config: PretrainedConfig) -> Mapping[str, object]:
    """Every setting of a config under each of its names.

    Attributes are not read: where layers differ in a setting, reading it raises.
    """
    values = config.to_dict()
    aliases = config.attribute_map.items()
    return values | {alias: values[name] for alias, name in aliases if name in values}


def _integers(config: PretrainedConfig) -> dict[str, int]:
    return {name: value for name, value in _settings(config).items() if isinstance(value, int)}


def _equations(values: dict[str, int]) -> str:
    """`num_experts = num_local_experts = 8`: a config answers to several names of one setting."""
    groups: dict[int, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    return ", ".join(" = ".join([*names, str(value)]) for value, names in groups.items())
