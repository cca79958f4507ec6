"""The pages of the control room, and what each costs: its queries, and its milliseconds.

A list is asked for as it opens, with each of its filters, with a search, and page by page. What
a filter offers is found on the page itself, so a new filter is measured too; one that takes a text
needs an example in `EXAMPLES`, and without one nothing is measured at all.
"""

from __future__ import annotations

import html
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urljoin

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from deliveries.admin import dashboard
from deliveries.models import Attempt, Delivery, Event
from subscriptions.models import AuditEntry, Subscription

LISTS = (Subscription, Delivery, Attempt, Event, AuditEntry)
# So many next pages of each list are opened.
PAGES = 3
# Milliseconds that a page may take.
DASHBOARD, OTHER = 300.0, 500.0


@dataclass(frozen=True)
class Page:
    name: str
    address: str
    limit: float = OTHER


@dataclass(frozen=True)
class Cost:
    """`first`: milliseconds of the first request for this page, `median`: of those after it."""

    page: Page
    queries: int
    first: float
    median: float

    @property
    def kept(self) -> bool:
        return max(self.first, self.median) <= self.page.limit


class MissingExample(Exception):
    """A filter takes a text, and there is no example of it."""


def signed_in() -> Client:
    """Who may see everything."""
    user, _ = get_user_model().objects.get_or_create(
        username="bench", defaults={"is_staff": True, "is_superuser": True}
    )
    client = Client(SERVER_NAME="127.0.0.1")
    client.force_login(user)
    # What a process does once, such as importing the admin, is no page's own cost.
    client.get(reverse("admin:auth_group_changelist"))
    return client


def pages(client: Client, *, some: bool = False) -> Iterator[Page]:
    """All pages, of a database that `filling` has filled; or `some`: of each kind one."""
    yield Page("dashboard", reverse("admin:index"), DASHBOARD)
    yield Page("dashboard, its figures", reverse("admin-dashboard"), DASHBOARD)
    examples = _examples()
    for model in LISTS:
        name = str(model._meta.verbose_name_plural)
        address = _address(model, "changelist")
        yield Page(name, address)
        yield from _further(client, Page(name, address), 1 if some else PAGES)
        known = set()
        for text, query in _filters(model, examples):
            if some and query.keys() <= known:
                continue
            known |= query.keys()
            narrowed = Page(f"{name}, {text}", f"{address}?{urlencode(query)}")
            yield narrowed
            if not some:
                yield from _further(client, narrowed, 1)
        for term in examples["q", model]:
            yield Page(f"{name}, search for {term}", f"{address}?{urlencode({'q': term})}")
    yield from _rows()


