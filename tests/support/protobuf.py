"""ONNX models written byte by byte, so that they may say anything."""


def varint(number):
    """Return a number as protobuf writes it; negative ones as 64 bits."""
    number &= 2**64 - 1
    text = bytearray()
    while number > 0x7F:
        text.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(text) + bytes([number])


def field(number, value):
    """Return a field of a number, or of bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def pair(key, value):
    """Return a StringStringEntryProto."""
    return field(1, key.encode()) + field(2, value.encode())


def tensor(name="w", dims=(2,), data_type=1, *more):
    """Return a TensorProto; `more` are fields."""
    return b"".join([*(field(1, axis) for axis in dims), field(2, data_type), field(8, name.encode()), *more])


def external(name="w", dims=(2,), data_type=1, **entries):
    """Return a TensorProto of external data."""
    pairs = (field(13, pair(key, str(value))) for key, value in entries.items())
    return tensor(name, dims, data_type, *pairs, field(14, 1))


def model(*tensors, before=b"", after=b""):
    """Return a ModelProto of initializers; bytes may be before and behind the graph."""
    return field(1, 8) + before + field(7, b"".join(field(5, text) for text in tensors)) + after
