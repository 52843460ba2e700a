"""The engines' own expressions doing the same, against our function in the same engine."""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from tests.benchmarks import sides, sql, workloads
from tests.benchmarks.peers.against import Bound, Peer, Running

GROUP = 128
#: A tie may be rounded to either side.
BOUND = Bound(GROUP, 0.5 / 7 + 1e-5)


def _groups(weights):
    return pa.FixedSizeListArray.from_arrays(pa.array(weights.reshape(-1)), GROUP)


def _decoded(weights, codes, scales):
    """Return (groups, decoded groups) of flat codes and scales."""
    codes = np.asarray(codes, np.float32).reshape(-1, GROUP)
    return weights.reshape(-1, GROUP), (codes - 8) * np.asarray(scales, np.float32).reshape(-1, 1)


def start_list_eval(weights, _threads):
    """`list.eval` over lists of 128."""
    frame = pl.DataFrame({"w": pl.from_arrow(_groups(weights).cast(pa.large_list(pa.float32())))})
    x = pl.element()
    largest = pl.max_horizontal(pl.col("w").list.max(), -pl.col("w").list.min())
    codes = pl.col("w").list.eval(((x * (7 / x.abs().max())).round() + 8).cast(pl.UInt8))
    query = frame.lazy().select(codes=codes, scales=largest / 7)

    def decoded(result):
        return _decoded(weights, result["codes"].explode().to_numpy(), result["scales"].to_numpy())

    return Running(query.collect, decoded)


def start_over(weights, _threads):
    """`explode` and a window over the number of the group."""
    frame = pl.DataFrame({"w": pl.from_arrow(_groups(weights).cast(pa.large_list(pa.float32())))}).with_row_index("g")
    largest = pl.col("w").abs().max().over("g")
    query = (
        frame.lazy()
        .explode("w")
        .select(codes=((pl.col("w") * (7 / largest)).round() + 8).cast(pl.UInt8), s=largest / 7)
    )

    def decoded(result):
        return _decoded(weights, result["codes"].to_numpy(), result["s"].to_numpy()[::GROUP])

    return Running(query.collect, decoded)


def start_arrays(weights, _threads):
    """Arithmetic of whole Array columns."""
    frame = pl.DataFrame({"w": pl.from_arrow(_groups(weights))})
    largest = pl.max_horizontal(pl.col("w").arr.max(), -pl.col("w").arr.min())
    # There is no rounding of arrays; adding a half and cutting off is what the cast does.
    codes = (pl.col("w") * (7 / largest) + 8.5).cast(pl.Array(pl.UInt8, GROUP))
    query = frame.lazy().select(codes=codes, scales=largest / 7)

    def decoded(result):
        return _decoded(weights, result["codes"].explode().to_numpy(), result["scales"].to_numpy())

    return Running(query.collect, decoded)


_SQL = """
SELECT list_transform(w, lambda x: (round(x * (1 / s)) + 8)::UTINYINT) AS codes, s
FROM (SELECT w, greatest(list_aggregate(w, 'max'), -list_aggregate(w, 'min')) / 7 AS s FROM groups)
"""


def start_list_transform(weights, n_threads):
    """`list_transform` and `list_aggregate` over lists of 128."""
    con = duckdb.connect()
    con.register("groups", workloads.batches(_groups(weights).cast(pa.list_(pa.float32()))))
    con.execute(f"SET threads = {n_threads}")
    query = f"SELECT sum(len(codes)), sum(s) FROM ({_SQL})"  # noqa: S608 - ours

    def decoded(_result):
        found = con.sql(_SQL).to_arrow_table()
        codes = np.concatenate([chunk.flatten().to_numpy() for chunk in found["codes"].chunks])
        return _decoded(weights, codes, found["s"].to_numpy())

    return Running(lambda: con.execute(query).fetchall(), decoded, con.close)


def _ours_in_duckdb(setting):
    """Our function in DuckDB, by the way that a user gets here."""
    con, path = sql.best_connection()
    return sql.side(f"DuckDB {path}", "S", setting, con, 4)


_SAME = {"work": "S", "bar": 20.0, "differs": "Less work: groups are handed over as rows, codes are not packed."}

ENGINE_PEERS = [
    Peer(
        "polars-list-eval",
        "Polars list.eval",
        ("polars",),
        start_list_eval,
        BOUND,
        "polars",
        ours=sides.polars_lazy("S"),
        config="Lazy collect over List(Float32) of 128.",
        **_SAME,
    ),
    Peer(
        "polars-over",
        "Polars explode and over",
        ("polars",),
        start_over,
        BOUND,
        "polars",
        ours=sides.polars_lazy("S"),
        config="Lazy collect; the window is over the number of the group.",
        **_SAME,
    ),
    Peer(
        "polars-array",
        "Polars Array arithmetic",
        ("polars",),
        start_arrays,
        BOUND,
        "polars",
        ours=sides.polars_lazy("S"),
        config="Lazy collect over Array(Float32, 128); halves are rounded up.",
        **_SAME,
    ),
    Peer(
        "duckdb-list-transform",
        "DuckDB list_transform",
        ("duckdb",),
        start_list_transform,
        BOUND,
        "duckdb",
        ours=_ours_in_duckdb,
        config="list_transform and list_aggregate over lists of 128, 16 record batches.",
        **_SAME,
    ),
]
