"""However wrong a body is, the answer is short, and made at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.problems import MAX_ERRORS
from subscriptions.validators import MAX_PATTERNS
from tests.api.calls import Caller, is_problem
from tests.factories import make_subscription

pytestmark = pytest.mark.django_db(transaction=True)

MANY = 100_000
UNKNOWN = {f"key{number}": 1 for number in range(MANY)}
EVENT = {"topic": "test.one", "payload": {}}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/{id}/replay", {"status": [1] * MANY}),
        ("POST", "/{id}/replay", UNKNOWN),
        ("PATCH", "/{id}", {"groups": [""] * MANY}),
        ("PATCH", "/{id}", {"topic_patterns": [1] * MANY}),
        ("PATCH", "/{id}", {"headers": dict.fromkeys(UNKNOWN, "x")}),
        ("PATCH", "/{id}", {"headers": UNKNOWN}),
        ("PATCH", "/{id}", {"groups": ["none"] * MAX_PATTERNS}),
        ("PATCH", "/{id}", UNKNOWN),
        ("POST", "", UNKNOWN),
        ("POST", "/../events", EVENT | UNKNOWN),
        ("POST", "/../events/batch", {"events": [EVENT | UNKNOWN, EVENT]}),
        ("POST", "/../events/batch", {"events": [1] * MANY}),
    ],
)
def test_the_answer_to_a_large_wrong_body_is_short(
    method: str, path: str, body: dict[str, Any]
) -> None:
    one = make_subscription()
    caller = Caller("subscriptions:write", "events:write", "deliveries:write")
    where = f"/api/v1/subscriptions{path}".replace("/subscriptions/..", "").format(id=one.pk)
    response = caller.call(method, where, body)
    problem = is_problem(response, 422, "invalid")
    assert len(problem["errors"]) <= MAX_ERRORS
    assert len(json.dumps(problem)) < 30_000
