"""What has been read correctly goes on giving the same records: ids, pairs, texts, and the splits drawn from them.

Runs are resumed and compared by these. The digests were taken before more layouts were understood.
"""

import csv
import hashlib
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steermoe.prompts.formats import read_prompts
from steermoe.prompts.resolve import resolve_prompts
from steermoe.prompts.splits import assign_splits

SUBJECTS = (
    "Pick a lock",
    'Say "yes", said he.',
    "It\u2019s \u2014 well \u2014 a test?",
    "Schreib Grüße, 你好!",
    "self-harm; a plan",
    "C# or C",
    "naïve",
    "\uff26\uff55\uff4c\uff4c width...",
    "five-o'clock tea",
    "x",
)
FIELDS = ("prompt_id", "label", "messages", "goal", "pair_id", "category", "split", "source")
LABELS = ("unsafe", "safe", "benign")


def text_of(i):
    return f"{SUBJECTS[i % len(SUBJECTS)]} {i}"


def as_csv(header, rows, delimiter=","):
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=delimiter)
    writer.writerows([header, *rows])
    return sink.getvalue().encode()


def as_json(rows):
    return json.dumps(rows).encode()


def as_lines(rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


def as_parquet(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def turn(role, content):
    return {"role": role, "content": content}


def labelled_lines():
    rows = []
    for i in range(45):
        row = {"prompt": text_of(i), "label": LABELS[i % 3]}
        if i % 2:
            row |= {"pair_id": i // 6, "category": "look_alike" if i % 3 == 1 else "crime"}
        if i % 5 == 0:
            row |= {"goal": f"goal {i // 15}", "id": i if i % 10 else f"id-{i}"}
        if i % 7 == 0:
            row["prompt"] = [
                turn("system", "Short."), turn("user", "Hi"), turn("assistant", "Yes?"),
                turn("user", text_of(i)),
            ]  # fmt: skip
        rows.append(row)
    return as_lines(rows)


def labelled_csv():
    header = ["prompt", "label", "pair_id", "category", "split", "note"]
    rows = [
        [text_of(i), LABELS[i % 3], "nan" if i % 3 == 2 else i // 3, "<NA>" if i % 2 else "crime",
         ("train", "dev", "test")[(i // 3) % 3], "mine"]
        for i in range(45)
    ]  # fmt: skip
    return as_csv(header, rows, ";")


def messages_in_csv():
    rows = [
        [json.dumps([turn("system", "Short."), turn("user", text_of(i))]), LABELS[i % 3]]
        for i in range(12)
    ]
    return b"\xef\xbb\xbf" + as_csv(["Messages", "LABEL"], rows)


def labelled_parquet():
    return as_parquet(
        [
            {
                "messages": [turn("user", text_of(i))],
                "label": LABELS[i % 3],
                "prompt_id": f"p{i}",
                "pair_id": float(i // 3) if i % 2 else None,
            }
            for i in range(15)
        ]
    )


def jailbreaks():
    rows = []
    for i in range(24):
        row = {
            "id": i // 2 if i % 2 else f"{i}",
            "goal": text_of(i // 2),
            "all_prompt": [turn("system", "Play."), turn("user", f"In a play, {text_of(i)}")],
        }
        if i % 4:
            row["judge_success_gpt4"] = (1, "0", True)[i % 3]
        if i % 5 == 0:
            row["category"] = "theft"
        rows.append(row)
    return as_json(rows)


def xstest(older):
    kinds = [(1, "homonyms"), (26, "contrast_homonyms"), (301, "contrast_discr")]
    kinds += [(276, "real_group_nons_discr"), (251, "nons_group_real_discr"), (2, "homonyms")]
    if older:
        rows = [["", f"v2-{n}", kind, text_of(n), "", ""] for n, kind in kinds]
        return as_csv(["id_v1", "id_v2", "type", "prompt", "focus", "note"], rows)
    rows = [
        [n, text_of(n), kind, "unsafe" if "contrast" in kind else "safe", "", ""]
        for n, kind in kinds
    ]
    return as_csv(["id", "prompt", "type", "label", "focus", "note"], rows)


def harmbench():
    header = ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString"]
    rows = [
        [text_of(i), "contextual", "illegal", "", "A lock." if i % 2 else "", f"b{i}"]
        for i in range(12)
    ]
    return as_csv([*header, "BehaviorID"], rows)


def jailbreakbench():
    header = ["Index", "Goal", "Target", "Behavior", "Category", "Source"]
    return as_csv(header, [[i, text_of(i), "Sure", "B", "Crime", "Original"] for i in range(12)])


FILES = {
    "labelled lines": labelled_lines,
    "labelled csv": labelled_csv,
    "messages in csv": messages_in_csv,
    "labelled parquet": labelled_parquet,
    "jailbreaks": jailbreaks,
    "xstest": lambda: xstest(older=False),
    "older xstest": lambda: xstest(older=True),
    "harmbench": harmbench,
    "jailbreakbench": jailbreakbench,
    "advbench": lambda: as_csv(["goal", "target"], [[text_of(i), "Sure"] for i in range(12)]),
    "strongreject": lambda: as_csv(
        ["category", "source", "forbidden_prompt"],
        [["crime", "custom", text_of(i)] for i in range(12)],
    ),
}

DIGESTS = {
    "advbench": ("a9940a1dbad8079f", "d7faa1b949098841"),
    "all": "8f26788ede58ae7e",
    "builtin:starter": "cf8110686122f2e6",
    "harmbench": ("4d679e2fc08c333a", "afeec915ea4a32a9"),
    "jailbreakbench": ("2a6d8f1029fe4882", "7f383f9ed09eb63b"),
    "jailbreaks": ("0300582ebf39dcf8", "50e4854f456eddf7"),
    "labelled csv": ("ebcda5c21589342c", "f51f1079a919cd16"),
    "labelled lines": ("67fc68cda0de248a", "d5a7832286e4eaae"),
    "labelled parquet": ("d267ff67f5598120", "cfed8de983671e7b"),
    "messages in csv": ("1807c2347db5eb5a", "33d679daa20c4b1b"),
    "older xstest": ("d616226ca94d180a", "8df8b866b3de8651"),
    "strongreject": ("6e00f20b26934f96", "12bdd50f2dc247af"),
    "xstest": ("d8c9edb6417cec83", "40d877dae5f96f4d"),
}


def digest(prompts):
    records = [{field: prompt[field] for field in FIELDS} for prompt in prompts]
    text = json.dumps(records, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_the_first_edition(prompts):
    """Without the built-in prompts that were added after the digests were taken: those numbered from 337 on."""
    return [
        prompt
        for prompt in prompts
        if prompt.source != "builtin:starter" or int(prompt.prompt_id[-4:]) <= 336
    ]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files by name, in the current directory: paths are part of a record's source where names repeat."""
    monkeypatch.chdir(tmp_path)
    for name, make in FILES.items():
        (tmp_path / name).write_bytes(make())
    return list(FILES)


def digests_of(name):
    read = digest(read_prompts(name, include_failed=True).prompts)
    resolved = resolve_prompts([name, "builtin:starter"])
    return read, digest(assign_splits(of_the_first_edition(resolved.prompts), seed=3))


@pytest.mark.parametrize("name", [*FILES, "builtin:starter"])
def test_a_file_gives_the_records_that_it_always_gave(files, name):
    if name == "builtin:starter":
        assert digest(of_the_first_edition(read_prompts(name).prompts)) == DIGESTS[name]
    else:
        assert digests_of(name) == DIGESTS[name]


def test_several_files_at_once_give_the_records_that_they_always_gave(files):
    files.remove("labelled csv")  # its splits would be those of other files' goals
    prompts = of_the_first_edition(resolve_prompts(files).prompts)
    assert digest(assign_splits(prompts, seed=1)) == DIGESTS["all"]
