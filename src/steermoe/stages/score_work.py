"""What the passes for scores are made over, and how they are done in pieces that an interrupted run goes on from.

Shape legend: L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from steermoe.chat import stop_token_ids
from steermoe.config import Config
from steermoe.loading import LoadedModel
from steermoe.prompts.goals import seeded_rank
from steermoe.records import Continuation, IntArray, Label, ResponseSums, Split
from steermoe.reporter import Bar
from steermoe.stages.contrast import contrast_of, train_contrast
from steermoe.store.directory import RunDirectory
from steermoe.store.names import score_shard_of
from steermoe.training.targets import resolve_target
from steermoe.turns import assistant_turn

TOGETHER = 8
"""Prompts that go through the model in one differentiated pass."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The responses that are measured, by their place in `responses.parquet`.

    Attributes:
        unsafe: Train, of the contrast.
        safe: Train, of the contrast.
        benign: Train, for the forecast.
        held_out: Of both sides, of held-out goals.
        num_responses: All responses of the run.
    """

    unsafe: IntArray
    safe: IntArray
    benign: IntArray
    held_out: IntArray
    num_responses: int

    @property
    def compared(self) -> IntArray:
        """Both sides, train and held out."""
        return np.sort(np.concatenate([self.unsafe, self.safe, self.held_out]))

    @property
    def all(self) -> IntArray:
        """All that any pass measures, in order."""
        return np.sort(np.concatenate([self.compared, self.benign]))


def choose_prompts(run: RunDirectory, config: Config) -> Chosen:
    """So many prompts of each kind, picked by the seed; pairs stay together.

    Raises:
        RoutingError: There is nothing to compare.
    """
    settings = config.identify
    responses = run.read_replies()
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts()}
    keys = [prompts[i].pair_id or i for i in responses["prompt_id"]]
    rank = [seeded_rank(config.seed, key) for key in keys]

    def first(places: IntArray) -> IntArray:
        ordered = sorted(places.tolist(), key=lambda place: (rank[place], place))
        return np.sort(np.array(ordered[: settings.score_prompts], dtype=np.int64))

    contrast = train_contrast(run, config)
    splits = [split for split in (Split.DEV, Split.TEST) if split in settings.replicate_on]
    held_out = np.zeros(0, dtype=np.int64)
    if set(responses["split"]) & set(splits):
        other = contrast_of(run, config, splits, filtered=False)
        sides = (other.positions[other.is_unsafe], other.positions[~other.is_unsafe])
        held_out = np.concatenate([first(side) for side in sides])
    is_benign = (responses["label"] == Label.BENIGN) & (responses["split"] == Split.TRAIN)
    return Chosen(
        first(contrast.positions[contrast.is_unsafe]),
        first(contrast.positions[~contrast.is_unsafe]),
        first(np.flatnonzero(is_benign.to_numpy())),
        held_out,
        len(responses),
    )


@dataclass(frozen=True, slots=True)
class Texts:
    """By place of the response: its prompt with the model's own reply, and with the target refusal."""

    replies: Mapping[int, Continuation]
    refusals: Mapping[int, Continuation]


def read_texts(run: RunDirectory, config: Config, loaded: LoadedModel, chosen: Chosen) -> Texts:
    """What the chosen prompts are continued with."""
    target = resolve_target(config.train.target_response)
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts()}
    wanted = set(chosen.all.tolist())
    place_of = {i: place for place, i in enumerate(run.read_replies()["prompt_id"])}
    ids = {i for i, place in place_of.items() if place in wanted}
    replies, refusals = {}, {}
    for position, (row, output) in enumerate(run.iter_outputs(ids)):
        prompt_id, prompt_ids = row["prompt_id"], output.prompt_token_ids
        prompt = prompts[prompt_id]
        refusal = assistant_turn(
            loaded.tokenizer,
            prompt.messages,
            output.prompt,
            target(prompt, position),
            config.model.chat_template_kwargs,
            stop_token_ids(loaded.model, loaded.tokenizer),
        ).token_ids
        place = place_of[prompt_id]
        replies[place] = Continuation(prompt_id, prompt_ids, output.generated_token_ids)
        refusals[place] = Continuation(prompt_id, prompt_ids, refusal)
    return Texts(replies, refusals)


@dataclass(frozen=True, slots=True)
class Work:
    """One pass: what it is made of, and where its pieces are kept.

    Attributes:
        run: Where.
        name: Of the pass.
        loaded: The model.
        chosen: The responses of each kind.
        places: Those that this pass measures, in order.
        texts: What they are continued with.
        bar: Advanced by one for each of them.
    """

    run: RunDirectory
    name: str
    loaded: LoadedModel
    chosen: Chosen
    places: IntArray
    texts: Texts
    bar: Bar

    @property
    def shape(self) -> tuple[int, int]:
        """`(L, E)`."""
        return self.loaded.description.num_layers, self.loaded.description.num_experts

    def groups(self, places: IntArray) -> list[list[int]]:
        """So many responses at a time, those of like length together, so that little is padding."""
        lengths = {p: len(self.texts.replies[p].prompt_token_ids) for p in places.tolist()}
        ordered = sorted(lengths, key=lambda place: (lengths[place], place))
        return [ordered[start : start + TOGETHER] for start in range(0, len(ordered), TOGETHER)]

    def piece(
        self, part: str, index: int, make: Callable[[], dict[str, Tensor]], amount: int = 0
    ) -> str:
        """The name of a piece of a part of the pass, which is made if it is not there; it does `amount` prompts."""
        name = score_shard_of(f"{self.name}-{part}", index)
        if self.run.has(name):
            self.bar.find_done(amount)
        else:
            tensors = {key: value.contiguous().cpu() for key, value in make().items()}
            with self.run.writing(name) as path:
                save_file(tensors, path)
            self.bar.advance(amount)
        return name

    def read(self, piece: str, *names: str) -> list[Tensor]:
        """Some tensors of a piece."""
        with self.run.reading(piece) as path, safe_open(path, framework="pt") as file:
            return [file.get_tensor(name) for name in names]

    def whole_texts(self, sums: Mapping[int, npt.ArrayLike]) -> ResponseSums:
        """Of a quantity that responses have as a whole, `(L, E)` each: it stands in both segments, as of one token."""
        number = self.chosen.num_responses
        total = np.zeros((number, 2, *self.shape), dtype=np.float32)
        num_tokens = np.zeros((number, 2), dtype=np.int32)
        for place, values in sums.items():
            total[place] = np.asarray(values)[None]
            num_tokens[place] = 1
        return ResponseSums(total, num_tokens, self.loaded.description.layer_indices)
