"""Sinks: rows of any table, in any order, become the same file; what does not make layers is refused by name."""

import ctypes

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from support import ggml
from support.model_files import names_in

import aq2_pipeline
from aq2_pipeline import FormatError, InputTypeError, InputValueError, SchemeError, scan_gguf, scan_safetensors
from aq2_pipeline.io.gguf.layout import header_of
from aq2_pipeline.io.gguf.sink import sink_gguf
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.parquet import writing as parquet
from aq2_pipeline.io.parquet.sink import sink_parquet
from aq2_pipeline.io.parquet.source import scan_parquet
from aq2_pipeline.io.safetensors.sink import sink_safetensors
from aq2_pipeline.io.writing.sinks import MANIFEST, check_target

RNG = np.random.default_rng(21)
SINKS = {"parquet": sink_parquet, "safetensors": sink_safetensors, "gguf": sink_gguf}
WEIGHTS = {
    "a.weight": RNG.normal(size=(24, 96)).astype(np.float32),
    "b.conv": RNG.normal(size=(8, 4, 2, 32)).astype(np.float32),
    "c.bias": RNG.normal(size=4 * 96).astype(np.float32),
}


def rows_in(n_parts, scheme="q8_0"):
    """Return a layer table of three layers, each in so many chunks, and a tensor of integers."""
    rows = []
    for name, weights in WEIGHTS.items():
        step = -(-len(weights) // n_parts)
        step = -(-step // 96) * 96 if weights.ndim == 1 else step
        for k, first in enumerate(range(0, len(weights), step)):
            part = weights[first : first + step]
            codes = aq2_pipeline.quantize([part], scheme)
            cut = n_parts > 1
            rows.append(
                pa.table(
                    {
                        "layer_name": [name],
                        "shape": pa.array([part.shape], pa.list_(pa.int64())),
                        "dtype": ["F32"],
                        "chunk": pa.array([k if cut else None], pa.int32()),
                        "start": pa.array([first * weights[0].size if cut else None], pa.int64()),
                        "tensor_shape": pa.array([weights.shape if cut else None], pa.list_(pa.int64())),
                        "quantized": codes,
                        "raw": pa.nulls(1, pa.large_binary()),
                    }
                )
            )
    ids = {"layer_name": ["ids"], "shape": pa.array([[3]], pa.list_(pa.int64())), "dtype": ["I32"]}
    ids |= {"raw": pa.array([np.arange(3, dtype=np.int32).tobytes()], pa.large_binary())}
    rows.append(pa.concat_tables([rows[0].slice(0, 0), pa.table(ids)], promote_options="default"))
    return pa.concat_tables(rows)


def read_back(path):
    """Return name -> (shape, dtype of other tensors than weights, decoded weights or bytes) of a file."""
    opened = open_source(path)
    found = {}
    for form in ("weights", "raw"):
        kept = [p for p in opened.parts() if opened.holds_weights(p.tensor) == (form == "weights")]
        for table in opened.batches(kept, form, chunked=True):
            for row in table.to_pylist():
                found.setdefault(row["layer_name"], []).append((row["start"] or 0, row["weights"]))
    shapes = {tensor.name: tensor.shape for tensor in opened.tensors}
    joined = {name: sorted(parts, key=lambda part: part[0]) for name, parts in found.items()}
    return {name: (shapes[name], [x for _, values in parts for x in values]) for name, parts in joined.items()}


TABLES = {
    "LazyFrame": lambda table: pl.from_arrow(table).lazy(),
    "DataFrame": pl.from_arrow,
    "Table": lambda table: table,
    "RecordBatch": lambda table: table.combine_chunks().to_batches()[0],
    "reader": lambda table: table.to_reader(max_chunksize=2),
    "relation": duckdb.from_arrow,
}


@pytest.mark.parametrize("kind", SINKS)
@pytest.mark.parametrize("given", TABLES)
def test_every_table_gives_the_same_file(tmp_path, kind, given):
    """Polars, Arrow and DuckDB tables of the same rows become the same bytes, whole and in chunks."""
    for n_parts in (1, 3):
        table = rows_in(n_parts)
        SINKS[kind](table, tmp_path / "expected")
        SINKS[kind](TABLES[given](table), tmp_path / "found")
        assert (tmp_path / "found").read_bytes() == (tmp_path / "expected").read_bytes()
    assert names_in(tmp_path) == ["expected", "found"]


@pytest.mark.parametrize("kind", SINKS)
def test_chunks_in_any_order_are_their_layers(tmp_path, kind):
    """Chunks reversed and interleaved give what whole layers give: in GGUF and safetensors every byte of a tensor."""
    SINKS[kind](rows_in(1), tmp_path / "whole")
    table = rows_in(4)
    for k, order in enumerate([list(range(len(table))), list(range(len(table)))[::-1], RNG.permutation(len(table))]):
        SINKS[kind](table.take(order), tmp_path / "cut")
        assert read_back(tmp_path / "cut") == read_back(tmp_path / "whole")
        if k == 0 and kind != "parquet":
            assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert read_back(tmp_path / "whole")["ids"] == ((3,), list(np.arange(3, dtype=np.int32).tobytes()))


def changed(table, row, **columns):
    """Return a table with other values in one row."""
    for name, value in columns.items():
        values = table[name].to_pylist()
        values[row] = value
        table = table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))
    return table


