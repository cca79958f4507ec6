"""A program that publishes over HTTP: `python caller.py`, then commands on its standard input.

Commands and answers are as those of `publisher.py`; so is the ledger. It is one loop that writes
bytes and takes answers apart in C, because it shares the machine with what is measured.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import httptools
import uvloop
from load import draft, note, requests
from measuring import percentile

# A request that is not answered by then is an error.
SECONDS = 60


class Connection(asyncio.Protocol):
    """One keep-alive connection, for one request at a time."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._answered: asyncio.Future[bytes] | None = None

    async def post(self, head: bytes, body: bytes) -> bytes:
        """The body of the answer. Raises RuntimeError unless its status is 200 or 202."""
        self._answered = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._transport.write(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))
        async with asyncio.timeout(SECONDS):
            return await self._answered

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        assert self._answered is not None
        status = self._parser.get_status_code()
        if status in (200, 202):
            self._answered.set_result(self._body)
        else:
            self._answered.set_exception(RuntimeError(f"{status}: {self._body[:300]!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(RuntimeError(f"the connection was closed: {error}"))


class Caller:
    """What the commands do. `use` comes first."""

    def use(self, host: str, port: int, key: str) -> dict[str, Any]:
        self._address = host, port
        self._key = key
        return {}

    def publish(
        self,
        ledger: str,
        *,
        topic: str,
        first: int,
        count: int,
        events: int,
        seed: int = 0,
        batch: int = 0,
        connections: int = 1,
    ) -> dict[str, Any]:
        """Publish so many events over so many connections; see `publisher.py` for the plan."""
        draw = random.Random(seed)
        text = note(draw)
        each, size = "{n}" in topic, max(1, batch)
        numbers = iter(range(0, events, size))

        def make() -> tuple[bytes, list[int]] | None:
            start = next(numbers, None)
            if start is None:
                return None
            chosen = range(start, min(start + size, events))
            targets = [first + draw.randrange(count) if each else first for _ in chosen]
            drafts = [
                {"topic": topic.format(n=target), "type": "order", "payload": draft(number, text)}
                for number, target in zip(chosen, targets, strict=True)
            ]
            return json.dumps({"events": drafts} if batch else drafts[0]).encode(), targets

        with open(ledger, "a") as file:

            def note_down(answer: bytes, targets: list[int], called: float, now: float) -> None:
                _write(file, json.loads(answer), targets, 1 if each else count, called, now)

            path = "/api/v1/events/batch" if batch else "/api/v1/events"
            return uvloop.run(self._all(path, connections, make, note_down))

    def nothing(self, *, events: int, seed: int = 0, connections: int = 1) -> dict[str, Any]:
        """So many requests of the same kind to a server that does nothing."""
        draw = random.Random(seed)
        text = note(draw)
        numbers = iter(range(events))

        def make() -> tuple[bytes, list[int]] | None:
            number = next(numbers, None)
            if number is None:
                return None
            topic = f"customer.{draw.randrange(20_000)}.order.created"
            body = {"topic": topic, "type": "order", "payload": draft(number, text)}
            return json.dumps(body).encode(), []

        return uvloop.run(self._all("/api/v1/events", connections, make, lambda *_: None))

    async def _all(
        self,
        path: str,
        connections: int,
        make: Callable[[], tuple[bytes, list[int]] | None],
        answered: Callable[[bytes, list[int], float, float], None],
    ) -> dict[str, Any]:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._address[0]}:{self._address[1]}\r\n"
            f"Authorization: Bearer {self._key}\r\nContent-Type: application/json\r\n"
        ).encode()
        loop = asyncio.get_running_loop()
        opened = [
            (await loop.create_connection(Connection, *self._address))[1]
            for _ in range(connections)
        ]
        calls: list[float] = []

        async def share(connection: Connection) -> None:
            while (request := make()) is not None:
                body, targets = request
                called = time.monotonic()
                answer = await connection.post(head, body)
                now = time.monotonic()
                calls.append(now - called)
                answered(answer, targets, called, now)

        began = time.monotonic()
        await asyncio.gather(*map(share, opened))
        ended = time.monotonic()
        return {
            "began": began,
            "ended": ended,
            "publish_p50": percentile(calls, 50),
            "publish_p99": percentile(calls, 99),
            "publish_longest": max(calls),
        }


def _write(
    file: TextIO, answer: Any, targets: list[int], reach: int, called: float, returned: float
) -> None:
    published = answer.get("data", [answer])
    file.writelines(
        f"{event['id']} {target} {reach} {called} {called} {returned}\n"
        for event, target in zip(published, targets, strict=True)
    )


def main() -> None:
    print(json.dumps({"ready": True}), flush=True)
    caller = Caller()
    for request in requests(iter(sys.stdin.readline, "")):
        print(json.dumps(getattr(caller, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
