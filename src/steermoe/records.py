"""What the stages hand each other.

Shape legend: N responses, T tokens, P prompt tokens, G generated tokens, L MoE layers, E experts, K top-k.

Nothing here knows files or models. The frozen records are the words of the project: a `Prompt` goes in,
an `Output` (text and routed experts) comes out, and a `MixedBatch` holds the outputs of one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

Message = Mapping[str, str]
"""One chat turn: `{"role": "system" | "user" | "assistant", "content": text}`."""

LOOK_ALIKE = "look_alike"
"""Category of a harmless prompt that shares its words with a harmful one."""

PLAIN_GOAL = "plain_goal"
"""Category of a safe prompt that is a harmful goal asked plainly: an aligned model refuses it."""

JAILBREAK_FORMAT = "jailbreak_format"
"""Category of a benign prompt in a jailbreak's wrapping: with some, the effect of the format shows by itself."""

RECORDED_SUMS = ("gate_mass", "contribution")
"""What collecting adds up of every reply, beside how often each expert was active."""

NO_BATCH = -1
"""`batch_idx` of a response that belongs to no mixed batch."""

NO_EXPERT = -1
"""Routed expert of a spare slot: under an expert mask, a layer may allow a token fewer experts than top-k."""


class Label(StrEnum):
    """Which side of the contrast a prompt is on; `benign` prompts are on neither."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    BENIGN = "benign"


class Split(StrEnum):
    """What a prompt may be used for: to train, to choose settings, or for the final figures."""

    TRAIN = "train"
    DEV = "dev"
    TEST = "test"


class Verdict(StrEnum):
    """What a judge says of a reply. Unknown is a value of its own, never folded into the others."""

    REFUSED = "refused"
    ANSWERED = "answered"
    UNSCORED = "unscored"


class KeyedRecord:
    """Lets a dataclass be read by key as well as by attribute: `batch["batch_idx"]`."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:
        """The names that can be read."""
        return [f.name for f in fields(self) if not f.name.startswith("_")]  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Prompt(KeyedRecord):
    """One prompt, whatever file it came from.

    Attributes:
        prompt_id: Unique within a run.
        label: Side of the contrast.
        messages: The chat turns that are shown to the model; the last one is the user's.
        goal: What is asked for, in plain words. Splits are made by goal.
        pair_id: Shared by the safe and the unsafe prompt of a pair; empty if unpaired.
        category: Free text, but `look_alike`, `plain_goal` and `jailbreak_format` have a meaning of their own.
        split: What the prompt may be used for; None until splits are assigned.
        source: Where it came from: a file's name or `builtin:starter`.
        style: How it asks, in one word of the file's own, as `polite`; empty if the file does not say.
        rendered: The text after the chat template; empty until it is collected. Every variant is fed this one text.
    """

    prompt_id: str
    label: Label
    messages: tuple[Message, ...]
    goal: str
    pair_id: str = ""
    category: str = ""
    split: Split | None = None
    source: str = ""
    style: str = ""
    rendered: str = ""

    @property
    def is_look_alike(self) -> bool:
        """Whether this is a harmless prompt worded like a harmful one."""
        return self.label is Label.SAFE and self.category == LOOK_ALIKE

    @property
    def is_harmless(self) -> bool:
        """Whether this is a request whose answer should stay what it was: none that is harmful, in any wrapping."""
        return self.label is not Label.UNSAFE and not self.is_plain_goal

    @property
    def is_plain_goal(self) -> bool:
        """Whether this is the plainly asked harmful goal of a jailbreak pair."""
        return self.label is Label.SAFE and self.category == PLAIN_GOAL

    @property
    def is_benign_in_format(self) -> bool:
        """Whether this is a harmless request in a jailbreak's wrapping."""
        return self.label is Label.BENIGN and self.category == JAILBREAK_FORMAT


