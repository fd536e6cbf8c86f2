"""The kinds of number that weight files hold: one table for all formats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from math import prod
from typing import Any, Literal, TypeAlias, TypeGuard

import numpy as np

from nblstm.arrays import Array
from nblstm.errors import message
from nblstm.weights.source import Bytes

ByteOrder: TypeAlias = Literal["<", ">"]
_MOST_DIMENSIONS = 32  # of a NumPy 1 array; NumPy 2 and torch have 64
_MOST_NUMBERS = 2**58  # times 16 bytes, the largest element here, is still a size that NumPy can count


@dataclass(frozen=True)
class Element:
    """One kind of number: its names in the formats, and its dtype in a file and in the arrays made from it.

    `name` is torch's dtype, `storage` torch's storage class ("" where torch writes an untyped one), `code` the dtype
    of the safetensors format ("" where it has none).
    """

    name: str
    storage: str
    code: str
    stored: np.dtype[Any]
    given: np.dtype[Any]

    def numbers(self, content: Bytes, byte_order: ByteOrder = "<") -> Array:
        """Return the bytes of a file as a flat array of native numbers.

        Shares the memory of `content` where nothing is to convert. A bfloat16 is the upper half of a float32, and so
        is widened exactly. A bool is whatever is not zero.
        """
        stored = content.view(self.stored.newbyteorder(byte_order))
        if self.name != "bfloat16":
            return stored.astype(self.given, copy=False)
        if self.given.itemsize == self.stored.itemsize:
            return stored.astype(self.stored, copy=False).view(self.given)
        widened = stored.astype(np.uint32)
        widened <<= 16
        return widened.view(self.given)


def _element(name: str, storage: str, code: str, stored: str, given: str = "") -> Element:
    return Element(name, storage, code, np.dtype(stored), np.dtype(given or stored))


# In the order in which a safetensors file lays them out: it keeps each tensor at a multiple of its element's size.
ELEMENTS = (
    _element("complex128", "ComplexDoubleStorage", "", "c16"),
    _element("uint64", "", "U64", "u8"),
    _element("int64", "LongStorage", "I64", "i8"),
    _element("float64", "DoubleStorage", "F64", "f8"),
    _element("complex64", "ComplexFloatStorage", "C64", "c8"),
    _element("float32", "FloatStorage", "F32", "f4"),
    _element("uint32", "", "U32", "u4"),
    _element("int32", "IntStorage", "I32", "i4"),
    _element("bfloat16", "BFloat16Storage", "BF16", "u2", given="f4"),
    _element("float16", "HalfStorage", "F16", "f2"),
    _element("uint16", "", "U16", "u2"),
    _element("int16", "ShortStorage", "I16", "i2"),
    _element("int8", "CharStorage", "I8", "i1"),
    _element("uint8", "ByteStorage", "U8", "u1"),
    _element("bool", "BoolStorage", "BOOL", "u1", given="?"),
)


Elements: TypeAlias = tuple[Element, ...]


def elements_with_bfloat16() -> Elements:
    """Return `ELEMENTS`, with bfloat16 as the package ml_dtypes has it. Raises ImportError where that is missing."""
    try:
        bfloat16 = np.dtype(import_module("ml_dtypes").bfloat16)
    except ImportError as error:
        hint = "pip install ml_dtypes"
        raise ImportError(message("keep_bfloat16", "the package ml_dtypes", "none", hint=hint)) from error
    return tuple(replace(element, given=bfloat16) if element.name == "bfloat16" else element for element in ELEMENTS)


def is_bfloat16(value: object) -> TypeGuard[Array]:
    """Say whether `value` is an array of the bfloat16 of ml_dtypes."""
    return isinstance(value, np.ndarray) and value.dtype.name == "bfloat16"


def is_count(value: object) -> TypeGuard[int]:
    """Say whether `value` is a whole number that a size, a stride or an offset can be."""
    return type(value) is int and 0 <= value < 2**63


def is_strides(value: object) -> TypeGuard[tuple[int, ...]]:
    """Say whether `value` is a tuple of whole numbers, each a size or a stride of an array."""
    return type(value) is tuple and len(value) <= _MOST_DIMENSIONS and all(map(is_count, value))


def is_shape(value: object) -> TypeGuard[tuple[int, ...]]:
    """Say whether `value` is the shape of an array that NumPy can make; a zero in it does not excuse a giant.

    >>> is_shape((2, 3)), is_shape((2, -3)), is_shape((0, 2**62))
    (True, False, False)
    """
    return is_strides(value) and volume(value) <= _MOST_NUMBERS


def volume(shape: tuple[int, ...]) -> int:
    """Return the number of elements of an array of this shape, zero sizes counted as one."""
    return prod(size or 1 for size in shape)
