"""Rows that nobody can send, put there behind the back of every check, among those that all can.

Everything is published and poisoned before a worker starts, so that the poison is claimed, sent
and settled in the same batches as the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from django.db import connection

from deliveries.holding import discard
from deliveries.models import Lane
from subscriptions.secrets import crypto
from tests.faults.invariants import check_invariants
from tests.faults.report import Row
from tests.faults.waiting import eventually
from tests.faults.world import World

HEALTHY = 20
EVENTS = 5

OF_SECRET = "UPDATE subscriptions_signingsecret SET ciphertext = %(text)s WHERE subscription_id = "
OF_HEADERS = "UPDATE subscriptions_subscription SET headers = %(text)s WHERE id = "
OF_PATTERNS = "UPDATE subscriptions_subscription SET topic_patterns = %(text)s WHERE id = "
# One of the lane's events: the others share its lane, its claim and its connection.
OF_ONE_EVENT = """ WHERE id = (
    SELECT min(event_id) FROM deliveries_delivery WHERE subscription_id = """

ALL_FAIL = {"failed": EVENTS}
ALL_WAIT = {"pending": EVENTS}
ONE_FAILS = {"failed": 1, "succeeded": EVENTS - 1}
ALL_PASS = {"succeeded": EVENTS}


@dataclass(frozen=True)
class Poison:
    """What is done to a row by SQL, and what its lane's deliveries come to.

    Without a `text`, it is one that decrypts, to what is no secret.
    """

    sql: str
    ends: dict[str, int]
    text: str = field(default="", repr=False)

    def __call__(self, name: str, world: World) -> None:
        with connection.cursor() as cursor:
            text = self.text or crypto.encrypt(b"no secret")
            cursor.execute(self.sql, {"id": world.lanes[name].id, "text": text})
            assert cursor.rowcount == 1, f"{name}: {cursor.rowcount} rows are poisoned, not one"


# What `publish` reads: done before.
PATTERNS = {
    "patterns that are no texts": Poison(OF_PATTERNS + "%(id)s", {}, '[{"a": "b"}, 7, null]'),
    "a broken and an unknown pattern beside the good one": Poison(
        OF_PATTERNS + "%(id)s", ALL_PASS, '["a..b", 42, "poison.1", "x.>.y"]'
    ),
}

# What a worker reads: done between the publication and the claim.
ROWS = {
    "a secret that no key decrypts": Poison(OF_SECRET + "%(id)s", ALL_WAIT, "gAAAAArubbish"),
    "a secret that is none once decrypted": Poison(OF_SECRET + "%(id)s", ALL_FAIL),
    "no secret": Poison(
        "DELETE FROM subscriptions_signingsecret WHERE subscription_id = %(id)s", ALL_WAIT
    ),
    "a header with a line break": Poison(
        OF_HEADERS + "%(id)s", ALL_FAIL, r'{"X-A": "b\r\nX-C: d"}'
    ),
    "a header that is no ASCII": Poison(OF_HEADERS + "%(id)s", ALL_FAIL, '{"X-A": "ä"}'),
    "headers that are a list": Poison(OF_HEADERS + "%(id)s", ALL_WAIT, "[1, 2]"),
    "a URL that is none": Poison(
        "UPDATE subscriptions_subscription SET url = 'http://[what' WHERE id = %(id)s", ALL_FAIL
    ),
    "a topic with a line break": Poison(
        r"UPDATE deliveries_event SET topic = E'a\r\nX-C: d'" + OF_ONE_EVENT + "%(id)s)",
        ALL_PASS,  # it is percent-encoded
    ),
    "an event that is gone": Poison(
        "DELETE FROM deliveries_event" + OF_ONE_EVENT + "%(id)s)", ONE_FAILS
    ),
    # Nobody reads a body but its receiver: it is signed and sent as it is stored.
    "a body of bytes that are no text": Poison(
        r"UPDATE deliveries_event SET body = '\xff00fe80'" + OF_ONE_EVENT + "%(id)s)", ALL_PASS
    ),
    "a limit of no request at all": Poison(
        "UPDATE subscriptions_subscription SET max_in_flight = 0 WHERE id = %(id)s", ALL_PASS
    ),
    "a subscription deleted by hand": Poison(
        """WITH secrets AS (
            DELETE FROM subscriptions_signingsecret WHERE subscription_id = %(id)s
        ) DELETE FROM subscriptions_subscription WHERE id = %(id)s""",
        {"discarded": EVENTS},
    ),
}
POISON = {f"poison.{n}": one for n, one in enumerate([*PATTERNS.values(), *ROWS.values()])}


def ended_without_a_word() -> int:
    """Deliveries that failed or were discarded, and do not say why."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM deliveries_delivery "
            "WHERE status IN ('failed', 'discarded') AND last_error = ''"
        )
        return int(cursor.fetchone()[0])


@pytest.mark.fault(
    f"poison in the tables, {len(POISON)} kinds: {'; '.join([*PATTERNS, *ROWS])}",
    "what cannot be sent ends, or waits to be put right, with an error that people can see; all "
    "others pass",
)
def test_poisoned_rows_end_visibly_and_the_others_pass(world: World, measured: Row) -> None:
    world.configure(slow_retries="", circuit_threshold=1000)
    site = world.receivers.site()
    healthy = [f"healthy.{n}" for n in range(HEALTHY)]
    for name in [*healthy, *POISON]:
        world.subscribe(site, [name], name=name)
    patterns, rows = list(POISON)[: len(PATTERNS)], list(POISON)[len(PATTERNS) :]
    for name in patterns:
        POISON[name](name, world)
    world.ledger.publish_many([*healthy, *POISON] * EVENTS)
    for name in rows:
        POISON[name](name, world)
    world.installation.standard()
    eventually(
        lambda: all(world.statuses(name) == ALL_PASS for name in healthy), "the healthy passing"
    )
    for name, poison in POISON.items():
        eventually(
            lambda name=name, poison=poison: world.statuses(name) == poison.ends,
            f"{name} ending as {poison}; it is {world.statuses(name)} after {EVENTS} events",
        )
    for name, poison in POISON.items():
        if poison.ends == ALL_WAIT:
            # They would wait for ever: nobody puts the row right.
            lane = Lane.objects.filter(subscription_id=world.lanes[name].id)
            eventually(lane.exclude(backoff_reason="").exists, f"why {name} waits")
            discard([world.lanes[name].id], "given up by the test", pending_too=True, limit=EVENTS)
    world.wait_until_settled()
    assert ended_without_a_word() == 0
    found = check_invariants(world, may_miss=frozenset(patterns[:1]))
    measured.add(
        healthy_deliveries=HEALTHY * EVENTS,
        poisoned=len(POISON),
        ended_with_an_error=found.undelivered,
        attempts_at_them=world.attempts() - found.requests,
    )
