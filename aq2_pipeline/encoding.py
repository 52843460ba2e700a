"""A column of weights on its way to a quantized column, or to the error that it would have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.types as pt

from aq2_pipeline import arrow, build, threads
from aq2_pipeline.codecs import Sizes
from aq2_pipeline.errors import InputTypeError, InputValueError, SchemeError
from aq2_pipeline.pieces import LATER, block_size, cut, frozen, in_order, slices, source, span, step, wanted_schemes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import pyarrow as pa

    from aq2_pipeline.errors import Aq2Error
    from aq2_pipeline.pieces import Failures, Pieces
    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.weights import Array, Weights

_LARGEST_SIZE = np.iinfo(np.int64).max
_NO_FLOATS = np.empty(0, np.float32)
_NO_FLOATS.flags.writeable = False


@dataclass
class Part:
    """The rows that want one scheme, ascending, and the column that they are read from."""

    scheme: Scheme
    rows: Array
    weights: Weights


@dataclass
class Read:
    """A part as kernels work through it.

    Attributes
    ----------
    part : Part
    pieces : Pieces
    given : tuple
        What kernels read of the pieces, from `kind` on, as `kernels.rows` names it.
    n_scratch : int
        Floats of scratch that a call needs.
    status : int64 array
        What the kernels say of each piece.
    bounds : int64 array or None
        The measure of the whole group, for each slice of one.
    """

    part: Part
    pieces: Pieces
    given: tuple[Any, ...]
    n_scratch: int
    status: Array
    bounds: Array | None = None

    def slices(self) -> Iterator[tuple[int, int, Array]]:
        """Yield ranges of pieces for one call each, with the parameters that their kernels are told."""
        params = frozen(self.part.scheme.params)
        if self.bounds is None:
            yield from ((first, last, params) for first, last in slices(self.pieces.lengths))
            return
        for first, last in slices(self.pieces.lengths):
            for k in range(first, last):
                sliced = self.pieces.slices[k] > 0
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
    sizes : Sizes
        What each row takes.
    valid : bool array
    failures : dict
        Row -> what is wrong with it.
    """

    def __init__(
        self,
        weights: pa.Array,
        scheme: Any,
        shape: pa.Array | None,
        importance: pa.Array | None,
        skip: Collection[int] = (),
    ) -> None:
        active = arrow.validity(weights)
        active[list(skip)] = False
        self.failures: Failures = {}
        self.valid = np.zeros(active.size, bool)
        self.lengths = np.zeros(active.size, np.int64)
        self.parts = self._read(weights, wanted_schemes(scheme, active, self.failures), active)
        self.row_lengths = self.lengths.copy()
        self._refuse_importance(importance)
        self._read_shapes(shape)
        self.sizes = self._sizes()

    def _read(self, weights: pa.Array, wanted: list[tuple[Scheme, Array]], active: Array) -> list[Part]:
        """Read the weights once for each input dtype; a dtype that some rows ask for in vain fails these rows."""
        dtypes = {scheme.input_dtype for scheme, _ in wanted} or {None}
        read = {}
        for dtype in dtypes:
            mine = np.zeros(active.size, bool)
            for scheme, rows in wanted:
                mine[rows] |= scheme.input_dtype == dtype
            try:
                column = arrow.read_weights(weights, dtype, mine & active)
            except InputTypeError as error:
                if len(dtypes) == 1:
                    raise
                for row in np.flatnonzero(mine & active).tolist():
                    self.failures[row] = InputTypeError(error.reason, error.hint).at(row=row)
                continue
            column.fail_null_elements()
            self.failures.update(column.failures)
            self.valid |= column.valid
            self.lengths += column.lengths
            read[dtype] = column
        return [Part(scheme, rows, read[scheme.input_dtype]) for scheme, rows in wanted if scheme.input_dtype in read]

    def _refuse_importance(self, importance: pa.Array | None) -> None:
        if importance is None or pt.is_null(importance.type):
            return
        if not arrow.is_list(importance.type) or not pt.is_floating(importance.type.value_type):
            msg = f"importance is {importance.type}"
            raise InputTypeError(msg, "expected a list of floats: one weight an input channel, or one a weight")
        given = arrow.validity(importance) & self.valid
        for part in self.parts:
            for row in part.rows[given[part.rows]].tolist():
                msg = f"the scheme {part.scheme.name!r} cannot use importance"
                self._fail(row, SchemeError(msg, "leave importance out, or make it NULL for this row"))

    def _read_shapes(self, shape: pa.Array | None) -> None:
        given = arrow.read_lists(shape, "shape") if shape is not None else [None] * self.valid.size
        for part in self.parts:
            if shape is None and part.weights.shape is None:
                continue
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

    def _fail(self, row: int, error: Aq2Error) -> None:
        self.failures.setdefault(row, error.at(row=row))
        self.valid[row] = False
        self.lengths[row] = self.row_lengths[row] = 0

    def _sizes(self) -> Sizes:
        whole = Sizes(*(np.zeros_like(self.lengths) for _ in Sizes._fields))
        for part in self.parts:
            sizes = part.scheme.codec.sizes(self.lengths[part.rows], self.row_lengths[part.rows], part.scheme.params)
            for target, found in zip(whole, sizes, strict=True):
                target[part.rows] = found
        return whole

    def names(self) -> pa.Array:
        """Return the column of scheme names."""
        index = np.zeros(self.lengths.size, np.int64)
        for k, part in enumerate(self.parts):
            index[part.rows] = k
        return build.texts([part.scheme.name for part in self.parts], index, self.valid)

    def _read_by_kernels(self, part: Part) -> Read:
        """Return the pieces of a part, what kernels read of them, and where they leave their status."""
        pieces = cut(part.scheme, part.rows, self.lengths, self.row_lengths, block_size(part.weights))
        *weights, n_scratch = source(part.weights, pieces)
        unweighted = span(np.zeros_like(pieces.rows), np.zeros_like(pieces.rows))
        given = (*weights, frozen(pieces.row_lengths), _NO_FLOATS, *unweighted)
        return Read(part, pieces, given, n_scratch, np.full(pieces.rows.size, -1, np.int64))

    def _measured(self, reads: list[Read], n_threads: int | None) -> None:
        """Measure the groups that are cut into slices: each slice gets the bounds of its whole group."""
        from aq2_pipeline.kernels.rows import measure_rows  # noqa: PLC0415 - kernels load at their first use

        long = [read for read in reads if read.pieces.slices.any()]
        bounds = [np.zeros((read.status.size, 2), np.int64) for read in long]
        tasks = []
        for read, found in zip(long, bounds, strict=True):
            arguments = (*read.given[:5], found.reshape(-1))
            codec = read.part.scheme.codec
            tasks += [
                [step(measure_rows, read.n_scratch, codec.measure, k, k + 1, *arguments)]
                for k in np.flatnonzero(read.pieces.slices).tolist()
            ]
        threads.run(tasks, n_threads)
        for read, found in zip(long, bounds, strict=True):
            firsts = np.flatnonzero(read.pieces.slices != LATER)
            whole = np.maximum.reduceat(found, firsts)
            read.bounds = np.repeat(whole, np.diff([*firsts, read.status.size]), axis=0)

    def encode(self, n_threads: int | None) -> Encoded:
        """Encode every row; the bytes of rows in `failures` mean nothing."""
        from aq2_pipeline.kernels.rows import encode_rows  # noqa: PLC0415 - kernels load at their first use

        data_at, scales_at, zeros_at = (build.offsets_of(column) for column in self.sizes)
        data = np.empty(data_at[-1], np.uint8)
        scales, zeros = np.empty(scales_at[-1], np.float32), np.empty(zeros_at[-1], np.float32)
        reads = [self._read_by_kernels(part) for part in self.parts]
        self._measured(reads, n_threads)
        tasks: list[Sequence[Callable[[], None]]] = []
        for read in reads:
            scheme, pieces = read.part.scheme, read.pieces
            sizes = scheme.codec.sizes(pieces.lengths, pieces.row_lengths, scheme.params)
            data_span = pieces.spans(data_at, sizes.data)
            scale_span = pieces.spans(scales_at, sizes.scales, of_groups=True)
            zero_span = pieces.spans(zeros_at, sizes.zero_points, of_groups=True)
            taken = (data, *data_span, scales, *scale_span, zeros, *zero_span, read.status)
            tasks += (
                [step(encode_rows, read.n_scratch, scheme.codec.encode, params, a, b, *read.given, *taken)]
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
            error = read.part.scheme.codec.error
            given = (frozen(read.pieces.rows), frozen(read.pieces.offsets), *read.given)
            for run in in_order(read.pieces, read.slices()):
                taken = (np.zeros(N_ERROR_SUMS * N_LANES), sums.reshape(-1), read.status)
                tasks.append([step(error_rows, read.n_scratch, error, p, a, b, *given, *taken) for a, b, p in run])
        threads.run(tasks, n_threads)
        self._collect(reads)
        return sums

    def _collect(self, reads: list[Read]) -> None:
        """Turn the statuses of pieces into failures of rows."""
        for read in reads:
            pieces, status = read.pieces, read.status
            for k in np.flatnonzero(status >= 0)[::-1]:  # the first bad piece of a row has the last word
                row, position = int(pieces.rows[k]), int(pieces.offsets[k] + status[k])
                self.failures[row] = _value_error(read.part.weights, read.part.scheme, row, position)


def _shape_error(shape: Sequence[Any], length: int) -> InputValueError | None:
    n = arrow.n_weights(shape)
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
