"""The reference package, django-webhook2, as it comes: installed, loaded, and measured.

It runs in Celery's default pool with 2 processes, in an environment of its own that is made at
the first run, on the same engines (with databases of its own) and with the same receiver.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from children import child
from measuring import BenchmarkError, compare_arrivals, cpu_seconds, run, running, wait_for_growth
from phase import Measured
from place import CHECKOUT, HERE, Place, receiving

from webhooks_project.engines import DATABASE_USER

HOME = HERE / "peer"
PACKAGE = "django-webhook2"
PROCESSES = 2
_DATABASE = "peer"
_REDIS_DATABASE = 2
_ID = r'"event_id": "([^"]+)"'
_SETTLE_SECONDS = 60.0


def name() -> str:
    """The package with its version."""
    for line in (HOME / "requirements.txt").read_text().splitlines():
        package, _, version = line.partition("==")
        if package == PACKAGE:
            return f"{package} {version}"
    raise ValueError(f"{HOME / 'requirements.txt'} does not pin {PACKAGE}")


def backlog(place: Place, deliveries: int, subscriptions: int = 20) -> Measured:
    """All published before its worker runs; the clock starts with the first arrival."""
    return _measure(place, "backlog", deliveries // subscriptions, subscriptions, drained=True)


def published_live(place: Place, scenario: str, events: int, subscriptions: int) -> Measured:
    """Published one event after the other while its worker runs."""
    return _measure(place, scenario, events, subscriptions, drained=False)


def _measure(
    place: Place, scenario: str, events: int, subscriptions: int, *, drained: bool
) -> Measured:
    python = _environment(place.directory / "peer-venv", place.directory / "peer-install.log")
    place.make_database(_DATABASE)
    place.empty_redis(_REDIS_DATABASE)
    env = _variables(place)
    with tempfile.TemporaryDirectory(prefix="peer-", dir=place.directory) as directory:
        expected = Path(directory, "expected")
        expected.touch()
        with (
            receiving(Path(directory, "arrivals"), id_pattern=_ID) as receiver,
            child(
                [str(python), "load.py", str(subscriptions), str(receiver.ports[0]), str(expected)],
                log=place.directory / "peer-load.log",
                env=env,
                cwd=HOME,
            ) as shop,
        ):
            if drained:
                said = shop.ask(events=events)
                place.checkpoint()
            load_before = os.getloadavg()[0]
            command = [str(python), "-m", "celery", "-A", "app", "worker"]
            log = place.directory / "peer-worker.log"
            with running(
                [*command, "--concurrency", str(PROCESSES)], log=log, env=env, cwd=HOME
            ) as worker:

                def check() -> None:
                    if worker.poll() is not None:
                        raise BenchmarkError(
                            f"{PACKAGE}: the worker ended with status {worker.returncode}; "
                            f"see {log}"
                        )

                if not drained:
                    shop.ask(events=1)
                    wait_for_growth(receiver.arrived, subscriptions, check)
                    _unfinished(place)
                    expected.write_text("")
                else:
                    wait_for_growth(receiver.arrived, 1, check)
                pids = place.engine_pids() | {
                    "publisher": shop.pid,
                    "worker": worker.pid,
                    "receiver": receiver.process.pid,
                }
                before = {program: cpu_seconds(pid) for program, pid in pids.items()}
                offset = 0 if drained else receiver.arrived.offset
                warm = 0 if drained else subscriptions
                if not drained:
                    said = shop.ask(events=events)
                deliveries = events * subscriptions
                wait_for_growth(receiver.arrived, warm + deliveries, check)
                recorded = deliveries - _unfinished(place)
                cpu = {program: cpu_seconds(pid) - before[program] for program, pid in pids.items()}
            # What the worker still sent on its way out is in the log by now.
            lines = receiver.log.read_text()[offset:]
            wanted = {
                (path, event) for path, event in map(str.split, expected.read_text().splitlines())
            }
            return Measured.of(
                scenario,
                compare_arrivals(lines, wanted),
                began=None if drained else said["began"],
                side=name(),
                recorded=recorded,
                cpu=cpu,
                load_before=load_before,
                figures={"publishing_seconds": said["ended"] - said["began"]},
            )


def _unfinished(place: Place) -> int:
    """How many deliveries are not recorded as delivered: 0 as soon as it is 0."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    with place.connect(_DATABASE) as connection:
        while True:
            row = connection.execute(
                "SELECT count(*) FROM django_webhook_webhookevent WHERE status <> 'SUCCESS'"
            ).fetchone()
            if row is None or row[0] == 0 or time.monotonic() > deadline:
                return 0 if row is None else int(row[0])
            time.sleep(0.02)


def _variables(place: Place) -> dict[str, str]:
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
    return {one: os.environ[one] for one in kept if one in os.environ} | {
        "DJANGO_SETTINGS_MODULE": "settings",
        "PEER_DATABASE": _DATABASE,
        "PEER_DATABASE_USER": DATABASE_USER,
        "PEER_DATABASE_HOST": str(place.layout.run),
        "PEER_BROKER_URL": (
            f"redis+socket://{place.layout.valkey_socket}?virtual_host={_REDIS_DATABASE}"
        ),
    }


def _environment(venv: Path, log: Path) -> Path:
    """The interpreter of its own environment. A stamp, written last, says that it is whole."""
    python = venv / "bin" / "python"
    stamp = venv / ".installed"
    requirements = HOME / "requirements.txt"
    wanted = "\n".join(
        [
            *(sys.version, str(venv)),
            requirements.read_text(),
            (CHECKOUT / "constraints.txt").read_text(),
        ]
    )
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"setting up {venv}; this takes a minute, once", file=sys.stderr, flush=True)
    run([sys.executable, "-m", "venv", "--clear", str(venv)], log=log)
    install = ("install", "--quiet", "--disable-pip-version-check", "-r", str(requirements))
    run([str(python), "-m", "pip", *install], log=log)
    stamp.write_text(wanted)
    return python
