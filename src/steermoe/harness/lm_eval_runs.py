"""Tasks of lm-evaluation-harness on a checkpoint, and what they found: `lm_eval:TASKS`."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steermoe.errors import ConfigError, RunDirectoryError
from steermoe.harness.figures import Figure, Values
from steermoe.harness.processes import Target, missing_by, run_tool, tool_version

DISTRIBUTION, EXTRA = "lm-eval", "lm-eval"


def lm_eval_version(target: Target) -> str:
    """`lm_eval 0.4.13`, as tables name the source.

    Raises:
        ConfigError: It is not installed.
    """
    return f"lm_eval {tool_version(target.python, DISTRIBUTION, EXTRA)}"


_UNKNOWN = """
import json, sys
from lm_eval.tasks import TaskManager
place, *names = sys.argv[1:]
manager = TaskManager(include_path=place or None)
print(json.dumps([n for n in names if not n.endswith((".yaml", ".yml")) and not manager.match_tasks([n])]))
"""


def check_lm_eval(target: Target, tasks: str, include_path: Path | None = None) -> None:
    """Refuse tasks that lm-eval does not know, before anything runs.

    Raises:
        ConfigError: It does not know one, or is not installed.
    """
    lm_eval_version(target)
    place = str(include_path) if include_path is not None else ""
    if missing := missing_by(target.python, _UNKNOWN, [place, *tasks.split(",")]):
        more = f" and in {include_path}" if include_path is not None else ""
        raise ConfigError(
            f"benchmark 'lm_eval:{tasks}': there is no task {', '.join(missing)} in lm-eval{more}; `lm_eval ls tasks` "
            "lists what there is"
        )


def run_lm_eval(
    target: Target, tasks: str, folder: Path, include_path: Path | None = None
) -> list[Figure]:
    """Run tasks in a process of their own; a folder that holds their results already is only read.

    Args:
        target: The model.
        tasks: Names of tasks or groups, separated by commas.
        folder: Where the results and samples are written.
        include_path: A folder of more tasks.

    Raises:
        ConfigError: lm-eval is not installed.
        SteerMoEError: It failed.
    """
    if not _results_files(folder):
        lm_eval_version(target)
        run_tool(lm_eval_command(target, tasks, folder, include_path), folder)
    return read_lm_eval(folder)


def lm_eval_command(
    target: Target, tasks: str, folder: Path, include_path: Path | None = None
) -> list[str]:
    """The command line."""
    model: dict[str, object] = {"pretrained": target.checkpoint, "dtype": target.dtype}
    if target.revision:
        model["revision"] = target.revision
    if target.trust_remote_code:
        model["trust_remote_code"] = True
    if target.template_kwargs:
        model["chat_template_args"] = dict(target.template_kwargs)
    command = [target.python, "-m", "lm_eval", "run", "--model", "hf"]
    command += ["--model_args", json.dumps(model), "--tasks", tasks, "--apply_chat_template"]
    command += ["--batch_size", str(target.batch_size), "--log_samples", "--output_path"]
    command += [str(folder)]
    if target.system_prompt:
        command += ["--system_instruction", target.system_prompt]
    if target.device:
        command += ["--device", target.device]
    if target.limit is not None:
        command += ["--limit", str(target.limit)]
    if include_path is not None:
        command += ["--include_path", str(include_path)]
    return command


def read_lm_eval(folder: Path) -> list[Figure]:
    """Every metric of every task and group in a folder that lm-eval has written, samples with it.

    Raises:
        RunDirectoryError: There are no results, or they cannot be read.
    """
    files = _results_files(folder)
    if not files:
        raise RunDirectoryError(f"{folder} holds no results of lm-eval; run its tasks first")
    try:
        found = json.loads(files[-1].read_text(encoding="utf-8"))
        samples = _samples(files[-1])
        return [
            figure
            for task, metrics in found["results"].items()
            for figure in _figures(task, metrics, found, samples)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunDirectoryError(
            f"{files[-1]} is not a results file of lm-eval ({type(error).__name__}: {error}); remove {folder} and run "
            "again"
        ) from None


def _results_files(folder: Path) -> list[Path]:
    """Results, the newest last: their names end in the time."""
    return sorted(folder.rglob("results_*.json"), key=lambda path: path.name)


def _figures(
    task: str, metrics: Mapping[str, Any], found: Mapping[str, Any], samples: Mapping[Any, Values]
) -> list[Figure]:
    n = _num_samples(task, found)
    figures = []
    for key, value in metrics.items():
        name, comma, which = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        stderr = metrics.get(f"{name}_stderr,{which}")
        values = samples.get((task, which, name), {})
        if not _is_mean(value, values):
            values = {}
        num_unscored = sum(v is None for v in values.values())
        figures.append(
            Figure(
                task,
                name if which == "none" else key,
                _number(value),
                _number(stderr),
                len(values) - num_unscored if values else n,
                num_unscored,
                values,
            )
        )
    return figures


def _num_samples(task: str, found: Mapping[str, Any]) -> int:
    """Samples of a task; of a group, those of all its tasks."""
    if task in found["n-samples"]:
        return int(found["n-samples"][task]["effective"])
    return sum(_num_samples(part, found) for part in found["group_subtasks"].get(task, ()))


def _samples(results: Path) -> dict[tuple[str, str, str], Values]:
    """By task, filter and metric: what each sample adds to it. Of the same run as a results file."""
    time = results.stem.removeprefix("results_")
    found: dict[tuple[str, str, str], dict[str, float | None]] = defaultdict(dict)
    for path in sorted(results.parent.glob(f"samples_*_{time}.jsonl")):
        task = path.stem.removeprefix("samples_").removesuffix(f"_{time}")
        for line in path.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            which = sample.get("filter", "none")
            for name in sample.get("metrics", ()):
                value = sample.get(name)
                if isinstance(value, int | float):
                    sample_id = str(sample.get("doc_hash") or sample["doc_id"])
                    found[task, which, name][f"{sample['doc_id']}:{sample_id}"] = _number(value)
    return dict(found)


def _is_mean(value: Any, values: Values) -> bool:
    """Whether a reported value is the mean of its scored samples: not all metrics are."""
    scored = [v for v in values.values() if v is not None]
    if not scored or not isinstance(value, int | float):
        return False
    return math.isclose(value, math.fsum(scored) / len(scored), rel_tol=1e-9, abs_tol=1e-12)


def _number(value: Any) -> float | None:
    """A number; None where there is none (`N/A`), or it is not finite."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None
