"""`make clean`: remove what was installed and made in this checkout, the embedded database too.

Asks nothing, but refuses while something uses the embedded engines.
"""

import fcntl
import os
import shutil
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
MADE = (
    *(".venv", "build", "webhooks_project.egg-info"),
    *(".pytest_cache", ".mypy_cache", ".ruff_cache", ".import_linter_cache", ".hypothesis"),
)


def in_use(local: Path) -> bool:
    """Does a process run the engines below this directory?"""
    try:
        with (local / "owner.lock").open("r+") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def main() -> None:
    local = Path(os.environ.get("WEBHOOKS_LOCAL_DIR") or CHECKOUT / ".local")
    others = ("demo", "test", "browser", "screenshots", "faults")
    if any(in_use(one) for one in (local, *(local / name for name in others))):
        sys.exit(f"{local} is in use: end what runs here (make up, make demo, make test) first.")
    for place in (local, *(CHECKOUT / name for name in MADE)):
        if place.exists():
            shutil.rmtree(place)
    for cache in CHECKOUT.rglob("__pycache__"):
        shutil.rmtree(cache)


if __name__ == "__main__":
    main()
