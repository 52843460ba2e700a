"""`compare`, its command and its picture: figures are pooled over the same weights for every scheme."""

import json
import math
import sys
import xml.etree.ElementTree as ET

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import aq2_pipeline
from aq2_pipeline import InputValueError, SchemeError, cli, comparing, picture
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.tables import source

RNG = np.random.default_rng(12)
NAMES = ["int8_g64", "int4_g64", "int4_g64_asym", "int3_g32"]
FIGURES = [name for name in comparing.SCHEMA if name != "seconds"]


@pytest.fixture
def model(tmp_path):
    """Return the path of a model with matrices of three float types, a vector, and positions that are no weights."""
    tensors = {
        "a.weight": RNG.normal(size=(64, 192)).astype(np.float32),
        "b.weight": 30 * RNG.standard_t(4, size=(32, 100)),
        "c.conv": RNG.normal(size=(8, 4, 3, 3)).astype(np.float16),
        "c.bias": RNG.normal(size=64).astype(np.float32),
        "empty": np.empty((0, 4), np.float32),
        "positions": np.arange(16).reshape(4, 4),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def large(tmp_path):
    """Return the path of a model whose layer `b` does not fit float16."""
    tensors = {"a": RNG.normal(size=(4, 64)), "b": np.full((4, 64), 1e6)}
    save_file({name: values.astype(np.float32) for name, values in tensors.items()}, tmp_path / "large.safetensors")
    return tmp_path / "large.safetensors"


def aq2(*arguments):
    """Run the command in this process."""
    return CliRunner().invoke(cli.app, ["compare", *(str(argument) for argument in arguments)])


def _weights(path):
    rows = aq2_pipeline.scan_safetensors(path).filter(pl.col("weights").is_not_null()).collect().iter_rows(named=True)
    return {row["layer_name"]: np.array(row["weights"], np.float32).reshape(row["shape"]) for row in rows}


def test_figures_are_those_of_decoded_weights(model):
    """Bits and SQNR are pooled over all weights: what quantizing, decoding and subtracting gives."""
    table = aq2_pipeline.compare(model, NAMES)
    matrices = {name: w for name, w in _weights(model).items() if w.ndim > 1 and w.size}
    for row in table.iter_rows(named=True):
        quantized = aq2_pipeline.quantize(list(matrices.values()), row["scheme"])
        n_bytes = sum(len(q["quantized_data"]) + 4 * len(q["scales"] + q["zero_points"]) for q in quantized.to_pylist())
        decoded = aq2_pipeline.dequantize(quantized)
        wholes = [w.ravel().astype(float) for w in matrices.values()]
        errors = [w - back.values.to_numpy() for w, back in zip(wholes, decoded, strict=True)]
        signals, noises = [w @ w for w in wholes], [e @ e for e in errors]
        assert row["n_layers"] == 3
        assert row["n_weights"] == sum(w.size for w in wholes)
        assert row["bits_per_weight"] == 8 * n_bytes / row["n_weights"]
        assert row["sqnr_db"] == pytest.approx(10 * math.log10(sum(signals) / sum(noises)), abs=1e-4)
        assert row["relative_rmse"] == pytest.approx(math.sqrt(sum(noises) / sum(signals)), rel=1e-5)
        ratios = dict(zip(matrices, np.divide(signals, noises), strict=True))
        assert row["worst_layer"] == min(ratios, key=ratios.get)
        assert row["worst_sqnr_db"] == pytest.approx(10 * math.log10(min(ratios.values())), abs=1e-4)


def test_rows_are_sorted_by_bits_and_have_one_schema(model):
    """Rows go up in bits, in the order given where they are equal; a scheme that is given twice is one row."""
    table = aq2_pipeline.compare(model, ["f32", "int4_g64", 4, "int3_g32_asym", "int4_g64_asym", "int4_g128"])
    assert table.schema == comparing.SCHEMA
    assert table["bits_per_weight"].is_sorted()
    assert sorted(table["scheme"]) == ["f32", "int3_g32_asym", "int4_g128", "int4_g64", "int4_g64_asym"]
    table = aq2_pipeline.compare(model, ["int3_g32", "int2_g32_asym"], layers="a.*")
    assert table.select("scheme", "bits_per_weight").rows() == [("int3_g32", 4.0), ("int2_g32_asym", 4.0)]


def test_a_lossless_scheme_has_no_worst_layer(model):
    """Without error the SQNR is infinite, the relative error 0, and no layer the worst."""
    row = aq2_pipeline.compare(model, ["f32"]).row(0, named=True)
    assert (row["sqnr_db"], row["relative_rmse"], row["worst_layer"], row["worst_sqnr_db"]) == (math.inf, 0, None, None)
    assert row["bits_per_weight"] == 32


def test_layers_are_chosen_by_pattern_and_rank(model):
    """Vectors are left out unless they are asked for; a pattern is matched with its case; integers never count."""
    file = open_source(model)
    for pattern, vectors, names in (
        ("*", False, {"a.weight", "b.weight", "c.conv"}),
        ("c.*", False, {"c.conv"}),
        ("c.*", True, {"c.conv", "c.bias"}),
        ("?.weight", False, {"a.weight", "b.weight"}),
    ):
        assert {tensor.name for tensor in comparing.layers_of(file, pattern, vectors=vectors)} == names
    with pytest.raises(InputValueError, match=r"none of 6 tensors .* is called 'A\*'"):
        aq2_pipeline.compare(model, NAMES, layers="A*")


def test_a_refused_layer_is_left_out_for_every_scheme(large):
    """Figures cover the layers that every scheme takes; a scheme names what it refuses, and why."""
    table = aq2_pipeline.compare(large, ["f16", "int8_g64"])
    rows = {row["scheme"]: row for row in table.iter_rows(named=True)}
    assert {row["n_weights"] for row in rows.values()} == {256}
    assert rows["f16"]["refused"] == ["b"]
    assert "1000000.0" in rows["f16"]["reason"]
    assert (rows["int8_g64"]["refused"], rows["int8_g64"]["reason"]) == ([], None)
    alone = aq2_pipeline.compare(large, ["int8_g64"], layers="a").drop("seconds")
    assert alone.equals(table.filter(pl.col("scheme") == "int8_g64").drop("seconds"))


def test_a_scheme_that_refuses_all_takes_nothing_from_the_others(large):
    """Its row is null and last; the others cover what they take."""
    table = aq2_pipeline.compare(large, ["f16", "int8_g64"], layers="b")
    assert table["scheme"].to_list() == ["int8_g64", "f16"]
    assert table["n_layers"].to_list() == [1, 0]
    assert table["sqnr_db"].is_null().to_list() == [False, True]
    with pytest.raises(InputValueError, match="every scheme refuses every layer"):
        aq2_pipeline.compare(large, ["f16"], layers="b")


def test_schemes_without_a_common_layer_are_an_error(large, monkeypatch):
    """Where no layer is left, nothing is pooled; the hint is to compare one at a time."""
    measure = comparing._losses
    refusal = InputValueError("not this one")

    def odd(weights, scheme, shapes, n_threads):
        losses = measure(weights, "f32", shapes, n_threads)
        return [refusal, *losses[1:]] if scheme == "f32" and len(losses) == 2 else [*losses[:-1], refusal]

    monkeypatch.setattr(comparing, "_losses", odd)
    with pytest.raises(InputValueError, match="no layer is taken by all"):
        aq2_pipeline.compare(large, ["f32", "bf16"])


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    """A layer with an infinite weight is named, and the rest is compared."""
    bad = np.ones((2, 64), np.float32)
    bad[1, 3] = np.inf
    save_file({"bad": bad, "good": RNG.normal(size=(2, 64)).astype(np.float32)}, tmp_path / "m.safetensors")
    row = aq2_pipeline.compare(tmp_path / "m.safetensors", ["int4_g64"]).row(0, named=True)
    assert (row["n_layers"], row["refused"]) == (1, ["bad"])
    assert "not finite" in row["reason"]


def test_zeros_have_no_error(tmp_path):
    """A layer of zeros is lossless under every scheme, and no division by nothing."""
    save_file({"w": np.zeros((4, 64), np.float32)}, tmp_path / "m.safetensors")
    table = aq2_pipeline.compare(tmp_path / "m.safetensors", ["int4_g64", "f16"])
    assert table["sqnr_db"].to_list() == [math.inf, math.inf]


def test_the_figures_do_not_depend_on_batches_or_threads(model, monkeypatch):
    """One layer a batch, one thread, and a second run give the same figures."""
    whole = aq2_pipeline.compare(model, NAMES).select(FIGURES)
    assert aq2_pipeline.compare(model, NAMES, threads=1).select(FIGURES).equals(whole)
    monkeypatch.setattr(source, "BATCH_BYTES", 1)
    assert aq2_pipeline.compare(model, NAMES).select(FIGURES).equals(whole)


def test_no_more_than_a_batch_is_read(model, monkeypatch):
    """Layers are measured as they are read, one batch after another, and told in the order of the file."""
    monkeypatch.setattr(source, "BATCH_BYTES", 1)
    events = []
    read = source.Source._table
    monkeypatch.setattr(source.Source, "_table", lambda *a: events.append("read") or read(*a))
    aq2_pipeline.compare(model, NAMES, progress=lambda layer: events.append(layer.name))
    file = open_source(model)
    assert events == [event for tensor in comparing.layers_of(file) for event in ("read", tensor.name)]


def test_progress_tells_each_scheme_s_sqnr(large):
    """Each layer is told with the SQNR of every scheme, None where it is refused."""
    told = {}
    aq2_pipeline.compare(large, ["f16", "f32"], progress=lambda layer: told.update({layer.name: layer.sqnr_db}))
    assert told["b"] == {"f16": None, "f32": math.inf}
    assert told["a"]["f16"] > 60


@pytest.mark.parametrize("schemes", [[], ["int9_g64"], [9]])
def test_wrong_schemes_are_refused_before_the_file(schemes, tmp_path):
    """A scheme that is none is an error although the file is not there."""
    with pytest.raises(SchemeError):
        aq2_pipeline.compare(tmp_path / "none.safetensors", schemes)


def test_the_command_prints_a_row_a_scheme(model):
    """Tab-separated lines, one a scheme, with progress on the error stream."""
    done = aq2(model, "--schemes", "int8_g64, 4", "--threads", "1")
    assert done.exit_code == 0
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert [row["scheme"] for row in rows] == ["int4_g128", "int8_g64"]
    assert {row["n_weights"] for row in rows} == {str(64 * 192 + 32 * 100 + 8 * 4 * 9)}
    assert "a.weight: SQNR int8_g64 " in done.stderr
    assert aq2(model).exit_code == 0


def test_the_command_names_what_is_refused(large):
    """Refused layers are counted in the table and named, with the reason, on the error stream."""
    done = aq2(large, "--schemes", "f16,int8_g64")
    assert done.exit_code == 0
    assert "f16 refuses 1 layers: b: " in done.stderr
    report = json.loads(aq2(large, "--schemes", "f16,f32", "--json").stdout)
    assert report["about"] == "large.safetensors: 1 of 2 layers, 256 weights"
    assert [(row["scheme"], row["sqnr_db"] is None, row["refused"]) for row in report["schemes"]] == [
        ("f16", False, ["b"]),
        ("f32", True, []),
    ]


def test_tables_are_written_as_parquet_and_csv(model, tmp_path):
    """`--output` writes what `compare` returns; CSV joins refused layers by semicolons."""
    for suffix, read in (("parquet", pl.read_parquet), ("csv", pl.read_csv)):
        target = tmp_path / f"table.{suffix}"
        assert aq2(model, "--schemes", "int4_g64,int8_g64", "--output", target).exit_code == 0
        found = read(target)
        assert found.columns == list(comparing.SCHEMA)
        assert found["scheme"].to_list() == ["int4_g64", "int8_g64"]
        assert found["sqnr_db"].to_list() == aq2_pipeline.compare(model, ["int4_g64", "int8_g64"])["sqnr_db"].to_list()


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--output", "table.xlsx", "a table is written as .parquet or .csv"),
        ("--picture", "p.jpg", "a picture is written as .svg, .png or .pdf"),
        ("--layers", "none*", "is called 'none*'"),
        ("--schemes", "int9", "'int9' is unknown"),
    ],
)
def test_errors_come_before_the_work(model, tmp_path, option, name, message):
    """What cannot be written or read is one message, exit code 1, and no file."""
    done = aq2(model, option, tmp_path / name if option in ("--output", "--picture") else name)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


