"""Keys of a checkout that runs on embedded engines, made once and kept under `.local/`."""

import json
import os
import secrets
import tempfile
from pathlib import Path

from cryptography.fernet import Fernet

from webhooks_project import engines


def local_keys() -> dict[str, str]:
    """`SECRET_KEY` and `WEBHOOKS_SECRET_KEYS` of this checkout.

    Made at the first call. Several processes may call at once: a hard link decides which
    one's keys stay, so that all of them read the same, and a process that dies half way
    leaves no half-written file.
    """
    path = engines.local_dir() / "keys.json"
    if not path.exists():
        _make(path)
    keys: dict[str, str] = json.loads(path.read_text())
    return keys


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = {
        "SECRET_KEY": secrets.token_urlsafe(50),
        "WEBHOOKS_SECRET_KEYS": Fernet.generate_key().decode(),
    }
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".keys")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(keys, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            return
    finally:
        os.unlink(name)
