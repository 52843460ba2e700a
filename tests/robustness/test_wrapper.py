"""Cases 53 to 56, and forged quantized rows: what the Python API and `ArrowQuantV2` are told."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from robustness.harness import agreed, rows
from support.engines import everywhere
from support.samples import bell

import aq2_pipeline
from aq2_pipeline import Aq2Error, ArrowQuantV2, InputTypeError, InputValueError, SchemeError, layout

F = layout.FLOATS
NAN, INF = float("nan"), float("inf")
LAYERS = {f"layer.{k}": bell(300 + k, k + 1).reshape(1, -1) for k in range(4)}


class _OwnError(Exception):
    pass


def test_case_53_what_the_callback_raises_reaches_the_caller_unchanged():
    """The callback's own exception object comes out, also under continue_on_error, and a later run is unharmed."""
    error = _OwnError("stop")

    def callback(_name, _fraction):
        raise error

    for keep in (False, True):
        with pytest.raises(_OwnError) as caught:
            ArrowQuantV2().quantize_batch_with_progress(LAYERS, 4, callback, keep)
        assert caught.value is error
    assert list(ArrowQuantV2().quantize_batch(LAYERS)) == list(LAYERS)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_case_53_false_cancels_after_k_of_n(k):
    """Returning False stops the run with a text that counts; other falsy values do not."""
    seen = []

    def callback(name, fraction):
        seen.append((name, fraction))
        return len(seen) < k

    with pytest.raises(Aq2Error, match=f"^cancelled after {k} of 4$"):
        ArrowQuantV2().quantize_batch_with_progress(LAYERS, 4, callback)
    assert [name for name, _ in seen] == list(LAYERS)[:k]
    for falsy in (None, 0, "", []):
        result = ArrowQuantV2().quantize_batch_with_progress(LAYERS, 4, lambda *_, v=falsy: v)
        assert list(result) == list(LAYERS)


def test_case_53_fractions_rise_to_one_in_the_callers_thread():
    """The callback runs once a layer, in order, in the caller's thread, with fractions that end at 1.0."""
    import threading  # noqa: PLC0415 - only here

    seen = []
    ArrowQuantV2(threads=2).quantize_batch_with_progress(
        LAYERS, 4, lambda name, part: seen.append((name, part, threading.get_ident()))
    )
    assert [name for name, _, _ in seen] == list(LAYERS)
    assert [part for _, part, _ in seen] == [0.25, 0.5, 0.75, 1.0]
    assert {ident for _, _, ident in seen} == {threading.get_ident()}


def test_case_53_a_slow_callback_that_calls_back_in_does_not_hang():
    """A callback may sleep and quantize by itself; the results are those of a run without one."""
    inner = []

    def callback(name, _fraction):
        time.sleep(0.01)
        inner.append(ArrowQuantV2().quantize_batch({name: LAYERS[name]})[name]["quantized_data"])

    result = ArrowQuantV2().quantize_batch_with_progress(LAYERS, 4, callback)
    assert inner == [layer["quantized_data"] for layer in result.values()]
    assert list(ArrowQuantV2().quantize_batch_with_progress(LAYERS, 4, None)) == list(LAYERS)


# --- Forged quantized rows -------------------------------------------------------------------------------------------

GOOD = {
    "scheme": pa.array(["int4_g128"]),
    "length": pa.array([3]),
    "row_length": pa.array([3]),
    "quantized_data": pa.array([b"\x11\x22"]),
    "scales": pa.array([[1.0]], F),
    "zero_points": pa.array([[]], F),
}
ASYM = {"scheme": pa.array(["int4_g128_asym"]), "zero_points": pa.array([[8.0]], F)}


def _struct(**changed: pa.Array | None) -> pa.StructArray:
    fields = {name: column for name, column in (GOOD | changed).items() if column is not None}
    return pa.StructArray.from_arrays(list(fields.values()), list(fields))


