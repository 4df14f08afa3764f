"""How one model scores on held-out prompts, whatever is switched off in it.

Shape legend: C completion tokens of several rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steermoe.analysis.ablation import (
    BENIGN,
    DIVERGENCE,
    LOOK_ALIKES,
    REFUSAL,
    REPLY,
    UNSAFE,
    VERDICT,
)
from steermoe.config import Config
from steermoe.judges.keyword import judge_named
from steermoe.loading import LoadedModel
from steermoe.prompts.goals import seeded_rank
from steermoe.records import Label, Prompt, Split
from steermoe.reporter import Bar
from steermoe.stages.collect import group_sampling, sampling_of
from steermoe.stages.evaluate import completion_logits, greedy_replies, parts_of, text_engine
from steermoe.store.directory import RunDirectory
from steermoe.training.dataset import TrainingRow, refusal_row, resolve_target, retention_row
from steermoe.training.trainer import kl_to_base

Score = dict[str, Any]
"""`measure, prompt_id, total, num_tokens, verdict`: one prompt's part of a figure."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A held-out prompt and which kind it is."""

    prompt: Prompt
    kind: str


def choose_subjects(run: RunDirectory, config: Config) -> dict[str, Subject]:
    """So many prompts of each kind, picked by the seed, in the order of the run."""
    split = Split(config.evaluate.split)
    found: dict[str, list[str]] = {}
    subjects: dict[str, Subject] = {}
    for prompt in run.read_prompts():
        kind = _kind_of(prompt)
        if prompt.split is split and kind is not None:
            subjects[prompt.prompt_id] = Subject(prompt, kind)
            found.setdefault(kind, []).append(prompt.prompt_id)
    chosen = {
        prompt_id
        for ids in found.values()
        for prompt_id in sorted(ids, key=lambda i: seeded_rank(config.seed, i))[
            : config.ablate.num_prompts
        ]
    }
    return {i: subject for i, subject in subjects.items() if i in chosen}


def _kind_of(prompt: Prompt) -> str | None:
    if prompt.label is Label.UNSAFE:
        return UNSAFE
    if prompt.label is Label.BENIGN:
        return BENIGN
    return LOOK_ALIKES if prompt.is_look_alike else None


