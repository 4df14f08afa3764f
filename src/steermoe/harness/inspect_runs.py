"""An Inspect task on a checkpoint, and what it found: `inspect:TASK`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steermoe.errors import ConfigError, RunDirectoryError, on_one_line
from steermoe.harness.figures import Figure
from steermoe.harness.processes import Target, missing_by, run_tool, tool_version

DISTRIBUTION, EXTRA = "inspect-ai", "inspect"

SPREADS = ("stderr", "bootstrap_stderr", "std", "var")
"""Metrics that say how another one spreads."""

GRADES = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
"""Correct, incorrect, partial, no answer: as Inspect counts them. No answer is wrong."""


def inspect_version(target: Target) -> str:
    """`inspect 0.3.285`, as tables name the source.

    Raises:
        ConfigError: It is not installed.
    """
    return f"inspect {tool_version(target.python, DISTRIBUTION, EXTRA)}"


_UNKNOWN = """
import json, sys
from pathlib import Path
from inspect_ai import list_tasks
from inspect_ai._util.registry import registry_lookup
name = sys.argv[1]
place, _, task = name.partition("@")
if Path(place).is_file():
    path = Path(place).resolve()
    known = {found.name for found in list_tasks([str(path)], absolute=True, root_dir=path.parent)}
    there = task in known if task else bool(known)
else:
    there = registry_lookup("task", name) is not None
print(json.dumps([] if there else [name]))
"""


def check_inspect(target: Target, task: str) -> None:
    """Refuse a task that Inspect does not know, before anything runs.

    Raises:
        ConfigError: It does not know it, cannot pass an argument to the chat template, or is not installed.
    """
    inspect_version(target)
    model_arguments(target)
    if task.startswith("hf/"):
        return
    place = task.partition("@")[0]
    if place.endswith(".py") and not Path(place).is_file():
        raise ConfigError(f"benchmark 'inspect:{task}': there is no file {place}")
    if missing_by(target.python, _UNKNOWN, [task]):
        raise ConfigError(
            f"benchmark 'inspect:{task}': Inspect knows no such task; name file.py@task, or package/task of a package "
            "that is installed"
        )


def run_inspect(target: Target, task: str, folder: Path) -> list[Figure]:
    """Run a task in a process of its own; a folder that holds its finished log already is only read.

    Args:
        target: The model.
        task: `package/task`, `file.py` or `file.py@task`.
        folder: Where the log is written.

    Raises:
        ConfigError: Inspect is not installed, or cannot pass an argument to the chat template.
        SteerMoEError: It failed.
    """
    if not any(True for _ in _finished_logs(folder)):
        inspect_version(target)
        command = inspect_command(target, task, folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(model_arguments(target), indent=1)
        (folder / MODEL_ARGUMENTS).write_text(content, encoding="utf-8")
        run_tool(command, folder)
    return read_inspect(folder)


MODEL_ARGUMENTS = "model_arguments.json"
"""In the folder of a run: how Inspect loads the model."""


def inspect_command(target: Target, task: str, folder: Path) -> list[str]:
    """The command line."""
    command = [target.python, "-m", "inspect_ai", "eval", task, "--model", "hf/local"]
    command += ["--model-config", str(folder / MODEL_ARGUMENTS)]
    command += ["--log-dir", str(folder), "--log-format", "json", "--display", "plain"]
    command += ["--max-connections", str(target.batch_size), "--temperature", "0"]
    if target.system_prompt:
        command += ["--system-message", target.system_prompt]
    if target.limit is not None:
        command += ["--limit", str(target.limit)]
    return command


def model_arguments(target: Target) -> Mapping[str, object]:
    """What Inspect's provider for local models is given. Templates write their special tokens themselves.

    Raises:
        ConfigError: The chat template is to be given what Inspect cannot pass.
    """
    if others := sorted(set(target.template_kwargs) - {"enable_thinking"}):
        raise ConfigError(
            f"Inspect cannot pass {', '.join(others)} to the chat template (model.chat_template_kwargs); it passes "
            "enable_thinking alone"
        )
    arguments: dict[str, object] = {
        "model_path": target.checkpoint,
        "dtype": target.dtype,
        "do_sample": False,
        "tokenizer_call_args": {"add_special_tokens": False},
        **target.template_kwargs,
    }
    if target.device:
        arguments["device"] = target.device
    if target.revision:
        arguments["revision"] = target.revision
    if target.trust_remote_code:
        arguments["trust_remote_code"] = True
    return arguments


def read_inspect(folder: Path) -> list[Figure]:
    """Every metric of every finished log in a folder, samples with it.

    Raises:
        RunDirectoryError: There is no finished log, or it cannot be read.
    """
    logs = dict(_finished_logs(folder))
    if not logs:
        raise RunDirectoryError(_why_unfinished(folder))
    figures: dict[tuple[str, str], Figure] = {}
    for path, log in logs.items():
        try:
            for figure in _figures(log):
                figures[figure.task, figure.metric] = figure
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunDirectoryError(
                f"{path} is not a log of Inspect ({type(error).__name__}: {error}); remove {folder} and run again"
            ) from None
    return list(figures.values())


def _why_unfinished(folder: Path) -> str:
    """What to tell of a folder without a finished log: the error that the newest log holds, if one does."""
    for _, log in reversed(list(_logs(folder))):
        error = log.get("error")
        if isinstance(error, dict) and "message" in error:
            said = on_one_line(str(error["message"]))
            return f"Inspect failed, as its log in {folder} says: {said}"
    return f"{folder} holds no finished log of Inspect; run its task first"


def _finished_logs(folder: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Logs of tasks that came to their end, the newest last."""
    for path, log in _logs(folder):
        if log.get("status") == "success" and log.get("results"):
            yield path, log