FORGED = {
    "length -1": ({"length": pa.array([-1])}, InputValueError, "length -1"),
    "length 2**62": ({"length": pa.array([2**62])}, InputValueError, "length 4611686018427387904"),
    "length max": ({"length": pa.array([2**63 - 1])}, InputValueError, "length 9223372036854775807"),
    "length uint64": ({"length": pa.array([2**64 - 1], pa.uint64())}, InputValueError, "contradict 2 bytes"),
    "row_length uint64": ({"row_length": pa.array([2**63], pa.uint64())}, InputValueError, "contradict 2 bytes"),
    "length null": ({"length": pa.nulls(1, pa.int64())}, InputValueError, "contradict"),
    "length 0": ({"length": pa.array([0]), "row_length": None}, InputValueError, "0 bytes of data, found 2"),
    "length 2": ({"length": pa.array([2]), "row_length": None}, InputValueError, "1 bytes of data, found 2"),
    "length 16": ({"length": pa.array([16]), "row_length": None}, InputValueError, "8 bytes of data, found 2"),
    "row_length 0": ({"row_length": pa.array([0])}, InputValueError, "row_length 0 contradict"),
    "row_length -3": ({"row_length": pa.array([-3])}, InputValueError, "row_length -3 contradict"),
    "row_length min": ({"row_length": pa.array([-(2**63)])}, InputValueError, "contradict"),
    "row_length 2": ({"row_length": pa.array([2])}, InputValueError, "row_length 2 contradict"),
    "row_length 1": ({"row_length": pa.array([1])}, InputValueError, "3 bytes of data, found 2"),
    "length float": ({"length": pa.array([3.0])}, InputTypeError, "expected int64"),
    "scale nan": ({"scales": pa.array([[NAN]], F)}, InputValueError, "the scale of group 0 is nan"),
    "scale inf": ({"scales": pa.array([[INF]], F)}, InputValueError, "the scale of group 0 is inf"),
    "scale null": ({"scales": pa.array([[None]], F)}, InputValueError, "the scale of group 0 is null"),
    "scales null": ({"scales": pa.nulls(1, F)}, InputValueError, "1 scales, found 0"),
    "scales none": ({"scales": pa.array([[]], F)}, InputValueError, "1 scales, found 0"),
    "scales two": ({"scales": pa.array([[1.0, 2.0]], F)}, InputValueError, "1 scales, found 2"),
    "zero points of symmetric": ({"zero_points": pa.array([[1.0]], F)}, InputValueError, "0 zero points, found 1"),
    "zero point 16": (ASYM | {"zero_points": pa.array([[16.0]], F)}, InputValueError, "zero point of group 0 is 16.0"),
    "zero point -1": (ASYM | {"zero_points": pa.array([[-1.0]], F)}, InputValueError, "zero point of group 0 is -1.0"),
    "zero point nan": (ASYM | {"zero_points": pa.array([[NAN]], F)}, InputValueError, "zero point of group 0 is nan"),
    "zero points null": (ASYM | {"zero_points": pa.nulls(1, F)}, InputValueError, "1 zero points, found 0"),
    "data short": ({"quantized_data": pa.array([b"\x11"])}, InputValueError, "2 bytes of data, found 1"),
    "data long": ({"quantized_data": pa.array([b"\x11" * 3])}, InputValueError, "2 bytes of data, found 3"),
    "data null": ({"quantized_data": pa.nulls(1, pa.binary())}, InputValueError, "contradict 0 bytes"),
    "data string": ({"quantized_data": pa.array(["ab"])}, InputTypeError, "quantized_data is"),
    "method": ({"scheme": pa.array(["int4_g128:minmax"])}, SchemeError, "is no stored name"),
    "dtype": ({"scheme": pa.array(["int4_g128@bf16"])}, SchemeError, "is no stored name"),
    "unknown": ({"scheme": pa.array(["int4_g0128"])}, SchemeError, "is unknown"),
    "scheme null": ({"scheme": pa.nulls(1, pa.string())}, SchemeError, "the scheme is NULL"),
    "scheme integer": ({"scheme": pa.array([4])}, InputTypeError, "the field scheme is int64"),
    "no scales": ({"scales": None}, InputTypeError, "field 'scales'"),
    "no length, no scheme": ({"scheme": None, "length": None}, InputTypeError, "field 'scheme', 'length'"),
    "f32 nan": (
        {"scheme": pa.array(["f32"]), "quantized_data": pa.array([b"\0\0\xc0\x7f" * 3]), "scales": pa.array([[]], F)},
        InputValueError,
        "the stored value is not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_case_54_a_row_that_contradicts_itself_is_refused(name):
    """Forged lengths, counts, scales, zero points, names and types are refused everywhere."""
    changed, kind, reason = FORGED[name]
    for engine, text in everywhere("dequantize", _struct(**changed)).items():
        assert reason in str(text), f"{engine}: {text}"
    with pytest.raises(kind, match="aq2_dequantize: "):
        aq2_pipeline.dequantize(_struct(**changed))


@pytest.mark.parametrize("name", [n for n, (_, kind, _) in FORGED.items() if kind is not InputTypeError])
def test_case_54_a_forged_row_that_is_null_is_null(name):
    """Nothing in a null row is looked at."""
    forged = _struct(**FORGED[name][0])
    null = pa.StructArray.from_arrays(
        [forged.field(f.name) for f in forged.type], [f.name for f in forged.type], mask=pa.array([True])
    )
    assert aq2_pipeline.dequantize(null).to_pylist() == [None]


def test_case_54_a_field_that_is_there_twice_is_refused():
    """A struct with two fields of one name is an InputTypeError."""
    good = _struct()
    twice = pa.StructArray.from_arrays([*good.flatten(), GOOD["scheme"]], [*GOOD, "scheme"])
    with pytest.raises(InputTypeError, match="field 'scheme'"):
        aq2_pipeline.dequantize(twice)


def test_case_54_good_variants_are_taken():
    """A missing or null row_length, views, dictionaries, 32-bit and and extra fields are fine."""
    expected = [[-7.0, -7.0, -6.0]]
    for changed in (
        {},
        {"row_length": None},
        {"row_length": pa.nulls(1, pa.int64())},
        {"length": pa.array([3], pa.int8())},
        {"quantized_data": pa.array([b"\x11\x22"], pa.binary_view())},
        {"quantized_data": pa.array([b"\x11\x22"], pa.binary(2))},
        {"scheme": pa.array(["int4_g128"], pa.string_view())},
        {"scheme": pa.array(["int4_g128"]).dictionary_encode()},
        {"scales": pa.array([[1.0]], pa.list_view(pa.float64()))},
        {"zero_points": pa.nulls(1)},
        {"extra": pa.array([1])},
    ):
        assert aq2_pipeline.dequantize(_struct(**changed)).to_pylist() == expected, changed


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("scales", np.array([NAN], np.float32), "the scale of group 0 is nan"),
        ("scales", np.ones(3, np.float32), "scales, found 3"),
        ("quantized_data", b"", "bytes of data"),
        ("scheme", "int4_gx", "is unknown"),
        ("shape", (7,), "bytes of data|contradict"),
        ("row_length", -1, "contradict"),
    ],
)
def test_case_54_the_dict_interface_names_the_layer(key, value, reason):
    """`dequantize_batch` names the layer whose parts contradict each other."""
    result = ArrowQuantV2().quantize_batch({"good": np.ones(4, np.float32), "bad": np.ones(4, np.float32)}, scheme=4)
    result["bad"][key] = value
    with pytest.raises(Aq2Error, match=rf"layer 'bad'.*({reason})") as caught:
        ArrowQuantV2().dequantize_batch(result)
    assert caught.value.layer == "bad"


