"""Folders of MLX: layout, config, biases, and what is refused."""

import json

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

import aq2_pipeline
from aq2_pipeline import FormatError, InputTypeError, InputValueError, SchemeError
from aq2_pipeline.io.safetensors import layout as tensor_files

RNG = np.random.default_rng(4)


def table(**layers):
    """Return a layer table; `layers` are name -> (array, scheme or None), `__` in names stands for a dot."""
    schema = {"layer_name": pl.String, "shape": pl.List(pl.Int64), "scheme": pl.String, "weights": pl.List(pl.Float32)}
    rows = [
        (name.replace("__", "."), list(w.shape), scheme, np.asarray(w, np.float32).reshape(-1))
        for name, (w, scheme) in layers.items()
    ]
    coded = pl.col("weights").aq2.quantize(pl.col("scheme").fill_null("f32"), shape=pl.col("shape"))
    return pl.DataFrame(rows, schema, orient="row").with_columns(
        quantized=pl.when(pl.col("scheme").is_not_null()).then(coded)
    )


def sunk(given, folder, **options):
    """Write a folder; return its tensors, its config and its manifest."""
    aq2_pipeline.sink_mlx(given, folder, **options)
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    config, manifest = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("config.json", "aq2-manifest.json")
    )
    return tensors, config, manifest


def codes_of(words, bits):
    """Return rows of words as rows of codes, bit by bit."""
    stream = np.unpackbits(words.view(np.uint8).reshape(len(words), -1), axis=1, bitorder="little")
    n = stream.shape[1] // bits
    return (stream[:, : n * bits].reshape(len(words), n, bits) << np.arange(bits, dtype=np.uint8)).sum(2)


