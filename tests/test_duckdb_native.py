"""Native DuckDB functions: that they are native, what they refuse when a statement is bound, and their hazards.

That they give the rows and texts of the Arrow path is tested where the engines
are: every body there runs over both paths. Hazards need processes of their own,
because an installation is for the life of one.
"""

# ruff: noqa: E501, S608 - children's lines are long, and queries are put together from our own words

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from robustness.harness import in_child
from support.engines import PATHS, connected, normalised
from support.samples import bell, column

import aq2_pipeline
import aq2_pipeline.duckdb
from aq2_pipeline import EngineError, codecs, layout, schemes
from aq2_pipeline.udfs.duckdb_native import general

CALL = "SELECT aq2_quantize([1.0, -2.0]::FLOAT[], 4).scheme"
#: What a child begins with.
START = f"import duckdb, aq2_pipeline, aq2_pipeline.duckdb as aq2\nCALL = {CALL!r}\nWORKS = [('int4_g128',)]\n"


@pytest.fixture
def con():
    """Open a database with native functions."""
    with connected("native") as con:
        yield con


@pytest.fixture
def both():
    """Open a database on each path with one table: id, lists w, arrays a, names s, widths b, shapes sh, blobs x."""
    query = """CREATE TABLE t AS SELECT id,
        CASE WHEN id % 11 <> 3 THEN [sin(id * 100 + k)::FLOAT FOR k IN range(id % 40)] END AS w,
        [cos(id * 10 + k)::FLOAT FOR k IN range(24)]::FLOAT[24] AS a,
        ['int4_g32', 'int3_g7_asym', 'int8_channel', 'f16', 'bf16', 'f32', 'int5_tensor_asym'][id % 7 + 1] AS s,
        2 + id % 7 AS b, CASE WHEN id % 3 > 0 THEN [1, id % 40] END AS sh, repeat('abcd', (id % 9)::INT)::BLOB AS x
        FROM range(2500) r(id)"""
    with connected("arrow") as arrow, connected("native") as native:
        for con in (arrow, native):
            con.execute(query)
        yield arrow, native


# --- they are native -------------------------------------------------------------------------------------------------

ORDINARY = (
    "aq2_quantize(w, 4)",
    "aq2_quantize(w, s)",
    "aq2_quantize(w, b, sh)",
    "aq2_quantize(w, s, sh::BIGINT[], NULL)",
    "aq2_quantize(a, 'int4_g5_asym', [4, 6])",
    "aq2_quantize(x, 'int8_g3')",
    "aq2_quantization_error(w, s, sh)",
    "aq2_quantization_error(a, b::UTINYINT)",
    "aq2_weight_stats(w)",
    "aq2_weight_stats(a)",
    "aq2_weight_stats(x)",
)


@pytest.mark.parametrize("call", ORDINARY)
def test_the_ordinary_needs_no_python_and_gives_the_same_bytes(both, monkeypatch, call):
    """Lists, arrays and blobs, constants and columns of schemes, shapes and NULLs: compiled, and equal bit for bit."""
    query, (arrow, native) = f"SELECT {call} AS q FROM t ORDER BY id", both
    monkeypatch.setattr(general, "call", None)
    found = native.sql(query).to_arrow_table()
    monkeypatch.undo()
    assert found.equals(arrow.sql(query).to_arrow_table())


def test_dequantize_needs_no_python(both, monkeypatch):
    """What quantize gave is decoded by compiled code, to the same bits."""
    arrow, native = both
    for con in both:
        con.execute("CREATE TABLE q AS SELECT id, aq2_quantize(w, s, sh) AS q FROM t")
    monkeypatch.setattr(general, "call", None)
    found = native.sql("SELECT aq2_dequantize(q) AS q FROM q ORDER BY id").to_arrow_table()
    monkeypatch.undo()
    assert found.equals(arrow.sql("SELECT aq2_dequantize(q) AS q FROM q ORDER BY id").to_arrow_table())


def edge_rows():
    """Return rows whose figures are special: outliers, zeros, values that are not finite, of one value, of none."""
    bad, far = bell(9001, 2), bell(12_289, 3)
    bad[[0, 4095, 4096, 9000]] = np.nan, np.inf, -np.inf, np.nan
    far[[1, 4096, 12_288]] = 40, -50, 60
    few = [[], [np.nan], [np.inf, -np.inf], [-0.0], [0.0, -0.0], [1e-45, -1e-45, 3e-39], [3.4e38, -3.4e38], [7.0]]
    few += [np.append(np.zeros(99), 1), np.append(np.full(99, np.nan), 1), np.full(5000, 0.1), None]
    rows = [None if row is None else np.asarray(row, np.float32) for row in few]
    return [*rows, bad, far, bell(4095), bell(4096), bell(4097), bell(17) * np.float32(1e30)]


