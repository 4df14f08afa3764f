"""Ablate on tiny models: who gets no tokens, scores against plain loops, odd cases, and going on after a stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import TinyCheckpoint
from steermoe.analysis.risk import expert_label
from steermoe.config import Config
from steermoe.loading import LoadedModel, load_model
from steermoe.pipeline import run_pipeline
from steermoe.stages import ablate as stage
from steermoe.stages.ablation_plan import choose_subjects
from steermoe.store.directory import RunDirectory
from steermoe.store.names import ABLATION, ABLATION_FIGURES, MODEL
from steermoe.store.run import load_run
from steermoe.variants import Variant
from tiny import (
    Listener,
    copy_of,
    files_of,
    finished_run,
    tiny_config,
    write_prompts,
)

FEW = {"num_draws": 3, "num_generated_draws": 1}
REFUSAL_TEXT = "No."


@pytest.fixture(scope="module")
def ablated(
    checkpoint: Path, small_prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run with its ablation. Copy it before writing to it."""
    run = copy_of(finished_run(checkpoint, small_prompts), tmp_path_factory.mktemp("a") / "run")
    run_pipeline(tiny_config(checkpoint, run, small_prompts, ablate=FEW), only="ablate")
    return run


@pytest.fixture
def run(checkpoint: Path, small_prompts: Path, tmp_path: Path) -> Path:
    """A finished run, not ablated."""
    return copy_of(finished_run(checkpoint, small_prompts), tmp_path / "run")


def figures_of(run: Path) -> dict[str, Any]:
    return RunDirectory(run).read_ablation()


def table_of(run: Path) -> pd.DataFrame:
    return RunDirectory(run).read_table(ABLATION_FIGURES)


# ---- deactivated experts get no tokens ----------------------------------------------------------------


