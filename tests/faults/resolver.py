"""A name server that answers for some and is silent to all others, and programs that ask it.

The server listens on a loopback address of its own. A program that is started with `wrap` has a
mount namespace in which that server is the only one that `/etc/resolv.conf` names.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
from collections import Counter
from pathlib import Path
from shutil import which

ADDRESS = "127.77.0.53"
# Seconds after which the C library gives a name up.
GIVEN_UP = 5
A = 1


class NotPermitted(Exception):
    """This machine lets us have no name server of our own; the text says why."""


class NameServer:
    """Answers 127.0.0.1 for names that end in `alive`, and never for any other."""

    def __init__(self, directory: Path, alive: str) -> None:
        """Raises `NotPermitted`."""
        self._alive = alive
        self.asked: Counter[str] = Counter()
        file = directory / "resolv.conf"
        file.write_text(f"nameserver {ADDRESS}\noptions timeout:{GIVEN_UP} attempts:1\n")
        unshare = which("unshare")
        if unshare is None:
            raise NotPermitted("there is no unshare")
        cover = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        self.wrap = [unshare, "--mount", "sh", "-c", cover, str(file)]
        tried = subprocess.run([*self.wrap, "true"], capture_output=True, text=True)
        if tried.returncode:
            raise NotPermitted(f"no resolv.conf of our own: {tried.stderr.strip()}")
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind((ADDRESS, 53))
        except OSError as error:
            self._socket.close()
            raise NotPermitted(f"no name server of our own: {error.strerror}") from None
        self._thread = threading.Thread(target=self._run, name="name server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            try:
                query, sender = self._socket.recvfrom(4096)
            except OSError:
                return
            if not query:
                return
            name, kind, question = _question(query)
            self.asked[name] += 1
            if name.endswith(self._alive):
                # RFC 1035, 4.1: an answer, authoritative, with the question repeated.
                head = query[:2] + struct.pack("!5H", 0x8580, 1, int(kind == A), 0, 0)
                answer = struct.pack("!3HIH4s", 0xC00C, A, 1, 0, 4, socket.inet_aton("127.0.0.1"))
                self._socket.sendto(head + question + (answer if kind == A else b""), sender)


def _question(query: bytes) -> tuple[str, int, bytes]:
    """The name, its type, and the whole question as it came."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii", "replace").lower())
        at += 1 + length
    return ".".join(labels), int.from_bytes(query[at + 1 : at + 3], "big"), query[12 : at + 5]
