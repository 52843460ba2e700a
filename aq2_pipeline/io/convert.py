"""From safetensors to quantized Parquet and back: what the command does, with a report of every layer."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from aq2_pipeline import policy, schemes
from aq2_pipeline.codecs import IDENTITY
from aq2_pipeline.errors import Aq2Error, InputValueError
from aq2_pipeline.io.decoding import is_float
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.parquet import LAYER_TABLE, QuantizedFile, write_quantized
from aq2_pipeline.io.writing import write_safetensors
from aq2_pipeline.udfs.python import dequantize, quantization_error, quantize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aq2_pipeline.io.source import Source

    Progress = Callable[["LayerReport"], None]

__all__ = ["LayerReport", "Recipe", "Report", "dequantize_file", "quantize_file"]


@dataclass(frozen=True)
class Recipe:
    """Which scheme each layer gets: one for all, or a policy's.

    Parameters
    ----------
    scheme : str, optional
        For every float tensor.
    mode : str
        The policy, where there is no scheme.
    bits : int
        What the policy is asked for.

    Raises
    ------
    SchemeError
        If there is no such scheme, policy or width.
    """

    scheme: str | None = None
    mode: str = policy.DEFAULT_MODE
    bits: int = 4

    def __post_init__(self) -> None:
        if self.scheme is None:
            policy.policy_scheme(None, None, self.bits, self.mode)
        else:
            schemes.parse(self.scheme)

    def __str__(self) -> str:
        return self.scheme or f"policy {self.mode}, {self.bits} bits"

    def scheme_of(self, name: str, shape: list[int]) -> str:
        """Return the layer's scheme, as `aq2_policy_scheme` chooses it."""
        return self.scheme or policy.policy_scheme(name, shape, self.bits, self.mode)

    def reason(self, name: str, shape: list[int]) -> str:
        """Return why a layer keeps its floats."""
        if self.scheme is not None:
            return "the scheme asked for keeps floats"
        rules = policy.POLICIES[policy.mode_name(self.mode)]
        return next(rule.reason for rule in rules if rule.matches(name, shape))


@dataclass(frozen=True)
class LayerReport:
    """What became of a layer.

    Attributes
    ----------
    name : str
    shape : list of int
    dtype : str or None
        Of the source.
    scheme : str or None
        None where it is not stored.
    n_weights, n_bytes : int
        `n_bytes` are those of codes, scales and zero points.
    mse, sqnr_db : float or None
        Mean squared error; None where nothing is stored, or the row is empty.
    left_alone : str or None
        Why it is not quantized; None where it is.
    """

    name: str
    shape: list[int]
    dtype: str | None
    scheme: str | None
    n_weights: int = 0
    n_bytes: int = 0
    mse: float | None = None
    sqnr_db: float | None = None
    left_alone: str | None = None

    @property
    def bits_per_weight(self) -> float | None:
        """The bits that a weight takes, scales included."""
        return 8 * self.n_bytes / self.n_weights if self.n_weights else None

    def as_json(self) -> dict[str, Any]:
        """Return the fields for JSON, which has no infinity: a lossless layer has mse 0 and sqnr_db null."""
        lossless = self.sqnr_db is not None and not math.isfinite(self.sqnr_db)
        changed = {"sqnr_db": None} if lossless else {}
        return {**asdict(self), "bits_per_weight": self.bits_per_weight, **changed}


@dataclass
class Report:
    """What became of a file; its figures are over the layers that are quantized.

    Attributes
    ----------
    source, target : Path
    recipe : str
    layers : list of LayerReport
    """

    source: Path
    target: Path
    recipe: str
    layers: list[LayerReport] = field(default_factory=list)

    @property
    def quantized(self) -> list[LayerReport]:
        """The layers that lost bits."""
        return [layer for layer in self.layers if layer.left_alone is None]

    @property
    def bits_per_weight(self) -> float | None:
        """Bits a weight of the quantized layers, scales included."""
        n_weights = sum(layer.n_weights for layer in self.quantized)
        return 8 * sum(layer.n_bytes for layer in self.quantized) / n_weights if n_weights else None

    @property
    def sqnr_db(self) -> float | None:
        """Signal to noise of the quantized layers together, in decibels; None without noise."""
        noise = signal = 0.0
        for layer in self.quantized:
            if layer.mse and layer.sqnr_db is not None:
                noise += layer.mse * layer.n_weights
                signal += layer.mse * layer.n_weights * 10 ** (layer.sqnr_db / 10)
        return 10 * math.log10(signal / noise) if noise and signal else None

    def as_json(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "source": str(self.source),
            "target": str(self.target),
            "recipe": self.recipe,
            "bits_per_weight": self.bits_per_weight,
            "sqnr_db": self.sqnr_db,
            "source_bytes": self.source.stat().st_size,
            "target_bytes": self.target.stat().st_size,
            "layers": [layer.as_json() for layer in self.layers],
        }


