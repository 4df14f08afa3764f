"""From a model's name to a model and its tokenizer, with every reason not to load it found first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.utils.hub import cached_file, extract_commit_hash

from steermoe.chat import ensure_chat_template, stop_token_ids
from steermoe.config import EMBEDDED_MODEL, ModelSection
from steermoe.devices import Widths, pick_device, type_in_memory
from steermoe.embedded.description import embedded_config
from steermoe.embedded.model import embedded_model_path
from steermoe.engines.transformers import padding_of
from steermoe.errors import ModelError
from steermoe.hub_names import problem_of_name
from steermoe.moe.completeness import check_expert_numbers, check_no_adapter
from steermoe.moe.configs import read_config
from steermoe.moe.description import MoEDescription
from steermoe.moe.finite import check_weights
from steermoe.moe.freed_memory import give_back_freed_memory
from steermoe.moe.layers import auto_model_class, describe_config, find_moe_layers, load_description
from steermoe.moe.quantization import (
    check_blocks,
    dequantization_arguments,
    forget_quantization,
    quantization_method,
)
from steermoe.moe.shape import ModelShape, shape_of_config
from steermoe.moe.stored import local_folder, stored_tensors
from steermoe.units import gibibytes

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        model: In evaluation mode, its weights frozen.
        tokenizer: Pads on the left; always has a chat template.
        description: The model's MoE layers.
        source: Directory or hub id that it was read from.
        saved_dtype: Type in which its weights are saved: the checkpoint's own where they were widened to be computed
            with.
    """

    model: Any
    tokenizer: Any
    description: MoEDescription
    source: str
    saved_dtype: torch.dtype

    def as_saved(self) -> None:
        """Round the weights to the type in which they are saved."""
        if self.model.dtype is not self.saved_dtype:
            self.model.to(self.saved_dtype)
            give_back_freed_memory()

    @property
    def pad_token_id(self) -> int:
        """A token to pad with, which is in the embedding whatever the tokenizer says."""
        return padding_of(self.model, self.tokenizer, stop_token_ids(self.model, self.tokenizer))


def model_source(settings: ModelSection, report: Report | None = None) -> str:
    """Directory or hub id of a model; the embedded one is built here if it is not cached.

    Raises:
        ModelError: The path does not exist, or is a file; or it is no path, and no name that the hub has.
    """
    if settings.id == EMBEDDED_MODEL:
        return str(embedded_model_path(report=report))
    path = Path(settings.id).expanduser()
    if path.is_file():
        raise ModelError(f"model {settings.id!r} is a file: give the directory of the checkpoint")
    if path.exists():
        return str(path)
    is_address = "://" in settings.id
    looks_like_path = not is_address and (
        path.is_absolute() or settings.id.startswith((".", "~")) or settings.id.count("/") != 1
    )
    if looks_like_path:
        raise ModelError(
            f"model {settings.id!r} does not exist: give a local directory, a hub id (owner/name) or {EMBEDDED_MODEL}"
        )
    if problem := problem_of_name(settings.id):
        raise ModelError(
            f"model {settings.id!r} is no directory here, and no name on the hub: {problem}"
        )
    return settings.id


def hub_commit(settings: ModelSection, source: str) -> str | None:
    """The commit of a hub model that its branch or tag stands for; None where the hub's client does not tell.

    The config of the model is read first, so that it is in the cache, whose folders are named after commits.
    """
    read_config(source, settings.revision, settings.trust_remote_code)
    path = cached_file(source, "config.json", revision=settings.revision)
    return extract_commit_hash(path, None)


def describe_model(settings: ModelSection, source: str) -> MoEDescription:
    """What the model looks like, from its config alone.

    Raises:
        ModelError: It is not supported, with the reason, or cannot be found.
    """
    return load_description(
        source,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        dequantize=settings.dequantize,
    )


def describe_named(settings: ModelSection) -> MoEDescription:
    """What the model that the settings name looks like; nothing is built, and no weights are fetched.

    Raises:
        ModelError: It is not supported, or there is no config of it here or on the hub.
    """
    if settings.id == EMBEDDED_MODEL:
        return describe_config(embedded_config())
    source = model_source(settings)
    try:
        return describe_model(settings, source)
    except ModelError as error:
        if isinstance(error.__cause__, OSError) and not Path(source).exists():
            raise ModelError(
                f"{error}; its config.json is enough: give a directory that holds it"
            ) from error
        raise