def _logs(folder: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Files that may be logs with their content, the newest last: their names begin with the time."""
    for path in sorted(folder.glob("*.json")):
        try:
            log = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(log, dict):
            yield path, log


def _figures(log: Mapping[str, Any]) -> Iterator[Figure]:
    task = str(log["eval"]["task"]).rpartition("/")[2]
    scores = log["results"]["scores"]
    for score in scores:
        values = _values(log, score)
        spreads = [m for n, m in score["metrics"].items() if n in SPREADS[:2]]
        for name, metric in score["metrics"].items():
            if name in SPREADS:
                continue
            value = _number(metric["value"])
            own = _values_of_mean(value, values)
            scored = score.get("scored_samples")
            yield Figure(
                task,
                name if len(scores) == 1 else f"{score['name']}:{name}",
                value,
                _number(spreads[0]["value"]) if own and spreads else None,
                int(scored if scored is not None else log["results"]["completed_samples"]),
                int(score.get("unscored_samples") or 0),
                own,
            )


def _values(log: Mapping[str, Any], score: Mapping[str, Any]) -> dict[str, float | None]:
    """What each sample scores, over its epochs; empty where a sample has no number."""
    reductions = [r for r in log.get("reductions") or () if r["scorer"] == score["scorer"]]
    found: dict[str, float | None] = {}
    for sample in reductions[0]["samples"] if reductions else ():
        value = sample["value"]
        if isinstance(value, Mapping):
            value = value.get(score["name"], math.nan)
        if isinstance(value, str):
            value = GRADES.get(value, value)
        if not isinstance(value, int | float):
            return {}
        found[str(sample["sample_id"])] = _number(value)
    return found


def _values_of_mean(
    value: float | None, values: Mapping[str, float | None]
) -> dict[str, float | None]:
    """The samples' values where the metric is their mean, and one less them where it is one less their mean."""
    scored = [v for v in values.values() if v is not None]
    if value is None or not scored:
        return {}
    mean = math.fsum(scored) / len(scored)
    if math.isclose(value, mean, rel_tol=1e-9, abs_tol=1e-12):
        return dict(values)
    if math.isclose(value, 1 - mean, rel_tol=1e-9, abs_tol=1e-12):
        return {name: None if v is None else 1 - v for name, v in values.items()}
    return {}


def _number(value: Any) -> float | None:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None
