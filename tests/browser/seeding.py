"""A system that has been running for a while: tenants, subscriptions in every state, a day of
deliveries.

All of it is written into the tables: nothing of it was ever sent. The same each time, but for the
hour.
"""

from __future__ import annotations

import math
import random
import uuid
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.utils import timezone

from api.keys import create_key, revoke
from api.models import ApiKey
from deliveries.body import build_body
from deliveries.models import Attempt, Delivery, Event, HourRollup, Lane, MinuteRollup
from deliveries.monitoring.buckets import ARRIVAL_BOUNDS, ATTEMPT_BOUNDS
from deliveries.roles import OPERATOR
from subscriptions.models import AuditEntry, Subscription, create_subscription
from subscriptions.topics.rules import candidates
from tests.browser.system import make_user

EVENTS = 420
HOURS = 24
TENANTS = ("tidewater", "oakmere", "juniper-lane")


class Seed(NamedTuple):
    """A subscription: `answer` is what its receiver says to an attempt that fails."""

    name: str
    host: str
    patterns: tuple[str, ...]
    tenant: str = ""
    state: str = "active"
    fails: int = 0
    trouble: float = 0.0
    status: int | None = None
    error: str = ""
    answer: str = ""
    ago: timedelta = timedelta()
    scheme: str = "https"
    milliseconds: int = 45
    all_tenants: bool = False


UNAVAILABLE = "HTTP 503 Service Unavailable: maintenance until 16:00"
SEEDS = (
    Seed("order-fulfilment", "fulfilment.example.com", ("order.>",), milliseconds=38),
    Seed("search-index", "search.example.com", ("product.>", "order.paid"), milliseconds=12),
    Seed("fraud-checks", "risk.example.com", ("order.created", "payment.*"), milliseconds=140),
    Seed("threat-feed", "soc.example.com", ("attacker.>", "decky.*.state"), milliseconds=22),
    Seed("audit-log", "log.example.com", (">",), all_tenants=True, milliseconds=8),
    Seed("mail-queue", "mail.example.com",
         ("order.paid", "order.shipped", "invoice.created", "customer.created"), milliseconds=55),
    Seed("label-printer", "printer.warehouse.example.com:8080", ("order.shipped",), scheme="http"),
    Seed("newsletter", "letters.example.com", ("campaign.*",)),
    Seed("loyalty-points", "points.example.com", ("order.paid",), fails=3, trouble=0.3, status=503,
         error=UNAVAILABLE, answer='{"error": "maintenance", "until": "16:00"}'),
    Seed("returns-desk", "returns.example.com", ("order.returned",), state="tripped", fails=5,
         trouble=0.6, error="tls: the certificate of returns.example.com has expired",
         ago=timedelta(hours=3, minutes=12)),
    Seed("old-warehouse", "warehouse-1.example.com", ("order.>",), state="paused",
         ago=timedelta(days=12)),
    Seed("orders", "hooks.tidewater.example.com", ("order.*",), "tidewater", milliseconds=64),
    Seed("invoices", "erp.tidewater.example.com", ("invoice.>",), "tidewater", state="tripped",
         fails=5, trouble=0.2, status=500, error="HTTP 500 Internal Server Error: database is full",
         answer="Traceback: database is full", ago=timedelta(minutes=26)),
    Seed("stock", "stock.tidewater.example.com", ("product.stock.*",), "tidewater"),
    Seed("orders", "api.oakmere.example.com", ("order.*", "payment.*"), "oakmere", trouble=0.02,
         status=502, error="HTTP 502 Bad Gateway", answer="<h1>502 Bad Gateway</h1>"),
    Seed("accounting", "books.oakmere.example.com", ("invoice.created", "payment.captured"),
         "oakmere", fails=1, trouble=0.05, error="timeout: no answer within 10 s"),
    Seed("crm", "crm.juniper-lane.example.com", ("customer.>", "order.paid"), "juniper-lane",
         trouble=0.1, status=422, error="HTTP 422 Unprocessable Entity: unknown customer",
         answer='{"error": "unknown customer"}'),
    Seed("shop-floor", "floor.juniper-lane.example.com", ("order.>",), "juniper-lane",
         state="tripped", fails=1, status=410, error="HTTP 410 Gone", answer="gone",
         ago=timedelta(days=2, hours=5)),
)  # fmt: skip

