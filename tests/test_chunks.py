"""Chunk rows: parts of a layer whose bytes, joined, are the layer's, in tables and in files."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from support.samples import bell, column, shapes

import aq2_pipeline
from aq2_pipeline import ArrowQuantV2, FormatError, InputTypeError, InputValueError, SchemeError
from aq2_pipeline.io.convert import dequantize_file
from aq2_pipeline.io.listing import inspect_file
from aq2_pipeline.io.parquet import file as parquet
from aq2_pipeline.io.parquet.file import QuantizedFile
from aq2_pipeline.io.parquet.writing import write_quantized

RESULTS = ("quantized_data", "scales", "zero_points")


def chunk_table(w, cuts, name="a.mlp.weight", **more) -> pa.Table:
    """Return a layer cut along its first axis before each of `cuts`."""
    bounds = [0, *cuts, len(w)]
    parts = [w[a:b] for a, b in pairwise(bounds)]
    n_row = w[:1].size
    columns = {
        "layer_name": [name] * len(parts),
        "dtype": ["F32"] * len(parts),
        "chunk": pa.array(range(len(parts)), pa.int32()),
        "start": pa.array([a * n_row for a in bounds[:-1]], pa.int64()),
        "tensor_shape": shapes(*[w.shape] * len(parts)),
        "shape": shapes(*(part.shape for part in parts)),
        "weights": column(*(part.ravel() for part in parts)),
    }
    return pa.table(columns | more)


def one_row(**changed) -> pa.Table:
    """Return the second chunk of [8, 96], with what is changed."""
    row = chunk_table(bell(8 * 96).reshape(8, 96), [4])[1:]
    return pa.table(
        {name: changed.get(name, row[name]) for name in row.column_names if changed.get(name, 0) is not None}
    )


def ints(*values) -> pa.Array:
    """Return an int64 column."""
    return pa.array(values, pa.int64())


CUTS = {
    (400,): [128, 384],
    (24, 96): [1, 9, 10],
    (10, 100): [3, 4],
    (8, 6, 3, 3): [5],
    (8, 40, 3, 3): [1, 2],
}


SCHEMES = ["int4_g128", "int3_g32_asym", "f16", None, "int4_channel", "int5_channel_asym"]


@pytest.mark.parametrize(
    ("shape", "scheme"),
    [(shape, scheme) for shape in CUTS for scheme in SCHEMES if len(shape) > 1 or "channel" not in str(scheme)],
    ids=str,
)
def test_joined_chunks_are_the_layer(shape, scheme):
    """Codes, scales and zero points of the chunks, joined, are those of the layer, also under a policy."""
    w = bell(int(np.prod(shape))).reshape(shape)
    found = ArrowQuantV2().quantize_arrow(chunk_table(w, CUTS[shape]), 4, scheme=scheme).to_pydict()
    whole = ArrowQuantV2().quantize_batch({"a.mlp.weight": w}, 4, scheme=scheme)["a.mlp.weight"]
    assert set(found["scheme"]) == {whole["scheme"]}
    assert b"".join(found["quantized_data"]) == whole["quantized_data"]
    for name in RESULTS[1:]:
        assert [x for row in found[name] for x in row] == whole[name].tolist()


FAULTS = {
    "vector in parts of no whole group": (
        chunk_table(bell(400), [100, 200, 300]),
        "int4_g128",
        "0 to 100 cut a group or block",
    ),
    "vector with one scale": (chunk_table(bell(400), [128]), "int4_channel", "one scale a vector"),
    "matrix with one scale": (one_row(), "int4_tensor", "one scale a tensor"),
    "one scale, only chunk": (one_row(start=None, tensor_shape=None), "int4_tensor", "one scale a tensor"),
    "one scale, only start": (one_row(chunk=None, tensor_shape=None), "int4_tensor", "one scale a tensor"),
    "only chunk": (one_row(start=None, tensor_shape=None), "int4_g32", "without a tensor_shape"),
    "no shape": (one_row(shape=None), "int4_g32", "without a shape"),
    "flattened": (one_row(shape=shapes((384,))), "int4_g128", r"\[384\] is no part of the tensor_shape \[8, 96\]"),
    "cut along the last axis": (one_row(shape=shapes((8, 48))), "int4_g32", "no part of"),
    "joined axes": (one_row(tensor_shape=shapes((768,))), "int4_g32", "no part of"),
    "start inside a matrix row": (one_row(start=ints(380)), "int4_g32", "380 to 764 cut a matrix row.*multiples of 96"),
    "start too late": (one_row(start=ints(480)), "int4_g32", "480 to 864 are not within the layer's 768"),
    "start before the layer": (one_row(start=ints(-96)), "int4_g32", "not within"),
    "vector without start": (chunk_table(bell(256), [128])[:1].drop(["start"]), "int4_g128", "without a start"),
    "negative axis": (one_row(tensor_shape=shapes((-8, 96))), "int4_g32", "negative"),
    "null axis": (one_row(tensor_shape=shapes((None, 96))), "int4_g32", "null"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_chunks_name_the_layer(fault):
    """A chunk whose bytes would not be a part of the layer's is an error with layer and row."""
    table, scheme, text = FAULTS[fault]
    with pytest.raises((SchemeError, InputValueError), match=f"layer 'a.mlp.weight', row 0: .*{text}"):
        ArrowQuantV2().quantize_arrow(table, scheme=scheme)


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_chunks_leave_the_other_rows(fault):
    """With `continue_on_error` they are null and told of, and a good row beside them is quantized."""
    table, scheme, _ = FAULTS[fault]
    good = pa.table({"layer_name": ["good"], "weights": column(bell(64)), "shape": shapes((8, 8))})
    with pytest.warns(RuntimeWarning, match="rows failed"):
        found = ArrowQuantV2().quantize_arrow(
            pa.concat_tables([good, table], promote_options="default"), scheme=scheme, continue_on_error=True
        )
    assert found["scheme"].to_pylist()[:2] == [scheme, None]
    assert "a.mlp.weight" in found["error"].to_pylist()[1]


