"""Stochastic gradient descent, Adam and AdamW, with the arguments, formulas and rounding of torch.optim.

The formulas themselves stand in `nblstm.kernels.updates`; here is what they need for a step, in float64 as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nblstm.arrays import address_of, as_number
from nblstm.kernels import updates
from nblstm.layers import checks
from nblstm.training.optimizer import Optimizer, State, Update


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if asked for: torch.optim.SGD.

    With the gradient g, plus ``weight_decay`` times the parameter p, each step is

        b = momentum b + (1 - dampening) g, at the first step b = g;    p = p - lr b

    or, with Nesterov's momentum, p = p - lr (g + momentum b). (I. Sutskever and others, On the importance of
    initialization and momentum in deep learning, 2013, in torch's form.)

    Parameters
    ----------
    layers : Layer, list of layers, or list of dict
        What is optimised. Groups with options of their own are written ``{"params": [layers], "lr": 0.1}``.
    lr : float
        Learning rate.
    momentum, dampening, weight_decay : float
    nesterov : bool
        Needs a momentum, and no dampening.
    maximize : bool
        Go uphill.

    Raises
    ------
    ValueError
        Options out of range, no layers, or the same layer twice.
    TypeError
        Something that is no layer or no number.

    Examples
    --------
    >>> import numpy as np
    >>> from nblstm import GRU
    >>> from nblstm.training import SGD
    >>> gru = GRU(2, 3, seed=0)
    >>> optimizer = SGD(gru, lr=0.1, momentum=0.9)
    >>> x = np.ones((5, 1, 2), np.float32)
    >>> for _ in range(3):
    ...     (output, h_n), backward = gru.vjp(x)
    ...     optimizer.step(backward(d_output=2 * output))
    >>> bool((gru(x)[0] ** 2).sum() < (output**2).sum())
    True
    """

    _record = updates.SGD_UPDATE
    _workers = {"float32": updates.sgd_float32, "float64": updates.sgd_float64}  # noqa: RUF012
    _options_of_later_torch = {"nesterov": False, "maximize": False}  # noqa: RUF012

    def __init__(
        self,
        layers: Any,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(layers, defaults)

    def _options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        options = {
            "lr": _number("SGD: Invalid learning rate", group["lr"]),
            "momentum": _number("SGD: Invalid momentum value", group["momentum"]),
            "dampening": _number("SGD: Invalid dampening value", group["dampening"], least=-math.inf),
            "weight_decay": _number("SGD: Invalid weight_decay value", group["weight_decay"]),
            "nesterov": checks.check_flag("SGD", "nesterov", group["nesterov"]),
            "maximize": checks.check_flag("SGD", "maximize", group["maximize"]),
        }
        if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
            got = f"momentum={options['momentum']} and dampening={options['dampening']}"
            raise ValueError(f"SGD: Nesterov momentum requires a momentum and zero dampening, got {got}")
        return options

    def _state_names(self, options: Mapping[str, Any]) -> tuple[set[str], set[str]]:
        return {"momentum_buffer"}, set()

    def _plan(self, update: Update, state: State, options: Mapping[str, Any]) -> tuple[State, tuple[Any, ...]]:
        fresh = "momentum_buffer" not in state
        buffer = 0
        if options["momentum"] != 0:
            state = {"momentum_buffer": np.empty_like(update.result) if fresh else state["momentum_buffer"]}
            buffer = address_of(state["momentum_buffer"])
        return state, (
            *update.addresses(),
            buffer,
            fresh,
            options["nesterov"],
            -1.0 if options["maximize"] else 1.0,
            options["weight_decay"],
            options["momentum"],
            1 - options["dampening"],
            options["lr"],
        )


class Adam(Optimizer):
    """Adam: torch.optim.Adam.

    With the gradient g, plus ``weight_decay`` times the parameter p, step number t is

        m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2
        p = p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    (D. Kingma and J. Ba, Adam: A Method for Stochastic Optimization, 2014.)

    Parameters
    ----------
    layers : Layer, list of layers, or list of dict
        What is optimised. Groups with options of their own are written ``{"params": [layers], "lr": 0.1}``.
    lr : float
        Learning rate.
    betas : (float, float)
        Both from 0 to below 1.
    eps, weight_decay : float
    amsgrad : bool
        Divide by the largest v so far (S. Reddi and others, On the Convergence of Adam and Beyond, 2018).
    maximize : bool
        Go uphill.

    Raises
    ------
    ValueError
        Options out of range, no layers, or the same layer twice.
    TypeError
        Something that is no layer or no number.

    Examples
    --------
    >>> import numpy as np
    >>> from nblstm import LSTM
    >>> from nblstm.training import Adam
    >>> lstm = LSTM(2, 3, seed=0)
    >>> optimizer = Adam(lstm, lr=0.01)
    >>> x = np.ones((5, 1, 2), np.float32)
    >>> for _ in range(3):
    ...     (output, state), backward = lstm.vjp(x)
    ...     optimizer.step(backward(d_output=2 * output))
    >>> bool((lstm(x)[0] ** 2).sum() < (output**2).sum())
    True
    >>> optimizer.param_groups[0]["lr"] = 0.001
    """

    _record = updates.ADAM_UPDATE
    _workers = {"float32": updates.adam_float32, "float64": updates.adam_float64}  # noqa: RUF012
    _options_of_later_torch = {"amsgrad": False, "maximize": False, "decoupled_weight_decay": False}  # noqa: RUF012
    _DECOUPLED = False

    def __init__(
        self,
        layers: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": self._DECOUPLED,
        }
        super().__init__(layers, defaults)

    def _options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        name, betas = type(self).__name__, group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"{name}: betas must be two floats, got {betas!r}")
        return {
            "lr": _number(f"{name}: Invalid learning rate", group["lr"]),
            "betas": tuple(
                _number(f"{name}: Invalid beta parameter at index {index}", beta, below=1.0)
                for index, beta in enumerate(betas)
            ),
            "eps": _number(f"{name}: Invalid epsilon value", group["eps"]),
            "weight_decay": _number(f"{name}: Invalid weight_decay value", group["weight_decay"]),
            "amsgrad": checks.check_flag(name, "amsgrad", group["amsgrad"]),
            "maximize": checks.check_flag(name, "maximize", group["maximize"]),
            "decoupled_weight_decay": self._DECOUPLED
            or checks.check_flag(name, "decoupled_weight_decay", group["decoupled_weight_decay"]),
        }

    def _state_names(self, options: Mapping[str, Any]) -> tuple[set[str], set[str]]:
        needed = {"step", "exp_avg", "exp_avg_sq"}
        return (needed | {"max_exp_avg_sq"}, set()) if options["amsgrad"] else (needed, {"max_exp_avg_sq"})

    def _plan(self, update: Update, state: State, options: Mapping[str, Any]) -> tuple[State, tuple[Any, ...]]:
        names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if options["amsgrad"] else [])]
        missing = {name: np.zeros_like(update.result) for name in names if name not in state}
        state = {**state, **missing, "step": state.get("step", 0) + 1}
        moments = [address_of(state[name]) for name in names]
        lr, (beta1, beta2), decay = options["lr"], options["betas"], options["weight_decay"]
        decoupled, as_dtype = options["decoupled_weight_decay"], update.parameter.dtype.type
        # torch's lerp goes from the nearer end.
        weight = as_dtype(1 - beta1)
        far = not weight < 0.5
        return state, (
            *update.addresses(),
            *moments,
            *([] if options["amsgrad"] else [0]),
            far,
            -1.0 if options["maximize"] else 1.0,
            0.0 if decoupled else decay,
            1 - lr * decay if decoupled else 1.0,
            weight - as_dtype(1) if far else weight,
            beta2,
            1 - beta2,
            (1 - beta2 ** state["step"]) ** 0.5,
            options["eps"],
            lr / (1 - beta1 ** state["step"]),
        )


