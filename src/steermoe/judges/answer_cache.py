"""What a server answered, kept on disk line by line, so that nothing is asked twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from steermoe.errors import JudgeError


class AnswerCache:
    """Answers by the hash of what was asked.

    Each answer is one line of JSON, written at once: a process that is killed loses at most the line it was writing,
    which is left out when the file is read again.

    Args:
        path: The file; None keeps answers in memory only.

    Attributes:
        num_unreadable: Lines of the file that are no answer.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = Lock()
        self._answers: dict[str, Mapping[str, object]] = {}
        self._ends_with_a_line = True
        self.num_unreadable = 0
        if path is not None:
            self._read(path)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Mapping[str, object] | None:
        """The answer that is kept under a key."""
        with self._lock:
            return self._answers.get(key)

    def put(self, key: str, answer: Mapping[str, object]) -> None:
        """Keep an answer.

        Raises:
            JudgeError: It cannot be written.
        """
        with self._lock:
            self._answers[key] = dict(answer)
            if self.path is None:
                return
            line = json.dumps({"key": key, **answer}, ensure_ascii=False) + "\n"
            before = "" if self._ends_with_a_line else "\n"
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(before + line)
            except OSError as error:
                raise JudgeError(
                    f"the judge's answers cannot be kept in {self.path}: {error.strerror}; free some space, or make "
                    "the folder writable"
                ) from None
            self._ends_with_a_line = True

    def _read(self, path: Path) -> None:
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise JudgeError(
                f"the judge's answers in {path} cannot be read: {error.strerror}"
            ) from None
        self._ends_with_a_line = not raw or raw.endswith(b"\n")
        for line in raw.splitlines():
            try:
                entry = json.loads(line)
                self._answers[entry.pop("key")] = entry
            except (ValueError, KeyError, TypeError, AttributeError):
                self.num_unreadable += 1  # the line that a killed process was writing
