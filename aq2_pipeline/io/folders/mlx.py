"""Layer tables as folders of MLX, as mlx-lm loads them.

A module has `weight`, uint32, dense from the lowest bit on, and `scales`; integers have `biases`, too, and are
`scale * code + bias` (`mx.dequantize` of MLX 0.32). Its modules hold no scale of the tensor, so that NVFP4 is
ggml's `nvfp4`, whose groups' scales are all that there is.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from aq2_pipeline.io.folders.float4_codes import GROUPS, float4_of
from aq2_pipeline.io.folders.integer_codes import codes_of, integers_of, rounded, without_zeros
from aq2_pipeline.io.folders.model import FLOAT_BYTES, FolderSink, config_of
from aq2_pipeline.io.writing.sinks import sink_rows
from aq2_pipeline.io.writing.staging import Piece, Spec

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from aq2_pipeline.io.folders.integer_codes import Integers
    from aq2_pipeline.io.folders.model import Held, Matrix
    from aq2_pipeline.io.tables.rows import Row
    from aq2_pipeline.io.targets import Options
    from aq2_pipeline.io.writing.sinks import Progress
    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.stored import Quantized
    from aq2_pipeline.weights import Array

__all__ = ["MlxSink", "sink_mlx"]

#: What `mx.dequantize` takes in its mode "affine".
_BITS, _GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)


def sink_mlx(
    given: Any,
    folder: str | os.PathLike[str],
    *,
    config_from: str | os.PathLike[str] | None = None,
    scale_dtype: str = "F32",
    progress: Progress | None = None,
) -> None:
    """Write a layer table to a folder of MLX.

    Parameters
    ----------
    given : LazyFrame, DataFrame, Table, RecordBatch, reader, or anything with ``__arrow_c_stream__``
        A layer table with ``quantized``: matrices ``<module>.weight`` in integer
        schemes of 2, 3, 4, 5, 6 or 8 bits and groups of 32, 64 or 128, in `mxfp4`
        and in `nvfp4`. Rows without codes, and those of `f32`, `f16` and `bf16`,
        are written as they are.
    folder : str or Path
        Replaced once the new one is complete. A folder with files that are not
        this package's is refused.
    config_from : str or Path, optional
        The model's folder, whose config.json is kept and whose tokenizer and other
        small files are copied; or only its config.json.
    scale_dtype : {"F32", "F16", "BF16"}
        Of the scales and biases of integers. With other than F32 they are rounded
        first and the weights coded with what they became, so that ``weights`` must
        be there beside ``quantized``.
    progress : callable, optional
        Called with a layer's name and the bytes written, row by row.

    Raises
    ------
    SchemeError
        Naming a layer whose scheme, name or shape cannot be held.
    InputTypeError, InputValueError, FormatError
        Naming the layer; nothing is written then.
    OSError
        If the folder cannot be written; an earlier one stays.

    Examples
    --------
    >>> import json
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> import polars as pl
    >>> import aq2_pipeline
    >>> weights = np.linspace(-1, 1, 256, dtype=np.float32)
    >>> df = pl.DataFrame({"layer_name": ["up.weight"], "shape": [[2, 128]], "weights": [weights]})
    >>> lf = df.lazy().with_columns(quantized=pl.col("weights").aq2.quantize("int4_g64_asym", shape="shape"))
    >>> with TemporaryDirectory() as folder:
    ...     aq2_pipeline.sink_mlx(lf, f"{folder}/model")
    ...     config = json.loads(Path(folder, "model", "config.json").read_text())
    >>> config["quantization"]
    {'group_size': 64, 'bits': 4, 'mode': 'affine'}
    """
    sink_rows(given, folder, MlxSink(config_from, scale_dtype), "sink_mlx", progress=progress)


class MlxSink(FolderSink):
    """MLX's modes "affine", "mxfp4" and "nvfp4"."""

    name = "mlx"
    takes = "integers of 2, 3, 4, 5, 6 and 8 bits in groups of 32, 64 and 128 that divide the columns; nvfp4, mxfp4"
    metadata = {"format": "mlx"}  # noqa: RUF012 - it is not changed

    def scheme_refusal(self, scheme: Scheme, columns: int) -> str | None:
        """Return why a scheme is not held."""
        told = integers_of(scheme)
        if scheme.name == "nvfp4_tensor":
            return "nvfp4_tensor has a scale of the tensor, for which MLX's modules have no place"
        if told is None and scheme.name not in GROUPS:
            return f"the scheme {scheme} is not held"
        if told is not None and (told.bits not in _BITS or told.group not in _GROUPS):
            return f"the scheme {scheme} is not held"
        group = GROUPS[scheme.name] if told is None else told.group
        if columns % group:
            return f"{scheme} has groups of {group}, which do not divide the {columns} columns"
        return None

    def matrix_tensors(self, name: str, scheme: Scheme, shape: tuple[int, ...]) -> list[Spec]:
        """Return `weight`, `scales` and, of integers, `biases`."""
        (n_rows, columns), told, module = shape, integers_of(scheme), name.removesuffix(".weight")
        bits, group = (4, GROUPS[scheme.name]) if told is None else (told.bits, told.group)
        words, n_groups = columns * bits // 32, columns // group
        dtype, size = ("U8", 1) if told is None else (self.scale_dtype, FLOAT_BYTES[self.scale_dtype])
        weight = Spec(name, "U32", (n_rows, words), 4 * n_rows * words)
        numbers = [
            Spec(f"{module}.{each}", dtype, (n_rows, n_groups), size * n_rows * n_groups)
            for each in (("scales",) if told is None else ("scales", "biases"))
        ]
        return [weight, *numbers]

    def matrix_pieces(self, row: Row, held: Quantized, matrix: Matrix) -> Iterator[Piece]:
        """Yield the bytes of a row's tensors."""
        told, module = integers_of(held.scheme), row.name.removesuffix(".weight")
        if told is None:
            found, first = float4_of(held, row.name), matrix.first * matrix.columns
            yield Piece(row.name, first // 2, found.codes)
            yield Piece(f"{module}.scales", first // GROUPS[held.scheme.name], found.scales)
            return
        held = without_zeros(held, told)
        packed = codes_of(held, told, matrix.columns, matrix.columns * told.bits // 8)
        scales, _ = rounded(held.scales, self.scale_dtype, row.name)
        biases, _ = rounded(_biases(held.scales, held, told), self.scale_dtype, row.name, "bias")
        begin = matrix.first * (matrix.columns // told.group) * scales.itemsize
        yield Piece(row.name, matrix.first * packed.shape[1], packed)
        yield Piece(f"{module}.scales", begin, scales)
        yield Piece(f"{module}.biases", begin, biases)

    def offsets(self, held: Quantized, told: Integers, scales: Array, zeros: Array, layer: str) -> Array:
        """Return what the biases, as they are stored, come to."""
        if told.asymmetric:
            held = held._replace(zero_points=np.where(zeros, np.rint(held.zero_points), held.zero_points))
        _, near = rounded(_biases(scales, held, told), self.scale_dtype, layer, "bias")
        return np.asarray(-near.astype(np.float64) / scales)

    def with_quantization(self, config: dict[str, Any], layers: Sequence[Held]) -> dict[str, Any]:
        """Return the config with its `quantization`: that of most modules, and those of the others by their paths."""
        by_module = {layer.module: _arguments(layer.scheme) for layer in layers if layer.scheme is not None}
        ((commonest, _),) = Counter(tuple(each.items()) for each in by_module.values()).most_common(1)
        most = dict(commonest)
        told = most | {module: each for module, each in by_module.items() if each != most}
        return config | {"quantization": told, "quantization_config": told}


def _arguments(scheme: Scheme) -> dict[str, Any]:
    """Return what `mx.dequantize` is told of a scheme."""
    told = integers_of(scheme)
    if told is None:
        return {"group_size": GROUPS[scheme.name], "bits": 4, "mode": scheme.name}
    return {"group_size": told.group, "bits": told.bits, "mode": "affine"}


def _biases(scales: Array, held: Quantized, told: Integers) -> Array:
    """Return what the code 0 decodes to."""
    points = held.zero_points if told.asymmetric else np.float32(told.middle)
    with np.errstate(over="ignore"):
        return np.asarray(-points * scales, np.float32)


def from_options(options: Options) -> MlxSink:
    """Return the sink of a command."""
    return MlxSink(config_of(options), options.scale_dtype or "F32")
