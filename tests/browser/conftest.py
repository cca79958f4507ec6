"""One running system for all of the browser tests: engines, web, workers, beat; and a browser."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from playwright.sync_api import Browser, BrowserContext, Page, expect

from deliveries.models import Delivery
from subscriptions.models import AuditEntry, Subscription
from tests.browser import system
from tests.conftest import CLUSTER
from webhooks_project.engines import local_dir
from webhooks_project.programs import installation, listen, web_url
from webhooks_project.receiver import Answer, Received, Receiver

SETTINGS = "tests.browser.settings"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}

# Only a failure waits so long: the machine may be busy.
PATIENCE = 30_000
expect.set_options(timeout=PATIENCE)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.ds != SETTINGS:
        raise pytest.UsageError(f"The browser tests run a system of their own: --ds={SETTINGS}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which(system.CHROMIUM) is None:
        for item in items:
            item.add_marker(pytest.mark.skip("no Chromium here: apt-get install chromium"))


@pytest.fixture(scope="session")
def site(
    request: pytest.FixtureRequest, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of the running system. The tests use its database, too."""
    with django_db_blocker.unblock(), listen("127.0.0.1", 0) as listener:
        system.make_database(request.config.stash[CLUSTER])
        programs = installation(listener, tmp_path_factory.mktemp("ready"), workers=1, threads=16)
        with system.running(programs, local_dir() / "programs.log"):
            yield web_url(listener)
        connection.close()
        connection.close_pool()  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with system.chromium() as launched:
        yield launched


@pytest.fixture
def nothing_there(site: str) -> None:
    """For a test that makes what it needs."""
    Delivery.objects.all().delete()
    Subscription.objects.all().delete()
    AuditEntry.objects.all().delete()


_numbers = itertools.count(1)


@pytest.fixture
def user(site: str) -> Callable[..., User]:
    """Makes one who may sign in, of a group, or with every permission."""
    return lambda group=None: system.make_user(f"user{next(_numbers)}", group)


@pytest.fixture
def open_page(
    site: str, browser: Browser, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Page]]:
    """Opens a page of that user's, so wide. No script on it may fail, and it asks no other host."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def open_one(user: User | None = None, size: Any = WIDE, **options: Any) -> Page:
        context = browser.new_context(base_url=site, viewport=size, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        if user is not None:
            system.sign_in(context, site, user)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
        page.on(
            "request",
            lambda asked: asked.url.startswith((site, "data:", "blob:")) or wrong.append(asked.url),
        )
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert wrong == []


class Failing(Receiver):
    """Answers 503 until it is `repaired`."""

    def __init__(self) -> None:
        self.repaired = False
        super().__init__(respond=self._answer)

    def _answer(self, received: Received) -> Answer:
        return Answer(200) if self.repaired else Answer(503, b"the warehouse is closed")


@pytest.fixture
def failing() -> Iterator[Failing]:
    with Failing() as receiver:
        yield receiver
