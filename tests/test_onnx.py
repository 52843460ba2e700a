"""ONNX models: initializers as a lazy layer table, their data where it lies, and files that are not what they claim."""

import os
import resource
import time

import numpy as np
import onnx
import polars as pl
import pytest
from ml_dtypes import bfloat16, float8_e4m3fn, float8_e5m2
from onnx import TensorProto, helper, numpy_helper
from support.protobuf import external, field, model, pair, tensor, varint

from aq2_pipeline import Aq2Error, FormatError, InputValueError, scan_onnx
from aq2_pipeline.io.onnx import varints
from aq2_pipeline.io.onnx.source import open_onnx
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.tables import source as scanning
from aq2_pipeline.io.tables.frames import reader

RNG = np.random.default_rng(8)
VALUES = RNG.normal(size=(4, 6)).astype(np.float32)
TWO = np.array([1.5, -2], np.float32).tobytes()


def saved(path, tensors, **options):
    """Write a model of initializers with the onnx package."""
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], tensors)), path, **options)
    return path


def written(path, text):
    """Write bytes."""
    path.write_bytes(text)
    return path


def rows_of(path, **options):
    """Return name -> row."""
    return {row["layer_name"]: row for row in scan_onnx(path, **options).collect().iter_rows(named=True)}


@pytest.fixture
def mixed():
    """Return arrays of the dtypes that are decoded, and of others."""
    arrays = {
        "f32": VALUES,
        "f16": VALUES.astype(np.float16),
        "bf16": VALUES.astype(bfloat16),
        "f64": VALUES.astype(np.float64).reshape(2, 3, 4),
        "e4m3": VALUES.astype(float8_e4m3fn),
        "e5m2": VALUES.astype(float8_e5m2),
        "i64": np.arange(-2, 3),
        "bool": np.array([True, False]),
        "scalar": np.float32(3),
        "empty": np.zeros((0, 7), np.float32),
    }
    return {name: np.asarray(array) for name, array in arrays.items()}


def test_every_initializer_is_a_row_with_its_values(tmp_path, mixed):
    """Names, shapes, dtypes, weights and raw bytes are those of the onnx package, in the graph's order."""
    tensors = [numpy_helper.from_array(array, name) for name, array in mixed.items()]
    path = saved(tmp_path / "m.onnx", tensors)
    rows, raw = rows_of(path), rows_of(path, raw=True)
    assert list(rows) == list(mixed)
    told = ["F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2", "I64", "BOOL", "F32", "F32"]
    assert [row["dtype"] for row in rows.values()] == told
    for name, array in mixed.items():
        assert rows[name]["shape"] == list(array.shape)
        assert raw[name]["weights"] == array.tobytes()
        is_float = name not in {"i64", "bool"}
        assert rows[name]["weights"] == (array.astype(np.float32).ravel().tolist() if is_float else None)


#: What is written in typed fields: data_type, values, dtype, what the bytes are.
TYPED = {
    "float": (TensorProto.FLOAT, [1.5, -2.0], "F32", np.array([1.5, -2], np.float32)),
    "double": (TensorProto.DOUBLE, [1.5, -2.0], "F64", np.array([1.5, -2.0])),
    "float16": (TensorProto.FLOAT16, np.array([1.5, -2], np.float16), "F16", np.array([1.5, -2], np.float16)),
    "bfloat16": (TensorProto.BFLOAT16, np.array([1.5, -2], bfloat16), "BF16", np.array([1.5, -2], bfloat16)),
    "int8": (TensorProto.INT8, [-128, 127], "I8", np.array([-128, 127], np.int8)),
    "uint8": (TensorProto.UINT8, [0, 255], "U8", np.array([0, 255], np.uint8)),
    "int16": (TensorProto.INT16, [-(2**15), 300], "I16", np.array([-(2**15), 300], np.int16)),
    "int32": (TensorProto.INT32, [-(2**31), 2**31 - 1], "I32", np.array([-(2**31), 2**31 - 1], np.int32)),
    "int64": (TensorProto.INT64, [-(2**63), 2**63 - 1], "I64", np.array([-(2**63), 2**63 - 1], np.int64)),
    "uint32": (TensorProto.UINT32, [0, 2**32 - 1], "U32", np.array([0, 2**32 - 1], np.uint32)),
    "uint64": (TensorProto.UINT64, [0, 2**64 - 1], "U64", np.array([0, 2**64 - 1], np.uint64)),
    "complex64": (TensorProto.COMPLEX64, [1 + 2j, 3j], "C64", np.array([1 + 2j, 3j], np.complex64)),
}


