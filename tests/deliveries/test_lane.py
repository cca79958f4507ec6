"""A lane on its way: what is sent next, what follows from an answer, and how it ends. Pure."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from deliveries.judging.policy import Outcome, Schedule, Verdict, judge
from deliveries.judging.response import Judged
from deliveries.sending.lane import OpenLane
from deliveries.values import ClaimedDelivery, ClaimedLane, Payload

SCHEDULE = Schedule(quick=(1.0, 2.0), slow=(300.0,), jitter=0.0)
OK = Judged(judge(200, "", None), "success", status_code=200)
UNAVAILABLE = Judged(judge(500, "", None), "http", status_code=500, error="500")
RATE_LIMITED = Judged(judge(429, "", 86400.0), "http", status_code=429, error="429")
NO_DNS = Judged(judge(None, "own_dns", None), "own_dns", error="our name servers are away")


def open_lane(
    deliveries: int = 5,
    *,
    max_backoff: float = 3600.0,
    schedule: Schedule = SCHEDULE,
    **fields: Any,
) -> OpenLane:
    claimed = ClaimedLane(
        **{
            "subscription_id": uuid.uuid4(),
            "token": uuid.uuid4(),
            "name": "receiver",
            "url": "https://receiver.example.com/",
            "headers": {},
            "epoch": 0,
            "secrets": [],
            "unsendable": "",
            "max_in_flight": 4,
            "window": 4,
            "failures": 0,
            "probe": False,
            "expires_at": 100.0,
            **fields,
        }
    )
    claimed.deliveries = [
        ClaimedDelivery(number, f"event-{number}", 0, 0, None, Payload("a.b", b"{}", users=1))
        for number in range(deliveries)
    ]
    return OpenLane(
        claimed,
        schedule,
        recovering=False,
        begin_until=10.0,
        start_by=20.0,
        max_backoff=max_backoff,
    )


def take_all(lane: OpenLane) -> list[ClaimedDelivery]:
    found = []
    while (delivery := lane.next_delivery()) is not None:
        found.append(delivery)
    return found


def test_no_more_than_the_window_is_in_flight_until_a_result_is_written() -> None:
    lane = open_lane()
    first, *_ = sent = take_all(lane)
    assert [delivery.id for delivery in sent] == [0, 1, 2, 3]
    lane.answered(first, OK, 0.0, 0.5)
    assert take_all(lane) == []
    lane.settled(written=True, now=1.0)
    assert [delivery.id for delivery in take_all(lane)] == [4]


def test_a_window_doubles_with_success_up_to_the_subscriptions_own_limit() -> None:
    lane = open_lane(20, window=1)
    widths = []
    while sent := take_all(lane):
        widths.append(len(sent))
        for delivery in sent:
            lane.answered(delivery, OK, 0.0, 0.5)
        for _ in sent:
            lane.settled(written=True, now=1.0)
    assert widths == [1, 2, 4, 4, 4, 4, 1]


def test_the_end_goes_with_the_last_result_and_comes_once() -> None:
    lane = open_lane(2)
    first, second = take_all(lane)
    lane.answered(first, OK, 0.0, 0.5)
    assert lane.end(last=True) is None, "another result is not written yet"
    lane.settled(written=True, now=1.0)
    lane.answered(second, OK, 0.0, 0.5)
    end = lane.end(last=True)
    assert end is not None
    assert (end.unsent, end.failures, end.backoff, end.wake_in) == ([], 0, 0.0, [])
    assert lane.end(last=True) is None


def test_after_a_failure_nothing_more_begins_and_the_rest_is_given_back() -> None:
    lane = open_lane(5, window=1)
    (delivery,) = take_all(lane)
    result = lane.answered(delivery, UNAVAILABLE, 0.0, 0.5)
    assert (result.next.status, result.next.delay) == ("pending", 1.0)
    end = lane.end(last=True)
    assert end is not None
    assert [one.id for one in end.unsent] == [1, 2, 3, 4]
    assert (end.window, end.failures, end.retrying_id) == (1, 1, 0)
    assert (end.backoff, end.wake_in) == (0.0, [1.0]), "one failure may be an accident"


def test_a_retry_at_once_is_woken_at_once() -> None:
    lane = open_lane(1, schedule=Schedule((0.0,), (), jitter=0.0))
    (delivery,) = take_all(lane)
    lane.answered(delivery, UNAVAILABLE, 0.0, 0.5)
    end = lane.end(last=True)
    assert end is not None
    assert (end.backoff, end.wake_in) == (0.0, [0.0])


def test_a_second_failure_in_a_row_backs_the_lane_off_and_says_why() -> None:
    lane = open_lane(2, window=1, failures=1)
    (delivery,) = take_all(lane)
    lane.answered(delivery, UNAVAILABLE, 0.0, 0.5)
    end = lane.end(last=True)
    assert end is not None
    assert (end.failures, end.backoff, end.backoff_reason) == (2, 1.0, "500")


def test_a_day_that_a_receiver_asks_for_holds_for_the_delivery_and_less_for_the_lane() -> None:
    lane = open_lane(1, max_backoff=3600.0)
    (delivery,) = take_all(lane)
    result = lane.answered(delivery, RATE_LIMITED, 0.0, 0.5)
    end = lane.end(last=True)
    assert end is not None
    assert result.next.delay == 86400.0
    assert end.backoff == 3600.0
    assert "429" in end.backoff_reason


def test_a_fault_of_our_own_backs_off_and_counts_no_failure() -> None:
    lane = open_lane(1)
    (delivery,) = take_all(lane)
    lane.answered(delivery, NO_DNS, 0.0, 0.5)
    end = lane.end(last=True)
    assert end is not None
    assert (end.failures, end.backoff, end.backoff_reason) == (0, 15.0, NO_DNS.error)


def test_a_request_that_was_not_started_is_given_back_in_its_place() -> None:
    lane = open_lane(3, window=2)
    first, second = take_all(lane)
    lane.not_sent(second)
    lane.not_sent(first)
    end = lane.end()
    assert end is not None
    assert [one.id for one in end.unsent] == [0, 1, 2]
    assert end.failures == 0


@pytest.mark.parametrize(("written", "now"), [(False, 1.0), (True, 11.0)])
def test_what_cannot_be_written_or_comes_late_begins_nothing_more(
    written: bool, now: float
) -> None:
    lane = open_lane(5)
    for delivery in take_all(lane):
        lane.answered(delivery, OK, 0.0, 0.5)
        lane.settled(written=written, now=now)
    assert take_all(lane) == []
    end = lane.end()
    assert end is not None
    assert [one.id for one in end.unsent] == [4]


def test_a_delivery_whose_body_did_not_fit_waits_for_the_next_claim() -> None:
    lane = open_lane(3)
    lane.claimed.deliveries[1].payload = None
    assert [one.id for one in take_all(lane)] == [0]
    lane.settled(written=True, now=1.0)
    end = lane.end()
    assert end is not None
    assert [one.id for one in end.unsent] == [1, 2]


def test_a_final_answer_blames_the_receiver_and_stops_nothing_for_long() -> None:
    lane = open_lane(2, window=1)
    (delivery,) = take_all(lane)
    gone = Judged(Outcome(Verdict.FINAL), "http", status_code=404, error="404")
    result = lane.answered(delivery, gone, 0.0, 0.5)
    end = lane.end(last=True)
    assert end is not None
    assert result.next.status == "failed"
    assert (end.backoff, end.wake_in) == (0.0, [])
