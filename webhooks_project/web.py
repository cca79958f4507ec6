"""The web server: Granian, in PROCESSES of THREADS each.

    python -m webhooks_project.web HOST PORT PROCESSES THREADS

Each process has a socket of its own on the port, among which the kernel shares out connections.
HTTP is read and written by threads without Python's lock; only a request takes one of THREADS.
SIGTERM ends it once the requests that have begun are answered, after ten seconds at most.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels

PR_SET_PDEATHSIG = 1
STOP_SECONDS = 10
# The longest that an idle thread, with its connection to PostgreSQL, is kept.
IDLE_SECONDS = 600

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


def load(parent: int, target: str) -> Application:
    """The application, in a process that serves it, and ends when `parent` does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    # Granian gives an application the environment of the process together with the request's
    # headers. What looks like a header in it must not be one, and the rest is no part of a request.
    for name in [name for name in os.environ if name.startswith(("HTTP_", "CONTENT_"))]:
        del os.environ[name]
    inherited = tuple(name for name in os.environ if name not in _OF_A_REQUEST)
    from webhooks_project.wsgi import application

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        for name in inherited:
            environ.pop(name, None)
        return application(environ, start_response)

    return answer


# Names without a prefix that a request has itself (PEP 3333).
_OF_A_REQUEST = {
    "REQUEST_METHOD",
    "SCRIPT_NAME",
    "PATH_INFO",
    "QUERY_STRING",
    "REMOTE_ADDR",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
}


def main(host: str, port: int, processes: int, threads: int) -> None:
    Granian(
        "webhooks_project.wsgi:application",
        address=host,
        port=port,
        interface=Interfaces.WSGI,
        workers=processes,
        blocking_threads=threads,
        blocking_threads_idle_timeout=IDLE_SECONDS,
        http=HTTPModes.http1,
        websockets=False,
        log_level=LogLevels.error,
        respawn_failed_workers=True,
        workers_kill_timeout=STOP_SECONDS,
    ).serve(target_loader=partial(load, os.getpid()))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
