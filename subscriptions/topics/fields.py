"""The model field for a subscription's topic patterns."""

from __future__ import annotations

from typing import Any

from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import F, Func
from django.db.models.functions import Collate


def check_patterns(value: Any) -> None:
    """Raise `TypeError` for anything but a list, or an expression."""
    if not isinstance(value, list | tuple) and not hasattr(value, "resolve_expression"):
        raise TypeError(
            "topic_patterns is a list of patterns, such as ['order.>']; "
            f"{str(value)[:100]!r} is a {type(value).__name__}."
        )


class TopicPatternsField(models.JSONField):
    """A list of topic patterns, as JSON.

    Writing anything but a list raises `TypeError`, whichever way it is written (`create`,
    `bulk_create`, `update` …): a single text would be stored, and would match nothing.
    """

    def get_db_prep_save(self, value: Any, connection: Any) -> Any:
        check_patterns(value)
        return super().get_db_prep_save(value, connection)


def topic_keys() -> Collate:
    """What a subscription is found by: each of its patterns, behind its tenant.

    The function is made in the migrations. The collation compares bytes, whatever that of the
    database is.
    """
    keys = Func(
        F("tenant"), F("all_tenants"), F("topic_patterns"), function="subscriptions_topic_keys"
    )
    return Collate(keys, "C")


class PatternsIndex(GinIndex):
    """The GIN index of the patterns, for projects without `django.contrib.postgres`.

    From Django 6 on a check asks for that app. The index needs nothing of it.
    """

    def check(self, *args: Any, **kwargs: Any) -> list[Any]:
        return []
