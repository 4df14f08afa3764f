"""The run directory: whole files or none, one holder at a time, and a clear line for whatever is damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from steermoe.errors import RunDirectoryError
from steermoe.metrics import MeasureRow, Metric
from steermoe.records import Judgement, Label, Output, Prompt, Split, Verdict
from steermoe.store.directory import RunDirectory
from steermoe.store.names import (
    PROMPTS,
    RESPONSES,
    RISK,
    ROUTING,
    RUN_JSON,
    SHARDS,
    TOKENS,
    UNSAFE_EXPERTS,
    shard_of,
)
from steermoe.store.response_tables import shard_row
from steermoe.store.state import FileRecord, ModelRecord, RunState, StepRecord

METADATA = {"layer_indices": "[1, 3]", "top_k": "2", "num_experts": "4", "model": "tiny"}


@pytest.fixture(params=["run", "a run with spaces", "lauf-\u00fc\u4e16\U0001f600"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    found = RunDirectory(tmp_path / request.param)
    found.create()
    return found


@pytest.fixture
def plain(tmp_path: Path) -> RunDirectory:
    found = RunDirectory(tmp_path / "run")
    found.create()
    return found


def files_of(directory: RunDirectory) -> set[str]:
    return {
        str(path.relative_to(directory.path))
        for path in directory.path.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def prompt(i: int, text: str = "Hello", **fields: Any) -> Prompt:
    known = {"label": Label.UNSAFE, "goal": text, "split": Split.TRAIN, "source": "here"} | fields
    return Prompt(prompt_id=f"p{i}", messages=({"role": "user", "content": text},), **known)


def output(num_prompt: int, num_generated: int, seed: int, dtype: type = np.uint8) -> Output:
    """Random routes over two layers of four experts, two distinct ones a token."""
    rows = num_prompt + max(num_generated - 1, 0)
    generator = np.random.default_rng(seed)
    order = generator.random((rows, 2, 4)).argsort(axis=-1)[..., :2]
    return Output(
        prompt="<user>Hello",
        messages=({"role": "user", "content": "Hello"},),
        generated_text="Antwort \u2028 \U0001f600",
        prompt_token_ids=tuple(range(num_prompt)),
        generated_token_ids=tuple(range(100, 100 + num_generated)),
        routed_experts=order.astype(dtype),
        layer_indices=(1, 3),
        answer="Antwort \u2028 \U0001f600".strip(),
    )


# ---- whole files --------------------------------------------------------------------------------------


def test_json_reads_back_whatever_the_path_and_the_text(directory: RunDirectory) -> None:
    text = "Gr\u00fc\u00dfe \u2028 \U0001f600"
    state = RunState(
        config={"note": text},
        seed=3,
        packages={},
        model=ModelRecord(id=text),
        stages={
            "train": StepRecord(
                status="done", fingerprint="f", seconds=2.5, figures={"history": [1.5]}
            )
        },
        files={"model": FileRecord(step="train", sha256="0", stamp={"a": (1, 2)})},
    )
    directory.write_state(state)
    assert directory.read_state() == state
    assert state.schema_version == 2 and state.figures_of("train") == {"history": [1.5]}
    assert state.figures_of("report") == {}
    assert files_of(directory) == {RUN_JSON}


@pytest.mark.parametrize("missing", ["config", "model", "seed", "packages"])
def test_a_state_that_lacks_something_is_damaged(plain: RunDirectory, missing: str) -> None:
    whole = RunState(config={}, seed=0, packages={}, model=ModelRecord(id="m"))
    values = whole.model_dump(mode="json")
    del values[missing]
    plain.write_json(RUN_JSON, values)
    with pytest.raises(RunDirectoryError, match=f"damaged at {missing}") as caught:
        plain.read_state()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt(), OSError(28, "full")])
def test_a_file_is_replaced_whole_or_not_at_all(plain: RunDirectory, error: BaseException) -> None:
    plain.write_json("figures.json", {"a": 1})
    expected = RunDirectoryError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), plain.writing("figures.json") as path:
        path.write_text("half of a", "utf-8")
        assert json.loads(plain.file("figures.json").read_text()) == {"a": 1}
        raise error
    assert json.loads(plain.file("figures.json").read_text()) == {"a": 1}
    assert files_of(plain) == {"figures.json"}


def test_a_folder_is_replaced_whole_or_not_at_all(plain: RunDirectory) -> None:
    with plain.writing_folder("model") as folder:
        (folder / "old").write_text("1")
    with pytest.raises(RuntimeError), plain.writing_folder("model") as folder:
        (folder / "new").write_text("2")
        raise RuntimeError("stop")
    assert files_of(plain) == {"model/old"}
    with plain.writing_folder("model") as folder:
        (folder / "new").write_text("2")
    assert files_of(plain) == {"model/new"}


def test_a_process_killed_while_writing_leaves_the_old_file(plain: RunDirectory) -> None:
    plain.write_json_lines("rows.jsonl", [{"n": 1}])
    script = f"""
        import os, signal
        from steermoe.store.directory import RunDirectory
        def rows():
            for n in range(100_000):
                yield {{"n": n}}
            os.kill(os.getpid(), signal.SIGKILL)
        RunDirectory({str(plain.path)!r}).write_json_lines("rows.jsonl", rows())
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert plain.file("rows.jsonl").read_text() == '{"n": 1}\n'
    plain.write_json_lines("rows.jsonl", [{"n": 2}])
    assert files_of(plain) == {"rows.jsonl"}, "what the dead process left is gone"