@pytest.mark.parametrize("scheme", ["int2_g32", "int3_g64_asym", "int4_g128", "int5_g32_asym", "int6_g64", "int8_g32"])
def test_integers_are_scale_times_code_plus_bias(scheme, tmp_path):
    """Codes dense from the lowest bit on, biases -zero_point * scale; -(2**(b-1)) * scale without zero points."""
    given = table(up__weight=(RNG.normal(size=(5, 128)) + 0.5, scheme))
    tensors, config, manifest = sunk(given, tmp_path / "m")
    bits, group = int(scheme[3]), int(scheme.split("_")[1][1:])
    assert set(tensors) == {"up.weight", "up.scales", "up.biases"}
    assert (tensors["up.weight"].dtype, tensors["up.weight"].shape) == (np.uint32, (5, 128 * bits // 32))
    held = given["quantized"].struct
    scales = held.field("scales")[0].to_numpy().reshape(5, -1)
    zeros = held.field("zero_points")[0].to_numpy().reshape(5, -1) if "asym" in scheme else np.float32(2 ** (bits - 1))
    assert (tensors["up.scales"] == scales).all()
    assert (tensors["up.biases"] == -zeros * scales).all()
    ours = given["quantized"].aq2.dequantize()[0].to_numpy().reshape(5, 128).astype(np.float64)
    wide = {name: np.repeat(tensors[f"up.{name}"].astype(np.float64), group, 1) for name in ("scales", "biases")}
    theirs = codes_of(tensors["up.weight"], bits) * wide["scales"] + wide["biases"]
    assert (np.abs(theirs - ours) <= np.abs(wide["scales"]) * 2.0 ** (bits - 20)).all()
    assert (
        config["quantization"] == config["quantization_config"] == {"group_size": group, "bits": bits, "mode": "affine"}
    )
    assert manifest["layers"] == [{"name": "up.weight", "shape": [5, 128], "dtype": None, "scheme": scheme}]


def test_zero_points_between_codes_make_biases(tmp_path):
    """Those of the method hqq are as good as whole ones here."""
    given = table(up__weight=(RNG.normal(size=(2, 64)), "int4_g64_asym:hqq"))
    tensors, _, _ = sunk(given, tmp_path / "m")
    held = given["quantized"].struct
    scales, zeros = (held.field(name)[0].to_numpy() for name in ("scales", "zero_points"))
    assert (zeros != np.rint(zeros)).any()
    assert (tensors["up.biases"].reshape(-1) == -zeros * scales).all()


def test_zero_groups_decode_to_zero(tmp_path):
    """Scale 1, and codes that the bias takes to 0."""
    for scheme, code in (("int4_g32", 8), ("int4_g32_asym", 0)):
        weights = np.concatenate([np.zeros((1, 32)), np.ones((1, 32))])
        tensors, _, _ = sunk(table(up__weight=(weights, scheme)), tmp_path / "m")
        assert tensors["up.scales"][0].tolist() == [1]
        assert tensors["up.biases"][0].tolist() == [-code]
        assert (codes_of(tensors["up.weight"], 4)[0] == code).all()


@pytest.mark.parametrize(("scheme", "group"), [("mxfp4", 32), ("nvfp4", 16)])
def test_small_floats_have_scales_of_a_byte(scheme, group, tmp_path):
    """Eight codes a word, in the order of the weights; the mode has the scheme's name."""
    weights = np.tile(np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 6], np.float32), (2, 4))
    tensors, config, _ = sunk(table(up__weight=(weights, scheme)), tmp_path / "m")
    codes = codes_of(tensors["up.weight"], 4)[:, :16]
    assert codes.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 7]] * 2
    one = 127 if scheme == "mxfp4" else 0x38
    assert tensors["up.scales"].tolist() == [[one] * (64 // group)] * 2
    assert config["quantization"] == {"group_size": group, "bits": 4, "mode": scheme}


def test_other_layers_are_told_by_their_paths(tmp_path):
    """What most modules have stands above; those that differ have their own; what is left alone is not told."""
    square = RNG.normal(size=(8, 64))
    given = table(
        embed__weight=(square, "int8_g64"),
        a__weight=(square, "int4_g32"),
        b__weight=(square, "int4_g32"),
        c__weight=(square, "mxfp4"),
        head__weight=(square, None),
        norm__weight=(square[0], "f16"),
    )
    tensors, config, manifest = sunk(given, tmp_path / "m")
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "embed": {"group_size": 64, "bits": 8, "mode": "affine"},
        "c": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    }
    assert "head.scales" not in tensors
    assert (tensors["head.weight"] == square.astype(np.float32)).all()
    assert tensors["norm.weight"].dtype == np.float16
    assert manifest["format"] == "mlx"
    with (tmp_path / "m" / "model.safetensors").open("rb") as file:
        assert b'"format":"mlx"' in file.read(200)


@pytest.mark.parametrize(
    ("scheme", "shape", "told"),
    [
        ("int7_g64", (4, 64), "the scheme int7_g64 is not held"),
        ("int4_g16", (4, 64), "the scheme int4_g16 is not held"),
        ("int4_channel", (4, 64), "the scheme int4_channel is not held"),
        ("int4_tensor", (4, 64), "the scheme int4_tensor is not held"),
        ("q8_0", (4, 64), "the scheme q8_0 is not held"),
        ("nvfp4_tensor", (4, 64), "has a scale of the tensor"),
        ("int4_g64", (4, 96), "groups of 64, which do not divide the 96 columns"),
        ("int4_g128", (4, 64), "groups of 128, which do not divide the 64 columns"),
        ("int4_g64", (64,), "leave it alone"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(scheme, shape, told, tmp_path):
    """With what can be, and nothing is written."""
    with pytest.raises(SchemeError, match=f"layer 'a.weight': mlx: .*{told}.*Hint: it takes integers of 2, 3, 4"):
        sunk(table(a__weight=(np.ones(shape), scheme)), tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", ["int4_g64", "int3_g32_asym", "mxfp4"])
def test_chunks_and_shards_hold_the_same_tensors(scheme, tmp_path, monkeypatch):
    """Chunk rows give the files of the whole; shards the same tensors, in several files."""
    layers = {f"l{k}.weight": RNG.normal(size=(50, 64)).astype(np.float32) for k in range(3)}
    save_file(layers, tmp_path / "s.safetensors")

    def lazy(chunk=None):
        scanned = aq2_pipeline.scan_safetensors(tmp_path / "s.safetensors", chunk_weights=chunk)
        return scanned.with_columns(quantized=pl.col("weights").aq2.quantize(scheme, shape=pl.col("shape")))

    whole, _, _ = sunk(lazy(), tmp_path / "whole")
    sunk(lazy(7 * 64), tmp_path / "cut")
    names = ("model.safetensors", "config.json", "aq2-manifest.json")
    assert all((tmp_path / "whole" / n).read_bytes() == (tmp_path / "cut" / n).read_bytes() for n in names)
    monkeypatch.setattr(tensor_files, "SHARD_BYTES", 2500)
    sharded, _, manifest = sunk(lazy(), tmp_path / "cut")
    assert {name: tensor.tolist() for name, tensor in sharded.items()} == {n: t.tolist() for n, t in whole.items()}
    assert sum(name.endswith(".safetensors") for name in manifest["files"]) > 1
    assert "model.safetensors.index.json" in manifest["files"]


@pytest.mark.parametrize("scheme", ["int4_g32", "int3_g64_asym", "int5_g32_asym:hqq"])
def test_rounded_scales_and_biases_come_before_codes(scheme, tmp_path):
    """Codes are the nearest to (w - bias) / scale with what is stored in float16."""
    weights = RNG.standard_t(3, size=(9, 64)).astype(np.float32)
    weights[0] = 0
    given = table(up__weight=(weights, scheme))
    tensors, _, _ = sunk(given, tmp_path / "m", scale_dtype="F16")
    bits, group = int(scheme[3]), int(scheme.split("_")[1][1:])
    assert tensors["up.scales"].dtype == tensors["up.biases"].dtype == np.float16
    wide = {name: np.repeat(tensors[f"up.{name}"].astype(np.float64), group, 1) for name in ("scales", "biases")}
    exact = np.clip((weights - wide["biases"]) / wide["scales"], 0, 2**bits - 1)
    assert np.abs(codes_of(tensors["up.weight"], bits) - exact).max() <= 0.5 + 1e-4
    theirs = codes_of(tensors["up.weight"], bits) * wide["scales"] + wide["biases"]
    assert not theirs[0].any()


def test_rounded_scales_need_weights_and_room(tmp_path):
    """Codes only, and what float16 does not hold, are refused by layer and group."""
    weights = np.ones((2, 32))
    weights[1] = 6e4 * 8
    given = table(up__weight=(weights, "int4_g32"))
    with pytest.raises(InputTypeError, match=r"layer 'up.weight'.*no weights"):
        sunk(given.drop("weights"), tmp_path / "m", scale_dtype="BF16")
    with pytest.raises(InputValueError, match=r"layer 'up.weight'.*scale of group 1.*F16"):
        sunk(given, tmp_path / "m", scale_dtype="F16")
    weights[1] = 6e4
    with pytest.raises(InputValueError, match=r"layer 'up.weight'.*bias of group 1.*F16"):
        sunk(table(up__weight=(weights, "int4_g32")), tmp_path / "m", scale_dtype="F16")


def test_config_and_folder_are_those_of_every_folder_sink(tmp_path):
    """The model's config is kept, files that are not ours are not replaced, the old folder stays after a failure."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llama", "quantization": {"bits": 2}}')
    (source / "tokenizer.json").write_text("{}")
    given = table(a__weight=(np.ones((2, 32)), "int4_g32"))
    _, config, manifest = sunk(given, tmp_path / "m", config_from=source)
    assert config["model_type"] == "llama"
    assert config["quantization"]["bits"] == 4
    assert "tokenizer.json" in manifest["files"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    with pytest.raises(SchemeError):
        sunk(pl.concat([given, table(z__weight=(np.ones((1, 256)), "q4_k"))]), tmp_path / "m")
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    (tmp_path / "m" / "mine").write_text("mine")
    with pytest.raises(FormatError, match="'mine'"):
        sunk(given, tmp_path / "m")
