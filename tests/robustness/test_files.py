"""Cases 62 to 70, 80 and 82: safetensors files that lie, of any size; the crafted ones are in `tests/corpus`."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from corpus.make import ENTRIES, FILES, FOLDER, A, B, index, one, safetensors, two
from robustness.harness import in_child
from safetensors import SafetensorError, safe_open

from aq2_pipeline import FormatError, InputTypeError, InputValueError, scan_safetensors, set_limits
from aq2_pipeline.io.tables import source as scanning

FLOAT = ("F32", [1], bytes(4))
#: Time for what must take 50 ms: the machine may be busy, a hang is what is looked for.
SOON = 2.0


def corpus(case):
    """Return the entries of a case, and whether each is read."""
    return sorted({"/".join(path.split("/")[:2]) for path in FILES if path.split("/")[1].startswith(f"{case}-")})


def refused(path, match="."):
    """Demand a FormatError of a scan, soon, and return it."""
    start = time.perf_counter()
    with pytest.raises(FormatError, match=match) as caught:
        scan_safetensors(path)
    assert time.perf_counter() - start < SOON
    return caught.value


CRAFTED = [entry for case in range(62, 70) for entry in corpus(case)]


@pytest.mark.parametrize("entry", CRAFTED, ids=[f"case_{entry.split('/')[1]}" for entry in CRAFTED])
def test_crafted_file(entry):
    """A scan reads no data: files of `bad` are refused by their headers and index alone, those of `good` collect."""
    if entry.startswith("bad/"):
        assert Path(entry).name in str(refused(FOLDER / entry))
    else:
        scan_safetensors(FOLDER / entry).collect()


def sparse(path, n_header, size, start=b"{"):
    """Write a file that claims a header and has a size, without taking the disk."""
    path.write_bytes(struct.pack("<Q", n_header) + start)
    os.truncate(path, size)
    return path


def test_case_62_header_limit(tmp_path):
    """A header of more than 100 MB is refused by its length, before it is read."""
    refused(sparse(tmp_path / "m.safetensors", 101_000_000, 200_000_000), "at most 100000000")
    refused(sparse(tmp_path / "m.safetensors", 2**63, 200_000_000), "the file has 200000000")


def test_case_62_takes_no_memory(tmp_path):
    """Headers that claim up to 2^64 - 1 bytes take less than 50 MB, and no time."""
    sparse(tmp_path / "m.safetensors", 101_000_000, 200_000_000)
    bad = [str(FOLDER / entry) for entry in corpus(62)] + [str(tmp_path / "m.safetensors")]
    found = in_child(
        f"""
import resource, time
import aq2_pipeline.io.safetensors.source
from aq2_pipeline import FormatError, scan_safetensors
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start, slowest = peak(), time.perf_counter(), 0
for path in {bad}:
    start = time.perf_counter()
    try:
        scan_safetensors(path)
        raise SystemExit(path)
    except FormatError:
        slowest = max(slowest, time.perf_counter() - start)
print(peak() - before, slowest)
"""
    )
    n_kb, seconds = map(float, found.split())
    assert n_kb < 50 * 1024
    assert seconds < SOON


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (two([0, 2], [3, 5], 5), "v"),
        (two([0, 2], [1, 3], 3), "v"),
        (two([0, 2], [0, 2], 2), "v"),
        (two([0, 2], [2, 4], 5), "v"),
        (two([1, 2], [2, 3], 3), "w"),
        (one(data_offsets=[4, 0]), "x.w"),
        (one(data_offsets=[-4, 0]), "x.w"),
        (one()[:-1], "x.w"),
    ],
    ids=["hole", "overlap", "same bytes", "tail", "hole first", "reversed", "negative", "cut"],
)
def test_case_63_names_the_tensor(tmp_path, content, name):
    """Tensors that do not cover the data exactly are refused with the file and the tensor."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    assert refused(path, r"m\.safetensors").layer == name