@pytest.mark.parametrize("scheme", ["int4_g5", "int3_g5_asym", "int7_channel"])
def test_case_55_padding_bits_are_written_as_zeros_and_not_read(scheme):
    """Garbage in the padding bits of a group's last byte does not reach the decoded values."""
    quantized = aq2_pipeline.quantize(rows(bell(5, 1)), scheme)
    data = bytearray(quantized[0]["quantized_data"].as_py())
    used = 5 * int(scheme[3]) % 8
    assert data[-1] >> used == 0
    data[-1] |= 0xFF << used & 0xFF
    fields = {f.name: quantized.field(f.name) for f in quantized.type} | {"quantized_data": pa.array([bytes(data)])}
    dirty = pa.StructArray.from_arrays(list(fields.values()), list(fields))
    assert agreed("dequantize", dirty).equals(agreed("dequantize", quantized))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", ["g32", "g7", "channel", "tensor"])
def test_case_56_symmetric_quantizing_again_gives_the_same_bytes(group, bits):
    """Symmetric minmax is idempotent byte for byte; asymmetric moves values by at most half a scale."""
    column = rows(bell(100, bits), [3.0], [1e-40, 1e-39], [3.4e38, -3.4e38])
    once = aq2_pipeline.quantize(column, f"int{bits}_{group}")
    assert agreed("quantize", aq2_pipeline.dequantize(once), f"int{bits}_{group}").equals(once)
    name = f"int{bits}_{group}_asym"
    once = aq2_pipeline.quantize(rows(bell(100, bits)), name)
    back = aq2_pipeline.dequantize(once)
    again = aq2_pipeline.quantize(back, name)
    moved = np.abs(np.array(back[0].as_py()) - np.array(aq2_pipeline.dequantize(again)[0].as_py()))
    assert moved.max() <= max(again[0]["scales"].as_py()) / 2 * (1 + 1e-5)
