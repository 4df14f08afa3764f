"""Settings: layers, values from the command line, and one clear line for whatever cannot hold."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from refused_settings import refusal, write
from steermoe.config import (
    BUILTIN_PROMPTS,
    DEFAULT_REFUSALS,
    EMBEDDED_MODEL,
    Config,
    fields_of,
    load_config,
    preset,
    validate,
)

# ---- what holds without any setting -------------------------------------------------------------------


def test_the_defaults_are_those_of_the_specification() -> None:
    config = validate({})
    assert config.model.id == EMBEDDED_MODEL == "smollm2-moe"
    assert config.prompts.sources == (BUILTIN_PROMPTS,) == ("builtin:starter",)
    assert (config.collect.batch_size, config.collect.safe_ratio) == (16, 0.5)
    assert config.collect.max_new_tokens >= 48
    assert (config.identify.threshold, config.identify.top_k) == (0.05, 50)
    assert config.identify.filter_by_verdict is True
    assert config.identify.segment == "generation"
    assert config.train.experts == "global"
    assert config.run_dir == Path("runs/smollm2-moe")
    assert config.evaluate.split == "test"


def test_the_default_refusals_are_several_and_differ() -> None:
    assert len(set(DEFAULT_REFUSALS)) == len(DEFAULT_REFUSALS) >= 4
    assert len({refusal.split()[0] for refusal in DEFAULT_REFUSALS}) > 1
    assert validate({}).train.target_response == DEFAULT_REFUSALS


def test_every_setting_describes_itself() -> None:
    rows = fields_of(Config)
    assert len(rows) > 40
    assert all(description.endswith(".") for _, _, _, description in rows)
    assert len({key for key, *_ in rows}) == len(rows)
    assert ("collect.batch_size", "int", 16) in [row[:3] for row in rows]


def test_a_config_cannot_be_changed_and_survives_json() -> None:
    config = load_config(settings=["train.epochs=2.5", "model.chat_template_kwargs.thinking=false"])
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3
    assert validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


# ---- layers -------------------------------------------------------------------------------------------


def test_the_later_layer_wins_and_the_rest_of_a_section_stays(tmp_path: Path) -> None:
    path = write(
        tmp_path, "seed = 1\n[identify]\ntop_k = 7\nthreshold = 0.2\n[train]\nepochs = 9\n"
    )
    config = load_config(path, ["identify.top_k=8", "train.epochs=3"], {"seed": 5, "run": None})
    assert (config.identify.top_k, config.identify.threshold) == (8, 0.2)
    assert (config.train.epochs, config.seed, config.run) == (3, 5, None)


def test_the_embedded_model_has_a_preset_and_other_models_have_the_general_defaults() -> None:
    embedded = load_config()
    shipped = preset(EMBEDDED_MODEL)
    assert embedded.train.epochs == shipped["train"]["epochs"] == 1
    assert load_config(overrides={"model": {"id": "owner/name"}}).train.epochs == 4
    assert load_config(settings=["train.epochs=3"]).train.epochs == 3


def test_the_preset_of_the_embedded_model_selects_as_the_method_does() -> None:
    assert load_config().identify == Config().identify
    assert load_config().train.experts == "global"


def test_a_stored_config_is_the_base_without_the_preset_on_top() -> None:
    stored = validate({"identify": {"top_k": 5}, "seed": 2}).model_dump(mode="json")
    again = load_config(settings=["train.epochs=1"], base=stored)
    assert (again.identify.top_k, again.seed, again.train.epochs) == (5, 2, 1)


@pytest.mark.parametrize(
    ("model", "run_dir"),
    [("owner/name", "runs/name"), ("/models/Mix 8x7B", "runs/Mix 8x7B"), ("./tiny/", "runs/tiny")],
)
def test_the_run_directory_is_named_after_the_model(model: str, run_dir: str) -> None:
    assert validate({"model": {"id": model}}).run_dir == Path(run_dir)


# ---- values from the command line ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("train.learning_rate=1e-5", lambda c: c.train.learning_rate == 1e-5),
        (
            "train.arguments.gradient_checkpointing=true",
            lambda c: c.train.arguments.gradient_checkpointing,
        ),
        ("train.target_response=No thanks.", lambda c: c.train.target_response == "No thanks."),
        ('train.target_response=["No.", "Never."]', lambda c: len(c.train.target_response) == 2),
        ("train.target_response=a = b", lambda c: c.train.target_response == "a = b"),
        ("model.id=owner/name", lambda c: c.model.id == "owner/name"),
        (
            "model.chat_template_kwargs={enable_thinking = false}",
            lambda c: c.model.chat_template_kwargs == {"enable_thinking": False},
        ),
        (
            "model.chat_template_kwargs.enable_thinking=false",
            lambda c: c.model.chat_template_kwargs == {"enable_thinking": False},
        ),
        (" seed = 7 ", lambda c: c.seed == 7),
        ("seed=4294967295", lambda c: c.seed == 2**32 - 1),
    ],
)
def test_a_setting_on_the_command_line_is_read_as_toml_or_else_as_text(
    setting: str, read: Any
) -> None:
    assert read(load_config(settings=[setting]))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.target_response=['I can't help.', 'Sorry.']", """write '["one", "two"]'"""),
        ('train.target_response=["a", "b"', "begins with [ and is no list"),
        ("model.chat_template_kwargs.x=[False]", "'[true, 3]'"),
        ("model.chat_template_kwargs={a: b}", "begins with { and is no table"),
        ('train.target_response="Sorry, no', """write '"Sorry, no"',"""),
        ('prompts.system_prompt= "You are nice', """write '"You are nice"',"""),
        ("prompts.system_prompt='It's me'", """write '"It'\\''s me"',"""),
        (r'run="C:\Users\me"', r"""write '"C:\\Users\\me"',"""),
        ('train.target_response="No" is no', 'begins with " and is no text'),
        ('train.target_response="No"\nmore = 2', "more lines follow"),
        ('train.target_response=["' + "x" * 500, "..."),
    ],
)
def test_what_begins_as_a_value_of_toml_and_is_none_is_refused_with_what_to_write(
    setting: str, words: str
) -> None:
    message = refusal(setting)
    assert message.startswith(f"--set {setting.partition('=')[0]}=") and words in message
    assert len(message) < 450


