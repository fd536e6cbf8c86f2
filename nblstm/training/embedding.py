"""The table of vectors that stands before a network of words or other symbols: torch.nn.Embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nblstm.arrays import Array, address_of
from nblstm.errors import message
from nblstm.kernels.embedding import add_rows
from nblstm.layers import checks
from nblstm.layers.base import Layer, common_dtype
from nblstm.training.from_names import find_weight
from nblstm.training.gradients import Gradients, check_gradient
from nblstm.training.indices import as_indices


class Embedding(Layer):
    """A table of vectors that are looked up by number, as ``torch.nn.Embedding``.

    ``weight`` is (V, E) and starts from N(0, 1), the row of `padding_idx` from zeros.

    Parameters
    ----------
    num_embeddings : int
        V, how many vectors there are.
    embedding_dim : int
        E, the size of each.
    padding_idx : int, optional
        A row that stands for padding, from -V to V - 1 (below 0: counted from the end): zeros, and no gradient.
    dtype : dtype
        float32 or float64: the type of the vectors.
    seed : int, optional
        Determines the initial vectors; None: different ones each time.

    Raises
    ------
    TypeError, ValueError
        An argument of another type or out of range.

    Examples
    --------
    >>> import numpy as np
    >>> embedding = Embedding(100, 8, padding_idx=0, seed=0)
    >>> vectors = embedding([[3, 14, 0], [1, 0, 0]])
    >>> vectors.shape, bool(vectors[1, 1].any())
    ((2, 3, 8), False)
    """

    _FIXED = Layer._FIXED | {"num_embeddings", "embedding_dim", "padding_idx"}

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
    ) -> None:
        name = type(self).__name__
        self.num_embeddings = checks.check_size(name, "num_embeddings", num_embeddings)
        self.embedding_dim = checks.check_size(name, "embedding_dim", embedding_dim)
        if padding_idx is not None:
            if not -num_embeddings <= checks.check_integer(name, "padding_idx", padding_idx) < num_embeddings:
                expected = f"{-num_embeddings} ... {num_embeddings - 1}"
                because = f"num_embeddings={num_embeddings}"
                raise ValueError(message(f"{name} padding_idx", expected, padding_idx, because=because))
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx

        def draw(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
            table = random.standard_normal(shape)
            if padding_idx is not None:
                table[padding_idx] = 0
            return table

        shapes = {"weight": (num_embeddings, embedding_dim)}
        self._start(shapes, dtype, np.random.SeedSequence(checks.check_seed(name, seed)), draw)

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Any],
        prefix: str = "",
        *,
        padding_idx: int | None = None,
        dtype: npt.DTypeLike | None = None,
    ) -> Embedding:
        """Build the layer whose ``weight`` is in `state_dict`; its shape says how large it is.

        `prefix` is what stands before ``weight`` in the names; it is not needed if there is but one such matrix. Raises
        ValueError if none has that prefix, or more than one, and TypeError for what is no mapping of names to arrays.

        >>> import numpy as np
        >>> Embedding.from_state_dict({"encoder.weight": np.ones((100, 8))})
        Embedding(100, 8)
        """
        found = find_weight(state_dict, prefix)
        dtype = common_dtype(found) if dtype is None else dtype
        return cls._with_parameters(found, *found["weight"].shape, padding_idx=padding_idx, dtype=dtype)

    def __repr__(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{type(self).__name__}({self.num_embeddings}, {self.embedding_dim}{padding})"

    def __call__(self, indices: Any) -> Array:
        """Return the vectors of these whole numbers, (..., E) for indices (...); a fresh array.

        Raises IndexError for a number below 0 or beyond V - 1, TypeError for anything but an array of whole numbers.
        """
        return self._look_up(self._weights.parameters["weight"], self._indices(indices))

    def vjp(self, indices: Any) -> tuple[Array, Callable[[Any], Gradients]]:
        """Return the vectors, and the way back: ``gradients = backward(d_output)``, any number of times.

        The gradient of ``weight`` has the size of the table: the sums of the gradients of equal indices, each in the
        order of the indices, and zeros elsewhere. There is none of the input.

        >>> import numpy as np
        >>> output, backward = Embedding(4, 2, seed=0).vjp([3, 1, 3])
        >>> backward(np.array([[1, 2], [3, 4], [5, 6]], np.float32)).parameters["weight"].tolist()
        [[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]
        """
        weight = self._weights.parameters["weight"]
        rows = np.array(self._indices(indices))  # the user may write to his

        def backward(d_output: Any) -> Gradients:
            shape = (*rows.shape, weight.shape[1])
            dy = check_gradient(f"{type(self).__name__} backward d_output", d_output, shape, weight.dtype)
            table = np.zeros(weight.shape, weight.dtype)
            add_rows.of(table.dtype)(rows.size, weight.shape[1], address_of(rows), address_of(dy), table.reshape(-1))
            if self.padding_idx is not None:
                table[self.padding_idx] = 0
            return Gradients(None, {"weight": table})

        return self._look_up(weight, rows), backward

    def _look_up(self, weight: Array, indices: Array) -> Array:
        return weight.take(indices, axis=0, mode="clip")  # all are in range, and that mode does not check once more

    def _indices(self, value: Any) -> Array:
        because = f"num_embeddings={self.num_embeddings}"
        return as_indices(f"{type(self).__name__} indices", value, self.num_embeddings, because)