def shape_named(settings: ModelSection) -> ModelShape:
    """The widths and sizes of the model that the settings name, from its config; nothing is built or fetched.

    Raises:
        ModelError: As `describe_named`, which is called before.
    """
    return shape_of_config(_config_named(settings), settings.trust_remote_code)


def _config_named(settings: ModelSection) -> Any:
    if settings.id == EMBEDDED_MODEL:
        return embedded_config()
    return read_config(model_source(settings), settings.revision, settings.trust_remote_code)


def widths_named(settings: ModelSection, is_here: bool = True) -> Widths:
    """How wide the weights are of the model that the settings name, by its config.

    Args:
        settings: Of the model. A config that does not say its type is taken for one of bfloat16.
        is_here: Whether it is to compute on this machine; others are taken to have arithmetic for what is stored.

    Raises:
        ConfigError: This machine has no such device.
        ModelError: As `describe_named`, which is called before.
    """
    config = _config_named(settings)
    is_packed = quantization_method(config) is not None
    if is_packed or not isinstance(config.dtype, torch.dtype):
        config.dtype = torch.bfloat16
    stored = config.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    computed = computed_in(settings, config) if is_here else "auto"
    return Widths(stored.itemsize, (stored if computed == "auto" else computed).itemsize)


def read_tokenizer(settings: ModelSection, source: str, report: Report | None = None) -> Any:
    """The model's tokenizer as it is stored, but for a chat template where it brings none.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    except Exception as error:  # the library in Rust raises bare ones
        raise ModelError(
            f"tokenizer of {source} cannot be loaded: {_first_line(error)}; see that the checkpoint has its "
            "tokenizer.json and tokenizer_config.json"
        ) from None
    if ensure_chat_template(tokenizer) and report is not None:
        report(f"{source} brings no chat template: a plain one is used")
    return tokenizer


def load_tokenizer(settings: ModelSection, source: str, report: Report | None = None) -> Any:
    """The model's tokenizer, padding on the left.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    tokenizer = read_tokenizer(settings, source, report)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def load_model(
    settings: ModelSection,
    source: str | None = None,
    *,
    report: Report | None = None,
    tokenizer: Any | None = None,
) -> LoadedModel:
    """Load weights and tokenizer, after the config alone has shown that the model is supported.

    Args:
        settings: How to load it.
        source: Where from; by default what `settings.id` names.
        report: Takes lines to print.
        tokenizer: To be used instead of the model's own.

    Raises:
        ModelError: Anything that keeps the model from loading.
    """
    source = source if source is not None else model_source(settings, report)
    description = describe_model(settings, source)
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(settings, source, report)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers left it untyped
    config = read_config(source, settings.revision, settings.trust_remote_code)
    arguments: dict[str, Any] = {
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
        "dtype": computed_in(settings, config),
    }
    if settings.attn_implementation:
        arguments["attn_implementation"] = settings.attn_implementation
    if settings.device_map:
        arguments["device_map"] = settings.device_map
    is_packed = description.quantization is not None
    if is_packed:
        arguments |= _unpacking(config, source, description, report)
    if Path(source).is_dir():
        _check_files(source, settings)
    model = _read_weights(source, config, arguments, settings.experts_implementation)
    if not Path(source).is_dir():  # a hub's files are here only now
        _check_files(source, settings)
        if is_packed:
            check_blocks(config, local_folder(source, settings.revision))
    if is_packed:
        forget_quantization(model)
    check_not_offloaded(getattr(model, "hf_device_map", None) or {}, source)
    check_weights(model, source)
    if not settings.device_map:
        model.to(pick_device(settings.device))
    model.eval().requires_grad_(False)
    description = find_moe_layers(model)
    _let_go_of_files(model, description)
    saved: torch.dtype = model.dtype
    if settings.dtype == "auto" and arguments["dtype"] is torch.float32:
        assert isinstance(config.dtype, torch.dtype), "that is why they were widened"
        saved = config.dtype
        if report is not None:
            report(f"float32 weights: this processor has no arithmetic for {_short(saved)}")
    return LoadedModel(model, tokenizer, description, source, saved)


