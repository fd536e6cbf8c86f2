"""Reads the zip archives that torch.save writes (torch 1.6 and later), without torch.

In the archive, under one folder of any name: ``data.pkl``, the pickled value with a persistent id
``("storage", storage class, key, location, number of elements)`` in place of each storage; ``data/<key>``, the bytes of
a storage; ``byteorder``, "little" or "big" (files before torch 2.1 have none: little). A tensor is a view of a storage,
several tensors may share one, and so do the arrays that are made from them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from nblstm.arrays import Array
from nblstm.weights.elements import ELEMENTS, ByteOrder, Element, is_count, is_shape, is_strides, volume
from nblstm.weights.source import Source, shown
from nblstm.weights.unpickler import Function, unpickle
from nblstm.weights.zip_archive import ZipArchive

_BYTE_ORDERS: dict[bytes, ByteOrder] = {b"little": "<", b"big": ">"}
_LONGEST_DEVICE = 32  # letters: its text is a copy, and a pickle can ask for any number of copies
_UNTYPED = {element.given: element for element in ELEMENTS if not element.storage}


def read_torch_file(source: Source, archive: ZipArchive) -> Any:
    """Return the value that torch.save wrote into `archive`, with arrays in place of tensors.

    Raises WeightFileError for anything that is not made of tensors and plain values.
    """
    roots = [name.partition("/")[0] for name in archive.names if name.partition("/")[2] == "data.pkl"]
    if len(roots) != 1:
        raise source.refuse("one <folder>/data.pkl as torch.save writes", f"a zip archive of {archive.listing()}")
    if f"{roots[0]}/constants.pkl" in archive.names:
        hint = "Save its weights: torch.save(torch.jit.load(file).state_dict(), other_file)"
        raise source.refuse("a file of torch.save", "a TorchScript archive of torch.jit.save", hint)
    tensors = _Tensors(source, archive, roots[0])
    program = archive.read(f"{roots[0]}/data.pkl").tobytes()
    return unpickle(source, program, tensors.names(), tensors.storage)


@dataclass(frozen=True)
class _Storage:
    """A storage as a pickle names it; `element` is None where it is mere bytes."""

    element: Element | None
    key: str
    count: int


@dataclass(frozen=True)
class _StorageType:
    element: Element | None


class _Tensors:
    """What stands behind torch's names in the pickle of one archive. Arguments come from the file: each is checked."""

    def __init__(self, source: Source, archive: ZipArchive, root: str) -> None:
        self.source = source
        self.archive = archive
        self.root = root
        self.byte_order = self._byte_order()
        self.loaded: dict[str, tuple[Element, Array]] = {}
        # For all arrays, each copied on its own: views that share a storage, or strides of 0, make much of little
        self.allowance = archive.size + 64 * source.size + 2**26

    def names(self) -> dict[tuple[str, str], object]:
        """Return the allow-list: each (module, name) that a pickle may mention and what it stands for."""
        return {
            ("collections", "OrderedDict"): Function(OrderedDict, 0, 0),
            ("torch._utils", "_rebuild_parameter"): Function(self.parameter, 3, 3),
            ("torch._utils", "_rebuild_tensor_v2"): Function(self.tensor, 6, 7),
            ("torch._utils", "_rebuild_tensor_v3"): Function(self.tensor_of_dtype, 7, 8),
            ("torch", "Size"): Function(self.size, 1, 1),
            ("torch", "device"): Function(self.device, 1, 2),
            ("torch.storage", "UntypedStorage"): _StorageType(None),
            **{("torch", element.storage): _StorageType(element) for element in ELEMENTS if element.storage},
            **{("torch", element.name): element.given for element in ELEMENTS},
        }

    def storage(self, identity: object) -> _Storage:
        """Return the storage that a persistent id names; where it was (a device) does not matter."""
        match identity:
            case (str(kind), _StorageType(element), str(key), _, count) if kind == "storage" and is_count(count):
                return _Storage(element, key, count)
        raise self.source.refuse("the persistent id of a storage", type(identity).__name__)

    def tensor(
        self,
        storage: object,
        offset: object,
        size: object,
        stride: object,
        _grad: object,
        _hooks: object,
        bits: object = None,
    ) -> Array:
        """Return a tensor of a typed storage; `bits` are those of a lazily conjugated or negated one."""
        if not isinstance(storage, _Storage) or storage.element is None:
            raise self.source.refuse("a typed storage under a tensor", type(storage).__name__)
        return self._view(storage, storage.element, offset, size, stride, bits)

    def tensor_of_dtype(
        self,
        storage: object,
        offset: object,
        size: object,
        stride: object,
        _grad: object,
        _hooks: object,
        dtype: object,
        bits: object = None,
    ) -> Array:
        """Return a tensor of an untyped storage, as torch writes those of its newer dtypes."""
        element = _UNTYPED.get(dtype) if isinstance(dtype, np.dtype) else None
        if not isinstance(storage, _Storage) or storage.element is not None or element is None:
            got = str(dtype) if isinstance(dtype, np.dtype) else type(dtype).__name__
            raise self.source.refuse(f"{', '.join(map(str, _UNTYPED))} in an untyped storage", got)
        return self._view(storage, element, offset, size, stride, bits)

    def parameter(self, data: object, _grad: object, _hooks: object) -> Array:
        """Return the tensor in a torch.nn.Parameter."""
        if not isinstance(data, np.ndarray):
            raise self.source.refuse("a tensor in a Parameter", type(data).__name__)
        return data

    def size(self, sizes: object) -> object:
        """Return a torch.Size as the tuple that it is."""
        if type(sizes) is not tuple or not is_shape(sizes):
            raise self.source.refuse("a tuple of sizes in a torch.Size", type(sizes).__name__)
        return sizes

    def device(self, kind: object, index: object = None) -> str:
        """Return a torch.device as its text."""
        if type(kind) is not str or len(kind) > _LONGEST_DEVICE or not (index is None or is_count(index)):
            raise self.source.refuse("a name and an index of a torch.device", type(kind).__name__)
        return kind if index is None else f"{kind}:{index}"

    def _byte_order(self) -> ByteOrder:
        if f"{self.root}/byteorder" not in self.archive.names:
            return "<"
        byte_order = self.archive.read(f"{self.root}/byteorder").tobytes()
        if byte_order not in _BYTE_ORDERS:
            raise self.source.refuse("byte order little or big", shown(byte_order.decode("latin1")))
        return _BYTE_ORDERS[byte_order]

    def _numbers(self, storage: _Storage, element: Element) -> Array:
        """Return the numbers of a storage; all tensors in it get the same array."""
        if storage.key not in self.loaded:
            content = self.archive.read(f"{self.root}/data/{storage.key}")
            size = storage.count * (storage.element.stored.itemsize if storage.element else 1)
            if content.size != size or size % element.stored.itemsize:
                raise self.source.refuse(f"{size} bytes in storage {shown(storage.key)}", content.size)
            self.loaded[storage.key] = element, element.numbers(content, self.byte_order)
        found, numbers = self.loaded[storage.key]
        if found is not element:
            raise self.source.refuse(f"{found.name} in storage {shown(storage.key)}", element.name)
        return numbers

    def _view(
        self, storage: _Storage, element: Element, offset: object, size: object, stride: object, bits: object
    ) -> Array:
        """Return the array of the given sizes and strides over a storage, if all of it lies inside."""
        if not (is_count(offset) and is_shape(size) and is_strides(stride) and len(size) == len(stride)):
            got = shown(", ".join(map(_brief, (offset, size, stride))))
            raise self.source.refuse("an offset, sizes and as many strides of a tensor, none negative or giant", got)
        if bits is not None:
            hint = "Save tensor.resolve_conj().resolve_neg()"
            raise self.source.refuse("a tensor as it stands", "one to conjugate or negate", hint)
        numbers = self._numbers(storage, element)
        self.allowance -= volume(size) * numbers.itemsize
        if self.allowance < 0:
            raise self.source.refuse("tensors that fit the file", "more numbers, in views that share them")
        if 0 in size:
            return np.empty(size, numbers.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= numbers.size:
            raise self.source.refuse(f"a tensor inside its storage of {numbers.size} numbers", f"number {last} of it")
        # The step along a single element is never taken, and may be any number in a file
        steps = [step * numbers.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
        return np.ndarray(size, numbers.dtype, numbers, offset * numbers.itemsize, steps)


def _brief(value: object) -> str:
    """Return numbers as text and anything else by its type: the text of a deep value would take a deep recursion."""
    if type(value) is int or (type(value) is tuple and all(type(part) is int for part in value)):
        return str(value)
    return type(value).__name__
