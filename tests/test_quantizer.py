"""`ArrowQuantV2`: the guide's three interfaces, and what they promise."""

from __future__ import annotations

import warnings

import duckdb
import ml_dtypes
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from support.engines import flat
from support.samples import bell, column, shapes

import aq2_pipeline
from aq2_pipeline import Aq2Error, ArrowQuantV2, InputTypeError, InputValueError, SchemeError, policy_scheme

MODES = ("diffusion", "time_aware", "base")
LAYERS = {
    "z.attn.to_q.weight": bell(96 * 320).reshape(96, 320),
    "a.norm.weight": bell(320, 2),
    "conv_in.weight": bell(64 * 4 * 9, 3).reshape(64, 4, 3, 3),
    "m.mlp.weight": bell(130 * 200, 4).reshape(130, 200),
    "scalar": np.array(0.5, np.float32),
    "empty": np.empty((0, 8), np.float32),
}


def layer_table(**more) -> pa.Table:
    """Return the layers as a table with shapes."""
    weights = column(*(w.ravel() for w in LAYERS.values()))
    columns = {"layer_name": list(LAYERS), "weights": weights, "shape": shapes(*(w.shape for w in LAYERS.values()))}
    return pa.table(columns | more)


def expected_rows(mode: str, bits: int, *, shaped: bool = True) -> pa.StructArray:
    """Return what the functions give: quantize(w, policy_scheme(name, shape, bits, mode), shape)."""
    rows = []
    for name, w in LAYERS.items():
        shape = w.shape if shaped else None
        given = shapes(shape) if shaped else None
        rows.append(aq2_pipeline.quantize(column(w.ravel()), policy_scheme(name, shape, bits, mode), given))
    return pa.concat_arrays(rows)


def assert_layers(found: dict, expected: pa.StructArray) -> None:
    """Compare the wrapper's dict with quantized rows."""
    assert list(found) == list(LAYERS)
    for (name, layer), row in zip(found.items(), expected.to_pylist(), strict=True):
        assert set(layer) == {"quantized_data", "scales", "zero_points", "shape", "bit_width", "scheme", "row_length"}
        assert isinstance(layer["quantized_data"], bytes)
        assert layer["quantized_data"] == row["quantized_data"], name
        assert layer["scales"].dtype == layer["zero_points"].dtype == np.float32
        assert layer["scales"].tolist() == row["scales"]
        assert layer["zero_points"].tolist() == row["zero_points"]
        assert (layer["scheme"], layer["row_length"]) == (row["scheme"], row["row_length"])
        assert layer["shape"] == LAYERS[name].shape
        assert layer["bit_width"] == {"f32": 32, "f16": 16}.get(row["scheme"]) or int(row["scheme"][3])


# --- The guide's examples, with only the import changed --------------------------------------------------------------


def test_the_guides_arrow_example():
    """Lists of Python floats, a shape a layer, 500,000 bytes for a million weights at four bits."""
    table = pa.Table.from_pydict(
        {
            "layer_name": ["layer.0.weight", "layer.1.weight"],
            "weights": [bell(1_000_000, k).tolist() for k in (1, 2)],
            "shape": [[1_000_000], [1_000_000]],
        }
    )
    quantizer = ArrowQuantV2(mode="diffusion")
    result = quantizer.quantize_arrow(table, bit_width=4).to_pydict()
    for i in range(2):
        assert result["layer_name"][i] == f"layer.{i}.weight"
        assert len(result["quantized_data"][i]) == 500_000
        assert result["bit_width"][i] == 4
        assert len(result["scales"][i]) == 1_000_000 / 64


