"""Passes for scores on a tiny run, against plain passes over one text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import TinyCheckpoint
from steermoe.errors import RoutingError
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.trained_stack import fused_parameters
from steermoe.pipeline import run_pipeline
from steermoe.records import Label, Output, Split
from steermoe.scores.selectivity import squared_gradients
from steermoe.stages import score_work
from steermoe.store.names import SCORES, SHARDS
from steermoe.store.run import Run
from tiny import Listener, copy_of, finished_run, tiny_config

PASSES = ["taylor", "selectivity", "selective_gain", "projection"]
TARGET = "No."


@pytest.fixture(scope="module", params=["mixtral", "olmoe"])
def scored(
    request: pytest.FixtureRequest,
    tiny_checkpoint: TinyCheckpoint,
    small_prompts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Run, Any, Any]:
    """A run with the scores of passes, its model and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = tiny_checkpoint(request.param)
    folder = copy_of(
        finished_run(checkpoint, small_prompts), tmp_path_factory.mktemp("scored") / "run"
    )
    settings = {"scores": PASSES, "score_prompts": 3, "num_subsamples": 4}
    config = tiny_config(checkpoint, folder, small_prompts, identify=settings)
    run = run_pipeline(config, only="identify", reporter=Listener())
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval().requires_grad_(False)
    return run, model, AutoTokenizer.from_pretrained(checkpoint)


def measured(run: Run, name: str) -> list[tuple[int, dict[str, Any], Output]]:
    """The responses that a pass measured: place, row and output."""
    sums = run.directory.read_sums(name)
    assert sums is not None
    rows = enumerate(run.directory.iter_outputs())
    return [(place, *both) for place, both in rows if sums.num_tokens[place].any()]


