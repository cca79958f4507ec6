"""One story in which everything happens to subscriptions whose secrets are known.

It keeps what was written on the way: log, output of commands, messages, rows, pages, reprs.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import ipaddress
import json
import logging
import re
import sys
import traceback
import types
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import redis
import trustme
from django.apps import apps
from django.conf import settings
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import CompositePrimaryKey
from django.test import Client
from django.urls import clear_url_caches, include, path, set_urlconf
from django.views.debug import ExceptionReporter
from unfold.admin import ModelAdmin
from unfold.sites import UnfoldAdminSite

from deliveries import publish
from deliveries.claiming.claims import claim
from deliveries.claiming.memory import BodyMemory
from deliveries.models import Attempt, Delivery, Event
from deliveries.sending import signing
from deliveries.sending.request import signed_post
from deliveries.sending.sender import Sender
from deliveries.transport import Transport
from deliveries.waking import wakeups
from subscriptions.conf import conf
from subscriptions.models import SigningSecret, Subscription, create_subscription
from subscriptions.secrets import crypto
from tests.deliveries.transport import hostile
from tests.deliveries.transport.hostile import OK, Connection, receiver
from tests.security.canary import Canary, canary_of, signing_secret, word

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)

FIRST, first = signing_secret(b"canary-one")
SECOND, second = signing_secret(b"canary-two")
HEADER = "canary-header-4f1c9e"
URL = "canary-url-77ab02"
GONE = b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"
SCRIPT = '<script>alert("canary-script")</script>'

SECRETS = (first, second)
CREDENTIALS = (word("credential in a header", HEADER), word("token in a URL", URL))


@dataclass
class Story:
    """What was written. Each is text by the place where it was found."""

    log: list[str] = field(default_factory=list)
    sql: list[str] = field(default_factory=list)
    output: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    rows: dict[str, list[str]] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    tracebacks: dict[str, str] = field(default_factory=dict)
    reprs: dict[str, str] = field(default_factory=dict)
    shown_once: dict[str, Canary] = field(default_factory=dict)


class _Log(logging.Handler):
    """Everything, as the most talkative formatter would write it."""

    def __init__(self, story: Story) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(threadName)s %(message)s"))
        self._story = story

    def emit(self, record: logging.LogRecord) -> None:
        into = self._story.sql if record.name.startswith("django.db") else self._story.log
        into.append(self.format(record) + f" {record.args!r}")


@contextlib.contextmanager
def _logged(story: Story) -> Iterator[None]:
    """As with WEBHOOKS_LOG_LEVEL=DEBUG; and all SQL besides, with its values."""
    root, sql, handler = logging.getLogger(), logging.getLogger("django.db.backends"), _Log(story)
    levels, debug = (root.level, sql.level), settings.DEBUG
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    sql.setLevel(logging.DEBUG)
    settings.DEBUG = True  # makes Django log its SQL, on every connection
    try:
        yield
    finally:
        settings.DEBUG = debug
        root.setLevel(levels[0])
        sql.setLevel(levels[1])
        root.removeHandler(handler)


def tell(monkeypatch: Any, client: Client) -> Story:
    """Needs the database, committed rows and all; leaves rows and messages behind."""
    story = Story()
    client.force_login(get_user_model().objects.create_superuser("root"))
    transport = Transport(timeout=0.5, allowed_networks=LOOPBACK)
    sender = Sender(transport)
    monkeypatch.setattr("deliveries.sending.send_test.transport", lambda: transport)
    try:
        with _logged(story), contextlib.ExitStack() as servers:
            _happen(story, sender, client, servers, monkeypatch)
        story.messages = _messages()
        _read_rows(story)
        _open_pages(story, client)
    finally:
        sender.close()
        transport.close(5)
    return story


def _echoes(connection: Connection) -> None:
    while True:
        said = SCRIPT.encode() + connection.read_request()
        connection.send(b"HTTP/1.1 500 Echo\r\nContent-Length: %d\r\n\r\n" % len(said) + said)


def _happen(
    story: Story, sender: Sender, client: Client, servers: contextlib.ExitStack, monkeypatch: Any
) -> None:
    def serve(*ids: uuid.UUID) -> None:
        sender.serve(list(ids), recovering=True)

    good = servers.enter_context(receiver(hostile.answers(OK)))
    failing = servers.enter_context(receiver(hostile.answers(GONE)))
    echo = servers.enter_context(receiver(_echoes))
    silent = servers.enter_context(receiver(hostile.is_silent))
    odd = servers.enter_context(receiver(hostile.answers(b"SSH-2.0-OpenSSH_9.7\r\n")))
    tls = servers.enter_context(receiver(hostile.answers(OK), _untrusted()))
    urls = {
        "good": good.url, "failing": failing.url, "silent": silent.url, "odd": odd.url,
        "tls": tls.url, "refused": "http://127.0.0.1:1/", "blocked": "http://10.0.0.1/",
    }  # fmt: skip
    made: dict[str, Subscription] = {}
    for name, url in urls.items():
        made[name], _ = create_subscription(
            name=name, url="https://example.com/", topic_patterns=["test.>"], secret=FIRST,
            headers={"Authorization": f"Bearer {HEADER}"},
        )  # fmt: skip
        Subscription.objects.filter(pk=made[name].pk).update(url=f"{url}?token={URL}")
    made["echo"], _ = create_subscription(
        name="echo <img src=x onerror=canary-script>", url="https://example.com/",
        topic_patterns=["test.>"], secret=FIRST,
    )  # fmt: skip
    Subscription.objects.filter(pk=made["echo"].pk).update(url=echo.url)
    made["unreadable"], _ = create_subscription(
        name="unreadable", url="https://example.com/", topic_patterns=["test.>"], secret=FIRST
    )
    stored = made["unreadable"].secrets.get()
    stored.ciphertext = "gAAAA" + stored.ciphertext[5:][::-1]
    stored.save()

    run = _runner(story, monkeypatch)
    run("add_subscription", "by command", good.url, "--pattern", "a", "--secret", FIRST)
    run("add_subscription", "by pipe", good.url, "--pattern", "a", "--secret", "-", typed=FIRST)
    for wrong in (FIRST[:-2], FIRST + "=", FIRST.replace("whsec_", "whsk_"), FIRST[:30]):
        run(
            "add_subscription", "wrong", "https://example.com/", "--pattern", "a", "--secret", wrong
        )
    run("rotate_secret", "good", "--secret", SECOND)
    run("rotate_secret", "silent", "--secret", "-", typed=SECOND)
    run("rotate_secret", "failing", "--secret", SECOND, "--overlap", "0", "--json")

    publish("test.story", {"text": SCRIPT})
    publish("test.story", {"text": "again"})
    for _ in range(2):
        serve(*(one.pk for one in made.values()))
    for name in made:
        run("send_test", made[name].name)
        run("send_test", made[name].name, "--json")
    for words in (
        ["subscriptions"], ["subscriptions", "--json"], ["pause", "good"], ["resume", "good"],
        ["reset_circuit", "--all"], ["replay", "--subscription", "failing"], ["prune"],
        ["publish_event", "test.command", "--data", '{"a": 1}'], ["check"],
    ):  # fmt: skip
        run(*words)

    _post_to_the_admin(story, client, made["silent"])
    _break(story, made, serve, monkeypatch)
    _show(story, sender, made["good"])


def _runner(story: Story, monkeypatch: Any) -> Callable[..., None]:
    def run(*words: str, typed: str = "") -> None:
        output, errors = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed + "\n"))
        name = f"{len(story.output)} {' '.join(words[:2])}"
        try:
            call_command(*words, stdout=output, stderr=errors)
        except CommandError as error:
            errors.write(str(error))
        story.output[name] = output.getvalue() + errors.getvalue()

    return run


def _post_to_the_admin(story: Story, client: Client, subscription: Subscription) -> None:
    """Pages that show a new secret, once, and that are the only ones to do so."""
    base = "/admin/subscriptions/subscription/"
    added = client.post(
        f"{base}add/",
        {
            "name": "by hand", "url": "https://example.com/", "topic_patterns": "a.b",
            "enabled": "on", "max_in_flight": "1", "recovery": "manual", "headers": "{}",
        },
    )  # fmt: skip
    newest = subscription.secrets.order_by("-pk")[0].pk
    rotated = client.post(
        f"{base}{subscription.pk}/rotate-secret/", {"old_secret": "overlap", "shown_with": newest}
    )
    for what, response in (("added", added), ("rotated", rotated)):
        secret = re.search(r"whsec_[A-Za-z0-9+/=]+", html.unescape(response.content.decode()))
        assert secret, response.content.decode()
        story.shown_once[what] = canary_of(secret[0])
        assert "no-store" in response["Cache-Control"]


def _break(
    story: Story, made: dict[str, Subscription], serve: Callable[..., None], monkeypatch: Any
) -> None:
    """Mistakes of our own code, in the middle of handling a secret."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a mistake of our own")

    debug, settings.DEBUG = settings.DEBUG, False
    for place, act in (
        ("subscriptions.secrets.crypto.encrypt", lambda: made["good"].add_secret(FIRST)),
        ("subscriptions.secrets.crypto.encrypt", lambda: made["good"].rotate_secret(FIRST)),
        ("subscriptions.circuit.begin_epoch", lambda: made["good"].add_secret(FIRST)),
        (
            "subscriptions.secrets.crypto.encrypt",
            lambda: create_subscription(
                name="n", url="https://example.com/", topic_patterns=["a"], secret=FIRST
            ),
        ),
    ):
        with monkeypatch.context() as broken:
            broken.setattr(place, fail)
            try:
                act()
            except RuntimeError:
                name = f"{len(story.tracebacks)} {place}"
                story.tracebacks[name] = traceback.format_exc()
                report = ExceptionReporter(None, *sys.exc_info())
                story.tracebacks[f"{name}, reported"] = (
                    report.get_traceback_text() + report.get_traceback_html()
                )
    settings.DEBUG = debug
    for module, name in ((signing, "headers"), (crypto, "decrypt")):
        with monkeypatch.context() as broken:
            broken.setattr(module, name, fail)
            from deliveries.claiming.claimer import _decrypt

            _decrypt.cache_clear()
            publish("test.broken", {})
            serve(made["good"].pk)


