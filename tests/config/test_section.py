"""Settings are what they look like: truth values, numbers, texts, lists of one, nothing, and paths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from refused_settings import refusal, write
from steermoe.config import (
    Config,
    load_config,
)


@pytest.mark.parametrize("word", ["False", "false", "FALSE"])
def test_false_is_false_where_no_type_says_so(word: str) -> None:
    for setting in (
        f"model.chat_template_kwargs.enable_thinking={word}",
        f'model.chat_template_kwargs={{"enable_thinking": {word.lower()}}}',
        f"model.chat_template_kwargs={{enable_thinking = {word.lower()}}}",
    ):
        assert load_config(settings=[setting]).model.chat_template_kwargs == {
            "enable_thinking": False
        }
    nested = load_config(settings=[f"model.chat_template_kwargs.a.b={word}"])
    assert nested.model.chat_template_kwargs == {"a": {"b": False}}


def test_an_entry_of_an_untyped_table_that_is_given_nothing_is_taken_out() -> None:
    base = {"model": {"chat_template_kwargs": {"enable_thinking": False, "mode": ""}}}
    config = load_config(settings=["model.chat_template_kwargs.enable_thinking="], base=base)
    assert config.model.chat_template_kwargs == {"mode": ""}


def test_true_is_true_and_a_text_stays_a_text() -> None:
    config = load_config(
        settings=[
            "model.chat_template_kwargs.thinking=True",
            "model.chat_template_kwargs.effort=low",
            'model.chat_template_kwargs.word="False"',
            "model.chat_template_kwargs.number=3",
        ]
    )
    expected = {"thinking": True, "effort": "low", "word": "False", "number": 3}
    assert config.model.chat_template_kwargs == expected
    assert type(config.model.chat_template_kwargs["effort"]) is str


@pytest.mark.parametrize(
    "word", ["no", "off", "Yes", "None", "null", "f", "N", "y", "T", "disabled", "Enable", "never"]
)
def test_a_word_that_may_be_a_truth_value_is_refused(word: str) -> None:
    message = refusal(f"model.chat_template_kwargs.enable_thinking={word}")
    assert word in message and "true or false" in message
    quoted = load_config(settings=[f'model.chat_template_kwargs.mode="{word}"'])
    assert quoted.model.chat_template_kwargs == {"mode": word}


@pytest.mark.parametrize("value", ["nan", "-inf", "NaN", "Infinity", "[1.0, nan]", "{a = inf}"])
@pytest.mark.parametrize("table", ["model.chat_template_kwargs", "train.arguments"])
def test_a_number_that_is_not_finite_is_refused_where_no_type_does(table: str, value: str) -> None:
    message = refusal(f"{table}.x={value}")
    assert table in message and "not finite" in message
    for number in (math.nan, [math.inf]):
        assert "not finite" in refusal(model={"chat_template_kwargs": {"x": number}})
    quoted = load_config(settings=['model.chat_template_kwargs.x="nan"'])
    assert quoted.model.chat_template_kwargs == {"x": "nan"}


@pytest.mark.parametrize(
    "setting",
    [
        "prompts.limits.dev=true",
        "prompts.limits.dev=false",
        "prompts.limits.train.benign=true",
        "prompts.split_fractions=[true, false, 0.0]",
    ],
)
def test_a_truth_value_is_no_number_in_lists_and_tables_either(setting: str) -> None:
    message = refusal(setting)
    assert setting.split("=")[0].rsplit(".", 2)[0] in message and "must be a number" in message


def test_a_path_of_python_is_its_text() -> None:
    config = load_config(
        overrides={
            "run": Path("runs/x"),
            "model": {"id": Path("/m/x"), "chat_template_kwargs": {"a": [Path("b")]}},
            "prompts": {"sources": [Path("a.csv"), "b.csv"]},
            "train": {"arguments": {"logging_dir": Path("/logs")}},
        }
    )
    assert (config.run, config.model.id) == ("runs/x", "/m/x")
    assert config.prompts.sources == ("a.csv", "b.csv")
    assert config.model.chat_template_kwargs == {"a": ["b"]}
    assert config.train.arguments.model_dump()["logging_dir"] == "/logs"
    assert load_config(overrides={"prompts": {"sources": Path("a")}}).prompts.sources == ("a",)


def test_a_name_with_dots_is_refused_with_how_to_write_it(tmp_path: Path) -> None:
    message = refusal(**{"prompts.sources": ["a.csv"]})
    assert 'write {"prompts": {"sources": ...}} in Python' in message
    message = refusal(prompts={"limits.dev": 3})
    assert 'write {"prompts": {"limits": {"dev": ...}}}' in message
    message = refusal(file=write(tmp_path, '"train.epochs" = 3\n'))
    assert "train.epochs = ... without quotes around the name" in message
    assert load_config(write(tmp_path, "train.epochs = 3\n")).train.epochs == 3


@pytest.mark.parametrize(
    ("key", "value", "empty"),
    [
        ("identify.last_layer", "12", None),
        ("collect.num_batches", "3", None),
        ("prompts.system_prompt", "Be kind.", None),
        ("train.retention_tokens", "8", None),
        ("train.arguments.report_to", '["wandb"]', ()),
        ("model.chat_template_kwargs", "{a = 1}", {}),
        ("run", "runs/x", None),
    ],
)
def test_a_setting_without_a_value_is_emptied(
    key: str, value: str, empty: Any, tmp_path: Path
) -> None:
    def read(config: Config) -> Any:
        for part in key.split("."):
            config = getattr(config, part)
        return config

    stored = load_config(settings=[f"{key}={value}"])
    assert read(stored) != empty
    base = stored.model_dump(mode="json")
    for nothing in ("", " "):
        assert read(load_config(settings=[f"{key}={nothing}"], base=base)) == empty
    *sections, name = key.split(".")
    header = f"[{'.'.join(sections)}]\n" if sections else ""
    file = write(tmp_path, header + f'{name} = ""\n')
    assert read(load_config(file, base=base)) == empty


@pytest.mark.parametrize("key", ["train.epochs", "identify.rule", "prompts.sources", "model.id"])
def test_a_setting_that_needs_a_value_cannot_be_emptied(key: str) -> None:
    assert key in refusal(f"{key}=")


def test_the_preset_of_the_embedded_model_can_be_emptied() -> None:
    assert load_config().prompts.limits["train"]["benign"] > 0
    assert load_config(settings=["prompts.limits="]).prompts.limits == {}
    assert load_config(settings=["train.retention_tokens="]).train.retention_tokens is None


@pytest.mark.parametrize("key", ["prompts.limits.validation", "prompts.limits.train.harmful"])
def test_a_limit_of_nothing_that_there_is_is_refused_by_name(key: str) -> None:
    message = refusal(f"{key}=3")
    assert key in message and "the name must be " in message


def test_limits_are_of_a_split_or_of_one_label_of_it() -> None:
    given = load_config(settings=["prompts.limits.dev=7", "prompts.limits.train.benign=3"], base={})
    assert given.prompts.limits == {
        "dev": {"unsafe": 7, "safe": 7, "benign": 7},
        "train": {"benign": 3},
    }
    assert load_config(settings=["prompts.limits="], base={}).prompts.limits == {}


def test_what_is_evaluated_on_cannot_be_limited_to_nothing() -> None:
    message = refusal("prompts.limits.test=0")
    assert "set prompts.limits.test" in message and "sources" not in message
    assert (
        load_config(settings=["prompts.limits.dev=0"], base={}).prompts.limits["dev"]["safe"] == 0
    )


def test_one_text_is_a_list_of_one() -> None:
    config = load_config(settings=["train.arguments.report_to=wandb", "prompts.sources=mine.csv"])
    assert (config.train.arguments.report_to, config.prompts.sources) == (("wandb",), ("mine.csv",))
    config = load_config(settings=["identify.replicate_on=test"])
    assert config.identify.replicate_on == ("test",)
    assert "'dev' or 'test'" in refusal("identify.replicate_on=train")


def test_the_home_directory_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(
        settings=["run=~/runs/a", "model.id=~/m", 'prompts.sources=["~/p.csv", "a~b.csv"]']
    )
    assert config.run_dir == Path("/home/me/runs/a") and config.model.id == "/home/me/m"
    assert config.prompts.sources == ("/home/me/p.csv", "a~b.csv")
    assert "~no-such-user/x" in refusal("run=~no-such-user/x")
