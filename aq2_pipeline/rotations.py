"""Rotated schemes, `<name>_rot<k>`: what k may be, what a name becomes, and the codec; see `kernels.rotation`."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np

from aq2_pipeline.codecs import Codec, Sizes
from aq2_pipeline.errors import SchemeError

if TYPE_CHECKING:
    from aq2_pipeline.codecs import Ints

__all__ = ["MOST", "check", "named", "other_rows", "rotated"]

#: Weights of a block at the most, and of the least number that is whole groups and blocks: `kernels.rotation.MOST`.
MOST = 1 << 13


@dataclass(frozen=True)
class Rotated(Codec):
    """A codec with a rotation before its encoder and behind its decoder; the names are of its own kernels."""

    @property
    def encode(self) -> Any:
        """The compiled encoder."""
        from aq2_pipeline.kernels import rotation  # noqa: PLC0415 - kernels load at their first use

        return rotation.encoder(self.module, self.encode_name).compiled

    @property
    def decode(self) -> Any:
        """The compiled decoder."""
        from aq2_pipeline.kernels import rotation  # noqa: PLC0415 - kernels load at their first use

        return rotation.decoder(self.module, self.decode_name).compiled

    @property
    def error(self) -> Any:
        """The compiled encoder and decoder in one, which only sums the errors."""
        from aq2_pipeline.kernels import rotation  # noqa: PLC0415 - kernels load at their first use

        return rotation.error(self.module, self.encode_name, self.decode_name).compiled


@functools.cache
def rotated(codec: Codec) -> Codec:
    """Return the codec behind a rotation. Its parameters are k and the bits of a code, and then the codec's own.

    Importance is that of places in a matrix row, which a rotation mixes: there is no weighted codec.
    """

    def sizes(lengths: Ints, row_lengths: Ints, params: tuple[int, ...]) -> Sizes:
        own = codec.sizes(lengths, row_lengths, params[2:])
        return own._replace(data=np.where(row_lengths % params[0], -1, own.data))

    def piece(row_length: int, params: tuple[int, ...]) -> int:
        group = params[-1]
        if group <= 0:
            return 0 if group < 0 else row_length
        return min(lcm(params[0], min(group, row_length) or 1), row_length)

    parts = {field.name: getattr(codec, field.name) for field in fields(Codec)}
    parts |= {"name": f"{codec.name} rotated", "sizes": sizes, "piece": piece}
    return Rotated(**parts | {"measure_name": None, "weighted": None, "encode_halves_name": None})


def check(k: int, group: int, codec: Codec, text: str) -> None:
    """Refuse a k that cannot be, alone or beside a group: 0 is a channel, -1 the tensor.

    Raises
    ------
    SchemeError
    """
    if k & (k - 1) or not 1 < k <= MOST:
        msg = f"scheme: {text!r} rotates blocks of {k} weights"
        raise SchemeError(msg, f"a power of two from 2 to {MOST}")
    if group > 0 and lcm(k, group) > MOST:
        msg = f"scheme: {text!r} has groups of {group} weights and rotates blocks of {k}"
        raise SchemeError(msg, f"their least common multiple may be {MOST} at the most")
    if group <= 0 and codec.measure_name is None:
        msg = f"scheme: {text!r} searches a whole {'tensor' if group else 'channel'}, which is not rotated in one piece"
        raise SchemeError(msg, f"take groups, whose least common multiple with {k} is {MOST} at the most")


def named(name: str, group: int, *, rotates: bool) -> str:
    """Return the name of a scheme that is rotated in blocks as long as its groups.

    Raises
    ------
    SchemeError
        If it cannot be.
    """
    if not rotates:
        msg = f"rotate=True: {name!r} cannot be rotated"
        raise SchemeError(msg, "integers and codebooks can, e.g. 'int4_g64_rot64'")
    if group <= 0:
        msg = f"rotate=True: {name!r} has no group size to rotate by"
        raise SchemeError(msg, f"say it in the name, e.g. '{name}_rot128'")
    if group & (group - 1) or not 1 < group <= MOST:
        msg = f"rotate=True: {name!r} has groups of {group}, and blocks to rotate are a power of two from 2 to {MOST}"
        raise SchemeError(msg, f"say it in the name, e.g. '{name}_rot128'")
    return f"{name}_rot{group}"


def other_rows(name: str, k: int, row_length: int) -> SchemeError:
    """Return the error of matrix rows that blocks do not divide."""
    msg = f"{name!r} rotates blocks of {k} weights, which do not divide rows of {row_length}"
    most = min(row_length & -row_length, MOST)
    plain = name.rpartition("_rot")[0]
    return SchemeError(msg, f"'{plain}_rot{most}' does, or leave out the rotation" if most > 1 else f"take {plain!r}")
