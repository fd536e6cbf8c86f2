"""``python -m nblstm`` and its smaller commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import nblstm
from nblstm.__main__ import COMMANDS, main
from nblstm.commands import info
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
    assert facts["kernel cache"].endswith(" MB")
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
    monkeypatch.setattr(policy, "cache_folder", lambda: None)
    assert info.kernel_cache().startswith("none: ")


def test_median_seconds_warms_up_and_repeats() -> None:
    calls: list[None] = []
    seconds = median_seconds(lambda: calls.append(None), budget=0)
    assert len(calls) == 3 + 11
    assert 0 <= seconds < 0.1
