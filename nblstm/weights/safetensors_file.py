"""Reads and writes .safetensors files, after the format's own description.

A file is eight bytes with the length N of the header (little-endian), N bytes of JSON, and the tensors' bytes
(little-endian, in C order). The header maps each name to its ``dtype``, ``shape`` and ``data_offsets`` (begin and end,
counted from the end of the header), and may map ``__metadata__`` to text for text. The tensors fill what follows the
header: without holes, without overlap, to the last byte.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from nblstm.arrays import Array
from nblstm.errors import message
from nblstm.weights.elements import ELEMENTS, Element, Elements, is_bfloat16, is_count, is_shape, volume
from nblstm.weights.source import Source, shown

_LONGEST_HEADER = 100_000_000  # the format's own limit
_METADATA = "__metadata__"
_BY_NAME = {element.name: element for element in ELEMENTS if element.code}
_FILE_ORDER = {element: place for place, element in enumerate(ELEMENTS)}


def is_safetensors(head: bytes) -> bool:
    """Say whether a file with this beginning is a .safetensors file: its header is a JSON object."""
    return head[8:9] == b"{"


def read_safetensors(source: Source, elements: Elements) -> dict[str, Array]:
    """Return the tensors of a file by name, in the order of its header.

    Raises WeightFileError for whatever the format does not allow, and for a dtype that NumPy has not.
    """
    length = int.from_bytes(source.read(0, 8).tobytes(), "little")
    if not 2 <= length <= _LONGEST_HEADER:
        raise source.refuse(f"a header of 2 to {_LONGEST_HEADER} bytes", f"one of {length}")
    header = _header(source, source.read(8, length).tobytes())
    by_code = {element.code: element for element in elements if element.code}
    tensors = {name: _tensor(source, name, entry, by_code) for name, entry in header.items()}
    _check_layout(source, [(begin, end) for _, _, begin, end in tensors.values()], source.size - 8 - length)
    return {
        name: element.numbers(source.read(8 + length + begin, end - begin)).reshape(shape)
        for name, (element, shape, begin, end) in tensors.items()
    }


def write_safetensors(file: BinaryIO, arrays: Mapping[str, Array]) -> None:
    """Write arrays, whose dtypes `check_safetensors` has accepted, in the order that keeps each one aligned."""
    elements = {name: _BY_NAME[array.dtype.name] for name, array in arrays.items()}
    names = sorted(arrays, key=lambda name: (_FILE_ORDER[elements[name]], name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        begin, end = end, end + arrays[name].nbytes
        header[name] = {"dtype": elements[name].code, "shape": arrays[name].shape, "data_offsets": (begin, end)}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        array, stored = arrays[name], elements[name].stored
        plain = np.ascontiguousarray(array).view(stored) if is_bfloat16(array) else array
        file.write(plain.astype(stored.newbyteorder("<"), order="C", copy=False).data)


def check_safetensors(name: str, array: Array) -> None:
    """Raise ValueError if the format cannot hold this array under this name."""
    if name == _METADATA:
        raise ValueError(message("state_dict", f"another name than {_METADATA}", "it", because="the format uses that"))
    if array.dtype.name not in _BY_NAME:
        dtypes = ", ".join(_BY_NAME)
        raise ValueError(message(f"state_dict[{name!r}]", f"one of {dtypes}", array.dtype, hint="A .npz file holds it"))


def _header(source: Source, text: bytes) -> dict[str, Any]:
    """Return the header as it stands, less its metadata."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(unique := dict(pairs)) < len(pairs):
            raise ValueError("a name stands in it twice")
        return unique

    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not begin with {")
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise source.refuse("a header in JSON", f"another ({error})", "The file is damaged") from error
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise source.refuse(f"text for text in {_METADATA}", "something else")
    if unwritable := [name for name in header if not name.isprintable() and not _encodes(name)]:
        raise source.refuse("names of Unicode characters", shown(unwritable[0]))
    return dict(header)


def _encodes(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        return False


def _tensor(
    source: Source, name: str, entry: object, by_code: Mapping[str, Element]
) -> tuple[Element, tuple[int, ...], int, int]:
    """Return what the header says of one tensor: element, shape, begin and end."""
    match entry:
        case {"dtype": str(code), "shape": list(sizes), "data_offsets": [begin, end], **others} if not others:
            shape = tuple(sizes)
        case _:
            raise source.refuse(f"dtype, shape and data_offsets of {shown(name)}", "something else")
    if code not in by_code:
        raise source.refuse(f"{', '.join(by_code)} as the dtype of {shown(name)}", shown(code))
    if not (is_shape(shape) and is_count(begin) and is_count(end)):
        raise source.refuse(f"a shape and offsets of {shown(name)} that an array can have", "others")
    element = by_code[code]
    size = volume(shape) * element.stored.itemsize if 0 not in shape else 0
    if end - begin != size:
        raise source.refuse(f"{size} bytes for {shown(name)} of shape {shape} and dtype {code}", end - begin)
    return element, shape, begin, end


def _check_layout(source: Source, spans: list[tuple[int, int]], size: int) -> None:
    """Refuse tensors that leave holes, overlap or do not end with the file."""
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise source.refuse(f"a tensor that begins at byte {reached} of the data", f"one at byte {begin}")
        reached = end
    if reached != size:
        hint = "It is cut short or damaged: copy or download it again"
        raise source.refuse(f"{reached} bytes of data", size, hint)
