"""Publishing events and delivering them: `from deliveries import publish`.

The way of an event is the list of rooms: `publishing`, `waking`, `claiming`, `sending` (which
pulls `transport` and `judging`), `settling`; `keeping` is beside it. Small modules below them:
`body` (the bytes of an event), `models`, `values` (what passes between the stages), `holding`
(deliveries follow their subscription's state), `stage` and `progress` (threads). The order is a
contract in `pyproject.toml`; `docs/architecture.md` has the table.

May import `subscriptions`; never `webhooks_project`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deliveries.publishing.publish import EventConflict, NewEvent, publish, publish_many

__all__ = ["EventConflict", "NewEvent", "publish", "publish_many"]


def __getattr__(name: str) -> Any:
    # Models cannot be imported while Django is still loading its apps, this package among them.
    if name in __all__:
        from deliveries.publishing import publish as publishing

        return getattr(publishing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
