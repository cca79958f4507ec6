"""The pool of the project's own database backend, when the server closes connections."""

from __future__ import annotations

import threading
import time

import pytest
from django.db import connection

pytestmark = pytest.mark.django_db(transaction=True)

SIDE_BY_SIDE = 6


def open_at_once(count: int) -> None:
    """Leave that many idle connections in the pool."""
    all_open = threading.Barrier(count)

    def use() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            all_open.wait(30)
        connection.close()

    threads = [threading.Thread(target=use) for _ in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


def cut_all_others() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return int(cursor.fetchone()[0])


def test_idle_connections_that_the_server_closed_keep_nobody_waiting() -> None:
    open_at_once(SIDE_BY_SIDE)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert cut_all_others() >= SIDE_BY_SIDE - 1
    took: list[float] = []

    def use() -> None:
        began = time.monotonic()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        took.append(time.monotonic() - began)
        connection.close()

    for _ in range(SIDE_BY_SIDE):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    # The pool alone waits 0, 1, 2, 4 seconds between those that it finds broken.
    assert len(took) == SIDE_BY_SIDE
    assert max(took) < 1
