"""The thread that drives libcurl's multi handle. Everything here but `submit` runs on it."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import requests

from deliveries.transport.errors import (
    LocalFault,
    NotStarted,
    ResolverUnavailable,
    TransportClosed,
)
from deliveries.transport.exchange import Exchange
from deliveries.transport.handle import TURNS_COUNTED_AFTER, Handle, Limits
from deliveries.transport.jobs import Budget, Job
from deliveries.transport.libcurl import pycurl
from deliveries.transport.names import Found, Name, NameBook, Pin, Resolver
from deliveries.transport.polling import READ, WRITE, Sockets, new_poller
from deliveries.transport.targets import target_reader
from subscriptions.destinations import Destination

MAX_IDLE_HANDLES = 1000
# What the thread does at most before it looks again what has come: it starts so many requests of
# each kind, serves so many sockets, and makes calls for so many seconds. Beside the backlog of the
# benchmark's *tenants*, traced, a turn then lasts 2 ms at the median and 5 at the 90th percentile;
# without limits 11 and 69. More sockets are served than requests started, so that answers do not
# pile up.
STARTED_AT_ONCE = 20
SERVED_AT_ONCE = 40
CALLS_SECONDS = 0.002

logger = logging.getLogger(__name__)


def _readiness(events: int) -> int:
    """What the poller saw, in libcurl's words. Reading finds out about hang-ups and errors."""
    ready: int = pycurl.CSELECT_OUT if events & WRITE else 0
    if events & ~WRITE:
        ready |= pycurl.CSELECT_IN
    return ready


