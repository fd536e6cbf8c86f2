"""The kernel cache: a second process compiles nothing, stale or damaged entries are never run, no folder is no end."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PACKAGE = Path(__file__).resolve().parent.parent / "nblstm"
# One call on two threads, so that all kernels of a dtype are used; prints what came and which kernels were cached.
CALL = """
import numpy as np, warnings
warnings.simplefilter("always")
import nblstm
from nblstm.kernels import board, recurrence
nblstm.set_num_threads(2)
lstm = nblstm.LSTM(256, 256, seed=0).eval()
output, _ = lstm(np.ones((90, 1, 256), np.float32))
nblstm.set_num_threads(1)
assert np.array_equal(lstm(np.ones((90, 1, 256), np.float32))[0], output)
alone, together = (sum(kernel.stats.cache_hits.values()) for kernel in (board.run_alone, board.run_together))
print(recurrence.recurrence_float32.cache_hits, alone, together, float(output.sum()))
"""


def call(cache, *, root=PACKAGE.parent, prelude="", end=""):
    """Run CALL in a new process with the package of folder `root`; return (numbers printed, standard error)."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "NUMBA_NUM_THREADS": "2", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", prelude + CALL + end]
    result = subprocess.run(command, capture_output=True, text=True, env=env, cwd=root, check=False)
    assert result.returncode == 0, result.stderr
    return [float(word) for word in result.stdout.split()], result.stderr


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A cache that one process has filled, and the sum that it got."""
    cache = tmp_path_factory.mktemp("cache")
    numbers, _ = call(cache)
    assert numbers[:3] == [0, 0, 0]
    return cache, numbers[3]


@pytest.fixture
def filled(first, tmp_path):
    """A copy of that cache, and the sum."""
    return shutil.copytree(first[0], tmp_path / "cache"), first[1]


def test_a_second_process_compiles_nothing(filled):
    cache, total = filled
    assert call(cache)[0] == [1, 1, 1, total]


@pytest.mark.parametrize("collects", [True, False])
def test_pythons_collector_is_left_as_it_was(tmp_path, collects):
    prelude = f"import gc\n(gc.enable if {collects} else gc.disable)()\n"
    numbers, _ = call(tmp_path, prelude=prelude, end="print(gc.isenabled() + 0)")
    assert numbers[4] == collects


def test_the_way_back_is_cached_too(tmp_path):
    prelude = """
import numpy as np
import nblstm
from nblstm.kernels.backprop import backward_float32
from nblstm.kernels.products import rows_float32
from nblstm.kernels.weight_gradients import weight_gradients_float32
(output, _), backward = nblstm.LSTM(3, 4, seed=0).vjp(np.ones((5, 2, 3), np.float32))
backward(output)
print(*(worker.cache_hits for worker in (backward_float32, rows_float32, weight_gradients_float32)))
"""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(PACKAGE.parent)}
    for expected in ("0 0 0", "1 1 1"):
        done = subprocess.run([sys.executable, "-c", prelude], capture_output=True, text=True, env=env, check=True)
        assert done.stdout.strip() == expected


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def spoil(file):
    """Overwrite the compiled code, but keep the length."""
    content = bytearray(file.read_bytes())
    middle = slice(len(content) // 3, 2 * len(content) // 3)
    content[middle] = b"x" * len(content[middle])
    file.write_bytes(content)


def flip_a_bit(file):
    """Change one instruction, or what LLVM reads of the code, which may end the process."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def name_a_missing_module(file):
    file.write_bytes(b"cno_such_module\nname\n.")


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(".nbi", truncate), (".nbc", truncate), (".nbc", spoil), (".nbc", flip_a_bit), (".nbc", name_a_missing_module)],
)
def test_a_damaged_file_is_replaced(filled, suffix, damage):
    cache, total = filled
    for file in cache.rglob(f"*{suffix}"):
        damage(file)
    assert call(cache)[0] == [0, 0, 0, total]
    assert call(cache)[0] == [1, 1, 1, total]


def test_an_index_that_cannot_be_opened_means_one_warning(filled):
    cache, total = filled
    for file in cache.rglob("*.nbi"):
        file.unlink()
        file.mkdir()
    numbers, error = call(cache)
    assert numbers == [0, 0, 0, total]
    assert error.count("RuntimeWarning: nblstm compiles its kernels anew") == 1


# A call of a kernel that compiles in a second; prints whether it was cached, and what came.
QUICK = """
import numpy as np, warnings
warnings.simplefilter("always")
from nblstm.kernels.embedding import add_rows
from nblstm.training import Embedding
output, backward = Embedding(3, 1, seed=0).vjp([1, 1])
total = float(backward(output * 0 + 1).parameters["weight"][1, 0])
print(add_rows.cache_hits, total)
"""