def stats_bits(rows):
    """Return statistics as bits, NULLs and the signs of zeros included."""
    fields = rows.combine_chunks().flatten()
    return [(field.is_null().to_pylist(), field.fill_null(0).to_numpy().tobytes()) for field in fields]


@pytest.mark.parametrize("order", [1, -1])
def test_statistics_of_edge_rows_need_no_python(both, monkeypatch, order):
    """Rows with special figures, of one chunk or of some: compiled, and equal bit for bit."""
    rows = edge_rows()[::order]
    source = pa.table({"w": column(*rows, *(bell(k % 9, k) for k in range(2048)), *rows)})
    query = "SELECT aq2_weight_stats(w) AS q FROM source"
    for con in both:
        con.register("source", source)
    monkeypatch.setattr(general, "call", None)
    found = both[1].sql(query).to_arrow_table()["q"]
    monkeypatch.undo()
    expected = both[0].sql(query).to_arrow_table()["q"]
    assert stats_bits(found) == stats_bits(expected)
    assert found.null_count == expected.null_count == 2
    assert sum(row["outlier_ratio"] not in (None, 0.0) for row in found.to_pylist() if row) == 4


@pytest.mark.parametrize("n", [0, 1, 2048, 2049])
def test_statistics_of_vectors_that_end_between_rows(both, monkeypatch, n):
    """0, 1, 2048 and 2049 rows, the first NULL: the struct is NULL with all of its children."""
    query = f"SELECT aq2_weight_stats(CASE WHEN id > 0 THEN [id, 1]::FLOAT[] END) AS q FROM range({n}) r(id)"
    monkeypatch.setattr(general, "call", None)
    found = both[1].sql(query).to_arrow_table()["q"]
    monkeypatch.undo()
    assert len(found) == n
    assert found.null_count == min(n, 1)
    assert stats_bits(found) == stats_bits(both[0].sql(query).to_arrow_table()["q"])


def test_statistics_of_null_elements_are_left_to_python(both, monkeypatch):
    """A chunk with a NULL element is declined, the chunks around it are not; the element is not finite."""
    sizes, answer = [], general.call

    def counted(function, columns, **options):
        sizes.append(len(columns[0]))
        return answer(function, columns, **options)

    query = """SELECT aq2_weight_stats(w) AS q FROM (SELECT id, [id::FLOAT, CASE WHEN id <> 3000 THEN 2::FLOAT END] AS w
               FROM range(5000) r(id)) ORDER BY id"""
    monkeypatch.setattr(general, "call", counted)
    found = both[1].sql(query).to_arrow_table()["q"]
    monkeypatch.undo()
    assert len(sizes) == 1
    assert sizes[0] <= 2048
    assert found[3000].as_py()["non_finite"] == 1
    assert stats_bits(found) == stats_bits(both[0].sql(query).to_arrow_table()["q"])


WEIGHTS = (
    "w[1:3]", "w[2:]", "w[1:9:2]", "list_reverse(w)", "list_sort(w)", "list_reverse_sort(w)", "list_distinct(w)",
    "list_filter(w, lambda v: v > 0)", "list_transform(w, lambda v: v * 2)", "list_concat(w, w[1:2])",
    "list_select(w, [1, 1])", "list_where(w, list_transform(w, lambda v: v > 0))", "list_resize(w, 4, 0::FLOAT)",
    "CASE WHEN id % 2 = 0 THEN w ELSE [id::FLOAT] END", "CASE WHEN id % 3 > 0 THEN w[1:2] END", "a::FLOAT[]", "a[2:4]",
    "coalesce(nullif(w, []), [5::FLOAT])", "[w, [1::FLOAT]][id % 2 + 1]", "struct_extract({'w': w[2:3]}, 'w')",
    "map([1], [w])[1]", "list_extract([w[1:3], w], 2)", "[id::FLOAT, 3::FLOAT]", "w::DOUBLE[]", "NULL::FLOAT[]",
)  # fmt: skip
SOURCES = (
    "(SELECT * FROM t WHERE id % 3 = 1)",
    "(SELECT t.* FROM t JOIN range(0, 5000, 3) r(k) ON t.id = r.k)",
    "(SELECT l.id, r.w, l.a FROM t l LEFT JOIN (SELECT * FROM t WHERE id % 2 = 0) r USING (id))",
    "(SELECT r.id, l.w, l.a FROM (SELECT * FROM t LIMIT 700) l, range(3) r(id))",
    "(SELECT id, lag(w) OVER (ORDER BY id) AS w, a FROM t)",
    "(SELECT id, list(id::FLOAT) OVER (ORDER BY id ROWS 3 PRECEDING) AS w, a FROM t)",
    "(SELECT id % 7 AS id, list(id::FLOAT ORDER BY id) AS w, any_value(a) AS a FROM t GROUP BY 1)",
    "(SELECT id, unnest([w, w[1:2]]) AS w, a FROM t)",
    "(SELECT id, w, a FROM t UNION ALL SELECT -id, w, a FROM t)",
    "(SELECT * FROM t ORDER BY id DESC LIMIT 2100)",
)


