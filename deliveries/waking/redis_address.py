"""Where Redis or Valkey is: one address for our own client and for Celery's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

import redis
from redis.sentinel import Sentinel

SENTINEL_PORT = 26379
_FORMS = (
    "redis://host:6379/0, rediss:// with TLS, unix:///path/to.sock?db=0, or "
    "sentinel://host:26379,other:26379/service-name?db=0"
)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A parsed `REDIS_URL`. `ValueError` from `parse` says what it should be."""

    url: str
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Read `redis://`, `rediss://`, `unix://` or `sentinel://`.

        User and password of a Sentinel address are those of the server, not of the Sentinels.
        """
        parts = urlsplit(url)
        if parts.scheme in {"redis", "rediss", "unix"}:
            try:
                # Makes the client's connection, and does not connect it.
                redis.Redis.from_url(url).connection_pool.make_connection()
            except (TypeError, ValueError):
                # The error may repeat a part of a password.
                raise ValueError(
                    f"its port, or one of its options, is none; it must be like {_FORMS}"
                ) from None
            return cls(url)
        if parts.scheme != "sentinel":
            raise ValueError(f"its scheme is {parts.scheme!r}; it must be like {_FORMS}")
        return _parse_sentinel(url, parts)

    def client(self, **options: Any) -> redis.Redis:
        """A client of the server, or of whichever is the master now."""
        if not self.sentinels:
            plain: redis.Redis = redis.Redis.from_url(self.url, **options)
            return plain
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            list(self.sentinels), sentinel_kwargs=options
        )
        master: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
            self.service, db=self.db, username=self.username, password=self.password, **options
        )
        return master

    @property
    def broker_url(self) -> str:
        """The same address as Celery writes it."""
        if self.sentinels:
            user = quote(self.username or "", safe="")
            login = f"{user}:{quote(self.password, safe='')}@" if self.password else ""
            return ";".join(
                f"sentinel://{login}{host}:{port}/{self.db}" for host, port in self.sentinels
            )
        if self.url.startswith("unix://"):
            parts = urlsplit(self.url)
            db = dict(parse_qsl(parts.query)).get("db", "0")
            return f"redis+socket://{parts.path}?virtual_host={db}"
        return self.url

    @property
    def transport_options(self) -> dict[str, Any]:
        """What Celery needs besides."""
        return {"master_name": self.service} if self.sentinels else {}


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= 65535


def _parse_sentinel(url: str, parts: SplitResult) -> RedisAddress:
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    query = dict(parse_qsl(parts.query))
    sentinels = []
    for text in hosts.split(","):
        host, _, port = text.strip().rpartition(":") if ":" in text else (text.strip(), "", "")
        if not host or (port and not _is_port(port)):
            raise ValueError(f"{text!r} is no host:port; it must be like {_FORMS}")
        sentinels.append((host, int(port or SENTINEL_PORT)))
    service = unquote(parts.path.strip("/"))
    db = query.pop("db", "0")
    if not service or "/" in service or not (db.isascii() and db.isdigit()) or query:
        raise ValueError(f"it must be like {_FORMS}")
    return RedisAddress(
        url=url,
        sentinels=tuple(sentinels),
        service=service,
        db=int(db),
        username=unquote(username) or None,
        password=unquote(password) or None,
    )
