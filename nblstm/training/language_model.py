"""The recurrent language model of the textbooks: symbols in, an LSTM, GRU or RNN, scores of the next symbol out.

    x[t] = one-hot or embedded token t,    h[t] = cell(x[t], h[t-1]),    scores of token t+1 = W h[t] + b

(T. Mikolov and others, Recurrent neural network based language model, 2010.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nblstm.arrays import Array, as_array, as_mapping, as_number, as_whole_number
from nblstm.errors import message
from nblstm.layers import checks
from nblstm.layers.base import Layer, common_dtype
from nblstm.layers.gru import GRU
from nblstm.layers.lstm import LSTM
from nblstm.layers.rnn import RNN
from nblstm.training.embedding import Embedding
from nblstm.training.indices import one_hot
from nblstm.training.linear import Linear
from nblstm.training.losses import cross_entropy, perplexity_of
from nblstm.training.sampling import drawn_tokens
from nblstm.weights.names import RecurrentSpec, list_recurrent

_CELLS: dict[str, type[LSTM] | type[GRU] | type[RNN]] = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
_STEPS_AT_ONCE = 256  # of a long text, so that the scores of all its tokens need not be kept


class Outcome(NamedTuple):
    """What `RecurrentLanguageModel.loss_and_gradients` returns."""

    loss: float  # the mean of a token, in nats
    gradients: list[Any]  # one entry for each of `layers`, as the optimisers take them
    state: Any  # the last states: those to begin with in the next batch


class RecurrentLanguageModel:
    """Tells the next symbol of a sequence from those before it.

    ``embedding``, if there is one, then ``rnn`` and ``decoder`` are layers like all others; `layers` lists them for an
    optimiser. Parameters have the names ``embedding.weight`` (V, E), ``rnn.weight_ih_l0`` and so on, ``decoder.weight``
    (V, H) and ``decoder.bias`` (V,): those of a torch module with these three members.

    Parameters
    ----------
    vocab_size : int
        V, how many symbols there are; tokens are their numbers, 0 to V - 1.
    hidden_size, num_layers : int
        H and L of the recurrent layer.
    cell : {"LSTM", "GRU", "RNN"}
        Its kind.
    embedding_dim : int, optional
        E, the size of the vectors that stand for symbols and are learned; None: one-hot vectors of size V.
    dropout : float
        Between the recurrent layers, as in torch; needs two of them.
    dtype : dtype
        float32 or float64.
    seed : int, optional
        Determines the initial parameters and the dropout masks; None: different ones each time.

    Raises
    ------
    ValueError, TypeError
        An argument of another type or out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from nblstm.training import Adam, RecurrentLanguageModel, Vocabulary
    >>> vocabulary = Vocabulary("abc")
    >>> tokens = vocabulary.encode("abc" * 20)[:, None]
    >>> model = RecurrentLanguageModel(len(vocabulary), hidden_size=16, seed=0)
    >>> optimizer = Adam(model.layers, lr=0.05)
    >>> for _ in range(20):
    ...     loss, gradients, state = model.loss_and_gradients(tokens[:-1], tokens[1:])
    ...     optimizer.step(gradients)
    >>> vocabulary.decode(model.sample(vocabulary.encode("ab"), 6, temperature=0))
    'cabcab'
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        cell: str = "LSTM",
        embedding_dim: int | None = None,
        dropout: float = 0.0,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
    ) -> None:
        name = type(self).__name__
        self.vocab_size = checks.check_size(name, "vocab_size", vocab_size)
        if cell not in _CELLS:
            raise ValueError(message(f"{name} cell", " or ".join(map(repr, _CELLS)), repr(cell)))
        sequence = np.random.SeedSequence(checks.check_seed(name, seed))
        for_embedding, for_rnn, for_decoder = map(int, sequence.generate_state(3, np.uint64))
        self.embedding = None
        if embedding_dim is not None:
            self.embedding = Embedding(vocab_size, embedding_dim, dtype=dtype, seed=for_embedding)
        self.rnn = _CELLS[cell](
            vocab_size if embedding_dim is None else embedding_dim,
            hidden_size,
            num_layers,
            dropout=dropout,
            dtype=dtype,
            seed=for_rnn,
        )
        self.decoder = Linear(hidden_size, vocab_size, dtype=dtype, seed=for_decoder)

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Any],
        prefix: str = "",
        *,
        dropout: float = 0.0,
        dtype: npt.DTypeLike | None = None,
        seed: int | None = None,
    ) -> RecurrentLanguageModel:
        """Build the model whose parameters are in `state_dict`, exported from torch or from here.

        Their names are those that the class speaks of, after `prefix`: of a checkpoint of `Trainer` it is ``"model."``.
        Their shapes tell everything but `dropout`. `dtype` None is that of the weights. Raises ValueError if there is
        no recurrent layer ``rnn``, or it is none that this model can have, and RuntimeError if names or shapes are not
        those of such a model.

        >>> import numpy as np
        >>> model = RecurrentLanguageModel(5, 8, cell="GRU", embedding_dim=4)
        >>> RecurrentLanguageModel.from_state_dict(model.state_dict())
        RecurrentLanguageModel(5, 8, cell='GRU', embedding_dim=4)
        """
        mapping = as_mapping("state_dict", state_dict)
        own = {name[len(prefix) :]: value for name, value in mapping.items() if name.startswith(prefix)}
        recurrent = {name: value for name, value in own.items() if name.startswith("rnn.")}
        found = list_recurrent(recurrent)
        if len(found) != 1 or not isinstance(found[0], RecurrentSpec):
            got = (
                "; ".join(one if isinstance(one, str) else one.prefix for one in found) or f"only {list(mapping)[:20]}"
            )
            raise ValueError(message("state_dict", f"one recurrent layer {prefix + 'rnn'!r}", got))
        spec = found[0]
        vectors = own.get("embedding.weight")
        model = cls(
            spec.input_size if vectors is None else len(vectors),
            spec.hidden_size,
            spec.num_layers,
            cell=spec.kind,
            embedding_dim=None if vectors is None else spec.input_size,
            dropout=dropout,
            dtype=common_dtype(spec.parameters) if dtype is None else dtype,
            seed=seed,
        )
        model.load_state_dict(own)
        return model

    def __repr__(self) -> str:
        values = [str(self.vocab_size), str(self.rnn.hidden_size)]
        values += [str(self.rnn.num_layers)] if self.rnn.num_layers > 1 else []
        values += [f"cell={type(self.rnn).__name__!r}"] if not isinstance(self.rnn, LSTM) else []
        values += [f"embedding_dim={self.embedding.embedding_dim}"] if self.embedding is not None else []
        values += [f"dropout={self.rnn.dropout}"] if self.rnn.dropout else []
        return f"{type(self).__name__}({', '.join(values)})"

    @property
    def layers(self) -> list[Layer]:
        """The layers with parameters, in the order of the gradients: for an optimiser."""
        return [layer for _, layer in self._named_layers()]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of parameters, states and scores."""
        return self.rnn.dtype

    @property
    def dropout_seed(self) -> int:
        """What the dropout masks are made from, besides the number of the call; a checkpoint has it."""
        return self.rnn._dropout_seed

    @dropout_seed.setter
    def dropout_seed(self, value: int) -> None:
        self.rnn._dropout_seed = value

    def train(self, mode: bool = True) -> RecurrentLanguageModel:
        """Set training mode, in which dropout is applied; returns the model."""
        for layer in self.layers:
            layer.train(mode)
        return self

    def eval(self) -> RecurrentLanguageModel:
        """Leave training mode: no dropout; returns the model."""
        return self.train(False)

    def state_dict(self) -> dict[str, Array]:
        """Return all parameters by name, as read-only arrays."""
        return {
            f"{name}.{key}": array for name, layer in self._named_layers() for key, array in layer.named_parameters()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take all parameters from a mapping of names to arrays, converted to the model's dtype.

        Raises RuntimeError, and leaves the model as it was, for missing and unexpected names and other shapes.
        """
        argument = f"{type(self).__name__}.load_state_dict state_dict"
        given = as_mapping(argument, state_dict)
        known = self.state_dict()
        missing, unexpected = [n for n in known if n not in given], [n for n in given if n not in known]
        if missing or unexpected:
            got = f"missing {missing}, unexpected {unexpected}"
            raise RuntimeError(message(argument, f"the parameters of {self!r}", got))
        own = [
            (layer, {key: given[f"{name}.{key}"] for key, _ in layer.named_parameters()})
            for name, layer in self._named_layers()
        ]
        for layer, parameters in own:
            copy.copy(layer).load_state_dict(parameters)  # raises before any of the layers has changed
        for layer, parameters in own:
            layer.load_state_dict(parameters)

    def begin_state(self, batch_size: int) -> Any:
        """Return the states before the first token, zeros: (h_0, c_0) of an LSTM, h_0 of the others; (L, B, H) each."""
        rows = as_whole_number("begin_state batch_size", batch_size)
        if rows < 0:
            raise ValueError(message("begin_state batch_size", "0 or more", rows))
        shape = self.rnn.num_layers, rows, self.rnn.hidden_size
        states = tuple(np.zeros(shape, self.dtype) for _ in range(2 if self.rnn._cell.has_cell_state else 1))
        return states if len(states) > 1 else states[0]

    def __call__(self, tokens: Any, state: Any = None, *, dropout_call: int | None = None) -> tuple[Array, Any]:
        """Return the scores of each next token, and the last states.

        Parameters
        ----------
        tokens : (T, B) array of whole numbers
            Or (T,) for one sequence, with states (L, H).
        state : array or (array, array), optional
            The states to begin with; None: zeros.
        dropout_call : int, optional
            The number of the dropout mask, in training mode.

        Returns
        -------
        logits : (T, B, V) array
        state

        Raises
        ------
        IndexError
            A token below 0 or beyond V - 1.
        TypeError, ValueError, RuntimeError
            Tokens that are no whole numbers; states that do not fit.
        """
        x = self._vectors(tokens)
        output, state = self.rnn(x, state, dropout_call=dropout_call)
        return self.decoder(output), state

    def loss_and_gradients(
        self, tokens: Any, targets: Any, state: Any = None, *, dropout_call: int | None = None
    ) -> Outcome:
        """Return the cross-entropy of the targets, (T, B) like the tokens, its gradients, and the last states.

        The gradients stop at the first token, whatever state it begins with: truncated backpropagation through time,
        once the state returned is that of the next call. Arguments and errors are those of a call and of
        `cross_entropy`.
        """
        embedding_backward = None
        if self.embedding is None:
            x = self._one_hot(tokens)
        else:
            x, embedding_backward = self.embedding.vjp(tokens)
        (output, last), rnn_backward = self.rnn.vjp(
            x, state, input=embedding_backward is not None, dropout_call=dropout_call
        )
        logits, decoder_backward = self.decoder.vjp(output)
        loss, d_logits = cross_entropy(logits, targets)
        of_decoder = decoder_backward(d_logits)
        of_rnn = rnn_backward(of_decoder.input)
        gradients: list[Any] = [of_rnn, of_decoder]
        if embedding_backward is not None:
            gradients.insert(0, embedding_backward(of_rnn.input))
        return Outcome(loss, gradients, last)

    def perplexity(self, tokens: Any) -> float:
        """Return the perplexity of a text (N,), read from its beginning to its end without dropout.

        It is exp of the mean cross-entropy of all tokens but the first: the number of symbols among which one would
        have to guess blindly to be surprised as much. Raises ValueError for a text of fewer tokens than two.

        >>> import numpy as np
        >>> model = RecurrentLanguageModel(4, 8, seed=0)
        >>> model.decoder.set_parameters({"weight": np.zeros((4, 8)), "bias": np.zeros(4)})
        >>> round(model.perplexity([0, 1, 2, 3, 3]), 6)
        4.0
        """
        text = as_array("perplexity tokens", tokens)
        if text.ndim != 1 or len(text) < 2:
            raise ValueError(message("perplexity tokens", "(N,), two or more", text.shape))
        model, state, total = self._evaluating(), None, 0.0
        for start in range(0, len(text) - 1, _STEPS_AT_ONCE):
            part = text[start : start + _STEPS_AT_ONCE + 1]
            logits, state = model(part[:-1], state)
            total += cross_entropy(logits, part[1:], reduction="sum")[0]
        return perplexity_of(total / (len(text) - 1))

    def sample(
        self, prompt: Any, count: int | None = None, *, temperature: float = 1.0, seed: int | None = None
    ) -> Iterator[int]:
        """Go on from a prompt, one token at a time: read it, draw a token from the scores, read that, and so on.

        Parameters
        ----------
        prompt : (N,) array of whole numbers
            What comes before; one token or more.
        count : int, optional
            How many tokens to draw; None: without end.
        temperature : float
            The scores are divided by it: below 1 likely tokens become more likely; 0: always the most likely one.
        seed : int, optional
            Determines what is drawn; None: something else each time.

        Returns
        -------
        iterator of int
            The tokens after the prompt. It draws from the weights as they are now, without dropout; training may go on.

        Raises
        ------
        ValueError, TypeError, IndexError
            An empty prompt or one of other tokens, a count or temperature below 0.
        """
        argument = f"{type(self).__name__}.sample"
        text = as_array(f"{argument} prompt", prompt)
        if text.ndim != 1 or not text.size:
            raise ValueError(message(f"{argument} prompt", "(N,), one token or more", text.shape))
        if count is not None and as_whole_number(f"{argument} count", count) < 0:
            raise ValueError(message(f"{argument} count", "0 or more", count))
        temperature = as_number(f"{argument} temperature", temperature)
        if not 0 <= temperature < math.inf:
            raise ValueError(message(f"{argument} temperature", "a finite number of 0 or more", temperature))
        random = np.random.default_rng(checks.check_seed(argument, seed))
        model = self._evaluating()
        logits, state = model(text[:, None])
        stream = model.rnn.stream(1, state)
        drawn = drawn_tokens(
            lambda token: model.decoder(stream(model._vectors([token])))[0], logits[-1, 0], temperature, random
        )
        return islice(drawn, count)

    def _evaluating(self) -> RecurrentLanguageModel:
        """Return a model out of training mode with the weights that this one has now; later changes do not reach it."""
        model = copy.copy(self)
        for name, layer in self._named_layers():
            setattr(model, name, copy.copy(layer).eval())
        return model

    def _named_layers(self) -> list[tuple[str, Layer]]:
        found = [("embedding", self.embedding), ("rnn", self.rnn), ("decoder", self.decoder)]
        return [(name, layer) for name, layer in found if layer is not None]

    def _vectors(self, tokens: Any) -> Array:
        """Return what stands for the tokens, (..., V) or (..., E)."""
        return self._one_hot(tokens) if self.embedding is None else self.embedding(tokens)

    def _one_hot(self, tokens: Any) -> Array:
        return one_hot(tokens, self.vocab_size, dtype=self.dtype)
