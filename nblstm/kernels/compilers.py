"""Numba's compiler for workers and what they call: without what finds nothing to do in them, or does it twice.

A worker's code is optimised once, as a whole, with all that it calls, and at LLVM's first level: workers say themselves
what is a vector and how far a loop is unrolled, and the levels above only made copies of loops, for an eighth of a
first call. (Dropout is no worker: its loop is LLVM's to make vectors of, and takes twice as long without.) A function
that only other compiled code calls is kept as LLVM's text, without machine code of its own: Numba makes some of every
function on the way up, which nobody runs. Bits and speed are the same (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import PassManager
from numba.core.typed_passes import NopythonRewrites
from numba.core.untyped_passes import InlineClosureLikes

# Passes over array expressions and over closures, of which no worker has any: 8 % of the first call.
_NOT_NEEDED = NopythonRewrites, InlineClosureLikes


class _WorkerLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The code of a worker."""

    def _optimize_functions(self, module: Any) -> None:
        """Leave that to the end: only say what LLVM has to know of the machine."""
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        passes = self._codegen._module_pass_manager(opt=1, loop_vectorize=False, slp_vectorize=False)
        if isinstance(passes, tuple):  # and what builds them, from Numba 0.62 on
            passes[0].run(self._final_module, passes[1])
        else:
            passes.run(self._final_module)


class WorkerCompiler(Compiler):  # type: ignore[misc]
    """Numba's compiler for workers."""

    _library_class: type[JITCodeLibrary] = _WorkerLibrary

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
            self.state.library = self._library_class(self.state.targetctx.codegen(), func.__qualname__)
            self.state.library.enable_object_caching()
        return super().compile_extra(func)


class _LinkedLibrary(_WorkerLibrary):
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


class LinkedCompiler(WorkerCompiler):
    """The same for functions that only other compiled code calls."""

    _library_class = _LinkedLibrary
