"""Schemes side by side on the layers of a file: what each takes and what it loses, pooled over the same weights."""

from __future__ import annotations

import math
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from aq2_pipeline import schemes as known
from aq2_pipeline.differences import decibels
from aq2_pipeline.errors import Aq2Error, InputValueError, SchemeError
from aq2_pipeline.functions import FUNCTIONS, thread_count
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.tables.parts import Part
from aq2_pipeline.io.writing.files import replacing
from aq2_pipeline.layout import FLOATS

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    from aq2_pipeline.io.tables.parts import Tensor
    from aq2_pipeline.io.tables.source import Source

    Progress = Callable[["ComparedLayer"], None]

__all__ = ["SCHEMA", "ComparedLayer", "as_json", "check_table_name", "compare", "layers_of", "write_table"]

#: The table that `compare` returns.
SCHEMA = pl.Schema(
    {
        "scheme": pl.String(),
        "bits_per_weight": pl.Float64(),
        "sqnr_db": pl.Float64(),
        "relative_rmse": pl.Float64(),
        "worst_layer": pl.String(),
        "worst_sqnr_db": pl.Float64(),
        "n_layers": pl.Int64(),
        "n_weights": pl.Int64(),
        "refused": pl.List(pl.String()),
        "reason": pl.String(),
        "seconds": pl.Float64(),
    }
)
_MATRIX_RANK = 2
_TABLES = (".parquet", ".csv")


class ComparedLayer(NamedTuple):
    """What the schemes do to a layer: scheme -> SQNR in decibels, None where it is refused."""

    name: str
    sqnr_db: dict[str, float | None]


class _Loss(NamedTuple):
    """What one scheme does to one layer."""

    n_bytes: int
    noise: float
    sqnr_db: float


