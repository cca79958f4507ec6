"""One embedded server: is it alive, does it answer, start it, stop it.

Used by the guardian alone. What a server needs to be itself (its command line,
its files, how it says that it is ready) is in the subclasses.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from webhooks_project.engines.errors import EngineError
from webhooks_project.engines.launch import birth
from webhooks_project.engines.layout import Layout
from webhooks_project.engines.locks import Lock

logger = logging.getLogger("webhooks.engines")

START_SECONDS = 90.0
STOP_SECONDS = 10.0
LOG_BYTES = 5_000_000

# What a server is told of the environment it was started from: enough to find
# its libraries. A PGPORT or LC_ALL of whoever came first must not shape it.
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


def environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


class Server(ABC):
    name: str
    stop_signal: signal.Signals
    kill_signal: signal.Signals = signal.SIGKILL

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.log = layout.engine_log(self.name)
        self._lock_path = layout.engine_lock(self.name)
        # Kept open: it tells about the server even after its directory was removed.
        self._lock = Lock(self._lock_path)
        self._child: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def prepare(self) -> None:
        """Make the files ready for a start; called when no process of the server is left."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command line that takes the engine's lock and becomes the server."""

    @abstractmethod
    def answers(self) -> bool:
        """Does it accept work now?"""

    def finish(self) -> None:  # noqa: B027 - not every server needs it
        """What is to be done once it answers, before anybody else uses it."""

    def tidy(self) -> None:  # noqa: B027
        """What is to be removed after a clean stop."""

    def occupied(self) -> bool:
        """Is any process of the server left, main or not?"""
        return self._lock.held()

    def pid(self) -> int | None:
        """The process that holds the lock under its own name, and is no other with the same id."""
        if not self._lock.held():
            return None
        number, _, born = self._lock.read().strip().partition(" ")
        if not number.isdigit() or not born or birth(int(number)) != born:
            return None
        return int(number)

    def running(self) -> bool:
        if self._child is not None and self._child.poll() is not None:
            self._child = None
        return self.pid() is not None

    def start(self) -> None:
        """Start it, or adopt it if it runs. Returns when it answers; raises EngineError."""
        deadline = time.monotonic() + START_SECONDS
        if self._settled(deadline):
            logger.info("%s: adopted the running one, pid %s", self.name, self.pid())
        else:
            self.prepare()
            self._spawn()
            self._wait(
                lambda: self._alive_or_raise() and self.answers(),
                deadline,
                f"{self.name} did not answer within {START_SECONDS:g} s of its start",
            )
            logger.info("%s: started, pid %s", self.name, self.pid())
        self.finish()

    def _settled(self, deadline: float) -> bool:
        """True: it runs and answers. False: nothing of it is left."""

        def settled() -> bool:
            return not self.occupied() or (self.running() and self.answers())

        self._wait(
            settled,
            deadline,
            f"{self.name} (pid {self.pid()}) is there but does not answer; end that process",
        )
        return self.occupied()

    def _wait(self, condition: Callable[[], bool], deadline: float, complaint: str) -> None:
        while not condition():
            if time.monotonic() > deadline:
                raise EngineError(f"{complaint}. {self.last_words()}")
            time.sleep(0.01)

    def _spawn(self) -> None:
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(  # noqa: S603
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.working_directory(),
                env=environment(),
                start_new_session=True,
            )

    def working_directory(self) -> Path:
        return Path("/")

    def _alive_or_raise(self) -> bool:
        status = self._child.poll() if self._child else None
        if status is not None:
            self._child = None
            raise EngineError(f"{self.name} ended with status {status}. {self.last_words()}")
        return True

    def last_words(self) -> str:
        """The last lines of its log, as a sentence to put behind another."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-3:]
        except OSError:
            lines = []
        said = " | ".join(line.strip() for line in lines if line.strip())
        return f"Its log {self.log} ends with: {said}" if said else f"Its log is {self.log}."

    def stop(self) -> None:
        """End it cleanly, and with force after 10 seconds. Returns when nothing of it is left."""
        for sign in (self.stop_signal, self.kill_signal, signal.SIGKILL):
            if self._signal_and_wait(sign):
                self.tidy()
                logger.info("%s: stopped (%s)", self.name, sign.name)
                return
        logger.error("%s: pid %s does not end", self.name, self.pid())

    def _signal_and_wait(self, sign: signal.Signals) -> bool:
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        deadline = time.monotonic() + STOP_SECONDS
        while self.occupied():
            if self._child is not None:
                self._child.poll()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True
