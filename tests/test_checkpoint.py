"""The loop of training: a resumed run has the bits of an unbroken one, and no mishap costs a checkpoint."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nblstm
from nblstm.training import (
    SGD,
    Adam,
    AdamW,
    NonFiniteLossError,
    RandomBatches,
    RecurrentLanguageModel,
    SequentialBatches,
    Trainer,
)

TEXT = np.random.default_rng(0).integers(7, size=60)
OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda layers: SGD(layers, lr=0.1),
    "momentum": lambda layers: SGD(layers, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda layers: Adam(layers, lr=0.01),
    "amsgrad": lambda layers: AdamW(layers, lr=0.01, amsgrad=True),
}


def build(seed: int | None = 0, optimizer: str = "Adam", partition: Any = SequentialBatches, **sizes: Any) -> Trainer:
    model = RecurrentLanguageModel(7, 6, seed=seed, **sizes)
    return Trainer(model, OPTIMIZERS[optimizer](model.layers), partition(TEXT, 3, 4), max_norm=0.5)


def bits(trainer: Trainer) -> list[bytes]:
    """Everything that a run consists of."""
    moments = trainer.optimizer.state_dict()["state"]
    arrays = [*trainer.model.state_dict().values(), *(a for m in moments.values() for a in m.values())]
    states = trainer._state if isinstance(trainer._state, tuple) else (trainer._state,)
    return [np.asarray(a).tobytes() for a in (*arrays, *states, np.array(trainer.losses))]


@settings(max_examples=30)
@given(
    cell=st.sampled_from(["LSTM", "GRU", "RNN"]),
    layers=st.sampled_from([(1, 0.0), (2, 0.0), (2, 0.5)]),
    embedding=st.sampled_from([None, 3]),
    dtype=st.sampled_from([np.float32, np.float64]),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    partition=st.sampled_from([SequentialBatches, RandomBatches]),
    suffix=st.sampled_from([".npz", ".safetensors"]),
    steps=st.integers(1, 11),
    data=st.data(),
)
def test_a_run_resumed_at_any_step_has_the_bits_of_an_unbroken_one(
    cell: str,
    layers: tuple[int, float],
    embedding: int | None,
    dtype: Any,
    optimizer: str,
    partition: Any,
    suffix: str,
    steps: int,
    data: Any,
) -> None:
    sizes = {"cell": cell, "num_layers": layers[0], "dropout": layers[1], "embedding_dim": embedding, "dtype": dtype}
    unbroken = build(None, optimizer, partition, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        unbroken.save(path := Path(folder) / f"0{suffix}")
        unbroken.run(steps)
        trainer = build(1, optimizer, partition, **sizes)  # other weights and masks
        trainer.load(path)
        while trainer.steps < steps:
            trainer.run(data.draw(st.integers(0, steps - trainer.steps)))
            trainer.save(path)
            trainer = build(None, optimizer, partition, **sizes)
            trainer.load(path)
            trainer.run(min(1, steps - trainer.steps))
    assert trainer.losses == unbroken.losses
    assert bits(trainer) == bits(unbroken)


def test_a_learning_rate_that_a_callback_sets_is_resumed(tmp_path: Path) -> None:
    def half(trainer: Trainer) -> Any:
        def callback(report: Any) -> None:
            trainer.optimizer.param_groups[0]["lr"] *= 0.5

        return callback

    unbroken, first, second = build(), build(), build(seed=1)
    unbroken.run(6, callback=half(unbroken))
    first.run(3, callback=half(first), checkpoint=tmp_path / "run.npz")
    second.load(tmp_path / "run.npz")
    second.run(3, callback=half(second))
    assert bits(second) == bits(unbroken)
    assert second.optimizer.param_groups[0]["lr"] == 0.01 * 0.5**6


def test_what_a_checkpoint_has_in_it(tmp_path: Path) -> None:
    trainer = build(embedding_dim=3)
    trainer.run(5, checkpoint=tmp_path / "run.npz", every=2)
    found = nblstm.load(tmp_path / "run.npz")
    model = RecurrentLanguageModel.from_state_dict(found, "model.")
    np.testing.assert_array_equal(model(TEXT)[0], trainer.model(TEXT)[0])  # type: ignore[operator]
    assert found["losses"].tolist() == trainer.losses
    assert found["optimizer.0.exp_avg"].shape == found["model.embedding.weight"].shape
    assert found["state.0"].shape == (1, 3, 6)
    assert json.loads(found["run"].tobytes())["param_groups"][0]["lr"] == 0.01
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]


class Poisoned:
    """A model whose loss or gradients are not finite at one step."""

    def __init__(self, model: Any, step: int, what: str, value: float) -> None:
        self._model, self._step, self._what, self._value = model, step, what, value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def loss_and_gradients(self, tokens: Any, targets: Any, state: Any, *, dropout_call: int) -> Any:
        outcome = self._model.loss_and_gradients(tokens, targets, state, dropout_call=dropout_call)
        if dropout_call != self._step:
            return outcome
        if self._what == "loss":
            return outcome._replace(loss=self._value)
        outcome.gradients[0].parameters["weight_hh_l0"][1, 2] = self._value
        return outcome


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_before_anything_changes(
    what: str, value: float, max_norm: float | None, tmp_path: Path
) -> None:
    path = tmp_path / "run.npz"
    good = build()
    good.max_norm = np.inf if max_norm is None else max_norm
    good.run(5)
    trainer = build()
    trainer.model = Poisoned(trainer.model, 5, what, value)
    trainer.max_norm = good.max_norm
    with pytest.raises(NonFiniteLossError, match=r"Trainer step 6: expected a finite loss .*run.npz has the last") as e:
        trainer.run(9, checkpoint=path, every=3)
    assert bits(trainer) == bits(good)
    assert (e.value.step, e.value.checkpoint) == (6, path)
    assert isinstance(e.value, FloatingPointError)
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)
    before = path.read_bytes()
    with pytest.raises(NonFiniteLossError):
        trainer.save(path)
    assert path.read_bytes() == before
    resumed = build(seed=1)
    resumed.max_norm = good.max_norm
    resumed.load(path)
    assert resumed.steps == 3
    resumed.run(2)
    assert bits(resumed) == bits(good)


@pytest.mark.parametrize("lr", [1e3, 1e20, 1e30, 1e38])
def test_no_checkpoint_has_weights_that_lead_nowhere(lr: float, tmp_path: Path) -> None:
    path, trainer = tmp_path / "run.npz", build()
    trainer.optimizer.param_groups[0]["lr"] = lr
    try:
        trainer.run(20, checkpoint=path, every=1)
    except NonFiniteLossError as error:
        assert lr > 1e3
        assert error.checkpoint == path
    resumed = build()
    resumed.load(path)
    assert np.isfinite(resumed._outcome()[0].loss)
    assert all(np.isfinite(array).all() for array in resumed.model.state_dict().values())


CHILD = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_checkpoint import build
import nblstm.weights.npz_file as npz_file

trainer = build()
trainer.run(4, checkpoint=sys.argv[2])
calls = []
def killed(*arguments, **options):
    calls.append(arguments)
    if len(calls) == int(sys.argv[4]):
        os._exit(9)
    return real(*arguments, **options)
place = npz_file.np.lib.format if sys.argv[3] == "write_array" else os
real = getattr(place, sys.argv[3])
setattr(place, sys.argv[3], killed)
trainer.run(3, checkpoint=sys.argv[2], every=3)
"""


