"""`convert`: from any source to any sink, whole or in chunks, with the same bytes; what is left alone is said."""

import math
import os

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from support.model_files import minilm_file, mixed_model, names_in, wordllama_file

from aq2_pipeline import FormatError, InputValueError, register
from aq2_pipeline.io import convert
from aq2_pipeline.io.convert import dequantize_file, quantize_file
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.parquet import QuantizedFile, write_quantized
from aq2_pipeline.io.recipes import Recipe
from aq2_pipeline.io.targets import TARGETS, Options, sink_for, target_for

RNG = np.random.default_rng(5)
FORMATS = [target.name for target in TARGETS if target.name in {"parquet", "gguf", "safetensors"}]


@pytest.fixture(scope="session")
def minilm(tmp_path_factory):
    """Return the path of all-MiniLM-L6-v2: 103 float32 tensors, and one of int64."""
    return minilm_file(tmp_path_factory.mktemp("minilm"))


@pytest.fixture
def mixed(tmp_path):
    """Return the path of a file with every float dtype and two others."""
    return mixed_model(tmp_path / "mixed.safetensors")


@pytest.fixture
def model(tmp_path):
    """Return the path of a model of matrices, convolutions, experts, long vectors, halves and integers."""
    entries = {
        "a.weight": RNG.normal(size=(70, 256)).astype(np.float32),
        "a.bias": RNG.normal(size=9000).astype(np.float32),
        "b.conv": RNG.normal(size=(40, 16, 3, 3)).astype(np.float32),
        "b.half": RNG.normal(size=(65, 128)).astype(np.float16),
        "c.experts": RNG.normal(size=(5, 33, 256)).astype(np.float32),
        "c.ids": np.arange(12000).reshape(100, 120),
        "d.double": RNG.normal(size=(50, 96)),
    }
    save_file(entries, tmp_path / "model.safetensors", {"format": "pt", "note": "ü"})
    return tmp_path / "model.safetensors"


def written(model, target, recipe=None, **options):
    """Convert a file, and return the target's bytes."""
    opened = open_source(model)
    convert.convert(opened, target, sink_for(target_for(target), Options(opened, str(recipe or ""))), recipe, **options)
    return target.read_bytes()


def layers_of(path):
    """Return what a reader sees of every layer: its shape, dtype, scheme and bytes, chunks joined."""
    found = {}
    opened = open_source(path)
    for form in ("weights", "raw"):
        kept = [p for p in opened.parts() if (opened.holds_weights(p.tensor)) == (form == "weights")]
        for table in opened.batches(kept, form, chunked=True):
            for row in table.to_pylist():
                key = row["layer_name"]
                values = row["weights"]
                data = np.array(values, np.float32).tobytes() if form == "weights" else values
                found.setdefault(key, {})[row["start"] or 0] = data
    return {
        t.name: (t.shape, opened.held_as(t), b"".join(v for _, v in sorted(found[t.name].items())))
        for t in opened.tensors
    }


# --- Parquet and back ------------------------------------------------------------------------------------------------


def test_model_survives_the_round_trip(minilm, tmp_path):
    """MiniLM to Parquet and back: every tensor in its shape, within half a scale or as it was."""
    report = quantize_file(minilm, tmp_path / "q.parquet", Recipe("int8_g64"))
    back = dequantize_file(tmp_path / "q.parquet", tmp_path / "back.safetensors")
    original, decoded = load_file(minilm), load_file(tmp_path / "back.safetensors")
    assert not [layer for layer in back.layers if layer.left_alone]
    vectors = {name for name, tensor in original.items() if tensor.ndim < 2}
    kept = {layer.name for layer in report.layers if layer.left_alone}
    assert kept == vectors | {"embeddings.position_ids"}
    assert decoded.keys() == original.keys()
    scales = {}
    for row in _stored(tmp_path / "q.parquet"):
        scales[row["layer_name"]] = max([scales.get(row["layer_name"], 0), *row["scales"]])
    for name, weights in decoded.items():
        assert (weights.dtype, weights.shape) == (original[name].dtype, original[name].shape)
        assert np.abs(weights - original[name]).max() <= scales.get(name, 0) * 0.500001
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
        stored = {x.name: x.n_bytes for x in file.layers if x.scheme}
    assert stored == {x.name: x.n_bytes for x in report.layers if x.scheme}
    for layer in report.layers:
        assert (layer.left_alone is None) == (layer.scheme not in (None, "f32"))
        if layer.scheme == "f32":
            np.testing.assert_array_equal(original[layer.name], decoded[layer.name])


