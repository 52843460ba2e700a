"""NumPy's .npz archives as lazy layer tables, and archives that are not what they claim."""

import io
import os
import resource
import struct
import time
import zipfile
import zlib

import numpy as np
import polars as pl
import pytest
from ml_dtypes import bfloat16

from aq2_pipeline import Aq2Error, FormatError, InputValueError, scan_npz
from aq2_pipeline.io.npz import source as npz_reading
from aq2_pipeline.io.npz.source import open_npz
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.tables import source as scanning
from aq2_pipeline.io.tables.frames import reader

RNG = np.random.default_rng(9)
VALUES = RNG.normal(size=(4, 6)).astype(np.float32)
SAVES = {"stored": np.savez, "deflated": np.savez_compressed}

ARRAYS = {
    "f32": VALUES,
    "f16": VALUES.astype(np.float16),
    "f64": VALUES.astype(np.float64).reshape(2, 3, 4),
    "fortran": np.asfortranarray(VALUES),
    "fortran 3-D": np.asfortranarray(VALUES.reshape(2, 3, 4).astype(np.float64)),
    "fortran f16": np.asfortranarray(VALUES.astype(np.float16)),
    "big": VALUES.astype(">f4"),
    "big fortran": np.asfortranarray(VALUES.astype(">f8")),
    "big f16": VALUES.astype(">f2"),
    "i64": np.arange(-2, 3),
    "big i16": np.arange(-2, 3, dtype=">i2"),
    "big c8": np.array([1 + 2j], ">c8"),
    "u8": np.arange(5, dtype=np.uint8),
    "bool": np.array([True, False]),
    "scalar": np.float32(3),
    "empty": np.zeros((0, 7), np.float32),
    "empty fortran": np.zeros((3, 0, 7), np.float32, order="F"),
    "one axis": np.zeros((1, 5, 1), np.float32, order="F"),
    "bytes": np.array([b"one", b"two"]),
    "text": np.array(["one", "two"]),
    "time": np.array(["2020-01-01"], "M8[ns]"),
    "c16": np.array([1j]),
    "f128": np.array([1], np.longdouble),
}
DTYPES = "F32 F16 F64 F32 F64 F16 F32 F64 F16 I64 I16 C64 U8 BOOL F32 F32 F32 F32 S3 U3 M8[ns] COMPLEX128 FLOAT128"


def rows_of(path, **options):
    """Return name -> row."""
    return {row["layer_name"]: row for row in scan_npz(path, **options).collect().iter_rows(named=True)}


def little(array):
    """Return an array's bytes in the order of its last axis, little-endian."""
    return array.astype(array.dtype.newbyteorder("<")).tobytes(order="C")


@pytest.mark.parametrize("how", SAVES)
def test_every_array_is_a_row_with_its_values(tmp_path, how):
    """Names, shapes, dtypes, weights and bytes are NumPy's, in whatever order and byte order they are stored."""
    SAVES[how](tmp_path / "m.npz", **ARRAYS)
    rows, raw = rows_of(tmp_path / "m.npz"), rows_of(tmp_path / "m.npz", raw=True)
    assert list(rows) == list(ARRAYS)
    assert [row["dtype"] for row in rows.values()] == DTYPES.split()
    for name, array in ARRAYS.items():
        assert rows[name]["shape"] == list(np.shape(array))
        assert raw[name]["weights"] == little(array)
        is_float = rows[name]["dtype"] in {"F16", "F32", "F64"}
        assert rows[name]["weights"] == (array.astype(np.float32).ravel().tolist() if is_float else None)


