"""The examples of training: they learn what they say, and the language model's survives what may happen to it."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nblstm
from nblstm.commands.timing import is_installed
from nblstm.training import RecurrentLanguageModel

ROOT = Path(__file__).resolve().parent.parent


def example(name: str) -> Any:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / f"{name}.py")))


language_model = example("char_language_model")
sequence_labelling = example("sequence_labelling")
initial_state = example("learned_initial_state")


def test_labels_are_learned() -> None:
    accuracy, most_frequent = sequence_labelling.label()
    assert most_frequent < 0.5
    assert accuracy > 0.97


def test_classes_are_learned() -> None:
    accuracy, most_frequent = sequence_labelling.classify()
    assert most_frequent < 0.6
    assert accuracy > 0.93


def test_the_brackets_are_what_they_are_said_to_be() -> None:
    data = sequence_labelling.make_batch(np.random.default_rng(0), 200)
    closing, labelled = {")": "(", "]": "["}, 0
    for row in range(200):
        symbols = [sequence_labelling.SYMBOLS[s] for s in data.symbols[: data.lengths[row], row]]
        stack, right = [], True
        for symbol, label in zip(symbols, data.labels[:, row], strict=False):
            if symbol in closing:
                right &= stack.pop() == closing[symbol]
            else:
                stack.append(symbol)
            if not data.damaged[row]:
                assert label == ("([".index(stack[-1]) if stack else sequence_labelling.NOTHING_OPEN)
                labelled += 1
        assert not stack and right == (not data.damaged[row])
        assert (data.symbols[data.lengths[row] :, row] == sequence_labelling.PADDING).all()
        assert (data.labels[data.lengths[row] :, row] == -100).all()
    assert labelled > 1000


def test_first_states_are_found() -> None:
    found, zeros = initial_state.find_states()
    assert found < 0.02 * zeros


def test_first_states_tell_the_phase_of_a_wave() -> None:
    learned, same_for_all = initial_state.draw_waves()
    assert same_for_all == pytest.approx(0.5**0.5)
    assert learned < 0.1 * same_for_all


@pytest.mark.parametrize("module", [sequence_labelling, initial_state], ids=["labelling", "initial state"])
def test_they_say_what_they_found(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("label", "classify", "find_states", "draw_waves"):
        monkeypatch.setitem(module.main.__globals__, name, lambda: (0.75, 0.25))
    module.main()
    assert len(re.findall(r"(0\.7|75\.0%).*(0\.2|25\.0%)", capsys.readouterr().out)) == 2


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text in an empty current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "text.txt"
    path.write_bytes((ROOT / "CONTRIBUTING.md").read_bytes())
    return path


SIZES = ["--hidden", "16", "--batch", "4", "--length", "10", "--lr", "0.01"]


def run(*arguments: object) -> None:
    language_model.main([*map(str, arguments), *SIZES])


# Step 18 of training ends the process as a kill does.
KILLED = """
import os, runpy, sys