@pytest.mark.parametrize("case", TYPED)
def test_typed_fields_have_the_bytes_of_raw_data(tmp_path, case):
    """Values in float_data, int32_data, ... are the little-endian bytes that raw_data would have."""
    data_type, values, dtype, array = TYPED[case]
    made = helper.make_tensor("w", data_type, [2], values)
    assert not made.raw_data
    path = saved(tmp_path / "m.onnx", [made])
    row = rows_of(path, raw=True)["w"]
    assert (row["dtype"], row["weights"]) == (dtype, array.tobytes())
    np.testing.assert_array_equal(numpy_helper.to_array(made), array)
    if dtype in {"F32", "F64", "F16", "BF16"}:
        assert rows_of(path)["w"]["weights"] == [1.5, -2.0]


def test_what_safetensors_has_no_dtype_for_is_listed(tmp_path):
    """4-bit integers, strings, complex128 and sparse initializers are rows with null weights and ONNX's dtype."""
    tensors = [
        helper.make_tensor("i4", TensorProto.INT4, [3], [1, -2, 7]),
        helper.make_tensor("i4raw", TensorProto.INT4, [3], b"\xe1\x07", raw=True),
        helper.make_tensor("c", TensorProto.COMPLEX128, [1], [1j]),
        helper.make_tensor("s", TensorProto.STRING, [2], [b"one", b"two"]),
        helper.make_tensor("f4", TensorProto.FLOAT4E2M1, [3], b"\x21\x03", raw=True),
    ]
    graph = helper.make_graph([], "g", [], [], tensors)
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [2.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [3])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 5]))
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    raw = rows_of(tmp_path / "m.onnx", raw=True)
    assert [(row["dtype"], row["weights"]) for row in raw.values()] == [
        ("INT4", b"\xe1\x07"),
        ("INT4", b"\xe1\x07"),
        ("COMPLEX128", np.array([1j]).tobytes()),
        ("STRING", None),
        ("F4", b"\x21\x03"),
        ("SPARSE_F32", None),
    ]
    assert raw["sparse"]["shape"] == [2, 5]
    assert scan_onnx(tmp_path / "m.onnx").collect()["weights"].null_count() == 6
    cut = scan_onnx(tmp_path / "m.onnx", raw=True, chunk_weights=1).collect()
    assert cut["layer_name"].to_list() == list(raw)  # no chunk begins within a byte, or without bytes
    assert cut["weights"].to_list() == [row["weights"] for row in raw.values()]


@pytest.mark.parametrize("chunk_weights", [None, 7, 60])
def test_packed_numbers_are_read_in_pieces(tmp_path, monkeypatch, chunk_weights):
    """Half floats in int32_data are the same whole and in chunks, with any size of block, piece and index."""
    monkeypatch.setattr(varints, "STRIDE", 5)
    monkeypatch.setattr(varints, "BLOCK", 31)
    monkeypatch.setattr(scanning, "READ_BYTES", 26)
    halves = RNG.normal(size=(40, 5)).astype(np.float16)
    halves[::3] = 0  # of one byte each
    path = saved(tmp_path / "m.onnx", [helper.make_tensor("w", TensorProto.FLOAT16, [40, 5], halves)])
    table = scan_onnx(path, chunk_weights=chunk_weights).collect()
    found = table["weights"].explode(empty_as_null=True).to_numpy()
    np.testing.assert_array_equal(found, halves.astype(np.float32).ravel())
    raw = scan_onnx(path, raw=True, chunk_weights=chunk_weights).collect()
    assert b"".join(raw["weights"]) == halves.tobytes()


def test_only_the_layers_that_pass_are_read(tmp_path, monkeypatch, mixed):
    """A filter on names reads these tensors, and a query without weights none."""
    path = saved(tmp_path / "m.onnx", [numpy_helper.from_array(array, name) for name, array in mixed.items()])
    names, read = [], scanning.Opened.read

    def noted(self, tensor, begin, target):
        names.append(tensor.name)
        read(self, tensor, begin, target)

    monkeypatch.setattr(scanning.Opened, "read", noted)
    lazy = scan_onnx(path)
    assert lazy.select("layer_name", "shape").collect().height == len(mixed)
    assert lazy.filter(pl.col("layer_name") == "f16").collect()["layer_name"].to_list() == ["f16"]
    assert names == ["f16"]


