"""Layer tables as GGUF files: ggml's blocks byte for byte, and what has none as floats or as it came."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from aq2_pipeline.errors import FormatError
from aq2_pipeline.io.gguf.header import MAX_RANK, read_header
from aq2_pipeline.io.gguf.layout import LONGEST_NAME, header_of
from aq2_pipeline.io.gguf.source import open_gguf
from aq2_pipeline.io.gguf.types import GGML_NAMES, GGML_TYPES
from aq2_pipeline.io.gguf.values import KeyValue, Metadata, key_value
from aq2_pipeline.io.paths import open_regular
from aq2_pipeline.io.tables.dtypes import BLOCK_DTYPES, IDENTITIES
from aq2_pipeline.io.writing.sinks import Sink, sink_rows
from aq2_pipeline.io.writing.staging import OutFile, Piece, Spec

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from aq2_pipeline.io.tables.rows import Row
    from aq2_pipeline.io.targets import Options
    from aq2_pipeline.io.writing.sinks import Layer, Progress
    from aq2_pipeline.io.writing.staging import Staging
    from aq2_pipeline.schemes import Scheme

__all__ = ["FILE_TYPES", "GgufSink", "sink_gguf"]

#: scheme -> dtype, of what GGUF holds.
_DTYPES = {scheme: dtype for dtype, scheme in (BLOCK_DTYPES | IDENTITIES).items() if dtype in GGML_NAMES}
#: What `general.file_type` says of a file that is mostly of a dtype: llama.cpp, `include/llama.h`, `llama_ftype`.
FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 14,
    "Q5_K": 16,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "MXFP4": 38,
}
_ARCHITECTURE, _FILE_TYPE, _VERSION = "general.architecture", "general.file_type", "general.quantization_version"


def sink_gguf(
    given: Any,
    target: str | os.PathLike[str],
    *,
    metadata_from: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a layer table to a GGUF file, block formats byte for byte.

    Parameters
    ----------
    given : LazyFrame, DataFrame, Table, RecordBatch, reader, or anything with ``__arrow_c_stream__``
        A layer table with ``quantized`` in block formats of ggml's or as ``f32``,
        ``f16`` and ``bf16``; or with ``weights``: floats, written as F32, or
        bytes, written as they are. It is read once, a batch in memory at a time.
    target : str or Path
        Replaced once the new file is complete.
    metadata_from : str or Path, optional
        A GGUF file whose key-values go along, as they are but for
        ``general.file_type``. Without it the file has those that ggml asks for,
        and an architecture that says that no engine knows it.
    progress : callable, optional
        Called with a layer's name and the bytes written, row by row.

    Raises
    ------
    SchemeError
        Naming a layer whose scheme GGUF does not have, with those it has.
    InputTypeError, FormatError
        Naming the layer, or what is wrong with `metadata_from`; nothing is written then.
    OSError
        If the file cannot be written; an earlier one stays.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import polars as pl
    >>> import aq2_pipeline
    >>> row = {"layer_name": ["w"], "shape": [[1, 32]], "dtype": ["F32"], "weights": [[float(k) for k in range(32)]]}
    >>> lf = pl.LazyFrame(row).with_columns(quantized=pl.col("weights").aq2.quantize("q8_0"))
    >>> with TemporaryDirectory() as folder:
    ...     aq2_pipeline.sink_gguf(lf, f"{folder}/w.gguf")
    ...     aq2_pipeline.scan_gguf(f"{folder}/w.gguf").select("layer_name", "shape", "dtype").collect().rows()
    [('w', [1, 32], 'Q8_0')]
    """
    entries = None if metadata_from is None else _entries_of(open_gguf(metadata_from).metadata)
    sink_rows(given, target, GgufSink(entries), "sink_gguf", progress=progress)


def _entries_of(metadata: Any) -> list[KeyValue]:
    return list(metadata.entries) if isinstance(metadata, Metadata) else []