def test_without_matplotlib_the_message_is_the_pip_command(model, tmp_path, monkeypatch):
    """Without the extra, `--picture` says what to install, before anything is measured."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = aq2(model, "--picture", tmp_path / "p.svg")
    assert done.exit_code == 1
    assert done.stderr == "aq2: pictures need the extra [plot]: pip install 'aq2-pipeline[plot]'\n"


@pytest.mark.parametrize(("suffix", "magic"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_a_picture_is_of_its_suffix(model, tmp_path, suffix, magic):
    """`--picture` writes what the suffix says."""
    assert aq2(model, "--schemes", "int4_g64,f32", "--picture", tmp_path / f"p.{suffix}").exit_code == 0
    assert (tmp_path / f"p.{suffix}").read_bytes().startswith(magic)


def _frame(*rows):
    return pl.DataFrame(rows, ["scheme", "bits_per_weight", "sqnr_db"], orient="row")


def test_the_picture_names_every_scheme(tmp_path):
    """Each scheme's name is a text of the SVG, below the axis without error; one without figures is not there."""
    frame = _frame(("x_$1$", 4.5, 20.0), ("y", 4.5, 19.0), ("exact", 32.0, math.inf), ("none", None, None))
    picture.draw(frame, tmp_path / "p.svg", "a <title> & $more$")
    root = ET.parse(tmp_path / "p.svg").getroot()  # noqa: S314 - our own file
    texts = ["".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"x_$1$", "y", "a <title> & $more$"} <= set(texts)
    assert any("exact (32 bits)" in text for text in texts)
    assert not any("none" in text for text in texts)


