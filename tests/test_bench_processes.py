"""The processes of ``python -m nblstm bench``, and all of it together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nblstm.commands.benchmark.cases import NotOffered
from nblstm.commands.benchmark.engine import Prepared
from nblstm.commands.benchmark.engines import ENGINES
from nblstm.commands.benchmark.process import EngineError, EngineProcess, _EngineEnd, answer
from nblstm.commands.benchmark.results import load_results


def end_with(results: dict[str, Any]) -> _EngineEnd:
    """Return an engine's end of the pipe that has these results."""
    end = _EngineEnd(None)
    end._prepared = Prepared(lambda: results, lambda result: result)
    return end


@pytest.mark.parametrize(
    ("wrong", "problem", "furthest"),
    [
        ({}, 0.0, "output"),
        ({"weight": np.array([100.0, -201.0])}, 0.005, "weight"),
        ({"output": np.array([0.5, 0.25]), "weight": np.array([np.nan, 1.0])}, float("nan"), "weight"),
        ({"output": np.array([np.inf, 0.0])}, float("inf"), "output"),
    ],
)
def test_every_result_is_compared_by_its_own_scale(wrong, problem, furthest, tmp_path):
    expected = {"output": np.array([0.5, 0.0]), "none": np.zeros(3), "weight": np.array([100.0, -200.0])}
    path = str(tmp_path / "expected.npz")
    end_with(expected).save(path)
    got = end_with({**expected, **wrong}).compare(path)
    assert got["difference"] == pytest.approx(problem, nan_ok=True) and got["result"] == furthest


def test_a_result_of_another_shape(tmp_path):
    path = str(tmp_path / "expected.npz")
    end_with({"output": np.zeros((2, 3))}).save(path)
    with pytest.raises(EngineError, match=r"its output is \(3, 2\), not \(2, 3\)"):
        end_with({"output": np.zeros((3, 2))}).compare(path)


def test_problems_become_answers():
    class End:
        def fail(self) -> dict[str, Any]:
            raise RuntimeError("first line\nsecond line")

        def refuse(self, size: int) -> dict[str, Any]:
            raise NotOffered(f"no {size}")

    assert answer(End(), {"what": "fail"}) == {"problem": "RuntimeError: first line"}
    assert answer(End(), {"what": "refuse", "size": 3}) == {"problem": "no 3"}


def test_a_process_that_cannot_start_says_why(tmp_path):
    with EngineProcess("abacus", 1, tmp_path) as process:
        for _ in range(2):
            with pytest.raises(EngineError, match=r"its process ended with status 1: KeyError: 'abacus'"):
                process.ask("hello")


def run_bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nblstm", "bench", "--quick", "--rounds", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_end_to_end(tmp_path):
    path = tmp_path / "results.json"
    done = run_bench("--engines", "nblstm", "--threads", "1", "--shapes", "5,2,3,8; 4,1,3,8,2,bi", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "T5 B2 I3 H8" in done.stdout and "1 thread for every engine" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("[round 1, 2/2] T4 B1 I3 H8 L2 bi: nblstm ")
    content = json.loads(path.read_text())
    assert content["machine"]["threads"] == 1 and content["versions"]["numba"]
    assert [len(case["engines"]["nblstm"]["medians"]) for case in content["cases"]] == [1, 1]
    assert all(rate > 0 for case in content["cases"] for rate in case["fma"] + case["stream"])


@pytest.mark.slow
def test_end_to_end_of_training(tmp_path):
    path = tmp_path / "results.json"
    engines = [name for name in ("nblstm", "torch", "onnxruntime") if not ENGINES[name].missing()]
    shapes = "5,2,3,8; 4,1,3,8,P2,f64"
    done = run_bench("--train", "--shapes", shapes, "--engines", ",".join(engines), "--json", str(path))
    assert done.returncode == 0, done.stderr
    for case in load_results(path).cases:
        assert case.seconds("nblstm") and case.case.kind == "training"
        problems = {name: outcome.problem for name, outcome in case.engines.items() if outcome.problem}
        assert problems in ({}, {"onnxruntime": "onnxruntime does no training"})


@pytest.mark.slow
def test_end_to_end_with_every_peer_that_is_installed(tmp_path):
    path = tmp_path / "results.json"
    shapes = "5,2,3,8; 4,1,3,8,2,bi; 4,1,3,8,P2; 4,1,3,8,f64; 4,2,3,8,GRU; 4,2,3,8,RNN_RELU,packed-random"
    done = run_bench("--shapes", shapes, "--json", str(path))
    assert done.returncode == 0, done.stderr
    outcomes = [outcome for case in load_results(path).cases for outcome in case.engines.values()]
    assert not [outcome for outcome in outcomes if (outcome.problem or "").startswith("wrong")]
    assert all(outcome.seconds or outcome.problem for outcome in outcomes)


def test_the_engines_of_the_extra_are_those_of_the_bench():
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    extra = next(line for line in text.splitlines() if line.startswith("bench = "))
    needed = {package for engine in ENGINES.values() for package in engine.packages} - {"torch"}
    assert all(f'"{package}>=' in extra for package in needed | {"matplotlib", "tqdm"})
