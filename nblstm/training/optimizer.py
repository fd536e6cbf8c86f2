"""What all optimisers are: groups of layers with options, moments of their parameters, steps that do all or nothing.

The options and the layout of the state are those of torch.optim.Optimizer. Moments belong to the optimiser and change
in place; the parameters of a layer never do: a step computes new arrays, which become the layer's next version.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from nblstm.arrays import Array, address_of, as_array, as_mapping
from nblstm.engine.updates import run_over_arrays
from nblstm.errors import message
from nblstm.kernels.policy import Worker
from nblstm.layers import checks
from nblstm.layers.base import Layer, Weights, update_lock
from nblstm.training.gradient_entries import entries_of, named_arrays

State = dict[str, Any]  # of one parameter: arrays by torch's names, and "step", a whole number


class Update(NamedTuple):
    """One parameter in a step."""

    name: str
    parameter: Array
    gradient: Array  # contiguous
    result: Array  # what the parameter becomes

    def addresses(self) -> tuple[int, int, int, int]:
        """Return the first fields of the kernel's record."""
        parameter = self.parameter.ctypes.data  # half the time of `address_of` for an array that is read-only
        return self.parameter.size, parameter, address_of(self.gradient), address_of(self.result)


class Owner(NamedTuple):
    """Whose state a number stands for in a state_dict."""

    layer: Layer
    name: str
    options: Mapping[str, Any]


class Change(NamedTuple):
    """A layer in a step."""

    layer: Layer
    weights: Weights  # the version that the step begins with
    updates: list[Update]
    states: dict[str, State]  # by name, after the step
    records: list[tuple[Any, ...]]  # for the kernel


