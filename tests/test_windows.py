"""Columns in several pieces of memory: chunks, binary views and tensors are one job, read where they are."""

from __future__ import annotations

import struct

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from support.samples import bell

import aq2_pipeline
from aq2_pipeline import ArrowQuantV2, InputTypeError, InputValueError, arguments, layout, windows
from aq2_pipeline.kernels import rows

KINDS = [layout.FLOATS, pa.list_(pa.float32(), 60), pa.large_list(pa.float64()), pa.large_list(pa.float16())]
FUNCTIONS = ["quantize", "quantization_error", "weight_stats"]


def chunked(kind, *chunks):
    """Return a chunked array; each chunk is a list of rows."""
    return pa.chunked_array(
        [pa.array([None if r is None else np.asarray(r).tolist() for r in c], kind) for c in chunks], kind
    )


def sixty(*seeds):
    return [None if seed is None else bell(60, seed) for seed in seeds]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_chunks_give_what_one_array_gives(kind, name):
    """Every function gives the rows of the joined column, in the chunks that came in, whatever the threads."""
    column = chunked(kind, sixty(1, 2), [], sixty(None), sixty(3, None, 4))
    others = () if name == "weight_stats" else ("int4_g7_asym",)
    expected = getattr(aq2_pipeline, name)(column.combine_chunks(), *others, threads=1)
    for threads in (1, 4):
        result = getattr(aq2_pipeline, name)(column, *others, threads=threads)
        assert [len(chunk) for chunk in result.chunks] == [2, 0, 1, 3]
        assert result.combine_chunks().equals(expected)
    series = pl.concat([pl.Series("w", pl.from_arrow(chunk)) for chunk in column.chunks], rechunk=False)
    assert series.n_chunks() > 1
    assert getattr(series.aq2, name)(*others).to_arrow().equals(pl.Series(pl.from_arrow(expected)).to_arrow())


def test_decoding_chunks_gives_what_one_array_gives():
    """`dequantize` keeps the chunks, too."""
    column = aq2_pipeline.quantize(chunked(layout.FLOATS, sixty(1, None), [], sixty(2, 3)), 4)
    decoded = aq2_pipeline.dequantize(column, threads=4)
    assert [len(chunk) for chunk in decoded.chunks] == [2, 0, 2]
    assert decoded.combine_chunks().equals(aq2_pipeline.dequantize(column.combine_chunks()))


def test_chunks_are_one_job_over_their_own_memory(monkeypatch):
    """One call into the kernel reads every chunk of a pyarrow column where it is."""
    calls = []
    encode_rows = rows.encode_rows

    def recording(*args):
        _, values, _, starts, stops = args[4:9]
        ends = zip(starts.tolist(), stops.tolist(), strict=True)
        calls.append([(values.ctypes.data + 4 * a, b - a) for a, b in ends])
        return encode_rows(*args)

    monkeypatch.setattr(rows, "encode_rows", recording)
    column = chunked(layout.FLOATS, sixty(1, 2), sixty(3), sixty(4, 5))
    aq2_pipeline.quantize(column, 4)
    first = [chunk.values.buffers()[1].address for chunk in column.chunks]
    assert calls == [[(address + 240 * k, 60) for address, n in zip(first, (2, 1, 2), strict=True) for k in range(n)]]


@pytest.mark.parametrize("bad", [np.nan, None], ids=["value", "null"])
@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_an_error_counts_over_all_chunks(bad, kind):
    """The lowest bad row is told, counted over the whole column, with its position."""
    second, third = (bell(60, k).astype(object) for k in (2, 3))
    second[7] = third[0] = bad
    column = chunked(kind, sixty(1, None), [bell(60, 4), second], [third])
    for name in FUNCTIONS[:2]:
        with pytest.raises(InputValueError) as caught:
            getattr(aq2_pipeline, name)(column, 4)
        assert (caught.value.row, caught.value.position) == (3, 7)


@pytest.mark.parametrize("most_bytes", [0, 1 << 26])
def test_the_lowest_bad_row_of_many_chunks_is_told(most_bytes, monkeypatch):
    """Side by side or one after the other, chunks that are worked through by themselves tell the same error."""
    monkeypatch.setattr(arguments, "_MOST_BYTES", most_bytes)
    column = aq2_pipeline.quantize(chunked(layout.FLOATS, *[sixty(k, k + 1) for k in range(20)]), 4)
    chunks = list(column.chunks)
    for k in (17, 5, 11):
        fields = [chunks[k].field(i) for i in range(6)]
        fields[0] = pa.array(["int4_g128", "int9_g128"], pa.large_string())
        chunks[k] = pa.StructArray.from_arrays(fields, fields=list(layout.QUANTIZED))
    for threads in (1, 2, 8):
        with pytest.raises(aq2_pipeline.SchemeError, match="int9_g128") as caught:
            aq2_pipeline.dequantize(pa.chunked_array(chunks), threads=threads)
        assert caught.value.row == 11


def test_a_column_without_chunks_has_a_result_without_rows():
    """A chunked array without any chunk, and a list without tensors, give no rows; a wrong type is still one."""
    assert aq2_pipeline.quantize(pa.chunked_array([], layout.FLOATS), 4).to_pylist() == []
    assert aq2_pipeline.quantize([], 4).to_pylist() == []
    with pytest.raises(InputTypeError):
        aq2_pipeline.quantize(pa.chunked_array([], pa.int64()), 4)


