"""One step of an optimiser over whole arrays, and the sums that a gradient's norm is made of: one pass over memory.

The formulas are those of torch.optim in its order of operations, with torch's fused multiply-adds. For a parameter p
with the gradient g, sign -1 to go uphill and the weight decay w that adds to the gradient,

    g = sign g + w p
    SGD     b = momentum b + (1 - dampening) g, at first b = g
            p' = p - lr b, or with Nesterov p - lr (g + momentum b)
    Adam    m = m + (1 - beta1) (g - m),  v = beta2 v + (1 - beta2) g g,  largest = max(largest, v)
            p' = shrink p - step_size m / (sqrt(v or largest) / root + eps)

All is torch's to the bit but the square root, which may be a unit in the last place off there and is rounded correctly
here. p' goes to an array of its own, because the old parameters may still be read; b, m, v and largest change in place.
Each slice does its share of every array, and a number does not depend on its neighbours: any split gives the same bits.
"""

from __future__ import annotations

import math

import numpy as np

from nblstm.kernels.job import reader_of
from nblstm.kernels.memory import numbers_at
from nblstm.kernels.policy import LINE, function, worker
from nblstm.kernels.schedule import copy_numbers, share
from nblstm.kernels.simd import fma, lanes_of, larger, load, square_root, squares, store

# Shares end at whole blocks: no two slices write to one cache line, and sums have the same chains for every split.
BLOCK = 4096
_I64, _F64 = np.int64, np.float64

UPDATE_JOB = np.dtype(
    [
        ("records", _I64),  # address of so many records of one kind
        ("count", _I64),
        ("parts", _I64),  # slices
        ("scratch", _I64),  # (parts, SCRATCH bytes)
    ]
)

# Addresses are of contiguous 1-D arrays of `count` numbers; the numbers that torch rounds to the dtype are float64.
SGD_UPDATE = np.dtype(
    [
        ("count", _I64),
        ("parameter", _I64),  # in
        ("gradient", _I64),  # in
        ("result", _I64),  # out
        ("buffer", _I64),  # inout; 0: no momentum
        ("fresh", _I64),  # whether the buffer has no content yet
        ("nesterov", _I64),
        ("sign", _F64),
        ("weight_decay", _F64),
        ("momentum", _F64),
        ("gradient_weight", _F64),  # 1 - dampening
        ("lr", _F64),
    ]
)

ADAM_UPDATE = np.dtype(
    [
        ("count", _I64),
        ("parameter", _I64),  # in
        ("gradient", _I64),  # in
        ("result", _I64),  # out
        ("average", _I64),  # inout: m
        ("square", _I64),  # inout: v
        ("largest", _I64),  # inout; 0: v itself is the divisor
        ("from_gradient", _I64),  # m = g + c (g - m) for m + c (g - m): torch's lerp from a weight of 1/2 on
        ("sign", _F64),
        ("weight_decay", _F64),
        ("shrink", _F64),  # 1 - lr * decoupled weight decay
        ("average_weight", _F64),  # c
        ("beta2", _F64),
        ("square_weight", _F64),  # 1 - beta2
        ("root", _F64),  # sqrt(1 - beta2^t)
        ("eps", _F64),
        ("step_size", _F64),  # lr / (1 - beta1^t)
    ]
)

# Kinds of terms of a sum over |x|; LARGEST and SMALLEST are no sums, but come from the same blocks.
ABSOLUTE, SQUARE, POWER, NONZERO, LARGEST, SMALLEST = range(6)

SUM = np.dtype(
    [
        ("count", _I64),
        ("array", _I64),  # in
        ("sums", _I64),  # out: (blocks,) float64
        ("kind", _I64),
        ("power", _F64),
        ("scale", _F64),  # POWER: of |x| / scale
    ]
)

_job_at, _sgd_at, _adam_at, _sum_at = (reader_of(dtype) for dtype in (UPDATE_JOB, SGD_UPDATE, ADAM_UPDATE, SUM))
_SGD_SIZE, _ADAM_SIZE, _SUM_SIZE = SGD_UPDATE.itemsize, ADAM_UPDATE.itemsize, SUM.itemsize
_VECTORS = 6  # of scratch memory, each with a cache line of its own
SCRATCH = _VECTORS * LINE
_ZERO = np.int64(0)


@function
def _sgd_run(update, parameter, gradient, result, buffer, begin, end):
    """Do the whole vectors from `begin` to `end`."""
    has_buffer, fresh, nesterov = update.buffer != 0, update.fresh != 0, update.nesterov != 0
    sign, decay, momentum, step = update.sign, update.weight_decay, update.momentum, -update.lr
    gradient_weight = update.gradient_weight
    for i in range(begin, end, lanes_of(parameter)):
        p = load(parameter, i)
        g = load(gradient, i) * sign
        if decay != 0:
            g = fma(p, decay, g)
        if has_buffer:
            b = g
            if not fresh:
                b = fma(g, gradient_weight, load(buffer, i) * momentum)
            store(buffer, i, b)
            g = fma(b, momentum, g) if nesterov else b
        store(result, i, fma(g, step, p))


