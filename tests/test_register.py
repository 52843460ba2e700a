"""`register` and `unregister`: what they leave alone, whose functions they touch, and where they cannot work."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.samples import column

import aq2_pipeline
from aq2_pipeline import Aq2Error, EngineError, InputTypeError, InputValueError, SchemeError

CALL = "SELECT aq2_quantize([1.0], 4).length"
CALLS = (aq2_pipeline.register, aq2_pipeline.unregister)


@pytest.fixture
def con():
    """Open a database without our functions."""
    with duckdb.connect() as con:
        yield con


def foreign(*columns):
    """Answer 7, whatever is asked."""
    return pa.array([7] * len(columns[0]), pa.int64())


def works(con):
    """Return whether the connection runs our function."""
    return con.sql(CALL).fetchall() == [(1,)]


# --- results that are not fetched ------------------------------------------------------------------------------------


def test_a_second_register_leaves_a_pending_result(con):
    """Where the functions are already there, nothing happens, and the result goes on where it was."""
    aq2_pipeline.register(con)
    con.execute("SELECT * FROM range(50000)")
    assert con.fetchone() == (0,)
    aq2_pipeline.register(con)
    assert len(con.fetchall()) == 49_999


@pytest.mark.parametrize("call", CALLS)
def test_a_pending_result_is_kept_and_told(con, call):
    """A change that DuckDB refuses while a result is pending is an EngineError, and the result is still there."""
    if call is aq2_pipeline.unregister:
        aq2_pipeline.register(con)
    con.execute("SELECT * FROM range(50000)")
    assert con.fetchone() == (0,)
    with pytest.raises(EngineError, match=r"register: .* not fetched to its end\. Hint: "):
        call(con)
    assert len(con.fetchall()) == 49_999
    call(con)
    aq2_pipeline.register(con)
    assert works(con)


def test_unregister_without_functions_leaves_a_pending_result(con):
    """Without functions of ours nothing happens."""
    con.execute("SELECT * FROM range(50000)")
    con.fetchone()
    aq2_pipeline.unregister(con)
    assert len(con.fetchall()) == 49_999


@pytest.mark.parametrize("call", CALLS)
def test_an_open_reader_is_kept_and_told(con, call):
    """A stream of Arrow batches that is still open goes on, too."""
    if call is aq2_pipeline.unregister:
        aq2_pipeline.register(con)
    reader = con.sql("SELECT * FROM range(500000)").to_arrow_reader(1000)
    first = reader.read_next_batch().num_rows
    with pytest.raises(EngineError, match="Hint: "):
        call(con)
    assert first + reader.read_all().num_rows == 500_000


def test_cursors_may_register_at_once(con):
    """Threads that register through cursors of their own all succeed."""

    def run(_):
        with con.cursor() as cursor:
            aq2_pipeline.register(cursor)
            return works(cursor)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(16)))


# --- names that somebody else has ------------------------------------------------------------------------------------


def test_a_foreign_function_is_told_and_stays(con):
    """A function of ours by name only is an EngineError that names it; unregister leaves it."""
    con.create_function("aq2_quantize", foreign, None, "BIGINT", type="arrow")
    with pytest.raises(EngineError, match=r"register: the name 'aq2_quantize' is taken.*Hint: "):
        aq2_pipeline.register(con)
    aq2_pipeline.unregister(con)
    assert con.sql("SELECT aq2_quantize(1)").fetchall() == [(7,)]
    assert con.sql("SELECT count(*) FROM duckdb_functions() WHERE function_name = 'aq2_dequantize'").fetchall() == [
        (0,)
    ]


@pytest.mark.parametrize("kind", ["", "TEMP "])
def test_a_foreign_macro_is_told_and_stays(con, kind):
    """A macro under one of the names is told before and after ours are there; unregister leaves it."""
    for _ in range(2):
        con.execute(f"CREATE {kind}MACRO aq2_dequantize(x) AS x + 1")
        with pytest.raises(EngineError, match="'aq2_dequantize'"):
            aq2_pipeline.register(con)
        aq2_pipeline.unregister(con)
        assert con.sql("SELECT aq2_dequantize(1)").fetchall() == [(2,)]
        con.execute("DROP MACRO aq2_dequantize")
        aq2_pipeline.register(con)


def test_names_elsewhere_do_not_matter(con):
    """A macro in a schema off the search path, a table and a table macro take no name of ours."""
    con.execute("CREATE SCHEMA s; CREATE MACRO s.aq2_quantize(x) AS x; CREATE TABLE aq2_dequantize(i INT)")
    con.execute("CREATE MACRO aq2_weight_stats(x) AS TABLE SELECT x")
    con.execute("ATTACH ':memory:' AS other; CREATE MACRO other.aq2_policy_scheme(x) AS x")
    for _ in range(2):
        aq2_pipeline.register(con)
        assert works(con)
    aq2_pipeline.unregister(con)
    assert con.sql("SELECT s.aq2_quantize(5)").fetchall() == [(5,)]


# --- transactions ----------------------------------------------------------------------------------------------------


def test_register_inside_a_transaction(con):
    """In an open transaction the functions work at once, a second call changes nothing, and a commit keeps them."""
    con.begin()
    aq2_pipeline.register(con)
    aq2_pipeline.register(con)
    assert works(con)
    con.commit()
    aq2_pipeline.register(con)
    assert works(con)


def test_register_recovers_from_a_rollback(con):
    """What a rollback took from the catalog but not from the connection's list comes back, and can be taken back."""
    for _ in range(2):
        con.begin()
        aq2_pipeline.register(con)
        con.rollback()
        with pytest.raises(duckdb.CatalogException):
            con.sql(CALL)
        aq2_pipeline.register(con)
        gc.collect()
        assert all(works(con) for _ in range(50))
        aq2_pipeline.unregister(con)
        with pytest.raises(duckdb.CatalogException):
            con.sql(CALL)
        aq2_pipeline.register(con)
        assert works(con)
        aq2_pipeline.unregister(con)


