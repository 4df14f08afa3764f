"""Hardened checkpoints on disk: what may differ, what must not, and the change as one small file."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from architectures import ARCHITECTURES, BY_NAME, Architecture, token_ids
from steermoe.config import EMBEDDED_MODEL
from steermoe.errors import ModelError, TrainingError
from steermoe.moe.checkpoint import Owners, save_hardened, verify_only_selected_changed
from steermoe.moe.delta import apply_delta, read_delta_header, save_delta
from steermoe.moe.slices import attach_expert_slices
from steermoe.moe.stored import hash_checkpoint, stored_tensors
from tiny import CommandLine

PER_EXPERT, ALL_IN_ONE = "olmoe", "gpt_oss"
"""One architecture that stores a tensor for each expert, and one that stores a layer's experts together."""

IMAGE_TEXT = "mistral4"
"""One that transformers knows as an image-text model only."""


class NoTokenizer:
    """Saves a file, as a tokenizer would."""

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{}")


def harden(model: PreTrainedModel, experts: list[tuple[int, int]]) -> None:
    slices = attach_expert_slices(model, experts)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in slices.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    slices.fold()
    slices.detach()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Directories of a base model and of the same with experts (0, 1), (0, 4) and (1, 6) trained."""
    made: dict[str, tuple[Path, Path]] = {}

    def pair(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = BY_NAME[name].build().to(torch.bfloat16)
            save_hardened(model, NoTokenizer(), folder / "base")
            harden(model, EXPERTS)
            save_hardened(model, NoTokenizer(), folder / "hardened")
            made[name] = folder / "base", folder / "hardened"
        return made[name]

    return pair


EXPERTS = [(0, 1), (0, 4), (1, 6)]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_save_verify_and_carry_the_change(architecture: Architecture, tmp_path: Path) -> None:
    model, ids = architecture.build(), token_ids(2, 9)
    first, last = architecture.layer_indices[0], architecture.layer_indices[-1]
    experts = sorted({(first, 1), (first, 4), (last, 6)})
    base, hardened, delta = tmp_path / "base", tmp_path / "hardened", tmp_path / "x.safetensors"
    save_hardened(model, NoTokenizer(), base)
    harden(model, experts)
    save_hardened(model, NoTokenizer(), hardened)
    with torch.no_grad():
        logits = model(ids).logits

    report = verify_only_selected_changed(base, hardened, experts)
    assert report.num_compared == len(stored_tensors(hardened))
    assert report.changed_experts == tuple(experts)
    assert 0 < report.num_changed < report.num_compared
    assert report.only_in_base == ()
    with pytest.raises(TrainingError, match="belongs to no selected expert"):
        verify_only_selected_changed(base, hardened, experts[1:])

    assert save_delta(base, hardened, experts, delta) == report
    made = apply_delta(base, delta, tmp_path / "made")
    assert hash_checkpoint(made) == hash_checkpoint(hardened) != hash_checkpoint(base)
    reloaded = type(model).from_pretrained(made).eval()
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, logits, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", [PER_EXPERT, ALL_IN_ONE])
def test_a_delta_holds_the_selected_experts_and_no_more(
    pairs: Callable[[str], tuple[Path, Path]], name: str, tmp_path: Path
) -> None:
    base, hardened = pairs(name)
    save_delta(base, hardened, EXPERTS, tmp_path / "delta")
    model = BY_NAME[name].build()
    slices = attach_expert_slices(model, EXPERTS)
    tensors = load_file(tmp_path / "delta")
    assert sum(tensor.numel() for tensor in tensors.values()) == slices.num_parameters
    assert all(tensor.dtype is torch.bfloat16 for tensor in tensors.values())
    header = read_delta_header(tmp_path / "delta")
    assert header.experts == ((0, 1), (0, 4), (1, 6))
    assert header.base_hash == hash_checkpoint(base)
    assert (header.base, header.revision) == ("base", None)
    assert (header.resaved_as, header.resaved_by, header.resaved_hash) == (None, None, None)


def test_a_delta_is_the_same_byte_for_byte_each_time(
    pairs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, hardened = pairs(ALL_IN_ONE)
    for name in ("one", "two"):
        save_delta(base, hardened, reversed(EXPERTS), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def tamper(folder: Path, name: str, change: Callable[[Tensor], None]) -> None:
    file = stored_tensors(folder)[name].file
    tensors = load_file(file)
    change(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


def _flip_one_number(tensor: Tensor) -> None:
    tensor.view(-1)[-1] += 1


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (PER_EXPERT, "model.layers.0.mlp.gate.weight", r"layers\.0\.mlp\.gate\.weight differs"),
        (PER_EXPERT, "model.layers.1.self_attn.q_proj.weight", r"q_proj\.weight differs"),
        (PER_EXPERT, "lm_head.weight", r"lm_head\.weight differs"),
        (PER_EXPERT, "model.layers.0.mlp.experts.5.up_proj.weight", r"experts\.5\.up_proj"),
        (PER_EXPERT, "model.layers.1.mlp.experts.1.up_proj.weight", r"layers\.1\.mlp\.experts\.1"),
        (ALL_IN_ONE, "model.layers.0.mlp.experts.down_proj", r"row 7 of model\.layers\.0\.mlp"),
        (ALL_IN_ONE, "model.layers.1.mlp.experts.gate_up_proj_bias", r"row 7 of .*layers\.1"),
        (ALL_IN_ONE, "model.layers.0.mlp.router.weight", r"router\.weight differs"),
        (ALL_IN_ONE, "model.layers.0.mlp.router.bias", r"router\.bias differs"),
    ],
)
def test_any_other_difference_is_found_and_named(
    pairs: Callable[[str], tuple[Path, Path]], tmp_path: Path, name: str, tensor: str, message: str
) -> None:
    base, hardened = pairs(name)
    spoiled = shutil.copytree(hardened, tmp_path / "spoiled")
    verify_only_selected_changed(base, spoiled, EXPERTS)
    tamper(spoiled, tensor, _flip_one_number)
    with pytest.raises(TrainingError, match=message):
        verify_only_selected_changed(base, spoiled, EXPERTS)
    with pytest.raises(TrainingError, match=message):
        save_delta(base, spoiled, EXPERTS, tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


def test_a_router_row_of_a_selected_expert_may_not_differ(
    pairs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """A router has one row for each expert too, but its rows are not the experts'."""
    base, hardened = pairs(ALL_IN_ONE)
    spoiled = shutil.copytree(hardened, tmp_path / "spoiled")
    tamper(spoiled, "model.layers.0.mlp.router.weight", lambda tensor: tensor[1].add_(1))
    with pytest.raises(TrainingError, match=r"router\.weight differs"):
        verify_only_selected_changed(base, spoiled, EXPERTS)


