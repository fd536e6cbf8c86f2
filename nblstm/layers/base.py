"""What all layers are: named parameters, read-only from outside, that change as a whole.

A layer's parameters form one version. A call takes the version it finds at its start and keeps it to its end, so a
layer may be called from many threads while another thread sets its weights. The panels that the kernels read are packed
at the first call of a version and go with it.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from nblstm.arrays import Array, as_array, as_mapping, float_dtype
from nblstm.errors import message

Self = TypeVar("Self", bound="Layer")  # typing.Self needs Python 3.11

# Held from reading a version of the weights to setting the next one, so that no update between is lost. One for all
# layers; reentrant, because a signal handler may set weights too.
_update = threading.RLock()


def _after_fork_in_child() -> None:
    global _update
    _update = threading.RLock()  # a thread that held it is gone


def update_lock() -> threading.RLock:
    """Return the lock that all changes of weights wait for: hold it from reading a version to `Layer._take_over`."""
    return _update


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class IncompatibleKeys(NamedTuple):
    """What `Layer.load_state_dict` returns: names the layer has and the mapping lacked, and the other way round."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Weights:
    """One version of a layer's parameters, and what the kernels make of them at its first call. Never changes."""

    def __init__(self, parameters: Mapping[str, Array]) -> None:
        for array in parameters.values():
            array.flags.writeable = False
        # Views: unlike the owner of its memory, a view of read-only memory cannot be made writeable again.
        self.parameters = {name: array.view() for name, array in parameters.items()}
        # Of none at all: torch's default.
        self.dtype = next((array.dtype for array in self.parameters.values()), np.dtype(np.float32))
        self._packed: dict[str, Any] = {}

    def packed(self, pack: Callable[[Mapping[str, Array]], Any]) -> Any:
        """Return what `pack` makes of the parameters, made once for each name of such a function."""
        # No lock: one that another thread holds during a fork stays locked in the child for good. Threads that meet
        # here at a version's first call pack twice, to equal panels, and the last one stays.
        found = self._packed.get(pack.__name__)
        if found is None:
            found = self._packed[pack.__name__] = pack(self.parameters)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.parameters,)


def _unpickled(parameters: Mapping[str, Array]) -> Weights:
    # Copied: arrays that come out of a pickle may lie in memory of the caller's, who can write to it.
    return Weights({name: array.copy() for name, array in parameters.items()})


