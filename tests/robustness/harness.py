"""What the cases share: one question to every surface, and the whole text that each must answer."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from support.engines import BY_NAME, everywhere

from aq2_pipeline import layout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aq2_pipeline import Aq2Error

#: Surfaces that hand over parts of a column: a row counts in the part, and the text says so.
IN_BATCHES = ("polars-eager", "polars-lazy", "polars-streaming", "duckdb", "duckdb-native", "pyarrow")
#: Of these, the ones that cut a column as they like.
CUT = ("polars-lazy", "polars-streaming")


def rows(*values: Any, kind: pa.DataType = layout.FLOATS) -> pa.Array:
    """Return rows as a column; None is a null row."""
    return pa.array([None if row is None else np.asarray(row).tolist() for row in values], kind)


def agreed(function: str, first: pa.Array, *others: Any, skip: Iterable[str] = ()) -> pa.Array:
    """Return the one result that every surface gives."""
    results = {name: value for name, value in everywhere(function, first, *others).items() if name not in skip}
    expected = results["python"]
    for name, result in results.items():
        assert isinstance(result, pa.Array), f"{name}: {result}"
        assert same(result, expected), f"{name}: {result} is not {expected}"
    return expected


def same(left: pa.Array, right: pa.Array) -> bool:
    """Whether two columns hold the same bytes, the sign of zero included."""
    return left.equals(right) and repr(left.to_pylist()) == repr(right.to_pylist())


def refused(
    kind: type[Aq2Error],
    reason: str,
    first: pa.Array,
    *others: Any,
    function: str = "quantize",
    row: int | None = None,
    position: int | None = None,
    hint: bool = True,
    skip: Iterable[str] = (),
) -> Aq2Error:
    """Demand the same complete text on every surface, and the class and its fields in Python; return the error."""
    n = len(first)
    for name, text in everywhere(function, first, *others).items():
        if name in skip:
            continue
        assert isinstance(text, str), f"{name} took it: {text}"
        assert re.search(_place(name, function, row, position, n) + re.escape(reason), text), f"{name}: {text}"
        assert not hint or ". Hint: " in text, f"{name}: {text}"
    with pytest.raises(kind) as caught:
        BY_NAME["python"].run(function, first, *others)
    error = caught.value
    assert (error.function, error.row, error.position) == (f"aq2_{function}", row, position)
    return error


def _place(engine: str, function: str, row: int | None, position: int | None, n: int) -> str:
    where = f"aq2_{function}"
    if engine == "wrapper":
        where = f"ArrowQuantV2.{function}_arrow"
    parts = []
    if row is not None:
        if engine == "wrapper":
            parts.append(f"layer 'layer.{row}'")
        batch = f" of this batch of {n}" if engine in IN_BATCHES else ""
        parts.append(r"row \d+ of this batch of \d+" if engine in CUT else f"row {row}{batch}")
    if position is not None:
        parts.append(f"position {position}")
    return f"{where}: " + (", ".join(parts) + ": " if parts else "")


def decoded(quantized: pa.Array) -> list[Any]:
    """Return what every surface decodes a quantized column to, as Python lists."""
    return agreed("dequantize", quantized).to_pylist()


def in_child(code: str, timeout: float = 120, **environment: str) -> str:
    """Run code in a fresh process with the tests importable; assert that it ends well and return what it printed."""
    import os  # noqa: PLC0415 - only children need it
    from pathlib import Path  # noqa: PLC0415

    tests = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | {"PYTHONPATH": path} | environment,
    )
    assert done.returncode == 0, f"rc {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout
