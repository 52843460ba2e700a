"""`convert`: from any source to any sink, whole or in chunks, with the same bytes; what is left alone is said."""

import math
import os

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from support.model_files import handmade, minilm_file, mixed_model, names_in, wordllama_file

import aq2_pipeline
from aq2_pipeline import FormatError, InputValueError, SchemeError, register, schemes
from aq2_pipeline.io import convert
from aq2_pipeline.io.convert import dequantize_file, quantize_file
from aq2_pipeline.io.gguf.layout import header_of
from aq2_pipeline.io.gguf.values import key_value
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.parquet import sink
from aq2_pipeline.io.parquet.file import QuantizedFile
from aq2_pipeline.io.parquet.origin import metadata_of
from aq2_pipeline.io.parquet.writing import write_quantized
from aq2_pipeline.io.recipes import Recipe
from aq2_pipeline.io.tables import source
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


def decoded_rows(path):
    """Return the layer, start, scheme and weights of each row with codes, by Polars."""
    columns = ["layer_name", pl.col("^start$"), pl.col("quantized").struct["scheme"].alias("scheme")]
    decoded = pl.col("quantized").aq2.dequantize().alias("weights")
    frame = pl.read_parquet(path).filter(pl.col("quantized").is_not_null()).select(*columns, decoded)
    if "start" not in frame.columns:
        frame = frame.with_columns(start=0)
    rows = frame.select("layer_name", pl.col("start").fill_null(0), "scheme", "weights").rows()
    return [(name, start, scheme, list(values)) for name, start, scheme, values in rows]


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
    monkeypatch.setattr("aq2_pipeline.io.parquet.writing.ROW_GROUP_BYTES", 2**22)
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


@pytest.mark.parametrize("large", [1, 200, 1 << 40])
def test_large_rows_alone_are_the_same_rows(large, model, tmp_path, monkeypatch):
    """Which rows of a row group are written from their own arrays changes neither rows nor row groups."""
    written(model, tmp_path / "q.parquet", Recipe("int4_g64", rules=(("*.bias", "f32"),)))
    monkeypatch.setattr(sink, "_LARGE", large)
    monkeypatch.setattr(convert, "CHUNK_WEIGHTS", 4096)
    written(model, tmp_path / "own.parquet", Recipe("int4_g64", rules=(("*.bias", "f32"),)))
    aq2_pipeline.sink_parquet(pl.scan_parquet(tmp_path / "own.parquet"), tmp_path / "again.parquet")
    expected = {name: values for name, _, _, values in decoded_rows(tmp_path / "q.parquet")}
    for name in ("own.parquet", "again.parquet"):
        found: dict[str, list[float]] = {}
        for layer, start, _, values in decoded_rows(tmp_path / name):
            assert start == len(found.setdefault(layer, []))
            found[layer] += values
        assert found == expected