def _show(story: Story, sender: Sender, subscription: Subscription) -> None:
    """What a log line with `%r`, a debugger or an error report would show."""
    publish("test.shown", {})
    Delivery.objects.filter(subscription=subscription, status="pending").update(lease_until=None)
    connection.cursor().execute("UPDATE deliveries_lane SET resume_at = NULL, failures = 0")
    token = uuid.uuid4()
    found = claim(
        [subscription.pk], BodyMemory(2**20), lambda text: crypto.decrypt(text).decode(),
        token=token, failing_too=True,
    )  # fmt: skip
    lane = found.lanes[0]
    assert SECOND in lane.secrets
    for thing in (
        found, lane, lane.deliveries[0], signed_post(
            lane.url, lane.headers, lane.secrets, event_id="e", topic="a", body=b"", timestamp=1
        ), sender,
        sender.transport, conf(), subscription, list(SigningSecret.objects.all()),
        SigningSecret.objects.first(), Event.objects.first(), Delivery.objects.first(),
        Attempt.objects.first(),
    ):  # fmt: skip
        name = type(thing).__name__
        story.reprs[name] = f"{thing!r} {thing} {[thing]}"


def _messages() -> list[str]:
    """Every message in the broker, with its body decoded; the broker is then empty."""
    client = redis.Redis.from_url(
        settings.CELERY_BROKER_URL.replace("redis+socket://", "unix://")
        .replace("virtual_host", "db")
    )  # fmt: skip
    found = []
    for queue in ("deliver", "recover"):
        for message in client.lrange(queue, 0, -1):
            found.append(message.decode())
            found.append(base64.b64decode(json.loads(message)["body"]).decode())
        client.delete(queue)
    redis_ = wakeups.client()
    for key in redis_.scan_iter("webhooks:*"):
        if key.endswith(b":due"):
            value = redis_.zrange(key, 0, -1)
        else:
            value = redis_.hgetall(key) if key.endswith(b":sums") else redis_.get(key)
        found.append(f"{key!r} {value!r}")
        redis_.delete(key)
    return found


