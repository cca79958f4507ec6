"""Conventions that a machine can check; those on imports are in pyproject.toml (`make lint`)."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.apps import apps

from subscriptions.conf import PREFIX, PROCESS_VARIABLES, WebhookSettings

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("webhooks_project", "api", "deliveries", "subscriptions")
MAX_LINES = 450


def modules(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def test_no_module_is_too_long_to_read_at_once() -> None:
    long = {
        str(module.relative_to(ROOT)): count
        for module in modules(*PACKAGES, "client/webhooks_client")
        if "migrations" not in module.parts
        and (count := len(module.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}


SENDING = re.compile(
    r"requests\.(get|post|put|request|Session)\(|urlopen\(|http\.client|httpx|HTTPAdapter"
)


def test_only_the_transport_sends_requests() -> None:
    # The supervisor asks the web process on this machine whether it is there.
    allowed = {"deliveries/transport", "webhooks_project/supervisor.py"}
    wrong = [
        f"{path}:{number}"
        for module in modules(*PACKAGES)
        if not any((path := str(module.relative_to(ROOT))).startswith(place) for place in allowed)
        for number, line in enumerate(module.read_text().splitlines(), 1)
        if SENDING.search(line)
    ]
    assert wrong == []


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / ".env.example").read_text()
    for field in dataclasses.fields(WebhookSettings):
        assert f"{PREFIX}{field.name.upper()}=" in text, field.name
        assert field.metadata["doc"].lower() in " ".join(text.lower().split("\n# ")), field.name
    for name in PROCESS_VARIABLES - {"WEBHOOKS_READY_FILE", "WEBHOOKS_DEMO"}:
        assert f"{name}=" in text, name
    for name in re.findall(r"^#?(WEBHOOKS_[A-Z_]+)=", text, re.MULTILINE):
        field_name = name.removeprefix(PREFIX).lower()
        known = {field.name for field in dataclasses.fields(WebhookSettings)}
        assert field_name in known or name in PROCESS_VARIABLES, name


def test_the_defaults_of_the_example_are_those_of_the_code() -> None:
    text = (ROOT / ".env.example").read_text()
    shown = dict(re.findall(r"^#?(WEBHOOKS_[A-Z_]+)=(.*)$", text, re.MULTILINE))
    values = {name: value for name, value in shown.items() if name not in PROCESS_VARIABLES}
    values["WEBHOOKS_SECRET_KEYS"] = ""
    assert WebhookSettings.from_env(values) == WebhookSettings()


def requirements(file: str) -> set[str]:
    lines = (ROOT / file).read_text().splitlines()
    return {match[0].lower() for line in lines if (match := re.match(r"[A-Za-z0-9-]+", line))} - {
        "-r",
        "-c",
    }


def test_every_requirement_has_its_line_and_every_line_is_a_requirement() -> None:
    explained = set()
    for line in (ROOT / "docs" / "dependencies.md").read_text().splitlines():
        if line.startswith("| ") and not line.startswith(("| package", "| ---")):
            names = re.sub(r"\[.*?\]", "", line.split("|")[1])
            explained |= {name.strip().lower() for name in names.split(",")}
    assert explained == requirements("requirements.txt") | requirements("requirements-dev.txt")


def test_the_oldest_versions_are_those_that_the_package_admits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    admitted = {text.replace(">=", "==") for text in project["dependencies"]}
    tested = (ROOT / "requirements-oldest.txt").read_text().splitlines()
    versions = {line for line in tested if line and not line.startswith("#")}
    # Tests need the SDK; each version of it takes one of the API alone.
    api = next(text for text in admitted if text.startswith("opentelemetry-api"))
    assert versions == admitted | {api.replace("-api", "-sdk")}


def test_what_the_page_on_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)(?:::(\w+))?`", text)
    assert len(named) > 40
    for path, name in named:
        assert (ROOT / path).exists(), path
        if name:
            code = (ROOT / path).read_text()
            assert re.search(rf"^(?:def|class) {name}\b", code, re.MULTILINE), f"{path}::{name}"


def test_the_readmes_pictures_are_there_and_small() -> None:
    named = set(re.findall(r"docs/pictures/[\w.-]+", (ROOT / "README.md").read_text()))
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "pictures").iterdir()}
    assert named == there
    assert max((ROOT / path).stat().st_size for path in there) < 200_000


def test_no_project_is_asked_for_migrations_of_ours_whatever_its_default_id_is() -> None:
    for app in ("subscriptions", "deliveries", "api"):
        assert apps.get_app_config(app).default_auto_field == "django.db.models.BigAutoField"


def test_what_beat_sends_does_not_expire_by_the_clock_of_another_machine() -> None:
    from deliveries.celeryconfig import beat_schedule

    assert not [task for task in beat_schedule.values() if "expires" in task["options"]]


@pytest.mark.xdist_group("of one test")
def test_groups_of_tests_are_kept_together(request: pytest.FixtureRequest) -> None:
    """What a group shares takes half a minute to make; some versions of pytest and pytest-xdist
    that do not fit each other say nothing and make it in each process."""
    if request.config.getoption("loadgroup", False):
        assert request.node.nodeid.endswith("@of one test")
