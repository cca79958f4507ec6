"""What the admin pages of rows that only the sender writes have in common: lists of millions.

A list is a search (`deliveries.keeping.finding`) that its filters make, and a page of it begins at
a place in its order. Nothing is counted, and no column's values are listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.text import capfirst
from unfold.contrib.filters.admin import DropdownFilter, TextFilter

from deliveries.keeping import keyset
from deliveries.keeping.finding import ANSWERS
from deliveries.keeping.keyset import BadPlace, Search
from subscriptions.admin.careful import CarefulAdmin
from subscriptions.models import Subscription
from subscriptions.times import parse_time

# Parameters of the address: where the page before ended, and where the page after begins.
BEFORE, AFTER = "before", "after"


class NothingFound(Exception):
    """A filter's value is none that a row could have; the text says so, unless it is empty."""


class IndexedChangeList(ChangeList):
    """Sorts by what `sortable_by` names, whatever the address asks for: the rest has no index."""

    def get_ordering_field(self, field_name: Any) -> Any:
        if field_name not in (self.sortable_by or ()):
            return None
        return super().get_ordering_field(field_name)


class _Pages:
    """What stands in the place of a paginator: the two links, and what is said beside them."""

    template_name = "admin/deliveries/pages.html"

    def __init__(self, newer: str, older: str, stopped: bool) -> None:
        self.newer, self.older, self.stopped = newer, older, stopped


class KeysetChangeList(ChangeList):
    """A page of the search that the filters make."""

    search: Search[Any]
    # The others for the same.
    searches: Iterator[tuple[Search[Any], list[str]]]
    model_admin: ReadOnlyAdmin
    notes: Iterable[str] = ()
    # Nothing is counted.
    show_full_result_count = can_show_all = multi_page = False
    show_admin_actions = True

    def get_filters_params(self, params: Any = None) -> dict[str, Any]:
        found = super().get_filters_params(params)
        return {name: value for name, value in found.items() if name not in (BEFORE, AFTER)}

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        self.filter_specs, self.has_filters, _, _, _ = self.get_filters(request)
        for name in (BEFORE, AFTER):
            self.filter_params.pop(name, None)
            # What a filter uses is not kept when the form is sent: a new search begins anew.
            self.filter_specs[0].used_parameters.setdefault(name, "")
        specs: list[Any] = self.filter_specs
        values = {
            spec.parameter_name: value for spec in specs if (value := (spec.value() or "").strip())
        }
        self.has_active_filters = bool(values)
        self.clear_all_filters_qs = "?"
        try:
            self.searches = self.model_admin.searches(values, self.query.strip())
            self.search, self.notes = next(self.searches)
        except NothingFound as error:
            if str(error) and request.method == "GET":
                messages.error(request, str(error))
            self.search = Search(self.root_queryset.none(), Q())
        if request.method == "POST":
            # An action is for rows that are named by their ids, whatever is listed by now.
            across = request.POST.get("select_across") == "1"
            return self.root_queryset.none() if across else self.root_queryset
        return self.search.wanted

    def get_results(self, request: HttpRequest) -> None:
        text, backwards = request.GET.get(BEFORE), False
        if text is None and AFTER in request.GET:
            text, backwards = request.GET[AFTER], True
        place = None if text is None else self._read_place(text)
        page = keyset.page(self.search, place, limit=self.list_per_page, backwards=backwards)
        if backwards and page.first is None:
            # The newest of all: a whole page of them.
            page = keyset.page(self.search, limit=self.list_per_page)
        self.result_list = self.model_admin.prepared(page.rows)
        # As many as there are on the page, and no total is shown beside them.
        self.result_count = self.full_result_count = len(page.rows)
        self.paginator = _Pages(
            "" if page.first is None else self._link(AFTER, page.first),
            "" if page.last is None else self._link(BEFORE, page.last),
            page.stopped,
        )

    def _read_place(self, text: str) -> keyset.Place:
        """In the order of the first search that has it."""
        while True:
            try:
                return keyset.read_place(text, self.search)
            except BadPlace as error:
                found = next(self.searches, None)
                if found is None:
                    raise IncorrectLookupParameters from error
                self.search, self.notes = found

    def _link(self, name: str, place: keyset.Place) -> str:
        return self.get_query_string({name: keyset.written(place)})


