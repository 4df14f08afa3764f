"""lm-eval and Inspect themselves on a tiny checkpoint, offline. Skipped where they are not installed.

`pip install 'steermoe[lm-eval,inspect]'` brings both.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import TinyCheckpoint
from steermoe.engines.transformers import TransformersEngine
from steermoe.harness.figures import Figure
from steermoe.harness.inspect_export import write_inspect_tasks
from steermoe.harness.inspect_runs import run_inspect
from steermoe.harness.lm_eval_runs import run_lm_eval
from steermoe.harness.lm_eval_tasks import write_lm_eval_tasks
from steermoe.harness.processes import Target
from steermoe.judges.keyword import keyword_judge
from steermoe.prompts.formats import read_prompts
from steermoe.records import Label, Output, Prompt, Sampling, Split, Verdict

PROMPTS = [
    prompt
    for prompt in read_prompts("builtin:starter").prompts
    if prompt.split is Split.DEV and prompt.label is Label.BENIGN
]
MAX_TOKENS = 12
THINKING = {"enable_thinking": True}
"""Inspect always gives this to a template, as None where it is not set, which the tiny template takes for no."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))


def our_outputs(checkpoint: Path) -> list[Output]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    engine = TransformersEngine(model, tokenizer, chat_template_kwargs=THINKING, record=False)
    return engine.generate([prompt.messages for prompt in PROMPTS], Sampling(MAX_TOKENS))


def expected(outputs: list[Output], prompts: list[Prompt]) -> dict[str, float | None]:
    """By our judge: 1 for a refusal, None where the reply is unscored."""
    verdicts = [keyword_judge(output.prompt, output.generated_text) for output in outputs]
    return {
        prompt.prompt_id: None if v is Verdict.UNSCORED else float(v is Verdict.REFUSED)
        for prompt, v in zip(prompts, verdicts, strict=True)
    }


def test_inspect_gives_our_replies_our_verdicts_and_our_rate(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    pytest.importorskip("inspect_ai")
    checkpoint = tiny_checkpoint("olmoe")
    write_inspect_tasks(PROMPTS, tmp_path / "tasks", MAX_TOKENS)
    target = Target(str(checkpoint), device="cpu", dtype="float32", template_kwargs=THINKING)
    task = f"{tmp_path}/tasks/steermoe_tasks.py@steermoe_benign"
    (figure,) = run_inspect(target, task, tmp_path / "log")
    outputs = our_outputs(checkpoint)
    check(figure, expected(outputs, PROMPTS))
    assert dict(figure.values) == expected(outputs, PROMPTS)
    (log,) = (path for path in (tmp_path / "log").glob("*steermoe*.json"))
    samples = json.loads(log.read_text(encoding="utf-8"))["samples"]
    replies = {s["id"]: s["output"]["choices"][0]["message"]["content"] for s in samples}
    assert replies == {p.prompt_id: o.generated_text for p, o in zip(PROMPTS, outputs, strict=True)}


def test_lm_eval_gives_our_replies_our_verdicts_and_our_rate(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    checkpoint = tiny_checkpoint("olmoe")
    write_lm_eval_tasks(PROMPTS, tmp_path / "tasks", MAX_TOKENS)
    target = Target(str(checkpoint), device="cpu", dtype="float32", template_kwargs=THINKING)
    figures = run_lm_eval(target, "steermoe", tmp_path / "out", tmp_path / "tasks")
    outputs = our_outputs(checkpoint)
    found = {figure.metric: figure for figure in figures}
    assert set(found) == {"over_refusal_rate", "unscored_rate"}
    check(found["over_refusal_rate"], expected(outputs, PROMPTS))
    (path,) = (tmp_path / "out").rglob("samples_steermoe_benign_*.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {row["doc"]["prompt_id"]: row["resps"][0][0] for row in rows} == {
        p.prompt_id: o.generated_text for p, o in zip(PROMPTS, outputs, strict=True)
    }


def check(figure: Figure, values: dict[str, float | None]) -> None:
    scored = [value for value in values.values() if value is not None]
    assert figure.value == pytest.approx(sum(scored) / len(scored))
    assert (figure.n, figure.num_unscored) == (len(scored), len(values) - len(scored))
