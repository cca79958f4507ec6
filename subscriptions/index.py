"""The process's compiled topic patterns, kept fresh by a version row.

Triggers (`migrations/0002_topic_index.py`) bump the version and log the subscription in the
transaction that changes, adds or removes a subscription's patterns, whoever does it: the ORM, a
bulk update or SQL by hand. `publish` reads the version with `READ_VERSION`, in a statement that it
needs anyway. While nothing changed, a match is a look into memory; after a change it reads the
changed subscriptions' patterns, once for the process.

What must hold, and why it does:

- A subscription committed before the version is read is matched: versions become visible in
  their order, because a bump locks the row until its transaction ends.
- What is rolled back leaves nothing behind: a state with uncommitted changes of the reader's own
  transaction never becomes the index; it is laid over it, for that transaction alone.
- The index never goes back, unless the database did (a restore): a reader in a repeatable-read
  transaction, whose snapshot is older, gets the newer index.
- A version means one state: its time base keeps it from being used again after a restore.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any
from uuid import UUID

from django.db import connection

from subscriptions.topics import InvalidPattern, PatternTrie

logger = logging.getLogger(__name__)

# The transaction alone does not tell: after a restore into another cluster, the numbers of its
# transactions come up again. A bump is never older than its transaction, a restored row always is.
_OWN = """
    coalesce(
        transaction = pg_current_xact_id_if_assigned()::text::bigint
        AND version >= floor(extract(epoch FROM now()) * 1000000)::bigint,
        false
    )
"""

# Two output columns for a SELECT or RETURNING list, the second argument of `match`: the version
# (NULL if the row is missing), and the last change if this transaction made it (NULL if not).
READ_VERSION = f"""
    (SELECT version FROM subscriptions_topicindexversion WHERE id = 1),
    (SELECT (SELECT max(id) FROM subscriptions_topicindexchange)
       FROM subscriptions_topicindexversion WHERE id = 1 AND {_OWN})
"""

Seen = Sequence[int | None]
"""What `READ_VERSION` gave: a version and, if it is the reader's own, its last change."""

# One statement is one snapshot: the version and the patterns that it stands for. Each version has
# a row in the log, so the log goes on from `known` if `known` is in it: not if that was trimmed,
# nor if it belongs to a history that a restore has undone.
_CHANGES = f"""
WITH state AS (
    SELECT version, {_OWN} AS own,
        EXISTS (
            SELECT FROM subscriptions_topicindexchange WHERE version = %(known)s
        ) AS continues
    FROM subscriptions_topicindexversion WHERE id = 1
), changed AS (
    SELECT DISTINCT subscription_id, subscription_id IS NULL AS everything
    FROM subscriptions_topicindexchange WHERE version > %(known)s
)
SELECT state.version, state.own,
    state.continues AND NOT bool_or(coalesce(changed.everything, false)) OVER (),
    current_setting('transaction_isolation'),
    changed.subscription_id, subscription.topic_patterns
FROM state
LEFT JOIN changed ON state.continues
LEFT JOIN subscriptions_subscription subscription ON subscription.id = changed.subscription_id
"""

_EVERYTHING = f"""
SELECT state.version, coalesce(state.own, false), subscription.id, subscription.topic_patterns
FROM (SELECT) AS one
LEFT JOIN (
    SELECT version, {_OWN} AS own FROM subscriptions_topicindexversion WHERE id = 1
) AS state ON true
LEFT JOIN subscriptions_subscription subscription ON true
"""

# Only whole versions go, and never the newest: a version without its rows would look like one
# that changed nothing.
_TRIM = """
DELETE FROM subscriptions_topicindexchange WHERE version < (
    SELECT version FROM subscriptions_topicindexchange
    ORDER BY version DESC OFFSET %(keep)s - 1 LIMIT 1
)
"""

# The row is missing only if somebody deleted it. Until it is back, each match reads everything.
_RESTORE_VERSION = """
INSERT INTO subscriptions_topicindexchange (version, subscription_id)
SELECT subscriptions_topic_index_bump(), NULL
WHERE NOT EXISTS (SELECT FROM subscriptions_topicindexversion WHERE id = 1)
"""