TOPICS = (
    "order.created", "order.paid", "order.paid", "order.shipped", "order.returned",
    "payment.captured", "invoice.created", "customer.created", "product.stock.changed",
    "attacker.observed",
)  # fmt: skip


@transaction.atomic  # the sweep must not find what is held for one that is not tripped yet
def seed() -> dict[str, Subscription]:
    """Fill an empty database; the subscriptions by tenant and name (`oakmere/orders`)."""
    chance = random.Random(20260424)
    now = timezone.now()
    found: dict[str, Subscription] = {}
    for one in SEEDS:
        subscription, _ = create_subscription(
            name=one.name,
            tenant=one.tenant,
            all_tenants=one.all_tenants,
            url=f"{one.scheme}://{one.host}/webhooks",
            topic_patterns=one.patterns,
        )
        found[f"{one.tenant}/{one.name}" if one.tenant else one.name] = subscription
    pairs = list(zip(SEEDS, found.values(), strict=True))
    _deliveries(chance, now, pairs)
    for one, subscription in pairs:
        _state(now, one, subscription)
    _rollups(chance, now, pairs)
    _audit(now, found)
    _keys(now)
    make_user("oncall", OPERATOR)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    return found


def _identifier(chance: random.Random, at: datetime) -> uuid.UUID:
    """A UUID version 7 of that time."""
    value = (int(at.timestamp() * 1000) << 80) | chance.getrandbits(80)
    value &= ~(0xF << 76) & ~(0x3 << 62)
    return uuid.UUID(int=value | (7 << 76) | (2 << 62))


def _payload(chance: random.Random, topic: str) -> dict[str, Any]:
    if topic == "attacker.observed":
        return {"address": f"203.0.113.{chance.randint(1, 254)}", "decky": "mail-02", "port": 22}
    number = chance.randint(48_000, 52_000)
    total = f"{chance.randint(5, 400)}.{chance.randint(0, 99):02}"
    return {"id": number, "total": total, "currency": "EUR", "lines": chance.randint(1, 6)}


def _deliveries(
    chance: random.Random, now: datetime, pairs: list[tuple[Seed, Subscription]]
) -> None:
    """The newest events, published over some hours, and what became of them."""
    events, deliveries = [], []
    for number in range(EVENTS):
        at = now - timedelta(seconds=3 + 11_000 * (1 - number / EVENTS) ** 1.5)
        topic, key = chance.choice(TOPICS), str(_identifier(chance, at))
        tenant = chance.choice(("", "", *TENANTS))
        body = build_body(key, at, topic, "", _payload(chance, topic))
        events.append(Event(id=key, topic=topic, body=body, created_at=at, tenant=tenant))
        for one, subscription in pairs:
            if one.state == "paused" or not set(one.patterns) & set(candidates(topic)):
                continue
            if one.tenant == tenant or one.all_tenants:
                delivery = Delivery(
                    event_id=key, subscription=subscription, created_at=at, tenant=one.tenant
                )
                deliveries.append((one, delivery))
    attempts = []
    Event.objects.bulk_create(events)
    for one, delivery in deliveries:
        attempts += [(delivery, made) for made in _attempts(chance, now, one, delivery)]
    Delivery.objects.bulk_create([delivery for _, delivery in deliveries])
    for delivery, made in attempts:
        made.delivery = delivery
    Attempt.objects.bulk_create(
        sorted((made for _, made in attempts), key=lambda made: made.started_at)
    )


