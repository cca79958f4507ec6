"""The admin of subscriptions: what it shows, what it changes, and what it never shows."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from subscriptions import circuit
from subscriptions.admin.display import sparkline
from subscriptions.admin.forms import SubscriptionForm
from subscriptions.models import AuditEntry, Subscription
from subscriptions.secrets import crypto
from tests.factories import failure_report, make_subscription
from tests.subscriptions.test_commands import stored_secrets, trip

# Static files are found in the apps; nobody has collected them here.
pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at:UserWarning"),
]

LIST = "/admin/subscriptions/subscription/"
SECRET = re.compile(r"whsec_[A-Za-z0-9+/=]+")


def change_page(subscription: Subscription) -> str:
    return reverse("admin:subscriptions_subscription_change", args=[subscription.pk])


def act(client: Client, action: str, *chosen: Subscription) -> list[str]:
    """Run an action on the list; returns the messages."""
    response = client.post(
        LIST,
        {
            "action": action,
            "_selected_action": [str(one.pk) for one in chosen],
            "confirmed": "1",
            "held": "send",
        },
    )
    assert response.status_code == 302, response.content.decode()
    told = [str(message) for message in get_messages(response.wsgi_request)]
    client.get(LIST)  # shows the messages, so that they are not told again
    return told


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "name": "billing",
        "url": "https://example.com/hook",
        "topic_patterns": "order.*",
        "enabled": "on",
        "max_in_flight": "10",
        "recovery": "automatic",
        "headers": "{}",
        **changes,
    }


def shown_form(client: Client, subscription: Subscription) -> dict[str, Any]:
    """What a browser would send if the person changed nothing."""
    form = client.get(change_page(subscription)).context["adminform"].form
    sent: dict[str, Any] = {}
    for bound in form:
        value = bound.value()
        if value not in (False, None):
            sent[bound.html_name] = "on" if value is True else value
        if bound.field.show_hidden_initial:
            sent[bound.html_initial_name] = str(bound.initial)
    return sent


def test_the_list_shows_states_hosts_and_errors(admin_client: Client) -> None:
    make_subscription(name="a", url="https://a.example.com/secret-path")
    circuit.pause([make_subscription(name="b").pk])
    tripped = make_subscription(name="it's c")
    trip(tripped, "503 <b>no</b>")
    page = admin_client.get(LIST).content.decode()
    for chip in ("chip-good", "chip-idle", "chip-bad"):
        assert chip in page
    assert "a.example.com" in page
    assert "One subscription is tripped" in page
    assert "<b>no</b>" not in page
    title = re.search(r'chip-bad" popovertarget="[^"]+" title="([^"]+)"', page)
    assert title is not None
    told = html.unescape(title[1])
    assert told.startswith("Tripped at ")
    assert "503 <b>no</b>" in told
    assert "manage.py reset_circuit 'it'\"'\"'s c'" in told


def test_the_banner_counts_the_tripped_and_goes_away(admin_client: Client) -> None:
    pair = [make_subscription(), make_subscription()]
    assert "tripped-banner" not in admin_client.get(LIST).content.decode()
    for one in pair:
        trip(one)
    page = admin_client.get(LIST).content.decode()
    assert "2 subscriptions are tripped" in page
    assert 'href="?state=tripped"' in page


@pytest.mark.parametrize("state", ["active", "failing", "paused", "tripped"])
def test_the_list_is_filtered_by_state(admin_client: Client, state: str) -> None:
    make_subscription(name="the active one")
    failing = make_subscription(name="the failing one")
    with transaction.atomic():
        circuit.record([failure_report(failing, 3)])
    circuit.pause([make_subscription(name="the paused one").pk])
    trip(make_subscription(name="the tripped one"))
    assert listed(admin_client, state=state) == [f"the {state} one"]
    assert len(listed(admin_client)) == 4
    page = admin_client.get(LIST, {"state": "failing"}).content.decode()
    assert "FAILING · 3/5" in page


def test_the_list_is_filtered_by_what_was_never_delivered(admin_client: Client) -> None:
    make_subscription(name="new")
    worked = make_subscription(name="worked once")
    Subscription.objects.filter(pk=worked.pk).update(last_success_at=timezone.now())
    assert listed(admin_client, delivered="never") == ["new"]


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("shop.example.com", ["shop", "shop with a port"]),
        ("SHOP.example.com", ["shop", "shop with a port"]),
        ("shop.example.com:8443", ["shop with a port"]),
        ("example.com", []),
        ("shop.example.com/hook", []),
        (".*", []),
        (" ", ["elsewhere", "shop", "shop with a port"]),
    ],
)
def test_the_list_is_filtered_by_host(admin_client: Client, host: str, found: list[str]) -> None:
    make_subscription(name="shop", url="https://shop.example.com/hook")
    make_subscription(name="shop with a port", url="https://Shop.example.com:8443/hook")
    make_subscription(name="elsewhere", url="https://example.org/shop.example.com")
    assert sorted(listed(admin_client, host=host)) == found


def test_filters_add_up(admin_client: Client) -> None:
    make_subscription(name="a", url="https://a.example.com/")
    trip(make_subscription(name="b", url="https://a.example.com/x"))
    trip(make_subscription(name="c", url="https://c.example.com/"))
    asked = {"state": "tripped", "host": "a.example.com", "delivered": "never", "tenant": ""}
    assert listed(admin_client, **asked) == ["b"]


def test_what_is_sent_without_tls_is_warned_of(
    admin_client: Client, configure: Callable[..., None]
) -> None:
    make_subscription(name="open", url="http://open.example.com/hook")
    make_subscription(name="closed", url="https://closed.example.com/hook")
    assert admin_client.get(LIST).content.decode().count(">http</button>") == 1


def test_two_patterns_are_shown_and_the_rest_is_opened(admin_client: Client) -> None:
    make_subscription(topic_patterns=["a.b", "c.>", "d.*", "e"])
    page = admin_client.get(LIST).content.decode()
    assert "<code>a.b</code> <code>c.&gt;</code>" in page
    assert ">+2</button>" in page
    assert "a.b, c.&gt;, d.*, e</span>" in page


# What went well, as bars.


def hours(*numbers: tuple[int, int]) -> list[tuple[datetime, int, int]]:
    start = datetime(2026, 4, 24, 16, tzinfo=UTC)
    return [(start + timedelta(hours=n), *one) for n, one in enumerate(numbers)]


@pytest.mark.parametrize(
    ("numbers", "percent", "good", "bad"),
    [
        ([(0, 0), (10, 0)], "100\u00a0%", [20], []),
        ([(0, 0), (0, 3)], "0\u00a0%", [], [20]),
        ([(5, 5), (0, 0), (1, 0)], "54.54\u00a0%", [10, 2], [10]),
        # One failure among a million can be seen.
        ([(999_999, 1)], "99.99\u00a0%", [20], [1.5]),
        ([(1, 999_999)], "0.01\u00a0%", [1.5], [20]),
    ],
)
def test_a_sparkline_has_a_bar_an_hour_and_says_the_share(
    numbers: list[tuple[int, int]], percent: str, good: list[float], bad: list[float]
) -> None:
    shown = str(sparkline(hours(*numbers)))
    for kind, heights in (("good", good), ("bad", bad)):
        path = re.search(rf'class="spark-{kind}" d="([^"]+)"', shown)
        drawn = [
            float(height) for height in re.findall("h3v-([0-9.]+)h-3z", path[1] if path else "")
        ]
        assert drawn == heights
    assert f"<span>{percent}</span>" in shown
    assert f"attempts succeeded in the last {len(numbers)} hours" in shown


def test_breadcrumbs_show_a_name_as_it_is_and_an_app_once(admin_client: Client) -> None:
    one = make_subscription(name="local")
    page = admin_client.get(f"{LIST}{one.pk}/change/").content.decode()
    said = re.findall(r'tracking-tight">\s*(.*?)\s*</a >', page)
    assert said == ["Subscriptions", "local"]


def test_a_sparkline_of_nothing_is_a_dash() -> None:
    assert sparkline(hours((0, 0), (0, 0))) == "–"


def listed(client: Client, **query: str) -> list[str]:
    return [one.name for one in client.get(LIST, query).context["cl"].result_list]


def test_tripped_ones_come_first(admin_client: Client) -> None:
    make_subscription(name="a")
    trip(make_subscription(name="z"))
    assert [one.name for one in admin_client.get(LIST).context["cl"].result_list] == ["z", "a"]


@pytest.mark.parametrize("term", ["billi", "shop.example"])
def test_search_is_by_name_and_url(admin_client: Client, term: str) -> None:
    make_subscription(name="billing", url="https://shop.example.com/")
    make_subscription(name="other")
    result = admin_client.get(LIST, {"q": term}).context["cl"].result_list
    assert [one.name for one in result] == ["billing"]


def test_a_longer_list_needs_no_more_queries(
    admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    def queries() -> int:
        with django_assert_max_num_queries(50) as captured:
            admin_client.get(LIST)
        return len(captured)

    make_subscription()
    few = queries()
    for _ in range(10):
        make_subscription()
    assert queries() == few


# Making and changing.


def test_a_new_subscription_shows_its_secret_once_and_stores_it_nowhere_readable(
    admin_client: Client,
) -> None:
    response = admin_client.post(f"{LIST}add/", fields())
    subscription = Subscription.objects.get(name="billing")
    [secret] = stored_secrets(subscription)
    assert response.status_code == 200
    assert html.unescape(response.content.decode()).count(secret) == 1
    assert "no-store" in response["Cache-Control"]
    assert not response.cookies.get("messages")
    assert secret not in str(dict(admin_client.session))
    assert secret not in str(LogEntry.objects.values())
    for page in (LIST, change_page(subscription), f"{LIST}{subscription.pk}/history/"):
        assert not SECRET.search(html.unescape(admin_client.get(page).content.decode()))


def test_a_refused_subscription_says_which_patterns_are_wrong(admin_client: Client) -> None:
    patterns = "order.*\na..b\n\n  >.x  "
    response = admin_client.post(f"{LIST}add/", fields(topic_patterns=patterns))
    errors = response.context["adminform"].form.errors["topic_patterns"]
    assert len(errors) == 2
    assert "'a..b'" in errors[0]
    assert "'>.x'" in errors[1]
    assert "a..b" in response.content.decode()
    assert not Subscription.objects.exists()


def test_a_subscription_without_patterns_or_with_a_bad_url_is_refused(
    admin_client: Client,
) -> None:
    response = admin_client.post(
        f"{LIST}add/", fields(topic_patterns=" \n ", url="http://169.254.169.254/")
    )
    assert set(response.context["adminform"].form.errors) == {"topic_patterns", "url"}


@pytest.mark.parametrize("text", ["a\r\nb.*\r\na\n", '["a", "b.*"]'])
def test_patterns_are_written_by_line_or_pasted_as_a_list(text: str) -> None:
    form = SubscriptionForm(fields(topic_patterns=text))
    assert form.is_valid(), form.errors
    assert form.cleaned_data["topic_patterns"] == ["a", "b.*"]


def test_a_group_is_a_checkbox_for_its_patterns(
    admin_client: Client, configure: Callable[..., None]
) -> None:
    configure(topic_groups={"attacks": ("attacker.>", "alert.*"), "orders": ("order.*",)})
    admin_client.post(f"{LIST}add/", fields(topic_patterns="own", groups=["attacks"]))
    subscription = Subscription.objects.get()
    assert subscription.topic_patterns == ["own", "attacker.>", "alert.*"]
    shown = shown_form(admin_client, subscription)
    assert (shown["topic_patterns"], shown["groups"]) == ("own", ["attacks"])
    admin_client.post(change_page(subscription), {**shown, "groups": ["orders"]})
    subscription.refresh_from_db()
    assert subscription.topic_patterns == ["own", "order.*"]


def test_without_groups_there_are_no_checkboxes(admin_client: Client) -> None:
    assert "Topic groups" not in admin_client.get(f"{LIST}add/").content.decode()


def test_stored_patterns_that_are_no_texts_can_be_repaired(admin_client: Client) -> None:
    subscription = make_subscription()
    Subscription.objects.filter(pk=subscription.pk).update(topic_patterns=[{"not": "a text"}])
    shown = shown_form(admin_client, subscription)
    assert shown["topic_patterns"] == '[{"not": "a text"}]'
    admin_client.post(change_page(subscription), {**shown, "topic_patterns": "a"})
    subscription.refresh_from_db()
    assert subscription.topic_patterns == ["a"]


def test_ticking_enabled_resets_a_tripped_circuit(admin_client: Client) -> None:
    subscription = make_subscription()
    trip(subscription)
    shown = shown_form(admin_client, subscription)
    assert "enabled" not in shown
    assert admin_client.post(change_page(subscription), {**shown, "enabled": "on"}).url == LIST
    subscription.refresh_from_db()
    assert (subscription.state, subscription.last_error) == ("active", "")
    assert subscription.consecutive_failures == 0


def test_clearing_enabled_pauses(admin_client: Client) -> None:
    subscription = make_subscription()
    shown = shown_form(admin_client, subscription)
    del shown["enabled"]
    admin_client.post(change_page(subscription), shown)
    subscription.refresh_from_db()
    assert subscription.state == "paused"


def test_a_form_that_was_open_during_the_trip_does_not_undo_it(admin_client: Client) -> None:
    subscription = make_subscription(name="before")
    shown = shown_form(admin_client, subscription)
    trip(subscription)
    admin_client.post(change_page(subscription), {**shown, "name": "after"})
    subscription.refresh_from_db()
    assert (subscription.name, subscription.state) == ("after", "tripped")
    assert subscription.last_error


def test_a_change_without_the_hidden_field_means_what_it_says(admin_client: Client) -> None:
    subscription = make_subscription()
    sent = fields()
    del sent["enabled"]
    admin_client.post(change_page(subscription), sent)
    subscription.refresh_from_db()
    assert subscription.state == "paused"


# Secrets.


@pytest.mark.parametrize(("choice", "live"), [("overlap", 2), ("0", 1)])
def test_a_rotated_secret_is_shown_once(admin_client: Client, choice: str, live: int) -> None:
    subscription = make_subscription()
    page = f"{LIST}{subscription.pk}/rotate-secret/"
    assert admin_client.get(page).status_code == 200
    assert subscription.secrets.count() == 1
    response = admin_client.post(page, {**rotation(admin_client, page), "old_secret": choice})
    found = SECRET.findall(html.unescape(response.content.decode()))
    assert len(found) == 1
    assert len(stored_secrets(subscription)) == live
    assert stored_secrets(subscription)[0] == found[0]
    assert "no-store" in response["Cache-Control"]
    shown = html.unescape(admin_client.get(change_page(subscription)).content.decode())
    assert not SECRET.search(shown)
    assert shown.count("Made ") == live
    assert (", ends " in shown) == (live == 2)


def rotation(client: Client, page: str) -> dict[str, Any]:
    """What a browser sends that opens the page now."""
    form = client.get(page).context["form"]
    return {bound.html_name: bound.value() for bound in form}


def test_a_reload_after_rotating_rotates_nothing(admin_client: Client) -> None:
    subscription = make_subscription()
    page = f"{LIST}{subscription.pk}/rotate-secret/"
    sent = rotation(admin_client, page)
    assert SECRET.search(html.unescape(admin_client.post(page, sent).content.decode()))
    after = stored_secrets(subscription)
    reloaded = admin_client.post(page, sent)
    assert stored_secrets(subscription) == after
    assert "Nothing was done" in reloaded.content.decode()
    assert not SECRET.search(html.unescape(reloaded.content.decode()))
    # The form that is shown then is for the secret that there is now.
    again = {bound.html_name: bound.value() for bound in reloaded.context["form"]}
    assert SECRET.search(html.unescape(admin_client.post(page, again).content.decode()))
    assert len(stored_secrets(subscription)) == 3


def test_a_secret_that_is_shown_has_a_button_that_copies_it(admin_client: Client) -> None:
    page = html.unescape(admin_client.post(f"{LIST}add/", fields()).content.decode())
    shown = re.search(r'x-ref="secret">(whsec_[^<]+)</code>\s*<button type="button"([^>]*)>', page)
    assert shown is not None
    assert stored_secrets(Subscription.objects.get()) == [shown[1]]
    assert "navigator.clipboard.writeText($refs.secret.textContent)" in shown[2]
    assert 'aria-label="Copy the secret of billing"' in shown[2]


def test_secrets_of_many_are_rotated_after_a_question_and_shown_once(admin_client: Client) -> None:
    first, second = make_subscription(name="a"), make_subscription(name="b", tenant="acme")
    other = make_subscription()
    second.rotate_secret()
    sent: dict[str, Any] = {
        "action": "rotate_secret",
        "_selected_action": [str(first.pk), str(second.pk)],
    }
    question = admin_client.post(LIST, sent)
    page = " ".join(question.content.decode().split())
    assert "2 new secrets are made and shown once. 3 secrets are valid now" in page
    assert "a: 1 valid now" in page
    assert "b (acme): 2 valid now" in page
    assert [one.secrets.count() for one in (first, second)] == [1, 2]
    sent |= {bound.html_name: bound.value() for bound in question.context["form"]}
    sent |= {"confirmed": "1", "old_secret": "0"}
    answer = admin_client.post(LIST, sent)
    page = html.unescape(answer.content.decode())
    new = [stored_secrets(one) for one in (first, second)]
    assert [len(live) for live in new] == [1, 1]
    assert "2 subscriptions have new signing secrets" in page
    # Once by itself, and once in the table to paste.
    assert page.count(f"a\t{new[0][0]}\n") == page.count(f"b (acme)\t{new[1][0]}\n") == 1
    assert Counter(SECRET.findall(page)) == {new[0][0]: 2, new[1][0]: 2}
    assert "no-store" in answer["Cache-Control"]
    assert other.secrets.count() == 1
    entries = AuditEntry.objects.filter(action="rotated", via="admin")
    assert {(entry.subscription_id, entry.actor) for entry in entries} == {
        (first.pk, "admin"), (second.pk, "admin"),
    }  # fmt: skip
    again = admin_client.post(LIST, sent)
    assert "Nothing was done" in again.content.decode()
    assert not SECRET.search(html.unescape(again.content.decode()))
    assert [stored_secrets(one) for one in (first, second)] == new


def test_more_secrets_than_a_person_hands_over_are_not_rotated_at_once(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subscriptions.admin.subscriptions.MAX_ROTATED", 1)
    chosen = [str(make_subscription().pk) for _ in range(2)]
    sent = {"action": "rotate_secret", "_selected_action": chosen, "confirmed": "1"}
    response = admin_client.post(LIST, {**sent, "old_secret": "0", "shown_with": "0"})
    [message] = get_messages(response.wsgi_request)
    assert str(message) == "Choose at most 1 subscriptions at once; nothing was done."
    assert not AuditEntry.objects.filter(action="rotated").exists()


def test_two_who_rotate_at_once_rotate_once(
    admin_client: Client, transactional_db: None, at_once: Callable[..., list[Any]]
) -> None:
    subscription = make_subscription()
    page = f"{LIST}{subscription.pk}/rotate-secret/"
    sent = rotation(admin_client, page)
    pages = at_once(lambda _: admin_client.post(page, sent).content.decode(), 4)
    assert sum("Nothing was done" in one for one in pages) == 3
    assert subscription.secrets.count() == 2


def test_a_reload_after_adding_adds_nothing_and_shows_no_secret(admin_client: Client) -> None:
    admin_client.post(f"{LIST}add/", fields())
    reloaded = admin_client.post(f"{LIST}add/", fields())
    assert "name" in reloaded.context["adminform"].form.errors
    assert not SECRET.search(html.unescape(reloaded.content.decode()))
    assert Subscription.objects.get().secrets.count() == 1


def test_rotating_without_a_choice_changes_nothing(admin_client: Client) -> None:
    subscription = make_subscription()
    response = admin_client.post(f"{LIST}{subscription.pk}/rotate-secret/", {})
    assert "This field is required" in response.content.decode()
    assert subscription.secrets.count() == 1


def test_who_may_only_look_changes_nothing(client: Client, configure: Callable[..., None]) -> None:
    configure(topic_groups={"orders": ("order.*",)})
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_subscription"))
    client.force_login(viewer)
    subscription = make_subscription(topic_patterns=["order.*"])
    assert client.get(LIST).status_code == 200
    page = client.get(change_page(subscription))
    assert page.status_code == 200
    assert "rotate-secret" not in page.content.decode()
    assert client.get(f"{LIST}{subscription.pk}/rotate-secret/").status_code == 403
    assert client.post(f"{LIST}{subscription.pk}/send-test/").status_code == 403
    assert "reset_circuit" not in client.get(LIST).content.decode()
    response = client.post(LIST, {"action": "pause", "_selected_action": [str(subscription.pk)]})
    assert response.status_code in (302, 403, 200)
    subscription.refresh_from_db()
    assert subscription.state == "active"


def test_an_unknown_subscription_leads_back_to_the_index(admin_client: Client) -> None:
    response = admin_client.get(f"{LIST}00000000-0000-7000-8000-000000000000/rotate-secret/")
    assert response.status_code == 302


# Actions.


def test_resetting_says_what_it_did_and_what_it_left_alone(admin_client: Client) -> None:
    first, second, paused = (make_subscription() for _ in range(3))
    trip(first)
    trip(second)
    circuit.pause([paused.pk])
    assert act(admin_client, "reset_circuit", first, second, paused) == [
        "2 circuits were reset. What was held is being sent.",
        "1 of those chosen was not tripped.",
    ]
    states = [one.state for one in Subscription.objects.order_by("id")]
    assert states == ["active", "active", "paused"]
    assert next(entry.action for entry in AuditEntry.objects.of(first.pk)) == "reset"


def test_pausing_and_resuming_say_what_they_did(admin_client: Client) -> None:
    first, second = make_subscription(), make_subscription()
    assert act(admin_client, "pause", first) == [
        "1 subscription was paused. What was pending is held until they are resumed."
    ]
    assert act(admin_client, "pause", first, second)[1] == "1 of those chosen was paused already."
    assert act(admin_client, "resume", first, second) == [
        "2 subscriptions were resumed. What was held is being sent."
    ]
    assert act(admin_client, "resume", first, second) == [
        "0 subscriptions were resumed. What was held is being sent.",
        "2 of those chosen were not paused.",
    ]


def test_a_secret_that_ended_is_not_listed(admin_client: Client) -> None:
    subscription = make_subscription()
    subscription.secrets.create(
        ciphertext=crypto.encrypt(b"x"), expires_at=timezone.now() - timedelta(hours=1)
    )
    assert admin_client.get(change_page(subscription)).content.decode().count("Made ") == 1


@pytest.mark.parametrize("headers", ["", "null", "[]", "7", "[" * 100_000])
def test_headers_of_every_kind_are_taken_or_refused_by_the_form(
    admin_client: Client, headers: str
) -> None:
    response = admin_client.post(f"{LIST}add/", fields(headers=headers))
    assert response.status_code == 200
    taken = headers in ("", "null")
    assert [one.headers for one in Subscription.objects.all()] == ([{}] if taken else [])


@pytest.mark.parametrize("chosen", ["nonsense", "\0", "1"])
def test_an_action_on_what_is_no_id_is_refused(admin_client: Client, chosen: str) -> None:
    make_subscription()
    response = admin_client.post(
        LIST, {"action": "pause", "_selected_action": [chosen]}, follow=True
    )
    assert response.status_code == 200
    assert [one.state for one in Subscription.objects.all()] == ["active"]


def test_a_page_of_what_is_no_id_is_not_found(admin_client: Client) -> None:
    for page in ("%00/change/", "%00/rotate-secret/", "%00/delete/", "%00/history/"):
        assert admin_client.get(LIST + page, follow=True).status_code in (200, 404)


def test_a_subscription_is_read_again_with_its_relations(db: None) -> None:
    subscription = make_subscription()
    subscription.refresh_from_db(fields=["secrets", "name"])
    assert subscription.name


@pytest.mark.parametrize("headers", ["", "null", "[]", "7", "[" * 100_000])
def test_headers_are_cleared_or_refused_by_the_change_form(
    admin_client: Client, headers: str, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = make_subscription(headers={"X-Team": "blue"})
    sent = {**shown_form(admin_client, subscription), "headers": headers}
    response = admin_client.post(change_page(subscription), sent)
    taken = headers in ("", "null")
    assert response.status_code == (302 if taken else 200)
    subscription.refresh_from_db()
    assert subscription.headers == ({} if taken else {"X-Team": "blue"})
    assert subscription.url not in caplog.text


@pytest.mark.parametrize("patterns", ["[" * 100_000, '["a", null]', "\0"])
def test_patterns_that_are_none_are_refused_by_the_form(
    admin_client: Client, patterns: str
) -> None:
    response = admin_client.post(f"{LIST}add/", fields(topic_patterns=patterns))
    assert response.status_code == 200
    assert not Subscription.objects.exists()


def test_a_name_that_is_invalid_is_not_also_called_taken(admin_client: Client) -> None:
    make_subscription(name="billing")
    response = admin_client.post(f"{LIST}add/", fields(name="billing\u200b", url="ftp://x"))
    errors = response.context["adminform"].form.errors
    assert "already exists" not in str(errors["name"])


# Tenants


def test_a_subscription_is_added_for_a_tenant_and_stays_with_it(admin_client: Client) -> None:
    make_subscription(name="billing")
    admin_client.post(f"{LIST}add/", fields(tenant="acme"))
    subscription = Subscription.objects.get(tenant="acme")
    page = admin_client.get(change_page(subscription))
    assert page.context["adminform"].form.fields["tenant"].disabled
    sent = shown_form(admin_client, subscription) | {"tenant": "other", "name": "new"}
    assert admin_client.post(change_page(subscription), sent).status_code == 302
    subscription.refresh_from_db()
    assert (subscription.tenant, subscription.name) == ("acme", "new")
    make_subscription(name="taken", tenant="acme")
    sent = shown_form(admin_client, subscription) | {"name": "taken"}
    form = admin_client.post(change_page(subscription), sent).context["adminform"].form
    assert "has a subscription with this name already" in str(form.errors["name"])


def test_a_tenants_subscription_is_not_for_all_tenants(admin_client: Client) -> None:
    answer = admin_client.post(f"{LIST}add/", fields(tenant="acme", all_tenants="on"))
    assert "whose tenant is empty" in str(answer.context["adminform"].form.errors["all_tenants"])
    admin_client.post(f"{LIST}add/", fields(all_tenants="on"))
    assert Subscription.objects.get().all_tenants


@pytest.mark.parametrize("before", [True, False])
def test_whether_it_is_for_all_tenants_is_decided_when_it_is_added(
    admin_client: Client, before: bool
) -> None:
    subscription = make_subscription(all_tenants=before)
    page = admin_client.get(change_page(subscription))
    assert page.context["adminform"].form.fields["all_tenants"].disabled
    sent = shown_form(admin_client, subscription) | {"name": "new"}
    sent.pop("all_tenants", None)
    if not before:
        sent["all_tenants"] = "on"
    assert admin_client.post(change_page(subscription), sent).status_code == 302
    subscription.refresh_from_db()
    assert (subscription.all_tenants, subscription.name) == (before, "new")


def test_the_list_shows_tenants_and_narrows_to_one(admin_client: Client) -> None:
    own, acme, everything = (
        make_subscription(name="a"),
        make_subscription(name="b", tenant="acme & co"),
        make_subscription(name="c", all_tenants=True),
    )
    page = html.unescape(admin_client.get(LIST).content.decode())
    assert "?tenant=acme+%26+co" in page
    assert "all tenants</td>" in page

    def listed(**query: str) -> set[Subscription]:
        return set(admin_client.get(LIST, query).context["cl"].result_list)

    assert listed(tenant="acme & co") == listed(q="acme") == {acme}
    assert listed(tenant="") == {own, everything}


def test_the_hint_of_a_tripped_one_names_its_tenant(admin_client: Client) -> None:
    trip(make_subscription(name="billing", tenant="acme"))
    page = html.unescape(admin_client.get(LIST).content.decode())
    assert "manage.py reset_circuit billing --tenant acme" in page
