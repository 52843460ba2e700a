"""How the rows of one call are cut: which rows want which scheme, and pieces short enough to interrupt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from aq2_pipeline import arrow, build, schemes
from aq2_pipeline.codecs import Sizes
from aq2_pipeline.errors import Aq2Error, SchemeError
from aq2_pipeline.weights import frozen_view

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.weights import Array, Weights

    Failures = dict[int, Aq2Error]

#: Weights that one call into a kernel takes at the most, so that an interrupt is answered: 1 ms of int4_g128, 110 ms of
#: int2_g32_asym:hqq, the slowest search. Four times as many were not faster.
SLICE_SIZE = 1 << 21
#: Weights of another type than float32 that are widened at a time; see `kernels.rows`.
BLOCK_SIZE = 1 << 10
#: Weights of a longer group that are widened at a time.
GROUP_SLICE_SIZE = 1 << 20


#: What `Pieces.slices` says of a slice of a group.
FIRST, LATER = 1, 2


class Pieces(NamedTuple):
    """What kernels work through: rows, or pieces of rows longer than a slice.

    Attributes
    ----------
    rows, offsets : int64 arrays
        Which row a piece is of, and the weight in it where it begins.
    lengths, row_lengths : int64 arrays
        Its weights, and those of its matrix rows.
    slices : int64 array or None
        Where groups are cut: `FIRST` and `LATER` for the slices of one group, 0 for other pieces.
    whole : bool
        Whether each piece is a row.
    """

    rows: Array
    offsets: Array
    lengths: Array
    row_lengths: Array
    slices: Array | None = None
    whole: bool = False

    def of(self, column: Array) -> Array:
        """Return what a column with an entry a row has for each piece."""
        return column if self.whole and self.rows.size == column.size else column[self.rows]

    def spans(self, scheme: Scheme, targets: Iterable[tuple[Array, Array]]) -> Iterator[tuple[Array, Array]]:
        """Yield the spans of the pieces in each buffer of their codes: data, scales, zero points.

        Slices of a group have data of their own, and its scale and zero point in common.

        Parameters
        ----------
        scheme : Scheme
        targets : iterable of (starts, stops)
            Where each row begins and ends in them.
        """
        if self.whole:
            for starts, stops in targets:
                yield frozen(self.of(starts)), frozen(self.of(stops))
            return
        sizes = scheme.codec.sizes(self.lengths, self.row_lengths, scheme.params)
        first = np.searchsorted(self.rows, self.rows)  # the first piece of the same row
        for k, ((starts, _), size) in enumerate(zip(targets, sizes, strict=True)):
            shared = 0 if k == 0 or self.slices is None else (self.slices == LATER) * size
            begins = np.cumsum(size - shared) - size
            yield span(starts[self.rows] + begins - begins[first], size)


def sizes_of(scheme: Scheme, lengths: Array, row_lengths: Array) -> Sizes:
    """Return what rows take."""
    if not _are_equal(lengths, row_lengths):
        return scheme.codec.sizes(lengths, row_lengths, scheme.params)
    one = scheme.sizes(int(lengths[0]), int(row_lengths[0]))
    return Sizes(*(build.filled(lengths.size, size) for size in one))


def offsets_of(scheme: Scheme, lengths: Array, row_lengths: Array) -> Sizes:
    """Return where rows begin in what they take, one after the other, and where the last ends: n + 1 offsets each."""
    if not _are_equal(lengths, row_lengths):
        return Sizes(*map(build.offsets_of, scheme.codec.sizes(lengths, row_lengths, scheme.params)))
    one = scheme.sizes(int(lengths[0]), int(row_lengths[0]))
    return Sizes(*(build.equal_offsets(lengths.size, size) for size in one))


def _are_equal(lengths: Array, row_lengths: Array) -> bool:
    """Whether rows are alike, as embeddings and a single layer are, so that one stands for all."""
    n = lengths.size
    if n < 2:  # noqa: PLR2004 - one row, or none
        return n == 1
    same = row_lengths is lengths or bool((row_lengths == row_lengths[0]).all())
    return same and bool((lengths == lengths[0]).all())


def cut(
    scheme: Scheme,
    rows: Array,
    lengths: Array,
    row_lengths: Array,
    longest: int | None = None,
    size: int | None = None,
) -> Pieces:
    """Cut long rows at matrix rows, or at groups within them, so that the pieces encode as the whole does.

    Parameters
    ----------
    scheme : Scheme
    rows : int64 array
        The rows to cut.
    lengths, row_lengths : int64 arrays
        Of all rows.
    longest : int, optional
        How many weights a piece may have that is a single group; a longer group is
        cut into slices, if its codec can measure them. Default `SLICE_SIZE`.
    size : int, optional
        How many weights a piece may have. Default `SLICE_SIZE`.
    """
    size = size or SLICE_SIZE
    if rows.size < lengths.size:
        lengths, row_lengths = lengths[rows], row_lengths[rows]
    if lengths.max(initial=0) <= size:
        return Pieces(rows, build.filled(rows.size, 0), lengths, row_lengths, whole=True)
    pairs = list(zip(lengths.tolist(), row_lengths.tolist(), strict=True))
    known = {pair: _steps(scheme, *pair, size, longest or SLICE_SIZE) for pair in set(pairs)}
    stride, step, inside, sliced = np.array([known[pair] for pair in pairs], np.int64).T
    each = -(-stride // step)
    n = lengths // stride * each
    row = np.repeat(np.arange(rows.size), n)
    block, k = np.divmod(np.arange(row.size) - np.repeat(np.cumsum(n) - n, n), each[row])
    sizes = np.minimum(step[row], stride[row] - k * step[row])
    found = np.where(sliced[row] > 0, np.where(k == 0, FIRST, LATER), 0)
    return Pieces(
        rows[row],
        block * stride[row] + k * step[row],
        sizes,
        np.where(inside[row] > 0, sizes, row_lengths[row]),
        found if found.any() else None,
    )


def _steps(scheme: Scheme, length: int, row_length: int, longest: int, longest_group: int) -> tuple[int, int, int, int]:
    """Return how a row is cut: at multiples of a stride, there in steps, and whether these are inside a matrix row.

    The last number says whether they are inside a group, too: slices begin at
    whole vectors, and so at whole bytes, whatever the bits.
    """
    if length <= longest:
        return max(length, 1), max(length, 1), 0, 0
    unit = scheme.codec.piece(row_length, scheme.params)
    if unit and row_length <= longest:
        return length, longest // row_length * row_length, 0, 0
    stride, group = (row_length, unit) if unit else (length, length)
    if group <= longest_group or scheme.codec.measure_name is None or stride % group:
        return stride, max(longest // group, 1) * group, int(unit > 0), 0
    return group, max(longest_group // 64, 1) * 64, 1, 1


def cut_anywhere(lengths: Array) -> Pieces:
    """Cut long rows into slices, which begin at blocks of sums."""
    n = np.maximum(-(-lengths // SLICE_SIZE), 1)
    rows = np.repeat(np.arange(lengths.size), n)
    offsets = (np.arange(rows.size) - np.repeat(np.cumsum(n) - n, n)) * SLICE_SIZE
    sizes = np.minimum(lengths[rows] - offsets, SLICE_SIZE)
    return Pieces(rows, offsets, sizes, sizes)


def slices(lengths: Array) -> Iterator[tuple[int, int]]:
    """Yield ranges of pieces that hold at most `SLICE_SIZE` weights; a longer piece stands alone."""
    ends = lengths.cumsum()
    if ends.size and ends[-1] <= SLICE_SIZE:
        yield 0, ends.size
        return
    first = 0
    while first < lengths.size:
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + SLICE_SIZE, "right")))
        yield first, last
        first = last


def in_order(pieces: Pieces, ranges: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Yield lists of ranges of pieces: those of one list share a row and go one after the other."""
    run: list[tuple[Any, ...]] = []
    for found in ranges:
        if run and pieces.rows[found[0]] != pieces.rows[found[0] - 1]:
            yield run
            run = []
        run.append(found)
    if run:
        yield run


