"""The laws that hold for every column, function and scheme."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import oracle

import aq2_pipeline
from aq2_pipeline import layout

GROUPS = st.sampled_from(["g1", "g3", "g8", "g32", "g128", "channel", "tensor"])
BITS = st.integers(2, 8)
SYMMETRIC = st.builds("int{}_{}".format, BITS, GROUPS)
ASYMMETRIC = st.builds("int{}_{}_asym".format, BITS, GROUPS)
INTEGERS = SYMMETRIC | ASYMMETRIC
SCHEMES = INTEGERS | st.sampled_from(["f32", "f16", "bf16"])
CODEBOOKS = st.sampled_from(
    ["nf4_g7", "nf4_channel", "fp4_g32", "fp4_tensor:search", "fp8_e4m3_channel", "fp8_e5m2_g8:search"]
)
ANY = SCHEMES | CODEBOOKS

#: Everything that float16 holds too, subnormals and both zeros included.
FLOATS = st.floats(-60000, 60000, width=32)
#: Everything that float32 holds.
ALL_FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
#: Numbers that 2**k scales exactly, for the k of these tests.
PLAIN = st.one_of(st.just(0.0), st.floats(2.0**-20, 2.0**20, width=32), st.floats(-(2.0**20), -(2.0**-20), width=32))

KINDS = [
    pa.large_list(pa.float32()),
    pa.list_(pa.float32()),
    pa.list_view(pa.float32()),
    pa.large_list_view(pa.float32()),
    pa.list_(pa.float64()),
]

#: How each function is called on a column of weights with a scheme.
FUNCTIONS = {
    "quantize": aq2_pipeline.quantize,
    "dequantize": lambda column, scheme: aq2_pipeline.dequantize(aq2_pipeline.quantize(column, scheme)),
    "quantization_error": aq2_pipeline.quantization_error,
    "weight_stats": lambda column, _scheme: aq2_pipeline.weight_stats(column),
}


def rows(elements=FLOATS, largest=70):
    """Draw rows of weights of any length, empty ones included."""
    return hnp.arrays(np.float32, st.integers(0, largest), elements=elements)


def tables(elements=FLOATS):
    """Draw lists of rows, null ones included."""
    return st.lists(st.none() | rows(elements), max_size=6)


def column(table, kind=layout.FLOATS):
    """Return rows as a column."""
    return pa.array(table, kind)


@st.composite
def shaped_rows(draw, elements=FLOATS):
    """Draw a row with a shape of rank 0 to 4."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    return draw(hnp.arrays(np.float32, math.prod(shape), elements=elements)), shape


def quantized(w, scheme, shape=None):
    """Return (row as a dict, decoded weights) of one row."""
    shapes = None if shape is None else pa.array([list(shape)], layout.INTS)
    result = aq2_pipeline.quantize(column([w]), scheme, shapes)
    return result[0].as_py(), aq2_pipeline.dequantize(result).values.to_numpy()


def as_oracle(row):
    """Return a row's dict as the oracle's class."""
    scales, zeros = (np.array(row[name], np.float32) for name in ("scales", "zero_points"))
    return oracle.Quantized(**{**row, "scales": scales, "zero_points": zeros})


def rounding_bound(row, w):
    """Return half a scale a weight, plus what float32 rounds; in zero groups, what a zero group may hold."""
    bits, _, has_zeros = oracle.parts(row["scheme"])
    scale = oracle.scale_of_each(as_oracle(row)).astype(np.float64)
    reach = 2**bits if has_zeros else 2 ** (bits - 1) - 1
    bound = scale / 2 + (2.0**bits * scale + np.abs(w)) * 2.0**-21
    return np.where(scale == 0, reach * float(oracle.SMALLEST_NORMAL), bound)


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=80)
@given(tables(), tables(), ANY, st.sampled_from(KINDS))
def test_chunk_law(name, first, second, scheme, kind):
    """f(a ++ b) == f(a) ++ f(b), and a chunked column keeps its chunks."""
    function = FUNCTIONS[name]
    a, b = column(first, kind), column(second, kind)
    whole = function(column(first + second, kind), scheme)
    assert whole.equals(pa.concat_arrays([function(a, scheme), function(b, scheme)]))
    chunked = function(pa.chunked_array([a, b]), scheme)
    assert [len(chunk) for chunk in chunked.chunks] == [len(a), len(b)]
    assert chunked.combine_chunks().equals(whole)


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=80)
@given(tables(), ANY, st.sampled_from(KINDS), st.data())
def test_slice_law(name, table, scheme, kind, data):
    """f(a[i:j]) == f(a)[i:j], for slices of slices too."""
    function = FUNCTIONS[name]
    low = data.draw(st.integers(0, len(table)))
    high = data.draw(st.integers(low, len(table)))
    whole = column(table, kind)
    expected = function(whole, scheme)[low:high]
    assert function(whole[low:high], scheme).equals(expected)
    assert function(whole[low:][: high - low], scheme).equals(expected)


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=80)
@given(tables(), ANY, st.data())
def test_permutation_law(name, table, scheme, data):
    """Permuted and repeated rows give permuted and repeated results."""
    picks = data.draw(st.lists(st.integers(0, len(table) - 1), max_size=8)) if table else []
    index = pa.array(picks, pa.int64())
    whole = column(table)
    assert FUNCTIONS[name](whole.take(index), scheme).equals(FUNCTIONS[name](whole, scheme).take(index))


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=80)
@given(tables(), ANY, st.integers(0, 3))
def test_input_stays_and_nothing_is_remembered(name, table, scheme, threads):
    """Input buffers keep their bytes, lengths and nulls are kept, and a second call gives the same."""
    given_column = column(table)
    before = [None if buffer is None else buffer.to_pybytes() for buffer in given_column.buffers()]
    first = FUNCTIONS[name](given_column, scheme)
    assert [None if buffer is None else buffer.to_pybytes() for buffer in given_column.buffers()] == before
    assert first.is_null().equals(given_column.is_null())
    first.validate(full=True)
    assert FUNCTIONS[name](given_column, scheme).equals(first)
    if name == "quantize":
        assert aq2_pipeline.quantize(given_column, scheme, threads=threads or None).equals(first)