def assert_equal_paths(both, weights, source):
    """Compare quantized rows of both paths, as sets: sources need not be in order."""
    query = f"SELECT id, {weights} AS v, aq2_quantize({weights}, 'int4_g3_asym') AS q FROM {source} ORDER BY id, v"
    arrow, native = (con.sql(query).to_arrow_table() for con in both)
    assert arrow.num_rows > 0
    assert native.equals(arrow)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_lists_that_other_functions_made(both, weights):
    """Slices, filtered, sorted and chosen lists, whose vectors DuckDB makes by reference, are read as they are."""
    assert_equal_paths(both, weights, "t WHERE id % 40 > 2")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("weights", ["w", "a", "w[1:2]"])
def test_rows_that_other_operators_hand_on(both, source, weights):
    """Filters, joins, windows, aggregates, unnested and repeated rows come as dictionaries and constants."""
    assert_equal_paths(both, weights, source)


def test_rows_of_parquet_dictionaries(both, tmp_path):
    """A file whose pages are dictionaries gives the same rows."""
    path = tmp_path / "t.parquet"
    both[0].execute(f"COPY (SELECT id, ['int4_g3', 'f16'][id % 2 + 1] AS s, w, a FROM t ORDER BY id) TO '{path}'")
    query = f"SELECT aq2_quantize(w, s) AS q, aq2_quantize(a, s) AS p FROM '{path}' ORDER BY id"
    arrow, native = (con.sql(query).to_arrow_table() for con in both)
    assert native.equals(arrow)


@pytest.mark.parametrize("n", [0, 1, 2048, 2049])
def test_vectors_end_between_rows(con, n):
    """0, 1, 2048 and 2049 rows, each NULL at an end: the struct is NULL with all of its children."""
    query = f"SELECT aq2_quantize(CASE WHEN id > 0 THEN [id]::FLOAT[] END, 4) AS q FROM range({n}) r(id)"
    found = con.sql(query).to_arrow_table()["q"].combine_chunks()
    assert len(found) == n
    assert found.null_count == min(n, 1)
    assert all(found.field(k).null_count == found.null_count for k in range(6))


def address_scheme():
    """Return a family whose encoder stores the address that it reads from."""
    from aq2_pipeline.kernels._jit import ENCODE, kernel  # noqa: PLC0415 - it loads Numba

    @kernel(ENCODE)
    def encode(values, row_length, params, importance, data, scales, zero_points):  # noqa: ARG001
        address = values.ctypes.data
        for k in range(8):
            data[k] = np.uint8((address >> np.uint64(8 * k)) & np.uint64(255))
        return -1

    encode.py_func.__globals__["np"] = np

    def sizes(lengths, _row_lengths, _params):
        none = np.zeros_like(lengths)
        return codecs.Sizes(none + 8, none, none)

    class Codec(codecs.Codec):
        def _kernel(self, _name):
            return encode.compiled

    codec = Codec("address", "", "encode", "encode", "encode", sizes, lambda _row, _params: 0)
    return schemes.Family("address", codec, (0,), 8)


@pytest.mark.parametrize("library", ["pyarrow", "polars"])
def test_the_kernel_sees_the_callers_buffer(con, library):
    """What the encoder reads from is the very memory of the user's column, at each row."""
    values = bell(4096)
    weights = pa.LargeListArray.from_arrays(pa.array(np.arange(0, 4097, 64), pa.int64()), pa.array(values))
    source = pa.table({"w": weights}) if library == "pyarrow" else pl.DataFrame({"w": pl.from_arrow(weights)})
    expected = values.ctypes.data
    if library == "polars":
        expected = source["w"].to_arrow().values.buffers()[1].address
    con.register("source", source)
    family = address_scheme()
    schemes.add_family(family)
    try:
        found = con.sql("SELECT aq2_quantize(w, 'address').quantized_data AS d FROM source").fetchall()
    finally:
        schemes.remove_family(family)
    assert [int.from_bytes(data, "little") for (data,) in found] == [expected + 256 * k for k in range(64)]


