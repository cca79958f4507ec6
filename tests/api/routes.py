"""Routes for tests of what all routes have in common."""

from __future__ import annotations

from typing import Annotated, Any

from django.db import OperationalError
from django.http import HttpRequest
from django.urls import path
from ninja import Query, Router
from pydantic import BaseModel, ConfigDict

from api.api import Api
from api.auth import scope
from api.keys import Caller
from api.models import ApiKey
from api.pages import Cursor, Limit, Listed, page
from api.problems import Problem, problems

router = Router(tags=["test"])


class Request(HttpRequest):
    auth: Caller


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    payload: dict[str, Any]


class Row(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str


@router.post("/things", auth=scope("events:write"), response={200: Thing, **problems(422)})
def write(request: Request, thing: Thing) -> Thing:
    return thing


@router.get("/things", auth=scope("deliveries:read"), response={200: Listed[Row], **problems(422)})
def read(request: Request, limit: Limit, cursor: Cursor) -> Any:
    keys = request.auth.sees(ApiKey.objects.all())
    found = page(keys, by=("-created_at", "-id"), cursor=cursor, limit=limit)
    return {"data": found.rows, "next_cursor": found.next_cursor}


@router.get("/open", auth=None)
def whatever(request: HttpRequest, fails: Annotated[str, Query("")]) -> dict[str, str]:
    if fails == "database":
        raise OperationalError("connection to server failed: password hunter2")
    if fails == "itself":
        raise RuntimeError("hunter2")
    if fails == "conflict":
        raise Problem(409, "duplicate-name", "The name is taken", headers={"X-Test": "1"}, other=1)
    return {"ok": "yes"}


api = Api(urls_namespace="test", title="Test")
api.add_router("/v1", router)
urlpatterns = [path("api/", api.urls)]
