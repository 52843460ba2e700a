"""The families of schemes, one line each. Their names are stored data, and never change."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aq2_pipeline.codecs import BLOCK_SIZES, BLOCKS, CODEBOOKS, IDENTITY, INTEGERS, NVFP4_TENSOR, SEARCHED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aq2_pipeline.codecs import Codec

__all__ = [
    "DEFAULT_GROUP",
    "FAMILIES",
    "INPUT_DTYPES",
    "LARGEST_GROUP",
    "PER_CHANNEL",
    "PER_TENSOR",
    "SMALLEST_BLOCK",
    "WIDTHS",
    "Family",
]

DEFAULT_GROUP = 128
WIDTHS = range(2, 9)
#: What `@dtype` may say of Binary, BLOB and UInt16 weights.
INPUT_DTYPES = ("f32", "f16", "bf16", "f64")
#: `_channel` is one group a matrix row, `_tensor` one group for everything.
PER_CHANNEL, PER_TENSOR = 0, -1
LARGEST_GROUP = 2**31 - 1
#: What the rows of any block format must divide by; others are stored as float16.
SMALLEST_BLOCK = 32


@dataclass(frozen=True)
class Family:
    """Schemes that differ only in their groups.

    Parameters
    ----------
    template : str
        The name; ``{group}`` stands for ``g<n>``, ``channel`` or ``tensor``.
    codec : Codec
        What encodes and decodes them; by the default method, if there are several.
    params : tuple of int
        The codec's parameters; the group size is added where there is one.
    bit_width : int
        Bits a code, without scales.
    methods : tuple of str
        How codes may be found; the first is the default.
    summary : str
        One line for the reference page.
    others : mapping of str to Codec
        The codec of each method that has one of its own.
    block : int
        What the length of a matrix row must be a multiple of.
    fallback : str
        The scheme that llama.cpp takes for other rows.
    rotates : bool
        Whether ``_rot<k>`` may follow the name; see `rotations`. The last of `params` is the group then.
    whole : bool
        Whether each row has one scale, although its name says no group.
    loaded_by : str
        Who reads the stored bytes as they are; empty where only this package does.
    """

    template: str
    codec: Codec
    params: tuple[int, ...]
    bit_width: int
    methods: tuple[str, ...] = ()
    summary: str = ""
    others: Mapping[str, Codec] = field(default_factory=dict)
    block: int = 1
    fallback: str = ""
    rotates: bool = False
    whole: bool = False
    loaded_by: str = ""

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """The template as a regular expression with groups named `group` and `rotation`."""
        text = re.escape(self.template).replace(re.escape("{group}"), r"(?P<group>g[1-9][0-9]*|channel|tensor)")
        return re.compile(text + r"(?:_rot(?P<rotation>[1-9][0-9]*))?" * self.rotates)

    @property
    def grouped(self) -> bool:
        """Whether its schemes have groups."""
        return "{group}" in self.template


_REPACKED = "this package; others once repacked"
_FLOATS = "whatever reads little-endian floats"


def _integers(bits: int, summary: str, *, asymmetric: bool) -> Family:
    template, others = f"int{bits}_{{group}}{'_asym' * asymmetric}", SEARCHED[bits, asymmetric]
    params, methods = (bits, int(asymmetric)), ("minmax", *others)
    summary = f"{bits}-bit integers, {summary}"
    return Family(
        template, INTEGERS[bits, asymmetric], params, bits, methods, summary, others, rotates=True, loaded_by=_REPACKED
    )


def _in_blocks(name: str, bits: int, fallback: str, summary: str) -> Family:
    codecs, block, loaded_by = BLOCKS[name], BLOCK_SIZES[name][0], "llama.cpp, ggml (GGUF)"
    return Family(
        name, codecs["search"], (), bits, tuple(codecs), summary, codecs, block, fallback, loaded_by=loaded_by
    )


def _codebook(name: str, bits: int, summary: str, loaded_by: str) -> Family:
    codecs, template = CODEBOOKS[name], f"{name}_{{group}}"
    codec, methods = codecs["reference"], tuple(codecs)
    return Family(
        template, codec, (), bits, methods, summary, codecs, rotates=True, loaded_by=f"this package; {loaded_by}"
    )


FAMILIES: list[Family] = [
    *(_integers(b, "one scale a group", asymmetric=False) for b in WIDTHS),
    *(_integers(b, "scale and zero point", asymmetric=True) for b in WIDTHS),
    _codebook(
        "nf4",
        4,
        "quantiles of a normal distribution (QLoRA), the largest magnitude as scale",
        "codes are bitsandbytes', halves of bytes swapped",
    ),
    _codebook("fp4", 4, "E2M1 floats, a sixth of the largest magnitude as scale", "codes are OCP's E2M1"),
    _codebook("fp8_e4m3", 8, "E4M3 floats, the largest magnitude at 448", "codes are OCP's E4M3, torch.float8_e4m3fn"),
    _codebook("fp8_e5m2", 8, "E5M2 floats, the largest magnitude at 57344", "codes are OCP's E5M2, torch.float8_e5m2"),
    _in_blocks("q4_0", 4, "f16", "ggml: 4-bit integers in blocks of 32, a float16 scale"),
    _in_blocks("q4_1", 4, "f16", "ggml: 4-bit integers in blocks of 32, a float16 scale and minimum"),
    _in_blocks("q5_0", 5, "f16", "ggml: 5-bit integers in blocks of 32, a float16 scale"),
    _in_blocks("q5_1", 5, "f16", "ggml: 5-bit integers in blocks of 32, a float16 scale and minimum"),
    _in_blocks("q8_0", 8, "f16", "ggml: 8-bit integers in blocks of 32, a float16 scale"),
    _in_blocks("q2_k", 2, "q4_0", "ggml: 2-bit integers, 4-bit scales and minima of 16, in super-blocks of 256"),
    _in_blocks("q3_k", 3, "q4_0", "ggml: 3-bit integers, 6-bit scales of 16, in super-blocks of 256"),
    _in_blocks("q4_k", 4, "q5_0", "ggml: 4-bit integers, 6-bit scales and minima of 32, in super-blocks of 256"),
    _in_blocks("q5_k", 5, "q5_1", "ggml: 5-bit integers, 6-bit scales and minima of 32, in super-blocks of 256"),
    _in_blocks("q6_k", 6, "q8_0", "ggml: 6-bit integers, 8-bit scales of 16, in super-blocks of 256"),
    _in_blocks("iq4_nl", 4, "f16", "ggml: a table of 16 values in blocks of 32, a float16 scale"),
    _in_blocks("iq4_xs", 4, "iq4_nl", "ggml: the same table, 6-bit scales of 32, in super-blocks of 256"),
    _in_blocks("mxfp4", 4, "f16", "OCP microscaling: E2M1 floats in blocks of 32, a power of two as scale"),
    _in_blocks("nvfp4", 4, "f16", "E2M1 floats, E4M3 scales of 16, in ggml's blocks of 64"),
    _in_blocks("tq1_0", 2, "q4_0", "ggml: ternary, five codes a byte, a float16 scale of 256"),
    _in_blocks("tq2_0", 2, "q4_0", "ggml: ternary in 2 bits, a float16 scale of 256"),
    Family("f32", IDENTITY, (0,), 32, summary="float32, as it is", loaded_by=_FLOATS),
    Family("f16", IDENTITY, (1,), 16, summary="float16, rounded half to even; finite up to 65504", loaded_by=_FLOATS),
    Family("bf16", IDENTITY, (2,), 16, summary="bfloat16, rounded half to even", loaded_by=_FLOATS),
    Family(
        "nvfp4_tensor",
        NVFP4_TENSOR["search"],
        (),
        4,
        tuple(NVFP4_TENSOR),
        "E2M1 floats, E4M3 scales of 16, a float32 scale of the tensor (NVIDIA's NVFP4)",
        NVFP4_TENSOR,
        block=16,
        fallback="f16",
        whole=True,
        loaded_by="this package; codes and scales are compressed-tensors', the bytes of a group together",
    ),
]
