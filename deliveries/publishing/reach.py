"""`reach`: which subscriptions an event of a topic is for, and why the others do not get it."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from django.db import models
from django.db.models import Q
from django.db.models.expressions import RawSQL

from subscriptions.models import Subscription
from subscriptions.tenants import validate_tenant
from subscriptions.topics.misses import miss
from subscriptions.topics.rules import candidates, validate_topic

# Rows that are read to find out why a subscription is not reached, of its tenant and of others.
MAX_LOOKED_AT = 2000


class Reached(NamedTuple):
    """`patterns`: those of its patterns that match. `becomes`: what a delivery would be that is
    made now: `pending`, or `held` of one that is tripped; `""`: it is paused, and gets none."""

    subscription: Subscription
    patterns: list[str]
    becomes: str


class Missed(NamedTuple):
    """`pattern`: the one that is nearest to a match, or that matches; empty if it has none."""

    subscription: Subscription
    pattern: str
    why: str


@dataclass(frozen=True, slots=True)
class Reach:
    """`more`: further subscriptions are reached than are listed. `all_looked_at`: no subscription
    was left out of `missed` unseen. `missed` has the nearest first."""

    topic: str
    tenant: str
    reached: list[Reached]
    more: bool
    missed: list[Missed]
    all_looked_at: bool


# By the index that publishing reads, `subscription_topic_keys`. `OFFSET 0` keeps the planner from
# walking through the names in their order and calling the function for each row.
_FOUND = """
id IN (
    SELECT id FROM subscriptions_subscription
    WHERE subscriptions_topic_keys(tenant, all_tenants, topic_patterns) COLLATE "C"
        && %s::text[]
    OFFSET 0
)
"""


def reach(topic: str, tenant: str = "", *, limit: int = 200, misses: int = 10) -> Reach:
    """Whom an event of this topic and tenant would reach, if it were published now.

    `limit` of those it reaches, by name; and `misses` of the others, those first that come nearest
    to it. Three queries. Raises `InvalidTopic` and `InvalidTenant`.
    """
    validate_topic(topic)
    validate_tenant(tenant)
    matching = candidates(topic)
    known = set(matching)
    keys = [f"\t{pattern}" for pattern in matching] if tenant else matching
    if tenant:
        keys += [f"{tenant}\t{pattern}" for pattern in matching]
    found = Subscription.objects.filter(
        RawSQL(_FOUND, [keys], models.BooleanField()),  # noqa: S611
        Q(tenant=tenant) | Q(all_tenants=True),
    ).order_by("name", "id")[: limit + 1]
    reached = [
        Reached(one, [p for p in one.topic_patterns if p in known], _becomes(one)) for one in found
    ]
    # Those that an event of this tenant is never for have a pattern that matches, or no part in it.
    own = Q(tenant=tenant) | Q(all_tenants=True)
    looked_at = [
        list(_FEW_FIELDS.filter(whose).order_by("-id")[:MAX_LOOKED_AT]) for whose in (own, ~own)
    ]
    missed = (_missed(one, topic, tenant, known) for rows in looked_at for one in rows)
    nearest = heapq.nsmallest(misses, (one for one in missed if one is not None), key=itemgetter(0))
    return Reach(
        topic,
        tenant,
        reached[:limit],
        len(reached) > limit,
        [one for _, one in nearest],
        all(len(rows) < MAX_LOOKED_AT for rows in looked_at),
    )


_FEW_FIELDS = Subscription.objects.only(
    "name", "tenant", "all_tenants", "topic_patterns", "enabled", "auto_disabled_at", "created_at"
)


def _becomes(subscription: Subscription) -> str:
    return {"active": "pending", "tripped": "held", "paused": ""}[subscription.state]


def _missed(
    subscription: Subscription, topic: str, tenant: str, known: set[str]
) -> tuple[float, Missed] | None:
    """How far the subscription is from being reached, and why; None if it is reached, or is
    another tenant's and would not match either."""
    patterns = [one for one in subscription.topic_patterns if isinstance(one, str)]
    matching = next((one for one in patterns if one in known), None)
    if subscription.tenant != tenant and not subscription.all_tenants:
        if matching is None:
            return None
        whose = f"the tenant {subscription.tenant!r}" if subscription.tenant else "the application"
        asked = f"the tenant {tenant!r}" if tenant else "the application"
        why = f"it matches, but is of {whose}, and the event is of {asked}"
        return 0, Missed(subscription, matching, why)
    if matching is not None:
        return None
    found = [(miss(pattern, topic), pattern) for pattern in patterns]
    nearest = min(((one, pattern) for one, pattern in found if one), default=None)
    if nearest is None:
        return float("inf"), Missed(subscription, "", "it has no pattern")
    return nearest[0].distance, Missed(subscription, nearest[1], nearest[0].why)
