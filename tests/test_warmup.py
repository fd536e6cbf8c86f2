"""After `warmup` nothing is compiled: by no feature or shape, in no later process, nor where nothing can be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nblstm
from nblstm.commands import warmup as command
from nblstm.engine import ahead
from nblstm.kernels import policy

ROOT = Path(__file__).resolve().parent.parent
# Numba compiles everything that it compiles by this one function; what comes from the cache does without.
NOTHING_COMPILES = """
import warnings
warnings.simplefilter("error")
from numba.core import compiler
def forbidden(typingctx, targetctx, func, *args, **kwargs):
    raise AssertionError(f"{func} was compiled for {args[0]}")
compiler.compile_extra = forbidden
"""
NOTHING_IS_WRITTEN = """
import tempfile
def read_only(*args, **kwargs):
    raise PermissionError(13, "Permission denied")
tempfile.TemporaryFile = read_only  # by which Numba finds out whether it can write to a folder
"""
# Many shapes, so that all plans are there: one thread and two, split by rows and by units.
SERVICE = """
import sys
import numpy as np
import nblstm
from nblstm import functional
nblstm.set_num_threads(2)
def run(dtype):
    for cls in (nblstm.LSTM, nblstm.GRU, nblstm.RNN):
        for sizes in [(1, 1, 1, 1), (9, 1, 256, 256), (3, 7, 5, 33), (4, 64, 128, 64), (2, 0, 3, 4)]:
            steps, rows, inputs, units = sizes
            layer = cls(inputs, units, 2, bidirectional=True, dtype=dtype, seed=0).eval()
            x = np.ones((steps, rows, inputs), dtype)
            layer(x)
            layer(np.asfortranarray(x))
            layer(np.ones((2, steps, rows, inputs), dtype)[1, :, :, ::-1])
            if rows:
                layer(x, lengths=np.arange(rows) % steps + 1)
                layer(nblstm.pack_padded_sequence(x, [steps] * rows))
            x.setflags(write=False)
            layer(x)
        layer(np.ones((steps, inputs), dtype))
        for shape in [(3,), (1, 3), (5, 3)]:
            stream = cls(3, 4, 2, dtype=dtype).stream(batch_size=shape[0] if shape[1:] else 1)
            x = np.ones(shape, dtype)
            stream.copy()(x, out=stream(x))
            stream(np.asfortranarray(x))
    nblstm.LSTM(8, 300, proj_size=40, dtype=dtype, seed=0)(np.ones((3, 40, 8), dtype))
    for cls in (nblstm.LSTMCell, nblstm.GRUCell, nblstm.RNNCell):
        for rows in (1, 5, 300):
            cell = cls(64, 200, dtype=dtype)
            cell(np.ones((rows, 64), dtype), cell(np.ones((rows, 64), dtype)))
        cell(np.ones(64, dtype))
    weights = nblstm.LSTM(3, 4, dtype=dtype).state_dict().values()
    functional.lstm(np.ones((2, 5, 3), dtype), (np.zeros((2, 4), dtype),) * 2, *weights)
"""
TRAINING = """
from nblstm import training as t
def train(dtype):
    for cls in (nblstm.LSTM, nblstm.GRU, nblstm.RNN):
        for sizes in [(1, 1, 1, 1), (20, 40, 64, 64)]:
            steps, rows, inputs, units = sizes
            layer = cls(inputs, units, 2, bidirectional=True, dropout=0.5, dtype=dtype, seed=0)
            (output, state), backward = layer.vjp(np.ones(sizes[:3], dtype))
            gradients = backward(output, state)
            (output, state), backward = layer.vjp(np.ones(sizes[:3], dtype), lengths=np.arange(rows) % steps + 1)
            backward(output, state)
            for make in (t.SGD, t.Adam, t.AdamW):
                make([layer], lr=0.1).step([gradients])
            t.SGD([layer], lr=0.1, momentum=0.9).step([gradients])
            for norm in (0, 1, 2, 3, np.inf, -np.inf):
                t.clip_grad_norm([gradients], 1.0, norm_type=norm)
            t.clip_grad_value([gradients], 1.0)
    lstm = nblstm.LSTM(3, 16, proj_size=4, dtype=dtype)
    (output, state), backward = lstm.vjp(np.ones((5, 2, 3), dtype))
    backward(output, state)
    for cls in (nblstm.LSTMCell, nblstm.GRUCell, nblstm.RNNCell):
        result, backward = cls(3, 4, dtype=dtype).vjp(np.ones((2, 3), dtype))
        backward(result)
    for rows, inputs, outputs in [(1, 1, 1), (500, 100, 300), (500, 300, 100)]:
        y, backward = t.Linear(inputs, outputs, dtype=dtype).vjp(np.ones((rows, inputs), dtype))
        backward(y)
        t.cross_entropy(y, np.zeros(rows, np.int64))
        t.mse_loss(y, y)
        t.l1_loss(y, y)
    y, backward = t.Embedding(30, 9, dtype=dtype).vjp([[1, 2], [3, 3]])
    backward(y)
    y, backward = t.Dropout(0.5, seed=0).vjp(np.ones((3, 4, 5), dtype))
    backward(y)
