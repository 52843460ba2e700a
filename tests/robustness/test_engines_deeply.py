"""Cases 44 to 52: what DuckDB and Polars do to a function, beyond calling it."""

from __future__ import annotations

# ruff: noqa: E501, S608 - queries on one line, of our own words
import io
import math

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from robustness.harness import in_child, rows
from support.engines import PATHS, connected, normalised
from support.samples import bell

import aq2_pipeline
from aq2_pipeline import Aq2Error, InputValueError, layout

NAN = float("nan")


@pytest.fixture(params=PATHS)
def con(request):
    """Open an in-memory database with the functions and a table of 2049 rows, every seventh null."""
    with connected(request.param) as con:
        column = rows(*[None if k % 7 == 3 else bell(5, k + 1) for k in range(2049)])
        source = pa.table({"id": pa.array(range(2049)), "w": column, "b": pa.array([4, 8, 3] * 683)})
        con.register("source", source)
        con.execute("CREATE TABLE t AS SELECT * FROM source")
        yield con


def _all(con, query: str, kind: pa.DataType = layout.QUANTIZED) -> pa.Array:
    return normalised(con.sql(query).to_arrow_table().column(0), kind)


def _expected(con, query: str, scheme: object = 4) -> pa.Array:
    return aq2_pipeline.quantize(normalised(con.sql(query).to_arrow_table().column(0), layout.FLOATS), scheme)


@pytest.mark.parametrize(
    ("query", "rows_of"),
    [
        ("SELECT aq2_quantize(w, 4) FROM t ORDER BY id", "SELECT w FROM t ORDER BY id"),
        ("SELECT aq2_quantize(w, 4 + 0 * id) FROM t ORDER BY id", "SELECT w FROM t ORDER BY id"),
        ("SELECT aq2_quantize(w, 4) FROM t WHERE id % 3 = 1 ORDER BY id", "SELECT w FROM t WHERE id % 3 = 1 ORDER BY id"),
        ("SELECT aq2_quantize(w, 4) FROM (FROM t ORDER BY id LIMIT 100 OFFSET 1990)", "SELECT w FROM t ORDER BY id LIMIT 100 OFFSET 1990"),
        ("SELECT aq2_quantize([1.0, -2.0]::FLOAT[], 4) FROM range(3000)", "SELECT [1.0, -2.0]::FLOAT[] FROM range(3000)"),
        ("SELECT aq2_quantize(CASE WHEN id % 2 = 0 THEN w END, 4) FROM t ORDER BY id", "SELECT CASE WHEN id % 2 = 0 THEN w END FROM t ORDER BY id"),
        ("SELECT aq2_quantize(l.w, 4) FROM range(9) r JOIN t l ON l.id = r.range // 4 ORDER BY r.range", "SELECT w FROM range(9) r JOIN t l ON l.id = r.range // 4 ORDER BY r.range"),
    ],
    ids=["constant", "column", "filter", "limit", "constant vector", "case", "dictionary"],
)  # fmt: skip
def test_case_44_every_form_of_vector_gives_the_same_rows(con, query, rows_of):
    """Constant, dictionary, filtered and cut vectors, and a width that is a column, give the rows of the Python API."""
    assert _all(con, query).equals(_expected(con, rows_of))


def test_case_44_a_column_of_widths_gives_each_row_its_own(con):
    """A width per row is the scheme of its row."""
    widths = con.sql("SELECT b FROM t ORDER BY id").to_arrow_table()["b"]
    assert _all(con, "SELECT aq2_quantize(w, b) FROM t ORDER BY id").equals(
        _expected(con, "SELECT w FROM t ORDER BY id", widths.combine_chunks())
    )


def test_case_45_three_calls_in_one_query_agree(con):
    """The same call three times in a query gives the same value three times."""
    query = "SELECT count(*) FROM t WHERE aq2_quantize(w, 4) IS NOT DISTINCT FROM aq2_quantize(w, 4) AND (aq2_quantize(w, 4)).length IS NOT DISTINCT FROM len(w)"
    assert con.execute(query).fetchall() == [(2049,)]


