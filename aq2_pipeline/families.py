"""The families of schemes, one line each. Their names are stored data, and never change."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aq2_pipeline.codecs import BLOCK_SIZES, BLOCKS, IDENTITY, INTEGERS

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

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """The template as a regular expression with groups named `group` and `rotation`."""
        text = re.escape(self.template).replace(re.escape("{group}"), r"(?P<group>g[1-9][0-9]*|channel|tensor)")
        return re.compile(text + r"(?:_rot(?P<rotation>[1-9][0-9]*))?" * self.rotates)

    @property
    def grouped(self) -> bool:
        """Whether its schemes have groups."""
        return "{group}" in self.template


def _in_blocks(name: str, bits: int, fallback: str, summary: str) -> Family:
    codecs, block = BLOCKS[name], BLOCK_SIZES[name][0]
    return Family(name, next(iter(codecs.values())), (), bits, tuple(codecs), summary, codecs, block, fallback)


FAMILIES: list[Family] = [
    *(
        Family(
            f"int{b}_{{group}}",
            INTEGERS[b, False],
            (b, 0),
            b,
            ("minmax",),
            f"{b}-bit integers, one scale a group",
            rotates=True,
        )
        for b in WIDTHS
    ),
    *(
        Family(
            f"int{b}_{{group}}_asym",
            INTEGERS[b, True],
            (b, 1),
            b,
            ("minmax",),
            f"{b}-bit integers, scale and zero point",
            rotates=True,
        )
        for b in WIDTHS
    ),
    _in_blocks("q4_0", 4, "f16", "ggml: 4-bit integers in blocks of 32, a float16 scale"),
    Family("f32", IDENTITY, (0,), 32, summary="float32, as it is"),
    Family("f16", IDENTITY, (1,), 16, summary="float16, rounded half to even; finite up to 65504"),
    Family("bf16", IDENTITY, (2,), 16, summary="bfloat16, rounded half to even"),
]
