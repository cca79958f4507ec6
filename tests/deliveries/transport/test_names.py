"""Host names: what is dialled is what was judged, and one dead name server stops nobody else."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable

import pytest
import requests

from deliveries.transport import (
    DestinationBlocked,
    HostNotFound,
    LocalFault,
    ResolverUnavailable,
    Transport,
    classify,
    names,
)
from deliveries.transport.lookups import LookupThreads
from tests.deliveries.transport import hostile
from tests.deliveries.transport.conftest import LOOPBACK, exchange, post
from tests.deliveries.transport.hostile import OK, receiver

Maker = Callable[..., Transport]


def rows(*addresses: str) -> list[tuple[object, ...]]:
    return [
        (
            socket.AF_INET6 if ":" in address else socket.AF_INET,
            socket.SOCK_STREAM,
            6,
            "",
            (address, 0),
        )
        for address in addresses
    ]


class Resolver:
    """Answers from a table whose values are addresses, an exception, or an event to wait for."""

    def __init__(self, **table: object) -> None:
        self.table = {name.replace("_", "."): value for name, value in table.items()}
        self.asked: list[str] = []

    def __call__(self, host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        self.asked.append(host)
        value = self.table[host]
        if isinstance(value, threading.Event):
            value.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "too late")
        if isinstance(value, Exception):
            raise value
        return rows(*value)  # type: ignore[misc]


def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.005)


class Sockets:
    """Counts the sockets that a transport opens."""

    def __init__(self) -> None:
        self.opened = 0

    def __call__(self, family: int, kind: int, protocol: int) -> socket.socket:
        self.opened += 1
        return socket.socket(family, kind, protocol)


def test_a_name_is_looked_up_once_for_all_that_wait_and_then_remembered(
    make_transport: Maker,
) -> None:
    resolver = Resolver(good_example=["127.0.0.1"])
    transport = make_transport(resolver=resolver)
    with receiver(hostile.answers(OK)) as server:
        url = f"http://good.example:{server.port}/"
        answers = transport.send_many([post(url)] * 20)
        assert all(isinstance(answer, requests.Response) for answer in answers)
        transport.send(post(url))
    assert resolver.asked == ["good.example"]


def test_the_host_header_is_the_name_and_not_the_address(make_transport: Maker) -> None:
    seen = []

    def behave(connection: hostile.Connection) -> None:
        seen.append(connection.read_request())
        connection.send(OK)

    transport = make_transport(resolver=Resolver(good_example=["127.0.0.1"]))
    with receiver(behave) as server:
        answered = exchange(transport, post(f"http://good.example:{server.port}/"))
    assert f"host: good.example:{server.port}\r\n".encode() in seen[0].lower()
    assert answered.remote_address == "127.0.0.1"


@pytest.mark.parametrize(
    "addresses",
    [
        ["169.254.169.254"],
        ["127.0.0.1", "10.0.0.1"],
        ["10.0.0.1", "127.0.0.1"],
        ["127.0.0.1", "::ffff:127.0.0.1"],
        ["127.0.0.1", "fe80::1%1"],
        ["64:ff9b::a00:1"],
    ],
)
def test_one_forbidden_address_among_several_refuses_the_host_and_opens_nothing(
    make_transport: Maker, addresses: list[str]
) -> None:
    sockets = Sockets()
    transport = make_transport(resolver=Resolver(evil_example=addresses), open_socket=sockets)
    with pytest.raises(DestinationBlocked, match=r"evil\.example is refused") as raised:
        transport.send(post("http://evil.example/"))
    assert classify(raised.value) == "blocked"
    assert sockets.opened == 0


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/", "http://[::ffff:7f00:1]/", "http://169.254.169.254/latest"]
)
def test_a_forbidden_literal_opens_nothing(make_transport: Maker, url: str) -> None:
    sockets = Sockets()
    with pytest.raises(DestinationBlocked):
        make_transport(open_socket=sockets).send(post(url))
    assert sockets.opened == 0


def test_loopback_is_refused_by_a_transport_without_allowed_networks(
    make_transport: Maker,
) -> None:
    sockets = Sockets()
    with receiver(hostile.answers(OK)) as server:
        with pytest.raises(DestinationBlocked, match="loopback"):
            make_transport(allowed_networks=(), open_socket=sockets).send(post(server.url))
        assert server.connections == 0
    assert sockets.opened == 0


def test_the_address_that_is_dialled_is_the_one_that_was_judged(make_transport: Maker) -> None:
    """A second answer of the name server, between the check and the connection, changes nothing."""
    resolver = Resolver(rebound_example=["127.0.0.1"])
    transport = make_transport(resolver=resolver)
    with receiver(hostile.answers_once_and_closes(OK)) as server:
        url = f"http://rebound.example:{server.port}/"
        assert exchange(transport, post(url)).remote_address == "127.0.0.1"
        resolver.table["rebound.example"] = ["127.0.0.2"]
        assert exchange(transport, post(url)).remote_address == "127.0.0.1"
    assert resolver.asked == ["rebound.example"]


def test_a_socket_is_refused_for_an_address_that_the_resolver_did_not_name(
    make_transport: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook at the socket does not rely on the pin: here the pin itself lies."""
    sockets = Sockets()
    transport = make_transport(
        resolver=Resolver(good_example=["127.0.0.1"]),
        open_socket=sockets,
        allowed_networks=[ipaddress.ip_network("127.0.0.1/32")],
    )

    class LyingPin(names.Pin):
        def __init__(self, port: int, addresses: list[str]) -> None:
            super().__init__(port, ["127.0.0.99"])

    monkeypatch.setattr(names, "Pin", LyingPin)
    with pytest.raises(DestinationBlocked, match=r"127\.0\.0\.99 is loopback"):
        transport.send(post("http://good.example/"))
    assert sockets.opened == 0