class Source(NamedTuple):
    """What kernels read of pieces of weights, as `kernels.rows` names it, and the scratch that a call needs."""

    kind: int
    values: Array
    raw: Array
    starts: Array
    stops: Array
    n_scratch: int


def longest_group(weights: Weights) -> int:
    """Return how many weights a piece may have that is a single group: what is widened is so at once."""
    return SLICE_SIZE if weights.kind is None else min(GROUP_SLICE_SIZE, SLICE_SIZE)


def source(weights: Weights, pieces: Pieces) -> Source:
    """Return what kernels read of pieces: of aligned float32 in elements, of anything else in bytes."""
    from aq2_pipeline.kernels.moments import BLOCK_SIZE as BLOCK_OF_SUMS  # noqa: PLC0415 - kernels load at first use
    from aq2_pipeline.kernels.widening import DIRECT, KINDS, STAGING  # noqa: PLC0415

    starts = pieces.of(weights.starts)
    starts = starts if pieces.whole else starts + pieces.offsets
    if weights.kind is None:
        return Source(DIRECT, weights.values, weights.raw, *span(starts, pieces.lengths), 0)
    size = weights.item_size
    starts = starts * size + pieces.of(weights.skew)
    ends = span(starts, pieces.lengths * size)
    return Source(KINDS[weights.kind], weights.values, weights.raw, *ends, BLOCK_OF_SUMS + STAGING)