def test_negative_zero_and_nan_are_compared_as_bits(
    pairs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base = shutil.copytree(pairs(PER_EXPERT)[0], tmp_path / "base")
    tamper(base, "lm_head.weight", lambda tensor: tensor[0].fill_(float("nan")))
    same, other = shutil.copytree(base, tmp_path / "a"), shutil.copytree(base, tmp_path / "b")
    assert verify_only_selected_changed(base, same, EXPERTS).num_changed == 0
    tamper(base, "model.norm.weight", lambda tensor: tensor.fill_(0.0))
    tamper(other, "model.norm.weight", lambda tensor: tensor.fill_(-0.0))
    with pytest.raises(TrainingError, match=r"model\.norm\.weight differs"):
        verify_only_selected_changed(base, other, EXPERTS)


def test_the_hash_is_of_the_weights_and_not_of_the_files(
    pairs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, hardened = pairs(PER_EXPERT)
    model = BY_NAME[PER_EXPERT].build().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert hash_checkpoint(tmp_path / "sharded") == hash_checkpoint(base)
    assert hash_checkpoint(hardened) != hash_checkpoint(base)
    renamed = shutil.copytree(base, tmp_path / "renamed")
    tensors = load_file(renamed / "model.safetensors")
    tensors["model.other.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, renamed / "model.safetensors")
    assert hash_checkpoint(renamed) != hash_checkpoint(base)


def test_a_delta_goes_onto_a_base_in_several_files(
    pairs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, hardened = pairs(PER_EXPERT)
    save_delta(base, hardened, EXPERTS, tmp_path / "delta")
    model = BY_NAME[PER_EXPERT].build().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    (tmp_path / "sharded" / "README.md").write_text("the base model's card")
    (tmp_path / "sharded" / "pytorch_model.bin").write_text("the same weights, pickled")
    (tmp_path / "sharded" / "LICENSE").write_text("its licence")
    before = hash_checkpoint(tmp_path / "sharded")
    made = apply_delta(tmp_path / "sharded", tmp_path / "delta", tmp_path / "a" / "made")
    assert hash_checkpoint(made) == hash_checkpoint(hardened)
    assert hash_checkpoint(tmp_path / "sharded") == before
    names = {file.name for file in made.iterdir()}
    assert {"LICENSE", "config.json", "model.safetensors.index.json"} <= names
    assert not names & {"README.md", "pytorch_model.bin"}


def test_a_delta_of_another_base_is_refused(
    pairs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, hardened = pairs(PER_EXPERT)
    save_delta(base, hardened, EXPERTS, tmp_path / "delta")
    other = shutil.copytree(base, tmp_path / "other")
    tamper(other, "model.norm.weight", _flip_one_number)
    with pytest.raises(ModelError, match=r"is not the base model of .*delta: that is base with"):
        apply_delta(other, tmp_path / "delta", tmp_path / "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta", "other"]


@pytest.mark.parametrize("name", [PER_EXPERT, IMAGE_TEXT])
def test_a_base_stored_in_another_dtype_is_saved_again_to_be_compared(
    tmp_path: Path, name: str
) -> None:
    """An fp32 checkpoint that was trained, and saved, in bfloat16."""
    model = BY_NAME[name].build()
    save_hardened(model, NoTokenizer(), tmp_path / "base")
    model = model.to(torch.bfloat16)
    harden(model, EXPERTS)
    save_hardened(model, NoTokenizer(), tmp_path / "hardened")
    report = save_delta(tmp_path / "base", tmp_path / "hardened", EXPERTS, tmp_path / "delta")
    assert report.changed_experts == tuple(EXPERTS)
    header = read_delta_header(tmp_path / "delta")
    assert (header.resaved_as, header.resaved_by) == ("bfloat16", transformers.__version__)
    assert header.base_hash == hash_checkpoint(tmp_path / "base") != header.resaved_hash
    made = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "made")
    assert hash_checkpoint(made) == hash_checkpoint(tmp_path / "hardened")
    assert json.loads((made / "config.json").read_text())["dtype"] == "bfloat16"
    assert (made / "tokenizer.json").is_file()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"base", "hardened", "delta", "made"}


def test_checkpoints_of_different_models_are_refused(
    pairs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="is not in the base model"):
        verify_only_selected_changed(pairs(PER_EXPERT)[0], pairs(ALL_IN_ONE)[1], EXPERTS)


def test_tensors_that_only_the_base_has_are_reported(
    pairs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, hardened = pairs(PER_EXPERT)
    larger = shutil.copytree(base, tmp_path / "larger")
    tensors = load_file(larger / "model.safetensors")
    tensors["model.layers.9.predictor.weight"] = torch.ones(3)
    save_file(tensors, larger / "model.safetensors")
    report = verify_only_selected_changed(larger, hardened, EXPERTS)
    assert report.only_in_base == ("model.layers.9.predictor.weight",)


def test_attached_slices_are_not_saved_as_a_model(tmp_path: Path) -> None:
    model = BY_NAME[PER_EXPERT].build()
    attach_expert_slices(model, [(0, 1)])
    with pytest.raises(TrainingError, match="still attached"):
        save_hardened(model, NoTokenizer(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "only safetensors checkpoints"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64),
            "is not a safetensors file",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:-8]
            ),
            "is cut short",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": 1}'
            ),
            r"index\.json cannot be read",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
            r"index\.json cannot be read",
        ),
    ],
)
def test_damaged_checkpoints_are_refused(
    pairs: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    folder = shutil.copytree(pairs(PER_EXPERT)[0], tmp_path / "damaged")
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        hash_checkpoint(folder)


def test_a_name_that_is_no_local_model_is_refused() -> None:
    with pytest.raises(ModelError, match="nobody/nothing is neither a directory nor"):
        hash_checkpoint("nobody/nothing")


def test_headers_are_read_as_the_library_reads_them(
    pairs: Callable[[str], tuple[Path, Path]],
) -> None:
    folder, _ = pairs(ALL_IN_ONE)
    stored = stored_tensors(folder)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert set(stored) == set(file.keys())
        for name, tensor in stored.items():
            theirs = file.get_tensor(name)
            assert tensor.shape == tuple(theirs.shape)
            bits = theirs.contiguous().view(torch.uint8).numpy().tobytes()
            assert b"".join(tensor.chunks()) == bits
            assert torch.equal(tensor.read().view(torch.uint8), theirs.view(torch.uint8))


# ---- deltas that are damaged, or that nobody wrote ----------------------------------------------------


@pytest.fixture(scope="module")
def whole(
    pairs: Callable[[str], tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """The bytes of a delta of `PER_EXPERT`."""
    path = tmp_path_factory.mktemp("delta") / "x.safetensors"
    save_delta(*pairs(PER_EXPERT), EXPERTS, path)
    return path.read_bytes()


def header_length(delta: bytes) -> int:
    """Bytes before the first tensor."""
    return 8 + int.from_bytes(delta[:8], "little")


def refused(base: Path, delta: Path) -> str:
    """The one line with which a delta is refused; nothing may be left of the attempt."""
    before = sorted(delta.parent.rglob("*"))
    with pytest.raises(ModelError) as caught:
        apply_delta(base, delta, delta.parent / "made")
    assert sorted(delta.parent.rglob("*")) == before
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def test_a_truncated_delta_is_refused(
    pairs: Callable[[str], tuple[Path, Path]], whole: bytes, tmp_path: Path
) -> None:
    base, start = pairs(PER_EXPERT)[0], header_length(whole)
    delta = tmp_path / "x.safetensors"
    for length in (0, 1, 7, 8, 9, start // 2, start - 1):
        delta.write_bytes(whole[:length])
        assert f"{delta} is not a safetensors file" in refused(base, delta), length
    for length in (start, start + 1, (start + len(whole)) // 2, len(whole) - 2, len(whole) - 1):
        delta.write_bytes(whole[:length])
        assert f"{delta} is cut short" in refused(base, delta), length
    delta.write_bytes(whole + b"\0")
    assert f"{delta} is not a safetensors file" in refused(base, delta)


def test_one_flipped_bit_of_the_data_is_found(
    pairs: Callable[[str], tuple[Path, Path]], whole: bytes, tmp_path: Path
) -> None:
    base, start = pairs(PER_EXPERT)[0], header_length(whole)
    delta = tmp_path / "x.safetensors"
    for position in (start, start + 1, (start + len(whole)) // 2, len(whole) - 1):
        for bit in (1, 128):
            flipped = bytearray(whole)
            flipped[position] ^= bit
            delta.write_bytes(flipped)
            assert f"{delta} is damaged" in refused(base, delta), position


def test_one_flipped_bit_anywhere_in_the_header_is_found(whole: bytes, tmp_path: Path) -> None:
    delta = tmp_path / "x.safetensors"
    for position in range(header_length(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        delta.write_bytes(flipped)
        with pytest.raises(ModelError, match=r"x\.safetensors is "):
            read_delta_header(delta)


def test_what_is_no_delta_is_refused(
    pairs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, delta = pairs(PER_EXPERT)[0], tmp_path / "x.safetensors"
    assert "does not exist" in refused(base, delta)
    tensors = {"a": torch.ones(2)}
    for metadata in (
        None,
        {"format": "pt"},
        {"steermoe": "not JSON"},
        {"steermoe": "[1]"},
        {"steermoe": json.dumps({"format": "steermoe-delta-1"})},
    ):
        save_file(tensors, delta, metadata=metadata)
        assert "is not a steermoe-delta-2 file" in refused(base, delta), metadata
    for content in (b"", b"an essay about deltas, long enough to have a length", b"\xff" * 64):
        delta.write_bytes(content)
        assert "is not a safetensors file" in refused(base, delta), content


CODES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def forge(
    delta: Path, fields: dict[str, object], changes: Callable[[dict[str, Tensor]], None]
) -> None:
    """Change a delta and give it the hash of its new content, by the formula that its format states."""
    with safe_open(delta, framework="pt") as file:
        header = json.loads(file.metadata()["steermoe"]) | fields
    tensors = load_file(delta)
    changes(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, CODES[tensor.dtype], list(tensor.shape)]).encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    del header["content_hash"]
    content = json.dumps(header, sort_keys=True) + digest.hexdigest()
    header["content_hash"] = hashlib.sha256(content.encode()).hexdigest()
    save_file(tensors, delta, {"steermoe": json.dumps(header, sort_keys=True)})


def nothing(tensors: dict[str, Tensor]) -> None:
    pass


UP_1 = "model.layers.0.mlp.experts.1.up_proj.weight"


def put(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    """Replace a tensor, or add one that is made of zeros."""

    def changed(tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors.get(name, torch.zeros(8, 32)))

    return changed


def test_a_delta_with_a_forged_hash_and_nothing_else_is_applied(
    pairs: Callable[[str], tuple[Path, Path]], whole: bytes, tmp_path: Path
) -> None:
    """So the cases below are refused for what they say, and not for their hash."""
    base, hardened = pairs(PER_EXPERT)
    delta = tmp_path / "x.safetensors"
    delta.write_bytes(whole)
    forge(delta, {}, nothing)
    made = apply_delta(base, delta, tmp_path / "made")
    assert hash_checkpoint(made) == hash_checkpoint(hardened)


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        ({"experts": [[0, 1], [0, 4], [1, 8]]}, nothing, "has expert 8 of layer 1, which base has"),
        ({"experts": [[0, -1]]}, nothing, "has expert -1 of layer 0, which base has not"),
        ({"experts": [[2, 0]]}, nothing, "has expert 0 of layer 2, which base has not"),
        ({"experts": [[0, 1, 2]]}, nothing, "is not a steermoe-delta-2 file"),
        ({"experts": 7}, nothing, "is not a steermoe-delta-2 file"),
        ({"base": 7}, nothing, "is not a steermoe-delta-2 file"),
        ({"base_hash": None}, nothing, "is not a steermoe-delta-2 file"),
        (
            {"resaved_as": "Tensor", "resaved_by": "5", "resaved_hash": ""},
            nothing,
            "is not a steermoe-delta-2 file",
        ),
        ({"unknown": 1}, nothing, "is not a steermoe-delta-2 file"),
        ({"experts": [[0, 1], [1, 6]]}, nothing, r"has no right to model\.layers\.0.*experts\.4\."),
        (
            {"experts": [[0, 1], [0, 2], [0, 4], [1, 6]]},
            nothing,
            r"lacks model\.layers\.0\.mlp\.experts\.2\.down_proj\.weight of its experts",
        ),
        ({}, lambda tensors: tensors.pop(UP_1), rf"lacks {UP_1} of its experts"),
        (
            {},
            put("model.layers.0.mlp.gate.weight", torch.clone),
            r"has no right to model\.layers\.0\.mlp\.gate\.weight",
        ),
        ({}, put(UP_1, torch.t), r"is BF16 \[32, 16\], but the base model takes BF16 \[16, 32\]"),
        ({}, put(UP_1, lambda t: t[:15]), r"is BF16 \[15, 32\], but the base model takes"),
        ({}, put(UP_1, torch.Tensor.float), r"is F32 \[16, 32\], but the base model takes BF16"),
        (
            {"resaved_as": "bfloat16", "resaved_by": "5.0.0", "resaved_hash": "0" * 64},
            nothing,
            r"saved again in bfloat16, is not what .* was made of; install transformers 5\.0\.0,",
        ),
        ({"resaved_as": "bfloat16"}, nothing, "is not a steermoe-delta-2 file"),
    ],
)
def test_a_delta_that_does_not_fit_is_refused(
    pairs: Callable[[str], tuple[Path, Path]],
    whole: bytes,
    tmp_path: Path,
    fields: dict[str, object],
    changes: Callable[[dict[str, Tensor]], None],
    message: str,
) -> None:
    delta = tmp_path / "x.safetensors"
    delta.write_bytes(whole)
    forge(delta, fields, changes)
    assert re.search(message, refused(pairs(PER_EXPERT)[0], delta))


def test_rows_of_stacked_experts_that_do_not_fit_are_refused(
    pairs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """Layer 0 has two selected experts, so two rows."""
    base, hardened = pairs(ALL_IN_ONE)
    delta, name = tmp_path / "x.safetensors", "model.layers.0.mlp.experts.down_proj"
    save_delta(base, hardened, EXPERTS, delta)
    forge(delta, {"experts": [[0, 1], [1, 6]]}, nothing)
    assert re.search(r"is BF16 \[2, .*takes BF16 \[1, ", refused(base, delta))
    save_delta(base, hardened, EXPERTS, delta)
    forge(delta, {}, put(name, lambda tensor: torch.cat([tensor, tensor])))
    assert f"{name} in {delta} is BF16 [4, 16, 32]" in refused(base, delta)


# ---- the command, and where it finds the base model ---------------------------------------------------


def test_the_command_refuses_in_one_line_and_writes_nothing(
    pairs: Callable[[str], tuple[Path, Path]], whole: bytes, tmp_path: Path, steermoe: CommandLine
) -> None:
    other = shutil.copytree(pairs(PER_EXPERT)[0], tmp_path / "other")
    tamper(other, "model.norm.weight", _flip_one_number)
    delta, damaged = tmp_path / "x.safetensors", tmp_path / "damaged.safetensors"
    delta.write_bytes(whole)
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    for arguments, word in (
        (["--apply", delta, "--model", other, "-o", "made"], "is not the base model of"),
        (["--apply", damaged, "--model", other, "-o", "made"], "damaged.safetensors is damaged"),
        (["--apply", delta, "-o", "made"], "was a local directory, base; give it with --model"),
        (["--apply", delta, "--model", other, "-o", "file"], "file is not empty"),
        (["--model", other], "--model and --revision belong to --apply"),
        (["--revision", "main"], "--model and --revision belong to --apply"),
    ):
        assert word in steermoe.refusal("export", *arguments)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_delta_of_the_embedded_model_needs_no_name(
    pairs: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    steermoe: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, hardened = pairs(PER_EXPERT)
    delta = tmp_path / "x.safetensors"
    monkeypatch.setattr("steermoe.loading.embedded_model_path", lambda report=None: base)
    save_delta(base, hardened, EXPERTS, delta, name=EMBEDDED_MODEL)
    assert read_delta_header(delta).base == "smollm2-moe"
    assert steermoe("export", "--apply", delta, "-o", "made") == 0, steermoe.err
    assert hash_checkpoint(tmp_path / "made") == hash_checkpoint(hardened)


@pytest.fixture
def on_the_hub(
    pairs: Callable[[str], tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, bool], Path]:
    """Puts the base model of `PER_EXPERT`, or another one, into the hub's local cache under a commit."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    model = cache / "models--owner--name"

    def put_there(commit: str, is_base: bool) -> Path:
        snapshot = shutil.copytree(pairs(PER_EXPERT)[0], model / "snapshots" / commit)
        if not is_base:
            tamper(snapshot, "model.norm.weight", _flip_one_number)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / "main").write_text(commit)
        return Path(snapshot)

    return put_there


FIRST, SECOND = "a" * 40, "b" * 40
"""Commits; `main` is the last one that was put there."""


def test_a_delta_finds_its_base_on_the_hub_by_the_commit_it_was_made_of(
    pairs: Callable[[str], tuple[Path, Path]],
    on_the_hub: Callable[[str, bool], Path],
    tmp_path: Path,
    steermoe: CommandLine,
) -> None:
    hardened, delta = pairs(PER_EXPERT)[1], tmp_path / "x.safetensors"
    on_the_hub(FIRST, True)
    save_delta("owner/name", hardened, EXPERTS, delta)
    header = read_delta_header(delta)
    assert (header.base, header.revision) == ("owner/name", FIRST)

    on_the_hub(SECOND, False)
    named = ["--model", "owner/name"]
    for i, options in enumerate(([], named, [*named, "--revision", FIRST])):
        assert steermoe("export", "--apply", delta, "-o", f"made-{i}", *options) == 0, steermoe.err
        assert hash_checkpoint(tmp_path / f"made-{i}") == hash_checkpoint(hardened)
    for revision in ("main", SECOND):
        arguments = ["--apply", delta, "-o", "none", "--revision", revision]
        assert "is not the base model of" in steermoe.refusal("export", *arguments)
    arguments = ["--apply", delta, "-o", "none", "--revision", "v2"]
    assert "owner/name at revision v2 is neither" in steermoe.refusal("export", *arguments)
    assert not (tmp_path / "none").exists()


def test_experts_of_another_tower_belong_to_no_selected_expert() -> None:
    """A vision tower can have experts of the same numbers; its layers are not called as the decoder's."""
    owners = Owners(frozenset({(3, 2)}), 8, "layers")
    name = "model.language_model.layers.3.mlp.experts.{}.up_proj.weight"
    assert owners.owned(name.format(2), (4, 4)) == {None: (3, 2)}
    assert owners.owned(name.format(1), (4, 4)) == {}
    assert owners.owned("model.layers.3.mlp.experts.gate_up_proj", (8, 4, 4)) == {2: (3, 2)}
    assert owners.owned("model.vision_tower.blocks.3.mlp.experts.2.up_proj.weight", (4, 4)) == {}
    assert owners.owned("model.vision_tower.blocks.3.conv.weight", (8, 1, 4)) == {}