def test_families_come_and_go(con):
    """A family that is added works in statements, a column and a prepared one; once removed, nothing of it is left."""
    narrow = schemes.Family("narrow_{group}", codecs.INTEGERS[4, False], (4, 0), 4)
    query = "SELECT aq2_quantize([1.0, 2.0]::FLOAT[], s).scheme FROM (SELECT unnest(['narrow_g2', 'f32']) AS s)"
    con.execute("PREPARE p AS SELECT aq2_quantize([1.0, 2.0]::FLOAT[], 'f32').scheme, [$1::INT]")
    for _ in range(2):
        with pytest.raises(duckdb.Error, match="'narrow_g2' is unknown"):
            con.sql(query).fetchall()
        schemes.add_family(narrow)
        try:
            assert con.sql(query).fetchall() == [("narrow_g2",), ("f32",)]
            constant = "SELECT aq2_dequantize(aq2_quantize(w, 'narrow_g2')) FROM (SELECT [1.0, 2.0]::FLOAT[] AS w)"
            assert con.sql(constant).fetchall()[0][0][1] == 2.0
            bound = con.sql("SELECT aq2_quantize([1.0]::FLOAT[], 'narrow_g2').scheme FROM range(3)")
        finally:
            schemes.remove_family(narrow)
        with pytest.raises(duckdb.Error, match="'narrow_g2' is unknown"):
            con.sql("SELECT aq2_quantize([1.0]::FLOAT[], 'narrow_g2')").fetchall()
        with pytest.raises(duckdb.Error, match="'narrow_g2' is unknown"):
            bound.fetchall()
    assert con.execute("EXECUTE p(1)").fetchall() == [("f32", [1])]


def test_more_names_and_lengths_than_the_tables_hold(both):
    """Thousands of schemes and of lengths outgrow the tables; the rows are the same."""
    query = "SELECT aq2_quantize([sin(k)::FLOAT FOR k IN range(1 + id % 97)], 'int4_g' || (1 + id)) AS q FROM range(9000) r(id)"
    arrow, native = (con.sql(query).to_arrow_table() for con in both)
    assert native.equals(arrow)


# --- when a statement is bound ---------------------------------------------------------------------------------------

REFUSED = {
    "aq2_quantize(w, 'int4_g0')": "aq2_quantize: scheme: 'int4_g0' is unknown. Hint: the closest",
    "aq2_quantize(w, 9)": "aq2_quantize: scheme: 9 is no scheme. Hint: bits must be",
    "aq2_quantize(w, 'int4_g' || '0')": "'int4_g0' is unknown",
    "aq2_quantize(w, 4::HUGEINT)": "aq2_quantize: scheme is decimal128(38, 0). Hint: cast it, scheme::BIGINT",
    "aq2_quantize(w, true)": "a column of bool holds no schemes",
    "aq2_quantize(w)": "aq2_quantize: 1 arguments given. Hint: aq2_quantize(weights, scheme, shape?, importance?)",
    "aq2_quantize()": "aq2_quantize: 0 arguments given",
    "aq2_quantize(w, 4, [1], [1.0], 5)": "aq2_quantize: 5 arguments given",
    "aq2_quantize([1, 2], 4)": "Hint: cast them to a list of float32",
    "aq2_quantize('text', 4)": "weights are string. Hint: expected",
    "aq2_quantize(w, 4, [1.0::FLOAT])": "Hint: expected a list of integers",
    "aq2_quantize(w, 4, [1], ['x'])": "importance is list<",
    "aq2_quantize(w, 'int4_g32@bf16')": "and the scheme says @bf16. Hint: an input dtype is for binary",
    "aq2_quantize(repeat('01', 12)::BIT, 4)": "type_name=bit",
    "aq2_quantization_error(w, 'nope')": "aq2_quantization_error: scheme: 'nope' is unknown",
    "aq2_weight_stats(1)": "aq2_weight_stats: weights are int32",
    "aq2_dequantize({'scheme': 'f32'})": "aq2_dequantize: the struct has not one field 'length'",
    "aq2_policy_scheme('a', [1], 9, 'base')": "aq2_policy_scheme: bit_width: 9 is no width",
    "aq2_policy_scheme('a', [1], 4, 'fast')": "aq2_policy_scheme: mode: 'fast' is no policy. Hint: one of",
}


@pytest.mark.parametrize("call", REFUSED)
def test_bad_arguments_are_binder_errors(con, call):
    """A statement that cannot work is refused before anything runs, on an empty table too, with the hint."""
    con.execute("CREATE TABLE t(w FLOAT[])")
    with pytest.raises(duckdb.BinderException) as caught:
        con.execute(f"SELECT {call} FROM t")
    assert REFUSED[call] in str(caught.value)
    assert con.execute("SELECT 1").fetchall() == [(1,)]