def test_tensors_of_several_dtypes_keep_their_order():
    """A list, and a dict, of arrays of mixed dtypes give each array's own result."""
    arrays = [bell(96, k).reshape(4, 24).astype(kind) for k, kind in enumerate("fdefd")]
    alone = [aq2_pipeline.quantize([array], "int4_g16") for array in arrays]
    together = aq2_pipeline.quantize(arrays, "int4_g16")
    assert together.equals(pa.concat_arrays(alone))
    layers = ArrowQuantV2().quantize_batch({str(k): array for k, array in enumerate(arrays)}, scheme="int4_g16")
    assert list(layers) == list("01234")
    for row, layer in zip(together.to_pylist(), layers.values(), strict=True):
        assert layer["quantized_data"] == row["quantized_data"]
        assert layer["scales"].tolist() == row["scales"]


def test_binary_series_are_read_in_place(monkeypatch):
    """Long values of several buffers and short ones inside their views are read where Polars has them."""
    spans = []
    encode_rows = rows.encode_rows

    def recording(*args):
        _, _, first, last, _, values, _, starts, stops = args[:9]
        spans.extend((values.ctypes.data + 4 * int(starts[k]), int(stops[k] - starts[k])) for k in range(first, last))
        return encode_rows(*args)

    monkeypatch.setattr(rows, "encode_rows", recording)
    parts = [pl.Series("w", [bell(500, k).tobytes(), bell(3, k).tobytes(), None]) for k in range(3)]
    series = pl.concat([*parts, pl.concat(parts, rechunk=True)], rechunk=False)
    result = series.aq2.quantize(4)
    expected = []
    for chunk in series.get_chunks():
        _, views, *buffers = chunk.to_arrow(compat_level=pl.CompatLevel.newest()).buffers()
        for k, (length, _, buffer, offset) in enumerate(struct.iter_unpack("<4i", views.to_pybytes())):
            if length > 12:
                expected.append((buffers[buffer].address + offset, length // 4))
            elif length:
                expected.append((views.address + 16 * k + 4, length // 4))
    assert sorted(span for span in spans if span[1]) == sorted(expected)
    assert len(expected) == 12
    bell_rows = [None if row is None else np.frombuffer(row, np.float32) for row in series.to_list()]
    lists = aq2_pipeline.quantize(pa.array(bell_rows, layout.FLOATS), 4)
    assert result.to_arrow().equals(pl.Series(pl.from_arrow(lists)).to_arrow())


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f64"])
def test_views_of_other_floats_are_what_plain_binary_is(dtype):
    """Views hold 16-bit and 64-bit weights, too."""
    raw = [bell(4 * n, n).astype("<f2" if dtype != "f64" else "<f8").tobytes() for n in (0, 1, 50)]
    plain = pa.array([*raw, None], pa.large_binary())
    scheme = f"int4_g16@{dtype}"
    expected = aq2_pipeline.quantize(plain, scheme)
    assert aq2_pipeline.quantize(plain.cast(pa.binary_view()), scheme).equals(expected)
    halves = pa.chunked_array([plain.cast(pa.binary_view())[:2], plain.cast(pa.binary_view())[2:]])
    assert aq2_pipeline.quantize(halves, scheme).combine_chunks().equals(expected)


def forged(*views, buffers=(bytes(64),)):
    """Return a column of views (length, prefix, buffer, offset) over buffers."""
    told = b"".join(struct.pack("<4i", *view) for view in views)
    return pa.Array.from_buffers(pa.binary_view(), len(views), [None, *map(pa.py_buffer, (told, *buffers))])


@pytest.mark.parametrize(
    "view",
    [(64, 0, 1, 0), (64, 0, -1, 0), (64, 0, 0, 4), (64, 0, 0, -4), (-4, 0, 0, 0), (2**31 - 4, 0, 0, 2**31 - 1)],
)
def test_a_view_outside_its_buffer_is_an_error(view):
    """A buffer or an offset that is not there, or a negative length, is told; nothing is read."""
    column = forged((16, 0, 0, 0), view)
    with pytest.raises(InputValueError, match="do not address") as caught:
        aq2_pipeline.quantize(column, 4)
    assert caught.value.row == 1


def test_results_are_handed_to_polars_without_a_copy(monkeypatch):
    """The codes of a Polars result lie where the kernel wrote them, for one chunk and for many."""
    addresses = []
    encode_rows = rows.encode_rows
    monkeypatch.setattr(rows, "encode_rows", lambda *args: (addresses.append(args[13].ctypes.data), encode_rows(*args)))
    one = pl.Series("w", [bell(500, 1).tolist()] * 3, dtype=pl.List(pl.Float32))
    for series in (one, pl.concat([one, one], rechunk=False)):
        codes = series.aq2.quantize(4).struct.field("quantized_data")
        assert codes.n_chunks() == 1
        buffers = codes.to_arrow(compat_level=pl.CompatLevel.newest()).buffers()
        assert buffers[2].address == addresses.pop()


def test_parts_that_are_not_whole_elements_apart_make_no_window():
    """A window refuses parts that no index can reach."""
    whole = np.zeros(64, np.uint8)
    parts = [whole[:8].view(np.float32), whole[10:18].view(np.float32)]
    with pytest.raises(ValueError, match="whole number of elements"):
        windows.window(parts)


def test_a_window_keeps_its_parts_and_is_written_only_where_allowed():
    """The parts live as long as the window; it is read-only unless asked otherwise."""
    values, starts = windows.window([np.arange(5.0), np.empty(0), np.arange(7.0)])
    assert [values[a : a + n].tolist() for a, n in zip(starts, (5, 0, 7), strict=True)] == [
        [0, 1, 2, 3, 4],
        [],
        [0, 1, 2, 3, 4, 5, 6],
    ]
    assert not values.flags.writeable
    part = np.zeros(3)
    values, starts = windows.window([part], writable=True)
    values[starts[0] + 1] = 5
    assert part.tolist() == [0, 5, 0]
