"""A running system, and a browser to look at it with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, User
from django.contrib.sessions.backends.db import SessionStore
from django.core.management import call_command
from django.test import Client
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from webhooks_project.engines import DATABASE, DATABASE_USER, Cluster
from webhooks_project.supervisor import Program, Supervisor

START_SECONDS = 90.0
PASSWORD = "a long one, for tests"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"


def make_database(cluster: Cluster) -> None:
    """A new database with all tables."""
    with psycopg.connect(
        host=str(cluster.layout.run), user=DATABASE_USER, dbname="postgres", autocommit=True
    ) as server:
        server.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        server.execute(f"CREATE DATABASE {DATABASE}")
    call_command("migrate", interactive=False, verbosity=0)


@contextmanager
def running(programs: list[Program], log: Path) -> Iterator[None]:
    """These programs, ready; the log of all of them in one file."""
    with log.open("w") as output:
        supervisor = Supervisor(programs, output, stop_seconds=20)
        supervisor.start()
        try:
            supervisor.wait_until_ready(START_SECONDS)
            yield
        finally:
            supervisor.stop()


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium, without a window, which finds no host but this machine."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            # Root may not have the sandbox, and a container little /dev/shm.
            args=[
                *("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"),
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ],
        )
        try:
            yield browser
        finally:
            browser.close()


def make_user(name: str, group: str | None = None) -> User:
    """One who may sign in: of that group, or with every permission."""
    users = get_user_model().objects
    if group is None:
        return users.create_superuser(name, password=PASSWORD)
    user = users.create_user(name, password=PASSWORD, is_staff=True)
    user.groups.add(Group.objects.get(name=group))
    return user


def sign_in(context: BrowserContext, url: str, user: User) -> None:
    """As if he had: the browser has his session."""
    client = Client()
    client.force_login(user)
    session: SessionStore = client.session
    context.add_cookies([{"name": "sessionid", "value": str(session.session_key), "url": url}])


def put_on(page: Page, scheme: str) -> None:
    """Light or dark, at once: as the system has it, and as the switch of the admin."""
    page.emulate_media(color_scheme=scheme)
    page.add_style_tag(content="* { transition: none !important; animation: none !important; }")
    page.evaluate(
        """async scheme => {
            if (window.Alpine) {
                Alpine.$data(document.documentElement).adminTheme = scheme;
                await Alpine.nextTick();
            }
        }""",
        scheme,
    )
