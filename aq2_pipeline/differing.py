"""Two models layer by layer, of any formats, quantized or not: how far their weights are apart."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import polars as pl

from aq2_pipeline.differences import Difference, decibels, difference
from aq2_pipeline.errors import InputValueError
from aq2_pipeline.functions import thread_count
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.tables.parts import batches_of, parts_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from aq2_pipeline.io.tables.parts import Tensor
    from aq2_pipeline.io.tables.source import Source
    from aq2_pipeline.weights import Array

    Progress = Callable[[str, int], None]

__all__ = ["SCHEMA", "as_json", "diff", "size_of", "summary"]

SCHEMA = pl.Schema(
    {
        "layer_name": pl.String(),
        "first": pl.String(),
        "second": pl.String(),
        "shape": pl.List(pl.Int64()),
        "n_weights": pl.Int64(),
        "mse": pl.Float64(),
        "sqnr_db": pl.Float64(),
        "cosine": pl.Float64(),
        "max_abs": pl.Float64(),
        "note": pl.String(),
    }
)
#: Weights of the layers that are compared at once, and of a piece of a longer one.
_BATCH = 1 << 22


def diff(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    layers: str = "*",
    threads: int | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Return how far the layers of two models are apart, a row a layer.

    Parameters
    ----------
    first, second : str or Path
        Model files of any format that is read; quantized layers are decoded.
    layers : str
        A pattern (``*``, ``?``, ``[...]``) that layers' names match.
    threads : int, optional
        Threads to use; no figure depends on it.
    progress : callable, optional
        Called with a layer's name and its bytes in the first model.

    Returns
    -------
    polars.DataFrame
        In the order of the first model, then what only the second has:
        `layer_name`; `first` and `second`, what each stores it as (a dtype or a
        scheme), null where it is not; `shape`, `n_weights`; `mse`, `sqnr_db` (+inf
        where nothing differs), `cosine` and `max_abs` of first minus second; and
        in `note` why a layer was not compared, in which case these are null.

    Raises
    ------
    InputValueError
        If no layer of either matches.
    FormatError, OSError
        If a file cannot be read.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> import aq2_pipeline
    >>> w = np.ones((2, 2), np.float32)
    >>> with TemporaryDirectory() as folder:
    ...     save_file({"w": w}, f"{folder}/a.safetensors")
    ...     save_file({"w": w * 3}, f"{folder}/b.safetensors")
    ...     table = aq2_pipeline.diff(f"{folder}/a.safetensors", f"{folder}/b.safetensors")
    >>> table.select("layer_name", "mse", "cosine").rows()
    [('w', 4.0, 1.0)]
    """
    one, other = open_source(first), open_source(second)
    ours, theirs = (_matching(source, layers) for source in (one, other))
    if not ours and not theirs:
        msg = f"no layer of {str(one.path)!r} and {str(other.path)!r} is called {layers!r}"
        raise InputValueError(msg)
    found: dict[str, Difference] = {}
    notes = {name: _note(one, tensor, other, theirs.get(name)) for name, tensor in ours.items()}
    common = [tensor for name, tensor in ours.items() if notes[name] is None]
    n_threads = thread_count(threads)
    for a, b in batches_of([tensor.size for tensor in common], _BATCH, len(common) or 1):
        some = common[a:b]
        pairs = _pairs(_values(one, some), _values(other, [theirs[tensor.name] for tensor in some]))
        for name, values, others in pairs:
            found[name] = found.get(name, Difference()) + difference(values, others, n_threads)
        if progress is not None:
            for tensor in some:
                progress(tensor.name, tensor.n_bytes)
    rows = [_row(one, tensor, other, theirs.get(name), notes[name], found.get(name)) for name, tensor in ours.items()]
    rows += [
        (name, None, other.held_as(tensor), list(tensor.shape), tensor.size, *[None] * 4, "only in the second")
        for name, tensor in theirs.items()
        if name not in ours
    ]
    return pl.DataFrame(rows, SCHEMA, orient="row")


def _matching(source: Source, pattern: str) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in source.tensors if fnmatchcase(tensor.name, pattern)}


def size_of(file: str | os.PathLike[str], layers: str = "*") -> int:
    """Return the bytes of the layers of a model whose names match a pattern."""
    return sum(tensor.n_bytes for tensor in _matching(open_source(file), layers).values())