class Layer:
    """A layer with named parameters, in torch's names, shapes and order.

    Parameters are attributes (``layer.weight_ih_l0``): read-only arrays. They change as a whole, through
    `load_state_dict`, `set_parameters` and `to`, and by the steps of an optimiser (`nblstm.training`).
    """

    training: bool
    _weights: Weights
    _home: Any = None  # what computes where it is not the CPU's engine: a `nblstm.cuda.home.Home`
    _FIXED = frozenset({"input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size"})

    def _initialise(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        hidden_size: int,
        dtype: npt.DTypeLike,
        seed: np.random.SeedSequence,
    ) -> None:
        """Draw all parameters from U(-1/sqrt(H), 1/sqrt(H)), in their order; start in training mode, like torch."""
        bound = 1 / math.sqrt(hidden_size)
        self._start(shapes, dtype, seed, lambda random, shape: random.uniform(-bound, bound, shape))

    def _start(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: npt.DTypeLike,
        seed: np.random.SeedSequence | None,
        draw: Callable[[np.random.Generator, tuple[int, ...]], Array],
    ) -> None:
        """Set all parameters to what `draw` gives for their shapes; inside `_with_parameters`, to those given there."""
        found = float_dtype(f"{type(self).__name__} dtype", dtype)
        self.training = True
        given = self.__dict__.pop("_given", None)
        if given is not None:
            self._weights = Weights({name: np.empty(shape, found) for name, shape in shapes.items()})
            self.load_state_dict(given)
            return
        random = np.random.default_rng(seed)
        self._weights = Weights({name: draw(random, shape).astype(found) for name, shape in shapes.items()})

    @classmethod
    def _with_parameters(cls: type[Self], parameters: Mapping[str, Array], *sizes: int, **options: Any) -> Self:
        """Return ``cls(*sizes, **options)`` with these parameters; no others are drawn first."""
        layer = cls.__new__(cls)
        layer.__dict__["_given"] = parameters
        layer.__init__(*sizes, **options)  # type: ignore[misc]
        return layer

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of parameters, inputs and outputs: float32 or float64."""
        return self._weights.dtype

    def named_parameters(self) -> Iterator[tuple[str, Array]]:
        """Iterate over (name, read-only array), in torch's order."""
        return iter(self._weights.parameters.items())

    def state_dict(self) -> dict[str, Array]:
        """Return all parameters by name, in torch's order, as read-only arrays."""
        return dict(self._weights.parameters)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Take all parameters from a mapping of names to arrays, converted to the layer's dtype.

        Raises RuntimeError for an array of another shape and, if `strict`, for missing and unexpected names: one error
        lists them all, and the layer is left as it was. If not `strict`, missing parameters keep their values.
        Returns (missing_keys, unexpected_keys).
        """
        argument = f"{type(self).__name__}.load_state_dict state_dict"
        given = as_mapping(argument, state_dict)
        parameters = self._weights.parameters
        missing = [name for name in parameters if name not in given]
        unexpected = [name for name in given if name not in parameters]
        self._replace(argument, given, missing if strict else [], unexpected if strict else [])
        return IncompatibleKeys(missing, unexpected)

    def set_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Set the named parameters, converted to the layer's dtype; the others keep their values.

        Raises RuntimeError for names the layer has not and for arrays of another shape, and leaves the layer as it was.
        """
        argument = f"{type(self).__name__}.set_parameters parameters"
        given = as_mapping(argument, parameters)
        self._replace(argument, given, [], [name for name in given if name not in self._weights.parameters])

    def _replace(self, argument: str, given: Mapping[str, Any], missing: list[str], unexpected: list[str]) -> None:
        """Start a new version of the weights with the arrays in `given`, or raise an error that lists all problems."""
        shapes = {name: array.shape for name, array in self.named_parameters()}
        arrays = {name: as_array(f"{argument}[{name!r}]", given[name]) for name in shapes if name in given}
        problems = [f"Missing key(s): {_quoted(missing)}"] if missing else []
        problems += [f"Unexpected key(s): {_quoted(unexpected)}"] if unexpected else []
        for name, array in arrays.items():
            if array.shape != shapes[name]:
                problems.append(f"size mismatch for {name}: expected {shapes[name]}, got {array.shape}")
            if array.dtype.kind == "c":
                problems.append(f"complex numbers in {name}")
        if problems:
            raise RuntimeError(message(argument, f"the parameters of {self!r}", "; ".join(problems)))
        with _update:
            old = self._weights
            self._weights = Weights({**old.parameters, **_copies(arrays, old.dtype)})

    def _take_over(self, old: Weights, arrays: Mapping[str, Array]) -> None:
        """Start a new version of the weights with `arrays` themselves: the way in for an optimiser, without a copy.

        The arrays were computed from the version `old`. The caller gives them away: they become read-only, and nothing
        else may write to their memory. Parameters not among them keep theirs.

        What was set since `old` was read would be undone here, and an update can not be computed anew, for its moments
        have moved on. So a caller holds `update_lock()` from reading `old` until here, and who sets weights meanwhile
        waits and comes after it. That leaves a signal handler, which runs inside of the thread that holds the lock: its
        weights stay, and this raises RuntimeError. So it does, with the layer as it was, for other names, shapes and
        dtypes than those of `old`, and for arrays that are not contiguous or lie in another object's memory.
        """
        argument = f"{type(self).__name__} new parameters"
        for name, array in arrays.items():
            before = old.parameters.get(name)
            if before is None or array.shape != before.shape or array.dtype != before.dtype:
                raise RuntimeError(message(argument, f"the parameters of {self!r}", f"{name}: {_kind(array)}"))
            if not (array.flags.c_contiguous and array.flags.owndata):
                raise RuntimeError(message(argument, "contiguous arrays with memory of their own", f"{name}: a view"))
        with _update:
            if self._weights is not old:
                raise RuntimeError(message(argument, "the weights they were computed from", "others, set since then"))
            self._weights = Weights({**old.parameters, **arrays})

    def to(self: Self, device_or_dtype: Any = None, dtype: npt.DTypeLike | None = None, *, device: Any = None) -> Self:
        """Move the layer to a device, convert its parameters, or both; in place; returns the layer.

        As in torch: ``to("cuda")``, ``to(np.float64)``, ``to("cuda:1", np.float32)``, ``to(dtype=np.float64)``.

        Parameters
        ----------
        device_or_dtype : str or dtype
            "cpu", "cuda" (which is "cuda:0") or "cuda:N", or else a dtype.
        dtype : dtype, optional
            float32 or float64: what the parameters are converted to.
        device : str, optional
            A device, by its name.

        Raises
        ------
        TypeError
            Neither a device nor float32 or float64; two devices, or two dtypes.
        RuntimeError
            There is no such device, or numba-cuda is not installed; the error says how to install it.
        ValueError
            A device of another kind, or a layer that the GPU has no kernels for.
        """
        name = type(self).__name__
        if device_or_dtype is not None and _names_a_device(device_or_dtype):
            if device is not None:
                raise TypeError(message(f"{name}.to device", "one device", f"{device_or_dtype!r} and {device!r}"))
            device = device_or_dtype
        elif device_or_dtype is not None or (dtype is None and device is None):
            if dtype is not None:
                raise TypeError(message(f"{name}.to dtype", "one dtype", f"{device_or_dtype!r} and {dtype!r}"))
            dtype = float_dtype(f"{name}.to dtype", device_or_dtype)
        found = self.dtype if dtype is None else float_dtype(f"{name}.to dtype", dtype)
        home = self._home if device is None else self._home_on(f"{name}.to device", str(device))
        with _update:
            if found != self.dtype:
                self._weights = Weights(_copies(self._weights.parameters, found))
            self._home = home
        return self

    @property
    def device(self) -> str:
        """Where the layer computes: "cpu", or "cuda:N"."""
        return str(self._home or "cpu")

    def _home_on(self, argument: str, device: str) -> Any:
        """Return what computes on a device; None for the CPU. Raises what `to` does."""
        if device == "cpu":
            return None
        raise ValueError(message(argument, "'cpu'", repr(device), because=f"{type(self).__name__} has no GPU kernels"))

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode, in which dropout is applied; returns the layer. Layers start in training mode."""
        if not isinstance(mode, bool):
            raise ValueError(f"{type(self).__name__}: training mode is expected to be boolean, got {mode!r}")
        self.training = mode
        return self

    def eval(self: Self) -> Self:
        """Leave training mode: no dropout; returns the layer."""
        return self.train(False)

    def __getattr__(self, name: str) -> Array:
        weights = self.__dict__.get("_weights")
        if weights is None or name not in weights.parameters:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        array: Array = weights.parameters[name]
        return array

    def __setattr__(self, name: str, value: Any) -> None:
        # A kernel trusts the sizes: they stay what the parameters were made for.
        if name in self._FIXED and name in self.__dict__:
            raise AttributeError(f"{type(self).__name__}.{name} cannot change after construction")
        weights = self.__dict__.get("_weights")
        if weights is not None and name in weights.parameters:
            raise AttributeError(f"{type(self).__name__}.{name} is read-only: use set_parameters({{{name!r}: ...}})")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._FIXED or name == "_weights" or name in self._weights.parameters:
            raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")
        super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._weights.parameters]


def _names_a_device(value: Any) -> bool:
    """Say whether `value` is a device's name, or torch's device."""
    return type(value).__name__ == "device" or (isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda"))


def common_dtype(parameters: Mapping[str, Array]) -> np.dtype[Any]:
    """Return the dtype for a layer with these parameters: float64 if any of them is, else float32."""
    return np.dtype(np.float64 if any(array.dtype == np.float64 for array in parameters.values()) else np.float32)


def _copies(arrays: Mapping[str, Array], dtype: np.dtype[Any]) -> dict[str, Array]:
    """Return the arrays converted; what is too large for float32 becomes inf without a warning, as in torch."""
    with np.errstate(all="ignore"):
        return {name: np.array(array, dtype, order="C") for name, array in arrays.items()}


def _kind(array: Array) -> str:
    return f"{array.dtype} {array.shape}"


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
