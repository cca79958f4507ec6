"""Both clients against the API itself: real HTTP, real PostgreSQL, real deliveries."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import webhooks_client
from webhooks_client import (
    Conflict,
    Forbidden,
    Invalid,
    NewEvent,
    NoAnswer,
    NotFound,
    PreconditionFailed,
    Retries,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)

from api.keys import create_key
from api.models import SCOPES
from deliveries.models import Delivery, Event
from subscriptions.models import Subscription
from tests.client.both import Clients
from tests.deliveries.conftest import Script
from tests.deliveries.sending import Send, make_due
from webhooks_project.receiver import Answer, Receiver

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def client(clients: Clients, live_server: Any, sender: Any) -> Any:
    """A client whose key may do everything."""
    _, key = create_key("all", SCOPES, all_tenants=True)
    return clients.make(live_server.url, key)


@pytest.fixture
def deliver(send: Send) -> Callable[[], None]:
    """Send whatever is due, of all subscriptions."""

    def run() -> None:
        make_due()
        send(*Subscription.objects.all())

    return run


def test_an_event_is_published_and_arrives(
    client: Any, receiver: Receiver, deliver: Callable[[], None]
) -> None:
    made = client.subscriptions.create("one", receiver.url, ["order.>"])
    receiver.add_secret(made.secret)
    before = datetime.now(UTC)
    event = client.publish("order.created", {"total": "19.90", "ü": [1.5, None]}, type="order")
    assert (event.topic, event.type, event.tenant) == ("order.created", "order", "")
    assert event.subscriptions == 1
    assert not event.already_published
    assert abs(event.created_at - before) < timedelta(seconds=20)
    deliver()
    (received,) = receiver.received
    assert received.verified
    assert received.id == event.id
    found = client.events.get(event.id)
    assert found.payload == {"total": "19.90", "ü": [1.5, None]}
    assert found.counts == {"succeeded": 1}
    assert [(one.subscription, one.status) for one in found.deliveries] == [(made.id, "succeeded")]


def test_an_id_is_one_event(client: Any) -> None:
    first = client.publish("order.created", {"n": 1}, id="order-1")
    again = client.publish("order.created", {"n": 1}, id="order-1")
    assert (first.already_published, again.already_published) == (False, True)
    assert again.created_at.replace(microsecond=0) == first.created_at.replace(microsecond=0)
    with pytest.raises(Conflict) as refused:
        client.publish("order.created", {"n": 2}, id="order-1")
    assert refused.value.kind == "event-conflict"
    assert refused.value.event_ids == ("order-1",)
    assert Event.objects.count() == 1


def test_many_events_are_published_in_batches(client: Any) -> None:
    client.subscriptions.create("one", "https://one.example.com/", ["order.>"])
    events = [NewEvent(topic="order.created", payload={"n": n}) for n in range(1500)]
    published = client.publish_many(events)
    assert [one.subscriptions for one in published] == [1] * 1500
    assert Event.objects.count() == Delivery.objects.count() == 1500
    with_ids = [NewEvent(**event, id=one.id) for event, one in zip(events, published, strict=True)]
    assert all(one.already_published for one in client.publish_many(with_ids))
    assert Event.objects.count() == 1500


def test_a_batch_that_is_refused_names_the_event(client: Any) -> None:
    events = [NewEvent(topic=topic, payload={}) for topic in ("a.b", "not a topic", "c")]
    with pytest.raises(Invalid) as refused:
        client.publish_many(events)
    assert [fault.pointer for fault in refused.value.errors] == ["/events/1/topic"]
    assert Event.objects.count() == 0


def test_a_tenant_has_events_and_subscriptions_of_its_own(
    clients: Clients, live_server: Any, client: Any
) -> None:
    _, key = create_key("acme", SCOPES, tenant="acme")
    acme = clients.make(live_server.url, key)
    made = acme.subscriptions.create("one", "https://one.example.com/", [">"])
    other = client.subscriptions.create("one", "https://one.example.com/", [">"])
    assert (made.tenant, other.tenant) == ("acme", "")
    assert acme.publish("a", {}).tenant == "acme"
    assert client.publish("a", {}, tenant="acme").subscriptions == 1
    assert [one.id for one in acme.subscriptions.list()] == [made.id]
    assert [one.id for one in client.subscriptions.list(tenant="")] == [other.id]
    with pytest.raises(NotFound):
        acme.subscriptions.get(other.id)
    with pytest.raises(Forbidden) as refused:
        acme.publish("a", {}, tenant="globex")
    assert refused.value.kind == "other-tenant"


def test_a_subscription_from_its_making_to_its_end(client: Any) -> None:
    made = client.subscriptions.create(
        "one",
        "https://one.example.com/hooks",
        ["order.*", "invoice.>"],
        headers={"X-Team": "blue"},
        max_in_flight=3,
        recovery="manual",
        all_tenants=True,
        enabled=False,
    )
    assert made.secret.startswith("whsec_")
    found = client.subscriptions.get(made.id)
    assert (found.name, found.url) == ("one", "https://one.example.com/hooks")
    assert found.topic_patterns == ("order.*", "invoice.>")
    assert (found.headers, found.max_in_flight) == ({"X-Team": "blue"}, 3)
    assert (found.recovery, found.all_tenants, found.state) == ("manual", True, "paused")
    assert found.etag == made.etag != ""
    changed = client.subscriptions.update(made.id, etag=found.etag, name="two", enabled=True)
    assert (changed.name, changed.state, changed.url) == ("two", "active", found.url)
    assert changed.etag != found.etag
    with pytest.raises(PreconditionFailed):
        client.subscriptions.update(made.id, etag=found.etag, name="three")
    with pytest.raises(PreconditionFailed):
        client.subscriptions.delete(made.id, etag=found.etag)
    assert client.subscriptions.get(made.id).name == "two"
    assert client.subscriptions.delete(made.id, etag=changed.etag) is None
    with pytest.raises(NotFound):
        client.subscriptions.get(made.id)


def test_a_secret_of_ones_own_is_not_given_back(client: Any) -> None:
    given = "whsec_" + "QUJD" * 10
    assert (
        client.subscriptions.create("a", "https://a.example/", ["a"], secret=given).secret is None
    )


def test_lists_of_subscriptions_are_filtered_and_come_in_pages(client: Any) -> None:
    ids = [
        client.subscriptions.create(f"s{n}", f"https://h{n % 2}.example.com/", [f"t{n}.*"]).id
        for n in range(7)
    ]
    listing = client.subscriptions.list(limit=3)
    assert [one.id for one in listing] == ids[::-1]
    assert len(listing.page().data) == 3
    assert [one.id for one in client.subscriptions.list(topic="t4.x")] == [ids[4]]
    assert [one.id for one in client.subscriptions.list(host="h1.example.com")] == ids[5::-2]
    client.subscriptions.update(ids[2], enabled=False)
    assert [one.id for one in client.subscriptions.list(state="paused")] == [ids[2]]


def test_a_tripped_subscription_is_found_and_enabled_again(
    client: Any, receiver: Receiver, script: Script, deliver: Callable[[], None]
) -> None:
    made = client.subscriptions.create("one", receiver.url, ["order.>"], max_in_flight=1)
    script.always = Answer(410)
    client.publish_many(NewEvent(topic="order.created", payload={"n": n}) for n in range(3))
    deliver()
    (tripped,) = client.subscriptions.list(state="tripped")
    assert tripped.id == made.id
    assert tripped.auto_disabled_at is not None
    assert "410" in tripped.last_error
    assert client.subscriptions.stats(made.id).held == 2
    script.always = None
    enabled = client.subscriptions.update(made.id, etag=tripped.etag or None, enabled=True)
    assert (enabled.state, enabled.auto_disabled_at) == ("active", None)
    assert (enabled.last_error, enabled.consecutive_failures) == ("", 0)
    deliver()
    assert [one.answered for one in receiver.received] == [410, 200, 200]
    # The one that failed is final, and is sent again only if somebody asks for it.
    (failed,) = client.deliveries.list(status="failed")
    assert client.deliveries.get(failed.id).attempts[0].status_code == 410
    done = client.subscriptions.replay(made.id, status=["failed"])
    assert (done.pending, done.held) == (1, 0)
    deliver()
    stats = client.subscriptions.stats(made.id)
    assert (stats.pending, stats.held, stats.recent.succeeded) == (0, 0, 3)
    assert stats.recent.attempts == 4


def test_what_was_held_can_be_discarded(
    client: Any, receiver: Receiver, script: Script, deliver: Callable[[], None]
) -> None:
    made = client.subscriptions.create("one", receiver.url, ["order.>"], max_in_flight=1)
    script.answers = [Answer(410)]
    client.publish_many(NewEvent(topic="order.created", payload={"n": n}) for n in range(3))
    deliver()
    assert client.subscriptions.reset(made.id, held="discard").state == "active"
    deliver()
    assert len(receiver.received) == 1


def test_a_test_event_is_answered(client: Any, receiver: Receiver, script: Script) -> None:
    made = client.subscriptions.create("one", receiver.url, ["order.>"])
    tested = client.subscriptions.test(made.id, topic="order.tried")
    assert (tested.succeeded, tested.status_code) == (True, 200)
    assert receiver.received[0].id == tested.event_id
    assert receiver.received[0].topic == "order.tried"
    script.always = Answer(500, b"no")
    tested = client.subscriptions.test(made.id)
    assert (tested.succeeded, tested.status_code, tested.response_body) == (False, 500, "no")


def test_a_rotated_secret_signs_beside_the_old_one(
    client: Any, receiver: Receiver, deliver: Callable[[], None]
) -> None:
    made = client.subscriptions.create("one", receiver.url, ["order.>"])
    rotated = client.subscriptions.rotate_secret(made.id, overlap=60)
    ends = rotated.old_secrets_end_at - datetime.now(UTC)
    assert timedelta(seconds=30) < ends <= timedelta(seconds=60)
    client.publish("order.created", {})
    receiver.add_secret(rotated.secret)
    deliver()
    assert receiver.received[0].verified
    assert receiver.received[0].header("webhook-signature").count("v1,") == 2


def test_deliveries_are_listed_sent_again_and_discarded(
    client: Any, receiver: Receiver, script: Script, deliver: Callable[[], None]
) -> None:
    made = client.subscriptions.create("one", receiver.url, ["order.>"], max_in_flight=1)
    events = [client.publish(f"order.t{n % 2}", {"n": n}) for n in range(5)]
    script.always = Answer(404)
    deliver()
    found = list(client.deliveries.list(subscription=made.id, limit=2))
    assert [one.event for one in found] == [event.id for event in reversed(events)]
    assert {one.status for one in found} == {"failed"}
    assert [one.topic for one in client.deliveries.list(event=events[1].id)] == ["order.t1"]
    assert len(list(client.deliveries.list(topic="order.t1"))) == 2
    since = events[3].created_at - timedelta(milliseconds=1)
    assert len(list(client.deliveries.list(since=since))) >= 2
    assert list(client.deliveries.list(until=events[0].created_at - timedelta(hours=1))) == []
    # The subscription is tripped by now: what is sent again is held.
    again = client.deliveries.resend(found[0].id)
    assert (again.status, again.event) == ("held", events[4].id)
    with pytest.raises(Conflict) as refused:
        client.deliveries.resend(found[0].id)
    assert refused.value.kind == "cannot-resend"
    assert client.deliveries.discard(found[0].id).status == "discarded"
    with pytest.raises(Conflict):
        client.deliveries.discard(found[0].id)
    script.always = None
    client.subscriptions.update(made.id, enabled=True)
    assert client.deliveries.resend(found[1].id).status == "pending"
    deliver()
    sent = client.deliveries.get(found[1].id)
    assert (sent.status, sent.attempt_count) == ("succeeded", 2)
    assert [one.outcome for one in sent.attempts] == ["success", "http"]
    with pytest.raises(NotFound):
        client.deliveries.get(10**9)


def test_events_are_listed(client: Any) -> None:
    ids = [client.publish(f"order.t{n % 2}", {"n": n}).id for n in range(5)]
    assert [one.id for one in client.events.list(limit=2)] == ids[::-1]
    assert [one.id for one in client.events.list(topic="order.t1")] == [ids[3], ids[1]]
    assert list(client.events.list(since=datetime.now(UTC) + timedelta(hours=1))) == []
    with pytest.raises(NotFound):
        client.events.get("not-there")


def test_what_is_refused_says_why(client: Any, configure: Any) -> None:
    client.subscriptions.create("one", "https://one.example.com/", ["order.>"])
    with pytest.raises(Conflict) as taken:
        client.subscriptions.create("one", "https://one.example.com/", ["order.>"])
    assert taken.value.kind == "duplicate-name"
    with pytest.raises(Invalid) as forbidden:
        client.subscriptions.create("two", "http://10.0.0.1/", ["order.>"])
    assert [fault.pointer for fault in forbidden.value.errors] == ["/url"]
    with pytest.raises(Invalid) as wrong:
        client.subscriptions.create("two", "https://one.example.com/", ["order.*", ">.x"])
    assert [fault.pointer for fault in wrong.value.errors] == ["/topic_patterns/1"]
    configure(max_payload_bytes=1000)
    with pytest.raises(TooLarge):
        client.publish("a", {"x": "x" * 1000})


def test_a_key_that_may_not_is_refused(clients: Clients, live_server: Any) -> None:
    _, key = create_key("reader", ["subscriptions:read"], all_tenants=True)
    with pytest.raises(Forbidden) as refused:
        clients.make(live_server.url, key).publish("a", {})
    assert refused.value.problem["scope"] == "events:write"
    with pytest.raises(Unauthorized):
        clients.make(live_server.url, "whk_wrong").publish("a", {})


def test_a_key_that_asks_too_often_waits(
    clients: Clients, live_server: Any, configure: Any
) -> None:
    configure(api_rate_limit=2)
    _, key = create_key("busy", SCOPES, all_tenants=True)
    impatient = clients.make(live_server.url, key, retries=Retries(count=0))
    with pytest.raises(TooManyRequests) as refused:
        for n in range(9):
            impatient.publish("a", {"n": n})
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 1
    assert clients.make(live_server.url, key).publish("a", {"n": "later"}).topic == "a"


def test_the_readme_of_the_client_works(
    live_server: Any, sender: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, key = create_key("readme", SCOPES, all_tenants=True)
    readme = Path(webhooks_client.__file__).parents[1] / "README.md"
    (code,) = re.findall(r"^```python\n(.*?)^```$", readme.read_text(), re.S | re.M)
    for shown, real in (("https://webhooks.example.com", live_server.url), ("whk_…", key)):
        assert shown in code
        code = code.replace(shown, real)
    exec(code, {})
    assert Event.objects.count() == 5002
    secret, faults = capsys.readouterr().out.splitlines()
    assert secret.startswith("whsec_")
    assert "/topic_patterns/0" in faults
    assert "/url" in faults


class Lossy:
    """Between client and server: passes requests on, and loses the first answers."""

    def __init__(self, server: str, lose: int) -> None:
        outer = self
        self.lose = lose
        self.passed = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                upstream = http.client.HTTPConnection(server.removeprefix("http://"), timeout=20)
                upstream.request("POST", self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                content = answer.read()
                upstream.close()
                outer.passed += 1
                if outer.passed <= outer.lose:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def lossy(live_server: Any) -> Iterator[Lossy]:
    made = Lossy(live_server.url, lose=2)
    yield made
    made.close()


def test_an_answer_that_was_lost_does_not_publish_twice(
    clients: Clients, client: Any, lossy: Lossy, receiver: Receiver, deliver: Callable[[], None]
) -> None:
    client.subscriptions.create("one", receiver.url, ["order.>"])
    _, key = create_key("publisher", ["events:write"], all_tenants=True)
    published = clients.make(lossy.url, key).publish("order.created", {"n": 1})
    assert lossy.passed == 3
    assert published.already_published
    assert Event.objects.count() == 1
    deliver()
    assert [one.id for one in receiver.received] == [published.id]


def test_a_batch_whose_answer_was_lost_does_not_publish_twice(
    clients: Clients, lossy: Lossy
) -> None:
    _, key = create_key("publisher", ["events:write"], all_tenants=True)
    events = [NewEvent(topic="order.created", payload={"n": n}) for n in range(100)]
    published = clients.make(lossy.url, key).publish_many(events)
    assert lossy.passed == 3
    assert len(published) == Event.objects.count() == 100


def test_a_server_that_is_away_is_no_answer(clients: Clients) -> None:
    client = clients.make("http://127.0.0.1:1", "whk_x", retries=Retries(count=0))
    with pytest.raises(NoAnswer) as failed:
        client.publish("a", {})
    assert len(failed.value.event_ids) == 1


def test_a_database_that_is_away_is_unavailable(
    clients: Clients, client: Any, live_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import OperationalError

    from api.v1 import events

    def away(*_: object, **__: object) -> None:
        raise OperationalError("the server closed the connection unexpectedly")

    monkeypatch.setattr(events, "publish", away)
    _, key = create_key("publisher", ["events:write"], all_tenants=True)
    with pytest.raises(Unavailable) as failed:
        clients.make(live_server.url, key, retries=Retries(count=0)).publish("a", {})
    assert failed.value.retry_after == 5
