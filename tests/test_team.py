"""The team: every step of every slice once and in order, however many call, help, sleep, come late or do not come."""

from __future__ import annotations

import math
import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import cfunc, types
from processes import run as run_in_process

import nblstm
from nblstm import threads
from nblstm.engine import plan
from nblstm.engine.stepping import step_of
from nblstm.kernels import board, team
from nblstm.kernels.atomics import atomic_load, atomic_store
from nblstm.kernels.memory import numbers_at

_SIGNATURE = types.void(types.int64, types.int64, types.int64)
# A job: how many slices, how long a step takes, what went wrong, then for each slice the steps that were done. A step
# of a slice that runs twice, or before the step before it is done everywhere, counts as wrong.
_SLICES, _LENGTH, _WRONG, _LOG = 0, 1, 2, 3
# Another: slices that wait for one another, for a while: how many, then who has come, then who has seen all.
_PATIENCE = 1_000_000_000


@cfunc(_SIGNATURE)
def log_step(job: Any, piece: Any, step: Any) -> None:
    words = numbers_at(job, np.int64(0))
    number = 1.0
    for _ in range(words[_LENGTH]):
        number = number * 0.999 + 0.5
    for other in range(words[_SLICES]):
        if words[_LOG + other] < step:
            words[_WRONG] += 1
    if words[_LOG + piece] != step or number == 0.0:
        words[_WRONG] += 1
    words[_LOG + piece] = step + 1


@cfunc(_SIGNATURE)
def meet(job: Any, piece: Any, step: Any) -> None:
    slices = atomic_load(job, 0)
    atomic_store(job, 1 + piece, 1)
    for _ in range(_PATIENCE):
        come = 0
        for other in range(slices):
            come += atomic_load(job, 1 + other)
        if come == slices:
            atomic_store(job, 1 + slices + piece, 1)
            return


class Call(NamedTuple):
    slices: int
    steps: int
    members: int
    length: int
    pause: float

    def goes_right(self) -> bool:
        time.sleep(self.pause)
        job = np.zeros(_LOG + self.slices, np.int64)
        job[: _WRONG + 1] = self.slices, self.length, 0
        team.run(log_step.address, job.ctypes.data, self.slices, self.steps, self.members)
        return job[_WRONG] == 0 and bool((job[_LOG:] == self.steps).all())


calls = st.builds(
    Call,
    slices=st.integers(1, 9),
    steps=st.integers(1, 60),
    members=st.integers(2, 5),
    length=st.sampled_from([0, 10, 1000]),
    pause=st.sampled_from([0.0, 0.0, 0.0, 0.002]),
)


def they_meet(slices: int) -> bool:
    """Say whether so many slices ran at the same time."""
    job = np.zeros(1 + 2 * slices, np.int64)
    job[0] = slices
    team.run(meet.address, job.ctypes.data, slices, 1, slices)
    return bool(job[1:].all())


@settings(deadline=None, max_examples=40)
@given(st.lists(calls, min_size=1, max_size=12))
def test_calls_one_after_the_other(several: list[Call]) -> None:
    assert all(call.goes_right() for call in several)


