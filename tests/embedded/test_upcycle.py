"""The upcycling recipe: which neurons an expert keeps by hand, and the whole against what must hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralForCausalLM, PreTrainedTokenizerFast

from embedded.dense_models import PROMPTS, tiny_llama, word_tokenizer
from steermoe.embedded.calibration import record_replies
from steermoe.embedded.upcycle import (
    neurons,
    neurons_to_keep,
    routed_to,
    upcycle_dense_to_moe,
)
from steermoe.errors import ModelError

NONE_SHARED = torch.zeros(0, 3)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


# --- the formulas, by hand


def test_routing_takes_the_largest_logits() -> None:
    chosen = routed_to(torch.tensor([[3.0, 1.0, 2.0], [0.0, -5.0, -1.0]]), 2)
    assert chosen.tolist() == [[True, False, True], [True, False, True]]


def test_importance_by_hand() -> None:
    # Expert 0 is sent tokens 0 and 1, expert 1 token 2. Root mean squares: expert 0 has (5 / sqrt 2, 1, 2 / sqrt 2),
    # expert 1 has (0, 1, 3). Times the norms (1, 2, 1): (3.54, 2, 1.41) and (0, 2, 3). Two of three are kept.
    neurons = torch.tensor([[3.0, 1.0, 2.0], [-4.0, 1.0, 0.0], [0.0, -1.0, 3.0]])
    chosen = torch.tensor([[True, False], [True, False], [False, True]])
    keep = neurons_to_keep(neurons, chosen, NONE_SHARED, torch.tensor([1.0, 2.0, 1.0]), 0.7)
    assert keep.tolist() == [[True, True, False], [False, True, True]]


def test_an_expert_without_tokens_ranks_by_all_tokens() -> None:
    neurons = torch.tensor([[1.0, 0.0], [1.0, 5.0]])
    chosen = torch.tensor([[True, False], [True, False]])
    keep = neurons_to_keep(neurons, chosen, NONE_SHARED[:, :2], torch.ones(2), 0.5)
    assert keep.tolist() == [[False, True], [False, True]]


def test_a_neuron_that_a_shared_token_needs_is_kept() -> None:
    # Mean squares 1, 4 and 9. Shared tokens reach 25 and 81 at neuron 0: a hundredth of the larger is 0.81, too little;
    # of 900 it is 9, as much as neuron 2 has and more than neuron 1.
    neurons_TF = torch.tensor([[1.0, 2.0, 3.0]])
    chosen = torch.tensor([[True]])
    kept = []
    for largest in (9.0, 30.0):
        shared = torch.tensor([[5.0, 0.0, 0.0], [-largest, 0.0, 0.0]])
        kept.append(neurons_to_keep(neurons_TF, chosen, shared, torch.ones(3), 0.7).tolist())
    assert kept == [[[False, True, True]], [[True, False, True]]]


def test_neurons_are_what_the_down_projection_is_given() -> None:
    dense = tiny_llama()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    mlp = dense.model.layers[1].mlp
    given: list[torch.Tensor] = []
    mlp.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    mlp.down_proj.register_forward_pre_hook(
        lambda module, arguments: seen.append((given[-1], arguments[0]))
    )
    with torch.no_grad():
        dense(torch.tensor([[1, 4, 9]]))
        ((inputs, expected),) = seen
        torch.testing.assert_close(neurons(mlp, inputs), expected)


def test_routers_have_logits_of_unit_deviation_on_what_they_are_made_of(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    dense = tiny_llama(num_hidden_layers=1)
    moe = upcycle_dense_to_moe(dense, tokenizer, PROMPTS, num_experts=3)
    with torch.no_grad():
        (inputs,) = record_replies(dense, tokenizer, PROMPTS)
        logits = inputs.content @ moe.model.layers[0].mlp.gate.weight.T
    assert logits.std().item() == pytest.approx(1.0, abs=1e-4)


def test_the_system_turn_is_part_of_what_is_read(tokenizer: PreTrainedTokenizerFast) -> None:
    gates = [
        upcycle_dense_to_moe(tiny_llama(), tokenizer, PROMPTS, num_experts=3, system_prompt=turn)
        .model.layers[1]
        .mlp.gate.weight
        for turn in ("", "sun or rain")
    ]
    assert not torch.equal(*gates)


# --- the whole


@pytest.mark.parametrize("tied", [True, False])
def test_with_nothing_pruned_the_mixture_is_the_dense_model(
    tokenizer: PreTrainedTokenizerFast, tied: bool
) -> None:
    dense = tiny_llama(tie_word_embeddings=tied)
    moe = upcycle_dense_to_moe(dense, tokenizer, PROMPTS, num_experts=4, top_k=2, keep_fraction=1.0)
    ids = torch.tensor([[1, 4, 9, 3, 12, 7, 2]])
    with torch.no_grad():
        torch.testing.assert_close(moe(ids).logits, dense(ids).logits, atol=1e-5, rtol=1e-5)


def test_each_expert_is_the_dense_mlp_less_what_matters_least(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    dense = tiny_llama()
    moe = upcycle_dense_to_moe(dense, tokenizer, PROMPTS, num_experts=4)
    differ = False
    for dense_layer, layer in zip(dense.model.layers, moe.model.layers, strict=True):
        gate_up, down = layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj
        mlp = dense_layer.mlp
        alive = down.ne(0).any(dim=1)
        assert alive.sum(dim=1).tolist() == [39] * 4  # 0.99 of 40
        differ = differ or bool((alive != alive[0]).any())
        for expert, kept in enumerate(alive):
            gate, up = gate_up[expert].chunk(2)
            for written, weight in ((gate, mlp.gate_proj.weight), (up, mlp.up_proj.weight)):
                assert torch.equal(written[kept], weight[kept])
                assert not written[~kept].any()
            assert torch.equal(down[expert][:, kept], mlp.down_proj.weight[:, kept])
    assert differ, "all experts kept the same neurons"


def test_everything_but_the_mlps_is_copied(tokenizer: PreTrainedTokenizerFast) -> None:
    dense = tiny_llama().to(torch.bfloat16)
    moe = upcycle_dense_to_moe(dense, tokenizer, PROMPTS, num_experts=4)
    copied = {name: w for name, w in dense.state_dict().items() if ".mlp." not in name}
    found = moe.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in copied.items())
    assert all(weight.dtype is torch.bfloat16 for weight in found.values())
    assert moe.config.rope_parameters == dense.config.rope_parameters
    assert moe.lm_head.weight is moe.model.embed_tokens.weight
    assert not moe.training


def test_the_dense_model_is_not_changed(tokenizer: PreTrainedTokenizerFast) -> None:
    dense = tiny_llama()
    before = {name: weight.clone() for name, weight in dense.state_dict().items()}
    upcycle_dense_to_moe(dense, tokenizer, PROMPTS, num_experts=4)
    assert all(torch.equal(weight, before[name]) for name, weight in dense.state_dict().items())


def test_two_builds_are_the_same_bytes_and_another_seed_is_not(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        # Neither the global generator's state nor what ran before may matter.
        dense = tiny_llama()
        torch.manual_seed(len(name))
        moe = upcycle_dense_to_moe(dense, tokenizer, PROMPTS, num_experts=4, seed=seed)
        moe.save_pretrained(tmp_path / name)
    one, two, three = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three")
    )
    assert one == two
    assert one != three


def test_it_loads_with_plain_transformers_and_decodes_greedily_without_warnings(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    dense = tiny_llama()
    dense.generation_config.eos_token_id = [2, 0]
    dense.generation_config.do_sample = True
    dense.generation_config.temperature = 0.6
    moe = upcycle_dense_to_moe(dense, tokenizer, PROMPTS, num_experts=4)
    moe.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, MixtralForCausalLM)
    assert loaded.generation_config.eos_token_id == [2, 0]
    ids = torch.tensor([[1, 4, 9, 3]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, moe(ids).logits)
    mask = torch.ones_like(ids)
    one, two = (
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
        for model in (loaded, moe)
    )
    assert torch.equal(one, two)
    # Experts are stored one by one, under Mixtral's usual names, which other software reads.
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["model.layers.1.block_sparse_moe.experts.3.w2.weight"].shape == (16, 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 1}, "num_experts is 1"),
        ({"top_k": 9}, "top_k is 9"),
        ({"top_k": 0}, "top_k is 0"),
        ({"keep_fraction": 0.0}, "keep_fraction is 0.0"),
        ({"keep_fraction": 1.5}, "keep_fraction is 1.5"),
        ({"num_experts": 3000}, "cannot be parted among 3000 experts"),
    ],
)
def test_numbers_out_of_range_are_refused(
    tokenizer: PreTrainedTokenizerFast, changes: dict[str, float], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        upcycle_dense_to_moe(tiny_llama(), tokenizer, PROMPTS, **changes)


@pytest.mark.parametrize("prompts", [[], ["rain", " "]])
def test_missing_prompts_are_refused(
    tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> None:
    with pytest.raises(ModelError, match="missing or blank"):
        upcycle_dense_to_moe(tiny_llama(), tokenizer, prompts)


def test_a_llama_with_biases_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match="biases"):
        upcycle_dense_to_moe(tiny_llama(mlp_bias=True), tokenizer, PROMPTS)


def test_another_architecture_is_refused_by_name(tokenizer: PreTrainedTokenizerFast) -> None:
    moe = upcycle_dense_to_moe(tiny_llama(), tokenizer, PROMPTS, num_experts=2)
    with pytest.raises(ModelError, match="MixtralForCausalLM"):
        upcycle_dense_to_moe(moe, tokenizer, PROMPTS)
