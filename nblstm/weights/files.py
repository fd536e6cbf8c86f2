"""`load` and `save`: weight files to named arrays and back."""

from __future__ import annotations

import errno
import io
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nblstm.arrays import Array, as_array, as_mapping
from nblstm.errors import WeightFileError, message
from nblstm.weights.elements import ELEMENTS, Elements, elements_with_bfloat16, is_bfloat16
from nblstm.weights.legacy_file import is_legacy, read_legacy
from nblstm.weights.npz_file import check_npz, is_npz, read_npz, write_npz
from nblstm.weights.safetensors_file import check_safetensors, is_safetensors, read_safetensors, write_safetensors
from nblstm.weights.source import BinaryFile, Source
from nblstm.weights.torch_file import read_torch_file, root_of
from nblstm.weights.torchscript_file import is_torchscript, read_torchscript
from nblstm.weights.zip_archive import ZipArchive, is_zip

_READABLE = "a file of torch.save or torch.jit.save, a .safetensors or a .npz file"
_HEAD = 512  # bytes that tell the kinds of files apart
_DOWNLOAD_AGAIN = "Download the file itself"
_SAVE_AGAIN = "Load it with torch and torch.save its state_dict() again"

# Where files that are often taken for weights have which bytes, what they are and what to do.
_OTHER_FILES = (
    (0, b"version https://git-lfs", "a git-lfs pointer, which stands for the file", "Run git lfs pull"),
    (0, b"\x80", "a bare pickle", _SAVE_AGAIN),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "Save its arrays with numpy.savez"),
    (0, b"\x93NUMPY", "a .npy file of a single array without a name", "Save it with numpy.savez"),
    (0, b"\x1f\x8b", "a gzip archive", "Unpack it first"),
    (257, b"ustar", "a tar archive", "Unpack it first; if it is of torch.save before torch 0.1.10, save it again"),
)


def load(path: str | os.PathLike[str] | BinaryFile, *, keep_bfloat16: bool = False) -> Any:
    """Return what a weight file holds, with NumPy arrays for tensors, without torch and without running any code.

    The content decides how a file is read, whatever its name:

    * ``torch.save`` (torch 0.1.10 and later, any extension): what ``torch.load(path, weights_only=True,
      map_location="cpu")`` gives, mostly an OrderedDict of names and tensors; plain values, lists, tuples and dicts
      around them come out as they are, a torch.dtype as NumPy's, a torch.device as text. Arrays share memory where
      their tensors did.
    * ``torch.jit.save`` (TorchScript): the OrderedDict that ``torch.jit.load(path).state_dict()`` is.
    * ``.safetensors`` and ``.npz``: a dict of names and arrays.

    bfloat16 is widened exactly to float32; every other dtype is kept, in the byte order of this machine.

    Parameters
    ----------
    path : str, os.PathLike or binary file
        The file; an open one (``io.BytesIO``, ``open(…, "rb")``) is read from its beginning and left open.
    keep_bfloat16 : bool
        Keep bfloat16 as the dtype of that name which the package ``ml_dtypes`` has for NumPy.

    Raises
    ------
    WeightFileError
        The file is damaged, is no weight file, or holds other things than tensors and plain values. Names the file,
        what was found in it and what to do. It is a ValueError.
    FileNotFoundError, IsADirectoryError, PermissionError
        As `open` does.
    TypeError
        `path` is neither a path nor a binary file.
    ImportError
        `keep_bfloat16` is set, and ml_dtypes is not installed.

    Examples
    --------
    >>> import io
    >>> import numpy as np
    >>> file = io.BytesIO()
    >>> np.savez(file, weight_hh_l0=np.ones((8, 2), np.float32))
    >>> load(file)["weight_hh_l0"].shape
    (8, 2)
    """
    elements = elements_with_bfloat16() if keep_bfloat16 else ELEMENTS
    if not isinstance(path, (str, os.PathLike)):
        if not hasattr(path, "readinto"):
            raise TypeError(message("path", "a str, an os.PathLike or a binary file", type(path).__name__))
        return _read(path, str(getattr(path, "name", "file")), elements)
    if os.path.isdir(path):  # Windows would say PermissionError
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    with open(path, "rb") as file:
        return _read(file, os.fspath(path), elements)


