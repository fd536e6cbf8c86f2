"""What the comparisons of one thread with two rest on: that nblstm does launch two here, on any machine."""

from __future__ import annotations

import numpy as np
import pytest

import nblstm
from nblstm import threads
from nblstm.kernels import team


def test_a_large_case_is_given_to_two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    run = team.run
    monkeypatch.setattr(team, "run", lambda *arguments: given.append(arguments[-1]) or run(*arguments))
    with nblstm.num_threads(2):
        assert threads.usable() == 2
        nblstm.LSTM(64, 256, seed=0)(np.ones((9, 32, 64), np.float32))
    assert given == [2]
