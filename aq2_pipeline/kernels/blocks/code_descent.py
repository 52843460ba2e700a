"""The scales that ggml gives the sub-blocks of Q3_K, by moving single codes (make_q3_quants of ggml-quants.c).

Codes begin as those of the weight furthest from zero over the least code. One after
the other may then move to where the scale that fits them all fits better, in up to
five rounds. On layers of MiniLM 0.39 codes of a sub-block of 16 move, and 18 % of
the sub-blocks have any that does: so all sub-blocks are first asked together
whether a code could move, and those that say yes go the long way, in turns. That
took 330 ns a super-block; moving the codes of all sub-blocks side by side 870 ns,
for each of up to 80 steps waits for the one before, a division included.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST, bits_of
from aq2_pipeline.kernels.blocks.columns import ZERO
from aq2_pipeline.kernels.blocks.rounding import nearest_between
from aq2_pipeline.kernels.blocks.sub_blocks import SMALLEST, nearest_within
from aq2_pipeline.kernels.lanes import (
    lane,
    load,
    local,
    magnitude,
    maximum,
    minimum,
    packed,
    splat,
    store,
    unpacked,
    where,
)

LOW, HIGH = np.int32(-4), np.int32(3)
N_ROUNDS = 5
#: Blocks that are worked on at once, their sub-blocks and weights.
BATCH = 2
N_PARTS, N_WEIGHTS = 16 * BATCH, 256 * BATCH

_LOW, _HIGH = np.float32(LOW), np.float32(HIGH)
_HALF = np.float32(0.5)
_NEARLY_HALF = np.float32(0.5 - 2.0**-16)
#: Sums from here on are not blurred by subnormal numbers.
_LEAST_SUM = np.float32(1e-30)


@helper
def lowest_place(bits: Any) -> Any:
    """Return the place of the lowest 1 among 16 bits: the exponent of what it stands for."""
    return (bits_of(np.float32(bits & -bits)) >> 23) - 127


@helper
def unmoved(columns: Any, products: Any, codes: Any, xq: Any, qq: Any) -> Any:
    """Return the lanes none of whose codes ggml would move.

    With scale `s = xq / qq`, a weight x of code q and p = x**3 * q, a part of xq, ggml rounds
    `x * (qq - x**2 * q**2) / (xq - p)`, which is `q + (x / s - q) * xq / (xq - p)`: to another code only where
    `abs(x / s - q) > (1 - p / xq) / 2`. What rounding blurs, and whatever is not finite, counts as moved.
    Where xq is below 0 no part of it is above, and ggml moves nothing: the furthest weight is positive.
    """
    inverse, share, worst = qq / xq, _HALF / xq, splat(ZERO)
    for i in range(0, 256, 16):
        off = magnitude(minimum(load(columns, i) * inverse, splat(_HIGH)) - load(codes, i))
        worst = maximum(worst, off + load(products, i) * share)
    plain = (xq > _LEAST_SUM) & (xq < LARGEST) & (qq < LARGEST)
    return (xq < ZERO) | (plain & (worst < _NEARLY_HALF))


@helper
def asked(x: Any, q: Any, xq: Any, qq: Any) -> Any:
    """Return which codes of one sub-block ggml would move, as bits, and what codes and sums would become."""
    w = x * x
    cube = w * x
    less_xq, less_qq = xq - cube * q, qq - w * q * q
    moved = nearest_within(x * less_qq / less_xq, LOW, HIGH)
    new_xq, new_qq = less_xq + cube * moved, less_qq + w * moved * moved
    better = (less_xq > ZERO) & (new_qq > ZERO) & (new_xq * new_xq * qq > xq * xq * new_qq)
    return packed(better & (magnitude(moved - q) > ZERO)), moved, new_xq, new_qq


@helper
def descend(values: Any, pending: Any, n: Any, codes: Any, xqs: Any, qqs: Any) -> None:
    """Move codes of `n` pending sub-blocks, and keep their sums.

    A vector is a sub-block: what all its codes would do is known before the first that
    moves, and asked again after it. Each takes its turn with one move, without a branch,
    so that the next one's question need not wait for this one's answer.
    """
    before, n_rounds = local(N_PARTS, np.int64), local(N_PARTS, np.int64)
    for j in range(n):
        before[pending[j]] = n_rounds[pending[j]] = 0
    while n > 0:
        n_left = 0
        for j in range(n):
            k = pending[j]
            q, xq, qq = load(codes, 16 * k), splat(xqs[k]), splat(qqs[k])
            moves, moved, new_xq, new_qq = asked(load(values, 16 * k), q, xq, qq)
            later = moves & ~before[k]
            n_rounds[k] += later == 0
            moves = (later if later != 0 else moves) * (n_rounds[k] < N_ROUNDS)
            first = moves & -moves
            mask, at = unpacked(first), lowest_place(first) & 15
            before[k] = first | (first - 1)
            store(codes, 16 * k, where(mask, moved, q))
            xqs[k], qqs[k] = lane(where(mask, new_xq, xq), at), lane(where(mask, new_qq, qq), at)
            pending[n_left] = k
            n_left += first != 0
        n = n_left


@helper
def begin(columns: Any, inverse: Any) -> Any:
    """Return the sums of one block's first codes, and the lanes that no move changes."""
    products, codes = local(256, np.float32), local(256, np.float32)
    xq, qq = splat(ZERO), splat(ZERO)
    for i in range(0, 256, 16):
        x = load(columns, i)
        q, w = nearest_between(x * inverse, _LOW, _HIGH), x * x
        product = w * x * q
        store(products, i, product)
        store(codes, i, q)
        xq, qq = xq + product, qq + w * q * q
    return xq, qq, unmoved(columns, products, codes, xq, qq)


@helper
def descended_scales(values: Any, columns: Any, ends: Any, scales: Any, codes: Any, all_codes: Any) -> None:
    """Write ggml's scale of each sub-block, and the codes that it fits, of sub-blocks that were moved or of all.

    `columns` are the values, turned; `ends` each sub-block's weight furthest from zero.
    """
    xqs, qqs = local(N_PARTS, np.float32), local(N_PARTS, np.float32)
    inverses, pending, n = local(N_PARTS, np.float32), local(N_PARTS, np.int64), 0
    for first in range(0, N_PARTS, 16):
        end = load(ends, first)
        small = magnitude(end) < SMALLEST
        inverse = where(small, splat(ZERO), _LOW / end)
        xq, qq, settled = begin(columns[16 * first : 16 * first + 256], inverse)
        store(inverses, first, inverse)
        store(xqs, first, xq)
        store(qqs, first, qq)
        left = packed(small | settled) ^ 0xFFFF
        for k in range(16):
            pending[n] = first + k
            n += left >> k & 1
    for j in range(N_PARTS if all_codes else n):
        k = j if all_codes else pending[j]
        store(codes, 16 * k, nearest_between(load(values, 16 * k) * inverses[k], _LOW, _HIGH))
    descend(values, pending, n, codes, xqs, qqs)
    for first in range(0, N_PARTS, 16):
        xq, qq = load(xqs, first), load(qqs, first)
        store(scales, first, where(qq > ZERO, xq / qq, splat(ZERO)))
