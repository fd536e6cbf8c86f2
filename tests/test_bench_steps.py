"""Cells and streams in ``python -m nblstm bench``: engines, single calls, options, report, documents, asv."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nblstm import get_num_threads, num_threads, reference
from nblstm.__main__ import main
from nblstm.commands import bench
from nblstm.commands.benchmark import report
from nblstm.commands.benchmark.cases import STEP_CASES, Case, NotOffered
from nblstm.commands.benchmark.engines import ENGINES
from nblstm.commands.benchmark.measure import Bench, Effort, threads_for
from nblstm.commands.benchmark.process import single_seconds
from nblstm.commands.benchmark.results import CaseResult, Outcome, Results, load_results

ROOT = Path(__file__).resolve().parent.parent
CELL = Case(6, 3, 5, 8, kind="cell")
STREAM = Case(6, 1, 5, 8, kind="stream")
PROJECTED = Case(6, 2, 5, 8, layers=2, projection=3, dtype="float64", kind="stream")
ENGINE_CASES = [
    CELL,
    STREAM,
    PROJECTED,
    Case(6, 2, 5, 8, cell="GRU", kind="cell"),
    Case(6, 2, 5, 8, cell="RNN_RELU", dtype="float64", kind="cell"),
    Case(6, 3, 5, 8, layers=2, kind="stream"),
    Case(6, 3, 5, 8, layers=3, cell="GRU", kind="stream"),
    Case(6, 1, 5, 8, cell="RNN_TANH", kind="stream"),
]
LACKS = (
    "a cell of torch is one layer",
    "ONNX's LSTM has no projection",
    "the RNNs of onnxruntime and openvino compute",
)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("case", ENGINE_CASES, ids=lambda case: case.shape)
def test_engines_take_the_same_steps(name: str, case: Case) -> None:
    if ENGINES[name].missing():
        pytest.skip(f"{name} is not installed")
    with num_threads(1):
        try:
            prepared = ENGINES[name](1).prepare(case)
        except NotOffered as lack:
            assert name != "nblstm" and str(lack).startswith(LACKS)
            assert name != "torch-cell" or case.layers > 1
            return
        prepared.call()  # whose states are not where the next one begins
        output = prepared.results(prepared.call())["output"]
        if prepared.step is not None:
            prepared.step()
    options = {"nonlinearity": case.nonlinearity} if case.nonlinearity else {}
    expected, _ = getattr(reference, case.layer.lower())(case.input(), case.parameters(), **options)
    assert output.dtype == case.dtype and output.shape == expected[-1].shape
    assert np.max(np.abs(output - expected[-1])) < (2e-6 if case.dtype == "float32" else 1e-14)
    assert (prepared.step is not None) == (name == "nblstm") and ENGINES[name].version()


@pytest.mark.parametrize("kind", ["inference", "training"])
def test_torchs_cell_takes_steps_alone(kind: str) -> None:
    engine = ENGINES["torch-cell"]
    with pytest.raises(NotOffered, match=f"torch-cell does no {kind}"):
        engine.prepare(engine.__new__(engine), Case(1, 1, 1, 1, kind=kind))


def test_single_calls_are_timed_one_by_one() -> None:
    calls: list[None] = []

    def step() -> None:
        calls.append(None)
        if len(calls) % 20 == 0:  # more than one in a hundred, and less than half
            time.sleep(1e-3)

    middle, slow = single_seconds(step, budget=0.0)
    assert len(calls) == 200 and middle < 1e-3 <= slow


class FakeProcess:
    """The asking end of a process that is not there; it has figures of single calls where it is told so."""

    def __init__(self, name: str, singles: bool) -> None:
        self.name, self._singles = name, singles

    def ask(self, what: str, **arguments: object) -> dict[str, object]:
        single = {"single": [1e-6, 2e-6]} if self._singles else {}
        return {"difference": 0.0, "result": "output", "seconds": 1.0, "fma": 1.0, "stream": 2.0, **single}


def test_the_times_of_single_calls_are_kept(tmp_path: Path) -> None:
    engines: list[Any] = [FakeProcess("nblstm", True), FakeProcess("torch", False)]
    limits: Any = FakeProcess("limits", False)
    (result,) = Bench(engines, limits, tmp_path).measure([CELL], Effort(2, 0.0, 0.0))
    assert result.engines["nblstm"].singles == [[1e-6, 2e-6]] * 2 and result.tail == pytest.approx(2)
    assert result.engines["torch"].singles == []


# Options


@pytest.mark.parametrize(
    ("options", "threads"),
    [
        (["--set", "steps"], 1),
        (["--shapes", "5,1,4,8,cell"], 1),
        (["--set", "steps", "--threads", "2"], 2),
        (["--shapes", "5,1,4,8,cell; 5,1,4,8"], get_num_threads()),
    ],
)
def test_steps_alone_run_on_one_thread(
    options: list[str], threads: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def measure(cases: Any, engines: Any, threads: int, effort: Effort, *, command: str) -> Results:
        asked.append((cases, engines, threads, command))
        return made_up()

    monkeypatch.setattr(bench, "measure", measure)
    for module in ("bench", "benchmark.engine"):
        monkeypatch.setattr(f"nblstm.commands.{module}.is_installed", lambda package: package == "torch")
    assert main(["bench", *options]) == 0
    cases, engines, used, command = asked[0]
    assert used == threads and engines == ["nblstm", "torch", "torch-cell"]
    assert cases == STEP_CASES if "steps" in options else cases[0] == Case(5, 1, 4, 8, kind="cell")
    assert f"--threads {threads} " in command and ("5,1,4,8,1,cell" in command or "--set steps" in command)
    assert threads_for(cases) == (1 if "2" in options else threads)


@pytest.mark.parametrize("options", [["--set", "steps"], ["--shapes", "5,1,4,8; 5,1,4,8,cell"]])
def test_steps_are_not_trained(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--train", *options]) == 2
    assert "--train: expected cases without cell or stream" in capsys.readouterr().err


# What is told


def made_up() -> Results:
    """Return figures of two cells, a stream and, without a name, a stream of two layers."""

    def result(name: str, case: Case, ours: float, layer: float, cell: float | None, tail: float) -> CaseResult:
        engines = {
            "nblstm": Outcome([6 * ours * 1e-6, 6 * 2e-5], singles=[[2e-6, 2e-5], [2e-6, 2e-6 * tail]]),
            "torch": Outcome([6 * layer * 1e-6]),
            "torch-cell": Outcome([6 * cell * 1e-6]) if cell else Outcome(problem="no such cell"),
        }
        return CaseResult(dataclasses.replace(case, name=name), engines, [1e9], [1e9])

    machine = {"caches": {}, "threads": 1, "threads of nblstm": 1, "cpu": "", "vectors": "", "cores": 1}
    machine |= {"system": "", "python": ""}
    cases = [
        result("LSTM cell", Case(6, 1, 8, 8, kind="cell"), 2, 40, 8, 1.5),
        result("LSTM cell", Case(6, 1, 16, 16, kind="cell"), 2, 40, 18, 3.5),
        result("LSTM stream", Case(6, 1, 8, 8, kind="stream"), 1, 30, 8, 1.25),
        result("", Case(6, 1, 8, 8, 2, cell="GRU", kind="stream"), 2, 50, None, 1.25),
    ]
    return Results("", "python -m nblstm bench", machine, {}, 2, [], cases)


def test_times_are_those_of_a_step() -> None:
    results = made_up()
    case = results.cases[0]
    assert case.seconds("nblstm") == pytest.approx(12e-6) and case.call_seconds("nblstm") == pytest.approx(2e-6)
    assert case.call_seconds("openvino") is None
    rows = report.table(results).rows
    assert rows[0][:6] == ["LSTM cell", "T6 B1 I8 H8 cell", "2.00 us", "40.0 us", "8.00 us", "1.50"]
    assert rows[0][7:10] == ["4.00", "20.00", "4.00"] and rows[3][7:10] == ["25.00", "25.00", "–"]
    assert report.table(results).header[5:10] == ["p99", "GFLOP/s", "x best peer", "x torch", "x torch-cell"]


def test_the_limit_of_steps_has_all_weights_at_every_step() -> None:
    results = made_up()
    limit = results.limit(results.cases[0])
    assert limit is not None and limit.seconds == pytest.approx(6 * 4 * 4 * 8 * 16 / 1e9)


def test_the_means_and_the_tail_are_told() -> None:
    lines = report.steps(made_up())
    assert lines == [
        "LSTM cell, geometric mean of 2: 6.00 x torch-cell, 20.00 x torch.",
        "LSTM stream, geometric mean of 1: 8.00 x torch-cell, 30.00 x torch.",
        "GRU stream, geometric mean of 1: 25.00 x torch.",
        "Single calls: the 99th percentile is within 3 times the median at 3 of 4 cases, "
        "at worst 3.50 times (T6 B1 I16 H16 cell).",
    ]
    text = report.text(made_up())
    assert all(line in text for line in lines) and "the time is that of one step" in " ".join(text.split())


def test_other_cases_are_not_spoken_of_as_steps() -> None:
    results = made_up()
    whole = dataclasses.replace(results.cases[0].case, kind="inference")
    results.cases = [CaseResult(whole, {"nblstm": Outcome([1e-3]), "torch": Outcome([2e-3])})]
    text = report.text(results)
    assert not report.steps(results) and "p99" not in text and "1.00 ms" in text


def test_the_file_keeps_single_calls_and_older_files_have_none(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    made_up().save(path)
    assert load_results(path) == made_up()
    path.write_text(path.read_text().replace('"singles"', '"medians"'))
    assert load_results(path).cases[0].tail is None


@pytest.fixture
def root_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_documents(root_on_path: None) -> None:
    from benchmarks.publish import document, readme_part

    other = made_up()
    other.cases = [
        dataclasses.replace(result, case=dataclasses.replace(result.case, kind="inference")) for result in other.cases
    ]
    text = document([other, made_up()])
    assert text.count("## Inference, 1 thread\n") == text.count("## Cells and streams, 1 thread\n") == 1
    assert "| LSTM cell | T6 B1 I8 H8 cell | 2.00 us | 40.0 us | 8.00 us | 1.50 |" in text
    assert "- LSTM cell, geometric mean of 2: 6.00 x torch-cell, 20.00 x torch.\n" in text
    part = readme_part([other, made_up()])
    assert part.count("A step a call, on 1 thread: ") == 1
    assert "| LSTM cell | 2 | 6.00 | 4.00 | 20.00 | 6.00 | " in part
    assert "within 3 times the median at 3 of 4 cases" in part
    assert "A step a call" not in readme_part([other])


def test_asv_has_every_case_and_a_peer_for_each(root_on_path: None) -> None:
    from benchmarks import latency

    shapes = [case.shape for case in STEP_CASES]
    assert latency.Latency.params == latency.LatencyAgainstTorch.params == [shapes]
    assert latency.LatencyAgainstTorchCell.params == [[shape for shape in shapes if " L2" not in shape]]
    benchmark, (shape, *_) = latency.Latency(), shapes
    with num_threads(get_num_threads()):
        benchmark.setup(shape)
        benchmark.time_steps(shape)
        assert get_num_threads() == 1


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    engines = ",".join(name for name, engine in ENGINES.items() if not engine.missing())
    shapes = "5,2,3,8,cell; 4,1,3,8,2,GRU,stream"
    command = [sys.executable, "-m", "nblstm", "bench", "--quick", "--rounds", "1", "--shapes", shapes]
    command += ["--engines", engines, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    results = load_results(path)
    for result in results.cases:
        assert all(outcome.medians for name, outcome in result.engines.items() if name != "torch-cell")
        assert len(result.engines["nblstm"].singles) == 1 and result.tail and result.tail >= 1
    assert results.machine["threads"] == 1 and "Single calls: the 99th percentile" in done.stdout
