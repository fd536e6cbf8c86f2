"""What an engine is, and what it makes of a case."""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from nblstm.arrays import Array
from nblstm.commands.benchmark.cases import Case, NotOffered
from nblstm.commands.timing import is_installed


class Prepared(NamedTuple):
    """A case made ready: what to time, and how to read the results off what it returns.

    These are ``output`` (T, B, D*P) and, of training, the gradients: ``input`` (T, B, I), and those of the weights by
    torch's names. Past the lengths of a packed case output and input are zero. Of a cell or a stream, ``output`` is
    that of the last step, (B, P).
    """

    call: Callable[[], Any]
    results: Callable[[Any], dict[str, Array]]
    step: Callable[[], Any] | None = None  # a single call of many such, for its tail; of nblstm's cells and streams


class Engine(ABC):
    """An engine on a number of threads; made, and so imported, in its own process only."""

    name: str
    packages: tuple[str, ...] = ()  # what has to be installed for it

    @abstractmethod
    def __init__(self, threads: int) -> None: ...

    @classmethod
    def missing(cls) -> list[str]:
        """Return which of its packages are not installed."""
        return [package for package in cls.packages if not is_installed(package)]

    @classmethod
    def version(cls) -> str:
        """Return the version of the engine's package."""
        return importlib.metadata.version(cls.packages[0]).partition("-")[0]

    @classmethod
    def offers(cls, kind: str) -> bool:
        """Say whether it does a kind of case at all."""
        return hasattr(cls, kind)

    def prepare(self, case: Case) -> Prepared:
        """Return the case made ready; NotOffered if the engine cannot do it."""
        if not self.offers(case.kind):
            raise NotOffered(f"{self.name} does no {case.kind}")
        prepared: Prepared = getattr(self, case.kind)(case)
        return prepared
