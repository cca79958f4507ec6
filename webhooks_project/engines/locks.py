"""Whole-file locks (flock) and the little that is kept in the locked files.

The kernel lets go of such a lock when the last process that holds it is gone,
however it went, so nothing here can be left behind by a `kill -9`. Python's
descriptors are closed on exec: a lock is never inherited by a subprocess
unless somebody says so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Self

from webhooks_project.engines.errors import EngineError


class Lock:
    """An open lock file. Forked children share what it holds; close it to let go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _flock(self, operation: int) -> bool:
        try:
            fcntl.flock(self._fd, operation)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise EngineError(
                    f"{self.path.parent} is on a file system without file locks ({error}); "
                    "set WEBHOOKS_LOCAL_DIR to a directory on a local disk."
                ) from error
            raise
        return True

    def share(self) -> None:
        """Wait for a shared hold."""
        self._flock(fcntl.LOCK_SH)

    def take(self) -> None:
        """Wait for the exclusive hold."""
        self._flock(fcntl.LOCK_EX)

    def try_take(self, seconds: float) -> bool:
        """Try for the exclusive hold. A `held()` elsewhere may be in the way for a moment."""
        deadline = time.monotonic() + seconds
        while not self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def release(self) -> None:
        self._flock(fcntl.LOCK_UN)

    def held(self) -> bool:
        """Does somebody else hold it exclusively? Not to be asked by the holder."""
        if self._flock(fcntl.LOCK_SH | fcntl.LOCK_NB):
            self.release()
            return False
        return True

    def current(self) -> bool:
        """Is this still the file at its path? False once the directory was removed."""
        try:
            there = os.stat(self.path)
        except OSError:
            return False
        here = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def read(self) -> str:
        return os.pread(self._fd, 4096, 0).decode(errors="replace")

    def write(self, text: str) -> None:
        # Not emptied first: a reader sees the old text or the new one, perhaps
        # with the tail of the old behind it, so it is to read the first line.
        data = text.encode()
        os.pwrite(self._fd, data, 0)
        os.ftruncate(self._fd, len(data))
