"""The errors that users meet. A text is complete without its class: DuckDB keeps only the text."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

__all__ = [
    "Aq2Error",
    "EngineError",
    "FormatError",
    "InputTypeError",
    "InputValueError",
    "Place",
    "SchemeError",
    "hand_over",
]


@dataclass(frozen=True)
class Place:
    """Where something went wrong; what is not known stays None.

    Attributes
    ----------
    function : str
        The function as users write it, e.g. ``aq2_quantize``.
    layer : str
        The layer's name.
    row : int
        The row, counted over the whole column, or in the batch if `batch` is set.
    position : int
        The element inside the row.
    value : object
        The value found there.
    batch : int
        Rows in the batch that an engine handed over, where `row` counts in it.
    """

    function: str | None = None
    layer: str | None = None
    row: int | None = None
    position: int | None = None
    value: Any = None
    batch: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.layer is not None:
            parts.append(f"layer {self.layer!r}")
        if self.row is not None:
            parts.append(f"row {self.row}" + (f" of this batch of {self.batch}" if self.batch is not None else ""))
        if self.position is not None:
            parts.append(f"position {self.position}")
        text = ", ".join(parts)
        if self.function is not None:
            text = f"{self.function}: {text}" if text else self.function
        return text


#: Text -> (reason, hint, place) of the last errors that went to an engine which makes new exceptions of class and text,
#: as Polars does. Not the errors: their tracebacks would keep the caller's frames alive.
_handed_over: OrderedDict[str, tuple[str, str | None, Place]] = OrderedDict()
_MOST_HANDED_OVER = 64


def hand_over(error: Aq2Error) -> Aq2Error:
    """Remember an error's parts for the copy that an engine makes of it; return the error."""
    _handed_over[str(error)] = (error.reason, error.hint, error.place)
    while len(_handed_over) > _MOST_HANDED_OVER:
        _handed_over.popitem(last=False)
    return error


class Aq2Error(Exception):
    """Every error of this package is one of these.

    Parameters
    ----------
    reason : str
        What is wrong, one sentence without a full stop.
    hint : str, optional
        What to do about it.
    place : Place, optional
        Where it is; the text is put together from it, so an adapter that knows
        more may replace it.
    """

    def __init__(self, reason: str, hint: str | None = None, place: Place | None = None) -> None:
        super().__init__(reason, hint, place)
        self.reason, self.hint, self.place = reason, hint, place or Place()
        self._text: str | None = None
        original = None if hint or place else _handed_over.get(reason.partition("\n\n")[0])
        if original is not None:  # an engine's copy: the text is its own, the parts are the original's
            self._text = reason
            self.reason, self.hint, self.place = original

    def __str__(self) -> str:
        if self._text is not None:
            return self._text
        where = str(self.place)
        text = f"{where}: {self.reason}" if where else self.reason
        return f"{text}. Hint: {self.hint}" if self.hint else text

    def at(self, **known: Any) -> Aq2Error:
        """Set what is now known of the place (the fields of `Place`); return the error."""
        self.place = replace(self.place, **known)
        self.args = (self.reason, self.hint, self.place)
        return self

    @property
    def function(self) -> str | None:
        """The function as users write it."""
        return self.place.function

    @property
    def layer(self) -> str | None:
        """The layer's name."""
        return self.place.layer

    @property
    def row(self) -> int | None:
        """The row: see `Place.row`."""
        return self.place.row

    @property
    def position(self) -> int | None:
        """The element inside the row."""
        return self.place.position

    @property
    def value(self) -> Any:
        """The value found there."""
        return self.place.value


class SchemeError(Aq2Error, ValueError):
    """A scheme that does not exist, or cannot hold these weights."""


class InputTypeError(Aq2Error, TypeError):
    """A column or argument of a type that is not taken."""


class InputValueError(Aq2Error, ValueError):
    """A value that cannot be quantized, or a quantized row that contradicts itself."""


class FormatError(Aq2Error, ValueError):
    """A file that is not what it claims to be."""


class EngineError(Aq2Error, RuntimeError):
    """Something that an engine cannot do."""
