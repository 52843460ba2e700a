"""`ArrowQuantV2`: the three older interfaces, as a thin class over the Arrow functions."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from aq2_pipeline import policy, schemes
from aq2_pipeline.errors import Aq2Error, InputTypeError
from aq2_pipeline.functions import FUNCTIONS, thread_count
from aq2_pipeline.layers import dequantize_batch, flat_schema, input_columns, quantize_rows, scheme_argument
from aq2_pipeline.state_dicts import FromList, QuantizedLayers, checked_mapping, quantize_layers, quantized_row, rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Progress = Callable[[str, float], Any]

__all__ = ["ArrowQuantV2", "QuantizedLayers"]


class ArrowQuantV2:
    """Quantize models that are tables, or dicts of arrays, under a named policy.

    Parameters
    ----------
    mode : {"diffusion", "time_aware", "base"}
        The policy that chooses each layer's scheme.
    threads : int, optional
        Threads to use; the result does not depend on it.

    Raises
    ------
    SchemeError
        For another mode.

    Notes
    -----
    ``ArrowQuantV2(mode=m).quantize_*(..., bit_width=b)`` gives the bytes of
    ``quantize(weights, policy_scheme(name, shape, b, m), shape)``. Every method
    takes ``scheme=`` instead of the policy, and ``threads=``.

    Examples
    --------
    >>> import numpy as np
    >>> from aq2_pipeline import ArrowQuantV2
    >>> layers = {"mlp.weight": np.ones((256, 256), np.float32)}
    >>> result = ArrowQuantV2(mode="diffusion").quantize_batch(layers, bit_width=4)
    >>> result["mlp.weight"]["scheme"], len(result["mlp.weight"]["quantized_data"])
    ('int4_g64', 32768)
    """

    def __init__(self, mode: str = policy.DEFAULT_MODE, threads: int | None = None) -> None:
        policy.mode_name(mode)
        self.mode = mode
        self.threads = thread_count(threads)

    # --- Arrow -------------------------------------------------------------------------------------------------------

    def quantize_arrow(
        self,
        table: Any,
        bit_width: int = 4,
        *,
        scheme: Any = None,
        threads: int | None = None,
        continue_on_error: bool = False,
    ) -> pa.Table:
        """Quantize a table of layers; kernels read the table's own buffers.

        Parameters
        ----------
        table : pyarrow.Table or anything with ``__arrow_c_stream__`` or ``__arrow_c_array__``
            Columns ``layer_name`` and ``weights``, and if known ``shape``.
        bit_width : int
            The asked bits, 2 to 8.
        scheme : int, str or column, optional
            Instead of the policy's.
        threads : int, optional
            Threads to use.
        continue_on_error : bool
            Keep every row: failed rows are null, and the column ``error`` says why.

        Returns
        -------
        pyarrow.Table
            layer_name, quantized_data, scales, zero_points, shape (null where
            unknown), bit_width, scheme, row_length, then the other columns.
            Rows with null weights are null.
        """
        reader = _reader(table)
        schema, batches = self._batches(reader, bit_width, scheme, threads, continue_on_error, "quantize_arrow")
        return pa.Table.from_batches(list(batches), schema)

    def quantize_arrow_batch(
        self,
        record_batch: Any,
        bit_width: int = 4,
        *,
        scheme: Any = None,
        threads: int | None = None,
        continue_on_error: bool = False,
    ) -> pa.RecordBatch:
        """Quantize one record batch of layers: `quantize_arrow` for a `pyarrow.RecordBatch`."""
        name = "quantize_arrow_batch"
        batch = record_batch
        if not isinstance(batch, pa.RecordBatch):
            table = _reader(record_batch).read_all().combine_chunks()
            columns = [column.combine_chunks() for column in table.columns]
            batch = pa.RecordBatch.from_arrays(columns, schema=table.schema)
        reader = pa.RecordBatchReader.from_batches(batch.schema, [batch])
        # Unpacked, not taken with next(): the generator warns of failed rows at its end.
        _, batches = self._batches(reader, bit_width, scheme, threads, continue_on_error, name)
        [result] = batches
        return result

    def quantize_stream(
        self,
        reader: Any,
        bit_width: int = 4,
        *,
        scheme: Any = None,
        threads: int | None = None,
        continue_on_error: bool = False,
    ) -> pa.RecordBatchReader:
        """Turn a stream of record batches of layers into a stream of results, one batch in memory.

        Parameters are those of `quantize_arrow`; `reader` is a
        `pyarrow.RecordBatchReader` or anything with ``__arrow_c_stream__``.
        """
        source = _reader(reader)
        schema, batches = self._batches(source, bit_width, scheme, threads, continue_on_error, "quantize_stream")
        return pa.RecordBatchReader.from_batches(schema, batches)

    def dequantize_arrow(self, table: Any, *, threads: int | None = None) -> pa.Table:
        """Decode what `quantize_arrow` returned, or a layer table with a column ``quantized``.

        Returns
        -------
        pyarrow.Table
            layer_name, weights (large_list<float32>), shape, then the other columns.
        """
        reader = _reader(table)
        n_threads = thread_count(threads) or self.threads
        batches, row = [], 0
        for batch in reader:
            batches.append(dequantize_batch(batch, row, n_threads))
            row += len(batch)
        if batches:
            return pa.Table.from_batches(batches)
        none = [pa.array([], field.type) for field in reader.schema]
        empty = pa.RecordBatch.from_arrays(none, schema=reader.schema)
        return pa.Table.from_batches([dequantize_batch(empty, 0, n_threads)])

    def _batches(
        self,
        reader: pa.RecordBatchReader,
        bit_width: int,
        scheme: Any,
        threads: int | None,
        keep: bool,  # noqa: FBT001
        caller: str,
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """Check the arguments at once; then quantize batch by batch. Returns the results' schema, and them."""
        columns = input_columns(reader.schema, caller)
        with _named(caller):
            if scheme is None:
                policy.policy_scheme(None, None, bit_width, self.mode)
            else:
                scheme = scheme_argument(scheme)
        choose = partial(policy.policy_scheme, bit_width=bit_width, mode=self.mode) if scheme is None else scheme
        n_threads = thread_count(threads) or self.threads
        schema = flat_schema(reader.schema, with_error=keep)
        return schema, _quantized_batches(reader, columns, schema, choose, n_threads, keep, caller)

    # --- Dicts -------------------------------------------------------------------------------------------------------

    def quantize_batch(
        self,
        weights: Mapping[str, Any],
        bit_width: int = 4,
        continue_on_error: bool = False,  # noqa: FBT001, FBT002 - the signature that users know
        *,
        scheme: Any = None,
        threads: int | None = None,
    ) -> QuantizedLayers:
        """Quantize a dict of arrays, each over its own memory, in parallel.

        Parameters
        ----------
        weights : dict of str to ndarray or torch.Tensor
            float16, float32, float64 or bfloat16, of any shape.
        bit_width : int
            The asked bits, 2 to 8.
        continue_on_error : bool
            Return the good layers, and the others' exceptions in ``.errors``.
        scheme : int or str, optional
            Instead of the policy's.
        threads : int, optional
            Threads to use.

        Returns
        -------
        QuantizedLayers
            In the order given: ``{name: {"quantized_data": bytes, "scales":
            ndarray, "zero_points": ndarray, "shape": tuple, "bit_width": int,
            "scheme": str, "row_length": int}}``.
        """
        return self._layers(weights, bit_width, None, scheme, threads, continue_on_error, "quantize_batch")

    def quantize_batch_with_progress(
        self,
        weights: Mapping[str, Any],
        bit_width: int = 4,
        progress_callback: Progress | None = None,
        continue_on_error: bool = False,  # noqa: FBT001, FBT002 - the signature that users know
        *,
        scheme: Any = None,
        threads: int | None = None,
    ) -> QuantizedLayers:
        """Quantize as `quantize_batch` does, and tell about it.

        Parameters
        ----------
        weights, bit_width, continue_on_error, scheme, threads
            As `quantize_batch`.
        progress_callback : callable, optional
            ``callback(layer_name, fraction)``, called in this thread, once a
            layer, with fractions rising to 1.0. What it raises reaches the
            caller; if it returns False, the run is cancelled.

        Raises
        ------
        Aq2Error
            "cancelled after k of n".
        """
        caller = "quantize_batch_with_progress"
        return self._layers(weights, bit_width, progress_callback, scheme, threads, continue_on_error, caller)

    def quantize(
        self,
        weights: Mapping[str, Any],
        bit_width: int = 4,
        continue_on_error: bool = False,  # noqa: FBT001, FBT002 - the signature that users know
        *,
        scheme: Any = None,
        threads: int | None = None,
    ) -> QuantizedLayers:
        """Quantize a dict of lists, nested lists allowed: deprecated, use `quantize_batch` or `quantize_arrow`.

        Turning a list into an array takes a hundred times as long as quantizing it.
        """
        warnings.warn(
            "ArrowQuantV2.quantize reads Python lists; use quantize_batch with arrays, or quantize_arrow",
            DeprecationWarning,
            stacklevel=2,
        )
        arrays = {name: FromList(values) for name, values in checked_mapping(weights).items()}
        return self._layers(arrays, bit_width, None, scheme, threads, continue_on_error, "quantize")

    def dequantize_batch(
        self, quantized: Mapping[str, Mapping[str, Any]], *, threads: int | None = None
    ) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """Decode what `quantize_batch` returned.

        Returns
        -------
        dict of str to ndarray
            float32, in their shapes.
        """
        n_threads = thread_count(threads) or self.threads
        results = {}
        for name, layer in checked_mapping(quantized).items():
            try:
                row = quantized_row(layer)
                decoded = FUNCTIONS["dequantize"](row, n_threads=n_threads)
            except Aq2Error as error:
                raise error.at(layer=name, row=None) from None
            results[name] = decoded.values.to_numpy().reshape(layer["shape"])
        return results

    def _layers(
        self,
        weights: Mapping[str, Any],
        bit_width: int,
        callback: Progress | None,
        scheme: Any,
        threads_: int | None,
        keep: bool,  # noqa: FBT001
        caller: str,
    ) -> QuantizedLayers:
        layers = checked_mapping(weights)
        choose = partial(policy.policy_scheme, bit_width=bit_width, mode=self.mode)
        with _named(caller):
            choose(None, None)  # a wrong width fails before anything runs
            fixed = None if scheme is None else schemes.parse(scheme)
        n_threads = thread_count(threads_) or self.threads
        results = QuantizedLayers()
        done = 0
        for names in rounds(layers):
            found = quantize_layers({name: layers[name] for name in names}, fixed or choose, n_threads, caller)
            for name in names:
                result = found[name]
                if not isinstance(result, Exception):
                    results[name] = result
                elif keep:
                    results.errors[name] = result
                else:
                    raise result
                done += 1
                if callback is not None and _is_false(callback(name, done / len(layers))):
                    msg = f"cancelled after {done} of {len(layers)}"
                    raise Aq2Error(msg)
        _warn_of(len(results.errors), len(layers), "layers")
        return results


