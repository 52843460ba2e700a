"""From any source to any sink, chunk by chunk: what the commands do, with a report of every layer."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import astuple
from functools import partial
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from aq2_pipeline import schemes
from aq2_pipeline.differences import Difference
from aq2_pipeline.errors import Aq2Error, InputValueError
from aq2_pipeline.io.beside import read_ahead, writing_behind
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.plans import plan
from aq2_pipeline.io.reports import LayerReport, Report
from aq2_pipeline.io.tables.parts import batches_of, parts_of
from aq2_pipeline.io.tables.reused import Reused
from aq2_pipeline.io.tables.rows import rows_of
from aq2_pipeline.io.tables.source import Source
from aq2_pipeline.io.targets import Options, sink_for, target_for
from aq2_pipeline.io.writing.files import publish
from aq2_pipeline.io.writing.sinks import check_target, described
from aq2_pipeline.io.writing.staging import staged
from aq2_pipeline.layers import check_chunk
from aq2_pipeline.stored import difference_from
from aq2_pipeline.udfs.python import quantize
from aq2_pipeline.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from aq2_pipeline.io.recipes import Recipe
    from aq2_pipeline.io.tables.parts import Part
    from aq2_pipeline.io.tables.rows import Row
    from aq2_pipeline.io.writing.sinks import Plan, PlannedLayer, Sink, Writer
    from aq2_pipeline.schemes import Scheme

    Progress = Callable[[str, int, LayerReport | None], None]

__all__ = [
    "CHUNK_WEIGHTS",
    "chunk_weights_for",
    "convert",
    "dequantize_file",
    "dry_run",
    "quantize_file",
]

#: Weights of a chunk unless memory says otherwise: 16 MB of float32.
CHUNK_WEIGHTS = 1 << 22
#: Chunks that are read together, as a batch: what a batch takes beside kernels, some 3 ms, is less than a tenth then.
_BATCH = 4
#: Chunks begin at multiples of so many matrix rows, so that what is packed across rows is whole words.
_ROWS = 32
#: What the interpreter and the libraries take, and the bytes beyond for a weight of a chunk, at the most: one batch is
#: read, one is quantized, one is written and one waits for that.
_BASE_BYTES, _BYTES_PER_WEIGHT = 400 << 20, 4 * 24
_FEWEST = 1 << 16


def chunk_weights_for(memory: int | None) -> int:
    """Return the weights of a chunk that a run within so many bytes may have.

    Raises
    ------
    InputValueError
        If no chunk fits.
    """
    if memory is None:
        return CHUNK_WEIGHTS
    found = (memory - _BASE_BYTES) // _BYTES_PER_WEIGHT
    if found < _FEWEST:
        msg = f"{memory} bytes of memory are too few"
        raise InputValueError(msg, f"give at least {-(-(_BASE_BYTES + _FEWEST * _BYTES_PER_WEIGHT) // 10**6)}MB")
    return min(found, CHUNK_WEIGHTS)


def convert(
    source: Any,
    target: str | os.PathLike[str],
    sink: Sink,
    recipe: Recipe | None = None,
    *,
    memory: int | None = None,
    threads: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write what a source holds to a target; with a recipe its floats are quantized, else everything stays.

    Parameters
    ----------
    source : str, Path, list of these, or Source
    target : str or Path
        Replaced once the new one is complete.
    sink : Sink
    recipe : Recipe, optional
    memory : int, optional
        The bytes that the process may take; layers with one scale for all their
        weights are whole in memory whatever this says.
    threads : int, optional
        Threads to use; the target does not depend on it.
    resume : bool
        Take up a run that was killed, of the same source, recipe and options.
    progress : callable, optional
        Called chunk by chunk with a layer's name, the bytes of the source that
        are done more, and the layer's `LayerReport` with its last chunk.

    Raises
    ------
    Aq2Error
        Naming the layer; nothing is written then.
    OSError
        If a file cannot be read or written; an earlier target stays.
    """
    model = source if isinstance(source, Source) else open_source(source)
    path = Path(os.path.realpath(target))
    _check_apart(model, path)
    check_target(path, folder=sink.folder)
    chosen = plan(model, sink, recipe)
    chunk = chunk_weights_for(memory)
    identity = _identity(model, sink, recipe, chunk)
    done = _Done(chosen, progress)
    layers = done.layers
    parts = [part for part in _parts(model, chosen, chunk) if layers[part.tensor.name].form]
    with staged(path, identity if resume else None) as staging:
        writer = sink.writer(staging, chosen, parts, identity)
        try:
            done.add(writer.rows)
            left = [part for part in parts if (part.tensor.name, part.start) not in done.rows]
            with read_ahead(_tables(model, left, layers, chunk)) as tables, writing_behind() as behind:
                for form, table in tables:
                    rows = _rows(table, sink, layers, form, threads)
                    del table  # before the next but one is read
                    done.add(chain.from_iterable(behind.begin(partial(_write, writer, rows))))
                    del rows
                done.add(chain.from_iterable(behind.finish()))
            writer.finish()
        except MemoryError as error:
            raise done.no_memory() from error
        publish(staging.out, path)
    return Report(model.path, path, _told(recipe), done.reports())


