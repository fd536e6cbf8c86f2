"""The members of a zip archive, read within bounds that hold whatever the archive says of itself."""

from __future__ import annotations

import struct
import zipfile
import zlib

import numpy as np

from nblstm.errors import WeightFileError
from nblstm.weights.source import Bytes, Source, shown

_BEGINNINGS = (b"PK\x03\x04", b"PK\x05\x06")  # of an archive, and of one without members
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of the name and of the extra field that follow it
_ENCRYPTED = 1
_GRANTED = 2**30  # bytes
_PIECE = 2**12  # packed bytes; unpacked at most 4 MiB
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
        self.size = sum(member.file_size for member in members)
        most = 64 * source.size + _GRANTED
        if self.size > most:
            raise source.refuse(f"at most {most} bytes in the members of this archive", self.size)

    @property
    def names(self) -> list[str]:
        """The names of all members."""
        return list(self._members)

    def listing(self) -> str:
        """Return the first few names, as an error quotes them."""
        return ", ".join(map(shown, self.names[:5])) or "nothing"

    def read(self, name: str) -> Bytes:
        """Return the content of a member, in aligned and writable memory of its own. Raises WeightFileError."""
        member = self._members.get(name)
        if member is None:
            raise self._source.refuse(f"a member {shown(name)}", f"an archive of {self.listing()}")
        packed = self._source.read(self._start(member), member.compress_size)
        if member.flag_bits & _ENCRYPTED:
            raise self._damaged(f"an encrypted {shown(name)}")
        if member.compress_type == zipfile.ZIP_STORED:
            content = packed
        elif member.compress_type == zipfile.ZIP_DEFLATED:
            content = self._inflated(packed, member)
        else:
            raise self._damaged(f"{shown(name)} in a compression that is not known")
        if content.size != member.file_size:
            raise self._damaged(f"{content.size} instead of {member.file_size} bytes of {shown(name)}")
        # 0 means none: torch.save leaves it out after torch.serialization.set_crc32_options(False)
        if member.CRC not in (0, zlib.crc32(content.data)):
            raise self._damaged(f"{shown(name)} with a wrong checksum")
        return content

    def _start(self, member: zipfile.ZipInfo) -> int:
        header = self._source.read(member.header_offset, _LOCAL_HEADER.size).tobytes()
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        if signature != _BEGINNINGS[0]:
            raise self._damaged(f"no member where {shown(member.filename)} should begin")
        return int(member.header_offset + _LOCAL_HEADER.size + name_length + extra_length)

    def _inflated(self, packed: Bytes, member: zipfile.ZipInfo) -> Bytes:
        """Return a member unpacked, piece by piece: at most one byte more than it says it has."""
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        content, filled = np.empty(member.file_size + 1, np.uint8), 0
        for start in range(0, packed.size, _PIECE):
            try:
                piece = inflater.decompress(packed[start : start + _PIECE].data, content.size - filled)
            except zlib.error as error:
                raise self._damaged(f"{shown(member.filename)}: {error}") from error
            content[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
            if inflater.eof or filled == content.size:
                break
        return content[:filled]

    def _damaged(self, what: str) -> WeightFileError:
        return self._source.refuse("a whole zip archive", what, "It is damaged: copy or download it again")
