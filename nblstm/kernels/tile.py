"""The register tile: the one loop in which nearly all floating-point work happens.

A tile multiplies a few rows of a matrix by one or more adjacent panels of packed weights, in accumulators that stay in
registers for the whole sum, and adds the products to other numbers. For each of the K terms it loads the panels'
vectors, spreads one number of each row over a vector, and does rows x vectors fused multiply-adds:

    acc[r, v] = 0
    acc[r, v] = fma(a[r, k], b[k, v], acc[r, v])        k = 0, 1, ..., K-1
    d[r, v] = c[r, v] + acc[r, v]

A sum of many terms is made of several such chains, each from zero, added one after the other:

    d = ((c + chain 0) + chain 1) + ...

The order of a sum depends on K alone, whatever the shape of the tile: that is why results do not depend on how rows,
units or threads are divided. What may vary is only which sums run side by side. A chain begins at zero, not at c, and
is short, because every term is rounded to the digits of what is there already: docs/performance.md, "Accuracy", has
the errors, and the wide layers in tests/test_parity.py hold them.

Two FMA units with a latency of four need eight sums in flight, and registers bound them from above:

* 16 vector registers (AVX2, SSE): 6 rows x 2 vectors = 12 accumulators, 2 weights, 1 or 2 for the row's number;
* 32 vector registers (AVX-512, NEON): 6 rows x 4 vectors = 24 accumulators, 4 weights, the row's number from memory.

With few rows a tile takes several panels at once to have enough sums in flight (`PANELS_AT_ONCE`). Of the two operands
of a term, registers hold the fewer vectors and the others pass one by one: 3 rows x 4 vectors fit 16 registers as 12
accumulators, 3 numbers and 1 weight, and LLVM would spill with 4 weights and 1 number. Panels of 2 vectors give 4 rows
8 accumulators, as many as must be in flight and none to spare; so they take 3 panels as two tiles of 3 vectors.

Terms go four to a turn of the loop, from addresses that LLVM may not take apart: it made a chain of additions of them,
25 instructions a term where 21 do. On an idle core the multiply-adds hide that; where another guest of the machine has
the core's second thread, the rate of instructions is the limit, and the tile is a fifth faster.

Weights come in the order of memory, but a tall tile asks for them more slowly than the hardware fetches ahead for, and
it does not fetch beyond a page: from main memory 6 rows ran at 65 % of the peak. So a tile of 4 rows or more asks for
lines itself. From `TILES_TO_SHARE` tiles over the same weights on, each asks for an equal part of those that come next:
few instructions, and the lines come evenly over time. Fewer tiles, and all on CPUs that fetch better by themselves, ask
for their own, some way ahead (docs/performance.md).
"""

from __future__ import annotations

import itertools
from itertools import product
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from nblstm.kernels.memory import I64, llvm_prefetch
from nblstm.kernels.policy import HAS_FMA, IS_ZEN, LINE, VECTOR_BYTES, VECTOR_REGISTERS
from nblstm.kernels.simd import llvm_element, llvm_fma, llvm_vector, splat

ROWS = 6
PANEL_VECTORS = 4 if VECTOR_REGISTERS == 32 else 2
# By the number of rows: 8 accumulators or more, and 12 for 4 rows, which are up to a seventh faster. Without a fused
# multiply-add a product needs a register of its own, and 3 rows of 4 vectors, or 4 of 3, would spill.
PANELS_AT_ONCE = (0, 2, 2, 2, 1, 1, 1) if VECTOR_REGISTERS == 32 else (0, 4, 2, *((2, 3) if HAS_FMA else (1, 1)), 1, 1)
# Whether a tile may do half a panel: of 2 vectors it would be one, with too few chains.
HAS_HALF_PANELS = PANEL_VECTORS > 2
_ACCUMULATORS = 24 if VECTOR_REGISTERS == 32 else 12
_UNROLL = 4  # a power of two
# With fewer rows the loads are the limit, and a request costs as much as a load: 5 to 10 % slower from L2 and L3.
_ROWS_TO_PREFETCH = 4
NEVER = 1 << 30
# With fewer tiles over a panel each asks for its own lines. On AVX2 parts of the next panel that 1 or 2 tiles asked for
# left out too many, and cost 6 rows of weights in L3 a third. Zen 4 fetches single lines, where Intel's CPUs fetch two,
# and follows a tile's own reading better: with shares 12 to 32 rows of weights in L3 were a tenth to a third slower
# (Zen 5 was not measured).
if VECTOR_BYTES < LINE:
    TILES_TO_SHARE = 3
