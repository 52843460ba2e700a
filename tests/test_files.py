"""safetensors as a lazy layer table: only what a query asks for is read, and files that lie are refused."""

import json
import os
import struct
import threading

import numpy as np
import polars as pl
import pytest
from numba import njit
from support.model_files import handmade, minilm_file, mixed_model

from aq2_pipeline import FormatError, InputTypeError, InputValueError, scan_safetensors
from aq2_pipeline.io import source as scanning
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.parquet import QuantizedFile
from aq2_pipeline.kernels import bits

COLUMNS = {"layer_name": pl.String(), "shape": pl.List(pl.Int64), "dtype": pl.String()}
HALVES = np.arange(0x10000, dtype=np.uint16)


@pytest.fixture(scope="session")
def minilm(tmp_path_factory):
    """Return the path of all-MiniLM-L6-v2: 103 float32 tensors, and one of int64."""
    return minilm_file(tmp_path_factory.mktemp("minilm"))


@pytest.fixture
def mixed(tmp_path):
    """Return the path of a file with every float dtype and two others."""
    return mixed_model(tmp_path / "mixed.safetensors")


@pytest.fixture
def reads(monkeypatch):
    """Return the list of tensors whose bytes are read from now on."""
    names = []
    read = scanning.Opened.read

    def noted(self, tensor, begin, target):
        names.append(tensor.name)
        read(self, tensor, begin, target)

    monkeypatch.setattr(scanning.Opened, "read", noted)
    return names


# --- scanning --------------------------------------------------------------------------------------------------------


def test_schema_is_known_before_running(mixed, reads):
    """The schema is that of a layer table, and asking for it reads no tensor."""
    assert dict(scan_safetensors(mixed).collect_schema()) == {**COLUMNS, "weights": pl.List(pl.Float32)}
    assert dict(scan_safetensors(str(mixed), raw=True).collect_schema()) == {**COLUMNS, "weights": pl.Binary()}
    assert reads == []


def test_rows_are_in_the_order_of_the_data(tmp_path):
    """The order is that of the file's data, whatever that of its header."""
    late = {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}
    early = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    path = handmade(tmp_path / "m.safetensors", {"late": late, "early": early}, data=b"12")
    assert scan_safetensors(path).collect()["layer_name"].to_list() == ["early", "late"]


def test_float_dtypes_are_decoded_and_others_null(mixed):
    """F32, BF16, F16 and F64 give float32 lists; other dtypes are listed with null weights."""
    rows = {row["layer_name"]: row for row in scan_safetensors(mixed).collect().iter_rows(named=True)}
    values = np.array(rows["f32"]["weights"], np.float32)
    assert rows["bf16"]["weights"] == (values.view(np.uint32) >> 16 << 16).view(np.float32).tolist()
    assert rows["f16"]["weights"] == values.astype(np.float16).astype(np.float32).tolist()
    assert rows["f64"]["weights"] == values.tolist()
    assert rows["f64"]["shape"] == [2, 3, 4]
    assert rows["i64"]["weights"] is None
    assert rows["f8"]["weights"] == [0.0] * 5
    assert (rows["scalar"]["shape"], rows["scalar"]["weights"]) == ([], [3.0])
    assert (rows["empty"]["shape"], rows["empty"]["weights"]) == ([0, 7], [])


