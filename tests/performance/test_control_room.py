"""Each page of the control room costs a bounded number of queries, however much there is."""

from __future__ import annotations

import pytest
from control_room import Page, pages, queries, signed_in
from django.db import connection, transaction
from filling import Size, fill

pytestmark = pytest.mark.django_db

SMALL = Size(subscriptions=100, events=200, audit=300)
LARGE = Size(subscriptions=200, events=600, audit=1200)
MAX_QUERIES = 20
# A list that no index narrows looks at 500 rows, and if it must at 10,000: two queries more.
FURTHER = 2


def filled(size: Size) -> dict[str, tuple[Page, int]]:
    """By the name of a page, its number of queries."""
    connection.ensure_connection()
    for _ in fill(connection.connection, size):
        pass
    client = signed_in()
    return {page.name: (page, queries(client, page)) for page in pages(client, some=True)}


def test_no_page_needs_more_queries_where_there_is_more() -> None:
    with transaction.atomic():
        small = filled(SMALL)
        transaction.set_rollback(True)
    large = filled(LARGE)
    assert len(small) > 40
    too_many = {name: number for name, (_, number) in large.items() if number > MAX_QUERIES}
    assert not too_many
    grown = {
        name: (small[name][1], number)
        for name, (_, number) in large.items()
        if name in small and number > small[name][1] + FURTHER
    }
    assert not grown