def test_a_socket_is_refused_for_an_allowed_address_that_the_resolver_did_not_name(
    make_transport: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets = Sockets()
    transport = make_transport(resolver=Resolver(good_example=["127.0.0.1"]), open_socket=sockets)

    class LyingPin(names.Pin):
        def __init__(self, port: int, addresses: list[str]) -> None:
            super().__init__(port, addresses)
            self.resolve = [entry.replace("127.0.0.1", "127.0.0.99") for entry in self.resolve]

    monkeypatch.setattr(names, "Pin", LyingPin)
    with pytest.raises(DestinationBlocked, match="not an address that was looked up"):
        transport.send(post("http://good.example/"))
    assert sockets.opened == 0


def test_a_kept_connection_is_not_used_once_the_name_means_another_address(
    make_transport: Maker,
) -> None:
    resolver = Resolver(moving_example=["127.0.0.1"])
    transport = make_transport(resolver=resolver, dns_cache=0.0, dns_stale=0.0)
    with receiver(hostile.answers(OK)) as server:
        url = f"http://moving.example:{server.port}/"
        assert transport.send(post(url)).status_code == 200
        assert transport.send(post(url)).status_code == 200
        assert server.connections == 1
        resolver.table["moving.example"] = ["127.0.0.2"]
        with pytest.raises(requests.ConnectionError):
            transport.send(post(url))
        resolver.table["moving.example"] = ["10.0.0.1"]
        with pytest.raises(DestinationBlocked):
            transport.send(post(url))
        assert server.connections == 1


def test_the_second_address_is_tried_when_the_first_refuses(make_transport: Maker) -> None:
    transport = make_transport(resolver=Resolver(two_example=["127.0.0.2", "127.0.0.1"]))
    with receiver(hostile.answers(OK)) as server:
        answered = exchange(transport, post(f"http://two.example:{server.port}/"))
    assert answered.remote_address == "127.0.0.1"


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        (socket.gaierror(socket.EAI_NONAME, "not known"), HostNotFound, "dns"),
        (socket.gaierror(socket.EAI_AGAIN, "temporary"), ResolverUnavailable, "own_dns"),
        (socket.gaierror(socket.EAI_FAIL, "fail"), ResolverUnavailable, "own_dns"),
        (socket.gaierror(socket.EAI_SYSTEM, "system"), LocalFault, "internal"),
        (OSError(24, "Too many open files"), LocalFault, "internal"),
        (ValueError("a bug"), LocalFault, "internal"),
    ],
)
def test_no_such_host_and_our_own_name_servers_are_told_apart(
    make_transport: Maker, fault: Exception, kind: type[Exception], code: str
) -> None:
    transport = make_transport(resolver=Resolver(gone_example=fault))
    with pytest.raises(kind) as raised:
        transport.send(post("http://gone.example/"))
    assert classify(raised.value) == code


def test_a_host_whose_own_zone_is_dead_is_not_our_fault_once_others_are_answered_for(
    make_transport: Maker,
) -> None:
    temporary = socket.gaierror(socket.EAI_AGAIN, "temporary")
    resolver = Resolver(dead_example=temporary, other_example=temporary)
    transport = make_transport(resolver=resolver, dns_cache=0.0, dns_stale=0.0)

    def code(host: str) -> str:
        (answer,) = transport.send_many([post(f"http://{host}:1/")])
        return classify(answer) if isinstance(answer, Exception) else "answered"

    assert [code("dead.example"), code("other.example")] == ["own_dns", "own_dns"]
    resolver.table["other.example"] = ["127.0.0.1"]
    assert [code("other.example"), code("dead.example")] == ["refused", "dns"]
    # An outage later on is told from that: nobody has been answered for since it began.
    resolver.table["dead.example"] = ["127.0.0.1"]
    assert code("dead.example") == "refused"
    resolver.table.update(dict.fromkeys(resolver.table, temporary))
    assert [code("dead.example"), code("other.example")] == ["own_dns", "own_dns"]


