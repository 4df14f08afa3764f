"""The upcycling recipe: each formula against numbers worked by hand, and the whole against what must hold."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from steermoe.embedded.calibration import (
    REPLY_TOKENS,
    Exchange,
    MlpTrace,
    calibration_exchanges,
    trace_mlps,
)
from steermoe.embedded.upcycle import (
    neurons_to_keep,
    routed_to,
    router_weights,
    spherical_kmeans,
    upcycle_dense_to_moe,
)
from steermoe.errors import ModelError

WORDS = [
    "how",
    "do",
    "you",
    "bake",
    "bread",
    "fix",
    "bikes",
    "grow",
    "basil",
    "in",
    "winter",
    "rain",
    "or",
    "sun",
]
PROMPTS = ["how do you bake bread", "fix bikes in rain", "grow basil in winter", "rain or sun"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<s> {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> {% endif %}"
)


def tiny_llama(**changes: object) -> LlamaForCausalLM:
    settings = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


# --- the formulas, by hand


def test_kmeans_finds_two_directions_wherever_it_starts() -> None:
    angles = torch.tensor([0.1, -0.1, math.pi / 2 + 0.2, math.pi / 2 - 0.2])
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    for seed in range(8):
        centroids = spherical_kmeans(points, 2, seed)
        centroids = centroids[centroids[:, 0].argsort()]
        torch.testing.assert_close(centroids, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_kmeans_gives_an_empty_cluster_the_point_least_like_its_own() -> None:
    # Whatever three points are drawn, two of them are the same, and one of their clusters stays empty.
    points = torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
    for seed in range(8):
        found = {tuple(row) for row in spherical_kmeans(points, 3, seed).tolist()}
        assert found == {(1.0, 0.0), (0.0, 1.0)}


def test_router_by_hand() -> None:
    # Mean (4, 0): centred, the inputs are +-1 along the second axis, so the two centroids are (0, 1) and (0, -1),
    # their mean is zero, and the mean input has no component along them. Logits are +-1 before scaling; the (n - 1)
    # standard deviation of four values 1 and four values -1 is sqrt(8 / 7).
    inputs = torch.tensor([[4.0, 1.0], [4.0, -1.0], [4.0, 1.0], [4.0, -1.0]])
    weights = router_weights(inputs, 2, seed=0)
    scale = math.sqrt(7 / 8)
    expected = torch.tensor([[0.0, -scale], [0.0, scale]])
    torch.testing.assert_close(weights[weights[:, 1].argsort()], expected)


def test_router_logits_have_unit_deviation_and_do_not_see_the_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(500, 6, generator=generator) + torch.tensor([9.0, -3.0, 0, 0, 1.0, 0])
    weights = router_weights(inputs, 4, seed=0)
    assert (inputs @ weights.T).std().item() == pytest.approx(1.0, abs=1e-4)
    assert (weights @ inputs.mean(0)).abs().max().item() < 1e-4
    load = routed_to(inputs @ weights.T, 1).sum(0)
    assert load.min() > 0


def test_router_refuses_inputs_that_do_not_differ() -> None:
    with pytest.raises(ModelError, match="do not differ"):
        router_weights(torch.ones(10, 3), 2, seed=0)


def test_routing_takes_the_largest_logits() -> None:
    chosen = routed_to(torch.tensor([[3.0, 1.0, 2.0], [0.0, -5.0, -1.0]]), 2)
    assert chosen.tolist() == [[True, False, True], [True, False, True]]


def test_importance_by_hand() -> None:
    # Expert 0 is sent tokens 0 and 1, expert 1 token 2. Root mean squares: expert 0 has (5 / sqrt 2, 1, 2 / sqrt 2),
    # expert 1 has (0, 1, 3). Times the norms (1, 2, 1): (3.54, 2, 1.41) and (0, 2, 3). Two of three are kept.
    neurons = torch.tensor([[3.0, 1.0, 2.0], [-4.0, 1.0, 0.0], [0.0, -1.0, 3.0]])
    chosen = torch.tensor([[True, False], [True, False], [False, True]])
    keep = neurons_to_keep(neurons, chosen, torch.tensor([1.0, 2.0, 1.0]), 0.7)
    assert keep.tolist() == [[True, True, False], [False, True, True]]


def test_an_expert_without_tokens_ranks_by_all_tokens() -> None:
    neurons = torch.tensor([[1.0, 0.0], [1.0, 5.0]])
    chosen = torch.tensor([[True, False], [True, False]])
    keep = neurons_to_keep(neurons, chosen, torch.ones(2), 0.5)
    assert keep.tolist() == [[False, True], [False, True]]


def test_attention_sinks_are_left_out() -> None:
    trace = MlpTrace(
        inputs=[torch.tensor([[100.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 1.5]])],
        neurons=[torch.tensor([[7.0], [1.0]]), torch.tensor([[2.0], [3.0]])],
        is_reply=[torch.tensor([False, False]), torch.tensor([True, False])],
    )
    inputs, neurons, is_reply = trace.content_tokens()
    assert inputs.tolist() == [[1.0, 0.0], [0.0, 2.0], [0.0, 1.5]]
    assert neurons.tolist() == [[1.0], [2.0], [3.0]]
    assert is_reply.tolist() == [False, True, False]


# --- what is recorded


def test_exchanges_are_prompt_and_reply_without_padding_or_end(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    dense = tiny_llama()
    for exchange, prompt in zip(
        calibration_exchanges(dense, tokenizer, PROMPTS), PROMPTS, strict=True
    ):
        prompt_ids = [1, *tokenizer(prompt).input_ids, 2, 1]
        ids = exchange.token_ids
        reply = ids[exchange.is_reply].tolist()
        assert ids[~exchange.is_reply].tolist() == prompt_ids
        assert 2 not in reply
        # Greedy: what follows each prefix is the model's own choice.
        with torch.no_grad():
            choices = dense(ids[None]).logits[0].argmax(-1)
        assert choices[len(prompt_ids) - 1 : -1].tolist() == reply


def test_a_tokenizer_without_chat_template_gets_the_plain_prompt(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = None
    exchange = calibration_exchanges(tiny_llama(), tokenizer, PROMPTS[:1])[0]
    assert exchange.token_ids[~exchange.is_reply].tolist() == tokenizer(PROMPTS[0]).input_ids


def test_a_model_without_end_of_turn_replies_to_the_limit(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    dense = tiny_llama()
    dense.generation_config.eos_token_id = None
    exchange = calibration_exchanges(dense, tokenizer, PROMPTS[:1])[0]
    assert exchange.is_reply.sum() == REPLY_TOKENS


def test_traces_do_not_depend_on_padding() -> None:
    dense = tiny_llama()
    exchanges = [
        Exchange(torch.tensor([1, 5, 6, 7, 8]), 3),
        Exchange(torch.tensor([1, 9]), 1),
    ]
    with torch.no_grad():
        together = trace_mlps(dense, exchanges)
        apart = [trace_mlps(dense, [exchange]) for exchange in exchanges]
    for layer, trace in enumerate(together):
        for name in ("inputs", "neurons"):
            expected = torch.cat([getattr(traces[layer], name)[0] for traces in apart])
            torch.testing.assert_close(getattr(trace, name)[0], expected)
        assert torch.cat(trace.is_reply).tolist() == [False] * 3 + [True] * 2 + [False, True]
    assert not dense.model.layers[0].mlp._forward_pre_hooks


def test_routers_are_clustered_on_replies_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    dense = tiny_llama(num_hidden_layers=1)
    moe = upcycle_dense_to_moe(dense, tokenizer, PROMPTS, num_experts=3)
    exchanges = calibration_exchanges(dense, tokenizer, PROMPTS)
    with torch.no_grad():
        inputs, _, is_reply = trace_mlps(dense, exchanges)[0].content_tokens()
        logits = inputs[is_reply] @ moe.model.layers[0].mlp.gate.weight.T
    assert logits.std().item() == pytest.approx(1.0, abs=1e-4)


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


def test_each_expert_is_the_dense_mlp_less_a_tenth(tokenizer: PreTrainedTokenizerFast) -> None:
    dense = tiny_llama()
    moe = upcycle_dense_to_moe(dense, tokenizer, PROMPTS, num_experts=4)
    differ = False
    for dense_layer, layer in zip(dense.model.layers, moe.model.layers, strict=True):
        gate_up, down = layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj
        mlp = dense_layer.mlp
        alive = down.ne(0).any(dim=1)
        assert alive.sum(dim=1).tolist() == [36] * 4
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
    tokenizer: PreTrainedTokenizerFast, tmp_path
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
    tokenizer: PreTrainedTokenizerFast, tmp_path
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
