"""Everything compiled or loaded before the first request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from aq2_pipeline import schemes as known
from aq2_pipeline.errors import InputValueError
from aq2_pipeline.functions import FUNCTIONS
from aq2_pipeline.layout import FLOATS

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["warmup"]

#: Weights of the row that is tried: as many as the largest block of any format.
_N_WEIGHTS = 256
#: What weights come as without a word in the scheme.
_INPUTS = (pa.float32(), pa.float16(), pa.float64())


def warmup(schemes: Any = None, functions: str | Iterable[str] | None = None) -> None:
    """Compile, or load from the cache, all that functions need, so that a service's first request is fast.

    Parameters
    ----------
    schemes : int, str or iterable of them, optional
        The schemes that will be asked for; default: one of every known family.
    functions : str or iterable of str, optional
        Of `quantize`, `dequantize`, `quantization_error`, `weight_stats`;
        default: all.

    Raises
    ------
    SchemeError
        For a scheme that cannot be.
    InputValueError
        For a function that is none.

    Notes
    -----
    Nothing is kept but the code. Any thread may call it, and any number of
    threads at once: a second caller waits for the first.

    Examples
    --------
    >>> import aq2_pipeline
    >>> aq2_pipeline.warmup(4, functions=["quantize", "dequantize"])
    """
    names = [functions] if isinstance(functions, str) else list(FUNCTIONS if functions is None else functions)
    for name in names:
        if name not in FUNCTIONS:
            msg = f"functions: {name!r} is no function"
            raise InputValueError(msg, f"of {', '.join(map(repr, FUNCTIONS))}")
    if schemes is None:
        schemes = [family.template.format(group=f"g{known.DEFAULT_GROUP}") for family in known.FAMILIES]
    elif isinstance(schemes, int | str | known.Scheme):
        schemes = [schemes]
    wanted = [known.parse(scheme) for scheme in schemes]
    values = np.linspace(-1, 1, _N_WEIGHTS)
    for kind in _INPUTS:
        column = pa.array([values], FLOATS).cast(pa.large_list(kind))
        for scheme in wanted:
            _try(names, column, scheme)
        if "weight_stats" in names:
            FUNCTIONS["weight_stats"](column)


def _try(names: list[str], column: pa.Array, scheme: known.Scheme) -> None:
    """Call what takes a scheme; a row that the scheme cannot hold warms as well."""
    if scheme.input_dtype is not None:  # it says what bytes hold
        column = pa.array([bytes(8 * _N_WEIGHTS)], pa.large_binary())
    if "quantize" in names or "dequantize" in names:
        quantized = FUNCTIONS["quantize"](column, scheme, failures={})
        if "dequantize" in names:
            FUNCTIONS["dequantize"](quantized, failures={})
    if "quantization_error" in names:
        FUNCTIONS["quantization_error"](column, scheme, failures={})
