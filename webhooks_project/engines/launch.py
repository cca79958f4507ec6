"""Become another program: take a lock that lives as long as it does, and be who it wants.

    python -I -S launch.py [--lock FILE] [--as WHO] [--reach DIRECTORY] -- PROGRAM ARGUMENT…

Run as a file of its own, so that nothing is imported and nothing of the caller
is inherited but what is meant to be.

--lock FILE     Held exclusively, without close-on-exec: the program and all its
                children keep it, so the lock is free exactly when the last of
                them is gone. The process id and its birth are written into it.
--as WHO        `namespace:UID:GID`: a user namespace in which our own user goes by
                that id. Nothing outside changes: files keep their owner, and what
                the program makes belongs to us. `setuid:UID:GID`: really that
                user, for good.
--reach DIR     Fail unless the user we have become can write there.

Ends with status 125 and one sentence on stderr if any of that is refused.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

CLONE_NEWUSER = 0x10000000
LOCK_SECONDS = 10.0
REFUSED = 125


def birth(pid: int) -> str:
    """When this process began, in a form that only it has; "" if there is none, or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            # The name in brackets may hold anything, brackets too.
            fields = stat.read().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return ""
    ask = ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)]
    answer = subprocess.run(ask, capture_output=True, text=True, check=False)  # noqa: S603
    shown = answer.stdout.split(maxsplit=1)
    return "" if len(shown) < 2 or shown[0].startswith("Z") else shown[1].strip()


def hold(path: str) -> None:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise OSError(
                    errno.EAGAIN, f"{path} is held by a process that still runs"
                ) from None
            time.sleep(0.01)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()} {birth(os.getpid())}\n".encode(), 0)
    os.set_inheritable(lock, True)


def enter_namespace(uid: int, gid: int) -> None:
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    if hasattr(os, "unshare"):
        os.unshare(CLONE_NEWUSER)
    else:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWUSER) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"unshare: {os.strerror(code)}")
    for name, text in (
        ("setgroups", "deny"),  # the kernel asks for this before an ordinary user's gid_map
        ("uid_map", f"{uid} {outer_uid} 1"),
        ("gid_map", f"{gid} {outer_gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    if os.geteuid() != uid:
        raise OSError(errno.EPERM, f"the namespace shows user {os.geteuid()} instead of {uid}")


def become(who: str) -> None:
    kind, uid, gid = who.split(":")
    if kind == "namespace":
        enter_namespace(int(uid), int(gid))
    elif kind == "setuid":
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    else:
        raise ValueError(f"--as takes namespace:UID:GID or setuid:UID:GID, not {who!r}")


def main(arguments: list[str]) -> None:
    divide = arguments.index("--")
    options = dict(zip(arguments[:divide:2], arguments[1:divide:2], strict=True))
    program = arguments[divide + 1 :]
    try:
        if "--lock" in options:
            hold(options["--lock"])
        if "--as" in options:
            become(options["--as"])
        if "--reach" in options and not os.access(options["--reach"], os.R_OK | os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, f"{options['--reach']} cannot be written")
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and that is inherited
        os.execv(program[0], program)  # noqa: S606
    except OSError as error:
        print(f"{program[0]}: {error}", file=sys.stderr)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main(sys.argv[1:])