def _read_weights(
    source: str, config: Any, arguments: Mapping[str, Any], experts_implementation: str
) -> Any:
    """The model with its weights.

    Raises:
        ModelError: It cannot be read, or its files lack tensors.
    """
    try:
        model_class = auto_model_class(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            read: Any = model_class.from_pretrained(source, output_loading_info=True, **arguments)
            model, found = read
            model.set_experts_implementation(experts_implementation)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = _first_line(error)
        if "ignore_mismatched_sizes" in reason:
            reason = "its files hold tensors of other sizes than its config.json says, which are listed above"
        raise ModelError(f"model {source} cannot be loaded: {reason}") from None
    if missing := sorted(found["missing_keys"]):
        # transformers would go on with random numbers in their place.
        raise ModelError(
            f"model {source} cannot be loaded: its files lack {len(missing)} tensors, the first of them "
            f"{missing[0]}; fetch them again"
        )
    return model


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def computed_in(settings: ModelSection, config: Any) -> torch.dtype | Literal["auto"]:
    """The type in which a model's weights are loaded.

    Packed weights, and weights that are spread over devices, are left to transformers.
    """
    is_packed = quantization_method(config) is not None
    left_alone = is_packed or bool(settings.device_map) or _may_be_mixed(config)
    if settings.dtype == "auto" and left_alone:
        return "auto"
    return type_in_memory(settings.dtype, config.dtype, pick_device(settings.device))


def _may_be_mixed(config: Any) -> bool:
    """Whether transformers may keep some weights in float32 whatever the others are, as the model's class says."""
    name = (config.architectures or [""])[0]
    model_class = getattr(transformers, name, None)
    kept = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    return model_class is None or any(getattr(model_class, attribute, None) for attribute in kept)


def check_not_offloaded(device_map: Mapping[str, object], source: str) -> None:
    """Refuse a model that was spread over more than the accelerators have room for.

    Args:
        device_map: From parts of the model to devices, as transformers placed them; empty where it was not spread.
        source: What to call the model.

    Raises:
        ModelError: Some of it lies on the processor beside accelerators, or on disk.
    """
    places = [str(place) for place in device_map.values()]
    has_accelerators = bool(set(places) - {"cpu", "disk"})
    away = [place for place in places if place == "disk" or (place == "cpu" and has_accelerators)]
    if away:
        raise ModelError(
            f"{len(away)} of {len(places)} parts of {source} have no room on the devices and were put on "
            f"{' and '.join(sorted(set(away)))}, where experts cannot train; `steermoe plan` says what each device "
            "holds and how many are needed"
        )


def _check_files(source: str, settings: ModelSection) -> None:
    """Check that a checkpoint is no adapter, can be compared with what is saved, and lacks no expert.

    Raises:
        ModelError: It cannot be used.
    """
    folder = local_folder(source, settings.revision)
    check_no_adapter(folder)
    check_expert_numbers(stored_tensors(folder), source)


def _unpacking(
    config: Any, source: str, description: MoEDescription, report: Report | None
) -> dict[str, Any]:
    """Arguments with which packed weights are unpacked, once it is sure that they will be unpacked right."""
    if Path(source).is_dir():
        check_blocks(config, source)
    if report is not None:
        memory = gibibytes(description.bytes_in_bfloat16)
        report(f"unpacking {description.quantization} weights: {memory} of memory in bfloat16")
    return dequantization_arguments(description.quantization)


def _let_go_of_files(model: Any, description: MoEDescription) -> None:
    """Copy what may still lie in the memory-mapped files of the checkpoint, apart from the experts.

    transformers fuses experts into tensors of their own, and leaves the rest where the files are mapped. That tenth
    of the weights would keep the whole mapping, experts included, in memory a second time.
    """
    experts = {
        id(parameter)
        for layer in description.layers
        for parameter in model.get_submodule(layer.experts_name).parameters()
    }
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and id(tensor) not in experts:
            tensor.data = tensor.data.clone()
    give_back_freed_memory()


def _first_line(error: Exception) -> str:
    """What an error says first, without its full stop; all of it where that announces a list."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = " ".join(lines) if lines[0].endswith(":") else lines[0]
    return said.removesuffix(".")
