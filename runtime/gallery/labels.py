"""The labels of a gallery by number: a slot for each label, and a hash table from a label to its slot."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

_EMPTY, _DELETED = -1, -2


class Labels:
    """Labels in the order in which they were added. Slots count up and are never used twice.

    A dict of 100,000 labels takes 8 MB, 4 % of their vectors; this table of 32-bit slots takes 1 MB.
    Only the gallery's writer calls the methods; readers read ``names`` below the count that they know.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names: list[str] = []
        self._table = array("i", [_EMPTY]) * 16
        self._used = 0  # cells that are not empty: live slots and deleted ones
        self._alive = 0
        names = list(names)
        self._rebuild(len(names))
        for name in names:
            self.add(name)

    def __len__(self) -> int:
        """How many labels there are."""
        return self._alive

    def find(self, name: str) -> int | None:
        """The label's slot; None when there is none."""
        table, names = self._table, self.names
        mask = len(table) - 1
        cell = hash(name) & mask
        while (slot := table[cell]) != _EMPTY:
            if slot != _DELETED and names[slot] == name:
                return slot
            cell = (cell + 1) & mask
        return None

    def add(self, name: str) -> int:
        """A new slot for a label that has none."""
        if (self._used + 1) * 3 > len(self._table) * 2:
            self._rebuild(self._alive + 1)
        slot = len(self.names)
        self.names.append(name)
        self._put(name, slot)
        self._alive += 1
        return slot

    def discard(self, name: str) -> None:
        """Take the label's slot away from it; its name stays for those who read an earlier state."""
        mask = len(self._table) - 1
        cell = hash(name) & mask
        while (slot := self._table[cell]) != _EMPTY:
            if slot != _DELETED and self.names[slot] == name:
                self._table[cell] = _DELETED
                self._alive -= 1
                return
            cell = (cell + 1) & mask

    def _put(self, name: str, slot: int) -> None:
        mask = len(self._table) - 1
        cell = hash(name) & mask
        while self._table[cell] != _EMPTY:
            cell = (cell + 1) & mask
        self._table[cell] = slot
        self._used += 1

    def _rebuild(self, room: int) -> None:
        live = [slot for slot in self._table if slot >= 0]
        size = 16
        while size < room * 2:
            size *= 2
        self._table = array("i", [_EMPTY]) * size
        self._used = 0
        for slot in live:
            self._put(self.names[slot], slot)