def test_a_resolver_that_answers_nonsense_is_our_own_fault(make_transport: Maker) -> None:
    transport = make_transport(resolver=Resolver(odd_example=["nonsense"]))
    with pytest.raises(LocalFault):
        transport.send(post("http://odd.example/"))


def test_a_host_without_an_address_is_not_found(make_transport: Maker) -> None:
    with pytest.raises(HostNotFound):
        make_transport(resolver=Resolver(empty_example=[])).send(post("http://empty.example/"))


def test_a_name_server_that_does_not_answer_ends_at_the_deadline_and_stops_nobody_else(
    make_transport: Maker,
) -> None:
    stuck = threading.Event()
    table = {f"stuck{n}_example": stuck for n in range(6)}
    resolver = Resolver(good_example=["127.0.0.1"], **table)
    transport = make_transport(resolver=resolver)
    failures: list[object] = []
    done = threading.Semaphore(0)

    def on_done(result):  # type: ignore[no-untyped-def]
        failures.append((result.error, result.elapsed))
        done.release()

    try:
        with receiver(hostile.answers(OK)) as server:
            for number in range(6):
                for _ in range(3):
                    transport.submit(post(f"http://stuck{number}.example/"), on_done)
            until(lambda: len(resolver.asked) == 6)
            began = time.monotonic()
            assert transport.send(post(f"http://good.example:{server.port}/")).status_code == 200
            assert time.monotonic() - began < 0.5
            for _ in range(18):
                assert done.acquire(timeout=5)
    finally:
        stuck.set()
    for error, elapsed in failures:
        # The name servers have answered for another host meanwhile: it is these hosts' own fault.
        assert classify(error) == "dns"
        assert abs(elapsed - 1.0) < 0.5


def test_names_that_were_slow_once_cannot_occupy_all_threads_again(make_transport: Maker) -> None:
    stuck = threading.Event()
    names = [f"bad{n}.example" for n in range(20)]
    resolver = Resolver(good_example=["127.0.0.1"])
    resolver.table.update(dict.fromkeys(names, socket.gaierror(socket.EAI_AGAIN, "temporary")))
    transport = make_transport(resolver=resolver, dns_cache=0.0)
    urls = [f"http://{name}/" for name in names]
    try:
        transport.send_many([post(url) for url in urls])
        resolver.table.update(dict.fromkeys(names, stuck))
        with receiver(hostile.answers(OK)) as server:
            for url in urls:
                transport.submit(post(url), lambda result: None)
            assert transport.send(post(f"http://good.example:{server.port}/")).status_code == 200
    finally:
        stuck.set()


@pytest.mark.parametrize("number", [64, 300])
@pytest.mark.parametrize("domains", ["one", "many"])
def test_dead_name_servers_stop_no_other_domain(
    make_transport: Maker, number: int, domains: str
) -> None:
    """Each look-up of a dead name lasts as long as the test, and each of these names is new."""
    over = threading.Event()
    asked: set[str] = set()

    def resolver(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.add(host)
        if host.startswith("dead"):
            over.wait(100)
            raise socket.gaierror(socket.EAI_AGAIN, "temporary")
        return rows("127.0.0.1")

    dead = [f"dead{n}.{'' if domains == 'one' else f'customer{n}.'}example" for n in range(number)]
    transport = make_transport(resolver=resolver, dns_cache=0.0, timeout=30.0)

    def is_delivered(host: str) -> None:
        assert transport.send(post(f"http://{host}:{server.port}/")).status_code == 200

    try:
        with receiver(hostile.answers(OK)) as server:
            is_delivered("known.healthy.example.com")
            is_delivered(f"known.{dead[0]}".replace("dead", "zone"))
            for host in dead:
                transport.submit(post(f"http://{host}/"), lambda result: None)
            until(lambda: len(asked) >= min(number, 16) + 2)
            is_delivered("known.healthy.example.com")
            is_delivered(f"known.{dead[0]}".replace("dead", "zone"))
            for n in range(5):
                is_delivered(f"new{n}.healthy.example.com")
                is_delivered(f"new{n}.other{n}.org")
    finally:
        over.set()


def test_a_name_is_used_while_it_is_looked_up_anew_and_for_a_bounded_time_only(
    make_transport: Maker,
) -> None:
    resolver = Resolver(moved_example=["127.0.0.1"])
    transport = make_transport(resolver=resolver, dns_cache=0.0, dns_stale=0.8, timeout=0.5)
    stuck = threading.Event()
    try:
        with receiver(hostile.answers(OK)) as server:
            url = f"http://moved.example:{server.port}/"
            assert transport.send(post(url)).status_code == 200
            resolver.table["moved.example"] = stuck
            began = time.monotonic()
            assert transport.send(post(url)).status_code == 200
            assert time.monotonic() - began < 0.4
            with pytest.raises(ResolverUnavailable):
                while time.monotonic() - began < 5:
                    transport.send(post(url))
            assert time.monotonic() - began > 0.8
    finally:
        stuck.set()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(["10.0.0.1"], DestinationBlocked), (socket.gaierror(socket.EAI_NONAME, "no"), HostNotFound)],
)
def test_a_new_answer_for_a_name_in_use_counts_as_soon_as_it_is_there(
    make_transport: Maker, answer: object, kind: type[Exception]
) -> None:
    resolver = Resolver(moved_example=["127.0.0.1"])
    transport = make_transport(resolver=resolver, dns_cache=0.0)
    with receiver(hostile.answers(OK)) as server:
        url = f"http://moved.example:{server.port}/"
        assert transport.send(post(url)).status_code == 200
        resolver.table["moved.example"] = answer

        def is_refused() -> bool:
            try:
                transport.send(post(url))
            except kind:
                return True
            return False

        until(is_refused)


