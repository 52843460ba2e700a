"""Cases 80 to 86: what is no model file, and what is written."""

import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from support.model_files import names_in

import aq2_pipeline
from aq2_pipeline import FormatError, InputValueError, layout
from aq2_pipeline.io import convert
from aq2_pipeline.io.convert import dequantize_file, quantize_file
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.parquet import file as parquet
from aq2_pipeline.io.parquet.file import QuantizedFile
from aq2_pipeline.io.recipes import Recipe
from aq2_pipeline.io.targets import Options, sink_for, target_for

RNG = np.random.default_rng(86)
SINKS = {"parquet": "int4_g64", "gguf": "q8_0", "safetensors": "int4_g64"}


@pytest.fixture
def model(tmp_path):
    """Return the path of a model with what policies leave alone."""
    tensors = {
        "embed_tokens.weight": RNG.normal(size=(32, 64)).astype(np.float32),
        "mlp.weight": RNG.normal(size=(64, 128)).astype(np.float32),
        "experts": RNG.normal(size=(2, 64, 64)).astype(np.float32),
        "conv.weight": RNG.normal(size=(16, 8, 3, 3)).astype(np.float32),
        "norm.weight": np.ones(64, np.float32),
        "mlp.bias": np.ones(64, np.float16),
        "ids": np.arange(3),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


class Sentinel:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "name", ["m.bin", "m.pt", "m.pth", "m.ckpt", "m.pkl", "m.safetensors", "m.gguf", "m.parquet", "m"]
)
def test_case_80_pickles_never_run(tmp_path, name):
    """A pickle is refused whatever its name says, and nothing in it runs."""
    (tmp_path / name).write_bytes(pickle.dumps(Sentinel(tmp_path / "ran")))
    with pytest.raises(FormatError, match=name):
        open_source(tmp_path / name)
    assert names_in(tmp_path) == [name]