def test_a_reader_and_any_opener_give_the_same_rows(tmp_path):
    """The suffix .onnx opens it, the metadata is the model's, and record batches are the frame."""
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(VALUES, "w")])
    made = helper.make_model(graph)
    helper.set_model_props(made, {"author": "é", "": ""})
    onnx.save(made, tmp_path / "m.ONNX")
    source = open_source(tmp_path / "m.ONNX")
    assert source.metadata == {"author": "é", "": ""}
    assert pl.DataFrame(reader(source, "weights").read_all()).equals(scan_onnx(tmp_path / "m.ONNX").collect())


def test_nodes_and_subgraphs_are_passed_over(tmp_path):
    """Only initializers of the graph are rows: Constant nodes and inputs are not."""
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(VALUES, "in a node"))
    out = helper.make_tensor_value_info("c", TensorProto.FLOAT, [4, 6])
    graph = helper.make_graph([node], "g", [], [out], [numpy_helper.from_array(VALUES, "w")])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    assert list(rows_of(tmp_path / "m.onnx")) == ["w"]


def test_doubles_that_do_not_fit_name_the_layer(tmp_path):
    """An F64 value beyond float32 is an error with layer and position."""
    path = saved(tmp_path / "m.onnx", [numpy_helper.from_array(np.array([1, 1e300]), "w")])
    with pytest.raises(InputValueError, match="does not fit float32") as caught:
        scan_onnx(path).collect()
    assert (caught.value.layer, caught.value.position) == ("w", 1)


# --- external data ---------------------------------------------------------------------------------------------------


def test_external_data_is_read_from_its_files(tmp_path, mixed):
    """Tensors of several files below the folder are read, whatever order they are in."""
    (tmp_path / "data").mkdir()
    arrays = {name: array for name, array in mixed.items() if array.size}
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    for k, made in enumerate(tensors):
        onnx.external_data_helper.set_external_data(made, f"data/{k % 2}.bin")
    path = saved(tmp_path / "m.onnx", tensors)
    rows = rows_of(path, raw=True)
    assert list(rows) == list(arrays)
    assert all(rows[name]["weights"] == array.tobytes() for name, array in arrays.items())
    assert len(open_onnx(path).files) == 3


def test_tensors_may_share_bytes_and_say_no_length(tmp_path):
    """Two initializers of the same bytes are two rows; without offset and length a tensor has the first bytes."""
    (tmp_path / "w").write_bytes(bytes(8) + TWO)
    texts = [external("a", location="w", offset=8), external("b", location="./w", offset=8, length=8)]
    path = written(tmp_path / "m.onnx", model(*texts, external("c", location="w")))
    assert [row["weights"] for row in rows_of(path).values()] == [[1.5, -2.0], [1.5, -2.0], [0.0, 0.0]]


LOCATIONS = ["../w", "a/../../w", "/etc/passwd", "C:/w", "C:w", "\\\\host\\w", "..\\w", "https://host/w", "file:w", ""]
LOCATIONS += ["a\0b", "n" * 1025]


@pytest.mark.parametrize("location", LOCATIONS)
def test_locations_outside_the_folder_are_refused_by_name(tmp_path, monkeypatch, location):
    """Parents, absolute paths, drives and URLs are refused before any file is touched."""
    (tmp_path / "m").mkdir()
    (tmp_path / "w").write_bytes(TWO)
    path = written(tmp_path / "m/m.onnx", model(external("first", location="m.onnx"), external(location=location)))
    opened = []
    monkeypatch.setattr("aq2_pipeline.io.onnx.header.stamp_at", lambda file: opened.append(file) or (8, 0))
    with pytest.raises(FormatError, match=r"m\.onnx") as caught:
        scan_onnx(path)
    assert caught.value.layer == "w"
    assert opened == []