CUT = rows_in(4).slice(0, 4)  # of a.weight
FAULTS = {
    "first missing": (CUT[1:], "missing"),
    "middle missing": (CUT.take([0, 1, 3]), "missing"),
    "last missing": (CUT[:3], "missing"),
    "twice": (pa.concat_tables([CUT, CUT[1:2]]), "there twice|is in two chunks"),
    "overlap": (changed(CUT, 1, start=96), "there twice|is in two chunks"),
    "beyond": (changed(CUT, 3, start=24 * 96), "missing|of a tensor of"),
    "two shapes": (changed(CUT, 2, tensor_shape=[25, 96]), "its rows say|tensor_shape"),
    "whole and cut": (pa.concat_tables([rows_in(1)[:1], CUT]), "there twice|whole and in chunks"),
    "whole twice": (pa.concat_tables([rows_in(1)[:1]] * 2), "there twice"),
    "no shape": (changed(CUT, 0, shape=None), "the shape is None"),
    "another shape": (changed(CUT, 0, shape=[5, 96]), "has 480 elements, the row 576 codes"),
    "negative start": (changed(CUT, 0, start=-96), "bytes -|before the layer"),
}


@pytest.mark.parametrize("kind", SINKS)
@pytest.mark.parametrize("fault", FAULTS)
def test_rows_that_make_no_layer_are_refused(tmp_path, kind, fault):
    """Chunks missing, doubled or contradicting are a FormatError with the layer's name; the old file stays."""
    table, match = FAULTS[fault]
    (tmp_path / "m").write_bytes(b"old")
    with pytest.raises(FormatError, match=match) as caught:
        SINKS[kind](table, tmp_path / "m")
    assert caught.value.layer == "a.weight"
    assert (tmp_path / "m").read_bytes() == b"old"
    assert names_in(tmp_path) == ["m"]


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_chunks_of_two_schemes_are_refused(tmp_path, kind):
    """Chunks of a layer in schemes that a format stores differently name it; decoded they are the same tensor."""
    table = pa.concat_tables([CUT[:2], rows_in(4, "q4_0")[2:4]])
    if kind == "safetensors":
        sink_safetensors(table, tmp_path / "m")
        return
    with pytest.raises(FormatError, match=r"its rows say Q4_0 \[24, 96\], and Q8_0") as caught:
        SINKS[kind](table, tmp_path / "m")
    assert caught.value.layer == "a.weight"


NO_TABLES = {
    "None": None,
    "a dict": {"layer_name": ["a"]},
    "a series": pl.Series([1, 2]),
    "a column": pa.chunked_array([[1.0]]),
    "a frame of other columns": pl.DataFrame({"a": [1]}),
    "no codes": pl.DataFrame({"layer_name": ["a"], "shape": [[1]]}),
    "names of numbers": pl.DataFrame({"layer_name": [1], "shape": [[1]], "weights": [[1.0]]}),
    "a null name": pl.DataFrame({"layer_name": [None], "shape": [[1]], "weights": [[1.0]]}),
}


