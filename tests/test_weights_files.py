"""`load` and `save`: which file is what, .npz files, and what is left when writing fails."""

from __future__ import annotations

import io
import os
import pathlib
import stat
import sys
import threading
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nblstm.errors import WeightFileError
from nblstm.weights import files, zip_archive
from nblstm.weights.files import load, save

WEIGHTS = {"lstm.weight_ih_l0": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(7)}
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", "c8", "c16", ">f4", ">i8"]
ARRAYS = hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


def assert_weights(loaded: Any) -> None:
    assert list(loaded) == list(WEIGHTS)
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)


# .npz


@settings(max_examples=60)
@given(
    st.dictionaries(NAMES, hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, min_side=0)), max_size=3)
)
def test_npz_files_go_both_ways(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("saved") / "a.npz"
    save(path, arrays)
    with np.load(path) as theirs:
        assert theirs.files == list(arrays)
        for name, array in load(path).items():
            assert array.dtype == arrays[name].dtype.newbyteorder("=")
            np.testing.assert_array_equal(array, theirs[name])
            assert array.flags.writeable and array.flags.aligned


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_npz_files_of_numpy_are_read(tmp_path, savez):
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    savez(tmp_path / "a.npz", **WEIGHTS, fortran=fortran, zeros=np.zeros(10**6))
    loaded = load(tmp_path / "a.npz")
    np.testing.assert_array_equal(loaded.pop("fortran"), fortran, strict=True)
    np.testing.assert_array_equal(loaded.pop("zeros"), np.zeros(10**6), strict=True)
    assert_weights(loaded)


def test_equal_arrays_make_equal_files(tmp_path):
    for extension in ("npz", "safetensors"):
        for name in ("a", "b"):
            save(tmp_path / f"{name}.{extension}", WEIGHTS)
        assert (tmp_path / f"a.{extension}").read_bytes() == (tmp_path / f"b.{extension}").read_bytes()


def npz(*members: bytes) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate(members):
            archive.writestr(f"{number}.npy", content)
    return file


def npy(header: str, data: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    size = (len(header) if length is None else length).to_bytes(2 * version, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + data


F4 = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
REFUSED = {
    "no .npy": b"nothing",
    "nothing": b"",
    "version 3": npy(F4, bytes(8))[:6] + b"\x03" + npy(F4, bytes(8))[7:],
    "object array": npy(F4.replace("<f4", "|O"), b"cos\nsystem\n(S'touch pwned'\ntR."),
    "named fields": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", bytes(8)),
    "text": npy(F4.replace("<f4", "<U2"), bytes(16)),
    "no such dtype": npy(F4.replace("f4", "f3"), bytes(6)),
    "code in the header": npy("{'descr': exit(), 'fortran_order': False, 'shape': (2,), }", bytes(8)),
    "negative size": npy(F4.replace("(2,)", "(-2,)"), bytes(8)),
    "giant": npy(F4.replace("(2,)", "(4611686018427387904,)"), bytes(8)),
    "product that overflows": npy(F4.replace("(2,)", "(4294967296, 4294967296)"), bytes(8)),
    "giant beside a zero": npy(F4.replace("(2,)", "(0, 4611686018427387904)")),
    "too many dimensions": npy(F4.replace("(2,)", f"({'1,' * 65})"), bytes(4)),
    "header beyond the end": npy(F4, bytes(8), 1, 2**15),
    "header of four gigabytes": npy(F4, bytes(8), 2, 2**32 - 1),
    "data cut short": npy(F4, bytes(7)),
    "data left over": npy(F4, bytes(9)),
    "separator that is no space": npy(F4.replace("(2,)", "(\x1c2,)"), bytes(8)),
    "header of nesting": npy("(" * 60_000, bytes(8)),
}


@pytest.mark.parametrize("member", REFUSED.values(), ids=REFUSED.keys())
def test_broken_arrays_are_refused(member, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(npz(npy(F4, bytes(8))))["0"].tolist() == [0, 0]
    with pytest.raises(WeightFileError) as refused:
        load(npz(npy(F4, bytes(8)), member))
    assert len(str(refused.value)) < 500 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["(@2,)", "(2@,)", "(2,@)", "(2,1@)", "@(2,)", "(@)"])
def test_any_byte_in_a_shape_is_read_or_refused(place):
    for byte in range(256):
        header = F4.replace("(2,)", place.replace("@", chr(byte))).encode("latin1")
        member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)
        try:
            assert not load(npz(member))["0"].any()
        except WeightFileError as error:
            assert str(error).startswith("file: expected ")


def test_headers_need_not_be_in_order():
    header = "{'shape':(2,),'fortran_order':True,'descr':'|b1'}"
    assert load(npz(npy(header, b"\x02\x00", 2)))["0"].view(np.uint8).tolist() == [1, 0]


def test_weights_that_are_mostly_zeros_are_read():
    file = io.BytesIO()
    np.savez_compressed(file, w=np.zeros((5000, 5000), np.float32))
    assert file.seek(0, io.SEEK_END) < 10**8 / 1000
    tracemalloc.start()
    try:
        assert load(file)["w"].shape == (5000, 5000)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * 10**8  # no second copy on the way
    finally:
        tracemalloc.stop()


def test_a_zip_bomb_is_refused_before_it_unpacks(monkeypatch):
    bomb = npz(bytes(2**27))
    monkeypatch.setattr(zip_archive, "_GRANTED", 2**20)
    with pytest.raises(WeightFileError, match="at most"):
        load(bomb)


@pytest.mark.parametrize("claim", [0, 10, 2**25])
def test_no_more_is_unpacked_than_a_member_says_it_holds(claim):
    content = bytearray(npz(npy(F4, bytes(8)), bytes(2**24)).getvalue())
    entry = content.rindex((2**24).to_bytes(4, "little"))  # in the directory at the end
    content[entry : entry + 4] = claim.to_bytes(4, "little")
    tracemalloc.start()
    try:
        with pytest.raises(WeightFileError, match="instead of"):
            load(io.BytesIO(content))
        assert tracemalloc.get_traced_memory()[1] < claim + 2**24
    finally:
        tracemalloc.stop()


# Which file is what


@pytest.mark.parametrize("extension", [".npz", ".safetensors"])
@pytest.mark.parametrize("name", ["weights.pt", "weights", "weights.npz", "weights.safetensors"])
def test_the_content_decides(tmp_path, extension, name):
    save(tmp_path / f"a{extension}", dict(sorted(WEIGHTS.items(), reverse=True)) if extension == ".npz" else WEIGHTS)
    os.replace(tmp_path / f"a{extension}", tmp_path / name)
    loaded = load(tmp_path / name)
    assert_weights({key: loaded[key] for key in WEIGHTS})


def test_paths_and_open_files_are_taken(tmp_path):
    save(str(tmp_path / "ü.npz"), WEIGHTS)
    assert_weights(load(str(tmp_path / "ü.npz")))
    assert_weights(load(tmp_path / "ü.npz"))
    assert_weights(load(io.BytesIO((tmp_path / "ü.npz").read_bytes())))
    with open(tmp_path / "ü.npz", "rb") as file:
        assert_weights(load(file))
        assert_weights(load(file))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file. Download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "git-lfs pointer.* git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "a web page.* Download the file itself"),
        (b"\x80\x04\x95", "a bare pickle"),
        (b"\x89HDF\r\n\x1a\n", "HDF5.*numpy.savez"),
        (b"\x93NUMPY\x01\x00", "a single array"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"a" * 257 + b"ustar", r"tar archive.*0\.1\.10"),
        (b"PK\x03\x04", "a whole zip archive"),
        (b"Hello", "begins with b'Hello'"),
        (bytes(600), "begins with"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, words):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(WeightFileError, match=words) as refused:
        load(tmp_path / "model.pt")
    assert str(refused.value).startswith(f"{tmp_path / 'model.pt'}: expected ")
    assert isinstance(refused.value, ValueError)


def test_missing_files_and_folders_are_named_as_open_names_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        load(tmp_path / "missing.pt")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)


@pytest.mark.parametrize("path", [3, None, b"weights.npz", io.StringIO("text")])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(TypeError, match=r"path: expected a str, an os\.PathLike or a binary file, got"):
        load(path)


# Writing


@pytest.mark.parametrize("name", ["weights.pt", "weights", "weights.safetensors.gz", ".npz"])
def test_other_extensions_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"ends in \.safetensors or \.npz"):
        save(tmp_path / name, WEIGHTS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extension", ["npz", "safetensors"])
@pytest.mark.parametrize(
    ("state_dict", "error", "words"),
    [
        ({"a": {"b": np.ones(2)}}, TypeError, r"state_dict\['a'\]: expected an array of numbers, got dict"),
        ({"a": "text"}, TypeError, "expected an array of numbers"),
        ({"a": None}, TypeError, "expected an array of numbers"),
        ({1: np.ones(2)}, TypeError, "expected a str as each name, got int"),
        ({"\ud800": np.ones(2)}, ValueError, "names of Unicode characters"),
    ],
)
def test_what_no_file_holds_is_refused_and_nothing_is_written(tmp_path, extension, state_dict, error, words):
    path = tmp_path / f"weights.{extension}"
    save(path, WEIGHTS)
    with pytest.raises(error, match=words):
        save(path, WEIGHTS | state_dict)
    assert list(tmp_path.iterdir()) == [path]
    assert_weights({name: load(path)[name] for name in WEIGHTS})


def test_what_one_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got complex128\. A \.npz file holds it"):
        save(tmp_path / "a.safetensors", {"a": np.ones(2, np.complex128)})
    with pytest.raises(ValueError, match="another name than __metadata__"):
        save(tmp_path / "a.safetensors", {"__metadata__": np.ones(2)})
    with pytest.raises(ValueError, match="without a NUL"):
        save(tmp_path / "a.npz", {"a\0b": np.ones(2)})
    with pytest.raises(ValueError, match="names of at most 65531 bytes"):
        save(tmp_path / "a.npz", {"ü" * 32766: np.ones(2)})
    assert not list(tmp_path.iterdir())


def test_bfloat16_needs_a_package_and_a_format_that_have_it(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ml_dtypes", None)
        with pytest.raises(ImportError, match=r"keep_bfloat16: expected the package ml_dtypes.* pip install ml_dtypes"):
            load(tmp_path / "a.pt", keep_bfloat16=True)
    array = np.ones(2, pytest.importorskip("ml_dtypes").bfloat16)
    with pytest.raises(ValueError, match=r"got bfloat16\. A \.safetensors file holds it"):
        save(tmp_path / "a.npz", {"a": array})
    assert not list(tmp_path.iterdir())


def no_thread(_: object) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("threads", [True, False])
@pytest.mark.parametrize("member", [0, 1])
def test_a_wrong_checksum_of_a_large_member_is_found(tmp_path, monkeypatch, member, threads):
    if not threads:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
    np.savez(tmp_path / "a.npz", small=np.ones(10), large=np.ones(10**6))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    assert load(io.BytesIO(content))["large"].sum() == 10**6
    content[200 if member == 0 else -10_000] ^= 1
    with pytest.raises(WeightFileError, match=f"{['small', 'large'][member]}.npy' with a wrong checksum"):
        load(io.BytesIO(content))


def test_a_second_thread_that_ends_early_changes_nothing(tmp_path, monkeypatch):
    """The interpreter ends it while other threads still read: what it has got is summed before the rest."""
    np.savez(tmp_path / "a.npz", large=np.arange(4 * 10**6))
    submit = ThreadPoolExecutor.submit
    taken = []

    def submit_some(pool, work, *arguments):
        taken.append(work)
        if len(taken) > 2:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return submit(pool, lambda: (time.sleep(0.05), work(*arguments)))

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit_some)
    assert load(tmp_path / "a.npz")["large"][-1] == 4 * 10**6 - 1
    assert len(taken) == 3


def test_only_torch_leaves_checksums_out(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(10))
    content = (tmp_path / "a.npz").read_bytes()
    entry = content.rindex(b"PK\x01\x02") + 16
    with pytest.raises(WeightFileError, match="checksum"):
        load(io.BytesIO(content[:entry] + bytes(4) + content[entry + 4 :]))


def test_archives_that_torch_writes_for_other_ends_are_refused_by_name():
    members = {
        "archive_format": r"torch\.export",
        ".data/extern_modules": r"torch\.package",
        "model.json": "TorchScript",
    }
    for member, words in members.items():
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"model/{member}", "")
        with pytest.raises(WeightFileError, match=f"got an? .*{words}"):
            load(file)


