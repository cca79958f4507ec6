"""Tables of commands: in a real terminal, in a pipe, and with hostile text in them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.core.management import call_command

from subscriptions.management.base import OperatorCommand
from subscriptions.management.tables import Column, Row, safe, table
from tests.terminal import terminal

COLUMNS = [Column("STATE"), Column("NAME", shrinks=True), Column("HELD", right=True)]
HOSTILE = "a\x1b[31mb\nc\u202ed [red]x[/red] :smile:"


class Listing(OperatorCommand):
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        self.write_table(
            COLUMNS,
            [
                Row([safe("TRIPPED", "red"), "billing " + "x" * 100, 1234567], ["y" * 100]),
                Row(["ACTIVE", HOSTILE, 0]),
            ],
        )


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


def test_a_terminal_gets_colours_and_lines_that_fit_it() -> None:
    for width in (80, 50):
        with terminal(width) as screen:
            call_command(Listing(), stdout=screen.stream)
        assert "\x1b[31mTRIPPED" in screen.raw
        lines = screen.text.splitlines()
        assert [len(line) for line in lines][1:3] == [width, width]
        assert all(len(line) <= width for line in lines)
        assert lines[1].endswith("  1,234,567")
        assert "…" in lines[1]
        assert len(lines) == 4


def test_a_pipe_gets_plain_text_and_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    call_command(Listing(), stdout=output)
    assert "\x1b" not in output.getvalue()
    assert "x" * 100 in output.getvalue()
    assert "y" * 100 in output.getvalue()
    assert max(map(len, output.getvalue().splitlines())) < 140
    monkeypatch.setenv("COLUMNS", "80")
    output = io.StringIO()
    call_command(Listing(), stdout=output)
    assert max(map(len, output.getvalue().splitlines())) == 80


@pytest.mark.parametrize("columns", ["1", "12", "²"])
def test_any_width_will_do(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    output = io.StringIO()
    call_command(Listing(), stdout=output)
    assert output.getvalue().splitlines()[1].endswith("1,234,567")


@pytest.mark.parametrize("wish", ["--no-color", "NO_COLOR"])
def test_a_terminal_gets_no_colours_if_none_are_wanted(
    wish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wish == "NO_COLOR":
        monkeypatch.setenv(wish, "1")
    with terminal() as screen:
        call_command(Listing(), no_color=wish == "--no-color", stdout=screen.stream)
    assert "\x1b" not in screen.raw


def test_what_strangers_wrote_is_text_on_one_line() -> None:
    head, row = table(COLUMNS, [Row(["ACTIVE", HOSTILE, None])]).splitlines()
    assert row.split(maxsplit=1)[1].startswith("a<U+001B>[31mb c<U+202E>d [red]x[/red] :smile:")
    assert head.split() == ["STATE", "NAME", "HELD"]
    assert row.endswith("–")


def test_wide_characters_are_counted_as_what_they_take() -> None:
    first, second = table(COLUMNS, [Row(["A", "注文", 1]), Row(["A", "order", 1])]).splitlines()[1:]
    assert first.index("1") == second.index("1") - 2
