"""`docs/security.md` names tests; each of them exists, and each file here is named by it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()

# `tests/…/test_x.py::test_y`, or `::test_y` alone for a test of the file named last.
NAMED = re.findall(r"`(tests/[\w/]+\.py)?(?:::(test_\w+))?`", TEXT)


def named_tests() -> list[tuple[str, str]]:
    found, file = [], ""
    for path, test in NAMED:
        file = path or file
        if file and (path or test):
            found.append((file, test))
    return found


def names_of_tests(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize(("file", "test"), named_tests(), ids=lambda one: one or "whole file")
def test_a_test_that_the_document_names_exists(file: str, test: str) -> None:
    path = ROOT / file
    assert path.is_file()
    if test:
        assert test in names_of_tests(path)


def test_the_document_names_many_tests_and_every_file_of_this_directory() -> None:
    assert len(named_tests()) > 40
    files = {file for file, _ in named_tests()}
    for path in Path(__file__).parent.glob("test_*.py"):
        assert str(path.relative_to(ROOT)) in files


def test_every_row_of_the_threat_model_names_a_test() -> None:
    table = TEXT.partition("## Threats")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    for row in rows:
        assert "::test_" in row, row


def test_there_are_more_than_a_hundred_and_twenty_hostile_cases() -> None:
    """Counted in the tables of these files, each entry of which is a case with a name."""
    tables = {
        "test_destinations_attacked.py": ("URLS", "ANSWERS"),
        "test_answers_attacked.py": ("ANSWERS", "ROWS"),
        "test_tls_attacked.py": ("CERTIFICATES",),
        "test_input_attacked.py": (
            "HEADERS", "PAYLOADS", "EXACT", "DATA", "TOPICS", "PATTERNS", "IDS", "COLLISIONS",
        ),
    }  # fmt: skip
    count = 0
    for file, names in tables.items():
        for node in ast.parse((Path(__file__).parent / file).read_text()).body:
            target = node.target if isinstance(node, ast.AnnAssign) else None
            if isinstance(node, ast.Assign):
                target = node.targets[0]
            if isinstance(target, ast.Name) and target.id in names:
                assert isinstance(node, (ast.Assign, ast.AnnAssign))
                assert isinstance(node.value, ast.Dict)
                count += len(node.value.keys)
    assert count >= 120
    assert f"{count} hostile inputs" in TEXT
