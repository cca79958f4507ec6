"""`docs/api.md`: its commands work, and it has every problem and every path that there is."""

from __future__ import annotations

import ast
import ipaddress
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from api import problems
from api.models import SCOPES
from tests.api.calls import key
from tests.api.operations import operations

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text()


def raised() -> dict[str, set[int]]:
    """The types of all problems that the code raises, with their statuses."""
    found: dict[str, set[int]] = {}
    for module in (ROOT / "api").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "Problem"
            ):
                status, slug = node.args[:2]
                assert isinstance(status, ast.Constant)
                assert isinstance(slug, ast.Constant)
                assert isinstance(status.value, int)
                found.setdefault(str(slug.value), set()).add(status.value)
    return found


def test_every_problem_is_explained_with_its_status() -> None:
    table = dict(re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \| ", PAGE, re.MULTILINE))
    assert {slug: {int(status)} for slug, status in table.items()} == raised()
    assert problems.TYPES + "duplicate-name" in PAGE


def test_a_problem_s_type_leads_to_its_explanation(client: Client) -> None:
    answer = client.get(problems.TYPES.partition("#")[0])
    assert (answer.status_code, answer["Content-Type"]) == (200, "text/html; charset=utf-8")
    served = re.findall(
        r'<tr id="([a-z-]+)"><td><code>\1</code></td><td>(\d{3})</td><td>(.*)</td></tr>',
        answer.content.decode(),
    )
    written = re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \| (.*) \|$", PAGE, re.MULTILINE)
    assert served == [
        (slug, status, re.sub("`([^`]+)`", r"<code>\1</code>", text))
        for slug, status, text in written
    ]


@pytest.mark.parametrize("page", ["problems", "openapi.json", "docs"])
def test_a_page_is_read_and_nothing_else(client: Any, page: str) -> None:
    assert client.head(f"/api/{page}").status_code == 200
    for method in (client.post, client.put, client.delete, client.options):
        response = method(f"/api/{page}")
        assert (response.status_code, response["Allow"]) == (405, "GET, HEAD")
        assert response["Content-Type"] == problems.MEDIA_TYPE


def test_every_scope_is_explained() -> None:
    assert set(re.findall(r"^\| `([a-z]+:[a-z]+)` \|", PAGE, re.MULTILINE)) == SCOPES.keys()


def test_every_operation_on_subscriptions_is_in_the_table() -> None:
    shown = set(re.findall(r"^\| `([A-Z]+ /subscriptions\S*)` \|", PAGE, re.MULTILINE))
    served = {str(one).replace("subscription_id", "id") for one in operations()}
    assert shown == {one.replace("/api/v1", "") for one in served if "/subscriptions" in one}


@pytest.mark.django_db(transaction=True)
def test_the_commands_of_the_page_work(live_server: Any, configure: Any) -> None:
    configure(allowed_networks=[ipaddress.ip_network("127.0.0.0/8")])
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    for name, value in (("API", f"{live_server.url}/api/v1"), ("KEY", key(*SCOPES))):
        commands, count = re.subn(rf"^{name}=.*$", f"{name}={value}", commands, flags=re.MULTILINE)
        assert count == 1
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        env={"PATH": os.environ["PATH"], "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for piece in ("whsec_", '"already_published": false', '"counts"', '"paused"', '"active"'):
        assert piece in done.stdout, piece