def test_case_45_nested_calls_give_the_first_bytes(con):
    """quantize(dequantize(quantize(w))) has the bytes of quantize(w)."""
    again = _all(con, "SELECT aq2_quantize(aq2_dequantize(aq2_quantize(w, 4)), 4) FROM t ORDER BY id")
    assert again.equals(_expected(con, "SELECT w FROM t ORDER BY id"))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT count(*) FROM t WHERE (aq2_weight_stats(w)).count = 5", 1756),
        ("SELECT sum((aq2_quantize(w, 4)).length)::BIGINT FROM t", 1756 * 5),
        ("SELECT len(list_transform([[1.0, 2.0]::FLOAT[], [3.0]::FLOAT[]], lambda x: aq2_quantize(x, 4)))", 2),
        ("SELECT max(s) FROM (SELECT sum((aq2_weight_stats(w)).count) OVER (ORDER BY id) s FROM t)", 1756 * 5),
    ],
    ids=["where", "aggregate", "lambda", "window"],
)
def test_case_45_in_every_clause(con, query, expected):
    """The functions work in WHERE, in aggregates, in lambdas and in windows."""
    assert con.execute(query).fetchall() == [(expected,)]


def test_case_45_a_case_branch_sees_only_its_rows(con):
    """A CASE keeps bad rows from the function, and TRY turns them into NULL row by row."""
    con.execute(
        "CREATE TABLE bad AS SELECT range AS id, ['1', CASE WHEN range % 5 = 2 THEN 'nan' ELSE '1' END]::FLOAT[] AS w FROM range(50)"
    )
    guarded = "SELECT CASE WHEN id % 5 <> 2 THEN aq2_quantize(w, 4) END AS q FROM bad ORDER BY id"
    tried = "SELECT TRY(aq2_quantize(w, 4)) AS q FROM bad ORDER BY id"
    expected = [k % 5 != 2 for k in range(50)]
    for query in (guarded, tried):
        assert [row is not None for row in _all(con, query).to_pylist()] == expected
    with pytest.raises(duckdb.Error, match=r"aq2_quantize: row 2 of this batch of 50, position 1: the value nan"):
        con.sql("SELECT aq2_quantize(w, 4) FROM bad ORDER BY id").fetchall()
    assert con.execute("SELECT 1").fetchall() == [(1,)]


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("n", [1, 2047, 2048, 2049, 130_000])
def test_case_46_threads_and_vector_sizes_give_the_same_rows(n, threads):
    """Any number of threads and rows, in any order, gives the same set of rows."""
    with connected(threads=threads) as con:
        con.execute("SET preserve_insertion_order = false")
        con.execute(f"CREATE TABLE big AS SELECT range AS id, [range, 1, -range]::FLOAT[] AS w FROM range({n})")
        found = con.sql("SELECT id, aq2_quantize(w, 'int4_g2') AS q FROM big").to_arrow_table().sort_by("id")
        whole = np.stack([np.arange(n), np.ones(n), -np.arange(n)], axis=1).astype(np.float32)
        assert normalised(found["q"], layout.QUANTIZED).equals(aq2_pipeline.quantize(whole, "int4_g2"))


def test_case_47_registering_twice_and_on_several_connections():
    """A second registration, cursors, other connections and rollbacks change nothing."""
    with connected() as first, connected() as second:
        aq2_pipeline.register(first)
        cursor = first.cursor()
        aq2_pipeline.register(cursor)
        first.execute("BEGIN")
        first.execute("ROLLBACK")
        for con in (first, second, cursor):
            assert con.execute("SELECT (aq2_quantize([1.0], 4)).length").fetchall() == [(1,)]
        cursor.close()
        assert first.execute("SELECT (aq2_quantize([1.0], 4)).length").fetchall() == [(1,)]


