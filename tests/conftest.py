"""What several test modules share: tiny random checkpoints with a tokenizer that reads any text.

Their replies are random but printable, so that a judge scores them; a whole run on one takes seconds.
"""

from __future__ import annotations

import csv
import gc
import os
import string
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fake_steps import Fakes
    from prompt_files import PromptFiles
    from steermoe.config import Config
    from tiny import CommandLine

# No hub, no telemetry, no thread of the tokenizer's own: set before anything imports transformers.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the embedded model: no other test takes as long, and as the last one it would be waited for."""
    items.sort(key=lambda item: item.get_closest_marker("embedded") is None)


def pytest_collection_finish() -> None:
    """Let the collector of cycles leave out what is imported: half the time of tests with a model went into it."""
    import transformers

    # Without their names they would be imported at first use, after this.
    assert transformers.MixtralForCausalLM
    assert transformers.Trainer
    gc.collect()
    gc.freeze()


TinyCheckpoint = Callable[..., Path]
"""`(architecture) -> directory` of a checkpoint; one of `olmoe`, `qwen3_moe`, `mixtral`."""

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
"""Turns between marks; `enable_thinking = false` closes the reasoning before it begins, as Qwen3's does."""

PAD, TURN_STARTS, TURN_ENDS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "head_dim": 8,
    },
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 8},
}


def byte_tokenizer() -> Any:
    """A byte-level tokenizer without merges: 256 bytes and three special tokens, any text and back again."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=TURN_ENDS,
        additional_special_tokens=[TURN_STARTS],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_model(architecture: str, tokenizer: Any, **settings: Any) -> Any:
    """A model for that tokenizer (2 layers, D 32, fp32) with the weights that transformers begins with."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    defaults = {
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **defaults | settings,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def silence_all_but(speakable: set[str], model: Any, tokenizer: Any) -> None:
    """Make every other token's logit 0: the largest of fifty random ones is above it, and chosen."""
    for token_id in range(len(tokenizer)):
        if tokenizer.decode([token_id]) not in speakable:
            model.lm_head.weight.data[token_id] = 0.0


def save_with_tokenizer(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save both, so that replies end where a turn does."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_tiny_checkpoint(architecture: str, folder: Path, seed: int = 0) -> None:
    """Save a random model (2 layers, 8 experts, top-2, D 32, fp32) and its tokenizer."""
    import torch

    tokenizer = byte_tokenizer()
    model = tiny_model(architecture, tokenizer, **ARCHITECTURES[architecture])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    silence_all_but({*string.ascii_letters, " ", TURN_ENDS}, model, tokenizer)
    save_with_tokenizer(model, tokenizer, folder)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """Directory of a tiny random checkpoint: `tiny_checkpoint("olmoe")`. Made once a session; do not write to it."""
    made: dict[str, Path] = {}

    def checkpoint(architecture: str = "olmoe") -> Path:
        if architecture not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / f"tiny-{architecture}"
            save_tiny_checkpoint(architecture, folder)
            made[architecture] = folder
        return made[architecture]

    return checkpoint


@pytest.fixture(scope="session")
def small_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 60 short prompts with splits: 12 of each label to train, 4 for dev, 4 for test."""
    path = tmp_path_factory.mktemp("prompts") / "small.csv"
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["prompt", "label", "pair_id", "category", "split"])
        for i in range(20):
            split = "train" if i < 12 else "dev" if i < 16 else "test"
            writer.writerow([f"Kill the neighbour {i}", "unsafe", f"pair-{i}", "violence", split])
            writer.writerow([f"Kill the process {i}", "safe", f"pair-{i}", "look_alike", split])
            writer.writerow([f"Bake a loaf {i}", "benign", "", "", split])
    return path


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: TinyCheckpoint) -> Path:
    """The tiny checkpoint that most whole runs use; modules that try several have one of their own."""
    return tiny_checkpoint("mixtral")


@pytest.fixture(scope="module")
def finished(checkpoint: Path, small_prompts: Path) -> Path:
    """A whole run on the module's checkpoint. Copy it before writing to it."""
    from tiny import finished_run

    return finished_run(checkpoint, small_prompts)


@pytest.fixture
def steermoe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> CommandLine:
    """The command line, run in a folder of its own."""
    from tiny import CommandLine

    monkeypatch.chdir(tmp_path)
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system of its own, where the machine allows it."""
    mounts: list[Path] = []

    def mount(options: str) -> Path:
        path = tmp_path / f"mount-{len(mounts)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("no mount command")
        if done.returncode:
            pytest.skip("mounting is not allowed here")
        mounts.append(path)
        return path

    yield mount
    for path in mounts:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def computed_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens the experts compute, one number for each layer that has trainable ones and each pass."""
    from steermoe.moe import trained_stack

    computed: list[int] = []
    split_experts = trained_stack.split_experts

    def spy(layout: Any, plan: Any, hidden: Any, *others: Any) -> Any:
        computed.append(len(hidden))
        return split_experts(layout, plan, hidden, *others)

    monkeypatch.setattr(trained_stack, "split_experts", spy)
    return computed


@contextmanager
def counted_tokens(model: Any) -> Iterator[list[int]]:
    """How many tokens the experts compute: one number for each MoE layer and pass."""
    from steermoe.moe.layers import find_moe_layers
    from steermoe.moe.routers import replaced_forward

    counted: list[int] = []

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        def counting(hidden: Any, *others: Any) -> Any:
            counted.append(len(hidden))
            return forward(hidden, *others)

        return counting

    with ExitStack() as stack:
        for layer in find_moe_layers(model).layers:
            experts = model.get_submodule(layer.experts_name)
            stack.enter_context(replaced_forward(experts, wrap))
        yield counted


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Steps that only write down that they ran, in the place of the real ones."""
    from fake_steps import put_in_place

    return put_in_place(monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    """Makes the settings of a run of fake steps."""
    from fake_steps import settings_maker

    return settings_maker(tmp_path)


@pytest.fixture
def prompt_file(tmp_path: Path) -> PromptFiles:
    """Writes a prompt file: a list as JSON, text as UTF-8, bytes as they are."""
    from prompt_files import PromptFiles

    return PromptFiles(tmp_path)
