"""The whole job on the embedded model, with few prompts."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from steermoe import load_config, run_pipeline
from steermoe.analysis.risk import calculate_risk_diff_per_batch
from steermoe.pipeline.commands import RUN

WANTED = {
    ("unsafe", "train"): 4,
    ("safe", "train"): 4,
    ("benign", "train"): 2,
    ("unsafe", "test"): 2,
    ("safe", "test"): 2,
    ("benign", "test"): 2,
}


def few_prompts(path: Path) -> Path:
    data = resources.files("steermoe.prompts") / "data" / "starter.jsonl"
    left = dict(WANTED)
    lines = []
    for line in data.read_text("utf-8").splitlines():
        row = json.loads(line)
        kind = (row["label"], row["split"])
        if left.get(kind, 0):
            left[kind] -= 1
            lines.append(line)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.mark.embedded
def test_the_embedded_model_goes_through_every_stage(tmp_path: Path) -> None:
    prompts = few_prompts(tmp_path / "few prompts.jsonl")
    config = load_config(
        settings=[
            "collect.batch_size=8",
            "collect.max_new_tokens=8",
            "train.epochs=2",
            "train.learning_rate=1e-3",
            "identify.score_prompts=2",
            "evaluate.benchmark_limit=1",
        ],
        overrides={"run": str(tmp_path / "run"), "prompts": {"sources": [str(prompts)]}},
    )
    run = run_pipeline(config)

    asked_for = [step.name for step in RUN if step.is_asked_for(config)]
    assert {name: stage.status for name, stage in run.state.stages.items()} == dict.fromkeys(
        asked_for, "done"
    )
    table = run.risk_diff
    assert len(table) == 30 * 8
    selected = table[table["risk_diff"] >= 0.05].head(50)
    assert run.unsafe_experts == list(zip(selected["layer"], selected["expert"], strict=True))
    # The tables are those of the Python interface, from the routes that were kept token by token.
    (batch,) = run.batches
    by_hand = calculate_risk_diff_per_batch(batch, num_experts=8)
    assert np.array_equal(by_hand["a_unsafe"], run.risk_diff_per_batch["a_unsafe"])
    assert sum(map(len, batch.unsafe_routings)) == by_hand["n_unsafe"].iloc[0]
    history = [h for h in run.state.figures_of("train")["history"] if "refusal_loss" in h]
    assert float(history[-1]["refusal_loss"]) < float(history[0]["refusal_loss"])
    assert 0 < run.evaluation["paired"]["kl_per_token"]["value"] < 1
    assert (
        run.evaluation["base"]["refusal_rate"]["n"]
        + run.evaluation["base"]["refusal_rate"]["num_unscored"]
        == 2
    )
    hardened = AutoModelForCausalLM.from_pretrained(run.path / "model")
    assert hardened.config.num_local_experts == 8
    assert (run.path / "report.html").stat().st_size > 100_000
