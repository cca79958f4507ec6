"""`make clean`: remove what was installed and made in this checkout, the embedded database too.

Asks nothing, but refuses while something uses the embedded engines.
"""

import fcntl
import os
import shutil
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
CACHES = (".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis")


def in_use(local: Path) -> bool:
    """Does a process use the engines below this directory?"""
    try:
        with (local / "engines.users").open("r+") as users:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def main() -> None:
    local = Path(os.environ.get("WEBHOOKS_LOCAL_DIR") or CHECKOUT / ".local")
    if in_use(local):
        sys.exit(f"{local} is in use: end what runs here (make up, make demo, workers) first.")
    elsewhere = (local / "postgresql").resolve().parent  # root without user namespaces
    if elsewhere.parent == Path("/var/tmp") and elsewhere.name.startswith("webhooks-"):  # noqa: S108
        shutil.rmtree(elsewhere)
    for place in (local, CHECKOUT / ".venv", *(CHECKOUT / name for name in CACHES)):
        if place.exists():
            shutil.rmtree(place)
    for cache in CHECKOUT.rglob("__pycache__"):
        shutil.rmtree(cache)


if __name__ == "__main__":
    main()