def text(prompt: tuple[int, ...], completion: list[int] | tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([[*prompt, *completion]])


def refusal(tokenizer: Any) -> list[int]:
    return [*tokenizer(TARGET, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def log_prob(model: Any, ids: torch.Tensor, num_prompt: int) -> torch.Tensor:
    logits = model(ids[:, :-1]).logits[0, num_prompt - 1 :].float()
    return -F.cross_entropy(logits, ids[0, num_prompt:], reduction="sum")


def test_so_many_prompts_of_each_kind_are_measured_and_pairs_stay_together(
    scored: tuple[Run, Any, Any],
) -> None:
    run = scored[0]
    found = [(row["split"], row["label"]) for _, row, _ in measured(run, "gradient")]
    assert {kind: found.count(kind) for kind in found} == {
        (Split.TRAIN, Label.UNSAFE): 3,
        (Split.TRAIN, Label.SAFE): 3,
        (Split.TRAIN, Label.BENIGN): 3,
        (Split.DEV, Label.UNSAFE): found.count((Split.DEV, Label.UNSAFE)),
        (Split.TEST, Label.UNSAFE): found.count((Split.TEST, Label.UNSAFE)),
        (Split.DEV, Label.SAFE): found.count((Split.DEV, Label.SAFE)),
        (Split.TEST, Label.SAFE): found.count((Split.TEST, Label.SAFE)),
    }
    assert len(found) == 15
    prompts = {prompt.prompt_id: prompt for prompt in run.directory.read_prompts()}
    pairs = [prompts[row["prompt_id"]].pair_id for _, row, _ in measured(run, "taylor")]
    assert all(pairs.count(pair) == 2 for pair in pairs)


def test_taylor_is_weight_times_gradient_summed_over_both_texts(
    scored: tuple[Run, Any, Any],
) -> None:
    run, model, tokenizer = scored
    sums = run.directory.read_sums("taylor")
    assert sums is not None
    for place, _, output in measured(run, "taylor"):
        expected = torch.zeros(sums.total.shape[2:])
        prompt = output.prompt_token_ids
        for sign, completion in (
            (1, refusal(tokenizer)),
            (-1, output.generated_token_ids),
        ):
            seen: list[tuple[torch.Tensor, torch.Tensor]] = []

            def hook(module: Any, args: Any, seen: list[Any] = seen) -> Any:
                leaf = args[2].detach().requires_grad_()
                seen.append((args[1], leaf))
                return (*args[:2], leaf)

            handles = [
                model.get_submodule(layer.experts_name).register_forward_pre_hook(hook)
                for layer in find_moe_layers(model).layers
            ]
            figure = sign * log_prob(model, text(prompt, completion), len(prompt))
            gradients = torch.autograd.grad(figure, [leaf for _, leaf in seen])
            for handle in handles:
                handle.remove()
            for layer, ((ids, leaf), gradient) in enumerate(zip(seen, gradients, strict=True)):
                for token in range(len(ids)):
                    for choice in range(ids.shape[1]):
                        value = leaf[token, choice] * gradient[token, choice]
                        expected[layer, ids[token, choice]] -= value.detach()
        np.testing.assert_allclose(sums.total[place, 0], expected.numpy(), rtol=2e-3, atol=1e-4)
        assert np.array_equal(sums.total[place, 0], sums.total[place, 1])


def test_selectivity_is_that_of_full_gradients(scored: tuple[Run, Any, Any]) -> None:
    run, model, tokenizer = scored
    first = refusal(tokenizer)[:1]
    layers = [model.get_submodule(layer.experts_name) for layer in find_moe_layers(model).layers]
    tensors = [list(fused_parameters(experts).values()) for experts in layers]
    flat = [tensor for of_layer in tensors for tensor in of_layer]
    gradients: dict[str, list[list[torch.Tensor]]] = {}
    for tensor in flat:
        tensor.requires_grad_(True)
    for _, row, output in measured(run, "gradient"):
        if row["split"] != Split.TRAIN:
            continue
        prompt = output.prompt_token_ids
        loss = -log_prob(model, text(prompt, first), len(prompt))
        found = iter(torch.autograd.grad(loss, flat))
        gradients.setdefault(row["label"], []).append(
            [torch.cat([next(found).flatten(1) for _ in of_layer], 1) for of_layer in tensors]
        )
    for tensor in flat:
        tensor.requires_grad_(False)
    table = run.directory.read_table(SCORES)
    for position in range(len(layers)):
        unsafe, safe = (
            torch.stack([g[position] for g in gradients[label]]).mean(dim=0).double()
            for label in ("unsafe", "safe")
        )
        squared, product = (unsafe**2).sum(1), (unsafe * safe).sum(1)
        expected = {
            "selectivity": torch.where(squared > 0, 1 - product / squared, 0.0),
            "selective_gain": torch.where(squared > 0, (squared - product) / squared.sqrt(), 0.0),
        }
        for name, values in expected.items():
            own = table[(table["score"] == name) & (table["layer"] == position)]
            np.testing.assert_allclose(own["value"], values.numpy(), rtol=5e-3, atol=1e-4)


def outputs_of(model: Any, modules: list[Any], fed: Any) -> list[torch.Tensor]:
    """What some modules put out for one text, in order."""
    found: list[torch.Tensor] = []

    def keep(module: Any, given: Any, output: Any) -> None:
        found.append(output if torch.is_tensor(output) else output[0])

    handles = [module.register_forward_hook(keep) for module in modules]
    with torch.no_grad():
        model(torch.tensor([[*fed]]))
    for handle in handles:
        handle.remove()
    return found


def test_projection_is_along_the_difference_of_mean_states(scored: tuple[Run, Any, Any]) -> None:
    run, model, _ = scored
    chosen = measured(run, "projection")
    states: dict[str, list[torch.Tensor]] = {"unsafe": [], "safe": []}
    for _, row, output in chosen:
        if row["split"] == Split.TRAIN:
            hidden = outputs_of(model, list(model.model.layers), output.prompt_token_ids)
            states[row["label"]].append(torch.stack([h[0, -1] for h in hidden]))
    difference = torch.stack(states["unsafe"]).mean(0) - torch.stack(states["safe"]).mean(0)
    direction = difference / difference.norm(dim=1, keepdim=True)
    sums, counts = run.directory.read_sums("projection"), run.directory.read_counts()
    assert sums is not None
    for place, _, output in chosen:
        # What all experts of a layer add along it, of the tokens that count, is known from the layer's output.
        fed = [*output.prompt_token_ids, *output.generated_token_ids[:-1]]
        experts = [model.get_submodule(at.experts_name) for at in find_moe_layers(model).layers]
        outputs = outputs_of(model, experts, fed)
        assert sums.num_tokens[place].tolist() == counts.num_tokens[place].tolist()
        reply = slice(len(output.prompt_token_ids), None)
        for position, of_layer in enumerate(outputs):
            along = of_layer.reshape(len(fed), -1)[reply] @ direction[position]
            total = sums.total[place, 1, position].sum()
            assert float(total) == pytest.approx(float(along.sum()), rel=2e-3, abs=2e-4)
        never = counts.active[place] == 0
        assert (sums.total[place][never] == 0).all()


def test_all_scores_are_in_the_table_with_their_uncertainty(scored: tuple[Run, Any, Any]) -> None:
    table = scored[0].directory.read_table(SCORES)
    names = table["score"].unique().tolist()
    assert names == ["risk_diff", "gate_mass", "contribution", *PASSES]
    assert table.drop(columns=["stability"]).notna().all().all()


def test_the_forecast_is_that_of_the_products(scored: tuple[Run, Any, Any]) -> None:
    run = scored[0]
    found, sums = run.directory.read_forecast(), run.directory.read_sums("gradient")
    assert sums is not None and found.num_experts == len(run.unsafe_experts) > 0
    rows = {label: [] for label in ("unsafe", "safe", "benign")}
    for place, row, _ in measured(run, "gradient"):
        if row["split"] == Split.TRAIN:
            rows[row["label"]].append(place)
    layers = list(sums.layer_indices)
    total = {
        label: np.mean(
            [
                sum(
                    sums.total[place, 0, layers.index(layer), expert]
                    for layer, expert in run.unsafe_experts
                )
                for place in places
            ]
        )
        for label, places in rows.items()
    }
    assert set(found.kinds) == {"look_alike", "benign"}
    for kind, label in (("look_alike", "safe"), ("benign", "benign")):
        own = found.kinds[kind]
        assert own.selected.value == pytest.approx(total[label] / total["unsafe"], rel=1e-5)
        assert own.num_draws == 20 and own.least is not None and own.num_prompts == 3
    unsafe = np.array(rows["unsafe"])
    assert (squared_gradients(sums, unsafe) >= 0).all()


def test_an_interrupted_pass_goes_on_with_the_next_piece(
    checkpoint: Path,
    finished: Path,
    small_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = copy_of(finished, tmp_path / "run")
    settings = {"scores": ["taylor"], "score_prompts": 6, "num_subsamples": 2}
    config = tiny_config(checkpoint, folder, small_prompts, identify=settings)
    from steermoe.stages import score_passes

    made: list[int] = []
    taylor_of = score_passes._taylor_of

    def dying(work: Any, group: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(len(group))
        return taylor_of(work, group)

    monkeypatch.setattr(score_passes, "_taylor_of", dying)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config, only="identify", reporter=Listener())
    left = sorted(path.name for path in (folder / SHARDS).glob("score-taylor*"))
    assert len(left) == 2
    again: list[int] = []

    def counting(work: Any, group: Any) -> Any:
        again.append(len(group))
        return taylor_of(work, group)

    monkeypatch.setattr(score_passes, "_taylor_of", counting)
    run = run_pipeline(config, only="identify", reporter=Listener())
    assert sum(made) + sum(again) == 24 and not (folder / SHARDS).exists()
    whole = run.directory.read_sums("taylor")
    assert whole is not None and (whole.num_tokens > 0).sum() == 48


def test_passes_are_made_only_where_they_are_asked_for(
    checkpoint: Path, finished: Path, small_prompts: Path, tmp_path: Path
) -> None:
    folder = copy_of(finished, tmp_path / "run")

    def identified(**settings: Any) -> Run:
        config = tiny_config(checkpoint, folder, small_prompts, identify=settings)
        return run_pipeline(config, only="identify", reporter=Listener())

    run = identified(rank_by="taylor", threshold=-1.0, top_k=2, score_prompts=2)
    passes = sorted(path.stem for path in (folder / "score_sums").iterdir())
    assert passes == ["gradient", "taylor"] and len(run.unsafe_experts) == 2
    before = run.state.stages["score"].fingerprint
    # Another score of what is recorded asks for no pass, and the forecast's is there already.
    again = identified(
        rank_by="gate_mass", threshold=-1.0, top_k=3, score_prompts=2, scores=["taylor"]
    )
    assert again.state.stages["score"].fingerprint == before


def test_experts_of_another_width_have_no_projection(
    monkeypatch: pytest.MonkeyPatch, scored: tuple[Run, Any, Any]
) -> None:
    from steermoe.stages import score_passes

    class Narrow:
        shape = (2, 8)
        chosen = score_work.Chosen(*(np.array([0]) for _ in range(4)), 1)

        class loaded:
            class description:
                architecture = "Narrow"

                class Layer:
                    hidden_size = 24

                layers = (Layer,)

        def groups(self, places: Any) -> list[list[int]]:
            return [[0]]

        def piece(self, *_: Any) -> str:
            return "x"

        def read(self, *_: Any) -> list[torch.Tensor]:
            return [torch.ones(1, 2, 32)]

    with pytest.raises(RoutingError, match="put out 24 numbers and its hidden states have 32"):
        score_passes._direction(Narrow())  # type: ignore[arg-type]