@pytest.mark.parametrize("near", [0, 1 << 14])
@pytest.mark.parametrize("how", SAVES)
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", ">f8"])
def test_chunks_of_any_order_are_the_whole(tmp_path, monkeypatch, how, dtype, near):
    """Chunk rows of arrays of either order, read in small pieces, join to the whole array."""
    monkeypatch.setattr(npz_reading, "_NEAR", near)
    for module in (npz_reading, scanning):
        monkeypatch.setattr(module, "READ_BYTES", 64)
    arrays = {"c": RNG.normal(size=(7, 3, 5)).astype(dtype), "short": RNG.normal(size=(2, 50)).astype(dtype)}
    arrays["f"] = np.asfortranarray(arrays["c"])
    arrays["t"] = arrays["short"].T
    SAVES[how](tmp_path / "m.npz", **arrays)
    for chunk_weights in (1, 31, 45, 1000):
        for raw in (False, True):
            table = scan_npz(tmp_path / "m.npz", raw=raw, chunk_weights=chunk_weights).collect()
            for name, array in arrays.items():
                found = table.filter(layer_name=name)["weights"]
                if raw:
                    assert b"".join(found) == little(array)
                else:
                    values = found.explode(empty_as_null=True).to_numpy()
                    np.testing.assert_array_equal(values, array.astype(np.float32).ravel())


def test_bfloat16_is_read_by_its_bits(tmp_path):
    """NumPy writes bfloat16 as V2: listed with null weights, and read with raw=True and @bf16."""
    np.savez(tmp_path / "m.npz", w=VALUES.astype(bfloat16))
    assert (rows_of(tmp_path / "m.npz")["w"]["dtype"], rows_of(tmp_path / "m.npz")["w"]["weights"]) == ("V2", None)
    raw = scan_npz(tmp_path / "m.npz", raw=True)
    found = raw.select(pl.col("weights").aq2.quantize("bf16@bf16", "shape").aq2.dequantize()).collect().item()
    assert found.to_list() == VALUES.astype(bfloat16).astype(np.float32).ravel().tolist()


@pytest.mark.parametrize("how", SAVES)
def test_only_the_arrays_that_pass_are_read(tmp_path, monkeypatch, how):
    """A filter on names reads these arrays, and a query without weights none."""
    SAVES[how](tmp_path / "m.npz", **ARRAYS)
    names, read = [], scanning.Opened.read

    def noted(self, tensor, begin, target):
        names.append(tensor.name)
        read(self, tensor, begin, target)

    monkeypatch.setattr(scanning.Opened, "read", noted)
    lazy = scan_npz(tmp_path / "m.npz")
    assert lazy.select("layer_name", "dtype").collect().height == len(ARRAYS)
    assert names == []
    assert lazy.filter(pl.col("layer_name") == "f64").collect()["layer_name"].to_list() == ["f64"]
    assert set(names) == {"f64"}


def test_a_reader_and_any_opener_give_the_same_rows(tmp_path):
    """The suffix .npz opens it, and record batches are the frame."""
    np.savez(tmp_path / "m.npz", w=VALUES)
    source = open_source(tmp_path / "m.npz")
    assert pl.DataFrame(reader(source, "weights").read_all()).equals(scan_npz(tmp_path / "m.npz").collect())


def test_a_zip_archive_of_another_name_is_no_source(tmp_path):
    """Only the suffix makes a zip archive one of arrays: as .zip, .npy or .safetensors it stays refused."""
    for name in ("m.zip", "m.safetensors", "m.npy", "m.pt"):
        with (tmp_path / name).open("wb") as file:
            np.savez(file, w=VALUES)
        with pytest.raises(FormatError):
            open_source(tmp_path / name)


@pytest.mark.parametrize("order", ["C", "F"])
def test_doubles_that_do_not_fit_name_the_lowest_position(tmp_path, monkeypatch, order):
    """An F64 value beyond float32 is an error with array and position, the first in the order of the last axis."""
    monkeypatch.setattr(npz_reading, "READ_BYTES", 16)
    values = np.zeros((3, 4), order=order)
    values[0, 3] = values[1, 1] = values[2, 0] = 1e300
    np.savez(tmp_path / "m.npz", w=values)
    with pytest.raises(InputValueError, match="does not fit float32") as caught:
        scan_npz(tmp_path / "m.npz").collect()
    assert (caught.value.layer, caught.value.position, caught.value.value) == ("w", 3, 1e300)


def test_an_archive_written_to_a_pipe_is_read(tmp_path):
    """Sizes behind the data, and 64-bit ones, are taken from the directory."""

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.text = b""

        def writable(self):
            return True

        def write(self, text):
            self.text += bytes(text)
            return len(text)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("w.npy", "w", force_zip64=True) as w:
        np.lib.format.write_array(w, VALUES)
    (tmp_path / "m.npz").write_bytes(pipe.text)
    assert rows_of(tmp_path / "m.npz", raw=True)["w"]["weights"] == VALUES.tobytes()


