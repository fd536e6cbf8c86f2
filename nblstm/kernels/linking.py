"""How a compiled function that only other compiled code calls is kept: as LLVM's text, without machine code of its own.

Numba optimises every function on the way up, and makes machine code of it that nobody runs: its callers link the text,
inline it and optimise it once more. Without that the recurrence compiles in three quarters of the time;
its bits and its speed are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import PassManager
from numba.core.typed_passes import NopythonRewrites
from numba.core.untyped_passes import InlineClosureLikes


class _LinkedLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The code of a function, for others to link."""

    def _optimize_final_module(self) -> None:
        """Leave that to the callers."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0, as Numba does for a wrapper for Python that there is not: there is no other to ask for."""
        return 0

    @property
    def codegen(self) -> Any:
        """What is told the environment of the function: this library, in whose code nothing can ask for one."""
        return self

    def set_env(self, name: str, environment: Any) -> None:
        """Leave it: Numba would write to a variable of the machine code."""


# Passes over array expressions and over closures, of which no kernel has any: 8 % of the first call.
_NOT_NEEDED = NopythonRewrites, InlineClosureLikes


class LinkedCompiler(Compiler):  # type: ignore[misc]
    """Numba's compiler with such a library, and without what finds nothing to do in a kernel."""

    def define_pipelines(self) -> list[PassManager]:
        """Return Numba's passes but for those."""
        managers: list[PassManager] = super().define_pipelines()
        for manager in managers:
            manager.passes[:] = [one for one in manager.passes if one[0] not in _NOT_NEEDED]
            manager.finalize()
        return managers

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        """Compile a function."""
        if self.state.library is None:
            self.state.library = _LinkedLibrary(self.state.targetctx.codegen(), func.__qualname__)
            self.state.library.enable_object_caching()
        return super().compile_extra(func)
