"""Whatever the guard accepts, libcurl dials the host that the guard saw.

Two proofs: libcurl alone, stopped at the moment it would open a socket; and the transport as it
is, sending to a receiver on loopback that is told every name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

import pycurl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deliveries.transport import Transport
from subscriptions.destinations import Destination, DestinationRefused, parse_url
from tests.deliveries.transport.conftest import LOOPBACK, post
from tests.deliveries.transport.hostile import OK, Connection, Receiver, receiver
from tests.security.properties import FIXED
from tests.security.wire import Resolver, row

# What the name that the guard saw means, and what every other name would mean.
SEEN, OTHER = "198.51.100.1", "198.51.100.2"

labels = st.one_of(
    st.sampled_from(["a", "example", "com", "xn--bcher-kva", "0x7f", "08", "1e1", "a_b", "A"]),
    st.text(alphabet="aZ09-_é１ｅ。．ß\u200d%", min_size=1, max_size=6),
)
names = st.lists(
    st.sampled_from(["a", "example", "com", "xn--bcher-kva", "a-b", "a_b", "1e1", "X", "ü", "ß"]),
    min_size=1,
    max_size=4,
).map(".".join)
odd_hosts = st.one_of(
    st.lists(labels, min_size=1, max_size=4).map(".".join),
    st.ip_addresses(v=4).map(lambda one: str(int(one))),
    st.ip_addresses(v=4).map(lambda one: ".".join(map(hex, one.packed))),
    st.ip_addresses(v=4).map(lambda one: ".".join(f"0{part:o}" for part in one.packed)),
    st.ip_addresses(v=4).map(lambda one: f"[::ffff:{one}]"),
    st.ip_addresses(v=6).map(lambda one: f"[{one}]"),
    st.ip_addresses(v=4).map(str),
)
hosts = st.one_of(
    names,
    names,
    st.integers(0, 2**24 - 1).map(lambda low: str(ipaddress.IPv4Address(52 << 24 | low))),
    st.ip_addresses(v=6, network="2600::/12").map(lambda one: f"[{one}]"),
    st.ip_addresses(v=6, network="2a00::/12").map(lambda one: f"[{one.exploded}]"),
    odd_hosts,
)
good_ports = st.one_of(st.just(""), st.integers(1, 65535).map(":{}".format))
odd_ports = st.sampled_from([":", ":+1", ":0", ":00080", ":65536", ":-1", ":8０", ":80:80"])
ports = st.one_of(good_ports, good_ports, good_ports, odd_ports)
paths = st.one_of(
    st.sampled_from(["", "/", "/a/../..//b", "/%2e%2e/", "/@127.0.0.1/", "/?", "?@x", "?a:1@b"]),
    st.text(alphabet="/.?@:;%20ab&=~!'()*+,[]{}|^`\"<>é", max_size=12).map("/{}".format),
)
noise = st.sampled_from(
    [*[""] * 20, "@", "\\", "#", "%00", "\t", "\n", "/", ":", "?", "[", "]", ";", " ", "。"]
)


@st.composite
def urls(draw: Callable[..., Any]) -> str:
    """Mostly a URL, often with something odd put in anywhere."""
    scheme = draw(st.sampled_from(["http://", "https://", "HTTP://", "hTTps://"]))
    text: str = scheme + draw(hosts) + draw(ports) + draw(paths)
    odd = draw(noise)
    place = draw(st.integers(0, len(text)))
    return text[:place] + odd + text[place:]


def dialled(destination: Destination) -> tuple[str, int]:
    """The address and the port that libcurl is about to dial. Nothing is opened or looked up."""
    asked: list[tuple[str, int]] = []

    def open_socket(purpose: int, address: Any) -> int:
        asked.append(address[3][:2])
        return int(pycurl.SOCKET_BAD)

    curl = pycurl.Curl()
    for option, value in (
        (pycurl.URL, destination.url),
        (pycurl.PATH_AS_IS, 1),
        (pycurl.PROXY, ""),
        (pycurl.NOPROXY, "*"),
        (pycurl.OPENSOCKETFUNCTION, open_socket),
        (pycurl.TIMEOUT_MS, 2000),
    ):
        curl.setopt(option, value)
    if destination.address is None:
        # With an answer for every name at this port, libcurl has nobody to ask.
        names = [f"{destination.host}:{destination.port}:{SEEN}", f"*:{destination.port}:{OTHER}"]
        curl.setopt(pycurl.RESOLVE, names)
    with pytest.raises(pycurl.error):
        curl.perform()
    curl.close()
    assert len(asked) == 1, asked
    return asked[0]


def check_dialled(url: str) -> Destination | None:
    """None if the guard refuses the URL."""
    try:
        destination = parse_url(url, ())
    except DestinationRefused:
        return None
    # Both must read the same port, or a name at another port would be asked for.
    port = pycurl.CurlUrl(destination.url).getpart(pycurl.UPART_PORT, pycurl.U_DEFAULT_PORT)
    assert int(port) == destination.port
    address, port_dialled = dialled(destination)
    assert port_dialled == destination.port
    if destination.address is None:
        assert address == SEEN, "libcurl looked another name up"
    else:
        assert ipaddress.ip_address(address) == destination.address
    return destination


def test_libcurl_dials_the_host_that_the_guard_saw() -> None:
    accepted: set[str] = set()

    @settings(FIXED, max_examples=1200)
    @given(urls())
    @example("http://example.com/")
    @example("https://EXAMPLE.com:08443/a?b")
    @example("http://8.8.8.8:1/")
    @example("https://[2606:4700::1111]/")
    @example("http://bücher.example/")
    @example("http://1.1.1.1.example/")
    @example("http://a:80@b/")
    @example("http://8.8.8.8\\@127.0.0.1/")
    def fuzz(url: str) -> None:
        destination = check_dialled(url)
        if destination is not None:
            accepted.add(destination.host)

    fuzz()
    # Enough was accepted to mean something: a guard that refuses all would pass otherwise. The
    # examples are not the same on every machine (Hypothesis also draws constants that it finds in
    # the modules that happen to be loaded), so the numbers are well below what is usual.
    assert len(accepted) > 50
    assert sum(":" in host for host in accepted) >= 5
    assert sum("xn--" in host for host in accepted) >= 5


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[Receiver, list[tuple[bytes, bytes]], Resolver, Transport]]:
    """A receiver on loopback that every name leads to, with what it was told of each request."""
    seen: list[tuple[bytes, bytes]] = []

    def behave(connection: Connection) -> None:
        while True:
            head = connection.read_request().partition(b"\r\n\r\n")[0]
            first, *lines = head.split(b"\r\n")
            hosts_told = [line[6:] for line in lines if line.lower().startswith(b"host: ")]
            seen.append((first, b"|".join(hosts_told)))
            connection.send(OK)

    resolver = Resolver([row("127.0.0.1")])
    transport = Transport(timeout=5.0, allowed_networks=LOOPBACK, resolver=resolver)
    with receiver(behave) as server:
        yield server, seen, resolver, transport
        transport.close(0)


@settings(FIXED, max_examples=300)
@given(st.one_of(names, odd_hosts), paths, noise, st.data())
def test_the_receiver_is_told_the_host_and_the_path_that_the_guard_saw(
    told: Any, host: str, path: str, odd: str, data: Any
) -> None:
    server, seen, resolver, transport = told
    text = f"http://{host}:{server.port}{path}"
    place = data.draw(st.integers(7, len(text)))
    url = text[:place] + odd + text[place:]
    try:
        destination = parse_url(url, LOOPBACK)
    except DestinationRefused:
        return
    if destination.port != server.port or destination.address is not None:
        return
    del seen[:], resolver.asked[:]
    request = post("http://example.com/")
    request.url = url
    assert transport.send(request).status_code == 200
    assert resolver.asked in ([], [destination.host]), "nobody else is looked up"
    ((first, host_told),) = seen
    tail = destination.url.split("/", 3)[3]
    assert _escapes_alike(first.decode()) == _escapes_alike(f"POST /{tail} HTTP/1.1")
    assert host_told.decode() == f"{destination.host}:{destination.port}"


def _escapes_alike(text: str) -> str:
    """libcurl writes escapes in capitals, which means the same (RFC 3986, section 6.2.2.1)."""
    return re.sub("%[0-9a-fA-F]{2}", lambda found: found[0].upper(), text)
