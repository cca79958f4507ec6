"""Certificates that are almost right, and servers that bargain."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from requests.exceptions import SSLError

from deliveries.transport import Transport, classify
from tests.deliveries.transport import hostile
from tests.deliveries.transport.conftest import post
from tests.deliveries.transport.hostile import OK, Connection, receiver
from tests.security.wire import Resolver, row

Maker = Callable[..., Transport]
HOST = "hooks.good.example"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def make(make_transport: Maker, authority: trustme.CA, tmp_path: Path) -> Callable[[], Transport]:
    """A transport that trusts `authority` and sends every name to loopback."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return lambda: make_transport(
        ca_file=str(path), resolver=Resolver([row("127.0.0.1")]), timeout=5.0
    )


def served_by(leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    return context


def handmade(
    tmp_path: Path,
    *names: x509.GeneralName,
    common_name: str = "x",
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    usage: x509.ObjectIdentifier | None = None,
    weak: bool = False,
) -> ssl.SSLContext:
    """A certificate as nobody should make one; self-signed unless there is an `issuer`."""
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    key = rsa.generate_private_key(65537, 1024) if weak else ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if issuer:
        found = issuer[0].extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found), critical=False
        )
    certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    chain, private = tmp_path / "leaf.pem", tmp_path / "leaf.key"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_cert_chain(chain, private)
    return context


def signer(authority: trustme.CA) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    key = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return certificate, key


Contexts = Callable[[trustme.CA, Path], ssl.SSLContext]

CERTIFICATES: dict[str, Contexts] = {
    "for-another-host": lambda ca, tmp: served_by(ca.issue_cert("evil.example")),
    "for-the-parent-domain": lambda ca, tmp: served_by(ca.issue_cert("good.example")),
    "for-a-longer-name": lambda ca, tmp: served_by(ca.issue_cert(f"{HOST}.evil.example")),
    "for-the-name-in-front": lambda ca, tmp: served_by(ca.issue_cert("xhooks.good.example")),
    "wildcard-two-labels-up": lambda ca, tmp: served_by(ca.issue_cert("*.example")),
    "wildcard-one-label-down": lambda ca, tmp: served_by(ca.issue_cert(f"*.{HOST}")),
    "wildcard-of-everything": lambda ca, tmp: handmade(
        tmp, x509.DNSName("*"), issuer=signer(ca), usage=ExtendedKeyUsageOID.SERVER_AUTH
    ),
    "for-the-address-dialled": lambda ca, tmp: served_by(ca.issue_cert("127.0.0.1")),
    "for-the-address-as-a-name": lambda ca, tmp: handmade(
        tmp, x509.DNSName("127.0.0.1"), issuer=signer(ca)
    ),
    "nul-after-the-name": lambda ca, tmp: handmade(
        tmp, x509.DNSName(f"{HOST}\0.evil.example"), issuer=signer(ca)
    ),
    "name-in-the-common-name-beside-others": lambda ca, tmp: handmade(
        tmp, x509.DNSName("evil.example"), common_name=HOST, issuer=signer(ca)
    ),
    "name-as-an-email": lambda ca, tmp: handmade(
        tmp, x509.RFC822Name(HOST), x509.DNSName("evil.example"), issuer=signer(ca)
    ),
    "only-for-clients": lambda ca, tmp: handmade(
        tmp, x509.DNSName(HOST), issuer=signer(ca), usage=ExtendedKeyUsageOID.CLIENT_AUTH
    ),
    "key-of-1024-bits": lambda ca, tmp: handmade(
        tmp, x509.DNSName(HOST), issuer=signer(ca), weak=True
    ),
    "self-signed": lambda ca, tmp: handmade(tmp, x509.DNSName(HOST)),
    "not-valid-yet": lambda ca, tmp: served_by(
        ca.issue_cert(HOST, not_before=NOW + DAY, not_after=NOW + 2 * DAY)
    ),
    "expired": lambda ca, tmp: served_by(ca.issue_cert(HOST, not_after=NOW - DAY)),
    "of-another-authority": lambda ca, tmp: served_by(trustme.CA().issue_cert(HOST)),
    "of-a-namesake-authority": lambda ca, tmp: served_by(
        trustme.CA(organization_name="trustme").issue_cert(HOST)
    ),
    "chain-incomplete": lambda ca, tmp: _without_its_chain(ca, tmp),
}


