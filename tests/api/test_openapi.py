"""The OpenAPI document: committed, complete, and shown on a page that needs no other server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.test import Client
from ninja.responses import NinjaJSONEncoder

from api.api import api
from tests.api.operations import operations

ROOT = Path(__file__).parents[2]


def document() -> Any:
    return json.loads(json.dumps(api.get_openapi_schema(), cls=NinjaJSONEncoder))


def test_the_committed_document_is_that_of_the_code() -> None:
    committed = json.loads((ROOT / "docs" / "openapi.json").read_text())
    assert committed == document(), "The API has changed: run `make openapi` and commit the file."


def test_every_operation_is_described_with_its_scope_and_its_errors() -> None:
    found = document()
    assert found["openapi"].startswith("3.1")
    assert len(operations()) >= 15
    for path in found["paths"].values():
        for operation in path.values():
            name = operation["operationId"]
            assert operation["summary"], name
            assert operation.get("description"), name
            [requirement] = operation["security"]
            assert requirement["ApiKeyAuth"], name
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], name
            assert {"401", "403", "429", "500", "503"} <= operation["responses"].keys(), name


def test_every_field_of_a_body_and_every_parameter_is_described() -> None:
    found = document()
    bare = [
        f"{path} {parameter['name']}"
        for path, methods in found["paths"].items()
        for operation in methods.values()
        for parameter in operation["parameters"]
        if not parameter.get("description") and parameter["in"] != "path"
    ]
    assert bare == []


@pytest.mark.django_db
def test_the_page_comes_with_all_that_it_needs() -> None:
    response = Client().get("/api/docs")
    page = response.content.decode()
    assert response.status_code == 200
    assert not response.cookies
    assert "://" not in page
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(sources) >= 3
    for source in sources:
        assert finders.find(source.removeprefix("/static/")), source
    # Nothing on it is a script of its own: a strict policy for content lets it work.
    for script in re.findall(r"<script(.*?)>", page):
        assert "src=" in script or 'type="application/json"' in script
    policy = response["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy.partition("script-src")[2].partition(";")[0]
