"""`Client` and `AsyncClient`: they do what `operations` says, with threads or with coroutines.

Both may be used by many threads or tasks at once. Close them, or use them with `with` and
`async with`: then connections are kept from call to call.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import httpx

from webhooks_client import operations
from webhooks_client.answers import Page
from webhooks_client.calls import Call, Operation
from webhooks_client.errors import NoAnswer, WebhooksError, from_response
from webhooks_client.retrying import Attempts, Pause, Reply, Request, Retries, attempts

P = ParamSpec("P")
T = TypeVar("T")


class _Base:
    """What both clients have in common: everything but the waiting."""

    def __init__(self, base_url: str, key: str, timeout: float, retries: Retries) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"The base URL {base_url!r} does not begin with http:// or https://.")
        if not re.fullmatch("[!-~]+", key):
            raise ValueError("The key is not printable ASCII without spaces; copy it again, whole.")
        self._base_url = base_url.rstrip("/")
        self._retries = retries
        self._options: dict[str, Any] = {
            "headers": {
                "Authorization": f"Bearer {key}",
                "Accept": "application/json",
                "User-Agent": "webhooks-client/1",
            },
            "timeout": timeout,
            "follow_redirects": False,
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._base_url}>"

    def _arguments(self, request: Request) -> dict[str, Any]:
        headers = dict(request.headers)
        if request.content is not None:
            headers["Content-Type"] = "application/json"
        return {
            "method": request.method,
            "url": self._base_url + request.path,
            "params": request.query or None,
            "headers": headers,
            "content": request.content,
        }

    def _attempts(self, call: Call[Any]) -> Attempts:
        return attempts(call.request, self._retries, clock=time.monotonic, random=random.random)


def _answer(call: Call[T], reply: Reply) -> T:
    if isinstance(reply, httpx.RequestError):
        what = f"{call.request.method} {call.request.path}"
        raise NoAnswer(f"No answer to {what}: {reply or type(reply).__name__}") from reply
    if not reply.is_success:
        raise from_response(reply)
    return call.answer(reply)


class _Sync(_Base):
    _http: httpx.Client

    def _run(self, operation: Operation[T]) -> T:
        try:
            call = next(operation)
            while True:
                try:
                    answer = self._do(call)
                except WebhooksError as error:
                    call = operation.throw(error)
                else:
                    call = operation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def _do(self, call: Call[T]) -> T:
        steps = self._attempts(call)
        step = next(steps)
        try:
            while True:
                reply = None
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                else:
                    reply = self._send(step)
                step = steps.send(reply)
        except StopIteration as end:
            return _answer(call, end.value)

    def _send(self, request: Request) -> Reply:
        try:
            return self._http.request(**self._arguments(request))
        except httpx.RequestError as error:
            return error


class _Async(_Base):
    _http: httpx.AsyncClient

    async def _run(self, operation: Operation[T]) -> T:
        try:
            call = next(operation)
            while True:
                try:
                    answer = await self._do(call)
                except WebhooksError as error:
                    call = operation.throw(error)
                else:
                    call = operation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _do(self, call: Call[T]) -> T:
        steps = self._attempts(call)
        step = next(steps)
        try:
            while True:
                reply = None
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                else:
                    reply = await self._send(step)
                step = steps.send(reply)
        except StopIteration as end:
            return _answer(call, end.value)

    async def _send(self, request: Request) -> Reply:
        try:
            return await self._http.request(**self._arguments(request))
        except httpx.RequestError as error:
            return error


class Listing(Generic[T]):
    """A list of the server's: iterate over it, and its pages are fetched as they are needed.

    `page` fetches the first alone.
    """

    def __init__(self, client: _Sync, page_at: Callable[[str | None], Call[Page[T]]]) -> None:
        self._client = client
        self._page_at = page_at

    def page(self, cursor: str | None = None) -> Page[T]:
        """The page at `cursor` (a `next_cursor`), or the first."""
        return self._client._do(self._page_at(cursor))

    def __iter__(self) -> Iterator[T]:
        page = self.page()
        yield from page.data
        while page.next_cursor is not None:
            page = self.page(page.next_cursor)
            yield from page.data


class AsyncListing(Generic[T]):
    """As `Listing`, for `async for`."""

    def __init__(self, client: _Async, page_at: Callable[[str | None], Call[Page[T]]]) -> None:
        self._client = client
        self._page_at = page_at

    async def page(self, cursor: str | None = None) -> Page[T]:
        """The page at `cursor` (a `next_cursor`), or the first."""
        return await self._client._do(self._page_at(cursor))

    async def __aiter__(self) -> AsyncIterator[T]:
        page = await self.page()
        for one in page.data:
            yield one
        while page.next_cursor is not None:
            page = await self.page(page.next_cursor)
            for one in page.data:
                yield one


# Operations as methods, with the signature and the docstring that they have.


def _as_method(method: Callable[..., Any], operation: Callable[..., Any], listing: str = "") -> Any:
    """For `help` and editors: the operation's name, docstring and signature, with `self`, and what
    the method returns in place of what the operation does."""
    functools.update_wrapper(method, operation, assigned=("__name__", "__doc__"), updated=())
    del method.__wrapped__  # type: ignore[attr-defined]
    signature = inspect.signature(operation)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    outer = "Call[Page[" if listing else "Operation["
    returned = signature.return_annotation[len(outer) : -outer.count("[")]
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[own, *signature.parameters.values()],
        return_annotation=f"{listing}[{returned}]" if listing else returned,
    )
    return method


def _does(operation: Callable[P, Operation[T]]) -> Callable[Concatenate[_HasSync, P], T]:
    def method(self: _HasSync, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._client._run(operation(*args, **kwargs))

    made: Callable[Concatenate[_HasSync, P], T] = _as_method(method, operation)
    return made


def _does_async(
    operation: Callable[P, Operation[T]],
) -> Callable[Concatenate[_HasAsync, P], Coroutine[Any, Any, T]]:
    async def method(self: _HasAsync, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._client._run(operation(*args, **kwargs))

    made: Callable[Concatenate[_HasAsync, P], Coroutine[Any, Any, T]]
    made = _as_method(method, operation)
    return made


def _lists(operation: Callable[P, Call[Page[T]]]) -> Callable[Concatenate[_HasSync, P], Listing[T]]:
    def method(self: _HasSync, *args: P.args, **kwargs: P.kwargs) -> Listing[T]:
        return Listing(self._client, _pages(operation, *args, **kwargs))

    made: Callable[Concatenate[_HasSync, P], Listing[T]] = _as_method(method, operation, "Listing")
    return made


def _lists_async(
    operation: Callable[P, Call[Page[T]]],
) -> Callable[Concatenate[_HasAsync, P], AsyncListing[T]]:
    def method(self: _HasAsync, *args: P.args, **kwargs: P.kwargs) -> AsyncListing[T]:
        return AsyncListing(self._client, _pages(operation, *args, **kwargs))

    made: Callable[Concatenate[_HasAsync, P], AsyncListing[T]]
    made = _as_method(method, operation, "AsyncListing")
    return made


def _pages(
    operation: Callable[P, Call[Page[T]]], *args: P.args, **kwargs: P.kwargs
) -> Callable[[str | None], Call[Page[T]]]:
    first = operation(*args, **kwargs)

    def page_at(cursor: str | None) -> Call[Page[T]]:
        if cursor is None:
            return first
        query = dict(first.request.query) | {"cursor": cursor}
        return replace(first, request=replace(first.request, query=tuple(query.items())))

    return page_at


class _HasSync:
    def __init__(self, client: _Sync) -> None:
        self._client = client


class _HasAsync:
    def __init__(self, client: _Async) -> None:
        self._client = client


class Subscriptions(_HasSync):
    """`client.subscriptions`."""

    create = _does(operations.create_subscription)
    list = _lists(operations.list_subscriptions)
    get = _does(operations.get_subscription)
    update = _does(operations.update_subscription)
    delete = _does(operations.delete_subscription)
    test = _does(operations.send_test_event)
    rotate_secret = _does(operations.rotate_secret)
    reset = _does(operations.reset_subscription)
    replay = _does(operations.replay_subscription)
    stats = _does(operations.subscription_stats)


class AsyncSubscriptions(_HasAsync):
    """`client.subscriptions` of an `AsyncClient`."""

    create = _does_async(operations.create_subscription)
    list = _lists_async(operations.list_subscriptions)
    get = _does_async(operations.get_subscription)
    update = _does_async(operations.update_subscription)
    delete = _does_async(operations.delete_subscription)
    test = _does_async(operations.send_test_event)
    rotate_secret = _does_async(operations.rotate_secret)
    reset = _does_async(operations.reset_subscription)
    replay = _does_async(operations.replay_subscription)
    stats = _does_async(operations.subscription_stats)


class Events(_HasSync):
    """`client.events`."""

    list = _lists(operations.list_events)
    get = _does(operations.get_event)


class AsyncEvents(_HasAsync):
    """`client.events` of an `AsyncClient`."""

    list = _lists_async(operations.list_events)
    get = _does_async(operations.get_event)


class Deliveries(_HasSync):
    """`client.deliveries`."""

    list = _lists(operations.list_deliveries)
    get = _does(operations.get_delivery)
    resend = _does(operations.resend_delivery)
    discard = _does(operations.discard_delivery)


class AsyncDeliveries(_HasAsync):
    """`client.deliveries` of an `AsyncClient`."""

    list = _lists_async(operations.list_deliveries)
    get = _does_async(operations.get_delivery)
    resend = _does_async(operations.resend_delivery)
    discard = _does_async(operations.discard_delivery)


class Client(_Sync, _HasSync):
    """The API of the server at `base_url`, such as `https://webhooks.example.com`, by this key.

    `timeout`: seconds for each of connecting, sending, and waiting for the next bytes. `retries`:
    how often a request is sent again that failed, and for how long (`Retries`). What may be
    repeated without harm is retried after a broken connection, a timeout, 408, 429 and 5xx: reads,
    and all publishing. Everything else only if the server cannot have done it: no connection, or
    429. `transport`: another way to send, as httpx knows them (a proxy, certificates, a test).
    """

    publish = _does(operations.publish)
    publish_many = _does(operations.publish_many)

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        timeout: float = 15.0,
        retries: Retries = Retries(),  # noqa: B008 - it is frozen
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        _Sync.__init__(self, base_url, key, timeout, retries)
        _HasSync.__init__(self, self)
        self._http = httpx.Client(transport=transport, **self._options)
        self.subscriptions = Subscriptions(self)
        self.events = Events(self)
        self.deliveries = Deliveries(self)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Async, _HasAsync):
    """As `Client`, with coroutines (asyncio): `await client.publish(…)`."""

    publish = _does_async(operations.publish)
    publish_many = _does_async(operations.publish_many)

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        timeout: float = 15.0,
        retries: Retries = Retries(),  # noqa: B008 - it is frozen
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        _Async.__init__(self, base_url, key, timeout, retries)
        _HasAsync.__init__(self, self)
        self._http = httpx.AsyncClient(transport=transport, **self._options)
        self.subscriptions = AsyncSubscriptions(self)
        self.events = AsyncEvents(self)
        self.deliveries = AsyncDeliveries(self)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
