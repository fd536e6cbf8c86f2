"""Reads the files that torch.save wrote before torch 1.6, without torch.

Five pickles, one behind the other: a magic number; the version of the format, 1001; what machine wrote it; the value,
with a persistent id ``("storage", storage class, key, location, number of elements, view)`` in place of each storage;
and the list of the storages' keys. The storages follow in that order, each as the number of its elements (int64) and
the elements. Everything is little-endian, whatever machine wrote it. A `view` of a storage, which torch wrote before
torch 0.4, is ``(key of its own, first element, number of elements)``, and None otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nblstm.arrays import Array
from nblstm.weights.elements import Element, Elements, is_count
from nblstm.weights.source import Source, shown
from nblstm.weights.tensors import Storage, StorageType, Tensors
from nblstm.weights.unpickler import unpickle

_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of the magic number
_VERSION = 1001


def is_legacy(head: bytes) -> bool:
    """Say whether a file with this beginning is one of torch.save before torch 1.6."""
    return head.startswith(_MAGIC)


def read_legacy(source: Source, elements: Elements) -> Any:
    """Return the value that torch.save wrote, with arrays in place of tensors.

    Raises WeightFileError for anything that is not made of tensors and plain values.
    """
    storages = _Storages(source)
    tensors = Tensors(source, elements, storages.empty, 65 * source.size + 2**26)
    names = tensors.names()
    source.file.seek(len(_MAGIC))
    version = _plain(source)
    if type(version) is not int or version != _VERSION:
        got = str(version)[:80] if isinstance(version, (int, str)) else type(version).__name__
        raise source.refuse(f"version {_VERSION} of the format of torch.save before torch 1.6", got)
    _plain(source)  # what machine wrote it: torch does not look at it either
    value = unpickle(source, source.file, names.get, storages.storage)
    keys = _plain(source)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise source.refuse("a list of the storages' keys", type(keys).__name__)
    storages.fill(keys, source.file.tell(), tensors.loaded)
    return value


def _plain(source: Source) -> Any:
    """Return the value of a pickle that mentions nothing but plain values."""

    def refuse(identity: object) -> object:
        raise source.refuse("no storage in this pickle", type(identity).__name__)

    return unpickle(source, source.file, lambda _: None, refuse)


class _Storages:
    """The storages of one file: what the value says of them, which comes first, and then their numbers."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.declared: dict[str, tuple[Element | None, int]] = {}
        self.size = 0

    def storage(self, identity: object) -> Storage:
        """Return the storage, or the part of one, that a persistent id names."""
        match identity:
            case (str(kind), StorageType(element), str(key), _, count, view) if kind == "storage" and is_count(count):
                storage = Storage(element, key, count, *self._part(view, count))
            case _:
                raise self.source.refuse("the persistent id of a storage", type(identity).__name__)
        if self.declared.setdefault(key, (element, count)) != (element, count):
            raise self.source.refuse(f"storage {shown(key)} as it was before", "another kind or number of elements")
        return storage

    def empty(self, storage: Storage, element: Element) -> Array:
        """Return memory for the numbers of a storage. All of it is in the file: no more is taken than that has."""
        self.size += storage.size
        self.source.check(0, self.size)
        return np.empty(storage.size // element.stored.itemsize, element.given)

    def fill(self, keys: list[str], start: int, loaded: dict[str, tuple[Element, Array]]) -> None:
        """Read the storages, of which the first begins at byte `start`, into the memory of those that are used."""
        if sorted(keys) != sorted(self.declared):
            raise self.source.refuse(f"the {len(self.declared)} storages of its tensors", f"a list of {len(keys)}")
        for key in keys:
            kind, count = self.declared[key]
            found = int.from_bytes(self.source.read(start, 8).tobytes(), "little", signed=True)
            if found != count:
                raise self.source.refuse(f"{count} numbers in storage {shown(key)}", found)
            size = Storage(kind, key, count).size
            self.source.check(start + 8, size)
            if key in loaded:
                self._read(start + 8, size, *loaded[key])
            start += 8 + size

    def _read(self, start: int, size: int, element: Element, numbers: Array) -> None:
        if element.stored.newbyteorder("<") == element.given:
            self.source.fill(start, numbers.view(np.uint8))
        else:
            numbers[...] = element.numbers(self.source.read(start, size))

    def _part(self, view: object, count: int) -> tuple[int, int]:
        match view:
            case None:
                return 0, count
            case (str(), first, size) if is_count(first) and is_count(size) and first + size <= count:
                return first, first + size
        raise self.source.refuse(f"a view of the {count} numbers of its storage", "another")
