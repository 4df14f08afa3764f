"""What would fail after hours is said at once, from a config, a tokenizer and the prompts."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import CHATML, TinyCheckpoint, byte_tokenizer
from steermoe.config import Config
from steermoe.errors import ConfigError, ModelError, PromptError
from steermoe.reporter import silent
from steermoe.stages.collect import prepare_prompts
from steermoe.stages.ready import check_ready, check_text
from tiny import tiny_config


@pytest.fixture
def model(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> Path:
    """A checkpoint that may be damaged; its embedding has 259 rows."""
    return Path(shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "model"))


NO_TASKS = {"benchmarks": ()}
"""The tasks that capability is measured by need a longer context than these models are given."""


def checked(model: Path, prompts: Path, **settings: Any) -> Config:
    config = tiny_config(model, model.parent / "run", prompts, **settings)
    check_ready(config, prepare_prompts(config, silent()))
    return config


def retokenised(model: Path, change: Callable[[Any], object]) -> None:
    tokenizer = byte_tokenizer()
    change(tokenizer)
    tokenizer.save_pretrained(model)


def test_a_sound_model_passes_and_nothing_is_left_behind(model: Path, small_prompts: Path) -> None:
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    config = checked(model, small_prompts)
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    assert not config.run_dir.exists()


# ---- tokens that the model does not know ----------------------------------------------------------------


def test_a_token_of_one_prompt_beyond_the_embedding_is_named(
    model: Path, small_prompts: Path
) -> None:
    retokenised(model, lambda tokenizer: tokenizer.add_tokens(["neighbour 19"]))
    with pytest.raises(
        ModelError, match=r"prompt row-\d+ holds the token 'neighbour 19', number 259"
    ):
        checked(model, small_prompts)


def test_so_are_those_of_the_template_and_of_the_target(model: Path, small_prompts: Path) -> None:
    retokenised(model, lambda tokenizer: tokenizer.add_tokens(["<|extra|>"]))
    (model / "chat_template.jinja").write_text("<|extra|>" + CHATML)
    with pytest.raises(
        ModelError, match=r"'<\|extra\|>', number 259, but the model's embedding has 259"
    ):
        checked(model, small_prompts)
    (model / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(
        ModelError, match=r"train\.target_response 'No <\|extra\|>' holds the token"
    ):
        checked(model, small_prompts, train={"target_response": "No <|extra|>"})


def test_a_padding_token_beyond_the_embedding_is_replaced(model: Path, small_prompts: Path) -> None:
    from steermoe.loading import load_model

    retokenised(model, lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "[PAD]"}))
    config = checked(model, small_prompts)
    loaded = load_model(config.model)
    assert loaded.tokenizer.pad_token_id == 259
    assert loaded.pad_token_id == loaded.tokenizer.eos_token_id < 259


# ---- room ---------------------------------------------------------------------------------------------------


def shortened(model: Path, context: int) -> None:
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**values, "max_position_embeddings": context}))


def test_a_target_that_does_not_fit_after_the_prompt_is_refused_with_both_lengths(
    model: Path, small_prompts: Path
) -> None:
    # "<|im_start|>user\n" + "Kill the neighbour 19" + "<|im_end|>\n" + "<|im_start|>assistant\n": 6 + 21 + 2 + 11
    target = "x" * 20
    shortened(model, 40 + 21)
    checked(model, small_prompts, train={"target_response": target}, evaluate=NO_TASKS)
    shortened(model, 39 + 20)
    with pytest.raises(
        PromptError, match=r"has \d+ tokens, and with the 21 of train\.target_response"
    ):
        checked(model, small_prompts, train={"target_response": target}, evaluate=NO_TASKS)


def test_the_target_of_a_prompt_that_is_never_refused_needs_no_room(
    model: Path, tmp_path: Path
) -> None:
    from tiny import write_prompts

    rows = [{"prompt": "a" * (30 if label == "benign" else 5), "label": label, "split": "train"}
            for label in ("unsafe", "safe", "benign")]  # fmt: skip
    long = write_prompts(tmp_path / "long.csv", rows)
    shortened(model, 19 + 30 + 6)
    checked(model, long, train={"target_response": "x" * 20}, evaluate=NO_TASKS)


def test_a_prompt_that_leaves_no_room_for_its_reply_is_refused(
    model: Path, small_prompts: Path
) -> None:
    shortened(model, 44)
    with pytest.raises(PromptError, match=r"with 6 new ones it exceeds the model's context of 44"):
        checked(model, small_prompts)


def test_replies_of_one_token_are_refused_where_replies_are_compared(
    model: Path, small_prompts: Path
) -> None:
    with pytest.raises(ConfigError, match=r"collect\.max_new_tokens = 1"):
        checked(model, small_prompts, collect={"max_new_tokens": 1})
    checked(model, small_prompts, collect={"max_new_tokens": 1}, identify={"segment": "prompt"})


# ---- saving -------------------------------------------------------------------------------------------------


def refusing(what: str) -> Callable[..., None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError(f"{what} is\nnot valid")

    return refuse


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("transformers.GenerationConfig.to_json_file", "generation_config.json"),
        ("transformers.PretrainedConfig.save_pretrained", "config.json"),
        ("transformers.PreTrainedTokenizerFast.save_pretrained", "tokenizer"),
    ],
)
def test_what_cannot_be_saved_is_found_out_before_anything_is_collected(
    model: Path, small_prompts: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: str
) -> None:
    monkeypatch.setattr(place, refusing(name))
    with pytest.raises(ModelError) as caught:
        checked(model, small_prompts)
    assert f"the {name} of {model} cannot be saved" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_generation_config_that_transformers_would_not_write_is_no_hindrance(
    model: Path, small_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read, and saved as it was read: 5.19 to 5.22 refuse to write a greedy one with a temperature."""
    monkeypatch.setattr("transformers.GenerationConfig.save_pretrained", refusing("it"))
    checked(model, small_prompts)