class Optimizer(ABC):
    """The common part of `SGD`, `Adam` and `AdamW`.

    Attributes
    ----------
    param_groups : list of dict
        The layers of each group under "params", and its options, which may be changed between steps:
        ``optimizer.param_groups[0]["lr"] = 1e-4``.
    defaults : dict
        The options of a group that does not say otherwise.
    """

    _record: ClassVar[np.dtype[Any]]
    _workers: ClassVar[Mapping[str, Worker]]  # by dtype
    _options_of_later_torch: ClassVar[Mapping[str, Any]]  # what they are where an older file has them not

    param_groups: list[dict[str, Any]]

    def __init__(self, layers: Any, defaults: dict[str, Any]) -> None:
        self.defaults = self._options(defaults)
        self.param_groups = []
        self._state: dict[Layer, dict[str, State]] = {}
        groups = _as_list(type(self).__name__, layers)
        if not groups:
            raise ValueError(f"{type(self).__name__}: optimizer got an empty parameter list, expected layers")
        if not all(isinstance(group, Mapping) for group in groups):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    @abstractmethod
    def _options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the checked options of a group, all plain numbers and bools. KeyError if one is not there."""

    @abstractmethod
    def _state_names(self, options: Mapping[str, Any]) -> tuple[set[str], set[str]]:
        """Return what the state of a parameter has, and what it may have besides."""

    @abstractmethod
    def _plan(self, update: Update, state: State, options: Mapping[str, Any]) -> tuple[State, tuple[Any, ...]]:
        """Return the state after the step, with the arrays that change in place, and the kernel's record."""

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add the layers ``param_group["params"]``, with the options given beside them and the defaults for the rest.

        Raises TypeError for what is no layer, ValueError for a layer that is there already and for bad options.

        >>> from nblstm import GRU
        >>> from nblstm.training import SGD
        >>> optimizer = SGD(GRU(2, 3), lr=0.1)
        >>> optimizer.add_param_group({"params": [GRU(3, 4)], "lr": 0.01})
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.1, 0.01]
        """
        name = type(self).__name__
        given = dict(as_mapping(f"{name} param_group", param_group))
        if "params" not in given:
            raise ValueError(message(f"{name} param_group", "layers under the name 'params'", sorted(given)))
        layers = _as_list(name, given["params"])
        known = {layer for group in self.param_groups for layer in group["params"]}
        for layer in layers:
            if not isinstance(layer, Layer):
                got = f"one of the params is {type(layer).__name__}"
                raise TypeError(f"{name}: optimizer can only optimize layers of nblstm, but {got}")
            if layer in known:
                raise ValueError(f"{name}: some parameters appear in more than one parameter group: {layer!r}")
            known.add(layer)
        group = {**self.defaults, **given}
        self.param_groups.append({**group, **self._options(group), "params": layers})

    def step(self, gradients: Any) -> None:
        """Do one step: every parameter that has a gradient becomes another array, and its moments move on.

        Everything is checked before anything changes. Weights that other threads set, and steps of other optimisers,
        come before the whole step or after it. The moments move on in place: what a signal handler raises or sets in
        the middle of a step leaves it half done.

        Parameters
        ----------
        gradients : list
            One entry for each layer, in the order of the layers in `param_groups`: what its backward returned (anything
            with ``parameters``), or a mapping of names to arrays. A layer or name whose gradient is None or left out is
            skipped, moments and all. A single layer's gradients may stand without a list. Arrays of the layer's dtype
            are read where they are.

        Raises
        ------
        ValueError
            Another number of entries, another dtype, or options that are out of range.
        RuntimeError
            Names that the layer has not, other shapes; a layer whose dtype changed since its first step.
        TypeError
            Something that is no array, mapping or list.
        """
        argument = f"{type(self).__name__}.step gradients"
        options = [self._options(group) for group in self.param_groups]
        groups = zip(self.param_groups, options, strict=True)
        layers = [(layer, own) for group, own in groups for layer in group["params"]]
        entries = entries_of(argument, gradients)
        if len(entries) != len(layers):
            raise ValueError(message(argument, f"{len(layers)} entries, one for each layer", len(entries)))
        with update_lock():
            changes = [
                self._change(f"{argument}[{index}]", layer, entry, own)
                for index, ((layer, own), entry) in enumerate(zip(layers, entries, strict=True))
            ]
            for dtype, worker in self._workers.items():
                records = [record for change in changes if change.weights.dtype == dtype for record in change.records]
                if records:
                    table = np.array(records, self._record)
                    run_over_arrays(worker, table, int(table["count"].sum()))
            for change in changes:
                if change.updates:
                    change.layer._take_over(change.weights, {update.name: update.result for update in change.updates})
                    kept = {name: state for name, state in change.states.items() if state}
                    self._state.setdefault(change.layer, {}).update(kept)

    def _change(self, argument: str, layer: Layer, entry: Any, options: Mapping[str, Any]) -> Change:
        """Return what a step is to do with a layer; nothing has changed yet."""
        weights, known = layer._weights, self._state.get(layer, {})
        change = Change(layer, weights, _updates(argument, layer, weights, entry), {}, [])
        for update in change.updates:
            state = self._matching(layer, update, known.get(update.name, {}))
            change.states[update.name], record = self._plan(update, state, options)
            if update.parameter.size:
                change.records.append(record)
        return change

    def _matching(self, layer: Layer, update: Update, state: State) -> State:
        """Return the state if its arrays have the parameter's dtype; RuntimeError otherwise."""
        for name, array in state.items():
            if name != "step" and array.dtype != update.parameter.dtype:
                hint = "optimizer.load_state_dict(optimizer.state_dict()) converts it"
                argument = f"{type(self).__name__}.step state {name} of {type(layer).__name__} {update.name}"
                raise RuntimeError(
                    message(argument, f"dtype {update.parameter.dtype}", f"dtype {array.dtype}", hint=hint)
                )
        return state

    def state_dict(self) -> dict[str, Any]:
        """Return moments and options in torch's layout, which torch.optim loads once its arrays are tensors.

        Returns
        -------
        dict
            ``{"state": {0: {"step": ..., "exp_avg": ...}, ...}, "param_groups": [{"lr": ..., "params": [0, 1]}]}``.
            Parameters are numbered in the order of the layers and, within a layer, of its ``named_parameters()``. The
            arrays are copies; "step" is a float32 array without axes.

        >>> import numpy as np
        >>> from nblstm import LSTM
        >>> from nblstm.training import Adam
        >>> lstm = LSTM(2, 3)
        >>> optimizer = Adam(lstm)
        >>> optimizer.step({"bias_hh_l0": np.ones(12, np.float32)})
        >>> found = optimizer.state_dict()
        >>> list(found["state"]), found["param_groups"][0]["params"]
        ([3], [0, 1, 2, 3])
        """
        state, groups, number = {}, [], 0
        with update_lock():
            for group in self.param_groups:
                first = number
                for layer in group["params"]:
                    known = self._state.get(layer, {})
                    for name, _ in layer.named_parameters():
                        if name in known:
                            state[number] = {key: _exported(key, value) for key, value in known[name].items()}
                        number += 1
                others = copy.deepcopy({key: value for key, value in group.items() if key != "params"})
                groups.append({**others, **self._options(group), "params": list(range(first, number))})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take moments and options from what `state_dict` returned, here or in torch.

        ``nblstm.load`` reads what ``torch.save(optimizer.state_dict(), path)`` wrote. Moments are copied and converted
        to the dtypes of the layers; options that torch has besides are kept and mean nothing here. Raises ValueError
        or TypeError, and leaves the optimiser as it was, if groups, parameters, names or shapes are others.
        """
        argument = f"{type(self).__name__}.load_state_dict state_dict"
        given = as_mapping(argument, state_dict)
        if not {"state", "param_groups"} <= set(given):
            raise ValueError(message(argument, "the names 'state' and 'param_groups'", sorted(map(str, given))))
        where = f"{argument}['param_groups']"
        if not isinstance(given["param_groups"], (list, tuple)):
            raise TypeError(message(where, "a list of groups", type(given["param_groups"]).__name__))
        saved = [as_mapping(where, group) for group in given["param_groups"]]
        if len(saved) != len(self.param_groups):
            reason = "loaded state dict has a different number of parameter groups"
            raise ValueError(f"{argument}: {reason}: expected {len(self.param_groups)}, got {len(saved)}")
        with update_lock():
            groups: list[dict[str, Any]] = []
            owners: dict[Any, Owner] = {}
            for index, (group, other) in enumerate(zip(self.param_groups, saved, strict=True)):
                where = f"{argument}['param_groups'][{index}]"
                options = self._saved_options(where, other)
                found = _owners(where, group, other, options)
                if again := owners.keys() & found:
                    raise ValueError(message(f"{where}['params']", "numbers of no other group", sorted(again)))
                owners |= found
                groups.append({**copy.deepcopy(dict(other)), **options, "params": group["params"]})
            states: dict[Layer, dict[str, State]] = {}
            for number, values in as_mapping(f"{argument}['state']", given["state"]).items():
                where = f"{argument}['state'][{number!r}]"
                if number not in owners:
                    raise ValueError(message(where, "the number of a parameter in 'param_groups'", number))
                if state := self._imported(where, as_mapping(where, values), owners[number]):
                    states.setdefault(owners[number].layer, {})[owners[number].name] = state
            self.param_groups, self._state = groups, states

    def _saved_options(self, argument: str, group: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._options({**self._options_of_later_torch, **group})
        except KeyError as error:
            raise ValueError(message(argument, f"the option {error.args[0]!r}", sorted(map(str, group)))) from None

    def _imported(self, argument: str, values: Mapping[str, Any], owner: Owner) -> State:
        """Return the state of a parameter from a file's; {} where that is empty."""
        parameter = owner.layer._weights.parameters[owner.name]
        values = {name: value for name, value in values.items() if value is not None}
        needed, allowed = self._state_names(owner.options)
        if values and not needed <= set(values) <= needed | allowed:
            raise ValueError(message(argument, f"the names {sorted(needed)}", sorted(map(str, values))))
        state: State = {}
        for name, value in values.items():
            array = as_array(f"{argument}[{name!r}]", value)
            if name == "step":
                state[name] = _step_of(f"{argument}['step']", array)
                continue
            if array.shape != parameter.shape or array.dtype.kind != "f":
                expected, got = f"floats of shape {parameter.shape}", f"{array.dtype} of shape {array.shape}"
                raise ValueError(message(f"{argument}[{name!r}]", expected, got))
            with np.errstate(over="ignore"):
                state[name] = np.array(array, parameter.dtype, order="C")
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Copied: arrays that come out of a pickle may lie in memory of the caller's.
        for parameters in self._state.values():
            for values in parameters.values():
                values.update({key: value.copy() for key, value in values.items() if key != "step"})


