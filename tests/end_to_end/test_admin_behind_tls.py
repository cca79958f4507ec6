"""The admin as documented: the web behind a proxy that speaks TLS."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import PBKDF2PasswordHasher

from tests.end_to_end.conftest import eventually
from webhooks_project.child import as_child
from webhooks_project.programs import listen, web

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.end_to_end]

PASSWORD = "correct horse"


class Proxy(BaseHTTPRequestHandler):
    """Passes everything on, and says by which scheme it came."""

    behind: tuple[str, int]

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        upstream = http.client.HTTPConnection(*self.behind, timeout=20)
        headers = {**dict(self.headers.items()), "X-Scheme": "https"}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "connection", "date", "server"}:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        upstream.close()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


class Site:
    """A browser's view: `https://localhost:PORT`."""

    def __init__(self, listener: socket.socket, directory: Path) -> None:
        self._listener = listener
        authority = trustme.CA()
        self._authority = directory / "ca.pem"
        authority.cert_pem.write_to_path(str(self._authority))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        handler = type("Handler", (Proxy,), {"behind": listener.getsockname()[:2]})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.origin = f"https://localhost:{self.server.server_port}"

    def start(self, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        program = web(self._listener)
        with log.open("wb") as output:
            process = subprocess.Popen(
                as_child(program.command, signal.SIGKILL),
                env=environment,
                cwd=program.cwd,
                pass_fds=list(program.pass_fds),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        eventually(lambda: self.healthy() or process.poll() is not None, "the web answering")
        assert process.poll() is None, log.read_text()
        return process

    def healthy(self) -> bool:
        try:
            return self.browser().get(f"{self.origin}/healthz", timeout=5).ok
        except requests.RequestException:
            return False

    def browser(self) -> requests.Session:
        session = requests.Session()
        session.verify = str(self._authority)
        session.trust_env = False
        return session


Open = Callable[..., Site]


@pytest.fixture
def open_site(environment: dict[str, str], tmp_path: Path) -> Iterator[Open]:
    started: list[tuple[Site, subprocess.Popen[bytes]]] = []

    def start(**variables: str) -> Site:
        site = Site(listen("127.0.0.1", 0), tmp_path)
        given = {
            f"WEBHOOKS_{name}": value.replace("ORIGIN", site.origin)
            for name, value in variables.items()
        }
        started.append((site, site.start(environment | given, tmp_path / "web.log")))
        return site

    yield start
    for site, process in started:
        process.terminate()
        process.wait(30)
        site.server.shutdown()
        site.server.server_close()
        site._listener.close()


def log_in(site: Site) -> tuple[requests.Response, requests.Session]:
    # Hashed as the web will check it, not by the quick hasher of the tests.
    hashed = PBKDF2PasswordHasher().encode(PASSWORD, "any salt will do", iterations=1000)
    get_user_model().objects.create(
        username="operator", password=hashed, is_staff=True, is_superuser=True
    )
    browser = site.browser()
    page = browser.get(f"{site.origin}/admin/login/", timeout=30)
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    assert token, page.text
    answer = browser.post(
        f"{site.origin}/admin/login/?next=/admin/",
        data={"csrfmiddlewaretoken": token[1], "username": "operator", "password": PASSWORD},
        headers={"Origin": site.origin, "Referer": page.url},
        allow_redirects=False,
        timeout=30,
    )
    return answer, browser


@pytest.mark.parametrize(
    ("variables", "hsts"),
    [
        pytest.param({"PROXY_HEADER": "X-Scheme"}, "max-age=3600", id="by-its-header"),
        pytest.param({"PROXY_HEADER": "X-Scheme", "HSTS_SECONDS": "60"}, "max-age=60", id="hsts"),
        # Without the header Django knows of no TLS; the origin must be named with its port.
        pytest.param({"TRUSTED_ORIGINS": "ORIGIN"}, None, id="by-its-origin"),
    ],
)
def test_login_works_through_a_tls_proxy_and_its_cookies_are_for_tls_alone(
    open_site: Open, variables: dict[str, str], hsts: str | None
) -> None:
    site = open_site(ALLOWED_HOSTS="localhost", **variables)
    answer, browser = log_in(site)
    assert (answer.status_code, answer.headers.get("Location")) == (302, "/admin/"), answer.text
    assert {one.name: one.secure for one in browser.cookies} == {
        "csrftoken": True,
        "sessionid": True,
    }
    index = browser.get(f"{site.origin}/admin/", timeout=30)
    assert "Log out" in index.text
    assert index.headers.get("Strict-Transport-Security") == hsts


def test_a_stranger_s_origin_cannot_log_anybody_in(open_site: Open) -> None:
    site = open_site(ALLOWED_HOSTS="localhost", PROXY_HEADER="X-Scheme")
    browser: Any = site.browser()
    page = browser.get(f"{site.origin}/admin/login/", timeout=30)
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    assert token
    answer = browser.post(
        f"{site.origin}/admin/login/",
        data={"csrfmiddlewaretoken": token[1], "username": "operator", "password": PASSWORD},
        headers={"Origin": "https://evil.example"},
        timeout=30,
    )
    assert answer.status_code == 403