def test_the_guides_dict_examples():
    """`quantize_batch`, with progress, and the legacy call on nested lists give the same layers."""
    weights = {"layer.0.weight": bell(10_000).reshape(100, 100), "layer.1.weight": bell(10_000, 2).reshape(100, 100)}
    quantizer = ArrowQuantV2(mode="diffusion")
    result = quantizer.quantize_batch(weights, bit_width=4)
    for name, r in result.items():
        assert len(r["quantized_data"]) > 0
        assert len(r["scales"]) > 0
        assert name in weights
    calls = []
    told = quantizer.quantize_batch_with_progress(
        weights, bit_width=4, progress_callback=lambda layer_name, fraction: calls.append((layer_name, fraction))
    )
    assert calls == [("layer.0.weight", 0.5), ("layer.1.weight", 1.0)]
    with pytest.warns(DeprecationWarning, match="quantize_batch"):
        legacy = quantizer.quantize({"layer.0.weight": weights["layer.0.weight"].tolist()}, bit_width=4)
    for found in (told, legacy):
        for name, layer in found.items():
            assert layer["quantized_data"] == result[name]["quantized_data"]
            np.testing.assert_array_equal(layer["scales"], result[name]["scales"])


# --- The wrapper is the functions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_method_is_quantize_with_the_policys_scheme(mode, bits):
    """Arrow, batch, stream, dict and legacy give the bytes of the functions."""
    quantizer, table = ArrowQuantV2(mode=mode), layer_table()
    expected = expected_rows(mode, bits)
    assert flat(quantizer.quantize_arrow(table, bits)).equals(expected)
    batch = table.combine_chunks().to_batches()[0]
    assert flat(pa.Table.from_batches([quantizer.quantize_arrow_batch(batch, bits)])).equals(expected)
    assert flat(quantizer.quantize_stream(table.to_reader(), bits).read_all()).equals(expected)
    assert_layers(quantizer.quantize_batch(LAYERS, bits), expected)
    assert_layers(quantizer.quantize_batch_with_progress(LAYERS, bits), expected)


def test_without_a_shape_no_rank_rule_applies():
    """A table without shapes is quantized by names alone, each row one matrix row."""
    found = ArrowQuantV2().quantize_arrow(layer_table().drop_columns("shape"), 4)
    assert found["shape"].null_count == len(LAYERS)
    assert flat(found).equals(expected_rows("diffusion", 4, shaped=False))


@pytest.mark.parametrize("scheme", [3, "int5_channel", "int4_g64_asym", "f16"])
@pytest.mark.parametrize("threads", [1, 8])
def test_a_scheme_and_threads_override(scheme, threads):
    """`scheme=` takes the policy's place everywhere, and `threads=` changes nothing."""
    quantizer, table = ArrowQuantV2(), layer_table()
    expected = aq2_pipeline.quantize(table["weights"].combine_chunks(), scheme, table["shape"].combine_chunks())
    assert flat(quantizer.quantize_arrow(table, scheme=scheme, threads=threads)).equals(expected)
    assert flat(quantizer.quantize_stream(table, scheme=scheme, threads=threads).read_all()).equals(expected)
    assert_layers(quantizer.quantize_batch(LAYERS, scheme=scheme, threads=threads), expected)
    assert_layers(ArrowQuantV2(threads=threads).quantize_batch(LAYERS, scheme=scheme), expected)


def test_a_column_of_schemes():
    """A scheme a row, also over many chunks."""
    table = layer_table()
    wanted = pa.array(["int4_g32", "f32", "int8_channel", "int2_g16_asym", "f16", "bf16"])
    expected = aq2_pipeline.quantize(table["weights"].combine_chunks(), wanted, table["shape"].combine_chunks())
    chunked = pa.concat_tables([table[:1], table[1:4], table[4:4], table[4:]])
    for column_of in (wanted, pa.chunked_array([wanted[:4], wanted[4:]])):
        assert flat(ArrowQuantV2().quantize_arrow(chunked, scheme=column_of)).equals(expected)


def test_legacy_lists_are_really_quantized():
    """Nested lists of floats and integers keep their shapes; ragged ones are told."""
    with pytest.warns(DeprecationWarning, match="quantize_batch"):
        found = ArrowQuantV2().quantize({"a": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "b": [1, 2, 3]}, scheme="int8_g32")
    assert found["a"]["shape"] == (3, 2)
    assert len(found["a"]["quantized_data"]) == 6
    assert found["b"]["quantized_data"] == bytes([170, 213, 255])
    with (
        pytest.warns(DeprecationWarning, match="lists"),
        pytest.raises(InputTypeError, match=r"layer 'r'.*equally long"),
    ):
        ArrowQuantV2().quantize({"r": [[1.0], [2.0, 3.0]]})


