"""The disk under PostgreSQL's data is full: a small one, of its own, in a mount namespace."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, connections

from tests.faults import disk
from tests.faults.invariants import check_invariants
from tests.faults.report import Row
from tests.faults.test_workers import slowly
from tests.faults.waiting import eventually
from tests.faults.world import World

LANES = 10
RATE = 20.0
MEGABYTES = 220
REFUSALS = 20
# Bytes of an event that is published while the disk is full: it needs room of its own.
LARGE = 60_000
START_SECONDS = 60.0


class SmallDisk:
    """PostgreSQL with a database of its own, whose data, logs and all else are on a small disk."""

    def __init__(self, directory: Path) -> None:
        """Raises `disk.NotPermitted`."""
        self._holder = subprocess.Popen(
            [sys.executable, "-m", disk.__name__, str(directory), str(MEGABYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline().strip()
        if said != disk.READY:
            self.close()
            raise disk.NotPermitted(f"no small disk of our own: {said}")
        # What is mounted in the holder's namespace is seen through it.
        self.place = Path(f"/proc/{self._holder.pid}/root{directory}")
        self.host = self.place / "run"
        self._ballast = self.place / "ballast"

    @property
    def free(self) -> int:
        found = os.statvfs(self.place)
        return found.f_bavail * found.f_frsize

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Not a byte is left, until the block is over."""
        with self._ballast.open("wb", buffering=0) as ballast:
            try:
                for size in (2**20, 4096):
                    with contextlib.suppress(OSError):
                        while ballast.write(bytes(size)):
                            pass
                yield
            finally:
                ballast.truncate(0)
        self._ballast.unlink()

    def close(self) -> None:
        for pipe in (self._holder.stdin, self._holder.stdout):
            assert pipe is not None
            pipe.close()
        self._holder.wait(START_SECONDS)


@pytest.fixture
def small_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    """This process and all that it starts use the database on the small disk."""
    # The path of a socket is short.
    directory = Path(tempfile.mkdtemp(prefix="disk"))
    try:
        made = SmallDisk(directory)
    except disk.NotPermitted as reason:
        directory.rmdir()
        pytest.skip(str(reason))
    try:
        connection.close()
        connection.close_pool()
        monkeypatch.setitem(connections.settings["default"], "HOST", str(made.host))
        monkeypatch.setenv("DATABASE_URL", f"postgresql://postgres@/webhooks?host={made.host}")
        call_command("migrate", interactive=False, verbosity=0)
        yield made
        stuck = world.installation.end()
        assert not stuck, f"not ended by SIGTERM: {stuck}"
    finally:
        connection.close()
        connection.close_pool()
        made.close()
        directory.rmdir()


def events() -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM deliveries_event")
        return {row[0] for row in cursor.fetchall()}


def said(error: BaseException) -> str:
    """The first words of what the database says."""
    return str(error).partition('"')[0].partition(":")[0].strip()


@pytest.mark.timeout(240)
@pytest.mark.fault(
    f"disk full under PostgreSQL's data (a disk of {MEGABYTES} MB), and space again",
    "publishing fails with a `DatabaseError`, nothing is acknowledged that was not committed; "
    "after space returns everything goes on",
)
def test_a_full_disk_refuses_events_and_loses_none(
    world: World, measured: Row, small_disk: SmallDisk
) -> None:
    site = world.receivers.site(slowly)
    topics = [f"disk.{n}" for n in range(LANES)]
    for topic in topics:
        world.subscribe(site, [topic])
    world.installation.standard()
    filler = os.urandom(LARGE // 2).hex()

    def refused() -> bool:
        world.ledger.publish(topics[0], filler=filler)
        return len(world.ledger.refused) >= REFUSALS

    with world.load(RATE, topics):
        assert world.receivers.wait_for(3 * LANES, 60), "nothing is delivered"
        with small_disk.full():
            eventually(refused, "publishing failing")
            free = small_disk.free
        kept = len(world.ledger.accepted)
        back = eventually(
            lambda: len(world.ledger.accepted) > kept + LANES, "publishing going on", 90
        )
    settled = world.wait_until_settled()
    found = check_invariants(world)
    errors = [one.error for one in world.ledger.refused]
    assert all(isinstance(error, DatabaseError) for error in errors), errors[:3]
    assert free < LARGE, "the disk was not full"
    assert {one.id for one in world.ledger.accepted} <= events()
    assert world.wanted() <= set(world.receivers.arrivals()), "something never arrived"
    assert found.undelivered == 0
    assert world.signals() == []
    measured.add(
        events=found.accepted,
        refused=len(errors),
        slowest_refusal=f"{max(one.took for one in world.ledger.refused):.2f} s",
        they_say=", ".join(sorted({f"“{said(error)}”" for error in errors})),
        publishing_goes_on_after=f"{back:.1f} s",
        unknown_outcomes=found.unknown,
        sent_twice=found.duplicates,
        all_settled_after=f"{settled:.1f} s",
    )