# ---- the lock -----------------------------------------------------------------------------------------

HOLDER = """
    import sys, time
    from steermoe.store.directory import RunDirectory
    with RunDirectory(sys.argv[1]).locked():
        print("held", flush=True)
        time.sleep(600)
"""


@pytest.fixture
def holder(plain: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    """A real process that holds the run."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(plain.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_dead(
    plain: RunDirectory, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(RunDirectoryError, match="in use by another steermoe"), plain.locked():
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with plain.locked():
        pass


def test_a_lock_is_freed_when_its_block_ends(plain: RunDirectory) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="stop"), plain.locked():
            raise ValueError("stop")
    with (
        plain.locked(),
        pytest.raises(RunDirectoryError),
        RunDirectory(plain.path).locked(),
    ):
        pass


# ---- places that cannot be written --------------------------------------------------------------------


def test_a_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunDirectoryError, match=r"cannot be written.*--run") as caught:
            RunDirectory(path).create()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "x"


def test_a_read_only_directory_is_refused(mounted: Callable[[str], Path]) -> None:
    with pytest.raises(RunDirectoryError, match="Read-only file system"):
        RunDirectory(mounted("ro,size=1m") / "run").create()


def test_a_full_disk_is_refused_and_keeps_the_old_file(mounted: Callable[[str], Path]) -> None:
    directory = RunDirectory(mounted("size=256k") / "run")
    directory.create()
    directory.write_json("small.json", {"a": 1})
    table = pd.DataFrame({"x": np.random.default_rng(0).random(100_000)})
    for write in (
        lambda: directory.write_json("small.json", {"a": "x" * 1_000_000}),
        lambda: directory.write_json_lines("rows.jsonl", ({"n": n} for n in range(100_000))),
        lambda: directory.write_table("table.parquet", table),
    ):
        with pytest.raises(RunDirectoryError, match="No space left on device") as caught:
            write()
        assert "\n" not in str(caught.value)
    assert files_of(directory) == {"small.json"}
    assert json.loads(directory.file("small.json").read_text()) == {"a": 1}


def test_routing_that_does_not_fit_the_disk_is_refused_and_not_a_crash(
    mounted: Callable[[str], Path],
) -> None:
    # A memory map of a file with holes dies with a bus error once the disk is full.
    place = mounted("size=300k")
    script = f"""
        import numpy as np
        from steermoe.records import *
        from steermoe.store.response_tables import shard_row
        from steermoe.store.directory import RunDirectory
        from steermoe.errors import RunDirectoryError
        directory = RunDirectory({str(place / "run")!r})
        rows = [
            shard_row(
                Prompt(f"p{{i}}", Label.SAFE, ({{"role": "user", "content": "x"}},), "x", split=Split.TRAIN),
                Output("x", (), "y", (1,), (2, 3), np.zeros((2, 4, 1), np.uint8), (0, 1, 2, 3)),
                0, i,
            )
            for i in range(40)
        ]
        directory.write_shard("responses", 0, rows)
        metadata = {{"layer_indices": "[0, 1, 2, 3]", "top_k": "1", "num_experts": "256", "model": "m"}}
        try:
            directory.merge_shards("responses", 1, (4, 256), metadata)
        except RunDirectoryError as error:
            print("refused:", error)
        print(sorted(p.name for p in directory.path.iterdir()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert "No space left on device" in done.stdout
    assert f"['{SHARDS}']" in done.stdout, "nothing half-written, and the shards are kept"


# ---- what a run directory is --------------------------------------------------------------------------


def test_no_run_is_said_so(plain: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match=r"run\.json is missing; start one"):
        plain.read_state()


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_another_schema_version_is_refused(plain: RunDirectory, version: Any) -> None:
    plain.write_json(RUN_JSON, {"schema_version": version})
    with pytest.raises(RunDirectoryError, match=f"schema version {version}.*reads 2") as caught:
        plain.read_state()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b'{"schema_version": 1', b"\x00\xff\xfe", b"[]", b"3", b"null"]
)
@pytest.mark.parametrize("name", [RUN_JSON, UNSAFE_EXPERTS, "evaluation.json"])
def test_damaged_json_is_refused_by_name(plain: RunDirectory, name: str, content: bytes) -> None:
    plain.file(name).write_bytes(content)
    read = {
        RUN_JSON: plain.read_state,
        UNSAFE_EXPERTS: plain.read_selection,
        "evaluation.json": plain.read_evaluation,
    }[name]
    with pytest.raises(RunDirectoryError, match="is damaged") as caught:
        read()
    assert name in str(caught.value) and "\n" not in str(caught.value)
    # Nothing makes run.json again.
    advice = "choose another with --run" if name == RUN_JSON else "delete it"
    assert advice in str(caught.value)


def test_a_missing_file_names_the_stage_that_writes_it(plain: RunDirectory) -> None:
    reads = {
        "collect": (plain.read_prompts, plain.read_replies, plain.read_counts),
        "identify": (plain.read_selection, lambda: plain.read_table(RISK)),
        "evaluate": (plain.read_evaluation,),
    }
    for stage, functions in reads.items():
        for read in functions:
            with pytest.raises(RunDirectoryError, match=f"steermoe {stage} --run"):
                read()


# ---- prompts and responses ----------------------------------------------------------------------------


def test_prompts_read_back_with_every_kind_of_text(directory: RunDirectory) -> None:
    awkward = 'a\u2028b\u2029c\u0085d\x1ce\x0bf\x0cg\r\nh\ti"j\\k\U0001f600\u00e9\x7f\ufeff'
    prompts = (
        prompt(0, awkward, pair_id=awkward, category=awkward, source=awkward, style=awkward),
        prompt(1, label=Label.SAFE, split=None),
        prompt(2, label=Label.BENIGN, split=Split.TEST),
    )
    directory.write_prompts(prompts)
    assert directory.read_prompts() == prompts
    lines = directory.file(PROMPTS).read_bytes().split(b"\n")
    assert len(lines) == 4 and lines[-1] == b""
    assert set(json.loads(lines[0])) == {
        "prompt_id",
        "label",
        "messages",
        "goal",
        "pair_id",
        "category",
        "split",
        "source",
        "style",
        "rendered",
    }


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b"\xff" + b, lambda b: b"7\n"])
def test_damaged_prompts_are_refused(plain: RunDirectory, damage: Any) -> None:
    plain.write_prompts([prompt(0), prompt(1)])
    file = plain.file(PROMPTS)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RunDirectoryError, match=r"prompts\.jsonl is damaged"):
        plain.read_prompts()


