"""Cases 1 to 9, 12, 13, 33, 34, 41 to 43 and 48, and all of files, 62 to 86, asked of the command `aq2`.

Whatever is wrong: exit code 1, one message that says what and where, no traceback, and nothing written.
"""

from __future__ import annotations

import json
import os
import pickle
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow.parquet as pq
import pytest
from corpus.make import ENTRIES_OF_FILES, FOLDER, opened
from robustness.test_written_files import Sentinel, bomb
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from aq2_pipeline import Aq2Error, cli
from aq2_pipeline.io.opening import open_source

SCHEMES = ("int4_g64", "int8_channel", "q8_0", "nf4_g64")
N = 64


def aq2(*arguments):
    """Run the command in this process."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def contents(folder):
    """Return the files below a folder with their bytes."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(*arguments, code=1):
    """Demand the exit code, one message without a traceback or a control character, and no output; return it."""
    done = aq2(*arguments)
    assert done.exit_code == code, (done.exit_code, done.stdout, done.stderr)
    assert isinstance(done.exception, SystemExit)
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert last.isprintable()
    if code == 1:
        assert last.startswith("aq2: ")
        assert len(last) < 3000
    return last


def refused_wholly(source, folder, *, copied=True, listed=False):
    """Demand of every command that it refuses a model, leaves an earlier target as it was, and writes nothing else.

    `copied` is False of files whose blocks are right as bytes, and wrong as numbers: `convert` copies them, and
    `diff` does not decode layers that only one model has. `listed` is True of files that are damaged where only
    weights stand: `inspect` does not read them.
    """
    target = folder / "q.parquet"
    target.write_bytes(b"earlier")
    before = contents(folder)
    told = set()
    for command in (
        *([] if listed else [("inspect", source), ("inspect", source, "--json", "--metadata")]),
        ("quantize", source, target, "--scheme", "int8_channel"),
        ("quantize", source, folder / "made", "--to", "compressed-tensors"),
        ("dequantize", source, folder / "new.safetensors"),
        ("compare", source),
        ("diff", source, source),
        *([("convert", source, folder / "new.gguf")] if copied else []),
        *([("diff", FOLDER / "good/69-folder", source)] if copied and not listed else []),
    ):
        told.add(refused(*command))
    assert contents(folder) == before
    return told


def model(path, **layers):
    """Write a model of a good layer and of those given."""
    good = np.linspace(-1, 1, 4 * N, dtype=np.float32).reshape(4, N)
    save_file({"ok.weight": good} | {f"{name}.weight": values for name, values in layers.items()}, path)
    return path


def matrix(value, position=0, *, rest=1.0, dtype=np.float32):
    """Return a matrix that has one value among others."""
    values = np.full((2, N), rest, dtype)
    values.flat[position] = value
    return values


def back(folder, values, scheme):
    """Return a layer after the command quantized it, and turned it into floats again."""
    source = model(folder / "m.safetensors", it=values)
    assert aq2("quantize", source, folder / "q.parquet", "--scheme", scheme).exit_code == 0
    done = aq2("dequantize", folder / "q.parquet", folder / "back.safetensors")
    assert done.exit_code == 0, done.stderr
    return load_file(folder / "back.safetensors")["it.weight"]


def quantized(path):
    """Return what a Parquet file's layers hold, by name."""
    table = pq.read_table(path)
    return dict(zip(table["layer_name"].to_pylist(), table["quantized"].to_pylist(), strict=True))


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_case_01_zeros(tmp_path, scheme):
    """Zeros of both signs come back as zeros."""
    zeros = matrix(-0.0, 5, rest=0.0)
    assert not back(tmp_path, zeros, scheme).any()
    done = aq2("diff", tmp_path / "m.safetensors", tmp_path / "q.parquet", "--json")
    found = {layer["layer_name"]: layer for layer in json.loads(done.stdout)["layers"]}
    assert found["it.weight"]["max_abs"] == 0


@pytest.mark.parametrize("value", [3.0, -3.0])
def test_case_02_a_constant_layer(tmp_path, value):
    """A constant comes back within half a step of the scale, every weight as the same number."""
    found = back(tmp_path, matrix(value, rest=value), "int8_channel")
    assert len(np.unique(found)) == 1
    assert abs(found.flat[0] - value) <= 3 / 127 / 2