"""


def run(script: str, **environment: str) -> str:
    """Run a script in a new process with two threads; return what it printed."""
    env = {**os.environ, "NUMBA_NUM_THREADS": "2", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=ROOT, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*.nb?"))


@pytest.mark.slow
def test_a_warm_process_compiles_nothing_whatever_it_does() -> None:
    """In the cache of all tests, which compile most of it anyhow: anew it would take minutes."""
    warm = "import nblstm, sys; nblstm.warmup(training=True); from nblstm.kernels import disk_cache\n"
    folder = Path(run(warm + "print(disk_cache.cache_folder())").strip())
    before = files_in(folder)
    assert before
    every = "".join(f"run(np.{dtype}); train(np.{dtype})\n" for dtype in policy.DTYPES)
    run(NOTHING_COMPILES + SERVICE + TRAINING + every)
    assert files_in(folder) == before


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A cache that the command has filled for a service, and what it said."""
    cache = tmp_path_factory.mktemp("cache")
    arguments = "import sys; from nblstm.__main__ import main; sys.stderr = sys.stdout; "
    said = run(arguments + "sys.exit(main(['warmup', '--dtype', 'float32']))", NUMBA_CACHE_DIR=str(cache))
    return cache, said


@pytest.mark.slow
def test_the_command_fills_an_empty_cache_and_says_with_what(cold: tuple[Path, str]) -> None:
    cache, said = cold
    *lines, summary = said.splitlines()
    kernels = {line.split()[0]: line for line in lines}
    assert {
        "recurrence.recurrence_float32",
        "board.run_alone",
        "board.run_together",
        "board.help_calls",
    } <= kernels.keys()
    assert all(line.endswith("compiled") for line in lines)
    assert not [name for name in kernels if "float64" in name or name.partition(".")[0] in ahead.TRAINING_ONLY]
    (folder,) = {path.parent for path in files_in(cache)}
    size = sum(path.stat().st_size for path in files_in(cache)) / 1e3
    assert summary == f"{len(lines)} kernels, {len(lines)} of them compiled now, {size:.1f} kB in {folder}"


@pytest.mark.slow
@pytest.mark.parametrize("prelude", ["", NOTHING_IS_WRITTEN], ids=["", "read-only"])
def test_a_service_starts_from_it(cold: tuple[Path, str], prelude: str) -> None:
    before = files_in(cold[0])
    run(prelude + NOTHING_COMPILES + SERVICE + "run(np.float32)", NUMBA_CACHE_DIR=str(cold[0]))
    assert files_in(cold[0]) == before


@pytest.mark.slow
def test_a_second_warmup_finds_all_in_the_cache(cold: tuple[Path, str]) -> None:
    again = "import nblstm; print(*(kernel.cached for kernel in nblstm.warmup('float32')))"
    assert set(run(NOTHING_COMPILES + again, NUMBA_CACHE_DIR=str(cold[0])).split()) == {"True"}


@pytest.mark.parametrize("dtypes", [np.float32, np.dtype(np.float32), [np.float32], "float32"])
def test_every_spelling_of_a_dtype(dtypes: Any) -> None:
    names = [kernel.name for kernel in nblstm.warmup(dtypes) if kernel.name.startswith("recurrence")]
    assert names == ["recurrence.recurrence_float32"]


@pytest.mark.parametrize("dtypes", ["float16", [], ["float32", "int64"]])
def test_dtypes_that_there_are_not(dtypes: Any) -> None:
    with pytest.raises(ValueError, match=r"^warmup dtypes: expected some of float32, float64, got"):
        nblstm.warmup(dtypes)


def test_every_kernel_has_a_dtype_and_a_module_that_warmup_knows() -> None:
    modules = {path.stem for path in (ROOT / "nblstm" / "kernels").glob("*.py")}
    assert modules >= ahead.TRAINING_ONLY
    assert all(set(kernel.dtypes) <= set(policy.DTYPES) for kernel in policy.KERNELS)
    assert len({kernel.name for kernel in policy.KERNELS}) == len(policy.KERNELS)


def test_the_command_fails_where_nothing_can_be_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = ahead.ReadyKernel("recurrence.recurrence_float32", 1.0, 0, False)
    monkeypatch.setattr(command, "warmup", lambda *args, **options: [ready])
    assert command.run(type("Arguments", (), {"dtype": "float32", "training": False})()) == 1
    assert "NUMBA_CACHE_DIR" in capsys.readouterr().err
