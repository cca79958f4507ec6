"""The destination guard: every spelling of a forbidden address is seen for what it is."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

import pycurl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from subscriptions.destinations import (
    METADATA,
    DestinationRefused,
    MalformedURL,
    UnsupportedScheme,
    check_address,
    check_addresses,
    check_url,
    parse_url,
)


def networks(*names: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(name) for name in names)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.255.255.255",
        "10.0.0.0", "10.255.255.255",
        "100.64.0.0", "100.127.255.255",
        "127.0.0.0", "127.0.0.1", "127.255.255.255",
        "169.254.0.0", "169.254.169.254", "169.254.170.2", "169.254.255.255",
        "172.16.0.0", "172.31.255.255",
        "192.0.0.0", "192.0.0.8", "192.0.0.9", "192.0.0.170", "192.0.0.192",
        "192.0.2.1", "192.88.99.1", "192.168.0.0", "192.168.255.255",
        "198.18.0.0", "198.19.255.255", "198.51.100.7", "203.0.113.7",
        "168.63.129.16", "100.100.100.200",
        "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::2", "::7f00:1", "::8.8.8.8",
        "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1", "64:ff9b:1::808:808", "64:ff9b:2::1",
        "100::1", "100:0:0:1::1", "200::1", "400::1",
        "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:2::1", "2001:10::1", "2001:20::1", "2001:1ff::1", "2001:db8::1",
        "2002:7f00:1::", "2002:808:808::1", "3fff::1", "5f00::1",
        "2a00:1450::5efe:7f00:1", "2a00:1450::200:5efe:a00:1",
        "4000::1", "6000::1", "8000::1", "c000::1", "e000::1",
        "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "febf::1", "fec0::1",
        "fe80::1%eth0", "2606:4700::1%eth0",
        "ff02::1", "ff0e::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    reason = check_address(address, ())
    assert reason is not None
    assert reason.startswith(str(ipaddress.ip_address(address)))


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0",
        "126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255",
        "172.32.0.0", "192.0.1.0", "192.167.255.255", "192.169.0.0", "198.17.255.255",
        "198.20.0.0", "223.255.255.255",
        "2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001::1", "2003::1",
        "64:ff9b::808:808", "2a00:1450::5efe:808:808", "2001:200::1",
    ],
)  # fmt: skip
def test_a_public_address_may_be_dialled(address: str) -> None:
    assert check_address(address, ()) is None


def test_the_reason_names_the_address_and_the_source() -> None:
    assert check_address("127.0.0.1", ()) == "127.0.0.1 is loopback (RFC 1122)"


@given(st.ip_addresses(v=4))
def test_whatever_the_standard_library_calls_private_is_refused(
    address: ipaddress.IPv4Address,
) -> None:
    if address.is_private or address.is_multicast or address.is_reserved or address.is_loopback:
        assert check_address(address, ()) is not None


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_hidden_in_ipv6_is_never_less_forbidden(
    inner: ipaddress.IPv4Address,
) -> None:
    value = int(inner)
    hidden = [
        ipaddress.IPv6Address(value),
        ipaddress.IPv6Address(0xFFFF << 32 | value),
        ipaddress.IPv6Address(0xFFFF << 48 | value),
        ipaddress.IPv6Address(0x64FF9B << 96 | value),
        ipaddress.IPv6Address(0x2002 << 112 | value << 80),
        ipaddress.IPv6Address(0x20010000 << 96 | (value ^ 0xFFFFFFFF)),
        ipaddress.IPv6Address(0x2A001450 << 96 | 0x5EFE << 32 | value),
    ]
    if check_address(inner, ()) is not None:
        assert all(check_address(address, ()) is not None for address in hidden)
        # Not even where an operator has allowed all of IPv6.
        everything = networks("::/0")
        assert all(check_address(a, everything) is not None for a in hidden if int(a) > 1)


def test_an_allowed_network_is_let_through_and_nothing_beside_it() -> None:
    allowed = networks("10.1.0.0/16")
    assert check_address("10.1.2.3", allowed) is None
    assert check_address("10.2.0.1", allowed) is not None


@pytest.mark.parametrize("address", [str(address) for address in METADATA])
def test_a_metadata_service_is_opened_by_its_own_address_only(address: str) -> None:
    assert check_address(address, networks("0.0.0.0/0", "::/0")) is not None
    assert check_address(address, networks(address)) is None


def test_one_forbidden_address_refuses_the_host() -> None:
    check_addresses("good.example", ["8.8.8.8", "2606:4700::1"], ())
    with pytest.raises(DestinationRefused, match=r"evil\.example is refused: 10\.0\.0\.1 is priv"):
        check_addresses("evil.example", ["8.8.8.8", "10.0.0.1", "1.1.1.1"], ())


LOOPBACK_SPELLINGS = [
    "127.0.0.1", "2130706433", "0x7f000001", "0x7F.1", "0177.0.0.1", "017700000001", "127.1",
    "127.0.1", "0x7f.0.0.0x1", "00000000177.0.0.01", "127.0.0.1.",
    "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[0:0:0:0:0:0:0:1]",
    "[64:ff9b::7f00:1]", "[2002:7f00:1::1]",
    "１２７.0.0.1", "127。0。0。1", "①②⑦.⓪.⓪.①", "127．0．0．1", "０x7f.1",
    "localhost", "LOCALHOST", "a.b.localhost", "ｌｏｃａｌｈｏｓｔ",
]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACK_SPELLINGS)
def test_every_spelling_of_loopback_is_refused(host: str) -> None:
    with pytest.raises(DestinationRefused):
        check_url(f"http://{host}/", ())
    with pytest.raises(DestinationRefused):
        check_url(f"https://{host}:8443/a?b", ())


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.1."])
def test_an_unusual_spelling_is_refused_even_where_the_address_is_allowed(host: str) -> None:
    with pytest.raises(MalformedURL, match=r"means 127\.0\.0\.1; write that instead"):
        check_url(f"http://{host}/", networks("127.0.0.0/8"))


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("127.0.0.1", "127.0.0.0/8"),
        ("localhost", "127.0.0.0/8"),
        ("10.1.2.3", "10.0.0.0/8"),
        ("[fd12::1]", "fc00::/7"),
        ("[4000::1]", "4000::1/128"),
    ],
)
def test_a_refusal_names_the_network_that_would_have_to_be_allowed(host: str, network: str) -> None:
    with pytest.raises(DestinationRefused) as refused:
        check_url(f"http://{host}/", ())
    assert re.findall(r"[0-9a-f.:]+/[0-9]+", str(refused.value)) == [network]
    assert check_url(f"http://{host}/", networks(network))


@pytest.mark.parametrize("host", [*map(str, METADATA), "::ffff:169.254.169.254"])
def test_nobody_is_told_how_to_allow_a_metadata_service(host: str) -> None:
    with pytest.raises(DestinationRefused) as refused:
        check_url(f"http://[{host}]/" if ":" in host else f"http://{host}/", ())
    assert "WEBHOOKS_ALLOWED_NETWORKS" not in str(refused.value)


def test_localhost_is_accepted_where_loopback_is_allowed() -> None:
    assert check_url("http://localhost:8000/", networks("127.0.0.0/8")) == "http://localhost:8000/"


@pytest.mark.parametrize(
    ("url", "normalised"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTPS://Example.COM:443/Path?Q=1", "https://example.com/Path?Q=1"),
        ("http://example.com:80?a", "http://example.com/?a"),
        ("http://example.com:0080/", "http://example.com/"),
        ("http://example.com:8080/a/../b", "http://example.com:8080/a/../b"),
        ("https://bücher.example/ü?ü=%20", "https://xn--bcher-kva.example/%C3%BC?%C3%BC=%20"),
        ("https://ｅxample。com/", "https://example.com/"),
        ("https://my_service.example/", "https://my_service.example/"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2606:4700:0::1111]:444/", "https://[2606:4700::1111]:444/"),
    ],
)
def test_a_good_url_is_normalised(url: str, normalised: str) -> None:
    assert check_url(url, ()) == normalised
    assert check_url(normalised, ()) == normalised


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "not a full URL"),
        ("example.com/hook", "not a full URL"),
        ("//example.com/", "not a full URL"),
        ("http:/example.com", "not a full URL"),
        ("http:///hook", "no valid host"),
        ("http://:80/", "no valid host"),
        ("http://a:b:c/", "has the port"),
        ("http://[::1/", "no valid host"),
        ("http://[::1%25lo]/", "no valid host"),
        ("http://[v1.a]/", "no valid host"),
        ("http://[1:2:3]/", "not an IPv6 address"),
        ("http://example.com:0/", "has the port '0'"),
        ("http://example.com:65536/", "has the port '65536'"),
        ("http://example.com:/", "has the port ''"),
        ("http://example.com:８０/", "has the port"),
        ("http://example.com:80a/", "has the port"),
        ("http://user:hunter2@example.com/", "user name or password"),
        ("http://good.example@127.0.0.1/", "user name or password"),
        ("http://example.com\\@127.0.0.1/", "backslash"),
        ("http://127.0.0.1\\.example.com/", "backslash"),
        ("http://example.com/a b", "white space"),
        ("http://example.com/\r\nX: y", "white space"),
        (" http://example.com/", "white space"),
        ("http://exa\tmple.com/", "white space"),
        ("http://example.com/\0", "white space"),
        ("http://exam\u200bple.com/", "white space"),
        ("http://exam\xadple.com/", "white space"),
        ("http://example.com/#part", "fragment"),
        ("http://example.com#@127.0.0.1/", "fragment"),
        ("http://example.com./", "ends with a dot"),
        ("http://example..com/", "not a valid"),
        ("http://.example.com/", "not a valid"),
        ("http://-a.example/", "not a valid"),
        ("http://ex%61mple.com/", "not a valid"),
        ("http://exa,mple.com/", "not a valid"),
        ("http://exa$mple.com/", "not a valid"),
        ("http://ex／ample.com/", "not a valid"),
        ("http://" + "a" * 64 + ".com/", "not a valid"),
        ("http://" + "a." * 130 + "com/", "not a valid"),
        ("http://1.2.3.4.5/", "ends with a number"),
        ("http://256.1.1.1/", "ends with a number"),
        ("http://1.2.3.256/", "ends with a number"),
        ("http://4294967296/", "ends with a number"),
        ("http://0x/", "ends with a number"),
        ("http://08.1.1.1/", "ends with a number"),
        ("http://example.0x7f/", "ends with a number"),
        ("http://example.com/" + "a" * 2000, "at most 2000"),
    ],
)
def test_a_url_that_could_be_read_in_two_ways_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(MalformedURL, match=sentence):
        check_url(url, ())


@pytest.mark.parametrize(
    "url",
    ["ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "ws://example.com/"],
)
def test_only_http_and_https_are_spoken(url: str) -> None:
    with pytest.raises(UnsupportedScheme, match="use https or http"):
        check_url(url, ())


@pytest.mark.parametrize(
    "url",
    ["http://user:hunter2@example.com/", "http://10.0.0.1/hunter2?hunter2", "http://a b/hunter2",
     "http://u:hunter2@exam ple.com/", "http:\\\\u:hunter2@example.com", "https://1.2.3.4.5/hunter2"],
)  # fmt: skip
def test_an_error_does_not_repeat_what_may_be_a_secret(url: str) -> None:
    with pytest.raises(DestinationRefused) as raised:
        check_url(url, ())
    assert "hunter2" not in str(raised.value)


_PIECES = st.sampled_from(
    ["http", "https", "://", "/", "\\", "@", ":", ".", "127", "1", "0x7f", "0177", "example",
     "com", "[", "]", "::1", "::ffff:", "%", "%2e", "%00", "#", "?", " ", "\t", "\n", "\0", "１",
     "。", "ß", "localhost", "80", "-", "_", "xn--", "\u200d", "a", "8.8.8.8", "\xad", "，", "／",
     "＠", ";"]
)  # fmt: skip


@pytest.mark.skipif(not hasattr(pycurl, "CurlUrl"), reason="pycurl before 7.48 reads no URLs")
@given(st.lists(_PIECES, max_size=9).map("".join), st.sampled_from(["http://", "https://", ""]))
@example("8.8.8.8/", "http://")
@example("example.com:80/..//@x", "http://")
def test_what_the_guard_accepts_libcurl_reads_in_the_same_way(text: str, scheme: str) -> None:
    try:
        destination = parse_url(scheme + text, ())
    except DestinationRefused:
        return
    libcurl = pycurl.CurlUrl(destination.url, pycurl.U_PATH_AS_IS)
    assert libcurl.scheme == destination.scheme
    assert libcurl.host.strip("[]") == destination.host
    assert int(libcurl.getpart(pycurl.UPART_PORT, pycurl.U_DEFAULT_PORT)) == destination.port
    assert libcurl.user is None
    split = urlsplit(destination.url)
    assert (split.hostname, split.username, split.fragment) == (destination.host, None, "")
