"""``python -m nblstm`` and its smaller commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

import nblstm
from nblstm.__main__ import COMMANDS, main
from nblstm.commands import info, weight_report
from nblstm.commands.timing import median_seconds
from nblstm.kernels import policy


def test_alone_it_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m nblstm ")
    for name in COMMANDS:
        assert f"\n    {name} " in said


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"nblstm {nblstm.__version__}\n"


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["no-such-command"])
    assert stop.value.code == 2
    assert "invalid choice: 'no-such-command'" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="a pipe that nobody reads is another error on Windows")
@pytest.mark.parametrize("name", ["demo", "info"])
def test_a_reader_that_goes_away_is_no_error(name: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "nblstm", name]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    summary = str(COMMANDS[name].__doc__).splitlines()[0].partition(": ")[2]
    assert summary in " ".join(capsys.readouterr().out.split())


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    facts = {line[:16].strip(): line[17:] for line in capsys.readouterr().out.splitlines()}
    assert facts["nblstm"].startswith(f"{nblstm.__version__} in ")
    assert "fused multiply-add" in facts["CPU"]
    assert facts["threads"].startswith(f"{nblstm.get_num_threads()} a call at most")
    assert "workqueue" in facts["threading layer"]
    assert re.search(r": \d+ kernels?, [\d.]+ k?M?B$", facts["kernel cache"])
    assert f"{8 * policy.VECTOR_BYTES} bits" in facts["CPU"]
    assert [facts[name] for name in ("numba", "numpy")] == [numba.__version__, np.__version__]
    assert all(peer in facts["peers"] for peer in info.PEERS)


def test_info_loads_no_threading_layer_and_no_peer() -> None:
    script = """
import sys
from nblstm.__main__ import main
main(["info"])
from numba.np.ufunc import parallel
assert not parallel._is_initialized
assert not {"torch", "matplotlib"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_info_without_a_place_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "cache_folder", lambda: None)
    assert info.kernel_cache().startswith("none: ")


def prefixed(prefix: str, layer: Any) -> dict[str, Any]:
    return {prefix + name: array for name, array in layer.state_dict().items()}


def assert_lines_load(said: str) -> list[str]:
    """Run each line of Python in a report and hold what it gives to the line above; return those lines."""
    lines = said.splitlines()
    loading = [number for number, line in enumerate(lines) if line.startswith("    nblstm.")]
    for number in loading:
        loaded = eval(lines[number], {"nblstm": nblstm})
        assert lines[number - 1].partition(" under ")[0] == repr(loaded)
    return [lines[number].strip() for number in loading]


def test_info_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lstm = nblstm.LSTM(3, 2, 2, bias=False, bidirectional=True, proj_size=1, dtype=np.float64, seed=0)
    arrays = prefixed("encoder.lstm.", lstm) | prefixed("", nblstm.LSTMCell(5, 4)) | {"step": np.array(3)}
    monkeypatch.chdir(tmp_path)
    nblstm.save("it's.npz", arrays)
    assert main(["info", "it's.npz"]) == 0
    said = capsys.readouterr().out
    for name, array in arrays.items():
        assert re.search(
            rf"^{name} +{array.dtype} +{re.escape(str(array.shape))} +{array.nbytes} B$", said, re.MULTILINE
        )
    size = sum(array.nbytes for array in arrays.values())
    assert f"\n{len(arrays)} tensors, {size / 1000:.1f} kB\n" in said
    assert assert_lines_load(said) == [
        """nblstm.LSTM.from_state_dict(nblstm.load("it's.npz"), prefix='encoder.lstm.')""",
        """nblstm.LSTMCell.from_state_dict(nblstm.load("it's.npz"))""",
    ]


def test_info_finds_layers_inside_a_checkpoint(
    torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.utils.parametrizations.weight_norm(torch.nn.LSTM(3, 2), "weight_hh_l0")
            self.été = torch.nn.LSTMCell(3, 2)

    model = torch.nn.DataParallel(Model())
    optimizer = torch.optim.Adam(model.parameters())
    model.module.rnn(torch.zeros(1, 1, 3))[0].sum().backward()
    optimizer.step()
    state = model.state_dict()
    checkpoint = {"epoch": 3, "model": state, 7: [{"ema": state}], "optimizer": optimizer.state_dict(), "loss": 0.5}
    monkeypatch.chdir(tmp_path)
    torch.save(checkpoint, "a.pt")
    assert main(["info", "a.pt"]) == 0
    said = capsys.readouterr().out
    assert "\nmodel.module.rnn.bias_ih_l0 " in said
    assert "\n7.0.ema.module.rnn.bias_ih_l0 " in said
    assert re.search(r"\n\d+ values that are no tensors\n", said)
    assert assert_lines_load(said) == [
        "nblstm.LSTM.from_state_dict(nblstm.load('a.pt')['model'], prefix='module.rnn.')",
        "nblstm.LSTMCell.from_state_dict(nblstm.load('a.pt')['model'], prefix='module.\\xe9t\\xe9.')",
        "nblstm.LSTM.from_state_dict(nblstm.load('a.pt')[7][0]['ema'], prefix='module.rnn.')",
        "nblstm.LSTMCell.from_state_dict(nblstm.load('a.pt')[7][0]['ema'], prefix='module.\\xe9t\\xe9.')",
    ]


def test_info_names_layers_that_it_cannot_load() -> None:
    arrays = {"gru.weight_ih_l0": np.ones((6, 3)), "gru.weight_hh_l0": np.ones((6, 2)), "b.weight_ih": np.ones((8, 3))}
    said = weight_report.report("a.npz", arrays)
    assert "\nGRU(3, 2, bias=False) under 'gru.'\n" in said
    assert "\ncannot be loaded from nblstm.load('a.npz'): state_dict: expected an array 'b.weight_hh'" in said
    assert ("nblstm.GRU.from_state_dict(" in said) == hasattr(nblstm, "GRU")
    assert ("nblstm has no GRU" in said) != hasattr(nblstm, "GRU")


def test_info_gives_no_orders_to_a_terminal() -> None:
    arrays = {"\x1b[2J\n.weight_ih_l0": np.ones((8, 3)), "\x1b[2J\n.weight_hh_l0": np.ones((8, 2))}
    said = weight_report.report("\x1b.npz", {"\u202e": arrays, "": np.ones(2)})
    assert said.isascii() and all(line.isprintable() for line in said.splitlines())
    assert "'' " in said
    assert len(said.splitlines()) == 1 + 3 + 1 + 3


@pytest.mark.parametrize("content", [None, b"", b"no weights", b"PK\x03\x04"])
def test_info_of_what_is_no_weight_file(content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.pt"
    if content is not None:
        path.write_bytes(content)
    assert main(["info", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("nblstm info: ") and said.err.count("\n") == 1 and "a.pt" in said.err


def test_info_of_a_file_without_tensors() -> None:
    assert weight_report.report("a.pt", {"epoch": 3, "names": ["a", "b"]}).splitlines()[1:] == [
        "0 tensors, 0 B",
        "3 values that are no tensors",
    ]
    assert weight_report.report("a.pt", np.ones(3)).splitlines()[1].startswith("''")


def test_median_seconds_warms_up_and_repeats() -> None:
    calls: list[None] = []
    seconds = median_seconds(lambda: calls.append(None), budget=0)
    assert len(calls) == 3 + 11
    assert 0 <= seconds < 0.1