# --- There and back --------------------------------------------------------------------------------------------------


def test_dequantize_both_ways():
    """`dequantize_arrow` and `dequantize_batch` give the decoded weights, with names and shapes."""
    quantizer = ArrowQuantV2()
    expected = aq2_pipeline.dequantize(expected_rows("diffusion", 4))
    table = quantizer.dequantize_arrow(quantizer.quantize_arrow(layer_table(), 4))
    assert table["layer_name"].to_pylist() == list(LAYERS)
    assert table["weights"].combine_chunks().equals(expected)
    assert table["shape"].to_pylist() == [list(w.shape) for w in LAYERS.values()]
    arrays = quantizer.dequantize_batch(quantizer.quantize_batch(LAYERS, 4))
    assert list(arrays) == list(LAYERS)
    for (name, array), row in zip(arrays.items(), expected, strict=True):
        assert array.shape == LAYERS[name].shape
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array.ravel(), row.values.to_numpy())


def test_dequantize_of_a_quantized_column_and_of_nothing():
    """A layer table with a column `quantized` decodes too; a table without rows or batches gives one without rows."""
    rows = expected_rows("base", 4)
    quantizer = ArrowQuantV2()
    table = pa.table({"layer_name": list(LAYERS), "quantized": rows, "note": list(range(len(LAYERS)))})
    found = quantizer.dequantize_arrow(table)
    assert found["weights"].combine_chunks().equals(aq2_pipeline.dequantize(rows))
    assert found["note"].to_pylist() == list(range(len(LAYERS)))
    for nothing in (table[:0], table.schema.empty_table(), quantizer.quantize_arrow(layer_table()[:0], 4)):
        empty = quantizer.dequantize_arrow(nothing)
        assert len(empty) == 0
        assert empty.schema.field("weights").type == aq2_pipeline.layout.FLOATS


def test_dequantize_names_the_layer():
    """A row that contradicts itself is told with its layer, in tables and dicts."""
    quantizer = ArrowQuantV2()
    layers = quantizer.quantize_batch(LAYERS, scheme=4)
    layers["m.mlp.weight"]["quantized_data"] = b"short"
    with pytest.raises(InputValueError, match=r"layer 'm\.mlp\.weight'"):
        quantizer.dequantize_batch(layers)
    table = quantizer.quantize_arrow(layer_table(), scheme=4)
    data = table["quantized_data"].to_pylist()
    data[3] = b"short"
    broken = table.set_column(1, "quantized_data", pa.array(data, pa.large_binary()))
    with pytest.raises(InputValueError, match=r"layer 'm\.mlp\.weight', row 3"):
        quantizer.dequantize_arrow(pa.concat_tables([broken[:2], broken[2:]]))


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_results_survive_arrow_ipc(kind, tmp_path):
    """Results write and read as Arrow files and streams, metadata included."""
    result = ArrowQuantV2().quantize_arrow(layer_table().replace_schema_metadata({"model": "tiny"}), 4)
    path = str(tmp_path / "q.arrow")
    writer = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with pa.OSFile(path, "wb") as sink, writer(sink, result.schema) as out:
        out.write_table(result)
    with pa.memory_map(path) as source:
        read = (pa.ipc.open_file(source) if kind == "file" else pa.ipc.open_stream(source)).read_all()
        assert read.equals(result, check_metadata=True)
        assert ArrowQuantV2().dequantize_arrow(read).equals(ArrowQuantV2().dequantize_arrow(result))


# --- What is taken ---------------------------------------------------------------------------------------------------


def test_any_kind_of_table():
    """Polars frames, DuckDB relations, record batches, readers and many chunks give the same rows."""
    table = layer_table()
    expected = expected_rows("diffusion", 4)
    con = duckdb.connect()
    con.register("source", table)
    chunked = pa.concat_tables([table[:0], table[:2], table[2:3], table[3:3], table[3:]])
    sources = [pl.from_arrow(table), chunked, table.to_reader(), table.combine_chunks().to_batches()[0]]
    for source in [*sources, con.sql("SELECT * FROM source"), pl.from_arrow(chunked, rechunk=False)]:
        assert flat(ArrowQuantV2().quantize_arrow(source, 4)).equals(expected)
    con.close()


