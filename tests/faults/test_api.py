"""The HTTP API: its processes and its database killed under load."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from uuid import uuid4

import psutil
import pytest
from django.db import connection

from api.keys import create_key
from tests.faults.installation import Web
from tests.faults.load import Accepted
from tests.faults.report import Row
from tests.faults.test_postgresql import nothing_was_blamed
from tests.faults.waiting import PATIENCE, eventually
from tests.faults.world import World

CONNECTIONS = 16
LANES = 16
# What one connection sends in a second, at most.
RATE = 15.0
PATH = "/api/v1/events"


@dataclass
class Callers:
    """Programs that publish over HTTP, each on a connection of its own, until the block is over.

    Each event has an id, and is sent until it is answered: with 202, or with 200 if a request
    before, of which nobody was told, had been recorded.
    """

    world: World
    web: Web
    topics: list[str]
    key: str
    answers: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    told_late: int = 0
    longest: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __enter__(self) -> Callers:
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(CONNECTIONS)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads), "a request hangs"
        assert not self.wrong, self.wrong[:5]

    def _run(self, number: int) -> None:
        opened: http.client.HTTPConnection | None = None
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            event_id = str(uuid4())
            topic = self.topics[number % len(self.topics)]
            body = json.dumps({"topic": topic, "id": event_id, "payload": {"by": number}})
            began, tries = time.monotonic(), 0
            while True:
                tries += 1
                try:
                    opened = opened or http.client.HTTPConnection(*self.web.address, timeout=10)
                    status = self._send(opened, body, event_id, tries)
                except (OSError, http.client.HTTPException):
                    status = 0
                if status in (200, 202):
                    break
                if opened is not None:
                    opened.close()
                opened = None
                with self._lock:
                    self.broken += 1
                if status not in (0, 503) or time.monotonic() > began + PATIENCE:
                    self.wrong.append(f"{event_id} was answered with {status}")
                    return
                time.sleep(0.1)  # as a program waits before it tries again
            now = time.monotonic()
            with self._lock:
                self.world.ledger.accepted.append(Accepted(event_id, topic, began, now))
                self.longest = max(self.longest, now - began)
            due = max(due + 1 / RATE, now - 1)
        if opened is not None:
            opened.close()

    def _send(
        self, opened: http.client.HTTPConnection, body: str, event_id: str, tries: int
    ) -> int:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        opened.request("POST", PATH, body, headers)
        response = opened.getresponse()
        answer = response.read()
        with self._lock:
            self.answers[response.status] += 1
        if response.status in (200, 202):
            said = json.loads(answer)
            if said["id"] != event_id or said["subscriptions"] != 1:
                self.wrong.append(f"{event_id} was answered with {answer!r}")
            if said["already_published"] != (response.status == 200):
                self.wrong.append(f"{event_id}: {response.status} with {answer!r}")
            if response.status == 200:
                with self._lock:
                    self.told_late += 1
                if tries == 1:
                    self.wrong.append(f"{event_id} was known before it was sent")
        elif response.status == 503 and not response.headers["Retry-After"]:
            self.wrong.append("503 without Retry-After")
        return response.status

    def go_on(self) -> float:
        """Wait until all connections got an answer to something that they sent from now on."""
        began = time.monotonic()

        def all_did() -> bool:
            later = {one.topic for one in self.world.ledger.accepted if one.began > began}
            return later >= set(self.topics)

        eventually(all_did, "events being accepted from every connection")
        return time.monotonic() - began


def kill_a_web_process(web: Web) -> None:
    """The one that has answered most, of those that answer."""
    main = psutil.Process(web.pid)
    serving = sorted(main.children(), key=lambda one: sum(one.cpu_times()[:2]))
    assert serving, "there is nothing to kill"
    os.kill(serving[-1].pid, signal.SIGKILL)
    eventually(lambda: len(main.children()) >= len(serving), "a new web process")


@pytest.mark.fault(
    f"a web process killed (SIGKILL) three times, PostgreSQL killed (SIGKILL), a backend of it "
    f"too, while programs publish over {CONNECTIONS} connections and repeat what is not answered",
    "every 202 is in the tables and arrives; nothing arrives of which nobody was told, at least by "
    "the repetition with the same id; no other error than 503",
)
def test_what_was_answered_is_recorded_and_what_is_recorded_was_answered(
    world: World, web: Web, measured: Row
) -> None:
    site = world.receivers.site()
    topics = [f"http.{n}" for n in range(LANES)]
    for topic in topics:
        world.subscribe(site, [topic])
    world.installation.standard()
    _, key = create_key("faults", ["events:write"], all_tenants=True)
    gaps = []
    with Callers(world, web, topics, key) as callers:
        callers.go_on()
        for break_it in (
            lambda: kill_a_web_process(web),
            lambda: world.postgresql.restart(signal.SIGKILL),
            lambda: kill_a_web_process(web),
            world.postgresql.kill_a_child,
            lambda: kill_a_web_process(web),
        ):
            broken = time.monotonic()
            break_it()
            callers.go_on()
            gaps.append(time.monotonic() - broken)
    settled = world.wait_until_settled()
    found = nothing_was_blamed(world, crashed=True)
    told = {one.id for one in world.ledger.accepted}
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM deliveries_event")
        recorded = {row[0] for row in cursor.fetchall()}
    assert recorded == told
    assert {one.id for one in world.receivers.requests} == told
    assert callers.broken, "nothing broke"
    measured.add(
        events=found.accepted,
        accepted_at_once=callers.answers[202],
        requests_without_an_answer=callers.broken - callers.answers[503],
        answered_with_503=callers.answers[503],
        told_by_a_repetition=callers.told_late,
        all_connections_go_on_after=f"{max(gaps):.1f} s",
        longest_wait_of_an_event=f"{callers.longest:.1f} s",
        unknown_outcomes=found.unknown,
        sent_twice=found.duplicates,
        all_settled_after=f"{settled:.1f} s",
    )
