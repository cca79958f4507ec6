"""Become a program that does not outlive the process that started it.

    python -I -S child.py PARENT SIGNAL USER PROGRAM ARGUMENT…

PARENT  The id of the process that starts this. When it is gone, however it ended, the program
        gets SIGNAL. (The kernel of Linux does that, for the thread that started it; elsewhere
        the program goes on.)
USER    Become this user (a number; 0: nobody else) and keep one right of root's: to read and
        write every file. PostgreSQL refuses to run as root; so it runs as somebody else, also in
        a checkout below a closed /root.

Ends with status 125 and one sentence on stderr if any of that is refused. Nothing of the project
is imported, so that it costs 15 ms.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

REFUSED = 125

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522


def as_child(command: Sequence[str], sign: signal.Signals, user: int = 0) -> list[str]:
    """The command line of a child that gets `sign` when this process (on Linux, the thread that
    starts the child) ends."""
    launcher = [sys.executable, "-I", "-S", __file__]
    return [*launcher, str(os.getpid()), str(int(sign)), str(user), *command]


def checked(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def become(user: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    linux = sys.platform == "linux"
    if linux:
        checked(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    if linux:
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        # Effective, permitted and inheritable: the low 32 bits of each, then the high ones.
        sets = (ctypes.c_uint32 * 6)(*[1 << CAP_DAC_OVERRIDE] * 3, 0, 0, 0)
        checked(libc.capset(header, sets))
        checked(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0))


def main(parent: int, sign: int, user: int, command: list[str]) -> None:
    try:
        if user:
            become(user)
        if sys.platform == "linux":  # last: the kernel forgets it when the user changes
            checked(ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, sign, 0, 0, 0))
            if os.getppid() != parent:
                raise OSError("the parent process has ended already")
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and that is inherited
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        print(f"{command[0]}: {error}", file=sys.stderr)
        sys.exit(REFUSED)


if __name__ == "__main__":
    _parent, _sign, _user = map(int, sys.argv[1:4])
    main(_parent, _sign, _user, sys.argv[4:])
