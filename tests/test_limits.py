"""Limits of readers: one place, from the environment or `set_limits`, and every error for one says which."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from corpus.make import safetensors
from support.protobuf import external, field, model, pair, tensor

import aq2_pipeline
from aq2_pipeline import FormatError, InputTypeError, InputValueError, limits, set_limits
from aq2_pipeline.io.folders.model import _read_config
from aq2_pipeline.io.gguf.layout import header_of
from aq2_pipeline.io.limits import LARGEST, Limits, variable_of
from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.safetensors import layout as tensor_files
from aq2_pipeline.io.writing.staging import Spec

ROOT = Path(__file__).parents[1]
NAMES = [each.name for each in fields(Limits)]
SCALAR = ("F32", [], bytes(4))
FLOAT = field(9, bytes(4))

pytestmark = pytest.mark.usefixtures("default_limits")


def written(path, content):
    """Write bytes."""
    path.write_bytes(content)
    return path


def st(entries):
    """Return what writes a safetensors file."""
    return lambda folder: written(folder / "m.safetensors", safetensors(entries))


def onnx(*parts, **more):
    """Return what writes an ONNX model."""
    return lambda folder: written(folder / "m.onnx", model(*parts, **more))


def gguf(name="w", n=1, key_values=()):
    """Return what writes a GGUF file of n tensors of one weight."""
    names = [name, *(f"{name}{k}" for k in range(1, n))]
    step = dict(key_values).get("general.alignment", 32)
    entries = b"".join(_text(key) + struct.pack("<II", 4, value) for key, value in dict(key_values).items())
    infos = b"".join(_text(each) + struct.pack("<IQIQ", 1, 1, 0, k * step) for k, each in enumerate(names))
    header = b"GGUF" + struct.pack("<IQQ", 3, n, len(dict(key_values))) + entries + infos
    content = header + bytes(-len(header) % step) + bytes(step * n)
    return lambda folder: written(folder / "m.gguf", content)


def _text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def npz(**arrays):
    """Return what writes a deflated archive."""

    def write(folder):
        np.savez_compressed(folder / "m.npz", **arrays)
        return folder / "m.npz"

    return write


def sharded(folder):
    """Write a model of two shards with an index."""
    for name in "ab":
        written(folder / f"{name}.safetensors", safetensors({name: SCALAR}))
    told = {"weight_map": {name: f"{name}.safetensors" for name in "ab"}}
    return written(folder / "model.safetensors.index.json", json.dumps(told).encode())


def listed(folder):
    """Return a list of two shards."""
    return sorted(sharded(folder).parent.glob("*.safetensors"))


def parts(folder):
    """Write a GGUF model of two files, a tensor each."""
    for k in range(2):
        layout = header_of([("ab"[k], (1,), "F32", 4)], {"split.count": 2, "split.no": k})
        content = layout.header + bytes(layout.size - len(layout.header))
        written(folder / f"m-{k + 1:05}-of-00002.gguf", content)
    return folder / "m-00001-of-00002.gguf"


def elsewhere(folder):
    """Write an ONNX model whose data is in a file of a long path."""
    (folder / ("d" * 200)).mkdir()
    written(folder / ("d" * 200) / "w", bytes(8))
    return written(folder / "m.onnx", model(external("w", location="d" * 200 + "/w")))


LONG = "w" * 180

#: The limit, and a file that has exactly `value` of it.
CASES = {
    "safetensors, header_bytes": (len(safetensors({"w": ("F32", [1], b"")})) - 8, st({"w": ("F32", [1], bytes(4))})),
    "safetensors, tensors": (3, st(dict.fromkeys("abc", SCALAR))),
    "safetensors, rank": (3, st({"w": ("F32", [1, 1, 1], bytes(4)), "v": SCALAR})),
    "safetensors, name_bytes": (180, st({LONG: SCALAR, "v": SCALAR})),
    "index, header_bytes": (60, sharded),
    "index, tensors": (2, sharded),
    "list, tensors": (2, listed),
    "gguf, header_bytes": (24 + 8 + 1 + 24, gguf()),
    "gguf, tensors": (2, gguf(n=2)),
    "gguf parts, tensors": (2, parts),
    "gguf, key_values": (2, gguf(key_values={"a": 1, "b": 2})),
    "gguf, name_bytes": (180, gguf(LONG)),
    "gguf, alignment": (1 << 21, gguf(key_values={"general.alignment": 1 << 21})),
    "onnx, header_bytes": (6, onnx(tensor("w", [1], 1, FLOAT), after=field(14, pair("", "ab")))),
    "onnx, tensors": (2, onnx(*(tensor(name, [1], 1, FLOAT) for name in "ab"))),
    "onnx, rank": (3, onnx(tensor("w", [1, 1, 1], 1, FLOAT))),
    "onnx, name_bytes": (180, onnx(tensor(LONG, [1], 1, FLOAT))),
    "location, name_bytes": (202, elsewhere),
    "npz, header_bytes": (46 + len("a.npy"), npz(a=np.zeros(2))),
    "npz, tensors": (2, npz(a=np.zeros(2), b=np.zeros(2))),
    "npz, rank": (3, npz(a=np.zeros((1, 1, 1)))),
    "npz, name_bytes": (180, npz(**{LONG: np.zeros(2)})),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_is_read_up_to_the_limit_and_refused_beyond(tmp_path, case):
    """What has exactly as much as a limit is read; one less, and the hint names the limit and its variable."""
    name, (value, write) = case.split(", ")[1], CASES[case]
    source = write(tmp_path)
    set_limits(**{name: value})
    assert open_source(source).tensors
    set_limits(**{name: value - 1 if name != "alignment" else value // 2})
    with pytest.raises(FormatError) as caught:
        open_source(source)
    assert f"set_limits({name}=...) or {variable_of(name)}" in caught.value.hint


def test_a_bomb_is_read_where_its_limit_allows(tmp_path):
    """An array that is compressed 1:1000 is read if either limit says so, and refused with the first's name."""
    source = npz(w=np.zeros(1 << 20, np.float32))(tmp_path)
    set_limits(inflated_bytes=1000)
    with pytest.raises(FormatError, match=re.escape("set_limits(inflation=...)")):
        open_source(source)
    set_limits(inflated_bytes=1000, inflation=2000)
    assert open_source(source).tensors
    set_limits(inflated_bytes=1 << 23)
    assert open_source(source).tensors