def test_a_model_without_generation_config_has_none_to_save(
    model: Path, small_prompts: Path
) -> None:
    (model / "generation_config.json").unlink()
    checked(model, small_prompts)


def test_a_tokenizer_of_an_unknown_kind_is_refused_in_one_line(
    model: Path, small_prompts: Path
) -> None:
    values = json.loads((model / "tokenizer.json").read_text())
    values["model"]["type"] = "Nope"
    (model / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"^tokenizer of .* cannot be loaded: [^\n]+$"):
        checked(model, small_prompts)


# ---- a callable that makes the targets --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("raise KeyError(prompt.goal)", ConfigError, "failed with KeyError"),
        ("return '' if prompt.goal.endswith('7') else 'No.'", ConfigError, "returned ''"),
        ("return 'No. ' * (60 if prompt.goal.endswith('7') else 1)", PromptError, "train.target_response"),
        ("return 'No <|extra|>'", ModelError, "'<|extra|>'"),
    ],
)  # fmt: skip
def test_targets_that_a_callable_makes_are_made_and_tried_before_anything_is_collected(
    model: Path, small_prompts: Path, monkeypatch: pytest.MonkeyPatch,
    body: str, error: type[Exception], words: str,
) -> None:  # fmt: skip
    (model.parent / "own_targets.py").write_text(f"def target(prompt):\n    {body}\n")
    monkeypatch.syspath_prepend(str(model.parent))
    monkeypatch.delitem(sys.modules, "own_targets", raising=False)
    retokenised(model, lambda tokenizer: tokenizer.add_tokens(["<|extra|>"]))
    edit = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps({**edit, "max_position_embeddings": 200}))
    with pytest.raises(error, match=re.escape(words)):
        checked(model, small_prompts, train={"target_response": "own_targets:target"})


# ---- where replies end --------------------------------------------------------------------------------------


def test_a_model_that_can_give_none_of_its_ends_is_refused(
    model: Path, small_prompts: Path
) -> None:
    def ends(*ids: int) -> None:
        file = model / "generation_config.json"
        file.write_text(json.dumps({"eos_token_id": list(ids)}))
        config = json.loads((model / "config.json").read_text("utf-8"))
        (model / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))

    ends(900, 901)
    checked(model, small_prompts)  # the tokenizer's own end is there
    retokenised(model, lambda tokenizer: setattr(tokenizer, "eos_token", None))
    with pytest.raises(ModelError, match=r"would never end: its end-of-turn tokens are 900, 901"):
        checked(model, small_prompts)
    ends(900, 2)
    checked(model, small_prompts)


