from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import RequestDataTooBig
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from api import keys, problems
from api.models import ApiKey
from tests.api.calls import Caller, is_problem

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.api.routes")]


def test_a_key_with_the_scope_may() -> None:
    response = Caller("events:write").call("POST", "/api/v1/things", {"name": "a", "payload": {}})
    assert response.status_code == 200
    assert response.data == {"name": "a", "payload": {}}


def test_a_missing_scope_is_named() -> None:
    response = Caller("events:write").call("GET", "/api/v1/things")
    problem = is_problem(response, 403, "missing-scope")
    assert problem["scope"] == "deliveries:read"
    assert "deliveries:read" in problem["detail"]


@pytest.mark.parametrize("text", ["", "whk_", "whk_aaaaaaaa_" + "a" * 43, "x" * 10_000, "ä"])
def test_without_a_key_nothing_is_done(text: str) -> None:
    response = Caller(key_text=text).call("GET", "/api/v1/things")
    is_problem(response, 401, "unauthorized")
    assert response["WWW-Authenticate"].startswith("Bearer")


def test_a_revoked_and_an_expired_key_are_refused() -> None:
    caller = Caller()
    assert caller.call("GET", "/api/v1/things").status_code == 200
    ApiKey.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    is_problem(caller.call("GET", "/api/v1/things"), 401, "unauthorized")
    ApiKey.objects.update(expires_at=timezone.now() + timedelta(seconds=100))
    assert caller.call("GET", "/api/v1/things").status_code == 200
    keys.revoke(ApiKey.objects.all())
    is_problem(caller.call("GET", "/api/v1/things"), 401, "unauthorized")


def test_wrong_paths_methods_and_bodies_are_problems() -> None:
    caller = Caller("events:write")
    is_problem(caller.call("GET", "/api/v1/nothing"), 404, "not-found")
    is_problem(caller.call("GET", "/api"), 404, "not-found")
    response = caller.call("DELETE", "/api/v1/things")
    is_problem(response, 405, "method-not-allowed")
    assert response["Allow"] == "GET, HEAD, POST"
    is_problem(caller.call("POST", "/api/v1/things", b"{"), 400, "not-json")
    problem = is_problem(
        caller.call("POST", "/api/v1/things", {"name": 3, "payload": {}}), 422, "invalid"
    )
    assert [error["pointer"] for error in problem["errors"]] == ["/name"]
    problem = is_problem(
        caller.call("POST", "/api/v1/things", b'{"name": "a", "payload": {"a": {"b": 1, "b": 2}}}'),
        422,
        "invalid",
    )
    assert problem["errors"][0]["pointer"] == "/payload/a"
    is_problem(Caller().call("GET", "/api/v1/things?limit=0"), 422, "invalid")
    is_problem(Caller().call("GET", "/api/v1/things?cursor=%00"), 422, "bad-cursor")


def test_errors_tell_nothing_of_the_server(settings: Any) -> None:
    settings.DEBUG = True
    caller = Caller()
    response = caller.call("GET", "/api/v1/open?fails=database")
    is_problem(response, 503, "unavailable")
    assert response["Retry-After"]
    assert b"hunter2" not in response.content
    response = caller.call("GET", "/api/v1/open?fails=itself")
    is_problem(response, 500, "internal-error")
    assert b"hunter2" not in response.content
    assert b"Traceback" not in response.content
    response = caller.call("GET", "/api/v1/open?fails=conflict")
    assert is_problem(response, 409, "duplicate-name")["other"] == 1
    assert response["X-Test"] == "1"


def test_pages_stay_right_while_rows_are_added() -> None:
    caller = Caller(name="first")
    for number in range(4):
        keys.create_key(f"k{number}", ["events:write"], tenant="acme")
    page = caller.call("GET", "/api/v1/things?limit=2").data
    assert [row["name"] for row in page["data"]] == ["k3", "k2"]
    keys.create_key("new", ["events:write"])
    page = caller.call("GET", f"/api/v1/things?limit=2&cursor={page['next_cursor']}").data
    assert [row["name"] for row in page["data"]] == ["k1", "k0"]
    page = caller.call("GET", f"/api/v1/things?limit=2&cursor={page['next_cursor']}").data
    assert [row["name"] for row in page["data"]] == ["first"]
    assert page["next_cursor"] is None


def test_a_key_of_a_tenant_sees_what_is_its_tenants() -> None:
    Caller(tenant="other", name="a stranger's")
    caller = Caller(tenant="acme", name="its own")
    page = caller.call("GET", "/api/v1/things").data
    assert [row["name"] for row in page["data"]] == ["its own"]


def test_too_many_parameters_are_an_error_of_the_client(caplog: Any) -> None:
    response = Caller().call("GET", "/api/v1/things?" + "a=1&" * 1001)
    is_problem(response, 400, "bad-request")
    large = problems.from_exception(RequestDataTooBig("settings.DATA_UPLOAD_MAX_MEMORY_SIZE"))
    assert (large.status, large.type) == (400, "bad-request")
    assert not caplog.records


@pytest.mark.parametrize(
    ("query", "named", "said"),
    [
        ("tenannt=acme", ["tenannt"], "There is no such parameter here; there are: cursor, limit."),
        ("limit=1&limit=2", ["limit"], "It is there more than once."),
        ("limit=1&a=&b=1", ["a", "b"], "There is no such parameter here"),
    ],
)
def test_a_parameter_with_a_slip_in_its_name_is_refused(
    query: str, named: list[str], said: str
) -> None:
    caller = Caller()
    response = caller.call("GET", f"/api/v1/things?{query}")
    is_problem(response, 422, "invalid")
    assert [error["parameter"] for error in response.data["errors"]] == named
    assert response.data["errors"][0]["detail"].startswith(said)


def test_an_operation_without_parameters_refuses_all() -> None:
    response = Caller("events:write").call(
        "POST", "/api/v1/things?name=x", {"name": "x", "payload": {}}
    )
    assert is_problem(response, 422, "invalid")["errors"] == [
        {"parameter": "name", "detail": "There is no such parameter here, nor any other."}
    ]


def failure(*statements: str) -> Exception:
    """What Django raises at the last of these statements, in a transaction of their own."""
    with (
        pytest.raises(DatabaseError) as caught,
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        for statement in statements:
            cursor.execute(statement)
    return caught.value


@pytest.mark.parametrize(
    ("type", "says", "statements"),
    [
        ("unavailable", "no changes", ("SET TRANSACTION READ ONLY", "CREATE TABLE none ()")),
        (
            "interrupted",
            "longer",
            ("SET LOCAL statement_timeout = 1", "SELECT pg_sleep(10)"),
        ),
        *(
            (
                "interrupted",
                says,
                (f"DO $$ BEGIN RAISE EXCEPTION 'hunter2' USING ERRCODE = '{state}'; END $$",),
            )
            for state, says in (
                ("40P01", "each other"),
                ("40001", "same rows"),
                ("55P03", "locked"),
            )
        ),
    ],
)
def test_what_a_database_does_that_is_there_is_not_said_to_be_an_outage(
    type: str, says: str, statements: tuple[str, ...]
) -> None:
    problem = problems.from_exception(failure(*statements))
    assert (problem.status, problem.type) == (503, type)
    assert says in problem.detail
    assert "reached" not in problem.title + problem.detail
    assert "hunter2" not in problem.detail
    assert problem.headers["Retry-After"]