def test_float16_model_survives_the_round_trip(tmp_path):
    """A float16 table stored as `f16` comes back exactly, as float16."""
    quantize_file(wordllama_file(), tmp_path / "q.parquet", Recipe("f16"))
    dequantize_file(tmp_path / "q.parquet", tmp_path / "back.safetensors")
    original, decoded = load_file(wordllama_file()), load_file(tmp_path / "back.safetensors")
    np.testing.assert_array_equal(decoded["embedding.weight"], original["embedding.weight"], strict=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_same_input_gives_the_same_file(model, tmp_path, kind):
    """Twice the same input gives the same bytes, whatever the threads."""
    scheme = "q8_0" if kind == "gguf" else "int4_g64"
    one, two = (written(model, tmp_path / f"{n}.{kind}", Recipe(scheme), threads=n) for n in (1, 2))
    assert one == two


def test_row_groups_are_bounded_by_bytes(minilm, tmp_path, monkeypatch):
    """No row group stands for more weights than the limit, unless one layer does; one big table is cut too."""
    written(minilm, tmp_path / "q.parquet", Recipe("int4_g64"))
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


def test_file_says_what_made_it(model, tmp_path):
    """The key-value metadata has version, recipe, and the source's name, tensors and metadata; nothing of the day."""
    quantize_file(model, tmp_path / "q.parquet", Recipe(mode="base", bits=3))
    with QuantizedFile(tmp_path / "q.parquet") as file:
        found = file.metadata
    keys = {"aq2_pipeline", "aq2.recipe", "aq2.source", "aq2.source_tensors_sha256", "aq2.source_metadata"}
    assert found.keys() == keys
    assert (found["aq2.recipe"], found["aq2.source"]) == ("policy base, 3 bits", model.name)
    assert open_source(tmp_path / "q.parquet").metadata == {"format": "pt", "note": "ü"}


def test_bad_value_names_the_layer_and_leaves_the_old_file(tmp_path):
    """A NaN names its layer and position; the earlier target stays, and no temporary file."""
    save_file({"a": np.ones((2, 2), np.float32), "b": np.array([1, np.nan], np.float32)}, tmp_path / "m.safetensors")
    (tmp_path / "q.parquet").write_bytes(b"old")
    with pytest.raises(InputValueError, match="not finite") as caught:
        quantize_file(tmp_path / "m.safetensors", tmp_path / "q.parquet", Recipe("f16", rules=(("b", "int4_g64"),)))
    assert (caught.value.layer, caught.value.row, caught.value.position) == ("b", None, 1)
    assert (tmp_path / "q.parquet").read_bytes() == b"old"
    assert names_in(tmp_path) == ["m.safetensors", "q.parquet"]


def test_model_without_floats_is_an_error(tmp_path):
    """A file with nothing to quantize says how many tensors it has."""
    save_file({"a": np.arange(3)}, tmp_path / "m.safetensors")
    with pytest.raises(InputValueError, match="0 of 1 tensors"):
        quantize_file(tmp_path / "m.safetensors", tmp_path / "q.parquet", Recipe())


def test_source_is_not_its_own_target(mixed):
    """Writing a file over its source is refused."""
    before = mixed.read_bytes()
    with pytest.raises(InputValueError, match="both source and target"):
        quantize_file(mixed, mixed, Recipe(), to="parquet")
    assert mixed.read_bytes() == before


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