def test_prepared_statements(con):
    """Weights and schemes may be parameters; each execution binds its own."""
    query = "SELECT aq2_quantize($1::FLOAT[], $2).scheme"
    for scheme, name in ((4, "int4_g128"), ("f16", "f16"), (8, "int8_g128")):
        assert con.execute(query, [[1.0, 2.0], scheme]).fetchall() == [(name,)]
    with pytest.raises(duckdb.Error, match="'int4_g0' is unknown"):
        con.execute(query, [[1.0], "int4_g0"]).fetchall()
    con.execute("PREPARE p AS SELECT aq2_quantize($1, $2).scheme")
    for scheme, name in (("4", "int4_g128"), ("'f16'", "f16")):
        assert con.execute(f"EXECUTE p([1.0::FLOAT], {scheme})").fetchall() == [(name,)]


def test_constants_that_fail_do_so_when_they_run(con):
    """A constant whose value is an error is no error of the statement that never needs it."""
    query = "SELECT CASE WHEN id > 9 THEN aq2_quantize([1.0], error('no')::INT) END FROM range({}) r(id)"
    assert con.sql(query.format(3)).fetchall() == [(None,)] * 3
    with pytest.raises(duckdb.Error, match="no"):
        con.sql(query.format(30)).fetchall()


# --- rows that fail --------------------------------------------------------------------------------------------------

BAD_ROWS = {
    "aq2_quantize(w, 4)": "row 2 of this batch of 5, position 1: the value nan is not finite. Hint: ",
    "aq2_quantize(n, 4)": "row 1 of this batch of 5, position 0: an element is null. Hint: ",
    "aq2_quantize(good, s)": "row 3 of this batch of 5: scheme: 'nope' is unknown. Hint: ",
    "aq2_quantize(good, b)": "row 4 of this batch of 5: scheme: 99 is no scheme. Hint: ",
    "aq2_quantize(good, z)": "row 1 of this batch of 5: the scheme is NULL. Hint: ",
    "aq2_quantize(good, 4, sh)": "row 2 of this batch of 5: the shape [3, 1] holds 3 weights, the row holds 2",
    "aq2_quantize(x, 4)": "row 1 of this batch of 5: 3 bytes are no whole number of f32 weights. Hint: ",
    "aq2_quantize(big, 'f16')": "row 0 of this batch of 5, position 0: the value 10000000000.0 does not fit 'f16'",
    "aq2_quantization_error(w, 4)": "row 2 of this batch of 5, position 1: the value nan is not finite",
    "aq2_quantize(good, 4, NULL, [1.0::FLOAT, 1.0])": "row 0 of this batch of 5: the scheme 'int4_g128' cannot use importance",
    "aq2_dequantize(struct_update(aq2_quantize(good, 4), length := 7))": "length 7 and row_length 2 contradict",
    "aq2_dequantize(struct_update(aq2_quantize(good, 4), scheme := '4'))": "row 0 of this batch of 5: scheme: '4' is",
    "aq2_dequantize(struct_update(aq2_quantize(good, 4), scales := ['inf'::FLOAT]))": "the scale of group 0 is inf",
    "aq2_dequantize(struct_update(aq2_quantize(good, 4), scales := []::FLOAT[]))": "has 1 scales, found 0",
    "aq2_dequantize(struct_update(aq2_quantize(good, 4), quantized_data := 'x'::BLOB))": None,
    "aq2_dequantize(struct_update(aq2_quantize(good, 4), row_length := NULL::BIGINT))": None,
}


@pytest.mark.parametrize("call", BAD_ROWS)
def test_rows_that_fail_are_told_as_on_the_arrow_path(call):
    """The function, the row, the position and the hint are the Arrow path's, word for word; TRY takes the others."""
    told = []
    for path in PATHS:
        with connected(path) as con:
            con.execute("""CREATE TABLE t AS SELECT id, [id, 2]::FLOAT[] AS good, ['1e10'::FLOAT] AS big,
                CASE WHEN id = 2 THEN [1, 'nan'::FLOAT] ELSE [1::FLOAT] END AS w,
                CASE WHEN id = 1 THEN [NULL::FLOAT] ELSE [1::FLOAT] END AS n,
                CASE WHEN id = 3 THEN 'nope' ELSE 'f32' END AS s, CASE WHEN id = 4 THEN 99 ELSE 4 END AS b,
                CASE WHEN id <> 1 THEN 4 END AS z, CASE WHEN id = 2 THEN [3, 1] ELSE [2, 1] END AS sh,
                CASE WHEN id = 1 THEN 'abc' ELSE 'abcd' END::BLOB AS x FROM range(5) r(id)""")
            try:
                found = con.sql(f"SELECT {call} FROM t ORDER BY id").fetchall()
            except duckdb.InvalidInputException as error:
                found = str(error).partition(": aq2_")[2]
            tried = con.sql(f"SELECT TRY({call}) FROM t ORDER BY id").fetchall()
            told.append((found, tried))
            assert con.execute("SELECT 1").fetchall() == [(1,)]
    assert told[0] == told[1]
    assert BAD_ROWS[call] is None or BAD_ROWS[call] in str(told[0][0])


