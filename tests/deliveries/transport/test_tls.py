"""Certificates are verified against the file of authorities and nothing else."""

from __future__ import annotations

import datetime
import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from requests.exceptions import SSLError

from deliveries.transport import Transport, classify
from tests.deliveries.transport import hostile
from tests.deliveries.transport.conftest import post
from tests.deliveries.transport.hostile import OK, receiver

Maker = Callable[..., Transport]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def context(leaf: trustme.LeafCert) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(made)
    return made


def test_a_trusted_certificate_is_accepted_and_its_connection_reused(
    make_transport: Maker, authority: trustme.CA, ca_file: str
) -> None:
    transport = make_transport(ca_file=ca_file)
    with receiver(hostile.answers(OK), context(authority.issue_cert("127.0.0.1"))) as server:
        assert [transport.send(post(server.url)).status_code for _ in range(3)] == [200] * 3
        assert server.connections == 1


def test_a_certificate_for_a_host_name_is_checked_against_that_name(
    make_transport: Maker, authority: trustme.CA, ca_file: str
) -> None:
    transport = make_transport(
        ca_file=ca_file, resolver=lambda *a, **k: [(2, 1, 6, "", ("127.0.0.1", 0))]
    )
    with receiver(hostile.answers(OK), context(authority.issue_cert("good.example"))) as server:
        assert transport.send(post(f"https://good.example:{server.port}/")).status_code == 200
        with pytest.raises(SSLError, match="the certificate is for another host name"):
            transport.send(post(f"https://evil.example:{server.port}/"))


def test_an_untrusted_certificate_is_refused(make_transport: Maker, ca_file: str) -> None:
    transport = make_transport(ca_file=ca_file)
    tls = context(trustme.CA().issue_cert("127.0.0.1"))
    with (
        receiver(hostile.answers(OK), tls) as server,
        pytest.raises(SSLError, match="not trusted") as raised,
    ):
        transport.send(post(server.url))
    assert classify(raised.value) == "tls"


def test_a_private_authority_is_not_trusted_by_default(make_transport: Maker) -> None:
    tls = context(trustme.CA().issue_cert("127.0.0.1"))
    with receiver(hostile.answers(OK), tls) as server, pytest.raises(SSLError):
        make_transport().send(post(server.url))


def test_an_expired_certificate_is_refused(
    make_transport: Maker, authority: trustme.CA, ca_file: str
) -> None:
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    tls = context(authority.issue_cert("127.0.0.1", not_after=yesterday))
    with (
        receiver(hostile.answers(OK), tls) as server,
        pytest.raises(SSLError, match="the certificate has expired"),
    ):
        make_transport(ca_file=ca_file).send(post(server.url))


def test_a_server_without_tls_is_a_tls_failure(make_transport: Maker) -> None:
    with (
        receiver(lambda connection: connection.send(OK)) as server,
        pytest.raises(SSLError) as raised,
    ):
        make_transport().send(post(server.url.replace("http:", "https:")))
    assert classify(raised.value) == "tls"


def test_a_missing_file_of_authorities_is_our_own_fault(make_transport: Maker) -> None:
    with receiver(hostile.is_silent) as server, pytest.raises(OSError) as raised:
        make_transport(ca_file="/nowhere/ca.pem").send(post(server.url.replace("p:", "ps:")))
    assert classify(raised.value) == "internal"


def test_tls_secrets_are_not_logged_and_environment_bundles_are_ignored(
    authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    """In a process of its own, because libcurl reads these variables once."""
    key_log = tmp_path / "keys"
    program = (
        "import sys\n"
        "from deliveries.transport import Transport\n"
        "from tests.deliveries.transport.conftest import LOOPBACK, post\n"
        "transport = Transport(timeout=5, allowed_networks=LOOPBACK, ca_file=sys.argv[2])\n"
        "try:\n"
        "    print(transport.send(post(sys.argv[1])).status_code)\n"
        "except OSError as error:\n"
        "    print(type(error).__name__)\n"
    )
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    environ = {
        **os.environ,
        "SSLKEYLOGFILE": str(key_log),
        "CURL_CA_BUNDLE": ca_file,
        "REQUESTS_CA_BUNDLE": ca_file,
        "SSL_CERT_FILE": ca_file,
    }
    with receiver(hostile.answers(OK), context(authority.issue_cert("127.0.0.1"))) as server:
        outputs = [
            subprocess.run(
                [sys.executable, "-c", program, server.url, bundle],
                env=environ,
                cwd=Path(__file__).parents[3],
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            ).stdout.strip()
            for bundle in (ca_file, str(other))
        ]
    assert outputs == ["200", "SSLError"]
    # urllib3, which requests imports, creates the file; what matters is that it stays empty.
    assert not key_log.exists() or "CLIENT" not in key_log.read_text()