def plans(scheme: Scheme, pieces: Pieces) -> tuple[Array, int]:
    """Return how kernels cut pieces into blocks to widen, as `kernels.rows` names it, and the scratch for that."""
    from aq2_pipeline.kernels.rows import N_PLAN  # noqa: PLC0415 - kernels load at their first use
    from aq2_pipeline.kernels.widening import STAGING  # noqa: PLC0415

    sliced = np.zeros(pieces.rows.size, np.int64) if pieces.slices is None else pieces.slices
    pairs = list(zip(pieces.lengths.tolist(), pieces.row_lengths.tolist(), (sliced > 0).tolist(), strict=True))
    known = {key: _plan(scheme, *key) for key in set(pairs)}
    found = np.array([known[key] for key in pairs], np.int64).reshape(-1, N_PLAN)
    return frozen(found.reshape(-1)), int(found[:, 0].max(initial=0)) + STAGING


def _plan(scheme: Scheme, length: int, row_length: int, sliced: bool) -> list[int]:  # noqa: FBT001
    stride, step, inside = max(length, 1), max(length, 1), 0
    if not sliced:
        stride, step, inside, _ = _steps(scheme, length, row_length, BLOCK_SIZE, length)
    whole = stride if inside else row_length
    lengths, rows = np.array([step, stride]), np.array([step if inside else row_length, whole])
    of_block, of_stride = zip(*scheme.codec.sizes(lengths, rows, scheme.params), strict=True)
    return [step, stride, inside, *map(int, of_block), *map(int, of_stride)]


def step(kernel: Callable[..., None], n_scratch: int, *arguments: Any) -> Callable[[], None]:
    """Return a call of a kernel of `kernels.rows` with scratch of its own as its last argument."""

    def call() -> None:
        kernel(*arguments, np.empty(n_scratch, np.float32))

    return call


def frozen(array: Any) -> Array:
    """Return a contiguous read-only int64 view, as kernels take spans."""
    whole = np.ascontiguousarray(array, np.int64)
    return frozen_view(whole) if whole.flags.writeable else whole


def span(starts: Array, sizes: Array) -> tuple[Array, Array]:
    """Return (starts, stops) as kernels take them."""
    return frozen(starts), frozen(np.add(starts, sizes, out=build.empty(sizes.size, np.int64)))


def _no_scheme(row: int) -> Aq2Error:
    return SchemeError("the scheme is NULL", "give each row that has weights a scheme").at(row=row)


def _listed(scheme: list[Scheme | None], active: Array, failures: Failures) -> list[tuple[Scheme, Array]]:
    found: dict[Scheme, list[int]] = {}
    for row in active.nonzero()[0].tolist():
        wanted = scheme[row]
        if wanted is None:
            failures[row] = _no_scheme(row)
        else:
            found.setdefault(wanted, []).append(row)
    return [(wanted, np.array(rows, np.int64)) for wanted, rows in found.items()]


def wanted_schemes(
    scheme: Any, active: Array, failures: Failures, *, stored: bool = False
) -> list[tuple[Scheme, Array]]:
    """Return each scheme with the rows that want it, ascending; a wrong name in a column fails its rows.

    Parameters
    ----------
    scheme : int, str, Scheme, pyarrow.Array or list
        One scheme for all rows, a column of integers or strings, or a list of
        Scheme or None a row.
    active : bool array
        Rows that have weights; the others want nothing.
    failures : dict
        Receives row -> SchemeError.
    stored : bool
        Whether a column holds stored names, which say neither method nor input dtype.
    """
    if isinstance(scheme, list):
        return _listed(scheme, active, failures)
    if not isinstance(scheme, pa.Array):
        return [(schemes.parse(scheme), build.positions(active.size))]
    return _told(arrow.decoded(scheme), active, failures, stored=stored)


def _told(column: pa.Array, active: Array, failures: Failures, *, stored: bool) -> list[tuple[Scheme, Array]]:
    kind = column.type
    text = pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind)
    if not (text or pt.is_integer(kind) or pt.is_null(kind)):
        msg = f"scheme: a column of {kind} holds no schemes"
        raise SchemeError(msg, "integers from 2 to 8, or names such as 'int4_g64'")
    if len(column) != active.size:
        msg = f"scheme: the column has {len(column)} rows, the weights have {active.size}"
        raise SchemeError(msg)
    known = arrow.validity(column)
    for row in np.flatnonzero(active & ~known).tolist():
        failures[row] = _no_scheme(row)
    if pt.is_null(kind):
        return []
    names, index = arrow.indices(column)
    found: dict[Scheme, Array] = {}
    for k, name in enumerate(names):
        rows = np.flatnonzero((index == k) & active)
        if rows.size == 0:
            continue
        try:
            parsed = schemes.parse(name)
            if stored and parsed.name != name:
                msg = f"the scheme {name!r} is no stored name"
                raise SchemeError(msg, f"a stored row says {parsed.name!r}")  # noqa: TRY301
        except SchemeError as error:
            failures.update((row, SchemeError(error.reason, error.hint).at(row=row)) for row in rows.tolist())
        else:
            found[parsed] = np.sort(np.concatenate([found[parsed], rows])) if parsed in found else rows
    return list(found.items())
