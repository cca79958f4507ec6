"""Hooks for the transport that prove what was asked of the network, and open nothing."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import Any


class Sockets:
    """In place of `socket.socket`: counts, and refuses.

    The guard asks first, so a count of 0 means that nothing was even about to be dialled.
    """

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, family: int, kind: int, protocol: int) -> socket.socket:
        self.asked += 1
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


Row = tuple[Any, ...]


def row(address: str, family: int | None = None) -> Row:
    """What `getaddrinfo` says for one address."""
    if family is None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return (family, socket.SOCK_STREAM, 6, "", (address, 0))


class Resolver:
    """In place of `socket.getaddrinfo`: answers every name with `rows`, or raises `error`."""

    def __init__(self, *answers: Sequence[Row] | BaseException) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, *_: object, **__: object) -> Sequence[Row]:
        self.asked.append(host)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer
