"""The circuit as a state machine: what is in PostgreSQL, against a model of a few lines."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection, transaction
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from subscriptions import circuit
from subscriptions.models import Subscription
from subscriptions.signals import circuit_reset, circuit_tripped
from tests.factories import make_subscription
from tests.security.properties import FIXED

THRESHOLD = 3
PROBE_FIRST, PROBE_MOST = 300.0, 2000.0
names = itertools.count()


@dataclass
class Model:
    """A circuit, as the design tells it."""

    state: str = "active"
    failures: int = 0
    error: str = ""
    epoch: int = 0
    probes: int = 0
    automatic: bool = True
    tripped_told: int = 0
    reset_told: int = 0

    def report(self, results: list[bool | None], epoch: int, gone: bool) -> None:
        if self.state != "active" or epoch != self.epoch:
            return
        reached = gone
        for result in results:
            if result is not None:
                self.failures = 0 if result else self.failures + 1
                reached = reached or self.failures >= THRESHOLD
        if False in results or None in results or gone:
            self.error = "an error"
        elif True in results:
            self.error = ""
        if reached:
            self.state = "tripped"
            self.epoch += 1
            self.probes = 0
            self.tripped_told += 1

    def reset(self) -> None:
        if self.state == "active":
            return
        self.reset_told += self.state == "tripped"
        self.state, self.failures, self.error, self.probes = "active", 0, "", 0
        self.epoch += 1

    def pause(self, *, tripped_too: bool) -> None:
        if self.state == "active" or (self.state == "tripped" and tripped_too):
            self.state, self.probes = "paused", 0

    def failed_probe(self, epoch: int) -> None:
        if self.state == "tripped" and epoch == self.epoch:
            self.probes += 1
            self.error = "a failed probe"


results = st.lists(st.sampled_from([True, False, False, None]), min_size=1, max_size=4)
# Results come back of the epoch they were sent in: mostly this one, sometimes an older.
ages = st.sampled_from([0, 0, 0, 0, 1, 2])


class Circuit(RuleBasedStateMachine):
    @initialize(automatic=st.booleans())
    def begin(self, automatic: bool) -> None:
        self.told: list[tuple[str, str]] = []
        self.row = make_subscription(
            name=f"machine {next(names)}", recovery="automatic" if automatic else "manual"
        )
        self.model = Model(epoch=self.row.circuit_epoch, automatic=automatic)
        circuit_tripped.connect(self.hear_trip)
        circuit_reset.connect(self.hear_reset)

    def teardown(self) -> None:
        circuit_tripped.disconnect(self.hear_trip)
        circuit_reset.disconnect(self.hear_reset)

    def hear_trip(self, subscription: Subscription, **_: Any) -> None:
        self.told.append(("tripped", subscription.name))

    def hear_reset(self, subscription: Subscription, **_: Any) -> None:
        self.told.append(("reset", subscription.name))

    @rule(results=results, age=ages, gone=st.sampled_from([False, False, False, True]))
    def report(self, results: list[bool | None], age: int, gone: bool) -> None:
        epoch = self.model.epoch - age
        results = [*results, False] if gone else results
        failed = gone or False in results or None in results
        before = self.model.tripped_told
        self.model.report(results, epoch, gone)
        with transaction.atomic():
            tripped = circuit.record(
                [
                    circuit.Report(
                        self.row.pk, epoch, circuit.tally(results, gone=gone),
                        error="an error" if failed else "", failed=failed,
                    )
                ]
            )  # fmt: skip
        assert tripped == [self.row.pk] * (self.model.tripped_told - before)

    @rule(discard=st.booleans())
    def reset(self, discard: bool) -> None:
        self.model.reset()
        circuit.reset([self.row.pk], discard_held=discard)

    @rule()
    def reset_by_saving(self) -> None:
        self.model.reset()
        row = Subscription.objects.get(pk=self.row.pk)
        row.enabled = True
        row.save()

    @rule(enabled=st.booleans())
    def update(self, enabled: bool) -> None:
        if enabled:
            self.model.reset()
        else:
            self.model.pause(tripped_too=False)
        assert Subscription.objects.filter(pk=self.row.pk).update(enabled=enabled) == 1

    @rule(tripped_too=st.booleans())
    def pause(self, tripped_too: bool) -> None:
        self.model.pause(tripped_too=tripped_too)
        (circuit.pause if tripped_too else circuit.pause_active)([self.row.pk])

    @rule()
    def change_the_secret(self) -> None:
        self.model.epoch += 1
        Subscription.objects.get(pk=self.row.pk).add_secret()

    @rule()
    def save_an_old_form(self) -> None:
        """A form that was opened before anything happened changes a name, and nothing else."""
        self.row.name = f"machine {next(names)}"
        self.row.save()

    @precondition(lambda self: self.model.state == "tripped")
    @rule(age=ages)
    def probe_fails(self, age: int) -> None:
        epoch = self.model.epoch - age
        self.model.failed_probe(epoch)
        circuit.record_failed_probe(self.row.pk, epoch, "a failed probe")

    @precondition(lambda self: self.model.state == "tripped")
    @rule(age=ages)
    def probe_succeeds(self, age: int) -> None:
        epoch = self.model.epoch - age
        if epoch == self.model.epoch:
            self.model.reset()
        circuit.reset([self.row.pk], epoch=epoch)

    @invariant()
    def the_row_is_what_the_model_says(self) -> None:
        if not hasattr(self, "row"):
            return
        row, model = Subscription.objects.get(pk=self.row.pk), self.model
        assert row.state == model.state
        assert row.consecutive_failures == model.failures
        assert row.last_error == model.error
        assert row.circuit_epoch == model.epoch
        assert row.probe_count == model.probes
        assert (row.auto_disabled_at is not None) == (model.state == "tripped")
        assert (row.next_probe_at is not None) == (model.state == "tripped" and model.automatic)

    @invariant()
    def every_change_was_told_once(self) -> None:
        if not hasattr(self, "row"):
            return
        kinds = [kind for kind, _ in self.told]
        assert kinds.count("tripped") == self.model.tripped_told
        assert kinds.count("reset") == self.model.reset_told


@pytest.mark.django_db(transaction=True)
def test_the_circuit_does_what_a_model_of_it_does(
    configure: Callable[..., None], ordered: object
) -> None:
    configure(
        circuit_threshold=THRESHOLD,
        probe_first=PROBE_FIRST,
        probe_most=PROBE_MOST,
        fuse_trips=10**6,
    )
    # No shrinking: on a real database it takes minutes, and 25 steps can be read.
    bounded = settings(
        FIXED,
        max_examples=25,
        stateful_step_count=25,
        phases=[Phase.explicit, Phase.generate],
    )
    run_state_machine_as_test(Circuit, settings=bounded)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM subscriptions_subscription WHERE circuit_epoch > 3")
        assert cursor.fetchone()[0] >= 5, "the machine got somewhere"