def test_an_archive_of_very_many_arrays_is_listed(tmp_path):
    """More members than 16 bits count are listed."""
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        for k in range(70_000):
            archive.writestr(f"{k}.npy", npy())
    assert len(open_npz(tmp_path / "m.npz").tensors) == 70_000


def test_a_sparse_file_of_gigabytes_is_listed_and_read_in_place(tmp_path):
    """Sizes and places beyond 32 bits are right, and neither listing nor a chunk takes memory."""
    with zipfile.ZipFile(tmp_path / "m.npz", "w", allowZip64=True) as archive:
        archive.writestr("w.npy", npy(shape="(2147483648,)", data=b""))
    text = (tmp_path / "m.npz").read_bytes()
    n_data, head = 2**33, text[: text.index(b"PK\x01\x02")]
    size = len(head) - 30 - 5 + n_data
    entry = struct.pack(
        "<4s4B4HL2L5H2L", b"PK\x01\x02", 45, 0, 45, 0, 0, 0, 0, 0, 0, *2 * (0xFFFFFFFF,), 5, 20, *5 * (0,)
    )
    entry += b"w.npy" + struct.pack("<2H2Q", 1, 16, size, size)
    at = len(head) + n_data
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(entry), at)
    end += struct.pack("<4sLQL", b"PK\x06\x07", 0, at + len(entry), 1)
    end += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *2 * (0xFFFF,), *2 * (0xFFFFFFFF,), 0)
    with (tmp_path / "m.npz").open("wb") as file:
        file.write(head)
        file.seek(at)
        file.write(entry + end)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lazy = scan_npz(tmp_path / "m.npz", chunk_weights=2**16).filter(pl.col("start") == 2**31 - 2**16)
    assert lazy.collect()["weights"].item().len() == 2**16
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


# --- malformed files -------------------------------------------------------------------------------------------------


def npy(descr="'<f4'", shape="(2,)", order="False", data=bytes(8), *, text=None, version=(1, 0), n_header=None):
    """Write an array with any header."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n" if text is None else text
    text = text.encode("latin-1")
    n_header = len(text) if n_header is None else n_header
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", n_header) + text + data


def archived(path, *members, method=zipfile.ZIP_STORED):
    """Write (name, bytes) into a zip archive."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, text in members:
            archive.writestr(name, text)
    return path


NPY_FAULTS = {
    "empty": b"",
    "cut in the magic": b"\x93NUM",
    "cut in the header": npy()[:30],
    "other bytes": b"hello world",
    "a pickle": b"\x80\x04\x95" + bytes(20),
    "version 4": npy(version=(4, 0)),
    "version 1.1": npy(version=(1, 1)),
    "objects": npy("'|O'"),
    "objects of 8 bytes": npy("'|O8'"),
    "structured": npy("[('a', '<f4'), ('b', '<f4')]"),
    "structured objects": npy("[('a', 'O')]"),
    "unknown dtype": npy("'<f3'"),
    "a dtype's name": npy("'float32'"),
    "native order": npy("'=f4'"),
    "no order": npy("'|f4'"),
    "a comma": npy("'<f4,<f4'"),
    "a huge item": npy("'|S9999999999'"),
    "shape no tuple": npy(shape="2"),
    "shape in brackets": npy(shape="(2)"),
    "a negative axis": npy(shape="(-2,)"),
    "an axis of 2^63": npy(shape=f"({2**63}, 0)"),
    "a wrapping shape": npy(shape="(4294967296, 4294967296)"),
    "rank 9": npy(shape="(2,1,1,1,1,1,1,1,1)"),
    "code for a shape": npy(shape="(__import__('os').getpid(),)"),
    "order no bool": npy(order="1"),
    "too few bytes": npy(data=bytes(7)),
    "too many bytes": npy(data=bytes(9)),
    "a key more": npy(text="{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 'x'}"),
    "a key twice": npy(text="{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'shape': (2,)}"),
    "a key less": npy(text="{'descr': '<f4', 'shape': (2,)}"),
    "no dict": npy(text="('<f4', False, (2,))"),
    "nesting": npy(text="(" * 5000),
    "text behind": npy(text="{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}; 1"),
    "a long header": npy(text=" " * 10_001),
    "a header of 4 GB": npy(version=(2, 0), n_header=2**32 - 1),
    "no UTF-8": npy(text="\xff", version=(3, 0)),
}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("fault", NPY_FAULTS)
def test_wrong_arrays_are_refused_by_name(tmp_path, fault, method):
    """An array that contradicts itself is a FormatError with archive and member; pickles are never read."""
    path = archived(tmp_path / "bad.npz", ("x.w.npy", NPY_FAULTS[fault]), method=method)
    with pytest.raises(FormatError, match=r"bad\.npz") as caught:
        scan_npz(path)
    assert caught.value.layer == "x.w.npy"
    assert ("pickle formats are not read" in str(caught.value)) == (fault in {"objects", "objects of 8 bytes"})


