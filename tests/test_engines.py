"""One body over every engine: the same column gives the same bytes, and what each engine adds of its own."""

# ruff: noqa: S608 - queries are put together from our own words

from __future__ import annotations

import decimal
from concurrent.futures import ThreadPoolExecutor

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from support import oracle
from support.engines import BY_NAME, ENGINES, PATHS, RESULTS, connected, everywhere, normalised, outcome
from support.samples import bell, column, shapes

import aq2_pipeline
import aq2_pipeline.polars as aq2
from aq2_pipeline import ArrowQuantV2, EngineError, InputTypeError, InputValueError, SchemeError, codecs, layout

#: Vectors and morsels end between these.
SIZES = (0, 1, 2048, 2049)
SCHEMES = ("int4_g32", "int3_g7_asym", "int8_channel", "int5_tensor_asym", "f16", "bf16", "f32")
LENGTHS = (5, 0, 33, 1, 12, None, 40)


def table(n: int) -> tuple[pa.Array, pa.Array, list, list]:
    """Return n rows with nulls and empty lists, their shapes, and both as Python has them."""
    pool = bell(4096)
    rows, given = [], []
    for k in range(n):
        size = LENGTHS[k % len(LENGTHS)]
        rows.append(None if size is None else pool[k % 4000 : k % 4000 + size])
        given.append((3, 11) if size == 33 else (2, 2, 5, 2) if size == 40 and k % 2 else None)
    return column(*rows), shapes(*given), rows, given


def assert_everywhere(expected: pa.Array, function: str, *columns) -> None:
    """Compare every engine that takes the types with what is expected."""
    found = everywhere(function, *columns)
    assert {"polars-eager", "polars-lazy", "polars-streaming", "duckdb", "duckdb-native", "python"} <= set(found)
    for name, result in found.items():
        assert not isinstance(result, str), (name, result)
        assert result.equals(expected), name


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantize_gives_the_oracles_rows_on_every_engine(n, scheme):
    """0, 1, 2048 and 2049 rows, nulls, empty lists and shapes: each engine gives the oracle's rows."""
    weights, given, rows, python = table(n)
    expected = [
        None if w is None else oracle.quantize(w, scheme, s).as_dict() for w, s in zip(rows, python, strict=True)
    ]
    assert_everywhere(pa.array(expected, layout.QUANTIZED), "quantize", weights, scheme, given)


def block_table(n: int) -> tuple[pa.Array, pa.Array]:
    """Return n rows that divide into every block, with nulls and empty lists, and their shapes."""
    pool = bell(8192)
    sizes = [(256, 0, 512, None, 768)[k % 5] for k in range(n)]
    rows = [None if size is None else pool[k % 4000 : k % 4000 + size] for k, size in enumerate(sizes)]
    return column(*rows), shapes(*((2, 256) if size == 512 else None for size in sizes))


@pytest.mark.parametrize("scheme", ["nf4_g32", "fp4_g7:search", "fp8_e4m3_channel", *codecs.BLOCKS, "nvfp4_tensor",
                                    "q4_0:reference"])  # fmt: skip
def test_blocks_and_codebooks_agree_on_every_engine(scheme):
    """Bytes, decoded weights and errors of 2049 rows are the same everywhere."""
    weights, given = block_table(2049)
    python = BY_NAME["python"]
    quantized = python.quantize(weights, scheme, given)
    assert_everywhere(quantized, "quantize", weights, scheme, given)
    assert_everywhere(python.run("dequantize", quantized), "dequantize", quantized)
    assert_everywhere(
        python.run("quantization_error", weights, scheme, given), "quantization_error", weights, scheme, given
    )


def test_importance_agrees_on_every_engine():
    """An importance, null in some rows, gives the same bytes and errors everywhere."""
    weights, _ = block_table(50)
    given = shapes(*[None] * 50)
    importance = pa.array(
        [None if k % 3 == 0 else np.abs(bell(len(w), k)) + np.float32(0.01) if (w := row.as_py()) else None
         for k, row in enumerate(weights)],
        layout.FLOATS,
    )  # fmt: skip
    for function in ("quantize", "quantization_error"):
        expected = BY_NAME["python"].run(function, weights, "q4_k", given, importance)
        assert_everywhere(expected, function, weights, "q4_k", given, importance)