def test_null_elements_fail_their_rows_only(both):
    """Wherever a NULL element lies among the bits of a vector's mask, its row fails, and no other does."""
    make = """CREATE TABLE n AS SELECT id, [CASE WHEN k <> (id * 7) % 190 OR id % 5 > 0 THEN k::FLOAT END
              FOR k IN range(id % 190)] AS w FROM range(400) r(id)"""
    tables = []
    for con in both:
        con.execute(make)
        query = "SELECT id, aq2_quantize(w, 'int4_g32') AS q FROM n WHERE list_position(w, NULL) IS NULL ORDER BY id"
        tried = "SELECT TRY(aq2_quantize(w, 'int4_g32')) IS NULL, count(*) FROM n GROUP BY 1 ORDER BY 1"
        tables.append((con.sql(query).to_arrow_table(), con.sql(tried).fetchall()))
    assert tables[0] == tables[1]
    assert 0 < tables[1][0].num_rows == tables[1][1][0][1] < 400


def test_an_error_of_python_is_an_error_of_duckdb(con, monkeypatch):
    """Whatever goes wrong inside is an error of the statement with the function's name, and the connection lives."""

    def fail(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(general, "call", fail)
    with pytest.raises(duckdb.InvalidInputException, match="aq2_weight_stats: KeyboardInterrupt"):
        con.sql("SELECT aq2_weight_stats([1.0])").fetchall()
    monkeypatch.undo()
    assert con.sql("SELECT aq2_weight_stats([1.0]).count").fetchall() == [(1,)]


# --- connections -----------------------------------------------------------------------------------------------------


def test_register_and_unregister_on_a_native_connection(con):
    """Registering changes nothing; what DuckDB keeps cannot be taken back, and an EngineError says so."""
    aq2_pipeline.register(con)
    assert aq2_pipeline.duckdb.path(con) == "native"
    with pytest.raises(EngineError, match=r"unregister: .* native.*Hint: "):
        aq2_pipeline.unregister(con)
    assert con.sql(CALL).fetchall() == [("int4_g128",)]


def test_other_connections_are_left_alone(con):
    """`connect` gives its own database the functions; `path` tells the ways apart, and cursors have what theirs has."""
    with duckdb.connect() as other:
        assert aq2_pipeline.duckdb.path(other) is None
        aq2_pipeline.register(other)
        assert aq2_pipeline.duckdb.path(other) == "arrow"
    with con.cursor() as cursor:
        assert aq2_pipeline.duckdb.path(cursor) == "native"
        assert cursor.sql(CALL).fetchall() == [("int4_g128",)]


@pytest.mark.parametrize("macro", ["MACRO aq2_quantize(x) AS x", "MACRO aq2_quantize(x) AS TABLE SELECT x"])
def test_a_database_with_names_of_its_own(tmp_path, macro):
    """A macro under one of the names is told and kept; a table macro takes no name; duckdb.connect still opens it."""
    path = tmp_path / "own.db"
    with duckdb.connect(path) as con:
        con.execute(f"CREATE {macro}")
    if "TABLE" in macro:
        with aq2_pipeline.duckdb.connect(path) as con:
            assert con.sql(CALL).fetchall() == [("int4_g128",)]
            assert con.sql("FROM aq2_quantize(5)").fetchall() == [(5,)]
    else:
        with pytest.raises(EngineError, match="'aq2_quantize' is taken"):
            aq2_pipeline.duckdb.connect(path)
    with duckdb.connect(path) as con:
        assert con.sql("SELECT count(*) FROM duckdb_functions() WHERE function_name = 'aq2_quantize'").fetchall()


def test_files_read_only_and_locked_databases(tmp_path):
    """Database files, also read-only, without external access and with a locked configuration, have the functions."""
    path = tmp_path / "file.db"
    with aq2_pipeline.duckdb.connect(path) as con:
        con.execute(
            "CREATE TABLE t AS SELECT [1.0, 2.0]::FLOAT[] AS w; CREATE VIEW v AS SELECT aq2_quantize(w, 4) AS q FROM t"
        )
    config = {"enable_external_access": False, "lock_configuration": True}
    with aq2_pipeline.duckdb.connect(path, read_only=True, config=config) as con:
        assert aq2_pipeline.duckdb.path(con) == "native"
        assert con.sql("SELECT q.length FROM v").fetchall() == [(2,)]
    with duckdb.connect(path) as plain, aq2_pipeline.duckdb.connect(path) as con:
        assert aq2_pipeline.duckdb.path(con) == "arrow"  # one database with the other, which was there first
        assert con.sql("SELECT q.length FROM v").fetchall() == [(2,)]
        assert plain.sql("SELECT q.length FROM v").fetchall() == [(2,)]


def test_eight_cursors_at_once(con):
    """Threads call at the same time, names and lengths of their own included, and give equal rows."""
    con.register("source", pa.table({"w": column(*(bell(k % 50, k) for k in range(3000)))}))
    con.execute("CREATE TABLE t AS SELECT * FROM source")
    query = "SELECT aq2_quantize(w, 'int4_g' || (1 + len(w) % {0})) AS q FROM t"

    def run(k):
        with con.cursor() as cursor:
            return normalised(cursor.sql(query.format(1 + k % 4)).to_arrow_table()["q"], layout.QUANTIZED)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, range(32)))
    assert all(found[k].equals(found[k % 4]) for k in range(32))


