"""Codecs: what turns a row of weights into bytes and back. A scheme is a codec with parameters.

Every codec has the same kernels, loaded and compiled at its first use:
`encode(values, row_length, params, importance, data, scales, zero_points) -> status`,
`decode(data, scales, zero_points, row_length, params, values) -> status` and
`error(values, position, row_length, params, importance, lanes, sums) -> status`.
Values are float32; a codec may have a second encoder, whose values are the bits of float16.
"""

from __future__ import annotations

import importlib
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

__all__ = ["BLOCKS", "BLOCK_SIZES", "CODEBOOKS", "IDENTITY", "INTEGERS", "NVFP4_TENSOR", "SEARCHED", "Codec", "Sizes"]


class Sizes(NamedTuple):
    """What rows take: bytes of data, scales, zero points; int64, one entry a row."""

    data: Ints
    scales: Ints
    zero_points: Ints

    @property
    def n_bytes(self) -> Ints:
        """Bytes a row: data, and four for each scale and zero point."""
        return self.data + 4 * (self.scales + self.zero_points)


@dataclass(frozen=True)
class Codec:
    """A pair of kernels, the sizes of what they write, and where a row may be cut.

    Attributes
    ----------
    name : str
        The codec's name; it is not stored.
    module : str
        The module that holds its kernels.
    encode_name, decode_name, error_name : str
        The kernels there; a dot leads into an object of the module's.
    sizes : callable
        ``sizes(lengths, row_lengths, params) -> Sizes``.
    piece : callable
        ``piece(row_length, params)``: the number of weights at whose multiples a
        matrix row may be cut, so that the pieces encode as the whole does; 0 if
        not even between matrix rows.
    measure_name : str or None
        The kernel that measures a slice of such a piece, where the piece itself may
        be cut anywhere: two maxima, which are the whole's if taken over all slices,
        and which `encode` and `error` find behind their own parameters.
    encode_halves_name : str or None
        `encode` of the bits of float16; without one they are widened in memory first.
    weighted : Codec or None
        What encodes rows that come with an importance, in the same format; None
        where there is nothing to search for, and an importance is refused.
    """

    name: str
    module: str
    encode_name: str
    decode_name: str
    error_name: str
    sizes: Callable[[Ints, Ints, tuple[int, ...]], Sizes]
    piece: Callable[[int, tuple[int, ...]], int]
    measure_name: str | None = None
    encode_halves_name: str | None = None
    weighted: Codec | None = None

    def sizes_of(self, length: int, row_length: int, params: tuple[int, ...]) -> tuple[int, int, int]:
        """Return what one row takes: the bytes of its data, its scales and zero points."""
        data, scales, zeros = self.sizes(np.array([length]), np.array([row_length]), params)
        return int(data[0]), int(scales[0]), int(zeros[0])

    def _kernel(self, name: str) -> Any:
        return operator.attrgetter(name)(importlib.import_module(self.module)).compiled

    @property
    def encode(self) -> Any:
        """The compiled encoder."""
        return self._kernel(self.encode_name)

    @property
    def encode_halves(self) -> Any:
        """The compiled encoder of the bits of float16."""
        return self._kernel(self.encode_halves_name or "")

    @property
    def decode(self) -> Any:
        """The compiled decoder."""
        return self._kernel(self.decode_name)

    @property
    def error(self) -> Any:
        """The compiled encoder and decoder in one, which only sums the errors."""
        return self._kernel(self.error_name)

    @property
    def measure(self) -> Any:
        """The compiled measure of a slice of a group."""
        return self._kernel(self.measure_name or "")