def test_shapes_of_every_spelling():
    """int32, a level too deep, fixed-size lists, nested fixed-size weights and null shapes are shapes."""
    w = bell(300 * 100).reshape(300, 100)
    expected = aq2_pipeline.quantize(column(w.ravel()), "int4_g64", shapes((300, 100)))
    spelled = [
        pa.array([[300, 100]], pa.list_(pa.int32())),
        pa.array([[300, 100]], pa.list_(pa.uint16(), 2)),
        pa.array([[(300, 100)]]),
        pa.array([[[300, 100]]], pa.large_list(pa.large_list(pa.int64()))),
    ]
    for shape in spelled:
        table = pa.table({"layer_name": ["a"], "weights": column(w.ravel()), "shape": shape})
        assert flat(ArrowQuantV2().quantize_arrow(table, 4)).equals(expected), shape.type
    nested = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(pa.array(w.ravel()), 100), 300)
    assert flat(ArrowQuantV2().quantize_arrow(pa.table({"layer_name": ["a"], "weights": nested}), 4)).equals(expected)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(w.ravel()), 300 * 100)
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [300, 100]), storage)
    assert flat(ArrowQuantV2().quantize_arrow(pa.table({"layer_name": ["a"], "weights": tensors}), 4)).equals(expected)


def test_extra_columns_and_metadata_pass_through():
    """Other columns keep their place after ours, their fields' metadata, and the table its own."""
    notes = pa.array([f"note {k}" for k in range(len(LAYERS))])
    table = layer_table(note=notes, dtype=notes).replace_schema_metadata({"model": "tiny"})
    field = table.schema.field("note").with_metadata({"unit": "none"})
    table = table.cast(table.schema.set(table.schema.get_field_index("note"), field))
    found = ArrowQuantV2().quantize_arrow(table, 4)
    ours = ["layer_name", "quantized_data", "scales", "zero_points", "shape", "bit_width", "scheme", "row_length"]
    assert found.column_names == [*ours, "note", "dtype"]
    assert found["note"].to_pylist() == notes.to_pylist()
    assert found.schema.metadata == {b"model": b"tiny"}
    assert found.schema.field("note").metadata == {b"unit": b"none"}
    assert found.schema.field("bit_width").type == pa.uint8()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ">f4", ">f8"])
def test_arrays_of_every_float(dtype):
    """float16, float32, float64, bfloat16, big-endian, strided and transposed arrays are the weights that they hold."""
    w = bell(60 * 50).reshape(60, 50).astype(dtype)
    layers = {"plain": w, "strided": w[::2, ::-3], "transposed": w.T, "fortran": np.asfortranarray(w)}
    for name, layer in ArrowQuantV2().quantize_batch(layers, scheme="int4_g16").items():
        values = np.ascontiguousarray(layers[name]).astype(np.float32)
        expected = aq2_pipeline.quantize(column(values.ravel()), "int4_g16", shapes(values.shape))[0].as_py()
        assert layer["quantized_data"] == expected["quantized_data"], name
        assert layer["scales"].tolist() == expected["scales"]


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "", None, 4])
def test_unknown_modes(mode):
    """A mode that is none fails where the class is made."""
    with pytest.raises(SchemeError, match="mode"):
        ArrowQuantV2(mode=mode)


WRONG = [{"bit_width": 9}, {"bit_width": "4"}, {"scheme": "int4_g0"}, {"threads": 0}, {"threads": 1.5}]


