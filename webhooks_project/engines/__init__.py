"""The database and the broker of a checkout: embedded, unless the environment names others.

With `DATABASE_URL` unset, PostgreSQL 18 runs from a wheel; with `REDIS_URL` unset, Valkey does.
They are children of `manage.py up`, of the demo or of the tests: a `Cluster` starts them and ends
them, and when its process is killed they end by themselves. Their data stay in `.local/` of the
checkout (or in `WEBHOOKS_LOCAL_DIR`); they listen on Unix sockets alone.

`addresses` computes where they are, `cluster` starts and ends them.

May import `webhooks_project.child` alone: the settings import it. Promises: a kill of anything
leaves nothing behind that stops the next start, and no data are lost.
"""

from webhooks_project.engines.addresses import (
    BACKEND,
    CHECKOUT,
    DATABASE,
    DATABASE_PORT,
    DATABASE_USER,
    ENGINES,
    NOT_RUNNING,
    POSTGRESQL,
    VALKEY,
    Layout,
    broker_url,
    database_params,
    embedded_database,
    embedded_redis,
    local_dir,
    redis_url,
    running,
)
from webhooks_project.engines.cluster import (
    Cluster,
    EngineError,
    postgresql_program,
    valkey_program,
)

__all__ = [
    "BACKEND",
    "CHECKOUT",
    "DATABASE",
    "DATABASE_PORT",
    "DATABASE_USER",
    "ENGINES",
    "NOT_RUNNING",
    "POSTGRESQL",
    "VALKEY",
    "Cluster",
    "EngineError",
    "Layout",
    "broker_url",
    "database_params",
    "embedded",
    "embedded_database",
    "embedded_redis",
    "local_dir",
    "postgresql_program",
    "redis_url",
    "running",
    "valkey_program",
]


def embedded() -> Cluster:
    """Those engines of this checkout that the environment does not name; nothing is started."""
    wanted = [(POSTGRESQL, embedded_database()), (VALKEY, embedded_redis())]
    return Cluster(local_dir(), [name for name, is_embedded in wanted if is_embedded])
