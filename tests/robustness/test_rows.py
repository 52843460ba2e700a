"""Cases 12 to 24 and 57, 58: rows, nulls, slices and chunks."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from robustness.harness import agreed, decoded, refused, rows
from support.engines import BY_NAME, ENGINES
from support.samples import bell

import aq2_pipeline
from aq2_pipeline import ArrowQuantV2, InputValueError, layout

NAN = float("nan")
GROUP = 32
SCHEMES = [f"int{b}_g{GROUP}{asym}" for b in (2, 3, 4, 5, 8) for asym in ("", "_asym")]
FUNCTIONS = ["quantize", "quantization_error", "weight_stats"]
WEIGHTS = rows(bell(70, 1), None, [], bell(1, 2), bell(33, 3), None, bell(32, 4), bell(5, 5), None, bell(64, 6), [0.0])


def _others(function: str) -> tuple[str, ...]:
    return () if function == "weight_stats" else ("int4_g32",)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("n", [0, 1, GROUP - 1, GROUP, GROUP + 1])
def test_case_12_lengths_around_a_group(n, scheme):
    """A short last group has its own scale and as many bytes as its codes need; the row's length is kept."""
    values, bits = bell(n, 7), int(scheme[3])
    quantized = agreed("quantize", rows(values), scheme)
    row = quantized[0].as_py()
    groups = [min(GROUP, n - at) for at in range(0, n, GROUP)]
    assert row["length"] == row["row_length"] == n
    assert len(row["scales"]) == len(groups)
    assert len(row["quantized_data"]) == sum((size * bits + 7) // 8 for size in groups)
    assert len(decoded(quantized)[0]) == n


def test_case_13_empty_lists_have_no_data_and_no_scales():
    """An empty list is an empty row, not a null one, on every surface."""
    quantized = agreed("quantize", rows([], []), "int4_g32")
    assert (
        quantized.to_pylist()
        == [
            {"scheme": "int4_g32", "length": 0, "row_length": 0, "quantized_data": b"", "scales": [], "zero_points": []}
        ]
        * 2
    )
    assert decoded(quantized) == [[], []]
    stats = agreed("weight_stats", rows([]))[0].as_py()
    assert stats.pop("count") == 0
    assert set(stats.values()) == {None}


def test_case_13_a_list_of_empty_lists_without_a_type_is_empty_rows():
    """Lists that hold nothing have no element type, and are empty rows all the same."""
    assert agreed("quantize", pa.array([[], None, []]), "int4_g32").equals(
        agreed("quantize", rows([], None, []), "int4_g32")
    )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_case_14_no_rows_give_the_right_schema(function):
    """A column without rows gives a column without rows, of the function's type."""
    found = agreed(function, rows(), *_others(function))
    assert len(found) == 0
    assert found.type == {"quantize": layout.QUANTIZED, "quantization_error": layout.ERROR}.get(function, layout.STATS)


def test_case_14_empty_chunks_between_full_ones():
    """Chunks without rows stay where they are and change nothing."""
    chunks = [WEIGHTS.slice(0, 0), WEIGHTS.slice(0, 4), WEIGHTS.slice(4, 0), WEIGHTS.slice(4), WEIGHTS.slice(0, 0)]
    found = aq2_pipeline.quantize(pa.chunked_array(chunks), "int4_g32")
    assert [len(chunk) for chunk in found.chunks] == [0, 4, 0, 7, 0]
    assert found.combine_chunks().equals(agreed("quantize", WEIGHTS, "int4_g32"))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("column", [[None, [1.0]], [[1.0], None], [None, None]], ids=["first", "last", "all"])
def test_case_15_null_rows_give_null_rows(column, function):
    """A null row is null in the result, first, last or all of them."""
    found = agreed(function, pa.array(column, layout.FLOATS), *_others(function))
    assert [row is None for row in found.to_pylist()] == [row is None for row in column]


def test_case_15_row_numbers_count_null_rows():
    """The row of an error counts the null rows before it."""
    column = rows(None, [1.0], None, None, [1.0, NAN], None)
    refused(InputValueError, "the value nan is not finite", column, "int4_g32", row=4, position=1)


def test_case_15_row_numbers_count_over_chunks():
    """On a chunked column the row of an error counts over all chunks."""
    column = pa.chunked_array([rows([1.0], None), rows(), rows(None, [2.0, 1.0, NAN])])
    with pytest.raises(InputValueError, match="row 3, position 2: the value nan is not finite") as caught:
        aq2_pipeline.quantize(column, 4)
    assert (caught.value.row, caught.value.position) == (3, 2)
    table = pa.table({"layer_name": [f"l{k}" for k in range(4)], "weights": column})
    with pytest.raises(InputValueError, match="layer 'l3', row 3, position 2") as caught:
        ArrowQuantV2().quantize_arrow(table)
    assert (caught.value.layer, caught.value.row) == ("l3", 3)


def test_case_15_the_lowest_bad_row_is_reported():
    """Whatever is wrong with which row, and whatever the threads, the lowest bad row is the one that is named."""
    column = pa.array([[1.0], [float("inf")], [None], [NAN]], layout.FLOATS)
    for threads in (1, 2, 7):
        with pytest.raises(InputValueError, match="row 1, position 0: the value inf") as caught:
            aq2_pipeline.quantize(column, pa.array([4, 4, 4, 99]), threads=threads)
        assert caught.value.row == 1


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("wide", [True, False], ids=["large_list", "list"])
def test_case_16_what_a_null_row_owns_is_ignored(wide, function):
    """A null row that owns a million NaNs is as null as one that owns nothing."""
    n = 1_000_000
    values = np.concatenate([bell(40, 1), np.full(n, np.nan, np.float32), bell(40, 2)])
    offsets = np.array([0, 40, n + 40, n + 80], np.int64 if wide else np.int32)
    kind = (pa.large_list if wide else pa.list_)(pa.float32())
    child = pa.array(values)
    column = pa.Array.from_buffers(kind, 3, [pa.py_buffer(b"\x05"), pa.py_buffer(offsets)], children=[child])
    column.validate(full=True)
    found = agreed(function, column, *_others(function))
    assert found.equals(agreed(function, rows(bell(40, 1), None, bell(40, 2)), *_others(function)))


def test_case_16_garbage_behind_null_fixed_size_rows_is_ignored():
    """A null row of a fixed-size list owns a slot; what is in it does not matter."""
    child = pa.array([1.0, 2.0, NAN, NAN, 3.0, 4.0], pa.float32())
    column = pa.FixedSizeListArray.from_arrays(child, 2, mask=pa.array([False, True, False]))
    assert agreed("quantize", column, 4).equals(agreed("quantize", rows([1.0, 2.0], None, [3.0, 4.0]), 4))


@pytest.mark.parametrize("position", [0, 3, 130])
def test_case_17_a_null_element_is_refused_with_its_index(position):
    """A null inside a list is an error that names the element, whatever float lies behind it."""
    values = bell(131, 1).tolist()
    values[position] = None
    refused(InputValueError, "an element is null", rows([1.0], values), "int4_g32", row=1, position=position)


def test_case_17_nulls_of_other_rows_do_not_count():
    """A null element between two rows' spans, or in a null row, belongs to nobody."""
    child = pa.array([None, 1.0, 2.0, None, 3.0], pa.float32())
    column = pa.LargeListArray.from_arrays([1, 3, 4, 5], child, mask=pa.array([False, True, False]))
    for engine in ENGINES:
        if engine.takes(column):
            assert engine.quantize(column, "int4_g32").equals(
                aq2_pipeline.quantize(rows([1.0, 2.0], None, [3.0]), "int4_g32")
            )


@pytest.mark.parametrize("null_count", [-1, 0])
def test_case_18_a_bitmap_of_valid_rows_changes_nothing(null_count):
    """A validity bitmap without a null gives the same result as none, whether its count is known or not."""
    column = rows(bell(9, 1), bell(3, 2))
    full = pa.py_buffer(b"\xff")
    child = pa.Array.from_buffers(pa.float32(), 12, [pa.py_buffer(b"\xff\xff"), column.values.buffers()[1]], null_count)
    same = pa.Array.from_buffers(layout.FLOATS, 2, [full, column.buffers()[1]], null_count, children=[child])
    assert agreed("quantize", same, "int4_g32").equals(agreed("quantize", column, "int4_g32"))


KINDS = {
    "list": pa.list_(pa.float32()),
    "large_list": layout.FLOATS,
    "list_view": pa.list_view(pa.float32()),
    "large_list_view": pa.large_list_view(pa.float32()),
    "list<double>": pa.list_(pa.float64()),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
}


def _as(kind: pa.DataType, values: list) -> pa.Array:
    if "binary" in str(kind):
        return pa.array([None if v is None else np.array(v, np.float32).tobytes() for v in values], kind)
    return pa.array(values, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", range(1, 10))
def test_case_19_a_slice_is_its_copy(k, kind):
    """A slice at every offset, shorter than a byte of its bitmap, gives the rows of its compact copy."""
    column = _as(KINDS[kind], WEIGHTS.to_pylist())
    for n in (1, 2):
        copy = _as(KINDS[kind], WEIGHTS.to_pylist()[k : k + n])
        expected = aq2_pipeline.quantize(copy, "int4_g32")
        for engine in ENGINES:
            if engine.takes(column, "int4_g32"):
                assert engine.quantize(column.slice(k, n), "int4_g32").equals(expected), engine.name


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("k", [1, 3, 9])
def test_case_19_every_function_takes_slices(k, function):
    """Every function gives for a slice what it gives for its copy."""
    part = WEIGHTS.slice(k, 2)
    assert agreed(function, part, *_others(function)).equals(
        agreed(function, rows(*part.to_pylist()), *_others(function))
    )


@pytest.mark.parametrize("k", range(1, 9))
def test_case_19_quantized_columns_may_be_sliced(k):
    """`dequantize` of a slice is the slice of `dequantize`."""
    quantized = aq2_pipeline.quantize(WEIGHTS, "int4_g32_asym")
    assert agreed("dequantize", quantized.slice(k, 2)).equals(agreed("dequantize", quantized).slice(k, 2))


def test_case_20_offsets_on_parent_and_child():
    """Slices of slices, with offsets on the list, on its values and on both bitmaps, address the same values."""
    child = pa.array([NAN] * 3 + bell(50, 1).tolist() + [NAN], pa.float32()).slice(1).slice(2, 50)
    column = pa.LargeListArray.from_arrays([0, 1, 5, 5, 20, 50], child)
    expected = rows(*[bell(50, 1)[a:b] for a, b in ((1, 5), (5, 5), (5, 20))])
    part = column.slice(1).slice(0, 3)
    assert agreed("quantize", part, "int4_g32").equals(agreed("quantize", expected, "int4_g32"))
    fixed = pa.FixedSizeListArray.from_arrays(child, 5).slice(2).slice(1, 4)
    expected = rows(*bell(50, 1).reshape(10, 5)[3:7])
    assert agreed("quantize", fixed, "int4_g32").equals(agreed("quantize", expected, "int4_g32"))


def test_case_20_nested_fixed_size_lists_may_be_sliced():
    """Slices of nested fixed-size lists, null elements included, address their own values."""
    values = np.arange(96, dtype=np.float32)
    child = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate([[NAN] * 4, values])), 4).slice(1)
    column = pa.FixedSizeListArray.from_arrays(child, 3).slice(2, 5)
    found = aq2_pipeline.quantize(column, "int4_g4")
    expected = aq2_pipeline.quantize(rows(*values.reshape(8, 12)[2:7]), "int4_g4", shape=(3, 4))
    assert found.equals(expected)