def _read_rows(story: Story) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name FROM information_schema.tables "
            "WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
        )
        for (table,) in cursor.fetchall():
            cursor.execute(f'SELECT t::text FROM "{table}" t')
            story.rows[table] = [row[0] for row in cursor.fetchall()]
        cursor.execute("SELECT encode(body, 'escape') FROM deliveries_event")
        story.rows["deliveries_event, bodies"] = [row[0] for row in cursor.fetchall()]


class _Plain(ModelAdmin):  # type: ignore[misc]
    """Every field that a model offers, on the templates as they come."""

    change_form_template = "admin/change_form.html"
    change_list_template = "admin/change_list.html"


def _open_pages(story: Story, client: Client) -> None:
    """Every page of the admin; and of one that somebody made without a thought."""
    naive = UnfoldAdminSite("naive")
    for app in ("subscriptions", "deliveries"):
        for model in apps.get_app_config(app).get_models():
            # Django shows no model in its admin whose key has several columns.
            if not isinstance(model._meta.pk, CompositePrimaryKey):
                naive.register(model, _Plain)
    urls = types.ModuleType("urls")
    urls.urlpatterns = [  # type: ignore[attr-defined]
        path("naive/", naive.urls),
        path("", include("webhooks_project.urls")),
    ]
    root = settings.ROOT_URLCONF
    settings.ROOT_URLCONF = urls
    clear_url_caches()
    set_urlconf(None)
    try:
        for prefix, site in (("/admin", admin.site), ("/naive", naive)):
            for model in site._registry:
                for url in _urls(prefix, model):
                    response = client.get(url)
                    if response.status_code == 200:
                        story.pages[url] = response.content.decode()
    finally:
        settings.ROOT_URLCONF = root
        clear_url_caches()


def _urls(prefix: str, model: Any) -> Iterator[str]:
    base = f"{prefix}/{model._meta.app_label}/{model._meta.model_name}/"
    yield base
    yield f"{base}add/"
    pages = ["change", "history"] if prefix == "/admin" else ["change"]
    if model is Subscription and prefix == "/admin":
        pages.append("rotate-secret")
    # The last ones: those that something went wrong with are among them.
    for pk in model._default_manager.order_by("-pk").values_list("pk", flat=True)[:8]:
        yield from (f"{base}{pk}/{page}/" for page in pages)


def _untrusted() -> Any:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


__all__ = ["CREDENTIALS", "SCRIPT", "SECRETS", "Canary", "Story", "tell"]
