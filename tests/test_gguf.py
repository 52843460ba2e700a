"""GGUF: crafted files that lie are refused, honest ones decode in any engine, headers are written as they were."""

import ctypes
import time

import duckdb
import numpy as np
import polars as pl
import pytest
from support import ggml
from support.gguf_files import handmade, info, refused

import aq2_pipeline
from aq2_pipeline import (
    FormatError,
    InputTypeError,
    InputValueError,
    SchemeError,
    gguf_metadata,
    register,
    scan_gguf,
)
from aq2_pipeline.io.convert import dequantize_file, quantize_file
from aq2_pipeline.io.gguf.header import read_header
from aq2_pipeline.io.gguf.layout import header_of
from aq2_pipeline.io.gguf.source import open_gguf
from aq2_pipeline.io.gguf.types import GGML_NAMES, GGML_TYPES, REMOVED_TYPES
from aq2_pipeline.io.gguf.values import KeyValue, Metadata, key_value
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.parquet.source import scan_parquet
from aq2_pipeline.io.paths import open_regular
from aq2_pipeline.io.recipes import Recipe
from aq2_pipeline.io.tables.frames import reader
from aq2_pipeline.io.tables.source import Source

RNG = np.random.default_rng(71)


# --- files that do not ---------------------------------------------------------------------------------------------

SCHEMES = ["q4_0", "q5_1", "q8_0", "q4_k", "q6_k", "iq4_nl", "mxfp4", "nvfp4", "tq2_0", "f32", "f16", "bf16"]


@pytest.fixture
def model(tmp_path):
    """Return the path of a file of several schemes, and its layers' rows as `quantize` made them."""
    rows, tensors, blobs = {}, [], []
    for scheme in SCHEMES:
        shape = (3, 512)
        values = RNG.normal(size=shape).astype(np.float32)
        [row] = aq2_pipeline.quantize([values], f"{scheme}").to_pylist()
        rows[f"{scheme}.weight"] = row
        tensors.append((f"{scheme}.weight", shape, scheme.upper(), len(row["quantized_data"])))
        blobs.append(row["quantized_data"])
    tensors += [("ids", (4,), "I32", 16), ("grid", (256,), "IQ2_XXS", 66), ("double", (2,), "F64", 16)]
    blobs += [np.arange(4, dtype=np.int32).tobytes(), bytes(range(66)), np.array([1.5, -2.0]).tobytes()]
    layout = header_of(tensors, {"general.architecture": "none", "split.count": 1})
    content = bytearray(layout.header + bytes(layout.size - len(layout.header)))
    for offset, blob in zip(layout.offsets, blobs, strict=True):
        content[offset : offset + len(blob)] = blob
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return path, rows


def test_rows_are_those_of_quantize(model):
    """A tensor's row is what `quantize` gave, under the scheme of its dtype; other dtypes are listed with null."""
    path, rows = model
    found = {row["layer_name"]: row for row in scan_gguf(path).collect().iter_rows(named=True)}
    assert list(found) == [*rows, "ids", "grid", "double"]
    assert {name: found[name]["quantized"] for name in rows} == rows
    assert [found[name]["dtype"] for name in ("q4_k.weight", "ids", "grid")] == ["Q4_K", "I32", "IQ2_XXS"]
    assert [found[name]["quantized"] for name in ("ids", "grid", "double")] == [None] * 3
    assert found["q4_k.weight"]["shape"] == [3, 512]
    raw = dict(scan_gguf(path, raw=True).select("layer_name", "weights").collect().iter_rows())
    assert raw["grid"] == bytes(range(66))
    assert all(raw[name] == row["quantized_data"] for name, row in rows.items())


def test_polars_and_duckdb_decode_a_file(model):
    """`aq2.dequantize` in Polars and `aq2_dequantize` in SQL give the weights that `dequantize` gives."""
    path, rows = model
    lazy = scan_gguf(path).select("layer_name", weights=pl.col("quantized").aq2.dequantize())
    polars = dict(lazy.collect().iter_rows())
    assert polars["ids"] is None
    layers = reader(open_gguf(path), "quantized")  # noqa: F841 - the query's
    with duckdb.connect() as con:
        register(con)
        sql = dict(con.execute("SELECT layer_name, aq2_dequantize(quantized) FROM layers").fetchall())
    assert sql == polars
    source = open_source(path)
    for table in source.batches(source.parts(), "weights"):
        weights = dict(zip(table["layer_name"].to_pylist(), table["weights"].to_pylist(), strict=True))
    assert weights.pop("double") == [1.5, -2.0]
    assert weights == {name: value for name, value in polars.items() if name != "double"}
    for scheme in ("q4_0", "q6_k"):
        theirs = ggml.dequantize(scheme, np.frombuffer(rows[f"{scheme}.weight"]["quantized_data"], np.uint8), 3 * 512)
        assert polars[f"{scheme}.weight"] == theirs.tolist()


