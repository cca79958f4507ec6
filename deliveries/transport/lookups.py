"""The threads that look host names up, shared out so that dead name servers stop no others."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable

# Threads are started as they are needed and end when they have been idle. A look-up that gets no
# answer takes one for as long as the C library waits (by default 5 to 30 s).
MAX_THREADS = 512
IDLE_SECONDS = 10.0

# Look-ups at the same time: of one parent domain, and of all names that were slow the last time.
MAX_PER_PARENT = 16
MAX_SLOW = 64

SLOW = "slow"

LookUp = Callable[[], None]


def parent_domain(host: str) -> str:
    """The last two labels: the owner of the domain usually runs its name servers.

    Names under a public suffix such as `co.uk` share one limit. That delays a new name among
    them while others of them are dead; names that are known are used meanwhile.
    """
    return ".".join(host.rsplit(".", 2)[-2:])


class LookupThreads:
    """Makes look-ups on daemon threads, within the limits above. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[LookUp]] = {}
        self._running: dict[str, int] = {}
        self._ready: queue.SimpleQueue[tuple[str, LookUp] | None] = queue.SimpleQueue()
        self._threads = 0
        # Threads that wait for a look-up, less the look-ups that wait for a thread.
        self._idle = 0
        self._stopped = False

    def put(self, host: str, look_up: LookUp, *, slow: bool) -> None:
        """Call `look_up`, which must not raise, soon. `slow`: the last one for `host` was."""
        group, limit = (SLOW, MAX_SLOW) if slow else (parent_domain(host), MAX_PER_PARENT)
        with self._lock:
            running = self._running.get(group, 0)
            if running >= limit:
                self._waiting.setdefault(group, deque()).append(look_up)
                return
            self._running[group] = running + 1
            self._idle -= 1
            if self._idle < 0 and self._threads < MAX_THREADS:
                # No more threads to be had: those that are there take it, or its requests end
                # at their deadline.
                with contextlib.suppress(RuntimeError):
                    threading.Thread(target=self._run, name="webhook-dns", daemon=True).start()
                    self._threads += 1
                    self._idle += 1
            self._ready.put((group, look_up))

    def stop(self) -> None:
        """Begin no further look-up. Those under way end by themselves, unheard."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()
            for _ in range(self._threads):
                self._ready.put(None)

    def _run(self) -> None:
        while True:
            try:
                found = self._ready.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._idle > 0:
                        self._idle -= 1
                        self._threads -= 1
                        return
                continue  # a look-up is on its way to this thread
            if found is None or self._stopped:
                return
            group, look_up = found
            look_up()
            self._done(group)

    def _done(self, group: str) -> None:
        """The next of the same group, if one waits, in the place of the one that is done."""
        with self._lock:
            self._idle += 1
            waiting = self._waiting.get(group)
            if waiting:
                self._idle -= 1
                self._ready.put((group, waiting.popleft()))
                return
            self._waiting.pop(group, None)
            self._running[group] -= 1
            if not self._running[group]:
                del self._running[group]
