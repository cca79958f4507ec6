"""A model that knows what its row held, and so writes only what this instance changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

from django.db import models


class Remembering(models.Model):
    """Remembers the row as this instance last read or wrote it.

    `changed_fields()` names the fields to write. Those of `written_elsewhere` are not among them
    if this instance never read them.
    """

    written_elsewhere: ClassVar[frozenset[str]] = frozenset()

    class Meta:
        abstract = True

    # What the row held, by field name.
    _loaded: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._loaded = {}
        super().__init__(*args, **kwargs)

    @classmethod
    def from_db(cls, *args: Any, **kwargs: Any) -> Self:
        instance = super().from_db(*args, **kwargs)
        instance.remember()
        return instance

    def refresh_from_db(
        self,
        using: str | None = None,
        fields: Iterable[str] | None = None,
        from_queryset: models.QuerySet[Any] | None = None,
    ) -> None:
        fields = None if fields is None else list(fields)
        super().refresh_from_db(using, fields, from_queryset)
        self.remember(fields)

    def changed_fields(self) -> set[str]:
        return {
            name
            for name, value in self._current().items()
            if (
                name not in self.written_elsewhere
                if name not in self._loaded
                else value != self._loaded[name]
            )
        }

    def remember(self, fields: Iterable[str] | None = None) -> None:
        """The row holds what this instance does, in these fields or in all."""
        current = self._current()
        # `refresh_from_db` takes names of relations too, and of prefetched ones.
        for name in current if fields is None else current.keys() & set(fields):
            value = current[name]
            # Lists and dicts may be changed in place: remember a copy, not the same object.
            self._loaded[name] = value.copy() if isinstance(value, list | dict) else value

    def _current(self) -> dict[str, Any]:
        deferred = self.get_deferred_fields()
        return {
            field.attname: getattr(self, field.attname)
            for field in self._meta.concrete_fields
            if field.attname not in deferred
        }