def test_other_spellings_of_a_header_are_read(tmp_path):
    """Any order of keys, double quotes, long integers and the versions 2 and 3 are arrays too."""
    members = [
        ("a.npy", npy(text='{"shape": (2,), "fortran_order": False, "descr": "<f4"}')),
        ("b.npy", npy(shape="( 1L , 2 )", version=(2, 0))),
        ("c.npy", npy(version=(3, 0))),
        ("d.npy", npy(shape="()", data=bytes(4))),
        ("e.npy", npy(shape="(1, 2,)")),
    ]
    rows = rows_of(archived(tmp_path / "m.npz", *members))
    assert [row["shape"] for row in rows.values()] == [[2], [1, 2], [2], [], [1, 2]]


def test_objects_are_never_unpickled(tmp_path):
    """An archive of Python objects is refused, and nothing in it has run."""

    class Sentinel:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    np.savez(tmp_path / "m.npz", w=VALUES, o=np.array([Sentinel()], object))
    with pytest.raises(FormatError, match="pickle formats are not read"):
        scan_npz(tmp_path / "m.npz")
    assert not (tmp_path / "ran").exists()


def test_members_that_are_no_arrays_are_refused(tmp_path):
    """Other members, two of one name, and names over the limit name the member."""
    for members in (
        [("w.npy", npy()), ("data.pkl", b"\x80\x04.")],
        [("folder/", b"")],
        [("w", npy())],
        [("n" * 1025 + ".npy", npy())],
    ):
        with pytest.raises(FormatError) as caught:
            scan_npz(archived(tmp_path / "m.npz", *members))
        assert caught.value.layer is not None
    with pytest.warns(UserWarning, match="Duplicate name"):
        archived(tmp_path / "m.npz", ("w.npy", npy()), ("w.npy", npy()))
    with pytest.raises(FormatError, match="second member") as caught:
        scan_npz(tmp_path / "m.npz")
    assert caught.value.layer == "w"


def test_names_are_data(tmp_path):
    """Names with path parts, spaces and other scripts are kept."""
    names = ["../../etc/x", "/abs", "", "new\nline", "\u202eé", "n" * 1024]
    path = archived(tmp_path / "m.npz", *((f"{name}.npy", npy()) for name in names))
    assert list(rows_of(path)) == names


def good(tmp_path):
    """Return the bytes of an archive of two members, and where its directory and its end begin."""
    text = archived(tmp_path / "good.npz", ("a.npy", npy()), ("b.npy", npy())).read_bytes()
    return text, text.index(b"PK\x01\x02"), text.index(b"PK\x05\x06")


def patched(text, at, layout, *values):
    """Return bytes with numbers put over some."""
    new = struct.pack(layout, *values)
    return text[:at] + new + text[at + len(new) :]


