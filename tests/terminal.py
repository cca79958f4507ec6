"""A real terminal (a pseudo-terminal of the kernel) that tests write to."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """`stream` is what a program writes to; `text` is what has come, as it would be shown."""

    def __init__(self, columns: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        tty.setraw(slave)
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self._read = bytearray()
        self._reader = threading.Thread(target=self._collect)
        self._reader.start()

    def _collect(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other side is closed
                data = b""
            if not data:
                return
            self._read += data

    def close(self) -> None:
        if not self.stream.closed:
            self.stream.close()
            self._reader.join()
            os.close(self._master)

    @property
    def raw(self) -> str:
        """All that was written, once the terminal is closed."""
        self.close()
        return self._read.decode()

    @property
    def text(self) -> str:
        """The same without its colours."""
        return _COLOURS.sub("", self.raw)


@contextmanager
def terminal(columns: int = 80) -> Iterator[Terminal]:
    made = Terminal(columns)
    try:
        yield made
    finally:
        made.close()
