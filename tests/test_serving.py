"""Where others use the machine or the process too: the right bits, no hang and no abort, each in its own process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import run

import nblstm
from nblstm import threads

pytestmark = pytest.mark.slow
CGROUP = Path("/sys/fs/cgroup/cpu")
TWICE = "nblstm.set_num_threads(2)\nprint(call(), call())"

# Digests of the gradients of a layer that two threads share the work of; `train()` may be called anywhere.
TRAINING = """
lstm, x = case(12, 40, 64, 96)
x.flags.writeable = False

def train():
    (output, _), backward = lstm.vjp(x)
    gradients = backward(output)
    digest = hashlib.sha256(gradients.input.tobytes())
    for name, value in sorted(gradients.parameters.items()):
        digest.update(value.tobytes())
    return digest.hexdigest()
"""


@pytest.fixture(params=["omp", "workqueue", "tbb"])
def layer(request: pytest.FixtureRequest) -> str:
    """Each of Numba's threading layers that is installed, in turn: a user's loops may be its own."""
    name: str = request.param
    if name == "tbb":
        pytest.importorskip("tbb")
    if name == "omp":
        pytest.importorskip("numba.np.ufunc.omppool")
    return name


@contextlib.contextmanager
def quota() -> Iterator[list[str]]:
    """Give what to put before a command so that it gets 30 % of a core; skip where no cgroup can be made."""
    group = CGROUP / f"nblstm_test_{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text("100000", encoding="ascii")
        (group / "cpu.cfs_quota_us").write_text("30000", encoding="ascii")
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group can be made: {error}")
    try:
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
    finally:
        group.rmdir()


def test_under_a_quota(expected: str) -> None:
    count = "import importlib; print(importlib.reload(threads).usable())"
    with quota() as prefix:
        assert run(TWICE + "\n" + count, prefix=prefix, NUMBA_NUM_THREADS="2") == [expected, expected, "1"]


def test_beside_a_busy_neighbour(expected: str) -> None:
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert run(TWICE, NUMBA_NUM_THREADS="2") == [expected] * 2
    finally:
        neighbour.kill()
        neighbour.wait()


def test_four_threads_train() -> None:
    body = """
nblstm.set_num_threads(1)
alone = train()
nblstm.set_num_threads(2)
results = []
workers = [threading.Thread(target=lambda: results.extend(train() for _ in range(3))) for _ in range(4)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(len(results), set(results) == {alone})
"""
    assert run(TRAINING + body, NUMBA_NUM_THREADS="2") == ["12", "True"]


def test_a_users_parallel_loop_around_a_call(expected: str, layer: str) -> None:
    body = """
import numba
@numba.njit(parallel=True)
def loop(numbers):
    total = 0.0
    for i in numba.prange(numbers.size): total += numbers[i]
    return total
nblstm.set_num_threads(2)
numbers = np.ones(100_000)
before = loop(numbers)
digest = call()
print(digest, before == loop(numbers))
"""
    assert run(body, NUMBA_NUM_THREADS="2", NUMBA_THREADING_LAYER=layer) == [expected, "True"]


def test_a_users_parallel_loop_at_the_same_time(expected: str, layer: str) -> None:
    body = """
import numba
@numba.njit(parallel=True, nogil=True)
def loop(numbers):
    total = 0.0
    for i in numba.prange(numbers.size): total += numbers[i]
    return total
numbers = np.ones(100_000)
loop(numbers)
nblstm.set_num_threads(2)
stop, wrong = threading.Event(), []
def user():
    while not stop.is_set():
        if loop(numbers) != 100_000: wrong.append(1)
thread = threading.Thread(target=user)
thread.start()
print(*(call() for _ in range(5)), len(wrong))
stop.set()
thread.join()
"""
    assert run(body, NUMBA_NUM_THREADS="2", NUMBA_THREADING_LAYER=layer) == [expected] * 5 + ["0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_after_only_torch_ran(expected: str) -> None:
    pytest.importorskip("torch")
    body = """
import torch
torch.set_num_threads(2)
torch.ones(500, 500) @ torch.ones(500, 500)
child = os.fork()
if child == 0:
    nblstm.set_num_threads(2)
    print(call(), flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(status)
"""
    assert run(body, NUMBA_NUM_THREADS="2") == [expected, "0"]


def test_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_available", lambda: 1)
    with nblstm.num_threads(8):
        assert threads.usable() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to a core")
def test_cores_are_those_of_the_process() -> None:
    body = """
import importlib
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(importlib.reload(threads)._available())
"""
    assert run(body) == ["1"]
