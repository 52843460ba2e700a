"""Dicts of arrays, layer by layer: what `ArrowQuantV2` does with a state dict."""

from __future__ import annotations

import copy
import math
from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from aq2_pipeline import ops, schemes
from aq2_pipeline.columns import Tensors
from aq2_pipeline.errors import Aq2Error, InputTypeError
from aq2_pipeline.shapes import n_weights
from aq2_pipeline.tensors import as_ndarray, is_tensor, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aq2_pipeline.schemes import Scheme

__all__ = ["FromList", "QuantizedLayers", "checked_mapping", "quantize_layers", "quantized_row", "rounds"]

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


def _floats(values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return nested lists of numbers as an array: `array` reads a list of floats in two thirds of NumPy's time."""
    flat = array("d")
    shape = _flatten(values, flat)
    return np.frombuffer(flat, np.float64).reshape(shape) if flat else np.empty(shape)


def _flatten(values: Any, flat: array[float]) -> tuple[int, ...]:
    """Append the numbers of nested lists; return the shape. ValueError where lists differ in length."""
    first = values[0] if values else None
    if not isinstance(first, list | tuple):
        if isinstance(first, bool):
            msg = "bools are no weights"
            raise TypeError(msg)
        flat.fromlist(values if isinstance(values, list) else list(values))
        return (len(values),)
    shapes = {_flatten(inner, flat) for inner in values}
    if len(shapes) > 1:
        msg = "lists differ in length"
        raise ValueError(msg)
    return (len(values), *shapes.pop())


class FromList:
    """A list that becomes an array when its turn comes."""

    def __init__(self, values: Any) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        """What its first elements say; the last axis is told as eight times as long, as much as its objects weigh."""
        shape, inner = [8], self.values
        while isinstance(inner, list | tuple):
            shape.append(len(inner))
            inner = inner[0] if inner else None
        return tuple(shape)

    def array(self) -> Any:
        """Return the values as an array of floats; integers are taken, too."""
        try:
            return _floats(self.values)
        except (TypeError, ValueError, OverflowError, AttributeError):
            pass  # lists of something else, which NumPy may know or has the better words for
        try:
            found = np.asarray(self.values)
            if found.dtype.kind == "O":
                found = np.asarray(self.values, np.float32)
        except (TypeError, ValueError, OverflowError) as error:
            msg = f"the lists make no array of numbers: {error}"
            raise InputTypeError(msg, "nested lists must be equally long") from None
        return found.astype(np.float32) if found.dtype.kind in "iu" else found


def quantize_layers(
    layers: Mapping[str, Any], choose: Any, n_threads: int | None, caller: str
) -> dict[str, dict[str, Any] | Exception]:
    """Return each layer's result, or its exception: all layers of one dtype are one job over the arrays' own memory.

    Parameters
    ----------
    layers : dict
        Layer name -> ndarray, torch tensor or `FromList`.
    choose : callable or Scheme
        ``choose(name, shape)`` of a policy, or one scheme for all.
    n_threads : int or None
    caller : str
        The method that errors name.
    """
    found: dict[str, dict[str, Any] | Exception] = {}
    jobs: dict[Any, list[_Layer]] = {}
    for name, tensor in layers.items():
        try:
            layer = _layer(name, tensor, choose)
        except Exception as error:  # noqa: BLE001 - every failure of a layer is that layer's
            found[name] = _told(error, name, caller)
        else:
            jobs.setdefault(layer.values.dtype, []).append(layer)
    for job in jobs.values():
        _run(found, job, n_threads, caller)
    return found


class _Layer(NamedTuple):
    """A layer that is ready to be quantized."""

    name: str
    values: np.ndarray[Any, np.dtype[Any]]
    scheme: Scheme


def _layer(name: str, tensor: Any, choose: Any) -> _Layer:
    if isinstance(tensor, FromList):
        tensor = tensor.array()
    if not is_tensor(tensor):
        msg = f"weights are a {type(tensor).__name__}"
        raise InputTypeError(msg, "an ndarray or a torch tensor; np.asarray(list, np.float32) makes one")
    values = as_ndarray(tensor)
    return _Layer(name, values, schemes.parse(choose(name, values.shape)) if callable(choose) else choose)


def _told(error: Exception, name: str, caller: str) -> Aq2Error:
    """Return what a user is told of a layer's failure."""
    told = error
    if not isinstance(told, Aq2Error):
        told = InputTypeError(f"{type(error).__name__}: {error}")
        told.__cause__ = error
    return told.at(function=f"ArrowQuantV2.{caller}", layer=name, row=None)


def _run(found: dict[str, dict[str, Any] | Exception], job: list[_Layer], n_threads: int | None, caller: str) -> None:
    """Quantize layers of one dtype; what fails as a whole, as memory does, is tried layer by layer."""
    names, arrays, wanted = zip(*job, strict=True)
    failures: dict[int, Aq2Error] = {}
    try:
        rows = ops.quantize_tensors(Tensors(arrays), list(wanted), n_threads=n_threads, failures=failures)
    except Exception as error:  # noqa: BLE001 - every failure of a layer is that layer's
        if len(job) == 1:
            found[names[0]] = _told(error, names[0], caller)
        else:
            for layer in job:
                _run(found, [layer], n_threads, caller)
        return
    for k, ((name, values, scheme), row) in enumerate(zip(job, rows, strict=True)):
        if k in failures:
            found[name] = _told(failures[k], name, caller)
            continue
        found[name] = {
            "quantized_data": row.data,
            "scales": row.scales,
            "zero_points": row.zero_points,
            "shape": tuple(values.shape),
            "bit_width": scheme.bit_width,
            "scheme": scheme.name,
            "row_length": row.row_length,
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