def test_whole_layers_among_chunks():
    """Null chunk columns, or a tensor_shape that is the shape, say that a row is whole: `_tensor` takes it."""
    w = bell(64).reshape(8, 8)
    table = pa.table(
        {
            "layer_name": ["a", "b", "c"],
            "weights": column(*[w.ravel()] * 3),
            "shape": shapes(*[(8, 8)] * 3),
            "chunk": pa.array([None, 0, None], pa.int32()),
            "start": ints(None, 0, None),
            "tensor_shape": shapes(None, (8, 8), (8, 8)),
        }
    )
    expected = aq2_pipeline.quantize(column(w.ravel()), "int4_tensor", shapes((8, 8))).to_pylist()[0]
    for row in ArrowQuantV2().quantize_arrow(table, scheme="int4_tensor").to_pylist():
        assert {name: row[name] for name in RESULTS} == {name: expected[name] for name in RESULTS}


def test_null_weights_are_no_chunk():
    """Null weights give null whatever the chunk columns say."""
    table = one_row(start=ints(-1), weights=column(None))
    assert ArrowQuantV2().quantize_arrow(table, 4)["scheme"].to_pylist() == [None]


def test_chunk_columns_of_another_type():
    """`chunk` and `start` are integers, `tensor_shape` a list of them."""
    for name, values in (("start", pa.array(["0"])), ("chunk", pa.array([0.5])), ("tensor_shape", pa.array([[0.5]]))):
        with pytest.raises(InputTypeError, match=f"{name}.*expected"):
            ArrowQuantV2().quantize_arrow(one_row(**{name: values}), 4)


def test_a_scheme_column_that_is_too_short():
    """A column of schemes with fewer rows than the table is an error that counts them."""
    table = chunk_table(bell(8 * 96).reshape(8, 96), [4])
    with pytest.raises((InputTypeError, SchemeError), match="scheme has 1 rows"):
        ArrowQuantV2().quantize_arrow(table, scheme=pa.array(["int4_g32"]))


# --- files -----------------------------------------------------------------------------------------------------------


def quantized_table(table: pa.Table, scheme: str = "int4_g32") -> pa.Table:
    """Return the layer table with `quantized` for `weights`."""
    quantized = aq2_pipeline.quantize(table["weights"], scheme, table["shape"])
    return table.drop(["weights"]).append_column("quantized", quantized)


BIG = bell(24 * 96).reshape(24, 96)
VECTOR = bell(400, 2)
WHOLE = bell(64, 3).reshape(8, 8)


@pytest.fixture
def chunked(tmp_path):
    """Return the path of a file with two layers in chunks, out of order and interleaved, and a whole one."""
    whole = chunk_table(WHOLE, [], "whole").drop(["chunk", "start", "tensor_shape"])
    tables = [chunk_table(BIG, [1, 9, 10], "big"), whole, chunk_table(VECTOR, [128, 384], "vector")]
    table = pa.concat_tables([quantized_table(t) for t in tables], promote_options="default")
    table = table.take([3, 5, 4, 1, 7, 0, 2, 6])
    write_quantized([table[:3], table[3:]], tmp_path / "q.parquet")
    return tmp_path / "q.parquet"