def _integer_sizes(lengths: Ints, row_lengths: Ints, params: tuple[int, ...]) -> Sizes:
    """Return what rows of integers take; see `kernels.integer` for the layout."""
    bits, asymmetric, group = params
    rows = lengths if group < 0 else row_lengths
    size = np.minimum(group, rows) if group > 0 else rows
    n_rows, n_whole = lengths // np.maximum(rows, 1), rows // np.maximum(size, 1)
    rest = rows - n_whole * size
    row_bytes = n_whole * ((size * bits + 7) // 8) + (rest * bits + 7) // 8
    groups = n_rows * (n_whole + (rest > 0))
    return Sizes(n_rows * row_bytes, groups, groups if asymmetric else np.zeros_like(groups))


def _integer_piece(row_length: int, params: tuple[int, ...]) -> int:
    group = params[2]
    return 0 if group < 0 else (min(group, row_length) if group > 0 else row_length)


def _identity_sizes(lengths: Ints, _row_lengths: Ints, params: tuple[int, ...]) -> Sizes:
    none = np.zeros_like(lengths)
    return Sizes(lengths * (4 if params[0] == 0 else 2), none, none)


def _in_blocks(name: str, block: int, n_bytes: int, method: str) -> Codec:
    """Return the codec of one way to find the codes of a block format."""

    def sizes(lengths: Ints, row_lengths: Ints, _params: tuple[int, ...]) -> Sizes:
        none = np.zeros_like(lengths)
        return Sizes(np.where(row_lengths % block, -1, lengths // block * n_bytes), none, none)

    def codec(suffix: str, weighted: Codec | None) -> Codec:
        names = (f"kernels.encode_{suffix}", "kernels.decode", f"kernels.error_{suffix}")
        module = f"aq2_pipeline.kernels.blocks.{name}"
        return Codec(name, module, *names, sizes, lambda *_: block, weighted=weighted)

    return codec(method, None if method == "reference" else codec(f"{method}_weighted", None))


def _codebook(name: str, bits: int, method: str) -> Codec:
    """Return the codec of one way to find the scales of a codebook's groups; `params` is the group size."""

    def sizes(lengths: Ints, row_lengths: Ints, params: tuple[int, ...]) -> Sizes:
        return _integer_sizes(lengths, row_lengths, (bits, 0, *params))

    def piece(row_length: int, params: tuple[int, ...]) -> int:
        return _integer_piece(row_length, (bits, 0, *params))

    def codec(suffix: str, weighted: Codec | None) -> Codec:
        names = (f"{name}.encode_{suffix}", f"{name}.decode", f"{name}.error_{suffix}")
        measure = "measure" if suffix == "reference" else None  # a search needs its group as a whole
        return Codec(
            name, "aq2_pipeline.kernels.codebooks", *names, sizes, piece, measure_name=measure, weighted=weighted
        )

    return codec(method, None if method == "reference" else codec(f"{method}_weighted", None))


def _searched(bits: int, method: str, *, asymmetric: bool) -> Codec:
    """Return the codec of integers whose groups' scales are searched for; each group is one piece, however long."""
    module, stem = ("zero_points", "asym") if asymmetric else ("signed", "signed")

    def codec(suffix: str, weighted: Codec | None) -> Codec:
        names = (f"{stem}{bits}.encode_{suffix}", f"{stem}{bits}.decode", f"{stem}{bits}.error_{suffix}")
        name = f"int{bits}{'_asym' * asymmetric}"
        module_name = f"aq2_pipeline.kernels.{module}"
        return Codec(name, module_name, *names, _integer_sizes, _integer_piece, weighted=weighted)

    return codec(method, codec(f"{method}_weighted", None))


def _nvfp4_tensor_sizes(lengths: Ints, row_lengths: Ints, _params: tuple[int, ...]) -> Sizes:
    n_bytes = np.where(row_lengths % 16, -1, lengths // 16 * 9)
    return Sizes(n_bytes, np.minimum(lengths, 1), np.zeros_like(lengths))


def _nvfp4_tensor(method: str) -> Codec:
    """Return the codec of one way to find the codes; what comes with importance is one piece, however long."""

    def codec(suffix: str, measure: str | None, weighted: Codec | None) -> Codec:
        module, names = "aq2_pipeline.kernels.nvfp4_tensor", (f"kernels.encode_{suffix}", "kernels.decode")
        error, sizes = f"kernels.error_{suffix}", _nvfp4_tensor_sizes
        return Codec("nvfp4_tensor", module, *names, error, sizes, lambda *_: 0, measure, weighted=weighted)

    return codec(method, "measure", None if method == "reference" else codec(f"{method}_weighted", None, None))


#: (bits, asymmetric) -> integers of that width.
INTEGERS = {
    (bits, asymmetric): Codec(
        f"int{bits}{'_asym' * asymmetric}",
        "aq2_pipeline.kernels.integer",
        f"encode{bits}{'_asym' * asymmetric}",
        f"decode{bits}",
        "error",
        _integer_sizes,
        _integer_piece,
        "measure",
        encode_halves_name=f"encode{bits}{'_asym' * asymmetric}_halves",
    )
    for bits in range(2, 9)
    for asymmetric in (False, True)
}
#: (bits, asymmetric) -> method -> the integers of that width whose scales, and zero points, it searches for.
SEARCHED = {
    (bits, asymmetric): {method: _searched(bits, method, asymmetric=asymmetric) for method in ("mse", "hqq")}
    for bits, asymmetric in INTEGERS
}
IDENTITY = Codec(
    "identity",
    "aq2_pipeline.kernels.identity",
    "encode",
    "decode",
    "error",
    _identity_sizes,
    lambda _row_length, _params: 1,
)
#: Block format -> weights and bytes of a block, as ggml-common.h lays them out.
BLOCK_SIZES = {
    "q4_0": (32, 2 + 16),
    "q4_1": (32, 2 + 2 + 16),
    "q5_0": (32, 2 + 4 + 16),
    "q5_1": (32, 2 + 2 + 4 + 16),
    "q8_0": (32, 2 + 32),
    "q2_k": (256, 16 + 64 + 2 + 2),
    "q3_k": (256, 32 + 64 + 12 + 2),
    "q4_k": (256, 2 + 2 + 12 + 128),
    "q5_k": (256, 2 + 2 + 12 + 32 + 128),
    "q6_k": (256, 128 + 64 + 16 + 2),
    "iq4_nl": (32, 2 + 16),
    "iq4_xs": (256, 2 + 2 + 4 + 128),
    "mxfp4": (32, 1 + 16),
    "nvfp4": (64, 4 + 32),
    "tq1_0": (256, 48 + 4 + 2),
    "tq2_0": (256, 64 + 2),
}
#: Block format -> method -> codec; the first method is the default.
BLOCKS = {
    name: {method: _in_blocks(name, *sizes, method) for method in ("search", "reference")}
    for name, sizes in BLOCK_SIZES.items()
}
#: NVFP4 with one scale a row: method -> codec; the first method is the default.
NVFP4_TENSOR = {method: _nvfp4_tensor(method) for method in ("search", "reference")}
#: Codebook -> method -> codec; the first method is the default.
CODEBOOKS = {
    name: {method: _codebook(name, bits, method) for method in ("reference", "search")}
    for name, bits in {"nf4": 4, "fp4": 4, "fp8_e4m3": 8, "fp8_e5m2": 8}.items()
}