@pytest.mark.parametrize("n_chunks", [1, 2, 3, 300])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_case_21_chunks_change_nothing(n_chunks, function):
    """One, two, three uneven or a thousand chunks give the same bytes in Python, Polars and the wrapper."""
    column = pa.concat_arrays([WEIGHTS] * 30)
    expected = agreed(function, column, *_others(function), skip=("wrapper",))
    cuts = np.linspace(0, 1, n_chunks + 1) ** 2 * len(column)
    cuts = cuts.astype(int)
    chunks = pa.chunked_array([column.slice(a, b - a) for a, b in itertools.pairwise(cuts)])
    assert getattr(aq2_pipeline, function)(chunks, *_others(function)).combine_chunks().equals(expected)
    series = pl.concat([pl.Series(pl.from_arrow(c)) for c in chunks.chunks if len(c)], rechunk=False)
    found = getattr(series.aq2, function)(*_others(function)).to_arrow()
    assert found.cast(expected.type).equals(expected)
    if function == "quantize":
        names = [str(k) for k in range(len(column))]
        table = pa.table({"layer_name": names, "weights": chunks})
        whole = pa.table({"layer_name": names, "weights": column})
        wrapper = ArrowQuantV2()
        assert wrapper.quantize_arrow(table).combine_chunks().equals(wrapper.quantize_arrow(whole).combine_chunks())