@contextmanager
def _named(caller: str) -> Iterator[None]:
    """Let errors in an argument name the method that was called."""
    try:
        yield
    except Aq2Error as error:
        raise error.at(function=f"ArrowQuantV2.{caller}") from None


def _quantized_batches(
    reader: pa.RecordBatchReader,
    columns: Any,
    schema: pa.Schema,
    choose: Any,
    n_threads: int | None,
    keep: bool,  # noqa: FBT001
    caller: str,
) -> Iterator[pa.RecordBatch]:
    row = n_failed = 0
    for batch in reader:
        chosen = choose.slice(row, len(batch)) if isinstance(choose, pa.Array) else choose
        result, failed = quantize_rows(batch, columns, schema, chosen, row, n_threads, keep=keep, caller=caller)
        n_failed += failed
        row += len(batch)
        waiting = [result]
        del batch, result  # whoever takes the next result holds one batch, not two
        yield waiting.pop()
    if isinstance(choose, pa.Array) and len(choose) != row:
        msg = f"scheme has {len(choose)} rows, the table has {row}"
        raise InputTypeError(msg).at(function=f"ArrowQuantV2.{caller}")
    _warn_of(n_failed, row, "rows")


def _is_false(answer: Any) -> bool:
    """Whether a callback returned False, of Python's or NumPy's; None and 0 go on."""
    return isinstance(answer, bool | np.bool_) and not answer


def _warn_of(n_failed: int, n: int, what: str) -> None:
    if n_failed:
        warnings.warn(f"{n_failed} of {n} {what} failed", RuntimeWarning, stacklevel=4)


def _reader(table: Any) -> pa.RecordBatchReader:
    """Return a stream over whatever holds a table, sharing its buffers."""
    if isinstance(table, pa.RecordBatchReader):
        return table
    if isinstance(table, pa.Table):
        return table.to_reader()
    if hasattr(table, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(table)
    if hasattr(table, "__arrow_c_array__"):
        batch = pa.record_batch(table)
        return pa.RecordBatchReader.from_batches(batch.schema, [batch])
    msg = f"the table is a {type(table).__name__}"
    raise InputTypeError(msg, "a pyarrow.Table, or anything with __arrow_c_stream__ (Polars, DuckDB)")