def collected(directory: RunDirectory) -> list[Output]:
    """Three shards: a pair in batch 0, an empty reply, and a single token with wide ids."""
    outputs = [output(3, 4, 0), output(2, 6, 1), output(4, 0, 2), output(1, 1, 3, np.uint16)]
    rows = [
        shard_row(prompt(i, split=split), out, batch, place)
        for i, (out, batch, place, split) in enumerate(
            [
                (outputs[0], 0, 0, Split.TRAIN),
                (outputs[1], 0, 1, Split.TRAIN),
                (outputs[2], -1, -1, Split.DEV),
                (outputs[3], -1, -1, Split.TEST),
            ]
        )
    ]
    for index, part in enumerate((rows[:2], rows[2:3], rows[3:])):
        directory.write_shard("responses", index, part)
    directory.merge_shards("responses", 3, (2, 4), METADATA)
    return outputs


def test_responses_and_counts_are_those_of_the_outputs(directory: RunDirectory) -> None:
    outputs = collected(directory)
    shards = {shard_of("responses", index) for index in range(3)}
    assert files_of(directory) == {RESPONSES, TOKENS, ROUTING} | shards
    responses = directory.read_replies()
    assert list(responses.columns) == [
        "prompt_id",
        "label",
        "split",
        "batch_idx",
        "in_batch_idx",
        "messages",
        "generated_text",
        "num_prompt_tokens",
        "num_generated_tokens",
    ]
    assert responses["num_generated_tokens"].tolist() == [4, 6, 0, 1]

    tensors = load_file(directory.file(ROUTING))
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {
        "active": (np.dtype("int32"), (4, 2, 2, 4)),
        "num_tokens": (np.dtype("int32"), (4, 2)),
    }
    assert {out.prompt_token_ids[0] for out in outputs} == {0}  # all prompts begin alike
    for i, out in enumerate(outputs):
        num_prompt = len(out.prompt_token_ids)
        expected = np.zeros((2, 2, 4), dtype=int)
        for row, routes in enumerate(out.routed_experts):
            if row == 0:
                continue
            for layer, experts in enumerate(routes):
                for expert in experts:
                    expected[int(row >= num_prompt), layer, expert] += 1
        assert (tensors["active"][i] == expected).all()
        assert tensors["num_tokens"][i].tolist() == [
            num_prompt - 1,
            max(len(out.generated_token_ids) - 1, 0),
        ]
    counts = directory.read_counts()
    assert counts.layer_indices == (1, 3)
    assert (counts.active == tensors["active"]).all()
    assert directory.routing_metadata() == METADATA | {"shared_prompt_tokens": "[1, 0]"}


