"""docs/quality.py: the forward pass is a sentence encoder's, and the page says what it measures."""

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from aq2_pipeline import codecs, schemes
from aq2_pipeline.io import listing

DOCS = Path(__file__).parents[1] / "docs"
#: The schemes whose SQNR is measured again: all blocks, and of what has groups narrow and wide codes, groups of some
#: and of all, and a rotation. Each is a kernel a method to compile; `python docs/quality.py --sqnr` measures every one.
AGAIN = (
    *codecs.BLOCKS, "nvfp4_tensor", "int2_g32", "int4_g128", "int7_channel", "int2_tensor_asym", "int3_g128_asym",
    "int8_g128_asym", "int4_g64_rot64", "nf4_g128", "fp4_channel", "fp8_e4m3_tensor", "fp8_e5m2_g128", "f32", "bf16",
)  # fmt: skip
#: What rounding to the digits shown leaves, and, of what passes through the model, another BLAS.
TOLERANCES = {"bits a weight": 0.0005, "matrices": 0, "SQNR, dB": 0.0051}


@pytest.fixture(scope="module")
def quality():
    """Return docs/quality.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_quality", DOCS / "quality.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def loaded(quality, tmp_path_factory):
    """Return the model's file, weights and encoder."""
    return quality.load(tmp_path_factory.mktemp("model"))


def _shown(quality):
    text = quality.PAGE.read_text().split(quality.BEGIN)[1].split(quality.END)[0]
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return {row[0].split()[0]: dict(zip(names[1:], map(float, row[1:]), strict=True)) for row in rows}


def test_the_encoder_finds_what_is_about_the_same(quality, loaded):
    """Of thirty sentences, each of most has the other of its pair as its nearest; vectors have length 1."""
    _, weights, encode = loaded
    vectors = encode(weights, quality.SENTENCES)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    alike = vectors @ vectors.T - 2 * np.eye(len(vectors))
    nearest = alike.argmax(axis=1)[:30]
    assert np.mean(nearest == (np.arange(30) ^ 1)) > 0.9


def test_padding_changes_nothing(quality, loaded):
    """A sentence alone has the vector that it has among longer ones."""
    _, weights, encode = loaded
    vectors = encode(weights, quality.SENTENCES[:4])
    for sentence, vector in zip(quality.SENTENCES, vectors, strict=False):
        assert np.abs(encode(weights, [sentence])[0] - vector).max() < 1e-5


def test_the_error_function_is_the_one_it_says(quality):
    """GELU is x times the normal distribution's function, to single precision."""
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    exact = np.array([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x.tolist()])
    assert np.abs(quality._gelu(x) - exact).max() < 1e-6


def test_a_lossless_scheme_changes_nothing(quality, loaded):
    """Decoding f32 gives the weights, and what a scheme refuses stays as it was."""
    path, weights, _ = loaded
    back, n_bytes = quality.decoded(weights, quality.plan(path, "f32"))
    assert n_bytes == 4 * sum(weights[name].size for name in quality.plan(path, "f32"))
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[name], weights[name]) for name in weights)
    name = "encoder.layer.0.output.dense.weight"
    part = {other: scheme for other, scheme in quality.plan(path, "int2_g64").items() if other != name}
    assert quality.decoded(weights, part)[0][name] is weights[name]


def test_matrices_that_blocks_do_not_divide_get_what_llama_cpp_takes(quality, loaded):
    """Of q4_k, rows of 384 weights are q5_0; a scheme without another leaves nothing out."""
    plan = quality.plan(loaded[0], "q4_k")
    assert plan["encoder.layer.0.output.dense.weight"] == "q4_k"
    assert plan["encoder.layer.0.intermediate.dense.weight"] == "q5_0"
    assert sorted(plan) == sorted(quality.plan(loaded[0], "int4_g64"))
    assert list(plan.values()).count("q4_k") == 6


def test_the_page_shows_what_is_measured(quality):
    """Every scheme has a row, and four of them are measured again."""
    shown = _shown(quality)
    assert set(shown) == set(quality.SCHEMES)
    for row in quality.figures(["int8_g128", "int4_g64_asym", "int3_g64_asym", "iq4_xs"]):
        scheme = row.pop("scheme")
        for name, value in shown[scheme.split()[0]].items():
            assert abs(row[name] - value) <= TOLERANCES.get(name, 0.0005), (scheme, name)


def test_what_the_page_says_is_so(quality):
    """The sentences under the table hold for its figures."""
    shown = _shown(quality)
    cosine = {name: row["mean cosine"] for name, row in shown.items()}
    assert shown["int8_g128"]["most a similarity moves"] < 0.01
    assert shown["int6_g64"]["most a similarity moves"] < 0.03
    assert shown["int4_g128"]["most a similarity moves"] > 0.1
    assert (1 - cosine["int4_channel"]) / (1 - cosine["int4_g32_asym"]) > 4
    for more, less in (("int5_g64", "int4_g32_asym"), ("int4_g128", "int3_g32_asym")):
        assert cosine[more] > cosine[less]
        assert shown[more]["bits a weight"] < shown[less]["bits a weight"] + 1e-9
    by_sqnr = sorted((name for name in shown if name.startswith("int")), key=lambda name: shown[name]["SQNR, dB"])
    falls = [a for a, b in itertools.pairwise(by_sqnr) if cosine[a] > cosine[b]]
    assert falls == ["int3_g32_asym"]


def test_every_scheme_that_is_listed_was_measured(quality):
    """No scheme and no method is without a figure, and no figure is of one that is gone."""
    assert sorted(listing.measured()) == sorted(quality.every_spelling(schemes.known_names()))


@pytest.mark.parametrize("name", AGAIN)
def test_figures_of_schemes_are_measured_again(quality, loaded, name):
    """Of schemes of every kind, the SQNR by each method is what it says."""
    path, figures = loaded[0], listing.measured()
    for spelling, found in quality.sqnr(quality.every_spelling([name]), path).items():
        expected = figures[spelling]
        assert (found is None) == (expected is None), spelling
        assert found is None or abs(found - expected) <= 0.005, (spelling, found, expected)


def test_each_file_of_kernels_is_measured_again(quality):
    """Every module that makes kernels has a scheme among those that are measured again, and so has a rotation."""
    every, again = (
        {(codec.module, type(codec)) for codec in (schemes.parse(spelling).codec for spelling in spellings)}
        for spellings in (quality.every_spelling(schemes.known_names()), quality.every_spelling(AGAIN))
    )
    assert {module for module, _ in every} == {module for module, _ in again}
    assert {kind for _, kind in every} == {kind for _, kind in again}


def test_figures_are_in_order():
    """Searching for the least squared error loses less than the reference or the range does."""
    for row in listing.list_schemes():
        found = row["sqnr_db_by_method"]
        for plain, searched in (("reference", "search"), ("minmax", "mse")):
            if {plain, searched} <= found.keys():
                assert found[searched] >= found[plain] - 0.001, row["scheme"]
