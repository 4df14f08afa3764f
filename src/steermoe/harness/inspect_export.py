"""Prompts as a file of Inspect tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steermoe.harness.prompt_tasks import PROMPT_TASKS, json_lines, prompts_by_task
from steermoe.records import Prompt

TASK_FILE = "steermoe_tasks.py"

_HEADER = '''\
"""Requests as Inspect tasks, with steermoe's judge as scorer. They need the package steermoe.

    inspect eval {file}@{first} --model hf/local -M model_path=MODEL -M do_sample=false

-M do_sample=false makes replies greedy; -T judge=NAME takes another judge, -T max_tokens=N other lengths of replies.
"""

from pathlib import Path

from inspect_ai import task

from steermoe.harness.inspect_tasks import prompt_task

HERE = Path(__file__).parent
'''

_TASK = '''

@task
def steermoe_{name}(judge: str = "keyword", max_tokens: int = {max_new_tokens}):
    """{meaning}"""
    return prompt_task("{name}", HERE / "{name}.jsonl", judge, max_tokens)
'''


def write_inspect_tasks(
    prompts: Sequence[Prompt], folder: Path, max_new_tokens: int
) -> tuple[list[Path], tuple[str, ...]]:
    """Write one task for each kind of prompts.

    Args:
        prompts: The prompts, with whatever turns they have.
        folder: Where to; it is made.
        max_new_tokens: Most tokens of a reply.

    Returns:
        The files, and notes on what was left out.

    Raises:
        PromptError: No prompt belongs to any task.
    """
    found = prompts_by_task(prompts)
    tasks = [task for task in PROMPT_TASKS if task.name in found.by_task]
    folder.mkdir(parents=True, exist_ok=True)
    header = _HEADER.format(file=TASK_FILE, first=f"steermoe_{tasks[0].name}")
    contents = {
        TASK_FILE: header
        + "".join(
            _TASK.format(name=task.name, meaning=task.meaning, max_new_tokens=max_new_tokens)
            for task in tasks
        )
    }
    for task in tasks:
        contents[f"{task.name}.jsonl"] = json_lines(
            [
                {
                    "id": prompt.prompt_id,
                    "input": [dict(message) for message in prompt.messages],
                    "metadata": {"category": prompt.category, "goal": prompt.goal},
                }
                for prompt in found.by_task[task.name]
            ]
        )
    written = []
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
        written.append(folder / name)
    return written, found.notes