@pytest.mark.parametrize("method", ["quantize_arrow", "quantize_arrow_batch", "quantize_stream", "quantize_batch"])
@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_arguments_fail_at_once(method, wrong):
    """A width, scheme or number of threads that cannot be fails before a layer is looked at."""
    source = {"bad": object()} if method == "quantize_batch" else layer_table()
    source = source.to_batches()[0] if method == "quantize_arrow_batch" else source
    with pytest.raises(Aq2Error, match=next(iter(wrong))):
        getattr(ArrowQuantV2(), method)(source, **wrong)


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (["layer_name"], "no column 'weights'"),
        (["weights"], "no column 'layer_name'"),
        (["layer_name", "Weights"], "no column 'weights'.*names are exact"),
        (["layer_name", "weights", "weights"], "2 columns 'weights'"),
        (["layer_name", "weights", "note", "note"], "2 columns 'note'"),
        (["layer_name", "weights", "scales"], "'scales' would be overwritten"),
        (["layer_name", "weights", "error"], "'error' would be overwritten"),
    ],
)
def test_wrong_columns(columns, text):
    """Missing, double, or colliding columns are told by name, by the method that was called."""
    arrays = [column([1.0]) if name.lower() == "weights" else pa.array(["a"]) for name in columns]
    table = pa.Table.from_arrays(arrays, columns)
    for method in ("quantize_arrow", "quantize_stream"):
        with pytest.raises(InputTypeError, match=f"ArrowQuantV2.{method}.*{text}"):
            getattr(ArrowQuantV2(), method)(table)


@pytest.mark.parametrize("table", [None, [1], {"a": np.ones(3)}, "table", np.ones(3)])
def test_what_is_no_table(table):
    """Something else where a table is wanted is an InputTypeError that says what is taken."""
    for method in ("quantize_arrow", "quantize_stream", "dequantize_arrow"):
        with pytest.raises(InputTypeError, match="__arrow_c_stream__"):
            getattr(ArrowQuantV2(), method)(table)


def test_what_is_no_dict_of_arrays():
    """Other mappings, names and tensors are refused with the layer's name."""
    with pytest.raises(InputTypeError, match="dict"):
        ArrowQuantV2().quantize_batch([np.ones(3)])
    with pytest.raises(InputTypeError, match="name 3"):
        ArrowQuantV2().quantize_batch({3: np.ones(3)})
    for bad in ([1.0, 2.0], None, "x", np.ones(3, int), np.ones(3, complex), np.array(["a"]), np.ones(3, bool)):
        with pytest.raises(InputTypeError, match=r"layer 'bad'.*Hint: "):
            ArrowQuantV2().quantize_batch({"bad": bad})


BAD = np.array([1.0, np.nan, 2.0], np.float32)


def test_errors_name_the_layer():
    """Tables tell layer, row over all batches and position; dicts the layer; both the method."""
    table = pa.table({"layer_name": ["a", "b", "c"], "weights": column([1], [2], BAD)})
    chunked = pa.concat_tables([table[:1], table[1:]])
    text = r"layer 'c', row 2, position 1: the value nan is not finite"
    for method in ("quantize_arrow", "quantize_arrow_batch"):
        source = table.to_batches()[0] if method.endswith("batch") else chunked
        with pytest.raises(InputValueError, match=rf"ArrowQuantV2\.{method}: {text}"):
            getattr(ArrowQuantV2(), method)(source)
    with pytest.raises(InputValueError, match=rf"ArrowQuantV2\.quantize_stream: {text}"):
        ArrowQuantV2().quantize_stream(chunked).read_all()
    with pytest.raises(
        InputValueError, match=r"ArrowQuantV2\.quantize_batch: layer 'c', position 1: the value nan"
    ) as caught:
        ArrowQuantV2().quantize_batch({"a": np.ones(3), "c": BAD})
    assert (caught.value.layer, caught.value.position) == ("c", 1)


# --- continue_on_error -----------------------------------------------------------------------------------------------

FAULTY = {
    "good": bell(64),
    "nan": BAD,
    "integers": np.ones(4, int),
    "none": None,
    "large": np.array([1e300]),
    "also good": bell(64, 2),
}