def test_key_values_of_gguf_go_through_parquet(tmp_path):
    """GGUF to Parquet and back gives the same file, types and strings that are no text included."""
    entries = [
        key_value("general.architecture", "llama"),
        key_value("general.file_type", 7, "u32"),
        key_value("llama.rope.freq_base", 1e4, "f32"),
        key_value("llama.context_length", 4096, "u64"),
        key_value("tokenizer.ggml.tokens", ["ü", b"\xff"]),
        key_value("tokenizer.ggml.scores", [0.5, -0.0], "f32"),
        key_value("empty", [], "i8"),
    ]
    codes = aq2_pipeline.quantize(np.arange(64, dtype=np.float32), "q8_0").to_pylist()[0]["quantized_data"]
    header = header_of([("w", (2, 32), "Q8_0", 68)], entries).header
    (tmp_path / "m.gguf").write_bytes(header + codes + bytes(-len(codes) % 32))
    written(tmp_path / "m.gguf", tmp_path / "m.parquet")
    written(tmp_path / "m.parquet", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()
    assert open_source(tmp_path / "m.parquet").metadata["tokenizer.ggml.tokens"] == ["ü", b"\xff"]


@pytest.mark.parametrize("text", ["*", "R0dV", "R0dVRgMAAAA=", "R0dVRgMAAAAAAAAAAAAAAP////////8="])
def test_damaged_key_values_name_file_and_key(text, tmp_path):
    """What is no base64, or no header of GGUF, is a FormatError."""
    with pytest.raises(FormatError, match=r"m\.parquet.*aq2\.source_gguf_metadata"):
        metadata_of({"aq2.source_gguf_metadata": text}, tmp_path / "m.parquet")


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


# --- chunks ----------------------------------------------------------------------------------------------------------

RECIPES = {
    "parquet": [
        *("int4_g64_asym", "int3_g32", "int4_channel", "int8_tensor", "nf4_g64", "int4_g64_rot64", "q4_k", "mxfp4"),
        "nvfp4_tensor",
    ],
    "gguf": ["q4_0", "q6_k", "bf16"],
    "safetensors": ["int4_g64", "q8_0"],
}


@pytest.fixture
def small_chunks(monkeypatch):
    """Have long tensors cut into chunks of 4,096 weights, and read 20,000 bytes at a time."""
    monkeypatch.setattr(convert, "CHUNK_WEIGHTS", 4096)
    monkeypatch.setattr(source, "READ_BYTES", 20_000)


@pytest.mark.parametrize(("kind", "scheme"), [(kind, scheme) for kind in FORMATS for scheme in RECIPES[kind]])
def test_chunks_give_the_bytes_of_whole_layers(model, tmp_path, monkeypatch, kind, scheme):
    """Every layer decodes to the same bytes in chunks and whole, vectors and convolutions too; a file is the same."""
    recipe = Recipe(scheme, rules=(("a.bias", scheme), ("b.conv", "f16" if scheme == "int4_g64_rot64" else scheme)))
    if kind == "gguf":
        recipe = Recipe(scheme, rules=(("*.conv", "f16"), ("a.bias", "f16")))
    elif schemes.parse(scheme).block > 1:
        recipe = Recipe(scheme, rules=(("a.bias", "q8_0" if scheme == "nvfp4_tensor" else "f16"),))
        save_file({"a.bias": np.ones(9024, np.float32), "w": RNG.normal(size=(64, 512)).astype(np.float32)}, model)
    whole = written(model, tmp_path / f"whole.{kind}", recipe)
    monkeypatch.setattr(convert, "CHUNK_WEIGHTS", 4096)
    monkeypatch.setattr(source, "READ_BYTES", 20_000)
    cut = written(model, tmp_path / f"cut.{kind}", recipe)
    assert layers_of(tmp_path / f"cut.{kind}") == layers_of(tmp_path / f"whole.{kind}")
    if kind != "parquet":
        assert cut == whole
    else:
        assert pl.read_parquet(tmp_path / "cut.parquet").height > pl.read_parquet(tmp_path / "whole.parquet").height


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.usefixtures("small_chunks")
def test_chunked_parquet_goes_anywhere(model, tmp_path, monkeypatch, kind):
    """A Parquet file of chunks becomes what the model itself becomes, of any format."""
    recipe = Recipe("q8_0", rules=(("*.conv", "keep"), ("d", "f32")))
    written(model, tmp_path / "q.parquet", recipe)
    written(tmp_path / "q.parquet", tmp_path / f"a.{kind}")
    monkeypatch.setattr(convert, "CHUNK_WEIGHTS", 1 << 22)
    written(model, tmp_path / f"b.{kind}", recipe)
    assert layers_of(tmp_path / f"a.{kind}") == layers_of(tmp_path / f"b.{kind}")


@pytest.mark.usefixtures("small_chunks")
def test_chunks_of_a_file_that_a_scheme_cannot_take(model, tmp_path):
    """A scheme with one scale for a layer refuses one that its file has in chunks, by name, and writes nothing."""
    written(model, tmp_path / "q.parquet", Recipe("f32"))
    with pytest.raises(SchemeError, match="one scale a tensor, and the row is a chunk") as caught:
        written(tmp_path / "q.parquet", tmp_path / "r.parquet", Recipe("int8_tensor"))
    assert caught.value.layer in {tensor.name for tensor in open_source(model).tensors}
    assert names_in(tmp_path) == ["model.safetensors", "q.parquet"]


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "snappy", "zstd"])
def test_compressions_hold_the_same_rows(model, tmp_path, compression):
    """Every column has the compression that was asked for, by both ways of writing; the rows are the same."""
    written(model, tmp_path / "plain.parquet", Recipe("int2_g32_asym"))
    plain = pl.read_parquet(tmp_path / "plain.parquet")
    sink = sink_for(target_for("q.parquet"), Options(open_source(model), "", compression=compression))
    convert.convert(model, tmp_path / "command.parquet", sink, Recipe("int2_g32_asym"))
    aq2_pipeline.sink_parquet(plain, tmp_path / "table.parquet", compression=compression)
    for name in ("command.parquet", "table.parquet"):
        assert pl.read_parquet(tmp_path / name).equals(plain)
        group = pq.read_metadata(tmp_path / name).row_group(0)
        assert {group.column(k).compression for k in range(group.num_columns)} == {compression.upper()}


