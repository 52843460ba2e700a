"""Tensors that are read in chunks: what is decoded and quantized of the chunks, joined, is what the whole gives."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from corpus.make import safetensors
from support.samples import bell

from aq2_pipeline import ArrowQuantV2, InputTypeError, InputValueError, scan_safetensors, schemes

LAYERS = {"matrix": (6, 512), "cube": (5, 2, 256), "vector": (1280,), "short": (100,)}
#: A name of each family whose groups or blocks lie within a matrix row; one scale a tensor needs the whole tensor.
SCHEMES = [family.template.format(group="g32") for family in schemes.FAMILIES if not family.whole]
SCHEMES += ["int4_g128_asym:hqq", "int3_g64:mse", "int4_g256", "int4_g32_rot32"]
CHUNKS = (10, 600, 1024)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return the path of a file with a matrix, a tensor of rank 3 and vectors."""
    path = tmp_path_factory.mktemp("chunks") / "m.safetensors"
    entries = {
        name: ("F32", list(shape), bell(int(np.prod(shape)), k + 1).tobytes())
        for k, (name, shape) in enumerate(LAYERS.items())
    }
    path.write_bytes(safetensors(entries))
    return path


def joined(frame, column):
    """Return layer -> the lists of a column in the order of its chunks, joined."""
    found = {}
    for name, value in frame.select("layer_name", column).iter_rows():
        found[name] = found.get(name, type(value)()) + value
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantized_chunks_are_the_whole(model, scheme):
    """Bytes, scales and zero points of chunks, joined, are the whole layer's, also of one index or 256 weights each."""
    quantized = pl.col("weights").aq2.quantize(scheme, "shape")
    fits = pl.col("layer_name") != "short" if schemes.parse(scheme).block > 1 else pl.lit(value=True)
    whole = scan_safetensors(model).filter(fits).select("layer_name", quantized.alias("q")).unnest("q").collect()
    for chunk_weights in CHUNKS:
        lazy = scan_safetensors(model, chunk_weights=chunk_weights).filter(fits)
        parts = lazy.select("layer_name", quantized.alias("q")).unnest("q").collect()
        assert parts.height > whole.height
        for column in ("quantized_data", "scales", "zero_points"):
            assert joined(parts, column) == joined(whole, column)
        assert set(parts["row_length"]) <= set(whole["row_length"]) | {256, 512, 768, 1024}


@pytest.mark.parametrize("scheme", ["int4_channel", "int5_channel_asym"])
def test_channels_of_chunks_are_the_whole(model, scheme):
    """One scale per index of the first axis is the same in chunks of matrices."""
    quantized = pl.col("weights").aq2.quantize(scheme, "shape").alias("q")
    query = (scan_safetensors(model, chunk_weights=n).filter(pl.col("shape").list.len() > 1) for n in (None, *CHUNKS))
    whole, *cut = (lazy.select("layer_name", quantized).unnest("q").collect() for lazy in query)
    for parts in cut:
        for column in ("quantized_data", "scales", "zero_points"):
            assert joined(parts, column) == joined(whole, column)


@pytest.mark.parametrize("raw", [False, True])
def test_chunks_say_where_they_are(model, raw):
    """Chunks follow one another from 0, in the shape that they have; layers that are not cut say nothing."""
    whole = joined(scan_safetensors(model, raw=raw).collect(), "weights")
    for chunk_weights in CHUNKS:
        frame = scan_safetensors(model, raw=raw, chunk_weights=chunk_weights).collect()
        assert joined(frame, "weights") == whole
        at = dict.fromkeys(LAYERS, 0)
        for row in frame.iter_rows(named=True):
            size, name = int(np.prod(row["shape"])), row["layer_name"]
            assert len(row["weights"]) == size * (4 if raw else 1)
            if row["chunk"] is None:
                assert (row["start"], row["tensor_shape"], row["shape"]) == (None, None, list(LAYERS[name]))
            else:
                assert (row["start"], row["tensor_shape"]) == (at[name], list(LAYERS[name]))
                assert row["shape"][1:] == list(LAYERS[name][1:])
                assert size <= max(chunk_weights, int(np.prod(LAYERS[name][1:])), 256)
            at[name] += size
        assert list(at.values()) == [int(np.prod(shape)) for shape in LAYERS.values()]


def test_the_wrapper_takes_chunks_that_are_read(model):
    """`ArrowQuantV2` takes the rows of a chunked scan, policies included."""
    whole = ArrowQuantV2().quantize_arrow(scan_safetensors(model).collect(), 4).to_pydict()
    cut = ArrowQuantV2().quantize_arrow(scan_safetensors(model, chunk_weights=600).collect(), 4).to_pydict()
    assert b"".join(cut["quantized_data"]) == b"".join(whole["quantized_data"])
    assert set(zip(cut["layer_name"], cut["scheme"], strict=True)) == set(
        zip(whole["layer_name"], whole["scheme"], strict=True)
    )


def test_chunk_weights_is_a_number_of_weights(model):
    """Anything else is an error when the scan is made."""
    for wrong in (0, -1):
        with pytest.raises(InputValueError, match=f"chunk_weights is {wrong}"):
            scan_safetensors(model, chunk_weights=wrong)
    for wrong in ("3", 2.5, True):
        with pytest.raises(InputTypeError, match="chunk_weights is a"):
            scan_safetensors(model, chunk_weights=wrong)