@pytest.mark.parametrize(("dtype", "decode"), [("F16", "f2"), ("BF16", None)])
def test_every_half_is_exact(tmp_path, monkeypatch, dtype, decode):
    """All 65,536 bit patterns decode exactly, read in pieces of any size."""
    monkeypatch.setattr(scanning, "READ_BYTES", 1000)
    path = handmade(tmp_path / "m.safetensors", {"w": (dtype, [256, 256], HALVES.tobytes())})
    found = scan_safetensors(path).collect()["weights"].explode(empty_as_null=True).to_numpy()
    wanted = HALVES.view(decode).astype(np.float32) if decode else (HALVES.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(found, wanted)


def test_double_that_does_not_fit_names_layer_and_position(tmp_path):
    """An F64 value beyond float32 is an error with layer, position and value; infinities are not."""
    values = np.array([1.0, -np.inf, 1e300])
    path = handmade(tmp_path / "m.safetensors", {"w": ("F64", [3], values.tobytes())})
    with pytest.raises(InputValueError, match=r"1e\+300 does not fit float32") as caught:
        scan_safetensors(path).collect()
    assert (caught.value.layer, caught.value.position, caught.value.value) == ("w", 2, 1e300)


@njit
def flush_to_zero():
    """Switch on flush-to-zero in this thread, as other libraries do."""
    bits._write_control(np.int32(bits._read_control(np.int32(0)) | np.int32(bits._FLUSHING)))


def test_doubles_keep_subnormals_in_a_thread_that_flushes(tmp_path):
    """F64 weights become float32 subnormals also where the calling thread flushes them to zero."""
    values = np.array([1e-40, -1e-44, 2.0**-149, 2.0**-126, 1.5, 0.0, -0.0])
    path = handmade(tmp_path / "m.safetensors", {"w": ("F64", [7], values.tobytes())})
    found = []

    def read():
        flush_to_zero()
        assert np.float32(1e-30) * np.float32(1e-10) == 0
        file = open_source(path)
        [table] = file.batches(file.parts())
        found.append(table["weights"].combine_chunks().values.to_numpy().view(np.uint32))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], values.astype(np.float32).view(np.uint32))


def test_no_tensor_is_read_without_weights(mixed, reads):
    """A query that does not want `weights` reads no tensor."""
    lazy = scan_safetensors(mixed)
    assert lazy.select("shape", "layer_name").collect().columns == ["shape", "layer_name"]
    assert lazy.select(pl.len()).collect().item() == 8
    assert lazy.filter(pl.col("dtype") == "F32").select("layer_name").collect().height == 3
    assert reads == []


def test_predicate_decides_what_is_read(mixed, reads):
    """A filter on names reads only the layers that pass; one on weights reads all of them."""
    lazy = scan_safetensors(mixed)
    assert lazy.filter(pl.col("layer_name") == "f32").collect()["layer_name"].to_list() == ["f32"]
    assert reads == ["f32"]
    long = lazy.filter(pl.col("weights").list.len() > 20).select("layer_name").collect()
    assert long["layer_name"].to_list() == ["f32", "bf16", "f16", "f64"]
    nothing = lazy.filter(pl.col("layer_name") == "none").collect()
    assert (nothing.height, nothing.schema) == (0, lazy.collect_schema())


def test_n_rows_come_before_the_predicate(mixed, reads):
    """`head` reads no more than its rows, and a filter after it sees only these."""
    lazy = scan_safetensors(mixed)
    assert lazy.head(2).collect()["layer_name"].to_list() == ["f32", "bf16"]
    assert reads == ["f32", "bf16"]
    assert lazy.head(3).filter(pl.col("layer_name") != "f32").collect().height == 2
    assert lazy.filter(pl.col("layer_name") != "f32").head(2).collect()["layer_name"].to_list() == ["bf16", "f16"]
    assert lazy.slice(1, 2).collect()["layer_name"].to_list() == ["bf16", "f16"]
    assert lazy.tail(1).collect()["layer_name"].to_list() == ["empty"]
    assert lazy.head(0).collect().height == 0


def test_batches_are_bounded_by_bytes_and_rows(mixed, monkeypatch):
    """A batch holds at most `BATCH_BYTES` of weights or one layer, and at most the rows asked for."""
    whole = scan_safetensors(mixed).collect()
    monkeypatch.setattr(scanning, "BATCH_BYTES", 2 * 24 * 4)
    file = open_source(mixed)
    parts = file.parts()
    assert [len(batch) for batch in file.batches(parts)] == [2, 3, 3]
    assert max(len(batch["weights"].combine_chunks().values) for batch in file.batches(parts)) <= 48
    assert [len(batch) for batch in file.batches(parts, None, max_rows=3)] == [3, 3, 2]
    assert [len(batch) for batch in file.batches(parts, max_rows=1)] == [1] * 8
    assert scan_safetensors(mixed).collect().equals(whole)