class GgufSink(Sink):
    """A GGUF file.

    Parameters
    ----------
    entries : sequence of KeyValue, optional
        The metadata of another.
    typed : bool
        Whether `general.file_type` is to say what the tensors are; else it stays as in `entries`.
    """

    name = "gguf"
    takes = ", ".join(sorted(_DTYPES))

    def __init__(self, entries: Sequence[KeyValue] | None = None, *, typed: bool = True) -> None:
        self.entries = [
            key_value(_ARCHITECTURE, "unknown"),
            key_value(_VERSION, 2, "u32"),
        ]
        if entries:
            self.entries = list(entries)
        self.typed = typed

    def row_length(self, scheme: Scheme, shape: Sequence[int]) -> int:  # noqa: ARG002 - the same for all
        """Return the last axis: GGUF's blocks never reach over it."""
        return shape[-1] if len(shape) > 1 else math.prod(shape)

    def refusal(self, layer: Layer) -> str | None:
        """Return why a layer cannot be held."""
        if layer.scheme is not None and layer.scheme.name not in _DTYPES:
            return f"GGUF has no {layer.scheme.name}"
        if layer.scheme is None and not layer.is_float and layer.dtype not in GGML_NAMES:
            return f"GGUF has no tensors of {layer.dtype}"
        if len(layer.name.encode()) > LONGEST_NAME:
            return f"the name has {len(layer.name.encode())} bytes, ggml takes {LONGEST_NAME}"
        if len(layer.shape) > MAX_RANK or not math.prod(layer.shape):
            return f"ggml takes shapes of at most {MAX_RANK} axes without a 0, not {list(layer.shape)}"
        if layer.scheme is not None and layer.scheme.block > 1:
            row = self.row_length(layer.scheme, layer.shape)
            if row % layer.scheme.block or (layer.row_length or row) % row:
                return f"its rows of {row} weights are not whole blocks of {layer.scheme.name}"
        return None

    def tensors(self, layer: Layer) -> list[Spec]:
        """Return the layer, under its own name."""
        dtype = _DTYPES[layer.scheme.name] if layer.scheme is not None else "F32" if layer.is_float else layer.dtype
        _, block, n_bytes = GGML_TYPES[GGML_NAMES[str(dtype)]]
        return [Spec(layer.name, str(dtype), layer.shape, math.prod(layer.shape) // block * n_bytes)]

    def pieces(self, row: Row) -> Iterator[Piece]:
        """Yield the row's blocks, its floats, or its bytes as they came."""
        data = row.raw
        if row.quantized is not None:
            data = row.quantized.data
        elif row.weights is not None:
            data = row.weights.view(np.uint8)
        if data is None:
            error = FormatError("the row has neither codes nor weights", "scan with raw=True, so that it has bytes")
            raise error.at(layer=row.name)
        size = math.prod(row.shape)
        yield Piece(row.name, row.start * data.size // size if size else 0, data)

    def files(self, specs: Sequence[Spec]) -> list[OutFile]:
        """Lay out the file."""
        entries = list(self.entries)
        if self.typed:
            entries = [entry for entry in entries if entry.key != _FILE_TYPE]
            known = _file_type(specs)
            if known is not None:
                entries.append(key_value(_FILE_TYPE, known, "u32"))
        layout = header_of([(spec.name, spec.shape, spec.dtype, spec.n_bytes) for spec in specs], entries)
        places = {spec.name: offset for spec, offset in zip(specs, layout.offsets, strict=True)}
        return [OutFile("", layout.header, places, layout.size)]

    def finish(self, staging: Staging) -> None:
        """Read the header again."""
        with open_regular(staging.out) as file:
            read_header(file, staging.out)


def _file_type(specs: Sequence[Spec]) -> int | None:
    """Return what the file is mostly of, by weights."""
    counts: Counter[str] = Counter()
    for spec in specs:
        counts[spec.dtype] += math.prod(spec.shape)
    known = [dtype for dtype, _ in counts.most_common() if dtype in FILE_TYPES]
    return FILE_TYPES[known[0]] if known else None


def from_options(options: Options) -> GgufSink:
    """Return the sink of a command: the metadata of a GGUF source, or of the one that it names, go along."""
    metadata = options.source.metadata if options.config_from is None else open_gguf(options.config_from).metadata
    return GgufSink(_entries_of(metadata), typed=bool(options.recipe))
