"""Reads the zip archives that torch.save writes (torch 1.6 and later), without torch.

In the archive, under one folder of any name: ``data.pkl``, the pickled value with a persistent id
``("storage", storage class, key, location, number of elements)`` in place of each storage; ``data/<key>``, the bytes of
a storage; ``byteorder``, "little" or "big" (files before torch 2.1 have none: little). An archive of torch.jit.save has
the same members and some more.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from nblstm.arrays import Array
from nblstm.weights.elements import ByteOrder, Element, Elements, is_count
from nblstm.weights.source import Source, shown
from nblstm.weights.tensors import Storage, StorageType, Tensors
from nblstm.weights.unpickler import Name, unpickle
from nblstm.weights.zip_archive import ZipArchive

_BYTE_ORDERS: dict[bytes, ByteOrder] = {b"little": "<", b"big": ">"}

# What other archives of torch have, what they are and what to do.
_OTHER_ARCHIVES = (
    (
        "archive_format",
        "an archive of torch.export.save",
        "Save its weights: torch.save(torch.export.load(file).state_dict, other_file)",
    ),
    (".data/extern_modules", "an archive of torch.package", "Load its model with torch and save model.state_dict()"),
    (
        "model.json",
        "a TorchScript archive from before torch 1.4",
        "Save its weights: torch.save(torch.jit.load(file).state_dict(), other_file)",
    ),
)


def root_of(source: Source, archive: ZipArchive) -> str:
    """Return the folder in `archive` that torch wrote. Raises WeightFileError for an archive without one."""
    roots = [name.partition("/")[0] for name in archive.names if name.partition("/")[2] == "data.pkl"]
    if len(roots) != 1:
        members = {name.partition("/")[2] for name in archive.names}
        for member, what, hint in _OTHER_ARCHIVES:
            if member in members:
                raise source.refuse("one <folder>/data.pkl as torch.save writes", what, hint)
        raise source.refuse("one <folder>/data.pkl as torch.save writes", f"a zip archive of {archive.listing()}")
    return roots[0]


def read_torch_file(
    source: Source,
    archive: ZipArchive,
    root: str,
    elements: Elements,
    resolve: Callable[[Name], object] = lambda _: None,
) -> Any:
    """Return the value that torch wrote into the folder `root` of `archive`, with arrays in place of tensors.

    `resolve` says what names beyond those of torch.save stand for. Raises WeightFileError for anything that is not made
    of tensors and plain values.
    """
    storages = _Storages(source, archive, root)
    tensors = Tensors(source, elements, storages.read, archive.size + 64 * source.size + 2**26)
    names = tensors.names()

    def look_up(name: Name) -> object:
        return names[name] if name in names else resolve(name)

    program = io.BytesIO(archive.read_program(f"{root}/data.pkl").data)
    return unpickle(source, program, look_up, storages.storage)


class _Storages:
    """The storages of one archive."""

    def __init__(self, source: Source, archive: ZipArchive, root: str) -> None:
        self.source = source
        self.archive = archive
        self.root = root
        self.byte_order = self._byte_order()

    def storage(self, identity: object) -> Storage:
        """Return the storage that a persistent id names; where it was (a device) does not matter."""
        match identity:
            case (str(kind), StorageType(element), str(key), _, count) if kind == "storage" and is_count(count):
                return Storage(element, key, count)
        raise self.source.refuse("the persistent id of a storage", type(identity).__name__)

    def read(self, storage: Storage, element: Element) -> Array:
        """Return the numbers of a storage."""
        content = self.archive.read(f"{self.root}/data/{storage.key}")
        if content.size != storage.size:
            raise self.source.refuse(f"{storage.size} bytes in storage {shown(storage.key)}", content.size)
        return element.numbers(content, self.byte_order)

    def _byte_order(self) -> ByteOrder:
        if f"{self.root}/byteorder" not in self.archive.names:
            return "<"
        byte_order = self.archive.read(f"{self.root}/byteorder").tobytes()
        if byte_order not in _BYTE_ORDERS:
            raise self.source.refuse("byte order little or big", shown(byte_order.decode("latin1")))
        return _BYTE_ORDERS[byte_order]
