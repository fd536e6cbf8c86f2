"""``python -m nblstm bench``: its options, its engines, and its measuring."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest

import nblstm
from nblstm import get_num_threads, num_threads, reference
from nblstm.__main__ import main
from nblstm.commands import bench
from nblstm.commands.benchmark.cases import Case, NotOffered
from nblstm.commands.benchmark.engines import ENGINES, layer_of
from nblstm.commands.benchmark.measure import Bench, Effort
from nblstm.commands.benchmark.process import EngineError, difference, median_seconds
from nblstm.commands.benchmark.results import CaseResult, Outcome, Results, load_results

PLAIN = Case(7, 3, 5, 9)
BOTH = Case(6, 2, 5, 10, layers=2, bidirectional=True)
PROJECTED = Case(6, 2, 5, 10, projection=3)
DOUBLE = Case(6, 2, 5, 10, dtype="float64")
PACKED = Case(6, 4, 5, 10, packed="linear")
GATED = Case(6, 4, 5, 10, layers=2, bidirectional=True, cell="GRU", packed="random")
PLAIN_GATED = Case(7, 3, 5, 9, cell="GRU")
TANH = Case(7, 3, 5, 9, cell="RNN_TANH")
RELU = Case(6, 4, 5, 10, layers=2, bidirectional=True, cell="RNN_RELU", packed="random")
DOUBLE_GATED = Case(6, 4, 5, 10, cell="GRU", dtype="float64", packed="random")
ENGINE_CASES = [PLAIN, BOTH, PROJECTED, DOUBLE, PACKED, GATED, PLAIN_GATED, TANH, RELU, DOUBLE_GATED]


@pytest.fixture
def only(monkeypatch):
    """Return what pretends that nothing but some packages is installed."""

    def pretend(*packages: str) -> None:
        for module in ("bench", "benchmark.engine"):
            monkeypatch.setattr(f"nblstm.commands.{module}.is_installed", lambda package: package in packages)

    return pretend


# Engines


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", [name for name, engine in ENGINES.items() if engine.offers("inference")])
@pytest.mark.parametrize("case", ENGINE_CASES, ids=lambda case: case.shape)
def test_engines_compute_the_same(name, case):
    if ENGINES[name].missing():
        pytest.skip(f"{name} is not installed")
    with num_threads(1):
        engine = ENGINES[name](1)
        try:
            prepared = engine.prepare(case)
        except NotOffered as lack:
            assert name in ("onnxruntime", "openvino") and case in (PROJECTED, DOUBLE, DOUBLE_GATED)
            assert str(lack).startswith("ONNX's LSTM has no projection" if case.projection else f"the {case.layer}s of")
            return
        output = prepared.results(prepared.call())["output"]
    run = getattr(reference, case.layer.lower())
    options = {"nonlinearity": case.nonlinearity} if case.nonlinearity else {}
    expected, _ = run(case.input(), case.parameters(), lengths=case.lengths(), **options)
    assert output.dtype == case.dtype and output.shape == expected.shape
    assert np.max(np.abs(output - expected)) < (2e-6 if case.dtype == "float32" else 1e-14)
    assert ENGINES[name].version()


@pytest.mark.parametrize("name", ["nblstm", "torch"])
def test_packing_is_not_what_is_timed(name, monkeypatch):
    if ENGINES[name].missing():
        pytest.skip(f"{name} is not installed")
    with num_threads(1):
        call = ENGINES[name](1).prepare(GATED).call
        module = nblstm if name == "nblstm" else sys.modules["torch"].nn.utils.rnn
        for used in ("pack_padded_sequence", "pad_packed_sequence"):
            monkeypatch.delattr(module, used)
        output, _ = call()
    assert np.asarray(output.data).shape == (GATED.lengths().sum(), 2 * GATED.hidden)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", ["nblstm", "torch"])
@pytest.mark.parametrize("case", ENGINE_CASES, ids=lambda case: case.shape)
def test_engines_compute_the_same_gradients(name, case):
    if ENGINES[name].missing():
        pytest.skip(f"{name} is not installed")
    with num_threads(1):
        prepared = ENGINES[name](1).prepare(dataclasses.replace(case, kind="training"))
        prepared.call()  # whose gradients do not stay for the next one
        found = prepared.results(prepared.call())
    layer = layer_of(case).to(np.float64)
    (output, _), backward = layer.vjp(case.input().astype(float), lengths=case.lengths())
    gradients = backward(case.output_gradient().astype(float))
    expected = {"output": output, "input": gradients.input, **gradients.parameters}
    assert list(found) == list(expected)
    for result, array in expected.items():
        assert found[result].dtype == case.dtype
        assert difference(result, found[result], array) < (1e-5 if case.dtype == "float32" else 1e-13)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_engines_that_do_not_train(name):
    assert ENGINES[name].offers("inference") and not ENGINES[name].offers("training")
    with pytest.raises(NotOffered, match=f"{name} does no training"):
        ENGINES[name].prepare(ENGINES[name].__new__(ENGINES[name]), Case(1, 1, 1, 1, kind="training"))


def test_a_kind_that_an_engine_does_not_know():
    with num_threads(1), pytest.raises(NotOffered, match="nblstm does no flying"):
        ENGINES["nblstm"](1).prepare(Case(1, 1, 1, 1, kind="flying"))


# Options


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--threads", "0"], "threads: expected a whole number from 1 to "),
        (["--threads", "100000"], "because NUMBA_NUM_THREADS"),
        (["--threads", "two"], "got 'two'"),
        (["--rounds", "0"], "rounds: expected a whole number of at least 1, got '0'"),
        (["--shapes", "1,2"], "shape: expected T,B,I,H"),
        (["--set", "none"], "invalid choice: 'none'"),
        (["--set", "grid", "--shapes", "1,1,1,1"], "not allowed with argument --set"),
        (
            ["--engines", "abacus"],
            "engines: expected some of nblstm, torch, torch-cell, onnxruntime, openvino, got 'abacus'",
        ),
        (["--engines", "torch"], "got torch without torch. The extra `bench` brings them"),
        (["--engines", "openvino"], "got openvino without openvino, onnx."),
        (["--plot", "plot.png"], "drawing needs matplotlib"),
        (["--json", "no/such/folder/file.json"], "file: expected a file in a folder that exists"),
    ],
)
def test_options_that_are_refused(option, message, only, capsys):
    only()
    with pytest.raises(SystemExit) as stop:
        main(["bench", *option])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def results_of(cases, engines):
    outcomes = {name: Outcome([1e-3] if name == "nblstm" else [2e-3]) for name in engines}
    machine = {"caches": {}, "threads": 1, "threads of nblstm": 1, "cpu": "", "vectors": "", "cores": 1}
    machine |= {"system": "", "python": ""}
    return Results("", "", machine, {}, 1, [], [CaseResult(case, outcomes, [1e9], [1e9]) for case in cases])


@pytest.fixture
def measured(monkeypatch):
    """Return what `bench.measure` is called with, which measures nothing."""
    calls: list[Any] = []

    def measure(cases, engines, threads, effort, *, command):
        calls.append((list(cases), engines, threads, effort, command))
        return results_of(cases, engines)

    monkeypatch.setattr(bench, "measure", measure)
    return calls


def test_defaults(measured, only, capsys):
    only("torch", "onnx")
    assert main(["bench"]) == 0
    cases, engines, threads, effort, command = measured[0]
    assert cases == bench.SETS["standard"] and engines == ["nblstm", "torch"] and threads == get_num_threads()
    assert effort == bench.THOROUGH and command == f"python -m nblstm bench --threads {threads}"
    said = capsys.readouterr()
    assert "geometric mean  " in said.out
    assert "without onnxruntime: not installed (onnxruntime)" in said.err
    assert "without openvino: not installed (openvino)" in said.err


def test_all_options(measured, only, tmp_path, capsys):
    only("torch")
    options = ["--quick", "--rounds", "3", "--threads", "1", "--engines", "torch", "--shapes", "5,1,4,8;6,1,4,8,bi"]
    path = tmp_path / "results.json"
    assert main(["bench", *options, "--json", str(path)]) == 0
    cases, engines, threads, effort, command = measured[0]
    assert [case.shape for case in cases] == ["T5 B1 I4 H8", "T6 B1 I4 H8 bi"]
    assert (engines, threads, effort) == (["nblstm", "torch"], 1, bench.QUICK._replace(rounds=3))
    assert command.endswith("--quick --rounds 3 --engines nblstm,torch --shapes '5,1,4,8,1; 6,1,4,8,1,bi'")
    assert load_results(path) == results_of(cases, engines)


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ([], [case.shape for case in bench.TRAINING]),
        (["--quick"], [case.shape for case in bench.SETS["small"]]),
        (["--set", "odd"], [case.shape for case in bench.SETS["odd"]]),
        (["--shapes", "5,1,4,8,GRU"], ["T5 B1 I4 H8 GRU"]),
    ],
)
def test_training(options, shapes, measured, only, capsys):
    only("torch", "onnx", "openvino")
    assert main(["bench", "--train", *options]) == 0
    cases, engines, _, _, command = measured[0]
    assert [case.shape for case in cases] == shapes and {case.kind for case in cases} == {"training"}
    assert engines == ["nblstm", "torch"] and " --train" in command
    said = capsys.readouterr()
    assert "One call is a forward and a backward pass" in " ".join(said.out.split())
    assert "onnxruntime" not in said.err


def test_quick_has_a_set_of_its_own(measured, only):
    only()
    assert main(["bench", "--quick"]) == 0
    assert measured[0][0] == bench.SETS["small"]


def test_a_failure_of_nblstm_is_the_exit_status(monkeypatch, only, capsys):
    only()
    broken = results_of([PLAIN], ["nblstm"])
    broken.cases[0].engines["nblstm"] = Outcome(problem="broken")
    monkeypatch.setattr(bench, "measure", lambda *arguments, **options: broken)
    assert main(["bench", "--quick"]) == 1
    assert "–: broken (nblstm: T7 B3 I5 H9)" in capsys.readouterr().out


# Measuring, with engines that only say what they are told to


class FakeProcess:
    """The asking end of a process that is not there."""

    def __init__(self, name: str, log: list[str], difference: float = 0.0, problem: str = "") -> None:
        self.name, self._log, self._difference, self._problem = name, log, difference, problem

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        if self._problem and what == self._problem:
            raise EngineError(f"{what} failed")
        if what == "measure":
            self._log.append(self.name)
        figures = {"difference": self._difference, "result": "output"}
        return {**figures, "seconds": float(len(self._log)), "fma": 1.0, "stream": 2.0}


def test_engines_take_turns(tmp_path):
    log: list[str] = []
    engines = [FakeProcess(name, log) for name in ("nblstm", "torch")]
    (result,) = Bench(engines, FakeProcess("limits", log), tmp_path).measure([PLAIN], Effort(2, 0.0, 0.0))
    assert log == ["nblstm", "torch", "limits"] * 2
    assert result.engines["nblstm"].medians == [1.0, 4.0] and result.seconds("torch") == 2.0
    assert (result.fma, result.stream) == ([1.0, 1.0], [2.0, 2.0])


def test_a_round_goes_through_all_cases(tmp_path, capsys):
    log: list[str] = []
    processes = Bench([FakeProcess("nblstm", log)], FakeProcess("limits", log), tmp_path)
    with bench.progress(2, 8) as watcher:
        first, second = processes.measure([PLAIN, PACKED], Effort(2, 0.0, 0.0), watcher)
    assert first.case == PLAIN and first.engines["nblstm"].medians == [1.0, 5.0]
    assert second.case == PACKED and second.engines["nblstm"].medians == [3.0, 7.0]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("]")[0] for line in lines] == [
        "[round 1, 1/2",
        "[round 1, 2/2",
        "[round 2, 1/2",
        "[round 2, 2/2",
    ]
    assert lines[3].endswith(f"{PACKED.shape}: nblstm 3.00 s")  # the best so far


def test_an_engine_prepares_a_case_anew_in_every_round(tmp_path):
    class Forgetful(FakeProcess):
        def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
            self.case = arguments["case"] if what == "prepare" else self.case
            return {**super().ask(what, **arguments), "seconds": float(self.case["batch"])}

        case: dict[str, Any]

    log: list[str] = []
    results = Bench([Forgetful("nblstm", log)], FakeProcess("limits", log), tmp_path).measure(
        [PLAIN, PACKED], Effort(2, 0.0, 0.0)
    )
    assert [result.engines["nblstm"].medians for result in results] == [[case.batch] * 2 for case in (PLAIN, PACKED)]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"difference": 1e-3}, "wrong: 1e-03 from nblstm's output"),
        ({"difference": float("nan")}, "wrong: nan from nblstm's output"),
        ({"problem": "prepare"}, "prepare failed"),
        ({"problem": "measure"}, "measure failed"),
    ],
)
def test_an_engine_that_is_wrong_or_fails_has_no_time(arguments, problem, tmp_path):
    log: list[str] = []
    engines = [FakeProcess("nblstm", log), FakeProcess("torch", log, **arguments)]
    (result,) = Bench(engines, FakeProcess("limits", log), tmp_path).measure([PLAIN], Effort(2, 0.0, 0.0))
    assert result.engines["torch"].problem == problem and result.seconds("torch") is None
    assert len(result.engines["nblstm"].medians) == 2


@pytest.mark.parametrize("what", ["prepare", "measure"])
def test_an_engine_that_fails_in_a_later_round_has_no_time_either(what, tmp_path):
    class Tired(FakeProcess):
        turns, forgot = 0, 0

        def ask(self, question: str, **arguments: Any) -> dict[str, Any]:
            self.turns, self.forgot = self.turns + (question == what), self.forgot + (question == "forget")
            if question == what and self.turns == 2:
                raise EngineError("tired")
            return super().ask(question, **arguments)

    log: list[str] = []
    engines = [FakeProcess("nblstm", log), Tired("torch", log)]
    (result,) = Bench(engines, FakeProcess("limits", log), tmp_path).measure([PLAIN], Effort(3, 0.0, 0.0))
    assert result.engines["torch"] == Outcome(difference=0.0, problem="tired") and engines[1].forgot == 1
    assert len(result.engines["nblstm"].medians) == 3


def test_median_seconds_wakes_up_and_repeats():
    calls: list[None] = []
    assert 0 <= median_seconds(lambda: calls.append(None), budget=0.0) < 1
    assert len(calls) == 1 + 3
