"""From recorded figures to what follows from them, and to the table, the picture, the file and the documents."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest

from nblstm import load
from nblstm.commands.benchmark import machine, plot, report
from nblstm.commands.benchmark.cases import Case
from nblstm.commands.benchmark.results import CaseResult, Outcome, Results, load_results

ROOT = Path(__file__).resolve().parent.parent
# 100 steps of one row: 2 x 100 x 2 x 4 x 100 x 100 operations, half of them recurrent, on 160 kB of weights.
WON = CaseResult(
    Case(100, 1, 100, 100, name="won"),
    {
        "nblstm": Outcome([0.5e-3, 0.4e-3]),
        "torch": Outcome([0.8e-3, 0.9e-3], difference=1e-7),
        "openvino": Outcome([0.6e-3, 0.7e-3], difference=2e-7),
    },
    fma=[90e9, 80e9],
    stream=[70e9, 80e9],
)
LOST = CaseResult(
    Case(100, 1, 100, 101, projection=100, name="lost"),
    {
        "nblstm": Outcome([2e-3]),
        "torch": Outcome([1e-3], difference=1e-7),
        "openvino": Outcome(problem="ONNX's LSTM has no projection"),
    },
    fma=[100e9],
    stream=[20e9],
)
MACHINE = {
    "cpu": "A CPU",
    "vectors": "wide",
    "cores": 2,
    "threads": 2,
    "threads of nblstm": 2,
    "caches": {"L1": 32 << 10, "L2": 512 << 10, "L3": 32 << 20},
    "system": "Linux",
    "python": "3.11",
}


@pytest.fixture
def results():
    ladder = [{"bytes": 16 << 10, "rate": 200e9}, {"bytes": 64 << 20, "rate": 20e9}]
    versions = {"nblstm": "0.1.0", "torch": "2.13.0"}
    command = "python -m nblstm bench --threads 2"
    return Results("2026-01-01 00:00+00:00", command, dict(MACHINE), versions, 2, ladder, [WON, LOST])


def test_speeds(results):
    assert WON.seconds("nblstm") == 0.4e-3
    assert (WON.best_peer, LOST.best_peer) == ("openvino", "torch")
    assert WON.speed("torch") == pytest.approx(2) and LOST.speed("torch") == pytest.approx(0.5)
    assert WON.speed("openvino") == pytest.approx(1.5) and LOST.speed("openvino") is None
    assert WON.gflops == pytest.approx(16e6 / 0.4e-3 / 1e9)
    assert results.mean_speed("torch") == pytest.approx(1)
    assert results.mean_speed(None) == pytest.approx((1.5 * 0.5) ** 0.5)
    assert results.losses() == [LOST]


def test_limits(results):
    # The peak is the best round of all cases; the stream is the case's own.
    limit = results.limit(WON)
    assert limit.name == "L2"
    assert limit.seconds == pytest.approx(8e6 / 100e9 + 100 * 160e3 / 80e9)
    assert results.share(WON) == pytest.approx(limit.seconds / 0.4e-3)
    many_rows = CaseResult(Case(10, 64, 100, 100), {"nblstm": Outcome([1e-2])}, [100e9], [80e9])
    results.cases.append(many_rows)
    assert results.limit(many_rows) == ("FMA", pytest.approx(many_rows.case.flops / 100e9))


def test_the_limit_of_training(results):
    # The recurrence, one product in each pass, streams its weights; of six products of 8e6 operations four are left.
    case = dataclasses.replace(WON.case, kind="training")
    results.cases = [CaseResult(case, WON.engines, WON.fma, WON.stream)]
    limit = results.limit(results.cases[0])
    assert limit.name == "L2" and limit.seconds == pytest.approx(4 * 8e6 / 90e9 + 2 * 100 * 160e3 / 80e9)
    assert results.cases[0].gflops == pytest.approx(3 * WON.gflops)
    assert "forward and a backward pass" in report.legend(results)


def test_the_limit_of_a_packed_case_is_that_of_each_step(results):
    # Steps of 64, 48, 32 and 16 rows: the products of the last two take less than the streaming of the weights.
    case = Case(4, 64, 100, 100, cell="GRU", packed="linear")
    assert case.batch_sizes().tolist() == [64, 48, 32, 16]
    numbers, stream, fma = 3 * 100 * 100, 100e9, 2e12
    recurrent = [2 * numbers * 64 / fma, 2 * numbers * 48 / fma, *[4 * numbers / stream] * 2]
    assert 2 * numbers * 48 / fma > 4 * numbers / stream > 2 * numbers * 32 / fma
    results.cases = [CaseResult(case, {"nblstm": Outcome([1e-3])}, [fma], [stream])]
    limit = results.limit(results.cases[0])
    assert limit.seconds == pytest.approx(sum(recurrent) + 2 * numbers * 160 / fma)


def test_text(results):
    text = report.text(results)
    rows = {
        line.split()[0]: line.split() for line in text.splitlines() if line.startswith(("won", "lost", "geometric"))
    }
    assert rows["won"][5:] == ["400", "us", "800", "us", "600", "us", "40.0", "1.50", "2.00", "70%", "L2"]
    assert rows["lost"][6:] == ["2.00", "ms", "1.00", "ms", "–", "9.1", "0.50", "0.50", "55%", "L2"]
    assert rows["geometric"][2:] == ["0.87", "1.00"]
    assert "Slower than a peer at 1 of 2 cases: T100 B1 I100 H101 P100 (0.50 of torch)." in text
    assert "–: ONNX's LSTM has no projection (openvino: T100 B1 I100 H101 P100)" in text
    assert "multiply-adds in float32: 100 GFLOP/s" in text
    assert "weights stream, 16 KiB for each thread (L1): 200 GB/s" in text
    assert "A CPU (wide), 2 cores" in text and "2 rounds: python -m nblstm bench --threads 2" in text


def test_text_of_nblstm_alone(results):
    results.cases = [CaseResult(WON.case, {"nblstm": Outcome([1e-3])}, WON.fma, WON.stream)]
    text = report.text(results)
    assert "x best peer  " not in text and "Slower than" not in text


def test_text_where_nblstm_failed(results):
    results.cases = [CaseResult(WON.case, {"nblstm": Outcome(problem="broken"), "torch": Outcome([1e-3])})]
    text = report.text(results)
    assert "–: broken (nblstm: T100 B1 I100 H100)" in text


def test_fewer_threads_than_asked_for_are_told(results):
    results.machine["threads of nblstm"] = 1
    assert "2 threads for every engine, but 1 for nblstm" in report.text(results)


def test_the_file_keeps_everything(results, tmp_path):
    path = tmp_path / "results.json"
    results.save(path)
    assert json.loads(path.read_text())["cases"][0]["engines"]["torch"]["medians"] == [0.8e-3, 0.9e-3]
    assert load_results(path) == results


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 0}'])
def test_another_file_is_refused(content, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"results.json: expected a file of `bench --json`, format 1, got format"):
        load_results(path)


def test_plot(results, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    plot.save_png(path, results)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_caches_are_read_off_the_system(tmp_path):
    for index, (level, kind, size) in enumerate([(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "2M")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{value}\n")
    assert machine.caches(tmp_path) == {"L1": 48 << 10, "L2": 2 << 20}
    assert machine.caches(tmp_path / "elsewhere") == {}
    assert machine.cache_of({}, 1e6, 2) == "weights"
    assert len(machine.footprints({}, 2)) == 4


@pytest.fixture
def root_on_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


def test_documents(results, tmp_path, root_on_path):
    from benchmarks.documents import replace_part
    from benchmarks.publish import document, readme_part

    case = dataclasses.replace(results.cases[0].case, kind="training")
    training = dataclasses.replace(results, cases=[dataclasses.replace(results.cases[0], case=case)])
    text = document([results, results, training])
    assert text.count("## Inference, 2 threads") == 2 and text.count("## Training, 2 threads") == 1
    assert "| won | T100 B1 I100 H100 | 400 us | 800 us |" in text
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nafter\n")
    for _ in range(2):
        replace_part(readme, "benchmarks", readme_part([results, training]))
    written = readme.read_text()
    assert written.startswith("before\n<!-- benchmarks: begin -->\n\nHow many times")
    assert written.endswith("\n\n<!-- benchmarks: end -->\nafter\n")
    assert written.count("How many times") == written.count("the backward pass together") == 1
    assert "old" not in written and "| lost | 1 | 0.50 | 0.50 | 0.50 |" in written
    with pytest.raises(ValueError, match=r"README.md has no lines <!-- scaling: begin -->"):
        replace_part(readme, "scaling", "text")


def test_the_files_that_asv_loads(root_on_path, tmp_path):
    from benchmarks.files import torch_file

    parameters = Case(1, 1, 3, 4, layers=2).parameters()
    path = tmp_path / "weights.pt"
    path.write_bytes(torch_file(parameters))
    assert_arrays_equal(load(path), parameters)


def test_the_files_that_asv_loads_are_torchs(torch, root_on_path):
    from benchmarks.files import torch_file

    parameters = Case(1, 1, 3, 4, layers=2).parameters()
    loaded = torch.load(io.BytesIO(torch_file(parameters)), weights_only=True)
    assert_arrays_equal({name: tensor.numpy() for name, tensor in loaded.items()}, parameters)


def assert_arrays_equal(found, expected):
    assert list(found) == list(expected)
    assert all(
        found[name].dtype == array.dtype and np.array_equal(found[name], array) for name, array in expected.items()
    )


def test_scaling(root_on_path):
    from benchmarks import scale

    found = scale.points(cores=2)
    start = {scale.ONE_LAYER: 30e-6, scale.NINE_LAYERS: 190e-6}
    for point in found:
        if point.threads <= 2:
            point.medians = [start.get(point.case) or 2 * scale.planned(point.case, point.threads)]
    assert scale.fixed_costs(found) == pytest.approx((10e-6, 20e-6))
    scale.model(found)
    assert found[-1].model == pytest.approx(30e-6 + scale.planned(found[-1].case, found[-1].threads))
    tables = list(scale.tables(found))
    assert len(tables) == len(scale.SWEEPS) + 1
    assert tables[-1].count("(") == len(scale.CORES) * (len(scale.CORES_ON_PAPER) - 2)
    for point in found:
        point.model = 2 * (point.seconds or 0)
    assert "a call takes 10.0 us, and 20.0 us for each of its layers" in scale.error(found)
    assert "says 2.00 times" in scale.error(found) and "within a factor of 1.00" in scale.error(found)