PEAK = """
import resource, sys
import aq2_pipeline.io.safetensors.source
from aq2_pipeline import FormatError, scan_safetensors
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
try:
    scan_safetensors(sys.argv[1])
except FormatError as error:
    print(peak() - before, error)
"""
BLOWN_UP = {
    "lists": ('{"w":[', "[],", "[]]}", "layer 'w': .*more than 16384 characters"),
    "a string": ('{"w":{"dtype":"', "x" * 100, '"}}', "layer 'w': .*more than 16384 characters"),
    "metadata": ('{"__metadata__":{', '"%x":"",', '"":""}}', "__metadata__ has more than 65536 entries.*key_values"),
    "metadata of lists": ('{"__metadata__":{"k":[', "[],", "[]]}}", "not an object of strings"),
}


@pytest.mark.parametrize("what", BLOWN_UP)
def test_a_header_takes_little_more_memory_than_its_bytes(tmp_path, what):
    """JSON of which Python makes 25 times its bytes is refused before it is made: 20 MB take less than 80."""
    first, unit, last, match = BLOWN_UP[what]
    n = 20_000_000 // len(unit)
    text = first + ("".join(unit % k for k in range(n // 2)) if "%" in unit else unit * n) + last
    path = written(tmp_path / "m.safetensors", struct.pack("<Q", len(text)) + text.encode())
    done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
    peak, told = done.stdout.split(" ", 1)
    assert re.search(match, told), told
    assert int(peak) < 80_000


def test_a_config_has_the_limit_of_headers(tmp_path):
    """A config.json of more bytes is not parsed."""
    written(tmp_path / "config.json", b'{"a": 1}')
    set_limits(header_bytes=8)
    assert _read_config(tmp_path)[0] == {"a": 1}
    set_limits(header_bytes=7)
    with pytest.raises(FormatError, match=re.escape("more than 7 bytes. Hint: where you trust")):
        _read_config(tmp_path)


def test_what_is_written_can_be_read_with_the_same_limits():
    """A header or a name beyond the limits is not written, nor a header that other readers refuse."""
    spec = Spec("w" * 20, "F32", (1,), 4)
    n = int.from_bytes(tensor_files.one_file([spec]).head[:8], "little")
    set_limits(header_bytes=n, name_bytes=20)
    tensor_files.one_file([spec])
    set_limits(header_bytes=n - 1)
    with pytest.raises(FormatError, match=f"readers take {n - 1}.*AQ2_MAX_HEADER_BYTES"):
        tensor_files.one_file([spec])
    set_limits(name_bytes=19)
    with pytest.raises(FormatError, match="at most 19 bytes"):
        tensor_files.one_file([spec])
    set_limits(header_bytes=10**9)
    with pytest.raises(FormatError, match="readers take 100000000"):
        tensor_files.one_file([spec], {"long": "x" * 100_000_000})


def test_what_is_not_named_goes_back_to_its_default():
    """Each call begins with the defaults, and one without arguments ends there."""
    assert limits() == Limits()
    set_limits(rank=4)
    set_limits(tensors=5)
    assert (limits().rank, limits().tensors) == (8, 5)
    set_limits()
    assert limits() == Limits()


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_is_a_number_in_its_range(name):
    """From 1 to what the limit may be; a refused call changes nothing."""
    most = LARGEST.get(name, 2**63 - 1)
    for value in (1, most):
        set_limits(**{name: value})
        assert getattr(limits(), name) == value
    for value in (0, -1, most + 1):
        with pytest.raises(InputValueError, match=f"{name} is {value}.*from 1 to {most}"):
            set_limits(**{name: value})
    for value in (True, 2.0, "2", None):
        with pytest.raises(InputTypeError, match=f"{name} is a {type(value).__name__}"):
            set_limits(**{name: value})
    with pytest.raises(InputValueError, match=f"no limit 'x'.*{name}"):
        set_limits(x=1)
    assert getattr(limits(), name) == most


def asked(variables):
    """Return what a fresh process says of its limits."""
    code = (
        "import os, dataclasses, aq2_pipeline as a\n"
        "try: a.limits()\n"
        "except a.InputValueError as error: raise SystemExit(print(error))\n"
        "os.environ['AQ2_MAX_RANK'] = '2'; a.set_limits(tensors=3); first = a.limits(); a.set_limits()\n"
        "print(first.rank, first.tensors, *dataclasses.astuple(a.limits()))"
    )
    environment = os.environ | variables
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_environment_is_read_once():
    """Each limit has a variable, which set_limits() goes back to, and which is not looked at again."""
    values = {name: str(k) for k, name in enumerate(NAMES, 20)}
    found = asked({variable_of(name): value for name, value in values.items()})
    assert found.split() == [values["rank"], "3", *values.values()]


@pytest.mark.parametrize("text", ["many", "-1", "0", "1e6", "65", "9" * 5000])
def test_a_variable_that_is_no_limit_is_an_error(text):
    """A limit that somebody asked for is never ignored: the error names the variable."""
    assert "AQ2_MAX_RANK is" in asked({"AQ2_MAX_RANK": text})
    assert "from 1 to 64" in asked({"AQ2_MAX_RANK": text})


def test_every_limit_is_documented():
    """SECURITY.md has each limit with its default and its variable, and so has the documentation of set_limits."""
    page = (ROOT / "SECURITY.md").read_text()
    for each in fields(Limits):
        assert f"| `{each.name}` | `{variable_of(each.name)}` | {each.default:,} |" in page
        assert f"`{each.name}` ({each.default:,})" in " ".join(aq2_pipeline.set_limits.__doc__.split())