@pytest.mark.parametrize("scheme", ["int4_g32:mse", "int4_g32_asym:hqq"])
def test_methods_agree_on_every_engine(scheme):
    """Searched scales and zero points are the same everywhere, under the name without the method."""
    weights, given, _, _ = table(2049)
    expected = BY_NAME["python"].quantize(weights, scheme, given)
    assert set(expected.field("scheme").drop_null().to_pylist()) == {scheme.partition(":")[0]}
    assert_everywhere(expected, "quantize", weights, scheme, given)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("function", ["dequantize", "quantization_error", "weight_stats"])
def test_the_other_functions_agree_on_every_engine(n, function):
    """Decoded weights, errors and statistics are the same everywhere, bit for bit."""
    weights, given, _, _ = table(n)
    python = BY_NAME["python"]
    if function == "dequantize":
        columns = [python.quantize(weights, "int4_g32_asym", given)]
    else:
        columns = [weights] if function == "weight_stats" else [weights, "int3_g32", given]
    assert_everywhere(python.run(function, *columns), function, *columns)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("function", ["quantize", "dequantize", "quantization_error"])
def test_rotated_schemes_agree_on_every_engine(n, function):
    """Rotated weights, in every matrix row, are the same everywhere, as are their errors and their refusals."""
    pool, lengths = bell(4096), (8, 0, 64, None, 136)
    sizes = [lengths[k % 5] for k in range(n)]
    weights = column(*(None if size is None else pool[k : k + size] for k, size in enumerate(sizes)))
    given = shapes(*((4, 16) if size == 64 else None for size in sizes))
    columns = [weights, "int3_g32_asym_rot8", given]
    python = BY_NAME["python"]
    if function == "dequantize":
        columns = [python.quantize(*columns)]
    assert_everywhere(python.run(function, *columns), function, *columns)


def test_rows_that_no_rotation_divides_fail_everywhere():
    """Every engine tells the blocks and the row."""
    for name, text in everywhere("quantize", column(bell(64), bell(40)), "int4_g32_rot16").items():
        assert isinstance(text, str), name
        assert "blocks of 16 weights, which do not divide rows of 40" in text, name


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ["integers", "names", "both families"])
def test_a_column_of_schemes_on_every_engine(n, kind):
    """Integers and names may change from row to row; a null one is taken where the weights are null."""
    weights, _, rows, _ = table(n)
    wanted = [None if w is None else 2 + k % 7 for k, w in enumerate(rows)]
    if kind == "names":
        wanted = [None if w is None else f"int{w}_g16" for w in wanted]
    elif kind == "both families":
        wanted = [None if w is None else SCHEMES[w % len(SCHEMES)] for w in wanted]
    schemes = pa.array(wanted, pa.int64() if kind == "integers" else pa.string())
    names = [f"int{one}_g128" if kind == "integers" else one for one in wanted]
    expected = [None if w is None else oracle.quantize(w, name).as_dict() for w, name in zip(rows, names, strict=True)]
    assert_everywhere(pa.array(expected, layout.QUANTIZED), "quantize", weights, schemes)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.decimal128(18, 6)),
                                  pa.list_(pa.float32(), 40), pa.list_(pa.float64(), 40)], ids=str)  # fmt: skip
def test_kinds_of_lists_agree_on_every_engine(kind):
    """Lists and arrays of float32, float64 and decimals are the same weights, sliced and with nulls."""
    rows = [np.round(bell(40, k), 6).astype(np.float32) for k in range(9)]
    spelled = [[decimal.Decimal(repr(round(float(x), 6))) for x in row] for row in rows]
    if not pa.types.is_decimal(kind.value_type):
        spelled = [[float(x) for x in row] for row in spelled]
    weights = pa.array([*spelled[:3], None, *spelled[3:]], kind)[1:]
    expected = BY_NAME["python"].quantize(column(*rows[1:3], None, *rows[3:]), "int4_g16")
    assert_everywhere(expected, "quantize", weights, "int4_g16")


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "f64"])
def test_binary_weights_on_every_engine(dtype):
    """Bytes are weights of the type that the scheme says, in every width of offset."""
    rows = [bell(50, k) for k in range(4)]
    if dtype == "f16":
        rows = [row.astype(np.float16).astype(np.float32) for row in rows]
    if dtype == "bf16":
        rows = [(row.view(np.uint32) & 0xFFFF0000).view(np.float32) for row in rows]
    stored = {"f32": lambda w: w, "f16": lambda w: w.astype(np.float16), "f64": lambda w: w.astype(np.float64),
              "bf16": lambda w: (w.view(np.uint32) >> 16).astype(np.uint16)}[dtype]  # fmt: skip
    data = [stored(row).tobytes() for row in rows]
    expected = BY_NAME["python"].quantize(column(*rows[:2], None, *rows[2:]), "int4_g32")
    for kind in (pa.binary(), pa.large_binary()):
        assert_everywhere(expected, "quantize", pa.array([*data[:2], None, *data[2:]], kind), f"int4_g32@{dtype}")