def start_quick(root, cache, prelude="", **environment):
    """Start QUICK in a new process with the package of folder `root`."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(root), **environment}
    command = [sys.executable, "-c", prelude + QUICK]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=root)


def result_of(process):
    """Return the numbers printed, and standard error."""
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return [float(word) for word in output.split()], error


def copied(folder):
    """Copy the package into a folder."""
    return shutil.copytree(PACKAGE, folder / "nblstm", ignore=shutil.ignore_patterns("__pycache__"))


def test_an_upgrade_in_place_is_seen_though_no_file_looks_newer(tmp_path):
    """The same name, size and time, as where a package manager sets the times of all files."""
    file, cache = copied(tmp_path) / "kernels" / "embedding.py", tmp_path / "cache"
    old = file.read_text()
    new = old.replace("table[start + k] += row[k]", "table[start + k] -= row[k]")
    assert new != old and len(new) == len(old)
    for text, expected in ((old, [0, 2]), (old, [1, 2]), (new, [0, -2]), (new, [1, -2]), (old, [0, 2])):
        file.write_text(text)
        os.utime(file, (1e9, 1e9))
        # No bytecode: Python too would take the old one by its time and size.
        assert result_of(start_quick(tmp_path, cache, PYTHONDONTWRITEBYTECODE="1"))[0] == expected


def test_two_versions_beside_each_other_share_a_cache_folder(tmp_path):
    cache, roots = tmp_path / "cache", [tmp_path / "one", tmp_path / "two"]
    for root in roots:
        file = copied(root) / "kernels" / "embedding.py"
    file.write_text(file.read_text().replace("table[start + k] += row[k]", "table[start + k] -= row[k]"))
    for cached in (0, 1, 1):
        for root, expected in zip(roots, (2, -2), strict=True):
            assert result_of(start_quick(root, cache))[0] == [cached, expected]


def test_processes_that_start_at_once_on_an_empty_cache(tmp_path):
    results = [result_of(each) for each in [start_quick(PACKAGE.parent, tmp_path) for _ in range(4)]]
    assert [numbers[1] for numbers, _ in results] == [2] * 4
    assert not [error for _, error in results if error]
    assert result_of(start_quick(PACKAGE.parent, tmp_path)) == ([1, 2], "")


# Root may write anywhere: so a system that lets nobody, by the way in which Numba finds out.
READ_ONLY = """
import os, tempfile
def read_only(*args, **kwargs):
    raise PermissionError(13, "Permission denied")
tempfile.TemporaryFile = os.makedirs = read_only
"""


def test_a_read_only_home_means_one_warning(tmp_path):
    copied(tmp_path / "package")
    home = tmp_path / "home"
    home.mkdir()
    for _ in range(2):
        process = start_quick(tmp_path / "package", "", READ_ONLY, HOME=str(home), XDG_CACHE_HOME="")
        numbers, error = result_of(process)
        assert numbers == [0, 2]
        assert error.count("RuntimeWarning: nblstm compiles its kernels anew") == 1
    assert not list(home.rglob("*"))


def test_a_change_in_another_file_is_seen(tmp_path):
    """Numba alone would look at the file of the cached function only and run the old code."""
    copy = copied(tmp_path)
    cache = tmp_path / "cache"
    before, _ = call(cache, root=tmp_path)
    cells = copy / "kernels" / "cells.py"
    text = cells.read_text()
    changed = text.replace("return normal_or_zero(o * tanh(c))\n", "return normal_or_zero(o * tanh(c) * 0.5)\n")
    assert changed != text
    cells.write_text(changed)
    after, _ = call(cache, root=tmp_path)
    assert after[0] == 0 and after[3] != before[3]


NO_FOLDER = """
from numba.core.caching import CompileResultCacheImpl
for locator in CompileResultCacheImpl._locator_classes:
    locator.from_function = classmethod(lambda cls, py_func, py_file: None)
"""
FULL_DISK = """
from numba.core.caching import IndexDataCacheFile
def full(self, filepath):
    raise OSError(28, "No space left on device")
IndexDataCacheFile._open_for_write = full
"""


@pytest.mark.parametrize("prelude", [NO_FOLDER, FULL_DISK], ids=["no folder that can be written", "full disk"])
def test_no_cache_means_one_warning(filled, tmp_path, prelude):
    numbers, error = call(tmp_path / "empty", prelude=prelude)
    assert numbers == [0, 0, 0, filled[1]]
    assert error.count("RuntimeWarning: nblstm compiles its kernels anew") == 1


# A kernel of either dtype; prints a sum.
OF_A_DTYPE = """
import sys
import numpy as np
from nblstm.kernels.embedding import add_rows
dtype = np.dtype(sys.argv[1])
table, rows, indices = np.zeros(2, dtype), np.ones(2, dtype), np.zeros(1, np.int64)
add_rows.of(dtype)(1, 2, indices.ctypes.data, rows.ctypes.data, table)
print(table.sum())
"""


def test_the_code_of_another_dtype_is_not_taken(tmp_path):
    # Two processes that fill an empty cache at once may leave this: the index of one, and the code of the other.
    def add(dtype):
        env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        return subprocess.run([sys.executable, "-c", OF_A_DTYPE, dtype], capture_output=True, text=True, env=env)

    assert [add(dtype).stdout for dtype in ("float32", "float64")] == ["2.0\n"] * 2
    one, other = sorted(tmp_path.rglob("embedding.add_rows*.nbc"))
    shutil.copy(other, one)
    assert [add(dtype).stdout for dtype in ("float32", "float64", "float32")] == ["2.0\n"] * 3
