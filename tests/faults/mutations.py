"""Takes guards out of a copy of this tree, one at a time, and shows which test notices.

    python -m tests.faults.mutations [--report docs/reliability.md]

Each guard is a text in the source that is replaced by another; it must be there exactly as often
as is said, so that a guard that was rewritten is not taken for one that was tried. Each test must
pass in the copy as it is, and fail in the copy without the guard. Ends with status 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults import report

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    *("api", "client", "deliveries", "subscriptions", "tests", "webhooks_project"),
    *("manage.py", "pyproject.toml", "requirements.txt"),
)
PLAIN = "tests.settings"
FAULTS = "tests.faults.settings"
# Of one test, in seconds; one that hangs without its guard has failed too.
LONGEST = 60
# What pytest says with its exit status.
PASSED, FAILED = 0, 1


@dataclass(frozen=True)
class Guard:
    """A guard, and the test that must fail without it. `times`: how often the text is there."""

    name: str
    what: str
    file: str
    text: str
    instead: str
    test: str
    times: int = 1
    settings: str = PLAIN

    def take_out(self, tree: Path) -> None:
        """Raises ValueError if the text is not there as often as is said."""
        file = tree / self.file
        source = file.read_text()
        found = source.count(self.text)
        if found != self.times:
            raise ValueError(
                f"{self.name}: {self.file} has the text {self.text!r} {found} times, not "
                f"{self.times}. The guard was rewritten: say in {__file__} what it is now."
            )
        file.write_text(source.replace(self.text, self.instead))


GUARDS = (
    Guard(
        "lease",
        "a lane that another process holds is taken all the same",
        "deliveries/claiming/statements.py",
        "(lane.lease_until IS NULL OR lane.lease_until < now())",
        "(true)",
        "tests/deliveries/test_claims.py::test_a_lane_that_another_process_holds_is_not_taken",
    ),
    Guard(
        "lease, at its end",
        "a request may begin that ends after its lease, when others send again",
        "deliveries/transport/jobs.py",
        "self.start_by = start_by",
        "self.start_by = None",
        "tests/deliveries/transport/test_transport.py::"
        "test_a_request_that_finds_no_place_by_its_time_is_given_back_and_never_sent",
    ),
    Guard(
        "places",
        "receivers that become silent together may have all places, each its ten",
        "deliveries/sending/sender.py",
        "return not lane.in_flight or not self.transport.is_crowded(lane.recovering)",
        "return True",
        "tests/faults/test_places.py::"
        "test_receivers_that_become_silent_together_leave_places_for_the_others",
        settings=FAULTS,
    ),
    Guard(
        "epoch",
        "the circuit counts results of requests from before a trip, a reset or a new URL",
        "subscriptions/circuit/statements.py",
        "s.circuit_epoch = r.epoch",
        "true",
        "tests/subscriptions/test_circuit.py::test_late_results_of_an_older_epoch_change_nothing",
        times=2,
    ),
    Guard(
        "`SKIP LOCKED`, claiming",
        "a claim waits for a delivery that somebody else has locked",
        "deliveries/claiming/statements.py",
        "        FOR UPDATE SKIP LOCKED\n",
        "        FOR UPDATE\n",
        "tests/faults/test_postgresql.py::test_a_locked_delivery_holds_up_no_other",
        times=3,
        settings=FAULTS,
    ),
    Guard(
        "`SKIP LOCKED`, settling",
        "a settlement waits for a subscription that somebody else has locked",
        "deliveries/settling/statements.py",
        "FOR NO KEY UPDATE SKIP LOCKED",
        "FOR NO KEY UPDATE",
        "tests/faults/test_postgresql.py::test_a_locked_subscription_slows_no_other_down",
        settings=FAULTS,
    ),
    Guard(
        "bell, new",
        "each publish sends a message, whether one is under way or not",
        "deliveries/waking/wakeups.py",
        "1, 'NX', 'PX'",
        "1, 'PX'",
        "tests/deliveries/test_wakeups.py::"
        "test_an_idle_system_gets_a_message_and_a_busy_one_shares_it",
    ),
    Guard(
        "bell, taken down",
        "a process stops listening while an id waits, and takes the bell down",
        "deliveries/waking/wakeups.py",
        "if redis.call('ZCARD', KEYS[1]) > 0 then return 0 end",
        "",
        "tests/deliveries/test_wakeups.py::test_a_listener_that_stops_leaves_nothing_behind",
    ),
    Guard(
        "due set, fair",
        "an event for very many holds up the one for somebody else",
        "deliveries/waking/wakeups.py",
        "now + (ARGV[2] + number - 4) * SPREAD",
        "now",
        "tests/deliveries/test_wakeups.py::"
        "test_a_large_event_does_not_hold_up_the_one_for_somebody_else",
    ),
    Guard(
        "deadline",
        "libcurl is not told when a request must be over",
        "deliveries/transport/handle.py",
        "self.curl.setopt(pycurl.TIMEOUT_MS, timeout_ms)",
        "pass",
        "tests/deliveries/transport/test_hostile_receivers.py::"
        "test_a_dripped_answer_ends_at_the_deadline[one header]",
    ),
)


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the tree, with engines of its own in it."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        tree = Path(name)
        for one in COPIED:
            if (ROOT / one).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(ROOT / one, tree / one, ignore=ignored)
            else:
                shutil.copy2(ROOT / one, tree / one)
        yield tree


def run(guard: Guard, tree: Path) -> tuple[int, str]:
    """pytest's exit status for the guard's test, and what it said."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("WEBHOOKS_")},
        "PYTHONDONTWRITEBYTECODE": "1",
        "WEBHOOKS_LOCAL_DIR": str(tree / ".local"),
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", f"--ds={guard.settings}", guard.test),
            *("-q", "-p", "no:cacheprovider", f"--timeout={LONGEST}"),
        ],
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout + done.stderr


