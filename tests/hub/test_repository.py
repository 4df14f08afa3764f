"""What a prepared repository holds, and what it never holds: a place on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steermoe.hashes import sha256_of
from steermoe.store.directory import RunDirectory
from steermoe.store.names import EVALUATION, MODEL_CARD, RUN_JSON
from steermoe.store.published import paths_in, without_place, without_places
from tiny import CommandLine, copy_of, tiny_config


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return copy_of(finished, tmp_path / "run")


def exported(steermoe: CommandLine, run: Path, *arguments: str) -> Path:
    assert steermoe("export", "--run", run, "--format", "hub", *arguments) == 0, steermoe.err
    return run / "export" / "hub"


def test_weights_card_with_the_measures_and_provenance(
    steermoe: CommandLine, run: Path, checkpoint: Path
) -> None:
    folder = exported(steermoe, run)
    assert {str(path) for path in folder.iterdir()} == {*steermoe.out.split()}
    assert (folder / "model.safetensors").read_bytes() == (
        run / "model" / "model.safetensors"
    ).read_bytes()
    card = (folder / "README.md").read_text("utf-8")
    assert card.startswith('---\nlibrary_name: "transformers"\npipeline_tag: "text-generation"\n')
    assert "base_model" not in card.split("---")[1], "a directory is no model of the hub"
    own = (run / MODEL_CARD).read_text("utf-8").split("---\n", 2)[2].strip()
    assert own in card and "Harmful requests refused" in own
    assert (folder / EVALUATION).read_bytes() == (run / EVALUATION).read_bytes()
    known = json.loads((folder / "provenance.json").read_text("utf-8"))
    state = json.loads((run / RUN_JSON).read_text("utf-8"))
    assert known["base_model"]["name"] == checkpoint.name
    assert known["base_model"]["sha256"] == state["model"]["hash"]
    assert known["prompts"]["sources"] == ["small.csv"]
    assert known["prompts"]["counts"]["unsafe/train"] == 12
    assert known["trained_experts"] == state["stages"]["train"]["figures"]["trained_experts"]
    assert known["settings"]["train"]["learning_rate"] == 5e-3
    assert set(known["files"]) == {p.name for p in folder.iterdir()} - {"provenance.json"}
    assert known["files"]["README.md"] == sha256_of(folder / "README.md")


def test_nothing_of_this_machine_is_in_it(
    steermoe: CommandLine, run: Path, checkpoint: Path, small_prompts: Path
) -> None:
    for arguments in ((), ("--as-delta",)):
        folder = exported(steermoe, run, *arguments)
        for path in folder.iterdir():
            content = path.read_bytes()
            for place in (run.parent, checkpoint.parent, small_prompts.parent, Path.home()):
                assert str(place).encode() not in content, path.name


def test_a_delta_makes_the_hardened_model_again(
    steermoe: CommandLine, run: Path, checkpoint: Path, tmp_path: Path
) -> None:
    folder = exported(steermoe, run, "--as-delta")
    assert not (folder / "model.safetensors").exists()
    assert "steermoe apply delta.safetensors" in (folder / "README.md").read_text("utf-8")
    made = tmp_path / "made"
    arguments = [folder / "delta.safetensors", "--model", checkpoint, "-o", made]
    assert steermoe("apply", *arguments) == 0, steermoe.err
    weights = (path / "model.safetensors" for path in (made, run / "model"))
    first, second = (path.read_bytes()[-1000:] for path in weights)
    assert first == second


def test_the_base_models_licence_goes_with_it(
    steermoe: CommandLine, run: Path, checkpoint: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(checkpoint, tmp_path / "base"))
    (base / "LICENSE").write_text("Of the base model.")
    (base / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Base\n")
    change_json(run / RUN_JSON, lambda state: state["config"]["model"].update(id=str(base)))
    folder = exported(steermoe, run)
    assert (folder / "LICENSE").read_text() == "Of the base model."
    assert 'license: "apache-2.0"' in (folder / "README.md").read_text("utf-8").split("---")[1]


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), "utf-8")


def test_a_run_of_a_hub_model_names_it_and_its_commit(steermoe: CommandLine, run: Path) -> None:
    def of_the_hub(state: dict[str, Any]) -> None:
        state["config"]["model"]["id"] = "somebody/tiny"
        state["model"] |= {"id": "somebody/tiny", "commit": "c" * 40, "hash": ""}

    change_json(run / RUN_JSON, of_the_hub)
    card = (exported(steermoe, run) / "README.md").read_text("utf-8")
    assert 'base_model: "somebody/tiny"\nbase_model_relation: "finetune"' in card


# ---- refused in one line, before anything is written -----------------------------------------------------


def test_a_run_that_is_not_finished(steermoe: CommandLine, run: Path) -> None:
    arguments = ("export", "--run", run, "--format", "hub")
    (run / EVALUATION).rename(run / "kept")
    assert "steermoe evaluate" in steermoe.refusal(*arguments)
    (run / "kept").rename(run / EVALUATION)
    change_json(run / RUN_JSON, lambda state: state["stages"]["reply"].update(status="running"))
    assert "'reply'" in steermoe.refusal(*arguments)
    assert not (run / "export").exists()


def test_weights_that_were_edited_since(steermoe: CommandLine, run: Path) -> None:
    config = run / "model" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert "changed or damaged" in steermoe.refusal("export", "--run", run, "--format", "hub")
    assert not (run / "export").exists()


def test_a_delta_of_more_than_experts(steermoe: CommandLine, run: Path) -> None:
    change_json(
        run / RUN_JSON, lambda state: state["config"]["train"].update(parameters="experts+routers")
    )
    for arguments in (("hub", "--as-delta"), ("delta",)):
        refusal = steermoe.refusal("export", "--run", run, "--format", *arguments)
        assert "experts and routers" in refusal and "do not use" not in refusal


def test_a_delta_whose_base_was_changed_since(
    steermoe: CommandLine, run: Path, checkpoint: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(checkpoint, tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"][0] += 1
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    change_json(run / RUN_JSON, lambda state: state["config"]["model"].update(id=str(base)))
    refusal = steermoe.refusal("export", "--run", run, "--format", "delta")
    assert "base model" in refusal and "changed since" in refusal


def test_what_was_edited_or_is_something_else_is_not_overwritten(
    steermoe: CommandLine, run: Path
) -> None:
    folder = exported(steermoe, run)
    exported(steermoe, run)
    (folder / "README.md").write_text("Mine.")
    assert "README.md was edited" in steermoe.refusal("export", "--run", run, "--format", "hub")
    assert (folder / "README.md").read_text() == "Mine."
    (folder / "provenance.json").unlink()
    assert "no prepared repository" in steermoe.refusal("export", "--run", run, "--format", "hub")


def test_a_path_that_a_user_wrote_into_the_card_is_named(steermoe: CommandLine, run: Path) -> None:
    card = run / MODEL_CARD
    card.write_text(card.read_text("utf-8") + f"\nTrained from {run.parent}/base.\n", "utf-8")
    refusal = steermoe.refusal("export", "--run", run, "--format", "hub")
    assert "README.md" in refusal and str(run.parent) in refusal
    assert not (run / "export" / "hub").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--push", "a/b"], ["--as-delta"], ["--public"], ["--format", "hub", "--public"]],
)
def test_options_without_effect(steermoe: CommandLine, run: Path, arguments: list[str]) -> None:
    assert "goes with" in steermoe.refusal("export", "--run", run, *arguments)


# ---- settings ---------------------------------------------------------------------------------------------


def test_settings_keep_what_made_the_model_and_lose_where_it_was_made(tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    config = tiny_config(
        tmp_path / "models" / "mine",
        tmp_path / "run",
        tmp_path / "secret" / "p.csv",
        prompts={"system_prompt": "Answer with /think and/or/not."},
        judge={"main": f"classifier:{tmp_path / 'judge'}", "base_url": "http://10.0.0.5:8000/v1"},
        collect={"engine": "openai:http://10.0.0.5:8000/v1"},
        evaluate={"text_file": str(tmp_path / "secret" / "book.txt")},
        train={"arguments": {"logging_dir": "/mnt/team/logs", "optim": "adamw_torch"}},
    )
    found = without_places(config)
    assert "run" not in found and "base_url" not in found["judge"]
    assert found["model"]["id"] == "mine"
    assert found["prompts"] | {"sources": ["p.csv"]} == found["prompts"]
    assert found["prompts"]["system_prompt"] == "Answer with /think and/or/not."
    assert found["judge"]["main"] == "classifier:judge"
    assert found["collect"]["engine"] == "openai:ADDRESS"
    assert found["evaluate"]["text_file"] == "book.txt"
    assert found["train"]["arguments"]["logging_dir"] == "logs"
    assert found["train"]["arguments"]["optim"] == "adamw_torch"
    assert str(tmp_path) not in json.dumps(found) and "10.0.0.5" not in json.dumps(found)


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/data/Jane Doe/secret/guard.txt", "guard.txt"),
        ("/data/Doe, Jane/it's/guard.txt", "guard.txt"),
        (r"C:\Users\Jane Doe\guard.txt", "guard.txt"),
        ("\\\\host\\Jane Doe\\guard", "guard"),
        ("~jane/my guard/", "my guard"),
        ("../my files/guard", "guard"),
        ("secret/clients/acme/guard", "guard"),
        ("acme/zero3.json", "zero3.json"),
        ("guard:/srv/Acme Corp/guards/v2", "guard:v2"),
        ("guard:secret/clients/v2", "guard:v2"),
        ("lm_eval:/home/jane doe/task", "lm_eval:task"),
        ("lm_eval:mine,arc_easy@/srv/Acme, Corp/tasks", "lm_eval:mine,arc_easy@tasks"),
        ("lm_eval:a/b/c.yaml@x/y/z", "lm_eval:c.yaml@z"),
        ("inspect:/home/jane@acme/my tasks/quiz.py@quiz", "inspect:quiz.py@quiz"),
        ("inspect:tasks/quiz.py@quiz", "inspect:quiz.py@quiz"),
        ("--config /data/Jane Doe/x.json", "--config x.json"),
        ("file:///data/Jane Doe/x.json", "x.json"),
        ("openai:http://me@10.0.0.5/Jane Doe/v1", "openai:ADDRESS"),
        # What is no path stays.
        ("guard:meta-llama/Llama-Guard-3-8B", "guard:meta-llama/Llama-Guard-3-8B"),
        ("openai:accounts/acme/models/large", "openai:accounts/acme/models/large"),
        ("inspect:inspect_evals/gsm8k", "inspect:inspect_evals/gsm8k"),
        ("inspect:hf/owner/data/task", "inspect:hf/owner/data/task"),
        ("lm_eval:arc_easy,hellaswag", "lm_eval:arc_easy,hellaswag"),
        ("my.package:judge", "my.package:judge"),
        ("owner/model-1.5", "owner/model-1.5"),
    ],
)
def test_a_path_goes_as_a_whole_whatever_its_names_hold(text: str, published: str) -> None:
    assert without_place(text) == published


def test_no_setting_keeps_a_part_of_a_path(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path / "models" / "mine",
        tmp_path / "run",
        tmp_path / "secret" / "p.csv",
        judge={"main": "guard:/srv/secret Corp/v2", "guard_template": "secret/guard"},
        collect={"engine_args": {"download_dir": "/data/secret Doe/x", "/secret a/b": "balanced"}},
        evaluate={
            "benchmarks": ["lm_eval:mine@/home/secret doe/tasks"],
            "text_file": "secret/book",
        },
        train={"arguments": {"deepspeed": "my secret/acme/zero3.json"}},
    )
    found = without_places(config)
    assert "secret" not in json.dumps(found)
    assert found["judge"]["main"] == "guard:v2" and found["judge"]["guard_template"] == "guard"
    assert found["collect"]["engine_args"] == {"download_dir": "x", "b": "balanced"}
    assert found["evaluate"]["benchmarks"] == ["lm_eval:mine@tasks"]
    assert found["train"]["arguments"]["deepspeed"] == "zero3.json"
    assert set(paths_in(config)) == {
        "/srv/secret Corp/v2",
        "secret/guard",
        "/data/secret Doe/x",
        "/secret a/b",
        "/home/secret doe/tasks",
        "secret/book",
        "my secret/acme/zero3.json",
    }


@pytest.mark.parametrize("form", ["{}", '{{"where": "{}"}}'])
def test_a_path_of_any_setting_is_looked_for_in_what_is_published(
    steermoe: CommandLine, run: Path, form: str
) -> None:
    template = "/srv/Zoë Doe/guards/mine.txt"
    change_json(
        run / RUN_JSON, lambda state: state["config"]["judge"].update(guard_template=template)
    )
    escaped = json.dumps(template)[1:-1] if "where" in form else template
    card = run / MODEL_CARD
    card.write_text(card.read_text("utf-8") + f"\n{form.format(escaped)}\n", "utf-8")
    refusal = steermoe.refusal("export", "--run", run, "--format", "hub")
    assert "README.md would publish /srv/Zoë Doe/guards" in refusal


def test_the_runs_own_card_and_page_hold_no_path_either(
    finished: Path, checkpoint: Path, small_prompts: Path
) -> None:
    run = RunDirectory(finished)
    for name in (MODEL_CARD, "report.html"):
        text = run.file(name).read_text("utf-8")
        assert str(checkpoint.parent) not in text and str(small_prompts.parent) not in text, name
        assert checkpoint.name in text and small_prompts.name in text