@pytest.mark.parametrize("callers", [2, 2 * board.STANDS])
def test_calls_from_many_threads(callers: int) -> None:
    """Also from more than there are stands: those run alone."""
    random = np.random.default_rng(callers)
    right: list[bool] = []

    def work(seed: int) -> None:
        mine = np.random.default_rng(seed)
        for _ in range(60):
            sizes = (int(mine.integers(1, high)) for high in (7, 30, 5))
            right.append(Call(*sizes, int(mine.choice([0, 100])), float(mine.choice([0.0, 0.001]))).goes_right())

    several = [threading.Thread(target=work, args=(int(random.integers(2**31)),)) for _ in range(callers)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert len(right) == 60 * callers and all(right)


def test_more_slices_than_a_board_has() -> None:
    assert Call(board.MOST_SLICES + 1, 2, 2, 0, 0.0).goes_right()


def test_a_helper_helps_awake_and_asleep() -> None:
    assert they_meet(2)
    assert they_meet(2)
    state = board.FIRST_HELPER + board.STATE
    ends = time.monotonic() + 30
    while team._team.memory[state] != board.ASLEEP:
        assert time.monotonic() < ends
        time.sleep(0.001)
    assert they_meet(2)


@pytest.mark.parametrize("pause", [0.0, 0.01], ids=["awake", "asleep"])
@pytest.mark.parametrize("members", [3, 5])
def test_all_helpers_come_that_there_are_places_for(members: int, pause: float) -> None:
    for _ in range(3):
        time.sleep(pause)
        assert they_meet(members)


def test_a_team_that_gets_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    asked: list[int] = []
    monkeypatch.setattr(team, "_team", team.Team())
    monkeypatch.setattr(threading.Thread, "start", refused)
    monkeypatch.setattr(team, "new_lock", lambda: asked.append(1) or 1)
    monkeypatch.setattr(team.atexit, "register", lambda function: None)
    assert all(Call(3, 5, 3, 10, 0.0).goes_right() for _ in range(20))
    assert not team._team.helpers and len(asked) == 1


def test_a_helper_that_misses_a_place_takes_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`_enter` as Python, with another helper that takes a place between its look at the door and its own swap."""
    words = dict.fromkeys(range(200), 0)
    words[board._DOOR], words[board._STEPS], words[board._SLICES] = 7 * board._PLACES + 3, 1, 1
    entered: list[int] = []
    rivals = [1]

    def swap(memory: int, index: int, expected: int, replacement: int) -> bool:
        if rivals:
            rivals.pop()
            words[index] -= 1
        if words[index] != expected:
            return False
        words[index] = replacement
        return True

    monkeypatch.setattr(board, "atomic_load", lambda memory, index: words[index])
    monkeypatch.setattr(board, "atomic_store", lambda memory, index, value: words.update({index: value}))
    monkeypatch.setattr(board, "compare_and_swap", swap)
    monkeypatch.setattr(board, "_wake", lambda memory, wanted: None)
    monkeypatch.setattr(board, "_take_part", lambda *arguments: entered.append(arguments[-1]))
    board._enter.py_func(0, 150, 0)
    assert entered == [2] and words[board._DOOR] == 7 * board._PLACES + 1


def test_brief_calls_wake_nobody_until_they_come_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(0.01)
    monkeypatch.setattr(plan, "_in_a_row", 0)
    monkeypatch.setattr(plan, "_SOON", 60.0)  # on a busy machine anything may lie between two calls
    monkeypatch.setattr(plan, "_alone_until", 0.0)
    brief = plan.Plan(plan.ROWS, 2, 2, brief=True)
    found = [plan.is_for_one_thread_now(brief) for _ in range(plan._A_ROW + 1)]
    assert found[:-2] == [True] * (plan._A_ROW - 1) and not found[-1]
    monkeypatch.setattr(plan, "_SOON", 1e-9)
    assert plan.is_for_one_thread_now(brief)
    assert not plan.is_for_one_thread_now(brief._replace(brief=False))


def test_calls_that_need_no_helpers_are_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers sleep while a call of one thread runs: the brief call after it would have to wake them."""
    monkeypatch.setattr(threads, "_available", lambda: 2)
    monkeypatch.setattr(plan, "_in_a_row", 0)
    members: list[int] = []
    run = team.run
    monkeypatch.setattr(team, "run", lambda *arguments: members.append(arguments[-1]) or run(*arguments))
    serial, brief = nblstm.LSTM(16, 16, seed=0), nblstm.LSTM(128, 128, seed=0)
    long, short = np.ones((2500, 1, 16), np.float32), np.ones((20, 1, 128), np.float32)
    with nblstm.num_threads(2):
        for _ in range(3 * plan._A_ROW):
            serial(long)
            brief(short)
    assert set(members) == {1}


def test_a_brief_call_takes_one_thread_and_a_row_of_them_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_available", lambda: 2)
    members: list[int] = []
    run = team.run
    monkeypatch.setattr(team, "run", lambda *arguments: members.append(arguments[-1]) or run(*arguments))
    lstm, x = nblstm.LSTM(64, 96, seed=0), np.ones((6, 8, 64), np.float32)
    with nblstm.num_threads(2):
        lstm(x)
        for row in (10**9, 0):
            monkeypatch.setattr(plan, "_A_ROW", row)
            lstm(x)
            (_, backward) = lstm.vjp(x)
            backward(x[..., :1].repeat(96, axis=-1))
    assert members[0] == 1 and members[1:].count(2) >= 2 and members[1] == 1


def test_a_short_call_that_was_held_up_keeps_the_next_ones_to_their_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_available", lambda: 2)
    monkeypatch.setattr(plan, "_alone_until", 0.0)
    monkeypatch.setattr(plan, "_WHILE", 60.0)
    members: list[int] = []
    wait = 0.0
    run = team.run

    def run_late(*arguments: int) -> None:
        members.append(arguments[-1])
        run(*arguments)
        time.sleep(wait)

    monkeypatch.setattr(team, "run", run_late)
    short, x = nblstm.LSTM(128, 128, seed=0), np.ones((150, 1, 128), np.float32)
    long, many = nblstm.LSTM(256, 256, seed=0), np.ones((50, 32, 256), np.float32)
    with nblstm.num_threads(2):
        (weights,) = short._weights.packed(short._pack)[0]
        plan_of_short = plan.choose(weights, 1, 150, 1, 1, 2)
        assert 1e-3 < plan_of_short.patience < 5e-3 and not plan_of_short.brief
        short(x)
        plan._alone_until = 0.0  # whatever a busy machine did
        wait = plan_of_short.patience
        short(x)
        wait = 0.0
        before = short(x)
        long(many)
        monkeypatch.setattr(plan, "_alone_until", 0.0)
        after = short(x)
    assert members == [2, 2, 1, 2, 2] and np.array_equal(before[0], after[0])


def test_a_step_of_a_cell_stays_with_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """A brief one too: its way through the engine would take longer than what a helper saves."""
    monkeypatch.setattr(threads, "_available", lambda: 2)
    cell = nblstm.LSTMCell(256, 256, seed=0)
    (weights,) = cell._weights.packed(cell._pack)[0]
    assert plan.choose(weights, 1, 1, 1, 1, 2).brief and step_of(weights, 1) is not None


@pytest.mark.slow
@pytest.mark.parametrize("wait", ["", "time.sleep(0.05)"], ids=["awake", "asleep"])
def test_a_program_ends_with_its_helpers(wait: str, expected: str) -> None:
    body = f"""
import atexit, time
atexit.register(lambda: print(call()))  # runs after the helpers have gone
nblstm.set_num_threads(3)
print(call())
{wait}
"""
    assert run_in_process(body, NUMBA_NUM_THREADS="3") == [expected] * 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_a_team_of_its_own_if_it_asks(expected: str) -> None:
    body = """
from nblstm.engine import plan
from nblstm.engine.stepping import step_of
from nblstm.kernels import board, team
nblstm.set_num_threads(2)
call()
child = os.fork()
if child == 0:
    print(nblstm.get_num_threads(), call(), len(team._team.helpers))
    nblstm.set_num_threads(2)
    print(call(), len(team._team.helpers), flush=True)
    sys.exit()
_, status = os.waitpid(child, 0)
print(status, len(team._team.helpers))
"""
    assert run_in_process(body, NUMBA_NUM_THREADS="2") == ["1", expected, "0", expected, "1", "0", "1"]


class TestQuota:
    def test_of_a_group_and_of_those_around_it(self, tmp_path: Path) -> None:
        inner = tmp_path / "pod" / "container"
        inner.mkdir(parents=True)
        (tmp_path / "pod" / "cpu.max").write_text("150000 100000\n", encoding="ascii")
        (inner / "cpu.max").write_text("max 100000\n", encoding="ascii")
        assert min(threads._quotas(tmp_path, "/pod/container", "cpu.max")) == 1.5

    def test_in_two_files(self, tmp_path: Path) -> None:
        files = "cpu.cfs_quota_us", "cpu.cfs_period_us"
        for name, text in zip(files, ("-1", "100000"), strict=True):
            (tmp_path / name).write_text(text, encoding="ascii")
        assert min(threads._quotas(tmp_path, "/", *files)) == math.inf
        (tmp_path / files[0]).write_text("50000", encoding="ascii")
        assert min(threads._quotas(tmp_path, "/a/path/of/the/host", *files)) == 0.5

    def test_none_is_no_limit(self, tmp_path: Path) -> None:
        assert min(threads._quotas(tmp_path, "/", "cpu.max")) == math.inf

    def test_a_part_of_a_core_is_a_thread(self) -> None:
        body = "import importlib; importlib.reload(threads)._quota = lambda: 0.5; print(threads._available())"
        assert run_in_process(body) == ["1"]