@pytest.mark.parametrize("position", [0, 1, 2 * N - 1])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_case_03_one_nan_is_named(tmp_path, scheme, position):
    """A NaN is refused with layer and position, and the earlier target stays."""
    source = model(tmp_path / "m.safetensors", bad=matrix(np.nan, position))
    (tmp_path / "q.parquet").write_bytes(b"earlier")
    told = refused("quantize", source, tmp_path / "q.parquet", "--scheme", scheme)
    assert f"layer 'bad.weight', position {position}: the value nan is not finite. Hint: " in told
    assert (tmp_path / "q.parquet").read_bytes() == b"earlier"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("bits", [0x7FA00000, 0xFFC00000, 0x7FC12345, 0xFFFFFFFF], ids=hex)
def test_case_04_every_kind_of_nan(tmp_path, bits):
    """Signalling and negative NaN, and those with a payload, are NaN; a listing counts them and does not fail."""
    values = matrix(1.0)
    values.view(np.uint32).flat[7] = bits
    source = model(tmp_path / "m.safetensors", bad=values)
    assert "position 7: the value nan" in refused("quantize", source, tmp_path / "q.parquet", "--scheme", "4")
    layers = json.loads(aq2("inspect", source, "--json").stdout)["layers"]
    assert {layer["layer"]: layer["non_finite"] for layer in layers} == {"bad.weight": 1, "ok.weight": 0}


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_case_05_infinities(tmp_path, value, dtype):
    """Infinities of any dtype are refused with layer and position."""
    source = model(tmp_path / "m.safetensors", bad=matrix(value, 9, dtype=dtype))
    told = refused("quantize", source, tmp_path / "q.parquet", "--scheme", "4")
    assert f"layer 'bad.weight', position 9: the value {value} " in told


@pytest.mark.parametrize("scheme", ["int4_g64", "int8_channel", "nf4_g64"])
def test_case_06_the_largest_floats(tmp_path, scheme):
    """The largest floats decode to finite ones."""
    largest = np.finfo(np.float32).max
    found = back(tmp_path, matrix(-largest, rest=largest), scheme)
    assert np.isfinite(found).all()
    assert found.flat[0] < 0 < found.flat[1]


@pytest.mark.parametrize("value", [1e-45, 1e-40])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_case_07_subnormals(tmp_path, scheme, value):
    """Subnormals become zeros, or stay within half a step."""
    found = back(tmp_path, matrix(-value, rest=value), scheme)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 2 * np.float32(value)


def test_case_08_an_outlier(tmp_path):
    """1e30 among ones fits a float32 scale; one of float16 refuses it with the layer."""
    assert back(tmp_path, matrix(1e30, 3), "int8_g64").flat[3] == pytest.approx(1e30)
    told = refused("quantize", tmp_path / "m.safetensors", tmp_path / "n.parquet", "--scheme", "q8_0")
    assert "layer 'it.weight', position 3" in told
    assert not (tmp_path / "n.parquet").exists()


def test_case_09_scales_below_float16(tmp_path):
    """A scale that float16 cannot hold is that of zeros, or the bound holds."""
    found = back(tmp_path, matrix(-1e-7, rest=1e-7), "q8_0")
    assert np.abs(found).max() <= 2e-7


@pytest.mark.parametrize("n", [1, N - 1, N, N + 1])
def test_case_12_lengths_around_a_group(tmp_path, n):
    """Rows of any length come back with their length."""
    values = np.linspace(-1, 1, 2 * n, dtype=np.float32).reshape(2, n)
    found = back(tmp_path, values, "int8_g64")
    assert found.shape == (2, n)
    assert np.abs(found - values).max() <= 1 / 127


def test_case_13_an_empty_layer(tmp_path):
    """A layer without a weight goes through and comes back."""
    assert back(tmp_path, np.zeros((0, N), np.float32), "int4_g64").shape == (0, N)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_case_33_other_floats(tmp_path, dtype):
    """Floats of other widths give the same codes as the same numbers in float32."""
    values = np.arange(-N, N).reshape(2, N).astype(dtype)  # whole numbers that all have
    narrow, narrow_layers = back(tmp_path, values, "int4_g64"), quantized(tmp_path / "q.parquet")
    wide, wide_layers = back(tmp_path, values.astype(np.float32), "int4_g64"), quantized(tmp_path / "q.parquet")
    assert narrow_layers == wide_layers
    np.testing.assert_array_equal(narrow, wide.astype(narrow.dtype))


