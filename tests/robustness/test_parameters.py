"""Cases 37, 38, 41 to 43: schemes, keywords, names and order of columns."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from robustness.harness import agreed, refused, rows
from support.engines import everywhere

import aq2_pipeline
from aq2_pipeline import ArrowQuantV2, InputTypeError, InputValueError, SchemeError, layout

W = rows([1.0, 2.0, 3.0], None, [4.0, 5.0, 6.0])
BITS = [0, 1, 9, -4, 8.5, "8", None, True, False, 4.0, 2**70, "", b"int4_g64", np.float32(4)]


@pytest.mark.parametrize("bits", BITS, ids=repr)
def test_case_41_impossible_widths_name_what_is_possible(bits):
    """Only integers from 2 to 8 and known names are schemes; the error tells what was found and what may be."""
    with pytest.raises(SchemeError, match=r"scheme: .*Hint: "):
        aq2_pipeline.quantize(W, bits)
    with pytest.raises(SchemeError, match=r"aq2_quantize: scheme: .*Hint: |^scheme: .*Hint: "):
        pl.col("w").aq2.quantize(bits)
    with pytest.raises(SchemeError, match="Hint: "):
        ArrowQuantV2().quantize_batch({"a": np.ones(3, np.float32)}, bit_width=bits)
    if bits is not None:
        with pytest.raises(SchemeError, match="Hint: "):
            ArrowQuantV2().quantize_arrow(pa.table({"layer_name": ["a"] * 3, "weights": W}), scheme=bits)


@pytest.mark.parametrize("bits", [b for b in BITS if not isinstance(b, bytes | list | np.floating)], ids=repr)
def test_case_41_every_engine_refuses_impossible_widths(bits):
    """No engine turns an impossible width into a result, not even NULL."""
    for engine, text in everywhere("quantize", W, *([bits] if bits is not None else [pa.nulls(3)])).items():
        assert isinstance(text, str), f"{engine} took it"
        assert "scheme" in text, text
        assert "Hint: " in text, text


@pytest.mark.parametrize("size", [0, -1, 2**40, 2**31, 3.5, True, "64", "row", None], ids=repr)
def test_case_42_group_sizes_that_cannot_be(size):
    """Group sizes below 1, huge ones and words that mean nothing are refused; None is the default."""
    if size is None:
        assert aq2_pipeline.quantize(W, 4, group_size=None)[0]["scheme"].as_py() == "int4_g128"
        return
    for call in (
        lambda: aq2_pipeline.quantize(W, 4, group_size=size),
        lambda: pl.col("w").aq2.quantize(4, group_size=size),
    ):
        with pytest.raises(
            SchemeError, match=r"group_size: .* is no group size. Hint: an integer from 1 to 2147483647"
        ):
            call()


@pytest.mark.parametrize(
    "name", ["int4_g0", "int4_g-1", "int4_g", "int4_g01", "int4_g1099511627776", "int4_g2147483648"]
)
def test_case_42_names_of_groups_that_cannot_be(name):
    """A name with an impossible group is refused on every surface."""
    for engine, text in everywhere("quantize", W, name).items():
        assert "Hint: " in str(text), f"{engine}: {text}"
        assert name in text, text
    with pytest.raises(SchemeError):
        aq2_pipeline.quantize(W, name)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 2**31 - 1])
def test_case_42_groups_that_do_not_divide_or_are_longer_than_the_row(size):
    """Any group size from 1 is fine: the last group is short, and a group longer than the row is the row."""
    values = np.arange(7, dtype=np.float32)
    row = agreed("quantize", rows(values), f"int4_g{size}")[0].as_py()
    assert len(row["scales"]) == -(-7 // size)
    shaped = agreed("quantize", rows(np.arange(14)), f"int4_g{size}", pa.array([[2, 7]], layout.INTS))[0].as_py()
    assert (shaped["row_length"], len(shaped["scales"])) == (7, 2 * -(-7 // size))


@pytest.mark.parametrize(
    "name",
    ["INT4_g64", "int4_G64", " int4_g64", "int4_g64 ", "int4_g64\n", "int4_g64\0", "int4-g64", "q4", "int4_g64:best",
     "int4_g64@f8", "int4_g64@", "int4_g64:", "int4_g64:minmax:minmax", "int4_g64_asym_asym",
     "int\uff14_g64", "f32_g64"],
    ids=repr,
)  # fmt: skip
def test_case_43_names_are_exact(name):
    """Case, white space, unknown methods and unknown input dtypes are refused with the closest known names."""
    with pytest.raises(SchemeError, match=r"scheme: .*Hint: .*'"):
        aq2_pipeline.quantize(W, name)
    for engine, text in everywhere("quantize", W, name).items():
        assert "Hint: " in str(text), f"{engine}: {text}"


def test_case_43_a_null_scheme_is_an_error_where_there_are_weights():
    """A null scheme fails the rows that have weights; null weights are null whatever the scheme."""
    refused(SchemeError, "the scheme is NULL", W, pa.array(["int4_g64", "int4_g64", None]), row=2)
    found = agreed("quantize", W, pa.array(["int4_g64", None, "int8_g64"]))
    assert [row and row["scheme"] for row in found.to_pylist()] == ["int4_g64", None, "int8_g64"]


def test_case_43_every_row_may_have_its_own_scheme():
    """A column of schemes gives each row what the constant would give it; a wrong one fails its row."""
    names = ["int4_g64", "f32", "int3_channel_asym"]
    column = rows([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])
    found = agreed("quantize", column, pa.array(names))
    for row, name in enumerate(names):
        assert found.slice(row, 1).equals(agreed("quantize", column.slice(row, 1), name))
    refused(SchemeError, "scheme: 'int4_g6x' is unknown", column, pa.array(["int4_g64", "f32", "int4_g6x"]), row=2)
    assert agreed("quantize", column, pa.array([4, 8, 2])).equals(
        agreed("quantize", column, pa.array(["int4_g128", "int8_g128", "int2_g128"]))
    )


@pytest.mark.parametrize(
    ("keywords", "scheme"),
    [({"group_size": 32}, "int4_g64"), ({"symmetric": False}, "int4_g64"), ({"method": "hqq"}, "int4_g64:minmax")],
)
def test_case_43_keywords_do_not_contradict_names(keywords, scheme):
    """A keyword that contradicts the name is an error, not a silent choice."""
    with pytest.raises(SchemeError):
        aq2_pipeline.quantize(W, scheme, **keywords)
    with pytest.raises(SchemeError):
        pl.col("w").aq2.quantize(scheme, **keywords)


INT_LISTS = layout.INTS
BAD_SHAPES = {
    "negative": ([-1, -3], "has an axis that is null or negative"),
    "null": ([None, 3], "has an axis that is null or negative"),
    "product": ([2, 2], "holds 4 weights, the row holds 3"),
    "zero": ([3, 0], "holds 0 weights, the row holds 3"),
    "scalar": ([], "holds 1 weights, the row holds 3"),
    "huge": ([2**62, 4, 3], f"holds {2**62 * 12} weights, the row holds 3"),
    "wrapping": ([2**33, 2**33, 3], "weights"),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_case_42_shapes_that_do_not_hold_the_row(name):
    """A shape with a null, negative or zero axis, or a product that is not the length, fails its row."""
    shape, reason = BAD_SHAPES[name]
    given = pa.array([[3], None, shape], INT_LISTS)
    for engine, text in everywhere("quantize", W, "int4_g2", given).items():
        assert f"the shape {shape} " in str(text), f"{engine}: {text}"
    with pytest.raises(InputValueError, match="row 2: the shape") as caught:
        aq2_pipeline.quantize(W, "int4_g2", given)
    assert caught.value.row == 2
    assert reason in str(caught.value) or "more weights than any row" in str(caught.value)


@pytest.mark.parametrize("scheme", ["int4_g128", "int4_channel", "int4_tensor", "f32", "int4_g2147483647_asym"])
def test_case_42_an_axis_of_zero_hides_no_overflow(scheme):
    """An empty row whose other axes overflow 64 bits is refused; one with modest axes is an empty row."""
    empty = rows([])
    for engine, text in everywhere("quantize", empty, scheme, pa.array([[0, 2**62, 2**62]], INT_LISTS)).items():
        assert "holds more weights than any row" in str(text), f"{engine}: {text}"
    found = agreed("quantize", empty, scheme, pa.array([[0, 5, 5]], INT_LISTS))
    assert agreed("dequantize", found).to_pylist() == [[]]


@pytest.mark.parametrize(
    "shape",
    [pa.array([["3"]] * 3), pa.array([[3.0]] * 3), pa.array([3] * 3), pa.array([[True]] * 3), pa.array(["3"] * 3)],
    ids=lambda column: str(column.type),
)
def test_case_42_a_shape_is_an_integer_list(shape):
    """A wrong type in the slot of the shape is an InputTypeError on every surface."""
    for engine, text in everywhere("quantize", W, "int4_g2", shape).items():
        assert "expected a list of integers" in str(text), f"{engine}: {text}"
    with pytest.raises(InputTypeError, match=r"aq2_quantize: shape is .*Hint: expected a list of integers"):
        aq2_pipeline.quantize(W, "int4_g2", shape)


@pytest.mark.parametrize("bad", [Ellipsis, ("a",), [(3,), "x", None], (2**70,), {"a": 1}, 3, "abc", b"x"], ids=repr)
@pytest.mark.parametrize("argument", ["shape", "importance"])
def test_case_42_python_values_that_make_no_column(argument, bad):
    """Whatever Python object is given as a shape or importance, the error is ours and names the argument."""
    with pytest.raises((InputTypeError, SchemeError), match=f"aq2_quantize.*{argument}"):
        aq2_pipeline.quantize(W, 4, **{argument: bad})


@pytest.mark.parametrize("n", [0, 1, 2, 4])
@pytest.mark.parametrize("argument", ["scheme", "shape", "importance"])
def test_case_42_columns_of_another_length_are_refused(argument, n):
    """A scheme, shape or importance column of another length than the weights is an InputTypeError that counts both."""
    column = {
        "scheme": pa.array([4] * n),
        "shape": pa.array([[3]] * n, INT_LISTS),
        "importance": pa.array([[1.0]] * n, layout.FLOATS),
    }
    arguments = {"scheme": 4} | {argument: column[argument]}
    with pytest.raises(InputTypeError, match=f"{argument} has {n} rows, weights has 3"):
        aq2_pipeline.quantize(W, **arguments)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_case_43_threads_are_a_number(threads):
    """A number of threads that is none is refused at once, and leaves the pool as it was."""
    for call in (lambda: aq2_pipeline.quantize(W, 4, threads=threads), lambda: ArrowQuantV2(threads=threads)):
        with pytest.raises(InputValueError, match=r"threads: .* is no number of threads. Hint: "):
            call()


@pytest.mark.parametrize(
    ("name", "shape", "bits", "mode", "kind"),
    [
        ("a", [None, 2], 4, "diffusion", InputValueError),
        ("a", [-2], 4, "base", InputValueError),
        ("a", [2], 9, "base", SchemeError),
        ("a", [2], None, "base", SchemeError),
        ("a", [2], 4, "best", SchemeError),
        ("a", [2], 4, None, SchemeError),
        ("a", ["x"], 4, "base", InputTypeError),
        ("a", 2, 4, "base", InputTypeError),
        (5, [2], 4, "base", InputTypeError),
    ],
)
def test_case_43_policies_refuse_what_is_no_layer(name, shape, bits, mode, kind):
    """A policy refuses shapes, names, widths and modes that cannot be, with our errors, on columns and values."""
    columns = (pa.array([name]), pa.array([shape]), pa.array([bits]), pa.array([mode]))
    with pytest.raises(kind, match=r"aq2_policy_scheme: row 0: .*Hint: "):
        aq2_pipeline.policy_scheme(*columns)


# --- Tables ----------------------------------------------------------------------------------------------------------

TABLE = pa.table({"layer_name": ["a", "b", "c"], "weights": W})


def test_case_37_a_missing_column_is_named():
    """A table without the columns is refused with the names that it has; names are exact in their case."""
    for name in ("layer_name", "weights"):
        renamed = TABLE.rename_columns([c.upper() if c == name else c for c in TABLE.column_names])
        with pytest.raises(InputTypeError, match=f"the table has no column '{name}'; it has .*'{name.upper()}'.*exact"):
            ArrowQuantV2().quantize_arrow(renamed)


def test_case_37_duplicate_columns_are_refused():
    """Two columns of one name are an error that counts them."""
    twice = TABLE.append_column("weights", W)
    with pytest.raises(InputTypeError, match=r"the table has 2 columns 'weights'\. Hint: rename all but one"):
        ArrowQuantV2().quantize_arrow(twice)


def test_case_37_columns_that_would_be_overwritten_are_refused():
    """A column that the result needs the name of is an error, not lost."""
    with pytest.raises(InputTypeError, match="the column 'scales' would be overwritten"):
        ArrowQuantV2().quantize_arrow(TABLE.append_column("scales", W))


def test_case_37_other_columns_pass_through_with_their_metadata():
    """Columns that nobody asked about keep their values, order, types and metadata."""
    field = pa.field("note", pa.dictionary(pa.int8(), pa.string()), metadata={"k": "v"})
    table = TABLE.append_column(field, pa.array(["x", None, "x"]).dictionary_encode().cast(field.type))
    table = table.append_column("position", pa.array([3, 1, 2], pa.uint8())).replace_schema_metadata({"model": "m"})
    result = ArrowQuantV2().quantize_arrow(table)
    assert result["note"].to_pylist() == ["x", None, "x"]
    assert result.schema.field("note").equals(field, check_metadata=True)
    assert result["position"].equals(table["position"])
    assert result.schema.metadata == {b"model": b"m"}


def test_case_38_columns_are_found_by_name_in_any_order():
    """The order of columns, of the input and of a quantized struct, does not matter."""
    whole = ArrowQuantV2().quantize_arrow(TABLE)
    assert ArrowQuantV2().quantize_arrow(TABLE.select(["weights", "layer_name"])).equals(whole)
    quantized = aq2_pipeline.quantize(W, 4)
    names = [f.name for f in quantized.type][::-1]
    turned = pa.StructArray.from_arrays([quantized.field(n) for n in names], names, mask=quantized.is_null())
    for engine, found in everywhere("dequantize", turned).items():
        assert not isinstance(found, str), f"{engine}: {found}"
        assert found.equals(aq2_pipeline.dequantize(quantized)), engine


def test_case_38_a_type_that_changes_between_batches_is_an_error():
    """A stream whose batches change their type is refused by name; the batches before it are not affected."""
    good = TABLE.to_batches()[0]
    bad = pa.record_batch({"layer_name": ["d"], "weights": pa.array([[1]], pa.list_(pa.int64()))})
    wrapper = ArrowQuantV2()
    first = wrapper.quantize_arrow_batch(good)
    with pytest.raises(InputTypeError, match=r"weights are list<item: int64>.*Hint: cast them"):
        wrapper.quantize_arrow_batch(bad)
    assert wrapper.quantize_arrow_batch(good).equals(first)


def test_case_37_bad_shapes_fail_their_rows_and_no_others():
    """Under a policy, too, a shape that cannot be is its row's error, named with its layer; null weights stay null."""
    shapes = pa.array([[3], [None, 1], [None, 3]], INT_LISTS)
    table = TABLE.append_column("shape", shapes)
    with pytest.raises(InputValueError, match=r"layer 'c', row 2: the shape \[None, 3\]"):
        ArrowQuantV2().quantize_arrow(table)
    with pytest.warns(RuntimeWarning, match="1 of 3 rows failed"):
        result = ArrowQuantV2().quantize_arrow(table, continue_on_error=True)
    assert [e is not None for e in result["error"].to_pylist()] == [False, False, True]
    assert [s is not None for s in result["scheme"].to_pylist()] == [True, False, False]
    assert "[None, 3]" in result["error"][2].as_py()


def test_case_37_a_chunk_row_has_no_tensor_scheme():
    """A `_tensor` scheme on a chunk of a tensor fails that row, and says why."""
    table = TABLE.append_column("shape", pa.array([[3]] * 3, INT_LISTS))
    table = table.append_column("tensor_shape", pa.array([None, [6], [6]], INT_LISTS))
    with pytest.raises(
        SchemeError, match="layer 'c', row 2: int4_tensor has one scale a tensor, and the row is a chunk"
    ):
        ArrowQuantV2().quantize_arrow(table, scheme="int4_tensor")
    with pytest.warns(RuntimeWarning, match="1 of 3 rows failed"):
        result = ArrowQuantV2().quantize_arrow(table, scheme="int4_tensor", continue_on_error=True)
    assert "the row is a chunk of one" in result["error"][2].as_py()
