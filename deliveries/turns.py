"""Whose turn it is: a long queue of one owner delays no other."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Items that wait: those of an owner in the order in which they came, the owners by turns.

    An item waits once at most. No call takes longer because many wait. Not thread-safe.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        # By owner, the first one's turn is next; and by the identity of the item.
        self._waiting: OrderedDict[str, OrderedDict[int, Item]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Item]:
        """All that wait, one owner's after the other's."""
        for items in self._waiting.values():
            yield from items.values()

    def put(self, owner: str, item: Item) -> None:
        self._waiting.setdefault(owner, OrderedDict())[id(item)] = item

    def pop(self) -> Item:
        """The item that has waited longest of the owner whose turn it is. It waits no longer.

        Raises `KeyError` if none waits.
        """
        owner, items = self._waiting.popitem(last=False)
        _, item = items.popitem(last=False)
        if items:
            self._waiting[owner] = items
        return item

    def has(self, owner: str, item: Item) -> bool:
        return id(item) in self._waiting.get(owner, ())

    def remove(self, owner: str, item: Item) -> None:
        """Raises `KeyError` if it does not wait."""
        items = self._waiting[owner]
        del items[id(item)]
        if not items:
            del self._waiting[owner]
