"""The web server of the project with an application that does nothing, started in the same way.

python benchmarks/idle_web.py HOST PORT PROCESSES THREADS
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from webhooks_project import web

ANSWER = b'{"nothing": "was done"}'
HEADERS = [("Content-Type", "application/json"), ("Content-Length", str(len(ANSWER)))]


def nothing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", HEADERS)
    return [ANSWER]


def load(parent: int, target: str) -> Any:
    return nothing


if __name__ == "__main__":
    web.load = load
    web.main(sys.argv[1], *map(int, sys.argv[2:5]))
