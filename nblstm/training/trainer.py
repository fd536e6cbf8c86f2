"""The loop of training: losses, clipping, steps of the optimiser, a progress bar, checkpoints.

A run that was stopped goes on from its checkpoint with the very bits of one that was not.
"""

from __future__ import annotations

import math
import os
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from nblstm.arrays import Array, as_whole_number
from nblstm.errors import message
from nblstm.layers.base import Layer
from nblstm.training.checkpoint import Checkpoint, read_checkpoint
from nblstm.training.clipping import clip_grad_norm
from nblstm.training.language_model import Outcome
from nblstm.training.losses import perplexity_of
from nblstm.training.optimizer import Optimizer
from nblstm.training.text import Batch

Path = str | os.PathLike[str]


class Model(Protocol):
    """What `Trainer` needs of a model; `RecurrentLanguageModel` is one."""

    dropout_seed: int

    @property
    def layers(self) -> list[Layer]:
        """The layers, in the order of the gradients."""

    def state_dict(self) -> dict[str, Array]:
        """Return all parameters by name."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take all parameters from there, or raise and change none."""

    def loss_and_gradients(self, tokens: Any, targets: Any, state: Any, *, dropout_call: int | None) -> Outcome:
        """Return the loss of a batch, its gradients and the last states; the masks are those of the call's number."""


class Report(NamedTuple):
    """What a step of training came to."""

    step: int  # how many steps there have been, this one included
    loss: float  # of its batch, before the step
    norm: float  # of its gradients, before clipping

    @property
    def perplexity(self) -> float:
        """Exp of the loss."""
        return perplexity_of(self.loss)


class NonFiniteLossError(FloatingPointError):
    """The loss of a step, or the norm of its gradients, is NaN or infinite: training stopped before that step.

    Attributes
    ----------
    step : int
        The number of the step that was not done, from 1 on.
    loss, norm : float
    checkpoint : path or None
        The last one written or read, which holds weights whose loss was a number.
    """

    def __init__(self, step: int, loss: float, norm: float, checkpoint: Path | None) -> None:
        self.step, self.loss, self.norm, self.checkpoint = step, loss, norm, checkpoint
        kept = "there is no checkpoint" if checkpoint is None else f"{os.fspath(checkpoint)} has the last good ones"
        hint = f"The weights are those before that step; {kept}. A lower learning rate or clipping may help"
        got = f"a loss of {loss} and gradients of norm {norm}"
        super().__init__(message(f"Trainer step {step}", "a finite loss and gradients", got, hint=hint))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.loss, self.norm, self.checkpoint)


