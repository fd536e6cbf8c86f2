"""benchmarks/cuda.py: its kernels run, its table stands, and asv passes over it where there is no GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from nblstm.cuda import device


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent)
    sys.modules.pop("benchmarks", None)  # asv's own, where it is installed
    from benchmarks import cuda

    return cuda


def test_the_limits_are_measured(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.SIMULATED:
        monkeypatch.setattr(bench, "_ROUNDS", 1)
        monkeypatch.setattr(bench, "_CALLS", 1)
        assert len(bench.limits(elements=8, rounds=1, blocks=1, threads=2)) == 3
    else:
        assert all(value > 0 for value in bench.limits())


def test_the_table(bench: Any) -> None:
    kinds = [f"{engine} {kind}" for engine in ("nblstm", "torch") for kind in ("forward", "training")]
    rows = {case.name: dict(zip(kinds, (200.0, 500.0, 300.0, None), strict=True)) for case in bench.CASES}
    lines = bench.table(rows, bench.Limits(3000.0, 30.0, 1.5)).splitlines()
    assert len(lines) == 2 + len(bench.CASES)
    assert lines[2] == "| LSTM T100 B1 H64 | 200 | 1.50 | 75% | 500 | – |"


@pytest.mark.skipif(not device.SIMULATED, reason="there is a GPU")
def test_without_a_gpu_asv_passes_over_it(bench: Any) -> None:
    with pytest.raises(NotImplementedError):
        bench.Cuda().setup(bench.CASES[0].name)
    with pytest.raises(SystemExit):
        bench.main([])
