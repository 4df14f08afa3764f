"""Checkpoints, tokenizers and chat templates that people have, each made anew from the tests' tiny checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.cases.room import (
    LATE,
    READ,
    REFUSED,
    SILENT,
    TRACEBACK,
    Case,
    Outcome,
    Room,
    done,
    edit_json,
    refused,
    set_json,
)
from conftest import CHATML, byte_tokenizer

CASES: list[Case] = []


def case(name: str, what: str, before: str) -> Callable[[Callable[[Room], Outcome]], None]:
    """Enter a function into the list."""

    def enter(function: Callable[[Room], Outcome]) -> None:
        CASES.append(Case(name, what, before, function))

    return enter


def weights_changed(model: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a checkpoint in place."""
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def with_token(model: Path, change: Callable[[Any], None]) -> None:
    """Change the tokenizer alone: the embedding stays as it is."""
    tokenizer = byte_tokenizer()
    change(tokenizer)
    tokenizer.save_pretrained(model)


def template(model: Path, text: str) -> None:
    """Replace the chat template."""
    (model / "chat_template.jinja").write_text(text, "utf-8")


# ---- what transformers cannot save ----------------------------------------------------------------------


@case("c13", "generation config that transformers does not save", TRACEBACK)
def _(room: Room) -> Outcome:
    set_json(
        room.model / "generation_config.json",
        {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
    )
    result = room.run()
    return done(result) if not result.code else refused(result, "generation")


# ---- weights --------------------------------------------------------------------------------------------


@case("c16a", "a tensor is missing", LATE)
def _(room: Room) -> Outcome:
    name = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
    weights_changed(room.model, lambda tensors: tensors.pop(name))
    result = room.run()
    return refused(result, "experts")


@case("c16b", "all matrices of expert 3 are named 9", SILENT)
def _(room: Room) -> Outcome:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if "layers.1." in n and ".experts.3." in n]:
            tensors[name.replace(".experts.3.", ".experts.9.")] = tensors.pop(name)

    weights_changed(room.model, change)
    return refused(room.run(), "expert")


@case("c27a", "infinite row in the head", SILENT)
def _(room: Room) -> Outcome:
    weights_changed(room.model, lambda tensors: tensors["lm_head.weight"][200].fill_(float("inf")))
    return refused(room.run(), "finite")


@case("c27b", "NaN expert", SILENT)
def _(room: Room) -> Outcome:
    name = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
    weights_changed(room.model, lambda tensors: tensors[name].fill_(float("nan")))
    return refused(room.run(), "finite")


@case("c27c", "experts too large for float16", SILENT)
def _(room: Room) -> Outcome:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if ".experts." in name:
                tensors[name] = tensors[name] * 300

    weights_changed(room.model, change)
    return refused(room.run("--set", "model.dtype=float16"), "finite", "model.dtype")


@case("c27d", "learning rate of 1e30", SILENT)
def _(room: Room) -> Outcome:
    result = room.run("--set", "train.learning_rate=1e30")
    if (room.run_dir / "model").exists():
        return Outcome(SILENT, "a destroyed model is saved")
    return refused(result, "train.learning_rate", after="hardened")


@case("c32", "hub cache with .bin alone", LATE)
def _(room: Room) -> Outcome:
    name = hub_copy(room, "a" * 40)
    torch.save(load_file(name / "model.safetensors"), name / "pytorch_model.bin")
    (name / "model.safetensors").unlink()
    return refused(room.run("--model", "somebody/tiny"), "safetensors")


@case("o72", "hub model whose branch moved after collect", SILENT)
def _(room: Room) -> Outcome:
    hub_copy(room, "a" * 40)
    first = room.run("--model", "somebody/tiny", command="collect")
    if first.code or first.error:
        return done(first)
    moved = hub_copy(room, "b" * 40)
    weights_changed(moved, lambda tensors: tensors["lm_head.weight"].mul_(2))
    result = room.run("--model", "somebody/tiny")
    return refused(result, "other weights")


def hub_copy(room: Room, commit: str) -> Path:
    """The checkpoint as a snapshot in the hub's cache, its main branch."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / "models--somebody--tiny"
    if commit.startswith("a"):
        shutil.rmtree(folder, ignore_errors=True)
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(room.model, folder / "snapshots" / commit))


# ---- adapters -------------------------------------------------------------------------------------------


def adapter(folder: Path, base: Path) -> None:
    """A LoRA adapter of the attention's projections."""
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base),
        "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    tensors = {}
    for layer in range(2):
        for which, width in (("q_proj", 32), ("v_proj", 16)):
            place = f"base_model.model.model.layers.{layer}.self_attn.{which}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(2, 32)
            tensors[f"{place}.lora_B.weight"] = torch.randn(width, 2)
    save_file(tensors, folder / "adapter_model.safetensors")