def test_errors_are_the_same_everywhere():
    """Every engine tells the function, the position and the value; where it knows only its batch, it says so."""
    rows = [bell(40, k) for k in range(6)]
    rows[4][17] = np.nan
    for name, text in everywhere("quantize", column(*rows), "int4_g32").items():
        assert isinstance(text, str), name
        assert "position 17: the value nan is not finite. Hint: " in text
        assert "row 4" in text or " of this batch of " in text
        assert ("layer 'layer.4'" in text) == (name == "wrapper")
    for name, text in everywhere("quantize", column(*rows), "int4_g0").items():
        assert "'int4_g0' is unknown. Hint: the closest known names are" in text, name


def test_a_null_scheme_for_weights_is_an_error_everywhere():
    """Weights without a scheme are no null, but an error."""
    found = everywhere("quantize", column([1], [2]), pa.array(["int4_g32", None], pa.string()))
    assert all(isinstance(text, str) and "the scheme is NULL" in text for text in found.values())


# --- Polars ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frame():
    """Return a frame with nulls, shapes, groups and schemes."""
    weights, given, _, _ = table(100)
    schemes = pl.Series([SCHEMES[k % 4] for k in range(100)])
    keys = pl.Series([k % 3 for k in range(100)])
    return pl.DataFrame({"w": pl.from_arrow(weights), "s": pl.from_arrow(given), "scheme": schemes, "k": keys})


