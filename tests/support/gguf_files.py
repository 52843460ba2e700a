"""GGUF files of any parts, for files that lie."""

from __future__ import annotations

import struct

import pytest

from aq2_pipeline import FormatError
from aq2_pipeline.io.gguf.source import open_gguf

F32, Q4_0, STRING, ARRAY, U8, U32 = 0, 2, 8, 9, 0, 4


def text(value):
    """Return a string as GGUF has it."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key, kind, raw):
    """Return a key-value."""
    return text(key) + struct.pack("<I", kind) + raw


def info(name, axes, kind=F32, offset=0, n_dims=None):
    """Return what a header says of a tensor; axes in the order of the file."""
    rank = len(axes) if n_dims is None else n_dims
    shape = b"".join(struct.pack("<Q", axis % 2**64) for axis in axes)
    return text(name) + struct.pack("<I", rank) + shape + struct.pack("<IQ", kind, offset % 2**64)


def handmade(path, infos=(), entries=(), data=b"", *, version=3, counts=None):
    """Write a file of any parts, padded where its data begins; `counts` are what it claims to hold."""
    n_tensors, n_keys = counts or (len(infos), len(entries))
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join([*entries, *infos])
    path.write_bytes(header + bytes(-len(header) % 32) + data if data else header)
    return path


def refused(path, match=None):
    """Return the error of a file that is refused, which names it."""
    with pytest.raises(FormatError, match=match) as caught:
        open_gguf(path)
    assert path.name in str(caught.value)
    return caught.value
