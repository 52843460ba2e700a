"""How much of a file is believed before it is refused, in one place that users may change."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from types import MappingProxyType

from aq2_pipeline.errors import InputTypeError, InputValueError

__all__ = ["LARGEST", "Limits", "OverLimitError", "limits", "set_limits", "to_change", "variable_of"]


@dataclass(frozen=True)
class Limits:
    """What readers take at the most; whatever has more is a FormatError.

    What a format itself fixes is no limit of ours: GGUF's four axes and keys of
    65,535 bytes, ggml's names of 63, .npy headers of 10,000.

    Attributes
    ----------
    header_bytes : int
        Of what is read before the tensors are known: the header of a
        safetensors or GGUF file, an index of shards, the metadata of an ONNX
        model, the directory of an .npz archive, a `config.json`.
    tensors : int
        Of a model, all its files together.
    rank : int
        Axes of a tensor.
    name_bytes : int
        Of a tensor's name, or of the path of external data, in UTF-8.
    key_values : int
        Of a GGUF file.
    alignment : int
        Of a GGUF file's data, in bytes.
    inflation : int
        Bytes that a compressed byte of an .npz array may stand for: weights
        compress to half, masks and zeros to 1:1000.
    inflated_bytes : int
        Of an .npz array that may be compressed more than that.
    """

    header_bytes: int = 100_000_000
    tensors: int = 1_000_000
    rank: int = 8
    name_bytes: int = 1024
    key_values: int = 1 << 16
    alignment: int = 1 << 20
    inflation: int = 100
    inflated_bytes: int = 1 << 26


#: What a limit may be at the most: NumPy's axes, names that a message can hold, and else what 64 bits can.
LARGEST = MappingProxyType({"rank": 64, "name_bytes": 1 << 20, "alignment": 1 << 31})
_LARGEST = 2**63 - 1

_NAMES = tuple(field.name for field in fields(Limits))
_defaults: Limits | None = None
_current: Limits | None = None


class OverLimitError(ValueError):
    """More than a limit, found where the file has no name yet.

    Parameters
    ----------
    reason : str
    limit : str
        The limit's name; `hint` says how it is changed.
    """

    def __init__(self, reason: str, limit: str) -> None:
        super().__init__(reason)
        self.hint = to_change(limit)


def variable_of(name: str) -> str:
    """Return the environment variable of a limit."""
    return f"AQ2_MAX_{name.upper()}"


def to_change(name: str) -> str:
    """Return the hint of an error that is for a limit."""
    return f"where you trust the file, raise the limit: aq2_pipeline.set_limits({name}=...) or {variable_of(name)}"


def limits() -> Limits:
    """Return the limits in force: what `set_limits` said, else the environment, else the defaults.

    Raises
    ------
    InputValueError
        If an environment variable is no number that the limit may be.
    """
    return _current or _of_environment()


def set_limits(**changes: int) -> None:
    """Change limits of this process; see `aq2_pipeline.set_limits`."""
    global _current  # noqa: PLW0603 - a setting of the process
    for name, value in changes.items():
        if name not in _NAMES:
            msg = f"set_limits: there is no limit {name!r}"
            raise InputValueError(msg, f"one of {', '.join(_NAMES)}")
        if type(value) is not int:
            msg = f"set_limits: {name} is a {type(value).__name__}"
            raise InputTypeError(msg, "give an int")
        _check(name, value, f"set_limits: {name} is {value}")
    _current = Limits(**vars(_of_environment()) | changes) if changes else None


def _check(name: str, value: int, told: str) -> None:
    largest = LARGEST.get(name, _LARGEST)
    if not 1 <= value <= largest:
        raise InputValueError(told, f"a limit of {name} is from 1 to {largest}")


def _of_environment() -> Limits:
    """Return the defaults with what the environment says of them, which is read once."""
    global _defaults  # noqa: PLW0603 - read once
    if _defaults is None:
        found = {}
        for name in _NAMES:
            text = os.environ.get(variable_of(name), "").strip()
            if text:
                told = f"{variable_of(name)} is {text[:64]!r}"
                is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(_LARGEST))
                _check(name, int(text) if is_number else 0, told)
                found[name] = int(text)
        _defaults = Limits(**found)
    return _defaults