def compare(
    source: str | os.PathLike[str],
    schemes: Iterable[int | str],
    *,
    layers: str = "*",
    vectors: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Return what schemes take and lose on the layers of a model file, a row a scheme.

    Nothing is decoded or written: the figures are sums of `quantization_error`,
    and a batch of layers of at most 64 MB, or one larger layer, is in memory at a time.

    Parameters
    ----------
    source : str or Path
        A file of any format that is read.
    schemes : iterable of int or str
        As `quantize` takes them; one that is there twice is tried once.
    layers : str
        A pattern (``*``, ``?``, ``[...]``) that layers' names match, case and all.
    vectors : bool
        Take tensors of fewer than two axes, too: norms and biases, which models
        mostly keep in floats.
    threads : int, optional
        Threads to use; no figure but `seconds` depends on it.
    progress : callable, optional
        Called with each layer's `ComparedLayer`.

    Returns
    -------
    polars.DataFrame
        Sorted by `bits_per_weight`; see Notes.

    Raises
    ------
    SchemeError
        If there is no such scheme; before the file is read.
    InputValueError
        If no layer matches, or none is left that the schemes take.
    FormatError, OSError
        If the file cannot be read.

    Notes
    -----
    A layer that one of the schemes refuses, such as a block format whose blocks
    do not fit its rows, is left out for all of them, so that every row is about
    the same weights: `n_weights` in `n_layers`. What a scheme refuses is in
    `refused`, the first reason in `reason`. A scheme that refuses every layer
    has null figures and takes none from the others.

    `bits_per_weight` is ``8 * bytes / weights``, of codes, scales and zero points;
    `sqnr_db` is ``10 log10(sum w^2 / sum e^2)`` over all weights, +inf without error;
    `relative_rmse` is ``sqrt(sum e^2 / sum w^2)``; `worst_layer` has the lowest
    SQNR, the first of them where several do, and is null without error.
    `seconds` is what measuring took.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> import aq2_pipeline
    >>> weights = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    >>> with TemporaryDirectory() as folder:
    ...     save_file({"w": weights}, f"{folder}/m.safetensors")
    ...     table = aq2_pipeline.compare(f"{folder}/m.safetensors", ["int8_g64", 4])
    >>> table.select("scheme", "bits_per_weight", "n_weights").rows()
    [('int4_g128', 4.25, 16384), ('int8_g64', 8.5, 16384)]
    """
    wanted = _wanted(schemes)
    file = open_source(source, "compare")
    tensors = layers_of(file, layers, vectors=vectors)
    measured = _Measured(list(wanted), tensors)
    for text in wanted.values():  # kernels load at their first use, which is not what is timed
        _losses(pa.array([np.linspace(-1, 1, 256)], FLOATS), text, None, None)
    for table in file.batches([Part(tensor, 0, tensor.size) for tensor in tensors]):
        measured.add(table, wanted, thread_count(threads), progress)
        del table  # one batch in memory, not two
    return measured.summary(file.path)


def layers_of(file: Source, pattern: str = "*", *, vectors: bool = False) -> list[Tensor]:
    """Return the tensors of a file that `compare` takes.

    Raises
    ------
    InputValueError
        If there is none.
    """
    tensors = file.tensors
    found = [
        tensor
        for tensor in tensors
        if file.holds_weights(tensor)
        and tensor.size
        and (vectors or len(tensor.shape) >= _MATRIX_RANK)
        and fnmatchcase(tensor.name, pattern)
    ]
    if not found:
        kind = "floats" if vectors else "floats of two axes or more"
        msg = f"{str(file.path)!r}: none of {len(tensors)} tensors holds {kind} and is called {pattern!r}"
        raise InputValueError(msg, f"the file has {tensors[0].name!r}" if tensors else None)
    return found


def _wanted(schemes: Iterable[int | str]) -> dict[str, str]:
    """Return name -> what the functions are told; a default method is not worth a word in a name."""
    if isinstance(schemes, int | str):
        schemes = [schemes]
    wanted = {}
    for given in schemes:
        scheme = known.parse(given)
        other = scheme.method != known.parse(scheme.name).method
        wanted[f"{scheme.name}:{scheme.method}" if other else scheme.name] = known.spelled(scheme)
    if not wanted:
        msg = "there is no scheme to compare"
        raise SchemeError(msg, "e.g. 'int4_g64'")
    return wanted


def _losses(weights: pa.Array, scheme: str, shapes: pa.Array | None, n_threads: int | None) -> list[_Loss | Aq2Error]:
    """Return what a scheme does to each row, or why it cannot take it."""
    failures: dict[int, Aq2Error] = {}
    errors = FUNCTIONS["quantization_error"](weights, scheme, shapes, n_threads=n_threads, failures=failures)
    losses: list[_Loss | Aq2Error] = []
    for row, (error, n) in enumerate(zip(errors.to_pylist(), _lengths(weights), strict=True)):
        if row in failures:
            losses.append(failures[row])
        else:
            losses.append(_Loss(round(error["bits_per_weight"] * n / 8), error["mse"] * n, error["sqnr_db"]))
    return losses


def _lengths(weights: pa.Array) -> list[int]:
    lengths: list[int] = np.diff(weights.offsets.to_numpy()).tolist()
    return lengths


class _Measured:
    """What every scheme does to every layer that has been read."""

    def __init__(self, names: list[str], tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.losses: dict[str, list[_Loss | Aq2Error]] = {name: [] for name in names}
        self.seconds = dict.fromkeys(names, 0.0)
        self.signals: list[float] = []

    def add(self, table: pa.Table, wanted: dict[str, str], n_threads: int | None, progress: Progress | None) -> None:
        """Measure a batch of layers."""
        weights, shapes = table["weights"].chunk(0), table["shape"].chunk(0)
        for stats in FUNCTIONS["weight_stats"](weights, n_threads=n_threads).to_pylist():
            finite = stats["count"] - stats["non_finite"]
            self.signals.append(finite * (stats["mean"] ** 2 + stats["std"] ** 2) if finite else 0.0)
        for name, scheme in wanted.items():
            start = time.perf_counter()
            self.losses[name] += _losses(weights, scheme, shapes, n_threads)
            self.seconds[name] += time.perf_counter() - start
        if progress is not None:
            for layer in range(len(self.signals) - len(table), len(self.signals)):
                found = {name: losses[layer] for name, losses in self.losses.items()}
                told = {name: loss.sqnr_db if isinstance(loss, _Loss) else None for name, loss in found.items()}
                progress(ComparedLayer(self.tensors[layer].name, told))

    def summary(self, path: Path) -> pl.DataFrame:
        """Return the table, over the layers that no scheme refuses but those that refuse all."""
        able = [losses for losses in self.losses.values() if any(isinstance(loss, _Loss) for loss in losses)]
        if not able:
            reason = next(iter(self.losses.values()))[0]
            msg = f"{str(path)!r}: every scheme refuses every layer, the first because {reason}"
            raise InputValueError(msg)
        common = [k for k in range(len(self.tensors)) if all(isinstance(losses[k], _Loss) for losses in able)]
        if not common:
            msg = f"{str(path)!r}: no layer is taken by all schemes that take any"
            raise InputValueError(msg, "compare them one at a time")
        rows = [self._row(name, losses, common if losses in able else []) for name, losses in self.losses.items()]
        return pl.DataFrame(rows, SCHEMA, orient="row").sort("bits_per_weight", maintain_order=True, nulls_last=True)

    def _row(self, name: str, losses: list[_Loss | Aq2Error], layers: list[int]) -> tuple[Any, ...]:
        refused = [(self.tensors[k].name, loss) for k, loss in enumerate(losses) if isinstance(loss, Aq2Error)]
        reason = refused[0][1].reason if refused else None
        tail = ([layer for layer, _ in refused], reason, self.seconds[name])
        if not layers:
            return (name, *[None] * 5, 0, 0, *tail)
        kept = [(k, loss) for k in layers if isinstance(loss := losses[k], _Loss)]
        n_weights = sum(self.tensors[k].size for k in layers)
        noise, signal = math.fsum(loss.noise for _, loss in kept), math.fsum(self.signals[k] for k in layers)
        bits, sqnr = 8 * sum(loss.n_bytes for _, loss in kept) / n_weights, decibels(signal, noise)
        worst, least = min(((self.tensors[k].name, loss.sqnr_db) for k, loss in kept), key=lambda pair: pair[1])
        lowest = (worst, least) if noise else (None, None)
        return (name, bits, sqnr, 10 ** (-sqnr / 20), *lowest, len(layers), n_weights, *tail)


def as_json(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the rows for JSON, which has no infinity: a lossless scheme has `relative_rmse` 0 and `sqnr_db` null."""
    return table.with_columns(pl.when(pl.col("sqnr_db").is_finite()).then("sqnr_db").alias("sqnr_db")).to_dicts()


def check_table_name(target: str | os.PathLike[str]) -> None:
    """Check that `write_table` knows the file's kind.

    Raises
    ------
    InputValueError
        If it does not.
    """
    if Path(target).suffix.lower() not in _TABLES:
        msg = f"{str(target)!r}: a table is written as {' or '.join(_TABLES)}"
        raise InputValueError(msg)


def write_table(table: pl.DataFrame, target: str | os.PathLike[str]) -> None:
    """Write what `compare` returns to a Parquet file, or to CSV with refused layers joined by semicolons.

    Raises
    ------
    InputValueError
        If the file's suffix is neither.
    OSError
        If it cannot be written; an earlier file stays.
    """
    check_table_name(target)
    with replacing(target) as temporary:
        if Path(target).suffix.lower() == ".csv":
            table.with_columns(pl.col("refused").list.join(";")).write_csv(temporary)
        else:
            table.write_parquet(temporary)
