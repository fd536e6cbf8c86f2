"""A weight file that is open for reading."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from nblstm.errors import WeightFileError, message

Bytes: TypeAlias = npt.NDArray[np.uint8]
BinaryFile: TypeAlias = io.BufferedReader | io.BytesIO


@dataclass(frozen=True)
class Source:
    """An open weight file with its name and its size in bytes: all that the readers of the formats know of it."""

    file: BinaryFile
    name: str
    size: int

    def read(self, start: int, count: int) -> Bytes:
        """Return the `count` bytes from `start` on, in aligned and writable memory of their own.

        Raises WeightFileError, before any memory is taken, if they are not all in the file.
        """
        self.check(start, count)
        content = np.empty(count, np.uint8)
        self.fill(start, content)
        return content

    def check(self, start: int, count: int) -> None:
        """Raise WeightFileError if the `count` bytes from `start` on are not all in the file."""
        if not 0 <= start <= start + count <= self.size:
            hint = "It is cut short or damaged: copy or download it again"
            raise self.refuse(f"{count} bytes from byte {start} on", f"a file of {self.size}", hint)

    def fill(self, start: int, content: Bytes) -> None:
        """Read the bytes from `start` on into `content`, which `check` has found to fit."""
        self.file.seek(start)
        if self.file.readinto(content.data) != content.size:
            hint = "The file shrank while it was read"
            raise self.refuse(f"{content.size} bytes from byte {start} on", "fewer", hint)

    def refuse(self, expected: str, got: object, hint: str = "") -> WeightFileError:
        """Return the error that says why this file is not read."""
        return WeightFileError(message(self.name, expected, got, hint=hint))


def shown(text: str) -> str:
    """Return `text` from a file in the form in which an error may quote it: printable and not too long.

    >>> shown("a" * 1000 + chr(10))[-10:]
    "aaaaaa'..."
    """
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}..."
