"""Where a webhook may be sent: the destination guard.

Two questions, both answered by pure functions. `check_url` asks, when a subscription is
saved, whether a URL is one that we would ever dial; it never asks the DNS, so saving does
not depend on it. `check_address` asks, when a request is sent, whether an address may be
dialled; the transport asks it for every address that a host name resolves to, and again
at the moment a socket is opened.

`allowed` are the networks that an operator has opened (`WEBHOOKS_ALLOWED_NETWORKS`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

import idna

from subscriptions.conf import Network, conf

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL_CHARACTERS = 2000


class DestinationRefused(ValueError):
    """This URL or address is not one that we send to. The text is a sentence for operators."""


class MalformedURL(DestinationRefused):
    """This is not a URL that we can read in one way only."""


class UnsupportedScheme(MalformedURL):
    """A URL, but neither http nor https."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A network that is refused: `what` it is, and the `source` that says so."""

    network: Network
    what: str
    source: str


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL taken apart. `url` is its normalised spelling, the one to hand to the transport.

    `host` is ASCII and lower case, without brackets; `address` is set if it is a literal.
    """

    url: str
    scheme: str
    host: str
    port: int
    address: Address | None


def _rules(*rows: tuple[str, str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(ipaddress.ip_network(net), what, source) for net, what, source in rows)


# The IANA IPv4 Special-Purpose Address Registry: every block that is not "Globally Reachable".
# 192.0.0.0/24 is refused as a whole: the two anycast addresses in it that are global
# (RFC 7723, RFC 8155) are for PCP and TURN discovery, never for a web server.
IPV4_RULES = _rules(
    ("0.0.0.0/8", "this host on this network", "RFC 791"),
    ("10.0.0.0/8", "private", "RFC 1918"),
    ("100.64.0.0/10", "shared address space of carriers (CGNAT)", "RFC 6598"),
    ("127.0.0.0/8", "loopback", "RFC 1122"),
    ("169.254.0.0/16", "link-local", "RFC 3927"),
    ("172.16.0.0/12", "private", "RFC 1918"),
    ("192.0.0.0/24", "reserved for IETF protocols", "RFC 6890"),
    ("192.0.2.0/24", "for documentation only", "RFC 5737"),
    ("192.88.99.0/24", "a deprecated 6to4 relay", "RFC 7526"),
    ("192.168.0.0/16", "private", "RFC 1918"),
    ("198.18.0.0/15", "for benchmarks only", "RFC 2544"),
    ("198.51.100.0/24", "for documentation only", "RFC 5737"),
    ("203.0.113.0/24", "for documentation only", "RFC 5737"),
    ("224.0.0.0/4", "multicast", "RFC 1112"),
    ("255.255.255.255/32", "broadcast", "RFC 8190"),
    ("240.0.0.0/4", "reserved", "RFC 1112"),
)

# The IANA IPv6 Special-Purpose Address Registry. 2001::/23 is refused as a whole, although a
# few blocks in it are global (AMT, ORCHIDv2, DRIP): none of them is for web servers.
IPV6_RULES = _rules(
    ("::/128", "the unspecified address", "RFC 4291"),
    ("::1/128", "loopback", "RFC 4291"),
    ("::ffff:0:0/96", "an IPv4 address in IPv6 (mapped)", "RFC 4291"),
    ("::ffff:0:0:0/96", "an IPv4 address in IPv6 (translated)", "RFC 2765"),
    ("::/96", "an IPv4 address in IPv6 (compatible)", "RFC 4291"),
    ("64:ff9b:1::/48", "for local IPv4/IPv6 translation", "RFC 8215"),
    ("100::/64", "discard-only", "RFC 6666"),
    ("100:0:0:1::/64", "the dummy prefix", "RFC 9780"),
    ("2001::/32", "Teredo", "RFC 4380"),
    ("2001:2::/48", "for benchmarks only", "RFC 5180"),
    ("2001:10::/28", "deprecated (ORCHID)", "RFC 4843"),
    ("2001:db8::/32", "for documentation only", "RFC 3849"),
    ("2001::/23", "reserved for IETF protocols", "RFC 2928"),
    ("2002::/16", "6to4", "RFC 3056"),
    ("3fff::/20", "for documentation only", "RFC 9637"),
    ("5f00::/16", "for segment routing", "RFC 9602"),
    ("fc00::/7", "private (unique-local)", "RFC 4193"),
    ("fe80::/10", "link-local", "RFC 4291"),
    ("fec0::/10", "site-local", "RFC 3879"),
    ("ff00::/8", "multicast", "RFC 4291"),
)

# All that IANA has given out as global unicast (RFC 4291, section 2.4), and the one prefix
# outside it that stands for public IPv4 addresses (RFC 6052).
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

# Where clouds answer with credentials. Only a network that names the one address opens it, so
# that allowing a private network for receivers does not hand out the machine's own keys.
METADATA = {
    ipaddress.ip_address(address): cloud
    for address, cloud in (
        ("169.254.169.254", "AWS, Azure, Google Cloud and others"),
        ("169.254.170.2", "AWS containers"),
        ("169.254.170.23", "AWS containers"),
        ("168.63.129.16", "Azure"),
        ("100.100.100.200", "Alibaba Cloud"),
        ("192.0.0.192", "Oracle Cloud"),
        ("fd00:ec2::254", "AWS"),
        ("fd00:ec2::23", "AWS containers"),
        ("fd20:ce::254", "Google Cloud"),
        ("fd00:c1::a9fe:a9fe", "Oracle Cloud"),
    )
}


def check_address(address: str | Address, allowed: Sequence[Network] | None = None) -> str | None:
    """None if `address` may be dialled, else the reason: "127.0.0.1 is loopback (RFC 1122)".

    An IPv6 address that carries an IPv4 address is judged by both. `allowed` defaults to
    the setting. Raises `ValueError` if `address` is no address.
    """
    if allowed is None:
        allowed = conf().allowed_networks
    if isinstance(address, str):
        address = ipaddress.ip_address(address)
    refusal = _refusal(address, allowed)
    return None if refusal is None else refusal.reason


class _Refusal(NamedTuple):
    """Why an address is refused, and the network that an operator may allow, if there is one."""

    reason: str
    network: Network | None = None

    @property
    def hint(self) -> str:
        """What an operator can do, as a sentence to append; nothing for metadata services."""
        if self.network is None:
            return ""
        return f" To send there, add {self.network} or a part of it to WEBHOOKS_ALLOWED_NETWORKS."


def _refusal(address: Address, allowed: Sequence[Network]) -> _Refusal | None:
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return _Refusal(f"{address} has a zone, which means something on this machine only")
        for inner in embedded_ipv4(address):
            refusal = _refusal(inner, allowed)
            if refusal is not None:
                return _Refusal(f"{address} carries {inner}; {refusal.reason}")
    if address in METADATA:
        exact = ipaddress.ip_network(address)
        if exact in allowed:
            return None
        return _Refusal(f"{address} is a metadata service ({METADATA[address]})")
    if any(address in network for network in allowed):
        return None
    for rule in IPV4_RULES if isinstance(address, ipaddress.IPv4Address) else IPV6_RULES:
        if address in rule.network:
            return _Refusal(f"{address} is {rule.what} ({rule.source})", rule.network)
    if (
        isinstance(address, ipaddress.IPv6Address)
        and address not in _GLOBAL_UNICAST
        and address not in _NAT64
    ):
        return _Refusal(
            f"{address} is not global unicast (RFC 4291)", ipaddress.ip_network(address)
        )
    return None


def embedded_ipv4(address: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, ...]:
    """The IPv4 addresses that routers or translators may take an IPv6 address to mean.

    Mapped and compatible (RFC 4291, section 2.5.5), translated (RFC 2765), 6to4 (RFC 3056),
    Teredo's server and client (RFC 4380), NAT64 (RFC 6052), ISATAP (RFC 5214, section 6.1).
    """
    value = int(address)
    low = ipaddress.IPv4Address(value & 0xFFFFFFFF)
    top = value >> 96
    if value >> 32 in (0, 0xFFFF, 0xFFFF0000) and value > 1:
        return (low,)
    if address in _NAT64:
        return (low,)
    if top >> 16 == 0x2002:
        return (ipaddress.IPv4Address(value >> 80 & 0xFFFFFFFF),)
    if top == 0x20010000:
        server = ipaddress.IPv4Address(value >> 64 & 0xFFFFFFFF)
        return (server, ipaddress.IPv4Address(~value & 0xFFFFFFFF))
    if value >> 32 & 0xFCFFFFFF == 0x00005EFE:
        return (low,)
    return ()


def check_addresses(
    host: str, addresses: Iterable[str | Address], allowed: Sequence[Network] | None = None
) -> None:
    """Raise `DestinationRefused` if any of the addresses of `host` may not be dialled.

    One is enough: a host that is half inside is either a mistake or an attack, and which of
    the addresses would be dialled is chance.
    """
    for address in addresses:
        reason = check_address(address, allowed)
        if reason is not None:
            raise DestinationRefused(f"{host} is refused: {reason}.")


def check_url(url: str, allowed: Sequence[Network] | None = None) -> str:
    """The normalised spelling of `url`, if it is one that we would send to.

    Judged are the syntax and a literal address. A host name is not resolved: what it means
    is judged whenever a request is sent. Raises `DestinationRefused`, and its subclass
    `MalformedURL` if the URL itself is at fault.
    """
    return parse_url(url, allowed).url


# RFC 3986, but narrower: no user info, no fragment, and nothing that any two parsers could
# read differently (backslashes, spaces, control characters, percent signs in the host).
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
    r"(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?"
)
_AUTHORITY = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:]+))(?::(?P<port>.*))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_ORIGIN = re.compile(r"(?:[^:/?#\\]*:)?(?://)?[^/?#\\]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def parse_url(url: str, allowed: Sequence[Network] | None = None) -> Destination:
    """Take `url` apart and judge it as `check_url` does. Raises as it does."""
    if allowed is None:
        allowed = conf().allowed_networks
    shown = _shown(url)
    if len(url) > MAX_URL_CHARACTERS:
        raise MalformedURL(
            f"The URL has {len(url)} characters; at most {MAX_URL_CHARACTERS} are accepted."
        )
    if any(character.isspace() or not character.isprintable() for character in url):
        raise MalformedURL(
            f"The URL {shown} contains white space or a character that does not print; remove it."
        )
    if "\\" in url:
        raise MalformedURL(f"The URL {shown} contains a backslash; write / or %5C.")
    if "#" in url:
        raise MalformedURL(f"The URL {shown} has a fragment (#…), which is never sent; remove it.")
    match = _URL.fullmatch(url)
    if match is None:
        raise MalformedURL(
            f"{shown} is not a full URL; write one such as https://example.com/webhook."
        )
    scheme = match["scheme"].lower()
    if scheme not in _DEFAULT_PORTS:
        raise UnsupportedScheme(f"The URL {shown} begins with {scheme}:; use https or http.")
    authority = match["authority"]
    if "@" in authority:
        # Not shown: what stands before the @ is a password.
        raise MalformedURL(
            "The URL contains a user name or password (…@); remove it and use a header instead."
        )
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise MalformedURL(f"The URL {shown} has no valid host; check what follows ://.")
    port = _port(parts["port"], scheme, shown)
    host, address = (
        _ipv6_host(parts["ipv6"], shown)
        if parts["ipv6"] is not None
        else _name_or_ipv4(parts["name"], shown)
    )
    if address is not None:
        refusal = _refusal(address, allowed)
        if refusal is not None:
            raise DestinationRefused(
                f"The host of {shown} is refused: {refusal.reason}.{refusal.hint}"
            )
        if host != str(address):
            # Octal, hex and short spellings: some parser somewhere reads them differently.
            raise MalformedURL(f"The host of {shown} means {address}; write that instead.")
    elif _is_localhost(host) and all(check_address(a, allowed) for a in ("127.0.0.1", "::1")):
        raise DestinationRefused(
            f"The host of {shown} is refused: {host} is this machine itself (RFC 6761). "
            "To send there, add 127.0.0.0/8 to WEBHOOKS_ALLOWED_NETWORKS."
        )
    bracketed = f"[{host}]" if ":" in host else host
    suffix = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    tail = _quoted((match["path"] or "/") + (match["query"] or ""))
    return Destination(f"{scheme}://{bracketed}{suffix}{tail}", scheme, host, port, address)


def _shown(url: str) -> str:
    """The URL for a message, without what may be a secret: user info, path and query."""
    origin = _ORIGIN.match(url)
    text = re.sub(r"//.*@", "//…@", origin[0] if origin else "")[:100]
    return repr(text if text == url else f"{text}…")


def _is_localhost(host: str) -> bool:
    return host == "localhost" or host.endswith(".localhost")


def _port(text: str | None, scheme: str, shown: str) -> int:
    if text is None:
        return _DEFAULT_PORTS[scheme]
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or not 1 <= int(text) <= 65535:
        raise MalformedURL(
            f"The URL {shown} has the port {text[:20]!r}; use a number from 1 to 65535, or none."
        )
    return int(text)


def _ipv6_host(text: str, shown: str) -> tuple[str, Address]:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise MalformedURL(
            f"The URL {shown} has the host [{text[:50]}], which is not an IPv6 address."
        ) from None
    return str(address), address


def _name_or_ipv4(text: str, shown: str) -> tuple[str, Address | None]:
    host = _ascii_host(text, shown)
    labels = host.split(".")
    if host.endswith(".") and len(labels) > 1:
        labels.pop()
    if _NUMBER.fullmatch(labels[-1]):
        # A host whose last label is a number is an IPv4 address to every C library.
        return host, _inet_aton(labels, shown)
    if host.endswith("."):
        raise MalformedURL(f"The host of {shown} ends with a dot; leave the dot out.")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise MalformedURL(
            f"The URL {shown} has the host {text[:100]!r}, which is not a valid host name."
        )
    return host, None


def _ascii_host(text: str, shown: str) -> str:
    if text.isascii():
        return text.lower()
    try:
        return idna.encode(text, uts46=True, transitional=False).decode("ascii").lower()
    except UnicodeError as error:
        raise MalformedURL(
            f"The URL {shown} has the host {text[:100]!r}, which is not a valid "
            f"international name ({error})."
        ) from None


def _inet_aton(labels: list[str], shown: str) -> ipaddress.IPv4Address:
    """Read numbers as inet_aton(3) does: octal after 0, hex after 0x, the last one fills up."""
    try:
        numbers = [_c_number(label) for label in labels]
        *heads, last = numbers
        if len(numbers) > 4 or any(n > 255 for n in heads) or last >= 256 ** (5 - len(numbers)):
            raise ValueError
    except ValueError:
        raise MalformedURL(
            f"The host of {shown} ends with a number but is not an IPv4 address."
        ) from None
    value = last
    for place, number in enumerate(heads):
        value |= number << (24 - 8 * place)
    return ipaddress.IPv4Address(value)


def _c_number(text: str) -> int:
    if not _NUMBER.fullmatch(text) or text == "0x":
        raise ValueError(text)
    if text.startswith("0x"):
        return int(text, 16)
    return int(text, 8) if text.startswith("0") else int(text)


def _quoted(tail: str) -> str:
    """Non-ASCII characters as percent-encoded UTF-8; everything else as it was written."""
    return tail if tail.isascii() else "".join(c if c.isascii() else quote(c) for c in tail)
