"""docs/quality.py: the forward pass is a sentence encoder's, and the page says what it measures."""

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[1] / "docs"
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
    return {row[0]: dict(zip(names[1:], map(float, row[1:]), strict=True)) for row in rows}


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
    back = quality.decoded(path, weights, "f32", [])
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[name], weights[name]) for name in weights)
    name = "encoder.layer.0.output.dense.weight"
    part = quality.decoded(path, weights, "int2_g64", [name])
    assert part[name] is weights[name]


def test_the_page_shows_what_is_measured(quality):
    """Every scheme has a row, and three of them are measured again."""
    shown = _shown(quality)
    assert set(shown) == set(quality.SCHEMES)
    for row in quality.figures(["int8_g128", "int4_g64_asym", "int3_g64_asym"]):
        for name, value in shown[row["scheme"]].items():
            assert abs(row[name] - value) <= TOLERANCES.get(name, 0.0005), (row["scheme"], name)


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
    by_sqnr = sorted(shown, key=lambda name: shown[name]["SQNR, dB"])
    falls = [a for a, b in itertools.pairwise(by_sqnr) if cosine[a] > cosine[b]]
    assert falls == ["int3_g32_asym"]
