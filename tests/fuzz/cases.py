"""Columns of weights as they may come: values, types, spans, slices and nulls, with the clean column beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from aq2_pipeline import layout
from aq2_pipeline.schemes import FAMILIES

GROUPS = ["g1", "g3", "g8", "g32", "g64", "g128", "channel", "tensor"]
#: What a row may be longer than: SIMD tails, groups, blocks and super-blocks.
LENGTHS = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 255, 256, 257, 512, 768]


@st.composite
def names(draw):
    """Draw a scheme of any family, with a method or not."""
    family = draw(st.sampled_from(FAMILIES))
    name = family.template.format(group=draw(st.sampled_from(GROUPS)))
    if family.rotates and draw(st.integers(0, 5)) == 0:
        name += f"_rot{draw(st.sampled_from([2, 8, 32, 64, 128]))}"
    if family.methods and draw(st.booleans()):
        name += f":{draw(st.sampled_from(family.methods))}"
    return name


WRONG_NAMES = ["int9_g32", "INT4_g32", " int4_g32", "q4_k:nope", "int4_g0", "int4_g99999999999", "", "int4_g32_rot3"]
SCHEMES = st.one_of(names(), names(), names(), names(), st.sampled_from(range(2, 9)), st.sampled_from(WRONG_NAMES))


def _bell(rng, n):
    return rng.normal(size=n)


def _special(value):
    def make(rng, n):
        found = rng.normal(size=n)
        found[rng.integers(0, n, 1)] = value
        return found

    return make


#: How the values of a row are drawn; each gives n numbers of a float64 array.
STYLES = {
    "bell": _bell,
    "zeros": lambda rng, n: np.where(rng.random(n) < 0.5, 0.0, -0.0),
    "constant": lambda rng, n: np.full(n, rng.choice([3.0, -3.0, 1e-3])),
    "halves": lambda rng, n: rng.integers(-20, 20, n) / 2,
    "sparse": lambda rng, n: np.where(rng.random(n) < 0.1, rng.normal(size=n), 0),
    "outliers": lambda rng, n: np.where(rng.random(n) < 0.05, 1000, 1) * rng.normal(size=n),
    "one 1e30": _special(1e30),
    "subnormals": lambda rng, n: rng.normal(size=n) * 1e-41,
    "small": lambda rng, n: rng.normal(size=n) * 1e-6,
    "largest": lambda rng, n: rng.choice([-1, 1, 0.5], n) * float(np.finfo(np.float32).max),
    "any finite": lambda rng, n: _finite(rng.integers(0, 2**32, n, np.uint32)),
    "NaN": _special(np.nan),
    "infinite": _special(np.inf),
    "minus infinite": _special(-np.inf),
}
#: Most rows can be quantized.
DRAWN_STYLES = ["bell"] * 4 + list(STYLES)


def _finite(bits):
    values = bits.view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(1)).astype(np.float64)


@st.composite
def row_values(draw, scale):
    """Draw a row of float32 weights; None is null."""
    if draw(st.integers(0, 7)) == 0:
        return None
    n = draw(st.sampled_from(LENGTHS)) if draw(st.integers(0, 3)) else scale * draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    if n == 0:
        return np.empty(0, np.float32)
    with np.errstate(over="ignore"):
        return STYLES[draw(st.sampled_from(DRAWN_STYLES))](rng, n).astype(np.float32)


# --- columns ---------------------------------------------------------------------------------------------------------


def _narrow(rows, dtype):
    """Return rows of values that a 16-bit dtype holds; bfloat16 by cutting."""
    if dtype == "bf16":
        kept = [None if row is None else _cut(row) for row in rows]
    else:
        with np.errstate(over="ignore"):
            kept = [None if row is None else row.astype(np.float16).astype(np.float32) for row in rows]
    return kept


def _cut(row):
    found = (row.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isnan(row), np.float32(np.nan), found)


def _bytes_of(row, dtype):
    if dtype == "bf16":
        return (row.view(np.uint32) >> 16).astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        return row.astype({"f32": "<f4", "f16": "<f2", "f64": "<f8"}[dtype]).tobytes()


def listed(kind):
    """Return a maker of list columns of a type."""

    def make(rows, _rng):
        if kind.value_type == pa.float16():
            with np.errstate(over="ignore"):
                rows = [None if row is None else row.astype(np.float16) for row in rows]
        return pa.array(rows, kind)

    return make


def viewed(kind, wide):
    """Return a maker of list views whose spans lie in any order, with gaps, over values that hold NaN between them."""

    def make(rows, rng):
        order = rng.permutation(len(rows))
        values, starts, sizes = [np.full(2, np.nan, np.float32)], np.zeros(len(rows), wide), np.zeros(len(rows), wide)
        at = 2
        for k in order:
            row = np.zeros(3, np.float32) * np.nan if rows[k] is None else rows[k]
            starts[k], sizes[k] = at, row.size
            gap = np.full(rng.integers(0, 3), np.nan, np.float32)
            values += [row, gap]
            at += row.size + gap.size
        bitmap = pa.py_buffer(np.packbits(np.array([row is not None for row in rows], bool), bitorder="little"))
        child = pa.array(np.concatenate(values), pa.float32())
        buffers = [bitmap, pa.py_buffer(starts), pa.py_buffer(sizes)]
        return pa.Array.from_buffers(kind, len(rows), buffers, children=[child])

    return make


def with_garbage(rows, rng):
    """Return a large_list whose null rows own NaN, whose first offset is not 0 and which has values behind the last."""
    values, offsets = [np.full(4, np.nan, np.float32)], [4]
    for row in rows:
        values.append(np.full(rng.integers(0, 9), np.nan, np.float32) if row is None else row)
        offsets.append(offsets[-1] + values[-1].size)
    child = pa.array(np.concatenate([*values, np.full(3, np.inf, np.float32)]), pa.float32())
    bitmap = pa.py_buffer(np.packbits(np.array([row is not None for row in rows], bool), bitorder="little"))
    buffers = [bitmap, pa.py_buffer(np.array(offsets, np.int64))]
    return pa.Array.from_buffers(layout.FLOATS, len(rows), buffers, children=[child])


def binary(kind, dtype):
    """Return a maker of binary columns."""

    def make(rows, _rng):
        return pa.array([None if row is None else _bytes_of(row, dtype) for row in rows], kind)

    return make


def words(dtype):
    """Return a maker of lists of UInt16."""

    def make(rows, _rng):
        held = [None if row is None else np.frombuffer(_bytes_of(row, dtype), np.uint16) for row in rows]
        return pa.array(held, pa.large_list(pa.uint16()))

    return make


def fixed(rows, _rng):
    """Return a fixed_size_list; rows of other lengths than the first are null."""
    n = next((row.size for row in rows if row is not None), 0)
    return pa.array([None if row is None or row.size != n else row for row in rows], pa.list_(pa.float32(), n))


@dataclass(frozen=True)
class Kind:
    """A way to hand rows over: what dtype they are held in, if a scheme must say it, and what makes the column."""

    make: Any
    dtype: str = "f32"
    tagged: bool = False


KINDS = {
    "large_list": Kind(listed(layout.FLOATS)),
    "list": Kind(listed(pa.list_(pa.float32()))),
    "list of float64": Kind(listed(pa.list_(pa.float64())), "f64"),
    "list of float16": Kind(listed(pa.large_list(pa.float16())), "f16"),
    "garbage": Kind(with_garbage),
    "list_view": Kind(viewed(pa.list_view(pa.float32()), np.int32)),
    "large_list_view": Kind(viewed(pa.large_list_view(pa.float32()), np.int64)),
    "fixed_size_list": Kind(fixed),
    "binary": Kind(binary(pa.binary(), "f32"), "f32", tagged=True),
    "large_binary of f16": Kind(binary(pa.large_binary(), "f16"), "f16", tagged=True),
    "binary_view of bf16": Kind(binary(pa.binary_view(), "bf16"), "bf16", tagged=True),
    "binary of f64": Kind(binary(pa.binary(), "f64"), "f64", tagged=True),
    "uint16 of bf16": Kind(words("bf16"), "bf16", tagged=True),
    "uint16 of f16": Kind(words("f16"), "f16", tagged=True),
}


@dataclass
class Case:
    """One call: a column as it comes and the clean one, with what else is given. Rows are the same in both."""

    kind: str
    column: pa.Array
    clean: pa.Array
    tag: str
    schemes: Any
    shapes: pa.Array | None
    importance: pa.Array | None

    def scheme(self, *, tagged):
        """Return the scheme, or column of schemes, with the dtype of the column if it needs one."""
        if not tagged or not self.tag:
            return self.schemes
        if isinstance(self.schemes, pa.Array):
            return pa.array(
                [None if name is None else name + self.tag for name in self.schemes.to_pylist()], pa.string()
            )
        return (f"int{self.schemes}_g128" if isinstance(self.schemes, int) else self.schemes) + self.tag


def _shape_of(draw, n):
    """Draw a shape of n weights, rarely of another number."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.sampled_from([[n + 1], [-1, -n], [], [0], [2**62, 4], [2**32, 2**32]]))
    axes = [n]
    for factor in draw(st.lists(st.sampled_from([1, 2, 3, 4, 8]), max_size=3)):
        if axes[-1] % factor == 0:
            axes[-1:] = [factor, axes[-1] // factor]
    return axes


def _importance_of(draw, row, shape):
    if draw(st.integers(0, 4)) == 0 or row is None:
        return None
    n = row.size if draw(st.booleans()) or not shape else shape[-1]
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    values = np.abs(rng.normal(size=min(n, 10_000) if n > 0 else 0)).astype(np.float32)
    fault = draw(st.integers(0, 19))
    if fault < 3 and values.size:
        values[-1] = [np.nan, -1, np.inf][fault]
    return values


@st.composite
def cases(draw):
    """Draw a call."""
    schemes = draw(SCHEMES)
    text = str(schemes)
    scale = 256 if "_k" in text or text.startswith(("iq4_xs", "tq")) else 64 if "nvfp4" in text or "rot" in text else 32
    rows = draw(st.lists(row_values(scale), max_size=5))
    kind = draw(st.sampled_from(list(KINDS)))
    how = KINDS[kind]
    if how.dtype in ("f16", "bf16"):
        rows = _narrow(rows, how.dtype)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    before, behind = (draw(st.sampled_from([0, 0, 1, 2, 9])) for _ in range(2))
    other = np.full(
        rows[0].size if kind == "fixed_size_list" and rows and rows[0] is not None else 3, np.nan, np.float32
    )
    column = how.make([*[other] * before, *rows, *[other] * behind], rng)
    column = column.slice(before, len(rows))
    rows = [
        None if one is None else row
        for row, one in zip(rows, column.is_valid().to_pylist(), strict=True)
        for one in [one or None]
    ]
    # What 16 bits hold is a matter of types: DuckDB's native functions take it from a constant, before there are rows.
    if draw(st.integers(0, 5)) == 0 and not kind.startswith("uint16"):
        schemes = pa.array([draw(names()) for _ in rows], pa.string())
    shapes = None
    if draw(st.booleans()):
        shapes = [None if row is None or draw(st.integers(0, 9)) == 0 else _shape_of(draw, row.size) for row in rows]
    importance = None
    if draw(st.integers(0, 3)) == 0:
        given = [
            _importance_of(draw, row, shape) for row, shape in zip(rows, shapes or [None] * len(rows), strict=True)
        ]
        importance = pa.array(given, layout.FLOATS)
    tag = f"@{how.dtype}" if how.tagged else ""
    clean = pa.array(rows, layout.FLOATS)
    if importance is not None and shapes is None:
        shapes = [None] * len(rows)
    column_of_shapes = None if shapes is None else pa.array(shapes, layout.INTS)
    return Case(kind, column, clean, tag, schemes, column_of_shapes, importance)