def test_a_generation_config_that_is_no_json_is_not_taken_for_none(
    model: Path, small_prompts: Path
) -> None:
    (model / "generation_config.json").write_text('{"eos_token_id": 2,')
    with pytest.raises(ModelError, match=r"generation_config\.json of .* cannot be read"):
        checked(model, small_prompts)
    (model / "generation_config.json").unlink()
    checked(model, small_prompts)


# ---- what is evaluated ----------------------------------------------------------------------------------------


def with_context(model: Path, context: int) -> None:
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(
        json.dumps({**config, "max_position_embeddings": context}), "utf-8"
    )


def test_the_tasks_of_the_evaluation_and_its_longer_replies_fit_the_context(
    model: Path, small_prompts: Path
) -> None:
    with_context(model, 120)
    with pytest.raises(PromptError, match=r"builtin:capability takes \d+ tokens .*benchmarks="):
        checked(model, small_prompts, evaluate={"benchmark_limit": 14})
    checked(model, small_prompts, evaluate={"benchmarks": []})
    longer = {"benchmarks": [], "max_new_tokens": 100}
    with pytest.raises(PromptError, match=r"with 100 new ones .*lower evaluate\.max_new_tokens"):
        checked(model, small_prompts, evaluate=longer)


def test_conversations_of_a_set_fit_the_context_with_all_their_replies(
    model: Path, small_prompts: Path
) -> None:
    """A prompt has 40 tokens at most, as above, and a further turn 2 + 6 + 5 + 2 + 11: the reply's end, the user's
    turn, and where the next reply begins."""

    def insisting(**more: Any) -> dict[str, Any]:
        return {
            "benchmarks": [],
            "sets": [{"name": "insist", "follow_ups": ["Sure?", "Sure?"], **more}],
        }

    with_context(model, 40 + 2 * 26 + 3 * 6 - 1)
    checked(model, small_prompts, evaluate={"benchmarks": []})
    with pytest.raises(
        PromptError, match=r"of the set insist has \d+ tokens, and with the 18 of its 3 replies"
    ):
        checked(model, small_prompts, evaluate=insisting())
    with_context(model, 40 + 2 * 26 + 3 * 6)
    checked(model, small_prompts, evaluate=insisting())
    with pytest.raises(PromptError, match=r"with the 120 of its 3 replies .* lower max_new_tokens"):
        checked(model, small_prompts, evaluate=insisting(max_new_tokens=40))


def test_so_do_another_system_prompt_and_other_files_and_their_tokens_are_known(
    model: Path, small_prompts: Path
) -> None:
    from tiny import write_prompts

    with_context(model, 200)
    jailbreak = {"prompt": "x" * 300, "label": "unsafe", "goal": "quite another thing"}
    file = write_prompts(model.parent / "attacks.csv", [jailbreak])
    attacks = {"benchmarks": [], "sets": [{"name": "attacks", "prompts": [str(file)]}]}
    with pytest.raises(PromptError, match=r"prompt row-\d+ of the set attacks has 3\d\d tokens"):
        checked(model, small_prompts, evaluate=attacks)
    write_prompts(file, [{**jailbreak, "prompt": "Do <|extra|> it."}])
    checked(model, small_prompts, evaluate=attacks)
    retokenised(model, lambda tokenizer: tokenizer.add_tokens(["<|extra|>"]))
    with pytest.raises(ModelError, match=r"of the set attacks holds the token '<\|extra\|>'"):
        checked(model, small_prompts, evaluate=attacks)
    pirate = {"benchmarks": [], "sets": [{"name": "pirate", "system": "Arr! " * 60}]}
    with pytest.raises(PromptError, match=r"of the set pirate has 3\d\d tokens"):
        checked(model, small_prompts, evaluate=pirate)


def test_the_text_whose_perplexity_is_measured_has_tokens_that_are_known(
    model: Path, small_prompts: Path
) -> None:
    text = model.parent / "own.txt"
    text.write_text("Some <|extra|> words.", "utf-8")
    config = checked(model, small_prompts, evaluate={"text_file": str(text)})
    check_text(config)
    retokenised(model, lambda tokenizer: tokenizer.add_tokens(["<|extra|>"]))
    with pytest.raises(ModelError, match=r"text_file .*own\.txt holds the token '<\|extra\|>'"):
        check_text(config)
    text.write_text("a", "utf-8")
    with pytest.raises(PromptError, match="has 1 token"):
        check_text(config)