@dataclass(frozen=True, slots=True)
class Plan:
    """How a driver works; see `Transport`."""

    limits: Limits
    resolver: Resolver
    dns_cache: float
    dns_stale: float
    max_in_flight: int
    max_connections: int

    def places(self, recovering: bool) -> int:
        """How many requests of this kind are under way at once; at least one."""
        kept = max(1, self.max_in_flight // 4)
        return kept if recovering else max(1, self.max_in_flight - kept)


class Driver:
    """One libcurl multi handle and its thread.

    `predecessor`: one that failed, whose callbacks are all called before this one's.
    """

    def __init__(self, plan: Plan, predecessor: Driver | None = None) -> None:
        self._plan = plan
        self._predecessor = predecessor
        self._inbox: deque[Job] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        # Of requests that do not recover, and of those that do.
        self._budgets = (Budget(plan.places(False)), Budget(plan.places(True)))
        self._found: deque[tuple[Name, Found, float]] = deque()
        self._lock = threading.Lock()
        self._closed = False
        self._asleep = False
        self._stop_at: float | None = None
        self._waker, self._wakee = socket.socketpair()
        self._waker.setblocking(False)
        self._wakee.setblocking(False)
        self._wakee_fd = self._wakee.fileno()
        self._poller = new_poller()
        self._poller.register(self._wakee_fd, READ)
        self._sockets = Sockets(self._poller)
        self._next_look = 0.0
        self._names = NameBook(
            plan.resolver, plan.limits.allowed, plan.dns_cache, plan.dns_stale, self._on_found
        )
        self._target = target_reader(plan.limits.allowed)
        self._handles: dict[pycurl.Curl, Handle] = {}
        self._idle: list[Handle] = []
        self._resolving: list[tuple[float, int, Job]] = []
        self._numbers = itertools.count()
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._sockets.changed)
        self._multi.setopt(pycurl.M_MAXCONNECTS, plan.max_connections)
        self.thread = threading.Thread(target=self._run, name="webhook-transport", daemon=True)
        self.thread.start()

    # Called from any thread.

    def submit(self, job: Job, recovering: bool) -> bool:
        """Hand `job` over; False if this driver has ended."""
        with self._lock:
            if self._closed or self._stop_at is not None:
                return False
            job.budget = budget = self._budgets[recovering]
            budget.submitted += 1
            self._inbox.append(job)
        self._wake()
        return True

    def call_soon(self, function: Callable[[], None]) -> bool:
        """False if this driver has ended."""
        with self._lock:
            if self._closed:
                return False
            self._calls.append(function)
        self._wake()
        return True

    def capacity(self, recovering: bool) -> int:
        return self._budgets[recovering].capacity

    def stop(self, timeout: float) -> None:
        """Give what is in flight `timeout` seconds, fail the rest, and end the thread."""
        with self._lock:
            if self._stop_at is None:
                self._stop_at = time.monotonic() + timeout
        self._wake()
        self.thread.join()

    def _on_found(self, name: Name, found: Found, took: float) -> None:
        self._found.append((name, found, took))
        self._wake()

    def _wake(self) -> None:
        # Only a sleeping driver costs a system call. It looks at its queues once more after
        # it has set `_asleep`, so nothing that was appended before is slept through.
        if self._asleep:
            self._asleep = False
            # An error: the pipe is full, so the driver wakes anyway; or it has ended.
            with contextlib.suppress(OSError):
                self._waker.send(b"\0")

    # The thread.

    def _run(self) -> None:
        if self._predecessor is not None:
            self._predecessor.thread.join()
            self._predecessor = None
        reason = "the process is shutting down"
        try:
            while not self._may_end():
                self._step()
        except BaseException:
            logger.critical("the transport's thread failed; its requests fail", exc_info=True)
            reason = "the transport's thread failed; see the log"
        finally:
            self._end(reason)

    def _may_end(self) -> bool:
        stop_at = self._stop_at
        if stop_at is None:
            return False
        idle = all(budget.submitted == budget.ended for budget in self._budgets)
        return (idle and not self._calls) or time.monotonic() >= stop_at

    def _step(self) -> None:
        self._asleep = True
        timeout = self._poll_timeout()
        # What comes after this look at the sockets waits for the next one: a request must not
        # be started on a connection that something has come on while it was idle.
        calls, found, jobs = len(self._calls), len(self._found), len(self._inbox)
        events = self._poller.poll(timeout)
        self._asleep = False
        self._serve_sockets(events)
        until = time.monotonic() + CALLS_SECONDS
        for _ in range(calls):
            self._call(self._calls.popleft())
            if time.monotonic() > until:
                break
        for _ in range(found):
            self._learn(*self._found.popleft())
        for _ in range(jobs):
            job = self._inbox.popleft()
            job.budget.wait(job)
        for budget in self._budgets:
            for _ in range(STARTED_AT_ONCE):
                if not budget.has_next:
                    break
                self._start(budget.next())
        # `CURLMOPT_TIMERFUNCTION` would be called some times for each request; this is enough.
        if self._multi.timeout() == 0:
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        self._collect()
        now = time.monotonic()
        if now >= self._next_look:
            self._look_at_slow_ones(now)
        if self._resolving:
            self._give_up_on_names()
        for budget in self._budgets:
            for job in budget.late(now):
                self._not_started(job)

    def _serve_sockets(self, events: list[tuple[int, int]]) -> None:
        active = self._sockets.active
        for fd, _ in events:
            if fd == self._wakee_fd:
                self._wakee.recv(4096)
            elif fd not in active:
                self._sockets.end_idle(fd)
        # The poller tells of the others again, before those that become ready later.
        ours = ((fd, ready) for fd, ready in events if fd in active)
        for fd, ready in itertools.islice(ours, SERVED_AT_ONCE):
            self._multi.socket_action(fd, _readiness(ready))

    def _call(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception:
            logger.exception("a call on the transport's thread failed")

    def _not_started(self, job: Job) -> None:
        self._begin(job, time.monotonic())
        self._fail(job, NotStarted("not sent: too much else was under way"))

    def _poll_timeout(self) -> float | None:
        """Seconds to sleep at most; None for as long as nothing happens."""
        if (
            self._may_end()
            or self._found
            or self._inbox
            or self._calls
            or any(budget.has_next for budget in self._budgets)
        ):
            return 0
        moments = [
            moment
            for moment in (
                self._libcurl_timer(),
                self._resolving[0][0] if self._resolving else None,
                *[budget.next_start_by() for budget in self._budgets],
                self._stop_at,
            )
            if moment is not None
        ]
        if not moments:
            return None
        return max(0.0, min(moments) - time.monotonic())

    def _libcurl_timer(self) -> float | None:
        """When libcurl wants to be called, whatever its sockets do."""
        milliseconds = self._multi.timeout()
        return None if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    def _begin(self, job: Job, now: float) -> None:
        job.budget.in_flight += 1
        job.started = now
        job.deadline = now + job.timeout

    def _start(self, job: Job) -> None:
        now = time.monotonic()
        if job.start_by is not None and job.start_by <= now:
            self._not_started(job)
            return
        self._begin(job, now)
        try:
            target = self._target(job.request.url or "")
        except requests.RequestException as error:
            self._fail(job, error)
            return
        except Exception as error:
            logger.exception("the URL of a request could not be read")
            self._fail(job, LocalFault(f"the URL could not be read ({type(error).__name__})"))
            return
        if target.pins is not None:
            self._launch(job, target.destination, target.pins[job.owner], now)
            return
        name = self._names.get(target.destination.host, now)
        if name.must_wait(now):
            job.destination = target.destination
            job.name = name
            name.waiting[job] = None
            heapq.heappush(self._resolving, (job.deadline, next(self._numbers), job))
        else:
            self._follow(job, target.destination, name, now)

    def _learn(self, name: Name, found: Found, took: float) -> None:
        now = time.monotonic()
        self._names.learn(name, found, took, now)
        waiting, name.waiting = name.waiting, {}
        for job in waiting:
            destination, job.destination = job.destination, None
            if destination is not None:
                self._follow(job, destination, name, now)
        while self._resolving and self._resolving[0][2].destination is None:
            heapq.heappop(self._resolving)

    def _follow(self, job: Job, destination: Destination, name: Name, now: float) -> None:
        """Go on with a job whose host name is known, for better or worse."""
        if isinstance(name.found, requests.RequestException):
            # A new exception for each request: they are raised, and must not share a traceback.
            self._fail(job, type(name.found)(*name.found.args))
        else:
            self._launch(job, destination, name.pin(destination.port, job.owner), now)

    def _give_up_on_names(self) -> None:
        now = time.monotonic()
        while self._resolving and (
            self._resolving[0][0] <= now or self._resolving[0][2].destination is None
        ):
            job = heapq.heappop(self._resolving)[2]
            destination, job.destination = job.destination, None
            if destination is not None:
                # A lookup may last much longer than a request.
                del job.name.waiting[job]
                late = f"{destination.host} was not looked up within {job.timeout:g} s"
                self._fail(job, self._names.unanswered(job.name, ResolverUnavailable(late)))

    def _launch(self, job: Job, destination: Destination, pin: Pin, now: float) -> None:
        handle = self._idle.pop() if self._idle else Handle(self._plan.limits, self._sockets.opened)
        try:
            handle.prepare(job, destination, pin, now)
            self._multi.add_handle(handle.curl)
        except requests.RequestException as error:
            self._fail(job, error)
            return
        except Exception as error:
            logger.exception("libcurl did not take a request")
            self._fail(job, LocalFault(f"the request was not taken ({type(error).__name__})"))
            return
        self._handles[handle.curl] = handle

    def _collect(self) -> None:
        queued = 1
        while queued:
            queued, complete, given_up = self._multi.info_read()
            for curl in complete:
                handle = self._handles[curl]
                self._done(handle, handle.succeeded())
            for curl, code, message in given_up:
                handle = self._handles[curl]
                if handle.met_dead_connections_only(code):
                    self._multi.remove_handle(curl)
                    handle.prepare_again(time.monotonic())
                    self._multi.add_handle(curl)
                else:
                    self._done(handle, handle.failed(code, message))

    def _look_at_slow_ones(self, now: float) -> None:
        """A flood keeps this thread awake, so there is no need to be woken for this."""
        self._next_look = now + TURNS_COUNTED_AFTER / 2
        for handle in self._handles.values():
            if handle.job.started < now - TURNS_COUNTED_AFTER:
                handle.count_turns()

    def _done(self, handle: Handle, exchange: Exchange) -> None:
        curl, job = handle.curl, handle.release()
        self._multi.remove_handle(curl)
        del self._handles[curl]
        if len(self._idle) < MAX_IDLE_HANDLES:
            self._idle.append(handle)
        else:
            curl.close()
        self._tell(job, exchange)

    def _fail(self, job: Job, error: requests.RequestException) -> None:
        error.request = job.request
        self._tell(job, Exchange(None, error, time.monotonic() - job.started, ""))

    def _tell(self, job: Job, exchange: Exchange) -> None:
        budget = job.budget
        budget.in_flight -= 1
        budget.ended += 1
        try:
            job.on_done(exchange)
        except Exception:
            logger.exception("a callback of the transport failed; its result is lost")
        # A heap may keep the job until its deadline.
        del job.request, job.on_done

    def _end(self, reason: str) -> None:
        with self._lock:
            self._closed = True
            never_started = list(self._inbox)
            self._inbox.clear()
        for budget in self._budgets:
            never_started += budget.all_waiting()
        self._names.stop()
        unfinished = [handle.job for handle in self._handles.values()]
        unfinished += [job for _, _, job in self._resolving if job.destination is not None]
        now = time.monotonic()
        for job in never_started:
            self._begin(job, now)
        for job in (*unfinished, *never_started):
            self._fail(job, TransportClosed(f"not finished: {reason}"))
        while self._calls:
            self._call(self._calls.popleft())
        self._clean_up()

    def _clean_up(self) -> None:
        for handle in self._handles.values():
            self._multi.remove_handle(handle.curl)
        for handle in (*self._handles.values(), *self._idle):
            handle.curl.close()
        self._multi.close()
        self._poller.close()
        self._waker.close()
        self._wakee.close()