def _address(model: Any, view: str, *args: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{view}", args=args)


def _examples() -> dict[Any, Any]:
    """By a filter's parameter, a value; by ("q", model), what is searched for."""
    failed = Delivery.objects.filter(status="failed").latest("id")
    event = Event.objects.get(pk=failed.event_id)
    tenant = Delivery.objects.exclude(tenant="").latest("id").tenant
    return {
        "subscription": [failed.subscription_id],
        "event": [event.pk],
        "delivery": [failed.pk],
        "topic": [event.topic, "shop-0.nobody.published.this"],
        "tenant": [tenant],
        "host": ["receiver-7.example.com"],
        "since": ["2h"],
        "until": ["7d"],
        ("q", Subscription): ["receiver 7", event.topic],
        ("q", Delivery): [failed.pk, event.pk],
        ("q", Attempt): [failed.pk],
        ("q", Event): [event.pk],
        ("q", AuditEntry): [],
    }


def _filters(model: Any, examples: dict[Any, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each filter of the list offers: in words, and as the address has it."""
    listed = admin.site._registry[model]
    for one in listed.list_filter:
        if isinstance(one, str):
            parameter, title = f"{one}__exact", one
            offered = [value for value, _ in model._meta.get_field(one).flatchoices]
        else:
            spec = one(RequestFactory().get("/"), {}, model, listed)
            parameter, title = spec.parameter_name, spec.title
            offered = [value for value, _ in spec.lookup_choices if value is not None]
        values = [*offered, *(one for one in examples.get(parameter, ()) if one not in offered)]
        if not values:
            raise MissingExample(f"{model.__name__}: no example of {parameter!r} in `_examples`.")
        for value in values:
            yield f"{title.split(',')[0]} {value or 'none'}", {parameter: value}


def _further(client: Client, page: Page, number: int = PAGES) -> Iterator[Page]:
    """The next pages of a list; and where pages have numbers, the last."""
    address = page.address
    for place in range(2, number + 2):
        shown = html.unescape(client.get(address).content.decode())
        found = re.search(r'href="([^"]+)" rel="next"', shown)
        if found is None:
            break
        address = urljoin(address, found[1])
        yield Page(f"{page.name}, page {place}", address)
    else:
        return
    numbers = {int(one) for one in re.findall(r'href="[^"]*[?&]p=(\d+)', shown)}
    if numbers and address == page.address:
        joined = "&" if "?" in page.address else "?"
        yield Page(f"{page.name}, page 2", f"{page.address}{joined}p=2")
        yield Page(f"{page.name}, last page", f"{page.address}{joined}p={max(numbers)}")


def _rows() -> Iterator[Page]:
    """The pages of single rows, of every kind."""
    for state in ("active", "paused", "tripped"):
        one = getattr(Subscription.objects, state)().order_by("name").first()
        yield Page(f"a subscription, {state}", _address(Subscription, "change", one.pk))
    audit = reverse("admin:subscriptions_auditentry_changelist")
    yield Page("a subscription's audit", f"{audit}?{urlencode({'subscription': one.pk})}")
    for act in ("reset", "replay", "rotate_secret"):
        page = reverse(f"admin:subscriptions_subscription_{act}", args=[one.pk])
        yield Page(f"a subscription, {act.replace('_', ' ')}", page)
    for status in Delivery.Status:
        delivery = Delivery.objects.filter(status=status).latest("id")
        yield Page(f"a delivery, {status}", _address(Delivery, "change", delivery.pk))
        yield Page(f"an event, {status}", _address(Event, "change", delivery.event_id))
    yield Page("an attempt", _address(Attempt, "change", Attempt.objects.latest("id").pk))
    yield Page("an audit entry", _address(AuditEntry, "change", AuditEntry.objects.latest("id").pk))
    topic = Event.objects.latest("created_at").topic
    for url in admin.site._registry[Event].get_urls():
        if url.name and url.name.endswith("reach"):
            reach = reverse(f"admin:{url.name}")
            yield Page("reach of a topic", f"{reach}?{urlencode({'topic': topic})}")


def cost(client: Client, page: Page, times: int = 5) -> Cost:
    """What the page costs. What the dashboard keeps for a moment is made anew each time."""

    def milliseconds() -> float:
        dashboard._kept.forget()
        began = time.perf_counter()
        response = client.get(page.address)
        took = 1000 * (time.perf_counter() - began)
        if response.status_code != 200:
            raise RuntimeError(f"{page.address} answered {response.status_code}")
        return took

    first = milliseconds()
    later = [milliseconds() for _ in range(times)]
    return Cost(page, queries(client, page), first, statistics.median(later))


def queries(client: Client, page: Page) -> int:
    dashboard._kept.forget()
    with CaptureQueriesContext(connection) as captured:
        response = client.get(page.address)
    if response.status_code != 200:
        raise RuntimeError(f"{page.address} answered {response.status_code}")
    return len(captured)


def table(costs: Sequence[Cost]) -> Iterator[str]:
    """As Markdown."""
    yield "| page | queries | first, ms | median, ms |"
    yield "| --- | ---: | ---: | ---: |"
    for one in costs:
        name = one.page.name if one.kept else f"**{one.page.name}**"
        yield f"| {name} | {one.queries} | {one.first:.0f} | {one.median:.0f} |"


def summary(costs: Sequence[Cost]) -> Iterator[str]:
    """The slowest and the most queries of each kind of page, as Markdown."""
    yield "| page | filters and pages of it | queries, at most | first, ms | median, ms |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    kinds: dict[str, list[Cost]] = {}
    for one in costs:
        kinds.setdefault(one.page.name.split(",")[0], []).append(one)
    for name, found in kinds.items():
        queries, first, median = (
            max(values)
            for values in zip(*((one.queries, one.first, one.median) for one in found), strict=True)
        )
        yield f"| {name} | {len(found)} | {queries} | {first:.0f} | {median:.0f} |"
