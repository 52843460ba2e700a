"""The codes of one row: decoded as `dequantize` does, and compared piece by piece as a whole."""

import numpy as np
import pyarrow as pa
import pytest

import aq2_pipeline
from aq2_pipeline import InputValueError, stored
from aq2_pipeline.differences import difference
from aq2_pipeline.io.tables.rows import rows_of
from aq2_pipeline.stored import decoded, difference_from

RNG = np.random.default_rng(5)
SCHEMES = (
    "int4_g128",
    "int3_g64_asym",
    "int8_channel",
    "int8_tensor",
    "int5_g7",
    "q4_k",
    "q8_0",
    "nf4_g64",
    "f16",
    "f32",
)


def held(values, scheme, shape):
    """Return the codes of one row."""
    codes = aq2_pipeline.quantize([values.reshape(shape)], scheme)
    batch = pa.record_batch({"layer_name": ["w"], "shape": [list(shape)], "dtype": ["F32"], "quantized": codes})
    [row] = rows_of(batch, "test")
    return row.quantized, codes


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [None, 2048])
def test_one_row_is_decoded_and_compared_as_columns_are(monkeypatch, scheme, size):
    """Whole or in pieces, on any threads, the weights are those of `dequantize`, and the sums those of both arrays."""
    if size:
        monkeypatch.setattr(stored, "_SLICE", size)
    values = RNG.normal(size=48 * 512).astype(np.float32)
    row, codes = held(values, scheme, (48, 512))
    expected = aq2_pipeline.dequantize(codes)[0].values.to_numpy()
    np.testing.assert_array_equal(decoded(row), expected)
    whole = difference(values, expected)
    found = {difference_from(values, row, n) for n in (1, 2, 5)}
    assert len(found) == 1
    [found] = found
    assert (found.size, found.max_abs) == (whole.size, whole.max_abs)
    for name in ("error", "weight", "other"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_empty_rows_have_neither_weights_nor_a_difference():
    """A row of no weights decodes to none."""
    row, _ = held(np.empty(0, np.float32), "int4_g128", (0, 4))
    assert decoded(row).size == 0
    assert difference_from(np.empty(0, np.float32), row).size == 0


@pytest.mark.parametrize("call", [decoded, lambda row: difference_from(np.ones(row.length, np.float32), row)])
def test_stored_values_that_are_not_finite_are_named(monkeypatch, call):
    """A stored infinity is an error with its position in the row, whichever piece it is in."""
    monkeypatch.setattr(stored, "_SLICE", 64)
    row, _ = held(np.ones(512, np.float32), "f16", (8, 64))
    data = row.data.copy()
    data.view(np.float16)[300] = np.inf
    with pytest.raises(InputValueError, match="not finite") as caught:
        call(row._replace(data=data))
    assert caught.value.position == 300
