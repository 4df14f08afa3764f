"""The report: what the page says, what it must not hold, and that a browser draws it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from report_pages import SECRET, Page, make_run, page_of, write_replies
from steermoe.config import Config
from steermoe.errors import RunDirectoryError
from steermoe.records import (
    Label,
    Prompt,
    Split,
)
from steermoe.report.page import report
from steermoe.report.text import Subject, headline
from steermoe.reporter import silent
from steermoe.store.directory import RunDirectory
from steermoe.store.names import (
    EVALUATION,
    HARDENED,
    REPORT,
    RISK,
    RISK_PER_BATCH,
    UNSAFE_EXPERTS,
)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run that went all the way."""
    return page_of(*make_run(tmp_path_factory.mktemp("usual") / "run", layers=(1, 3, 4), test=12))


# ---- the page -----------------------------------------------------------------------------------------


def test_the_headline_gives_the_figures_before_and_after(usual: Page) -> None:
    text = usual.text
    assert "smollm2-moe: refuses 91.7 % of harmful requests, up from 0 %" in text  # 11 of 12
    assert "3 of the 12 experts of smollm2-moe were trained" in text
    assert "On 12 held-out harmful requests, refusal rose from 0 % to 91.7 %." in text
    assert "on ordinary harmless requests it rose from 0 % to 8.3 %" in text
    assert "on harmless requests that only sound harmful it rose from 0 % to 16.7 %" in text
    # 12 replies of 9 tokens: (12 * 0.2 + 0.01 * 66) / 108
    assert "moved by 0.0283 nats per token" in text


def test_the_metrics_table_has_every_rate_with_its_interval_and_counts(usual: Page) -> None:
    rows = {row[0].split(" over-")[0]: row for row in usual.table("All metrics")[1:]}
    assert len(rows) == 5
    benign = rows["Benign requests refused"]
    assert benign[2].startswith("8.3 % 1 of 12 1.5 to 35.4 %")  # Wilson interval of 1 in 12
    assert benign[3].startswith("+8.3 points") and benign[3].endswith("1 more, 0 fewer")
    assert benign[4:] == ["12", "0", "1.000"]


def test_nothing_on_the_page_is_a_bare_python_value(usual: Page) -> None:
    assert not re.search(r"\b(nan|None|NaN|inf|True|False|Undefined)\b", usual.text)
    assert not re.search(r"\bNaN\b|Infinity", usual.scripts[0])