@pytest.mark.parametrize("chunk_weights", [1, 512, 1000, 10**6])
def test_chunks_hold_the_bytes_of_the_whole(tmp_path, chunk_weights):
    """Chunk rows joined are the layer's bytes, and each decodes; a vector is cut between blocks."""
    tensors = [("m", (5, 64), "Q4_0", 180), ("v", (640,), "Q4_0", 360), ("f", (7,), "F32", 28)]
    layout = header_of(tensors)
    content = bytearray(layout.header + bytes(layout.size - len(layout.header)))
    for offset, (_, shape, dtype, n_bytes) in zip(layout.offsets, tensors, strict=True):
        values = RNG.normal(size=shape).astype(np.float32)
        [row] = aq2_pipeline.quantize([values], dtype.lower()).to_pylist()
        content[offset : offset + n_bytes] = row["quantized_data"]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    chunks = scan_gguf(path, chunk_weights=chunk_weights).collect()
    for row in scan_gguf(path).collect().iter_rows(named=True):
        parts = chunks.filter(layer_name=row["layer_name"])["quantized"]
        assert b"".join(part["quantized_data"] for part in parts) == row["quantized"]["quantized_data"]
        one = pl.Series([row["quantized"]], dtype=parts.dtype).aq2.dequantize().explode(empty_as_null=True)
        assert parts.aq2.dequantize().explode(empty_as_null=True).to_list() == one.to_list()


def test_only_what_is_asked_for_is_read(model, monkeypatch):
    """Listing reads no tensor, and a filter on names only those that pass."""
    path, _ = model
    names, read = [], Source.read

    def noted(self, opened, part, offset, target):
        names.append(part.tensor.name)
        read(self, opened, part, offset, target)

    monkeypatch.setattr(Source, "read", noted)
    lazy = scan_gguf(path)
    assert lazy.select("layer_name", "dtype").collect().height == len(SCHEMES) + 3
    assert names == []
    assert lazy.filter(pl.col("dtype") == "Q6_K").collect()["layer_name"].to_list() == ["q6_k.weight"]
    assert names == ["q6_k.weight"]


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_scale_that_is_not_finite_names_tensor_and_block(tmp_path, scale):
    """Case 78: decoding a block whose scale is NaN or infinite is a FormatError with the number of the block."""
    layout = header_of([("w", (2, 64), "Q8_0", 136)])
    blocks = np.zeros((4, 34), np.uint8)
    blocks[:, 2:] = 1
    blocks[3, :2] = np.array([scale], np.float16).view(np.uint8)
    path = tmp_path / "bad.gguf"
    path.write_bytes(layout.header + blocks.tobytes())
    source = open_source(path)
    with pytest.raises(FormatError, match=r"bad\.gguf.*block 3") as caught:
        list(source.batches(source.parts(), "weights"))
    assert caught.value.layer == "w"
    with pytest.raises(InputValueError, match="position 96"):
        scan_gguf(path).select(pl.col("quantized").aq2.dequantize()).collect()


def test_file_that_changes_after_the_scan_is_an_error(model):
    """Data that is cut off after the header was read is a FormatError."""
    path, _ = model
    lazy = scan_gguf(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 64)
    with pytest.raises(FormatError, match="changed since"):
        lazy.collect()


def test_order_is_that_of_the_data(tmp_path):
    """Rows come in the order of the file's data, holes and all, whatever that of the header."""
    infos = [info("late", [2], offset=96), info("early", [1])]
    data = bytes(96) + np.array([1, 2], np.float32).tobytes()
    path = handmade(tmp_path / "m.gguf", infos, data=data, version=2)
    decoded = scan_gguf(path).select("layer_name", pl.col("quantized").aq2.dequantize()).collect()
    assert decoded.rows() == [("early", [0.0]), ("late", [1.0, 2.0])]


