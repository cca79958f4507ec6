"""What every command for operators has: help that fits a terminal, and answers for scripts."""

from __future__ import annotations

import pytest
from django.core.management import get_commands, load_command_class

from subscriptions.management.base import OperatorCommand

APPS = ("api", "deliveries", "subscriptions")
NAMES = sorted(name for name, app in get_commands().items() if app in APPS)


@pytest.mark.parametrize("name", NAMES)
def test_a_command_explains_itself_within_80_columns_and_answers_in_json(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = load_command_class(get_commands()[name], name)
    assert isinstance(command, OperatorCommand)
    said = command.create_parser("manage.py", name).format_help()
    assert max(map(len, said.splitlines())) <= 80
    for part in ("--json", "exit codes:"):
        assert part in said, f"{part} is missing"