def test_an_unknown_compression_is_refused(model, tmp_path):
    """A compression that is not written is an error that lists those that are; nothing is written."""
    with pytest.raises(InputValueError, match=r"'zip' is not written.*uncompressed, lz4, snappy, zstd"):
        sink_for(target_for("q.parquet"), Options(open_source(model), "", compression="zip"))
    with pytest.raises(InputValueError, match="'zip' is not written"):
        aq2_pipeline.sink_parquet(pl.DataFrame(), tmp_path / "q.parquet", compression="zip")
    assert names_in(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("target", "option", "takers"),
    [
        ("gguf", {"scale_dtype": "BF16"}, "compressed-tensors, mlx"),
        ("mlx", {"compression": "zstd"}, "parquet"),
        ("parquet", {"config_from": "folder"}, "gguf, compressed-tensors, mlx"),
        ("parquet", {"dtype": "F16"}, "safetensors"),
    ],
)
def test_an_option_that_a_target_has_no_use_for_is_refused(model, target, option, takers):
    """An option that would change nothing is an error, which names the formats that it is for."""
    [name] = option
    with pytest.raises(InputValueError, match=f"format {target} has no use for {name}=.*leave it out.*{takers}$"):
        sink_for(target_for("m", target), Options(open_source(model), "", **option))


@pytest.mark.usefixtures("small_chunks")
def test_bad_value_in_a_chunk_has_its_place_in_the_layer(tmp_path):
    """The position of a bad value is counted in the layer, whatever the chunks; in a cast, too."""
    weights = np.ones((100, 64), np.float32)
    weights[90, 5] = np.nan
    save_file({"w": weights}, tmp_path / "m.safetensors")
    with pytest.raises(InputValueError, match="not finite") as caught:
        written(tmp_path / "m.safetensors", tmp_path / "q.parquet", Recipe("int4_g64"))
    assert (caught.value.layer, caught.value.position) == ("w", 90 * 64 + 5)
    weights[90, 5] = 1e6
    save_file({"w": weights}, tmp_path / "m.safetensors")
    written(tmp_path / "m.safetensors", tmp_path / "q.parquet", Recipe("f32"))
    with pytest.raises(InputValueError, match="1000000") as caught:
        dequantize_file(tmp_path / "q.parquet", tmp_path / "x", dtype="F16")
    assert (caught.value.layer, caught.value.position) == ("w", 90 * 64 + 5)