def test_recovery_that_an_older_transaction_cannot_see_is_told(con):
    """Inside a transaction the functions may come back unseen: an EngineError says so, and the transaction lives."""
    con.execute("CREATE TABLE t(i INT)")
    con.begin()
    aq2_pipeline.register(con)
    con.rollback()
    con.begin()
    con.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(EngineError, match=r"transaction.*Hint: commit"):
        aq2_pipeline.register(con)
    con.commit()
    aq2_pipeline.register(con)
    assert works(con)
    assert con.sql("FROM t").fetchall() == [(1,)]


@pytest.mark.parametrize("call", CALLS)
def test_an_aborted_transaction_is_an_engine_error(con, call):
    """DuckDB's text says what to do; afterwards all is well."""
    con.begin()
    with pytest.raises(duckdb.Error):
        con.execute("SELECT error('x')").fetchall()
    with pytest.raises(EngineError, match="ROLLBACK"):
        call(con)
    con.rollback()
    aq2_pipeline.register(con)
    assert works(con)


# --- what is no connection -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", [None, "con", 4, duckdb.connect])
def test_what_is_no_connection_is_told(call, what):
    """None and other things are an InputTypeError with a hint."""
    with pytest.raises(InputTypeError, match=rf"{call.__name__}: .* is no DuckDB connection\. Hint: "):
        call(what)


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_connection_is_told(call):
    """A closed connection is an EngineError with a hint."""
    con = duckdb.connect()
    con.close()
    with pytest.raises(EngineError, match=rf"{call.__name__}: .*closed.* Hint: .*duckdb\.connect"):
        call(con)


def test_the_module_is_its_default_connection():
    """DuckDB's module stands for its default connection, as in DuckDB's own calls."""
    try:
        aq2_pipeline.register(duckdb)
        aq2_pipeline.register(duckdb)
        assert works(duckdb)
    finally:
        aq2_pipeline.unregister(duckdb)


# --- what the adapters say -------------------------------------------------------------------------------------------


def test_wide_integers_of_duckdb_are_told_with_a_cast(con):
    """HUGEINT and DECIMAL arrive as decimals, or opaque: the text names the argument and the cast."""
    aq2_pipeline.register(con)
    for lossless in ("false", "true"):
        con.execute(f"SET arrow_lossless_conversion = {lossless}")
        for call, slot in {
            "aq2_quantize([1.0], 4::HUGEINT)": "scheme",
            "aq2_quantize([1.0], 4::UHUGEINT)": "scheme",
            "aq2_quantize([1.0], 4::DECIMAL(38, 0))": "scheme",
            "aq2_quantize([1.0], 4, [1::HUGEINT])": "shape",
            "aq2_policy_scheme('a', [1::HUGEINT], 4, 'base')": "shape",
            "aq2_policy_scheme('a', [1], 4::HUGEINT, 'base')": "bit_width",
        }.items():
            with pytest.raises(duckdb.Error, match=rf"aq2_\w+: {slot} is .*Hint: cast .*::BIGINT"):
                con.sql(f"SELECT {call}").fetchall()


def test_bits_are_refused_where_duckdb_says_what_they_are(con):
    """BIT is no binary where its type comes along, which needs DuckDB's lossless conversion."""
    aq2_pipeline.register(con)
    con.execute("SET arrow_lossless_conversion = true")
    with pytest.raises(duckdb.Error, match=r"weights are .*type_name=bit.*Hint: "):
        con.sql("SELECT aq2_quantize(repeat('01', 12)::BIT, 4)").fetchall()


def test_pyarrow_rows_count_in_the_batch_and_say_so():
    """An error's row counts in the chunk that pyarrow handed over, and the text says so."""
    aq2_pipeline.register_pyarrow()
    weights = pa.chunked_array([column([1], [2]), column([3], [4], [float("nan")])])
    with pytest.raises(InputValueError, match=r"aq2_quantize: row 2 of this batch of 3, position 0: the value nan"):
        pc.call_function("aq2_quantize", [weights, pa.scalar("int4_g32")])


def test_pyarrow_null_scheme_scalars():
    """Null weights give null, whatever the scheme; weights without a scheme are an error with their row."""
    aq2_pipeline.register_pyarrow()
    null = pa.scalar(None, pa.string())
    for name in ("aq2_quantize", "aq2_quantization_error"):
        found = pc.call_function(name, [column(None, None), null])
        assert found.null_count == 2
        with pytest.raises(SchemeError, match=rf"{name}: row 1 of this batch of 2: the scheme is NULL") as caught:
            pc.call_function(name, [column(None, [1]), null])
        assert isinstance(caught.value, Aq2Error)
        assert caught.value.row == 1