def _told(recipe: Recipe | None) -> str:
    return str(recipe or "as it is")


def _identity(model: Source, sink: Sink, recipe: Recipe | None, chunk: int) -> str:
    told = [__version__, model.fingerprint(), sink.name, sink.options(), str(recipe), chunk]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _check_apart(model: Source, path: Path) -> None:
    for file in model.files:
        if path.exists() and (file.samefile(path) or path in file.resolve().parents):
            msg = f"{str(path)!r} is both source and target"
            raise InputValueError(msg, "write to another file")


def _tables(
    model: Source, parts: Sequence[Part], layers: dict[str, PlannedLayer], chunk: int
) -> Generator[tuple[str, pa.Table]]:
    """Yield tables of one form each; the order of the source is kept but for small tensors of one batch.

    A tensor that is larger than a batch is read alone, and at one go, as what is compressed must be.
    """
    max_bytes, empty = 4 * _BATCH * chunk, Reused().empty
    tensors = [list(own) for _, own in groupby(parts, lambda part: part.tensor.name)]
    sizes = [sum(4 * part.size for part in own) for own in tensors]
    for first, last in batches_of(sizes, max_bytes, len(tensors)):
        window = [part for own in tensors[first:last] for part in own]
        for form in ("weights", "quantized", "raw"):
            todo = [part for part in window if layers[part.tensor.name].form == form]
            for table in model.batches(todo, form, chunked=True, max_bytes=max_bytes, empty=empty):
                yield form, table
                del table  # one batch in memory, not two


def _write(writer: Writer, rows: Sequence[tuple[Row, dict[str, Any]]]) -> list[dict[str, Any]]:
    for row, told in rows:
        writer.add(told, row)
    return [told for _, told in rows]


