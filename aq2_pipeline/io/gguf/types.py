"""The types of GGUF: ggml's types of tensors, and those of key-values, as tables.

Source: `ggml/include/ggml.h`, `ggml/include/gguf.h` and `ggml/src/ggml-common.h` of llama.cpp. Q8_1 has 36 bytes as
ggml's C code has it; the package `gguf` 0.19 says 40, of an earlier layout.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ARRAY", "BOOL", "GGML_NAMES", "GGML_TYPES", "REMOVED_TYPES", "STRING", "VALUE_NAMES", "VALUE_TYPES"]


class GgmlType(NamedTuple):
    """A type of tensors: its name in upper case, and the weights and bytes of its blocks."""

    name: str
    block: int
    n_bytes: int


class ValueType(NamedTuple):
    """A type of key-values: its name, and what NumPy and `struct` read; empty for strings and arrays."""

    name: str
    dtype: str = ""


#: ggml's number -> type.
GGML_TYPES = {
    0: GgmlType("F32", 1, 4),
    1: GgmlType("F16", 1, 2),
    2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34),
    9: GgmlType("Q8_1", 32, 36),
    10: GgmlType("Q2_K", 256, 84),
    11: GgmlType("Q3_K", 256, 110),
    12: GgmlType("Q4_K", 256, 144),
    13: GgmlType("Q5_K", 256, 176),
    14: GgmlType("Q6_K", 256, 210),
    15: GgmlType("Q8_K", 256, 292),
    16: GgmlType("IQ2_XXS", 256, 66),
    17: GgmlType("IQ2_XS", 256, 74),
    18: GgmlType("IQ3_XXS", 256, 98),
    19: GgmlType("IQ1_S", 256, 50),
    20: GgmlType("IQ4_NL", 32, 18),
    21: GgmlType("IQ3_S", 256, 110),
    22: GgmlType("IQ2_S", 256, 82),
    23: GgmlType("IQ4_XS", 256, 136),
    24: GgmlType("I8", 1, 1),
    25: GgmlType("I16", 1, 2),
    26: GgmlType("I32", 1, 4),
    27: GgmlType("I64", 1, 8),
    28: GgmlType("F64", 1, 8),
    29: GgmlType("IQ1_M", 256, 56),
    30: GgmlType("BF16", 1, 2),
    34: GgmlType("TQ1_0", 256, 54),
    35: GgmlType("TQ2_0", 256, 66),
    39: GgmlType("MXFP4", 32, 17),
    40: GgmlType("NVFP4", 64, 36),
    41: GgmlType("Q1_0", 128, 18),
    42: GgmlType("Q2_0", 64, 18),
}
#: Upper-case name -> ggml's number.
GGML_NAMES = {kind.name: number for number, kind in GGML_TYPES.items()}
#: Numbers of types that ggml has had, which nothing reads any more.
REMOVED_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

#: Number of a value's type -> type.
VALUE_TYPES = {
    0: ValueType("u8", "<u1"),
    1: ValueType("i8", "<i1"),
    2: ValueType("u16", "<u2"),
    3: ValueType("i16", "<i2"),
    4: ValueType("u32", "<u4"),
    5: ValueType("i32", "<i4"),
    6: ValueType("f32", "<f4"),
    7: ValueType("bool", "<u1"),
    8: ValueType("string"),
    9: ValueType("array"),
    10: ValueType("u64", "<u8"),
    11: ValueType("i64", "<i8"),
    12: ValueType("f64", "<f8"),
}
VALUE_NAMES = {kind.name: number for number, kind in VALUE_TYPES.items()}
BOOL, STRING, ARRAY = VALUE_NAMES["bool"], VALUE_NAMES["string"], VALUE_NAMES["array"]
