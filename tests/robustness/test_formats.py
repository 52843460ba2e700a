"""Block formats, codebooks and searches against bad input: forged rows, widened weights, cuts, and importance."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from robustness.harness import agreed, same
from support import ggml, oracle
from support.engines import BY_NAME, PATHS, connected, normalised, outcome
from support.samples import bell, column, shapes

import aq2_pipeline
from aq2_pipeline import InputValueError, SchemeError, layout, pieces

N, ROW = 3072, 768
SHAPE = shapes((N // ROW, ROW))
CHANNELS = (np.abs(bell(ROW, 7)) + 0.01).astype(np.float32)
WEIGHTS = np.where(np.arange(N) % 700 < 300, 0, np.abs(bell(N, 8)) + 0.01).astype(np.float32)
#: One with a scale and one with blocks that are longer than a slice; groups that no vector divides; a whole channel.
SCHEMES = ["q4_0", "q2_k", "nf4_g50:search", "int3_channel_asym:mse"]
#: A stored block with float16 scales, one with exponents, codes that spell NaN, and a rotation.
STORED = ["q4_0", "q2_k", "mxfp4", "fp8_e5m2_g64", "int4_g32_rot32"]


def given() -> np.ndarray:
    """Return weights that float16 and bfloat16 hold, outliers among them."""
    values = (bell(N, 3).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    values[5::97] *= 32
    assert (values.astype(np.float16) == values).all()
    return values


def spelled(values: np.ndarray) -> dict[str, tuple[pa.Array, str]]:
    """Return the same weights in every type and alignment, and what a scheme says of it."""
    halves = values.astype(np.float16)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    return {
        "float32": (column(values), ""),
        "float16": (pa.array([halves.tolist()], pa.large_list(pa.float16())), ""),
        "float64": (pa.array([values.tolist()], pa.list_(pa.float64())), ""),
        "unaligned float32": (pa.array([b"z", values.tobytes()], pa.binary()).slice(1), ""),
        "unaligned float16": (pa.array([b"z", halves.tobytes()], pa.large_binary()).slice(1), "@f16"),
        "bfloat16": (pa.array([b"z", upper.tobytes()], pa.binary()).slice(1), "@bf16"),
    }


@pytest.mark.parametrize("importance", [None, CHANNELS, WEIGHTS], ids=["none", "channels", "weights"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_types_and_cuts_change_nothing(scheme, importance, monkeypatch):
    """Weights of any type, in slices of any length, get the bytes of whole float32 rows, with their own importance."""
    told = [SHAPE] if importance is None else [SHAPE, column(importance)]
    expected = aq2_pipeline.quantize(column(given()), scheme, *told)
    decoded = aq2_pipeline.dequantize(expected)
    for slice_size in (1 << 23, 500, 64):
        monkeypatch.setattr(pieces, "SLICE_SIZE", slice_size)
        for name, (weights, dtype) in spelled(given()).items():
            found = aq2_pipeline.quantize(weights, scheme + dtype, *told, threads=2)
            assert same(found, expected), (name, slice_size)
        assert same(aq2_pipeline.dequantize(expected, threads=2), decoded)


@pytest.fixture(scope="module")
def connections():
    """Return a connection of each path into DuckDB."""
    with connected(PATHS[0]) as first, connected(PATHS[1]) as second:
        yield first, second


def in_sql(con, query: str, columns: dict, kind: pa.DataType) -> pa.Array:
    """Return the column of a query of our columns."""
    con.register("source", pa.table(columns))
    return normalised(con.sql(query).to_arrow_table().column(0), kind)


def dequantized(connections, rows: pa.Array) -> list[pa.Array | str]:
    """Return what Python, Polars and both paths into DuckDB decode, or their errors."""
    calls = [partial(BY_NAME[name].dequantize, rows) for name in ("python", "polars-eager")]
    query = "SELECT aq2_dequantize(q) FROM source"
    calls += [partial(in_sql, con, query, {"q": rows}, layout.FLOATS) for con in connections]
    return list(map(outcome, calls))


def forgeries(row: dict) -> dict[str, dict]:
    """Return what a forger may change of a row that must not decode then."""
    data, n = row["quantized_data"], row["length"]
    return {
        "short": {"quantized_data": data[:-1]},
        "long": {"quantized_data": data + b"\0"},
        "no data": {"quantized_data": b""},
        "null data": {"quantized_data": None},
        "other matrix rows": {"row_length": n // 3 * 2},
        "matrix rows of 0": {"row_length": 0},
        "matrix rows of 16": {"row_length": 16} if "fp8" not in row["scheme"] else {"row_length": -n},
        "8 weights a byte": {"length": 8 * len(data), "row_length": 8 * len(data)},
        "most weights": {"length": 2**62, "row_length": 2**62},
        "fewest weights": {"length": -(2**63), "row_length": -(2**63)},
        "a scale more": {"scales": [*row["scales"], 1.0]},
        "a zero point": {"zero_points": [1.0]},
        "a method": {"scheme": row["scheme"] + ":search"},
        "an input dtype": {"scheme": row["scheme"] + "@bf16"},
    }


@pytest.mark.parametrize("scheme", STORED)
def test_forged_rows_are_refused_everywhere(scheme, connections):
    """A row that contradicts itself is an error on every surface, beside good rows too."""
    [row] = aq2_pipeline.quantize(column(bell(768, 2)), scheme).to_pylist()
    for what, change in forgeries(row).items():
        found = dequantized(connections, pa.array([row, row | change], layout.QUANTIZED))
        assert all(isinstance(text, str) for text in found), (what, found)


@pytest.mark.parametrize("scheme", STORED)
def test_any_bytes_decode_to_finite_weights_or_not_at_all(scheme, connections):
    """Random blocks, and the largest scales, infinities and NaNs, are values or errors, the same everywhere."""
    [row] = aq2_pipeline.quantize(column(bell(768, 2)), scheme).to_pylist()
    n, seed = len(row["quantized_data"]), np.random.default_rng(5)
    parts = [seed.bytes(n), b"\xff" * n, bytes(n), (b"\xff\x7b" * n)[:n], (b"\x00\x7c" * n)[:n], (b"\x7f" * n)]
    for data in parts:
        found = dequantized(connections, pa.array([row | {"quantized_data": data}], layout.QUANTIZED))
        if isinstance(found[0], str):
            assert all("the stored value is not finite" in text for text in found)
        else:
            assert np.isfinite(found[0].values.to_numpy()).all()
            assert all(same(each, found[0]) for each in found)


def importances(change: dict[int, float | None]) -> pa.Array:
    """Return two rows of importance, of which the second has some other values."""
    other = CHANNELS.tolist()
    for k, value in change.items():
        other[k] = value
    return pa.array([CHANNELS.tolist(), other], layout.FLOATS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({5: -1.0}, "the importance -1.0 at position 5 is negative or not finite"),
        ({5: float("nan")}, "the importance nan at position 5 is negative or not finite"),
        ({6: float("inf")}, "the importance inf at position 6 is negative or not finite"),
        ({7: None}, "importance: an element is null"),
        (dict.fromkeys(range(ROW), 0.0), "importance is 0 everywhere"),
    ],
    ids=["negative", "nan", "infinite", "null", "zeros"],
)
@pytest.mark.parametrize("scheme", ["q4_0", "nf4_g50:search"])
def test_bad_importance_is_refused_everywhere(scheme, change, reason, connections):
    """An importance that weighs nothing is an error that names its row, on every surface."""
    weights, shape = column(given(), given()), shapes((4, ROW), (4, ROW))
    call = weights, scheme, shape, importances(change)
    found = [outcome(partial(BY_NAME["polars-eager"].run, "quantize", *call))]
    query = f"SELECT aq2_quantize(w, '{scheme}', s, i) FROM source"  # noqa: S608 - our own names
    columns = {"w": weights, "s": shape, "i": importances(change)}
    found += [outcome(partial(in_sql, con, query, columns, layout.QUANTIZED)) for con in connections]
    assert all(reason in text for text in found), found
    with pytest.raises(InputValueError) as caught:
        aq2_pipeline.quantize(*call)
    assert caught.value.row == 1


@pytest.mark.parametrize("factor", [1.0, 2.0**100, 2.0**-100, 2.0**-140])
def test_a_factor_on_importance_changes_nothing(factor):
    """Importance near the ends of float32 gives the bytes that it gives near one; subnormal ones stay in order."""
    importance = np.exp2(np.arange(ROW) % 4).astype(np.float32)
    for scheme in SCHEMES:
        expected = aq2_pipeline.quantize(column(given()), scheme, SHAPE, column(importance))
        scaled = column(importance * np.float32(factor))
        assert same(aq2_pipeline.quantize(column(given()), scheme, SHAPE, scaled), expected), scheme


@pytest.mark.parametrize("path", PATHS)
def test_sql_literals_are_importance(path):
    """Numbers with a point are decimals to SQL, and weigh as the floats do."""
    literal = ", ".join(f"{1 + k / 16}" for k in range(32))
    expected = aq2_pipeline.quantize(
        column(bell(64, 3)), "q4_0", shapes((2, 32)), column([1 + k / 16 for k in range(32)])
    )
    with connected(path) as con:
        con.register("source", pa.table({"w": column(bell(64, 3))}))
        query = f"SELECT aq2_quantize(w, 'q4_0', [2, 32], [{literal}]) FROM source"  # noqa: S608 - our own numbers
        assert con.sql(query).fetchall() == [(expected[0].as_py(),)]


@pytest.mark.parametrize("path", PATHS)
def test_try_gives_null_for_rows_that_a_format_does_not_take(path):
    """`TRY` leaves rows null whose length no block divides, and the rest as they are without them."""
    good = aq2_pipeline.quantize(column(bell(64, 3)), "q4_0")[0].as_py()
    with connected(path) as con:
        con.register("source", pa.table({"w": column(bell(64, 3), bell(33, 3), bell(64, 3), [])}))
        found = con.sql("SELECT TRY(aq2_quantize(w, 'q4_0')) FROM source").fetchall()
    empty = good | {"length": 0, "row_length": 0, "quantized_data": b""}
    assert found == [(good,), (None,), (good,), (empty,)]


@pytest.mark.parametrize(
    "scheme", ["int2_g32", "int4_g50_asym", "int8_channel", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]
)
def test_case_61_every_surface_has_the_bytes_of_an_oracle(scheme):
    """NumPy in float64 says what integers are, and ggml's C code what blocks are, on every surface."""
    values, blocks = bell(N, 6) * np.float32(3), scheme.startswith("q")
    found = agreed("quantize", column(values), f"{scheme}:reference" if blocks else scheme, SHAPE).to_pylist()[0]
    if blocks:
        assert found["quantized_data"] == ggml.quantize(scheme, values).tobytes()
    else:
        assert found == oracle.quantize(values, scheme, (N // ROW, ROW)).as_dict()


def test_kinds_of_schemes_share_a_column():
    """Blocks, codebooks, integers, and floats with null importance keep their own bytes, beside null weights too."""
    names = ["q4_0", "int4_g32", "f32", "nf4_g50:search", "q2_k", "q4_0", "f16", None]
    rows = [bell(768, k) for k in range(7)] + [None]
    heeded = [CHANNELS, None, None, CHANNELS, None, None, None, CHANNELS]
    found = agreed("quantize", column(*rows), pa.array(names), shapes(*[(1, 768)] * 8))
    alone = [aq2_pipeline.quantize(column(row), name) for row, name in zip(rows[:7], names[:7], strict=True)]
    assert same(found, pa.concat_arrays([*alone, pa.nulls(1, layout.QUANTIZED)]))
    mixed = aq2_pipeline.quantize(column(*rows), pa.array(names), shapes(*[(1, 768)] * 8), column(*heeded))
    for k in (0, 3):
        alone[k] = aq2_pipeline.quantize(column(rows[k]), names[k], None, column(heeded[k]))
    assert same(mixed, pa.concat_arrays([*alone, pa.nulls(1, layout.QUANTIZED)]))
    with pytest.raises(SchemeError, match="'int4_g32' cannot use importance") as caught:
        aq2_pipeline.quantize(column(*rows), pa.array(names), None, column(*[CHANNELS] * 8))
    assert caught.value.row == 1