@case("c25a", "folder of an adapter alone", LATE)
def _(room: Room) -> Outcome:
    folder = room.folder / "adapter"
    folder.mkdir()
    adapter(folder, room.model)
    return refused(room.run("--model", folder), "adapter", "merge")


@case("c25b", "adapter beside the full weights", SILENT)
def _(room: Room) -> Outcome:
    adapter(room.model, room.model)
    return refused(room.run(), "adapter", "merge")


# ---- tokenizers -----------------------------------------------------------------------------------------


@case("c22a", "turns end otherwise than the tokenizer's end", SILENT)
def _(room: Room) -> Outcome:
    with_token(room.model, lambda t: setattr(t, "eos_token", "<|endoftext|>"))
    result = room.run()
    return done(
        result, wrong="" if ends_its_turns(room, "<|im_end|>") else "learns another end of turn"
    )


@case("c22b", "tokenizer without an end", SILENT)
def _(room: Room) -> Outcome:
    with_token(room.model, lambda t: setattr(t, "eos_token", None))
    result = room.run()
    return done(result, wrong="" if ends_its_turns(room, "<|im_end|>") else "learns no end of turn")


@case("c22d", "tokenizer with neither end nor padding", TRACEBACK)
def _(room: Room) -> Outcome:
    def change(tokenizer: Any) -> None:
        tokenizer.eos_token = None
        tokenizer.pad_token = None

    with_token(room.model, change)
    result = room.run()
    return done(result, wrong="" if ends_its_turns(room, "<|im_end|>") else "learns no end of turn")


def ends_its_turns(room: Room, end: str) -> bool:
    """Whether what is trained ends as the template's own turns do."""
    from steermoe.config import load_config
    from steermoe.loading import load_tokenizer
    from steermoe.stages.training_rows import training_rows
    from steermoe.store.directory import RunDirectory

    config = load_config(overrides={**room.settings, "model": {"id": str(room.model)}})
    if not (room.run_dir / "verdicts.parquet").exists():
        return True  # it was refused before
    tokenizer = load_tokenizer(config.model, str(room.model))
    found, _, _ = training_rows(RunDirectory(room.run_dir), config, tokenizer)
    learned = [row for row in found if row.objective == "refusal"]
    wanted = tokenizer.convert_tokens_to_ids(end)
    return bool(learned) and all(wanted in row.completion_token_ids[-2:] for row in learned)


@case("c23", "template uses a token beyond the embedding", TRACEBACK)
def _(room: Room) -> Outcome:
    with_token(room.model, lambda t: t.add_tokens(["<|extra|>"]))
    template(room.model, "<|extra|>" + CHATML)
    return refused(room.run(), "embedding")


@case("c23b", "one prompt holds a token beyond the embedding", TRACEBACK)
def _(room: Room) -> Outcome:
    with_token(room.model, lambda t: t.add_tokens(["request 19"]))
    return refused(room.run(), "embedding")


@case("c23c", "the target holds a token beyond the embedding", TRACEBACK)
def _(room: Room) -> Outcome:
    with_token(room.model, lambda t: t.add_tokens(["No."]))
    return refused(room.run(), "embedding", "target")


@case("c23d", "padding token beyond the embedding", TRACEBACK)
def _(room: Room) -> Outcome:
    with_token(room.model, lambda t: t.add_special_tokens({"pad_token": "[PAD]"}))
    result = room.run()
    return done(result) if not result.code else refused(result, "embedding", "pad")


@case("c24a", "tokenizer of an unknown kind", TRACEBACK)
def _(room: Room) -> Outcome:
    edit_json(room.model / "tokenizer.json", lambda v: v["model"].update(type="Nope"))
    return refused(room.run(), "tokenizer")


@case("c24b", "tokenizer file is cut", REFUSED)
def _(room: Room) -> Outcome:
    file = room.model / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:500])
    return refused(room.run(), "tokenizer")


@case("c24c", "tokenizer file is a pointer of Git LFS", REFUSED)
def _(room: Room) -> Outcome:
    (room.model / "tokenizer.json").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "utf-8"
    )
    return refused(room.run(), "tokenizer")


@case("c30", "prompt and target do not fit the context", SILENT)
def _(room: Room) -> Outcome:
    set_json(room.model / "config.json", {"max_position_embeddings": 80})
    target = "No, I will not help with that, whatever else you may say of it to me."
    return refused(room.run("--set", f"train.target_response={target}"), "context", "target")