# --- hazards: a process each -----------------------------------------------------------------------------------------


def test_enable_is_for_every_later_connection():
    """Connections that were open have no functions and get Arrow ones; later ones are native; twice is once."""
    in_child(
        START + "early = duckdb.connect()\n"
        "assert aq2.enable() and aq2.enable()\n"
        "late = duckdb.connect()\n"
        "assert (aq2.path(early), aq2.path(late)) == (None, 'native')\n"
        "aq2_pipeline.register(early); aq2_pipeline.register(late)\n"
        "assert (aq2.path(early), aq2.path(late)) == ('arrow', 'native')\n"
        "assert early.sql(CALL).fetchall() == late.sql(CALL).fetchall() == WORKS\n"
        "for _ in range(300):\n"
        "    with duckdb.connect() as con:\n"
        "        assert con.sql(CALL).fetchall() == WORKS\n"
        "early.close(); late.close()\n"
    )


def test_reload_and_a_second_import():
    """Reloading every module, and importing the package afresh, leave one installation that works, old and new."""
    in_child(
        START + "import gc, importlib, sys\n"
        "con = aq2.connect()\n"
        "assert con.sql(CALL).fetchall() == WORKS\n"
        "con.execute('PREPARE p AS ' + CALL)\n"
        "for name in sorted(n for n in sys.modules if n.startswith('aq2_pipeline.udfs.duckdb') or n == 'aq2_pipeline.duckdb'):\n"
        "    importlib.reload(sys.modules[name])\n"
        "gc.collect()\n"
        "def check(aq2):\n"
        "    with aq2.connect() as later:\n"
        "        assert aq2.path(later) == 'native', aq2.path(later)\n"
        "        for each in (con, later):\n"
        "            assert each.sql(CALL).fetchall() == WORKS\n"
        "            assert each.sql(\"SELECT aq2_quantize([1.0]::FLOAT[], 'int5_g7').scheme\").fetchall() == [('int5_g7',)]\n"
        "            assert each.sql('SELECT aq2_weight_stats([1.0]).count').fetchall() == [(1,)]\n"
        "        assert con.execute('EXECUTE p').fetchall() == WORKS\n"
        "check(aq2)\n"
        "for name in [n for n in sys.modules if n.startswith('aq2_pipeline.udfs.duckdb') or n == 'aq2_pipeline.duckdb']:\n"
        "    del sys.modules[name]\n"
        "gc.collect()\n"
        "import aq2_pipeline.duckdb as again\n"
        "again = importlib.import_module('aq2_pipeline.duckdb')\n"
        "check(again)\n"
        "assert again.enable()\n"
        "with duckdb.connect() as plain:\n"
        "    assert again.path(plain) == 'native'\n"
        "con.close()\n"
    )


def test_two_copies_of_the_package(tmp_path):
    """A second copy on another path finds what the first installed, uses it, and breaks no connection."""
    shutil.copytree(
        Path(aq2_pipeline.__file__).parent, tmp_path / "aq2_pipeline", ignore=shutil.ignore_patterns("__pycache__")
    )
    in_child(
        START + "import sys\n"
        "first = aq2.connect()\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import polars as pl\n"
        "for name in [n for n in sys.modules if n.split('.')[0] == 'aq2_pipeline']:\n"
        "    del sys.modules[name]\n"
        "import warnings; warnings.simplefilter('ignore')\n"  # Polars notes that the namespace is there already
        "import aq2_pipeline.duckdb as second\n"
        f"assert second.__file__.startswith({str(tmp_path)!r})\n"
        "assert second.enable()\n"
        "with duckdb.connect() as con, second.connect() as other:\n"
        "    assert second.path(con) == second.path(other) == 'native'\n"
        "    for each in (first, con, other):\n"
        "        assert each.sql(CALL).fetchall() == WORKS\n"
        "first.close()\n"
    )


