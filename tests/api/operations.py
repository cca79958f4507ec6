"""Every operation of the API, as the OpenAPI document has it, with a request that is valid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from api.api import api

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@dataclass(frozen=True)
class Operation:
    """`body` is an example that the document gives, or one that its schema describes."""

    method: str
    path: str
    scopes: tuple[str, ...]
    statuses: frozenset[int]
    parameters: Mapping[str, str] = field(hash=False)
    """The names of its parameters, with their place: path, query or header."""
    body: Any = field(hash=False)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def ids(self) -> list[str]:
        return [name for name, place in self.parameters.items() if place == "path"]

    def at(self, ids: Mapping[str, object]) -> str:
        """The path with these ids."""
        return self.path.format(**{name: ids[name] for name in self.ids})


@cache
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(api.get_openapi_schema(), default=str))
    return found


@cache
def operations() -> list[Operation]:
    return [
        Operation(
            method.upper(),
            path,
            tuple(scope for asked in details.get("security", []) for one in asked.values()
                  for scope in one),
            frozenset(map(int, details["responses"])),
            {one["name"]: one["in"] for one in details["parameters"]},
            _example(details["requestBody"]["content"]["application/json"]["schema"])
            if "requestBody" in details
            else None,
        )
        for path, methods in document()["paths"].items()
        for method, details in methods.items()
    ]  # fmt: skip


def _example(schema: dict[str, Any]) -> Any:
    if "allOf" in schema:
        (schema,) = schema["allOf"]
    if "$ref" in schema:
        *_, name = schema["$ref"].split("/")
        schema = document()["components"]["schemas"][name]
    if "examples" in schema:
        return schema["examples"][0]
    if "default" in schema:
        return schema["default"]
    assert schema.get("type") == "object", f"no example of {schema}"
    properties = schema.get("properties", {})
    wanted = schema.get("required", []) or [name for name in properties if _has_example(schema)]
    return {name: _example(properties[name]) for name in wanted}


def _has_example(schema: dict[str, Any]) -> bool:
    return all({"examples", "default"} & one.keys() for one in schema["properties"].values())
