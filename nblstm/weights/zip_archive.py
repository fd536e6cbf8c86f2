"""The members of a zip archive, read within bounds that hold whatever the archive says of itself."""

from __future__ import annotations

import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import numpy as np

from nblstm.errors import WeightFileError
from nblstm.weights.source import Bytes, Source, shown

_BEGINNINGS = (b"PK\x03\x04", b"PK\x05\x06")  # of an archive, and of one without members
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of the name and of the extra field that follow it
_ENCRYPTED = 1
_GRANTED = 2**30  # bytes
_MOST_OF_ONE = 1032  # bytes that deflate can make of one
_PACKED_PIECE = 2**12  # bytes; unpacked at most 4 MiB
_LARGE = 2**18  # bytes whose sum takes longer than handing it to a second thread
_PIECE = 2**22  # bytes that are read while those before them are summed
# What damage makes zipfile raise; OSError is a seek to a place that there is not.
_DAMAGE = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, OSError)


def is_zip(head: bytes) -> bool:
    """Say whether a file with this beginning is a zip archive."""
    return head.startswith(_BEGINNINGS)


class ZipArchive:
    """The members of the zip archive in `source` by name, in the order of its directory.

    All members together may take, unpacked, 1 GiB and 64 times the size of the file: more is a zip bomb, or members
    that share their bytes, and refused before any memory is taken. Deflate makes up to 1,032 bytes of one, so weights
    that are all zeros pass up to 1 GiB, and beyond it where they fill but a part of the file. Raises WeightFileError.

    It is a context: the sums of large members are taken on a second thread, while more is read, and compared at the
    end. What was read is right only when the context has been left.

    `size` is how many bytes the members take.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        try:
            with zipfile.ZipFile(source.file) as archive:
                members = archive.infolist()
        except _DAMAGE as error:
            raise self._damaged(str(error)) from error
        self._members = {member.filename: member for member in members}
        if len(self._members) < len(members):
            raise self._damaged("two members of one name")
        self._of_torch = any(name.endswith("/data.pkl") for name in self._members)
        self._sums: list[_Sum] = []
        self._second_thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1)  # starts with the first large member
        self.size = sum(member.file_size for member in members)
        most = 64 * source.size + _GRANTED
        if self.size > most:
            raise source.refuse(f"at most {most} bytes in the members of this archive", self.size)

    def __enter__(self) -> ZipArchive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._second_thread is not None:
            self._second_thread.shutdown(cancel_futures=error is not None)
        if error is None:
            for sum_ in self._sums:
                self._check_sum(sum_.member, sum_.value)

    @property
    def names(self) -> list[str]:
        """The names of all members."""
        return list(self._members)

    def listing(self) -> str:
        """Return the first few names, as an error quotes them."""
        return ", ".join(map(shown, self.names[:5])) or "nothing"

    def read(self, name: str) -> Bytes:
        """Return the content of a member, in aligned and writable memory of its own. Raises WeightFileError.

        A small one, or one that was packed, has the right checksum; that of another is known at the end.
        """
        member = self._members.get(name)
        if member is None:
            raise self._source.refuse(f"a member {shown(name)}", f"an archive of {self.listing()}")
        start, size = self._start(member), member.compress_size
        self._source.check(start, size)
        if member.flag_bits & _ENCRYPTED:
            raise self._damaged(f"an encrypted {shown(name)}")
        if member.compress_type == zipfile.ZIP_STORED:
            self._check_size(member, size)
            return self._stored(start, member)
        if member.compress_type == zipfile.ZIP_DEFLATED:
            if member.file_size > (most := _MOST_OF_ONE * size):
                raise self._damaged(f"at most {most} instead of {member.file_size} bytes of {shown(name)}")
            content = self._inflated(self._source.read(start, size), member)
            self._check_size(member, content.size)
            self._check_sum(member, zlib.crc32(content.data))
            return content
        raise self._damaged(f"{shown(name)} in a compression that is not known")

    def read_program(self, name: str) -> Bytes:
        """Return the content of a member that is to be interpreted, which takes a multiple of its size in memory.

        Packed, it may be 16 times as large as the file, and 1 MiB; torch does not pack pickles.
        """
        member, most = self._members.get(name), 2**20 + 16 * self._source.size
        if member is not None and member.file_size > most:
            raise self._source.refuse(f"at most {most} bytes of {shown(name)}", member.file_size)
        return self.read(name)

    def _start(self, member: zipfile.ZipInfo) -> int:
        header = self._source.read(member.header_offset, _LOCAL_HEADER.size).tobytes()
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        if signature != _BEGINNINGS[0]:
            raise self._damaged(f"no member where {shown(member.filename)} should begin")
        return int(member.header_offset + _LOCAL_HEADER.size + name_length + extra_length)

    def _stored(self, start: int, member: zipfile.ZipInfo) -> Bytes:
        """Return a member that was not packed."""
        content = np.empty(member.file_size, np.uint8)
        if content.size < _LARGE:
            self._source.fill(start, content)
            self._check_sum(member, zlib.crc32(content.data))
            return content
        self._sums.append(sum_ := _Sum(member))
        for at in range(0, content.size, _PIECE):
            piece = content[at : at + _PIECE]
            self._source.fill(start + at, piece)
            self._add(sum_, piece.data)
        return content

    def _add(self, sum_: _Sum, piece: memoryview) -> None:
        """Have a piece summed on the second thread, or here where none can be started."""
        if self._second_thread is not None:
            try:
                self._second_thread.submit(sum_.add, piece)
                return
            except RuntimeError:  # there is no thread, or the interpreter ends: what waits is summed before this piece
                self._second_thread.shutdown()
                self._second_thread = None
        sum_.add(piece)

    def _inflated(self, packed: Bytes, member: zipfile.ZipInfo) -> Bytes:
        """Return a member unpacked, piece by piece: at most one byte more than it says it has."""
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        content, filled = np.empty(member.file_size + 1, np.uint8), 0
        for start in range(0, packed.size, _PACKED_PIECE):
            try:
                piece = inflater.decompress(packed[start : start + _PACKED_PIECE].data, content.size - filled)
            except zlib.error as error:
                raise self._damaged(f"{shown(member.filename)}: {error}") from error
            content[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
            if inflater.eof or filled == content.size:
                break
        return content[:filled]

    def _check_size(self, member: zipfile.ZipInfo, size: int) -> None:
        if size != member.file_size:
            raise self._damaged(f"{size} instead of {member.file_size} bytes of {shown(member.filename)}")

    def _check_sum(self, member: zipfile.ZipInfo, found: int) -> None:
        # 0 means none: torch.save leaves it out after torch.serialization.set_crc32_options(False)
        if found != member.CRC and not (member.CRC == 0 and self._of_torch):
            raise self._damaged(f"{shown(member.filename)} with a wrong checksum")

    def _damaged(self, what: str) -> WeightFileError:
        return self._source.refuse("a whole zip archive", what, "It is damaged: copy or download it again")


class _Sum:
    """The CRC-32 of a member, as far as it was read."""

    def __init__(self, member: zipfile.ZipInfo) -> None:
        self.member = member
        self.value = 0

    def add(self, piece: memoryview) -> None:
        self.value = zlib.crc32(piece, self.value)
