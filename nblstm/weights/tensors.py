"""What stands behind torch's names in a pickle: storages, and tensors as arrays over them.

A tensor is a view of a storage: offset, sizes and strides, all counted in numbers. Several tensors may share a storage,
and so do the arrays that are made from them. Where the numbers of a storage lie is each format's own matter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nblstm.arrays import Array
from nblstm.weights.elements import Element, Elements, is_count, is_shape, is_strides, volume
from nblstm.weights.source import Source, shown
from nblstm.weights.unpickler import Function, Name, Refused

_LONGEST_DEVICE = 32  # letters: its text is a copy, and a pickle can ask for any number of copies

_SUBCLASS = Refused("a subclass of torch.Tensor", "Save tensor.as_subclass(torch.Tensor)")
_NUMPY_NUMBER = Refused("a number of NumPy", "Save number.item()")
_NUMPY_ARRAY = Refused("an array of NumPy", "Save torch.from_numpy(array)")

# Numbers that NumPy has not.
_NARROW = (
    *("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz", "float4_e2m1fn_x2"),
    *("complex32", "ComplexHalfStorage"),
)

# What torch.load knows, or can be taught, and what is no array or no plain value.
_REFUSED: dict[Name, object] = {
    **{("torch", name): Refused("numbers that NumPy has not", "Save tensor.float(), or .cfloat()") for name in _NARROW},
    ("torch._utils", "_rebuild_sparse_tensor"): Refused("a sparse tensor", "Save tensor.to_dense()"),
    ("torch._utils", "_rebuild_qtensor"): Refused("a quantised tensor", "Save tensor.dequantize()"),
    ("torch._utils", "_rebuild_nested_tensor"): Refused("a nested tensor", "Save its tensors: list(tensor.unbind())"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): Refused(
        "a tensor of the device meta, which has no numbers", "Save it from a device that has them"
    ),
    ("torch._utils", "_rebuild_wrapper_subclass"): _SUBCLASS,
    ("torch._tensor", "_rebuild_from_type_v2"): _SUBCLASS,
    ("numpy.core.multiarray", "scalar"): _NUMPY_NUMBER,
    ("numpy._core.multiarray", "scalar"): _NUMPY_NUMBER,
    ("numpy.core.multiarray", "_reconstruct"): _NUMPY_ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _NUMPY_ARRAY,
}


@dataclass(frozen=True)
class StorageType:
    """A storage class of torch by the kind of its numbers; None is for mere bytes."""

    element: Element | None


@dataclass(frozen=True)
class Storage:
    """A storage as a pickle names it: `count` numbers, or bytes where `element` is None.

    A view of a storage, as torch wrote them before torch 0.4, is its numbers from `begin` to `end`.
    """

    element: Element | None
    key: str
    count: int
    begin: int = 0
    end: int | None = None

    @property
    def size(self) -> int:
        """How many bytes it takes in a file."""
        return self.count * (self.element.stored.itemsize if self.element else 1)


class Tensors:
    """Makes arrays from what one pickle says of its tensors. Arguments come from the file: each is checked.

    `read` returns the numbers of a storage in a flat array of a kind of number, and is called once for each storage;
    `loaded` has what it returned, by the storage's key. `allowance` bounds how many bytes all arrays would take, each
    copied on its own: views that share a storage, and strides of 0, make much of little.
    """

    def __init__(
        self, source: Source, elements: Elements, read: Callable[[Storage, Element], Array], allowance: int
    ) -> None:
        self.source = source
        self.elements = elements
        self.read = read
        self.allowance = allowance
        self.loaded: dict[str, tuple[Element, Array]] = {}
        self.untyped = {element.given: element for element in elements if not element.storage}

    def names(self) -> dict[Name, object]:
        """Return the allow-list: each (module, name) that a pickle may mention and what it stands for."""
        return {
            **_REFUSED,
            ("collections", "OrderedDict"): Function(self.ordered_dict, 0, 1),
            ("torch._utils", "_rebuild_parameter"): Function(self.parameter, 3, 3),
            ("torch._utils", "_rebuild_parameter_with_state"): Function(self.parameter, 4, 4),
            ("torch._utils", "_rebuild_tensor"): Function(self.tensor, 4, 4),
            ("torch._utils", "_rebuild_tensor_v2"): Function(self.tensor, 6, 7),
            ("torch._utils", "_rebuild_tensor_v3"): Function(self.tensor_of_dtype, 7, 8),
            ("__builtin__", "complex"): Function(self.complex, 2, 2),  # as torch.save names it
            ("builtins", "complex"): Function(self.complex, 2, 2),  # as torch.jit.save does
            ("torch", "Size"): Function(self.size, 1, 1),
            ("torch", "device"): Function(self.device, 1, 2),
            ("torch.storage", "UntypedStorage"): StorageType(None),
            **{("torch", element.storage): StorageType(element) for element in self.elements if element.storage},
            **{("torch", element.name): element.given for element in self.elements},
        }

    def tensor(
        self,
        storage: object,
        offset: object,
        size: object,
        stride: object,
        _grad: object = None,
        _hooks: object = None,
        bits: object = None,
    ) -> Array:
        """Return a tensor of a typed storage; `bits` are those of a lazily conjugated or negated one."""
        if not isinstance(storage, Storage) or storage.element is None:
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
        element = self.untyped.get(dtype) if isinstance(dtype, np.dtype) else None
        if not isinstance(storage, Storage) or storage.element is not None or element is None:
            got = str(dtype) if isinstance(dtype, np.dtype) else type(dtype).__name__
            raise self.source.refuse(f"{', '.join(map(str, self.untyped))} in an untyped storage", got)
        return self._view(storage, element, offset, size, stride, bits)

    def parameter(self, data: object, _grad: object, _hooks: object, _state: object = None) -> Array:
        """Return the tensor in a torch.nn.Parameter."""
        if not isinstance(data, np.ndarray):
            raise self.source.refuse("a tensor in a Parameter", type(data).__name__)
        return data

    def ordered_dict(self, pairs: object = None) -> OrderedDict[Any, Any]:
        """Return an OrderedDict: empty, or of the [key, value] lists that Python 2 wrote."""
        if pairs is None:
            return OrderedDict()
        if type(pairs) is not list or not all(type(pair) is list and len(pair) == 2 for pair in pairs):
            raise self.source.refuse("pairs in an OrderedDict", type(pairs).__name__)
        if not all(type(key) is str for key, _ in pairs):
            raise self.source.refuse("a string as each key of an OrderedDict of pairs", "another")
        made = OrderedDict((key, value) for key, value in pairs)
        pairs.clear()  # a pickle could name it again, and have much copied with little
        return made

    def complex(self, real: object, imaginary: object) -> complex:
        """Return a complex number."""
        if type(real) is not float or type(imaginary) is not float:
            raise self.source.refuse("two numbers of a complex one", type(real).__name__)
        return complex(real, imaginary)

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

    def _numbers(self, storage: Storage, element: Element) -> Array:
        """Return the numbers of a storage; all tensors in it get the same array."""
        if storage.key not in self.loaded:
            if storage.size % element.stored.itemsize:
                what = f"a multiple of {element.stored.itemsize} bytes in storage {shown(storage.key)}"
                raise self.source.refuse(what, storage.size)
            self.loaded[storage.key] = element, self.read(storage, element)
        found, numbers = self.loaded[storage.key]
        if found is not element:
            raise self.source.refuse(f"{found.name} in storage {shown(storage.key)}", element.name)
        return numbers[storage.begin : storage.end]

    def _view(
        self, storage: Storage, element: Element, offset: object, size: object, stride: object, bits: object
    ) -> Array:
        """Return the array of the given sizes and strides over a storage, if all of it lies inside."""
        if not (is_count(offset) and is_shape(size) and is_strides(stride) and len(size) == len(stride)):
            got = shown(", ".join(map(_brief, (offset, size, stride))))
            raise self.source.refuse("an offset, at most 32 sizes and as many strides, none negative or giant", got)
        if bits is not None:
            hint = "Save tensor.resolve_conj().resolve_neg()"
            raise self.source.refuse("a tensor as it stands", "one to conjugate or negate", hint)
        numbers = self._numbers(storage, element)
        if 0 in size:
            return np.empty(size, numbers.dtype)
        self.allowance -= volume(size) * numbers.itemsize
        if self.allowance < 0:
            raise self.source.refuse("tensors that fit the file", "more numbers, in views that share them")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= numbers.size:
            raise self.source.refuse(f"a tensor inside its storage of {numbers.size} numbers", f"number {last} of it")
        # The step along a single element is never taken, and may be any number in a file
        steps = [step * numbers.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
        memory = numbers if numbers.dtype.isbuiltin == 1 else numbers.view(element.stored)  # a bfloat16 has no buffer
        return np.ndarray(size, memory.dtype, memory, offset * numbers.itemsize, steps).view(numbers.dtype)


def _brief(value: object) -> str:
    """Return numbers as text and anything else by its type: the text of a deep value would take a deep recursion."""
    parts = value if type(value) is tuple and len(value) <= 64 else (value,)
    if all(type(part) is int and -(2**64) < part < 2**64 for part in parts):
        return str(value)
    return type(value).__name__
