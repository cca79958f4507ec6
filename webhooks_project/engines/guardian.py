"""The process that starts the engines, keeps them alive and ends them with their last user.

Every user of the engines holds a shared lock; the guardian waits for the
exclusive one. When it gets it, nobody is left. Then it stops the engines, lets
go of its own lock, and of the users' lock last: who waited there finds no
guardian and starts a new one.

A guardian that is killed leaves the engines running; the next one adopts them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable

from webhooks_project.engines.errors import EngineError
from webhooks_project.engines.layout import ANOTHER, ENGINES, POSTGRESQL, READY, Layout
from webhooks_project.engines.locks import Lock
from webhooks_project.engines.postgresql import PostgreSQL
from webhooks_project.engines.server import Server
from webhooks_project.engines.valkey import Valkey

logger = logging.getLogger("webhooks.engines")

TICK_SECONDS = 0.2
LONGEST_PAUSE = 30.0


def make_server(name: str, layout: Layout, *, namespaces: bool = True) -> Server:
    if name == POSTGRESQL:
        return PostgreSQL(layout, namespaces=namespaces)
    return Valkey(layout)


def next_pause(pause: float) -> float:
    """Seconds to wait before the next try to start an engine that did not come up."""
    return min(max(1.0, 2 * pause), LONGEST_PAUSE)


class Guardian:
    """One life: `run()` returns when the engines are stopped."""

    def __init__(
        self, layout: Layout, report: Callable[[str], None], *, namespaces: bool = True
    ) -> None:
        self._layout = layout
        self._report = report
        self._servers = {name: make_server(name, layout, namespaces=namespaces) for name in ENGINES}
        self._up: tuple[str, ...] = ()
        self._pauses: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._over = threading.Event()
        self._alone = False
        self._guard = Lock(layout.guard_lock)
        self._users = Lock(layout.users)

    def end(self) -> None:
        """Ask for the end, users or not; `run()` returns soon. Safe in a signal handler."""
        self._over.set()

    def run(self) -> None:
        if not self._guard.try_take(seconds=1):
            self._report(ANOTHER)
            return
        self._guard.write(f"\n{os.getpid()}\n")
        threading.Thread(target=self._wait_for_the_last_user, daemon=True).start()
        try:
            self._keep()
        except EngineError as error:
            logger.error("%s", error)
            self._report(str(error))
        except Exception as error:
            logger.exception("the guardian fails")
            self._report(f"The embedded engines did not start: {error}")
        finally:
            self._stop()

    def _wait_for_the_last_user(self) -> None:
        self._users.take()
        self._alone = True
        self._over.set()

    def _keep(self) -> None:
        """Until the end: start what is wanted and does not run. The first start must succeed."""
        for name in self._wanted():
            self._servers[name].start()
        self._tell()
        self._report(READY)
        while not self._over.wait(TICK_SECONDS):
            if not self._guard.current():
                logger.info("%s is gone; ending", self._layout.directory)
                return
            self._tell()
            for name in self._wanted():
                if name not in self._up:
                    self._start_again(name)

    def _wanted(self) -> list[str]:
        """What users asked for, and what runs already: a dead guardian's engines are adopted."""
        with contextlib.suppress(FileNotFoundError):
            asked = self._layout.wanted.read_text().split()
            return [n for n, server in self._servers.items() if n in asked or server.occupied()]
        return [n for n, server in self._servers.items() if server.occupied()]

    def _tell(self) -> None:
        """Write down which engines are up, for the users to read."""
        up = tuple(n for n in self._wanted() if self._servers[n].running())
        for name in self._up:
            if name not in up:
                logger.warning("%s: its process is gone", name)
        self._up = up
        said = " ".join((READY, *up)) + f"\n{os.getpid()}\n"
        if self._guard.read() != said:
            self._guard.write(said)

    def _start_again(self, name: str) -> None:
        if time.monotonic() < self._not_before.get(name, 0):
            return
        try:
            self._servers[name].start()
        except EngineError as error:
            pause = self._pauses[name] = next_pause(self._pauses.get(name, 0))
            self._not_before[name] = time.monotonic() + pause
            logger.error("%s; next try in %g s", error, pause)
        else:
            self._pauses.pop(name, None)
            self._tell()

    def _stop(self) -> None:
        self._guard.write("\n")
        stops = [threading.Thread(target=server.stop) for server in self._servers.values()]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()
        if self._alone:  # otherwise somebody still wants them, from the next guardian
            with contextlib.suppress(OSError):
                self._layout.wanted.unlink()
            with contextlib.suppress(OSError):
                self._layout.run.rmdir()
        self._guard.close()
        self._users.close()


def main(directory: str, report_fd: int, *, namespaces: bool) -> None:
    """The body of the guardian's process; `report_fd` takes one line and is closed."""
    layout = Layout.of(directory)
    os.umask(0o077)
    logging.basicConfig(
        filename=layout.log,
        level=logging.INFO,
        format="%(asctime)s guardian[%(process)d] %(message)s",
    )

    def report(line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(report_fd, line.encode())
            os.close(report_fd)

    guardian = Guardian(layout, report, namespaces=namespaces)
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: guardian.end())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    guardian.run()