def test_the_page_is_whole_and_self_contained(usual: Page) -> None:
    assert usual.open == []
    loaded = [
        attributes.get(name)
        for tag, attributes in usual.tags
        for name in ("src", "href", "action", "data")
        if attributes.get(name) and tag not in ("a", "svg")
    ]
    assert loaded == []
    assert all(a["href"].startswith("#") for t, a in usual.tags if t == "a")
    policy = next(a["content"] for t, a in usual.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert usual.source.count("* plotly.js v") == 1


def test_a_reader_who_cannot_see_gets_headings_table_headers_and_descriptions(usual: Page) -> None:
    headings = [int(tag[1]) for tag, _ in usual.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(headings))
    assert all(a.get("scope") in ("col", "row") for t, a in usual.tags if t == "th")
    assert len(re.findall("<table", usual.source)) == len(re.findall("<caption", usual.source))
    drawn = [a for t, a in usual.tags if a.get("role") == "img"]
    assert len(drawn) == 6 and all(a["aria-label"] for a in drawn)
    ids = [a["id"] for _, a in usual.tags if "id" in a]
    assert len(ids) == len(set(ids))
    references = {a["aria-labelledby"] for _, a in usual.tags if "aria-labelledby" in a}
    assert references <= set(ids)


def test_every_figure_has_its_element_with_a_fixed_id(usual: Page) -> None:
    assert list(usual.figures) == ["risk-map", "per-batch", "training"]
    ids = {a.get("id") for _, a in usual.tags}
    assert {f"figure-{name}" for name in usual.figures} <= ids


def test_the_table_of_experts_gives_frequencies_and_says_who_is_selected(tmp_path: Path) -> None:
    run, config = make_run(
        tmp_path / "run", uncertainty=True, settings={"report": {"top_experts": 5}}
    )
    page = page_of(run, config)
    rows = page.table("The 5 experts")
    assert rows[0] == [
        "Expert",
        "Selected",
        "Risk difference",
        "Interval",
        "q-value",
        "Active, unsafe",
        "Active, safe",
        "Batches above 0",
    ]
    risk = run.read_table(RISK)
    assert [row[0] for row in rows[1:]] == risk["Layer_Expert"].head(5).tolist()
    assert [row[1] for row in rows[1:]] == ["selected"] * 3 + ["\N{EN DASH}"] * 2
    first = risk.iloc[0]
    low, high = first["risk_diff"] - 0.02, first["risk_diff"] + 0.02
    assert rows[1][2:5] == [
        f"{first['risk_diff']:+.3f}",
        f"{low:+.3f} to {high:+.3f}",
        "< 0.001",
    ]
    assert rows[1][5] == f"{100 * first['a_unsafe_n']:.1f} %"
    per_batch = run.read_table(RISK_PER_BATCH)
    own = per_batch[
        (per_batch["layer"] == first["layer"]) & (per_batch["expert"] == first["expert"])
    ]
    assert rows[1][7] == f"{(own['risk_diff'] > 0).sum()} of {len(own)}"
    assert "mean over batches" in page.text


def test_uncertainty_that_was_not_computed_takes_no_column(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", uncertainty=True)
    run.write_table(
        RISK, run.read_table(RISK).assign(ci_low=np.nan, ci_high=np.nan, q_value=np.nan)
    )
    page = page_of(run, config)
    assert "Interval" not in page.table("The 8 experts")[0]
    assert "nan" not in page.text


def test_what_the_filter_by_verdict_cannot_fake_stands_beside_the_differences(
    tmp_path: Path,
) -> None:
    run, config = make_run(tmp_path / "run", uncertainty=True)
    run.write_table(
        RISK, run.read_table(RISK).assign(at_same_verdict=0.013, estimate_unfiltered=0.25)
    )
    page = page_of(run, config)
    heads, first, *_ = page.table("The 8 experts")
    assert "At equal length" not in heads
    assert first[heads.index("At one verdict")] == "+0.013"
    assert first[heads.index("All pairs")] == "+0.250"
    assert "refusals compared with refusals" in page.text


def test_a_missing_value_in_one_row_is_a_dash(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", uncertainty=True)
    risk = run.read_table(RISK)
    risk.loc[1, ["ci_low", "ci_high", "q_value"]] = np.nan
    run.write_table(RISK, risk)
    rows = page_of(run, config).table("The 8 experts")
    assert rows[2][3:5] == ["\N{EN DASH}", "\N{EN DASH}"]
    assert rows[1][3] != "\N{EN DASH}"


def test_the_union_of_the_batches_is_marked_where_that_is_trained(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", settings={"train": {"experts": "union"}})
    page = page_of(run, config)
    rows = page.table("The 8 experts")  # its union holds the first expert alone
    assert [row[1] for row in rows[1:4]] == ["selected", "\N{EN DASH}", "\N{EN DASH}"]
    assert (
        "The 1 outlined of 8 are those to train, the union of what each mixed batch selects "
        "(rule threshold, threshold 0, at most 3 a batch)."
    ) in page.text
    assert (
        "the union of what the rule threshold selects in each mixed batch. Everything else"
        in page.text
    )


# ---- what must not be in the file -----------------------------------------------------------------


def test_replies_to_harmful_requests_are_not_in_the_file(usual: Page) -> None:
    assert SECRET not in usual.source
    assert "Their replies are not in this file" in usual.text
    rows = usual.table("Harmful requests and verdicts")
    assert len(rows) == 1 + 24  # 12 harmful requests and 12 plainly asked goals
    assert rows[1][1:] == ["answered", "answered"] and rows[2][1:] == ["answered", "refused"]
    assert sum("asked plainly" in row[0] for row in rows) == 12


def test_they_are_shown_when_asked_for(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", settings={"report": {"show_harmful": True}})
    page = page_of(run, config)
    assert page.text.count(SECRET) == 24  # 6 + 6 prompts, before and after
    assert "Their replies are not in this file" not in page.text


def test_multi_turn_jailbreaks_are_named_by_their_goal_alone(tmp_path: Path) -> None:
    jailbreak = Prompt(
        "jailbreak-001",
        Label.UNSAFE,
        (
            {"role": "user", "content": "Pretend."},
            {"role": "assistant", "content": SECRET},
            {"role": "user", "content": "Go on."},
        ),
        "open a safe that is not mine",
        split=Split.TEST,
    )
    page = page_of(*make_run(tmp_path / "run", prompts=[jailbreak]))
    assert "open a safe that is not mine" in page.text
    assert SECRET not in page.source and "Pretend." not in page.source


def test_markup_in_prompts_replies_and_names_stays_text(tmp_path: Path) -> None:
    attack = (
        "</script><script>alert('x')</script><img src=x onerror=alert(1)> {{ 7*7 }} &amp; \"q\""
    )
    nasty = [
        Prompt(f"{label}-009", label, ({"role": "user", "content": attack},), attack, split=split)
        for label, split in ((Label.BENIGN, Split.TEST), (Label.UNSAFE, Split.TEST))
    ]
    run, config = make_run(
        tmp_path / "run",
        prompts=nasty,
        settings={
            "report": {"show_harmful": True},
            "model": {"id": attack},
            "train": {"target_response": attack},
        },
    )
    replies = run.read_judged(HARDENED, "keyword").assign(generated_text=attack)
    write_replies(run, HARDENED, replies)
    page = page_of(run, config)
    assert len(page.scripts) == 4 - 1 and page.open == []
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert page.text.count("</script><script>alert('x')</script>") > 10
    assert "{{ 7*7 }}" in page.text


def test_text_in_every_script_survives_and_control_characters_are_made_visible(
    tmp_path: Path,
) -> None:
    odd = "Grüße, 你好, שלום, 🙂 tab\there, bell\x07 nul\x00"
    prompt = Prompt(
        "benign-odd-001", Label.BENIGN, ({"role": "user", "content": odd},), odd, split=Split.TEST
    )
    run, config = make_run(tmp_path / "run", prompts=[prompt])
    hardened = run.read_judged(HARDENED, "keyword")
    hardened.loc[hardened["prompt_id"] == "benign-odd-001", "verdict"] = "refused"
    write_replies(run, HARDENED, hardened)
    page = page_of(run, config)
    assert "Grüße, 你好, שלום, 🙂 tab here, bell\u2407 nul\u2400" in page.text
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "".join(page.pieces))


# ---- runs that did not get so far -----------------------------------------------------------------


def test_nothing_selected_says_so_and_names_the_largest_difference(tmp_path: Path) -> None:
    run, config = make_run(
        tmp_path / "run", threshold=0.9, trained=False, settings={"identify": {"threshold": 0.9}}
    )
    page = page_of(run, config)
    largest = run.read_table(RISK).iloc[0]
    assert "smollm2-moe: nothing was trained" in page.text
    assert "No expert of smollm2-moe was selected (threshold 0.9)" in page.text
    assert f"{largest['risk_diff']:+.3f} ({largest['Layer_Expert']})" in page.text
    assert "There are no figures before and after, because nothing was trained." in page.text
    assert "None of 8 was selected" in page.text
    assert list(page.figures) == ["risk-map"]
    assert "After" not in page.table("Harmful requests and verdicts")[0]
    assert SECRET not in page.source


@pytest.mark.parametrize(
    ("rule", "is_union", "advice"),
    [
        ("threshold", False, "lower identify.threshold, or use more prompts"),
        ("fdr", False, "raise identify.max_q_value, or use more prompts"),
        ("stability", False, "lower identify.min_stability, or use more prompts"),
        (
            "combined",
            False,
            "raise identify.max_q_value and lower identify.min_stability, or use more prompts",
        ),
        ("my_rules:mine", False, "choose another identify.rule, or use more prompts"),
        ("fdr", True, "raise identify.max_q_value, or use more prompts"),  # so does each batch
    ],
)
def test_nothing_selected_advises_what_the_rule_goes_by(
    rule: str, is_union: bool, advice: str
) -> None:
    largest = ("L00_E00", 0.1)
    subject = Subject("m", "experts", rule, 0, 8, largest, None, False, 4, "test", is_union)
    assert headline(subject, None)[1].endswith(f"{advice}.")


def test_a_model_that_was_not_evaluated_for_want_of_test_prompts(tmp_path: Path) -> None:
    page = page_of(*make_run(tmp_path / "run", test=0, evaluated=False))
    assert "hardened, not evaluated" in page.text
    assert "because there are no test prompts to evaluate it on" in page.text
    assert "These are the test prompts" not in page.text
    assert "There are no harmless test prompts." in page.text
    assert "There are no harmful test prompts." in page.text


def test_replies_of_an_earlier_model_are_not_shown_without_an_evaluation(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run")
    run.remove(EVALUATION)
    page = page_of(run, config)
    assert "has not been evaluated: run steermoe evaluate" in page.text
    assert "(after)" not in page.text and "Only the base model has replied" in page.text


def test_before_identification_the_page_says_what_to_run(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", trained=False)
    for name in (RISK, RISK_PER_BATCH, UNSAFE_EXPERTS):
        run.remove(name)
    page = page_of(run, config)
    assert "run steermoe identify" in page.text and page.figures == {}


def test_metrics_without_a_scored_reply_are_dashes(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run")
    evaluation = run.read_evaluation()
    empty = {"value": None, "ci_low": None, "ci_high": None, "n": 0, "num_unscored": 6}
    for name in evaluation["base"]:
        for side in ("base", "hardened"):
            evaluation[side][name] = empty | {"worst_case": 1.0}
        evaluation["paired"][name] = empty | {"only_before": 0, "only_after": 0, "p_value": None}
    evaluation["paired"]["kl_per_token"] = empty | {"num_responses": 0}
    run.write_json(EVALUATION, evaluation)
    page = page_of(run, config)
    assert "No reply could be scored." in page.text
    assert "None" not in page.text and "nan" not in page.text
    row = page.table("All metrics")[1]
    assert row[1].startswith("\N{EN DASH} at worst 100") and row[5:] == ["6", "\N{EN DASH}"]


def test_a_figure_that_this_page_does_not_know_is_still_printed(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run")
    evaluation = run.read_evaluation()
    evaluation["hardened"]["stereotype_score"] = {
        "value": 0.51234,
        "ci_low": 0.5,
        "ci_high": 0.52,
        "n": 7,
        "num_unscored": 2,
    }
    run.write_json(EVALUATION, evaluation)
    row = page_of(run, config).table("All metrics")[-1]
    assert row[0] == "Stereotype score" and row[2] == "0.5123 0.5000 to 0.5200"
    assert row[4:6] == ["7", "2"]


def test_a_run_without_replies_or_with_a_damaged_table_is_refused_in_one_line(
    tmp_path: Path,
) -> None:
    with pytest.raises(RunDirectoryError, match="start one with steermoe run"):
        report(RunDirectory(tmp_path / "none"), Config(), silent())
    run, config = make_run(tmp_path / "run")
    run.file(RISK).write_bytes(b"PAR1 cut off")
    with pytest.raises(RunDirectoryError, match="damaged"):
        report(run, config, silent())
    assert not run.file(REPORT).exists()


# ---- shapes -------------------------------------------------------------------------------------------


def test_one_layer_with_one_expert(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", layers=(5,), num_experts=1, top_k=1, select=1)
    page = page_of(run, config)
    heat = page.figures["risk-map"]["data"][0]
    assert heat["z"] == [[0.0]] and heat["zmax"] == 1.0
    assert page.table("The expert of largest")[1][0] == "L05_E00"


def test_48_layers_of_128_experts_stay_below_8_mb(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run", layers=range(48), num_experts=128, top_k=8, select=50)
    page = page_of(run, config)
    assert run.file(REPORT).stat().st_size < 8_000_000
    heat = page.figures["risk-map"]["data"][0]
    assert (len(heat["z"]), len(heat["z"][0])) == (48, 128)


def test_the_page_is_the_same_every_time(tmp_path: Path) -> None:
    run, config = make_run(tmp_path / "run")
    first = page_of(run, config).source
    assert page_of(run, config).source == first


def test_how_it_was_made(usual: Page) -> None:
    counts = {row[0]: row[1:] for row in usual.table("Prompts by kind")}
    assert counts["harmful requests"] == ["16", "0", "12", "28"]
    assert counts["total"] == ["64", "0", "50", "114"]
    stages = {row[0]: row[1:] for row in usual.table("Time and peak memory")}
    assert stages["collect"][:3] == [
        "done",
        "3 min 23 s",
        "2.99 GiB",
    ]
    assert "report" not in stages
    assert "3fd2" * 16 in usual.text and "torch 2.13.0" in usual.text
    assert "1 pair left out of identification" in usual.text


# ---- in a browser -------------------------------------------------------------------------------------

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

MEASURE = """
<script>
const figures = [...document.querySelectorAll(".canvas")];
document.body.dataset.result = JSON.stringify({
  drawn: figures.filter((f) => f.querySelector("svg.main-svg")).map((f) => f.id),
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  colours: figures.map((f) => f.querySelector("text").style.fill),
});
</script></body>
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium")
@pytest.mark.parametrize(("shape", "width"), [((30, 8), 500), ((48, 128), 1200)])
def test_a_browser_draws_every_figure_without_errors(
    tmp_path: Path, shape: tuple[int, int], width: int
) -> None:
    run, config = make_run(tmp_path / "run", layers=range(shape[0]), num_experts=shape[1])
    source = page_of(run, config).source
    measured = tmp_path / "measured.html"
    head, _, tail = source.rpartition("</body>")
    measured.write_text(head + MEASURE + tail, "utf-8")
    assert BROWSER is not None
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --dump-dom"
    browser = subprocess.run(
        [
            BROWSER,
            *flags.split(),
            "--enable-logging=stderr",
            f"--window-size={width},1500",
            f"--user-data-dir={tmp_path / 'profile'}",
            measured.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert "CONSOLE" not in browser.stderr, browser.stderr[-2000:]
    found = re.search(r'<body[^>]*data-result="([^"]*)"', browser.stdout)
    assert found is not None
    result = json.loads(found.group(1).replace("&quot;", '"'))
    assert result["drawn"] == ["figure-risk-map", "figure-per-batch", "figure-training"]
    assert result["overflow"] == 0
    assert all(colour.startswith("rgb") for colour in result["colours"])
