"""Both clients behind one face, so that each test is written once and holds for both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import httpx
from webhooks_client import AsyncClient, AsyncListing, Client


class Waiting:
    """An async client, and what hangs below it, whose coroutines are run to their end.

    What is iterated over comes as a list.
    """

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return Waiting(found, self._runner)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = found(*args, **kwargs)
            if inspect.iscoroutine(result):
                return self._runner.run(result)
            return Waiting(result, self._runner) if isinstance(result, AsyncListing) else result

        return call

    def __iter__(self) -> Any:
        async def all_of() -> list[Any]:
            return [one async for one in self._target]

        return iter(self._runner.run(all_of()))


class Clients:
    """Makes clients of one kind, and closes them."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._runner = asyncio.Runner()
        self._made: list[Any] = []

    def make(
        self,
        base_url: str,
        key: str = "whk_test",
        handler: Callable[[httpx.Request], httpx.Response] | None = None,
        **options: Any,
    ) -> Any:
        """A client; `handler` answers in the place of a server."""
        if handler is not None:
            options["transport"] = httpx.MockTransport(handler)
        made: Any
        if self._kind == "sync":
            made = Client(base_url, key, **options)
        else:
            made = Waiting(AsyncClient(base_url, key, **options), self._runner)
        self._made.append(made)
        return made

    def close(self) -> None:
        for one in self._made:
            one.close()
        self._runner.close()
