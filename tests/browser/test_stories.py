"""What people do in the admin, in a real browser, with real workers and receivers behind it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Error, Page, expect

from deliveries import publish
from deliveries.roles import ADMINISTRATOR, OPERATOR, VIEWER
from subscriptions.models import Subscription
from tests.browser.conftest import NARROW, WIDE, Failing
from tests.browser.system import PASSWORD
from tests.factories import make_subscription
from tests.webhooks_project.waiting import eventually

pytestmark = pytest.mark.usefixtures("nothing_there")

Opening = Callable[..., Page]
Making = Callable[..., User]

both_widths = pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "400"])
SUBSCRIPTIONS = "/admin/subscriptions/subscription/"


def trip(receiver: Failing, name: str) -> tuple[Subscription, set[str]]:
    """A subscription that fails until it is tripped, and what is held for it."""
    subscription = make_subscription(
        name=name, url=receiver.url, topic_patterns=["order.>"], recovery="manual"
    )
    events = set()

    def tripped() -> bool:
        subscription.refresh_from_db()
        return subscription.state == "tripped"

    for number in range(5):
        events.add(publish("order.paid", {"number": number}).id)
    eventually(tripped, 60)
    events.add(publish("order.paid", {"number": "while it is tripped"}).id)
    return subscription, events


def test_a_user_signs_in_and_gets_what_he_came_for(open_page: Opening, user: Making) -> None:
    operator = user(OPERATOR)
    page = open_page()
    page.goto(SUBSCRIPTIONS)
    page.get_by_label("Username").fill(operator.username)
    page.get_by_label("Password").fill("not this one")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("Please enter the correct username and password")).to_be_visible()
    page.get_by_label("Username").fill(operator.username)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(re.compile(SUBSCRIPTIONS + "$"))
    page.get_by_role("link", name="Dashboard").first.click()
    expect(page.get_by_label("Subscriptions by state")).to_be_visible()


@both_widths
def test_a_trip_appears_is_understood_and_reset_and_what_was_held_arrives(
    open_page: Opening, user: Making, failing: Failing, size: Any
) -> None:
    page = open_page(user(OPERATOR), size)
    page.goto("/admin/")
    states = page.get_by_label("Subscriptions by state")
    expect(states).to_contain_text("0 TRIPPED")
    page.evaluate("window.notReloaded = true")

    subscription, events = trip(failing, "warehouse")
    expect(states).to_contain_text("1 TRIPPED")
    expect(page.get_by_role("status")).to_have_text("One subscription is tripped.")
    worst = page.locator(".dash-worst")
    expect(worst).to_contain_text("the warehouse is closed")
    assert page.evaluate("window.notReloaded") is True

    worst.get_by_role("link", name="warehouse").click()
    story = page.get_by_label("How it goes")
    expect(story).to_contain_text("TRIPPED")
    expect(story).to_contain_text("503")
    expect(story).to_contain_text("the warehouse is closed")
    stays_within(page)

    failing.repaired = True
    page.get_by_role("link", name="Reset the circuit").click()
    expect(page.get_by_text("1 circuit is reset; 6 held deliveries will be sent")).to_be_visible()
    stays_within(page)
    subscription.refresh_from_db()
    assert subscription.state == "tripped"  # asking changed nothing
    page.get_by_role("button", name="Reset the circuit").click()
    expect(page.get_by_text("1 circuit was reset. What was held is being sent.")).to_be_visible()

    def arrived() -> bool:
        return events <= {one.id for one in failing.received if one.answered == 200}

    eventually(arrived, 60)
    page.reload()
    expect(page.get_by_label("How it goes")).to_contain_text("ACTIVE")
    page.get_by_role("link", name="All deliveries").click()
    rows = page.locator("#result_list tbody tr")
    expect(rows).to_have_count(len(events))
    for row in rows.all():
        expect(row).to_contain_text(re.compile("succeeded", re.I))
    stays_within(page)


def stays_within(page: Page) -> None:
    """Nothing is to be scrolled sideways to."""
    assert (
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        <= 0
    ), page.url


def test_what_was_held_can_be_discarded_instead(
    open_page: Opening, user: Making, failing: Failing
) -> None:
    subscription, _ = trip(failing, "warehouse")
    before = len(failing.received)
    page = open_page(user(OPERATOR))
    page.goto(f"{SUBSCRIPTIONS}{subscription.pk}/reset/")
    page.get_by_label("is discarded, not sent").check()
    page.get_by_role("button", name="Reset the circuit").click()
    expect(page.get_by_text("What was held is discarded.")).to_be_visible()
    eventually(lambda: not subscription.deliveries.exclude(status="discarded").exists())
    assert len(failing.received) == before


def add(page: Page, receiver: Failing) -> str:
    """Fill in the form of a new subscription; the secret that is shown."""
    page.goto(f"{SUBSCRIPTIONS}add/")
    page.get_by_label("Name").fill("invoices")
    page.get_by_label("URL").fill(receiver.url)
    page.get_by_label("Topic patterns").fill("invoice.>\norder.paid")
    page.get_by_role("button", name="Save", exact=True).click()
    return page.locator(".once code").inner_text()


@both_widths
def test_a_new_subscription_shows_its_secret_once_to_be_copied(
    open_page: Opening, user: Making, failing: Failing, size: Any
) -> None:
    page = open_page(user(ADMINISTRATOR), size, permissions=["clipboard-read", "clipboard-write"])
    secret = add(page, failing)
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/=]{40,}", secret)
    copy = page.get_by_role("button", name="Copy")
    copy.click()
    expect(copy).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == secret
    stays_within(page)

    page.get_by_role("link", name="invoices", exact=True).click()
    subscription = Subscription.objects.get()
    expect(page).to_have_url(re.compile(f"{subscription.pk}/change/$"))
    assert secret not in page.content()
    page.goto(f"{SUBSCRIPTIONS}{subscription.pk}/history/")
    assert secret not in page.content()
    # And it is the one that signs.
    failing.add_secret(secret)
    failing.repaired = True
    publish("order.paid", {"number": 1})
    assert failing.wait_for(1, 60)
    assert failing.received[0].verified


def test_the_browser_keeps_no_secret_to_go_back_to(
    open_page: Opening, user: Making, failing: Failing
) -> None:
    page = open_page(user(ADMINISTRATOR))
    add(page, failing)
    page.get_by_role("link", name="invoices", exact=True).click()
    expect(page.get_by_label("How it goes")).to_be_visible()
    with pytest.raises(Error, match="ERR_CACHE_MISS"):
        page.go_back()


def test_a_reload_does_not_show_a_secret_again(
    open_page: Opening, user: Making, failing: Failing
) -> None:
    page = open_page(user(ADMINISTRATOR))
    secret = add(page, failing)
    page.reload()  # asks the server again, with all that was filled in
    assert secret not in page.content()
    assert "whsec_" not in page.content()
    assert Subscription.objects.count() == 1


@both_widths
def test_a_viewer_sees_why_and_has_nothing_to_press(
    open_page: Opening, user: Making, failing: Failing, size: Any
) -> None:
    subscription, _ = trip(failing, "warehouse")
    page = open_page(user(VIEWER), size)
    page.goto("/admin/")
    expect(page.locator(".dash-worst")).to_contain_text("the warehouse is closed")
    page.locator(".dash-worst").get_by_role("link", name="warehouse").click()
    expect(page.get_by_label("How it goes")).to_contain_text("the warehouse is closed")
    acts = re.compile("Reset|Pause|Resume|Replay|Send a test|Rotate|Save|Delete")
    expect(page.get_by_role("link", name=acts)).to_have_count(0)
    expect(page.get_by_role("button", name=acts)).to_have_count(0)
    page.goto(SUBSCRIPTIONS)
    expect(page.get_by_text("warehouse").first).to_be_visible()
    expect(page.get_by_role("link", name=re.compile("^Add"))).to_have_count(0)
    expect(page.locator("select[name=action]")).to_have_count(0)
    paths = ["reset", "pause", "resume", "replay", "send-test", "rotate-secret", "delete"]
    for path in [f"{subscription.pk}/{act}/" for act in paths] + ["add/", "reset-fuse/"]:
        answer = page.goto(SUBSCRIPTIONS + path)
        assert answer is not None
        assert answer.status == 403, path
    delivery = subscription.deliveries.filter(status="held").first()
    assert delivery is not None
    page.goto(f"/admin/deliveries/delivery/{delivery.pk}/change/")
    acts = re.compile("Send again|Resend|Discard")
    expect(page.get_by_role("button", name=acts)).to_have_count(0)
    expect(page.get_by_role("link", name=acts)).to_have_count(0)
