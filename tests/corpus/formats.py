"""The crafted files of the formats beside safetensors, as `make` has them: path -> bytes, with the number of a case."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib

from support.protobuf import external, field, model, pair, tensor

TWO = struct.pack("<2f", 1.5, -2.0)

# --- GGUF ------------------------------------------------------------------------------------------------------------

F32, Q4_0, Q8_0, Q4_K = 0, 2, 8, 12
U8, U32, STRING, ARRAY = 0, 4, 8, 9


def text(value):
    """Return a string as GGUF has it."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key, kind, raw):
    """Return a key-value."""
    return text(key) + struct.pack("<I", kind) + raw


def info(name="w", axes=(2,), kind=F32, offset=0, n_dims=None):
    """Return what a header says of a tensor; axes in the order of the file."""
    shape = b"".join(struct.pack("<Q", axis % 2**64) for axis in axes)
    rank = len(axes) if n_dims is None else n_dims
    return text(name) + struct.pack("<I", rank) + shape + struct.pack("<IQ", kind, offset % 2**64)


def gguf(infos=(), entries=(), data=b"", *, version=3, counts=None):
    """Return a file of any parts, padded where its data begins; `counts` are what it claims to hold."""
    n_tensors, n_keys = counts or (len(infos), len(entries))
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join([*entries, *infos])
    return header + bytes(-len(header) % 32) + data if data else header


def one(*, data=TWO, entries=(), **changed):
    """Return a file of the tensor `w`, with what is changed of it."""
    return gguf([info(**changed)], entries, data + bytes(-len(data) % 32))


def aligned(kind, raw):
    """Return a file that says an alignment."""
    return one(entries=[entry("general.alignment", kind, raw)])