@pytest.mark.parametrize("method", ["quantize_batch", "quantize_batch_with_progress", "quantize"])
def test_dicts_keep_the_good_layers(method):
    """The good layers come back, the others' exceptions in `.errors`, with one warning that counts them."""
    layers = {name: w.tolist() if method == "quantize" and w is not None else w for name, w in FAULTY.items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = getattr(ArrowQuantV2(), method)(layers, 4, continue_on_error=True)
    bad = ["nan", "none", "large"] if method == "quantize" else ["nan", "integers", "none", "large"]
    assert list(found) == [name for name in layers if name not in bad]
    assert list(found.errors) == bad
    assert all(isinstance(error, Aq2Error) and error.layer == name for name, error in found.errors.items())
    counted = [str(one.message) for one in caught if one.category is RuntimeWarning]
    assert counted == [f"{len(bad)} of {len(layers)} layers failed"]
    assert all(one.filename == __file__ for one in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputValueError, match="layer 'nan'"):
            getattr(ArrowQuantV2(), method)(layers, 4)


@pytest.mark.parametrize("method", ["quantize_arrow", "quantize_arrow_batch", "quantize_stream"])
def test_tables_keep_every_row(method):
    """Failed rows are null with the reason in `error`; null weights are no failure; one warning counts."""
    weights = column(bell(64), BAD, None, [np.inf], bell(64, 2))
    given = shapes((8, 8), (3,), None, (1,), (9, 9))
    table = pa.table({"layer_name": list("abcde"), "weights": weights, "shape": given, "note": list(range(5))})
    source = table.to_batches()[0] if method.endswith("batch") else pa.concat_tables([table[:2], table[2:]])

    def run():
        found = getattr(ArrowQuantV2(), method)(source, 4, scheme="int4_g32", continue_on_error=True)
        return found.read_all() if method == "quantize_stream" else found

    with pytest.warns(RuntimeWarning, match="3 of 5 rows failed"):
        found = run()
    rows = found.to_pylist()
    assert found.schema.names[-1] == "error"
    assert [row["scheme"] for row in rows] == ["int4_g32", None, None, None, None]
    assert [row["note"] for row in rows] == list(range(5))
    texts = [row["error"] for row in rows]
    assert texts[0] is texts[2] is None
    assert f"ArrowQuantV2.{method}: layer 'b', row 1, position 1: the value nan" in texts[1]
    assert "layer 'd', row 3, position 0: the value inf" in texts[3]
    assert "layer 'e', row 4: the shape [9, 9] holds 81 weights, the row holds 64" in texts[4]
    for name in ("quantized_data", "scales", "zero_points", "bit_width", "row_length"):
        assert [row[name] is None for row in rows] == [False, True, True, True, True]
    back = ArrowQuantV2().dequantize_arrow(found)["weights"].to_pylist()
    assert [w is None for w in back] == [False, True, True, True, True]


def test_no_failure_no_warning():
    """Where all is well there is an empty `.errors`, an all-null column, and no warning."""
    assert ArrowQuantV2().quantize_batch(LAYERS, continue_on_error=True).errors == {}
    found = ArrowQuantV2().quantize_arrow(layer_table(), continue_on_error=True)
    assert found["error"].null_count == len(LAYERS)
    assert flat(found).equals(expected_rows("diffusion", 4))


# --- Progress --------------------------------------------------------------------------------------------------------


def test_progress_is_told_once_a_layer_in_the_callers_thread(monkeypatch):
    """Names in order, fractions rising to 1.0, in the caller's thread, however many rounds there are."""
    import threading  # noqa: PLC0415

    monkeypatch.setattr("aq2_pipeline.state_dicts.ROUND_SIZE", 30_000)
    calls = []

    def callback(layer_name, fraction):
        calls.append((layer_name, fraction, threading.current_thread()))

    found = ArrowQuantV2().quantize_batch_with_progress(LAYERS, 4, callback, threads=8)
    n = len(LAYERS)
    main = threading.current_thread()
    assert calls == [(name, k / n, main) for k, name in enumerate(LAYERS, 1)]
    assert calls[-1][1] == 1.0
    assert_layers(found, expected_rows("diffusion", 4))


def test_progress_that_raises_or_cancels():
    """Its exception reaches the caller unchanged; False cancels with the count; other falsy values do not."""

    class MyError(Exception):
        pass

    mine = MyError("mine")
    calls = []

    def raising(name, fraction):
        calls.append((name, fraction))
        raise mine

    with pytest.raises(MyError) as caught:
        ArrowQuantV2().quantize_batch_with_progress(LAYERS, 4, raising, continue_on_error=True)
    assert caught.value is mine
    assert len(calls) == 1
    with pytest.raises(Aq2Error, match=f"cancelled after 3 of {len(LAYERS)}"):
        ArrowQuantV2().quantize_batch_with_progress(LAYERS, 4, lambda _name, fraction: fraction < 0.5)
    for quiet in (None, 0, ""):
        assert len(ArrowQuantV2().quantize_batch_with_progress(LAYERS, 4, lambda *_, quiet=quiet: quiet)) == len(LAYERS)
    assert_layers(ArrowQuantV2().quantize_batch_with_progress(LAYERS, 4, None), expected_rows("diffusion", 4))


def test_progress_may_call_the_api_again():
    """A callback that quantizes does not deadlock, and changes nothing."""
    inner = []

    def callback(_name, _fraction):
        inner.append(ArrowQuantV2().quantize_batch(LAYERS, 4, threads=8))

    outer = ArrowQuantV2().quantize_batch_with_progress(LAYERS, 4, callback, threads=8)
    for found in (outer, *inner):
        assert_layers(found, expected_rows("diffusion", 4))


def test_failed_layers_make_progress_too():
    """With continue_on_error a failed layer is told as well, and the last fraction is 1.0."""
    calls = []
    with pytest.warns(RuntimeWarning, match="4 of 6 layers failed"):
        ArrowQuantV2().quantize_batch_with_progress(FAULTY, 4, lambda *call: calls.append(call), continue_on_error=True)
    assert [name for name, _ in calls] == list(FAULTY)
    assert calls[-1][1] == 1.0


# --- Streams ---------------------------------------------------------------------------------------------------------


def test_streams_take_one_batch_at_a_time():
    """A batch is read when its result is asked for, and the schema is known before."""
    table, read = layer_table(), []

    def batches():
        for batch in table.to_batches(max_chunksize=2):
            read.append(len(batch))
            yield batch

    reader = ArrowQuantV2().quantize_stream(pa.RecordBatchReader.from_batches(table.schema, batches()), 4)
    assert read == []
    assert reader.schema.names[:2] == ["layer_name", "quantized_data"]
    assert len(reader.read_next_batch()) == 2
    assert read == [2]
    reader.read_all()
    assert read == [2, 2, 2]


def test_rows_of_one_layer_in_chunks():
    """Chunks with `tensor_shape` take the whole layer's policy and give its bytes; `_tensor` refuses them."""
    w = bell(512 * 128).reshape(512, 128)
    pieces = [w[:200], w[200:201], w[201:]]
    table = pa.table(
        {
            "layer_name": ["a.mlp.weight"] * 3,
            "weights": column(*(piece.ravel() for piece in pieces)),
            "shape": shapes(*(piece.shape for piece in pieces)),
            "tensor_shape": shapes(*[(512, 128)] * 3),
        }
    )
    found = ArrowQuantV2().quantize_arrow(table, 4).to_pydict()
    whole = ArrowQuantV2().quantize_batch({"a.mlp.weight": w}, 4)["a.mlp.weight"]
    assert set(found["scheme"]) == {whole["scheme"]}
    assert b"".join(found["quantized_data"]) == whole["quantized_data"]
    assert sum(found["scales"], []) == whole["scales"].tolist()  # noqa: RUF017 - three lists
    with pytest.raises(SchemeError, match="chunk"):
        ArrowQuantV2().quantize_arrow(table, scheme="int4_tensor")


@pytest.mark.parametrize("method", ["quantize_batch", "quantize_arrow"])
def test_a_wrong_scheme_or_width_names_the_method(method):
    """An argument that is wrong for every layer is told with the method that was called; found by fuzzing."""
    weights = np.ones(32, np.float32)
    given = {"w": weights} if method == "quantize_batch" else pa.table({"layer_name": ["w"], "weights": [weights]})
    for wrong in ({"scheme": "int9_g32"}, {"bit_width": 9}):
        with pytest.raises(SchemeError, match=rf"^ArrowQuantV2\.{method}: ") as caught:
            getattr(ArrowQuantV2(), method)(given, **wrong)
        assert caught.value.function == f"ArrowQuantV2.{method}"
