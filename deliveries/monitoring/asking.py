"""Questions to servers that may never answer, asked at the same time and waited for briefly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

from django.db import connections

Answer = TypeVar("Answer")


class NoAnswer(Exception):
    """A question is not answered yet."""


_lock = threading.Lock()
_under_way: dict[Callable[[], Any], Future[Any]] = {}


def ask(
    questions: Mapping[str, Callable[[], Answer]], seconds: float
) -> dict[str, Answer | Exception]:
    """The answer to each question, or the exception that it raised.

    `NoAnswer` for one that is not answered after `seconds`. That one goes on, in a thread of
    its own, and is not asked again before it is over: a server that hangs costs one thread for
    each question.
    """
    with _lock:
        futures = {
            name: _under_way.get(question) or _begin(name, question)
            for name, question in questions.items()
        }
    wait(futures.values(), timeout=seconds)
    return {name: _answer(future, seconds) for name, future in futures.items()}


def _begin(name: str, question: Callable[[], Any]) -> Future[Any]:
    future = _under_way[question] = Future()
    threading.Thread(target=_run, args=(question, future), name=f"ask {name}", daemon=True).start()
    return future


def _run(question: Callable[[], Any], future: Future[Any]) -> None:
    answer: Any = None
    failed: Exception | None = None
    try:
        answer = question()
    except Exception as error:
        failed = error
    finally:
        connections.close_all()
        with _lock:
            del _under_way[question]
    if failed is None:
        future.set_result(answer)
    else:
        future.set_exception(failed)


def _answer(future: Future[Any], seconds: float) -> Any:
    if not future.done():
        return NoAnswer(f"no answer within {seconds:g} s")
    return future.exception() or future.result()


class Kept(Generic[Answer]):
    """What `make` returned, made again once it is older than `seconds`. Thread-safe."""

    def __init__(self, make: Callable[[], Answer], seconds: float) -> None:
        self._make = make
        self._seconds = seconds
        self._lock = threading.Lock()
        self._made: tuple[float, Answer] | None = None

    def get(self) -> Answer:
        with self._lock:
            if self._made is None or time.monotonic() - self._made[0] > self._seconds:
                answer = self._make()
                self._made = time.monotonic(), answer
            return self._made[1]

    def forget(self) -> None:
        """Make it again when it is asked for next."""
        with self._lock:
            self._made = None