EXPRESSIONS = {
    "quantize": aq2.quantize("w", 4),
    "shaped": aq2.quantize("w", pl.col("scheme"), "s"),
    "dequantize": pl.col("w").aq2.quantize("int4_g32").aq2.dequantize(),
    "quantization_error": pl.col("w").aq2.quantization_error(4, shape=pl.col("s")),
    "weight_stats": aq2.weight_stats("w"),
    "policy_scheme": aq2.policy_scheme(pl.lit("layer"), "s", 4),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_the_schema_is_known_before_anything_runs(name, frame):
    """`collect_schema` is the result's, on rows, on an empty frame and on an all-null column."""
    expression = EXPRESSIONS[name].alias("result")
    nothing = frame.with_columns(pl.lit(None, frame.schema["w"]).alias("w"))
    for source in (frame, frame.clear(), nothing):
        query = source.lazy().select(expression)
        told = query.collect_schema()
        for result in (query.collect(), query.collect(engine="streaming"), source.select(expression)):
            assert result.schema == told


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_eager_lazy_and_streaming_agree(name, frame):
    """The three ways to run an expression give equal frames, on many chunks too."""
    expression = EXPRESSIONS[name].alias("result")
    expected = frame.select(expression)
    chunked = pl.concat([frame[:7], frame[7:8], frame[8:8], frame[8:]], rechunk=False)
    for source in (frame, chunked):
        assert source.select(expression).equals(expected)
        assert source.lazy().select(expression).collect().equals(expected)
        assert source.lazy().select(expression).collect(engine="streaming").equals(expected)
        assert (
            source.lazy()
            .with_row_index()
            .filter(pl.col("index") < 60)
            .select(expression)
            .collect()
            .equals(expected[:60])
        )


def test_expressions_in_groups_and_windows(frame):
    """Inside group_by, over, when, and filter an expression gives what it gives in select."""
    plain = frame.with_columns(q=pl.col("w").aq2.quantize("int4_g32"), stats=pl.col("w").aq2.weight_stats())
    grouped = frame.group_by("k", maintain_order=True).agg(q=pl.col("w").aq2.quantize("int4_g32"))
    expected = plain.group_by("k", maintain_order=True).agg("q")
    assert grouped.explode("q").equals(expected.explode("q"))
    mean = pl.col("w").aq2.weight_stats().struct.field("mean").mean()
    assert frame.select(mean.over("k").alias("m")).equals(
        plain.select(pl.col("stats").struct.field("mean").mean().over("k").alias("m"))
    )
    chosen = frame.select(pl.when(pl.col("k") == 0).then(pl.col("w").aq2.quantize("int4_g32")).alias("q"))
    assert chosen.equals(plain.select(pl.when(pl.col("k") == 0).then("q").alias("q")))
    large = pl.col("w").aq2.quantization_error("int2_g32").struct.field("max_abs") > 0.02
    kept = frame.lazy().filter(large).collect()
    assert 0 < len(kept) < len(frame)
    assert kept.equals(frame.filter(large))


def test_the_three_spellings_are_one(frame):
    """The namespace, the free function and the Series give one result; names and keywords are the same scheme."""
    expected = frame.select(pl.col("w").aq2.quantize("int4_g64_asym"))
    assert frame.select(aq2.quantize("w", 4, group_size=64, symmetric=False)).equals(expected)
    assert frame.select(aq2.quantize(pl.col("w"), "int4_g64_asym:minmax")).equals(expected)
    assert frame["w"].aq2.quantize("int4_g64_asym").to_frame().equals(expected)
    assert frame.select(pl.col("w").name.suffix("_q").aq2.quantize(4)).columns in (["w_q"], ["w"])


def test_bad_arguments_fail_when_the_expression_is_built():
    """A scheme, keyword or mode that cannot be raises before any frame is seen."""
    for bad in (9, "int4_g0", None, 8.5, True):
        with pytest.raises(SchemeError, match="scheme"):
            pl.col("w").aq2.quantize(bad)
    with pytest.raises(SchemeError, match="contradicts"):
        aq2.quantize("w", "int4_g64", group_size=32)
    with pytest.raises(SchemeError, match="no keywords"):
        aq2.quantize("w", pl.col("scheme"), group_size=32)
    with pytest.raises(SchemeError, match="mode"):
        aq2.policy_scheme("name", "s", 4, "fast")


def test_polars_errors_keep_their_class(frame):
    """Eager, lazy and streaming raise our classes, with the row of the batch."""
    bad = frame.with_columns(pl.lit([1.0, float("inf")], pl.List(pl.Float32)).alias("w"))
    expression = pl.col("w").aq2.quantize(4)
    text = r"aq2_quantize: row 0 of this batch of \d+, position 1: the value inf"
    with pytest.raises(InputValueError, match=text):
        bad.select(expression)
    for engine in ("in-memory", "streaming"):
        with pytest.raises(InputValueError, match=text):
            bad.lazy().select(expression).collect(engine=engine)
    with pytest.raises(InputTypeError, match=r"cast"):
        frame.select(pl.lit([1, 2]).aq2.quantize(4))


# --- DuckDB ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=PATHS)
def con(request):
    """Open a connection with the functions and a table `t` of 5,000 rows: id, w, s, scheme."""
    weights, given, _, _ = table(5000)
    with connected(request.param) as con:
        schemes = pa.array([SCHEMES[k % 4] for k in range(5000)])
        source = pa.table({"id": pa.array(range(5000)), "w": weights, "s": given, "scheme": schemes})
        con.register("source", source)
        con.execute("CREATE TABLE t AS SELECT * FROM source")
        yield con


def rows_of(con, query, kind="quantize"):
    """Return the column `q` of a query."""
    return normalised(con.sql(query).to_arrow_table()["q"], RESULTS[kind])


def expected_of(n=5000):
    """Return what every query over `t` should give."""
    weights, given, _, _ = table(n)
    schemes = pa.array([SCHEMES[k % 4] for k in range(n)])
    return BY_NAME["python"].quantize(weights, schemes, given)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_duckdb_threads_and_queries_agree(con, threads):
    """A table, view, subquery, join, CTE, filter and LIMIT give the same rows on any number of threads."""
    con.execute(f"SET threads = {threads}")
    expected = expected_of()
    q = "aq2_quantize(w, scheme, s)"
    con.execute(f"CREATE VIEW v AS SELECT id, {q} AS q FROM t")
    assert rows_of(con, f"SELECT {q} AS q FROM t ORDER BY id").equals(expected)
    assert rows_of(con, "SELECT q FROM v ORDER BY id").equals(expected)
    thirds = expected.take(pa.array(range(1, 5000, 3)))
    part = f"SELECT q FROM (SELECT id, {q} AS q FROM t WHERE id % 3 = 1) ORDER BY id"
    assert rows_of(con, part).equals(thirds)
    join = f"SELECT {q} AS q FROM t JOIN (SELECT range AS id FROM range(4000, 9000)) r USING (id) ORDER BY id"
    assert rows_of(con, join).equals(expected[4000:])
    piece = f"WITH c AS MATERIALIZED (SELECT * FROM t) SELECT {q} AS q FROM c ORDER BY id LIMIT 7 OFFSET 2045"
    assert rows_of(con, piece).equals(expected[2045:2052])
    again = "SELECT aq2_quantize(aq2_dequantize(aq2_quantize(w, 4)), 4) AS q FROM t ORDER BY id"
    assert rows_of(con, again).equals(rows_of(con, "SELECT aq2_quantize(w, 4) AS q FROM t ORDER BY id"))


def test_duckdb_parquet_and_back(con, tmp_path):
    """COPY TO writes quantized rows that DuckDB, Polars and pyarrow read back and decode alike."""
    path = tmp_path / "q.parquet"
    con.execute(f"COPY (SELECT id, aq2_quantize(w, scheme, s) AS q FROM t ORDER BY id) TO '{path}' (FORMAT parquet)")
    expected = expected_of()
    assert rows_of(con, f"SELECT q FROM '{path}' ORDER BY id").equals(expected)
    decoded = BY_NAME["python"].dequantize(expected)
    assert rows_of(con, f"SELECT aq2_dequantize(q) AS q FROM '{path}' ORDER BY id", "dequantize").equals(decoded)
    assert normalised(pl.read_parquet(path)["q"].aq2.dequantize(), layout.FLOATS).equals(decoded)
    assert normalised(aq2_pipeline.dequantize(ds.dataset(path).to_table()["q"]), layout.FLOATS).equals(decoded)


def test_duckdb_types_of_weights(con):
    """FLOAT[], DOUBLE[], FLOAT[n], BLOB, literals and NULL are taken; lists of integers are refused with a hint."""
    expected = BY_NAME["python"].quantize(column([1.0, -2.0, 0.5]), "int4_g32")
    blob = "".join(f"\\x{byte:02X}" for byte in np.array([1, -2, 0.5], "<f4").tobytes())
    for literal in ("[1.0, -2.0, 0.5]", "[1, -2, 0.5]::FLOAT[]", "[1, -2, 0.5]::DOUBLE[]", "[1, -2, 0.5]::FLOAT[3]",
                    "[1, -2, 0.5]::DOUBLE[3]", f"'{blob}'::BLOB"):  # fmt: skip
        assert rows_of(con, f"SELECT aq2_quantize({literal}, 'int4_g32') AS q").equals(expected), literal
    for null in ("NULL", "NULL::FLOAT[]", "NULL::BLOB"):
        assert con.sql(f"SELECT aq2_quantize({null}, 4)").fetchall() == [(None,)]
        assert con.sql(f"SELECT aq2_weight_stats({null})").fetchall() == [(None,)]
    assert con.sql("SELECT aq2_dequantize(NULL)").fetchall() == [(None,)]
    with pytest.raises(duckdb.Error, match=r"cast them to a list of float32, e\.g\. FLOAT\[\]"):
        con.sql("SELECT aq2_quantize([1, 2, 3], 4)").fetchall()


def test_duckdb_try_turns_bad_rows_into_null(con):
    """TRY is SQL's continue_on_error: only the bad rows are NULL; without it the error names row and batch."""
    bad = "CASE WHEN id % 10 = 3 THEN ['nan'::FLOAT] ELSE w END"
    con.execute(f"CREATE TABLE bad AS SELECT id, {bad} AS w FROM t WHERE id < 300")
    found = rows_of(con, "SELECT TRY(aq2_quantize(w, 4)) AS q FROM bad ORDER BY id")
    whole = rows_of(con, "SELECT aq2_quantize(w, 4) AS q FROM t WHERE id < 300 ORDER BY id")
    assert found.to_pylist() == [None if k % 10 == 3 else row for k, row in enumerate(whole.to_pylist())]
    with pytest.raises(duckdb.Error, match=r"aq2_quantize: row \d+ of this batch of \d+, position 0: the value nan"):
        con.sql("SELECT aq2_quantize(w, 4) FROM bad").fetchall()
    assert con.sql("SELECT 1").fetchall() == [(1,)]


def test_duckdb_policy_and_named_layers(con):
    """A policy's column of schemes feeds quantize; layer names are data, whatever they hold."""
    names = ["a", "'; DROP TABLE t; --", 'x"y', "模型", "\0", "n" * 65_536]
    con.register(
        "named", pa.table({"name": names, "w": column(*(bell(100, k) for k in range(6))), "s": shapes(*[(10, 10)] * 6)})
    )
    found = con.sql("SELECT aq2_policy_scheme(name, s, 4, 'base') FROM named").fetchall()
    assert found == [("int4_g128",)] * 6
    query = "SELECT aq2_quantize(w, aq2_policy_scheme(name, s, 4, 'diffusion'), s) AS q FROM named"
    wanted = [aq2_pipeline.policy_scheme(name, (10, 10), 4) for name in names]
    expected = BY_NAME["python"].quantize(
        column(*(bell(100, k) for k in range(6))), pa.array(wanted), shapes(*[(10, 10)] * 6)
    )
    assert rows_of(con, query).equals(expected)
    assert con.sql("SELECT count(*) FROM t").fetchall() == [(5000,)]


def test_duckdb_wrong_calls_say_how_to_call(con):
    """Too few and too many arguments, and wrong types in a slot, are told with the signature or what is expected."""
    for call in ("aq2_quantize()", "aq2_quantize([1.0])", "aq2_quantize([1.0], 4, [1], [1.0], 5)", "aq2_dequantize()"):
        with pytest.raises(duckdb.Error, match=r"aq2_(de)?quantize"):
            con.sql(f"SELECT {call}").fetchall()
    with pytest.raises(duckdb.Error, match="expected a list of integers"):
        con.sql("SELECT aq2_quantize([1.0], 4, [1.0::FLOAT])").fetchall()
    with pytest.raises(duckdb.Error, match="scheme is NULL"):
        con.sql("SELECT aq2_quantize([1.0], NULL)").fetchall()


@pytest.mark.parametrize("path", PATHS)
def test_duckdb_cursors_and_connections(path):
    """Cursors share the functions; several connections and threads at once give equal rows."""
    weights, _, _, _ = table(3000)
    expected = BY_NAME["python"].quantize(weights, "int4_g32")
    with connected(path) as one, connected(path) as two:
        for con in (one, two):
            con.register("source", pa.table({"w": weights}))
            con.execute("CREATE TABLE t AS SELECT * FROM source")

        def run(con):
            with con.cursor() as cursor:
                return rows_of(cursor, "SELECT aq2_quantize(w, 'int4_g32') AS q FROM t")

        with ThreadPoolExecutor(8) as pool:
            assert all(found.equals(expected) for found in pool.map(run, [one, two] * 8))


def test_register_is_idempotent_and_can_be_taken_back():
    """A second register changes nothing; unregister takes the functions back, twice too; registering again works."""
    with connected() as con:
        aq2_pipeline.register(con)
        assert con.sql("SELECT aq2_quantize([1.0], 4).length").fetchall() == [(1,)]
        aq2_pipeline.unregister(con)
        aq2_pipeline.unregister(con)
        with pytest.raises(duckdb.CatalogException):
            con.sql("SELECT aq2_quantize([1.0], 4)")
        aq2_pipeline.register(con)
        assert con.sql("SELECT aq2_quantize([1.0], 4).length").fetchall() == [(1,)]


def test_register_where_it_cannot_be_is_an_engine_error():
    """A closed connection, and functions of another cursor, are EngineErrors."""
    con = duckdb.connect()
    con.close()
    for call in (aq2_pipeline.register, aq2_pipeline.unregister):
        with pytest.raises(EngineError):
            call(con)
    with connected() as con, con.cursor() as cursor:
        aq2_pipeline.register(cursor)
        with pytest.raises(EngineError, match="Hint: "):
            aq2_pipeline.unregister(cursor)


# --- pyarrow ---------------------------------------------------------------------------------------------------------


def test_pyarrow_dataset_projection(tmp_path):
    """A dataset's scan projects with the registered functions, batch by batch."""
    aq2_pipeline.register_pyarrow()
    aq2_pipeline.register_pyarrow()
    weights, given, _, _ = table(3000)
    path = tmp_path / "w.arrow"
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema([("w", layout.FLOATS), ("s", layout.INTS)])) as out,
    ):
        for batch in pa.table({"w": weights, "s": given}).to_batches(max_chunksize=700):
            out.write(batch)
    scheme = pc.scalar("int4_g32")
    projection = {
        "q": pc.Expression._call("aq2_quantize", [pc.field("w"), scheme]),
        "shaped": pc.Expression._call("aq2_quantize_shaped", [pc.field("w"), scheme, pc.field("s")]),
    }
    found = ds.dataset(path, format="arrow").to_table(columns=projection)
    python = BY_NAME["python"]
    assert normalised(found["q"], layout.QUANTIZED).equals(python.quantize(weights, "int4_g32"))
    assert normalised(found["shaped"], layout.QUANTIZED).equals(python.quantize(weights, "int4_g32", given))