def test_format_is_known_by_its_first_bytes(model, tmp_path):
    """A GGUF file of any name is opened as one, and what is only named so is refused as such."""
    path, _ = model
    other = path.rename(tmp_path / "model.safetensors")
    assert open_source(other).native
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"{}")
    with pytest.raises(FormatError, match="it is no GGUF file"):
        open_source(bad)
    with pytest.raises(InputTypeError, match="scan_gguf: the source is a int"):
        scan_gguf(5)


def test_gguf_is_quantized_into_parquet(model, tmp_path):
    """The float layers of a GGUF file, decoded, go through the conversions that other formats do."""
    path, rows = model
    quantize_file(path, tmp_path / "q.parquet", Recipe("int4_g64"))
    found = dict(scan_parquet(tmp_path / "q.parquet").select("layer_name", "raw").collect().iter_rows())
    assert found.keys() == {*rows, "ids", "grid", "double"}
    assert found["grid"] == bytes(range(66))
    with pytest.raises(SchemeError, match="tensors of IQ2_XXS are not written") as caught:
        dequantize_file(tmp_path / "q.parquet", tmp_path / "back.safetensors")
    assert caught.value.layer == "grid"


def test_many_tensors_are_listed_quickly(tmp_path):
    """200,000 tensors are listed in two seconds or so; ten are given to machines that are busy."""
    layout = header_of((f"blk.{k}.weight", (8,), "F32", 32) for k in range(200_000))
    path = tmp_path / "m.gguf"
    path.write_bytes(layout.header + bytes(layout.size - len(layout.header)))
    start = time.perf_counter()
    assert scan_gguf(path).select("layer_name", "shape", "dtype").collect().height == 200_000
    assert time.perf_counter() - start < 10


# --- several files -------------------------------------------------------------------------------------------------


def split(folder, number, count, names, *, total=None, claimed=None):
    """Write one of several files, as gguf-split names them."""
    keys = {"split.count": claimed or count, "split.no": number}
    keys |= {"split.tensors.count": total} if total else {}
    layout = header_of([(name, (1,), "F32", 4) for name in names], keys | {"of": number})
    path = folder / f"m-{number + 1:05}-of-{count:05}.gguf"
    content = bytearray(layout.header + bytes(layout.size - len(layout.header)))
    for k, offset in enumerate(layout.offsets):
        content[offset : offset + 4] = np.float32(10 * number + k).tobytes()
    path.write_bytes(content)
    return path


def test_any_of_several_files_opens_all(tmp_path):
    """A model of several files is one table, whichever of them is named; its metadata are those of the first."""
    paths = [split(tmp_path, k, 3, names, total=4) for k, names in enumerate((["a", "b"], ["c"], ["d"]))]
    for path in paths:
        rows = scan_gguf(path).select("layer_name", pl.col("quantized").aq2.dequantize()).collect().rows()
        assert rows == [("a", [0.0]), ("b", [1.0]), ("c", [10.0]), ("d", [20.0])]
        assert gguf_metadata(path)["of"] == 0


def test_several_files_that_do_not_belong_together_are_refused(tmp_path):
    """A missing, renamed, foreign or repeated file, and a wrong number of tensors, are named."""
    first = split(tmp_path, 0, 2, ["a"], total=2)
    refused(first, "'m-00002-of-00002.gguf' is missing")
    second = split(tmp_path, 1, 2, ["a"])
    error = refused(second, "the tensor is in 'm-00001-of-00002.gguf', too")
    assert error.layer == "a"
    split(tmp_path, 1, 2, ["b", "c"])
    refused(first, "split.tensors.count is 2, the 2 files hold 3")
    split(tmp_path, 1, 2, ["b"], claimed=3)
    with pytest.raises(FormatError, match=r"00002.*split\.no and split\.count are 1 and 3, not 1 and 2"):
        open_gguf(first)
    renamed = first.rename(tmp_path / "renamed.gguf")
    refused(renamed, "one of 2, which its name does not say")
    odd = split(tmp_path, 4, 2, ["e"])
    split(tmp_path, 0, 2, ["a"])
    refused(odd, "its name says number 5")
    refused(split(tmp_path, 0, 0, ["e"], claimed=7), "which its name does not say")


# --- writing -------------------------------------------------------------------------------------------------------


