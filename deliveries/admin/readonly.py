"""What the admin pages of rows that only the sender writes have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest

from deliveries.admin.pagination import EstimatingPaginator
from subscriptions.admin.careful import CarefulAdmin
from subscriptions.models import Subscription


class IndexedChangeList(ChangeList):
    """Sorts by what `sortable_by` names, whatever the address asks for: the rest has no index."""

    def get_ordering_field(self, field_name: Any) -> Any:
        if field_name not in (self.sortable_by or ()):
            return None
        return super().get_ordering_field(field_name)


class ReadOnlyAdmin(CarefulAdmin):
    """Rows that only the sender writes. A subclass names in `sortable_by` what has an index."""

    sortable_by: ClassVar[tuple[str, ...]] = ()
    list_filter: ClassVar[tuple[str | type[admin.SimpleListFilter], ...]] = ()
    change_form_template = "admin/deliveries/readonly_change_form.html"
    list_per_page = 50
    ordering = ("-id",)
    paginator = EstimatingPaginator
    show_facets = admin.ShowFacets.NEVER
    show_full_result_count = False

    class Media:
        css: ClassVar = {"all": ["subscriptions/admin.css"]}

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return IndexedChangeList

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Only what a filter offers: any other column would be read from end to end."""
        return lookup in {
            f"{offered}__exact" if isinstance(offered, str) else offered.parameter_name
            for offered in self.list_filter
        }

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ChosenFilter(admin.SimpleListFilter):
    """Shows which related row the list is narrowed to by a link, and the way back to all."""

    field: str

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        value = self.value()
        return [] if value is None else [(value, self.describe(value))]

    def describe(self, value: str) -> str:
        return value

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        # PostgreSQL refuses to look for NUL.
        if "\0" in value:
            return queryset.none()
        try:
            return queryset.filter(**{self.field: value})
        except (ValueError, ValidationError):
            return queryset.none()


class ChosenSubscription(ChosenFilter):
    title = parameter_name = "subscription"
    field = "subscription_id"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = super().queryset(request, queryset)
        # True of all, and what the index `delivery_history` asks for.
        return chosen if self.value() is None else chosen.filter(id__gt=0)

    def describe(self, value: str) -> str:
        try:
            return str(Subscription.objects.only("name", "tenant").get(pk=value))
        except (ValueError, ValidationError, Subscription.DoesNotExist):
            return "a deleted subscription"


class ChosenEvent(ChosenFilter):
    title = parameter_name = "event"
    field = "event_id"


class ChosenDelivery(ChosenFilter):
    title = parameter_name = "delivery"
    field = "delivery_id"


class OutcomeFilter(admin.SimpleListFilter):
    title = parameter_name = "outcome"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("success", "Success"),
            ("http", "Answered, but no success"),
            ("none", "No answer"),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "none":
            return queryset.filter(status_code=None)
        if self.value() in ("success", "http"):
            return queryset.filter(outcome=self.value())
        return queryset
