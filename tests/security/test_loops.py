"""A subscription whose URL is our own web: refused there, so that nothing goes round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deliveries import publish
from deliveries.models import Attempt, Delivery, Event
from deliveries.sending.send_test import send_test
from deliveries.sending.sender import Sender
from tests.factories import make_subscription

PAGES = ["/", "/healthz", "/admin/", "/admin/login/", "/static/admin/css/base.css", "/nowhere"]


@pytest.mark.django_db(transaction=True)
def test_a_delivery_to_our_own_web_fails_at_once_and_says_why(
    live_server: Any, send: Callable[..., None]
) -> None:
    subscription = make_subscription(url=f"{live_server.url}/healthz", topic_patterns=[">"])
    publish("test.loop", {"a": 1})
    send(subscription)
    delivery = Delivery.objects.get()
    attempt = Attempt.objects.get()
    assert (delivery.status, attempt.status_code) == ("failed", 403)
    assert "This is the webhook sender itself" in delivery.last_error
    assert Event.objects.count() == 1
    subscription.refresh_from_db()
    assert subscription.consecutive_failures == 1, "a few of them trip the circuit"


@pytest.mark.django_db(transaction=True)
def test_a_test_event_to_our_own_web_is_told_so(
    live_server: Any, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deliveries.sending.send_test.transport", lambda: sender.transport)
    tested = send_test(make_subscription(url=f"{live_server.url}/admin/"))
    assert tested.status_code == 403
    assert "Change the URL" in str(tested)


@pytest.mark.django_db
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("method", ["get", "post", "put"])
def test_no_page_of_ours_takes_a_webhook(client: Any, page: str, method: str) -> None:
    headers = {"webhook-id": "a", "webhook-timestamp": "1", "webhook-signature": "v1,x"}
    response = getattr(client, method)(page, headers=headers)
    assert response.status_code == 403
    assert b"webhook sender itself" in response.content


@pytest.mark.django_db
def test_the_trap_works_the_same_page_answers_200_to_anybody_else(client: Any) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.post("/healthz").status_code == 200


@pytest.mark.django_db
def test_a_host_name_that_is_not_ours_is_refused(client: Any) -> None:
    """No page is made with a host that the visitor chose."""
    for host in ("evil.example", "127.0.0.1.evil.example", "127.0.0.1:80@evil.example", ""):
        assert client.get("/admin/login/", headers={"host": host}).status_code == 400


@pytest.mark.django_db
def test_the_pages_may_not_be_framed_sniffed_or_posted_to_from_elsewhere(client: Any) -> None:
    from django.test import Client

    page = client.get("/admin/login/")
    assert page["X-Frame-Options"] == "DENY"
    assert page["X-Content-Type-Options"] == "nosniff"
    assert page["Referrer-Policy"] == "same-origin"
    forged = Client(enforce_csrf_checks=True).post("/admin/login/", {"username": "a"})
    assert forged.status_code == 403