def test_only_replies_that_reason_have_a_column_of_answers(plain: RunDirectory) -> None:
    cut = dataclasses.replace(output(3, 4, 0), answer=None)
    rows = [shard_row(prompt(0), cut), shard_row(prompt(1), output(2, 6, 1))]
    plain.write_replies("thinking", rows)
    assert plain.read_answers("thinking") == {"p0": None, "p1": rows[1]["answer"]}
    plain.write_replies("plain", rows[1:])
    assert "answer" not in plain.read_replies("plain")
    assert plain.read_answers("plain") == {"p1": rows[1]["answer"]}


def test_outputs_read_back_as_they_were(directory: RunDirectory) -> None:
    outputs = collected(directory)
    found = list(directory.iter_outputs())
    assert [row["prompt_id"] for row, _ in found] == ["p0", "p1", "p2", "p3"]
    for (_, read), out in zip(found, outputs, strict=True):
        assert (read.routed_experts == out.routed_experts).all()
        assert read.routed_experts.dtype == out.routed_experts.dtype
        for name in ("prompt", "generated_text", "prompt_token_ids", "generated_token_ids"):
            assert getattr(read, name) == getattr(out, name)
        assert [dict(m) for m in read.messages] == [dict(m) for m in out.messages]
        assert read.layer_indices == (1, 3)
    chosen = [row["prompt_id"] for row, _ in directory.iter_outputs({"p3", "p1"})]
    assert chosen == ["p1", "p3"]


def test_tables_written_again_by_other_tools_still_belong_together(plain: RunDirectory) -> None:
    collected(plain)
    before = [out.generated_token_ids for _, out in plain.iter_outputs()]
    # All in one row group, where the shards gave three.
    plain.write_table(RESPONSES, plain.read_replies())
    assert [out.generated_token_ids for _, out in plain.iter_outputs()] == before
    plain.write_table(RESPONSES, plain.read_replies().iloc[::-1])
    with pytest.raises(RunDirectoryError, match="hold other prompts"):
        list(plain.iter_outputs())
    plain.write_table(RESPONSES, plain.read_replies().iloc[::-1].head(2))
    with pytest.raises(RunDirectoryError, match="hold other prompts"):
        list(plain.iter_outputs())


