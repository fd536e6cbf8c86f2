"""The right bits and no hang: from many threads, after a fork, on starved machines.

Each case runs in a process of its own with a time limit, because what it guards against is a hang or an abort.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from processes import PROLOGUE, SECONDS, run

import nblstm

pytestmark = pytest.mark.slow


def test_two_threads_give_the_bits_of_one(expected):
    assert run("nblstm.set_num_threads(2)\nprint(call(), call())", NUMBA_NUM_THREADS="2") == [expected] * 2


def test_the_plans_meant_are_the_plans_taken():
    body = """
taken = []
plan._HELD_UP = 60.0  # whatever a busy machine does
choose = plan.choose
plan.choose = lambda *arguments: taken.append(choose(*arguments)) or taken[-1]
nblstm.set_num_threads(2)
call()
print(*[f"{p.split},{p.parts},{p.threads}" for p in taken])
"""
    assert run(body, NUMBA_NUM_THREADS="2") == ["1,2,2", "0,2,2", "0,1,2", "1,2,2"]


@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_THREAD_LIMIT": "1"},
        {"NUMBA_THREADING_LAYER": "workqueue"},
        {"NUMBA_THREADING_LAYER": "omp", "OMP_DYNAMIC": "true"},
    ],
    ids=lambda environment: ",".join(f"{name}={value}" for name, value in environment.items()),
)
def test_starved(expected, environment):
    body = "nblstm.set_num_threads(2)\nprint(call(), call())"
    assert run(body, **{"NUMBA_NUM_THREADS": "2", **environment}) == [expected] * 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to a core")
def test_two_threads_on_one_core(expected):
    body = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nnblstm.set_num_threads(2)\nprint(call(), call())"
    assert run(body, NUMBA_NUM_THREADS="2") == [expected] * 2


def test_numbas_number_is_the_most_that_a_call_takes():
    body = """
import importlib
importlib.reload(threads)
nblstm.set_num_threads(8)
print(threads.usable())
"""
    assert run(body, NUMBA_NUM_THREADS="1") == ["1"]


def test_eight_python_threads(expected):
    body = """
nblstm.set_num_threads(2)
results = []
threads = [threading.Thread(target=lambda: results.extend(call() for _ in range(5))) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*results)
"""
    assert run(body, NUMBA_NUM_THREADS="2") == [expected] * 40


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("use_before", [True, False], ids=["used before", "first used in the child"])
def test_after_a_fork(expected, use_before):
    body = f"""
nblstm.set_num_threads(2)
if {use_before}: call()
child = os.fork()
if child == 0:
    print(call(), flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(status, call())
"""
    assert run(body, NUMBA_NUM_THREADS="2") == [expected, "0", expected]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_after_nothing_but_the_import():
    script = """
import os
import nblstm
from nblstm import threads
threads._available = lambda: 64
child = os.fork()
if child == 0:
    os._exit(nblstm.get_num_threads())
print(nblstm.get_num_threads(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS, check=True)
    assert done.stdout.split() == ["64", "1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_while_another_thread_imports():
    """The lock of a module would stay the other thread's in the child for good."""
    script = """
import os, sys, threading, time
import nblstm
thread = threading.Thread(target=lambda: nblstm.LSTM)
thread.start()
while "numba" not in sys.modules:
    time.sleep(0.001)
child = os.fork()
if child == 0:
    nblstm.LSTM(2, 3)
    os._exit(7)
status = os.waitpid(child, 0)[1]
thread.join()
nblstm.LSTM(2, 3)
print(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS, check=True)
    assert done.stdout.split() == ["7"]  # the logging module, if imported in between, complains of its own lock


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_while_another_thread_compiles(expected, tmp_path):
    """A lock that the compiling thread holds would stay locked in the child for good."""
    body = """
from numba.core.compiler_lock import global_compiler_lock
thread = threading.Thread(target=call)
thread.start()
while global_compiler_lock._lock.acquire(blocking=False):
    global_compiler_lock._lock.release()
child = os.fork()
if child == 0:
    print(call(), flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
thread.join()
print(status, call())
"""
    assert run(body, NUMBA_CACHE_DIR=str(tmp_path)) == [expected, "0", expected]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_a_process_pool(method, tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(
        PROLOGUE
        + f"""
import multiprocessing
def work(_): return call()
if __name__ == "__main__":
    nblstm.set_num_threads(2)
    here = call()
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        print(set(pool.map(work, range(4))) == {{here}})
""",
        encoding="utf-8",
    )
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=SECONDS, check=False,
        env={**os.environ, "NUMBA_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert result.stdout.split() == ["True"], result.stderr


def test_the_users_parallel_loop_keeps_its_mask(expected):
    body = """
import numba
nblstm.set_num_threads(2)
numba.set_num_threads(1)
print(call(), numba.get_num_threads())
"""
    assert run(body, NUMBA_NUM_THREADS="2") == [expected, "1"]


class TestNumber:
    def test_is_restored_after_a_with_block(self):
        before = nblstm.get_num_threads()
        with pytest.raises(RuntimeError), nblstm.num_threads(1):
            assert nblstm.get_num_threads() == 1
            raise RuntimeError
        assert nblstm.get_num_threads() == before

    @pytest.mark.parametrize("wrong", [1.0, "2", None, True, np.array(2.5), np.array([1, 2]), np.bool_(True)])
    def test_must_be_whole(self, wrong):
        with pytest.raises(TypeError, match="expected a whole number"):
            nblstm.set_num_threads(wrong)

    @pytest.mark.parametrize("wrong", [0, -1, 2**16 + 1, 10**30])
    def test_must_be_in_range(self, wrong):
        with pytest.raises(ValueError, match=r"expected 1 \.\.\. 65536, got"):
            nblstm.set_num_threads(wrong)

    @pytest.mark.parametrize("n", [2**16, np.int8(3), np.array(2)], ids=repr)
    def test_may_be_any_whole_number(self, n):
        with nblstm.num_threads(n):
            assert type(nblstm.get_num_threads()) is int
            assert nblstm.get_num_threads() == n
            nblstm.LSTM(3, 4)(np.zeros((2, 1, 3), np.float32))
