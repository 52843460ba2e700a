"""NumPy arrays and torch tensors as Arrow columns over the same memory."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from aq2_pipeline.errors import InputTypeError
from aq2_pipeline.layout import FLOATS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["as_ndarray", "is_tensor", "new_bytes", "rows_of"]

#: "If v is NULL, the contents of the bytes object are uninitialized" (Python/C API): for whoever fills them at once.
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype = ctypes.py_object
_new_bytes.argtypes = [ctypes.c_char_p, ctypes.c_ssize_t]


#: Bytes of results from which it pays to keep their memory.
_MUCH = 1 << 20
#: The largest block that glibc takes from its heap: `DEFAULT_MMAP_THRESHOLD_MAX` on 64-bit systems, less the block's
#: head, which has bits and a page of its own.
_LARGEST_BLOCK = (1 << 25) - 2 * mmap.PAGESIZE


def is_tensor(value: Any) -> bool:
    """Whether a value is an ndarray or a torch tensor; torch is not imported to find out."""
    return isinstance(value, np.ndarray) or _is_torch(value)


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_ndarray(tensor: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a C-contiguous ndarray of native floats over the tensor's memory wherever that is what it holds.

    bfloat16 (of torch or ml_dtypes) becomes float32, exactly; strided and
    byte-swapped arrays are copied once.

    Raises
    ------
    InputTypeError
        For tensors of something else, on another device, or not dense.
    """
    if _is_torch(tensor):
        tensor = _from_torch(tensor)
    if isinstance(tensor, np.ma.MaskedArray):
        msg = "weights are a masked array"
        raise InputTypeError(msg, "fill it: array.filled(0)")
    dtype = tensor.dtype
    if dtype.name == "bfloat16":
        return (np.ascontiguousarray(tensor).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype.kind != "f" or dtype.itemsize > 8:  # noqa: PLR2004 - float64
        msg = f"weights are an array of {dtype}"
        raise InputTypeError(msg, "cast it to float32")
    native = tensor.astype(dtype.newbyteorder("="), copy=False)
    return native if native.flags.c_contiguous and native.flags.aligned else np.array(native, order="C")


def _from_torch(tensor: Any) -> Any:
    torch = sys.modules["torch"]
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        msg = f"weights are a {tensor.layout} tensor on {tensor.device}"
        raise InputTypeError(msg, "move it to the CPU and make it dense: tensor.to_dense().cpu()")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return (tensor.contiguous().view(torch.uint16).numpy().astype(np.uint32) << 16).view(np.float32)
    return tensor.numpy()


def rows_of(values: np.ndarray[Any, np.dtype[Any]], n_rows: int) -> pa.LargeListArray:
    """Return an array's memory as a column of equally long rows, without a copy."""
    kind = pa.from_numpy_dtype(values.dtype)
    flat = values.reshape(-1)
    child = pa.Array.from_buffers(kind, flat.size, [None, pa.py_buffer(flat)])
    length = flat.size // n_rows if n_rows else 0
    offsets = np.arange(n_rows + 1, dtype=np.int64) * length
    list_type = FLOATS if kind == pa.float32() else pa.large_list(kind)
    return pa.Array.from_buffers(list_type, n_rows, [None, pa.py_buffer(offsets)], children=[child])


def new_bytes(sizes: Sequence[int]) -> list[bytes]:
    """Return bytes that are not written yet: kernels write results where they will stay, which a copy would double."""
    total = sum(sizes)
    if total >= _MUCH:
        _keep_what_is_freed()
        _ask_for_huge_pages(total)
    return [_new_bytes(None, size) for size in sizes]


@functools.cache
def _keep_what_is_freed() -> None:
    """Let glibc's heap keep the memory of results that are freed, as Arrow's pool does: the next touch no fresh pages.

    The heap gives its end back to the system once that is twice as long as the
    largest block with a mapping of its own that the process has freed so far, 128
    kB at first ("dynamic mmap threshold", man 3 mallopt; malloc/malloc.c). Here
    one of the largest that count, 32 MB, is freed, which costs nothing: it was
    never touched. Up to 64 MB then stay for the next result. For 100 layers of 4
    MB fresh pages were 40 of 70 ms. Whoever set the threshold keeps it, and other
    allocators know nothing of all this.
    """
    np.empty(_LARGEST_BLOCK, np.uint8)


def _ask_for_huge_pages(total: int) -> None:
    """Ask the system for huge pages where the heap has room for a result, as NumPy does for arrays from 4 MB.

    NumPy itself asks, for an array that is freed untouched: the results come to
    lie where it lay. For 100 layers of 4 MB that is 2,000 page faults instead of
    12,800 where the heap has kept nothing, as while an earlier result of that size
    is alive: 43 instead of 62 ms, with pages that are there 31.
    """
    np.empty(min(total, _LARGEST_BLOCK), np.uint8)