@pytest.mark.parametrize("kind", SINKS)
@pytest.mark.parametrize("given", NO_TABLES)
def test_other_things_are_no_tables(tmp_path, kind, given):
    """What is no layer table is an InputTypeError that names the function, and no file is made."""
    with pytest.raises(InputTypeError, match=f"sink_{kind}"):
        SINKS[kind](NO_TABLES[given], tmp_path / "m")
    assert names_in(tmp_path) == []


def test_errors_of_a_lazy_frame_reach_the_caller(tmp_path):
    """What goes wrong inside a lazy query is raised, and its rows so far are no file."""
    lazy = pl.from_arrow(rows_in(1)).lazy().with_columns(pl.col("layer_name").str.to_integer())
    for sink in SINKS.values():
        with pytest.raises(pl.exceptions.PolarsError):
            sink(lazy, tmp_path / "m")
    bad = pl.LazyFrame({"layer_name": ["w"], "shape": [[1, 2]], "dtype": ["F32"], "weights": [[1.0, float("nan")]]})
    bad = bad.with_columns(quantized=pl.col("weights").aq2.quantize("int4_g32"))
    for sink in SINKS.values():
        with pytest.raises(InputValueError, match="not finite"):
            sink(bad, tmp_path / "m")
    assert names_in(tmp_path) == []


def test_progress_and_no_rows(tmp_path):
    """Progress is told every row's layer and bytes; a table without rows is a file without tensors."""
    for kind, sink in SINKS.items():
        told = []
        sink(rows_in(2), tmp_path / kind, progress=lambda name, n, told=told: told.append((name, n)))
        assert [name for name, _ in told] == rows_in(2)["layer_name"].to_pylist()
        assert all(n > 0 for _, n in told)
        sink(rows_in(2)[:0], tmp_path / kind)
        assert open_source(tmp_path / kind).tensors == ()


# --- safetensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "kind"), [("F32", np.float32), ("F16", np.float16), ("BF16", None)])
def test_weights_are_rounded_to_the_dtype(tmp_path, dtype, kind):
    """`dtype=` rounds decoded and given weights half to even; what does not fit is an error with its place."""
    table = pl.DataFrame(
        {
            "layer_name": ["w"],
            "shape": [[3, 32]],
            "dtype": ["F32"],
            "weights": [WEIGHTS["a.weight"].ravel()[:96].tolist()],
        }
    )
    sink_safetensors(table, tmp_path / "m", dtype=dtype, metadata={"a": "ü"})
    raw = scan_safetensors(tmp_path / "m", raw=True).collect().row(0, named=True)
    values = WEIGHTS["a.weight"].ravel()[:96]
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16) if kind is None else values.astype(kind)
    assert (raw["dtype"], raw["shape"], raw["weights"]) == (dtype, [3, 32], rounded.tobytes())
    with safe_open(tmp_path / "m", "np") as file:
        assert file.metadata() == {"a": "ü"}
    if dtype == "F16":
        bad = table.with_columns(weights=pl.Series([[1.0] * 95 + [1e6]], dtype=pl.List(pl.Float32)))
        with pytest.raises(InputValueError, match="1000000") as caught:
            sink_safetensors(bad, tmp_path / "m", dtype=dtype)
        assert (caught.value.layer, caught.value.position) == ("w", 95)
    with pytest.raises(InputValueError, match="'F64' is not written"):
        sink_safetensors(table, tmp_path / "m", dtype="F64")


def test_names_that_cannot_be_written(tmp_path):
    """Names that safetensors keeps for itself, or that are too long, are a FormatError."""
    for name in ("__metadata__", "n" * 1025):
        table = pl.DataFrame({"layer_name": [name], "shape": [[1]], "dtype": ["F32"], "weights": [[1.0]]})
        with pytest.raises(FormatError, match="name cannot be written"):
            sink_safetensors(table, tmp_path / "m")
    assert names_in(tmp_path) == []