class AdamW(Adam):
    """Adam whose weight decay shrinks the parameters themselves: torch.optim.AdamW.

    Each step begins with p = (1 - lr weight_decay) p, and the decay is not part of the gradient (I. Loshchilov and
    F. Hutter, Decoupled Weight Decay Regularization, 2017). For the rest, arguments and errors see `Adam`.

    Examples
    --------
    >>> import numpy as np
    >>> from nblstm import RNN
    >>> from nblstm.training import AdamW
    >>> rnn = RNN(2, 3)
    >>> optimizer = AdamW([{"params": [rnn], "lr": 0.1}], weight_decay=0.5)
    >>> before = rnn.bias_ih_l0
    >>> optimizer.step([{"bias_ih_l0": np.zeros(3, np.float32)}])
    >>> bool(np.allclose(rnn.bias_ih_l0, 0.95 * before))
    True
    """

    _DECOUPLED = True

    def __init__(
        self,
        layers: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(layers, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)


def _number(words: str, value: Any, least: float = 0.0, below: float = math.inf) -> float:
    """Return the finite number `value` as a float; an error begins with `words`, which are torch's."""
    number = as_number(words, value)
    if not (math.isfinite(number) and least <= number < below):
        expected = "a finite number" + (f" of {least:g} or more" if math.isfinite(least) else "")
        raise ValueError(f"{words}: {value}, expected {expected}" + (f", below {below:g}" if below < math.inf else ""))
    return number