def test_fork_children_use_and_open_connections():
    """A forked child calls the functions of what it inherited an idea of, and opens databases of its own."""
    in_child(
        "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + START + "import os\n"
        "with aq2.connect() as con:\n"
        "    assert con.sql(CALL).fetchall() == WORKS\n"
        "for _ in range(3):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        with aq2.connect() as con:\n"
        "            good = aq2.path(con) == 'native' and con.sql(CALL).fetchall() == WORKS\n"
        "            good &= con.sql(\"SELECT aq2_quantize([1.0]::FLOAT[], 'int6_g9').scheme\").fetchall() == [('int6_g9',)]\n"
        "            good &= con.sql('SELECT aq2_weight_stats([1.0]).count').fetchall() == [(1,)]\n"
        "        os._exit(0 if good else 1)\n"
        "    assert os.waitpid(pid, 0)[1] == 0\n"
    )


def test_a_process_ends_quietly():
    """A process that used native functions and closed its connections ends with nothing printed."""
    code = START + "import atexit\ncon = aq2.connect()\nassert con.sql(CALL).fetchall() == WORKS\ncon.close()\n"
    assert in_child(code) == ""


@pytest.mark.parametrize("reason", ["AQ2_DUCKDB_NATIVE", "NUMBA_DISABLE_JIT"])
def test_the_switch_turns_them_off(reason):
    """With the switch at 0, or without a compiler, connections get Arrow functions, and enable says False."""
    code = START + "import warnings; warnings.simplefilter('ignore')\nassert aq2.enable() is False\n"
    code += "with aq2.connect() as con, duckdb.connect() as plain:\n    assert (aq2.path(con), aq2.path(plain)) == ('arrow', None)\n"
    in_child(code, **{reason: "0" if reason.startswith("AQ2") else "1"})


CHANGES = {
    "a missing symbol": "from aq2_pipeline.udfs.duckdb_native import capi\ncapi.SIGNATURES['gone_tomorrow'] = (None, ())\n",
    "another release that refuses": "duckdb.__version__ = '9.9.9'\nfrom aq2_pipeline.udfs.duckdb_native import installing\n"
    "installing._works_in_a_child = lambda: False\n",
    "a registration that cannot be": "from aq2_pipeline.udfs.duckdb_native import installing\n"
    "def fail(*_): raise OSError('no')\ninstalling._describe_of = fail\n",
    "what another version installed": "import _duckdb, types\n_duckdb._aq2_pipeline_native = types.SimpleNamespace(form=99)\n",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_duckdb_falls_back_and_says_so(change):
    """Where something is missing, connections get Arrow functions, and enable warns with the reason."""
    in_child(
        START + CHANGES[change] + "import warnings\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        "    assert aq2.enable() is False\n"
        "assert 'no native functions in DuckDB: ' in str(told[0].message)\n"
        "with aq2.connect() as con, duckdb.connect() as plain:\n"
        "    assert (aq2.path(con), aq2.path(plain)) == ('arrow', None)\n"
        "    assert con.sql(CALL).fetchall() == WORKS\n"
    )


def test_a_release_that_was_not_tested_is_tried_in_a_child():
    """With a DuckDB of another version, a child process tries the registration first, and it is used if it works."""
    in_child(
        START + "duckdb.__version__ = '9.9.9'\n"
        "with aq2.connect() as con:\n"
        "    assert aq2.path(con) == 'native'\n"
        "    assert con.sql(CALL).fetchall() == WORKS\n"
    )


def test_a_lack_of_memory_is_an_error():
    """Where the result cannot be held, the statement fails, and the process and the connection live."""
    in_child(
        START + "import resource\n"
        "con = aq2.connect()\n"
        "con.execute('SET threads = 1')\n"
        'con.execute("CREATE TABLE q AS SELECT aq2_quantize([0::FLOAT FOR i IN range(2000000)], 2) AS q FROM range(40)")\n'
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), -1))\n"
        "try:\n"
        "    con.sql('SELECT count(aq2_dequantize(q)) FROM q').fetchall()\n"
        "    raise SystemExit('it was held')\n"
        "except duckdb.Error as error:\n"
        "    assert 'emory' in str(error), error\n"
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))\n"
        "assert con.sql(CALL).fetchall() == WORKS\n"
        "con.close()\n"
    )