def test_links_out_of_the_folder_are_refused(tmp_path):
    """A symbolic link may stay in the folder, not leave it; loops and missing files name the tensor."""
    (tmp_path / "m").mkdir()
    (tmp_path / "w").write_bytes(TWO)
    (tmp_path / "m/inside").write_bytes(TWO)
    (tmp_path / "m/ok").symlink_to("inside")
    (tmp_path / "m/out").symlink_to("../w")
    (tmp_path / "m/folder").symlink_to("..")
    (tmp_path / "m/loop").symlink_to("loop")
    (tmp_path / "other").symlink_to("m")
    written(tmp_path / "m/ok.onnx", model(external(location="ok")))
    assert rows_of(tmp_path / "other/ok.onnx")["w"]["weights"] == [1.5, -2.0]
    for location in ("out", "folder/w", "loop", "missing", "inside/below", "n" * 300, "*/_ORT_MEM_ADDR_/*"):
        path = written(tmp_path / "m/m.onnx", model(external(location=location)))
        with pytest.raises(FormatError, match=r"leads out|cannot be read") as caught:
            scan_onnx(path)
        assert caught.value.layer == "w"


def test_external_files_are_regular_and_unchanged(tmp_path):
    """A FIFO or folder is refused without waiting, and a file that changes after the listing too."""
    os.mkfifo(tmp_path / "fifo")
    for location in ("fifo", "."):
        with pytest.raises(FormatError, match="not a regular file"):
            scan_onnx(written(tmp_path / "m.onnx", model(external(location=location))))
    (tmp_path / "w").write_bytes(TWO)
    lazy = scan_onnx(written(tmp_path / "m.onnx", model(external(location="w"))))
    os.truncate(tmp_path / "w", 4)
    with pytest.raises(FormatError, match="changed since"):
        lazy.collect()


EXTERNAL_FAULTS = {
    "past the end": external(location="w", offset=1),
    "wrapping offset": external(location="w", offset=2**64 - 8),
    "length of other bytes": external(location="w", length=4),
    "negative offset": external(location="w", offset=-8),
    "offset no number": external(location="w", offset="0x8"),
    "offset of other digits": external(location="w", offset="\u0663"),
    "many digits": external(location="w", offset="0" * 21),
    "no location": external(offset=0),
    "two locations": external(location="w") + field(13, pair("location", "v")),
    "huge shape": external(dims=(2**62, 2**62), location="w"),
    "raw data too": external(location="w") + field(9, TWO),
    "strings": external(data_type=8, location="w"),
    "many entries": external(location="w") + 100 * field(13, pair("k", "")),
    "a huge entry": external(location="w") + field(13, pair("k", "x" * 5000)),
}


@pytest.mark.parametrize("fault", EXTERNAL_FAULTS)
def test_wrong_external_data_names_the_tensor(tmp_path, fault):
    """Offset and length that contradict shape or file are a FormatError with the tensor's name."""
    (tmp_path / "w").write_bytes(TWO)
    with pytest.raises(FormatError, match=r"m\.onnx") as caught:
        scan_onnx(written(tmp_path / "m.onnx", model(EXTERNAL_FAULTS[fault])))
    assert caught.value.layer == "w" or fault == "many entries"


# --- malformed files -------------------------------------------------------------------------------------------------

RAW = field(9, TWO)
TENSOR_FAULTS = {
    "shape times dtype": tensor("w", (3,), 1, RAW),
    "wrapping shape": tensor("w", (2**32, 2**32), 1, field(9, b"")),
    "negative axis": tensor("w", (-1, -2), 1, RAW),
    "rank": tensor("w", (1,) * 8 + (2,), 1, RAW),
    "no data": tensor("w", (2,), 1),
    "no data_type": field(1, 2) + field(8, b"w") + RAW,
    "undefined data_type": tensor("w", (2,), 0, RAW),
    "unknown data_type": tensor("w", (2,), 99, RAW),
    "two data fields": tensor("w", (2,), 1, RAW, field(4, TWO)),
    "strings and data": tensor("w", (2,), 1, RAW, field(6, b"x")),
    "another field": tensor("w", (2,), 1, field(10, TWO)),
    "floats in int32_data": tensor("w", (2,), 1, field(5, b"\1\2")),
    "six bits in int32_data": tensor("w", (2,), 27, field(5, b"\1\2")),
    "strings in raw_data": tensor("w", (2,), 8, RAW),
    "too few strings": tensor("w", (2,), 8, field(6, b"x")),
    "strings of floats": tensor("w", (1,), 1, field(6, b"x")),
    "too few packed": tensor("w", (2,), 10, field(5, b"\1")),
    "too many packed bytes": tensor("w", (2,), 10, field(5, bytes(21))),
    "a segment": tensor("w", (2,), 1, RAW, field(3, b"")),
    "unknown location": tensor("w", (2,), 1, RAW, field(14, 2)),
}


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
def test_wrong_tensor_names_file_and_tensor(tmp_path, fault):
    """A tensor that contradicts itself is a FormatError with file, place and tensor."""
    with pytest.raises(FormatError, match=r"bad\.onnx': at byte \d+") as caught:
        scan_onnx(written(tmp_path / "bad.onnx", model(TENSOR_FAULTS[fault])))
    assert caught.value.layer == "w"


