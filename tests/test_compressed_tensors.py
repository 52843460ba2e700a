"""Folders of compressed-tensors: layout, config, what is left alone, what is refused, and what is left of a failure."""

import json
import re

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

import aq2_pipeline
from aq2_pipeline import FormatError, InputTypeError, InputValueError, SchemeError
from aq2_pipeline.io.convert import convert
from aq2_pipeline.io.folders import integer_codes
from aq2_pipeline.io.folders.compressed_tensors import CompressedTensorsSink
from aq2_pipeline.io.folders.integer_codes import pack, unpack
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.recipes import Recipe
from aq2_pipeline.io.safetensors import layout as tensor_files

RNG = np.random.default_rng(3)
SCHEMA = {
    "layer_name": pl.String,
    "shape": pl.List(pl.Int64),
    "dtype": pl.String,
    "scheme": pl.String,
    "weights": pl.List(pl.Float32),
}


def table(**layers):
    """Return a layer table; `layers` are name -> (array, scheme or None), `__` in names stands for a dot."""
    rows = [
        (name.replace("__", "."), list(w.shape), "F32", scheme, np.asarray(w, np.float32).reshape(-1))
        for name, (w, scheme) in layers.items()
    ]
    coded = pl.col("weights").aq2.quantize(pl.col("scheme").fill_null("f32"), shape=pl.col("shape"))
    return pl.DataFrame(rows, SCHEMA, orient="row").with_columns(
        quantized=pl.when(pl.col("scheme").is_not_null()).then(coded)
    )


def by_hand(scheme, shape, data, scales=(), zero_points=(), *, name="up.weight", row_length=None):
    """Return a layer table of one row with any codes."""
    length = int(np.prod(shape))
    row = {
        "scheme": scheme,
        "length": length,
        "row_length": row_length or shape[1],
        "quantized_data": bytes(data),
        "scales": list(scales),
        "zero_points": list(zero_points),
    }
    kind = pa.struct(
        {
            "scheme": pa.string(),
            "length": pa.int64(),
            "row_length": pa.int64(),
            "quantized_data": pa.binary(),
            "scales": pa.list_(pa.float32()),
            "zero_points": pa.list_(pa.float32()),
        }
    )
    return pa.table({"layer_name": [name], "shape": [list(shape)], "quantized": pa.array([row], kind)})


def sunk(given, folder, **options):
    """Write a folder; return its tensors, its config and its manifest."""
    aq2_pipeline.sink_compressed_tensors(given, folder, **options)
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= tensors_of(path)
    config = json.loads((folder / "config.json").read_text())
    return tensors, config.get("quantization_config"), json.loads((folder / "aq2-manifest.json").read_text())


def tensors_of(path):
    """Return the tensors of a file; floats that NumPy does not know as their bits."""
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    kinds = {"F8_E4M3": "u1", "U8": "u1", "I8": "i1", "F16": "f2", "BF16": "u2", "F32": "f4", "I32": "i4", "I64": "i8"}
    found = {}
    for name, entry in json.loads(content[8 : 8 + n]).items():
        if name != "__metadata__":
            begin, end = (8 + n + at for at in entry["data_offsets"])
            found[name] = np.frombuffer(content[begin:end], kinds[entry["dtype"]]).reshape(entry["shape"])
    return found


