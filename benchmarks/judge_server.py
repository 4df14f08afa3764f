"""A judge against a server that fails in every way, killed five times: is anything lost, guessed or asked twice?

    python -m benchmarks.judge_server

The server runs in this process, on this machine's own address; the judge in one of its own, which is killed (SIGKILL)
while it asks, five times, and then left to finish.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.faulty_server import FAULTS, KEY, FaultyServer, expected, reply_text
from steermoe.config import JudgeSection
from steermoe.judges.openai_server import OpenAIJudge
from steermoe.records import Exchange, Verdict

NUM_KILLS = 5
CONCURRENCY = 16
NONSENSE = ("cut-json", "wrong-json", "wrong-values", "prose", "empty")


def plan(number: int) -> list[str]:
    """Nought to three faults that pass, of all kinds; 2 % are refused to be rated, 2 % always answered by nonsense."""
    if number % 50 == 7:
        return ["refuse*"]
    if number % 50 == 23:
        return ["wrong-json*"]
    draw = hashlib.sha256(str(number).encode()).digest()
    faults = [FAULTS[byte % len(FAULTS)] for byte in draw[1 : 1 + draw[0] % 4]]
    # After three answers of nonsense in a row the judge gives a reply up: that is what the 2 % are for.
    return faults[:2] if all(fault in NONSENSE for fault in faults) else faults


def exchanges(num_replies: int) -> list[Exchange]:
    """The replies to judge."""
    return [
        Exchange("base", f"p{n}", "Say something.", (), "", reply_text(n), reply_text(n))
        for n in range(num_replies)
    ]


def judge(address: str, answers: Path, num_replies: int) -> None:
    """Judge in this process, and print the judgements."""
    settings = JudgeSection(base_url=address, timeout=0.5, concurrency=CONCURRENCY)
    judged = OpenAIJudge("rater", settings, answers).judge(exchanges(num_replies))
    print(json.dumps([[j.verdict.value, j.score, j.reason] for j in judged]))


def kept(answers: Path) -> int:
    """Whole lines of the file of answers."""
    return answers.read_bytes().count(b"\n") if answers.exists() else 0


def rated_in(answers: Path) -> set[int]:
    """Numbers of the replies whose rating is kept."""
    whole, _, _ = answers.read_text("utf-8", "replace").rpartition("\n")
    return {int(number) for number in re.findall(r"because of (\d+)", whole)}


def start(address: str, answers: Path, num_replies: int) -> subprocess.Popen[str]:
    """The judge as a process of its own."""
    command = [sys.executable, "-m", "benchmarks.judge_server", "--judge", address]
    command += ["--answers", str(answers), "--replies", str(num_replies)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OPENAI_API_KEY": KEY}
    )


def study(num_replies: int) -> dict[str, object]:
    """Kill the judge five times, let it finish, and count."""
    with tempfile.TemporaryDirectory() as folder, FaultyServer(plan, slow=1.2) as server:
        answers = Path(folder) / "answers.jsonl"
        begun = time.monotonic()
        marks = []
        for kill in range(1, NUM_KILLS + 1):
            process = start(server.address, answers, num_replies)
            while kept(answers) < num_replies * kill / (NUM_KILLS + 2) and process.poll() is None:
                time.sleep(0.02)
            process.kill()
            process.wait()
            known, so_far = rated_in(answers), len(server.requests)
            marks.append((known, so_far))
        kept_at_last_kill = kept(answers)
        output, _ = start(server.address, answers, num_replies).communicate()
        seconds = time.monotonic() - begun
        asked_again = sum(
            number in known for known, so_far in marks for number, _ in server.requests[so_far:]
        )
        finals = Counter(n for n, deed in server.requests if deed in ("rate", "refuse"))
        faults = Counter(deed for _, deed in server.requests)
        text = answers.read_text("utf-8")
    judged = json.loads(output)
    right = sum(
        (verdict, score, reason) == (e.verdict.value, e.score, e.reason)
        for n, (verdict, score, reason) in enumerate(judged)
        if (e := expected(n)) and plan(n)[:1] not in (["refuse*"], ["wrong-json*"])
    )
    never = [n for n in range(num_replies) if plan(n)[:1] in (["refuse*"], ["wrong-json*"])]
    return {
        "replies": num_replies,
        "kills": NUM_KILLS,
        "answers kept at the last kill": kept_at_last_kill,
        "requests": sum(faults.values()),
        "of them faults": sum(faults[f] for f in FAULTS),
        "rated, and rated right": f"{sum(v != 'unscored' for v, *_ in judged)}, {right}",
        "never to be rated, and unscored": f"{len(never)}, {sum(judged[n][0] == Verdict.UNSCORED for n in never)}",
        "never to be rated, with a verdict": sum(judged[n][0] != Verdict.UNSCORED for n in never),
        "answered more than once (under way when killed)": sum(c - 1 for c in finals.values()),
        "asked again though its rating was kept": asked_again,
        "the most that can be under way at five kills": NUM_KILLS * CONCURRENCY,
        "key in the file of answers": KEY in text,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--replies", type=int, default=1000)
    parser.add_argument("--judge", help="the server's address: judge in this process")
    parser.add_argument("--answers", type=Path)
    options = parser.parse_args()
    if options.judge:
        judge(options.judge, options.answers, options.replies)
        return
    for name, value in study(options.replies).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
