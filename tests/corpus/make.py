"""Write the crafted files of this folder: `PYTHONPATH=tests python -m corpus.make`, from the root of the repository.

`FILES` is the corpus, path -> bytes, built from a table for each format; those
beside safetensors are in `formats`. What is in `bad/` is refused with an error
of this package, at once or when it is read; what is in `good/` is read. A path
with a folder is a part of a model in several files. Names begin with the number
of their case in the table of bad input. Files of `87-fuzz-` are what fuzzing
found: they are in no table, and stay as they are.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

from corpus import formats

FOLDER = Path(__file__).parent


def safetensors(entries=(), data=b"", *, text=None, n_header=None):
    """Return a safetensors file with any header; `entries` are name -> (dtype, shape, bytes), or a dict as it is."""
    header = {}
    for name, entry in dict(entries).items():
        if isinstance(entry, tuple):
            dtype, shape, content = entry
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
            data += content
        else:
            header[name] = entry
    text = json.dumps(header).encode() if text is None else text
    return struct.pack("<Q", len(text) if n_header is None else n_header) + text + data


def one(**changed):
    """Return a file of the tensor `x.w`, one float32, with what is changed of its entry."""
    return safetensors({"x.w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changed}, bytes(4))


def two(first, second, n_bytes):
    """Return a file of the tensors `w` and `v` of bytes, by their offsets."""
    spans = {"w": first, "v": second}
    entries = {name: {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]} for name, (a, b) in spans.items()}
    return safetensors(entries, bytes(n_bytes))


def index(weight_map, **metadata):
    """Return an index."""
    return json.dumps({"metadata": metadata, "weight_map": weight_map}).encode()


FLOAT = ("F32", [2], struct.pack("<2f", 1.0, -2.0))
NAMES = ["../../etc/x", "a\0b", "", "new\nline", "\u202e", "__metadata", "n" * 1024, "\u0430", "a"]

SAFETENSORS = {
    "bad/62-empty": b"",
    "bad/62-seven-bytes": bytes(7),
    "bad/62-header-of-0": bytes(8),
    "bad/62-header-of-0-and-data": bytes(100),
    "bad/62-header-of-2^63": struct.pack("<Q", 2**63) + b"{}",
    "bad/62-header-of-2^64-1": b"\xff" * 8 + b"{}",
    "bad/62-header-of-99-MB-in-a-short-file": struct.pack("<Q", 99_000_000) + b"{}",
    "bad/63-data-cut": safetensors({"x.w": FLOAT})[:-1],
    "bad/63-tail": safetensors({"x.w": FLOAT}) + b"\0",
    "bad/63-hole": two([0, 2], [3, 5], 5),
    "bad/63-hole-first": two([1, 2], [2, 3], 3),
    "bad/63-overlap": two([0, 2], [1, 3], 3),
    "bad/63-two-names-on-the-same-bytes": two([0, 2], [0, 2], 2),
    "bad/63-offsets-reversed": one(data_offsets=[4, 0]),
    "bad/63-offsets-negative": one(data_offsets=[-4, 0]),
    "bad/63-offsets-past-the-end": one(data_offsets=[4, 8]),
    "bad/63-offsets-of-three": one(data_offsets=[0, 4, 8]),
    "bad/63-offsets-of-floats": one(data_offsets=[0.0, 4.0]),
    "bad/64-shape-2^32-2^32": one(shape=[2**32, 2**32]),
    "bad/64-shape-2^62": one(shape=[2**62]),
    "bad/64-shape-wraps-to-its-bytes": one(shape=[2**63 + 2, 2]),
    "bad/64-shape-hides-a-product-behind-0": safetensors({"x.w": ("F32", [2**62, 2**62, 0], b"")}),
    "bad/64-shape-negative": one(shape=[-2]),
    "bad/64-shape-twice-negative": one(shape=[-1, -1]),
    "bad/64-shape-of-float": one(shape=[1.0]),
    "bad/64-shape-of-true": one(shape=[True]),
    "bad/64-shape-no-list": one(shape="1"),
    "bad/64-rank-9": one(shape=[1] * 9),
    "bad/64-rank-65": one(shape=[1] * 65),
    "good/64-rank-8": one(shape=[1] * 8),
    "good/64-scalar": one(shape=[]),
    "good/64-no-elements": safetensors({"x.w": ("F32", [0], b""), "x.v": ("F32", [3, 0, 5], b"")}),
    "bad/65-unknown-dtype": one(dtype="F33"),
    "bad/65-dtype-no-string": one(dtype=["F32"]),
    "bad/65-bytes-of-another-dtype": one(dtype="BF16"),
    "bad/65-f4-of-half-a-byte": safetensors({"x.w": ("F4", [3], bytes(2))}),
    "bad/65-no-offsets": safetensors({"x.w": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "bad/65-one-key-more": one(more=1),
    "bad/65-entry-no-object": safetensors({"x.w": 1}),
    "good/65-bf16-f8-f4": safetensors(
        {"b": ("BF16", [2], b"\x80\x3f\0\xc0"), "e": ("F8_E4M3", [2], b"\x38\xc0"), "f": ("F4", [4], b"\x21\x43")}
    ),
    "bad/66-key-twice": safetensors(text=b'{"w": {}, "w": {}}'),
    "bad/66-tensor-twice": safetensors(
        text=b'{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "bad/66-dtype-twice": safetensors(text=b'{"w":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}'),
    "bad/66-metadata-twice": safetensors(text=b'{"__metadata__": {}, "__metadata__": {}}'),
    "bad/66-metadata-of-numbers": safetensors({"__metadata__": {"a": 1}}),
    "bad/66-metadata-no-object": safetensors({"__metadata__": 1}),
    "bad/66-not-utf8": safetensors(text=b'{"\xff": 1}'),
    "bad/66-surrogate": safetensors(text=b'{"\\ud800": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "bad/66-array": safetensors(text=b"[]      "),
    "bad/66-no-json": safetensors(text=b"{nope"),
    "bad/66-nan": safetensors(text=b'{"w": NaN}'),
    "bad/66-nested-deep": safetensors(text=b'{"w":' + b"[" * 3000),
    "bad/66-number-of-5000-digits": safetensors(text=b'{"w": ' + b"1" * 5000 + b"}"),
    "bad/66-comma-last": safetensors(text=b'{"__metadata__": {},}'),
    "bad/66-more-after-the-end": safetensors(text=b"{}{}"),
    "bad/66-never-ends": safetensors(text=b'{"__metadata__": {}'),
    "bad/66-key-no-string": safetensors(text=b"{1: {}}"),
    "bad/66-leading-space": safetensors(text=b' {"__metadata__": {}}'),
    "good/66-space-between-and-behind": safetensors(
        text=b'{ "w" :\n{"shape":[ 0 ],\t"data_offsets": [0,0], "dtype":"U8"} , "__metadata__" : { } } \n\n'
    ),
    "good/66-no-tensors": safetensors(text=b"{}      "),
    "bad/67-name-of-1025-bytes": safetensors({"n" * 1025: FLOAT}),
    "bad/67-name-of-1026-bytes-in-utf8": safetensors({"ä" * 513: FLOAT}),
    "bad/67-metadata-like-a-tensor": safetensors({"__metadata__": FLOAT, "w": ("U8", [0], b"")}),
    "good/67-names": safetensors(dict.fromkeys(NAMES, FLOAT)),
    "good/68-misaligned": safetensors({"a": ("U8", [1], b"\1"), "b": FLOAT, "c": ("F16", [1], b"\0\x3c"), "d": FLOAT}),
}

#: An index as a model has it, and what is wrong with it.
ENTRIES = {
    "parent": "../a.safetensors",
    "parent-within": "x/../a.safetensors",
    "absolute": "/etc/passwd.safetensors",
    "home": "~/a.safetensors",
    "url": "https://example.org/a.safetensors",
    "backslash": "x\\a.safetensors",
    "nul": "a.safetensors\0",
    "missing-shard": "c.safetensors",
    "no-safetensors": "a.bin",
    "the-folder": ".",
    "empty": "",
    "no-string": 1,
    "spelled-twice": "./a.safetensors",
}
A, B = safetensors({"a": FLOAT, "a2": FLOAT, "__metadata__": {"format": "pt"}}), safetensors({"b": FLOAT})
RIGHT = {"a": "a.safetensors", "b": "b.safetensors", "a2": "a.safetensors"}
INDEXES = {
    **{f"bad/69-entry-{name}": index(RIGHT | {"b": entry}) for name, entry in ENTRIES.items()},
    "bad/69-tensor-absent-from-its-shard": index(RIGHT | {"c": "a.safetensors"}),
    "bad/69-tensor-in-the-other-shard": index(RIGHT | {"b": "a.safetensors"}),
    "bad/69-tensor-not-named": index({"a": "a.safetensors", "b": "b.safetensors"}),
    "bad/69-total-size": index(RIGHT, total_size=25),
    "bad/69-total-size-of-text": index(RIGHT, total_size="24"),
    "bad/69-metadata-no-object": b'{"metadata": 1, "weight_map": {"a": "a.safetensors"}}',
    "bad/69-no-weight-map": b"{}",
    "bad/69-weight-map-empty": index({}),
    "bad/69-weight-map-a-list": b'{"weight_map": ["a.safetensors"]}',
    "bad/69-array": b"[]",
    "bad/69-no-json": b"{",
    "bad/69-not-utf8": b'{"\xff": 1}',
    "bad/69-key-twice": b'{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}',
    "bad/69-nested-deep": b'{"weight_map": ' + b"[" * 3000,
    "good/69-index": index(RIGHT, total_size=24),
    "good/69-index-without-metadata": json.dumps({"weight_map": RIGHT}).encode(),
}


def _all():
    files = {f"{path}.safetensors": content for path, content in SAFETENSORS.items()}
    for folder, content in INDEXES.items():
        shards = {"model.safetensors.index.json": content, "a.safetensors": A, "b.safetensors": B}
        files |= {f"{folder}/{name}": content for name, content in shards.items()}
    for name, shards in {
        "bad/69-tensor-in-two-shards": {"a.safetensors": A, "b.safetensors": A},
        "bad/69-two-indexes": {"x.index.json": index(RIGHT), "y.index.json": index(RIGHT), "a.safetensors": A},
        "bad/69-no-safetensors": {"pytorch_model.bin.index.json": index({"a": "pytorch_model.bin"})},
        "good/69-folder": {"a.safetensors": A, "b.safetensors": B},
    }.items():
        files |= {f"{name}/{shard}": content for shard, content in shards.items()}
    found = (path for kind in ("bad", "good") for path in (FOLDER / kind).glob("87-fuzz-*") if path.is_file())
    return files | formats.files() | {str(path.relative_to(FOLDER)): path.read_bytes() for path in found}


FILES = _all()
#: Files, and folders that are one model.
ENTRIES_OF_FILES = sorted({"/".join(path.split("/")[:2]) for path in FILES})


def opened(entry):
    """Return what a user gives to read an entry: a file, the folder of shards, or the model beside its data."""
    model = f"{entry}/model.onnx"
    return model if model in FILES else entry


def write(folder=FOLDER):
    """Write all files; those that are no longer in the table go."""
    for kind in ("good", "bad"):
        shutil.rmtree(folder / kind, ignore_errors=True)
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


if __name__ == "__main__":
    write()