def _without_its_chain(authority: trustme.CA, tmp_path: Path) -> ssl.SSLContext:
    leaf = authority.create_child_ca().issue_cert(HOST)
    pem, key = tmp_path / "leaf.pem", tmp_path / "leaf.key"
    leaf.cert_chain_pems[0].write_to_path(pem)
    leaf.private_key_pem.write_to_path(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return context


@pytest.mark.parametrize("context", CERTIFICATES.values(), ids=CERTIFICATES)
def test_a_certificate_that_is_almost_right_gets_no_request(
    make: Callable[[], Transport], authority: trustme.CA, tmp_path: Path, context: Contexts
) -> None:
    requests_seen: list[bytes] = []

    def behave(connection: Connection) -> None:
        requests_seen.append(connection.read_request())
        connection.send(OK)

    with receiver(behave, context(authority, tmp_path)) as server:
        with pytest.raises(SSLError) as raised:
            make().send(post(f"https://{HOST}:{server.port}/hook"))
        assert server.connections == 1
    assert classify(raised.value) == "tls"
    assert requests_seen == []


@pytest.mark.parametrize(
    ("host", "name"),
    [
        pytest.param(HOST, HOST, id="its-name"),
        pytest.param(HOST, "*.good.example", id="wildcard"),
        pytest.param("127.0.0.1", "127.0.0.1", id="its-address"),
        pytest.param("bücher.example", "xn--bcher-kva.example", id="international"),
    ],
)
def test_the_trap_works_the_right_certificate_is_accepted(
    make: Callable[[], Transport], authority: trustme.CA, host: str, name: str
) -> None:
    with receiver(hostile.answers(OK), served_by(authority.issue_cert(name))) as server:
        assert make().send(post(f"https://{host}:{server.port}/hook")).status_code == 200


def test_the_handmade_certificates_are_refused_for_their_one_fault_only(
    make: Callable[[], Transport], authority: trustme.CA, tmp_path: Path
) -> None:
    context = handmade(
        tmp_path,
        x509.DNSName(HOST),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        issuer=signer(authority),
        usage=ExtendedKeyUsageOID.SERVER_AUTH,
    )
    with receiver(hostile.answers(OK), context) as server:
        assert make().send(post(f"https://{HOST}:{server.port}/hook")).status_code == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_a_server_with_an_old_protocol_only_gets_no_request(
    make: Callable[[], Transport], authority: trustme.CA, version: ssl.TLSVersion
) -> None:
    context = served_by(authority.issue_cert(HOST))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with receiver(hostile.answers(OK), context) as server, pytest.raises(SSLError):
        make().send(post(f"https://{HOST}:{server.port}/hook"))


def test_a_server_that_wants_our_certificate_gets_none(
    make: Callable[[], Transport], authority: trustme.CA
) -> None:
    context = served_by(authority.issue_cert(HOST))
    context.verify_mode = ssl.CERT_OPTIONAL
    authority.configure_trust(context)
    shown: list[object] = []

    def behave(connection: Connection) -> None:
        connection.read_request()
        assert isinstance(connection.sock, ssl.SSLSocket)
        shown.append(connection.sock.getpeercert())
        connection.send(OK)

    with receiver(behave, context) as server:
        assert make().send(post(f"https://{HOST}:{server.port}/hook")).status_code == 200
    assert shown == [None]


def test_the_name_in_the_handshake_is_the_host_of_the_url(
    make: Callable[[], Transport], authority: trustme.CA
) -> None:
    """Not the name of our own that the connection is made to, which is no business of theirs."""
    asked: list[str | None] = []
    context = served_by(authority.issue_cert(HOST))
    context.sni_callback = lambda sock, name, ctx: asked.append(name)
    with receiver(hostile.answers(OK), context) as server:
        make().send(post(f"https://{HOST}:{server.port}/hook"))
    assert asked == [HOST]


def test_a_connection_to_one_host_is_not_used_for_another_with_the_same_certificate(
    make: Callable[[], Transport], authority: trustme.CA
) -> None:
    hosts: list[bytes] = []

    def behave(connection: Connection) -> None:
        while True:
            request = connection.read_request()
            hosts.append(request.lower().partition(b"\r\nhost: ")[2].partition(b":")[0])
            connection.send(OK)

    context = served_by(authority.issue_cert("*.good.example"))
    with receiver(behave, context) as server:
        transport = make()
        for name in ("a", "b", "a"):
            transport.send(post(f"https://{name}.good.example:{server.port}/"))
        assert server.connections == 2
    assert hosts == [b"a.good.example", b"b.good.example", b"a.good.example"]