#: What is put over the bytes of a directory's first entry, or its end, counted from there: layout and values.
ENTRY_FAULTS = {
    "encrypted": (8, "<H", 1),
    "patched data": (8, "<H", 0x20),
    "bzip2": (10, "<H", 12),
    "of 4 GB": (24, "<L", 0xFFFFFFF0),
    "of 64-bit size without one": (24, "<L", 0xFFFFFFFF),
    "stored of more bytes": (20, "<L", 1),
    "past the directory": (20, "<LL", 0xFFFFFFF, 0xFFFFFFF),
    "somewhere else": (42, "<L", 1),
    "behind the end": (42, "<L", 0xFFFFFFF0),
    "of another name": (46, "<c", b"z"),
    "with a long name": (28, "<H", 0xFFFF),
    "with a long comment": (32, "<H", 0xFFFF),
    "no entry": (0, "<c", b"Q"),
}
END_FAULTS = {
    "of another disk": (4, "<H", 1),
    "of fewer members": (8, "<HH", 1, 1),
    "of more members": (8, "<HH", 3, 3),
    "of 65535 members": (8, "<HH", 0xFFFF, 0xFFFF),
    "of other counts": (8, "<H", 1),
    "of no bytes": (12, "<L", 0),
    "of 4 GB": (12, "<L", 0xFFFFFFFE),
    "of 64 bits without them": (12, "<L", 0xFFFFFFFF),
    "at 0": (16, "<L", 0),
    "with a comment that is not there": (20, "<H", 1),
}


@pytest.mark.parametrize(("faults", "fault"), [(0, f) for f in ENTRY_FAULTS] + [(1, f) for f in END_FAULTS])
def test_wrong_directories_are_refused(tmp_path, faults, fault):
    """A directory that contradicts file or members is a FormatError, in little time."""
    text, directory, end = good(tmp_path)
    at, layout, *values = (ENTRY_FAULTS, END_FAULTS)[faults][fault]
    (tmp_path / "bad.npz").write_bytes(patched(text, (directory, end)[faults] + at, layout, *values))
    start = time.perf_counter()
    with pytest.raises(FormatError, match=r"bad\.npz"):
        scan_npz(tmp_path / "bad.npz")
    assert time.perf_counter() - start < 2


def test_archives_with_more_or_less_around_are_refused(tmp_path):
    """Bytes before or behind the archive, any cut, and other files are FormatErrors."""
    text, *_ = good(tmp_path)
    path = tmp_path / "bad.npz"
    cuts = [text[:n] for n in range(len(text))]
    for bad in (b"#!/bin/sh\n" + text, text + b"\0", b"\x93NUMPY", bytes(100), b"\x80\x04." * 50, *cuts):
        path.write_bytes(bad)
        with pytest.raises(FormatError, match=r"bad\.npz"):
            scan_npz(path)


def test_members_that_share_bytes_are_refused(tmp_path):
    """Two entries of the directory for one member's bytes, as overlapping bombs have them, are a FormatError."""
    text, directory, end = good(tmp_path)
    first, second = text[directory : directory + 51], text[directory + 51 : end]
    local = text[: directory // 2].replace(b"a.npy", b"b.npy")
    bad = local + second[:42] + bytes(4) + second[46:] + first[:46] + b"b.npy"
    tail = patched(text[end:], 16, "<L", len(local))
    (tmp_path / "bad.npz").write_bytes(bad + tail)
    with pytest.raises(FormatError, match=r"second member|overlap"):
        scan_npz(tmp_path / "bad.npz")


def test_a_member_inside_another_is_refused(tmp_path):
    """An entry for an archive's member that lies in the data of another is a FormatError."""
    text, directory, end = good(tmp_path)
    nested = archived(tmp_path / "inner.npz", ("b.npy", npy())).read_bytes()
    nested = nested[: nested.index(b"PK\x01\x02")]
    outer = archived(tmp_path / "outer.npz", ("a.npy", npy("'|u1'", f"({len(nested)},)", data=nested))).read_bytes()
    begin = outer.index(b"PK\x01\x02")
    entry = patched(text[directory + 51 : end], 42, "<L", outer.index(nested))
    bad = outer[: outer.index(b"PK\x05\x06")] + entry
    tail = patched(outer[outer.index(b"PK\x05\x06") :], 8, "<HHLL", 2, 2, len(bad) - begin, begin)
    (tmp_path / "bad.npz").write_bytes(bad + tail)
    with pytest.raises(FormatError, match="overlap"):
        scan_npz(tmp_path / "bad.npz")


def test_bombs_are_refused_before_they_are_inflated(tmp_path):
    """An array that is a hundred times its compressed bytes is refused if it is large, and read if it is small."""
    np.savez_compressed(tmp_path / "small.npz", w=np.zeros(2**20, np.float32))
    assert scan_npz(tmp_path / "small.npz").select(pl.col("weights").list.sum()).collect().item() == 0
    np.savez_compressed(tmp_path / "bomb.npz", w=np.zeros(2**25, np.float32))
    with pytest.raises(FormatError, match="at most 100 times") as caught:
        scan_npz(tmp_path / "bomb.npz")
    assert caught.value.layer == "w.npy"


def deflated(path, text, *, size=None, crc=None, tail=b""):
    """Write an archive of one deflated member that says what it likes of itself."""
    inner = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = inner.compress(text) + inner.flush() + tail
    size, crc = len(text) if size is None else size, zlib.crc32(text) if crc is None else crc
    told = struct.pack("<5H3L2H", 20, 0, 8, 0, 0, crc, len(data), size, 5, 0)
    local = b"PK\x03\x04" + told + b"w.npy" + data
    entry = b"PK\x01\x02" + struct.pack("<H", 20) + told + struct.pack("<3H2L", 0, 0, 0, 0, 0) + b"w.npy"
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), len(local), 0)
    path.write_bytes(local + entry + end)
    return path