def test_memory_bounds_chunks():
    """`memory` decides the weights of a chunk, and too little of it is an error that says how much there must be."""
    assert convert.chunk_weights_for(None) == convert.chunk_weights_for(10**12) == convert.CHUNK_WEIGHTS
    assert convert.chunk_weights_for(450 << 20) == (50 << 20) // 96
    with pytest.raises(InputValueError, match="at least 426MB"):
        convert.chunk_weights_for(1 << 20)


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_a_round_trip_loses_nothing(model, tmp_path, kind):
    """Safetensors to another format and back: every tensor, name, shape, dtype and byte, in the same order."""
    written(model, tmp_path / f"m.{kind}")
    written(tmp_path / f"m.{kind}", tmp_path / "back.safetensors")
    assert layers_of(tmp_path / "back.safetensors") == layers_of(model)
    original, back = (open_source(path) for path in (model, tmp_path / "back.safetensors"))
    assert [t[:3] for t in back.tensors] == [t[:3] for t in original.tensors]
    assert back.metadata == (original.metadata if kind != "gguf" else {"general.architecture": "unknown"})


@pytest.mark.parametrize("kind", ["parquet", "safetensors"])
def test_bytes_of_every_dtype_come_back(tmp_path, kind):
    """Tensors of all dtypes that safetensors knows are stored as they came: six bits a number, none, and no axis."""
    bits = {
        "F4": 4,
        "F6_E2M3": 6,
        "C64": 64,
        "BOOL": 8,
        "F8_E8M0": 8,
        "U16": 16,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "BF16": 16,
    }
    entries = {name: (name, [2, 12], RNG.bytes(24 * n // 8)) for name, n in bits.items()}
    entries |= {"none": ("I16", [0, 3], b""), "one": ("U64", [], RNG.bytes(8))}
    path = handmade(tmp_path / "given.safetensors", entries)
    written(path, tmp_path / f"m.{kind}")
    written(tmp_path / f"m.{kind}", tmp_path / "back.safetensors")
    raw = [
        dict(aq2_pipeline.scan_safetensors(p, raw=True).select("layer_name", "weights").collect().iter_rows())
        for p in (path, tmp_path / "back.safetensors")
    ]
    assert raw[0] == raw[1]
    assert raw[0] == {name: entry[2] for name, entry in entries.items()}


def test_floats_that_are_stored_as_they_came_are_weights(mixed, tmp_path):
    """F64 and F8 tensors in the column `raw` are read as weights: they are quantized, and compared."""
    written(mixed, tmp_path / "m.parquet")
    assert layers_of(tmp_path / "m.parquet")["f64"] == layers_of(mixed)["f64"]
    quantize_file(tmp_path / "m.parquet", tmp_path / "a.parquet", Recipe("int4_g8"))
    quantize_file(mixed, tmp_path / "b.parquet", Recipe("int4_g8"))
    one, two = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in "ab")
    assert one.equals(two)


def test_names_without_data_are_left_out_and_said(mixed, tmp_path):
    """Another writer's rows without codes and bytes are left alone by name, and nothing is made up for them."""
    lazy = aq2_pipeline.scan_safetensors(mixed)
    codes = pl.when(pl.col("weights").is_not_null()).then(pl.col("weights").aq2.quantize("int8_g8"))
    lazy.select("layer_name", "shape", "dtype", quantized=codes).sink_parquet(tmp_path / "q.parquet")
    report = dequantize_file(tmp_path / "q.parquet", tmp_path / "m.safetensors")
    [left] = [layer for layer in report.layers if layer.left_alone]
    assert (left.name, left.left_alone) == ("i64", "only its name is stored")
    there = {tensor.name for tensor in open_source(tmp_path / "m.safetensors").tensors}
    assert there == {layer.name for layer in report.layers} - {"i64"}


def test_a_layer_that_a_target_cannot_hold_is_named(mixed, tmp_path):
    """A tensor that a format does not have is refused by name before anything is written, and a scheme at once."""
    (tmp_path / "m.gguf").write_bytes(b"old")
    for recipe, match in (
        (None, "'f8': gguf: GGUF has no tensors of F8_E4M3"),
        (Recipe("int4_g64"), "^gguf: GGUF has no"),
    ):
        with pytest.raises(SchemeError, match=match) as caught:
            quantize_file(mixed, tmp_path / "m.gguf", recipe) if recipe else written(mixed, tmp_path / "m.gguf")
        assert "it takes bf16, f16, f32, iq4_nl" in caught.value.hint
    assert (tmp_path / "m.gguf").read_bytes() == b"old"
    assert names_in(tmp_path) == ["m.gguf", "mixed.safetensors"]


def test_dry_run_is_what_is_made(model, tmp_path):
    """A dry run tells each layer's scheme, reason and bytes as the run does, and a file's size if none packs it."""
    opened = open_source(model)
    for kind, scheme in (("gguf", "q4_k"), ("safetensors", "int4_g64"), ("parquet", "int4_g64")):
        recipe = Recipe(scheme)
        sink = sink_for(target_for(f"x.{kind}"), Options(opened, str(recipe)))
        planned = convert.dry_run(opened, sink, recipe)
        made = convert.convert(opened, tmp_path / f"x.{kind}", sink, recipe)
        for one, two in zip(planned.layers, made.layers, strict=True):
            assert {**one.as_json(), "mse": two.mse, "sqnr_db": two.as_json()["sqnr_db"]} == two.as_json()
        if kind != "parquet":
            assert planned.target_bytes == made.target_bytes == (tmp_path / f"x.{kind}").stat().st_size


def test_progress_counts_every_byte_once(model, tmp_path, small_chunks):  # noqa: ARG001 - small chunks are the point
    """Progress is told the bytes of the source, all of them, and each layer's report once."""
    told, reports = [], []

    def progress(name, n_bytes, layer):
        told.append(n_bytes)
        if layer is not None:
            assert layer.name == name
            reports.append(name)

    written(model, tmp_path / "q.parquet", Recipe("int4_g64"), progress=progress)
    opened = open_source(model)
    assert sum(told) == sum(tensor.n_bytes for tensor in opened.tensors)
    assert sorted(reports) == sorted(tensor.name for tensor in opened.tensors)


def test_progress_that_raises_stops_the_run(model, tmp_path):
    """What a progress function raises reaches the caller, and nothing is written."""

    def progress(*_):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        written(model, tmp_path / "q.parquet", Recipe("int4_g64"), progress=progress)
    assert names_in(tmp_path) == ["model.safetensors"]


# --- files that change -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "parquet"])
@pytest.mark.parametrize("how", ["cut", "changed", "replaced"])
def test_source_that_changes_while_it_is_read(model, tmp_path, monkeypatch, kind, how):
    """A source that is cut, written or replaced during a run is a FormatError with its name; the target stays."""
    monkeypatch.setattr(convert, "CHUNK_WEIGHTS", 4096)
    monkeypatch.setattr("aq2_pipeline.io.parquet.file.ROW_GROUP_BYTES", 4096 * 4)
    path = model
    if kind == "parquet":
        path = tmp_path / "m.parquet"
        written(model, path)
    (tmp_path / "q.gguf").write_bytes(b"old")
    done = []

    def progress(*_):
        if not done:
            done.append(1)
            if how == "cut":
                os.truncate(path, path.stat().st_size // 2)
            elif how == "changed":
                os.utime(path, ns=(1, 1))
            else:
                (tmp_path / "new").write_bytes(path.read_bytes()[:-8] + bytes(8))
                (tmp_path / "new").replace(path)

    recipe = Recipe("q8_0", rules=(("*.conv", "f16"),))
    with pytest.raises(FormatError, match=path.name):
        written(path, tmp_path / "q.gguf", recipe, progress=progress)
    assert (tmp_path / "q.gguf").read_bytes() == b"old"
    assert not [name for name in names_in(tmp_path) if ".tmp-" in name]


def test_a_folder_around_the_source_is_no_target(tmp_path):
    """A target folder that holds the source is refused, even where its manifest knows the file."""
    save_file({"w": np.ones((2, 2), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputValueError, match="both source and target"):
        convert._check_apart(open_source(tmp_path / "model.safetensors"), tmp_path)