GOOD = model(tensor("w", (2,), 1, RAW))
FILE_FAULTS = {
    "empty": b"",
    "text": b"hello world, this is no model",
    "a zip": b"PK\x03\x04" + bytes(100),
    "a pickle": b"\x80\x04\x95" + bytes(100),
    "zeros": bytes(100),
    "no graph": field(1, 8),
    "two graphs": GOOD + field(7, b""),
    "the graph a number": field(7, 1),
    "an initializer a number": field(7, field(5, 1)),
    "field 0": field(7, b"\0\0"),
    "a group": field(7, b"\x0b\x0c"),
    "wire type 6": field(7, b"\x0e\x00"),
    "wire type 7": field(7, b"\x0f\x00"),
    "a length past the message": field(7, varint(5 << 3 | 2) + varint(100)),
    "a length of 2^63": varint(7 << 3 | 2) + varint(2**63),
    "a varint past the message": field(7, b"\x08\x80") + b"\1\1",
    "eleven bytes of varint": field(7, b"\x08" + b"\x80" * 10 + b"\1"),
    "a varint of 70 bits": field(7, b"\x08" + b"\xff" * 9 + b"\x7f"),
    "a large tag": field(7, varint(2**35) + b"\0"),
    "fixed64 cut": field(7, b"\x09\0\0\0"),
    "a number for a name": model(field(1, 2) + field(2, 1) + field(8, 5) + RAW),
    "a name twice": model(tensor("w", (2,), 1, RAW, field(8, b"v"))),
    "raw_data twice": model(tensor("w", (2,), 1, RAW, RAW)),
    "unpacked floats": model(tensor("w", (1,), 1, b"\x25\0\0\0\0")),
    "unpacked integers": model(tensor("w", (1,), 7, field(7, 5))),
    "dims of fixed32": model(tensor("w", (), 1, b"\x0d\2\0\0\0", RAW)),
    "packed dims too long": model(tensor("w", (), 1, field(1, b"\1" * 81), RAW)),
    "packed dims cut": model(tensor("w", (), 1, field(1, b"\x82"), RAW)),
    "a thousand dims": model(tensor("w", (1,) * 1000, 1, field(9, bytes(4)))),
    "a long name": model(tensor("n" * 1025, (2,), 1, RAW)),
    "no UTF-8": model(field(1, 2) + field(2, 1) + field(8, b"\xff") + RAW),
    "duplicate names": model(tensor("w", (2,), 1, RAW), tensor("w", (2,), 1, RAW)),
    "a sparse one without values": field(7, field(15, b"")),
    "a sparse one a number": field(7, field(15, 3)),
    "metadata twice": model(after=2 * field(14, pair("a", "b"))),
    "metadata a number": model(after=field(14, 1)),
    "metadata of other bytes": model(after=field(14, field(1, b"\xff"))),
    "a key twice": model(after=field(14, field(1, b"a") + field(1, b"b"))),
    "tail": GOOD + b"\xff",
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_files_that_are_no_model_are_refused_at_once(tmp_path, fault):
    """A malformed file is a FormatError with its name, in little time and memory."""
    path = written(tmp_path / "bad.onnx", FILE_FAULTS[fault])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(FormatError, match=r"bad\.onnx"):
        scan_onnx(path)
    assert time.perf_counter() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_every_cut_of_a_model_is_refused(tmp_path):
    """A model that ends early, wherever, is refused or still whole: never anything else."""
    path = tmp_path / "m.onnx"
    for n in range(len(GOOD)):
        with pytest.raises(FormatError):
            scan_onnx(written(path, GOOD[:n]))
    assert rows_of(written(path, GOOD))["w"]["weights"] == [1.5, -2.0]


def test_unknown_fields_of_every_wire_type_are_passed_over(tmp_path):
    """Fields of numbers that ONNX does not have yet change nothing, wherever they are."""
    more = (
        field(900, 2**64 - 1)
        + field(901, b"x" * 300)
        + varint(902 << 3 | 5)
        + bytes(4)
        + varint(903 << 3 | 1)
        + bytes(8)
    )
    text = field(1, 8) + more + field(7, more + field(5, more + tensor("w", (2,), 1, RAW) + more) + more) + more
    assert rows_of(written(tmp_path / "m.onnx", text))["w"]["weights"] == [1.5, -2.0]


PACKED_FAULTS = {
    "a number too large": (10, varint(1) + varint(0x10000)),
    "a negative pattern": (10, varint(1) + varint(-1)),
    "too large for int8": (3, varint(1) + varint(128)),
    "no bool": (9, varint(1) + varint(2)),
    "too few": (10, varint(0x3C00)),
    "too many": (10, bytes(3)),
    "cut": (10, b"\0\x80"),
    "eleven bytes": (7, b"\x80" * 10 + b"\1" + b"\0"),
    "70 bits": (7, b"\xff" * 9 + b"\x7f\0"),
}


@pytest.mark.parametrize("fault", PACKED_FAULTS)
def test_wrong_packed_numbers_are_found_when_they_are_read(tmp_path, fault):
    """Numbers that a dtype does not have, or too many, are a FormatError with the tensor's name."""
    data_type, text = PACKED_FAULTS[fault]
    number = 7 if data_type == 7 else 5
    lazy = scan_onnx(written(tmp_path / "m.onnx", model(tensor("w", (2,), data_type, field(number, text)))), raw=True)
    assert lazy.select("layer_name").collect().height == 1
    with pytest.raises(FormatError, match=r"m\.onnx") as caught:
        lazy.collect()
    assert caught.value.layer == "w"


def test_names_are_data(tmp_path):
    """Names with NUL, path parts and control characters are kept; missing ones are empty."""
    names = ["../../etc/x", "a\0b", "", "new\nline", "\u202e", "n" * 1024]
    path = written(tmp_path / "m.onnx", model(*(tensor(name, (2,), 1, RAW) for name in names)))
    assert list(rows_of(path)) == names


def test_a_sparse_file_of_gigabytes_is_listed_without_reading_it(tmp_path):
    """Raw data is passed over: a model that claims and has 8 GB is listed in the memory of its header."""
    n = 2**33
    head = tensor("w", (n // 4,), 1) + varint(9 << 3 | 2) + varint(n)
    body = varint(5 << 3 | 2) + varint(len(head) + n) + head
    path = written(tmp_path / "m.onnx", varint(7 << 3 | 2) + varint(len(body) + n) + body)
    os.truncate(path, path.stat().st_size + n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [found] = open_onnx(path).tensors
    assert (found.shape, found.n_bytes) == ((n // 4,), n)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    [last] = open_onnx(path).parts(2**20)[-1:]
    assert (last.stop, last.begin + last.n_bytes) == (n // 4, path.stat().st_size)


def test_mutated_models_raise_only_our_errors(tmp_path, mixed):
    """A model with any bytes changed, cut or doubled is read, or refused with an error of ours."""
    tensors = [numpy_helper.from_array(array, name) for name, array in mixed.items()]
    tensors.append(helper.make_tensor("half", TensorProto.FLOAT16, [9], np.arange(9, dtype=np.float16)))
    tensors.append(helper.make_tensor("s", TensorProto.STRING, [2], [b"one", b"two"]))
    (tmp_path / "w").write_bytes(TWO)
    made = helper.make_model(helper.make_graph([], "g", [], [], tensors))
    made.graph.initializer.append(TensorProto.FromString(external("x", location="w", offset=0, length=8)))
    helper.set_model_props(made, {"k": "v"})
    good, path = made.SerializeToString(), tmp_path / "m.onnx"
    rng, n_refused = np.random.default_rng(80), 0
    for _ in range(600):
        text = bytearray(good)
        for at in rng.integers(0, len(good), rng.integers(1, 5)):
            text[at] = rng.choice([rng.integers(256), text[at] ^ 1 << rng.integers(8), 0, 0x7F, 0x80, 0xFF])
        if rng.random() < 0.2:
            a, b = sorted(rng.integers(0, len(good), 2))
            text[a:b] = text[a:b] * int(rng.integers(0, 3))
        path.write_bytes(text)
        try:
            for raw in (False, True):
                scan_onnx(path, raw=raw, chunk_weights=5).collect()
        except Aq2Error:
            n_refused += 1
    assert 100 < n_refused < 600