@pytest.mark.parametrize("n", [2, 100_000])
def test_damaged_deflated_data_is_found_when_it_is_read(tmp_path, n):
    """Too few or too many bytes, another checksum and bytes behind the stream name the array."""
    data = RNG.normal(size=n).astype(np.float32).tobytes()
    text = npy(shape=f"({n},)", data=data)
    path = tmp_path / "m.npz"
    assert rows_of(deflated(path, text), raw=True)["w"]["weights"] == data
    faults = {
        "ends 4 bytes early": {"text": text[:-4], "size": len(text)},
        "does not end with its last byte": {"text": text + b"more", "size": len(text)},
        "checksum": {"text": text, "crc": 5},
        "with its last byte": {"text": text, "tail": b"\0"},
    }
    for reason, how in faults.items():
        with pytest.raises(FormatError, match=reason) as caught:
            scan_npz(deflated(path, **how)).collect()
        assert caught.value.layer == "w"
    whole = deflated(path, text).read_bytes()
    middle = 35 + len(text) // 2
    path.write_bytes(whole[:middle] + bytes(20) + whole[middle + 20 :] if n > 2 else whole[:40] + b"\xff" + whole[41:])
    with pytest.raises(FormatError):
        scan_npz(path).collect()


def test_files_that_change_are_an_error(tmp_path):
    """An archive that is rewritten after the listing is a FormatError."""
    np.savez(tmp_path / "m.npz", w=VALUES)
    lazy = scan_npz(tmp_path / "m.npz")
    np.savez(tmp_path / "m.npz", w=np.arange(5))
    with pytest.raises(FormatError, match="changed since"):
        lazy.collect()


@pytest.mark.parametrize("how", SAVES)
def test_mutated_archives_raise_only_our_errors(tmp_path, how):
    """An archive with any bytes changed, cut or doubled is read, or refused with an error of ours."""
    few = ("f32", "f16", "fortran 3-D", "big fortran", "i64", "text", "scalar")
    SAVES[how](tmp_path / "good.npz", **{name: ARRAYS[name] for name in few})
    text, path = (tmp_path / "good.npz").read_bytes(), tmp_path / "m.npz"
    rng, n_refused = np.random.default_rng(90), 0
    for _ in range(400):
        bad = bytearray(text)
        for at in rng.integers(0, len(text), rng.integers(1, 5)):
            bad[at] = rng.choice([rng.integers(256), bad[at] ^ 1 << rng.integers(8), 0, 0x7F, 0xFF])
        if rng.random() < 0.2:
            a, b = sorted(rng.integers(0, len(text), 2))
            bad[a:b] = bad[a:b] * int(rng.integers(0, 3))
        path.write_bytes(bad)
        try:
            for raw in (False, True):
                scan_npz(path, raw=raw, chunk_weights=5).collect()
        except Aq2Error:
            n_refused += 1
    assert 100 < n_refused < 400
