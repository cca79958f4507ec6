"""Variables and files of the environment that steer other clients of libcurl, and not this one.

Each trap is first shown to work: a plain libcurl handle falls into it.
"""

from __future__ import annotations

import logging
import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography.fernet import Fernet
from requests.exceptions import SSLError

from deliveries.transport import Transport
from deliveries.transport.libcurl import pycurl
from tests.deliveries.transport import hostile
from tests.deliveries.transport.conftest import post
from tests.deliveries.transport.hostile import OK, Connection, receiver
from tests.webhooks_project.waiting import eventually

ROOT = Path(__file__).parents[2]
Maker = Callable[..., Transport]
SetVariables = Callable[..., None]


def plain_request(url: str, **options: object) -> None:
    """What a client does that listens to the environment."""
    curl = pycurl.Curl()
    curl.setopt(pycurl.URL, url)
    curl.setopt(pycurl.TIMEOUT_MS, 3000)
    curl.setopt(pycurl.WRITEFUNCTION, lambda data: None)
    for name, value in options.items():
        curl.setopt(getattr(pycurl, name), value)
    try:
        curl.perform()
    except pycurl.error:
        pass
    finally:
        curl.close()


@pytest.mark.parametrize("scheme", ["http", "socks4a", "socks5", "socks5h"])
@pytest.mark.parametrize("name", ["http_proxy", "all_proxy", "ALL_PROXY"])
def test_a_proxy_of_the_environment_sees_nothing(
    make_transport: Maker, clean_environment: SetVariables, name: str, scheme: str
) -> None:
    with receiver(hostile.answers(OK)) as server, receiver(lambda connection: None) as proxy:
        clean_environment(**{name: f"{scheme}://127.0.0.1:{proxy.port}"})
        assert make_transport().send(post(server.url)).status_code == 200
        assert proxy.connections == 0
        plain_request(server.url)
        assert eventually(lambda: proxy.connections)  # counted by a thread of its own


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_sees_nothing_of_https_either(
    make_transport: Maker, clean_environment: SetVariables, tmp_path: Path, name: str
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = _context(authority)
    with receiver(hostile.answers(OK), context) as server, receiver(lambda c: None) as proxy:
        clean_environment(**{name: f"http://127.0.0.1:{proxy.port}"})
        transport = make_transport(ca_file=str(tmp_path / "ca.pem"))
        assert transport.send(post(server.url)).status_code == 200
        assert proxy.connections == 0
        plain_request(server.url)
        assert eventually(lambda: proxy.connections)  # counted by a thread of its own


@pytest.mark.parametrize("place", ["HOME", "NETRC", "CURL_HOME"])
def test_no_password_is_taken_from_a_file(
    make_transport: Maker, clean_environment: SetVariables, tmp_path: Path, place: str
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login u password hunter2\n")
    (tmp_path / ".curlrc").write_text('header = "Authorization: hunter2"\nuser = "u:hunter2"\n')
    clean_environment(**{place: str(tmp_path / ".netrc" if place == "NETRC" else tmp_path)})
    seen: list[bytes] = []

    def behave(connection: Connection) -> None:
        while True:
            seen.append(connection.read_request().lower())
            connection.send(OK)

    with receiver(behave) as server:
        assert make_transport().send(post(server.url)).status_code == 200
        if place == "HOME":
            plain_request(server.url, NETRC=pycurl.NETRC_OPTIONAL)
            assert b"authorization: basic" in seen.pop()
    assert len(seen) == 1
    assert b"authorization" not in seen[0]


@pytest.mark.parametrize(
    "names",
    [["SSL_CERT_FILE"], ["SSL_CERT_DIR"], ["CURL_CA_BUNDLE"], ["REQUESTS_CA_BUNDLE"]],
    ids=lambda names: names[0],
)
def test_an_authority_of_the_environment_is_not_trusted(
    make_transport: Maker, clean_environment: SetVariables, tmp_path: Path, names: list[str]
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = tmp_path / "ca.pem"
    digest = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", certificate],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (tmp_path / f"{digest}.0").write_bytes(certificate.read_bytes())
    value = tmp_path if names == ["SSL_CERT_DIR"] else certificate
    clean_environment(**dict.fromkeys(names, str(value)))
    requests_seen: list[bytes] = []

    def behave(connection: Connection) -> None:
        requests_seen.append(connection.read_request())
        connection.send(OK)

    with receiver(behave, _context(authority)) as server, pytest.raises(SSLError):
        make_transport().send(post(server.url))
    assert requests_seen == []


def started(variables: dict[str, str], tmp_path: Path, *words: str) -> tuple[int, str]:
    """Run a program with these variables; its exit code and all that it wrote."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("WEBHOOKS_") and name != "DJANGO_SETTINGS_MODULE"
    }
    ended = subprocess.run(
        [sys.executable, *words],
        env={**inherited, "WEBHOOKS_LOCAL_DIR": str(tmp_path), **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ended.returncode, ended.stdout + ended.stderr


# `manage.py subscriptions`, without the ten seconds that it waits for a database.
IMPATIENT = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "webhooks_project.settings"
from django.conf import settings
from django.core.management import execute_from_command_line
settings.DATABASES["default"]["OPTIONS"]["pool"]["timeout"] = 0.5
execute_from_command_line(["manage.py", "subscriptions"])
"""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        pytest.param(["-c", IMPATIENT], "The database cannot be used", id="database"),
        pytest.param(
            ["-m", "celery", "-A", "webhooks_project", "inspect", "ping"], "refused", id="broker"
        ),
        pytest.param(["-m", "celery", "-A", "webhooks_project", "report"], "amqp", id="report"),
    ],
)
def test_an_engine_that_is_away_is_named_without_its_password(
    words: list[str], sentence: str, tmp_path: Path
) -> None:
    """Nothing listens on port 1."""
    key = Fernet.generate_key().decode()
    variables = {
        "DATABASE_URL": "postgresql://user:CANARY@127.0.0.1:1/webhooks",
        "REDIS_URL": "redis://user:CANARY@127.0.0.1:1/0",
        "CELERY_BROKER_URL": "amqp://user:CANARY@127.0.0.1:1//",
        "SECRET_KEY": "CANARY" * 10,
        "WEBHOOKS_SECRET_KEYS": key,
    }
    _, output = started(variables, tmp_path, *words)
    assert sentence in output, output
    assert "CANARY" not in output, output
    assert key not in output


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"DATABASE_URL": "mysql://u:CANARY@127.0.0.1/x"}, id="other-database"),
        pytest.param({"DATABASE_URL": "postgresql://u:CANARY@127.0.0.1:p/x"}, id="bad-port"),
        pytest.param({"WEBHOOKS_SECRET_KEYS": "CANARY"}, id="bad-secret-key"),
        pytest.param({"WEBHOOKS_SECRET_KEY": "CANARY"}, id="misspelt-secret-key"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_does_not_repeat_a_secret(
    variables: dict[str, str], tmp_path: Path
) -> None:
    code, output = started({"SECRET_KEY": "x" * 50, **variables}, tmp_path, "manage.py", "check")
    assert code != 0
    assert next(iter(variables)) in output
    assert "CANARY" not in output


def test_the_keys_of_a_checkout_are_readable_by_their_owner_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from webhooks_project.keys import local_keys

    monkeypatch.setenv("WEBHOOKS_LOCAL_DIR", str(tmp_path))
    before = os.umask(0)
    try:
        keys = local_keys()
    finally:
        os.umask(before)
    (path,) = tmp_path.glob("**/keys.json")
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys["SECRET_KEY"] in path.read_text()


def test_a_message_that_is_not_json_is_never_unpacked() -> None:
    """Whoever can write to the broker can wake subscriptions, and run nothing."""
    import pickle

    from kombu.exceptions import ContentDisallowed
    from kombu.serialization import loads, prepare_accept_content

    from webhooks_project.celery import app

    ran: list[str] = []
    _Bomb.ran = ran
    pickled = pickle.dumps(_Bomb())
    pickle.loads(pickled)
    assert ran == ["ran"], "the bomb works"
    accepted = prepare_accept_content(app.conf.accept_content)
    for kind, encoding in (("application/x-python-serialize", "binary"), ("pickle", "binary")):
        with pytest.raises(ContentDisallowed):
            loads(pickled, kind, encoding, accept=accepted)
    with pytest.raises(ContentDisallowed):
        loads("!!python/object/apply:os.getcwd []", "application/x-yaml", "utf-8", accept=accepted)
    assert ran == ["ran"]


class _Bomb:
    ran: list[str]

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return _explode, ("ran",)


def _explode(word: str) -> None:
    _Bomb.ran.append(word)


@pytest.mark.parametrize(
    "ids",
    [["not-an-id"], ["'; DROP TABLE deliveries_lane; --"], [1], [None], [["a"]], [{}]],
    ids=["text", "sql", "number", "nothing", "list", "object"],
)
def test_a_wake_up_with_anything_but_ids_claims_nothing(
    ids: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    """No database is asked: this test has none."""
    from deliveries.tasks import deliver

    with caplog.at_level(logging.DEBUG), pytest.raises((ValueError, AttributeError, TypeError)):
        deliver(ids)


def _context(authority: trustme.CA) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(made)
    return made