_CHUNK = 2000
# A thread that waited this long for another one's refresh reads for itself. Without an end to
# the wait, a transaction that holds a lock which that refresh needs could wait for it for ever.
_TURN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Changes:
    version: int
    own: bool
    continues: bool
    fixed_snapshot: bool
    patterns: dict[UUID, str | None]


@dataclass(frozen=True, slots=True)
class _Loaded:
    version: int | None
    own: bool
    trie: PatternTrie[UUID]


@dataclass(frozen=True, slots=True)
class _Overlay:
    """What one transaction sees of its own changes. `hidden` is None if the trie is complete."""

    version: int
    last_change: int
    hidden: frozenset[UUID] | None
    trie: PatternTrie[UUID]

    def match(self, index: PatternTrie[UUID], topic: str) -> list[UUID]:
        if self.hidden is None:
            return self.trie.match(topic)
        below = [key for key in index.match(topic) if key not in self.hidden]
        return below + self.trie.match(topic)


class TopicIndex:
    """Which subscriptions have a pattern that matches a topic? Thread-safe; one for a process."""

    def __init__(self) -> None:
        self._lock = Lock()  # Never held while the database is asked.
        self._turn = Lock()
        self._trie: PatternTrie[UUID] = PatternTrie()
        self._version: int | None = None
        self._overlay: _Overlay | None = None

    def match(self, topic: str, seen: Seen) -> list[UUID]:
        """The ids of the subscriptions that match `topic`, each once, in no order.

        `seen` is what `READ_VERSION` gave in the transaction that this call runs in. Every
        subscription that was visible to that statement is considered, and maybe one committed
        since. Paused and tripped ones are matched too; whether one takes deliveries is for
        the caller to read. Asks the database only if the version is not the index's.
        """
        return self.match_many([topic], seen)[0]

    def match_many(self, topics: Sequence[str], seen: Seen) -> list[list[UUID]]:
        """`match` for each topic, all of them in one state."""
        found = self._match_in_memory(topics, seen)
        if found is not None:
            return found
        with self._one_at_a_time():
            # While this thread waited, another may have read what it needs.
            found = self._match_in_memory(topics, seen)
            while found is None:
                found = self._refresh_and_match(topics, seen)
            return found

    def match_at_hand(self, topics: Sequence[str]) -> tuple[int, list[list[UUID]]] | None:
        """The index's version and what matches in it, without a look at the database.

        It holds if the version that `READ_VERSION` gives is the same and the last change is not
        this transaction's. None if nothing has been read yet.
        """
        with self._lock:
            if self._version is None:
                return None
            return self._version, [self._trie.match(topic) for topic in topics]

    def _match_in_memory(self, topics: Sequence[str], seen: Seen) -> list[list[UUID]] | None:
        version, last_change = seen
        with self._lock:
            if last_change is None:
                if version is None or version != self._version:
                    return None
                return [self._trie.match(topic) for topic in topics]
            overlay = self._overlay
            if overlay is None or (overlay.version, overlay.last_change) != (version, last_change):
                return None
            return [overlay.match(self._trie, topic) for topic in topics]

    def _refresh_and_match(self, topics: Sequence[str], seen: Seen) -> list[list[UUID]] | None:
        """Read what changed and match; None if another thread moved the index meanwhile."""
        known = self._version
        changes = None if known is None else _read_changes(known)
        if changes is not None and known is not None:
            older = changes.version < known
            if changes.continues or (older and changes.fixed_snapshot):
                return self._apply_and_match(topics, seen, known, changes)
        return self._load_and_match(topics, seen, known)

    def _apply_and_match(
        self, topics: Sequence[str], seen: Seen, known: int, changes: _Changes
    ) -> list[list[UUID]] | None:
        overlay = None
        if changes.own:
            trie: PatternTrie[UUID] = PatternTrie()
            for subscription_id, patterns in changes.patterns.items():
                _add(trie, subscription_id, patterns)
            overlay = _Overlay(changes.version, seen[1] or 0, frozenset(changes.patterns), trie)
        with self._lock:
            if self._version != known:
                return None
            self._overlay = overlay
            if overlay is not None:
                return [overlay.match(self._trie, topic) for topic in topics]
            if changes.version > known:
                for subscription_id, patterns in changes.patterns.items():
                    self._trie.discard(subscription_id)
                    _add(self._trie, subscription_id, patterns)
                self._version = changes.version
            return [self._trie.match(topic) for topic in topics]

    def _load_and_match(
        self, topics: Sequence[str], seen: Seen, known: int | None
    ) -> list[list[UUID]]:
        loaded = _read_everything()
        with self._lock:
            if loaded.own and loaded.version is not None:
                self._overlay = _Overlay(loaded.version, seen[1] or 0, None, loaded.trie)
            elif loaded.version is not None and self._version == known:
                self._trie, self._version, self._overlay = loaded.trie, loaded.version, None
            return [loaded.trie.match(topic) for topic in topics]

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        mine = self._turn.acquire(timeout=_TURN_SECONDS)
        try:
            yield
        finally:
            if mine:
                self._turn.release()