def test_file_keeps_the_chunk_columns(chunked):
    """chunk, start and tensor_shape are in the file with the layer table's types, null where a row is whole."""
    schema = pq.read_schema(chunked)
    assert schema.names == ["layer_name", "shape", "dtype", "chunk", "start", "tensor_shape", "quantized"]
    assert (schema.field("chunk").type, schema.field("start").type) == (pa.int32(), pa.int64())
    rows = {(row["layer_name"], row["start"]): row for row in pl.read_parquet(chunked).iter_rows(named=True)}
    assert rows["big", 96]["tensor_shape"] == [24, 96]
    assert rows["big", 96]["chunk"] == 1
    assert rows["whole", None]["tensor_shape"] is None


def test_file_without_chunks_has_no_such_columns(tmp_path):
    """The columns are written only where a table has them; a file of whole layers stays as it was."""
    whole = quantized_table(chunk_table(WHOLE, [], "whole")).drop(["chunk", "start", "tensor_shape"])
    write_quantized([whole], tmp_path / "q.parquet")
    assert pq.read_schema(tmp_path / "q.parquet").names == ["layer_name", "shape", "dtype", "quantized"]
    with pytest.raises(FormatError, match=r"'chunk'.*first"):
        write_quantized([whole, quantized_table(chunk_table(BIG, [1]))], tmp_path / "q.parquet")


@pytest.mark.parametrize("limit", [1 << 26, 100, 1])
def test_chunks_become_one_tensor(chunked, tmp_path, monkeypatch, limit):
    """Decoding joins the chunks of a layer in the order of `start`, wherever they are in the file."""
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", limit)
    told = []
    report = dequantize_file(
        chunked, tmp_path / "m.safetensors", progress=lambda name, _, layer: told.append(name) if layer else None
    )
    found = load_file(tmp_path / "m.safetensors")
    for name, w in (("big", BIG), ("vector", VECTOR), ("whole", WHOLE)):
        one = aq2_pipeline.dequantize(aq2_pipeline.quantize(column(w.ravel()), "int4_g32", shapes(w.shape)))
        np.testing.assert_array_equal(found[name], one[0].values.to_numpy().reshape(w.shape))
    assert [(layer.name, layer.shape, layer.n_weights) for layer in report.layers] == [
        ("big", [24, 96], 2304),
        ("vector", [400], 400),
        ("whole", [8, 8], 64),
    ]
    assert sorted(told) == ["big", "vector", "whole"]


def test_inspect_shows_layers(chunked):
    """A layer in chunks is one row of `inspect`, with the bytes of all of them."""
    _, rows, _ = inspect_file(chunked)
    shown = {row["layer"]: row for row in rows}
    assert shown.keys() == {"big", "vector", "whole"}
    assert shown["big"]["shape"] == [24, 96]
    assert shown["big"]["bytes"] == 24 * 3 * (16 + 4)


def changed_rows(table: pa.Table, name: str, *values) -> pa.Table:
    """Return the table with another column."""
    k = table.column_names.index(name)
    return table.set_column(k, name, pa.array(values, table.schema.field(name).type))


