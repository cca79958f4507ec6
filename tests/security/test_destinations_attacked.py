"""URLs and name servers that point inside. Nothing is opened: the socket hook is never asked."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
import requests

from deliveries.transport import Transport, classify
from tests.deliveries.transport.conftest import post
from tests.security.wire import Resolver, Row, Sockets, row

Maker = Callable[..., Transport]

# What the URL is meant to reach is in the id.
URLS = {
    "aws-metadata": "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "aws-metadata-decimal": "http://2852039166/latest/meta-data/",
    "aws-metadata-hex": "http://0xA9FEA9FE/",
    "aws-metadata-octal": "http://0251.0376.0251.0376/",
    "aws-metadata-mixed": "http://0xa9.254.0251.254/",
    "aws-metadata-mapped": "http://[::ffff:169.254.169.254]/",
    "aws-metadata-mapped-hex": "http://[::ffff:a9fe:a9fe]/",
    "aws-metadata-nat64": "http://[64:ff9b::a9fe:a9fe]/",
    "aws-metadata-6to4": "http://[2002:a9fe:a9fe::1]/",
    "aws-metadata-ipv6": "http://[fd00:ec2::254]/latest/meta-data/",
    "aws-metadata-enclosed-digits": "http://①⑥⑨.②⑤④.①⑥⑨.②⑤④/",
    "google-metadata-ipv6": "http://[fd20:ce::254]/computeMetadata/v1/",
    "azure-wireserver": "http://168.63.129.16/machine?comp=goalstate",
    "alibaba-metadata": "http://100.100.100.200/latest/meta-data/",
    "oracle-metadata": "http://192.0.0.192/opc/v1/instance/",
    "container-credentials": "http://169.254.170.2/v2/credentials",
    "this-machine": "http://127.0.0.1:5432/",
    "this-machine-short": "http://127.1/",
    "this-machine-zero": "http://0/",
    "this-machine-0.0.0.0": "http://0.0.0.0:6379/",
    "this-machine-ipv6": "http://[::1]:8000/admin/",
    "this-machine-unspecified": "http://[::]:8000/",
    "this-machine-name": "http://localhost:8000/admin/",
    "this-machine-name-below": "http://redis.localhost:6379/",
    "this-machine-full-width": "http://ｌｏｃａｌｈｏｓｔ/",
    "this-machine-trailing-dot": "http://localhost./",
    "this-machine-zone": "http://[fe80::1%25lo]/",
    "docker-bridge": "http://172.17.0.1:2375/containers/json",
    "kubernetes-api": "https://10.96.0.1/api/v1/secrets",
    "home-router": "http://192.168.0.1/",
    "carrier-nat": "http://100.64.0.1/",
    "multicast": "http://239.255.255.250:1900/",
    "broadcast": "http://255.255.255.255/",
    "unique-local": "http://[fd12:3456:789a::1]/",
    "site-local": "http://[fec0::1]/",
    "teredo": "http://[2001:0:a9fe:a9fe::1]/",
    "isatap": "http://[2a00:1450::5efe:10.0.0.1]/",
    "user-info-hides-host": "http://example.com@127.0.0.1/",
    "user-info-with-port": "http://example.com:80@127.0.0.1/",
    "user-info-encoded": "http://example.com%40127.0.0.1/",
    "backslash-before-host": "http://example.com\\@127.0.0.1/",
    "backslash-as-slash": "http:\\\\127.0.0.1\\",
    "fragment-hides-host": "http://127.0.0.1#.example.com/",
    "question-mark-hides-host": "http://127.0.0.1?.example.com/",
    "semicolon-host": "http://127.0.0.1;.example.com/",
    "three-slashes": "http:///127.0.0.1/",
    "one-slash": "http:/127.0.0.1/",
    "no-slashes": "http:127.0.0.1/",
    "tab-in-scheme": "ht\ttp://127.0.0.1/",
    "line-break-in-host": "http://127.0.0.1\r\nHost: example.com/",
    "line-break-in-path": "http://example.com/ HTTP/1.1\r\nX-Injected: 1\r\n\r\n",
    "nul-in-host": "http://127.0.0.1\0.example.com/",
    "zero-width-in-host": "http://127.0.0.1\u200b/",
    "right-to-left-host": "http://\u202e1.0.0.721/",
    "ideographic-dots": "http://127。0。0。1/",
    "percent-encoded-host": "http://%31%32%37.0.0.1/",
    "double-encoded-host": "http://%2531%2532%2537.0.0.1/",
    "port-overflow": "http://example.com:65616/",
    "port-negative": "http://example.com:-1/",
    "port-signed": "http://example.com:+80/",
    "address-overflow": "http://127.0.0.1.1/",
    "long-host": "http://" + "a" * 300 + ".example/",
    "scheme-file": "file:///etc/passwd",
    "scheme-file-with-host": "file://127.0.0.1/etc/passwd",
    "scheme-gopher": "gopher://127.0.0.1:6379/_FLUSHALL%0d%0a",
    "scheme-dict": "dict://127.0.0.1:11211/stats",
    "scheme-ftp": "ftp://127.0.0.1/",
    "scheme-ldap": "ldap://127.0.0.1/",
    "scheme-smtp": "smtp://127.0.0.1:25/",
    "scheme-telnet": "telnet://127.0.0.1:6379/",
    "scheme-unix": "unix:///var/run/docker.sock",
    "scheme-javascript": "javascript:alert(1)",
    "scheme-data": "data:text/plain,hello",
    "scheme-nested": "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "no-scheme": "127.0.0.1/",
    "scheme-relative": "//127.0.0.1/",
    "empty": "",
}


def bare_post(url: str) -> requests.PreparedRequest:
    """A request with the URL exactly as it is; `requests` would mend some and refuse others."""
    request = post("http://example.com/")
    request.url = url
    return request


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_a_url_that_points_inside_opens_no_socket(
    make_transport: Maker, sockets: Sockets, url: str
) -> None:
    resolver = Resolver([row("10.0.0.1")])
    transport = make_transport(allowed_networks=(), resolver=resolver, open_socket=sockets)
    with pytest.raises(requests.RequestException) as raised:
        transport.send(bare_post(url))
    assert classify(raised.value) == "blocked"
    assert sockets.asked == 0
    assert resolver.asked == []


def test_the_trap_works_a_public_address_is_about_to_be_dialled(
    make_transport: Maker, sockets: Sockets
) -> None:
    """The hook that is never asked above is asked here; what it refuses is not opened."""
    transport = make_transport(
        allowed_networks=(), resolver=Resolver([row("8.8.8.8")]), open_socket=sockets
    )
    for url in ("http://8.8.8.8/", "http://example.com/", "http://[2606:4700:4700::1111]/"):
        with pytest.raises(requests.RequestException) as raised:
            transport.send(post(url))
        assert classify(raised.value) == "internal"
    assert sockets.asked == 3


ANSWERS: dict[str, tuple[list[Row], str]] = {
    "loopback": ([row("127.0.0.1")], "blocked"),
    "loopback-ipv6": ([row("::1")], "blocked"),
    "metadata": ([row("169.254.169.254")], "blocked"),
    "private": ([row("10.0.0.1")], "blocked"),
    "mapped-loopback": ([row("::ffff:127.0.0.1")], "blocked"),
    "nat64-of-private": ([row("64:ff9b::a00:1")], "blocked"),
    "unspecified": ([row("0.0.0.0")], "blocked"),
    "public-then-private": ([row("8.8.8.8"), row("10.0.0.1")], "blocked"),
    "private-then-public": ([row("10.0.0.1"), row("8.8.8.8")], "blocked"),
    "public-ipv4-private-ipv6": ([row("8.8.8.8"), row("fd00::1")], "blocked"),
    "private-among-a-hundred": (
        [row(f"8.8.{n}.8") for n in range(100)] + [row("192.168.1.1")],
        "blocked",
    ),
    "link-local-with-zone": ([row("fe80::1%eth0")], "blocked"),
    "public-with-zone": ([row("2606:4700::1%1")], "blocked"),
    "wrong-family": ([row("127.0.0.1", socket.AF_INET6)], "blocked"),
    "decimal-spelling": ([row("2130706433")], "internal"),
    "hex-spelling": ([row("0x7f.1")], "internal"),
    "leading-zeros": ([row("127.000.000.001")], "internal"),
    "a-name-for-an-address": ([row("localhost")], "internal"),
    "an-injected-pin": ([row("8.8.8.8,127.0.0.1")], "internal"),
    "a-path-for-an-address": ([row("/var/run/docker.sock")], "internal"),
    "empty-address": ([row("")], "internal"),
    "no-address": ([], "dns"),
}


@pytest.mark.parametrize(("rows", "code"), ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_name_server_that_points_inside_opens_no_socket(
    make_transport: Maker, sockets: Sockets, rows: list[Row], code: str, scheme: str
) -> None:
    resolver = Resolver(rows)
    transport = make_transport(allowed_networks=(), resolver=resolver, open_socket=sockets)
    with pytest.raises(requests.RequestException) as raised:
        transport.send(post(f"{scheme}://attacker.example/hook"))
    assert classify(raised.value) == code
    assert sockets.asked == 0
    assert resolver.asked == ["attacker.example"]


def test_a_name_that_is_bound_anew_after_it_was_judged_opens_no_socket(
    make_transport: Maker, sockets: Sockets
) -> None:
    """The first answer is public, each later one is not; nothing is remembered in between."""
    resolver = Resolver([row("8.8.8.8")], [row("169.254.169.254")])
    transport = make_transport(
        allowed_networks=(),
        resolver=resolver,
        open_socket=sockets,
        dns_cache=0.0,
        dns_stale=0.0,
    )
    codes = []
    for _ in range(3):
        with pytest.raises(requests.RequestException) as raised:
            transport.send(post("http://rebound.example/"))
        codes.append(classify(raised.value))
    assert codes == ["internal", "blocked", "blocked"]
    assert sockets.asked == 1


def test_an_allowed_network_opens_neither_its_neighbours_nor_metadata(
    make_transport: Maker, sockets: Sockets
) -> None:
    from ipaddress import ip_network

    transport = make_transport(
        allowed_networks=(ip_network("10.1.0.0/16"), ip_network("169.254.0.0/16")),
        open_socket=sockets,
    )
    codes = {}
    for url in ("http://10.1.2.3/", "http://10.2.0.1/", "http://169.254.169.254/"):
        with pytest.raises(requests.RequestException) as raised:
            transport.send(post(url))
        codes[url] = classify(raised.value)
    assert list(codes.values()) == ["internal", "blocked", "blocked"]
    assert sockets.asked == 1


def test_a_name_with_thousands_of_addresses_does_not_hold_up_others(
    make_transport: Maker, sockets: Sockets
) -> None:
    """As many as fit into the largest answer that a name server can give."""
    crowd = [row(f"8.8.{n // 250}.{n % 250}") for n in range(4000)]
    transport = make_transport(
        allowed_networks=(), resolver=Resolver(crowd), open_socket=sockets, timeout=5.0
    )
    answers = transport.send_many([post("http://crowd.example/"), post("http://8.8.4.4/")])
    assert [classify(one) for one in answers if isinstance(one, Exception)] == ["internal"] * 2