main = runpy.run_path(sys.argv[1])["main"]
trainer = main.__globals__["Trainer"]
step = trainer.step
trainer.step = lambda self: os._exit(9) if self.steps == 17 else step(self)
main(sys.argv[2:])
"""


def losses_in(path: Path) -> Any:
    return nblstm.load(path)["losses"]


def test_it_learns_draws_and_writes(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(text, "--steps", 200, "--sample", 60, "--prompt", "the ")
    said = capsys.readouterr().out
    perplexity = float(re.findall(r"nblstm: perplexity ([\d.]+) on the \d+ characters held out", said)[0])
    different = int(re.findall(r"characters, (\d+) different ones", said)[0])
    assert perplexity < 0.5 * different
    assert len(re.findall(r"^step +[12]00 +loss ", said, re.MULTILINE)) == 2
    written = said[said.index("\nthe ") + 1 :]
    assert len(written) == 4 + 60 + 1
    drawn = Path("nblstm-losses.png")
    if is_installed("matplotlib"):
        assert drawn.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    else:
        assert "nblstm-losses.png was not drawn: matplotlib is not installed" in said


@pytest.mark.parametrize("partition", ["sequential", "random"])
def test_it_goes_on_where_it_was_killed(partition: str, text: Path) -> None:
    options = ["--partition", partition, "--layers", 2, "--dropout", 0.2, "--cell", "GRU", "--embedding", 8]
    run(text, "--steps", 30, "--checkpoint", "whole.npz", *options)
    command = [sys.executable, "-c", KILLED, ROOT / "examples" / "char_language_model.py", text, *SIZES, *options]
    command += ["--steps", 30, "--checkpoint", "run.npz", "--every", 7]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert len(losses_in(Path("run.npz"))) == 14
    run(text, "--steps", 30, "--checkpoint", "run.npz", "--resume", *options)
    np.testing.assert_array_equal(losses_in(Path("run.npz")), losses_in(Path("whole.npz")))


def test_a_loss_that_is_not_finite_stops_it(text: Path) -> None:
    run(text, "--steps", 10, "--checkpoint", "run.npz")
    whole = nblstm.load("run.npz")
    options = ["--steps", 20, "--checkpoint", "run.npz", "--every", 1, "--resume"]
    loss_and_gradients = RecurrentLanguageModel.loss_and_gradients

    def nan_at_13(self: Any, tokens: Any, targets: Any, state: Any = None, *, dropout_call: int) -> Any:
        outcome = loss_and_gradients(self, tokens, targets, state, dropout_call=dropout_call)
        return outcome._replace(loss=float("nan")) if dropout_call == 12 else outcome

    words = r"char_language_model: Trainer step 13: .* got a loss of nan .*run.npz has"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match=words):
        patch.setattr(RecurrentLanguageModel, "loss_and_gradients", nan_at_13)
        run(text, *options)
    found = nblstm.load("run.npz")
    assert found["losses"].tolist()[:10] == whole["losses"].tolist() and len(found["losses"]) == 11
    run(text, *options)
    assert len(losses_in(Path("run.npz"))) == 20


def test_it_says_what_is_wrong_in_a_line(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("kept.npz").write_bytes(b"")
    Path("latin.txt").write_bytes(b"caf\xe9 " * 100)
    Path("empty.txt").write_bytes(b"")
    cases: list[tuple[list[object], str]] = [
        ([text, "--checkpoint", "kept.npz"], "--checkpoint: expected a new file, got kept.npz, which exists"),
        ([text, "--checkpoint", "none.npz", "--resume"], "none.npz"),
        ([text, "--checkpoint", "run.pt"], "a name that ends in .safetensors or .npz"),
        ([text, "--prompt", "\u4f60"], "got '\u4f60' at place 0"),
        (["none.txt"], "No such file"),
        (["latin.txt"], "latin.txt: expected text in UTF-8, got byte 0xe9"),
        (["empty.txt"], "one character or more, got none"),
        ([text, "--steps", "-1", "--batch", "0"], "batch_size must be greater than zero"),
        ([text, "--lr", "-1"], "Invalid learning rate"),
    ]
    for arguments, words in cases:
        with pytest.raises(SystemExit, match=f"char_language_model: .*{re.escape(words)}"):
            language_model.main([*SIZES, *map(str, arguments)])
    for arguments in ([text, "--resume"], [text, "--torch", "--checkpoint", "a.npz"]):
        with pytest.raises(SystemExit) as stopped:
            run(*arguments)
        assert stopped.value.code == 2
    assert "--resume needs --checkpoint" in capsys.readouterr().err


@pytest.mark.usefixtures("torch")
def test_torchs_model_is_trained_on_the_same(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for options in ([], ["--torch"]):
        run(text, "--steps", 100, *options)
        said = capsys.readouterr().out
        found.append(float(re.findall(r"perplexity ([\d.]+) on the \d+ characters held out", said)[0]))
        assert f"{'torch' if options else 'nblstm'}: 100 steps in" in said
    assert found[0] == pytest.approx(found[1], rel=0.01)


def test_the_documents_examples_run(torch: Any, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    namespace = {"text": text.read_text(encoding="utf-8")[:3000]}
    for block in blocks:
        exec(compile(block, "docs/training.md", "exec"), namespace)
    said = re.findall(r"^print\(.*\)  # (.*)$", "".join(blocks), re.MULTILINE)
    assert said and capsys.readouterr().out.splitlines() == said
