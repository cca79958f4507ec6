"""Tables in a terminal, by rich: coloured there, and plain where they are piped.

Every row is one line. On a terminal it fits the width, and what is too long ends with `…`; piped,
nothing is cut. What tenants and receivers wrote is text, whatever it holds: no markup of rich, no
escape sequence, no line break.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Of a terminal that does not know its size.
WIDTH = 80
# Of what is piped: wider than any line, so that `grep` finds all of it.
UNCUT = 1_000_000
# In less no column has room, and the terminal breaks the lines.
NARROWEST = 40


class Column(NamedTuple):
    """`right`: aligned so. `shrinks`: cut, and not the others, where the table is too wide."""

    title: str
    right: bool = False
    shrinks: bool = False


Cell = str | int | Text | None


class Row(NamedTuple):
    """`notes` are lines of their own, indented below the cells."""

    cells: Sequence[Cell]
    notes: Sequence[str | Text] = ()


def safe(text: str, style: str = "") -> Text:
    """One line in this style (of rich: `red`, `bold`, `dim` …), with all that does not print
    shown as its number."""
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in line)
    return Text(line, style, no_wrap=True, overflow="ellipsis", end="")


def table(
    columns: Sequence[Column], rows: Iterable[Row], *, width: int = WIDTH, colours: bool = False
) -> str:
    """The table: its head, and a line for each row and for each note. Numbers get commas."""
    rows = list(rows)
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(
            Text(column.title, no_wrap=True, overflow="ellipsis"),
            justify="right" if column.right else "left",
            no_wrap=not column.shrinks,
            overflow="ellipsis",
        )
    for row in rows:
        grid.add_row(*map(_cell, row.cells))
    console = _console(max(width, NARROWEST), colours=colours)
    console.print(grid)
    head, *lines = _written(console).splitlines()
    written = [head]
    for row, line in zip(rows, lines, strict=True):
        written.append(line)
        written += (text_line(note, width=width, colours=colours, indent=2) for note in row.notes)
    return "\n".join(written)


def text_line(
    text: str | Text, *, width: int = WIDTH, colours: bool = False, indent: int = 0
) -> str:
    """The text on one line, indented by so many blanks, cut at the width. A `str` is made safe
    and dim."""
    console = _console(width, colours=colours)
    found = safe(text, "dim") if isinstance(text, str) else text
    line = Text(" " * indent).append_text(found)
    console.print(line, no_wrap=True, overflow="ellipsis")
    return _written(console).rstrip("\n")


def _cell(cell: Cell) -> Text:
    if isinstance(cell, Text):
        return cell
    return safe(f"{cell:,}" if isinstance(cell, int) else cell or "–")


def _console(width: int, *, colours: bool) -> Console:
    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colours,
        color_system="standard" if colours else None,
        legacy_windows=False,
    )


def _written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
