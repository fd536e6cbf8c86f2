"""What tests of torch's file formats share: torch as the oracle, and pickles and archives made by hand."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nblstm.weights.files import load

MAGIC = 0x1950A86A20F9469CFC6C  # that torch's files began with before torch 1.6
DATA = Path(__file__).parent / "data"


def counted(*shape: int, dtype: Any = np.float32) -> Any:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def assert_same(ours: Any, theirs: Any) -> None:
    """Compare what we loaded with what torch loaded, bit for bit."""
    if type(theirs).__module__.startswith("torch") and hasattr(theirs, "detach"):
        theirs = theirs.detach()
        expected = (theirs.float() if str(theirs.dtype) == "torch.bfloat16" else theirs).numpy()
        assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
        assert ours.tobytes() == expected.tobytes()
        assert ours.flags.writeable and ours.flags.aligned
    elif isinstance(theirs, dict):
        assert type(ours) is type(theirs)
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value)
        assert getattr(ours, "_metadata", None) == getattr(theirs, "_metadata", None)
    elif isinstance(theirs, (list, tuple)):
        assert isinstance(theirs, type(ours)) and len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    else:
        assert type(ours) is type(theirs) and ours == theirs


# torch as the oracle


def saved(torch: Any, value: object, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file


def assert_as_torch(torch: Any, value: object, *, legacy: bool = True) -> None:
    """Compare what we load with what torch loads, from the zip format and from the one before it."""
    for zipped in (True, False) if legacy else (True,):
        file = saved(torch, value, _use_new_zipfile_serialization=zipped)
        ours = load(file)
        file.seek(0)
        assert_same(ours, torch.load(file, weights_only=True, map_location="cpu"))


# Made by hand


def archive(
    program: bytes, members: dict[str, bytes] | None = None, root: str = "any folder", method: int = 0
) -> io.BytesIO:
    """Return a zip archive as torch.save makes it, with ``data.pkl`` and `members` under `root`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as packed:
        for name, content in {"data.pkl": b"\x80\x02" + program + b".", **(members or {})}.items():
            packed.writestr(f"{root}/{name}", content)
    return file


def scripted(program: bytes, code: dict[str, str], members: dict[str, bytes] | None = None) -> io.BytesIO:
    """Return an archive as torch.jit.save makes it; `code` has the text of each file of code by its module."""
    texts = {f"code/{module.replace('.', '/')}.py": text.encode() for module, text in code.items()}
    return archive(program, {"constants.pkl": b"\x80\x02).", **texts, **(members or {})})


def made(module: str, name: str, attributes: bytes) -> bytes:
    """Return the opcodes that make an object of TorchScript; `attributes` push name, value, name, value, ..."""
    return global_name(module, name) + b")\x81}(" + attributes + b"ub"


def legacy(
    program: bytes,
    storages: dict[str, tuple[int, bytes]] | None = None,
    *,
    keys: object = None,
    version: object = 1001,
) -> io.BytesIO:
    """Return a file as torch.save made it before torch 1.6; `storages` have a number of elements and their bytes."""
    storages = storages or {}
    pickles = [value(MAGIC), value(version), value({"little_endian": True}), program]
    pickles.append(value(list(storages) if keys is None else keys))
    content = b"".join(b"\x80\x02" + pickled + b"." for pickled in pickles)
    content += b"".join(count.to_bytes(8, "little", signed=True) + data for count, data in storages.values())
    return io.BytesIO(content)


def legacy_storage(kind: str = "FloatStorage", key: object = "7", count: object = 6, view: object = None) -> bytes:
    parts = value("storage"), global_name("torch", kind), value(key), value("cuda:1"), value(count), value(view)
    return b"(" + b"".join(parts) + b"tQ"


def value(plain: object) -> bytes:
    """Return the opcodes that push a plain value."""
    return pickle.dumps(plain, 2)[2:-1]


def global_name(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def storage(kind: str = "FloatStorage", key: object = "0", count: object = 6) -> bytes:
    return b"(" + value("storage") + global_name("torch", kind) + value(key) + value("cpu") + value(count) + b"tQ"


def tensor(
    storage: bytes, offset: object = 0, size: object = (2, 3), stride: object = (3, 1), *, last: bytes = b""
) -> bytes:
    arguments = storage + value(offset) + value(size) + value(stride) + value(False) + value(None) + last
    return global_name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


FLOATS = {"data/0": counted(6).tobytes()}
