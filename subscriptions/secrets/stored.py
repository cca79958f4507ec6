"""The signing secrets in the database: whether the keys in force read them, and re-encryption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from django.db import connection

from subscriptions.secrets import crypto

SAMPLED = 20

# Of the newest and the oldest: a key that was lost, or that is too new, shows at one of the ends.
_SAMPLE = """
(SELECT id, ciphertext FROM subscriptions_signingsecret
 WHERE expires_at IS NULL OR expires_at > now() ORDER BY id LIMIT %(sampled)s)
UNION
(SELECT id, ciphertext FROM subscriptions_signingsecret
 WHERE expires_at IS NULL OR expires_at > now() ORDER BY id DESC LIMIT %(sampled)s)
"""

_BATCH = """
SELECT id, ciphertext, expires_at IS NULL OR expires_at > now()
FROM subscriptions_signingsecret WHERE id > %(after)s ORDER BY id LIMIT %(size)s
"""

# Only what is still as it was read. What another transaction has locked is left for the next run:
# waiting, with other rows locked, could end in a deadlock.
_REPLACE = """
UPDATE subscriptions_signingsecret s SET ciphertext = r.new
FROM (
    SELECT locked.id, given.new FROM unnest(
        %(ids)s::bigint[], %(old)s::text[], %(new)s::text[]
    ) AS given (id, old, new)
    JOIN subscriptions_signingsecret locked ON locked.id = given.id
    WHERE locked.ciphertext = given.old
    ORDER BY locked.id FOR NO KEY UPDATE OF locked SKIP LOCKED
) r WHERE s.id = r.id
"""


@dataclass(slots=True)
class Keys:
    """Numbers of stored secrets: by the key that encrypts them.

    `unreadable`: those in use that no key decrypts. An unreadable one that has ended counts
    nowhere: it is never read again.
    """

    newest: int = 0
    older: int = 0
    unreadable: int = 0


def sample() -> tuple[int, int]:
    """How many of some secrets in use, the newest and the oldest, are readable, and how many not.

    Raises what the database raises.
    """
    with connection.cursor() as cursor:
        cursor.execute(_SAMPLE, {"sampled": SAMPLED})
        readable = [crypto.readable(token) for _, token in cursor.fetchall()]
    return sum(readable), len(readable) - sum(readable)


def count(batch: int = 1000) -> Keys:
    """Try every stored secret."""
    keys = Keys()
    for rows in _batches(batch):
        for _, token, in_use in rows:
            if crypto.is_newest(token):
                keys.newest += 1
            elif crypto.readable(token):
                keys.older += 1
            elif in_use:
                keys.unreadable += 1
    return keys


def re_encrypt(batch: int = 500) -> int:
    """Encrypt what an older key encrypts under the newest one; returns how many secrets changed.

    Each batch commits by itself, so it may be ended anywhere and run again. A secret that is
    written meanwhile keeps what was written.
    """
    changed = 0
    for rows in _batches(batch):
        old = [
            (key, token)
            for key, token, _ in rows
            if not crypto.is_newest(token) and crypto.readable(token)
        ]
        if not old:
            continue
        with connection.cursor() as cursor:
            cursor.execute(
                _REPLACE,
                {
                    "ids": [key for key, _ in old],
                    "old": [token for _, token in old],
                    "new": [crypto.rotate(token) for _, token in old],
                },
            )
            changed += cursor.rowcount
    return changed


def _batches(size: int) -> Iterator[list[tuple[int, str, bool]]]:
    after = 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute(_BATCH, {"after": after, "size": size})
            rows = cursor.fetchall()
        if not rows:
            return
        yield rows
        after = rows[-1][0]