def _note(one: Source, tensor: Tensor, other: Source, second: Tensor | None) -> str | None:
    """Return why a layer cannot be compared."""
    if second is None:
        return "only in the first"
    if tensor.size != second.size:
        return f"the second has the shape {list(second.shape)}"
    if not (one.holds_weights(tensor) and other.holds_weights(second)):
        return "not of floats"
    return None


def _values(source: Source, tensors: Sequence[Tensor]) -> Iterator[tuple[str, int, Array]]:
    """Yield the weights of layers: a layer's name, where a piece begins, and the piece."""
    names = {tensor.name for tensor in tensors}
    stored = [part for part in source.parts() if part.tensor.name in names] if source.has_own_chunks else None
    parts = stored if stored is not None else [part for tensor in tensors for part in parts_of(tensor, _BATCH)]
    batches = source.batches(parts, "weights", chunked=True, max_bytes=4 * _BATCH)
    while (table := next(batches, None)) is not None:
        starts = table["start"].to_pylist()
        for name, start, row in zip(table["layer_name"].to_pylist(), starts, _rows(table), strict=True):
            yield name, start or 0, row
        del table


def _rows(table: Any) -> Iterator[Array]:
    for row in table["weights"].chunk(0):
        yield row.values.to_numpy()


def _pairs(
    ours: Iterator[tuple[str, int, Array]], theirs: Iterator[tuple[str, int, Array]]
) -> Iterator[tuple[str, Array, Array]]:
    """Yield what both have of the same weights; pieces of both come in any order."""
    waiting: dict[str, list[tuple[int, Array]]] = {}
    for name, start, values in ours:
        rest = [(start, values)]
        while rest:
            at, some = rest.pop()
            if not some.size:
                continue
            pieces = waiting.setdefault(name, [])
            k = next(
                (k for k, (begin, others) in enumerate(pieces) if begin < at + some.size and at < begin + others.size),
                None,
            )
            if k is None:
                rest.append((at, some))
                other, begin, others = next(theirs)
                waiting.setdefault(other, []).append((begin, others))
                continue
            begin, others = pieces.pop(k)
            low, high = max(at, begin), min(at + some.size, begin + others.size)
            yield name, some[low - at : high - at], others[low - begin : high - begin]
            rest += [(at, some[: low - at]), (high, some[high - at :])]
            left = [(begin, others[: low - begin]), (high, others[high - begin :])]
            pieces += [piece for piece in left if piece[1].size]


def _row(
    one: Source, tensor: Tensor, other: Source, second: Tensor | None, note: str | None, found: Difference | None
) -> tuple[Any, ...]:
    stored = one.held_as(tensor), None if second is None else other.held_as(second)
    told = (tensor.name, *stored, list(tensor.shape), tensor.size)
    if found is None:
        return (*told, *[None] * 4, note)
    if second is not None and second.shape != tensor.shape:
        note = f"the second has the shape {list(second.shape)}"
    return (*told, found.mse, found.sqnr_db, found.cosine, found.max_abs, note)


def summary(table: pl.DataFrame) -> str:
    """Return a line about all layers together."""
    compared = table.filter(table["mse"].is_not_null())
    same = compared.filter(compared["mse"] == 0).height
    told = f"{compared.height} of {table.height} layers compared, {same} of them equal"
    noise = float((compared["mse"] * compared["n_weights"]).sum() or 0)
    lossy = compared.filter(compared["sqnr_db"].is_finite())
    signal = float((10 ** (lossy["sqnr_db"] / 10) * lossy["mse"] * lossy["n_weights"]).sum() or 0)
    if not noise or not signal:
        return told
    return f"{told}; the others have an SQNR of {decibels(signal, noise):.4g} dB"


def as_json(table: pl.DataFrame) -> dict[str, Any]:
    """Return the table for JSON, which has no infinity and no NaN: equal layers have `mse` 0 and `sqnr_db` null."""
    figures = pl.col("mse", "sqnr_db", "cosine", "max_abs")
    finite = table.with_columns(pl.when(figures.is_finite()).then(figures))
    return {"summary": summary(table), "layers": finite.to_dicts()}