class Scorer:
    """What every set of experts is scored on: rows to be teacher-forced, and prompts to be replied to.

    Args:
        run: The run.
        config: Its settings.
        base: The base model, which has to reply again where the run's replies were sampled.
        subjects: The prompts.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: Config,
        base: LoadedModel,
        subjects: Mapping[str, Subject],
    ) -> None:
        self.config = config
        self.subjects = subjects
        prompts = {prompt_id: subject.prompt for prompt_id, subject in subjects.items()}
        replies = dict(greedy_replies(run, config, base, prompts))
        target = resolve_target(config.train.target_response)
        rows: dict[tuple[str, str], list[TrainingRow]] = {}
        for prompt_id, subject in subjects.items():
            reply = retention_row(
                prompt_id, subject.prompt.label, 0, replies[prompt_id], config.ablate.max_tokens
            )
            rows.setdefault((REPLY, subject.kind), []).append(reply)
        for position, (prompt_id, subject) in enumerate(
            (i, subject) for i, subject in subjects.items() if subject.kind == UNSAFE
        ):
            refusal = refusal_row(
                prompt_id,
                subject.prompt.label,
                0,
                subject.prompt.messages,
                target(subject.prompt, position),
                base.tokenizer,
                config.model.chat_template_kwargs,
            )
            rows.setdefault((REFUSAL, UNSAFE), []).append(refusal)
        self.rows = {key: sorted(of_kind, key=_length) for key, of_kind in rows.items()}
        """By measure and kind, each of similar lengths together, so that little is padding."""

    @property
    def num_rows(self) -> int:
        """Rows that are scored for one set of experts."""
        return sum(len(_scored(rows)) for rows in self.rows.values())

    @torch.inference_mode()
    def reference(self, base: LoadedModel) -> dict[str, Tensor]:
        """The intact base model's logits `(C, V)` on its reply to each benign prompt, in its own precision."""
        return {
            row.prompt_id: logits.cpu()
            for part in parts_of(_scored(self.rows.get((REPLY, BENIGN), ())))
            for row, logits in _logits_by_row(base, part)
        }

    @torch.inference_mode()
    def teacher_forced(
        self, loaded: LoadedModel, reference: Mapping[str, Tensor], bar: Bar
    ) -> list[Score]:
        """Log-probability of every row's completion, and the divergence from the base model on benign replies."""
        scores: list[Score] = []
        for (measure, kind), rows in self.rows.items():
            totals: dict[str, dict[str, float]] = {measure: {}}
            if (measure, kind) == (REPLY, BENIGN):
                totals[DIVERGENCE] = {}
            for part in parts_of(_scored(rows)):
                for row, logits in _logits_by_row(loaded, part):
                    totals[measure][row.prompt_id] = _log_prob(logits, row.completion_token_ids)
                    if DIVERGENCE in totals:
                        base = reference[row.prompt_id].to(logits.device)
                        divergence = float(kl_to_base(base, logits).double().sum())
                        totals[DIVERGENCE][row.prompt_id] = divergence
                bar.advance(len(part))
            num_tokens = {row.prompt_id: len(row.completion_token_ids) for row in rows}
            scores += [
                _score_of(name, prompt_id, of_prompt.get(prompt_id, 0.0), num_tokens[prompt_id])
                for name, of_prompt in totals.items()
                for prompt_id in self.subjects
                if prompt_id in num_tokens
            ]
        return scores

    def replied(self, loaded: LoadedModel, bar: Bar) -> list[Score]:
        """Verdicts on a model's replies, which are not kept."""
        engine = text_engine(loaded, self.config)
        judge = judge_named(self.config.collect.judge)
        ids, size = list(self.subjects), self.config.collect.generation_batch_size
        scores = []
        for group, start in enumerate(range(0, len(ids), size)):
            part = ids[start : start + size]
            outputs = engine.generate(
                [self.subjects[i].prompt.messages for i in part],
                group_sampling(sampling_of(self.config), group),
            )
            for prompt_id, output in zip(part, outputs, strict=True):
                verdict = judge(output.prompt, output.generated_text)
                scores.append(verdict_score(prompt_id, str(verdict)))
            bar.advance(len(part))
        return scores


def verdict_score(prompt_id: str, verdict: str) -> Score:
    """The verdict on one reply."""
    return _score_of(VERDICT, prompt_id, 0.0, 0, verdict)


def _score_of(
    measure: str, prompt_id: str, total: float, num_tokens: int, verdict: str = ""
) -> Score:
    return {
        "measure": measure,
        "prompt_id": prompt_id,
        "total": total,
        "num_tokens": num_tokens,
        "verdict": verdict,
    }


def _logits_by_row(
    loaded: LoadedModel, rows: Sequence[TrainingRow]
) -> Iterator[tuple[TrainingRow, Tensor]]:
    """Rows of one pass, each with the logits `(C, V)` that predict its completion."""
    logits, _ = completion_logits(loaded.model, rows, loaded)
    lengths = [len(row.completion_token_ids) for row in rows]
    return zip(rows, torch.split(logits, lengths), strict=True)


def _log_prob(logits: Tensor, token_ids: Sequence[int]) -> float:
    """Log-probability of C tokens under logits `(C, V)`, in fp32."""
    targets = torch.tensor(token_ids, device=logits.device).unsqueeze(-1)
    return float(torch.log_softmax(logits.float(), dim=-1).gather(-1, targets).double().sum())


def _scored(rows: Sequence[TrainingRow]) -> list[TrainingRow]:
    """Rows that have anything to score."""
    return [row for row in rows if row.completion_token_ids]


def _length(row: TrainingRow) -> int:
    return len(row.prompt_token_ids) + len(row.completion_token_ids)
