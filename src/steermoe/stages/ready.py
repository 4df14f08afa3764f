"""What a run will need, tried before it begins: what is wrong with it is said at once, and not after hours.

Needs no weights: a config, a tokenizer and the prompts tell it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from steermoe.capability.items import BUILTIN_CAPABILITY, builtin_items, chosen_items
from steermoe.chat import encode, ids_that_stop, render
from steermoe.config import Config, ModelSection, SetSection
from steermoe.errors import ConfigError, ModelError, PromptError, on_one_line
from steermoe.loading import load_tokenizer, model_source
from steermoe.measures.perplexity import read_text
from steermoe.moe.checkpoint import save_generation_config
from steermoe.moe.configs import language_config, read_config
from steermoe.records import Prompt, Split, Verdict
from steermoe.reporter import silent
from steermoe.stages.read_text import tokens_of_text
from steermoe.stages.set_prompts import (
    last_conversation,
    prompts_of_set,
    sampling_of_set,
    set_named,
)
from steermoe.training.dataset import needs_refusal
from steermoe.training.targets import names_callable, resolve_target
from steermoe.turns import assistant_turn

TOGETHER = 256
"""Prompts that are tokenised in one call."""


def check_ready(config: Config, prompts: Sequence[Prompt]) -> None:
    """Try what collecting, training, saving and evaluating will need.

    Args:
        config: All settings.
        prompts: The prompts of the run, with their splits.

    Raises:
        ConfigError: Settings leave nothing to compare, or a callable makes no target.
        ModelError: The model's config, generation config or tokenizer cannot be saved, or its tokenizer has tokens that
            the model does not know.
        PromptError: A prompt, with its reply or its target, exceeds the context, or has such tokens; or the files of a
            set of the evaluation cannot be read.
    """
    check_replies_are_fed(config)
    source = model_source(config.model)
    tokenizer = load_tokenizer(config.model, source)
    check_saving(config.model, source, tokenizer)
    check_tokens(config, tokenizer, source, prompts)
    for chosen in config.evaluate.sets:
        _check_set(config, chosen, tokenizer, source, prompts)


def check_set(config: Config, name: str, prompts: Sequence[Prompt]) -> None:
    """Try what a set of the evaluation will need, of a run whose prompts are known.

    Raises:
        ModelError: The tokenizer cannot be read, or makes of a prompt tokens that the model does not know.
        PromptError: The files of the set cannot be read, or a prompt and its replies exceed the context.
    """
    source = model_source(config.model)
    tokenizer = load_tokenizer(config.model, source)
    _check_set(config, set_named(config, name), tokenizer, source, prompts)


def check_text(config: Config) -> None:
    """Try the text whose perplexity is to be measured.

    Raises:
        ModelError: The tokenizer cannot be read, or makes of the text tokens that the model does not know.
        PromptError: The text cannot be read, or is too short.
    """
    path = str(config.evaluate.text_file)
    text = read_text(path)
    source = model_source(config.model)
    tokenizer = load_tokenizer(config.model, source)
    ids = tokens_of_text(tokenizer, text, path)
    num_embedded = int(_text_config(config.model, source).vocab_size)
    _check_embedded(ids, num_embedded, f"evaluate.text_file {path}", tokenizer)


def check_replies_are_fed(config: Config) -> None:
    """Refuse replies of one token, where routing over replies is what is compared: the last token is never fed.

    Raises:
        ConfigError: They are.
    """
    if config.collect.max_new_tokens < 2 and config.identify.segment == "generation":
        raise ConfigError(
            f"collect.max_new_tokens = {config.collect.max_new_tokens} records no routing of replies, because the last "
            "token of a reply is never fed to the model: set at least 2, or identify.segment=prompt"
        )


def check_saving(settings: ModelSection, source: str, tokenizer: Any) -> None:
    """Save all of a model but its weights into a folder that is thrown away.

    Raises:
        ModelError: Something cannot be saved, and the hardened model could not be either.
    """
    config = read_config(source, settings.revision, settings.trust_remote_code)
    with tempfile.TemporaryDirectory() as folder:
        _try_saving("config.json", source, lambda: config.save_pretrained(folder))
        generation = _generation_config(settings, source)
        if generation is not None:
            _try_saving(
                "generation_config.json",
                source,
                lambda: save_generation_config(generation, Path(folder)),
            )
        _try_saving("tokenizer", source, lambda: tokenizer.save_pretrained(folder))


def _generation_config(settings: ModelSection, source: str) -> GenerationConfig | None:
    """That of the model; None where it has none."""
    try:
        return GenerationConfig.from_pretrained(source, revision=settings.revision or "main")
    except OSError as error:
        if not (Path(source) / "generation_config.json").is_file():
            return None
        raise ModelError(
            f"the generation_config.json of {source} cannot be read: {on_one_line(error)}; mend it, or take it out"
        ) from None
    except Exception as error:
        raise _unsaved("generation_config.json", source, error) from None


def _try_saving(what: str, source: str, save: Callable[[], object]) -> None:
    try:
        save()
    except Exception as error:  # other people's classes raise what they like
        raise _unsaved(what, source, error) from None


def _unsaved(what: str, source: str, error: Exception) -> ModelError:
    return ModelError(
        f"the {what} of {source} cannot be saved, so no hardened model could be either: {on_one_line(error)}; mend it "
        "in a copy of the model"
    )


def check_tokens(config: Config, tokenizer: Any, source: str, prompts: Sequence[Prompt]) -> None:
    """Check that the model knows every token it will be fed, and has room for prompt and reply.

    Raises:
        PromptError: A prompt or a target is too long.
        ModelError: The tokenizer has made a token that is beyond the model's embedding.
    """
    text_config = _text_config(config.model, source)
    num_embedded = int(text_config.vocab_size)
    context = _context_of(text_config)
    _check_replies_end(config.model, source, text_config, tokenizer)
    targets = _targets(config, prompts)
    texts = [text for own in targets.values() for text in own]
    num_tokens = (
        _turn_lengths(config, tokenizer, prompts[0], texts, num_embedded) if prompts else {}
    )
    for prompt, prompt_ids in _tokenised(config, tokenizer, prompts):
        _check_embedded(prompt_ids, num_embedded, f"prompt {prompt.prompt_id}", tokenizer)
        if context:
            learned = [num_tokens[text] for text in targets.get(prompt.prompt_id, ())]
            _check_room(config, prompt, len(prompt_ids), max(learned, default=0), context)
    if context and BUILTIN_CAPABILITY in config.evaluate.benchmarks:
        _check_tasks_fit(config, tokenizer, context)


def _text_config(settings: ModelSection, source: str) -> Any:
    return language_config(read_config(source, settings.revision, settings.trust_remote_code))


def _context_of(text_config: Any) -> int | None:
    """Tokens that the model reads at once; None where its config sets no limit."""
    length = getattr(text_config, "max_position_embeddings", None)
    return int(length) if length else None


def _check_set(
    config: Config, chosen: SetSection, tokenizer: Any, source: str, own: Sequence[Prompt]
) -> None:
    """Check that the model knows every token of a set, and has room for each conversation with all its replies."""
    text_config = _text_config(config.model, source)
    num_embedded, context = int(text_config.vocab_size), _context_of(text_config)
    conversations = [
        replace(prompt, messages=last_conversation(prompt, chosen.follow_ups), rendered="")
        for prompt in prompts_of_set(config, chosen, own, silent())
    ]
    num_replies = 1 + len(chosen.follow_ups)
    most = sampling_of_set(config, chosen).max_tokens * num_replies
    for prompt, ids in _tokenised(config, tokenizer, conversations):
        what = f"prompt {prompt.prompt_id} of the set {chosen.name}"
        _check_embedded(ids, num_embedded, what, tokenizer)
        if context and len(ids) + most > context:
            replies = "its reply" if num_replies == 1 else f"its {num_replies} replies"
            raise PromptError(
                f"{what} has {len(ids)} tokens, and with the {most} of {replies} it exceeds the model's context of "
                f"{context}; shorten it, or give the set a lower max_new_tokens (evaluate.sets)"
            )


def _check_tasks_fit(config: Config, tokenizer: Any, context: int) -> None:
    """Check that the model has room for the tasks of `builtin:capability`.

    Raises:
        PromptError: It has not.
    """
    for item in chosen_items(builtin_items(), config.evaluate.benchmark_limit):
        messages = item.messages(config.prompts.system_prompt)
        text = render(tokenizer, messages, config.model.chat_template_kwargs)
        said = max((f"{item.opening} {option}" for option in item.options), key=len, default="")
        num_tokens = len(encode(tokenizer, text + said)) + item.max_tokens
        if num_tokens > context:
            raise PromptError(
                f"a task of {BUILTIN_CAPABILITY} takes {num_tokens} tokens with its answer, and the model's context is "
                f"{context}: leave the tasks out with --set evaluate.benchmarks="
            )


def _check_replies_end(
    settings: ModelSection, source: str, text_config: Any, tokenizer: Any
) -> None:
    """Refuse a model of which no token that ends a reply is one that it can give.

    Raises:
        ModelError: It is.
    """
    stops = ids_that_stop((_generation_config(settings, source), text_config), tokenizer)
    num_embedded = int(text_config.vocab_size)
    if all(not 0 <= stop < num_embedded for stop in stops):
        raise ModelError(
            f"replies of {source} would never end: its end-of-turn tokens are {', '.join(map(str, stops))}, and its "
            f"embedding has {num_embedded}; set eos_token_id in generation_config.json"
        )


def _targets(config: Config, prompts: Sequence[Prompt]) -> dict[str, Sequence[str]]:
    """What each prompt that may be learned to be refused may get for a target: a callable of the user's makes it now.

    Raises:
        ConfigError: It fails, or makes no text.
    """
    wanted = config.train.target_response
    target = resolve_target(wanted)
    learned = [
        prompt
        for prompt in prompts
        if prompt.split is Split.TRAIN and needs_refusal(prompt, Verdict.ANSWERED)
    ]
    if isinstance(wanted, str) and names_callable(wanted):
        return {prompt.prompt_id: [target(prompt, i)] for i, prompt in enumerate(learned)}
    texts = [wanted] if isinstance(wanted, str) else list(wanted)
    return {prompt.prompt_id: texts for prompt in learned}


def _turn_lengths(
    config: Config, tokenizer: Any, first: Prompt, texts: Iterable[str], num_embedded: int
) -> dict[str, int]:
    """Tokens of each target as a turn; after every prompt they are those after the first.

    Raises:
        ModelError: One of them is beyond the model's embedding.
    """
    kwargs = config.model.chat_template_kwargs
    rendered = render(tokenizer, first.messages, kwargs)
    lengths = {}
    for text in dict.fromkeys(texts):
        ids = assistant_turn(tokenizer, first.messages, rendered, text, kwargs).token_ids
        _check_embedded(ids, num_embedded, f"train.target_response {text!r}", tokenizer)
        lengths[text] = len(ids)
    return lengths


def _tokenised(
    config: Config, tokenizer: Any, prompts: Sequence[Prompt]
) -> Iterable[tuple[Prompt, list[int]]]:
    for start in range(0, len(prompts), TOGETHER):
        part = prompts[start : start + TOGETHER]
        texts = [render(tokenizer, p.messages, config.model.chat_template_kwargs) for p in part]
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        yield from zip(part, encoded, strict=True)


def _check_embedded(ids: Sequence[int], num_embedded: int, what: str, tokenizer: Any) -> None:
    beyond = [token_id for token_id in ids if token_id >= num_embedded]
    if beyond:
        token = tokenizer.convert_ids_to_tokens(beyond[0])
        raise ModelError(
            f"{what} holds the token {token!r}, number {beyond[0]}, but the model's embedding has {num_embedded}: its "
            "tokenizer was given tokens for which the embedding was never made larger (resize_token_embeddings); use "
            "the model's own tokenizer and chat template, or make the embedding larger"
        )


def _check_room(
    config: Config, prompt: Prompt, num_tokens: int, longest_target: int, context: int
) -> None:
    limits = {"collect.max_new_tokens": config.collect.max_new_tokens}
    if prompt.split == config.evaluate.split and config.evaluate.max_new_tokens:
        limits["evaluate.max_new_tokens"] = config.evaluate.max_new_tokens
    for setting, most in limits.items():
        if num_tokens + most > context:
            raise PromptError(
                f"prompt {prompt.prompt_id} has {num_tokens} tokens, and with {most} new ones it exceeds the model's "
                f"context of {context}; shorten it or lower {setting}"
            )
    if longest_target and num_tokens + longest_target > context:
        raise PromptError(
            f"prompt {prompt.prompt_id} has {num_tokens} tokens, and with the {longest_target} of "
            f"train.target_response it exceeds the model's context of {context}; shorten either"
        )
