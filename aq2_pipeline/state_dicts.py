"""Dicts of arrays, layer by layer: what `ArrowQuantV2` does with a state dict."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from aq2_pipeline import schemes
from aq2_pipeline.errors import Aq2Error, InputTypeError
from aq2_pipeline.functions import FUNCTIONS
from aq2_pipeline.layout import INTS
from aq2_pipeline.shapes import n_weights
from aq2_pipeline.tensors import as_ndarray, is_tensor, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FromList", "QuantizedLayers", "checked_mapping", "quantize_layer", "quantized_row", "rounds"]

#: Weights that the layers of one round hold at the most; progress is told after each round.
ROUND_SIZE = 1 << 25


class QuantizedLayers(dict[str, dict[str, Any]]):
    """Layer name -> its result, in the order given.

    Attributes
    ----------
    errors : dict
        Layer name -> the exception of each layer that failed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, Exception] = {}

    def copy(self) -> QuantizedLayers:
        """Return a copy with its errors."""
        return copy.copy(self)


class FromList:
    """A list that becomes an array when its turn comes."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def array(self) -> Any:
        """Return the values as an array of floats; integers become float32."""
        try:
            array = np.asarray(self.values)
            if array.dtype.kind == "O":
                array = np.asarray(self.values, np.float32)
        except (TypeError, ValueError, OverflowError) as error:
            msg = f"the lists make no array of numbers: {error}"
            raise InputTypeError(msg, "nested lists must be equally long") from None
        return array.astype(np.float32) if array.dtype.kind in "iu" else array


def quantize_layer(
    found: dict[str, Any], name: str, tensor: Any, choose: Any, n_threads: int | None, caller: str
) -> None:
    """Put the layer's result, or its exception, where the caller finds it."""
    try:
        if isinstance(tensor, FromList):
            tensor = tensor.array()
        if not is_tensor(tensor):
            msg = f"weights are a {type(tensor).__name__}"
            raise InputTypeError(msg, "an ndarray or a torch tensor; np.asarray(list, np.float32) makes one")  # noqa: TRY301
        values = as_ndarray(tensor)
        scheme = choose(name, values.shape) if callable(choose) else choose
        shape = pa.array([list(values.shape)], INTS)
        row = FUNCTIONS["quantize"](rows_of(values, 1), scheme, shape, n_threads=n_threads)
        found[name] = _layer_result(row, values.shape)
    except Aq2Error as error:
        found[name] = error.at(function=f"ArrowQuantV2.{caller}", layer=name, row=None)
    except Exception as error:  # noqa: BLE001 - every failure of a layer is that layer's
        told = InputTypeError(f"{type(error).__name__}: {error}")
        told.__cause__ = error
        found[name] = told.at(function=f"ArrowQuantV2.{caller}", layer=name)


def _layer_result(row: pa.StructArray, shape: tuple[int, ...]) -> dict[str, Any]:
    scheme = schemes.parse(row.field("scheme")[0].as_py())
    return {
        "quantized_data": row.field("quantized_data")[0].as_py(),
        "scales": row.field("scales").values.to_numpy(),
        "zero_points": row.field("zero_points").values.to_numpy(),
        "shape": tuple(shape),
        "bit_width": scheme.bit_width,
        "scheme": scheme.name,
        "row_length": row.field("row_length")[0].as_py(),
    }


def quantized_row(layer: Mapping[str, Any]) -> pa.StructArray:
    """Return a layer's result as a row that `dequantize` reads."""
    needed = ("scheme", "shape", "quantized_data", "scales", "zero_points")
    missing = [name for name in needed if not isinstance(layer, Mapping) or name not in layer]
    if missing:
        msg = f"the layer has no {', '.join(map(repr, missing))}"
        raise InputTypeError(msg, "expected what quantize_batch returns")
    try:
        length = n_weights(tuple(layer["shape"]))
        fields = {
            "scheme": pa.array([layer["scheme"]], pa.string()),
            "length": pa.array([length], pa.int64()),
            "row_length": pa.array([layer.get("row_length", length)], pa.int64()),
            "quantized_data": pa.array([layer["quantized_data"]], pa.large_binary()),
            "scales": rows_of(np.ascontiguousarray(layer["scales"], np.float32), 1),
            "zero_points": rows_of(np.ascontiguousarray(layer["zero_points"], np.float32), 1),
        }
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        msg = f"the layer's fields make no row: {error}"
        raise InputTypeError(msg, "expected what quantize_batch returns") from None
    return pa.StructArray.from_arrays(list(fields.values()), list(fields))


def rounds(layers: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the names in order, in rounds of at most `ROUND_SIZE` weights."""
    names: list[str] = []
    size = 0
    for name, tensor in layers.items():
        n = math.prod(getattr(tensor, "shape", ()) or (1,))
        if names and size + n > ROUND_SIZE:
            yield names
            names, size = [], 0
        names.append(name)
        size += n
    if names:
        yield names


def checked_mapping(weights: Any) -> Mapping[str, Any]:
    """Return the layers; an error where they are no dict of names."""
    if not isinstance(weights, Mapping):
        msg = f"weights are a {type(weights).__name__}"
        raise InputTypeError(msg, "a dict of layer name to array")
    for name in weights:
        if not isinstance(name, str):
            msg = f"the layer name {name!r} is no string"
            raise InputTypeError(msg)
    return weights
