"""Cases 1 to 11, 33 to 36: the values and types of weights."""

from __future__ import annotations

import decimal

import ml_dtypes
import numba
import numpy as np
import pyarrow as pa
import pytest
from robustness.harness import agreed, decoded, in_child, refused, rows
from support.engines import ENGINES, everywhere

import aq2_pipeline
from aq2_pipeline import InputTypeError, InputValueError, SchemeError, layout
from aq2_pipeline.kernels import bits as kernel_bits

LARGEST = float(np.finfo(np.float32).max)
TAIL = 131  # one group of 128 and a tail that no vector register fills
SCHEMES = ["int4_g128", "int8_tensor", "int3_channel", "int4_g128_asym", "int8_g32_asym"]
NOT_FINITE = {
    "quiet": 0x7FC00000,
    "signalling": 0x7F800001,
    "negative": 0xFFC00000,
    "payload": 0x7FC12345,
    "negative signalling": 0xFF812345,
    "inf": 0x7F800000,
    "-inf": 0xFF800000,
}


def _bits(pattern: int) -> np.float32:
    return np.array([pattern], np.uint32).view(np.float32)[0]


def _from_bits(values: np.ndarray) -> pa.Array:
    """Return one row over NumPy's own bytes: Python floats would quiet a signalling NaN."""
    child = pa.Array.from_buffers(pa.float32(), values.size, [None, pa.py_buffer(values)])
    return pa.LargeListArray.from_arrays([0, values.size], child, type=layout.FLOATS)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("zeros", [[0.0] * 5, [-0.0] * 5, [0.0, -0.0, 0.0, -0.0, -0.0]])
def test_case_01_zeros_give_scale_zero_and_come_back_exactly(zeros, scheme):
    """A group of zeros of either sign has the code of 0, scale 0, and decodes to exact 0 without a warning."""
    quantized = agreed("quantize", rows(zeros, [0.0]), scheme)
    again = agreed("quantize", rows([0.0] * 5, [0.0]), scheme)
    assert quantized.equals(again)
    assert quantized[0]["scales"].as_py() == [0.0]
    assert decoded(quantized) == [[0.0] * 5, [0.0]]
    errors = agreed("quantization_error", rows(zeros), scheme)[0].as_py()
    assert (errors["max_abs"], errors["cosine"], errors["sqnr_db"]) == (0.0, 1.0, float("inf"))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("constant", [3.0, -3.0])
def test_case_02_a_constant_group_decodes_to_its_constant(constant, scheme):
    """All codes of a constant group are equal, and the constant comes back within half a scale."""
    quantized = agreed("quantize", rows([constant] * 32), scheme)
    back = np.array(decoded(quantized)[0])
    assert len(set(back)) == 1
    assert abs(back[0] - constant) <= quantized[0]["scales"].as_py()[0] / 2


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("position", [0, 64, 127, 128, TAIL - 1])
def test_case_03_one_nan_is_named_wherever_it_is(position, scheme):
    """A NaN first, in the middle, last or in the vector tail is refused with its row and element."""
    bad = np.ones(TAIL, np.float32)
    bad[position] = np.nan
    error = refused(
        InputValueError, "the value nan is not finite", rows([1.0], bad, [2.0]), scheme, row=1, position=position
    )
    assert np.isnan(error.value)


@pytest.mark.parametrize("name", [n for n in NOT_FINITE if "inf" not in n])
def test_case_04_every_kind_of_nan_is_refused(name):
    """Signalling, negative and payload-carrying NaNs are refused as any other."""
    values = np.ones(TAIL, np.float32)
    values[129] = _bits(NOT_FINITE[name])
    assert values.view(np.uint32)[129] == NOT_FINITE[name]
    refused(InputValueError, "the value nan is not finite", _from_bits(values), "int4_g128", row=0, position=129)