@pytest.mark.parametrize("kind", KINDS)
def test_case_22_every_kind_of_list_gives_the_same_codes(kind):
    """Lists, large lists, views and binary give the same codes on every surface that has them."""
    column = _as(KINDS[kind], WEIGHTS.to_pylist())
    assert agreed("quantize", column, "int4_g32").equals(agreed("quantize", WEIGHTS, "int4_g32"))


def test_case_22_fixed_size_lists_and_polars_arrays_give_the_same_codes():
    """A fixed-size list, and so a Polars Array, gives the codes of the same rows as lists."""
    values = [bell(8, 1).tolist(), None, bell(8, 2).tolist()]
    fixed = pa.array(values, pa.list_(pa.float32(), 8))
    assert agreed("quantize", fixed, "int4_g4").equals(agreed("quantize", pa.array(values, layout.FLOATS), "int4_g4"))
    series = pl.Series(values, dtype=pl.Array(pl.Float32, 8))
    assert (
        series.aq2.quantize("int4_g4").to_arrow().cast(layout.QUANTIZED).equals(aq2_pipeline.quantize(fixed, "int4_g4"))
    )


def test_case_22_views_may_overlap_and_come_in_any_order():
    """Rows of a list view may share values, run backwards and repeat."""
    values = bell(64, 1)
    starts, sizes = [32, 0, 16, 16, 63], [32, 32, 33, 33, 1]
    view = pa.LargeListViewArray.from_arrays(
        pa.array(starts, pa.int64()), pa.array(sizes, pa.int64()), pa.array(values)
    )
    expected = rows(*[values[a : a + n] for a, n in zip(starts, sizes, strict=True)])
    assert agreed("quantize", view, "int4_g32").equals(agreed("quantize", expected, "int4_g32"))


