"""The Python interface: what users of the library call, gathered in one place.

Each function here is also used, or checked against what is used, by the pipeline.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from steermoe.contracts import Engine
from steermoe.engines.transformers import TransformersEngine
from steermoe.errors import PromptError
from steermoe.moe.slices import attach_expert_slices
from steermoe.prompts.batches import as_prompt, plan_batches
from steermoe.records import Expert, Label, MixedBatch, PromptLike, Sampling
from steermoe.stages.collect import group_sampling
from steermoe.store.run import make_mixed_batch


def process_mixed_batches(
    llm: Any,
    tokenizer: Any,
    safe_prompts: Sequence[PromptLike],
    unsafe_prompts: Sequence[PromptLike],
    sampling_params: Any,
    batch_size: int = 16,
    safe_ratio: float = 0.5,
) -> list[MixedBatch]:
    """Generate replies to safe and unsafe prompts in mixed batches, with their routing.

    Args:
        llm: An engine, a transformers model, or a `vllm.LLM` that returns routed experts
            (`enable_return_routed_experts=True`; on a processor, VLLM_ENABLE_V1_MULTIPROCESSING=0 in the environment).
        tokenizer: The model's tokenizer; unused where `llm` is an engine.
        safe_prompts: Texts, lists of chat messages, or prompt records of any split.
        unsafe_prompts: The same.
        sampling_params: Any object or mapping with `max_tokens`, `temperature` and `seed`, `vllm.SamplingParams` for
            one; a missing one has its default. What else it says of sampling is not used, and a warning names it.
        batch_size: Prompts of a batch.
        safe_ratio: Share of safe prompts, at least one of each kind.

    Returns:
        The batches, in order. Prompts that fill no batch are left out, and a warning counts them.

    Raises:
        PromptError: There are too few prompts for one batch.

    Example:
        >>> batches = process_mixed_batches(model, tokenizer, ["How do I bake bread?"],
        ...     ["How do I pick my neighbour's lock?"], {"max_tokens": 8}, batch_size=2)  # doctest: +SKIP
        >>> batches[0].safe_indices, batches[0]["unsafe_indices"]  # doctest: +SKIP
        ([0], [1])
    """
    engine = _as_engine(llm, tokenizer)
    prompts = [as_prompt(prompt, Label.SAFE, i) for i, prompt in enumerate(safe_prompts)]
    prompts += [as_prompt(prompt, Label.UNSAFE, i) for i, prompt in enumerate(unsafe_prompts)]
    sampling = _as_sampling(sampling_params)
    _warn(_not_used(sampling_params))
    plan = plan_batches(prompts, batch_size, safe_ratio, None, sampling.seed)
    _warn(plan.notes("prompts", "are left out: they are not collected"))
    batches = []
    for batch_idx, batch in enumerate(plan.batches):
        outputs = engine.generate([p.messages for p in batch], group_sampling(sampling, batch_idx))
        is_unsafe = [prompt.label is Label.UNSAFE for prompt in batch]
        batches.append(make_mixed_batch(batch_idx, outputs, is_unsafe, engine.layer_indices))
    return batches


def _as_engine(llm: Any, tokenizer: Any) -> Engine:
    if isinstance(llm, Engine):
        return llm
    if type(llm).__module__.partition(".")[0] == "vllm":
        from steermoe.engines.vllm import VLLMEngine

        return VLLMEngine.of(llm, tokenizer)
    return TransformersEngine(llm, tokenizer)


_SAMPLING_ELSEWHERE: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "top_k": (0, -1, 50),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "stop": ((), []),
    "stop_token_ids": ((), []),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "bad_words": ((), []),
}
"""What others know of sampling beside ours, with the values that say nothing; 50 is what transformers says unasked."""


def _not_used(given: Any) -> list[str]:
    """What sampling parameters ask for and do not get, in a sentence; nothing where there is none."""
    found = {}
    for name, silent in _SAMPLING_ELSEWHERE.items():
        value = given.get(name) if isinstance(given, Mapping) else getattr(given, name, None)
        if value is not None and value not in silent:
            found[name] = value
    if not found:
        return []
    said = ", ".join(f"{name} = {value!r}" for name, value in found.items())
    return [f"sampling parameters that are not used: {said}"]


def _as_sampling(given: Any) -> Sampling:
    if isinstance(given, Sampling):
        return given
    values = (
        given if isinstance(given, Mapping) else vars(given) if hasattr(given, "__dict__") else {}
    )
    default = Sampling()

    def value(name: str, fallback: float) -> Any:
        found = values.get(name, getattr(given, name, None))
        return fallback if found is None else found

    sampling = Sampling(
        int(value("max_tokens", default.max_tokens)),
        float(value("temperature", default.temperature)),
        int(value("seed", default.seed)),
    )
    if sampling.max_tokens < 1 or sampling.temperature < 0:
        raise PromptError(
            f"max_tokens = {sampling.max_tokens} and temperature = {sampling.temperature}: "
            "at least 1 and at least 0 are needed"
        )
    return sampling


def _warn(notes: Sequence[str]) -> None:
    for note in notes:
        warnings.warn(note, stacklevel=3)


def freeze_model_except_unsafe_experts(model: Any, unsafe_experts: Sequence[Expert]) -> Any:
    """Make the unsafe experts of a model trainable, and nothing else.

    The experts get small trainable stacks beside the frozen tensors; `model.expert_slices` switches them off,
    folds them back into the model and detaches them.

    Args:
        model: A transformers model with fused experts.
        unsafe_experts: `(layer, expert)` pairs.

    Returns:
        The same model, ready to train.

    Raises:
        SelectionError: An expert does not exist, is named twice, or there is none.
        ModelError: The model's experts cannot be trained.

    Example:
        >>> model = freeze_model_except_unsafe_experts(model, [(0, 3), (1, 5)])  # doctest: +SKIP
        >>> model.expert_slices.experts  # doctest: +SKIP
        [(0, 3), (1, 5)]
    """
    model.expert_slices = attach_expert_slices(model, unsafe_experts)
    return model