@function
def _adam_run(update, parameter, gradient, result, average, square, largest, begin, end):
    """Do the whole vectors from `begin` to `end`."""
    has_largest, from_gradient = update.largest != 0, update.from_gradient != 0
    sign, decay, shrink, average_weight = update.sign, update.weight_decay, update.shrink, update.average_weight
    beta2, square_weight, root = update.beta2, update.square_weight, update.root
    eps, step = update.eps, -update.step_size
    for i in range(begin, end, lanes_of(parameter)):
        p = load(parameter, i)
        g = load(gradient, i) * sign
        if decay != 0:
            g = fma(p, decay, g)
        m = load(average, i)
        m = fma(g - m, average_weight, g if from_gradient else m)
        store(average, i, m)
        v = fma(g * square_weight, g, load(square, i) * beta2)
        store(square, i, v)
        if has_largest:
            v = larger(load(largest, i), v)
            store(largest, i, v)
        store(result, i, p * shrink + m * step / (square_root(v) / root + eps))


@function
def _piece(count, piece, parts, lanes):
    """Return (begin, end of the whole vectors, end) of a share of so many numbers."""
    first, last = share((count + BLOCK - 1) // BLOCK, piece, parts)
    begin, end = first * BLOCK, min(last * BLOCK, count)
    return begin, begin + max(end - begin, 0) // lanes * lanes, end


@function
def _vector_of(scratch, place, address, start, count, like):
    """Return a vector of scratch memory that begins with `count` numbers of the array at `address`, if there is one."""
    vector = numbers_at(scratch + place * LINE, like)
    for i in range(lanes_of(like)):
        vector[i] = 0
    if address != 0:
        copy_numbers(numbers_at(address, like), start, vector, _ZERO, count)
    return vector


@function
def _put_back(vector, address, start, count):
    """Write `count` numbers of a vector to the array at `address`, if there is one."""
    if address != 0:
        copy_numbers(vector, _ZERO, numbers_at(address, vector), start, count)


@function
def _sgd_slice(address, piece, like):
    """Do a share of each array."""
    job = _job_at(address)
    scratch = job.scratch + piece * SCRATCH
    for index in range(job.count):
        update = _sgd_at(job.records + index * _SGD_SIZE)
        begin, whole, end = _piece(update.count, piece, job.parts, lanes_of(like))
        parameter, gradient = numbers_at(update.parameter, like), numbers_at(update.gradient, like)
        result, buffer = numbers_at(update.result, like), numbers_at(update.buffer, like)
        _sgd_run(update, parameter, gradient, result, buffer, begin, whole)
        if whole < end:  # what is left goes through vectors too, so that it has the same bits at any place
            parameter = _vector_of(scratch, 0, update.parameter, whole, end - whole, like)
            gradient = _vector_of(scratch, 1, update.gradient, whole, end - whole, like)
            result = _vector_of(scratch, 2, _ZERO, whole, end - whole, like)
            buffer = _vector_of(scratch, 3, update.buffer, whole, end - whole, like)
            _sgd_run(update, parameter, gradient, result, buffer, _ZERO, lanes_of(like))
            _put_back(result, update.result, whole, end - whole)
            _put_back(buffer, update.buffer, whole, end - whole)


@function
def _adam_slice(address, piece, like):
    """Do a share of each array."""
    job = _job_at(address)
    scratch = job.scratch + piece * SCRATCH
    for index in range(job.count):
        update = _adam_at(job.records + index * _ADAM_SIZE)
        begin, whole, end = _piece(update.count, piece, job.parts, lanes_of(like))
        parameter, gradient = numbers_at(update.parameter, like), numbers_at(update.gradient, like)
        result, average = numbers_at(update.result, like), numbers_at(update.average, like)
        square, largest = numbers_at(update.square, like), numbers_at(update.largest, like)
        _adam_run(update, parameter, gradient, result, average, square, largest, begin, whole)
        if whole < end:
            parameter = _vector_of(scratch, 0, update.parameter, whole, end - whole, like)
            gradient = _vector_of(scratch, 1, update.gradient, whole, end - whole, like)
            result = _vector_of(scratch, 2, _ZERO, whole, end - whole, like)
            average = _vector_of(scratch, 3, update.average, whole, end - whole, like)
            square = _vector_of(scratch, 4, update.square, whole, end - whole, like)
            largest = _vector_of(scratch, 5, update.largest, whole, end - whole, like)
            _adam_run(update, parameter, gradient, result, average, square, largest, _ZERO, lanes_of(like))
            _put_back(result, update.result, whole, end - whole)
            _put_back(average, update.average, whole, end - whole)
            _put_back(square, update.square, whole, end - whole)
            _put_back(largest, update.largest, whole, end - whole)


@function
def _term(kind, x, power, scale):
    """Return what a number adds to a sum; in float64."""
    x = abs(np.float64(x))
    if kind == SQUARE:
        return x * x
    if kind == ABSOLUTE:
        return x
    if kind == NONZERO:
        return 1.0 if x != 0 else 0.0
    return math.pow(x / scale, power)


@function
def _sum_of(array, begin, end, kind, power, scale):
    """Return the sum of the terms of a block, in eight chains."""
    a = b = c = d = e = f = g = h = 0.0
    whole = begin + (end - begin) // 8 * 8
    for i in range(begin, whole, 8):
        a += _term(kind, array[i], power, scale)
        b += _term(kind, array[i + 1], power, scale)
        c += _term(kind, array[i + 2], power, scale)
        d += _term(kind, array[i + 3], power, scale)
        e += _term(kind, array[i + 4], power, scale)
        f += _term(kind, array[i + 5], power, scale)
        g += _term(kind, array[i + 6], power, scale)
        h += _term(kind, array[i + 7], power, scale)
    for i in range(whole, end):
        a += _term(kind, array[i], power, scale)
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@function
def _squares_of(array, begin, end, scratch):
    """Return the sum of the squares of a block, in four chains of vectors."""
    lanes = lanes_of(array)
    step = 4 * lanes
    whole = begin + (end - begin) // step * step
    total = 0.0
    if whole > begin:
        a, b = squares(load(array, begin)), squares(load(array, begin + lanes))
        c, d = squares(load(array, begin + 2 * lanes)), squares(load(array, begin + 3 * lanes))
        for i in range(begin + step, whole, step):
            a = a + squares(load(array, i))
            b = b + squares(load(array, i + lanes))
            c = c + squares(load(array, i + 2 * lanes))
            d = d + squares(load(array, i + 3 * lanes))
        store(scratch, 0, (a + b) + (c + d))
        for i in range(lanes_of(scratch)):
            total += scratch[i]
    return total + _sum_of(array, whole, end, SQUARE, 2.0, 1.0)


@function
def _end_of(array, begin, end, sign):
    """Return the largest |x| of a block, or the smallest for sign -1; NaN if there is one."""
    found = sign * abs(np.float64(array[begin]))
    for i in range(begin, end):
        x = sign * abs(np.float64(array[i]))
        found = found if x <= found or found != found else x
    return sign * found


@function
def _sum_slice(address, piece, like):
    """Do a share of the blocks of each array."""
    job = _job_at(address)
    scratch = numbers_at(job.scratch + piece * SCRATCH, np.float64(0))
    for index in range(job.count):
        record = _sum_at(job.records + index * _SUM_SIZE)
        count, kind, power, scale = record.count, record.kind, record.power, record.scale
        blocks = (count + BLOCK - 1) // BLOCK
        array, sums = numbers_at(record.array, like), numbers_at(record.sums, np.float64(0))
        first, last = share(blocks, piece, job.parts)
        for block in range(first, last):
            begin, end = block * BLOCK, min((block + 1) * BLOCK, count)
            if kind == SQUARE:
                sums[block] = _squares_of(array, begin, end, scratch)
            elif kind == LARGEST:
                sums[block] = _end_of(array, begin, end, 1.0)
            elif kind == SMALLEST:
                sums[block] = _end_of(array, begin, end, -1.0)
            else:
                sums[block] = _sum_of(array, begin, end, kind, power, scale)


@worker
def sgd_float32(job, piece, step):
    """The worker for SGD in float32."""
    _sgd_slice(job, piece, np.float32(0))


@worker
def sgd_float64(job, piece, step):
    """The worker for SGD in float64."""
    _sgd_slice(job, piece, np.float64(0))


@worker
def adam_float32(job, piece, step):
    """The worker for Adam in float32."""
    _adam_slice(job, piece, np.float32(0))


@worker
def adam_float64(job, piece, step):
    """The worker for Adam in float64."""
    _adam_slice(job, piece, np.float64(0))


@worker
def sum_float32(job, piece, step):
    """The worker for sums over float32."""
    _sum_slice(job, piece, np.float32(0))


@worker
def sum_float64(job, piece, step):
    """The worker for sums over float64."""
    _sum_slice(job, piece, np.float64(0))
