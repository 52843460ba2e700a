"""Values: one call on every engine gives the same bytes or the same error, and the three functions agree."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st
from robustness.harness import CUT, same
from support.engines import BY_NAME, everywhere, outcome

import aq2_pipeline
from aq2_pipeline import Aq2Error, layout
from fuzz.cases import cases, names

#: Examples are small as they are drawn, and kernels compile in the first: shrinking would take longer than all else.
SETTINGS = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.generate],
    "report_multiple_bugs": False,
}


@dataclass
class Figures:
    """What became of the examples."""

    inputs: int = 0
    errors: int = 0
    crashes: list[dict] = field(default_factory=list)
    slowest_seconds: float = 0

    def note(self, seconds, *, failed):
        """Count an example."""
        self.inputs += 1
        self.errors += failed
        self.slowest_seconds = max(self.slowest_seconds, seconds)


def python(function, *arguments):
    """Return the result in Python, or its error."""
    try:
        return BY_NAME["python"].run(function, *arguments)
    except Aq2Error as error:
        return error


def cut(arguments, k):
    """Return the arguments of one row alone."""
    return [argument.slice(k, 1) if isinstance(argument, pa.Array) else argument for argument in arguments]


def agree(function, first, *others):
    """Demand the same of every engine that takes the types; return Python's result, or None after an error."""
    expected = python(function, first, *others)
    found = everywhere(function, first, *others)
    if isinstance(expected, pa.Array):
        for name, result in found.items():
            assert isinstance(result, pa.Array), f"{name} refuses what Python takes: {result}"
            assert same(result, expected), f"{name}: {result} is not {expected}"
        return expected
    if len(first) == 0:  # an engine without rows has nothing to call
        return None
    alone = [python(function, *cut([first, *others], k)) for k in range(len(first))]
    reasons = {error.reason for error in alone if isinstance(error, Aq2Error)}
    for name, result in found.items():
        assert isinstance(result, str), f"{name} takes what Python refuses: {expected}: {result}"
        if expected.row is None:  # of arguments that are wrong in two ways an engine may name either
            assert "aq2_" in result or "ArrowQuantV2" in result, f"{name}: {result!r} is not {expected}"
            continue
        told = reasons | {expected.reason} if name in CUT else {expected.reason}
        assert any(reason in result for reason in told), f"{name}: {result!r} is not {expected}"
    return None


# --- the functions on columns ----------------------------------------------------------------------------------------


def unpacked(case, *, tagged):
    """Return the arguments of `quantize` for a case, without trailing None."""
    arguments = [case.scheme(tagged=tagged), case.shapes, case.importance]
    while arguments[-1] is None:
        arguments.pop()
    return arguments


def check_functions(case):
    """Hold the column as it comes against the clean one, on every engine; return whether it was an error."""
    clean = python("quantize", case.clean, *unpacked(case, tagged=False))
    result = agree("quantize", case.column, *unpacked(case, tagged=True))
    if isinstance(clean, Aq2Error):
        found = python("quantize", case.column, *unpacked(case, tagged=True))
        assert isinstance(found, Aq2Error), f"the column is taken, clean it is refused: {clean}"
        assert found.row == clean.row, f"{found} is not {clean}"
        return True
    assert result is not None, "the column is refused, clean it is taken"
    assert same(result, clean), f"{result} is not {clean}"
    decoded = agree("dequantize", result)
    lost = agree("quantization_error", case.column, *unpacked(case, tagged=True)[:2])
    if not case.tag:
        agree("weight_stats", case.column)
    plain = case.importance is None  # the errors are those without importance
    for k, row in enumerate(case.clean.to_pylist()):
        if row is not None:
            told = lost[k].as_py() if plain else None
            consistent(np.array(row, np.float32), result[k]["length"].as_py(), decoded[k].values.to_numpy(), told)
    return False


def consistent(weights, length, decoded, lost):
    """Demand finite weights of the right number, and the errors that they have."""
    assert decoded.size == weights.size == length
    assert np.isfinite(decoded).all()
    if lost is None or not weights.size:
        return
    difference = weights.astype(np.float64) - decoded.astype(np.float64)
    assert lost["max_abs"] == np.abs(difference).max(), (lost, np.abs(difference).max())
    with np.errstate(over="ignore"):
        assert math.isclose(lost["mse"], np.mean(difference**2), rel_tol=1e-12, abs_tol=5e-324)


# --- rows that lie ---------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, 3, 31, 32, 33, 256, -1, -8, 2**31, 2**32, 2**61, 2**62, 2**63 - 1, -(2**63)])
FLOATS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 15.0, 16.0, 300.0, 1e-45, 3e38, math.nan, math.inf, -math.inf])


