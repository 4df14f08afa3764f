"""Reads a dense Llama and its tokenizer from one GGUF file.

transformers reads GGUF too, but keeps the weights packed in some versions and unpacks them in others, and forgets how
the tokenizer splits digits. The format is small enough to read here, the same way with every version.

Shape legend: H attention heads, D model width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from steermoe.errors import ModelError

CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of tokens that are special."""

GLOBAL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load_llama_gguf(
    path: Path, dtype: torch.dtype = torch.bfloat16
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Read a model and its tokenizer, weights dequantized.

    Args:
        path: A GGUF file of architecture `llama` with a byte-level BPE tokenizer of the SmolLM kind.
        dtype: Dtype of the model's weights.

    Returns:
        The model in eval mode, and the tokenizer with the file's chat template and special tokens.

    Raises:
        ModelError: If the file holds another architecture, tokenizer or tensor than these.
    """
    reader = GGUFReader(path)
    return read_model(reader, dtype), read_tokenizer(reader)


def read_field(reader: GGUFReader, key: str) -> Any:
    """The value of a metadata key.

    Raises:
        ModelError: If the file has no such key.
    """
    field = reader.get_field(key)
    if field is None:
        raise ModelError(f"the GGUF file lacks the key {key}; is it a complete Llama file?")
    return field.contents()


def expect(reader: GGUFReader, key: str, value: str) -> None:
    """Refuse a file whose metadata says something else.

    Raises:
        ModelError: Naming both values.
    """
    found = read_field(reader, key)
    if found != value:
        raise ModelError(f"the GGUF file has {key} {found!r}; only {value!r} can be read")


def read_model(reader: GGUFReader, dtype: torch.dtype) -> LlamaForCausalLM:
    """The dense model, dequantized to `dtype`."""
    expect(reader, "general.architecture", "llama")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = LlamaConfig(
        vocab_size=len(read_field(reader, "tokenizer.ggml.tokens")),
        hidden_size=read_field(reader, "llama.embedding_length"),
        intermediate_size=read_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=read_field(reader, "llama.block_count"),
        num_attention_heads=read_field(reader, "llama.attention.head_count"),
        num_key_value_heads=read_field(reader, "llama.attention.head_count_kv"),
        head_dim=read_field(reader, "llama.rope.dimension_count"),
        max_position_embeddings=read_field(reader, "llama.context_length"),
        # Stored as float32, so 1e-5 comes back as 9.999999747378752e-06.
        rms_norm_eps=float(f"{read_field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(read_field(reader, "llama.rope.freq_base")),
        },
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=read_field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=read_field(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=read_field(reader, "tokenizer.ggml.padding_token_id"),
    )
    heads = {
        "attn_q": read_field(reader, "llama.attention.head_count"),
        "attn_k": read_field(reader, "llama.attention.head_count_kv"),
    }
    weights = {}
    for tensor in tensors.values():
        name, kind = parameter_name(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:
            values = unpermute(values, heads[kind])
        weights[name] = torch.from_numpy(np.array(values)).to(dtype)
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return build_llama(config, weights, dtype)


def build_llama(
    config: LlamaConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> LlamaForCausalLM:
    """A Llama with exactly these weights.

    Raises:
        ModelError: If a tensor is missing, left over, or of another shape.
    """
    config.dtype = dtype
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        first_line = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the GGUF file does not hold the Llama it describes: {first_line}"
        ) from error
    # Its frequencies are computed, not stored, so they are still on the meta device.
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    model.tie_weights()
    model.train(False)
    return model


def parameter_name(gguf_name: str) -> tuple[str, str]:
    """Translate `blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`, and give its kind, `attn_q`.

    Raises:
        ModelError: If the tensor is none of a plain Llama.
    """
    match gguf_name.split("."):
        case ["blk", layer, kind, "weight"] if kind in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[kind]}.weight", kind
        case [kind, "weight"] if kind in GLOBAL_NAMES:
            return f"{GLOBAL_NAMES[kind]}.weight", kind
    raise ModelError(f"the GGUF file holds the tensor {gguf_name}, which a plain Llama has not")


def unpermute(weight: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    """Undo the row order that GGUF gives to query and key projections.

    Rotary embeddings turn pairs of a head's rows. GGUF stores the rows of a pair beside each other, `(H, half, 2)`;
    transformers stores all first rows before all second rows, `(H, 2, half)`.
    """
    half = weight.shape[0] // num_heads // 2
    paired = weight.reshape(num_heads, half, 2, -1)
    return paired.swapaxes(1, 2).reshape(weight.shape)


def read_tokenizer(reader: GGUFReader) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer, with the file's special tokens and chat template.

    Text is cut into single digits first and by the GPT-2 pattern then; GGUF stores only the name of that rule,
    `smollm`. Padding is the end-of-turn token, as in the file; masks tell the two apart.
    """
    expect(reader, "tokenizer.ggml.model", "gpt2")
    expect(reader, "tokenizer.ggml.pre", "smollm")
    tokens: list[str] = read_field(reader, "tokenizer.ggml.tokens")
    merges: list[str] = read_field(reader, "tokenizer.ggml.merges")
    kinds: list[int] = read_field(reader, "tokenizer.ggml.token_type")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[(left, right) for left, right in (merge.split(" ") for merge in merges)],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == CONTROL_TOKEN
        ]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # not annotated upstream
        tokenizer_object=tokenizer,
        model_max_length=read_field(reader, "llama.context_length"),
        bos_token=tokens[read_field(reader, "tokenizer.ggml.bos_token_id")],
        eos_token=tokens[read_field(reader, "tokenizer.ggml.eos_token_id")],
        unk_token=tokens[read_field(reader, "tokenizer.ggml.unknown_token_id")],
        pad_token=tokens[read_field(reader, "tokenizer.ggml.padding_token_id")],
        chat_template=read_field(reader, "tokenizer.chat_template"),
    )
