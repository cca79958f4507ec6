"""What the benchmarks count and compare: a wrong number there would be believed."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import soak
from machine import Machine
from measuring import compare_arrivals, percentile
from phase import Measured
from pictures import Chart, row_of, size_label, top_of_scale
from place import receiving
from steps import Mark, moments
from targets import Results, targets

LOG = "10.000000 /0 a\n10.500000 /1 a\n12.000000 /0 b\n"
EXPECTED = {("/0", "a"), ("/1", "a"), ("/0", "b")}


def test_arrivals_that_are_all_there_are_exact() -> None:
    arrivals = compare_arrivals(LOG, EXPECTED)
    assert (arrivals.count, arrivals.first, arrivals.last) == (3, 10.0, 12.0)
    assert (arrivals.missing, arrivals.duplicates, arrivals.unexpected) == (0, 0, 0)


def test_a_missing_a_doubled_and_a_strange_arrival_are_counted() -> None:
    log = LOG + "13.0 /0 b\n14.0 /0 b\n15.0 /9 z\n"
    arrivals = compare_arrivals(log, {*EXPECTED, ("/1", "b"), ("/2", "b")})
    assert (arrivals.missing, arrivals.duplicates, arrivals.unexpected) == (2, 2, 1)


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 50), (99, 99), (99.5, 100), (100, 100), (0, 1)]
)
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(percent: float, expected: int) -> None:
    assert percentile(reversed(range(1, 101)), percent) == expected


def measured(scenario: str, rate: float, **figures: float) -> Measured:
    return Measured(
        scenario=scenario,
        side="either",
        deliveries=3,
        seconds=2.0,
        rate=rate,
        missing=0,
        duplicates=0,
        unexpected=0,
        recorded=3,
        cpu={"worker": 0.5},
        load_before=0.0,
        figures=figures,
    )


@pytest.fixture
def results() -> Results:
    machine = Machine(2, "a processor", 4, "Linux", "3.11", "18", "9", "8")
    return Results(machine=machine, when="now", quick=False)


@pytest.mark.parametrize(("rate", "met"), [(3999, False), (4000, True)])
def test_a_ratio_is_met_from_its_bound_on(results: Results, rate: float, met: bool) -> None:
    results.ours["live"] = measured("live", rate)
    results.reference["live"] = measured("live", 100)
    (target,) = targets(results)
    assert target.met is met


@pytest.mark.parametrize(("seconds", "met"), [(0.0052, True), (0.0056, False)])
def test_the_processor_time_of_an_event_is_that_of_all_programs(
    results: Results, seconds: float, met: bool
) -> None:
    events = measured("narrow", 100)
    results.ours["narrow"] = replace(events, cpu={"worker": seconds, "PostgreSQL": 0.002})
    (target,) = targets(results)
    assert (target.wanted, target.met) == ("≤ 2.5 ms of CPU each", met)


def test_the_many_matches_are_held_against_wide(results: Results) -> None:
    results.ours["wide"] = measured("wide", 3000, publish_p50=0.1, worker_memory=200.0)
    results.ours["100,000 matches"] = measured(
        "100,000 matches", 2600, others_longest=2.1, worker_memory=290.0
    )
    found = {one.wanted: (one.measured, one.met) for one in targets(results)}
    assert found == {
        "p50 of `publish` ≤ 100 ms": ("100.0 ms", True),
        "≥ 0.9 × the rate of wide": ("0.87 ×", False),
        "≤ 1.5 × the worker's memory of wide": ("1.45 ×", True),
        "events for others arrive within ≤ 2 s": ("2.1 s", False),
    }


def test_a_comparison_is_of_with_to_without(results: Results) -> None:
    results.ours["slow"] = measured(
        "slow",
        900,
        rate_with=900,
        rate_without=1000,
        healthy_p99_with=0.14,
        healthy_p99_without=0.1,
    )
    rate, wait = targets(results)
    assert (rate.measured, rate.met) == ("0.90 ×", True)
    assert (wait.measured, wait.met) == ("1.40 ×", False)


def test_publishing_over_http_is_held_against_publish_alone(results: Results) -> None:
    for name, rate in (("publish alone", 1000), ("api", 390), ("api, in hundreds", 2500)):
        results.ours[name] = measured(name, rate)
    share, rate_of_batches = targets(results)
    assert (share.scenario, share.measured, share.met) == ("api", "0.39 ×", False)
    assert (rate_of_batches.measured, rate_of_batches.met) == ("2,500", True)


@pytest.mark.parametrize("fault", ["missing", "duplicates", "unexpected", "recorded"])
def test_one_fault_anywhere_makes_a_run_inexact(results: Results, fault: str) -> None:
    good = measured("live", 100)
    results.ours["live"] = good
    assert results.exact
    results.reference["live"] = replace(good, **{fault: 1})
    assert not results.exact


@pytest.mark.parametrize(("most", "top"), [(0, 1), (0.9, 1), (3, 4), (10, 10), (11, 20), (81, 100)])
def test_a_scale_ends_at_a_round_number_above_all_values(most: float, top: float) -> None:
    assert top_of_scale(most) == pytest.approx(top)


def test_a_picture_is_well_formed_and_holds_every_value() -> None:
    labels = [size_label(size) for size in (100, 10_000, 1_000_000)]
    picture = row_of([Chart("a < b", "µs", labels, [1.0, 3.0, 2.0])], "caption & all")
    root = ElementTree.fromstring(picture)
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "µs", "100", "10 k", "1 M"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 3


def test_each_step_of_an_event_ends_where_the_next_begins() -> None:
    calls = [
        Mark("publisher", "database", 10.1, 10.2, "INSERT"),
        Mark("publisher", "database", 10.2, 10.3, "COMMIT"),
        Mark("publisher", "redis", 10.4, 10.5, "EVALSHA"),
        Mark("publisher", "task sending", 10.6, 10.6, ""),
        Mark("worker", "task received", 10.8, 10.8, ""),
        Mark("worker", "task begin", 10.9, 10.9, ""),
        Mark("worker", "database", 11.0, 11.1, "WITH taken"),
        Mark("worker", "curl begin", 11.3, 11.3, ""),
        Mark("worker", "curl end", 11.6, 11.6, "[0.1, 0.2]"),
        Mark("worker", "database", 11.7, 11.8, "UPDATE"),
        Mark("worker", "database", 11.8, 11.9, "COMMIT"),
        Mark("worker", "database", 12.0, 12.1, "SELECT"),
    ]
    assert moments(10.0, 11.5, calls) == pytest.approx(
        {
            **{"began": 10.0, "committed": 10.3, "woken": 10.4, "taken": 10.8},
            **{"running": 10.9, "claimed": 11.1, "sending": 11.3, "connected": 11.4},
            **{"arrived": 11.5, "answered": 11.6, "settled": 11.9},
        }
    )


def test_a_worker_that_waits_for_redis_has_the_event_when_its_call_ends() -> None:
    calls = [
        Mark("publisher", "database", 10.1, 10.3, "SELECT"),
        Mark("worker", "redis", 9.0, 10.6, "BZPOPMIN"),
        Mark("publisher", "redis", 10.4, 10.7, "EVALSHA"),
        Mark("worker", "database", 10.8, 10.9, "WITH taken"),
        Mark("worker", "curl begin", 11.0, 11.0, ""),
    ]
    found = moments(10.0, 11.5, calls)
    assert (found["woken"], found["taken"], found["claimed"]) == (10.4, 10.6, 10.9)


def test_the_receiver_notes_each_request_before_it_answers(tmp_path: Path) -> None:
    log = tmp_path / "log"
    request = b"POST /7 HTTP/1.1\r\nHost: a\r\nWebhook-Id: %b\r\nContent-Length: 2\r\n\r\n{}"
    with (
        receiving(log) as receiver,
        socket.create_connection(("127.0.0.1", receiver.ports[0]), timeout=30) as client,
    ):
        both = request % b"one" + request % b"two"
        client.sendall(both[:50])
        client.sendall(both[50:])
        answers = b""
        while answers.count(b"200 OK") < 2:
            received = client.recv(4096)
            assert received, answers
            answers += received
        lines = [line.split()[1:] for line in log.read_text().splitlines()]
    assert lines == [["/7", "one"], ["/7", "two"]]


def test_a_soak_counts_what_is_missing_and_what_came_twice() -> None:
    log = ["1.0 /0 a", "1.1 /1 a", "1.2 /1 a", "1.3 /0 b"]
    assert soak.compare(["a", "b", "c"], log, 2) == (3, 1)


def test_tables_are_flat_if_the_last_third_is_hardly_larger_than_the_one_before() -> None:
    assert soak.growth([1, 5, 10, 10, 11, 12]) == pytest.approx(1.2)