def test_case_34_what_float32_cannot_hold(tmp_path):
    """1e300 is refused with layer and position; the layers are still listed without their statistics."""
    source = model(tmp_path / "m.safetensors", bad=matrix(1e300, 2, dtype=np.float64))
    for command in (["quantize", source, tmp_path / "q.parquet", "--scheme", "4"], ["inspect", source]):
        assert "layer 'bad.weight', position 2: the value 1e+300 does not fit float32" in refused(*command)
    assert "bad.weight" in aq2("inspect", source, "--no-stats").stdout


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["0", "1", "9", "-4", "8.5", "None", "True", "99999999999999999999"])
def test_case_41_impossible_widths(tmp_path, bits):
    """Widths that are no scheme are refused with what is possible, before anything is written."""
    source = model(tmp_path / "m.safetensors")
    assert "scheme: " in refused("quantize", source, tmp_path / "q.parquet", f"--scheme={bits}")
    assert "scheme: " in refused("compare", source, f"--schemes=int4_g64,{bits}")
    whole = bits.lstrip("-").isdecimal()
    told = refused("quantize", source, tmp_path / "q.parquet", f"--bits={bits}", code=1 if whole else 2)
    assert "from 2 to 8" in told or not whole
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("scheme", ["int4_g0", "int4_g-1", "int4_g", "int4_g1099511627776"])
def test_case_42_impossible_groups(tmp_path, scheme):
    """Group sizes that cannot be are refused, in a rule too."""
    source = model(tmp_path / "m.safetensors")
    assert scheme in refused("quantize", source, tmp_path / "q.parquet", "--scheme", scheme)
    assert scheme in refused("quantize", source, tmp_path / "q.parquet", "--rule", f"ok.*={scheme}")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("scheme", ["int4", "INT4_G64", " int4_g64", "int4_g64\n", "", "q9_z", "a" * 5000, "\x1b[31m"])
def test_case_43_unknown_schemes(tmp_path, scheme):
    """Names that no scheme has are refused as they are spelled, shown escaped, with what is close."""
    source = model(tmp_path / "m.safetensors")
    assert "Hint: " in refused("quantize", source, tmp_path / "q.parquet", "--scheme", scheme)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    "name", ["'; DROP TABLE t; --", 'a"b', "\u043b\u0430\u0439\u0435\u0440", "a\nb\x1b[31m", "n" * 1024]
)
def test_case_48_names_are_data(tmp_path, name):
    """Names of layers that would be SQL, or would move a terminal's cursor, are kept, and shown harmless."""
    save_file({name: matrix(0.5)}, tmp_path / "m.safetensors")
    done = aq2("quantize", tmp_path / "m.safetensors", tmp_path / "q.parquet", "--scheme", "4")
    assert done.exit_code == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert pq.read_table(tmp_path / "q.parquet")["layer_name"].to_pylist() == [name]
    listed = aq2("inspect", tmp_path / "q.parquet", "--json")
    assert [layer["layer"] for layer in json.loads(listed.stdout)["layers"]] == [name]
    assert "\x1b" not in aq2("inspect", tmp_path / "q.parquet").stdout


# --- files -----------------------------------------------------------------------------------------------------------

BAD = [entry for entry in ENTRIES_OF_FILES if entry.startswith("bad/")]


def is_listed(path):
    """Return whether a file that fuzzing found lists its layers: damage among the weights is not seen until then."""
    if "87-fuzz" not in path.name:
        return False
    with suppress(Aq2Error):
        return bool(open_source(path).tensors)
    return False


@pytest.mark.parametrize("entry", BAD, ids=[f"case_{Path(entry).name}" for entry in BAD])
def test_crafted_file(tmp_path, entry):
    """Cases 62 to 78: every command refuses a file that contradicts its format, and says which."""
    path = FOLDER / opened(entry)
    for told in refused_wholly(path, tmp_path, copied="78-scale" not in entry, listed=is_listed(path)):
        # of blocks that are wrong as numbers, and of layers that compressed-tensors refuses before it reads them
        assert "corpus/bad" in told or "layer 'w'" in told or "layer 'a.w': compressed-tensors" in told


