"""PostgreSQL on a small disk: `python -m tests.faults.disk DIRECTORY MEGABYTES`.

A mount namespace of its own, in which a tmpfs covers the directory, and the embedded PostgreSQL
started in it. Says `ready`, or in one line why not, and ends with its standard input; the disk and
all that is on it go with the last process of the namespace.
"""

from __future__ import annotations

import ctypes
import os
import sys

from webhooks_project.engines import POSTGRESQL, Cluster, EngineError, Layout

READY = "ready"
CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 0x4000, 0x40000


class NotPermitted(Exception):
    """This machine lets us mount nothing; the text says why."""


def cover(directory: str, megabytes: int) -> None:
    """Mount a tmpfs there, seen by this process and its children alone. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    none = ctypes.c_char_p(None)
    options = f"size={megabytes}m,mode=0700".encode()
    for result in (
        libc.unshare(CLONE_NEWNS),
        libc.mount(none, b"/", none, MS_REC | MS_PRIVATE, none),
        libc.mount(b"tmpfs", directory.encode(), b"tmpfs", 0, options),
    ):
        if result != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), directory)


def main(directory: str, megabytes: str) -> None:
    layout = Layout.of(directory)
    try:
        if layout.run.parent != layout.directory:
            raise OSError(f"the path {directory} is too long for a socket")
        cover(directory, int(megabytes))
        with Cluster(directory, [POSTGRESQL]) as cluster:
            cluster.start()
            print(READY, flush=True)
            sys.stdin.read()
    except (OSError, EngineError) as error:
        print(error, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