def first_complaint(said: str) -> str:
    """The first line of what pytest marks as an error, for the table."""
    lines = (line.removeprefix("E").strip() for line in said.splitlines() if line[:2] == "E ")
    return next(lines, "it does not end").replace("|", "\\|")[:100]


def tried(guard: Guard, tree: Path) -> str:
    """The guard's line in the table. Raises ValueError if the test does not notice."""
    status, said = run(guard, tree)
    if status != PASSED:
        raise ValueError(f"{guard.test} does not even pass with its guard:\n{said[-3000:]}")
    source = (tree / guard.file).read_text()
    guard.take_out(tree)
    began = time.monotonic()
    try:
        status, said = run(guard, tree)
    finally:
        (tree / guard.file).write_text(source)
    if status == PASSED:
        raise ValueError(f"{guard.test} passes without its guard: {guard.name}")
    if status != FAILED and "Timeout" not in said:
        raise ValueError(f"{guard.test} did not run (status {status}):\n{said[-3000:]}")
    name = guard.test.rpartition("::")[2]
    print(f"{guard.name}: {name} fails after {time.monotonic() - began:.0f} s", flush=True)
    cells = (guard.name, guard.what, f"`{name}`", f"`{first_complaint(said)}`")
    return f"| {' | '.join(cells)} |"


SECTION = """\
## Guards taken out

`make mutations` copies the tree, takes out one guard at a time, and runs the test that must notice:
it passes with the guard, and fails without it. Tried for real, each time.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report", type=Path, help="write the section of the guards to this file")
    options = parser.parse_args()
    lines, wrong = [], []
    with copied() as tree:
        for guard in GUARDS:
            try:
                lines.append(tried(guard, tree))
            except ValueError as error:
                wrong.append(str(error))
                print(f"WRONG: {error}", file=sys.stderr, flush=True)
    if wrong:
        sys.exit(f"{len(wrong)} of {len(GUARDS)} guards could be taken out unnoticed, or not tried")
    heads = ("guard", "without it", "the test that fails", "it says")
    if options.report:
        text = "\n".join([SECTION, *report.table(heads, lines)])
        report.write(options.report, "mutations", text)


if __name__ == "__main__":
    main()
