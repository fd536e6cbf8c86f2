"""The demo: right and skilful numbers, honest about them, and at home wherever it runs."""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nblstm.commands import charts, demo
from nblstm.commands.timing import is_installed

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(plot: Path | None = None) -> int:
    return demo.run(argparse.Namespace(plot=plot))


def test_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "nblstm", "demo"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert re.search(r"check .*PyTorch recorded: \d\.\de-0[6-9]\n.*: passed\n", result.stdout)
    assert len(re.findall(r"\d+ series +\d+ us", result.stdout)) == len(demo.BATCHES)
    assert (tmp_path / "nblstm-forecast.png").exists() == is_installed("matplotlib")
    assert ("torch is not installed" not in result.stdout) == is_installed("torch")


def test_it_beats_every_baseline_on_years_it_was_not_trained_on() -> None:
    years, numbers = demo.load_sunspots()
    model = demo.load_forecaster()
    output, _ = model.lstm(model.standardise(numbers))
    unseen = years >= demo.FIRST_UNSEEN
    errors = {name: demo.rmse(other[unseen], numbers[unseen]) for name, other in demo.baselines(years, numbers).items()}
    assert len(errors) == 3
    assert demo.rmse(model.read(output)[:-1], numbers[1:]) < 15
    assert demo.rmse(model.read(output)[:-1][unseen[1:]], numbers[unseen]) < 0.9 * min(errors.values())


def test_baselines_know_only_the_past() -> None:
    years, numbers = demo.load_sunspots()
    changed = np.where(years >= 1990, 1000.0, numbers)
    for before, after in zip(*(demo.baselines(years, values).values() for values in (numbers, changed)), strict=True):
        assert np.array_equal(before[years <= 1990], after[years <= 1990], equal_nan=True)
        assert not np.array_equal(before, after, equal_nan=True)


def test_the_training_script_stops_where_judgement_begins() -> None:
    script = (ROOT / "examples" / "train_forecaster.py").read_text(encoding="utf-8")
    assert f"LAST_TRAINING_YEAR = {demo.FIRST_UNSEEN - 1}\n" in script


def test_the_data_are_whole() -> None:
    years, numbers = demo.load_sunspots()
    assert years.tolist() == list(range(1700, 2009))
    assert numbers.min() == 0 and numbers.max() == 190.2
    assert (demo.DATA / "forecaster.pt").stat().st_size < 200_000


def test_the_recorded_outputs_are_torchs(torch: Any) -> None:
    state = torch.load(demo.DATA / "forecaster.pt", weights_only=True)
    lstm = torch.nn.LSTM(1, 32, num_layers=2)
    lstm.load_state_dict({name[5:]: value for name, value in state.items() if name.startswith("lstm.")})
    _, numbers = demo.load_sunspots()
    roots = torch.tensor(numbers, dtype=torch.float32).sqrt()[:, None]
    with torch.inference_mode():
        output, (h_n, c_n) = lstm((roots - state["mean"]) / state["scale"])
    expected = np.load(demo.DATA / "forecaster_expected.npz")
    for name, value in {"output": output, "h_n": h_n, "c_n": c_n}.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=0, atol=2e-6 * abs(expected[name]).max())


@pytest.mark.usefixtures("no_torch", "no_matplotlib", "in_folder")
def test_a_difference_from_torch_fails_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for difference in (2 * demo.TOLERANCE, float("nan")):
        monkeypatch.setattr(demo, "difference_from_torch", lambda results, difference=difference: difference)
        assert run() == 1
        assert "FAILED" in capsys.readouterr().out


def test_the_difference_is_taken_over_all_that_was_recorded() -> None:
    with np.load(demo.DATA / "forecaster_expected.npz") as file:
        recorded = dict(file)
    assert set(recorded) == {"output", "h_n", "c_n", "forecast"}
    assert demo.difference_from_torch(recorded) == 0
    for name, values in recorded.items():
        off = values + np.float32(0.1) * abs(values).max()
        assert demo.difference_from_torch(recorded | {name: off}) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.usefixtures("no_torch", "no_matplotlib")
def test_without_torch_and_matplotlib(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    said = capsys.readouterr().out
    assert "torch is not installed" in said
    assert "nblstm-forecast.png was not drawn: matplotlib is not installed" in said
    assert "● forecast a year ahead" in said
    assert not list(in_folder.iterdir())
    assert run(Path("asked-for.png")) == 1


@pytest.mark.usefixtures("in_folder")
def test_a_torch_that_does_not_run_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('made for another CPU')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert demo.torch_speed(3) == "torch could not be timed: ImportError: made for another CPU"


def test_a_picture_that_cannot_be_written(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    years, numbers = demo.load_sunspots()
    assert not demo.draw(in_folder / "no such folder" / "x.png", years, numbers, numbers)
    assert "x.png was not drawn: " in capsys.readouterr().out
    (in_folder / "nblstm-forecast.png").mkdir()
    assert demo.draw(None, years, numbers, numbers)
    assert "nblstm-forecast.png was not drawn: " in capsys.readouterr().out


def test_picture(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    years, numbers = demo.load_sunspots()
    assert demo.draw(Path("x.png"), years, numbers, np.concatenate([[np.nan], numbers[:-1]]))
    assert (in_folder / "x.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "drawn to x.png" in capsys.readouterr().out


@pytest.mark.usefixtures("no_matplotlib")
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_the_chart_fits_the_terminal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    years, numbers = demo.load_sunspots()
    demo.draw(None, years, numbers, numbers)
    stdout.flush()
    text = written.getvalue().decode(encoding)
    assert ("●" in text) == (encoding == "utf-8")
    assert max(map(len, text.splitlines())) <= 80


def test_chart_of_characters() -> None:
    years, observed, forecast = np.arange(1990, 1994), np.array([0, 25, 50, 100.0]), np.array([100, 75, 50, 0.0])
    assert charts.text_chart(years, observed, forecast, charts.ASCII).splitlines() == [
        "       # observed   o forecast a year ahead",
        "",
        " 100 |o  #",
        "     |   #",
        "     |   #",
        "     | o #",
        "     |   #",
        "     |   #",
        "  50 |  o#",
        "     |  ##",
        "     |  ##",
        "     | ###",
        "     | ###",
        "     | ##o",
        "   0 +----",
        "      1990",
    ]