def _attempts(chance: random.Random, now: datetime, one: Seed, delivery: Delivery) -> list[Attempt]:
    """The attempts of one delivery; the delivery gets the status that they led to."""
    address = f"198.51.100.{sum(map(ord, one.host)) % 250 + 1}:443"
    if one.state == "tripped" and delivery.created_at > now - one.ago:
        delivery.status, delivery.held_at = Delivery.Status.HELD, delivery.created_at
        return []
    at = delivery.created_at + timedelta(milliseconds=chance.randint(8, 40))
    since = now - one.ago - delivery.created_at
    failing = one.fails > 1 and since < timedelta(minutes=20)
    final = one.status is not None and one.status < 500
    failed = 0
    if failing:
        failed = 4
    elif chance.random() < one.trouble:
        failed = 1 if final else chance.choice((1, 1, 2, 3))
    made = []
    for number in range(1, failed + 1):
        made.append(
            Attempt(
                number=number,
                outcome="http" if one.status else one.error.partition(":")[0],
                status_code=one.status,
                error="" if one.status else one.error,
                response_body=one.answer,
                remote_address=address,
                started_at=at,
                duration_ms=chance.randint(20, 90) if one.status else 10_000,
            )
        )
        at += timedelta(seconds=(1, 2, 4, 300)[number - 1])
    delivery.attempt_count = delivery.retries_used = failed
    if failed:
        delivery.last_error = one.error
    if failed < 4 and not (final and failed):
        took = max(2, int(chance.lognormvariate(math.log(one.milliseconds), 0.4)))
        made.append(
            Attempt(
                number=failed + 1,
                outcome="success",
                status_code=200,
                response_body='{"ok": true}',
                remote_address=address,
                started_at=at,
                duration_ms=took,
            )
        )
        delivery.attempt_count = failed + 1
        delivery.status = Delivery.Status.SUCCEEDED
        delivery.finished_at = at + timedelta(milliseconds=took)
    elif final:
        delivery.status = Delivery.Status.FAILED
        delivery.finished_at = made[-1].started_at + timedelta(milliseconds=made[-1].duration_ms)
    elif one.state == "tripped":
        delivery.status, delivery.held_at = Delivery.Status.HELD, now - one.ago
    else:
        delivery.status = Delivery.Status.PENDING
        delivery.next_attempt_at = now + timedelta(minutes=4)
    return made


def _state(now: datetime, one: Seed, subscription: Subscription) -> None:
    """What the circuit wrote."""
    columns: dict[str, Any] = {"created_at": now - timedelta(days=90)}
    if one.name != "newsletter":
        columns["last_success_at"] = now - max(one.ago, timedelta(seconds=4))
    if one.state != "active":
        columns["enabled"] = False
    if one.fails:
        failed = now - max(one.ago, timedelta(minutes=2))
        columns |= {"last_failure_at": failed, "failing_since": failed - timedelta(minutes=9)}
        columns |= {"consecutive_failures": one.fails, "last_error": one.error}
        columns["last_success_at"] = failed - timedelta(minutes=11)
    if one.state == "tripped":
        columns |= {"auto_disabled_at": now - one.ago, "next_probe_at": now + timedelta(hours=1)}
    with connection.cursor() as cursor:
        names = ", ".join(f"{name} = %s" for name in columns)
        cursor.execute(
            f"UPDATE subscriptions_subscription SET {names} WHERE id = %s",
            [*columns.values(), subscription.pk],
        )
    if one.state == "active" and one.fails > 1:
        Lane.objects.create(
            subscription=subscription,
            failures=one.fails,
            resume_at=now + timedelta(minutes=4),
            backoff_reason=one.error,
        )