def _as_list(name: str, layers: Any) -> list[Any]:
    """Return the layers, or groups of them, as a list; a single one may stand without."""
    if isinstance(layers, (Layer, Mapping)):
        return [layers]
    if isinstance(layers, (set, frozenset)):
        raise TypeError(message(f"{name} layers", "layers in an order", "a set", hint="Please use a list instead"))
    if isinstance(layers, (str, bytes)) or not isinstance(layers, Iterable):
        raise TypeError(message(f"{name} layers", "a layer, a list of layers or of groups", type(layers).__name__))
    return list(layers)


def _owners(
    argument: str, group: Mapping[str, Any], saved: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[Any, Owner]:
    """Return the parameters of a group by the numbers that they have in a saved one."""
    own = [Owner(layer, name, options) for layer in group["params"] for name, _ in layer.named_parameters()]
    numbers = list(saved.get("params", ()))
    if len(numbers) != len(own):
        reason = "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
        raise ValueError(f"{argument}: {reason}: expected {len(own)} parameters, got {len(numbers)}")
    if not all(isinstance(number, (int, str)) for number in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(message(f"{argument}['params']", "different numbers", numbers))
    return dict(zip(numbers, own, strict=True))


def _updates(argument: str, layer: Layer, weights: Weights, entry: Any) -> list[Update]:
    """Return the parameters of a layer that have a gradient, in its order, with room for what they become."""
    given = named_arrays(argument, entry)
    if unknown := [name for name in given if name not in weights.parameters]:
        raise RuntimeError(message(argument, f"names of parameters of {layer!r}", ", ".join(map(repr, unknown))))
    updates = []
    for name, parameter in weights.parameters.items():
        if name in given:
            gradient = checks.check_array(f"{argument}[{name!r}]", given[name], weights.dtype)
            if gradient.shape != parameter.shape:
                raise RuntimeError(message(f"{argument}[{name!r}]", str(parameter.shape), gradient.shape))
            result = np.empty(parameter.shape, parameter.dtype)
            updates.append(Update(name, parameter, np.ascontiguousarray(gradient), result))
    return updates


def _exported(name: str, value: Any) -> Array:
    return np.array(value, np.float32) if name == "step" else value.copy()


def _step_of(argument: str, array: Array) -> int:
    number = float(array.reshape(-1)[0]) if array.size == 1 and array.dtype.kind in "fiu" else -1.0
    if not (number >= 0 and number.is_integer()):
        raise ValueError(message(argument, "a whole number of steps", array))
    return int(number)
