"""Prompts as a folder of lm-evaluation-harness tasks, which their users run with `--include_path`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steermoe.errors import PromptError
from steermoe.harness.prompt_tasks import (
    PROMPT_TASKS,
    UNSCORED,
    PromptTask,
    json_lines,
    prompts_by_task,
)
from steermoe.records import Prompt

FUNCTIONS = "steermoe_functions.py"

_YAML = """\
# {meaning}
task: steermoe_{name}
custom_dataset: !function steermoe_functions.{name}_prompts
test_split: test
output_type: generate_until
num_fewshot: 0
doc_to_text: "{{{{prompt}}}}"
doc_to_target: ""
generation_kwargs:
  until: []
  do_sample: false
  max_gen_toks: {max_new_tokens}
process_results: !function steermoe_functions.{name}_results
metric_list:
{metrics}
metadata:
  version: 1.0
"""

_METRIC = """\
  - metric: {name}
    aggregation: {aggregation}
    higher_is_better: {higher}
"""

_HEADER = '''\
"""Prompts and judge of the tasks in this folder. They need the package steermoe."""

from pathlib import Path

from steermoe.harness.lm_eval_scoring import read_prompts, results

HERE = Path(__file__).parent
'''

_FUNCTION = """

def {name}_prompts(**_):
    return read_prompts(HERE / "{name}.jsonl")


def {name}_results(doc, replies):
    return results("{name}", doc, replies)
"""

_README = """\
# steermoe tasks for lm-evaluation-harness

Requests only; the judge is steermoe's keyword judge. Replies that it cannot judge are in no rate: `unscored_rate` says
how many they are.

    lm_eval run --model hf --model_args pretrained=MODEL --include_path THIS_FOLDER \\
      --tasks {tasks} --apply_chat_template --log_samples --output_path OUT{system}
"""


def write_lm_eval_tasks(
    prompts: Sequence[Prompt], folder: Path, max_new_tokens: int
) -> tuple[list[Path], tuple[str, ...]]:
    """Write one task for each kind of prompts, and a group of all.

    Args:
        prompts: The prompts. A task of this kind has one user turn a prompt; a system turn that all prompts share is
            given on the command line, which the README there says.
        folder: Where to; it is made.
        max_new_tokens: Most tokens of a reply.

    Returns:
        The files, and notes on what was left out.

    Raises:
        PromptError: There is no prompt that such a task can hold.
    """
    system_prompts = {_system_prompt(prompt) for prompt in prompts}
    system = system_prompts.pop() if len(system_prompts) == 1 else ""
    single = [p for p in prompts if len(p.messages) == 1 + (_system_prompt(p) == system != "")]
    notes = []
    if left := len(prompts) - len(single):
        notes.append(
            f"{left} prompts have several turns or a system turn of their own, which lm-eval tasks do not hold; "
            "--format inspect writes them"
        )
    if not single:
        raise PromptError(f"no prompt has one turn alone: {notes[0]}")
    found = prompts_by_task(single)
    tasks = [task for task in PROMPT_TASKS if task.name in found.by_task]
    folder.mkdir(parents=True, exist_ok=True)
    contents = {FUNCTIONS: _HEADER + "".join(_FUNCTION.format(name=task.name) for task in tasks)}
    for task in tasks:
        rows = [
            {
                "prompt_id": prompt.prompt_id,
                "prompt": prompt.messages[-1]["content"],
                "category": prompt.category,
            }
            for prompt in found.by_task[task.name]
        ]
        contents[f"{task.name}.jsonl"] = json_lines(rows)
        contents[f"steermoe_{task.name}.yaml"] = _task_yaml(task, max_new_tokens)
    names = [f"steermoe_{task.name}" for task in tasks]
    contents["steermoe.yaml"] = "".join(
        ["group: steermoe\ntask:\n", *(f"  - {n}\n" for n in names)]
    )
    given = f" \\\n      --system_instruction {system!r}" if system else ""
    contents["README.md"] = _README.format(tasks="steermoe", system=given)
    written = []
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
        written.append(folder / name)
    return written, (*notes, *found.notes)


def _system_prompt(prompt: Prompt) -> str:
    first = prompt.messages[0]
    return first["content"] if first["role"] == "system" else ""


def _task_yaml(task: PromptTask, max_new_tokens: int) -> str:
    metrics = [
        _METRIC.format(name=rate, aggregation="nanmean", higher=str(rate == "refusal_rate").lower())
        for rate in task.rates
    ]
    metrics.append(_METRIC.format(name=UNSCORED, aggregation="mean", higher="false"))
    return _YAML.format(
        name=task.name,
        meaning=task.meaning,
        max_new_tokens=max_new_tokens,
        metrics="".join(metrics).rstrip("\n"),
    )