@pytest.mark.parametrize("scheme", [*SCHEMES, "f32", "f16", "bf16"])
@pytest.mark.parametrize("name", ["inf", "-inf"])
def test_case_05_infinities_are_refused_with_their_position(name, scheme):
    """Either infinity is refused with its position and value."""
    values = np.ones(TAIL, np.float32)
    values[77] = float(name)
    reason = f"the value {float(name)!r} is not finite"
    error = refused(InputValueError, reason, rows([0.5], values), scheme, row=1, position=77)
    assert error.value == float(name)


@pytest.mark.parametrize("function", ["quantize", "quantization_error"])
def test_case_05_the_error_function_refuses_what_quantize_refuses(function):
    """`quantization_error` names the same row, position and value as `quantize`."""
    refused(
        InputValueError,
        "the value inf is not finite",
        rows([0.5], [1.0, np.inf]),
        "int4_g128",
        function=function,
        row=1,
        position=1,
    )


def test_case_05_statistics_count_instead_of_raising():
    """`weight_stats` counts NaN, infinities and null elements on every surface, so that a query finds bad layers."""
    column = pa.array([[1.0, float("nan"), None, float("inf"), 0.0]], layout.FLOATS)
    stats = agreed("weight_stats", column)[0].as_py()
    assert (stats["count"], stats["non_finite"], stats["zeros"], stats["max"]) == (5, 3, 1, 1.0)


@pytest.mark.parametrize("scheme", [f"int{b}_g128{asym}" for b in (2, 3, 4, 8) for asym in ("", "_asym")])
@pytest.mark.parametrize("values", [[LARGEST, -LARGEST], [LARGEST], [-LARGEST, 0.0, 1.0]])
def test_case_06_the_largest_floats_decode_to_finite_values(values, scheme):
    """The largest float32 of either sign decodes to something finite."""
    back = np.array(decoded(agreed("quantize", rows(values), scheme))[0], np.float32)
    assert np.isfinite(back).all()
    assert np.isfinite(agreed("quantization_error", rows(values), scheme)[0]["max_abs"].as_py())


SUBNORMALS = [[1e-45, -1e-45, 1e-40], [1e-40] * 9, [1.1e-38, -1e-45], [1.5e-38, 1e-40]]


@numba.njit
def _set_control(word):
    return kernel_bits._write_control(word)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("values", SUBNORMALS)
