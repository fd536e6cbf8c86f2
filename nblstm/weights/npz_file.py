"""Reads and writes .npz files: zip archives of one .npy file for each array.

The header of a .npy file is a Python expression. It is taken apart by patterns here, never evaluated, and what it says
is held against the bytes that there are before any memory is taken.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from nblstm.arrays import Array
from nblstm.errors import message
from nblstm.weights.elements import is_bfloat16, is_shape, volume
from nblstm.weights.source import Bytes, Source, shown
from nblstm.weights.zip_archive import ZipArchive

_SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4}  # of the header's length, by the version of the format; version 3 is for named fields
_DTYPE = re.compile(r"'descr' *: *'([<>|=][biufc][0-9]{1,2})'")
_ORDER = re.compile(r"'fortran_order' *: *(True|False)")
_SHAPE = re.compile(r"'shape' *: *\(((?: *[0-9]{1,19} *,)*(?: *[0-9]{1,19})? *)\)")
_LONGEST_HEADER = 10_000  # of an array of plain numbers it takes some 60 bytes
_LONGEST_NAME = 2**16 - 1 - len(_SUFFIX)  # bytes, in a zip archive


def is_npz(archive: ZipArchive) -> bool:
    """Say whether a zip archive is that of np.savez: of .npy members alone."""
    return all(name.endswith(_SUFFIX) for name in archive.names)


def read_npz(source: Source, archive: ZipArchive) -> dict[str, Array]:
    """Return the arrays of a file by name. Raises WeightFileError for one that is damaged or not of numbers."""
    return {name.removesuffix(_SUFFIX): _array(source, archive, name) for name in archive.names}


def write_npz(file: BinaryIO, arrays: Mapping[str, Array]) -> None:
    """Write arrays under names that `check_npz` has accepted."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            # np.savez cannot write a name such as "file", and a ZipInfo of its own has the same date in each file
            with archive.open(zipfile.ZipInfo(name + _SUFFIX), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def check_npz(name: str, array: Array) -> None:
    """Raise ValueError if the format cannot hold this array under this name."""
    if "\0" in name or len(name.encode()) > _LONGEST_NAME:
        raise ValueError(message("state_dict", f"names of at most {_LONGEST_NAME} bytes without a NUL", shown(name)))
    if is_bfloat16(array):
        hint = "A .safetensors file holds it"
        raise ValueError(message(f"state_dict[{name!r}]", "a dtype of NumPy", array.dtype, hint=hint))


def _array(source: Source, archive: ZipArchive, name: str) -> Array:
    content = archive.read(name)
    magic, version = content[:6].tobytes(), content[6:8].tolist()
    if magic != _MAGIC or len(version) < 2 or version[0] not in _LENGTH_BYTES or version[1]:
        raise source.refuse(f"{shown(name)} in version 1 or 2 of the .npy format", "something else")
    start = 8 + _LENGTH_BYTES[version[0]]
    length = int.from_bytes(content[8:start].tobytes(), "little")
    header = content[start : start + min(length, _LONGEST_HEADER)].tobytes().decode("latin1")
    dtype, order, shape = _DTYPE.search(header), _ORDER.search(header), _SHAPE.search(header)
    if dtype is None or order is None or shape is None:
        raise source.refuse(f"an array of numbers in {shown(name)}", shown(header.rstrip()))
    sizes = tuple(int(size) for size in shape[1].split(",") if size.strip())
    array = _numbers(source, name, content[start + length :], dtype[1], sizes)
    return array.reshape(sizes, order="F" if order[1] == "True" else "C")


def _numbers(source: Source, name: str, content: Bytes, code: str, shape: tuple[int, ...]) -> Array:
    """Return the content of an array as native numbers in one dimension, in aligned memory."""
    try:
        dtype = np.dtype(code)
    except TypeError as error:
        raise source.refuse(f"a dtype of NumPy in {shown(name)}", shown(code)) from error
    if not is_shape(shape):
        raise source.refuse(f"{shown(name)} of a shape that NumPy can make", f"{len(shape)} axes, or giant ones")
    size = volume(shape) * dtype.itemsize if 0 not in shape else 0
    if content.size != size:
        what = f"{shown(name)} of shape {shown(str(shape))} and dtype {dtype}"
        raise source.refuse(f"{size} bytes for {what}", content.size)
    # A bool is whatever is not zero; other bytes than 0 and 1 in an array of bool would not be
    numbers = content.astype(dtype) if dtype.kind == "b" else content.view(dtype)
    numbers = numbers.astype(dtype.newbyteorder("="), copy=False)
    return numbers if numbers.flags.aligned else numbers.copy()
