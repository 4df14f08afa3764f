"""Old names of settings: taken from wherever settings come, said to be old, and never in the way of the new ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steermoe.config import Config, fields_of, load_config, validate
from steermoe.config.old_names import GONE, RENAMED, renamed_settings
from steermoe.errors import ConfigError


def test_an_old_name_becomes_the_new_one_with_a_note_and_what_is_given_stays_as_it_is() -> None:
    given = {"seed": 3, "train": {"save_steps": 5, "epochs": 2, "arguments": {"optim": "sgd"}}}
    kept = json.dumps(given)
    found, notes = renamed_settings(given)
    assert found == {
        "seed": 3,
        "train": {"epochs": 2, "arguments": {"optim": "sgd", "save_steps": 5}},
    }
    assert notes == ["train.save_steps is now train.arguments.save_steps"]
    assert json.dumps(given) == kept


def test_settings_without_old_names_are_left_alone() -> None:
    given: dict[str, Any] = {"train": {"arguments": {"save_steps": 5}}, "identify": 3}
    assert renamed_settings(given) == (given, [])


def test_an_empty_value_of_an_old_name_is_no_value() -> None:
    # Stored runs hold every default, and that of train.warmup_steps was empty.
    assert renamed_settings({"train": {"warmup_steps": None}}) == ({"train": {}}, [])


def test_what_is_no_setting_any_more_is_left_out_aloud() -> None:
    given = {"train": {"retention_first_tokens_weight": 4, "epochs": 2}}
    found, (note,) = renamed_settings(given)
    assert found == {"train": {"epochs": 2}}
    assert note.startswith("train.retention_first_tokens_weight is no setting any more")
    assert renamed_settings({"train": {"retention_first_tokens_weight": None}})[1] == []
    assert not {key for key, *_ in fields_of(Config)} & GONE.keys()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"save_steps": 5, "arguments": {"save_steps": 6}}, "both are given"),
        ({"save_steps": 5, "arguments": 7}, "train.arguments is no table"),
    ],
)
def test_a_setting_that_cannot_be_moved_is_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"train.save_steps is .*{reason}") as caught:
        renamed_settings({"train": given})
    assert "\n" not in str(caught.value)


def test_both_names_with_one_value_are_one_setting() -> None:
    found, _ = renamed_settings({"train": {"save_steps": 5, "arguments": {"save_steps": 5}}})
    assert found == {"train": {"arguments": {"save_steps": 5}}}


@pytest.mark.parametrize(("written", "read"), [("False", False), ("sgd", "sgd"), ("0.5", 0.5)])
def test_an_argument_without_a_type_is_read_as_it_is_meant(written: str, read: Any) -> None:
    config = load_config(settings=[f"train.arguments.something={written}"])
    assert (config.train.arguments.model_extra or {})["something"] == read


def test_an_emptied_argument_is_left_to_transformers() -> None:
    stored = load_config(settings=["train.arguments.optim=sgd"]).model_dump(mode="json")
    arguments = load_config(settings=["train.arguments.optim="], base=stored).train.arguments
    assert "optim" not in (arguments.model_extra or {})


def test_every_new_name_is_a_setting_and_no_old_one_is() -> None:
    known = {key for key, *_ in fields_of(Config)}
    assert not known & RENAMED.keys()
    for new in RENAMED.values():
        assert new in known or new.rpartition(".")[0] in known, new


def test_old_names_are_taken_from_a_file_the_command_line_and_a_stored_run(tmp_path: Path) -> None:
    file = tmp_path / "old.toml"
    file.write_text("[train]\nwarmup_ratio = 0.5\nlr_scheduler = 'cosine'\n", "utf-8")
    notes: list[str] = []
    config = load_config(
        file,
        ["train.adam_epsilon=1e-4", "train.warmup_ratio=0.25"],
        base={"train": {"max_grad_norm": 2.0, "warmup_steps": None, "report_to": []}},
        note=notes.append,
    )
    arguments = config.train.arguments.model_dump(exclude_defaults=True)
    assert arguments == {
        "max_grad_norm": 2.0,
        "warmup_ratio": 0.25,
        "lr_scheduler_type": "cosine",
        "adam_epsilon": 1e-4,
    }
    assert len(notes) == len(set(notes)) == 5
    assert "train.lr_scheduler is now train.arguments.lr_scheduler_type" in notes


def test_the_new_name_in_a_higher_layer_wins_over_the_old_one_in_a_lower(tmp_path: Path) -> None:
    file = tmp_path / "old.toml"
    file.write_text("[train]\nsave_steps = 3\n", "utf-8")
    config = load_config(file, ["train.arguments.save_steps=4"])
    assert config.train.arguments.save_steps == 4
    assert load_config(file, base={"train": {"arguments": {"save_steps": 4}}}) == validate(
        {"train": {"save_steps": 3}}
    )


def test_a_stored_run_of_before_is_read() -> None:
    stored = {"train": {"gradient_accumulation_steps": 2, "weight_decay": 0.1, "warmup_steps": 3}}
    config = validate(stored)
    assert config.train.arguments.gradient_accumulation_steps == 2
    assert validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