def test_raw_bytes_quantize_as_decoded_weights_do(mixed):
    """`raw=True` with `@dtype` gives the bytes that the decoded weights give."""
    floats = pl.col("dtype").is_in(["F32", "BF16", "F16", "F64"])
    scheme = pl.concat_str(pl.lit("int4_g8@"), pl.col("dtype").str.to_lowercase())
    raw = scan_safetensors(mixed, raw=True).filter(floats)
    decoded = scan_safetensors(mixed).filter(floats)
    one = raw.select("layer_name", pl.col("weights").aq2.quantize(scheme, "shape")).collect()
    two = decoded.select("layer_name", pl.col("weights").aq2.quantize("int4_g8", "shape")).collect()
    assert one.equals(two)
    whole = scan_safetensors(mixed, raw=True).collect()
    assert whole.filter(layer_name="i64")["weights"].item() == np.arange(3).tobytes()


def test_lazy_query_quantizes_into_a_sink(minilm, tmp_path):
    """A model goes from file to Parquet in one lazy query, with the bytes of the eager one."""
    lazy = scan_safetensors(minilm).filter(pl.col("shape").list.len() == 2, pl.col("dtype") == "F32")
    lazy = lazy.select("layer_name", "shape", "dtype", quantized=pl.col("weights").aq2.quantize("int4_g64", "shape"))
    lazy.sink_parquet(tmp_path / "q.parquet")
    assert pl.read_parquet(tmp_path / "q.parquet").equals(lazy.collect(engine="in-memory"))
    with QuantizedFile(tmp_path / "q.parquet") as file:
        assert len(file.layers) == 40


# --- malformed files -------------------------------------------------------------------------------------------------

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
ENTRY_FAULTS = {
    "shape times dtype": {**ONE, "shape": [2]},
    "wrapping shape": {**ONE, "shape": [2**32, 2**32]},
    "huge axis": {**ONE, "shape": [2**63, 0]},
    "negative axis": {**ONE, "shape": [-1, -1]},
    "float axis": {**ONE, "shape": [1.0]},
    "boolean axis": {**ONE, "shape": [True]},
    "rank": {**ONE, "shape": [1] * 9},
    "shape no list": {**ONE, "shape": "1"},
    "reversed offsets": {**ONE, "data_offsets": [4, 0]},
    "negative offsets": {**ONE, "data_offsets": [-4, 0]},
    "offsets past the end": {**ONE, "data_offsets": [4, 8]},
    "three offsets": {**ONE, "data_offsets": [0, 4, 8]},
    "a hole": {**ONE, "shape": [0], "data_offsets": [2, 2]},
    "unknown dtype": {**ONE, "dtype": "F33"},
    "dtype no string": {**ONE, "dtype": ["F32"]},
    "missing key": {"dtype": "F32", "shape": [1]},
    "extra key": {**ONE, "more": 1},
    "no object": 1,
    "a list": [ONE],
}


@pytest.mark.parametrize("fault", ENTRY_FAULTS)
def test_wrong_entry_names_file_and_tensor(tmp_path, fault):
    """An entry that contradicts the file or the format is a FormatError with both names."""
    path = handmade(
        tmp_path / "bad.safetensors", {}, data=bytes(4), text=json.dumps({"x.w": ENTRY_FAULTS[fault]}).encode()
    )
    with pytest.raises(FormatError, match=r"bad\.safetensors") as caught:
        scan_safetensors(path)
    assert caught.value.layer == "x.w"


HEADER_FAULTS = {
    "no JSON": b"{nope",
    "a list": b"[]      ",
    "leading space": b' {"w": 1}',
    "a duplicate key": b'{"w": {}, "w": {}}',
    "a constant": b'{"w": NaN}',
    "metadata no object": b'{"__metadata__": 1}',
    "metadata of numbers": b'{"__metadata__": {"a": 1}}',
    "not UTF-8": b'{"\xff": 1}',
    "a lone surrogate": b'{"\\ud800": {}}',
    "nesting": b'{"w":' + b"[" * 100_000,
    "a huge integer": b'{"w": ' + b"1" * 5000 + b"}",
    "a long name": b'{"' + b"n" * 1025 + b'": {}}',
}


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_wrong_header_names_file(tmp_path, fault):
    """A header that is not strict JSON of the format is a FormatError."""
    path = handmade(tmp_path / "bad.safetensors", {}, text=HEADER_FAULTS[fault])
    with pytest.raises(FormatError, match=r"bad\.safetensors"):
        scan_safetensors(path)


