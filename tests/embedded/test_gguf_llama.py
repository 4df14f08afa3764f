"""Reading a Llama from GGUF: files written here, with the format's own writer, come back the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from transformers import LlamaConfig, LlamaForCausalLM

from steermoe.embedded.gguf_llama import load_llama_gguf, parameter_name, unpermute
from steermoe.errors import ModelError

HEADS, KEY_VALUE_HEADS = 4, 2
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh12", "Ġ", "Ċ", "ab", "Ġc"]
MERGES = ["a b", "Ġ c"]
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def ones(size: int) -> np.ndarray:
    return np.ones(size, dtype=np.float32)


def small_llama(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        head_dim=16,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order GGUF stores: row r of a head's first half beside row r of its second half."""
    size = weight.shape[0] // heads
    rows = [
        head * size + half * size // 2 + r
        for head in range(heads)
        for r in range(size // 2)
        for half in (0, 1)
    ]
    return weight[rows]


def gguf_tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    parts = {
        "self_attn.q_proj": ("attn_q", HEADS),
        "self_attn.k_proj": ("attn_k", KEY_VALUE_HEADS),
        "self_attn.v_proj": ("attn_v", 0),
        "self_attn.o_proj": ("attn_output", 0),
        "mlp.gate_proj": ("ffn_gate", 0),
        "mlp.up_proj": ("ffn_up", 0),
        "mlp.down_proj": ("ffn_down", 0),
        "input_layernorm": ("attn_norm", 0),
        "post_attention_layernorm": ("ffn_norm", 0),
    }
    tensors = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "output_norm.weight": model.model.norm.weight,
    }
    if not model.config.tie_word_embeddings:
        tensors["output.weight"] = model.lm_head.weight
    arrays = {name: weight.detach().numpy() for name, weight in tensors.items()}
    for index, layer in enumerate(model.model.layers):
        for name, (kind, heads) in parts.items():
            weight = layer.get_submodule(name).weight.detach().numpy()
            arrays[f"blk.{index}.{kind}.weight"] = permute(weight, heads) if heads else weight
    return arrays


def write_gguf(path: Path, model: LlamaForCausalLM, **changes: Any) -> Path:
    writer = GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if changes.get("padding", True):
        writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    tensors = {**gguf_tensors(model), **changes.get("tensors", {})}
    for name, array in tensors.items():
        if array is None:
            continue
        if changes.get("quantize") and array.ndim == 2:
            packed = quants.quantize(np.ascontiguousarray(array), GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_rows_by_hand() -> None:
    # One head of four rows: GGUF keeps (0, 2) and (1, 3) together, the rows of one rotation.
    stored = np.array([[0.0], [2.0], [1.0], [3.0]])
    assert unpermute(stored, 1).ravel().tolist() == [0, 1, 2, 3]
    two_heads = np.vstack([stored, stored + 10])
    assert unpermute(two_heads, 2).ravel().tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    model = small_llama(tied)
    loaded, _ = load_llama_gguf(write_gguf(tmp_path / "m.gguf", model), torch.float32)
    expected, found = model.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert loaded.config.rms_norm_eps == 1e-5
    ids = torch.tensor([[3, 8, 5, 12, 4]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_quantized_weights_come_back_within_a_step(tmp_path: Path) -> None:
    model = small_llama()
    path = write_gguf(tmp_path / "m.gguf", model, quantize=True)
    loaded, _ = load_llama_gguf(path)
    assert loaded.dtype is torch.bfloat16
    weight = model.model.layers[1].self_attn.q_proj.weight
    found = loaded.model.layers[1].self_attn.q_proj.weight.float()
    # Q8_0 has 127 steps to a block's largest value; bf16 keeps 8 bits.
    assert 0 < (weight - found).abs().max() < weight.abs().max() * (1 / 127 + 1 / 256)


def test_the_tokenizer_splits_digits_and_keeps_the_chat_template(tmp_path: Path) -> None:
    _, tokenizer = load_llama_gguf(write_gguf(tmp_path / "m.gguf", small_llama()))
    # Digits come first: the space before "12" stays a token of its own, the one before "c" is merged.
    text = "<|im_start|>ab c 12<|im_end|>"
    ids = tokenizer(text).input_ids
    assert [TOKENS[i] for i in ids] == ["<|im_start|>", "ab", "Ġc", "Ġ", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab c 12"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert chat == "<|im_start|>ab<|im_end|>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gemma"}, "general.architecture 'gemma'; only 'llama'"),
        ({"pre": "llama-bpe"}, "tokenizer.ggml.pre 'llama-bpe'"),
        ({"padding": False}, "lacks the key tokenizer.ggml.padding_token_id"),
        ({"tensors": {"blk.0.attn_q.bias": ones(64)}}, "blk.0.attn_q.bias"),
        ({"tensors": {"rope_freqs.weight": ones(8)}}, "rope_freqs.weight"),
        ({"tensors": {"blk.1.ffn_up.weight": None}}, "Missing key.*mlp.up_proj.weight"),
        ({"tensors": {"output_norm.weight": ones(63)}}, "size mismatch for model.norm.weight"),
        ({"tensors": {"blk.2.ffn_norm.weight": ones(64)}}, "Unexpected key.*layers.2"),
    ],
)
def test_what_is_not_a_plain_llama_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", small_llama(), **changes)
    with pytest.raises(ModelError, match=message) as caught:
        load_llama_gguf(path)
    assert "\n" not in str(caught.value)


def test_names_by_hand() -> None:
    assert parameter_name("blk.11.ffn_down.weight") == (
        "model.layers.11.mlp.down_proj.weight",
        "ffn_down",
    )
    assert parameter_name("token_embd.weight") == ("model.embed_tokens.weight", "token_embd")
