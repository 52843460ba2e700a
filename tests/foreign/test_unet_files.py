"""A real diffusion U-Net's ONNX file as a source: every initializer, and the model with decoded weights."""

import sys
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parent))

from diffusion import SIGMAS, Bench, Inputs, model_path

from aq2_pipeline import scan_onnx

PARAMETERS = (pl.col("dtype") == "F32") & (pl.col("shape").list.len() >= 2)


@pytest.fixture(scope="module")
def bench():
    """One noisy sample a sigma, and the float model's outputs."""
    return Bench(Inputs(batch=1))


def test_every_initializer_is_that_of_the_onnx_package(bench):
    """Names, order, shapes and bytes of all initializers are those that onnx.numpy_helper gives."""
    rows = scan_onnx(model_path(), raw=True).collect().iter_rows(named=True)
    for row, tensor in zip(rows, bench.model.graph.initializer, strict=True):
        array = numpy_helper.to_array(tensor)
        assert (row["layer_name"], tuple(row["shape"])) == (tensor.name, array.shape)
        assert row["dtype"] == {"float32": "F32", "int64": "I64"}[array.dtype.name]
        assert row["weights"] == array.tobytes()


def test_external_data_is_the_same(bench, tmp_path):
    """The model saved with its weights in another file, and all chunked, has the same weights."""
    model = onnx.ModelProto.FromString(bench.model.SerializeToString())
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024)
    inside, outside = (scan_onnx(path).collect() for path in (model_path(), tmp_path / "m.onnx"))
    assert outside.equals(inside)
    chunks = scan_onnx(tmp_path / "m.onnx", chunk_weights=50_000).filter(pl.col("weights").is_not_null()).collect()
    joined = chunks.group_by("layer_name", maintain_order=True).agg(pl.col("weights").explode(empty_as_null=False))
    assert joined["weights"].equals(inside.filter(pl.col("weights").is_not_null())["weights"])


@pytest.mark.parametrize(("names", "n_layers", "least"), [("", 534, 15), ("network.", 255, 35)])
def test_model_runs_with_decoded_weights(bench, names, n_layers, least):
    """With int8_g64 for its float initializers of rank 2 and more, onnxruntime's outputs are close at every sigma.

    Nearer without the norms of shape [C, 1, 1] and the time-step frequencies, whose names the exporter changed.
    """
    decode = pl.col("weights").aq2.quantize("int8_g64", "shape").aq2.dequantize()
    lazy = scan_onnx(model_path()).filter(PARAMETERS, pl.col("layer_name").str.starts_with(names))
    layers = lazy.select("layer_name", "shape", "weights", decoded=decode).collect()
    assert layers.height == n_layers
    assert layers.filter(pl.col("weights") != pl.col("decoded")).height > 250
    decoded = {name: np.array(row).reshape(shape) for name, shape, _, row in layers.iter_rows()}
    session = bench._session(decoded)
    for noisy, sigma, wanted in zip(bench.noisy, SIGMAS, bench.outputs, strict=True):
        error = wanted - bench._run(session, noisy, sigma)
        assert 10 * np.log10((wanted**2).sum() / (error**2).sum()) > least