# --- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", sorted(ggml.FORMATS))
def test_ggml_decodes_what_is_written(tmp_path, scheme):
    """The C code of ggml decodes the blocks of a written file to the weights that we decode."""
    weights = RNG.normal(size=(4, 256)).astype(np.float32)
    frame = pl.DataFrame({"layer_name": ["w"], "shape": [[4, 256]], "dtype": ["F32"]})
    codes = aq2_pipeline.quantize([weights], scheme)
    sink_gguf(frame.with_columns(quantized=pl.Series(codes)), tmp_path / "m.gguf")
    [tensor] = open_source(tmp_path / "m.gguf").tensors
    blocks = np.fromfile(tmp_path / "m.gguf", np.uint8)[tensor.begin : tensor.end]
    ours = aq2_pipeline.dequantize(codes)[0].values.to_numpy()
    np.testing.assert_array_equal(ggml.dequantize(scheme, blocks, weights.size), ours)


class InitParams(ctypes.Structure):
    """`struct gguf_init_params` of `ggml/include/gguf.h`."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def test_ggml_opens_what_is_written(tmp_path):
    """The reader of ggml opens a written file, and finds every tensor with its name, type and bytes."""
    sink_gguf(rows_in(3), tmp_path / "m.gguf")
    library = ggml.library()
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
    context = library.gguf_init_from_file(str(tmp_path / "m.gguf").encode(), InitParams(no_alloc=True))
    assert context
    for name, kind in (("gguf_get_n_tensors", ctypes.c_int64), ("gguf_get_tensor_name", ctypes.c_char_p)):
        getattr(library, name).restype = kind
    library.gguf_get_tensor_size.restype = ctypes.c_size_t
    n = library.gguf_get_n_tensors(ctypes.c_void_p(context))
    of = [(ctypes.c_void_p(context), ctypes.c_int64(k)) for k in range(n)]
    found = {library.gguf_get_tensor_name(*one).decode(): library.gguf_get_tensor_size(*one) for one in of}
    library.gguf_free(ctypes.c_void_p(context))
    assert found == {tensor.name: tensor.n_bytes for tensor in open_source(tmp_path / "m.gguf").tensors}


def test_gguf_through_a_table_is_byte_identical(tmp_path):
    """A GGUF file through `scan_gguf` and `sink_gguf` keeps every tensor's bytes, and the metadata of the first."""
    tensors = [("q", (2, 256), "Q4_K", 288), ("f", (3,), "F32", 12), ("h", (2, 2), "BF16", 8)]
    keys = {"general.architecture": "llama", "general.alignment": 64, "tokenizer.list": ["a", "ü"], "x": 1.5}
    layout = header_of(tensors, keys)
    content = bytearray(layout.header + bytes(layout.size - len(layout.header)))
    for (_, _, dtype, size), offset in zip(tensors, layout.offsets, strict=True):
        content[offset : offset + size] = (
            bytes(size) if dtype == "F32" else RNG.integers(0, 60, size, np.uint8).tobytes()
        )
    (tmp_path / "a.gguf").write_bytes(content)
    sink_gguf(scan_gguf(tmp_path / "a.gguf"), tmp_path / "b.gguf", metadata_from=tmp_path / "a.gguf")
    one, two = (open_source(tmp_path / f"{name}.gguf") for name in "ab")
    data = [path.read_bytes() for path in (tmp_path / "a.gguf", tmp_path / "b.gguf")]
    for a, b in zip(one.tensors, two.tensors, strict=True):
        assert a[:3] == b[:3]
        assert data[0][a.begin : a.end] == data[1][b.begin : b.end]
    assert {k: v for k, v in dict(two.metadata).items() if k != "general.file_type"} == keys


