"""What an operator does to deliveries: each act asks first, and says what it will do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from django import forms

from deliveries.admin.acts import Done, many
from deliveries.keeping.discard import discard
from deliveries.keeping.replay import BATCH, FINISHED, Replayed, replay
from deliveries.models import Delivery

# Of so many the page names each one.
MAX_NAMED = 20
_OPEN = (Delivery.Status.PENDING, Delivery.Status.HELD)


class DeliveryForecast(NamedTuple):
    """As `acts.Forecast`, of deliveries."""

    does: str
    rows: Sequence[tuple[Delivery, str]]
    left: int
    left_because: str
    undo: str
    refused: str = ""


class DeliveryAct(NamedTuple):
    """`permission`: as in `deliveries.{permission}_delivery`; `of`: the statuses that it is for."""

    name: str
    permission: str
    title: str
    of: tuple[str, ...]
    does: str
    left_because: str
    undo: str
    do: Callable[[list[int]], Done]
    form: type[forms.Form] = forms.Form
    form_first: bool = False

    def forecast(self, chosen: Sequence[Delivery]) -> DeliveryForecast:
        to_do = [one for one in chosen if one.status in self.of]
        named = [(one, one.get_status_display()) for one in to_do[:MAX_NAMED]]
        does = f"{many(len(to_do), 'delivery is', 'deliveries are')} {self.does}"
        left = len(chosen) - len(to_do)
        return DeliveryForecast(does, named, left, self.left_because, self.undo)


def _resend(ids: list[int]) -> Done:
    total, changed = Replayed(), 0
    for start in range(0, len(ids), BATCH):
        some, some_ids = replay(ids[start : start + BATCH])
        total = Replayed(total.pending + some.pending, total.held + some.held)
        changed += len(some_ids)
    said = []
    if total.pending or not total.held:
        said.append(f"{many(total.pending, 'delivery', 'deliveries')} will be sent again now.")
    if total.held:
        held = many(total.held, "delivery is", "deliveries are")
        said.append(f"{held} held until the subscription is active again.")
    if left := len(ids) - changed:
        stay = many(left, "delivery was left as it is", "deliveries were left as they are")
        said.append(
            f"{stay}: open already, or the subscription was deleted or is not for all tenants now."
        )
    return Done(changed, " ".join(said))


def _discard(ids: list[int]) -> Done:
    changed = sum(len(discard(ids[at : at + BATCH])) for at in range(0, len(ids), BATCH))
    said = f"{many(changed, 'delivery was', 'deliveries were')} discarded."
    if left := len(ids) - changed:
        stay = many(left, "delivery was left as it is", "deliveries were left as they are")
        said += f" {stay}: finished already."
    return Done(changed, said)


DELIVERY_ACTS = {
    act.name: act
    for act in (
        DeliveryAct(
            "resend",
            "resend",
            "Send again",
            FINISHED,
            "sent again, with the webhook-id that it had the first time; what belongs to a "
            "subscription that is paused or tripped is held until that is active again.",
            "pending or held already",
            "What was sent cannot be called back.",
            _resend,
        ),
        DeliveryAct(
            "discard",
            "discard",
            "Discard",
            _OPEN,
            "discarded, and not sent. A request that is on its way may still arrive.",
            "finished already",
            "Send again takes it back.",
            _discard,
        ),
    )
}