@pytest.mark.parametrize("keep", [0, 0.5, 0.98])
@pytest.mark.parametrize("name", [RESPONSES, TOKENS, ROUTING])
def test_damaged_responses_are_refused_by_name(plain: RunDirectory, name: str, keep: float) -> None:
    collected(plain)
    file = plain.file(name)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(RunDirectoryError, match="is damaged") as caught:
        plain.read_replies()
        plain.read_counts()
        list(plain.iter_outputs())
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_with_flipped_bytes_is_refused(plain: RunDirectory) -> None:
    plain.write_table("t.parquet", pd.DataFrame({"x": range(5000), "y": ["text"] * 5000}))
    file = plain.file("t.parquet")
    content = bytearray(file.read_bytes())
    for position in range(4, len(content) - 200, 7):
        content[position] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"t\.parquet is damaged"):
        plain.read_table("t.parquet")


def test_the_same_shards_give_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        directory = RunDirectory(tmp_path / name)
        directory.create()
        collected(directory)
        contents.append({n: directory.file(n).read_bytes() for n in (RESPONSES, TOKENS, ROUTING)})
    assert contents[0] == contents[1]


# ---- verdicts, measures -------------------------------------------------------------------------------


def test_verdicts_of_variants_and_judges_stand_side_by_side(plain: RunDirectory) -> None:
    refused, unscored = Judgement(Verdict.REFUSED, 0.25, "an apology"), Judgement(Verdict.UNSCORED)
    plain.write_verdicts({("base", "p0", "a"): refused, ("base", "p0", "b"): unscored}, ["base"])
    plain.write_verdicts({("hardened", "p0", "a"): unscored}, ["hardened"])
    assert plain.read_verdicts("base", "a") == {"p0": "refused"}
    assert plain.read_verdicts("base", "b") == {"p0": "unscored"}
    # Another judgement of a variant takes the place of all that was said of it, and of nothing else.
    plain.write_verdicts({("base", "p0", "a"): unscored}, ["base"])
    assert plain.read_verdicts("base", "a") == {"p0": "unscored"}
    assert plain.read_verdicts("hardened", "a") == {"p0": "unscored"}
    assert not plain.has_verdicts("base", "b") and plain.has_verdicts("hardened", "a")
    with pytest.raises(
        RunDirectoryError, match=r"no verdicts of the judge b.*base.*steermoe judge"
    ):
        plain.read_verdicts("base", "b")


def test_scores_and_reasons_of_verdicts_are_kept_and_no_score_is_null(plain: RunDirectory) -> None:
    scored, plainly = Judgement(Verdict.ANSWERED, 0.75, "full"), Judgement(Verdict.REFUSED)
    plain.write_verdicts({("base", "p0", "a"): scored, ("base", "p1", "a"): plainly}, ["base"])
    plain.write_verdicts({("hardened", "p0", "a"): plainly}, ["hardened"])
    table = plain.read_table("verdicts.parquet")
    assert table["score"].isna().tolist() == [False, True, True]
    assert table["reason"].tolist() == ["full", "", ""] and table["score"][0] == 0.75


def test_measures_read_back_as_they_were(plain: RunDirectory) -> None:
    whole = Metric(0.5, 0.25, 0.75, 8, 1, {"worst_case": 0.6})
    change = Metric(-0.125, -0.5, 0.25, 8, 0, {"only_before": 2, "only_after": 1, "p_value": 1.0})
    nothing = Metric(None, None, None, 0, 3)
    rows = [
        MeasureRow("base", "test", "refusal_rate", whole, "keyword"),
        MeasureRow("hardened", "test", "refusal_rate", change, "keyword", "base"),
        MeasureRow("hardened", "test", "kl_per_token", nothing, "teacher_forced", "base"),
    ]
    plain.write_measures(rows)
    assert plain.read_measures() == rows


def test_removing_takes_files_and_folders_and_minds_neither_missing(plain: RunDirectory) -> None:
    plain.write_json("a.json", {})
    (plain.path / "folder" / "below").mkdir(parents=True)
    for name in ("a.json", "folder", "missing"):
        plain.remove(name)
    assert files_of(plain) == set()