def test_pyarrow_scalars_and_exact_types():
    """A scheme may be a scalar; other types find no kernel, as pyarrow has it."""
    aq2_pipeline.register_pyarrow()
    found = pc.call_function("aq2_quantize", [column([1, 2, 3]), pa.scalar("int4_g32")])
    assert found.equals(aq2_pipeline.quantize(column([1, 2, 3]), "int4_g32"))
    with pytest.raises(pa.ArrowNotImplementedError):
        pc.call_function("aq2_quantize", [pa.array([[1.0]]), pa.scalar("int4_g32")])
    with pytest.raises(SchemeError):
        pc.call_function("aq2_quantize", [column([1, 2, 3]), pa.scalar("int4_g0")])


# --- Python ----------------------------------------------------------------------------------------------------------


def test_python_takes_anything_that_exports_arrow():
    """Frames' columns, relations' results and foreign capsules are columns; the kind that came in goes out."""
    weights = column([1, 2], None, [3])
    expected = aq2_pipeline.quantize(weights, 4)

    class Foreign:
        def __arrow_c_array__(self, requested_schema=None):
            return weights.__arrow_c_array__(requested_schema)

    class Stream:
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.chunked_array([weights, weights]).__arrow_c_stream__(requested_schema)

    assert aq2_pipeline.quantize(Foreign(), 4).equals(expected)
    assert aq2_pipeline.quantize(Stream(), 4).equals(pa.chunked_array([expected, expected]))
    series = pl.Series("w", pl.from_arrow(weights))
    found = aq2_pipeline.quantize(series, 4)
    assert isinstance(found, pl.Series)
    assert normalised(found, layout.QUANTIZED).equals(expected)