class Trainer:
    """Trains a model on batches, each of which is a function of the step's number.

    The states that a batch ends with begin the next one, unless that begins anew; no gradient flows through them. The
    dropout masks of a step are those of its number.

    Parameters
    ----------
    model : RecurrentLanguageModel
        Or anything that has what `Model` lists.
    optimizer : Optimizer
        Over ``model.layers``. Its learning rate may be changed between steps, for example in a callback.
    batches : callable
        Takes the number of a step, from 0 on, and returns a `Batch`: `SequentialBatches`, `RandomBatches`.
    max_norm : float, optional
        What to clip the norm of all gradients to; None: nothing is clipped.

    Attributes
    ----------
    losses : list of float
        Of all steps so far.

    Raises
    ------
    ValueError
        The optimiser has other layers than the model; `max_norm` is below 0.

    Examples
    --------
    >>> from nblstm.training import Adam, RecurrentLanguageModel, SequentialBatches, Trainer, Vocabulary
    >>> text = "to be or not to be, " * 50
    >>> vocabulary = Vocabulary(text)
    >>> model = RecurrentLanguageModel(len(vocabulary), 32, seed=0)
    >>> batches = SequentialBatches(vocabulary.encode(text), batch_size=4, num_steps=10)
    >>> trainer = Trainer(model, Adam(model.layers, lr=0.01), batches, max_norm=1.0)
    >>> trainer.run(100)
    >>> trainer.steps, trainer.losses[-1] < 0.1 * trainer.losses[0]
    (100, True)
    >>> vocabulary.decode(model.sample(vocabulary.encode("or no"), 8, temperature=0))
    't to be,'
    """

    def __init__(
        self, model: Model, optimizer: Optimizer, batches: Callable[[int], Batch], *, max_norm: float | None = None
    ) -> None:
        layers = [layer for group in optimizer.param_groups for layer in group["params"]]
        if list(map(id, layers)) != list(map(id, model.layers)):
            raise ValueError(message("Trainer optimizer", "the layers of the model in their order", layers))
        self.model, self.optimizer, self.batches = model, optimizer, batches
        self.max_norm = math.inf if max_norm is None else max_norm
        clip_grad_norm([], self.max_norm)  # says what is wrong with it
        self.losses: list[float] = []
        self._state: Any = None  # after the last step
        self._checkpoint: Path | None = None  # the last one written or read

    @property
    def steps(self) -> int:
        """How many steps have been done, in this process and in those before it."""
        return len(self.losses)

    def perplexity(self, last: int = 100) -> float:
        """Return exp of the mean loss of the `last` steps, or of as many as there have been; NaN before the first."""
        if as_whole_number("Trainer.perplexity last", last) < 1:
            raise ValueError(message("Trainer.perplexity last", "1 or more", last))
        losses = self.losses[-last:]
        return perplexity_of(sum(losses) / len(losses)) if losses else math.nan

    def step(self) -> Report:
        """Do one step of training.

        Raises NonFiniteLossError, a FloatingPointError, if the loss or a gradient is NaN or infinite. Nothing has
        changed then: neither weights nor moments, losses nor states.
        """
        outcome, norm = self._outcome()
        self.optimizer.step(outcome.gradients)
        self._state = outcome.state
        self.losses.append(outcome.loss)
        return Report(self.steps, outcome.loss, norm)

    def run(
        self,
        steps: int,
        *,
        callback: Callable[[Report], object] | None = None,
        checkpoint: Path | None = None,
        every: int = 1000,
        progress: bool | None = None,
    ) -> None:
        """Do so many steps.

        Parameters
        ----------
        steps : int
            How many.
        callback : callable, optional
            Called after every step with its `Report`.
        checkpoint : path, optional
            Where `save` writes to, after every so many steps and after the last; .npz or .safetensors.
        every : int
            How many.
        progress : bool, optional
            Draw a progress bar with tqdm; None: where `can_draw_progress` says so.

        Raises
        ------
        NonFiniteLossError
            As in `step`. The checkpoint stays as it was.
        ValueError, TypeError
            Numbers out of range, another extension of `checkpoint`.
        OSError
            The checkpoint cannot be written; FileExistsError for one that this trainer has neither written nor read.
        ImportError
            A progress bar is asked for, and tqdm is not installed.
        """
        if as_whole_number("Trainer.run steps", steps) < 0:
            raise ValueError(message("Trainer.run steps", "0 or more", steps))
        if as_whole_number("Trainer.run every", every) < 1:
            raise ValueError(message("Trainer.run every", "1 or more", every))
        if checkpoint is not None:
            if os.path.exists(checkpoint) and checkpoint != self._checkpoint:
                hint = "Go on from it with `load`, or choose another name"
                raise FileExistsError(message("Trainer.run checkpoint", "a new file", os.fspath(checkpoint), hint=hint))
            self.save(checkpoint)  # what is wrong with the place shows before hours have passed
        end = self.steps + steps
        with _Bar(self.steps, end, can_draw_progress() if progress is None else progress) as bar:
            while self.steps < end:
                report = self.step()
                bar.show(report)
                if callback is not None:
                    callback(report)
                if checkpoint is not None and (self.steps % every == 0 or self.steps == end):
                    self.save(checkpoint)  # after the callback, which may have changed the learning rate

    def save(self, path: Path) -> None:
        """Write a checkpoint: weights, moments and options of the optimiser, states, losses. Whole or not at all.

        First the loss of the next step is computed, so that a checkpoint is never one from which there is no way on:
        NonFiniteLossError if it is NaN or infinite, and an older file stays as it was. ValueError for another extension
        than .npz and .safetensors, OSError where it cannot be written.

        `nblstm.load` reads the file too; `nblstm.training.checkpoint` says what is in it.
        """
        self._outcome()
        states = self._state if isinstance(self._state, tuple) else (self._state,)
        Checkpoint(
            self.model.state_dict(),
            self.optimizer.state_dict(),
            () if self._state is None else states,
            self.losses,
            self.model.dropout_seed,
            _digest(self.batches(self.steps)),
        ).write(path)
        self._checkpoint = path

    def load(self, path: Path) -> None:
        """Go on from a checkpoint: with the same bits as the run that wrote it.

        Model, optimiser and batches are to be made as they were for that run; of the model, its initial weights and
        its seed do not matter, of the optimiser no option.

        Raises
        ------
        ValueError, RuntimeError, TypeError
            No checkpoint, one of another model or optimiser, or of a run whose next batch is another than here. Nothing
            has changed then.
        WeightFileError, OSError
            As `nblstm.load`.
        """
        found = read_checkpoint(path)
        if _digest(self.batches(len(found.losses))) != found.next_batch:
            hint = "Text, sizes of a batch, partition and seed must be those of the run that wrote it"
            got = f"others after {len(found.losses)} steps"
            raise ValueError(message(f"Trainer.load {os.fspath(path)}", "the same batches as here", got, hint=hint))
        before = self.model.state_dict()
        for name in found.model.keys() & before.keys():
            if before[name].dtype != found.model[name].dtype:
                expected = f"{before[name].dtype} in {name}"
                raise ValueError(message(f"Trainer.load {os.fspath(path)}", expected, found.model[name].dtype))
        self.model.load_state_dict(found.model)
        try:
            self.optimizer.load_state_dict(found.optimizer)
        except BaseException:
            self.model.load_state_dict(before)
            raise
        self.model.dropout_seed = found.dropout_seed
        self.losses = found.losses
        self._state = found.state if len(found.state) > 1 else found.state[0] if found.state else None
        self._checkpoint = path

    def _outcome(self) -> tuple[Outcome, float]:
        """Return what the next step is made of, gradients clipped, and their norm before that; it changes nothing."""
        batch = self.batches(self.steps)
        state = None if batch.begins else self._state
        outcome = self.model.loss_and_gradients(batch.tokens, batch.targets, state, dropout_call=self.steps)
        norm = clip_grad_norm(outcome.gradients, self.max_norm)
        if not (math.isfinite(outcome.loss) and math.isfinite(norm)):
            raise NonFiniteLossError(self.steps + 1, outcome.loss, norm, self._checkpoint)
        return outcome, norm


def can_draw_progress() -> bool:
    """Return whether there is a progress bar: tqdm is installed, and standard error is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return False
    try:
        import tqdm  # noqa: F401
    except ImportError:
        return False
    return True


class _Bar:
    """A progress bar of tqdm, or none."""

    def __init__(self, first: int, end: int, draw: bool) -> None:
        self._bar: Any = None
        if draw:
            from tqdm import tqdm

            self._bar = tqdm(total=end, initial=first, unit="step")

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, report: Report) -> None:
        """Go a step further."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{report.loss:.3f}", perplexity=f"{report.perplexity:.2f}", refresh=False)
            self._bar.update()


def _digest(batch: Batch) -> int:
    """Return a check sum of a batch."""
    digest = zlib.crc32(repr((np.shape(batch.tokens), bool(batch.begins))).encode())
    for numbers in (batch.tokens, batch.targets):
        digest = zlib.crc32(np.ascontiguousarray(numbers, "<i8").tobytes(), digest)
    return digest
