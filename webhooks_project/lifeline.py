"""The end of a process tree whose supervisor was killed.

    python -I -S lifeline.py SECONDS

Reads process groups from stdin, `+PGID` when one begins and `-PGID` when it has
ended, until the supervisor closes the pipe, which the kernel does for it even
after `kill -9`. The groups that are left then get SIGTERM, and SIGKILL after
SECONDS. A file of its own with no imports of ours: it must outlive everything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # macOS says so of a group of zombies; the deadline ends it
    return True


def end(groups: set[int], seconds: float) -> None:
    """SIGTERM to all, SIGKILL to what is left after that many seconds."""
    for group in groups:
        _signal(group, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while groups := {group for group in groups if alive(group)}:
        if time.monotonic() > deadline:
            for group in groups:
                _signal(group, signal.SIGKILL)
            return
        time.sleep(0.05)


def _signal(group: int, sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, sign)


def main(seconds: float) -> None:
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        change = groups.add if line.startswith("+") else groups.discard
        change(int(line[1:]))
    end(groups, seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]))
