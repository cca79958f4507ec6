"""Every page, light and dark, wide and narrow: axe-core finds no serious fault, nothing has to be
scrolled sideways to, no script fails, and no other host is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page, expect

from subscriptions.models import Subscription
from tests.browser import system
from tests.browser.conftest import NARROW, WIDE
from tests.browser.pages import every_page
from tests.browser.seeding import seed

Opening = Callable[..., Page]

SERIOUS = {"serious", "critical"}
# The rules that depend on colours.
COLOURS = ("color-contrast", "link-in-text-block")
# What is not ours, and which no setting, template or style of ours can repair: Swagger UI, which
# draws the page of the API, has its own colours and buttons within buttons.
NOT_OURS = "#swagger-ui"


def faults(page: Page, *rules: str) -> list[tuple[str, str, str]]:
    """The serious ones, of these rules or of all: rule, selector, and what is wrong."""
    # Of no serious impact, and what takes longest.
    options: dict[str, Any] = {"rules": {"region": {"enabled": False}}}
    if rules:
        options = {"runOnly": rules}
    if page.evaluate("typeof axe") == "undefined":
        page.evaluate(AXE_SCRIPT)
    found = page.evaluate(
        "([options, notOurs]) => axe.run({exclude: [notOurs]}, options)", [options, NOT_OURS]
    )["violations"]
    return [
        (one["id"], str(node["target"]), " ".join(node["failureSummary"].split()))
        for one in found
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


def background(page: Page) -> int:
    """How light the page is, from 0 to 255."""
    colour = page.evaluate(
        """() => {
            const one = document.createElement("canvas").getContext("2d");
            one.fillStyle = getComputedStyle(document.body).backgroundColor;
            one.fillRect(0, 0, 1, 1);
            return [...one.getImageData(0, 0, 1, 1).data];
        }"""
    )
    return int(sum(colour[:3]) / 3)


@pytest.fixture(scope="module")
def pages(site: str) -> dict[str, str]:
    return every_page(seed())


@pytest.mark.parametrize(
    "part", ["auth", "api", "django_celery_beat", "deliveries", "subscriptions", ""]
)
def test_no_page_has_a_serious_fault(
    open_page: Opening, user: Callable[..., Any], pages: dict[str, str], part: str
) -> None:
    mine = {
        name: path
        for name, path in pages.items()
        if name.startswith(f"{part}-") or (not part and "-" not in name.replace("no-such-page", ""))
    }
    assert mine
    signed_in, anonymous = open_page(user()), open_page()
    wrong = {}
    for name, path in mine.items():
        page = anonymous if name == "login" else signed_in
        answer = page.goto(path)
        assert answer is not None
        assert answer.status == (404 if name == "no-such-page" else 200), path
        if name == "api-docs":
            page.locator(".opblock").first.wait_for()
        themed = path.startswith("/admin/") and answer.status == 200
        wrong |= examine(page, name, themed=themed)
    assert not wrong, "\n".join(wrong.values())


def test_what_answers_a_form_has_no_serious_fault(
    open_page: Opening, user: Callable[..., Any], pages: dict[str, str]
) -> None:
    page = open_page(user())
    wrong = {}

    def answered(name: str, button: str) -> None:
        page.get_by_role("button", name=button, exact=True).click()
        page.wait_for_load_state()
        wrong.update(examine(page, name, themed=True))
        page.set_viewport_size(WIDE)

    page.goto(pages["subscriptions-subscription-add"])
    answered("refused", "Save")
    page.get_by_label("Name").fill("new")
    page.get_by_label("URL").fill("http://127.0.0.99:9/")
    page.get_by_label("Topic patterns").fill("order.>")
    answered("secret", "Save")
    expect(page.locator(".once code")).to_be_visible()
    page.goto(pages["subscriptions-subscription-act-send_test"])
    answered("tested", "Send a test event")
    expect(page.get_by_text("No answer")).to_be_visible()
    page.goto(pages["subscriptions-subscription-act-replay"])
    page.get_by_label("Published since").fill("2026-01-01 00:00")
    answered("counted", "How many?")
    page.goto(pages["api-apikey-add"])
    page.get_by_label("Name").fill("shop")
    page.get_by_label("events:write").check()
    answered("key", "Save")
    expect(page.locator(".once code")).to_be_visible()
    assert not wrong, "\n".join(wrong.values())


def test_a_long_name_makes_no_page_wide(
    open_page: Opening, user: Callable[..., Any], pages: dict[str, str]
) -> None:
    rotate = pages["subscriptions-subscription-rotate-secret"]
    key = rotate.split("/")[-3]
    chosen = Subscription.objects.filter(pk=key)
    name = chosen.get().name
    chosen.update(name="n" * 200)
    page = open_page(user())
    wrong = []
    for path in [rotate.replace("/rotate-secret/", "/delete/"), *pages.values()]:
        if key in path or path.endswith("/subscription/"):
            page.goto(path)
            for size in (WIDE, NARROW):
                page.set_viewport_size(size)
                wrong += [f"{path} {size['width']}: {why}" for _, _, why in too_wide(page)]
    chosen.update(name=name)
    assert not wrong, "\n".join(wrong)


def examine(page: Page, name: str, *, themed: bool) -> dict[tuple[str, str, str], str]:
    """The faults of the page that is open, each once. `themed`: it is dark if that is wanted."""
    found = {}
    # The rows of a list are alike, and axe-core takes its time for each.
    page.evaluate(
        "[...document.querySelectorAll('#result_list tr')].slice(16).forEach(row => row.remove())"
    )
    # All rules twice: what is the same in all four is found twice, or not at all.
    for size, scheme, rules in (
        (WIDE, "light", ()),
        (WIDE, "dark", COLOURS),
        (NARROW, "dark", ()),
        (NARROW, "light", COLOURS),
    ):
        page.set_viewport_size(size)
        system.put_on(page, scheme)
        if themed:
            assert (background(page) < 90) == (scheme == "dark"), page.url
        for rule, target, why in [*faults(page, *rules), *too_wide(page)]:
            found[name, rule, target] = f"{name} {size['width']} {scheme}: {target} {why}"
    return found


def too_wide(page: Page) -> list[tuple[str, str, str]]:
    """As a fault, if there is anything to be scrolled sideways to."""
    over = page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return [("too-wide", "html", f"scrolls sideways by {over} px")] if over > 0 else []


@pytest.mark.parametrize(
    ("html", "rule"),
    [
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', "image-alt"),
        ('<p style="color: #bbb; background: #fff">Hardly to be read.</p>', "color-contrast"),
        ("<input type=text>", "label"),
    ],
)
def test_a_known_fault_is_found(
    open_page: Opening, user: Callable[..., Any], html: str, rule: str
) -> None:
    page = open_page(user())
    page.goto("/admin/password_change/")
    before = {fault[0] for fault in faults(page)}
    page.evaluate(
        "html => document.querySelector('#content, #main, body').insertAdjacentHTML"
        "('beforeend', html)",
        html,
    )
    assert {fault[0] for fault in faults(page)} - before == {rule}
