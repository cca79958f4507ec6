"""Publishing events and delivering them: `from deliveries import publish`."""

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