def test_python_arrays_are_rows():
    """A 1-D array is one row, a 2-D one its rows, a list of arrays tensors with their shapes."""
    matrix = bell(120).reshape(10, 12)
    one, rows, tensors = (aq2_pipeline.quantize(w, "int4_g8") for w in (matrix.ravel(), matrix, [matrix, matrix[0]]))
    assert one.to_pylist() == [oracle.quantize(matrix, "int4_g8").as_dict()]
    assert rows.to_pylist() == [oracle.quantize(row, "int4_g8").as_dict() for row in matrix]
    assert tensors.to_pylist() == [oracle.quantize(matrix, "int4_g8", (10, 12)).as_dict(), rows[0].as_py()]
    with pytest.raises(InputTypeError, match="Hint: "):
        aq2_pipeline.quantize(matrix.reshape(2, 5, 12), 4)


def test_rows_count_over_all_chunks():
    """In Python the row of an error counts over all chunks of the column."""
    good, bad = column([1], [2]), column([3], [np.nan])
    with pytest.raises(InputValueError, match="row 5, position 0: the value nan"):
        aq2_pipeline.quantize(pa.chunked_array([good, good, bad]), 4)
    with pytest.raises(InputValueError, match="row 5, position 0"):
        aq2_pipeline.quantize(pl.concat([pl.Series(pl.from_arrow(c)) for c in (good, good, bad)], rechunk=False), 4)


def test_every_engine_is_asked():
    """The list of engines holds every surface, and none refuses float lists with a name."""
    assert {engine.name for engine in ENGINES if engine.takes(column([1]), "int4_g32")} == set(BY_NAME)
    assert isinstance(outcome(lambda: ArrowQuantV2().quantize_arrow(pa.table({"a": [1]}))), str)