def test_types_are_those_of_ggml():
    """Names, weights and bytes of blocks are those that ggml's C code says, and removed types have none."""
    library = ggml.library()
    for number, kind in GGML_TYPES.items():
        if number > 41:  # newer than the C code that we have
            continue
        assert library.ggml_type_name(number).decode().upper() == kind.name
        assert (library.ggml_blck_size(number), library.ggml_type_size(number)) == (kind.block, kind.n_bytes)
    assert [library.ggml_type_size(number) for number in REMOVED_TYPES] == [0] * len(REMOVED_TYPES)


TYPED = [
    *(key_value(kind, 3, kind) for kind in ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64")),
    key_value("yes", value=True),
    key_value("text", "é\n"),
    key_value("bytes", b"\xff"),
    key_value("none", [], "string"),
    key_value("tokens", ["a", "", "ü", b"\xfe"]),
    key_value("flags", [True, False]),
    key_value("scores", [0.5, -1.0]),
    key_value("types", np.array([1, 2, 3])),
    KeyValue("odd bool", 7, b"\x02"),
]


@pytest.mark.parametrize("alignment", [32, 8, 256])
@pytest.mark.parametrize("version", [2, 3])
def test_header_is_written_as_it_was_read(tmp_path, alignment, version):
    """A header that was read and is written again is the same bytes, every type of value in it."""
    tensors = [(dtype, (2, GGML_TYPES[k].block), dtype, 2 * GGML_TYPES[k].n_bytes) for dtype, k in GGML_NAMES.items()]
    keys = TYPED if alignment == 32 else [*TYPED, key_value("general.alignment", alignment)]
    layout = header_of(tensors, keys, version=version)
    path = tmp_path / "m.gguf"
    path.write_bytes(layout.header + bytes(layout.size - len(layout.header)))
    with open_regular(path) as file:
        found = read_header(file, path)
    assert (found.alignment, found.version, found.data_at) == (alignment, version, len(layout.header))
    assert found.key_values == tuple(keys)
    again = [(tensor.name, tensor.shape, tensor.dtype, tensor.n_bytes) for tensor in found.tensors]
    assert again == tensors
    assert header_of(again, found.key_values, version=version) == layout
    assert header_of(again, Metadata(found.key_values), alignment, version=version) == layout
    assert [tensor.begin for tensor in found.tensors] == list(layout.offsets)
    values = {entry.key: entry.value for entry in found.key_values}
    assert (values["i8"], values["f32"], values["yes"], values["bytes"]) == (3, 3.0, True, b"\xff")
    assert (values["tokens"], values["none"], values["odd bool"]) == (["a", "", "ü", b"\xfe"], [], True)
    assert (values["flags"], values["scores"], values["types"]) == ([True, False], [0.5, -1.0], [1, 2, 3])


class InitParams(ctypes.Structure):
    """What ggml's reader is told: allocate nothing, and no context."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


def test_ggml_reads_what_is_written(tmp_path):
    """The C code of ggml finds the tensors, offsets and values of a header of ours, with either alignment."""
    library = ggml.library()
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
    for name in ("get_tensor_offset", "get_data_offset", "get_alignment", "get_tensor_type"):
        getattr(library, f"gguf_{name}").restype = ctypes.c_size_t
    library.gguf_get_tensor_name.restype = library.gguf_get_val_str.restype = ctypes.c_char_p
    for name in ("find_tensor", "find_key"):
        getattr(library, f"gguf_{name}").restype = ctypes.c_int64
    tensors = [("a", (3, 256), "Q4_K", 432), ("n" * 63, (5,), "F32", 20), ("scalar", (), "BF16", 2)]
    path = tmp_path / "m.gguf"
    for alignment in (32, 64):
        layout = header_of(tensors, [*TYPED[:-1], key_value("name", "té")], alignment)
        path.write_bytes(layout.header + bytes(layout.size - len(layout.header)))
        context = ctypes.c_void_p(library.gguf_init_from_file(str(path).encode(), InitParams(no_alloc=True)))
        assert context
        assert library.gguf_get_alignment(context) == alignment
        begin = library.gguf_get_data_offset(context)
        for k, (name, _, dtype, _) in enumerate(tensors):
            number = ctypes.c_int64(k)
            assert library.gguf_get_tensor_name(context, number).decode() == name
            assert begin + library.gguf_get_tensor_offset(context, number) == layout.offsets[k]
            assert library.gguf_get_tensor_type(context, number) == GGML_NAMES[dtype]
        key = ctypes.c_int64(library.gguf_find_key(context, b"name"))
        assert library.gguf_get_val_str(context, key).decode() == "té"
        library.gguf_free(context)


UNWRITABLE = {
    "name of 64 bytes": (("n" * 64, (1,), "F32", 4), FormatError, "64 bytes"),
    "name with NUL": (("n\0", (1,), "F32", 4), FormatError, "NUL"),
    "no Unicode": (("\ud800", (1,), "F32", 4), FormatError, "not Unicode"),
    "five axes": (("w", (1,) * 5, "F32", 4), FormatError, "at most 4"),
    "empty": (("w", (3, 0), "F32", 0), FormatError, "empty"),
    "huge": (("w", (2**40, 2**40), "F32", 0), FormatError, "beyond"),
    "unknown dtype": (("w", (1,), "U8", 1), SchemeError, "GGUF has no type U8"),
    "half a block": (("w", (2, 16), "Q4_0", 18), SchemeError, "multiple of 32 weights, these have 16"),
    "other bytes": (("w", (2, 32), "Q4_0", 40), FormatError, "takes 36 bytes, not 40"),
}


@pytest.mark.parametrize("fault", UNWRITABLE)
def test_tensors_that_ggml_would_not_read_are_not_written(fault):
    """What ggml's C code refuses, or GGUF cannot say, is an error with the tensor's name."""
    tensor, error, match = UNWRITABLE[fault]
    with pytest.raises(error, match=match) as caught:
        header_of([("fine", (1,), "F32", 4), tensor])
    assert caught.value.layer == tensor[0]


def test_other_arguments_that_are_not_written():
    """Tensors and keys that are there twice, empty keys, other versions and alignments are refused."""
    one = ("w", (1,), "F32", 4)
    with pytest.raises(FormatError, match="two tensors have this name"):
        header_of([one, one])
    with pytest.raises(FormatError, match="key-values 0 and 1"):
        header_of([], [key_value("k", 1)] * 2)
    for key in ("", "k" * 65536, "\ud800"):
        with pytest.raises(FormatError, match=r"1 to 65535 bytes|not Unicode"):
            header_of([], {key: 1})
    with pytest.raises(InputValueError, match="version 1"):
        header_of([], version=1)
    for metadata, alignment in (
        ((), 3),
        ((), 2**21),
        ({"general.alignment": 48}, None),
        ({"general.alignment": "32"}, None),
    ):
        with pytest.raises(FormatError, match="a power of two"):
            header_of([], metadata, alignment)


def test_alignment_given_replaces_that_of_the_metadata():
    """An alignment that is given is what the file says, in the place of what the metadata said."""
    layout = header_of([("w", (1,), "F32", 4)], {"general.alignment": 64, "k": 1}, 128)
    assert layout == header_of([("w", (1,), "F32", 4)], {"general.alignment": 128, "k": 1})
    assert layout.size == 256


BAD_VALUES = {
    "None": (None, None, InputTypeError),
    "a dict": ({}, None, InputTypeError),
    "mixed": ([1, "a"], None, InputTypeError),
    "nested": ([[1]], None, InputTypeError),
    "empty without a kind": ([], None, InputTypeError),
    "unknown kind": (1, "int", InputTypeError),
    "text as a number": ("1", "u32", InputTypeError),
    "number as text": (1, "string", InputTypeError),
    "float as an integer": (1.5, "i32", InputTypeError),
    "too large": (300, "u8", InputValueError),
    "beyond 64 bits": (2**64, None, InputValueError),
    "beyond float32": (1e300, None, InputValueError),
}


@pytest.mark.parametrize("fault", BAD_VALUES)
def test_values_that_are_not_written(fault):
    """A value that GGUF or the type asked for does not hold is an error with its key."""
    value, kind, error = BAD_VALUES[fault]
    with pytest.raises(error, match="the key 'k'"):
        key_value("k", value, kind)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1, "u32"), (-1, "i32"), (2**40, "u64"), (-(2**40), "i64"), (1.5, "f32"), ("a", "string"), (np.True_, "bool")],
)
def test_types_that_are_taken_for_values(value, kind):
    """Values have the types that llama.cpp asks for, and the smallest that hold them."""
    assert key_value("k", value) == key_value("k", value, kind)
    listed = "i32" if kind == "u32" else "i64" if kind == "u64" else kind
    assert key_value("k", [value]) == key_value("k", [value], listed)