@contextmanager
def routed(loaded: LoadedModel) -> Iterator[set[tuple[int, int]]]:
    """The experts that any token is sent to with a weight above 0, seen where the experts are called."""
    seen: set[tuple[int, int]] = set()

    def watch(layer: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            _, index, weight = args[:3]
            seen.update((layer, int(expert)) for expert in index[weight > 0].unique())

        return hook

    handles = [
        loaded.model.get_submodule(layer.experts_name).register_forward_pre_hook(watch(layer.index))
        for layer in loaded.description.layers
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("architecture", ["mixtral", "olmoe", "qwen3_moe"])
def test_deactivated_experts_get_no_tokens_and_the_others_do(
    tiny_checkpoint: TinyCheckpoint,
    small_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
) -> None:
    checkpoint = tiny_checkpoint(architecture)
    run = copy_of(finished_run(checkpoint, small_prompts), tmp_path / "run")
    seen: list[tuple[Variant, bool, set[tuple[int, int]]]] = []
    do_variant = stage._do_variant

    def watched(run: Any, config: Any, loaded: LoadedModel, variant: Any, *others: Any) -> None:
        with routed(loaded) as experts:
            do_variant(run, config, loaded, variant, *others)
        for layer in loaded.description.layers:  # the model is left as it was
            assert "forward" not in vars(loaded.model.get_submodule(layer.router_name))
            assert not loaded.model.get_submodule(layer.experts_name)._forward_pre_hooks
        seen.append((variant, others[0], experts))

    monkeypatch.setattr(stage, "_do_variant", watched)
    config = tiny_config(checkpoint, run, small_prompts, ablate=FEW)
    stage.ablate(RunDirectory(run), config, Listener())
    sets = ["none", "selected", "lowest", "random-00", "random-01", "random-02"]
    names = [f"{model}-without-{name}" for model in ("base", "hardened") for name in sets]
    assert [variant.name for variant, _, _ in seen] == names
    generated = [False, True, True, True, False, False]
    assert [is_generated for _, is_generated, _ in seen] == [*generated, True, *generated[1:]]
    of_intact = seen[0][2]
    for variant, _, experts in seen:
        assert variant.deactivated is not None and not experts & set(variant.deactivated)
        assert len(variant.deactivated) == (0 if variant.name.endswith("none") else 4)
        assert experts
    # Without this the test would pass on experts that nobody asked for.
    assert of_intact >= set(load_run(run).unsafe_experts)


def test_a_layer_that_is_selected_whole_keeps_top_k_and_says_which(
    run: Path, checkpoint: Path, small_prompts: Path
) -> None:
    config = tiny_config(
        checkpoint,
        run,
        small_prompts,
        identify={"threshold": -1.0, "top_k": 16},
        ablate={**FEW, "num_draws": 1},
    )
    run_pipeline(config, only="identify")
    listener = Listener()
    run_pipeline(config, only="ablate", reporter=listener)
    table = load_run(run).risk_diff.sort_values(["risk_diff", "layer", "expert"])
    smallest = [
        expert_label(layer, expert)
        for chosen in (0, 1)
        for layer, expert in table[table["layer"] == chosen][["layer", "expert"]].to_numpy()[:2]
    ]
    figures = figures_of(run)
    # There is one set of all experts, so nothing to draw from.
    assert [entry["set"] for entry in figures["sets"]] == ["selected", "lowest"]
    assert (figures["random"]["num_possible_sets"], figures["random"]["num_draws"]) == (1, 0)
    assert figures["models"]["base"]["kl_per_token"]["selected"]["among_random"] is None
    for entry in figures["sets"]:
        assert (entry["num_experts"], entry["num_deactivated"]) == (16, 12)
        assert entry["overlap_with_selected"] == 16
        assert sorted(entry["kept_active"]) == sorted(smallest)
    for name in ("selected", "lowest"):
        assert f"note: {', '.join(smallest)} of the {name} set stay active" in listener.text
    assert "ranked among" in listener.text
    values = table_of(run)
    of_sets = values[(values["set"] != "intact") & (values["model"] == "base")]
    # The same set under two names: the same figures.
    assert (of_sets.groupby("metric")["value"].nunique() == 1).all()
    assert "another selection" in listener.text, "the hardened model is of other experts"


# ---- scores against plain loops -----------------------------------------------------------------------


@torch.no_grad()
def log_prob_by_hand(model: Any, prompt: Sequence[int], reply: Sequence[int]) -> float:
    """Sum of log-probabilities of a reply, one token after the other in fp64."""
    logits = model(torch.tensor([[*prompt, *reply]])).logits[0].double()
    total = 0.0
    for place, token in enumerate(reply, start=len(prompt) - 1):
        total += float(logits[place, token] - torch.logsumexp(logits[place], 0))
    return total


def held_out(run: Path, label: str) -> list[Any]:
    return [p for p in load_run(run).prompts if p.label == label and p.split == "test"]


def replies_of(run: Path, label: str) -> list[tuple[list[int], list[int]]]:
    tokens = pd.read_parquet(run / "tokens.parquet").set_index("prompt_id")
    ids = [p.prompt_id for p in held_out(run, label)]
    return [
        (
            tokens.loc[i, "prompt_token_ids"].tolist(),
            tokens.loc[i, "generated_token_ids"].tolist()[:16],
        )
        for i in ids
    ]


def without_experts(model: Any, off: Sequence[tuple[int, int]]) -> Any:
    """A Mixtral whose routers are written again, to choose among the others."""
    for index, layer in enumerate(model.model.layers):
        gate = layer.mlp.gate
        forbidden = [expert for of_layer, expert in off if of_layer == index]

        def forward(hidden: Any, gate: Any = gate, forbidden: list[int] = forbidden) -> Any:
            logits = functional.linear(hidden.reshape(-1, hidden.shape[-1]), gate.weight)
            logits[:, forbidden] = -torch.inf
            weight, chosen = torch.softmax(logits.float(), -1).topk(2, dim=-1)
            return logits, weight / weight.sum(-1, keepdim=True), chosen

        gate.forward = forward
    return model


@pytest.mark.parametrize("model", ["base", "hardened"])
@pytest.mark.parametrize("which", ["intact", "selected", "lowest"])
def test_scores_equal_plain_loops(ablated: Path, checkpoint: Path, model: str, which: str) -> None:
    source = checkpoint if model == "base" else ablated / MODEL
    plain = AutoModelForCausalLM.from_pretrained(source)
    sets = {entry["set"]: entry for entry in figures_of(ablated)["sets"]}
    if which != "intact":
        labels = sets[which]["experts"]
        off = [(int(label[1:3]), int(label[5:])) for label in labels]
        assert len(off) == 4 and sets[which]["kept_active"] == []
        plain = without_experts(plain, off)
    found = {name: entry[which] for name, entry in figures_of(ablated)["models"][model].items()}
    for name, label in (("unsafe", "unsafe"), ("look_alike", "safe"), ("benign", "benign")):
        replies = replies_of(ablated, label)
        num_tokens = sum(len(reply) for _, reply in replies)
        expected = sum(log_prob_by_hand(plain, *pair) for pair in replies) / num_tokens
        metric = found[f"reply_log_prob_{name}"]
        assert metric["n"] == num_tokens > 0
        assert metric["value"] == pytest.approx(expected, abs=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    target = [*tokenizer(REFUSAL_TEXT)["input_ids"], tokenizer.eos_token_id]
    prompts = [prompt for prompt, _ in replies_of(ablated, "unsafe")]
    total = sum(log_prob_by_hand(plain, prompt, target) for prompt in prompts)
    metric = found["refusal_log_prob"]
    assert metric["n"] == len(target) * len(prompts)
    assert metric["value"] == pytest.approx(total / metric["n"], abs=1e-4)
    assert found["kl_per_token"]["value"] == pytest.approx(
        kl_by_hand(AutoModelForCausalLM.from_pretrained(checkpoint), plain, ablated), abs=1e-4
    )
    if which != "intact":
        # Something was there to be measured.
        assert found["kl_per_token"]["value"] > 0.01


@torch.no_grad()
def kl_by_hand(base: Any, other: Any, run: Path) -> float:
    total, num_tokens = 0.0, 0
    for prompt, reply in replies_of(run, "benign"):
        ids = torch.tensor([[*prompt, *reply]])
        p, q = (torch.log_softmax(m(ids).logits[0].double(), -1) for m in (base, other))
        here = slice(len(prompt) - 1, len(prompt) + len(reply) - 1)
        total += float((p[here].exp() * (p[here] - q[here])).sum())
        num_tokens += len(reply)
    return total / num_tokens


def test_the_intact_models_have_the_figures_of_the_evaluation(ablated: Path) -> None:
    evaluation = load_run(ablated).evaluation
    found = figures_of(ablated)["models"]
    for name in ("refusal_rate", "over_refusal_rate", "over_refusal_rate_look_alike"):
        for model in ("base", "hardened"):
            intact = found[model][name]["intact"]
            assert intact == evaluation[model][name]
    assert found["base"]["kl_per_token"]["intact"]["value"] == 0.0
    # Replies have 6 tokens here, so the leading 16 are all of them.
    divergence = found["hardened"]["kl_per_token"]["intact"]
    assert divergence["n"] == evaluation["paired"]["kl_per_token"]["n"]
    assert divergence["value"] == pytest.approx(
        evaluation["paired"]["kl_per_token"]["value"], rel=1e-3
    )


def test_an_empty_set_changes_nothing_at_all(
    run: Path, checkpoint: Path, small_prompts: Path
) -> None:
    config = tiny_config(checkpoint, run, small_prompts)
    directory = RunDirectory(run)
    loaded = load_model(config.model)
    subjects = choose_subjects(directory, config)
    texts = stage._texts(directory, config, loaded, subjects)
    with Listener().bar(1, "") as bar:
        for variant in (Variant("plain"), Variant("empty", ())):
            stage._do_variant(directory, config, loaded, variant, True, texts, subjects, bar)
    assert directory.read_replies("plain").equals(directory.read_replies("empty"))
    plain, empty = directory.read_scored("plain"), directory.read_scored("empty")
    assert plain.astype(str).equals(empty.astype(str))
    divergences = plain[plain["quantity"] == "kl"]["values"]
    assert len(divergences) == 4 and all((values == 0).all() for values in divergences)


def test_measures_hold_the_figures_of_the_ablation_too(ablated: Path) -> None:
    rows = {
        (row.variant, row.measure, row.compared_with): row.metric
        for row in load_run(ablated).measures
        if row.set == "ablation"
    }
    for model, metrics in figures_of(ablated)["models"].items():
        for metric, found in metrics.items():
            own = rows[f"{model}-without-selected", metric, "base" if "kl" in metric else ""]
            assert (own.value, own.n) == (found["selected"]["value"], found["selected"]["n"])
            if "kl" not in metric:
                change = rows[f"{model}-without-selected", metric, f"{model}-without-none"]
                assert change.value == pytest.approx(found["selected"]["effect"]["value"])


# ---- what is written ----------------------------------------------------------------------------------


def test_the_files_agree_with_each_other(
    ablated: Path, checkpoint: Path, small_prompts: Path
) -> None:
    before = files_of(finished_run(checkpoint, small_prompts))
    new = files_of(ablated) - before
    assert {name for name in new if "/" not in name} == {ABLATION, ABLATION_FIGURES}
    assert sum(name.startswith("scored/") for name in new) == 12
    assert sum(name.startswith("replies/") for name in new) == 7
    found, table = figures_of(ablated), table_of(ablated)
    assert found["num_prompts"] == {"unsafe": 4, "look_alike": 4, "benign": 4}
    assert (found["split"], found["max_tokens"]) == ("test", 16)
    assert "fragility" in found["measures"] and "owner" in found["measures"]
    assert not table.duplicated(["model", "set", "draw", "metric"]).any()
    assert not table.isna().any().any()
    # 5 teacher-forced figures of 6 sets, 3 rates of the 4 sets that have replies.
    assert len(table) == 2 * (5 * 6 + 3 * 4)
    chosen = {expert_label(*expert) for expert in load_run(ablated).unsafe_experts}
    for entry in found["sets"]:
        overlap = len(chosen & set(entry["experts"]))
        assert entry["overlap_with_selected"] == overlap
        risk = load_run(ablated).risk_diff.set_index("Layer_Expert").loc[entry["experts"]]
        frequency = (risk["a_safe_n"].mean() + risk["a_unsafe_n"].mean()) / 2
        assert entry["mean_frequency"] == pytest.approx(frequency)
        rows = table[(table["set"] == entry["set"]) & (table["draw"] == entry["draw"])]
        assert set(rows["overlap"]) == {overlap}
        assert set(rows["num_deactivated"]) == {entry["num_deactivated"]}
    for model, metrics in found["models"].items():
        for metric, figures in metrics.items():
            rows = table[(table["model"] == model) & (table["metric"] == metric)]
            of_set = rows[rows["draw"] == 0].set_index("set")
            assert of_set.loc["selected", "value"] == figures["selected"]["value"]
            assert of_set.loc["selected", "effect"] == figures["selected"]["effect"]["value"]
            assert of_set.loc["intact", "effect"] == 0
            drawn = rows[rows["set"] == "random"]["effect"]
            assert figures["random"]["mean_effect"] == pytest.approx(drawn.mean())
            assert figures["random"]["num_draws"] == len(drawn) == (1 if "rate" in metric else 3)
    stored = load_run(ablated).state.stages["ablate"]
    assert stored.status == "done"
    assert stored.figures["num_ablated_experts"] == 4


def test_the_effect_is_the_difference_of_the_values(ablated: Path) -> None:
    table = table_of(ablated)
    intact = table[table["set"] == "intact"].set_index(["model", "metric"])["value"]
    rest = table[(table["set"] != "intact") & ~table["metric"].str.contains("rate")]
    expected = rest["value"] - [
        intact[key] for key in zip(rest["model"], rest["metric"], strict=True)
    ]
    assert rest["effect"].tolist() == pytest.approx(expected.tolist(), abs=1e-9)
    assert (rest["effect_ci_low"] <= rest["effect"]).all()
    assert (rest["effect"] <= rest["effect_ci_high"]).all()


# ---- odd cases ----------------------------------------------------------------------------------------


def test_nothing_selected_is_nothing_to_ablate(
    ablated: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run = copy_of(ablated, tmp_path / "run")
    config = tiny_config(checkpoint, run, small_prompts, identify={"threshold": 1.0}, ablate=FEW)
    run_pipeline(config, only="identify")
    listener = Listener()
    run_pipeline(config, only="ablate", reporter=listener)
    assert "note: no expert is selected, so there is nothing to ablate" in listener.said
    assert not (run / ABLATION).exists() and not (run / ABLATION_FIGURES).exists()
    assert load_run(run).state.figures_of("ablate")["num_ablated_experts"] == 0
    run_pipeline(config, only="ablate", reporter=listener)
    assert "ablate: done already" in listener.text


def test_experts_that_their_layers_need_are_nothing_to_ablate(
    run: Path, checkpoint: Path, small_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(checkpoint, run, small_prompts, ablate=FEW)
    whole = RunDirectory.routing_metadata
    monkeypatch.setattr(RunDirectory, "routing_metadata", lambda self: whole(self) | {"top_k": "8"})
    listener = Listener()
    stage.ablate(RunDirectory(run), config, listener)
    assert "every selected expert is needed" in listener.text
    assert not (run / "scored").exists() or not list((run / "scored").glob("*-without-*"))


def test_without_a_hardened_model_the_base_is_measured_alone_and_later_both(
    checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_config(checkpoint, tmp_path / "own", small_prompts, ablate=FEW)
    for name in ("collect", "identify"):
        run_pipeline(config, only=name)
    listener = Listener()
    run_pipeline(config, only="ablate", reporter=listener)
    assert "there is no hardened model" in listener.text
    assert list(figures_of(config.run_dir)["models"]) == ["base"]
    alone = figures_of(config.run_dir)["models"]["base"]
    run_pipeline(config, only="train")
    listener = Listener()
    run_pipeline(config, only="ablate", reporter=listener)
    assert "ablate: model changed" in listener.text
    assert list(figures_of(config.run_dir)["models"]) == ["base", "hardened"]
    assert figures_of(config.run_dir)["models"]["base"] == alone


def test_one_prompt_of_each_kind_has_figures_without_false_certainty(
    run: Path, checkpoint: Path, small_prompts: Path
) -> None:
    config = tiny_config(checkpoint, run, small_prompts, ablate={**FEW, "num_prompts": 1})
    run_pipeline(config, only="ablate")
    found = figures_of(run)
    assert found["num_prompts"] == {"unsafe": 1, "look_alike": 1, "benign": 1}
    assert not table_of(run).isna().any().any()
    effect = found["models"]["base"]["kl_per_token"]["selected"]["effect"]
    assert effect["value"] > 0
    assert (effect["ci_low"], effect["ci_high"]) == (None, None)
    refusal = found["models"]["base"]["refusal_rate"]["selected"]
    assert refusal["n"] == 1
    assert refusal["ci_high"] - refusal["ci_low"] > 0.5


def test_twenty_draws_are_enough_to_say_nothing_of_their_number(
    run: Path, checkpoint: Path, small_prompts: Path
) -> None:
    few = {"num_draws": 20, "num_generated_draws": 0, "num_prompts": 1}
    listener = Listener()
    config = tiny_config(checkpoint, run, small_prompts, ablate=few)
    run_pipeline(config, only="ablate", reporter=listener)
    assert "20 random draws, all different" in listener.text and "no rank has" not in listener.text


def test_kinds_that_the_prompts_lack_have_no_figures(checkpoint: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{label} {split} {i}", "label": label, "split": split}
        for label in ("safe", "unsafe", "benign")
        for split, number in (("train", 8), ("test", 2))
        for i in range(number)
        if (label, split) != ("benign", "test")
    ]
    prompts = write_prompts(tmp_path / "prompts.csv", rows)
    config = tiny_config(checkpoint, tmp_path / "own", prompts, ablate=FEW)
    for name in ("collect", "identify", "ablate"):
        run_pipeline(config, only=name)
    found = figures_of(config.run_dir)
    assert found["num_prompts"] == {"unsafe": 2, "look_alike": 0, "benign": 0}
    expected = ["refusal_log_prob", "reply_log_prob_unsafe", "refusal_rate"]
    assert list(found["models"]["base"]) == expected
    dev = tiny_config(checkpoint, tmp_path / "own", prompts, ablate=FEW, evaluate={"split": "dev"})
    listener = Listener()
    run_pipeline(dev, only="ablate", reporter=listener)
    assert "no dev prompts are held out, so there is nothing to ablate" in listener.text
    assert not (config.run_dir / ABLATION).exists()


def test_sampled_runs_are_scored_on_greedy_replies(
    checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        checkpoint,
        tmp_path / "sampled",
        small_prompts,
        collect={"temperature": 1.5},
        ablate={**FEW, "num_draws": 1},
    )
    for name in ("collect", "identify", "ablate"):
        run_pipeline(config, only=name)
    greedy = finished_run(checkpoint, small_prompts)
    plain = AutoModelForCausalLM.from_pretrained(checkpoint)
    replies = replies_of(greedy, "benign")
    num_tokens = sum(len(reply) for _, reply in replies)
    expected = sum(log_prob_by_hand(plain, *pair) for pair in replies) / num_tokens
    metric = figures_of(config.run_dir)["models"]["base"]["reply_log_prob_benign"]["intact"]
    assert metric["n"] == num_tokens
    assert metric["value"] == pytest.approx(expected, abs=1e-4)


def test_prompts_are_chosen_by_the_seed_and_more_of_them_hold_the_fewer(run: Path) -> None:
    directory = RunDirectory(run)

    def chosen(number: int, seed: int) -> set[str]:
        config = Config.model_validate({"seed": seed, "ablate": {"num_prompts": number}})
        return set(choose_subjects(directory, config))

    assert len(chosen(2, 0)) == 6 and len(chosen(99, 0)) == 12
    assert chosen(2, 0) < chosen(3, 0) < chosen(99, 0)
    assert len({frozenset(chosen(1, seed)) for seed in range(9)}) > 1


# ---- going on, and doing it again ---------------------------------------------------------------------


class Stopped(BaseException):
    """Ctrl-C, for a test."""


@pytest.mark.parametrize("after", [1, 5, 6, 9])
def test_interrupted_it_goes_on_and_ends_with_the_same_bytes(
    ablated: Path,
    run: Path,
    checkpoint: Path,
    small_prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    config = tiny_config(checkpoint, run, small_prompts, ablate=FEW)
    do_variant = stage._do_variant
    calls = 0

    def counted(*args: Any) -> Any:
        nonlocal calls
        if calls == after:
            raise Stopped
        calls += 1
        return do_variant(*args)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_do_variant", counted)
        with pytest.raises(Stopped):
            run_pipeline(config, only="ablate")
    assert not (run / ABLATION).exists()
    assert load_run(run).state.stages["ablate"].status == "running"
    done = 0

    def second(*args: Any) -> Any:
        nonlocal done
        done += 1
        return do_variant(*args)

    monkeypatch.setattr(stage, "_do_variant", second)
    listener = Listener()
    run_pipeline(config, only="ablate", reporter=listener)
    assert done == 12 - after
    assert "ablate: going on" in listener.text
    for name in (ABLATION, ABLATION_FIGURES):
        assert (run / name).read_bytes() == (ablated / name).read_bytes()
    assert not (run / "shards").exists()


def test_it_is_done_once_and_again_when_what_it_measures_changes(
    ablated: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run = copy_of(ablated, tmp_path / "run")

    def said(**settings: Any) -> str:
        listener = Listener()
        config = tiny_config(checkpoint, run, small_prompts, **{"ablate": FEW, **settings})
        run_pipeline(config, only="ablate", reporter=listener)
        return listener.text

    assert "ablate: done already; --force does it again" in said()
    assert "ablate: done already" in said(report={"top_experts": 3})
    assert 'ablate: evaluate.split was "test" and is "dev"' in said(evaluate={"split": "dev"})
    assert figures_of(run)["split"] == "dev"
    few = {"num_draws": 1, "num_generated_draws": 0}
    other = said(train={"target_response": "Never."}, ablate=few)
    assert 'train.target_response was "No." and is "Never."' in other
    table = table_of(run)
    assert set(table[table["metric"] == "refusal_rate"]["set"]) == {"intact", "selected", "lowest"}


def test_running_the_pipeline_never_ablates(
    ablated: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run = copy_of(ablated, tmp_path / "run")
    before = (run / ABLATION).read_bytes()
    listener = Listener()
    run_pipeline(tiny_config(checkpoint, run, small_prompts), reporter=listener)
    assert "ablate" not in listener.text
    assert (run / ABLATION).read_bytes() == before
    assert load_run(run).state.stages["ablate"].status == "done"