@pytest.mark.parametrize("name", ["m.bin", "m.pt", "m.pkl", "m.safetensors", "m.gguf", "m.npz", "m.onnx", "m"])
def test_case_80_pickles_never_run(tmp_path, name):
    """A pickle is refused whatever its name says, and nothing in it runs."""
    (tmp_path / name).write_bytes(pickle.dumps(Sentinel(tmp_path / "ran")))
    for told in refused_wholly(tmp_path / name, tmp_path):
        assert name in told
    assert not (tmp_path / "ran").exists()


def test_case_81_a_bomb(tmp_path):
    """A small Parquet file that unpacks to far more than its layers take is refused with its name."""
    pq.write_table(bomb("scales", 1 << 24), tmp_path / "bomb.parquet", compression="zstd")
    for told in refused_wholly(tmp_path / "bomb.parquet", tmp_path):
        assert "bomb.parquet" in told


def test_case_82_what_is_no_model(tmp_path):
    """A FIFO, a device, an empty folder, text, an archive and what is not there are refused at once."""
    os.mkfifo(tmp_path / "fifo.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.safetensors").write_text("hello, world")
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    for name in ("fifo.safetensors", "folder", "text.safetensors", "a.tar.gz", "none.safetensors"):
        for told in refused_wholly(tmp_path / name, tmp_path):
            assert name in told
    for told in refused_wholly(Path("/dev/zero"), tmp_path):
        assert "/dev/zero" in told


def test_case_83_targets_that_cannot_be(tmp_path):
    """A directory, a missing folder, a name that is too long and an unknown format are refused with the target."""
    source = model(tmp_path / "m.safetensors")
    (tmp_path / "d.parquet").mkdir()
    for name in ("d.parquet", "none/q.parquet", f"{'n' * 300}.parquet", "q.unknown"):
        assert name.rpartition("/")[2][:80] in refused("quantize", source, tmp_path / name, "--scheme", "4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.parquet", "m.safetensors"]


def test_case_84_same_input_same_file(tmp_path):
    """Twice the same command writes the same bytes, and what was not quantized comes back as it was."""
    source = model(tmp_path / "m.safetensors", norm=np.arange(5, dtype=np.float16))
    for name in ("a.parquet", "b.parquet"):
        assert aq2("quantize", source, tmp_path / name, "--scheme", "4").exit_code == 0
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert aq2("dequantize", tmp_path / "a.parquet", tmp_path / "back.safetensors").exit_code == 0
    np.testing.assert_array_equal(
        load_file(tmp_path / "back.safetensors")["norm.weight"], np.arange(5, dtype=np.float16), strict=True
    )


def test_case_85_what_is_left_alone_is_listed(tmp_path):
    """What a policy does not quantize is listed with its reason, in text and in JSON."""
    source = model(tmp_path / "m.safetensors", norm=np.ones(5, np.float32), ids=np.arange(3))
    done = aq2("quantize", source, tmp_path / "q.parquet", "--scheme", "4")
    for name in ("norm.weight", "ids.weight"):
        assert f"left alone: {name}" in done.stdout
    layers = json.loads(aq2("quantize", source, tmp_path / "q.parquet", "--scheme", "4", "--json").stdout)["layers"]
    assert {layer["name"] for layer in layers if layer["left_alone"]} == {"norm.weight", "ids.weight"}


def test_case_86_nothing_to_quantize(tmp_path):
    """A model without weights to quantize, and a rule that fits none, say how many tensors there are."""
    source = model(tmp_path / "m.safetensors")
    told = refused("quantize", source, tmp_path / "q.parquet", "--scheme", "4", "--rule", "none=keep")
    assert "the pattern 'none' matched 0 of 1 tensors" in told
    assert "none of 1 tensors holds floats" in refused("compare", source, "--layers", "none")
    save_file({"ids": np.arange(3)}, source)
    assert "0 of 1 tensors would be quantized" in refused("quantize", source, tmp_path / "q.parquet", "--scheme", "4")
    assert list(tmp_path.iterdir()) == [source]