@settings(max_examples=400)
@given(shaped_rows(ALL_FLOATS), INTEGERS)
def test_error_bound(row, scheme):
    """No decoded weight is further than half its scale, and float rounding, from its weight; none is infinite."""
    w, shape = row
    found, decoded = quantized(w, scheme, shape)
    assert np.isfinite(decoded).all()
    difference = np.abs(w.astype(np.float64) - decoded.astype(np.float64))
    assert np.all(difference <= rounding_bound(found, w.astype(np.float64)))


@settings(max_examples=300)
@given(shaped_rows(ALL_FLOATS), SYMMETRIC)
def test_symmetric_schemes_are_idempotent(row, scheme):
    """Quantizing the decoded weights again gives the same row, bit for bit."""
    w, shape = row
    found, decoded = quantized(w, scheme, shape)
    again, _ = quantized(decoded, scheme, shape)
    assert again == found


@settings(max_examples=300)
@given(shaped_rows(ALL_FLOATS), ASYMMETRIC)
def test_asymmetric_schemes_move_little(row, scheme):
    """Quantizing the decoded weights again moves none by more than the rounding bound."""
    w, shape = row
    _, decoded = quantized(w, scheme, shape)
    found, again = quantized(decoded, scheme, shape)
    exact = decoded.astype(np.float64)
    assert np.all(np.abs(exact - again.astype(np.float64)) <= rounding_bound(found, exact))


@settings(max_examples=80)
@given(shaped_rows(), st.sampled_from(["f32", "f16", "bf16"]))
def test_identity_schemes_keep_what_they_stored(row, scheme):
    """Decoded weights are stored again as they are; f32 keeps every bit; the others are within half a unit."""
    w, shape = row
    found, decoded = quantized(w, scheme, shape)
    assert quantized(decoded, scheme, shape)[0] == found
    digits = {"f32": 60, "f16": 11, "bf16": 8}[scheme]
    difference = np.abs(w.astype(np.float64) - decoded.astype(np.float64))
    assert np.all(difference <= np.maximum(np.abs(w) * 2.0**-digits, 2.0**-25 if scheme == "f16" else 2.0**-133))
    if scheme == "f32":
        assert decoded.tobytes() == w.tobytes()


@settings(max_examples=150)
@given(shaped_rows(ALL_FLOATS), SYMMETRIC)
def test_mirrored_weights_have_mirrored_codes(row, scheme):
    """-x has the scales of x, and the decoded weights with their signs changed."""
    w, shape = row
    found, decoded = quantized(w, scheme, shape)
    mirrored, back = quantized(-w, scheme, shape)
    assert mirrored["scales"] == found["scales"]
    np.testing.assert_array_equal(back, -decoded)


@settings(max_examples=150)
@given(shaped_rows(PLAIN), INTEGERS, st.integers(-40, 40))
def test_powers_of_two_scale_only_the_scales(row, scheme, k):
    """2**k x has the codes and zero points of x, and 2**k times its scales."""
    w, shape = row
    found, _ = quantized(w, scheme, shape)
    scaled, _ = quantized(w * np.float32(2.0**k), scheme, shape)
    assert scaled["quantized_data"] == found["quantized_data"]
    assert scaled["zero_points"] == found["zero_points"]
    assert scaled["scales"] == [scale * 2.0**k for scale in found["scales"]]


