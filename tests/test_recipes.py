"""Recipes: rules, then a scheme or a policy, then what a target takes; and why a layer is left alone."""

import pytest

from aq2_pipeline import InputValueError, SchemeError
from aq2_pipeline.io.gguf.sink import GgufSink
from aq2_pipeline.io.parquet.sink import ParquetSink
from aq2_pipeline.io.recipes import Choice, Recipe, parse_rule
from aq2_pipeline.io.writing.sinks import Layer

PARQUET, GGUF = ParquetSink(), GgufSink()


def chosen(recipe, name="a.b.weight", shape=(8, 256), sink=PARQUET):
    """Return what a recipe chooses for a layer."""
    return recipe.choose(Layer(name, shape, "F32"), sink)


def test_first_rule_that_fits_counts():
    """A pattern is of a layer's whole name, or of a module that holds it; the first one decides, `keep` too."""
    recipe = Recipe("int4_g64", rules=(("a.b", "int8_g64"), ("a.*", "keep"), ("*", "f16")))
    assert chosen(recipe) == Choice("int8_g64")
    assert chosen(recipe, "a.c.weight") == Choice(None, "the rule a.*=keep")
    assert chosen(recipe, "a.bc.weight") == Choice(None, "the rule a.*=keep")
    assert chosen(recipe, "A.b.weight") == Choice("f16")
    assert chosen(recipe, "x", (8,)) == Choice("f16")
    assert str(recipe) == "a.b=int8_g64; a.*=keep; *=f16; int4_g64"


def test_vectors_are_left_alone_unless_a_rule_names_them():
    """A tensor of fewer than two axes has no scheme without a rule."""
    recipe = Recipe("int4_g64", rules=(("bias", "int8_g64"),))
    assert chosen(recipe, "norm", (64,)) == Choice(None, "a tensor of fewer than two axes")
    assert chosen(recipe, "scalar", ()) == Choice(None, "a tensor of fewer than two axes")
    assert chosen(recipe, "bias", (64,)) == Choice("int8_g64")


@pytest.mark.parametrize(
    ("scheme", "row", "taken"),
    [("q4_k", 256, "q4_k"), ("q4_k", 96, "q5_0"), ("q4_k", 33, "f16"), ("q6_k", 64, "q8_0"), ("iq4_xs", 32, "iq4_nl")],
)
def test_rows_that_are_no_blocks_get_what_llama_takes(scheme, row, taken):
    """Rows that blocks do not fit get the scheme that llama.cpp falls back to, and say why."""
    choice = chosen(Recipe(scheme), shape=(8, row), sink=GGUF)
    assert choice.scheme == taken
    assert (choice.reason is None) is (taken == scheme)
    assert taken == scheme or choice.reason == f"rows of {row} weights are not whole blocks of {scheme}"


def test_a_target_that_refuses():
    """What a rule asks for and the target does not have is an error; what a policy does is left alone with a reason."""
    with pytest.raises(SchemeError, match="GGUF has no int4_g64") as caught:
        chosen(Recipe("q8_0", rules=(("a", "int4_g64"),)), sink=GGUF)
    assert caught.value.layer == "a.b.weight"
    choice = chosen(Recipe(bits=4), "mlp.weight", (4096, 4096), sink=GGUF)
    assert choice.scheme is None
    assert "GGUF has no int4" in choice.reason


@pytest.mark.parametrize(
    "wrong",
    [{"scheme": "int9"}, {"bits": 9}, {"mode": "none"}, {"rules": (("a", "int9"),)}, {"scheme": "int4_g64@bf16"}],
)
def test_wrong_recipes_are_refused_at_once(wrong):
    """Schemes, widths and policies that do not exist, and dtypes in a scheme, are errors before any file is read."""
    with pytest.raises(SchemeError):
        Recipe(**wrong)


def test_rules_are_parsed_and_checked():
    """A rule is 'pattern=scheme', its last equals sign the one; a pattern of no layer is an error."""
    assert parse_rule("*.bias=keep") == ("*.bias", "keep")
    assert parse_rule("a=b=q8_0") == ("a=b", "q8_0")
    for text in ("a", "=q8_0", "a=", ""):
        with pytest.raises(InputValueError, match="not of the form"):
            parse_rule(text)
    Recipe("f16", rules=(("a", "f16"),)).check_rules(["a.weight"])
    with pytest.raises(InputValueError, match=r"'b\*' matched 0 of 1 tensors"):
        Recipe("f16", rules=(("b*", "f16"),)).check_rules(["a.weight"])