GOOD = quantized_table(chunk_table(BIG, [8, 16], "big"))
FILE_FAULTS = {
    "first missing": (GOOD[1:], "the weights 0 to 768 are missing"),
    "middle missing": (GOOD.take([0, 2]), "the weights 768 to 1536 are missing"),
    "last missing": (GOOD[:2], "the weights 1536 to 2304 are missing"),
    "twice": (pa.concat_tables([GOOD, GOOD[1:2]]), "weight 768 is in two chunks"),
    "overlap": (changed_rows(GOOD, "start", 0, 700, 1536), "weight 700 is in two chunks"),
    "negative start": (changed_rows(GOOD, "start", -1, 768, 1536), "before the layer"),
    "too long": (changed_rows(GOOD, "tensor_shape", *[[20, 96]] * 3), "2304 weights, the tensor_shape.*1920"),
    "no start": (changed_rows(GOOD, "start", 0, None, 1536), "without a start"),
    "no tensor_shape": (changed_rows(GOOD, "tensor_shape", [24, 96], None, [24, 96]), "without a tensor_shape"),
    "two tensor_shapes": (changed_rows(GOOD, "tensor_shape", [24, 96], [96, 24], [24, 96]), "tensor_shape"),
    "null axis": (changed_rows(GOOD, "tensor_shape", *[[None, 96]] * 3), "tensor_shape"),
    "two dtypes": (changed_rows(GOOD, "dtype", "F32", "F16", "F32"), "dtype"),
    "whole and in chunks": (
        pa.concat_tables([GOOD, quantized_table(chunk_table(BIG, [], "big"))]),
        "whole and in chunks",
    ),
    "two schemes": (
        pa.concat_tables([GOOD[:2], quantized_table(chunk_table(BIG, [8, 16], "big"), "int8_g32")[2:]]),
        "scheme",
    ),
    "one not stored": (
        pa.concat_tables([GOOD[:2], changed_rows(GOOD[2:], "quantized", None)]),
        "scheme",
    ),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_incomplete_layers_are_refused(tmp_path, fault):
    """Chunks that do not make exactly their layer are a FormatError with its name, and nothing is written."""
    table, text = FILE_FAULTS[fault]
    write_quantized([table], tmp_path / "q.parquet")
    with pytest.raises(FormatError, match=text) as caught:
        dequantize_file(tmp_path / "q.parquet", tmp_path / "m.safetensors")
    assert caught.value.layer == "big"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.parquet"]


def test_chunks_that_are_not_stored(tmp_path):
    """A layer whose chunks hold no data, because it is not of floats, is listed once and left alone."""
    table = changed_rows(changed_rows(GOOD, "quantized", None, None, None), "dtype", "I64", "I64", "I64")
    whole = quantized_table(chunk_table(WHOLE, [], "whole"))
    write_quantized([pa.concat_tables([table, whole])], tmp_path / "q.parquet")
    report = dequantize_file(tmp_path / "q.parquet", tmp_path / "m.safetensors")
    assert [(layer.name, layer.left_alone is None) for layer in report.layers] == [("big", False), ("whole", True)]
    assert set(load_file(tmp_path / "m.safetensors")) == {"whole"}


def test_chunk_columns_of_another_type_in_files(tmp_path):
    """Another writer's columns of a wrong type are a FormatError with the column."""
    for name, values in (("start", ["0"] * 3), ("tensor_shape", [[0.5]] * 3), ("shape", ["a"] * 3)):
        k = GOOD.column_names.index(name)
        pq.write_table(GOOD.set_column(k, name, pa.array(values)), tmp_path / "q.parquet")
        with pytest.raises(FormatError, match=f"column '{name}'"):
            QuantizedFile(tmp_path / "q.parquet")


def test_a_polars_sink_with_chunks_is_read(tmp_path):
    """A lazy query that keeps the chunk columns writes a file that decodes."""
    lazy = pl.from_arrow(chunk_table(BIG, [8, 16], "big")).lazy()
    lazy.with_columns(quantized=pl.col("weights").aq2.quantize("int8_g32", "shape")).drop("weights").sink_parquet(
        tmp_path / "q.parquet"
    )
    dequantize_file(tmp_path / "q.parquet", tmp_path / "m.safetensors")
    assert np.abs(load_file(tmp_path / "m.safetensors")["big"] - BIG).max() < 0.01


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_shapes_too_deep_fail_row_by_row():
    """Several shapes in one row fail that row; axes that are no integers fail the column."""
    weights = column(bell(64), bell(64), None)
    deep = pa.array([[[8, 8]], [[8], [8]], [[8], [8]]])
    table = pa.table({"layer_name": list("abc"), "weights": weights, "shape": deep})
    with pytest.raises(InputValueError, match=r"layer 'b', row 1: .*is 2 shapes"):
        ArrowQuantV2().quantize_arrow(table, scheme="int4_g32")
    with pytest.warns(RuntimeWarning, match="1 of 3"):
        found = ArrowQuantV2().quantize_arrow(table, scheme="int4_g32", continue_on_error=True)
    assert found["scheme"].to_pylist() == ["int4_g32", None, None]
    assert [bool(text) for text in found["error"].to_pylist()] == [False, True, False]
    for wrong in ([[[1.5, 2]]], [[["8"]]], [[[[8, 8]]]]):
        table = pa.table({"layer_name": ["a"], "weights": column(bell(64)), "shape": pa.array(wrong)})
        with pytest.raises(InputTypeError, match=r"'shape'.*list of integers"):
            ArrowQuantV2().quantize_arrow(table, 4)


def test_axes_that_no_length_can_be():
    """An unsigned axis beyond int64 is an error of its row."""
    shape = pa.array([[2**63 + 1], [64]], pa.list_(pa.uint64()))
    table = pa.table({"layer_name": list("ab"), "weights": column(bell(64), bell(64)), "shape": shape})
    with pytest.raises(InputValueError, match=r"layer 'a', row 0: .*axis"):
        ArrowQuantV2().quantize_arrow(table, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ArrowQuantV2().quantize_arrow(table, scheme="int4_g32", continue_on_error=True)
    assert found["scheme"].to_pylist() == [None, "int4_g32"]


def test_names_in_a_dictionary_are_text():
    """Layer names may be a dictionary of strings, not of integers."""
    for names in (pa.array(["a"]), pa.array([5])):
        table = pa.table({"layer_name": names.dictionary_encode(), "weights": column(bell(64))})
        if names.type == pa.string():
            assert len(ArrowQuantV2().quantize_arrow(table, 4)) == 1
            continue
        with pytest.raises(InputTypeError, match=r"'layer_name' is dictionary.*expected string"):
            ArrowQuantV2().quantize_arrow(table, 4)