# At the first save of the second run, in the midst of an array; at its last, when all but the last move is done.
@pytest.mark.parametrize(("function", "call"), [("write_array", 7), ("fsync", 2), ("replace", 2)])
def test_a_run_that_was_killed_while_it_wrote_goes_on(function: str, call: int, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(path), function, str(call)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert len(list(tmp_path.iterdir())) == 2  # the checkpoint, and the one that was not finished
    unbroken, resumed = build(), build(seed=1)
    unbroken.run(9)
    resumed.load(path)
    assert resumed.steps == 4
    resumed.run(5, checkpoint=path)
    assert bits(resumed) == bits(unbroken)
    build().load(path)


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    trainer, path = build(), tmp_path / "run.npz"
    trainer.run(3, checkpoint=path)

    def refused(other: Trainer, error: Any, words: str, file: Path = path) -> None:
        other.run(2)
        before = bits(other)
        with pytest.raises(error, match=words):
            other.load(file)
        assert bits(other) == before
        assert other.steps == 2

    refused(build(partition=RandomBatches), ValueError, r"run.npz: expected the same batches as here, got others after")
    refused(build(cell="GRU"), RuntimeError, "weight_ih_l0")
    refused(build(embedding_dim=3), RuntimeError, r"missing \['embedding.weight'\]")
    refused(build(optimizer="momentum"), ValueError, "SGD.load_state_dict")
    other_text = build()
    other_text.batches = SequentialBatches(TEXT[::-1], 3, 4)
    refused(other_text, ValueError, "Text, sizes of a batch, partition and seed must be those")
    nblstm.save(tmp_path / "weights.npz", trainer.model.state_dict())
    refused(build(), ValueError, "expected a checkpoint that Trainer.save wrote", tmp_path / "weights.npz")
    newer = nblstm.load(path)
    run = json.loads(newer["run"].tobytes()) | {"format": 2}
    newer["run"] = np.frombuffer(json.dumps(run).encode(), np.uint8)
    nblstm.save(tmp_path / "newer.npz", newer)
    refused(build(), ValueError, "of format 1, got format 2", tmp_path / "newer.npz")
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:-100])
    refused(build(), nblstm.weights.files.WeightFileError, "cut.npz", tmp_path / "cut.npz")
    refused(build(), FileNotFoundError, "none.npz", tmp_path / "none.npz")


