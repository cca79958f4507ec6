"""A tenant as a column, and as a filter that does not list the others: there may be thousands."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from subscriptions.admin.display import link


class ChosenTenant(admin.SimpleListFilter):
    """Shows which tenant the list is narrowed to by a link, and the way back to all."""

    title = parameter_name = "tenant"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        value = self.value()
        return [(value, value)] if value else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(tenant=self.value()) if self.value() else queryset


def tenant_link(tenant: str, changelist: str) -> SafeString | str:
    """The tenant, as a link to the list of its rows."""
    return link(tenant, changelist, tenant=tenant) if tenant else "–"