class _Done:
    """What is written, and who is told of it."""

    def __init__(self, chosen: Plan, progress: Progress | None = None) -> None:
        self.rows: set[tuple[str, int]] = set()
        self.layers = {layer.tensor.name: layer for layer in chosen.layers}
        self._left = {layer.tensor.name: layer.tensor.size for layer in chosen.layers}
        self._lost: dict[str, Difference] = {}
        self._progress = progress

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Note what is told of rows that are written."""
        for told in rows:
            self._add(told)

    def _add(self, told: dict[str, Any]) -> None:
        name, size = told["layer_name"], math.prod(told["shape"])
        self.rows.add((name, told.get("start", 0)))
        self._left[name] -= size
        if "difference" in told:
            self._lost[name] = self._lost.get(name, Difference()) + Difference(*told["difference"])
        if self._progress is not None:
            tensor = self.layers[name].tensor
            n_bytes = tensor.n_bytes * size // max(tensor.size, 1)
            self._progress(name, n_bytes, None if self._left[name] else self._report(name))

    def reports(self) -> list[LayerReport]:
        """Return what became of each layer, its rows together."""
        return [self._report(name) for name in self.layers]

    def _report(self, name: str) -> LayerReport:
        return _report(self.layers[name], self._lost.get(name))

    def no_memory(self) -> MemoryError:
        """Name the layer that memory was too small for: the next that is not written, or at the end the largest."""
        left = [layer.tensor for name, layer in self.layers.items() if self._left[name]]
        tensor = left[0] if left else max((layer.tensor for layer in self.layers.values()), key=lambda one: one.n_bytes)
        return MemoryError(f"layer {tensor.name!r}: no memory for its {tensor.n_bytes} bytes and what they become")


def _parts(model: Source, chosen: Plan, chunk: int) -> Iterator[Part]:
    """Yield the parts in which each layer goes; what has one scale goes whole."""
    if model.has_own_chunks:
        wanted = {layer.tensor.name: layer.held.scheme for layer in chosen.layers if layer.wanted}
        for part in model.parts():
            _check_cut(part, wanted.get(part.tensor.name))
            yield part
        return
    for layer in chosen.layers:
        scheme = layer.held.scheme
        vector = len(layer.tensor.shape) <= 1
        if scheme is None or not layer.wanted:
            yield from parts_of(layer.tensor, chunk, _ROWS)
        elif scheme.group == schemes.PER_TENSOR or (vector and scheme.group == schemes.PER_CHANNEL):
            yield from parts_of(layer.tensor, None)
        else:
            yield from parts_of(layer.tensor, chunk, _ROWS, math.lcm(max(scheme.group, 1), scheme.block))


def _check_cut(part: Part, scheme: Scheme | None) -> None:
    """Check that a chunk, as a file has it, can be quantized alone."""
    if scheme is not None and part.chunk is not None:
        try:
            check_chunk(scheme, part.shape, part.tensor.shape, part.start)
        except Aq2Error as error:
            raise error.at(layer=part.tensor.name) from None


def _rows(
    table: pa.Table, sink: Sink, layers: dict[str, PlannedLayer], form: str, threads: int | None
) -> list[tuple[Row, dict[str, Any]]]:
    """Return the rows of a batch as they are stored, with what the journal says of them."""
    weights: Iterable[Any] = repeat(None)
    if form == "weights":
        weights = [row.values.to_numpy() for row in table["weights"].chunk(0)]
        codes = _quantized(table, [layers[name].wanted for name in table["layer_name"].to_pylist()], threads)
        table = (table if sink.codes_again else table.drop(["weights"])).append_column("quantized", codes)
    [batch] = table.to_batches()
    found = []
    for given, values in zip(rows_of(batch, "convert"), weights, strict=form == "weights"):
        row = sink.as_written(given)
        told = described(row)
        if layers[row.name].reason is not None:
            told["reason"] = layers[row.name].reason
        if row.quantized is not None and values is not None:
            told["difference"] = astuple(difference_from(values, row.quantized, threads))
        found.append((row, told))
    return found


def _quantized(table: pa.Table, wanted: list[str | None], threads: int | None) -> pa.StructArray:
    try:
        return quantize(table["weights"].chunk(0), pa.array(wanted), table["shape"].chunk(0), threads=threads)
    except Aq2Error as error:
        raise _of_layer(error, table["layer_name"].to_pylist(), table["start"].to_pylist()) from None


def _of_layer(error: Aq2Error, names: Sequence[str], starts: Sequence[int | None]) -> Aq2Error:
    """Name the layer instead of the row of a batch, and the position in it."""
    if error.row is None:
        return error
    position = None if error.position is None else error.position + (starts[error.row] or 0)
    return error.at(layer=names[error.row], row=None, position=position)


def _report(layer: PlannedLayer, lost: Difference | None) -> LayerReport:
    tensor, held = layer.tensor, layer.held
    scheme = None if held.scheme is None else held.scheme.name
    n_bytes = tensor.n_bytes
    if held.scheme is not None and held.row_length is not None:
        n_bytes = held.scheme.n_bytes(tensor.size, held.row_length)
    return LayerReport(
        tensor.name,
        list(tensor.shape),
        tensor.dtype,
        scheme,
        tensor.size,
        n_bytes,
        None if lost is None else lost.mse,
        None if lost is None else lost.sqnr_db,
        None if layer.wanted else layer.reason,
        layer.reason if layer.wanted else None,
    )


def quantize_file(
    source: Any, target: str | os.PathLike[str], recipe: Recipe, *, to: str | None = None, **options: Any
) -> Report:
    """Quantize a model file, or write one as it is, to a target of any format.

    Parameters
    ----------
    source : str or Path
    target : str or Path
    recipe : Recipe
    to : str, optional
        The format of the target, where its suffix does not say it.
    **options
        As `convert` takes them.
    """
    model = open_source(source)
    return convert(model, target, sink_for(target_for(target, to), Options(model, str(recipe))), recipe, **options)


def dequantize_file(source: Any, target: str | os.PathLike[str], *, dtype: str | None = None, **options: Any) -> Report:
    """Decode a file of quantized layers to a safetensors file: weights in `dtype`, or in that of their source."""
    model = open_source(source)
    return convert(model, target, sink_for(target_for("", "safetensors"), Options(model, "", dtype)), **options)


def dry_run(source: Any, sink: Sink, recipe: Recipe | None) -> Report:
    """Return what `convert` would make of each layer, without its errors; nothing is read or written."""
    model = source if isinstance(source, Source) else open_source(source)
    chosen = plan(model, sink, recipe)
    return Report(model.path, None, _told(recipe), _Done(chosen).reports(), sink.size(chosen.specs))