def _rollups(chance: random.Random, now: datetime, pairs: list[tuple[Seed, Subscription]]) -> None:
    """A day that is busiest in the afternoon, with ten minutes of trouble an hour ago."""
    this_minute = now.replace(second=0, microsecond=0)
    minutes = []
    for ago in range(HOURS * 60 + 1):
        at = this_minute - timedelta(minutes=ago)
        day = 1.15 + math.sin((at.hour * 60 + at.minute) / 1440 * 2 * math.pi - 2)
        made = int(60 + 90 * day + chance.randint(-12, 12))
        trouble = 0.35 if 38 <= ago <= 47 else 0.004
        retried = sum(chance.random() < trouble for _ in range(made // 2))
        held = chance.choice((0, 0, 1)) if ago < 27 else 0
        failed = 1 if ago % 97 == 30 else 0
        minutes.append(
            MinuteRollup(
                minute=at,
                succeeded=made,
                retried=retried,
                held=held,
                failed=failed,
                attempt_ms=_spread(made + retried + held + failed, ATTEMPT_BOUNDS, 3.7),
                arrival_ms=_spread(made, ARRIVAL_BOUNDS, 4.1),
            )
        )
    MinuteRollup.objects.bulk_create(minutes, ignore_conflicts=True)
    this_hour = now.replace(minute=0, second=0, microsecond=0)
    hours = []
    for one, subscription in pairs:
        if one.state == "paused" or one.name == "newsletter":
            continue
        busy = chance.randint(120, 900)
        for ago in range(HOURS):
            if one.state == "tripped" and timedelta(hours=ago) < one.ago - timedelta(hours=1):
                continue
            made = int(busy * (0.6 + 0.4 * math.sin(ago / 24 * 2 * math.pi)))
            failed = int(made * one.trouble * (0.4 if ago < 3 else 0.04))
            failed += sum(chance.random() < 0.0005 for _ in range(made))
            hours.append(
                HourRollup(
                    hour=this_hour - timedelta(hours=ago),
                    subscription_id=subscription.pk,
                    succeeded=made - failed,
                    failed=failed,
                )
            )
    HourRollup.objects.bulk_create(hours)


def _spread(number: int, bounds: tuple[int, ...], middle: float) -> list[int]:
    """So many times in the buckets of a histogram: log-normal around `exp(middle)` ms."""

    def below(bound: float) -> float:
        return 0.5 * (1 + math.erf((math.log(bound) - middle) / (0.8 * math.sqrt(2))))

    reached = [round(number * below(bound)) for bound in bounds] + [number]
    return [high - low for low, high in zip([0, *reached], reached, strict=False)]


def _audit(now: datetime, found: dict[str, Subscription]) -> None:
    """In place of what making the rows has written."""
    AuditEntry.objects.all().delete()
    told = {"told": ["email", "event"], "notice_attempts": 1}
    full = "HTTP 500 Internal Server Error: database is full"
    lines: list[tuple[timedelta, str, str, str, str, dict[str, Any]]] = [
        (timedelta(minutes=3), "degraded", "loyalty-points", "", "system",
         {"failures": 3, "threshold": 5, "status": 503, "error": UNAVAILABLE}),
        (timedelta(minutes=19), "replayed", "oakmere/orders", "support", "admin",
         {"count": 214, "since": str(now - timedelta(hours=2)), "topic": "order.paid"}),
        (timedelta(minutes=26), "tripped", "tidewater/invoices", "", "system",
         {"failures": 5, "threshold": 5, "status": 500, "error": full}),
        (timedelta(minutes=41), "recovered", "fraud-checks", "", "system", {}),
        (timedelta(hours=1), "reset", "oakmere/orders", "oncall", "admin", {"held": "sent"}),
        (timedelta(hours=1, minutes=4), "tested", "oakmere/orders", "oncall", "admin",
         {"answer": "204 in 71 ms"}),
        (timedelta(hours=3, minutes=12), "tripped", "returns-desk", "", "system",
         {"failures": 5, "threshold": 5,
          "error": "tls: the certificate of returns.example.com has expired"}),
        (timedelta(hours=7), "changed", "juniper-lane/crm", "crm portal", "api",
         {"fields": {"max_in_flight": {"old": 10, "new": 25}}}),
        (timedelta(hours=9), "rotated", "order-fulfilment", "oncall", "admin",
         {"old_secrets_end_at": str(now + timedelta(hours=15))}),
        (timedelta(hours=30), "still_tripped", "juniper-lane/shop-floor", "", "system",
         {"tripped_at": str(now - timedelta(days=2, hours=5))}),
        (timedelta(days=2, hours=5), "tripped", "juniper-lane/shop-floor", "", "system",
         {"failures": 1, "threshold": 5, "status": 410, "error": "HTTP 410 Gone"}),
        (timedelta(days=12), "paused", "old-warehouse", "oncall", "command", {}),
        (timedelta(days=90), "created", "order-fulfilment", "deploy", "code", {}),
    ]  # fmt: skip
    AuditEntry.objects.bulk_create(
        AuditEntry(
            at=now - ago,
            action=action,
            subscription_id=found[name].pk if name in found else None,
            subscription_name=found[name].name if name in found else "",
            tenant=found[name].tenant if name in found else "",
            actor=actor,
            via=via,
            detail=detail,
            **(told if action in ("tripped", "degraded", "recovered", "still_tripped") else {}),
        )
        for ago, action, name, actor, via, detail in lines
    )


def _keys(now: datetime) -> None:
    create_key("shop", ["events:write"])
    create_key("oakmere portal", ["subscriptions:read", "subscriptions:write"], tenant="oakmere")
    create_key("monitoring", ["deliveries:read"], all_tenants=True,
               expires_at=now + timedelta(days=60))  # fmt: skip
    old, _ = create_key("old shop", ["events:write"])
    revoke(ApiKey.objects.filter(pk=old.pk))
    ApiKey.objects.filter(name="shop").update(last_used_at=now - timedelta(seconds=20))
    AuditEntry.objects.filter(subscription_name="").update(at=now - timedelta(days=90))