@pytest.mark.parametrize("k", range(1, 6))
def test_case_23_sliced_fixed_size_lists_with_nulls_reach_every_surface(k):
    """A slice of a fixed-size list with nulls, which Polars cannot import as it is, gives the right rows."""
    values = [None if row % 3 == 1 else bell(4, row).tolist() for row in range(9)]
    part = pa.array(values, pa.list_(pa.float32(), 4)).slice(k, 3)
    expected = agreed("quantize", pa.array(values[k : k + 3], layout.FLOATS), 4)
    assert agreed("quantize", part, 4).equals(expected)
    series = pl.Series(values, dtype=pl.Array(pl.Float32, 4)).slice(k, 3)
    assert series.aq2.quantize(4).to_arrow().cast(layout.QUANTIZED).equals(expected)
    quantized = series.to_frame("w").select(pl.col("w").aq2.quantize(4))["w"].to_arrow()
    assert quantized.cast(layout.QUANTIZED).equals(expected)


def test_case_24_only_addressed_values_are_used():
    """Offsets that start at 4 and end before the values do leave the rest unread: it is full of NaN."""
    values = np.concatenate([[np.nan] * 4, bell(20, 1), [np.nan] * 9]).astype(np.float32)
    column = pa.LargeListArray.from_arrays([4, 10, 24], pa.array(values))
    assert column.offsets[0].as_py() == 4
    for kind in (layout.FLOATS, pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float16())):
        expected = aq2_pipeline.quantize(pa.array([values[4:10].tolist(), values[10:24].tolist()], kind), 4)
        moved = pa.LargeListArray.from_arrays([4, 10, 24], pa.array(values).cast(kind.value_type))
        assert agreed("quantize", moved, 4).equals(expected)


@pytest.mark.parametrize("scheme", ["int4_g32", "int3_channel_asym", "bf16"])
@pytest.mark.parametrize("order", ["reversed", "permuted", "duplicated"])
def test_case_57_rows_are_independent(order, scheme):
    """Rows permuted, reversed or repeated give their results permuted, reversed or repeated."""
    n = len(WEIGHTS)
    index = {"reversed": range(n)[::-1], "permuted": [3, 0, 9, 4, 1], "duplicated": [k // 3 for k in range(3 * n)]}
    taken = pa.array(list(index[order]))
    whole = agreed("quantize", WEIGHTS, scheme)
    assert agreed("quantize", WEIGHTS.take(taken), scheme).equals(whole.take(taken))
    assert BY_NAME["python"].dequantize(whole.take(taken)).equals(BY_NAME["python"].dequantize(whole).take(taken))


@pytest.mark.parametrize("bits", range(2, 9))
def test_case_58_negated_weights_have_mirrored_codes(bits):
    """Symmetric: -x has the scales of x, and decodes to the negative."""
    column, negative = rows(bell(300, bits)), rows(-bell(300, bits))
    one, other = (agreed("quantize", c, f"int{bits}_g32") for c in (column, negative))
    assert one[0]["scales"].equals(other[0]["scales"])
    assert np.array_equal(np.array(decoded(one)[0]), -np.array(decoded(other)[0]))


@pytest.mark.parametrize("scheme", ["int2_g32", "int4_g32", "int8_tensor", "int4_g32_asym", "int5_channel_asym"])
@pytest.mark.parametrize("exponent", [-20, -3, 1, 40])
def test_case_58_powers_of_two_move_only_the_scale(exponent, scheme):
    """2**k x has the codes of x and 2**k times its scales."""
    factor = np.float32(2.0**exponent)
    one, other = (agreed("quantize", rows(c), scheme)[0].as_py() for c in (bell(300, 3), bell(300, 3) * factor))
    assert one["quantized_data"] == other["quantized_data"]
    assert one["zero_points"] == other["zero_points"]
    assert np.array_equal(np.float32(one["scales"]) * factor, np.float32(other["scales"]))
