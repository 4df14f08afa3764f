"""Many questions at once, in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


def answers_of(
    questions: Iterable[Question],
    ask: Callable[[Question], Answer],
    num_threads: int,
    stop: Event,
) -> Iterator[tuple[Question, Answer | Exception]]:
    """Ask every question, and hand out what comes back as it comes.

    Where nothing more is to be asked, what is under way ends and is handed out. An interrupt does not wait for it: the
    threads are daemons.

    Args:
        questions: What is asked.
        ask: Asks one.
        num_threads: Questions at once.
        stop: Set by anybody when nothing more is to be asked; set here once the caller has enough.

    Yields:
        A question with its answer, or with the error that came instead.
    """
    todo, lock = iter(questions), Lock()
    done: SimpleQueue[tuple[Question, Answer | Exception] | None] = SimpleQueue()

    def work() -> None:
        while not stop.is_set():
            with lock:
                question = next(todo, None)
            if question is None:
                break
            try:
                outcome: Answer | Exception = ask(question)
            except Exception as error:  # handed to the thread that waits
                outcome = error
            done.put((question, outcome))
        done.put(None)

    for _ in range(num_threads):
        Thread(target=work, name="asking", daemon=True).start()
    try:
        while num_threads:
            result = done.get()
            if result is None:
                num_threads -= 1
            else:
                yield result
    finally:
        stop.set()