def topic_index() -> TopicIndex:
    """This process's index, of the database `default`."""
    return _index


def read_version() -> tuple[int | None, int | None]:
    """What `READ_VERSION` gives now, for callers with no statement of their own to put it in."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {READ_VERSION}")
        version, last_change = cursor.fetchone()
        return version, last_change


def trim_changes(keep: int = 10_000) -> int:
    """Delete old rows of the change log; returns how many. About the newest `keep` (≥ 1) stay.

    A process that has not looked since before what is left reads all subscriptions anew.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; the newest version must stay, so it is at least 1.")
    with connection.cursor() as cursor:
        cursor.execute(_RESTORE_VERSION)
        cursor.execute(_TRIM, {"keep": keep})
        return int(cursor.rowcount)


def _read_changes(known: int) -> _Changes | None:
    """What was committed since `known`, and what this transaction changed itself."""
    with connection.cursor() as cursor:
        cursor.execute(_CHANGES, {"known": known})
        rows = cursor.fetchall()
    if not rows:
        return None
    version, own, continues, isolation = rows[0][:4]
    return _Changes(
        version=version,
        own=own,
        continues=continues,
        fixed_snapshot=isolation in {"repeatable read", "serializable"},
        patterns={row[4]: row[5] for row in rows if row[4] is not None},
    )


def _read_everything() -> _Loaded:
    trie: PatternTrie[UUID] = PatternTrie()
    state: tuple[int | None, bool] = (None, False)
    for version, own, subscription_id, patterns in _stream(_EVERYTHING):
        state = (version, own)
        if subscription_id is not None:
            _add(trie, subscription_id, patterns)
    return _Loaded(*state, trie)


def _stream(sql: str) -> Iterable[tuple[Any, ...]]:
    """The rows in chunks, so that a hundred thousand of them are not in memory twice."""
    if connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"):
        cursor = connection.cursor()
    else:
        cursor = connection.chunked_cursor()
    with cursor:
        cursor.execute(sql)
        while rows := cursor.fetchmany(_CHUNK):
            yield from rows


def _add(trie: PatternTrie[UUID], subscription_id: UUID, stored: str | None) -> None:
    """Add the stored patterns. What was stored past validation disables itself and no more."""
    if stored is None:  # No such subscription, or a NULL.
        return
    try:
        patterns = json.loads(stored)
    except (ValueError, RecursionError) as error:
        patterns = error
    if not isinstance(patterns, list):
        logger.warning(
            "Subscription %s matches nothing: its topic_patterns are not a list of strings. "
            "Correct them.",
            subscription_id,
        )
        return
    for pattern in patterns:
        try:
            trie.add(pattern, subscription_id)
        except InvalidPattern as error:
            logger.warning(
                "Subscription %s has a bad topic pattern, which matches nothing: %s",
                subscription_id,
                error,
            )


_index = TopicIndex()


def _forget_in_child() -> None:
    # Another thread of the parent may have been half way through a change, lock in hand.
    global _index
    _index = TopicIndex()


os.register_at_fork(after_in_child=_forget_in_child)
