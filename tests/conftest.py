"""Fixtures that every test may want."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import hypothesis
import pytest

# The same examples each time, and no deadline: a busy machine is no bug.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")

Answer = TypeVar("Answer")


@pytest.fixture
def configure(settings: Any) -> Callable[..., None]:
    """Change `settings.WEBHOOKS` for one test: `configure(circuit_threshold=2)`."""

    def change(**values: Any) -> None:
        settings.WEBHOOKS = replace(settings.WEBHOOKS, **values)

    return change


@pytest.fixture
def at_once() -> Callable[..., list[Any]]:
    """Run a function in many threads that begin together, each with a connection of its own."""
    from django.db import connection

    def run(function: Callable[[int], Answer], threads: int) -> list[Answer]:
        barrier = threading.Barrier(threads)

        def one(number: int) -> Answer:
            try:
                barrier.wait(30)
                return function(number)
            finally:
                connection.close()

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, range(threads)))

    return run
