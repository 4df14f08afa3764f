"""From `collect.engine` to an engine: what generates, and which model has to be loaded for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from steermoe.config import Config
from steermoe.contracts import Engine, check_takes, own_callable
from steermoe.engines.transformers import TransformersEngine
from steermoe.errors import ConfigError
from steermoe.loading import describe_model, load_model
from steermoe.moe.configs import read_config
from steermoe.processes import launched

TRANSFORMERS, VLLM, SERVER = "transformers", "vllm", "openai"


def kind_of(config: Config) -> str:
    """`transformers`, `vllm`, `openai`, or the name of a user's own engine."""
    engine = config.collect.engine
    head = engine.partition(":")[0]
    return head if head in (TRANSFORMERS, VLLM, SERVER) else engine


def check_engine(config: Config) -> None:
    """Refuse what can be told before any model is loaded.

    Raises:
        ConfigError: An engine is not there, or does not take its arguments.
    """
    kind, arguments = kind_of(config), config.collect.engine_args
    if kind == VLLM:
        from steermoe.engines.vllm_arguments import check_arguments

        check_alone(launched()[1])
        check_arguments(arguments)
    elif kind == SERVER:
        from steermoe.engines.openai_texts import check_server

        check_server(_address(config), arguments)
    elif kind == TRANSFORMERS and arguments:
        raise ConfigError(
            "collect.engine_args has no effect: collect.engine is transformers, which [model] sets up"
        )
    elif kind != TRANSFORMERS:
        _maker_of_own(config)


def check_alone(count: int) -> None:
    """Refuse vLLM, which spreads over GPUs by itself, in one of several processes.

    Raises:
        ConfigError: There are several.
    """
    if count > 1:
        raise ConfigError(
            f"collect.engine = {VLLM!r} in {count} processes: vLLM uses several GPUs by itself; start one process, "
            "without torchrun, and set collect.engine_args.tensor_parallel_size"
        )


@contextmanager
def open_engine(config: Config, source: str, tokenizer: Any) -> Iterator[Engine]:
    """The engine that collects, for as long as the context lasts.

    Args:
        config: The settings of the run.
        source: Directory or hub id of the model.
        tokenizer: Its tokenizer.
    """
    kind = kind_of(config)
    if kind == VLLM:
        with vllm_engine(config, source, tokenizer) as engine:
            yield engine
    elif kind == TRANSFORMERS:
        yield _local(config, source, tokenizer)
    elif kind == SERVER:
        yield _with_server(config, source, tokenizer)
    else:
        make = _maker_of_own(config)
        yield _own(make(source, tokenizer, **config.collect.engine_args), config.collect.engine)


def _local(config: Config, source: str, tokenizer: Any) -> TransformersEngine:
    loaded = load_model(config.model, source, tokenizer=tokenizer)
    return TransformersEngine(
        loaded.model, tokenizer, loaded.description, config.model.chat_template_kwargs
    )


def _with_server(config: Config, source: str, tokenizer: Any) -> Engine:
    from steermoe.engines.openai import OpenAIEngine
    from steermoe.engines.openai_texts import ServerTexts

    local = _local(config, source, tokenizer)
    texts = ServerTexts(
        _address(config),
        config.collect.engine_args,
        tokenizer,
        local.stop_token_ids,
        config.model.chat_template_kwargs,
    )
    return OpenAIEngine(texts, local, config.collect.engine)


def _address(config: Config) -> str:
    """The address in `openai:ADDRESS`."""
    return config.collect.engine.partition(":")[2]


@contextmanager
def vllm_engine(
    config: Config, source: str, tokenizer: Any, record: bool = True
) -> Iterator[Engine]:
    """A vLLM in a process of its own, which ends with the context.

    Args:
        config: The settings of the run.
        source: Directory or hub id of the model.
        tokenizer: Its tokenizer.
        record: False for text only.
    """
    check_alone(launched()[1])
    from steermoe.engines.vllm import VLLMEngine, stored_configs
    from steermoe.engines.vllm_arguments import vllm_arguments
    from steermoe.engines.vllm_process import VLLMProcess

    model = config.model
    own = read_config(source, model.revision, model.trust_remote_code)
    stored = str(own.dtype).removeprefix("torch.") if own.dtype is not None else "auto"
    dtype = stored if model.dtype == "auto" else model.dtype
    arguments = vllm_arguments(model, source, dtype, config.collect.engine_args)
    process = VLLMProcess(arguments, record)
    try:
        yield VLLMEngine(
            process,
            tokenizer,
            describe_model(model, source),
            stored_configs(source, model.revision, model.trust_remote_code),
            model.chat_template_kwargs,
            record,
        )
    finally:
        process.close()


def _maker_of_own(config: Config) -> Callable[..., Any]:
    """The user's callable, which is called with a model, its tokenizer and the arguments for the engine."""
    name, arguments = config.collect.engine, config.collect.engine_args
    make = own_callable("engine", name)
    check_takes("engine", name, make, "a model", "its tokenizer", settings=arguments)
    return make


def _own(engine: Any, name: str) -> Engine:
    if not isinstance(engine, Engine):
        raise ConfigError(
            f"collect.engine = {name!r} made a {type(engine).__name__}, which is no engine: see contracts.Engine"
        )
    return engine
