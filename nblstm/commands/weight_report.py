"""What a weight file holds: its tensors by name, and the recurrent layers among them.

A checkpoint has tensors in containers inside containers. Here each gets one name, the keys on the way to it with dots
between them: that is how state_dicts name the modules inside a module, so the names of a state_dict further in stay
what they are, behind the prefix of where it was found.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np

import nblstm
from nblstm.arrays import Array
from nblstm.errors import message
from nblstm.weights.names import CellSpec, RecurrentSpec, list_recurrent
from nblstm.weights.source import shown

Path = tuple[Any, ...]  # the keys and indices that lead to a value

_IN_PYTHON = "Take what you need in Python"

# A file may name one container any number of times, in itself too: it is small, and what it describes without end.
_MOST_VALUES = 4_000_000
_DEEPEST = 200
_MOST_CHARACTERS = 2**24  # of all names
_WIDEST = 100  # column: a table takes its width for each of its rows


def walk(loaded: Any) -> Iterator[tuple[Path, Any]]:
    """Return each value of what `nblstm.load` gave, containers before what is in them, and the way to it.

    Raises ValueError when it comes to no end.

    >>> list(walk({"a": [1, 2]}))
    [((), {'a': [1, 2]}), (('a',), [1, 2]), (('a', 0), 1), (('a', 1), 2)]
    """
    # Of each container on the way, what is still to come: a list of all values ahead could be a multiple of the file.
    ahead = [iter([(cast(Path, ()), loaded)])]
    count = 0
    while ahead:
        if (found := next(ahead[-1], None)) is None:
            ahead.pop()
            continue
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(message("file", f"at most {_MOST_VALUES} values", "more", hint=_IN_PYTHON))
        yield found
        path, value = found
        if isinstance(value, (Mapping, list, tuple)) and len(value):
            if len(path) == _DEEPEST:
                raise ValueError(message("file", f"at most {_DEEPEST} containers inside each other", "more"))
            ahead.append(_inner(path, value))


def _inner(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield (*path, key), part


def named_tensors(loaded: Any) -> tuple[dict[str, Array], int]:
    """Return the tensors of what `nblstm.load` gave by their names with dots, and the number of other values.

    Raises ValueError if two get one name, or if the names are very long together.

    >>> tensors, others = named_tensors({"epoch": 3, "model": {"lstm.weight_hh_l0": np.ones((8, 2))}})
    >>> list(tensors), others
    (['model.lstm.weight_hh_l0'], 1)
    """
    tensors: dict[str, Array] = {}
    others, room = 0, _MOST_CHARACTERS
    for path, value in walk(loaded):
        if isinstance(value, np.ndarray):
            parts = list(map(str, path))
            room = _less(room, parts)
            name = ".".join(parts)
            if name in tensors:
                raise ValueError(message("file", "tensors of different names", f"two with the name {shown(name)}"))
            tensors[name] = value
        elif not isinstance(value, (Mapping, list, tuple)):
            others += 1
    return tensors, others


def _less(room: int, texts: Iterable[str]) -> int:
    """Return how many characters there is still room for after these texts, or raise an error if there is none."""
    room -= sum(len(text) + 1 for text in texts)
    if room < 0:
        expected = f"names of at most {_MOST_CHARACTERS} characters in all"
        raise ValueError(message("file", expected, "more", hint=_IN_PYTHON))
    return room


def total_size(arrays: Iterable[Array]) -> int:
    """Return how many bytes the arrays take, each for itself."""
    return sum(array.nbytes for array in arrays)


def report(file: str, loaded: Any) -> str:
    """Return a table of the tensors in what `nblstm.load` gave for `file`, and its recurrent layers.

    >>> print(report("cell.npz", nblstm.LSTMCell(3, 2, bias=False).state_dict()))
    name       dtype    shape   size
    weight_ih  float32  (8, 3)  96 B
    weight_hh  float32  (8, 2)  64 B
    2 tensors, 160 B
    <BLANKLINE>
    LSTMCell(3, 2, bias=False)
        nblstm.LSTMCell.from_state_dict(nblstm.load('cell.npz'))
    """
    tensors, others = named_tensors(loaded)
    rows = [(printable(name), str(a.dtype), str(a.shape), size_text(a.nbytes)) for name, a in tensors.items()]
    lines = [*_table([("name", "dtype", "shape", "size"), *rows]), summary(tensors)]
    lines += [no_tensors(others)] * bool(others)
    room = _MOST_CHARACTERS
    for path, value in walk(loaded):
        if isinstance(value, Mapping):
            for found in list_recurrent(value):
                room = _less(room, map(str, path))
                inside = "".join(f"[{key!a}]" for key in path)
                layer = list(_layer(found, f"nblstm.load({file!a}){inside}"))
                room = _less(room, layer)
                lines += ["", *layer]
    return "\n".join(lines)


def summary(tensors: Mapping[str, Array]) -> str:
    """Return how many tensors these are, and their size.

    >>> summary({"a": np.zeros(3)})
    '1 tensor, 24 B'
    """
    return f"{len(tensors)} tensor{'s' * (len(tensors) != 1)}, {size_text(total_size(tensors.values()))}"


def no_tensors(count: int) -> str:
    """Return in words how many values are no tensors.

    >>> no_tensors(1), no_tensors(2)
    ('1 value that is no tensor', '2 values that are no tensors')
    """
    return f"{count} value that is no tensor" if count == 1 else f"{count} values that are no tensors"


def refused(command: str, error: Exception) -> int:
    """Say on standard error, in one line, why `command` cannot be done; returns the exit status for that."""
    print(f"nblstm {command}: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def printable(name: str) -> str:
    """Return a name from a file such that any terminal can show it, and none takes orders from it.

    >>> printable("a.b"), len(printable(chr(27)))
    ('a.b', 6)
    """
    return name if name and name.isascii() and name.isprintable() else ascii(name)


def size_text(size: int) -> str:
    """Return a number of bytes in words.

    >>> size_text(999), size_text(1000), size_text(2_345_678)
    ('999 B', '1.0 kB', '2.3 MB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def _layer(found: RecurrentSpec | CellSpec | str, mapping: str) -> Iterator[str]:
    """Return the lines about one layer in the mapping that this expression gives."""
    if isinstance(found, str):
        yield f"cannot be loaded from {mapping}: {found}"
        return
    sizes = f"{found.input_size}, {found.hidden_size}"
    defaults = {"proj_size": 0, "num_layers": 1, "bias": True, "bidirectional": False}
    options = {name: getattr(found, name, default) for name, default in defaults.items()}
    changed = "".join(f", {name}={value}" for name, value in options.items() if value != defaults[name])
    yield f"{found.kind}({sizes}{changed})" + (f" under {found.prefix!a}" if found.prefix else "")
    if hasattr(nblstm, found.kind):
        prefix = f", prefix={found.prefix!a}" if found.prefix else ""
        yield f"    nblstm.{found.kind}.from_state_dict({mapping}{prefix})"
    else:
        yield f"    nblstm has no {found.kind}"


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Return the rows as lines with columns two spaces apart, the last one flush right; a giant cell sticks out."""
    widths = [min(_WIDEST, max(map(len, column))) for column in zip(*rows, strict=True)]
    for *row, last in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, last.rjust(widths[-1])])
