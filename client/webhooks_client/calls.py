"""What an operation is made of: calls, which are a request and how its answer is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from webhooks_client.answers import Page, Subscription
from webhooks_client.errors import BadAnswer
from webhooks_client.reading import read
from webhooks_client.retrying import Request

T = TypeVar("T")
AnySubscription = TypeVar("AnySubscription", bound=Subscription)


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how its answer, a 2xx, is read: `read` raises `ValueError` if it cannot be."""

    request: Request
    read: Callable[[httpx.Response], T]

    def answer(self, response: httpx.Response) -> T:
        """What is in the answer. Raises `BadAnswer`."""
        try:
            return self.read(response)
        except ValueError as error:
            raise BadAnswer(
                f"{self.request.method} {self.request.path} was answered {response.status_code} "
                f"with what is not the API's: {error}"
            ) from error


Operation = Generator[Call[Any], Any, T]


def once(only: Call[T]) -> Operation[T]:
    """The operation of a single call."""
    answer: T = yield only
    return answer


def call(
    read_answer: Callable[[httpx.Response], T],
    method: str,
    *path: str,
    query: Mapping[str, object] | None = None,
    content: bytes | None = None,
    etag: str | None = None,
    repeatable: bool = False,
) -> Call[T]:
    """The call of a path, whose parts are escaped. What is None in `query` is left out.

    `ValueError` for an empty `etag`: nothing would be compared, against the caller's intent.
    """
    if etag == "":
        raise ValueError("The etag is empty, as in a list; `get` the subscription, which has one.")
    return Call(
        Request(
            method,
            "/api/v1/" + "/".join(quote(part, safe="") for part in path),
            tuple(
                (name, text(value)) for name, value in (query or {}).items() if value is not None
            ),
            (("If-Match", etag),) if etag else (),
            content,
            repeatable=repeatable or method == "GET",
        ),
        read_answer,
    )


def encode(body: object) -> bytes:
    """JSON, the same bytes for each try. `ValueError` or `TypeError` for what JSON cannot hold."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def given(**fields: object) -> dict[str, object]:
    """The fields that are not None."""
    return {
        name: text(value) if isinstance(value, datetime) else value
        for name, value in fields.items()
        if value is not None
    }


def answer_as(kind: Callable[..., T]) -> Callable[[httpx.Response], T]:
    return lambda response: read(kind, json.loads(response.content))


def page_of(kind: Callable[..., T]) -> Callable[[httpx.Response], Page[T]]:
    def read_page(response: httpx.Response) -> Page[T]:
        page = read(_PageOfAny, json.loads(response.content))
        return Page(tuple(read(kind, one) for one in page.data), page.next_cursor)

    return read_page


@dataclass(frozen=True)
class _PageOfAny:
    data: tuple[Any, ...]
    next_cursor: str | None = None


def with_etag(kind: type[AnySubscription]) -> Callable[[httpx.Response], AnySubscription]:
    return lambda response: replace(
        answer_as(kind)(response), etag=response.headers.get("ETag", "")
    )


def nothing(_: httpx.Response) -> None:
    return None