def test_the_same_table_gives_the_same_svg(tmp_path):
    """Neither time nor process is in the file."""
    frame = _frame(("x", 4.5, 20.0), ("y", 8.5, 44.0))
    for name in ("1.svg", "2.svg"):
        picture.draw(frame, tmp_path / name)
    assert (tmp_path / "1.svg").read_bytes() == (tmp_path / "2.svg").read_bytes()


def test_nothing_to_draw_is_an_error(tmp_path):
    """A table without a lossy scheme has no dot, and leaves no file."""
    with pytest.raises(InputValueError, match="no scheme has an error"):
        picture.draw(_frame(("exact", 32.0, math.inf)), tmp_path / "p.svg")
    assert not list(tmp_path.iterdir())


def test_blue_dots_are_those_that_none_beats():
    """A scheme is on the front if every other one takes more bits or has a lower SQNR, or is its equal."""
    dots = [("a", 4.0, 18.0), ("b", 4.0, 17.0), ("c", 5.0, 18.0), ("d", 5.0, 21.0), ("e", 5.0, 21.0), ("f", 2.0, 3.0)]
    assert picture._front(dots) == {"a", "d", "e", "f"}


def test_a_crowd_of_labels_does_not_overlap():
    """Labels of twenty dots in a column find places that cover no dot and no other label, inside the whole."""
    whole = np.array([0.0, 0, 600, 400])
    places = np.array([[300.0, 100 + 6 * k] for k in range(20)])
    taken = picture._around(places, 7)
    boxes = []
    for place in places:
        box, leader = picture.free_place(place, (50.0, 10.0), taken, whole)
        assert picture._overlap(box[None], taken) < 1
        assert np.all(box[:2] >= whole[:2])
        assert np.all(box[2:] <= whole[2:])
        taken = np.concatenate([taken, [box], leader])
        boxes.append(box)
    assert len(np.unique(boxes, axis=0)) == 20


def test_the_line_is_the_gaussian_rate_distortion_function():
    """A bit more divides the distortion of a Gaussian source by four: 6.02 dB."""
    assert pytest.approx(10 * math.log10(4)) == picture.DB_PER_BIT
