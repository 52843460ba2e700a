"""What the dtypes of files are: their sizes, and their elements as float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aq2_pipeline import schemes
from aq2_pipeline.floats import float32_of

if TYPE_CHECKING:
    from aq2_pipeline.weights import Array

__all__ = ["BLOCK_DTYPES", "DTYPE_BITS", "IDENTITIES", "decoded", "is_float", "numpy_dtype", "scheme_of_dtype"]

#: Bits an element of each dtype of safetensors (0.8, `safetensors/src/tensor.rs`).
DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
}
#: What NumPy reads the floats that it or we decode as.
_NUMPY = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8", "F8_E4M3": "u1", "F8_E5M2": "u1"}
#: dtype -> the scheme whose codes are the dtype's bytes.
IDENTITIES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
#: The same for ggml's blocks; `NVFP4` and `MXFP4` are ggml's.
BLOCK_DTYPES = {
    family.template.upper(): family.template
    for family in schemes.FAMILIES
    if family.block > 1 and not family.whole and not family.grouped
}


def is_float(dtype: str) -> bool:
    """Whether tensors of the dtype are weights that this package decodes."""
    return dtype in _NUMPY or dtype in BLOCK_DTYPES


def numpy_dtype(dtype: str) -> np.dtype[np.generic]:
    """Return what the bytes of a float dtype that is no block format are read as, before `decoded`."""
    return np.dtype(_NUMPY[dtype])


def scheme_of_dtype(dtype: str) -> str | None:
    """Return the scheme whose `quantized_data` is the tensor's own bytes; None where there is none."""
    return IDENTITIES.get(dtype) or BLOCK_DTYPES.get(dtype)


def _table(exponent_bits: int, bias: int, *, has_infinities: bool) -> Array:
    """Return the 256 values of an 8-bit float: OCP 8-bit floating point specification, revision 1.0, section 5."""
    codes = np.arange(128)
    mantissa_bits = 7 - exponent_bits
    exponents, mantissas = codes >> mantissa_bits, codes & (1 << mantissa_bits) - 1
    fractions = mantissas / 2.0**mantissa_bits
    values = np.where(
        exponents == 0, fractions * 2.0 ** (1 - bias), (1 + fractions) * 2.0 ** (exponents - np.float64(bias))
    )
    if has_infinities:
        values[exponents == (1 << exponent_bits) - 1] = np.nan
        values[((1 << exponent_bits) - 1) << mantissa_bits] = np.inf
    else:
        values[127] = np.nan
    table = np.concatenate([values, -values]).astype(np.float32)
    table.flags.writeable = False
    return table


_EIGHT_BITS = {"F8_E4M3": _table(4, 7, has_infinities=False), "F8_E5M2": _table(5, 15, has_infinities=True)}


def decoded(raw: Array, dtype: str) -> Array:
    """Return elements, read as `numpy_dtype`, as float32: exact, but for F64 which is rounded."""
    if dtype in _EIGHT_BITS:
        return _EIGHT_BITS[dtype].take(raw)
    return raw if dtype == "F32" else float32_of(raw, "bf16" if dtype == "BF16" else None)
