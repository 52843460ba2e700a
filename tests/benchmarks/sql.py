"""The sides in DuckDB: native functions, Arrow UDFs, and the Arrow UDF without a body."""

from __future__ import annotations

import duckdb

import aq2_pipeline
import aq2_pipeline.duckdb
from aq2_pipeline.udfs.duckdb import sql_type
from tests.benchmarks import workloads
from tests.benchmarks.results import MissingError
from tests.benchmarks.sides import Side, binary_buffers, python


def native_connection():
    """Return a connection whose functions are native; missing where this build or platform has none."""
    try:
        connect = aq2_pipeline.duckdb.connect
    except AttributeError:
        msg = "aq2_pipeline.duckdb has no connect(): there are no native functions yet"
        raise MissingError(msg) from None
    con = connect()
    path = aq2_pipeline.duckdb.path(con)
    if path != "native":
        con.close()
        msg = f"the connection's functions are {path!r}, not native"
        raise MissingError(msg)
    return con


def udf_connection():
    """Return a plain connection with the functions as Arrow UDFs."""
    con = duckdb.connect()
    aq2_pipeline.register(con)
    path = getattr(aq2_pipeline.duckdb, "path", lambda _: "arrow")(con)
    assert path == "arrow", f"the functions of a plain connection are {path!r}"
    return con


def best_connection():
    """Return (connection, "native" or "Arrow UDF"): what a user gets here."""
    try:
        return native_connection(), "native"
    except MissingError:
        return udf_connection(), "Arrow UDF"


def empty_connection(first_rows):
    """Return a connection whose aq2_quantize hands out a result that was made beforehand."""
    con = duckdb.connect()
    made = aq2_pipeline.quantize(first_rows, "int4_g128")

    def nothing(weights, _scheme):
        return made.slice(0, len(weights))

    result = sql_type(made.type)
    con.create_function("aq2_quantize", nothing, None, result, type="arrow", null_handling="special")
    return con


def _query(call):
    # The aggregate needs every row's struct, and costs nothing beside it.
    return f"SELECT sum(octet_length(q.quantized_data)) FROM (SELECT {call} AS q FROM weights)"  # noqa: S608 - ours


def side(label, name, setting, con, scheme):
    """Return a query over a workload on a connection, which the side closes."""
    work = workloads.workload(name, setting)
    column = (workloads.fixed_column if name == "E" else workloads.column)(work, setting)
    con.register("weights", workloads.batches(column))
    con.execute(f"SET threads = {setting.threads}")
    call = f"aq2_quantize(w, {scheme!r})"
    inner = python(name, scheme)(setting)

    def codes(_result):
        found = con.sql(f"SELECT {call}.quantized_data AS d FROM weights").to_arrow_table()  # noqa: S608 - ours
        return binary_buffers(found["d"])

    return Side(
        f"{label}, {name}",
        lambda: con.execute(_query(call)).fetchall(),
        work.n_weights,
        codes,
        workloads.values(work, setting),
        phases={
            "the same scan without the function": lambda: con.execute("SELECT sum(len(w)) FROM weights").fetchall(),
            inner.label: inner.call,
        },
        close=con.close,
    )


def native(name, scheme="int4_g128"):
    """Query with the native function."""
    return lambda setting: side("DuckDB native", name, setting, native_connection(), scheme)


def udf(name, scheme="int4_g128"):
    """Query with the Arrow UDF."""
    return lambda setting: side("DuckDB Arrow UDF", name, setting, udf_connection(), scheme)


def empty_udf(name):
    """Query with a function that is handed the weights and hands out a result, and does no work."""

    def make(setting):
        work = workloads.workload(name, setting)
        con = empty_connection(workloads.column(work, setting).slice(0, 2048))
        found = side("empty Arrow UDF", name, setting, con, "int4_g128")
        found.codes = None
        return found

    return make