def _field(draw, name, value):
    """Draw another value of a field of `QUANTIZED`."""
    if draw(st.integers(0, 9)) == 0:
        return None
    if name == "scheme":
        return draw(st.one_of(names(), st.sampled_from(["", "int4", "q4_0 ", "\0", "x" * 5000])))
    if name in ("length", "row_length"):
        return draw(st.one_of(NUMBERS, st.integers(-2, 2).map(lambda step: value + step)))
    values = bytearray(value) if name == "quantized_data" else list(value)
    how = draw(st.sampled_from(["shorter", "longer", "empty", "changed", "changed", "null"]))
    item = draw(st.integers(0, 255) if name == "quantized_data" else FLOATS)
    if how == "empty":
        values = values[:0]
    elif how == "shorter":
        values = values[: len(values) - draw(st.integers(1, 4))]
    elif how == "longer":
        values.extend([item] * draw(st.integers(1, 40)))
    elif values:
        at = draw(st.integers(0, len(values) - 1))
        values[at] = None if how == "null" and name != "quantized_data" else item
    return bytes(values) if name == "quantized_data" else values


@st.composite
def lying_rows(draw):
    """Draw quantized rows of which one or more fields are changed."""
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        name, n = draw(names()), draw(st.sampled_from([0, 1, 31, 32, 64, 128, 256, 512]))
        rng = np.random.default_rng(draw(st.integers(0, 1000)))
        shape = pa.array([[2, n // 2]] if n % 2 == 0 and draw(st.booleans()) else [[n]], layout.INTS)
        made = python("quantize", pa.array([rng.normal(size=n).astype(np.float32)], layout.FLOATS), name, shape)
        if isinstance(made, Aq2Error):
            continue
        row = made[0].as_py()
        for changed in draw(st.lists(st.sampled_from(layout.QUANTIZED.names), max_size=2)):
            row[changed] = _field(draw, changed, row[changed]) if row[changed] is not None else None
        rows.append(None if draw(st.integers(0, 19)) == 0 else row)
    return pa.array(rows, layout.QUANTIZED)


def check_lying(rows):
    """Decode rows that may lie on every engine; return whether it was an error."""
    result = agree("dequantize", rows)
    if result is not None:
        for row, found in zip(rows.to_pylist(), result.to_pylist(), strict=True):
            assert (row is None) == (found is None)
            assert row is None or row["length"] == len(found)
    return result is None


# --- chunks ----------------------------------------------------------------------------------------------------------


@st.composite
def cuts(draw):
    """Draw a case, and where it is cut."""
    case = draw(cases())
    return case, sorted(draw(st.lists(st.integers(0, len(case.column)), max_size=4)))


def check_chunks(drawn):
    """Demand that chunks of any lengths and any threads give the column's bytes, or an error where it has one."""
    case, at = drawn
    arguments = unpacked(case, tagged=True)
    pieces = [case.column[a:b] for a, b in itertools.pairwise([0, *at, len(case.column)])]
    chunked = pa.chunked_array(pieces, case.column.type)
    whole = python("quantize", case.column, *arguments)
    for threads in (1, 3):
        found: Any = outcome(partial(aq2_pipeline.quantize, chunked, *arguments, threads=threads))
        if isinstance(whole, Aq2Error):
            assert found == str(whole)
        else:
            assert not isinstance(found, str), found
            assert same(found.combine_chunks(), whole)
    return isinstance(whole, Aq2Error)


CHECKS = {
    "functions": (cases(), check_functions),
    "lying": (lying_rows(), check_lying),
    "chunks": (cuts(), check_chunks),
}


def run(kind, n, number=None, figures=None):
    """Try n examples of a kind of check; `number` is a seed, or None for the same examples everywhere.

    Raises
    ------
    AssertionError, or what an engine raised
        With the example.
    """
    strategy, check = CHECKS[kind]
    figures = figures or Figures()

    def one(example):
        note(f"{kind}: {example}")
        start = time.perf_counter()
        failed = check(example)
        figures.note(time.perf_counter() - start, failed=failed)

    test = settings(max_examples=n, derandomize=number is None, **SETTINGS)(given(strategy)(one))
    (test if number is None else seed(number)(test))()
    return figures


def fuzz(budget, first=0, *, at_once=50):
    """Try examples for as long as a budget allows; a failure is noted with its seed, and the next seed tried.

    Returns
    -------
    dict of str to Figures
    """
    figures = {kind: Figures() for kind in CHECKS}
    for number in itertools.count(first):
        for kind in CHECKS:
            if not budget(number):
                return figures
            try:
                run(kind, at_once, number, figures[kind])
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                told = [str(error), *getattr(error, "__notes__", [])]
                figures[kind].crashes.append(
                    {"input": f"values-{kind}-{number}", "kind": "defect", "text": "\n".join(told)[:4000]}
                )
    return figures