def test_a_name_server_that_is_away_for_a_while_stops_no_name_that_is_known(
    make_transport: Maker,
) -> None:
    resolver = Resolver(known_example=["127.0.0.1"])
    transport = make_transport(resolver=resolver, dns_cache=0.0)
    with receiver(hostile.answers(OK)) as server:
        url = f"http://known.example:{server.port}/"
        assert transport.send(post(url)).status_code == 200
        resolver.table["known.example"] = socket.gaierror(socket.EAI_AGAIN, "temporary")
        until(lambda: transport.send(post(url)).status_code == 200 and len(resolver.asked) > 2)


def test_the_names_that_were_used_last_are_remembered_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(names, "MAX_NAMES", 100)
    found: list[str] = []
    learned = threading.Semaphore(0)

    def on_found(name: names.Name, *_: object) -> None:
        found.append(name.host)
        learned.release()

    book = names.NameBook(lambda *_, **__: rows("127.0.0.1"), LOOPBACK, 30.0, 300.0, on_found)
    for number in range(300):
        book.get("used.example", 0.0)
        book.get(f"host{number}.example", 0.0)
        assert len(book._names) <= 100
    for _ in range(301):
        assert learned.acquire(timeout=5)
    assert found.count("used.example") == 1, "it was never forgotten"
    book.stop()


def test_a_name_that_nobody_asked_for_before_costs_as_little_as_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the table full; each new name displaces the one that was used longest ago."""
    monkeypatch.setattr(LookupThreads, "put", lambda *_, **__: None)
    book = names.NameBook(socket.getaddrinfo, (), 30.0, 300.0, lambda *_: None)

    def seconds(start: int) -> float:
        began = time.thread_time()
        for number in range(start, start + 2000):
            book.get(f"host{number}.example", 0.0)
        return time.thread_time() - began

    empty = min(seconds(0), seconds(2000))
    for number in range(4000, names.MAX_NAMES + 4000):
        book.get(f"host{number}.example", 0.0)
    full = min(seconds(100_000), seconds(200_000))
    assert full < 10 * empty


def test_a_name_server_that_never_answered_for_anybody_is_ours(make_transport: Maker) -> None:
    stuck = threading.Event()
    try:
        with pytest.raises(ResolverUnavailable, match=r"was not looked up within 0\.3 s"):
            make_transport(resolver=Resolver(stuck_example=stuck)).send(
                post("http://stuck.example/"), timeout=0.3
            )
    finally:
        stuck.set()


def test_a_failed_lookup_is_made_again_soon(make_transport: Maker) -> None:
    resolver = Resolver(back_example=socket.gaierror(socket.EAI_AGAIN, "temporary"))
    transport = make_transport(resolver=resolver, dns_cache=0.0)
    with receiver(hostile.answers(OK)) as server:
        url = f"http://back.example:{server.port}/"
        with pytest.raises(ResolverUnavailable):
            transport.send(post(url))
        resolver.table["back.example"] = ["127.0.0.1"]
        assert transport.send(post(url)).status_code == 200


def test_localhost_goes_through_the_resolver_and_the_guard(make_transport: Maker) -> None:
    sockets = Sockets()
    transport = make_transport(
        resolver=Resolver(localhost=["10.0.0.1"]), allowed_networks=LOOPBACK, open_socket=sockets
    )
    with pytest.raises(DestinationBlocked):
        transport.send(post("http://localhost:1/"))
    assert sockets.opened == 0