def quantize_file(
    source: Any, target: Any, recipe: Recipe, *, threads: int | None = None, progress: Progress | None = None
) -> Report:
    """Quantize a safetensors file to Parquet, a batch of layers in memory at a time.

    Parameters
    ----------
    source, target : str or Path
    recipe : Recipe
    threads : int, optional
        Threads to use; the file does not depend on it.
    progress : callable, optional
        Called with each layer's `LayerReport`.

    Raises
    ------
    Aq2Error
        Naming the layer; nothing is written then.
    OSError
    """
    file = open_source(source)
    report = Report(file.path, Path(target), str(recipe))
    _check_apart(report)
    if not any(is_float(tensor.dtype) for tensor in file.tensors):
        msg = f"{str(file.path)!r}: 0 of {len(file.tensors)} tensors hold float weights"
        raise InputValueError(msg)
    metadata = {"aq2.recipe": report.recipe, "aq2.source": file.path.name}
    kept = dict(file.metadata)
    if kept and all(isinstance(value, str) for value in kept.values()):  # those of GGUF have other types, too
        metadata["aq2.source_metadata"] = json.dumps(kept, sort_keys=True)
    write_quantized(_quantized(file, recipe, report, threads, progress), report.target, metadata)
    return report


def _quantized(
    file: Source, recipe: Recipe, report: Report, threads: int | None, progress: Progress | None
) -> Iterator[pa.Table]:
    for table in file.batches(file.parts()):
        names, shapes = table["layer_name"].to_pylist(), table["shape"].to_pylist()
        chosen = pa.array([recipe.scheme_of(*layer) for layer in zip(names, shapes, strict=True)])
        given = (table["weights"].combine_chunks(), chosen, table["shape"].combine_chunks())
        try:
            quantized = quantize(*given, threads=threads)
            errors = quantization_error(*given, threads=threads).to_pylist()
        except Aq2Error as error:
            raise _of_layer(error, names) from None
        dtypes, stored = table["dtype"].to_pylist(), quantized.field("scheme").to_pylist()
        columns = [*table.select(LAYER_TABLE.names[:-1]).columns, quantized]
        del table, given, quantized  # one batch of weights in memory, not two
        yield pa.Table.from_arrays(columns, schema=LAYER_TABLE)
        del columns
        for layer in zip(names, shapes, dtypes, stored, errors, strict=True):
            report.layers.append(_layer_report(recipe, *layer))
            if progress is not None:
                progress(report.layers[-1])


def _layer_report(
    recipe: Recipe, name: str, shape: list[int], dtype: str, scheme: str | None, error: dict[str, float | None] | None
) -> LayerReport:
    if scheme is None or error is None:
        return LayerReport(name, shape, dtype, None, left_alone=f"{dtype} is not a float dtype; its data is left out")
    n_weights = math.prod(shape)
    n_bytes = round((error["bits_per_weight"] or 0) * n_weights / 8)
    kept = recipe.reason(name, shape) if schemes.parse(scheme).codec is IDENTITY else None
    return LayerReport(name, shape, dtype, scheme, n_weights, n_bytes, error["mse"], error["sqnr_db"], kept)


def _of_layer(error: Aq2Error, names: list[str]) -> Aq2Error:
    """Name the layer instead of the row of a batch."""
    return error if error.row is None else error.at(layer=names[error.row], row=None)


def _check_apart(report: Report) -> None:
    if report.target.exists() and report.source.samefile(report.target):
        msg = f"{str(report.target)!r} is both source and target"
        raise InputValueError(msg, "write to another file")


def dequantize_file(
    source: Any, target: Any, *, threads: int | None = None, progress: Progress | None = None
) -> Report:
    """Decode a Parquet file of quantized layers to float32 in a safetensors file, a batch at a time.

    The chunks of a layer become one tensor; they may be anywhere in the file.

    Parameters
    ----------
    source, target : str or Path
    threads : int, optional
    progress : callable, optional
        As in `quantize_file`.

    Returns
    -------
    Report
        Layers that the Parquet file only lists, because they were not of
        floats, are `left_alone` and not in the safetensors file.

    Raises
    ------
    Aq2Error
        Naming the layer; nothing is written then.
    OSError
    """
    with QuantizedFile(source) as file:
        report = Report(file.path, Path(target), "float32")
        _check_apart(report)
        for layer in file.layers:
            absent = None if layer.scheme else f"only its name is stored: {layer.dtype or 'it'} is not a float dtype"
            size = (layer.length, layer.n_bytes)
            report.layers.append(LayerReport(*layer[:4], *size, left_alone=absent))
        kept = [(layer.name, layer.shape) for layer in report.quantized]
        write_safetensors(report.target, kept, _decoded(file, report, threads, progress), file.source_metadata)
    return report


def _decoded(
    file: QuantizedFile, report: Report, threads: int | None, progress: Progress | None
) -> Iterator[tuple[int, int, Any]]:
    """Yield for each row which of the written layers it belongs to, where it begins there, and its weights."""
    numbers = [k for k, layer in enumerate(report.layers) if layer.left_alone is None]
    written = {layer: k for k, layer in enumerate(numbers)}
    rows_left = Counter(place.layer for place in file.places)
    places = iter(file.places)
    for batch in file.batches():
        names = batch["layer_name"].to_pylist()
        try:
            weights = dequantize(batch["quantized"], threads=threads)
        except Aq2Error as error:
            raise _of_layer(error, names) from None
        for row in weights:
            layer, start = next(places)
            if row.is_valid:
                yield written[layer], start, row.values.to_numpy(zero_copy_only=True)
            rows_left[layer] -= 1
            if progress is not None and not rows_left[layer]:
                progress(report.layers[layer])