# ---- templates ------------------------------------------------------------------------------------------


@case("c20", "template that opens reasoning", SILENT)
def _(room: Room) -> Outcome:
    text = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n", 1)
    template(room.model, text)
    result = room.run()
    trained = sft_tokens(room)
    wrong = "" if "</think>" in trained else f"learns {trained!r}"
    return done(result, wrong=wrong)


def sft_tokens(room: Room) -> str:
    """What a refusal is trained to say, marks and all."""
    from steermoe.config import load_config
    from steermoe.loading import load_tokenizer
    from steermoe.stages.training_rows import training_rows
    from steermoe.store.directory import RunDirectory

    config = load_config(overrides={**room.settings, "model": {"id": str(room.model)}})
    if not (room.run_dir / "verdicts.parquet").exists():
        return ""
    tokenizer = load_tokenizer(config.model, str(room.model))
    found, _, _ = training_rows(RunDirectory(room.run_dir), config, tokenizer)
    row = next(row for row in found if row.objective == "refusal")
    return str(tokenizer.decode(row.completion_token_ids))


@case("c31", "template prints the time", SILENT)
def _(room: Room) -> Outcome:
    template(room.model, "{{ strftime_now('%H:%M:%S.%f') }}\n" + CHATML)
    result = room.run()
    import pandas as pd

    if result.code or result.error:
        return done(result)
    base = pd.read_parquet(room.run_dir / "tokens.parquet").set_index("prompt_id")
    hardened = pd.read_parquet(room.run_dir / "replies" / "hardened.parquet")
    stored = {
        row["prompt_id"]: row["rendered"]
        for row in map(json.loads, (room.run_dir / "prompts.jsonl").read_text("utf-8").splitlines())
    }
    same = all(
        int(row.num_prompt_tokens) == len(base.loc[row.prompt_id, "prompt_token_ids"])
        for row in hardened.itertuples()
    )
    return done(
        result, wrong="" if same and all(stored.values()) else "each model has another prompt"
    )


@case("o41", "reasoning between special tokens", SILENT)
def _(room: Room) -> Outcome:
    from steermoe.reasoning import answer_of

    tokenizer = byte_tokenizer()
    ids = tokenizer(
        "<think>I can't help with it.</think> Yes sure<|im_end|>", add_special_tokens=False
    )
    answer = answer_of(tokenizer, [1], ids["input_ids"], "")
    return (
        Outcome(READ)
        if answer is None or "can't" not in str(answer)
        else Outcome(SILENT, str(answer))
    )


@case("o61", "no chat template, and the tokenizer puts a first token", SILENT)
def _(room: Room) -> Outcome:
    from tokenizers.processors import TemplateProcessing

    def change(tokenizer: Any) -> None:
        tokenizer.chat_template = None
        tokenizer.bos_token = "<|endoftext|>"
        first = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", first)]
        )

    (room.model / "chat_template.jinja").unlink()
    with_token(room.model, change)
    result = room.run(command="collect")
    line = (
        (room.run_dir / "prompts.jsonl").read_text("utf-8").splitlines()[0]
        if not result.code
        else ""
    )
    return done(result, wrong="" if "<|endoftext|>" in line else "no first token")


@case("o70a", "chat template edited after collect", SILENT)
def _(room: Room) -> Outcome:
    first = room.run(command="collect")
    if first.code or first.error:
        return done(first)
    template(room.model, CHATML.replace("assistant\n", "assistant: "))
    return refused(room.run(), "chat_template")


@case("o70b", "config.json edited after collect", SILENT)
def _(room: Room) -> Outcome:
    first = room.run(command="collect")
    if first.code or first.error:
        return done(first)
    set_json(room.model / "config.json", {"num_experts_per_tok": 3})
    return refused(room.run(), "config.json")


@case("o70c", "README of the model edited after collect", READ)
def _(room: Room) -> Outcome:
    first = room.run(command="collect")
    (room.model / "README.md").write_text("Ours.", "utf-8")
    return done(first) if first.code else done(room.run())


# ---- the tokenizer of the hardened model ------------------------------------------------------------------


@case("o71", "tokenizer is saved as it was read", SILENT)
def _(room: Room) -> Outcome:
    with_token(room.model, lambda t: setattr(t, "pad_token", None))
    result = room.run()
    if result.code or result.error:
        return done(result)
    saved = json.loads((room.run_dir / "model" / "tokenizer_config.json").read_text("utf-8"))
    wrong = saved.get("pad_token") or saved.get("padding_side") == "left"
    return done(result, wrong="it pads otherwise" if wrong else "")