HALF = struct.pack("<e", 0.25)
BLOCK = HALF + bytes(range(16))
EIGHTS = HALF + bytes(range(32))
SUPER = HALF + HALF + bytes(range(140))
CODE = "{{ ''.__class__.__mro__[1].__subclasses__() }}${7*7}\x1b[2J"
NAMED = [entry("general.architecture", STRING, text("none"))]
ARRAYS = [
    entry("tokens", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") + text("") + text("ä")),
    entry("scores", ARRAY, struct.pack("<IQ", 6, 2) + TWO),
    entry("n", U32, struct.pack("<I", 7)),
]
GGUFS = {
    "bad/71-empty": b"",
    "bad/71-ten-bytes": b"GGUF\x03\0\0\0\0\0",
    "bad/71-magic": b"GGML\x03\0\0\0" + bytes(16),
    **{f"bad/71-version-{n}": gguf(version=n) for n in (0, 1, 99)},
    "bad/71-big-endian": b"GGUF\0\0\0\x03" + bytes(16),
    "bad/72-tensors-2^60": gguf(counts=(2**60, 0)),
    "bad/72-tensors-2^64-1": gguf(counts=(2**64 - 1, 0)),
    "bad/72-keys-2^62": gguf(counts=(0, 2**62)),
    **{f"bad/73-key-of-2^{n}": gguf((), [struct.pack("<Q", 2**n)]) for n in (61, 62)},
    "bad/73-key-of-2^64-1": gguf((), [b"\xff" * 8]),
    "bad/73-string-of-2^62": gguf((), [entry("k", STRING, struct.pack("<Q", 2**62))]),
    "bad/73-string-of-2^64-1": gguf((), [entry("k", STRING, b"\xff" * 8)]),
    "bad/74-array-of-2^61": gguf((), [entry("k", ARRAY, struct.pack("<IQ", U32, 2**61))]),
    "bad/74-500-million-bytes": gguf((), [entry("k", ARRAY, struct.pack("<IQ", U8, 500_000_000))]),
    "bad/74-nested": gguf((), [entry("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 2000)]),
    "bad/74-type-99": gguf((), [entry("k", 99, bytes(8))]),
    "bad/75-alignment-0": aligned(U32, bytes(4)),
    "bad/75-alignment-3": aligned(U32, struct.pack("<I", 3)),
    "bad/75-alignment-2^31": aligned(U32, struct.pack("<I", 2**31)),
    "bad/75-alignment-of-text": aligned(STRING, text("32")),
    "bad/75-alignment-twice": one(entries=[entry("general.alignment", U32, struct.pack("<I", 32))] * 2),
    "bad/76-no-dimensions": one(axes=()),
    "bad/76-dimensions-5": one(axes=(2, 1, 1, 1, 1)),
    "bad/76-dimensions-2^32-1": one(n_dims=2**32 - 1),
    "bad/76-axis-0": one(axes=(0,)),
    "bad/76-axis-negative": one(axes=(-8,)),
    "bad/76-axis-2^60": one(axes=(2**60,)),
    "bad/76-product-wraps-to-0": one(axes=(2**32, 2**32)),
    "bad/76-product-wraps-to-its-bytes": one(axes=(2**63 + 1, 2)),
    "bad/77-offset-past-the-end": one(offset=64),
    "bad/77-offset-2^64-32": one(offset=2**64 - 32),
    "bad/77-offset-unaligned": one(offset=4, data=bytes(64)),
    "bad/77-overlap": gguf([info("w"), info("v")], (), bytes(32)),
    "bad/77-data-cut": one()[:-28],
    "bad/77-tensor-twice": gguf([info("w"), info("w", offset=32)], (), bytes(64)),
    "bad/77-key-twice": gguf((), NAMED * 2),
    "bad/78-row-of-33": one(axes=(33,), kind=Q4_0, data=BLOCK * 2),
    "bad/78-removed-type-4": one(axes=(32,), kind=4, data=BLOCK),
    "bad/78-type-99": one(kind=99),
    "bad/78-scale-nan": one(axes=(64,), kind=Q4_0, data=BLOCK + b"\0\x7e" + BLOCK[2:]),
    "bad/78-scale-inf": one(axes=(32,), kind=Q4_0, data=b"\0\x7c" + BLOCK[2:]),
    "good/79-code-is-text": one(entries=[entry("tokenizer.chat_template", STRING, text(CODE))]),
    "good/71-version-2": gguf([info()], NAMED, TWO + bytes(24), version=2),
    "good/78-blocks": gguf(
        [
            info("q4_0", (32, 2), Q4_0),
            info("q8_0", (32,), Q8_0, 64),
            info("q4_k", (256,), Q4_K, 128),
            info("f32", (2, 1, 1), F32, 288),
        ],
        NAMED + ARRAYS,
        BLOCK * 2 + bytes(28) + EIGHTS + bytes(30) + SUPER + bytes(16) + TWO + bytes(24),
    ),
}

# --- ONNX ------------------------------------------------------------------------------------------------------------

ONNXES = {
    "good/87-onnx-raw": model(tensor("w", (2,), 1, field(9, TWO)), tensor("h", (2, 2), 10, field(9, bytes(8)))),
    "good/87-onnx-typed": model(
        tensor("f", (2,), 1, field(4, TWO)),
        tensor("i", (3,), 6, field(5, b"\x01\x02\x80\x01")),
        tensor("s", (), 1, field(9, TWO[:4])),
        before=field(2, b"maker"),
        after=field(14, pair("key", "value")),
    ),
    "bad/87-onnx-cut": model(tensor("w", (2,), 1, field(9, TWO)))[:-1],
    "bad/87-onnx-axis-2^62": model(tensor("w", (2**62,), 1, field(9, TWO))),
    "bad/87-onnx-too-few-bytes": model(tensor("w", (3,), 1, field(9, TWO))),
}
#: Models in two files: the tensors' data is beside the model.
EXTERNAL = {
    "good/87-onnx-external": model(
        external("w", (2,), 1, location="w.bin", offset=0, length=8),
        external("v", (2, 2), 10, location="w.bin", offset=8, length=8),
    ),
    "bad/87-onnx-external-past-the-end": model(external("w", (2,), 1, location="w.bin", offset=16, length=8)),
    "bad/87-onnx-external-offset-2^64": model(external("w", (2,), 1, location="w.bin", offset=2**64, length=8)),
    "bad/87-onnx-external-parent": model(external("w", (2,), 1, location="../w.bin", offset=0, length=8)),
    "bad/87-onnx-external-absolute": model(external("w", (2,), 1, location="/etc/passwd", offset=0, length=8)),
}

# --- NPZ -------------------------------------------------------------------------------------------------------------


def npy(descr="'<f4'", shape="(2,)", data=TWO, order="False"):
    """Return an array as NumPy writes it, with any header."""
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + data


def stored_block(raw):
    """Return a deflate stream of one block that is not compressed: the same bytes from every zlib."""
    return b"\x01" + struct.pack("<HH", len(raw), len(raw) ^ 0xFFFF) + raw


def npz(*members, deflated=False):
    """Return a zip archive of (name, bytes), dated 1980."""
    body = directory = b""
    for name, raw in members:
        held = stored_block(raw) if deflated else raw
        told = struct.pack("<5H3L2H", 20, 0, 8 * deflated, 0, 33, zlib.crc32(raw), len(held), len(raw), len(name), 0)
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + told + struct.pack("<3H2L", 0, 0, 0, 0, len(body))
        directory += name.encode()
        body += b"PK\x03\x04" + told + name.encode() + held
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(members), len(members), len(directory), len(body), 0)
    return body + directory + end


MEMBERS = [
    ("w.npy", npy()),
    ("h.npy", npy("'<f2'", "(2, 2)", bytes(8), "True")),
    ("x.d.npy", npy("'>f8'", "(3,)", struct.pack(">3d", 1, -2, 0.1))),
    ("i.npy", npy("'<i8'", "()", bytes(8))),
]
NPZS = {
    "good/87-npz-stored": npz(*MEMBERS),
    "good/87-npz-deflated": npz(*MEMBERS, deflated=True),
    "bad/80-npz-of-objects": npz(("w.npy", npy("'|O'", "(1,)", pickle.dumps([1], 2)))),
    "bad/80-npz-of-a-pickle": npz(("data.pkl", pickle.dumps({}, 2))),
    "bad/87-npz-cut": npz(*MEMBERS)[:-1],
}

# --- what is refused by its name or its first bytes ------------------------------------------------------------------

PICKLE = b"cbuiltins\nexec\n(Vraise SystemExit\ntR."


def zipped():
    """Return a zip archive of a file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("model.safetensors", (1980, 1, 1, 0, 0, 0)), b"x")
    return file.getvalue()


def tarred():
    """Return a tar archive of a file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return file.getvalue()


OTHERS = {
    **{f"bad/80-pickle.{suffix}": PICKLE for suffix in ("bin", "pt", "pth", "ckpt", "npy", "pkl", "npz")},
    "bad/80-pickle.safetensors": PICKLE,
    "bad/80-pickle.gguf": PICKLE,
    "bad/80-pickle.onnx": PICKLE,
    "bad/80-pickle.parquet": PICKLE,
    "bad/81-parquet-cut.parquet": b"PAR1\x15\x04",
    "bad/81-footer-of-0.parquet": b"PAR1" + bytes(4) + b"PAR1",
    "bad/81-footer-longer-than-the-file.parquet": b"PAR1" + struct.pack("<I", 100) + b"PAR1",
    "bad/81-footer-of-4-GB.parquet": b"PAR1" + bytes(8) + b"\xff" * 4 + b"PAR1",
    "bad/81-footer-of-zeros.parquet": b"PAR1" + bytes(64) + struct.pack("<I", 64) + b"PAR1",
    "bad/81-encrypted-footer.parquet": b"PARE" + bytes(8) + struct.pack("<I", 8) + b"PARE",
    "bad/81-ipc-stream.parquet": b"\xff\xff\xff\xff" + bytes(60),
    "bad/82-zip.zip": zipped(),
    "bad/82-zip.safetensors": zipped(),
    "bad/82-tar.tar": tarred(),
    "bad/82-tar.gguf": tarred(),
    "bad/82-gz.gz": gzip.compress(b"", 0, mtime=0),
    "bad/82-gz.safetensors": gzip.compress(b"", 0, mtime=0),
    "bad/82-a-folder/file.txt": b"",
}


def files():
    """Return all of them."""
    suffixed = ((".gguf", GGUFS), (".onnx", ONNXES), (".npz", NPZS), ("", OTHERS))
    found = {path + suffix: content for suffix, table in suffixed for path, content in table.items()}
    for path, content in EXTERNAL.items():
        found |= {f"{path}/model.onnx": content, f"{path}/w.bin": TWO + bytes(8)}
    return found
