"""Runs a program that notes when it calls PostgreSQL, Redis, Celery and libcurl.

    MARKS=DIRECTORY python marking.py PROGRAM | -m MODULE, and its arguments

The libraries are wrapped, not the project: what it consists of may change. At its end the process
writes `DIRECTORY/PID.json`, a list of `[kind, began, ended, what]` by the monotonic clock. Used by
`steps.py`.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pycurl
import redis
from celery import signals

Mark = tuple[str, float, float, str]
MARKS: list[Mark] = []


def wrap(owner: type, name: str, kind: str, what: Callable[..., str] = lambda *_: "") -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        began = time.monotonic()
        try:
            return original(self, *args, **options)
        finally:
            MARKS.append((kind, began, time.monotonic(), what(*args)))

    setattr(owner, name, call)


def note(kind: str, what: str = "") -> None:
    now = time.monotonic()
    MARKS.append((kind, now, now, what))


def words(statement: object = "", *_: object) -> str:
    text = statement.decode() if isinstance(statement, bytes) else str(statement)
    return " ".join(text.split())[:100]


class Multi(pycurl.CurlMulti):  # type: ignore[misc]
    def add_handle(self, handle: Any) -> None:
        note("curl begin")
        super().add_handle(handle)

    def remove_handle(self, handle: Any) -> None:
        times = (handle.getinfo(what) for what in (pycurl.CONNECT_TIME, pycurl.PRETRANSFER_TIME))
        note("curl end", json.dumps(list(times)))
        super().remove_handle(handle)


def install() -> None:
    for name in ("execute", "fetchall", "fetchone"):
        wrap(psycopg.Cursor, name, "database", words)
    wrap(psycopg.Connection, "commit", "database", lambda *_: "COMMIT")
    wrap(redis.Redis, "execute_command", "redis", words)
    wrap(redis.client.Pipeline, "execute", "redis", lambda *_: "PIPELINE")
    pycurl.CurlMulti = Multi
    for signal, kind in (
        (signals.before_task_publish, "task sending"),
        (signals.task_received, "task received"),
        (signals.task_prerun, "task begin"),
    ):
        signal.connect(functools.partial(_note_task, kind), weak=False)
    path = Path(os.environ["MARKS"], f"{os.getpid()}.json")
    atexit.register(lambda: path.write_text(json.dumps(MARKS)))


def _note_task(kind: str, **_: object) -> None:
    note(kind)


def run_program(arguments: list[str]) -> None:
    """`PROGRAM` or `-m MODULE`, and its arguments, as Python runs it."""
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    install()
    run_program(sys.argv[1:])