@pytest.mark.parametrize(
    "text", ["['I can't help.', 'Sorry.']", "{a} b", '"Sorry", he said', "'tis no \\ use"]
)
def test_what_is_to_be_written_for_a_text_that_begins_so_gives_that_text(text: str) -> None:
    message = refusal(f"train.target_response={text}")
    written = re.search(r"""(?:so as|, or) ('"(?:[^']|'\\'')*')""", message)
    assert written is not None
    (value,) = shlex.split(written[1])
    assert load_config(settings=[f"train.target_response={value}"]).train.target_response == text


def test_phases_take_from_the_section_what_they_leave_open() -> None:
    (only,) = load_config(settings=["train.epochs=2"]).train.all_phases()
    assert (only.parameters, only.objectives, only.epochs) == (
        "experts",
        ("refusal", "retention"),
        2,
    )
    train = load_config(
        settings=[
            "train.epochs=2",
            "train.phases=[{learning_rate = 1e-3}, {parameters = 'routers', epochs = 1}]",
        ]
    ).train
    first, second = train.all_phases()
    assert (first.parameters, first.epochs, first.learning_rate) == ("experts", 2, 1e-3)
    assert (second.parameters, second.epochs) == ("routers", 1)
    assert second.learning_rate == train.learning_rate
    # Five micro-batches: ten steps, then five.
    assert (train.num_steps(5), train.num_steps(5, 0.5)) == (15, 3)
    assert train.trains_experts
    assert not load_config(settings=["train.parameters=routers"]).train.trains_experts


@pytest.mark.parametrize(
    ("phase", "reason"),
    [
        ("{epochs = 0}", r"train.phases.0.epochs = 0: "),
        ("{parameters = 'shared'}", r'train.phases.0.parameters = "shared": '),
        ("{objectives = []}", "train.phases.0.objectives"),
        ("{batch_size = 4}", "unknown setting train.phases.0.batch_size"),
    ],
)
def test_a_phase_that_cannot_be_is_refused(phase: str, reason: str) -> None:
    assert reason in refusal(f"train.phases=[{phase}]")


def test_everything_cannot_be_trained_beside_what_must_be_told_from_it() -> None:
    message = refusal("train.phases=[{parameters = 'everything'}, {parameters = 'routers'}]")
    assert "everything cannot be mixed" in message


@pytest.mark.parametrize("setting", ["seed", "=3", "", " =3"])
def test_a_setting_without_key_or_value_is_refused(setting: str) -> None:
    assert "section.key=value" in refusal(setting)


# ---- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "suggestion"),
    [
        ("train.epoch=3", "train.epochs"),
        ("collect.batchsize=3", "collect.batch_size"),
        ("identify.treshold=0.1", "identify.threshold"),
        ("epochs=3", "train.epochs"),
        ("training.epochs=3", "train"),
        ("train.top_k=3", "identify.top_k"),
        ("trian.epochs=3", "train"),
        ("train.lr=1", "train.learning_rate"),
        ("train.lr_scheduler_type='cosine'", "train.arguments.lr_scheduler_type"),
        ("collect.bs=1", "collect.batch_size"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    setting: str, suggestion: str
) -> None:
    message = refusal(setting)
    assert setting.split("=")[0].split(".")[0] in message
    assert f"did you mean {suggestion}" in message


def test_an_unknown_key_in_a_file_is_refused(tmp_path: Path) -> None:
    assert "did you mean train.epochs" in refusal(file=write(tmp_path, "[train]\nepocs = 3\n"))
    assert "zzzzzz" in refusal(file=write(tmp_path, "zzzzzz = 1\n"))


@pytest.mark.parametrize(
    "setting",
    [
        "collect.safe_ratio=0",
        "collect.safe_ratio=1",
        "collect.safe_ratio=1.5",
        "collect.safe_ratio=-0.5",
        "collect.safe_ratio=nan",
        "collect.batch_size=1",
        "collect.batch_size=16.5",
        "collect.batch_size=many",
        "collect.num_batches=0",
        "collect.max_new_tokens=0",
        "collect.temperature=-1",
        "collect.temperature=inf",
        "identify.top_k=0",
        "identify.threshold=nan",
        "identify.segment=reply",
        "train.epochs=0",
        "train.learning_rate=nan",
        "train.learning_rate=inf",
        "train.learning_rate=-0.1",
        "train.arguments.warmup_ratio=1.5",
        "train.arguments.gradient_accumulation_steps=0",
        "train.arguments.save_steps=0.5",
        "train.objectives=[]",
        "train.experts=all",
        "evaluate.confidence=95",
        "evaluate.split=train",
        "seed=-1",
        "seed=4294967296",
        "seed=1.5",
        "prompts.split_fractions=[0.5, 0.5, 0.5]",
        "prompts.split_fractions=[1.5, -0.5, 0.0]",
        "prompts.limits.dev=-1",
        "prompts.sources=[]",
        "model.id=",
        "model.dtype=int8",
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key_and_value(setting: str) -> None:
    key, _, value = setting.partition("=")
    message = refusal(setting)
    assert key.split(".")[-1] in message
    shown = value.strip("[]").split(",")[0]
    assert re.search(re.escape(shown), message, re.IGNORECASE), message


@pytest.mark.parametrize("section", ["model", "prompts", "collect", "identify", "train"])
@pytest.mark.parametrize("value", ["5", '"text"', "[1, 2]", "true"])
def test_a_value_where_a_section_belongs_is_refused(
    tmp_path: Path, section: str, value: str
) -> None:
    assert section in refusal(f"{section}={value}")
    assert section in refusal(file=write(tmp_path, f"{section} = {value}\n"))


def test_a_section_where_a_value_belongs_is_refused() -> None:
    assert "model.id" in refusal("model.id.name=x")
    assert "seed" in refusal("seed.value=3")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"[train\nepochs = 3", "TOML"),
        (b"\xff\xfe\x00broken", "TOML"),
        (b"seed = 1\nseed = 2\n", "TOML"),
    ],
)
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    message = refusal(file=path)
    assert str(path) in message and word in message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(file=tmp_path / "missing.toml")
    assert str(tmp_path) in refusal(file=tmp_path)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 3\n")
    assert load_config(path).seed == 3


