"""Running management commands in tests."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command


def run(*words: str) -> str:
    """What the command writes to standard output."""
    output = io.StringIO()
    call_command(*words, stdout=output)
    return output.getvalue()


def run_json(*words: str) -> Any:
    return json.loads(run(*words, "--json"))


def refusal(*words: str, code: int = 1) -> str:
    """The sentence with which the command refuses, ending with this exit code."""
    with pytest.raises(CommandError) as caught:
        call_command(*words, stdout=io.StringIO())
    assert caught.value.returncode == code
    return str(caught.value)
