"""`diff`: two models layer by layer, of any formats, in any chunks; what cannot be compared says why."""

import json
import math

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

import aq2_pipeline
from aq2_pipeline import InputValueError, differing
from aq2_pipeline.io import convert
from aq2_pipeline.io.convert import quantize_file
from aq2_pipeline.io.parquet.writing import write_quantized
from aq2_pipeline.io.recipes import Recipe

RNG = np.random.default_rng(40)
WEIGHTS = {
    "a.weight": RNG.normal(size=(100, 256)).astype(np.float32),
    "b.bias": RNG.normal(size=5000).astype(np.float32),
}


@pytest.fixture
def model(tmp_path):
    """Return the path of a model of a matrix, a vector, integers and an empty tensor."""
    save_file(WEIGHTS | {"ids": np.arange(4), "none": np.empty((0, 3), np.float32)}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def rows(table):
    """Return the table's rows by layer."""
    return {row["layer_name"]: row for row in table.iter_rows(named=True)}


def test_equal_models_have_no_difference(model):
    """A model and itself: no error, an infinite SQNR, a cosine of 1; integers and empty layers say what they are."""
    table = aq2_pipeline.diff(model, model)
    found = rows(table)
    for name in WEIGHTS:
        row = found[name]
        assert (row["mse"], row["sqnr_db"], row["cosine"], row["max_abs"], row["note"]) == (0, math.inf, 1, 0, None)
    assert (found["ids"]["note"], found["ids"]["mse"]) == ("not of floats", None)
    assert found["none"]["mse"] is None
    assert table.schema == differing.SCHEMA
    assert differing.summary(table) == "2 of 4 layers compared, 2 of them equal"


@pytest.mark.parametrize("kind", ["parquet", "gguf", "safetensors"])
@pytest.mark.parametrize("chunk", [1 << 22, 4096])
def test_figures_are_those_of_decoded_weights(model, tmp_path, monkeypatch, kind, chunk):
    """Quantized against floats, of every format, in chunks against whole layers, both ways: what float64 gives."""
    monkeypatch.setattr(convert, "CHUNK_WEIGHTS", chunk)
    monkeypatch.setattr(differing, "_BATCH", 3000)
    save_file(WEIGHTS, model)
    scheme = "q8_0" if kind == "gguf" else "int4_g64"
    quantize_file(model, tmp_path / f"q.{kind}", Recipe(scheme))
    decoded = aq2_pipeline.dequantize(aq2_pipeline.quantize([WEIGHTS["a.weight"]], scheme))[0].values.to_numpy()
    one, two = WEIGHTS["a.weight"].ravel().astype(float), decoded.astype(float)
    error = one - two
    for a, b in ((model, tmp_path / f"q.{kind}"), (tmp_path / f"q.{kind}", model)):
        found = rows(aq2_pipeline.diff(a, b, threads=2))
        row = found["a.weight"]
        first, second = (one, two) if a == model else (two, one)
        assert row["mse"] == pytest.approx(error @ error / error.size, rel=1e-6)
        assert row["max_abs"] == pytest.approx(np.abs(error).max())
        assert row["sqnr_db"] == pytest.approx(10 * math.log10(first @ first / (error @ error)), abs=1e-5)
        assert row["cosine"] == pytest.approx(first @ second / np.linalg.norm(first) / np.linalg.norm(second), abs=1e-6)
        assert found["b.bias"]["mse"] == 0
        assert {row["first"], row["second"]} == {
            "F32",
            "F32" if kind == "safetensors" else scheme.upper() if kind == "gguf" else scheme,
        }


def test_chunks_in_any_order_are_compared(model, tmp_path, monkeypatch):
    """Chunks that lie in a file in another order are compared with the weights that they are."""
    monkeypatch.setattr(convert, "CHUNK_WEIGHTS", 4096)
    monkeypatch.setattr(differing, "_BATCH", 3000)
    quantize_file(model, tmp_path / "q.parquet", Recipe("f32"))
    table = pl.read_parquet(tmp_path / "q.parquet")
    assert table.height > 5
    write_quantized([table.reverse()], tmp_path / "r.parquet")
    for a, b in (("r", "q"), ("q", "r"), ("r", "r")):
        found = rows(aq2_pipeline.diff(tmp_path / f"{a}.parquet", tmp_path / f"{b}.parquet"))
        assert [found[name]["mse"] for name in WEIGHTS] == [0, 0]
    assert rows(aq2_pipeline.diff(tmp_path / "r.parquet", model))["a.weight"]["mse"] == 0
    assert rows(aq2_pipeline.diff(model, tmp_path / "r.parquet"))["a.weight"]["mse"] == 0


def test_layers_that_cannot_be_compared_say_why(model, tmp_path):
    """Layers of one model alone, of other sizes, and of other shapes with the same size are told apart."""
    others = {
        "a.weight": WEIGHTS["a.weight"].reshape(256, 100),
        "b.bias": np.ones(3, np.float32),
        "c": np.ones(2, np.float32),
    }
    save_file(others, tmp_path / "o.safetensors")
    table = aq2_pipeline.diff(model, tmp_path / "o.safetensors")
    found = rows(table)
    assert (found["a.weight"]["mse"], found["a.weight"]["note"]) == (0, "the second has the shape [256, 100]")
    assert (found["b.bias"]["mse"], found["b.bias"]["note"]) == (None, "the second has the shape [3]")
    assert (found["c"]["first"], found["c"]["note"]) == (None, "only in the second")
    assert (found["ids"]["second"], found["ids"]["note"]) == (None, "only in the first")
    assert aq2_pipeline.diff(model, model, layers="a.*").height == 1
    with pytest.raises(InputValueError, match="is called 'A'"):
        aq2_pipeline.diff(model, model, layers="A")


def test_values_that_are_not_finite_are_no_failure(model, tmp_path):
    """NaN and infinities make a layer's figures not finite, and JSON has null for them."""
    for value in (np.nan, np.inf):
        bad = WEIGHTS["a.weight"].copy()
        bad[3, 3] = value
        save_file({"a.weight": bad}, tmp_path / "bad.safetensors")
        for pair in ((model, tmp_path / "bad.safetensors"), (tmp_path / "bad.safetensors", model)):
            table = aq2_pipeline.diff(*pair, layers="a.weight")
            assert not math.isfinite(table["mse"].item())
            told = json.loads(json.dumps(differing.as_json(table), allow_nan=False))
            assert (told["layers"][0]["mse"], told["layers"][0]["sqnr_db"]) == (None, None)
            assert told["layers"][0]["layer_name"] == "a.weight"