def test_case_07_subnormals_keep_the_bound_or_become_zeros(values, scheme):
    """Groups of subnormals are zero groups, or keep the bound of half a scale; nothing becomes infinite."""
    quantized = agreed("quantize", rows(values), scheme)
    scale, back = quantized[0]["scales"].as_py()[0], np.array(decoded(quantized)[0])
    assert np.isfinite(back).all()
    assert not back.any() if scale == 0 else (np.abs(back - np.float32(values)) <= scale / 2 * (1 + 1e-6)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_case_07_flush_to_zero_of_another_library_changes_nothing(scheme):
    """With flush-to-zero switched on in the calling thread the bytes are the same, and it is still on afterwards."""
    column = rows(*SUBNORMALS, [2e-38, 1e-40, 3e-39] * 40)
    expected = aq2_pipeline.quantize(column, scheme, threads=1)
    errors = aq2_pipeline.quantization_error(column, scheme, threads=1)
    usual = np.int32(0x1F80)
    _set_control(np.int32(0x1F80 | 0x8040))
    try:
        smallest = np.float32(1e-40) * np.float32(1)
        found = aq2_pipeline.quantize(column, scheme, threads=1)
        found_errors = aq2_pipeline.quantization_error(column, scheme, threads=1)
        still = np.float32(1e-40) * np.float32(1)
    finally:
        _set_control(usual)
    assert (smallest, still) == (0.0, 0.0), "flush-to-zero was not on: the test would prove nothing"
    assert found.equals(expected)
    assert found_errors.equals(errors)


def test_case_08_an_outlier_fits_float32_scales_but_not_float16():
    """1e30 among ones has a finite float32 scale; the scheme that stores float16 refuses it."""
    column = rows([1.0, 1e30, 1.0])
    back = decoded(agreed("quantize", column, "int4_g128"))[0]
    assert back[1] == pytest.approx(1e30)
    assert back[0] == 0.0
    reason = f"the value {float(np.float32(1e30))!r} does not fit 'f16'"
    refused(InputValueError, reason, column, "f16", row=0, position=1)


@pytest.mark.parametrize("magnitude", [1e-38 * 127, 2.0**-126 * 127, 2.0**-127 * 127, 1e-44])
@pytest.mark.parametrize("scheme", ["int8_g128", "int8_g128_asym"])
def test_case_09_scales_near_underflow_keep_the_bound(magnitude, scheme):
    """A scale below the smallest normal float makes a zero group; any other keeps the bound of half a scale."""
    values = np.linspace(-magnitude, magnitude, 33).astype(np.float32)
    quantized = agreed("quantize", rows(values), scheme)
    scale, back = quantized[0]["scales"].as_py()[0], np.array(decoded(quantized)[0])
    assert scale == 0 or scale >= np.finfo(np.float32).tiny
    assert not back.any() if scale == 0 else (np.abs(back - values) <= scale / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize(("bits", "top"), [(4, 7.0), (8, 127.0), (3, 3.0)])
def test_case_10_exact_halves_round_to_even(bits, top):
    """At scale 1 exact halves go to the even neighbour, on every surface."""
    values = [top, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]
    quantized = agreed("quantize", rows(values), f"int{bits}_g128")
    assert quantized[0]["scales"].as_py() == [1.0]
    assert decoded(quantized)[0] == [top, 0.0, 2.0, 2.0, 0.0, -2.0, -2.0]


@pytest.mark.parametrize("bits", range(2, 9))
def test_case_11_symmetric_codes_never_reach_the_lowest(bits):
    """Symmetric minmax never writes the code 0, so the lowest decoded value is the negative of the highest."""
    top = 2 ** (bits - 1) - 1
    values = np.linspace(-top, top, 301).astype(np.float32)
    quantized = agreed("quantize", rows(values, -values), f"int{bits}_tensor")
    back = np.array(decoded(quantized))
    assert (back.min(), back.max()) == (-top, top)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_case_11_asymmetric_codes_span_the_whole_range(bits):
    """Asymmetric codes run from 0 to 2**bits - 1, and both ends of the range come back within half a scale."""
    values = np.linspace(-1, 3, 200).astype(np.float32)
    quantized = agreed("quantize", rows(values), f"int{bits}_tensor_asym")
    scale, back = quantized[0]["scales"].as_py()[0], np.array(decoded(quantized)[0])
    assert abs(back[0] - values[0]) <= scale / 2 * (1 + 1e-6)
    assert abs(back[-1] - values[-1]) <= scale / 2 * (1 + 1e-6)


# --- Types -----------------------------------------------------------------------------------------------------------

PLAIN = [0.5, -1.25, 7.0, 0.0, -3.5]
NUMBERS = {
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "decimal32": pa.decimal32(6, 3),
    "decimal64": pa.decimal64(12, 3),
    "decimal128": pa.decimal128(20, 3),
    "decimal256": pa.decimal256(50, 3),
}
#: Types that these engines cannot import at all.
UNKNOWN_TO = {"duckdb": ("decimal256",), "polars": ("decimal32", "decimal64", "decimal256")}


def _numbers(name: str) -> pa.Array:
    kind = NUMBERS[name]
    convert = (lambda x: decimal.Decimal(str(x))) if name.startswith("decimal") else float
    return pa.array([[convert(x) for x in PLAIN], None, []], pa.large_list(kind))


@pytest.mark.parametrize("name", NUMBERS)
def test_case_33_every_type_of_number_is_widened_exactly(name):
    """float16, float64 and decimals give the codes of the same numbers as float32."""
    expected = agreed("quantize", rows(PLAIN, None, []), "int4_g128")
    for engine in ENGINES:
        if engine.supports("quantize", _numbers(name)) and name not in UNKNOWN_TO.get(engine.name.split("-")[0], ()):
            assert engine.quantize(_numbers(name), "int4_g128").equals(expected), engine.name


BINARY = {"binary": pa.binary(), "large_binary": pa.large_binary(), "binary_view": pa.binary_view()}
STORED = {"f32": np.float32, "f16": np.float16, "f64": np.float64, "bf16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("width", BINARY)
@pytest.mark.parametrize("dtype", STORED)
def test_case_33_binary_holds_what_the_scheme_says(dtype, width):
    """Binary of every width is read as the scheme's input dtype, which is not stored."""
    raw = [np.array(PLAIN, STORED[dtype]).tobytes(), None, b"", np.array([2.0], STORED[dtype]).tobytes()]
    found = agreed("quantize", pa.array(raw, BINARY[width]), f"int4_g128@{dtype}")
    assert found.equals(agreed("quantize", rows(PLAIN, None, [], [2.0]), "int4_g128"))


@pytest.mark.parametrize("dtype", STORED)
def test_case_33_binary_may_begin_at_any_byte(dtype):
    """Rows at odd bytes are the weights that they hold, as those at whole elements are."""
    raw = np.array(PLAIN, STORED[dtype]).tobytes()
    ends = np.array([1, 1 + len(raw), 1 + 2 * len(raw)], np.int32)
    column = pa.Array.from_buffers(pa.binary(), 2, [None, pa.py_buffer(ends), pa.py_buffer(b"\xff" + 2 * raw)])
    assert agreed("quantize", column, f"int4_g128@{dtype}").equals(agreed("quantize", rows(PLAIN, PLAIN), "int4_g128"))


def test_case_33_binary_without_a_dtype_is_float32():
    """Binary without an input dtype is little-endian float32."""
    raw = pa.array([np.array(PLAIN, "<f4").tobytes()], pa.large_binary())
    assert agreed("quantize", raw, "int4_g128").equals(agreed("quantize", rows(PLAIN), "int4_g128"))


@pytest.mark.parametrize(("dtype", "size"), [("f32", 4), ("f16", 2), ("bf16", 2), ("f64", 8)])
def test_case_33_binary_of_a_broken_length_is_refused(dtype, size):
    """A length that is no whole number of values is refused with the row and the length."""
    raw = pa.array([b"\0" * size, b"\0" * (size + 1)], pa.large_binary())
    reason = f"{size + 1} bytes are no whole number of {dtype} weights"
    refused(InputValueError, reason, raw, f"int4_g128@{dtype}", row=1)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_case_33_uint16_needs_a_dtype(dtype):
    """Lists of uint16 hold what the scheme says, and without a word are refused, never read as integers."""
    words = np.array(PLAIN, STORED[dtype]).view(np.uint16).tolist()
    column = pa.array([words, None], pa.large_list(pa.uint16()))
    assert agreed("quantize", column, f"int4_g128@{dtype}").equals(agreed("quantize", rows(PLAIN, None), "int4_g128"))
    refused(InputTypeError, f"weights are {column.type}", column, "int4_g128", skip=(*_DUCKDB, *_POLARS))
    texts = everywhere("quantize", column, "int4_g128")
    assert all("uint16" in text and "Hint: say what the 16 bits hold" in text for text in texts.values())


_POLARS = ("polars-eager", "polars-lazy", "polars-streaming", "polars-series")


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16"])
def test_case_33_a_dtype_on_floats_is_a_contradiction(dtype):
    """An input dtype on a column that has a type of its own is refused."""
    refused(InputTypeError, f", and the scheme says @{dtype}", rows(PLAIN), f"int4_g128@{dtype}", skip=_ALL_BUT_PYTHON)
    texts = everywhere("quantize", rows(PLAIN), f"int4_g128@{dtype}")
    assert all("Hint: an input dtype is for binary and uint16 weights" in text for text in texts.values())


_DUCKDB = ("duckdb", "duckdb-native")
_ALL_BUT_PYTHON = (*_DUCKDB, *_POLARS, "pyarrow", "python", "python-chunked", "wrapper")


def test_case_33_rows_may_differ_in_their_dtype():
    """A scheme column gives each binary row its own input dtype."""
    raw = pa.array([np.array(PLAIN, STORED[d]).tobytes() for d in STORED] + [None], pa.large_binary())
    schemes = pa.array([f"int4_g128@{d}" for d in STORED] + [None])
    expected = agreed("quantize", rows(*[PLAIN] * len(STORED), None), "int4_g128")
    assert agreed("quantize", raw, schemes).equals(expected)


def test_case_33_uint16_rows_may_differ_in_their_dtype():
    """A scheme column says what the 16 bits of each row hold; one of which it does not is refused."""
    words = [np.array(PLAIN, STORED[dtype]).view(np.uint16).tolist() for dtype in ("f16", "bf16")]
    column = pa.array([*words, None], pa.large_list(pa.uint16()))
    schemes = pa.array(["int4_g128@f16", "int4_g128@bf16", None])
    expected = agreed("quantize", rows(PLAIN, PLAIN, None), "int4_g128")
    assert agreed("quantize", column, schemes).equals(expected)
    assert agreed("quantize", column.slice(0, 0), schemes.slice(0, 0)).equals(expected.slice(0, 0))
    undescribed = pa.array(["int4_g128@f16", "int4_g128", None])
    texts = everywhere("quantize", column, undescribed)
    assert all("uint16" in text and "Hint: say what the 16 bits hold" in text for text in texts.values())


@pytest.mark.parametrize("value", [1e300, -1e39])
def test_case_34_what_does_not_fit_float32_is_said_so(value):
    """A float64 beyond float32 is refused with its own value, not as an infinity."""
    column = pa.array([[1.0], [2.0, value]], pa.large_list(pa.float64()))
    reason = f"the value {value!r} does not fit float32"
    assert refused(InputValueError, reason, column, "int4_g128", row=1, position=1).value == value


WRONG = {
    "int32": pa.array([1, 2], pa.int32()),
    "bool": pa.array([True, False]),
    "string": pa.array(["a", "b"]),
    "struct": pa.array([{"a": 1.0}, {"a": 2.0}]),
    "dictionary": pa.array(["a", "b"]).dictionary_encode(),
    "list<string>": pa.array([["1.0"], []]),
    "list<list<float>>": pa.array([[[1.0]], []]),
    "list<bool>": pa.array([[True], []]),
    "date": pa.array([1, 2], pa.date32()),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("function", ["quantize", "weight_stats", "quantization_error"])
def test_case_35_other_types_are_refused_with_both_types(name, function):
    """What holds no floats is an InputTypeError that tells what was found and what is taken."""
    others = () if function == "weight_stats" else ("int4_g128",)
    with pytest.raises(InputTypeError, match=r"aq2_.*: weights are .* Hint: expected a list, large_list"):
        getattr(aq2_pipeline, function)(WRONG[name], *others)
    for engine, text in everywhere(function, WRONG[name], *others).items():
        assert isinstance(text, str), f"{engine} took it"
        assert f"{function}" in text, text
        assert ": weights are " in text, text
        assert "Hint: expected a list, large_list" in text, text


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32()])
def test_case_35_integers_are_refused_with_a_hint_to_cast(kind):
    """Lists of integers are refused on every surface with a hint to cast, even where a row is null."""
    column = pa.array([[1, 2], None], pa.large_list(kind))
    for engine, text in everywhere("quantize", column, "int4_g128").items():
        assert "Hint: cast them to a list of float32" in str(text), f"{engine}: {text}"


class _Unknown(pa.ExtensionType):
    def __init__(self):
        super().__init__(layout.FLOATS, "robustness.unknown")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, _storage, _serialized):
        pytest.fail("the extension type was loaded")


def test_case_36_tensor_columns_use_their_storage_and_shape():
    """A fixed_shape_tensor column is read from its storage, with the shape that its type tells."""
    values = np.arange(48, dtype=np.float32).reshape(2, 4, 6)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    found = agreed("quantize", tensors, "int4_g4")
    shapes = pa.array([[4, 6]] * 2, layout.INTS)
    assert found.equals(agreed("quantize", rows(*values.reshape(2, -1)), "int4_g4", shapes))
    assert found[0]["row_length"].as_py() == 6


@pytest.mark.parametrize(
    "column",
    [
        pa.ExtensionArray.from_storage(_Unknown(), rows([1.0])),
        pa.array([b"0" * 16], pa.uuid()),
        pa.ExtensionArray.from_storage(pa.opaque(layout.FLOATS, "bfloat16", "somebody"), rows([1.0])),
        pa.array([1], pa.int8()).cast(pa.bool8()),
    ],
    ids=["unknown", "uuid", "opaque", "bool8"],
)
def test_case_36_other_extension_types_are_refused(column):
    """An extension type that says something about its storage is refused, not read through."""
    with pytest.raises(InputTypeError, match=r"aq2_quantize: weights are extension<.*Hint: expected"):
        aq2_pipeline.quantize(column, 4)
    with pytest.raises(InputTypeError, match=r"quantize_arrow: weights are extension<"):
        aq2_pipeline.ArrowQuantV2().quantize_arrow(pa.table({"layer_name": ["a"], "weights": column}))


def test_case_36_an_unknown_extension_is_never_registered():
    """A column that only says its extension's name is read as its storage; nothing is loaded by that name."""
    metadata = {b"ARROW:extension:name": b"os.system", b"ARROW:extension:metadata": b"x"}
    schema = pa.schema([pa.field("layer_name", pa.string()), pa.field("weights", layout.FLOATS, metadata=metadata)])
    table = pa.table([pa.array(["a"]), rows([1.0])], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table)
    read = pa.ipc.open_stream(sink.getvalue()).read_all()
    result = aq2_pipeline.ArrowQuantV2().quantize_arrow(read, scheme=4)
    assert result["quantized_data"][0].as_py() == b"\x0f"


@pytest.mark.parametrize("column", [pa.array([], pa.int32()), pa.chunked_array([], pa.int32())], ids=["array", "none"])
def test_case_35_an_empty_column_of_a_wrong_type_is_refused_too(column):
    """A wrong type is wrong with no rows and with no chunks: a schema does not depend on the data."""
    with pytest.raises(InputTypeError, match="weights are int32"):
        aq2_pipeline.quantize(column, 4)


def test_case_35_polars_types_without_arrow_form_are_refused():
    """Objects and 128-bit integers of Polars are InputTypeErrors; pointers are never read as weights."""
    import polars as pl  # noqa: PLC0415 - only here

    for series in (pl.Series([object()], dtype=pl.Object), pl.Series([[1]], dtype=pl.List(pl.Int128))):
        with pytest.raises(InputTypeError, match=r"aq2_quantize: weights are .*Hint: "):
            series.aq2.quantize(4)
        with pytest.raises(InputTypeError, match=r"aq2_quantize: weights are .*Hint: "):
            series.to_frame("w").select(pl.col("w").aq2.quantize(4))


def test_case_32_masked_arrays_are_refused():
    """What a mask hides is not silently quantized."""
    masked = np.ma.masked_array(np.array([1.0, 2.0], np.float32), [False, True])
    with pytest.raises(InputTypeError, match="masked"):
        aq2_pipeline.quantize(masked, 4)


def test_case_43_a_scheme_that_needs_no_float_is_still_checked():
    """The scheme is checked before the weights' values: a bad one is a SchemeError on a column of nulls, too."""
    with pytest.raises(SchemeError):
        aq2_pipeline.quantize(pa.nulls(3), "int4_g0")


def test_case_07_the_generic_cpu_refuses_the_same_values():
    """A child without vector extensions names the same element as this process."""
    code = """
import numpy as np, aq2_pipeline
values = np.ones(131, np.float32); values[129] = np.nan
try:
    aq2_pipeline.quantize(values, 4)
except aq2_pipeline.InputValueError as error:
    print(error.row, error.position)
"""
    assert in_child(code, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="").split() == ["0", "129"]