def test_case_47_a_closed_connection_is_an_engine_error():
    """A closed connection is an error of ours."""
    con = duckdb.connect()
    con.close()
    with pytest.raises(aq2_pipeline.EngineError, match="register: "):
        aq2_pipeline.register(con)


def test_case_47_a_read_only_database_works(tmp_path):
    """The functions need no writing to the database."""
    path = str(tmp_path / "file.db")
    with duckdb.connect(path) as con:
        con.execute("CREATE TABLE t AS SELECT [1.0, 2.0]::FLOAT[] AS w")
    with duckdb.connect(path, read_only=True) as con:
        aq2_pipeline.register(con)
        assert con.execute("SELECT (aq2_quantize(w, 4)).length FROM t").fetchall() == [(2,)]


def test_case_47_a_process_with_open_connections_ends_well():
    """A process that leaves a connection open, and used through a dead cursor, ends with return code 0."""
    in_child(
        "import duckdb, aq2_pipeline\n"
        "con = duckdb.connect()\n"
        "def through_a_cursor():\n"
        "    aq2_pipeline.register(con.cursor())\n"
        "through_a_cursor()\n"
        "aq2_pipeline.register(con)\n"
        "assert con.execute('SELECT (aq2_quantize([1.0], 4)).length').fetchall() == [(1,)]\n"
    )


@pytest.mark.parametrize(
    "name", ["'; DROP TABLE t; --", '"quoted"', "слой.\N{GRINNING FACE}", "x" * 65536, "", "a\0b"], ids=range(6)
)
def test_case_48_layer_names_are_data(con, name):
    """A name from a model is a parameter: it is never part of a statement, whatever it holds."""
    expected = aq2_pipeline.policy_scheme(name, (1000, 1000), 4)
    query = "SELECT aq2_policy_scheme(?, [1000, 1000], 4, 'diffusion')"
    assert con.execute(query, [name]).fetchall() == [(expected,)]
    assert con.execute("SELECT count(*) FROM t").fetchall() == [(2049,)]
    text = "SELECT aq2_quantize([1.0], ?)"
    with pytest.raises(duckdb.Error, match="is unknown"):
        con.execute(text, [name]).fetchall()
    assert con.execute("SELECT count(*) FROM t").fetchall() == [(2049,)]


@pytest.mark.parametrize("path", ["/etc/passwd", "https://example.org/x.safetensors", "*.parquet"])
def test_case_49_no_function_reads_a_file(path):
    """No SQL function takes a path, and all of them work where external access is off."""
    with connected(enable_external_access=False) as con:
        assert con.execute("SELECT (aq2_quantize([1.0], 4)).length").fetchall() == [(1,)]
        for function in ("aq2_quantize(?, 4)", "aq2_weight_stats(?)", "aq2_dequantize(?)"):
            with pytest.raises(duckdb.Error, match="Hint: expected"):
                con.execute(f"SELECT {function}", [path]).fetchall()


# --- Polars ----------------------------------------------------------------------------------------------------------


def _frame() -> pl.DataFrame:
    column = rows(*[None if k % 7 == 3 else bell(5, k + 1) for k in range(40)])
    return pl.DataFrame({"w": pl.from_arrow(column), "k": [k % 3 for k in range(40)], "id": range(40)})


