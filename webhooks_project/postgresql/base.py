"""The backend that `DATABASES["default"]["ENGINE"]` names: Django's, with two things more."""

from __future__ import annotations

from typing import Any

import psycopg
from django.db import OperationalError
from django.db.backends.postgresql import base
from psycopg_pool import ConnectionPool

from webhooks_project import engines

# How many connections in a row may turn out to be broken.
ROUNDS = 3


class DatabaseWrapper(base.DatabaseWrapper):
    """Gives out no pooled connection that the server has closed.

    The pool can look at each by itself (`CONN_HEALTH_CHECKS`), but waits 0, 1, 2, 4 seconds
    between those that it finds broken: after a restart of the database the first caller waited
    ten seconds, in vain.

    And where the database is embedded and not running, says so at once.
    """

    _seen_running = False

    def get_connection_params(self) -> dict[str, Any]:
        if not DatabaseWrapper._seen_running and engines.embedded_database():
            if not engines.running():
                raise OperationalError(engines.NOT_RUNNING)
            DatabaseWrapper._seen_running = True
        return dict(super().get_connection_params())

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        connection = super().get_new_connection(conn_params)
        if self.pool is None:
            return connection
        for _ in range(ROUNDS):
            try:
                ConnectionPool.check_connection(connection)
            except psycopg.OperationalError:
                # Whatever cut this one off cut off those beside it: all are replaced at once.
                self.pool.drain()
                self.pool.putconn(connection)
            except BaseException:
                self.pool.putconn(connection)
                raise
            else:
                return connection
            connection = super().get_new_connection(conn_params)
        # It accepts connections and answers nothing: a pooler without its database, say. The next
        # statement fails, and says so.
        return connection