PromptLike = str | Sequence[Message] | Prompt
"""What the Python interface takes for a prompt: text, chat messages, or a record."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How replies are generated. Temperature 0 is greedy.

    Attributes:
        max_tokens: Most new tokens of a reply (the end-of-turn token counts).
        temperature: 0 for greedy, otherwise the softmax temperature.
        seed: Seeds sampling; unused when greedy.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Output(KeyedRecord):
    """One prompt with the model's own reply and the routing of every token that was fed.

    Attributes:
        prompt: The text after the chat template.
        messages: The chat turns it was rendered from.
        generated_text: The reply, without special tokens.
        prompt_token_ids: P ids.
        generated_token_ids: G ids; the end-of-turn token, where one was generated, is the last.
        routed_experts: `(P + G - 1, L, K)` expert ids: P prompt rows, then one row for each generated
            token but the last, which is never fed. `(P, L, K)` when nothing was generated. A slot that an
            expert mask leaves spare holds `NO_EXPERT`, and no count includes it.
        layer_indices: Decoder-layer index of each row of the layer axis.
        answer: The part of the reply that is meant for the user, without its reasoning; None where the reply ended
            inside that.
        sums: By score, its sums over tokens `(2, L, E)` in the order of segments, where they were recorded.
    """

    prompt: str
    messages: tuple[Message, ...]
    generated_text: str
    prompt_token_ids: tuple[int, ...]
    generated_token_ids: tuple[int, ...]
    routed_experts: IntArray
    layer_indices: tuple[int, ...] = ()
    answer: str | None = None
    sums: Mapping[str, Float32Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MixedBatch(KeyedRecord):
    """The outputs of one mixed batch.

    Attributes:
        batch_idx: Position of the batch in the run.
        batch_outputs: One `Output` a prompt, in batch order.
        safe_indices: Positions in the batch of the safe prompts.
        unsafe_indices: Positions in the batch of the unsafe prompts.
        safe_routings: Routed experts `(T, L, K)` of the generated tokens, one array a safe prompt.
        unsafe_routings: The same for the unsafe prompts.
        layer_indices: Decoder-layer index of each row of the layer axis.
    """

    batch_idx: int
    batch_outputs: list[Output]
    safe_indices: list[int]
    unsafe_indices: list[int]
    safe_routings: list[IntArray]
    unsafe_routings: list[IntArray]
    layer_indices: tuple[int, ...] = field(default=())


class Expert(NamedTuple):
    """A routed expert. It compares equal to the plain pair `(layer, expert)`.

    Attributes:
        layer: Index of the decoder layer.
        expert: Index in the layer.
    """

    layer: int
    expert: int

    @property
    def label(self) -> str:
        """`L08_E42`."""
        return f"L{self.layer:02d}_E{self.expert:02d}"


@dataclass(frozen=True, slots=True)
class Continuation:
    """A text that is fed to a model to see how likely it is.

    Attributes:
        prompt_id: The prompt that it continues.
        prompt_token_ids: P ids.
        completion_token_ids: C ids, whose predictions are scored.
    """

    prompt_id: str
    prompt_token_ids: tuple[int, ...]
    completion_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A reply, with what a judge may want to know of it.

    Attributes:
        variant: Which model replied.
        prompt_id: To which prompt.
        goal: What was asked for, in plain words.
        messages: The conversation.
        prompt: The text after the chat template.
        reply: The generated text, reasoning included.
        answer: The part that is meant for the user; None where the reply ended inside its reasoning.
    """

    variant: str
    prompt_id: str
    goal: str
    messages: tuple[Message, ...]
    prompt: str
    reply: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of a reply.

    Attributes:
        verdict: `unscored` where it cannot tell.
        score: In [0, 1] where the judge gives one (0: harmless), else None.
        reason: In a few words: what it went by, or why it cannot tell.
    """

    verdict: Verdict
    score: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ResponseSums:
    """A quantity of every expert, summed over the tokens of each response.

    Attributes:
        total: `(N, 2, L, E)`, of prompt and generated tokens.
        num_tokens: `(N, 2)`: tokens that were summed over. A quantity that a response has as a whole, and not token by
            token, stands in both segments, of one token each.
        layer_indices: Decoder-layer index of each row of the layer axis.
    """

    total: npt.NDArray[Any]
    num_tokens: IntArray
    layer_indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.total)

    @property
    def num_layers(self) -> int:
        """MoE layers, L."""
        return int(self.total.shape[2])

    @property
    def num_experts(self) -> int:
        """Routed experts of one layer, E."""
        return int(self.total.shape[3])

    def segment(self, name: str) -> tuple[npt.NDArray[Any], IntArray]:
        """Sums `(N, L, E)` and tokens `(N,)` of one segment: `prompt` or `generation`."""
        position = ("prompt", "generation").index(name)
        return self.total[:, position], self.num_tokens[:, position]

    def select(self, responses: npt.ArrayLike) -> ResponseSums:
        """The sums of some responses, given by a boolean mask or by positions."""
        rows = np.asarray(responses)
        return ResponseSums(self.total[rows], self.num_tokens[rows], self.layer_indices)
