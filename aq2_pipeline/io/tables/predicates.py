"""Predicates in parts: what decides without the weights which rows are read."""

from __future__ import annotations

from functools import reduce
from operator import and_
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

__all__ = ["conjuncts", "split"]


def conjuncts(predicate: pl.Expr) -> list[pl.Expr]:
    """Return expressions whose conjunction the predicate is; itself if it is none.

    Polars does not tell an expression's operator, but its inputs, and whether
    two expressions are equal: it is a conjunction if its inputs make it one.

    Examples
    --------
    >>> import polars as pl
    >>> [str(part) for part in conjuncts((pl.col("a") > 1) & pl.col("b").is_null())]
    ['[(col("a")) > (dyn int: 1)]', 'col("b").is_null()']
    """
    found, left = [], [predicate]
    while left:
        one = left.pop()
        inputs = one.meta.pop()
        pairs = [inputs, inputs[::-1]] if len(inputs) == 2 else []  # noqa: PLR2004 - the operands of `&`
        both = next(([a, b] for a, b in pairs if (a & b).meta == one), None)
        if both is None:
            found.append(one)
        else:
            left += both[::-1]
    return found


def split(predicate: pl.Expr | None, column: str) -> tuple[pl.Expr | None, pl.Expr | None]:
    """Return the part of a predicate that does without a column, and the rest, which rows that pass must meet too."""
    if predicate is None:
        return None, None
    without: list[pl.Expr] = []
    rest: list[pl.Expr] = []
    for part in conjuncts(predicate):
        (rest if column in part.meta.root_names() else without).append(part)
    return _all(without), _all(rest)


def _all(parts: list[pl.Expr]) -> pl.Expr | None:
    return reduce(and_, parts) if parts else None
