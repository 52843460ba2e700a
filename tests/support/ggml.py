"""The C code of ggml, which pywhispercpp ships: the oracle of the block formats.

It quantizes and decodes every format of `FORMATS`, with and without importance; none of them needs
`ggml_quantize_init`, which builds the grids of iq1 to iq3 and is called for these alone. What to know of it (0.13.1):

- x86-64 wheels are built without fused multiply-add, so each operation rounds once; a build that fuses (GCC's default
  on ARM) gives other bytes.
- q8_0, mxfp4, nvfp4, tq1_0 and tq2_0 take importance and ignore it.
- mxfp4: where the largest magnitude of a block is below 2**-125, the exponent wraps around to 248 and more; all codes
  are then 0 and the block decodes to zeros. Exponents from 253 decode to infinity.
- nvfp4: the scale is an unsigned E4M3 that nothing normalises, so groups whose largest magnitude is below about 0.006
  become zeros, and those above 2,688 are cut off. The codes 0 and 127 decode to 0; the sign bit is ignored.
- A scale that does not fit its float16 becomes infinite, silently. NaN and infinite weights reach assertions, which
  abort the process in some builds: `quantize` refuses them.
"""

from __future__ import annotations

import ctypes
import functools
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64


class Format(NamedTuple):
    """ggml's number of a type, the weights and the bytes of a block, and (name, bytes) of the fields in order."""

    number: int
    weights: int
    bytes: int
    fields: tuple[tuple[str, int], ...]


def _format(number: int, weights: int, layout: str) -> Format:
    fields = tuple((name, int(size)) for name, _, size in (field.partition(":") for field in layout.split()))
    return Format(number, weights, sum(size for _, size in fields), fields)


#: Scheme name -> its blocks. `d`, `m` and `dmin` of two bytes are float16.
FORMATS = {
    "q4_0": _format(2, 32, "d:2 qs:16"),
    "q4_1": _format(3, 32, "d:2 m:2 qs:16"),
    "q5_0": _format(6, 32, "d:2 qh:4 qs:16"),
    "q5_1": _format(7, 32, "d:2 m:2 qh:4 qs:16"),
    "q8_0": _format(8, 32, "d:2 qs:32"),
    "q2_k": _format(10, 256, "scales:16 qs:64 d:2 dmin:2"),
    "q3_k": _format(11, 256, "hmask:32 qs:64 scales:12 d:2"),
    "q4_k": _format(12, 256, "d:2 dmin:2 scales:12 qs:128"),
    "q5_k": _format(13, 256, "d:2 dmin:2 scales:12 qh:32 qs:128"),
    "q6_k": _format(14, 256, "ql:128 qh:64 scales:16 d:2"),
    "iq4_nl": _format(20, 32, "d:2 qs:16"),
    "iq4_xs": _format(23, 256, "d:2 scales_h:2 scales_l:4 qs:128"),
    "tq1_0": _format(34, 256, "qs:48 qh:4 d:2"),
    "tq2_0": _format(35, 256, "qs:64 d:2"),
    "mxfp4": _format(39, 32, "e:1 qs:16"),
    "nvfp4": _format(40, 64, "d:4 qs:32"),
}


@functools.cache
def library() -> ctypes.CDLL:
    """Load ggml, and the OpenMP library that it needs before it; OSError where the wheel has none."""
    files = [file for file in metadata.files("pywhispercpp") or () if "pywhispercpp.libs" in str(file)]
    for file in files:
        if file.name.startswith("libgomp"):
            ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
    found = [file for file in files if file.name.startswith("libggml-base")]
    if not found:
        msg = "pywhispercpp ships no libggml-base here"
        raise OSError(msg)
    loaded = ctypes.CDLL(str(found[0].locate()))
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = [INT, POINTER, POINTER, LONG, LONG, LONG, POINTER]
    loaded.ggml_type_size.restype, loaded.ggml_blck_size.restype = ctypes.c_size_t, LONG
    loaded.ggml_type_name.restype, loaded.ggml_quantize_requires_imatrix.restype = ctypes.c_char_p, ctypes.c_bool
    return loaded


def described(name: str) -> tuple[str, int, int, bool]:
    """Return what ggml itself says of a format: name, weights and bytes a block, whether it needs importance."""
    ggml, number = library(), FORMATS[name].number
    return (
        ggml.ggml_type_name(number).decode().lower(),
        ggml.ggml_blck_size(number),
        ggml.ggml_type_size(number),
        ggml.ggml_quantize_requires_imatrix(number),
    )


def quantize(
    name: str, values: np.ndarray, importance: np.ndarray | None = None, row_length: int | None = None
) -> np.ndarray:
    """Return ggml's bytes of finite float32 weights; importance is one positive number for each of a row's weights."""
    ggml, form = library(), FORMATS[name]
    values = np.ascontiguousarray(values, np.float32).ravel()
    row_length = row_length or values.size
    assert np.isfinite(values).all()
    assert row_length % form.weights == 0
    assert values.size % row_length == 0
    if name.startswith(("iq1", "iq2", "iq3")):
        ggml.ggml_quantize_init(form.number)
    given = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        assert importance.shape == (row_length,)
        given = importance.ctypes.data
    data = np.zeros(values.size // form.weights * form.bytes, np.uint8)
    n_rows = values.size // row_length
    at = values.ctypes.data, data.ctypes.data
    assert ggml.ggml_quantize_chunk(form.number, *at, 0, n_rows, row_length, given) == data.size
    return data


def row_decoder(name: str) -> Any:
    """Return ggml's function that decodes a format: addresses of blocks and of float32, the number of weights."""
    decode = getattr(library(), "dequantize_row_" + (name[:-1] + "K" if name.endswith("_k") else name))
    decode.argtypes, decode.restype = [POINTER, POINTER, LONG], None
    return decode


def dequantize(name: str, data: np.ndarray, n: int) -> np.ndarray:
    """Return the n float32 weights that ggml decodes."""
    form = FORMATS[name]
    data = np.ascontiguousarray(data, np.uint8)
    assert n * form.bytes == data.size * form.weights
    values = np.empty(n, np.float32)
    row_decoder(name)(data.ctypes.data, values.ctypes.data, n)
    return values


def field_at(name: str, offset: int) -> str:
    """Return the field of a block that a byte belongs to, as ``field[byte]``."""
    for field, size in FORMATS[name].fields:
        if offset < size:
            return f"{field}[{offset}]"
        offset -= size
    raise IndexError(offset)


def random_blocks(name: str, n_blocks: int, seed: int) -> np.ndarray:
    """Return blocks of random bytes that decode to finite weights: any codes, any scale that ggml could decode so."""
    form = FORMATS[name]
    raw = np.random.PCG64(seed).random_raw(-(-n_blocks * form.bytes // 8))
    blocks = raw.view(np.uint8)[: n_blocks * form.bytes].reshape(n_blocks, form.bytes).copy()
    at = 0
    for field, size in form.fields:
        if field in ("d", "m", "dmin") and size == 2:
            half = blocks[:, at : at + 2].copy().view("<u2")
            half[(half & 0x7C00) == 0x7C00] &= 0x7BFF  # infinities and NaNs become large numbers
            blocks[:, at : at + 2] = half.view(np.uint8)
        elif name == "mxfp4" and field == "e":
            blocks[:, at] = np.minimum(blocks[:, at], 252)
        elif name == "nvfp4" and field == "d":
            blocks[:, at : at + size] &= 0x7F
        at += size
    return blocks.ravel()