else:
    TILES_TO_SHARE = NEVER if IS_ZEN else 2
# Requests in a turn of the loop, for what comes next and for the tile's own lines. AVX-512: with 2 for what comes next,
# 3 and 4 tiles left out lines, and 24 rows of weights in L3 were a fifth slower; one for each own line would be one for
# each load, and 4 to 12 rows of weights in L2 were a fifth to a third slower. With one in eight the hardware does the
# rest; one in four would need no functions of its own, a tenth of the first call, but is 1 to 4 % slower.
_REQUESTS, _OWN_REQUESTS = (4, 2) if VECTOR_BYTES == LINE else (1, _UNROLL * PANEL_VECTORS * VECTOR_BYTES // LINE)
# How far ahead of its own. Not a multiple of a page: such lines share a set of L1 with those in use.
_BYTES_AHEAD = 4608 if VECTOR_BYTES == LINE else 3072
# With so many terms a tile asks, as it begins, for what it adds its sums to. A layer's gradients, or the sums of many
# steps' inputs, come from L2 or beyond: a step of training with 512 to 1024 units took 4 to 6 % more.
_TERMS_TO_ASK_FOR_ADDEND = 128


def _kept_whole(builder: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
    """Return the pointer as a value of which LLVM does not know how it came about."""
    identity = ir.InlineAsm(ir.FunctionType(pointer.type, [pointer.type]), "", "=r,0")
    return builder.call(identity, [pointer])


def _vector_pointer(builder: ir.IRBuilder, dtype: types.Float, base: ir.Value, constant: int) -> ir.Value:
    return builder.bitcast(builder.gep(base, [ir.Constant(I64, constant)]), llvm_vector(dtype).as_pointer())


def _add_term(
    builder: ir.IRBuilder,
    dtype: types.Float,
    numbers: list[ir.Value],
    weights: list[ir.Value],
    accumulators: list[list[ir.Value]],
) -> list[list[ir.Value]]:
    """Emit the multiply-adds of one term; return the sums by row and vector.

    `numbers` point to the term's number of each row, `weights` to its vectors.
    """

    def weight(v: int) -> ir.Value:
        return builder.load(_vector_pointer(builder, dtype, weights[v], 0), align=dtype.bitwidth // 8)

    def number(r: int) -> ir.Value:
        return splat(builder, builder.load(numbers[r]), llvm_vector(dtype).count)

    sums = [[*row] for row in accumulators]
    if len(numbers) < len(weights):
        held = [number(r) for r in range(len(numbers))]
        for v in range(len(weights)):
            w = weight(v)
            for r, n in enumerate(held):
                sums[r][v] = llvm_fma(builder, n, w, accumulators[r][v])
    else:
        held = [weight(v) for v in range(len(weights))]
        for r in range(len(numbers)):
            n = number(r)
            for v, w in enumerate(held):
                sums[r][v] = llvm_fma(builder, n, w, accumulators[r][v])
    return sums


def _phis(builder: ir.IRBuilder, *incoming: tuple[list[list[ir.Value]], ir.Block]) -> list[list[ir.Value]]:
    """Emit a phi for each sum by row and vector, with the values it has from each of the blocks before."""
    first, _ = incoming[0]
    phis = [[builder.phi(value.type) for value in row] for row in first]
    for values, block in incoming:
        for phi, value in zip(itertools.chain(*phis), itertools.chain(*values), strict=True):
            phi.add_incoming(value, block)
    return phis


_Column = tuple[int, int]  # a panel, and which of its vectors


def _widths(rows: int) -> list[int]:
    """Return how many panels a tile of so many rows may do: the most, that halved, down to 1, and 0 for half of one."""
    most = PANELS_AT_ONCE[rows]
    return [most >> halvings for halvings in range(most.bit_length())] + [0] * HAS_HALF_PANELS


def _tiles(rows: int, panels: int) -> list[list[_Column]]:
    """Return the columns of the tiles, one after another, that together do `panels` panels, or 0: half of one."""
    vectors = list(product(range(panels), range(PANEL_VECTORS))) or [(0, n) for n in range(PANEL_VECTORS // 2)]
    size = len(vectors) // -(-rows * len(vectors) // _ACCUMULATORS)
    tiles = []
    for first in range(0, len(vectors), size):
        columns = vectors[first : first + size]
        of_panel = [panel for panel, _ in columns]
        # Of 4 rows x 3 vectors, which fill all 16 registers, LLVM spills some in any other order.
        tiles.append(sorted(columns, key=lambda column: of_panel.count(column[0])))
    return tiles


class _Requests(NamedTuple):
    """What a tile asks for: the lines at ``start + k * step``, in some of the terms k."""

    starts: list[ir.Value]  # none: nothing
    step: ir.Value  # in bytes
    per_turn: int  # of the loop, for each start; a divisor of `_UNROLL`

    def emit(self, builder: ir.IRBuilder, k: ir.Value) -> None:
        """Emit the requests of the turn that begins with term k."""
        for start, n in product(self.starts, range(self.per_turn)):
            term = builder.add(k, ir.Constant(I64, n * _UNROLL // self.per_turn))
            llvm_prefetch(builder, builder.gep(start, [builder.mul(term, self.step)]), 2)


class _Operands(NamedTuple):
    """Where the operands of a tile begin, as LLVM values."""

    rows: list[ir.Value]
    weights: list[ir.Value]  # by column
    requests: _Requests

    def add_terms(
        self, builder: ir.IRBuilder, dtype: types.Float, k: ir.Value, count: int, sums: list[list[ir.Value]]
    ) -> list[list[ir.Value]]:
        """Emit `count` terms from number k on; return the sums."""
        width = PANEL_VECTORS * llvm_vector(dtype).count
        first = builder.mul(k, ir.Constant(I64, width))
        if count == _UNROLL:
            self.requests.emit(builder, k)
        for term in range(count):
            numbers = [builder.gep(builder.gep(row, [k]), [ir.Constant(I64, term)]) for row in self.rows]
            offset = ir.Constant(I64, term * width)
            weights = [builder.gep(builder.gep(column, [first]), [offset]) for column in self.weights]
            sums = _add_term(builder, dtype, numbers, weights, sums)
        return sums


class _Place(NamedTuple):
    """Where the rows of panels lie, as LLVM values; strides in elements."""

    start: ir.Value
    panel: ir.Value
    row: ir.Value

    def vector(self, builder: ir.IRBuilder, dtype: types.Float, r: int, column: _Column) -> ir.Value:
        """Return the pointer to the vector of row r in this column."""
        panel, place = column
        steps = builder.mul(self.panel, ir.Constant(I64, panel)), builder.mul(self.row, ir.Constant(I64, r))
        row = builder.gep(self.start, [builder.add(*steps)])
        return _vector_pointer(builder, dtype, row, place * llvm_vector(dtype).count)


def _ask_for_addend(
    builder: ir.IRBuilder, dtype: types.Float, terms: ir.Value, c: _Place, rows: int, columns: list[_Column]
) -> None:
    """Emit requests for what the sums will be added to, where that is far: not for a bias, nor by a short tile."""
    is_far = builder.and_(
        builder.icmp_signed("!=", c.row, ir.Constant(I64, 0)),
        builder.icmp_signed(">=", terms, ir.Constant(I64, _TERMS_TO_ASK_FOR_ADDEND)),
    )
    with builder.if_then(is_far):
        for r, (panel, place) in product(range(rows), columns):
            if place * VECTOR_BYTES % LINE == 0:
                llvm_prefetch(builder, c.vector(builder, dtype, r, (panel, place)), 1)


def _emit_chain(
    builder: ir.IRBuilder, dtype: types.Float, operands: _Operands, first: ir.Value, last: ir.Value
) -> list[list[ir.Value]]:
    """Emit the sums of the terms [first, last), from zero, leaving the builder at their end."""
    before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("turns", "rest"))
    count = builder.sub(last, first)
    whole = builder.add(first, builder.and_(count, ir.Constant(I64, -_UNROLL)))
    zeros = [[ir.Constant(llvm_vector(dtype), None)] * len(operands.weights) for _ in operands.rows]
    builder.cbranch(builder.icmp_signed("<", first, whole), loop, after)

    builder.position_at_end(loop)
    k = builder.phi(I64)
    accumulators = _phis(builder, (zeros, before))
    totals = operands.add_terms(builder, dtype, k, _UNROLL, accumulators)
    following = builder.add(k, ir.Constant(I64, _UNROLL))
    for phi, value in zip(itertools.chain([k], *accumulators), itertools.chain([following], *totals), strict=True):
        phi.add_incoming(value, loop)
    k.add_incoming(first, before)
    builder.cbranch(builder.icmp_signed("<", following, whole), loop, after)

    builder.position_at_end(after)
    sums, k, size = _phis(builder, (zeros, before), (totals, loop)), whole, _UNROLL // 2
    while size:  # what is left of the chain in straight lines: LLVM would unroll a loop
        before, some, joined = builder.block, *(builder.append_basic_block(name) for name in ("some", "joined"))
        wanted = builder.and_(count, ir.Constant(I64, size))
        builder.cbranch(builder.icmp_signed("!=", wanted, ir.Constant(I64, 0)), some, joined)
        builder.position_at_end(some)
        totals = operands.add_terms(builder, dtype, k, size, sums)
        builder.branch(joined)
        builder.position_at_end(joined)
        sums = _phis(builder, (sums, before), (totals, some))
        k, size = builder.add(k, wanted), size // 2
    return sums


def _tile_function(module: ir.Module, dtype: types.Float, rows: int, columns: list[_Column], own: bool) -> ir.Function:
    """Return the LLVM function for a tile, emitting it into `module` when it is first wanted.

    It asks for its `own` lines, or for those it is told of: void (terms, chain, a, a_row, b, b_panel, ahead, step, c,
    c_panel, c_row, d, d_panel, d_row), strides in elements, the step in bytes.
    """
    element, vector = llvm_element(dtype), llvm_vector(dtype)
    places = "_".join(str(panel * PANEL_VECTORS + place) for panel, place in columns)
    name = f"nblstm_tile_{dtype}_{vector.count}_{rows}x{places}{'_own' if own else ''}"
    if name in module.globals:
        return module.globals[name]
    pointer, i8 = element.as_pointer(), ir.IntType(8)
    arguments = [I64, I64, pointer, I64, pointer, I64, i8.as_pointer(), I64, pointer, I64, I64, pointer, I64, I64]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    function.linkage = "linkonce_odr"
    terms, chain, a, a_row, b, b_panel, ahead, step, *c_and_d = function.args
    c, d = _Place(*c_and_d[:3]), _Place(*c_and_d[3:])
    entry, begin, done = (function.append_basic_block(label) for label in ("entry", "begin", "done"))
    builder = ir.IRBuilder(entry)

    def scaled(stride: ir.Value, count: int) -> ir.Value:
        return builder.mul(stride, ir.Constant(I64, count))

    row_starts = [_kept_whole(builder, builder.gep(a, [scaled(a_row, r)])) for r in range(rows)]
    weights = [
        builder.gep(builder.gep(b, [scaled(b_panel, panel)]), [ir.Constant(I64, place * vector.count)])
        for panel, place in columns
    ]
    asks = rows >= _ROWS_TO_PREFETCH
    if own:
        ahead = builder.gep(builder.bitcast(b, ahead.type), [ir.Constant(I64, _BYTES_AHEAD)])
        step = ir.Constant(I64, PANEL_VECTORS * VECTOR_BYTES)
    begun = [panel for panel, place in columns if place == 0 and asks]
    starts = [builder.gep(ahead, [scaled(b_panel, panel * dtype.bitwidth // 8)]) for panel in begun]
    operands = _Operands(row_starts, weights, _Requests(starts, step, _OWN_REQUESTS if own else _REQUESTS))
    if asks:
        _ask_for_addend(builder, dtype, terms, c, rows, columns)
    entry = builder.block
    builder.branch(begin)

    builder.position_at_end(begin)
    first, addend = builder.phi(I64), _Place(*(builder.phi(value.type) for value in c))
    unbounded = builder.add(first, chain)
    last = builder.select(builder.icmp_signed("<", unbounded, terms), unbounded, terms)
    sums = _emit_chain(builder, dtype, operands, first, last)
    for phi, value, next_value in zip((first, *addend), (ir.Constant(I64, 0), *c), (last, *d), strict=True):
        phi.add_incoming(value, entry)
        phi.add_incoming(next_value, builder.block)

    align = dtype.bitwidth // 8
    for r, (n, column) in product(range(rows), enumerate(columns)):
        source, target = (place.vector(builder, dtype, r, column) for place in (addend, d))
        builder.store(builder.fadd(builder.load(source, align=align), sums[r][n]), target, align=align)
    builder.cbranch(builder.icmp_signed("<", last, terms), begin, done)

    builder.position_at_end(done)
    builder.ret_void()
    return function


@intrinsic
def multiply_tile(
    typing_context: Any,
    like: Any,
    rows: Any,
    panels: Any,
    terms: Any,
    chain: Any,
    a: Any,
    a_row: Any,
    b: Any,
    b_panel: Any,
    ahead: Any,
    step: Any,
    c: Any,
    c_panel: Any,
    c_row: Any,
    d: Any,
    d_panel: Any,
    d_row: Any,
) -> Any:
    """d = c + a b for `rows` rows (1 to ROWS) and `panels` panels (PANELS_AT_ONCE[rows], or that halved, down to 1).

    With `HAS_HALF_PANELS` 0 stands for the first half of one.

    a, b, ahead, c and d are addresses; strides count elements as `like`; nothing is checked. A chain has `chain` terms,
    at least 1 if there are any; the last one has what is left.

    a  in   row r's terms at ``a + r * a_row + k``
    b  in   panel p's vectors of term k at ``b + p * b_panel + k * PANEL_VECTORS * lanes``
    ahead   its part of the weights that come next, for which it asks: ``ahead + k * step``, in bytes; 0, or where
            `TILES_TO_SHARE` is `NEVER`: it asks for its own. Tiles of few rows ask for nothing
    c  in   row r of panel p at ``c + p * c_panel + r * c_row``; may be d itself, but not overlap it otherwise
    d  out  row r of panel p at ``d + p * d_panel + r * d_row``; must not overlap a or b
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        _, rows, panels, terms, chain, a, a_row, b, b_panel, ahead, step, *addend_and_sum = args
        c, c_panel, c_row, d, d_panel, d_row = addend_and_sum
        shares = TILES_TO_SHARE != NEVER
        if shares:
            is_own = builder.zext(builder.icmp_signed("==", ahead, ir.Constant(I64, 0)), I64)
        else:
            is_own = ir.Constant(I64, 1)
        a, b, c, d = (builder.inttoptr(place, llvm_element(like).as_pointer()) for place in (a, b, c, d))
        ahead = builder.inttoptr(ahead, ir.IntType(8).as_pointer())
        operands = [terms, chain, a, a_row, b, b_panel, ahead, step, c, c_panel, c_row, d, d_panel, d_row]
        finished = builder.append_basic_block("tile.finished")
        size = builder.add(builder.mul(panels, ir.Constant(I64, 16)), rows)
        choice = builder.switch(builder.add(builder.mul(is_own, ir.Constant(I64, 128)), size), finished)
        for count, own in product(range(1, ROWS + 1), (False, True) if shares else (True,)):
            for width in _widths(count):
                block = builder.append_basic_block(f"tile.{count}x{width}")
                choice.add_case(ir.Constant(I64, 128 * own + 16 * width + count), block)
                with builder.goto_block(block):
                    for columns in _tiles(count, width):
                        # Half a panel is rare: it has one function, of the kind that needs to be told nothing.
                        asks_own = (own or width == 0) and count >= _ROWS_TO_PREFETCH
                        builder.call(_tile_function(builder.module, like, count, columns, asks_own), operands)
                    builder.branch(finished)
        builder.position_at_end(finished)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 16), codegen