def test_what_is_wrong_with_a_checkpoints_place_shows_at_once(tmp_path: Path) -> None:
    trainer = build()
    with pytest.raises(ValueError, match=r"a name that ends in .safetensors or .npz"):
        trainer.run(3, checkpoint=tmp_path / "run.pt")
    with pytest.raises(FileNotFoundError):
        trainer.run(3, checkpoint=tmp_path / "no such folder" / "run.npz")
    assert trainer.steps == 0


def test_what_a_trainer_refuses() -> None:
    trainer = build()
    for wrong in ([trainer.model.layers[0]], trainer.model.layers[::-1]):
        with pytest.raises(ValueError, match="Trainer optimizer: expected the layers of the model in their order"):
            Trainer(trainer.model, Adam(wrong), trainer.batches)
    with pytest.raises(ValueError, match="max_norm: expected a number of 0 or more"):
        Trainer(trainer.model, trainer.optimizer, trainer.batches, max_norm=-1)
    with pytest.raises(ValueError, match=r"Trainer.run steps: expected 0 or more"):
        trainer.run(-1)
    with pytest.raises(ValueError, match=r"Trainer.run every: expected 1 or more"):
        trainer.run(1, every=0)


def test_reports_and_perplexity() -> None:
    trainer, reports = build(), []
    assert np.isnan(trainer.perplexity())
    with pytest.raises(ValueError, match=r"Trainer.perplexity last: expected 1 or more, got 0"):
        trainer.perplexity(0)
    trainer.run(4, callback=reports.append)
    trainer.run(2, callback=reports.append)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.loss for report in reports] == trainer.losses
    assert reports[0].perplexity == pytest.approx(np.exp(trainer.losses[0]))
    assert all(report.norm > 0 for report in reports)
    assert trainer.perplexity(2) == pytest.approx(np.exp(np.mean(trainer.losses[-2:])))


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_progress_bar_where_there_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    for stream, drawn in ((Terminal(), True), (io.StringIO(), False), (None, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        trainer = build()
        trainer.run(2, progress=False)
        trainer.run(3)
        text = "" if stream is None else stream.getvalue()
        assert ("5/5" in text and "perplexity=" in text) == drawn


def test_no_progress_bar_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    build().run(2)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_a_checkpoint_of_another_dtype_is_refused(tmp_path: Path) -> None:
    def trainer(dtype: Any) -> Trainer:
        model = RecurrentLanguageModel(5, 4, dtype=dtype, seed=0)
        return Trainer(model, Adam(model.layers), SequentialBatches(np.arange(60) % 5, 2, 3))

    trainer(np.float32).run(2, checkpoint=tmp_path / "run.npz")
    other = trainer(np.float64)
    with pytest.raises(ValueError, match=r"expected float64 in .*, got float32"):
        other.load(tmp_path / "run.npz")
    assert other.steps == 0
    with pytest.raises(FileExistsError, match="Go on from it with `load`"):
        trainer(np.float32).run(1, checkpoint=tmp_path / "run.npz")
