"""The programs of docs/receiving.md, run as its readers run them."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import pytest

from tests.webhooks_project.waiting import eventually
from webhooks_project.child import as_child

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "receiving.md").read_text()
LANGUAGES = ("python", "node", "go")


def block(name: str) -> str:
    """The code under the fence that ends in `name`, a file's name or a language."""
    found = re.findall(rf"^```(?:\w+ )?{re.escape(name)}\n(.*?)^```$", PAGE, re.S | re.M)
    assert len(found) == 1, name
    return str(found[0])


def with_plain_form(program: str, function: str, plain: str, before: str) -> str:
    """`program` with the call changed as the page says, and `plain` in front of `before`."""
    assert program.count(f"{function}(") == 2, "its definition and one call"
    head, _, tail = program.rpartition(f"{function}(")
    program = f"{head}{'is_genuine_plain' if '_' in function else 'isGenuinePlain'}({tail}"
    assert program.count(before) == 1
    return program.replace(before, f"{plain}\n{before}") if plain else program


def source(language: str, form: str) -> tuple[str, str]:
    """The name and the text of a language's program, for `standard` or `plain` signatures."""
    file, function, plain, before = {
        "python": ("receive.py", "is_genuine", "plain.py", "class Receiver"),
        "node": ("receive.mjs", "isGenuine", "plain.mjs", "createServer(("),
        "go": ("receive.go", "isGenuine", "", "func main"),
    }[language]
    program = block(file)
    if form == "plain":
        program = with_plain_form(program, function, block(plain) if plain else "", before)
    return file, program


def tool(language: str) -> str:
    """The program that runs this language; the test is skipped if it is not there."""
    if language == "python":
        return sys.executable
    found = shutil.which(language) or shutil.which(language, path="/usr/local/go/bin")
    if found is None:
        pytest.skip(f"{language} is not installed")
    return found


def command(language: str, form: str, directory: Path) -> list[str]:
    """What starts the program; a Go program is compiled first."""
    file, text = source(language, form)
    path = directory / file
    path.write_text(text)
    if language != "go":
        return [tool(language), str(path)]
    compiled = directory / "receive"
    home = Path.home() if os.access(Path.home(), os.W_OK) else ROOT / ".local"
    subprocess.run(
        # Not optimised: that is two thirds of the processor time, for a program of a second.
        [tool("go"), "build", "-gcflags=all=-N -l", "-o", str(compiled), str(path)],
        env={
            "PATH": os.environ["PATH"],
            # For its cache: Go's own library takes half a minute, once.
            "HOME": str(home),
            "GOENV": "off",
            "GOTOOLCHAIN": "local",
            "GOPROXY": "off",
            "GOFLAGS": "-mod=mod",
            "CGO_ENABLED": "0",
        },
        check=True,
    )
    return [str(compiled)]


class Program:
    """A receiver of the page as a process of its own, on a free port, from here to the end."""

    def __init__(self, command: list[str], secrets: list[str], output: Path) -> None:
        self._command = command
        self._secrets = secrets
        self._output = output

    def __enter__(self) -> Program:
        # Bound to the end, so that no other program is given this port: the kernel lets the
        # receiver listen on it, for both sockets have SO_REUSEADDR and this one does not listen.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        port = self._port.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                as_child([*self._command, str(port)], signal.SIGKILL),
                env={"PATH": os.environ["PATH"], "WEBHOOK_SECRETS": " ".join(self._secrets)},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        try:
            eventually(self._listens)
        except AssertionError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait(10)
        self._port.close()

    def printed(self) -> str:
        return self._output.read_text()

    def post(self, headers: Mapping[str, str], body: bytes) -> int:
        """Send that, as it is; the status that is answered."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=20)
        try:
            others = {name: headers[name] for name in headers if name != "Content-Length"}
            connection.request("POST", "/", body, others)
            return connection.getresponse().status
        finally:
            connection.close()

    def hang_up(self) -> None:
        """Announce a body, send a part of it, and break the connection off."""
        address = urlsplit(self.url)
        assert address.port is not None
        with socket.create_connection(("127.0.0.1", address.port)) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.printed()
        try:
            socket.create_connection(("127.0.0.1", urlsplit(self.url).port or 0), 5).close()
        except OSError:
            return False
        return True