# ---- the judge ----------------------------------------------------------------------------------------


def test_the_old_name_of_the_judge_is_understood_in_every_layer(tmp_path: Path) -> None:
    file = write(tmp_path, '[collect]\njudge = "guard:one"\n')
    assert load_config(file).judge.main == "guard:one"
    assert load_config(None, ["collect.judge=guard:two"]).judge.main == "guard:two"
    stored = {"judge": {"main": "keyword"}, "collect": {"batch_size": 4}}
    asked = load_config(None, ["collect.judge=guard:two"], base=stored)
    assert (asked.judge.main, asked.collect.batch_size) == ("guard:two", 4)
    # What is stored in an old run gives way to what is asked for now.
    old = {"collect": {"judge": "keyword"}}
    assert load_config(None, ["judge.main=guard:three"], base=old).judge.main == "guard:three"
    notes: list[str] = []
    load_config(base=old, note=notes.append)
    load_config(base=stored, note=notes.append)
    assert notes == ["collect.judge is now judge.main"]


def test_both_names_of_the_judge_are_refused_where_they_differ() -> None:
    message = refusal("collect.judge=keyword", "judge.main=guard:one")
    assert "collect.judge" in message and "judge.main" in message
    assert (
        load_config(None, ["collect.judge=keyword", "judge.main=keyword"]).judge.main == "keyword"
    )


@pytest.mark.parametrize(
    "address",
    ["localhost:8000", "ftp://host/v1", "http://me:hunter2@host/v1", "http://h/v1?key=hunter2"],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused_without_showing_it(
    address: str,
) -> None:
    for written in (address, f'"{address}', f"[{address}"):
        message = refusal(f"judge.base_url={written}")
        assert "judge.base_url" in message and "hunter2" not in message


def test_a_label_may_mean_only_what_a_judge_can_say() -> None:
    config = load_config(None, overrides={"judge": {"label_map": {"LABEL_1": "refused"}}})
    assert config.judge.label_map == {"LABEL_1": "refused"}
    assert "label_map" in refusal(judge={"label_map": {"LABEL_1": "perhaps"}})


@pytest.mark.parametrize(
    ("setting", "key", "words"),
    [
        ("prompts.system_prompt=None", "prompts.system_prompt", "--set prompts.system_prompt= "),
        ("evaluate.text_file=null", "evaluate.text_file", "--set evaluate.text_file= "),
        ("train=5", "train", "as train.NAME"),
        ("prompts.limits=x", "prompts.limits", "a table, as {key = value}"),
        ("collect.engine_args=5", "collect.engine_args", "a table"),
        ("evaluate.sets={a = 1}", "evaluate.sets", "a list"),
        ('evaluate.sets=["a"]', "evaluate.sets.0", "a table"),
        ("prompts.split_fractions=[0.5, 0.5]", "prompts.split_fractions.2", "no entry 3"),
        ("train.target_response=5", "train.target_response", "a text"),
        ("seed=true", "seed", "a number"),
        ("train.epochs=false", "train.epochs", "a number"),
        ("identify.last_layer=true", "identify.last_layer", "a number"),
        ("seed=1.5", "seed", "a whole number"),
        ("model.dequantize=maybe", "model.dequantize", "true or false"),
        ("collect.batch_size=1", "collect.batch_size", "at least 2"),
        ("train.epochs=1e400", "train.epochs", "a finite number"),
    ],
)
def test_what_is_wrong_is_said_in_words_of_the_settings_and_not_of_python(
    setting: str, key: str, words: str
) -> None:
    message = refusal(setting)
    assert message.startswith(f"setting {key} = ") and words in message
    assert not any(word in message for word in ("tuple", "dictionary", "instance", "Input should"))
