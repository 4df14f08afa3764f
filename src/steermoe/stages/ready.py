"""What a run will need, tried before it begins: what is wrong with it is said at once, and not after hours.

Needs no weights: a config, a tokenizer and the prompts tell it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from steermoe.chat import render
from steermoe.config import Config, ModelSection
from steermoe.errors import ConfigError, ModelError, PromptError, on_one_line
from steermoe.loading import load_tokenizer, model_source
from steermoe.moe.checkpoint import save_generation_config
from steermoe.moe.configs import language_config, read_config
from steermoe.records import Prompt, Split, Verdict
from steermoe.training.dataset import needs_refusal
from steermoe.training.targets import resolve_target
from steermoe.turns import assistant_turn

TOGETHER = 256
"""Prompts that are tokenised in one call."""


def check_ready(config: Config, prompts: Sequence[Prompt]) -> None:
    """Try what collecting, training, saving and evaluating will need.

    Args:
        config: All settings.
        prompts: The prompts of the run, with their splits.

    Raises:
        ConfigError: Settings leave nothing to compare.
        ModelError: The model's config, generation config or tokenizer cannot be saved, or its tokenizer has tokens that
            the model does not know.
        PromptError: A prompt, with its reply or its target, exceeds the context, or has such tokens.
    """
    check_replies_are_fed(config)
    source = model_source(config.model)
    tokenizer = load_tokenizer(config.model, source)
    check_saving(config.model, source, tokenizer)
    check_tokens(config, tokenizer, source, prompts)


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
        try:
            generation = GenerationConfig.from_pretrained(
                source, revision=settings.revision or "main"
            )
        except OSError:
            generation = None  # there is none
        except Exception as error:
            raise _unsaved("generation_config.json", source, error) from None
        if generation is not None:
            _try_saving(
                "generation_config.json",
                source,
                lambda: save_generation_config(generation, Path(folder)),
            )
        _try_saving("tokenizer", source, lambda: tokenizer.save_pretrained(folder))


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
    text_config = language_config(
        read_config(source, config.model.revision, config.model.trust_remote_code)
    )
    num_embedded = int(text_config.vocab_size)
    context = getattr(text_config, "max_position_embeddings", None)
    targets = _targets(config)
    turns = _turns(config, tokenizer, prompts[:1], targets)
    for text, ids in zip(targets, turns, strict=True):
        _check_embedded(ids, num_embedded, f"train.target_response {text!r}", tokenizer)
    longest_target = max(map(len, turns), default=0)
    for prompt, prompt_ids in _tokenised(config, tokenizer, prompts):
        _check_embedded(prompt_ids, num_embedded, f"prompt {prompt.prompt_id}", tokenizer)
        if context:
            _check_room(config, prompt, len(prompt_ids), longest_target, int(context))


def _targets(config: Config) -> list[str]:
    """The refusals that can be learned; none where a callable of the user's makes them."""
    wanted = config.train.target_response
    resolve_target(wanted)
    texts = [wanted] if isinstance(wanted, str) else list(wanted)
    return [text for text in texts if " " in text or ":" not in text]


def _turns(
    config: Config, tokenizer: Any, first: Sequence[Prompt], targets: Sequence[str]
) -> list[tuple[int, ...]]:
    """Token ids of the targets as turns; after every prompt they are those after the first."""
    kwargs = config.model.chat_template_kwargs
    return [
        assistant_turn(
            tokenizer, prompt.messages, render(tokenizer, prompt.messages, kwargs), text, kwargs
        ).token_ids
        for prompt in first
        for text in targets
    ]


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
    most = config.collect.max_new_tokens
    if num_tokens + most > context:
        raise PromptError(
            f"prompt {prompt.prompt_id} has {num_tokens} tokens, and with {most} new ones it exceeds the model's "
            f"context of {context}; shorten it or lower collect.max_new_tokens"
        )
    may_be_refused = prompt.split is Split.TRAIN and needs_refusal(prompt, Verdict.ANSWERED)
    if may_be_refused and num_tokens + longest_target > context:
        raise PromptError(
            f"prompt {prompt.prompt_id} has {num_tokens} tokens, and with the {longest_target} of "
            f"train.target_response it exceeds the model's context of {context}; shorten either"
        )
