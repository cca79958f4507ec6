"""A pair of embedded engines as its users see it: be sure that it runs, then use it."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from webhooks_project.engines.errors import EngineError
from webhooks_project.engines.layout import ANOTHER, ENGINES, READY, Layout
from webhooks_project.engines.locks import Lock
from webhooks_project.engines.server import START_SECONDS

CHECKOUT = Path(__file__).resolve().parents[2]


class Cluster:
    """The engines below one directory. Thread-safe; made anew in no time, nothing is touched.

    From the first `ensure()` until `release()`, or until this process and its
    forked children are gone, the process counts as a user of the engines, and
    a guardian keeps them running. They stop with their last user. Data stays.
    """

    def __init__(
        self,
        directory: str | Path,
        engines: Iterable[str] = ENGINES,
        *,
        namespaces: bool = True,
    ) -> None:
        self.layout = Layout.of(directory)
        self.engines = frozenset(engines)
        self._namespaces = namespaces
        self._mutex = threading.Lock()
        self._users: Lock | None = None
        self._guard: Lock | None = None
        os.register_at_fork(after_in_child=self._renew_mutex)

    def _renew_mutex(self) -> None:
        self._mutex = threading.Lock()

    def ensure(self) -> None:
        """Return when the engines accept work; start what does not run.

        Costs a few microseconds when all is well, 0.2 s for a start, about a
        second for the very first one. Raises EngineError with the reason and
        what to do.
        """
        if self._well():
            return
        with self._mutex:
            if not self._well():
                self._start()

    def release(self) -> None:
        """Stop being a user. The engines stop soon if this was the last."""
        with self._mutex:
            for lock in (self._users, self._guard):
                if lock is not None:
                    lock.close()
            self._users = self._guard = None

    def wait_until_stopped(self, seconds: float = 30) -> bool:
        """After `release()`: wait until no guardian is left. False if one still is after that."""
        deadline = time.monotonic() + seconds
        while self._guarded():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _guarded(self) -> bool:
        if not self.layout.guard_lock.exists():
            return False
        with Lock(self.layout.guard_lock) as guard:
            return guard.held()

    def pid(self, engine: str) -> int | None:
        """The process id of a running engine."""
        with Lock(self.layout.engine_lock(engine)) as lock:
            number = lock.read().partition(" ")[0]
            return int(number) if lock.held() and number.isdigit() else None

    def guardian_pid(self) -> int | None:
        """The process id of the guardian, if there is one."""
        if not self.layout.guard_lock.exists():
            return None
        with Lock(self.layout.guard_lock) as guard:
            number = guard.read().partition("\n")[2].strip()
            return int(number) if guard.held() and number.isdigit() else None

    def _well(self) -> bool:
        guard = self._guard
        if self._users is None or guard is None:
            return False
        try:
            return guard.held() and self._ready(guard)
        except OSError:  # closed by a release() of another thread
            return False

    def _ready(self, guard: Lock) -> bool:
        said = guard.read().partition("\n")[0].split()
        if said[:1] != [READY] or not self.engines <= set(said[1:]):
            return False
        # The guardian looks five times a second; this looks now.
        return all(self._occupied(engine) for engine in self.engines)

    def _occupied(self, engine: str) -> bool:
        with Lock(self.layout.engine_lock(engine)) as lock:
            return lock.held()

    def _start(self) -> None:
        self._make_directory(self.layout.directory)
        if self._users is None or not self._users.current():
            if self._users is not None:
                self._users.close()
            users = Lock(self.layout.users)
            users.share()  # waits while a guardian stops the engines after their last user
            self._users = users
        self._make_directory(self.layout.run)  # now: it goes with the last user
        with Lock(self.layout.start_lock) as start:
            start.take()
            self._ask()
            if self._guard is not None:
                self._guard.close()
            self._guard = Lock(self.layout.guard_lock)
            self._wait(self._guard)

    def _make_directory(self, place: Path) -> None:
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"{place} is needed for the embedded engines: {error}. "
                "Set WEBHOOKS_LOCAL_DIR to a directory that can be written."
            ) from error
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise EngineError(
                f"{place} belongs to user {found.st_uid}, and this is user {os.geteuid()}. "
                "Start as that user, remove it, or set WEBHOOKS_LOCAL_DIR to another place."
            )
        if place == self.layout.run and found.st_mode & 0o077:
            raise EngineError(f"{place} is open to other users: chmod 700 it, or remove it.")

    def _ask(self) -> None:
        """Add our engines to what the guardian keeps running."""
        asked: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            asked.update(self.layout.wanted.read_text().split())
        if not self.engines <= asked:
            fresh = self.layout.wanted.with_suffix(".new")
            fresh.write_text(" ".join(sorted(asked | self.engines)))
            fresh.replace(self.layout.wanted)

    def _wait(self, guard: Lock) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not (guard.held() and self._ready(guard)):
            if not guard.held():
                guard.write("\n")  # what a killed guardian said is true no longer
                said = self._start_guardian(deadline)
                if said not in (READY, ANOTHER):
                    raise EngineError(said)
            elif time.monotonic() > deadline:
                raise EngineError(
                    f"The embedded engines were not ready within {START_SECONDS:g} s; "
                    f"{self.layout.log} says why."
                )
            else:
                time.sleep(0.01)

    def _start_guardian(self, deadline: float) -> str:
        """Start one and wait for its report."""
        reader, writer = os.pipe()
        try:
            try:
                self._spawn_guardian(writer)
            finally:
                os.close(writer)
            # One write of less than a pipe's buffer, or the end of a guardian that died.
            readable, _, _ = select.select([reader], [], [], max(0, deadline - time.monotonic()))
            said = os.read(reader, 65536).decode(errors="replace") if readable else ""
        finally:
            os.close(reader)
        return said or f"The embedded engines did not start; {self.layout.log} says why."

    def _spawn_guardian(self, report: int) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        path = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self.layout.log.open("ab") as log:
            subprocess.run(  # noqa: S603
                [
                    sys.executable,
                    "-m",
                    "webhooks_project.engines",
                    str(self.layout.directory),
                    str(report),
                    *([] if self._namespaces else ["--no-namespaces"]),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=CHECKOUT,
                env=kept | {"PYTHONPATH": os.pathsep.join(path)},
                pass_fds=[report],
                start_new_session=True,
                check=False,
            )
