"""safetensors as a lazy layer table: only what a query asks for is read, and files that lie are refused."""

import threading

import numpy as np
import polars as pl
import pytest
from numba import njit
from support.model_files import handmade, minilm_file, mixed_model

from aq2_pipeline import InputValueError, scan_safetensors
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.parquet.file import QuantizedFile
from aq2_pipeline.io.tables import source as scanning
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
