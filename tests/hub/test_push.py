"""`steermoe export --format hub --push`, through the hub's own client, against a server in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_server import TOKEN, Hub, serving
from tiny import CommandLine

# The hub's client uploads by an argument of httpx that is going to have another name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the client finds, as HF_ENDPOINT would tell it."""
    from huggingface_hub import constants

    with serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def arguments(finished: Path, *more: str) -> list[str | Path]:
    return ["export", "--run", finished, "--format", "hub", "--output", "out", *more]


def test_the_repository_is_made_private_and_holds_what_was_prepared(
    steermoe: CommandLine, finished: Path, tmp_path: Path, hub: Hub
) -> None:
    hub.files["somebody/tiny/model-00001-of-00002.safetensors"] = b"of an earlier push"
    hub.files["somebody/tiny/LICENSE"] = b"theirs"
    assert steermoe(*arguments(finished, "--push", "somebody/tiny")) == 0, steermoe.err
    assert f"{hub.address}/somebody/tiny" in steermoe.err
    assert hub.visibility == {"somebody/tiny": "private"}
    prepared = {p.name: p.read_bytes() for p in (tmp_path / "out" / "hub").iterdir()}
    sent = {name.removeprefix("somebody/tiny/"): data for name, data in hub.files.items()}
    assert sent == {**prepared, "LICENSE": b"theirs"}, "weights of an earlier push are gone"
    assert steermoe(*arguments(finished, "--push", "somebody/tiny", "--public")) == 0, steermoe.err
    assert hub.visibility == {"somebody/tiny": "private"}, "one that is there stays as it is"


def test_without_the_flag_no_network_is_touched(
    steermoe: CommandLine, finished: Path, hub: Hub
) -> None:
    assert steermoe(*arguments(finished)) == 0
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "token", "word"),
    [
        ("somebody//tiny", TOKEN, "somebody//tiny"),
        ("tiny", TOKEN, "OWNER/NAME"),
        ("some body/tiny", TOKEN, "some body/tiny"),
        ("somebody/tiny", "", "HF_TOKEN"),
        ("somebody/tiny", "hf_of_somebody_else", "nothing is written"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_written(
    steermoe: CommandLine,
    finished: Path,
    tmp_path: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    token: str,
    word: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    refusal = steermoe.refusal(*arguments(finished, "--push", name))
    assert refusal.startswith("--push") and word in refusal
    assert not (tmp_path / "out").exists()
    assert "POST /api/repos/create" not in hub.asked


def test_offline_is_said(
    steermoe: CommandLine, finished: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refusal = steermoe.refusal(*arguments(finished, "--push", "somebody/tiny"))
    assert "HF_HUB_OFFLINE" in refusal and hub.asked == []


def test_what_the_hub_refuses_is_one_line_and_stays_prepared(
    steermoe: CommandLine, finished: Path, tmp_path: Path, hub: Hub
) -> None:
    refusal = steermoe.refusal(*arguments(finished, "--push", "others/tiny"))
    assert refusal.startswith("--push others/tiny") and str(Path("out") / "hub") in refusal
    assert (tmp_path / "out" / "hub" / "README.md").is_file()
    assert hub.files == {}
