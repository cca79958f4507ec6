"""The programs that the Makefile runs and no other test does can at least be started."""

from __future__ import annotations

import subprocess
import sys

import pytest

from webhooks_project.engines import CHECKOUT


@pytest.mark.parametrize("name", ["bench.py", "steps.py", "pages.py"])
def test_a_benchmark_finds_all_that_it_imports(name: str) -> None:
    run = subprocess.run(
        [sys.executable, f"benchmarks/{name}", "--help"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert run.returncode == 0, run.stderr
    assert "usage:" in run.stdout
