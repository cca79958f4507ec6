"""Changes of many subscriptions at once, which mean what they mean to one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any, Self, TypeVar

from django.db import models, transaction
from django.db.models.expressions import RawSQL

from subscriptions import audit, circuit
from subscriptions.topics.fields import check_patterns
from subscriptions.topics.rules import candidates

Row = TypeVar("Row", bound=models.Model)

# The array is hashed once, however long it is. The planner takes the index of publishing for an
# ordered page only where it guesses the number of matches well, and without the index its function
# costs 75 µs a row.
_MATCHED = """
EXISTS (
    SELECT FROM jsonb_array_elements_text("subscriptions_subscription"."topic_patterns") AS pattern
    WHERE pattern = ANY(%s::text[])
)
"""
_HOST = re.compile(r"[^\s/?#@\\]{1,300}")

# What was sent, and what waits, belongs to the tenants of its time: whoever may change the URL of a
# subscription gets what waits for it.
FIXED = {
    "tenant": "A subscription stays with its tenant; make a new one for the other tenant, and "
    "delete this.",
    "all_tenants": "Whether a subscription is for all tenants is decided when it is made; make a "
    "new one, and delete this.",
}

# Fields of a subscription whose change is in the audit. (`enabled`: the circuit writes it there.)
AUDITED = ("name", "url", "topic_patterns", "headers", "max_in_flight", "recovery")


def refuse_fixed(fields: Collection[str]) -> None:
    """Raises `ValueError` if one of these fields never changes."""
    for name, reason in FIXED.items():
        if name in fields:
            raise ValueError(reason)


class CircuitQuerySet(models.QuerySet[Row]):
    """What `Subscription.save` keeps to, `update` and `bulk_update` keep to as well."""

    def active(self) -> Self:
        return self.filter(enabled=True)

    def paused(self) -> Self:
        return self.filter(enabled=False, auto_disabled_at=None)

    def tripped(self) -> Self:
        return self.filter(enabled=False, auto_disabled_at__isnull=False)

    def reached_by(self, topic: str) -> Self:
        """Those that match this valid topic, and for which an event makes a delivery, due or held.

        Whose event it is, is not asked. Reads all patterns of the chosen subscriptions, which
        takes 0.2 s for 100,000: what publishes has an index.
        """
        found = RawSQL(_MATCHED, [candidates(topic)], models.BooleanField())  # noqa: S611
        return self.exclude(enabled=False, auto_disabled_at=None).filter(found)

    def at_host(self, host: str) -> Self:
        """Those whose URL has this host, and its port if one is given, in any case.

        As it is written in the URL. Raises `ValueError` for what cannot be a host.
        """
        if not _HOST.fullmatch(host) or not host.isprintable():
            raise ValueError(
                f"{host[:80]!r} is not a host; write one such as example.com or example.com:8443."
            )
        return self.filter(url__iregex=rf"^https?://{re.escape(host)}(:[0-9]+)?([/?]|$)")

    def update(self, **values: Any) -> int:
        """As Django's; `enabled`, `url` and `recovery` mean what they mean to `Subscription.save`.

        Raises `ValueError` for `auto_disabled_at` and `circuit_epoch`, which the circuit alone
        writes, for `enabled` as an expression or by `bulk_update`, and for `tenant` and
        `all_tenants`.
        """
        refuse_fixed(values)
        if owned := {"auto_disabled_at", "circuit_epoch"} & values.keys():
            raise ValueError(
                f"{' and '.join(sorted(owned))} cannot be updated: the circuit alone writes it. "
                "update(enabled=True) resets circuits, update(enabled=False) pauses."
            )
        audited = [name for name in AUDITED if name in values]
        if not audited and "enabled" not in values:
            return super().update(**values)
        enabled = values.pop("enabled", None)
        if not isinstance(enabled, bool | None):
            raise ValueError(
                "enabled must be True or False, for all of these subscriptions: enabling resets "
                "their circuits. Instead of bulk_update call update(enabled=...) on those to "
                "enable and on those to pause."
            )
        everything = self.model._base_manager.using(self.db)
        with transaction.atomic(using=self.db):
            chosen = everything.filter(pk__in=self.order_by().values("pk")).order_by("pk")
            ids = list(chosen.select_for_update(no_key=True).values_list("pk", flat=True))
            if enabled is False:
                circuit.pause_active(ids)
            if values:
                rows = everything.filter(pk__in=ids)
                old = _values(rows, audited)
                rows.update(**values)
                audit.record("changed", _changed(old, _values(rows, audited)))
            if "url" in values:
                circuit.begin_epoch(ids, new_receiver=True)
            if "recovery" in values:
                circuit.plan_probes(ids)
            if enabled:
                circuit.reset(ids)
        return len(ids)

    def bulk_update(
        self, objs: Iterable[Row], fields: Iterable[str], *args: Any, **kwargs: Any
    ) -> int:
        """As Django's. `TypeError` for topic patterns that are no list, in every Django."""
        objs, fields = list(objs), list(fields)
        if "topic_patterns" in fields:
            row: Any
            for row in objs:
                check_patterns(row.topic_patterns)
        return super().bulk_update(objs, fields, *args, **kwargs)


def _values(rows: models.QuerySet[Any], names: list[str]) -> dict[Any, dict[str, Any]]:
    return {row.pop("pk"): row for row in rows.values("pk", *names)} if names else {}


def _changed(old: dict[Any, dict[str, Any]], new: dict[Any, dict[str, Any]]) -> list[audit.Entry]:
    changes = ((key, audit.changes(old[key], values)) for key, values in new.items() if key in old)
    return [audit.Entry(key, {"fields": change}) for key, change in changes if change]