@pytest.mark.parametrize("state_dict", [None, [1], "weights", [("a", np.ones(2))]], ids=repr)
def test_what_is_no_mapping_is_refused(tmp_path, state_dict):
    with pytest.raises(TypeError, match="state_dict: expected a mapping of names to arrays, got"):
        save(tmp_path / "weights.npz", state_dict)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extension", ["npz", "safetensors"])
@pytest.mark.parametrize("failure", [OSError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, extension, failure, step):
    path = tmp_path / f"weights.{extension}"
    save(path, WEIGHTS)

    def fail(*_: object) -> None:
        raise failure

    if step == "write":
        check, write = files._WRITERS[path.suffix]
        monkeypatch.setitem(files._WRITERS, path.suffix, (check, lambda *given: (write(*given), fail())))
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(failure):
        save(path, {"other": np.zeros(3)})
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [path]
    assert_weights({name: load(path)[name] for name in WEIGHTS})


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "missing" / "a.npz", WEIGHTS)


def test_modes_and_links_are_those_of_an_ordinary_write(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    (tmp_path / "link.npz").symlink_to(tmp_path / "target.npz")
    save(tmp_path / "link.npz", WEIGHTS)
    assert (tmp_path / "link.npz").is_symlink()
    assert_weights(load(tmp_path / "target.npz"))
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "target.npz")}
    assert len(modes) == 1


def test_readers_beside_a_writer_see_whole_files(tmp_path):
    path = pathlib.Path(tmp_path / "weights.safetensors")
    save(path, {"a": np.zeros(5000)})
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            save(path, {"a": np.full(5000, number)})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            assert len(np.unique(load(path)["a"])) == 1
    finally:
        stop.set()
        writer.join()