class ReadOnlyAdmin(CarefulAdmin):
    """Rows that only the sender writes."""

    sortable_by = ()
    list_filter: ClassVar[tuple[type[admin.SimpleListFilter], ...]] = ()
    list_filter_submit = True
    list_before_template = "admin/deliveries/list_notes.html"
    change_list_template = "admin/deliveries/change_list.html"
    list_per_page = 50
    page_template: str
    show_facets = admin.ShowFacets.NEVER
    show_full_result_count = False

    class Media:
        css: ClassVar = {"all": ["subscriptions/admin.css", "deliveries/history.css"]}

    def search(self, values: Mapping[str, str], term: str) -> tuple[Search[Any], list[str]]:
        """What these values of filters ask for, and what is to be said of it. `NothingFound`."""
        raise NotImplementedError

    def searches(
        self, values: Mapping[str, str], term: str
    ) -> Iterator[tuple[Search[Any], list[str]]]:
        """That one, and all others by which the page before may have been found."""
        yield self.search(values, term)

    def details(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What the page of one row shows."""
        raise NotImplementedError

    def prepared(self, rows: list[Any]) -> list[Any]:
        """With what the page shows of related rows, which may be gone: by their ids, at once."""
        return rows

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return KeysetChangeList

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        if request.method not in ("GET", "HEAD") or not self.has_view_permission(request):
            raise PermissionDenied
        row = self.get_object(request, unquote(object_id))
        if row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined, no-any-return]
        title = f"{capfirst(self.opts.verbose_name)} {row.pk}"
        return self.page(
            request, self.page_template, title, original=title, **self.details(request, row)
        )

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Only what a filter offers: any other column would be read from end to end."""
        return lookup in {offered.parameter_name for offered in self.list_filter}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class _Unapplied:
    """A filter that shows its value, and leaves it to `ReadOnlyAdmin.search` what it means."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset


class ByAnswer(_Unapplied, DropdownFilter):  # type: ignore[misc]
    title, parameter_name = "last answer", "answer"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name if code else "No answer") for name, code in ANSWERS.items()]


def offered(name: str, choices: Iterable[tuple[Any, Any]]) -> type[admin.SimpleListFilter]:
    """A filter by one of these values of a field."""

    class Offered(_Unapplied, DropdownFilter):  # type: ignore[misc]
        title, parameter_name = name, f"{name}__exact"

        def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
            return [(value, str(label)) for value, label in choices]

    return Offered


def by(title: str, name: str = "") -> type[admin.SimpleListFilter]:
    """A filter by a text that is written in full."""
    fields = {"title": title, "parameter_name": name or title}
    return type("ByText", (_Unapplied, TextFilter), fields)


BY_SINCE = by("time, from (2h, 7d or 2026-04-24 16:24)", "since")
BY_UNTIL = by("time, until", "until")


def moment(values: Mapping[str, str], name: str) -> datetime | None:
    if name not in values:
        return None
    try:
        return parse_time(values[name], timezone.get_current_timezone())
    except ValueError as error:
        raise NothingFound(str(error)) from None


def subscription_of(values: Mapping[str, str]) -> UUID | None:
    """That of the filter, which is an id, also of one that was deleted, or a name."""
    text = values.get("subscription")
    if text is None:
        return None
    try:
        return UUID(text)
    except ValueError:
        named = Subscription.objects.filter(name=text)
    if "tenant" in values:
        named = named.filter(tenant=values["tenant"])
    found = list(named.values_list("pk", flat=True)[:2])
    if not found:
        raise NothingFound(f"There is no subscription {text[:80]!r}.")
    if len(found) > 1:
        raise NothingFound(
            f"Several subscriptions are called {text[:80]!r}: name the tenant too, or an id."
        )
    return found[0]


def answer(values: Mapping[str, str]) -> int | None:
    if "answer" not in values:
        return None
    if values["answer"] not in ANSWERS:
        raise NothingFound
    return ANSWERS[values["answer"]]


def number(text: str) -> int | None:
    """The id of a delivery or an attempt; None if it can be none."""
    if text.isascii() and text.isdigit() and len(text) < 20 and int(text) < 2**63:
        return int(text)
    return None