def files_of(folder):
    """Return name -> content of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def decoded(tensors, name, bits, *, asymmetric):
    """Return the weights of integer tensors, by the layout's own definition."""
    n_rows, columns = tensors[f"{name}_shape"]
    codes = bits_of(tensors[f"{name}_packed"], bits)[:, :columns].astype(np.float32)
    scales = tensors[f"{name}_scale"].astype(np.float32)
    zeros = np.float32(1 << (bits - 1))
    if asymmetric:
        zeros = bits_of(tensors[f"{name}_zero_point"].T, bits)[:, :n_rows].T.astype(np.float32)
        zeros = np.repeat(zeros, columns // zeros.shape[1], 1)
    scales = scales if scales.size == 1 else np.repeat(scales, columns // scales.shape[1], 1)
    return (codes - zeros) * scales


def bits_of(words, bits):
    """Return rows of words as rows of codes, bit by bit."""
    stream = np.unpackbits(
        np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1), axis=1, bitorder="little"
    )
    n = stream.shape[1] // bits
    return (stream[:, : n * bits].reshape(len(words), n, bits) << np.arange(bits, dtype=np.uint8)).sum(2)


def test_four_bits_by_hand(tmp_path):
    """Eight codes a word, the first lowest; scales a group; the shape; the config names the module."""
    given = by_hand("int4_g8", (2, 16), bytes(range(16)), [0.5, 1, 2, 4])
    tensors, config, manifest = sunk(given, tmp_path / "m")
    assert tensors["up.weight_packed"].dtype == np.int32
    assert tensors["up.weight_packed"].tolist() == [[0x03020100, 0x07060504], [0x0B0A0908, 0x0F0E0D0C]]
    assert tensors["up.weight_scale"].tolist() == [[0.5, 1], [2, 4]]
    assert tensors["up.weight_shape"].tolist() == [2, 16]
    assert config["format"] == "pack-quantized"
    assert config["config_groups"]["group_0"] == {
        "targets": ["up"],
        "weights": {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": 8,
            "dynamic": False,
        },
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized",
    }
    assert manifest["layers"] == [{"name": "up.weight", "shape": [2, 16], "dtype": None, "scheme": "int4_g8"}]
    assert manifest["files"] == {
        name: len(content) for name, content in files_of(tmp_path / "m").items() if name != "aq2-manifest.json"
    }


def test_three_bits_run_across_words(tmp_path):
    """Code i is at bit 3 i of its row, whether groups fill bytes or not; rows end with zeros."""
    codes = RNG.integers(0, 8, (3, 20)).astype(np.uint8)
    for group in (20, 4):
        data = pack(codes.reshape(-1, group), 3, -(-group * 3 // 8))
        scales = np.ones(60 // group)
        given = by_hand(f"int3_g{group}", (3, 20), data.tobytes(), scales)
        words = sunk(given, tmp_path / f"m{group}")[0]["up.weight_packed"]
        assert words.shape == (3, 2)
        assert bits_of(words, 3)[:, :20].tolist() == codes.tolist()
        assert not bits_of(words, 1)[:, 60:].any()


@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_points_are_packed_by_column(bits, tmp_path):
    """Column j of the words holds those of group j, row by row; what is decoded is what we decode."""
    given = table(up__weight=(RNG.normal(size=(37, 48)) + 1, f"int{bits}_g16_asym"))
    tensors, config, _ = sunk(given, tmp_path / "m")
    assert tensors["up.weight_zero_point"].shape == (-(-37 * bits // 32), 3)
    found = bits_of(tensors["up.weight_zero_point"].T, bits)[:, :37].T.reshape(-1)
    assert found.tolist() == given["quantized"].struct.field("zero_points")[0].to_list()
    ours = given["quantized"].aq2.dequantize()[0].to_numpy()
    assert (decoded(tensors, "up.weight", bits, asymmetric=True).reshape(-1) == ours).all()
    assert config["config_groups"]["group_0"]["weights"]["symmetric"] is False


@pytest.mark.parametrize("scheme", ["int3_channel", "int5_tensor", "int4_g1000", "int7_g4", "int6_g48:mse"])
def test_every_layout_decodes_as_ours(scheme, tmp_path):
    """Channels, tensors, groups longer than rows, groups that end inside bytes, and searched scales."""
    given = table(up__weight=(RNG.normal(size=(35, 48)), scheme))
    tensors, config, _ = sunk(given, tmp_path / "m")
    ours = given["quantized"].aq2.dequantize()[0].to_numpy()
    assert (decoded(tensors, "up.weight", int(scheme[3]), asymmetric=False).reshape(-1) == ours).all()
    strategy = "channel" if scheme in {"int3_channel", "int4_g1000"} else "tensor" if "tensor" in scheme else "group"
    assert config["config_groups"]["group_0"]["weights"]["strategy"] == strategy


def test_large_matrices_are_repacked_in_blocks(tmp_path, monkeypatch):
    """Where codes are taken out and put together, blocks of rows give what the whole does."""
    for scheme in ("int3_tensor", "int3_g4", "int5_g4_asym"):
        given = table(up__weight=(RNG.normal(size=(67, 20)), scheme))
        whole = sunk(given, tmp_path / f"{scheme}-whole")[0]
        monkeypatch.setattr(integer_codes, "_BLOCK", 200)
        cut = sunk(given, tmp_path / f"{scheme}-cut")[0]
        monkeypatch.undo()
        assert all((whole[name] == cut[name]).all() for name in whole)


def test_a_tensors_zero_point_is_a_signed_byte(tmp_path):
    """The one zero point of a tensor is not packed, and counts from the middle of the codes."""
    given = by_hand("int4_tensor_asym", (1, 8), bytes(4), [1.0], [3.0])
    tensors, _, _ = sunk(given, tmp_path / "m")
    assert (tensors["up.weight_zero_point"].dtype, tensors["up.weight_zero_point"].tolist()) == (np.int8, [-5])
    assert tensors["up.weight_scale"].tolist() == [1]


def test_zero_groups_have_the_scale_one_and_codes_of_zero(tmp_path):
    """Whatever codes they came with: other software divides by scales."""
    given = by_hand("int4_g8_asym", (2, 8), bytes(range(8)), [0.0, 2.0], [5.0, 1.0])
    tensors, _, _ = sunk(given, tmp_path / "m")
    assert tensors["up.weight_scale"].tolist() == [[1], [2]]
    assert tensors["up.weight_packed"].view(np.uint32).tolist() == [[0x55555555], [0x07060504]]
    assert not decoded(tensors, "up.weight", 4, asymmetric=True)[0].any()


def test_nvfp4_of_a_tensor_by_hand(tmp_path):
    """Scale bytes and codes apart; the scale of the tensor as its inverse."""
    groups = [[0x38, *range(8)], [0x40, *range(8, 16)], [0, *[0x9A] * 8], [0x7E, *[0xFF] * 8]]
    given = by_hand("nvfp4_tensor", (2, 32), np.ravel(groups).tolist(), [0.25])
    tensors, config, _ = sunk(given, tmp_path / "m")
    assert tensors["up.weight_packed"].tolist() == [[*range(16)], [*[0x88] * 8, *[0xFF] * 8]]
    assert tensors["up.weight_scale"].tolist() == [[0x38, 0x40], [0x38, 0x7E]]
    assert tensors["up.weight_global_scale"].tolist() == [4]
    assert "up.weight_shape" not in tensors
    assert config["format"] == "nvfp4-pack-quantized"
    weights = config["config_groups"]["group_0"]["weights"]
    assert (weights["strategy"], weights["group_size"], weights["type"]) == ("tensor_group", 16, "float")


def test_nvfp4_of_ggml_by_hand(tmp_path):
    """Codes j and j + 8 of a group come side by side; a scale has no sign, 127 is 0, and the tensor's scale is 1."""
    codes = np.arange(16) % 16
    halves = codes[:8] | codes[8:] << 4
    block = bytes([0x38, 0xC0, 127, 0x01]) + bytes(halves.astype(np.uint8)) * 4
    tensors, _, _ = sunk(by_hand("nvfp4", (1, 64), block), tmp_path / "m")
    pairs = (codes[0::2] | codes[1::2] << 4).tolist()
    assert tensors["up.weight_packed"].reshape(4, 8)[[0, 1, 3]].tolist() == [pairs] * 3
    assert tensors["up.weight_packed"].reshape(4, 8)[2].tolist() == [0] * 4 + [0x88] * 4
    assert tensors["up.weight_scale"].tolist() == [[0x38, 0x40, 0x38, 0x01]]
    assert tensors["up.weight_global_scale"].tolist() == [1]


def test_mxfp4_by_hand(tmp_path):
    """Codes j and j + 16 of a block come side by side, and its exponent as it is."""
    codes = np.arange(32) % 16
    block = bytes([130]) + bytes((codes[:16] | codes[16:] << 4).astype(np.uint8))
    tensors, config, _ = sunk(by_hand("mxfp4", (1, 32), block), tmp_path / "m")
    assert tensors["up.weight_packed"].tolist() == [(codes[0::2] | codes[1::2] << 4).tolist()]
    assert (tensors["up.weight_scale"].dtype, tensors["up.weight_scale"].tolist()) == (np.uint8, [[130]])
    assert set(tensors) == {"up.weight_packed", "up.weight_scale"}
    assert config["config_groups"]["group_0"]["weights"]["scale_dtype"] == "torch.uint8"


@pytest.mark.parametrize(
    ("scheme", "shape", "data"),
    [("mxfp4", (1, 32), [255, *[0] * 16]), ("nvfp4", (1, 64), [255, *[0] * 35])],
)
def test_scales_that_are_nan_elsewhere_are_refused(scheme, shape, data, tmp_path):
    """E8M0's 255 and ggml's E4M3 of 255 are numbers here only."""
    with pytest.raises(InputValueError, match=r"layer 'up.weight'.*group 0"):
        sunk(by_hand(scheme, shape, bytes(data)), tmp_path / "m")


def test_several_schemes_are_several_groups(tmp_path):
    """Layers of one kind share a group, formats differ by group, and matrices without codes are ignored."""
    square = RNG.normal(size=(32, 32))
    given = table(
        a__weight=(square, "int4_g32"),
        b__weight=(square, "mxfp4"),
        c__weight=(square, "int4_g32"),
        d__weight=(square, "int8_channel_asym"),
        head__weight=(square, None),
        kept__weight=(square, "bf16"),
        norm__weight=(square[0], None),
        d__bias=(square[0], "f16"),
    )
    tensors, config, manifest = sunk(given, tmp_path / "m")
    assert config["format"] == "mixed-precision"
    groups = config["config_groups"]
    assert [groups[f"group_{k}"]["targets"] for k in range(3)] == [["a", "c"], ["b"], ["d"]]
    assert config["ignore"] == ["head", "kept"]
    assert (tensors["head.weight"] == square.astype(np.float32)).all()
    assert tensors["d.bias"].dtype == np.float16
    assert [entry.get("left_alone") for entry in manifest["layers"]] == [
        None,
        None,
        None,
        None,
        "the table has no codes of it",
        "the scheme 'bf16' keeps floats",
        "the table has no codes of it",
        "the scheme 'f16' keeps floats",
    ]


def test_bytes_of_any_dtype_are_written_as_they_came(tmp_path):
    """Integers, and floats with raw=True, keep their dtype and their bytes."""
    ids, halves = np.arange(6, dtype=np.int64), RNG.normal(size=(2, 3)).astype(np.float16)
    save_file({"a.weight": np.ones((4, 8), np.float32), "ids": ids, "h": halves}, tmp_path / "s.safetensors")
    lazy = aq2_pipeline.scan_safetensors(tmp_path / "s.safetensors", raw=True).rename({"weights": "raw"})
    is_a = pl.col("layer_name") == "a.weight"
    coded = pl.when(is_a).then(pl.col("raw")).otherwise(None).aq2.quantize("int8_g8", shape=pl.col("shape"))
    tensors, config, _ = sunk(lazy.with_columns(quantized=coded), tmp_path / "m")
    assert (tensors["ids"] == ids).all()
    assert tensors["h"].dtype == np.float16
    assert (tensors["h"] == halves).all()
    assert config["ignore"] == ["h"]


def test_the_models_config_and_files_come_along(tmp_path):
    """Of a folder: config.json but for its quantization, the tokenizer; no weights, no pickles, no index."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llama", "é": 1, "quantization_config": {"bits": 2}}')
    for name in ("tokenizer.json", "merges.txt", "spiece.model", "chat.jinja"):
        (source / name).write_text(name)
    for name in ("model.safetensors", "x.bin", "model.safetensors.index.json", ".hidden.json", "README.md"):
        (source / name).write_text("no")
    given = table(a__weight=(np.ones((2, 32)), "int4_g32"))
    sunk(given, tmp_path / "m", config_from=source)
    ours = {"config.json", "model.safetensors", "aq2-manifest.json"}
    assert set(files_of(tmp_path / "m")) == {"tokenizer.json", "merges.txt", "spiece.model", "chat.jinja"} | ours
    config = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["é"]) == ("llama", 1)
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    sunk(given, tmp_path / "n", config_from=source / "config.json")
    assert set(files_of(tmp_path / "n")) == ours


@pytest.mark.parametrize("content", ["[1]", "{", "\xff", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(content, tmp_path):
    """By its path, before the table is read."""
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(FormatError, match=r"config\.json.*JSON object"):
        aq2_pipeline.sink_compressed_tensors(None, tmp_path / "m", config_from=tmp_path)
    assert not (tmp_path / "m").exists()


def test_shards_have_an_index(tmp_path, monkeypatch):
    """Files of so many bytes at the most, each tensor in one, and an index that says in which."""
    monkeypatch.setattr(tensor_files, "SHARD_BYTES", 3000)
    given = table(**{f"l{k}__weight": (RNG.normal(size=(32, 64)), "int4_g32") for k in range(4)})
    tensors, _, manifest = sunk(given, tmp_path / "m")
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)
    names = [f"model-{k:05}-of-00002.safetensors" for k in (1, 2)]
    assert sorted(set(index["weight_map"].values())) == names
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert set(names) < set(manifest["files"])
    for name in names:
        assert set(load_file(tmp_path / "m" / name)) == {k for k, v in index["weight_map"].items() if v == name}


@pytest.mark.parametrize("scheme", ["int4_g32_asym", "int3_g4_asym", "int8_channel_asym", "int5_g64", "mxfp4", "nvfp4"])
def test_chunks_give_the_files_of_the_whole(scheme, tmp_path):
    """Byte for byte, but for nothing: the manifest names layers, not rows."""
    weights = RNG.normal(size=(100, 64)).astype(np.float32)
    save_file({"a.weight": weights, "b": weights[0]}, tmp_path / "s.safetensors")
    found = []
    for name, chunk in (("whole", None), ("cut", 32 * 64)):
        lazy = aq2_pipeline.scan_safetensors(tmp_path / "s.safetensors", chunk_weights=chunk)
        is_a = pl.col("layer_name") == "a.weight"
        lazy = lazy.with_columns(quantized=pl.when(is_a).then(pl.col("weights")).otherwise(None))
        lazy = lazy.with_columns(quantized=pl.col("quantized").aq2.quantize(scheme, shape=pl.col("shape")))
        sunk(lazy, tmp_path / name)
        found.append(files_of(tmp_path / name))
    assert found[0] == found[1]


def test_zero_points_of_chunks_begin_at_words(tmp_path):
    """A chunk that begins elsewhere than at a multiple of 32 rows is refused with what to take."""
    save_file({"a.weight": RNG.normal(size=(100, 64)).astype(np.float32)}, tmp_path / "s.safetensors")
    lazy = aq2_pipeline.scan_safetensors(tmp_path / "s.safetensors", chunk_weights=20 * 64)
    lazy = lazy.with_columns(quantized=pl.col("weights").aq2.quantize("int4_g32_asym", shape=pl.col("shape")))
    with pytest.raises(InputValueError, match=r"layer 'a.weight'.*row 20.*multiple of 2048"):
        sunk(lazy, tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]


@pytest.mark.parametrize(
    ("layer", "scheme", "shape", "told"),
    [
        ("a.weight", "q4_k", (4, 256), "the scheme q4_k is not held"),
        ("a.weight", "nf4_g64", (4, 256), "the scheme nf4_g64 is not held"),
        ("a.weight", "int4_g128_rot128", (4, 256), "the scheme int4_g128_rot128 is not held"),
        ("a.weight", "int4_g128", (4, 192), "groups of 128, which do not divide the 192 columns"),
        ("a.bias", "int4_g32", (4, 32), "no '.weight': leave it alone"),
        ("a.weight", "int4_g32", (128,), r"the shape is \[128\]: leave it alone"),
        ("a.weight", "int4_g32", (4, 32, 3, 3), "leave it alone"),
        ("a.weight", "int4_g32", (0, 32), "leave it alone"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(layer, scheme, shape, told, tmp_path):
    """With what can be, and nothing is written."""
    given = table(**{layer.replace(".", "__"): (np.ones(shape), scheme)})
    with pytest.raises(
        SchemeError, match=f"layer '{layer}': compressed-tensors: .*{told}.*Hint: it takes int2 to int8"
    ):
        sunk(given, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_zero_points_between_codes_are_refused(tmp_path):
    """Those of the method hqq, which are packed as integers."""
    given = table(up__weight=(RNG.normal(size=(4, 32)), "int4_g32_asym:hqq"))
    with pytest.raises(SchemeError, match=r"layer 'up.weight'.*zero point of group 0 is [0-9.]+.*hqq"):
        sunk(given, tmp_path / "m")


def test_codes_of_other_rows_than_the_matrix_are_refused(tmp_path):
    """Channels need the shape; groups that divide the columns do not."""
    weights = RNG.normal(size=(4, 32)).astype(np.float32)
    df = pl.DataFrame({"layer_name": ["a.weight"], "shape": [[4, 32]], "weights": [weights.reshape(-1)]})
    flat = df.with_columns(quantized=pl.col("weights").aq2.quantize("int4_channel"))
    with pytest.raises(FormatError, match=r"layer 'a.weight'.*rows of 128 weights.*32 columns.*shape="):
        sunk(flat, tmp_path / "m")
    flat, shaped = (
        df.with_columns(quantized=pl.col("weights").aq2.quantize("int4_g32", shape=shape)) for shape in (None, "shape")
    )
    sunk(flat, tmp_path / "flat")
    sunk(shaped, tmp_path / "shaped")
    assert files_of(tmp_path / "flat") == files_of(tmp_path / "shaped")


def test_scales_that_overflow_elsewhere_are_refused(tmp_path):
    """We clamp what decodes to infinity; other software does not."""
    with pytest.raises(InputValueError, match=r"layer 'up.weight'.*scale of group 1, 9.99"):
        sunk(by_hand("int4_g8", (2, 8), bytes(8), [1, 1e38]), tmp_path / "m")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("scheme", ["int4_g16", "int3_g4_asym", "int8_channel", "int5_tensor"])
def test_rounded_scales_come_before_codes(scheme, dtype, tmp_path):
    """Codes are round(w / s) + z with the scale that is stored, half to even, clamped."""
    weights = RNG.standard_t(3, size=(33, 48)).astype(np.float32)
    weights[0, :16] = 0
    given = table(up__weight=(weights, scheme))
    aq2_pipeline.sink_compressed_tensors(given, tmp_path / "m", scale_dtype=dtype)
    layer = aq2_pipeline.scan_safetensors(tmp_path / "m" / "model.safetensors").collect()
    shape, found_dtype, scales = layer.filter(layer_name="up.weight_scale").row(0)[1:]
    assert found_dtype == dtype
    ours = given["quantized"].struct.field("scales")[0].to_numpy()
    rounded = ours.astype(np.float16).astype(np.float32) if dtype == "F16" else bfloat16(ours)
    rounded = np.where(rounded == 0, np.float32(1), rounded)
    assert np.array(scales, np.float32).tolist() == rounded.tolist()
    bits, middle = int(scheme[3]), 2 ** (int(scheme[3]) - 1)
    zeros = given["quantized"].struct.field("zero_points")[0].to_numpy() if "asym" in scheme else np.array([middle])
    per_row = np.broadcast_to(rounded.reshape(shape if len(shape) == 2 else (1, 1)), (33, max(shape[-1], 1)))
    inverses = np.repeat((1 / per_row.astype(np.float64)).astype(np.float32), 48 // per_row.shape[1], 1)
    zeros = np.repeat(
        np.broadcast_to(zeros.reshape(33, -1) if zeros.size > 1 else zeros, per_row.shape), 48 // per_row.shape[1], 1
    )
    expected = np.clip(np.rint(weights * inverses) + zeros, 0, 2**bits - 1)
    raw = aq2_pipeline.scan_safetensors(tmp_path / "m" / "model.safetensors", raw=True).collect()
    words = np.frombuffer(raw.filter(layer_name="up.weight_packed")["weights"][0], np.int32).reshape(33, -1)
    assert (bits_of(words, bits)[:, :48] == expected).all()


@pytest.mark.parametrize("scheme", ["int4_g16", "int3_g16_asym", "int8_channel"])
def test_errors_that_are_reported_are_those_of_what_is_written(scheme, tmp_path):
    """With rounded scales, the report compares the weights with the codes that are found for these."""
    weights = RNG.standard_t(3, size=(64, 48)).astype(np.float32)
    save_file({"up.weight": weights}, tmp_path / "m.safetensors")
    source = open_source(tmp_path / "m.safetensors")
    sink = CompressedTensorsSink(scale_dtype="F16")
    [layer] = convert(source, tmp_path / "m", sink, Recipe(scheme)).layers
    tensors = tensors_of(tmp_path / "m" / "model.safetensors")
    found = decoded(tensors, "up.weight", int(scheme[3]), asymmetric="asym" in scheme)
    assert layer.mse == pytest.approx(np.mean((found.astype(float) - weights) ** 2), rel=1e-6)


def bfloat16(values):
    """Return float32 rounded to bfloat16, half to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def test_rounded_scales_need_the_weights(tmp_path):
    """A table of codes only is refused with what to do; weights may be bytes."""
    given = table(up__weight=(RNG.normal(size=(4, 32)), "int4_g32"))
    with pytest.raises(InputTypeError, match=r"layer 'up.weight'.*no weights.*scale_dtype='F32'"):
        sunk(given.drop("weights"), tmp_path / "m", scale_dtype="BF16")
    sunk(given, tmp_path / "floats", scale_dtype="F16")
    data = given["weights"][0].to_numpy().tobytes()
    sunk(given.drop("weights").with_columns(weights=pl.lit(data)), tmp_path / "bytes", scale_dtype="F16")
    assert files_of(tmp_path / "floats") == files_of(tmp_path / "bytes")
    with pytest.raises(InputValueError, match="'F64' is not written"):
        sunk(given, tmp_path / "m", scale_dtype="F64")


def test_scales_that_do_not_fit_name_layer_and_group(tmp_path):
    """Above 65504 in float16; those below its smallest make zero groups."""
    weights = np.ones((3, 32), np.float32)
    weights[1] *= 1e7
    given = table(up__weight=(weights, "int4_g32"))
    with pytest.raises(InputValueError, match=r"layer 'up.weight'.*scale of group 1.*F16") as caught:
        sunk(given, tmp_path / "m", scale_dtype="F16")
    assert caught.value.position == 1
    weights[1] = 1e-8
    tensors, _, _ = sunk(table(up__weight=(weights, "int4_g32")), tmp_path / "m", scale_dtype="F16")
    assert tensors["up.weight_scale"][1].tolist() == [1]
    assert (bits_of(tensors["up.weight_packed"], 4)[1] == 8).all()


def test_weights_that_are_coded_again_are_finite(tmp_path):
    """A NaN beside codes that know nothing of it is an error that names its place."""
    given = table(up__weight=(np.ones((1, 32)), "int4_g32"))
    given = given.with_columns(weights=pl.Series([[1.0] * 31 + [float("nan")]], dtype=pl.List(pl.Float32)))
    with pytest.raises(InputValueError, match=r"layer 'up.weight'.*position 31"):
        sunk(given, tmp_path / "m", scale_dtype="F16")


def test_the_same_table_gives_the_same_files(tmp_path):
    """No times, no order of sets: two runs are byte for byte alike, over an existing folder too."""
    given = table(a__weight=(RNG.normal(size=(8, 32)), "int4_g32"), b__weight=(RNG.normal(size=(8, 32)), "mxfp4"))
    sunk(given, tmp_path / "one")
    sunk(given, tmp_path / "two")
    first = files_of(tmp_path / "one")
    assert first == files_of(tmp_path / "two")
    sunk(table(c__weight=(np.ones((1, 8)), "int8_g8")), tmp_path / "two")
    assert files_of(tmp_path / "two") != first
    sunk(given, tmp_path / "two")
    assert files_of(tmp_path / "two") == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_failure_leaves_the_old_folder(tmp_path):
    """An error in the last row, and the folder is what it was, with nothing beside it."""
    good = table(a__weight=(RNG.normal(size=(8, 32)), "int4_g32"))
    sunk(good, tmp_path / "m")
    before = files_of(tmp_path / "m")
    with pytest.raises(SchemeError, match=r"layer 'z.weight'"):
        sunk(pl.concat([good, table(z__weight=(np.ones((1, 256)), "q4_k"))]), tmp_path / "m")
    assert files_of(tmp_path / "m") == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_folder_with_others_files_is_refused(tmp_path):
    """By the name of such a file; a folder of ours with one, too."""
    given = table(a__weight=(np.ones((2, 32)), "int4_g32"))
    sunk(given, tmp_path / "m")
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(FormatError, match=r"notes\.txt.*Hint: give a new folder"):
        sunk(given, tmp_path / "m")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="no folder"):
        sunk(given, tmp_path / "file")


def test_a_table_without_codes_is_refused(tmp_path):
    """Nothing quantized is a mistake upstream, and says how many layers there were."""
    given = table(a__weight=(np.ones((2, 32)), None), b=(np.ones(2), "f16"))
    with pytest.raises(FormatError, match=r"0 of 2 layers are quantized"):
        sunk(given, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_progress_is_told_row_by_row(tmp_path):
    """Each layer's name, and the bytes that it became."""
    told = []
    given = table(a__weight=(np.ones((2, 32)), "int4_g32"), b=(np.ones(2), None))
    aq2_pipeline.sink_compressed_tensors(given, tmp_path / "m", progress=lambda *each: told.append(each))
    assert told == [("a.weight", 2 * 16 + 2 * 4 + 16), ("b", 8)]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("n", [1, 7, 8, 9, 33])
def test_codes_are_packed_and_unpacked(bits, n):
    """What is unpacked is what was packed, dense from the lowest bit on."""
    codes = RNG.integers(0, 2**bits, (3, n)).astype(np.uint8)
    data = pack(codes, bits, -(-n * bits // 8))
    assert (unpack(data, n, bits) == codes).all()
    stream = "".join(f"{byte:08b}"[::-1] for byte in data[1])
    assert [int(stream[k * bits : (k + 1) * bits][::-1], 2) for k in range(n)] == codes[1].tolist()
    assert re.fullmatch("0*", stream[n * bits :])
