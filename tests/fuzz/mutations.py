"""What is done to the bytes of a good file: a few changes, drawn from a seeded generator."""

from __future__ import annotations

import re
import struct
import zlib

#: Numbers at the ends of what fields hold, and around sizes that are allocated.
EXTREMES = [0, 1, 2, 7, 8, 31, 127, 128, 255, 256, 65535, 65536, 2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**32]
EXTREMES += [2**40, 2**48, 2**60, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]
#: What headers in text say instead of what they said.
WORDS = [str(n).encode() for n in EXTREMES] + [b"-1", b"1.5", b"1e400", b"null", b"true", b"[]", b"{}", b'""', b"NaN"]
WORDS += [
    b'"../x"',
    b'"F64"',
    b'"BF16"',
    b'"F4"',
    b"'|O'",
    b"'<f8'",
    b"\xff",
    b"\0",
    b"\\ud800",
    b"9" * 400,
    b"[" * 300,
]
#: Where the fields are that say what the rest is: the beginning, and in Parquet and zip files the end.
HEADER = 256


def place(rng, text, room=1):
    """Return where to change something: in half of the cases in what may be a header."""
    last = max(len(text) - room, 0)
    kind = rng.random()
    if kind < 0.3:
        return rng.randint(0, min(last, HEADER))
    if kind < 0.5:
        return rng.randint(max(last - HEADER, 0), last)
    return rng.randint(0, last)


def span(rng, text):
    """Return two places, mostly near each other."""
    a = place(rng, text)
    return a, min(len(text), a + (rng.randint(1, 16) if rng.random() < 0.6 else rng.randint(1, len(text) + 1)))


def flip_bits(rng, text, _other):
    """Flip one bit, or some."""
    for _ in range(rng.choice([1, 1, 2, 8])):
        text[place(rng, text)] ^= 1 << rng.randrange(8)
    return text


def set_bytes(rng, text, _other):
    """Set one byte."""
    text[place(rng, text)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return text


def set_number(rng, text, _other):
    """Set a field of 2, 4 or 8 bytes to an extreme, in either order, or to what is a little off."""
    size = rng.choice([2, 4, 4, 8, 8])
    at = place(rng, text, size)
    order = "little" if rng.random() < 0.9 else "big"
    if rng.random() < 0.5:
        number = rng.choice(EXTREMES)
    else:
        number = int.from_bytes(text[at : at + size], order) + rng.choice([-32, -8, -1, 1, 2, 8, 32])
    text[at : at + size] = (number % 256**size).to_bytes(size, order)
    return text


def set_varint(rng, text, _other):
    """Put a number of any length where a varint may be."""
    number, raw = rng.choice(EXTREMES), bytearray()
    while number > 0x7F:
        raw.append(number & 0x7F | 0x80)
        number >>= 7
    at = place(rng, text)
    text[at : at + rng.choice([0, 1, 1, 2, len(raw) + 1])] = bytes([*raw, number])
    return text


def set_word(rng, text, _other):
    """Replace a number or word of a text."""
    words = [match.span() for match in re.finditer(rb"-?[0-9]+|\"[^\"]{0,40}\"|'[^']{0,40}'", bytes(text[:65536]))]
    a, b = rng.choice(words) if words else span(rng, text)
    text[a:b] = rng.choice(WORDS)
    return text


def truncate(rng, text, _other):
    """Cut the end off."""
    return text[: place(rng, text)]


def extend(rng, text, other):
    """Put bytes behind the end."""
    return text + rng.choice([b"\0", bytes(32), bytes(rng.choices(range(256), k=9)), other])


def remove(rng, text, _other):
    """Take bytes out."""
    a, b = span(rng, text)
    del text[a:b]
    return text


def repeat(rng, text, _other):
    """Repeat bytes where they are."""
    a, b = span(rng, text)
    text[a:b] = text[a:b] * rng.choice([2, 2, 3, 50])
    return text


def swap(rng, text, _other):
    """Exchange two blocks."""
    size = rng.randint(1, max(len(text) // 3, 1))
    a, b = sorted((place(rng, text, size), place(rng, text, size)))
    first, second = text[a : a + size], text[b : b + size]
    text[b : b + len(second)] = first[: len(second)]
    text[a : a + len(first)] = second[: len(first)]
    return text


def copy(rng, text, _other):
    """Put a block over another."""
    a, b = span(rng, text)
    at = place(rng, text)
    text[at : at + b - a] = text[a:b]
    return text


def splice(rng, text, other):
    """Go on with another file, from the same place or any."""
    at = place(rng, text)
    return text[:at] + other[at if rng.random() < 0.5 else place(rng, other) :]


def borrow(rng, text, other):
    """Put a block of another file over one."""
    a, b = span(rng, bytearray(other))
    at = place(rng, text)
    text[at : at + b - a] = other[a:b]
    return text


CHANGES = [flip_bits, set_bytes, set_number, set_number, set_varint, set_word, set_word]
CHANGES += [truncate, extend, remove, repeat, swap, copy, splice, borrow]


def with_right_sums(text):
    """Return a zip archive with the checksums that its members have, so that a changed member is looked at."""
    text, at = bytearray(text), 0
    sums = {}
    while (at := text.find(b"PK\x03\x04", at)) >= 0 and at + 30 <= len(text):
        method, _, _, _, packed, _, n_name, n_extra = struct.unpack_from("<3HLLLHH", text, at + 8)
        first = at + 30 + n_name + n_extra
        raw = bytes(text[first : first + packed])
        if method == 8:
            try:
                raw = zlib.decompressobj(-15).decompress(raw, 1 << 22)
            except zlib.error:
                raw = b""
        sums[at] = zlib.crc32(raw)
        struct.pack_into("<L", text, at + 14, sums[at])
        at += 4
    at = 0
    while (at := text.find(b"PK\x01\x02", at)) >= 0 and at + 46 <= len(text):
        member = struct.unpack_from("<L", text, at + 42)[0]
        if member in sums:
            struct.pack_into("<L", text, at + 16, sums[member])
        at += 4
    return bytes(text)


def mutated(rng, text, other):
    """Return the bytes of a file with one to six changes."""
    text = bytearray(text)
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 6])):
        text = bytearray(rng.choice(CHANGES)(rng, text or bytearray(1), other or b"\0"))
    if text[:2] == b"PK" and rng.random() < 0.7:
        return with_right_sums(text)
    header = text.rfind(b"}", 0, 4096) + 1
    if text[8:9] == b"{" and header > 8 and rng.random() < 0.7:  # safetensors: its length is the first thing looked at
        text[:8] = struct.pack("<Q", header - 8)
    return bytes(text)