def test_case_50_every_way_to_run_an_expression():
    """Eager, lazy, streaming, filter, when/then, over, group_by and struct fields give the same rows."""
    frame, call = _frame(), pl.col("w").aq2.quantize("int4_g4")
    expected = frame.select(call)["w"]
    lazy = frame.lazy()
    assert lazy.select(call).collect()["w"].equals(expected)
    assert lazy.select(call).collect(engine="streaming")["w"].equals(expected)
    assert lazy.select(call.over("k")).collect()["w"].equals(expected)
    assert frame.select(pl.when(pl.col("id") >= 0).then(call))["w"].equals(expected)
    assert frame.select(call.name.suffix("_q"))["w_q"].equals(expected.alias("w_q"))
    assert frame.with_columns(call.alias("q")).filter(pl.col("k") == 1)["q"].equals(expected.filter(frame["k"] == 1))
    grouped = frame.group_by("k", maintain_order=True).agg(call.alias("q")).explode("q")["q"]
    by_group = pl.concat([expected.filter(frame["k"] == k) for k in range(3)])
    assert grouped.equals(by_group)
    lengths = frame.select(call.struct.field("length"))["length"]
    assert lengths.to_list() == [None if k % 7 == 3 else 5 for k in range(40)]


CALLS = {
    "quantize": (lambda c: c.aq2.quantize(4), layout.QUANTIZED),
    "quantization_error": (lambda c: c.aq2.quantization_error(4), layout.ERROR),
    "weight_stats": (lambda c: c.aq2.weight_stats(), layout.STATS),
    "dequantize": (lambda c: c.aq2.quantize(4).aq2.dequantize(), layout.FLOATS),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("values", [[], [None, None], [[1.0], None]], ids=["empty", "null", "some"])
def test_case_51_the_schema_is_known_before_and_true_afterwards(values, name):
    """`collect_schema` says what comes out, with rows, without any, and with nulls only."""
    call, kind = CALLS[name]
    lazy = pl.LazyFrame({"w": pl.Series(values, dtype=pl.List(pl.Float32))}).select(call(pl.col("w")))
    promised = lazy.collect_schema()["w"]
    for found in (lazy.collect()["w"], lazy.collect(engine="streaming")["w"], lazy.collect().lazy().collect()["w"]):
        assert found.dtype == promised
        assert len(found) == len(values)
    assert pl.Series(pl.from_arrow(pa.array([], kind))).dtype == promised
    untyped = pl.LazyFrame({"w": pl.Series(values, dtype=pl.Null)}) if not any(values) else None
    if untyped is not None:
        assert untyped.select(call(pl.col("w"))).collect()["w"].dtype == promised


def test_case_52_a_plan_with_our_functions_is_serialized_or_refused():
    """A serialized plan runs in this process as before; one that is no plan is a clear error of Polars."""
    lazy = _frame().lazy().select(pl.col("w").aq2.quantize("int4_g4"))
    plan = lazy.serialize()
    assert pl.LazyFrame.deserialize(io.BytesIO(plan)).collect().equals(lazy.collect())
    with pytest.raises(pl.exceptions.ComputeError):
        pl.LazyFrame.deserialize(io.BytesIO(plan[: len(plan) // 2]))


def test_case_52_a_plan_runs_in_another_process(tmp_path):
    """A plan that was written to a file runs in a process that only imports polars."""
    lazy = _frame().lazy().select(pl.col("w").aq2.quantize("int4_g4").struct.field("scales").list.sum().sum())
    (tmp_path / "plan").write_bytes(lazy.serialize())
    code = f"import polars as pl; print(repr(pl.LazyFrame.deserialize({str(tmp_path / 'plan')!r}).collect().item()))"
    assert math.isclose(float(in_child(code)), lazy.collect().item())


def test_case_50_errors_keep_their_class_in_every_engine_of_polars():
    """An error is ours, with its row, in eager, lazy and streaming runs; a later run is unharmed."""
    bad = pl.DataFrame({"w": pl.Series([[1.0], [NAN]], dtype=pl.List(pl.Float32))})
    call = pl.col("w").aq2.quantize(4)
    for run in (
        lambda: bad.select(call),
        lambda: bad.lazy().select(call).collect(),
        lambda: bad.lazy().select(call).collect(engine="streaming"),
    ):
        with pytest.raises(InputValueError, match="the value nan is not finite") as caught:
            run()
        assert isinstance(caught.value, Aq2Error)
        assert "position 0: " in str(caught.value)
    assert len(bad.head(1).select(call)) == 1
