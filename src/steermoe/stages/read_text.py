"""Read text: how likely each model finds a text of the user's, token by token."""

from __future__ import annotations

from typing import Any

import pandas as pd

from steermoe.config import Config
from steermoe.engines.scoring import log_prob_per_token
from steermoe.errors import PromptError
from steermoe.loading import LoadedModel, load_model, model_source
from steermoe.measures.perplexity import WINDOW, read_text, windows_of
from steermoe.reporter import Reporter
from steermoe.stages.reply import load_hardened, text_engine
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE, HARDENED, text_of
from steermoe.store.state import Figures


def read_text_base(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Feed the text to the base model. Writes `texts/base.parquet`."""
    loaded = load_model(config.model, model_source(config.model))
    return _read(run, config, reporter, loaded, BASE)


def read_text_hardened(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Feed the text to the hardened model. Writes `texts/hardened.parquet`."""
    return _read(run, config, reporter, load_hardened(run, config), HARDENED)


def tokens_of_text(tokenizer: Any, text: str, path: str) -> list[int]:
    """The tokens of a text, of which at least one is predicted.

    Raises:
        PromptError: None is: without a token that begins every text, the first one is predicted from nothing.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < (2 if tokenizer.bos_token_id is None else 1):
        raise PromptError(
            f"evaluate.text_file {path} has {len(ids)} token, of which nothing is predicted; name a longer one"
        )
    return ids


def _read(
    run: RunDirectory, config: Config, reporter: Reporter, loaded: LoadedModel, model: str
) -> Figures:
    path = str(config.evaluate.text_file)
    engine = text_engine(loaded, config)
    ids = tokens_of_text(engine.tokenizer, read_text(path), path)
    size = min(WINDOW, engine.context_length or WINDOW)
    windows = windows_of(ids, engine.tokenizer.bos_token_id, size)
    rows = []
    with reporter.bar(len(windows), f"text {model}") as bar:
        for window, logits in engine.score(windows):
            log_probs = log_prob_per_token(logits, window.completion_token_ids).tolist()
            rows.append({"window": window.prompt_id, "log_probs": log_probs})
            bar.advance(1)
    run.write_table(text_of(model), pd.DataFrame(rows))
    number = sum(len(row["log_probs"]) for row in rows)
    reporter.line(f"the {model} model read {number:,} tokens of the text")
    return {"num_tokens": number, "num_windows": len(windows)}