def save(path: str | os.PathLike[str], state_dict: Mapping[str, Any]) -> None:
    """Write named arrays to a .safetensors or .npz file, as the extension of `path` says.

    The file appears whole or not at all: it is written beside its place and moved there at the end, and whatever goes
    wrong before that leaves an older file as it was.

    Parameters
    ----------
    path : str or os.PathLike
        Where to write.
    state_dict : mapping of str to array
        The arrays, of any shape: whatever `numpy.asarray` takes, and bfloat16 of ml_dtypes for .safetensors. Arrays
        that share memory are written in full each.

    Raises
    ------
    ValueError
        The extension is another one, or the format cannot hold a name or a dtype.
    TypeError
        `state_dict` is no mapping, a name in it is not a str, or a value is not an array of numbers.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/weights.safetensors", {"weight_hh_l0": np.ones((8, 2), np.float32)})
    ...     load(f"{folder}/weights.safetensors")["weight_hh_l0"].shape
    (8, 2)
    """
    target = Path(path)
    if target.suffix.lower() not in _WRITERS:
        raise ValueError(message("path", f"a name that ends in {' or '.join(_WRITERS)}", repr(str(target))))
    check, write = _WRITERS[target.suffix.lower()]
    arrays = {name: _checked(name, value, check) for name, value in as_mapping("state_dict", state_dict).items()}
    with _replacing(target) as file:
        write(file, arrays)


_Check = Callable[[str, Array], None]
_Write = Callable[[BinaryIO, Mapping[str, Array]], None]
_WRITERS: dict[str, tuple[_Check, _Write]] = {
    ".safetensors": (check_safetensors, write_safetensors),
    ".npz": (check_npz, write_npz),
}


def _read(file: BinaryFile, name: str, elements: Elements) -> Any:
    source = Source(file, name, file.seek(0, io.SEEK_END))
    head = source.read(0, min(_HEAD, source.size)).tobytes()
    if is_zip(head):
        with ZipArchive(source) as archive:
            return _read_archive(source, archive, elements)
    if is_legacy(head):
        return read_legacy(source, elements)
    if is_safetensors(head):
        return read_safetensors(source, elements)
    raise _not_weights(source, head)


def _read_archive(source: Source, archive: ZipArchive, elements: Elements) -> Any:
    if is_npz(archive):
        return read_npz(source, archive)
    root = root_of(source, archive)
    read = read_torchscript if is_torchscript(archive, root) else read_torch_file
    return read(source, archive, root, elements)


def _not_weights(source: Source, head: bytes) -> WeightFileError:
    """Return the error that says what a file is instead."""
    if not head:
        return source.refuse(_READABLE, "an empty file", _DOWNLOAD_AGAIN)
    if head.lstrip()[:1] == b"<":
        return source.refuse(_READABLE, "a web page (HTML or XML)", _DOWNLOAD_AGAIN)
    for place, signature, kind, advice in _OTHER_FILES:
        if head.startswith(signature, place):
            return source.refuse(_READABLE, kind, advice)
    return source.refuse(_READABLE, f"a file that begins with {head[:16]!r}")


def _checked(name: object, value: object, check: _Check) -> Array:
    if not isinstance(name, str):
        raise TypeError(message("state_dict", "a str as each name", type(name).__name__))
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(message("state_dict", "names of Unicode characters", repr(name))) from error
    array = value if is_bfloat16(value) else as_array(f"state_dict[{name!r}]", value)
    check(name, array)
    return array


@contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `target` when the block ends, and vanishes when it raises."""
    target = Path(os.path.realpath(target))  # a symbolic link stays, and points to the new file
    beside = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(beside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
