"""A column of weights on its way to a quantized column, or to the error that it would have."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aq2_pipeline import arrow, build, columns, threads
from aq2_pipeline.codecs import Sizes
from aq2_pipeline.errors import InputTypeError, InputValueError
from aq2_pipeline.importances import Importance, refuse
from aq2_pipeline.pieces import (
    LATER,
    cut,
    frozen,
    in_order,
    longest_group,
    offsets_of,
    plans,
    sizes_of,
    slices,
    source,
    step,
    wanted_schemes,
)
from aq2_pipeline.shapes import n_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import pyarrow as pa

    from aq2_pipeline.codecs import Codec
    from aq2_pipeline.columns import Column
    from aq2_pipeline.errors import Aq2Error
    from aq2_pipeline.pieces import Failures, Pieces
    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.weights import Array, Weights

_LARGEST_SIZE = np.iinfo(np.int64).max
_NO_FLOATS = np.empty(0, np.float32)
_NO_FLOATS.flags.writeable = False
_NO_PLANS = np.empty(0, np.int64)
_NO_PLANS.flags.writeable = False


@dataclass
class Part:
    """The rows that want one scheme, ascending, the column that they are read from, and their importance, if any."""

    scheme: Scheme
    rows: Array
    weights: Weights
    importance: Importance | None = None

    @property
    def codec(self) -> Codec:
        """What encodes the rows."""
        weighted = self.scheme.codec.weighted
        return self.scheme.codec if self.importance is None or weighted is None else weighted

    @property
    def has_halves(self) -> bool:
        """Whether the weights are float16 that the codec reads where they lie."""
        return self.weights.kind == "f16" and self.codec.encode_halves_name is not None and self.weights.is_aligned


@dataclass
class Read:
    """A part as kernels work through it.

    Attributes
    ----------
    part : Part
    pieces : Pieces
    given : tuple
        What kernels read of the pieces, from `kind` on, as `kernels.rows` names it.
    plan : int64 array
        How the pieces are widened, if they are.
    n_scratch : int
        Floats of scratch that a call needs.
    status : int64 array
        What the kernels say of each piece.
    halves : bool
        Whether the codec itself reads them as float16.
    bounds : int64 array or None
        The measure of the whole group, for each slice of one.
    """

    part: Part
    pieces: Pieces
    given: tuple[Any, ...]
    plan: Array
    n_scratch: int
    status: Array
    halves: bool = False
    bounds: Array | None = None

    def slices(self) -> Iterator[tuple[int, int, Array]]:
        """Yield ranges of pieces for one call each, with the parameters that their kernels are told."""
        params = frozen(self.part.scheme.params)
        if self.bounds is None:
            yield from ((first, last, params) for first, last in slices(self.pieces.lengths))
            return
        for first, last in slices(self.pieces.lengths):
            for k in range(first, last):
                sliced = self.pieces.slices is not None and self.pieces.slices[k] > 0
                yield k, k + 1, frozen([*params, *self.bounds[k]]) if sliced else params


class Encoded(NamedTuple):
    """The buffers of a quantized column."""

    data_offsets: Array
    data: Array
    scale_offsets: Array
    scales: Array
    zero_offsets: Array
    zero_points: Array


class Encoding:
    """One call's rows.

    Parameters
    ----------
    weights, scheme, shape, importance
        As `ops.quantize` takes them.
    skip : collection of int
        Rows to leave null.

    Attributes
    ----------
    parts : list of Part
    lengths, row_lengths : int64 arrays
        Weights a row, and a matrix row; 0 where the row is null.
    valid : bool array
    failures : dict
        Row -> what is wrong with it.
    mass : float64 array or None
        What means over rows divide by, where some have an importance: its sum over their weights.
    """

    def __init__(
        self,
        weights: Column,
        scheme: Any,
        shape: pa.Array | list[Any] | None,
        importance: pa.Array | None,
        skip: Collection[int] = (),
    ) -> None:
        active = columns.validity(weights)
        if skip:
            active[list(skip)] = False
        self.failures: Failures = {}
        self.valid = np.zeros(active.size, bool)
        self.lengths = np.zeros(active.size, np.int64)
        self.parts = self._read(weights, wanted_schemes(scheme, active, self.failures), active)
        self.row_lengths = self.lengths  # of rows without a shape
        self._read_shapes(shape)
        self._check_row_lengths()
        self.mass: Array | None = None
        if importance is not None:
            self._read_importance(Importance(importance, self.valid))

    def _read(self, weights: Column, wanted: list[tuple[Scheme, Array]], active: Array) -> list[Part]:
        """Read the weights once for each input dtype; a dtype that some rows ask for in vain fails these rows."""
        dtypes = {scheme.input_dtype for scheme, _ in wanted} or {columns.undescribed(weights, active.size)}
        read: dict[str | None, Weights] = {}
        for dtype in dtypes:
            mine = active
            if len(wanted) != 1 or wanted[0][1].size != active.size:
                mine = np.zeros(active.size, bool)
                for scheme, rows in wanted:
                    mine[rows] |= scheme.input_dtype == dtype
                mine &= active
            try:
                column = columns.read(weights, dtype, mine)
            except InputTypeError as error:
                if len(dtypes) == 1:
                    raise
                for row in np.flatnonzero(mine).tolist():
                    self.failures[row] = InputTypeError(error.reason, error.hint).at(row=row)
                continue
            column.fail_null_elements()
            self.failures.update(column.failures)
            self.valid |= column.valid
            self.lengths = self.lengths + column.lengths if read else column.lengths
            read[dtype] = column
        return [Part(scheme, rows, read[scheme.input_dtype]) for scheme, rows in wanted if scheme.input_dtype in read]

    def _read_shapes(self, shape: pa.Array | list[Any] | None) -> None:
        if shape is None and all(part.weights.shape is None for part in self.parts):
            return
        given = [None] * self.valid.size if shape is None else shape
        if not isinstance(given, list):
            given = arrow.read_lists(given, "shape")
        self.row_lengths = self.lengths.copy()
        for part in self.parts:
            known: dict[tuple[int, ...], int] = {}
            for row in part.rows[self.valid[part.rows]].tolist():
                of_row = part.weights.shape if given[row] is None else tuple(given[row])
                if of_row is None:
                    continue
                if error := _shape_error(of_row, int(self.lengths[row])):
                    self._fail(row, error)
                    continue
                if of_row not in known:
                    known[of_row] = part.scheme.row_length(of_row)
                self.row_lengths[row] = known[of_row]

    def _check_row_lengths(self) -> None:
        for part in self.parts:
            if part.scheme.block == 1:
                continue
            rows = part.rows[self.valid[part.rows]]
            for row in rows[self.row_lengths[rows] % part.scheme.block != 0].tolist():
                if error := part.scheme.row_error(int(self.row_lengths[row])):
                    self._fail(row, error)

    def _read_importance(self, importance: Importance) -> None:
        """Part the rows that have an importance from those of the same scheme that have none."""
        parts, self.mass = [], self.lengths.astype(np.float64)
        for part in self.parts:
            mine = importance.given[part.rows]
            rows = part.rows[mine & self.valid[part.rows]]
            if part.scheme.codec.weighted is None:
                refuse(part.scheme, rows, self._fail)
                parts.append(part)
                continue
            for row in rows.tolist():
                length, row_length = int(self.lengths[row]), int(self.row_lengths[row])
                if error := importance.check(row, length, row_length):
                    self._fail(row, error)
                else:
                    self.mass[row] = importance.total(row, length)
            pair = replace(part, rows=part.rows[mine], importance=importance), replace(part, rows=part.rows[~mine])
            parts += [one for one in pair if one.rows.size]
        self.parts = parts

    def _fail(self, row: int, error: Aq2Error) -> None:
        self.failures.setdefault(row, error.at(row=row))
        self.valid[row] = False
        self.lengths[row] = self.row_lengths[row] = 0

    @property
    def _is_uniform(self) -> bool:
        """Whether all rows want one scheme."""
        return len(self.parts) == 1 and self.parts[0].rows.size == self.lengths.size

    @property
    def sizes(self) -> Sizes:
        """What each row takes."""
        if self._is_uniform:
            return sizes_of(self.parts[0].scheme, self.lengths, self.row_lengths)
        whole = Sizes(*(np.zeros_like(self.lengths) for _ in Sizes._fields))
        for part in self.parts:
            sizes = sizes_of(part.scheme, self.lengths[part.rows], self.row_lengths[part.rows])
            for target, found in zip(whole, sizes, strict=True):
                target[part.rows] = found
        return whole

    def _offsets(self) -> Sizes:
        if self._is_uniform:
            return offsets_of(self.parts[0].scheme, self.lengths, self.row_lengths)
        return Sizes(*map(build.offsets_of, self.sizes))

    def names(self, mask: pa.Buffer | None) -> pa.Array:
        """Return the column of scheme names."""
        index = np.zeros(self.lengths.size, np.int64)
        for k, part in enumerate(self.parts[1:], 1):
            index[part.rows] = k
        return build.texts([part.scheme.name for part in self.parts], index, self.valid, mask)

    def _read_by_kernels(self, part: Part, *, halves: bool = False) -> Read:
        """Return the pieces of a part, what kernels read of them, and where they leave their status."""
        longest = None if halves else longest_group(part.weights)
        scheme = replace(part.scheme, codec=part.codec)  # one with importance may need its groups whole
        pieces = cut(scheme, part.rows, self.lengths, self.row_lengths, longest)
        *weights, n_scratch = source(part.weights, pieces)
        plan = _NO_PLANS
        if n_scratch and not halves:
            plan, n_scratch = plans(scheme, pieces)
        nowhere = frozen(pieces.offsets if pieces.whole else np.zeros_like(pieces.offsets))
        importance: tuple[Array, Array, Array] = (_NO_FLOATS, nowhere, nowhere)
        if part.importance is not None:
            importance = part.importance.read_by_kernels(pieces, self.lengths, self.row_lengths)
        given = (*weights, frozen(pieces.row_lengths), *importance)
        return Read(part, pieces, given, plan, n_scratch, build.filled(pieces.rows.size, -1), halves)

    def _measured(self, reads: list[Read], n_threads: int | None) -> None:
        """Measure the groups that are cut into slices: each slice gets the bounds of its whole group."""
        long = [(read, read.pieces.slices) for read in reads if read.pieces.slices is not None]
        if not long:
            return
        from aq2_pipeline.kernels.rows import measure_rows  # noqa: PLC0415 - kernels load at their first use

        bounds = [np.zeros((which.size, 2), np.int64) for _, which in long]
        tasks = []
        for (read, which), found in zip(long, bounds, strict=True):
            arguments = (*read.given[:5], found.reshape(-1))
            codec = read.part.codec
            tasks += [
                [step(measure_rows, read.n_scratch, codec.measure, k, k + 1, *arguments)]
                for k in np.flatnonzero(which).tolist()
            ]
        threads.run(tasks, n_threads)
        for (read, which), found in zip(long, bounds, strict=True):
            firsts = np.flatnonzero(which != LATER)
            whole = np.maximum.reduceat(found, firsts)
            read.bounds = np.repeat(whole, np.diff([*firsts, which.size]), axis=0)

    def encode(self, n_threads: int | None, place: Callable[[Array], tuple[Array, Array]] | None = None) -> Encoded:
        """Encode every row; the bytes of rows in `failures` mean nothing.

        `place(sizes)`, if given, says where the data go: an array to write, and
        where each row's begin in it.
        """
        from aq2_pipeline.kernels.rows import encode_half_rows, encode_rows  # noqa: PLC0415 - at their first use

        data_at, scales_at, zeros_at = self._offsets()
        targets = [(at[:-1], at[1:]) for at in (data_at, scales_at, zeros_at)]
        if place is None:
            data = build.empty(data_at[-1], np.uint8)
        else:
            sizes = np.diff(data_at)
            data, starts = place(sizes)
            targets[0] = starts, starts + sizes
        scales, zeros = build.empty(scales_at[-1], np.float32), build.empty(zeros_at[-1], np.float32)
        reads = [self._read_by_kernels(part, halves=part.has_halves) for part in self.parts]
        self._measured(reads, n_threads)
        tasks: list[Sequence[Callable[[], None]]] = []
        for read in reads:
            scheme, codec = read.part.scheme, read.part.codec
            data_span, scale_span, zero_span = read.pieces.spans(scheme, targets)
            taken = (data, *data_span, scales, *scale_span, zeros, *zero_span, read.status, read.plan)
            kernel, encode = (encode_half_rows, codec.encode_halves) if read.halves else (encode_rows, codec.encode)
            tasks += (
                [step(kernel, read.n_scratch, encode, params, a, b, *read.given, *taken)]
                for a, b, params in read.slices()
            )
        threads.run(tasks, n_threads)
        self._collect(reads)
        return Encoded(data_at, data, scales_at, scales, zeros_at, zeros)

    def error_sums(self, n_threads: int | None) -> Array:
        """Return the sums of every row, float64[n_rows, n_sums], as `kernels.moments` names them."""
        from aq2_pipeline.kernels.moments import N_ERROR_SUMS, N_LANES  # noqa: PLC0415 - at their first use
        from aq2_pipeline.kernels.rows import error_rows  # noqa: PLC0415

        sums = np.zeros((self.lengths.size, N_ERROR_SUMS))
        reads = [self._read_by_kernels(part) for part in self.parts]
        self._measured(reads, n_threads)
        tasks: list[Sequence[Callable[[], None]]] = []
        for read in reads:
            error = read.part.codec.error
            given = (frozen(read.pieces.rows), frozen(read.pieces.offsets), *read.given)
            for run in in_order(read.pieces, read.slices()):
                taken = (np.zeros(N_ERROR_SUMS * N_LANES), sums.reshape(-1), read.status, read.plan)
                tasks.append([step(error_rows, read.n_scratch, error, p, a, b, *given, *taken) for a, b, p in run])
        threads.run(tasks, n_threads)
        self._collect(reads)
        return sums

    def _collect(self, reads: list[Read]) -> None:
        """Turn the statuses of pieces into failures of rows."""
        for read in reads:
            pieces, status = read.pieces, read.status
            for k in (status >= 0).nonzero()[0][::-1]:  # the first bad piece of a row has the last word
                row, position = int(pieces.rows[k]), int(pieces.offsets[k] + status[k])
                self.failures[row] = _value_error(read.part.weights, read.part.scheme, row, position)


def _shape_error(shape: Sequence[Any], length: int) -> InputValueError | None:
    n = n_weights(shape)
    if n < 0:
        return InputValueError(f"the shape {list(shape)} has an axis that is null or negative")
    if math.prod(axis or 1 for axis in shape) > _LARGEST_SIZE:  # an axis of 0 must not hide a row that has no length
        return InputValueError(f"the shape {list(shape)} holds more weights than any row")
    if n == length:
        return None
    return InputValueError(f"the shape {list(shape)} holds {n} weights, the row holds {length}")


def _value_error(weights: Weights, scheme: Scheme, row: int, position: int) -> Aq2Error:
    """Say what is wrong with the value that a kernel stopped at."""
    value = weights.value(row, position)
    if np.isfinite(value) and abs(value) > float(np.finfo(np.float32).max):
        error = InputValueError(f"the value {value!r} does not fit float32", "scale or clip the weights")
    elif np.isfinite(value):
        error = InputValueError(f"the value {value!r} does not fit {scheme.name!r}", "store this layer as 'f32'")
    else:
        hint = "find such rows with aq2_weight_stats, then mend or filter them"
        error = InputValueError(f"the value {value!r} is not finite", hint)
    return error.at(row=row, position=position, value=value)