@settings(max_examples=300)
@given(shaped_rows(), SCHEMES)
def test_sizes_are_what_the_contract_says(row, scheme):
    """Length and row length come back; data is the sum over groups of ceil(n * bits / 8); one scale a group."""
    w, shape = row
    found, decoded = quantized(w, scheme, shape)
    assert found["scheme"] == scheme
    assert found["length"] == decoded.size == w.size
    if scheme in ("f32", "f16", "bf16"):
        assert len(found["quantized_data"]) == w.size * (4 if scheme == "f32" else 2)
        assert found["scales"] == found["zero_points"] == []
        return
    bits, group, has_zeros = oracle.parts(scheme)
    row_length = oracle.matrix_row(shape, w.size, group)
    assert found["row_length"] == row_length
    sizes = [stop - start for start, stop in oracle.groups(w.size, row_length, group)]
    assert len(found["quantized_data"]) == sum(math.ceil(n * bits / 8) for n in sizes)
    assert len(found["scales"]) == len(sizes)
    assert len(found["zero_points"]) == (len(sizes) if has_zeros else 0)


@settings(max_examples=150)
@given(shaped_rows(ALL_FLOATS), INTEGERS)
def test_codes_stay_in_their_range(row, scheme):
    """A symmetric code is never 0; zero points are whole and codes of the scheme; padding bits are 0."""
    w, shape = row
    found, _ = quantized(w, scheme, shape)
    bits, group, has_zeros = oracle.parts(scheme)
    at = 0
    for start, stop in oracle.groups(w.size, found["row_length"], group):
        size = math.ceil((stop - start) * bits / 8)
        data = found["quantized_data"][at : at + size]
        codes = oracle.unpacked(data, bits, stop - start)
        assert has_zeros or codes.min() >= 1
        assert int.from_bytes(data, "little") >> ((stop - start) * bits) == 0
        at += size
    assert all(zero.is_integer() and 0 <= zero < 2**bits for zero in found["zero_points"])


@settings(max_examples=150)
@given(shaped_rows(), ANY)
def test_errors_are_those_of_the_decoded_weights(row, scheme):
    """`quantization_error` says what dequantizing would show, without doing it."""
    w, shape = row
    found, decoded = quantized(w, scheme, shape)
    shapes = pa.array([list(shape)], layout.INTS)
    lost = aq2_pipeline.quantization_error(column([w]), scheme, shapes)[0].as_py()
    if w.size == 0:
        assert set(lost.values()) == {None}
        return
    difference = w.astype(np.float64) - decoded.astype(np.float64)
    assert lost["max_abs"] == np.abs(difference).max()
    assert math.isclose(lost["mse"], np.mean(difference**2), rel_tol=1e-12, abs_tol=5e-324)
    assert lost["rmse"] == math.sqrt(lost["mse"])
    n_bytes = len(found["quantized_data"]) + 4 * (len(found["scales"]) + len(found["zero_points"]))
    assert lost["bits_per_weight"] == 8 * n_bytes / w.size
    assert -1 <= lost["cosine"] <= 1
    if lost["mse"] == 0:
        assert (lost["sqnr_db"], lost["cosine"]) == (math.inf, 1)


@settings(max_examples=80)
@given(tables(), st.lists(ANY, min_size=6, max_size=6))
def test_a_column_of_schemes_is_each_row_alone(table, names):
    """Each row of a column of schemes is quantized as if it were alone."""
    schemes = pa.array(names[: len(table)], pa.string())
    whole = aq2_pipeline.quantize(column(table), schemes)
    alone = [aq2_pipeline.quantize(column([w]), name) for w, name in zip(table, names, strict=False)]
    assert whole.equals(pa.concat_arrays([*alone, whole[:0]]))


@settings(max_examples=80)
@given(tables(), tables(), ANY)
def test_what_a_null_row_owns_is_not_read(table, garbage, scheme):
    """NaN behind null rows, and unaddressed values before and after, change nothing."""
    spread, keep = [], []
    for k, w in enumerate(table):
        spread += [np.full(3, np.nan, np.float32)] * (k < len(garbage)) + [w]
        keep += [False] * (k < len(garbage)) + [w is not None]
    filled = column([np.full(2, np.inf, np.float32), *(np.zeros(1) if w is None else w for w in spread)])[1:]
    bitmap = pa.py_buffer(np.packbits(np.array([False, *keep], bool), bitorder="little"))
    with_nulls = pa.Array.from_buffers(
        filled.type, len(filled), [bitmap, filled.buffers()[1]], offset=1, children=[filled.values]
    )
    found = aq2_pipeline.quantize(with_nulls, scheme)
    clean = column([w if ok else None for w, ok in zip(spread, keep, strict=True)])
    assert found.equals(aq2_pipeline.quantize(clean, scheme))