SHAPES = {
    "2^64": [2**32, 2**32],
    "2^62": [2**62],
    "wraps": [2**63 + 2, 2],
    "negative": [-2],
    "float": [2.0],
    "rank 65": [1] * 65,
    "rank 100000": [1] * 100_000,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_case_64_shapes_that_no_tensor_has(tmp_path, shape):
    """Shapes that wrap, are negative, no integers or of too many axes are refused with the tensor."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(one(shape=SHAPES[shape]))
    error = refused(path)
    assert error.layer == "x.w"
    assert len(str(error)) < 2000


def test_case_64_shapes_that_are_few(tmp_path):
    """[] is one value, [0] none."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors({"scalar": ("F32", [], np.float32(3).tobytes()), "none": ("F32", [0], b"")}))
    assert scan_safetensors(path).select("shape", "weights").collect().rows() == [([], [3.0]), ([0], [])]


def test_case_65_dtypes(tmp_path):
    """BF16 and F8_E4M3 are exact, F4 is listed without weights, an unknown dtype is refused with the known ones."""
    found = {row[0]: row[3] for row in scan_safetensors(FOLDER / "good/65-bf16-f8-f4.safetensors").collect().rows()}
    assert found == {"b": [1.0, -2.0], "e": [1.0, -2.0], "f": None}
    path = tmp_path / "m.safetensors"
    path.write_bytes(one(dtype="F33"))
    assert "BF16" in str(refused(path, "'F33' is unknown"))


def test_case_66_deep_nesting(tmp_path):
    """100,000 brackets are refused, not a RecursionError."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors(text=b'{"w":' + b"[" * 100_000))
    refused(path, "nested too deep")
    (tmp_path / "model.safetensors.index.json").write_bytes(b'{"weight_map":' + b"[" * 100_000)
    refused(tmp_path, "nested too deep")


def test_case_67_names_are_data(tmp_path):
    """Names with NUL, parts of paths, nothing, and look-alikes are kept; one of 1 MB is refused; errors escape them."""
    names = ["../../etc/x", "a\0b", "", "new\nline", "\u202e", "__metadata", "\u0430", "a"]
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors(dict.fromkeys(names, FLOAT)))
    assert scan_safetensors(path).collect()["layer_name"].to_list() == names
    path.write_bytes(safetensors({"n" * 1_000_000: FLOAT}))
    assert len(str(refused(path, "has 1000000 bytes"))) < 1000
    path.write_bytes(safetensors({"a\nb": ("?", [1], bytes(4))}))
    refused(path, r"layer 'a\\nb'")


def many(path, n):
    """Write a file of so many tensors of one float, without taking the disk."""
    entries = (f'"w{k}":{{"dtype":"F32","shape":[1],"data_offsets":[{4 * k},{4 * k + 4}]}}' for k in range(n))
    text = ("{" + ",".join(entries) + "}").encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + 4 * n)
    return path


@pytest.mark.parametrize(("n", "most_seconds"), [(200_000, 20), (1_000_000, 100)])
def test_case_68_many_tensors_are_listed(tmp_path, n, most_seconds):
    """A million tensors are listed in less than 500 MB; 200,000 take about a second of a quiet core."""
    path = many(tmp_path / "m.safetensors", n)
    found = in_child(
        f"""
import resource, time
import aq2_pipeline, aq2_pipeline.io.safetensors.source
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start = peak(), time.process_time()
names = aq2_pipeline.scan_safetensors({str(path)!r}).select("layer_name").collect()["layer_name"]
print(peak() - before, time.process_time() - start, len(names), names[-1])
"""
    )
    n_kb, seconds, *rest = found.split()
    assert rest == [str(n), f"w{n - 1}"]
    assert float(n_kb) < 500 * 1024
    assert float(seconds) < most_seconds


@pytest.mark.usefixtures("default_limits")
def test_case_68_one_tensor_too_many(tmp_path):
    """More tensors than the limit are refused, however they are spelled, and in several files too."""
    set_limits(tensors=9)
    refused(many(tmp_path / "10.safetensors", 10), "more than 9 tensors")
    (tmp_path / "spaced.safetensors").write_bytes(
        safetensors(
            text=many(tmp_path / "10.safetensors", 10).read_bytes()[8:-40].replace(b":", b" : "), data=bytes(40)
        )
    )
    refused(tmp_path / "spaced.safetensors", "more than 9 tensors")
    (tmp_path / "few.safetensors").write_bytes(safetensors(dict.fromkeys("abc", FLOAT)))
    refused([many(tmp_path / "9.safetensors", 9), tmp_path / "few.safetensors"], "more than 9 tensors")


def test_case_68_misaligned_tensors_are_copied():
    """Tensors that begin at odd bytes give the values that aligned ones do, mapped or read."""
    for mmap in (False, True):
        found = scan_safetensors(FOLDER / "good/68-misaligned.safetensors", mmap=mmap).collect()
        assert found["weights"].to_list() == [None, [1.0, -2.0], [1.0], [1.0, -2.0]]


# --- shards ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    """Return the folder of a model in two shards."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(A)
    (folder / "b.safetensors").write_bytes(B)
    weight_map = {"a": "a.safetensors", "b": "b.safetensors", "a2": "a.safetensors"}
    (folder / "model.safetensors.index.json").write_bytes(index(weight_map, total_size=24))
    return folder


def says(model, **weight_map):
    """Let the index say so of some tensors."""
    path = model / "model.safetensors.index.json"
    told = json.loads(path.read_bytes())
    told["weight_map"] |= weight_map
    path.write_bytes(json.dumps(told).encode())


@pytest.mark.parametrize("fault", ENTRIES)
def test_case_69_entry_is_named_before_any_shard_is_opened(model, monkeypatch, fault):
    """A wrong entry is refused with the index, the tensor and the entry, and no shard is opened."""
    says(model, b=ENTRIES[fault])
    opened = []
    monkeypatch.setattr("aq2_pipeline.io.safetensors.source.open_regular", opened.append)
    error = refused(model, r"model\.safetensors\.index\.json")
    assert error.layer == "b"
    assert repr(str(ENTRIES[fault])) in str(error)
    assert opened == []


def test_case_69_links_out_of_the_folder(model, tmp_path):
    """A link to a file outside is refused, also through a linked folder; one within is a shard."""
    (tmp_path / "out").mkdir()
    (model / "b.safetensors").rename(tmp_path / "out" / "b.safetensors")
    (model / "b.safetensors").symlink_to("../out/b.safetensors")
    refused(model, "'b.safetensors': a link that leaves the folder")
    (model / "sub").symlink_to(tmp_path / "out")
    says(model, b="sub/b.safetensors")
    refused(model, "'sub/b.safetensors': a link that leaves the folder")
    (model / "loop.safetensors").symlink_to("loop.safetensors")
    says(model, b="loop.safetensors")
    refused(model, "loop.safetensors")
    (tmp_path / "out" / "b.safetensors").rename(model / "real")
    (model / "b.safetensors").unlink()
    (model / "b.safetensors").symlink_to("real")
    says(model, b="b.safetensors")
    assert scan_safetensors(model).collect().height == 3


def test_case_69_links_of_a_cache(model, tmp_path):
    """Where the index is a link itself, as in Hugging Face's cache, shards may be links to where it lies."""
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for k, path in enumerate(sorted(model.iterdir())):
        path.rename(model / str(k))
        (snapshot / path.name).symlink_to(f"../../model/{k}")
    assert scan_safetensors(snapshot).collect()["layer_name"].to_list() == ["a", "a2", "b"]


@pytest.mark.parametrize("kind", ["hard link", "symbolic link"])
def test_case_69_two_spellings_of_one_file(model, kind):
    """A file under two names is refused in an index, a folder and a list."""
    link = model / "c.safetensors"
    link.hardlink_to(model / "b.safetensors") if kind == "hard link" else link.symlink_to("b.safetensors")
    says(model, c="c.safetensors")
    refused(model, "'c.safetensors': the same file as 'b.safetensors'")
    refused([model / "b.safetensors", link], "is the same file as")
    (model / "model.safetensors.index.json").unlink()
    refused(model, "is the same file as")


def test_case_69_tensor_in_two_shards(model):
    """A tensor in two files is refused with both, with an index, in a folder and in a list."""
    (model / "b.safetensors").write_bytes(A)
    for source in (model, [model / "a.safetensors", model / "b.safetensors"]):
        error = refused(source, r"b\.safetensors': the tensor is in .*a\.safetensors' too")
        assert error.layer == "a"
    (model / "model.safetensors.index.json").unlink()
    refused(model, "the tensor is in")


def test_case_69_index_contradicts_its_shards(model):
    """A tensor that is elsewhere, nowhere or not named, and a wrong size, are refused with the index."""
    says(model, b="a.safetensors")
    assert refused(model, "index says .*a.safetensors").layer == "b"
    says(model, b="b.safetensors", c="a.safetensors")
    assert refused(model, "is in no shard, the index says .*a.safetensors").layer == "c"
    path = model / "model.safetensors.index.json"
    path.write_bytes(index({"a": "a.safetensors", "b": "b.safetensors"}))
    assert refused(model, "does not name the tensor, which is in .*a.safetensors").layer == "a2"
    path.write_bytes(index({"a": "a.safetensors", "a2": "a.safetensors", "b": "b.safetensors"}, total_size=28))
    refused(model, "total_size is 28, the tensors have 24 bytes")


@pytest.mark.usefixtures("default_limits")
def test_case_69_limits_of_an_index(model):
    """An index of more bytes or tensors than the limits is refused; a FIFO is not waited for."""
    set_limits(tensors=2)
    refused(model, "names 3 tensors; at most 2")
    set_limits(header_bytes=20)
    refused(model, "more than 20 bytes")
    (model / "model.safetensors.index.json").unlink()
    os.mkfifo(model / "model.safetensors.index.json")
    refused(model, "not a regular file")


def test_case_70_shard_changes_after_the_scan(model):
    """A shard that is written, cut or replaced after the scan is an error, also where its size stays."""
    for change in ("touch", "cut", "replace"):
        lazy = scan_safetensors(model)
        shard = model / "b.safetensors"
        if change == "touch":
            os.utime(shard, ns=(0, 1))
        elif change == "cut":
            os.truncate(shard, len(B) - 1)
        else:
            (model / "new").write_bytes(B)
            os.utime(model / "new", ns=(0, 2))
            (model / "new").replace(shard)
        with pytest.raises(FormatError, match=r"b\.safetensors.*changed since") as caught:
            lazy.collect()
        assert caught.value.layer == "b"
        shard.write_bytes(B)
    assert scan_safetensors(model).collect().height == 3


def test_case_70_data_that_ends_while_it_is_read(model, monkeypatch):
    """A file that shrinks between two reads is a FormatError that names the tensor."""
    monkeypatch.setattr(scanning.Opened, "check", lambda *_: None)
    lazy = scan_safetensors(model)
    os.truncate(model / "b.safetensors", len(B) - 2)
    with pytest.raises(FormatError, match="ends 2 bytes early") as caught:
        lazy.collect()
    assert caught.value.layer == "b"


# --- what is no such file --------------------------------------------------------------------------------------------


def test_case_80_pickles(tmp_path):
    """Pickles are refused by name and by content, and nothing of them runs."""
    sentinel = tmp_path / "ran"
    pickle = (
        b"\x80\x04cposix\nsystem\n(X"
        + struct.pack("<I", len(f"touch {sentinel}"))
        + f"touch {sentinel}".encode()
        + b"tR."
    )
    for name in ("m.pt", "m.bin", "m.CKPT", "m.pth", "m.pkl", "m.npz", "m.npy", "m.safetensors"):
        (tmp_path / name).write_bytes(pickle)
        refused(tmp_path / name, "pickle formats are not read")
    assert not sentinel.exists()


def test_case_82_what_is_no_model(tmp_path):
    """Archives, folders without a model, FIFOs, devices and files of /proc are refused, and none is waited for."""
    for name in ("m.zip", "m.tar.gz", "m.tgz", "m.xz"):
        refused(tmp_path / name, "extract it first")
    (tmp_path / "m.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    refused(tmp_path / "m.safetensors", "zip archive")
    (tmp_path / "m.safetensors").unlink()
    refused(tmp_path, "no safetensors files")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        refused(path, "not a regular file")
        refused([path], "not a regular file")
    refused("/proc/self/status", "the file is empty")
    os.mkfifo(tmp_path / "m.safetensors")
    refused(tmp_path, "not a regular file")


def test_case_82_files_that_grow(tmp_path):
    """A file that has grown before the scan has a tail; after it, it has changed."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(one())
    lazy = scan_safetensors(path)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(FormatError, match="changed since"):
        lazy.collect()
    refused(path, "4 bytes follow the last tensor")


def test_case_82_what_is_no_path(tmp_path):
    """Other objects, empty lists and missing files are errors of their own classes."""
    for source in (5, b"path", None, [5], [b"path"]):
        with pytest.raises(InputTypeError, match="give a path"):
            scan_safetensors(source)
    with pytest.raises(InputValueError, match="at least one path"):
        scan_safetensors([])
    for source in (tmp_path / "none.safetensors", [tmp_path / "none.safetensors"], tmp_path / "none.index.json"):
        with pytest.raises(FileNotFoundError):
            scan_safetensors(source)


def test_what_is_read_the_library_reads_too(tmp_path):
    """Our checks are no laxer than the format's own library: what passes them, mutated or not, passes its."""
    path, n_read = tmp_path / "m.safetensors", 0
    rng = np.random.default_rng(7)
    seeds = [content for name, content in FILES.items() if name.endswith(".safetensors")]
    for _ in range(1500):
        content = bytearray(seeds[rng.integers(len(seeds))])
        for _ in range(rng.integers(3)):
            if content:
                content[rng.integers(len(content))] = rng.choice(list(b'019[]{},:" FU8-.\\'))
        path.write_bytes(content)
        try:
            scan_safetensors(path)
        except FormatError:
            continue
        n_read += 1
        try:
            with safe_open(path, framework="np", backend="pread"):
                pass
        except SafetensorError as error:
            pytest.fail(f"{error}: {bytes(content[:300])!r}")
    assert n_read > 50


def test_reading_needs_no_library(tmp_path, monkeypatch):
    """Scans do without the package safetensors."""
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    (tmp_path / "m.safetensors").write_bytes(one())
    assert scan_safetensors(tmp_path / "m.safetensors").select(pl.len()).collect().item() == 1