def test_gguf_refuses_what_it_does_not_have(tmp_path):
    """Schemes, dtypes, names and shapes that GGUF does not have are named, with what it takes; the old file stays."""
    (tmp_path / "m").write_bytes(b"old")
    with pytest.raises(SchemeError, match=r"GGUF has no int4_g32.*it takes bf16, f16, f32, iq4_nl, iq4_xs") as caught:
        sink_gguf(rows_in(1, "int4_g32"), tmp_path / "m")
    assert caught.value.layer == "a.weight"
    frame = {"layer_name": "w", "shape": [2], "dtype": "F32", "weights": [1.0, 2.0]}
    for other, match in (
        ({"layer_name": "n" * 65}, "65 bytes, ggml takes"),
        ({"shape": [1, 1, 1, 1, 2]}, "at most 4 axes"),
        ({"shape": [0, 2], "weights": []}, "without a 0"),
    ):
        row = {name: [value] for name, value in (frame | other).items()}
        with pytest.raises(SchemeError, match=match):
            sink_gguf(pl.DataFrame(row, schema_overrides={"weights": pl.List(pl.Float32)}), tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == b"old"
    assert names_in(tmp_path) == ["m"]


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_row_groups_are_bounded_whatever_comes(tmp_path, monkeypatch):
    """Rows of one table or of many become row groups of bounded weights, and read back as they were."""
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 4000)
    table = rows_in(4)
    for given in (table, table.to_reader(max_chunksize=1), table.to_reader(max_chunksize=5)):
        sink_parquet(given, tmp_path / "q")
        with pq.ParquetFile(tmp_path / "q") as file:
            groups = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
        lengths = [row["length"] if row else 3 for row in table["quantized"].to_pylist()]
        at = 0
        for n in groups:
            assert n == 1 or 4 * sum(lengths[at : at + n]) <= 4000
            at += n
        assert at == len(lengths)
        assert len(groups) > 3
        assert (
            scan_parquet(tmp_path / "q").collect()["quantized"].to_list() == pl.from_arrow(table)["quantized"].to_list()
        )


def test_floats_without_codes_are_stored_as_float32(tmp_path):
    """Weights in a table that has no codes for them are kept as F32 bytes, those of Binary as they came."""
    frame = pl.DataFrame({"layer_name": ["w"], "shape": [[2]], "dtype": ["F16"], "weights": [[1.0, 2.0]]})
    sink_parquet(frame, tmp_path / "q", metadata={"mine": "1"})
    row = scan_parquet(tmp_path / "q").collect().row(0, named=True)
    assert (row["dtype"], row["raw"], row["quantized"]) == ("F32", np.array([1, 2], np.float32).tobytes(), None)
    assert pq.read_schema(tmp_path / "q").metadata[b"mine"] == b"1"
    raw = np.array([1, 2], np.float16).tobytes()
    sink_parquet(frame.with_columns(weights=pl.Series([raw])), tmp_path / "q")
    row = scan_parquet(tmp_path / "q").collect().row(0, named=True)
    assert (row["dtype"], row["raw"]) == ("F16", raw)


def test_many_small_layers_take_little_each(tmp_path):
    """The time of a row does not grow with the rows that wait for their row group."""
    n = 3000
    codes = aq2_pipeline.quantize([np.ones((2, 32), np.float32)], "int8_g32")
    table = pa.table(
        {
            "layer_name": [f"layer.{k}" for k in range(n)],
            "shape": pa.array([[2, 32]] * n, pa.list_(pa.int64())),
            "dtype": ["F32"] * n,
            "quantized": pa.chunked_array([codes] * n).combine_chunks(),
        }
    )
    calls = []
    lengths = parquet._lengths
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_lengths", lambda one: calls.append(len(one)) or lengths(one))
        sink_parquet(table, tmp_path / "q")
    assert sum(calls) == n
    assert scan_parquet(tmp_path / "q").select(pl.len()).collect().item() == n


# --- targets ---------------------------------------------------------------------------------------------------------


def test_folder_targets_hold_nothing_of_others(tmp_path):
    """A folder may be replaced if it is empty, or if its manifest names all that is in it."""
    folder = tmp_path / "out"
    check_target(folder, folder=True)
    folder.mkdir()
    check_target(folder, folder=True)
    (folder / "model.safetensors").touch()
    with pytest.raises(FormatError, match=r"did not write: 'model\.safetensors'"):
        check_target(folder, folder=True)
    (folder / MANIFEST).write_text('{"files": {"model.safetensors": 1}}')
    check_target(folder, folder=True)
    (folder / "mine").mkdir()
    (folder / "mine" / "notes").touch()
    with pytest.raises(FormatError, match="mine/notes"):
        check_target(folder, folder=True)
    for text in ("[]", "{", '{"files": 3}', "\xff"):
        (folder / MANIFEST).write_bytes(text.encode("latin1"))
        with pytest.raises(FormatError, match="did not write"):
            check_target(folder, folder=True)
    with pytest.raises(OSError, match="no regular file"):
        check_target(folder, folder=False)
    with pytest.raises(OSError, match="no folder"):
        check_target(folder / MANIFEST, folder=True)