def test_case_81_parquet_files_that_lie(tmp_path, model, monkeypatch):
    """A footer whose length lies, a cut file, too many rows, and metadata that is no text never pass."""
    quantize_file(model, tmp_path / "q.parquet", Recipe("int4_g64"))
    good = (tmp_path / "q.parquet").read_bytes()
    bad = tmp_path / "bad.parquet"
    for length in (0, 1, 2**31 - 1, 2**32 - 1):
        bad.write_bytes(good[:-8] + length.to_bytes(4, "little") + good[-4:])
        with pytest.raises(FormatError, match=r"bad\.parquet"):
            open_source(bad)
    for n in (4, 11, len(good) // 2, len(good) - 1):
        bad.write_bytes(good[:n])
        with pytest.raises(FormatError, match=r"bad\.parquet"):
            open_source(bad)
    table = pq.read_table(tmp_path / "q.parquet")
    pq.write_table(table.replace_schema_metadata({b"k\xff": b"\xff"}), bad)
    with pytest.raises(FormatError, match="no Parquet file that can be read"):
        open_source(bad)
    monkeypatch.setattr(parquet, "MAX_ROWS", 6)
    with pytest.raises(FormatError, match="claims 7 rows; 6 are read"):
        open_source(tmp_path / "q.parquet")


def bomb(column, size):
    """Return a table of one layer of 32 weights, and a column that a few bytes make as long as is wanted."""
    one = aq2_pipeline.quantize([np.ones(32, np.float32)], "int4_g32_asym")
    parts = dict(zip(layout.QUANTIZED.names, one.flatten(), strict=True))
    row = {"layer_name": "w", "shape": [32], "dtype": "F32", "tensor_shape": [32], "raw": b""}
    if column == "quantized_data":
        parts[column] = pa.array([bytes(size)], pa.large_binary())
    elif column in ("scales", "zero_points"):
        values = pa.array(np.ones(size, np.float32))
        parts[column] = pa.LargeListArray.from_arrays(pa.array([0, size], pa.int64()), values)
    else:
        row[column] = [1] * size if "shape" in column else "w" * size if column == "layer_name" else bytes(size)
    made = {name: pa.array([value]) for name, value in row.items()}
    made["raw"] = made["raw"].cast(pa.large_binary())
    fields = [layout.QUANTIZED.field(name) for name in parts]
    return pa.table(made | {"quantized": pa.StructArray.from_arrays(list(parts.values()), fields=fields)})


@pytest.mark.parametrize(
    "column", ["layer_name", "shape", "tensor_shape", "quantized_data", "scales", "zero_points", "raw"]
)
def test_case_81_parquet_files_that_unpack_to_gigabytes(tmp_path, column):
    """A column that unpacks to more than its layers take is refused before it is unpacked."""
    path = tmp_path / "bomb.parquet"
    pq.write_table(bomb(column, 1 << 24), path, compression="zstd", use_dictionary=column != "quantized_data")
    assert path.stat().st_size < 1 << 17
    before = pa.total_allocated_bytes()
    with pytest.raises(
        FormatError, match=r"bomb\.parquet.*(claims|has) 16777216|bomb\.parquet.*claims 167[0-9]{5} bytes"
    ):
        open_source(path)
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_case_82_what_is_no_regular_file(tmp_path):
    """A directory without a model, a FIFO and a device are refused at once."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(FormatError, match="not a regular file"):
            QuantizedFile(path)


@pytest.mark.parametrize("kind", SINKS)
def test_case_83_names_of_targets(model, tmp_path, kind):
    """Names with a newline, an emoji or 255 bytes work, and a symbolic link is followed."""
    for stem in ("a\nb", "\N{GRINNING FACE}", "n" * (254 - len(kind))):
        folder = tmp_path / "out"
        folder.mkdir()
        quantize_file(model, folder / f"{stem}.{kind}", Recipe(SINKS[kind]))
        assert names_in(folder) == [f"{stem}.{kind}"]
        (folder / f"link.{kind}").symlink_to(f"{stem}.{kind}")
        before = (folder / f"{stem}.{kind}").read_bytes()
        (folder / f"{stem}.{kind}").write_bytes(b"old")
        quantize_file(model, folder / f"link.{kind}", Recipe(SINKS[kind]))
        assert (folder / f"link.{kind}").is_symlink()
        assert (folder / f"{stem}.{kind}").read_bytes() == before
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@pytest.mark.parametrize("kind", SINKS)
def test_case_83_targets_that_cannot_be(model, tmp_path, kind):
    """A directory, a missing folder and a name of 300 bytes are an OSError with the target, and nothing is left."""
    (tmp_path / f"d.{kind}").mkdir()
    for target in (tmp_path / f"d.{kind}", tmp_path / "none" / f"q.{kind}", tmp_path / f"{'n' * 300}.{kind}"):
        with pytest.raises(OSError, match=r"no regular file|No such file|too long") as caught:
            quantize_file(model, target, Recipe(SINKS[kind]))
        assert target.name in str(caught.value)
    assert names_in(tmp_path) == [f"d.{kind}", model.name]


@pytest.mark.parametrize("kind", SINKS)
def test_case_84_round_trip(model, tmp_path, kind):
    """Every tensor comes back with its name, shape, dtype and bytes; twice the same input gives the same file."""
    opened = open_source(model)
    for name in ("a", "b"):
        convert.convert(opened, tmp_path / f"{name}.{kind}", sink_for(target_for(f"x.{kind}"), Options(opened, "")))
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    dequantize_file(tmp_path / f"a.{kind}", tmp_path / "back.safetensors")
    one, two = load_file(model), load_file(tmp_path / "back.safetensors")
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(two[name], values, strict=True)


def test_case_85_what_is_left_alone_is_listed(model, tmp_path):
    """Norms, biases and integers are listed with a reason; experts and convolutions of more axes are quantized."""
    report = quantize_file(model, tmp_path / "q.parquet", Recipe("int4_g64"))
    left = {layer.name: layer.left_alone for layer in report.layers if layer.left_alone}
    assert left.keys() == {"norm.weight", "mlp.bias", "ids"}
    assert all(left.values())
    report = quantize_file(model, tmp_path / "p.parquet", Recipe(rules=(("mlp", "int8_g64"),)))
    assert all(layer.left_alone or layer.scheme for layer in report.layers)
    assert len(report.layers) == 7


def test_case_86_nothing_to_quantize(tmp_path):
    """A model without weights, and a pattern of no layer, say how many tensors there are."""
    save_file({"ids": np.arange(3), "norm": np.ones(4, np.float32)}, tmp_path / "m.safetensors")
    with pytest.raises(InputValueError, match="0 of 2 tensors would be quantized"):
        quantize_file(tmp_path / "m.safetensors", tmp_path / "q.parquet", Recipe("int4_g64"))
    with pytest.raises(InputValueError, match="the pattern 'none' matched 0 of 2 tensors"):
        quantize_file(tmp_path / "m.safetensors", tmp_path / "q.parquet", Recipe("int4_g64", rules=(("none", "f16"),)))
    save_file({}, tmp_path / "m.safetensors")
    with pytest.raises(InputValueError, match="0 of 0 tensors"):
        quantize_file(tmp_path / "m.safetensors", tmp_path / "q.parquet", Recipe("int4_g64"))
    assert names_in(tmp_path) == ["m.safetensors"]