FILE_FAULTS = {
    "empty": b"",
    "seven bytes": bytes(7),
    "eight bytes": bytes(8),
    "longer than the file": struct.pack("<Q", 99_000_000) + b"{}",
    "2^64-1": b"\xff" * 8 + b"{}",
    "a zip": b"PK\x03\x04" + bytes(100),
    "a pickle": b"\x80\x04\x95" + bytes(100),
    "GGUF": b"GGUF\x03\0\0\0" + bytes(100),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_other_files_are_refused(tmp_path, fault):
    """What is no safetensors file at all is a FormatError."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(FILE_FAULTS[fault])
    with pytest.raises(FormatError, match=r"bad\.safetensors"):
        scan_safetensors(path)


def test_header_limit_holds(tmp_path):
    """A header over 100 MB is refused before it is read."""
    path = handmade(tmp_path / "bad.safetensors", {}, text=b"{", n_header=100_000_001)
    with path.open("r+b") as file:
        file.truncate(200_000_000)  # sparse
    with pytest.raises(FormatError, match="at most 100000000"):
        scan_safetensors(path)


def test_holes_overlaps_and_tails_are_refused(tmp_path):
    """The tensors cover the data exactly; the message names the tensor."""
    w = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
    for other, data, named in (([3, 5], bytes(5), "v"), ([1, 3], bytes(3), "v"), ([2, 4], bytes(5), "v")):
        path = handmade(tmp_path / "m.safetensors", {"w": w, "v": {**w, "data_offsets": other}}, data=data)
        with pytest.raises(FormatError) as caught:
            scan_safetensors(path)
        assert caught.value.layer == named


@pytest.mark.parametrize("name", ["m.pt", "m.bin", "m.CKPT", "m.npz", "m.zip", "m.tar.gz"])
def test_pickles_and_archives_are_refused_by_name(tmp_path, name):
    """Pickle formats and archives are refused by name, with what to do instead."""
    with pytest.raises(FormatError, match=r"convert it to safetensors|extract it first"):
        scan_safetensors(tmp_path / name)


def test_what_is_no_regular_file_is_refused(tmp_path):
    """Directories, FIFOs and devices are FormatErrors, a missing file is a FileNotFoundError."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(FormatError, match="not a regular file"):
            scan_safetensors(path)
    with pytest.raises(FileNotFoundError):
        scan_safetensors(tmp_path / "none.safetensors")
    for source in (5, b"path", None):
        with pytest.raises(InputTypeError, match="give a path"):
            scan_safetensors(source)


def test_file_that_changes_after_the_scan_is_an_error(mixed):
    """Data cut off or rewritten after the header was read is a FormatError, never a signal or mixed rows."""
    lazy = scan_safetensors(mixed)
    size = mixed.stat().st_size
    os.truncate(mixed, size - 40)
    with pytest.raises(FormatError, match="changed since"):
        lazy.collect()


def test_data_that_ends_while_it_is_read_is_an_error(mixed, monkeypatch):
    """A file that shrinks between two reads is a FormatError that names the tensor."""
    monkeypatch.setattr(scanning.Opened, "_check_unchanged", lambda *_: None)
    lazy = scan_safetensors(mixed)
    os.truncate(mixed, 400)
    with pytest.raises(FormatError, match="bytes early") as caught:
        lazy.collect()
    assert caught.value.layer is not None


def test_names_are_data(tmp_path):
    """Names with NUL, path parts and control characters are kept, and escaped in messages."""
    names = ["../../etc/x", "a\0b", "", "new\nline", "\u202e"]
    path = handmade(tmp_path / "m.safetensors", {name: ("F32", [1], bytes(4)) for name in names})
    assert scan_safetensors(path).collect()["layer_name"].to_list() == names
    path = handmade(tmp_path / "m.safetensors", {"a\nb": {**ONE, "dtype": "?"}}, data=bytes(4))
    with pytest.raises(FormatError, match=r"layer 'a\\nb'"):
        scan_safetensors(path)


def test_missing_library_names_the_pip_command(mixed, monkeypatch):
    """Without the extra the message is the pip command."""
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'aq2-pipeline\[files\]'"):
        scan_safetensors(mixed)
