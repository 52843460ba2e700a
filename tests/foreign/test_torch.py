"""State dicts as PyTorch users have them."""

import numpy as np
import pytest
import torch

import aq2_pipeline
from aq2_pipeline import ArrowQuantV2, InputTypeError
from aq2_pipeline.tensors import as_ndarray


def test_a_state_dict_goes_through_quantize_batch():
    """CPU tensors of every float type, with gradients, in the model's order."""
    model = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.LayerNorm(64), torch.nn.Conv2d(3, 8, 3))
    state = dict(model.named_parameters())
    result = ArrowQuantV2().quantize_batch(state, bit_width=4)
    assert list(result) == list(state)
    decoded = ArrowQuantV2().dequantize_batch(result)
    assert {n: tuple(w.shape) for n, w in state.items()} == {n: w.shape for n, w in decoded.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_each_float_type_gives_the_bytes_of_its_float32_values(dtype):
    """bfloat16 and float16 are widened exactly; float64 is rounded to float32 once."""
    tensor = torch.randn(40, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours = ArrowQuantV2("base").quantize_batch({"w": tensor}, 4)["w"]
    theirs = ArrowQuantV2("base").quantize_batch({"w": tensor.float().numpy()}, 4)["w"]
    assert ours["quantized_data"] == theirs["quantized_data"]
    assert np.array_equal(ours["scales"], theirs["scales"])


def test_a_float32_tensor_is_not_copied():
    """The kernel sees the tensor's own memory."""
    tensor = torch.randn(16, 32)
    assert as_ndarray(tensor).ctypes.data == tensor.data_ptr()


def test_a_strided_tensor_is_read_in_its_logical_order():
    """A transposed view is copied once, into the order that its shape says."""
    tensor = torch.arange(12, dtype=torch.float32).reshape(3, 4).T
    row = aq2_pipeline.quantize([tensor], "f32")[0]
    assert np.frombuffer(row["quantized_data"].as_py(), np.float32).tolist() == tensor.flatten().tolist()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(4, dtype=torch.int8),
        torch.ones(4, dtype=torch.complex64),
        torch.eye(3).to_sparse(),
        torch.ones(4, device="meta"),
    ],
    ids=["int8", "complex", "sparse", "meta"],
)
def test_other_tensors_are_refused_by_layer(tensor):
    """Integers, complex numbers, sparse tensors and tensors without memory name their layer."""
    with pytest.raises(InputTypeError, match="layer 'w'"):
        ArrowQuantV2().quantize_batch({"w": tensor})


def test_flush_to_zero_set_by_torch_changes_no_byte():
    """Kernels switch it off and put it back: these weights are subnormal, their scale is not."""
    weights = np.float32(2e-36) * np.linspace(-1, 1, 256, dtype=np.float32)
    before = aq2_pipeline.quantize(weights, 8)
    assert torch.set_flush_denormal(True)
    try:
        after = aq2_pipeline.quantize(weights, 8)
        assert after.equals(before)
        assert (torch.tensor([1e-40]) * 1).item() == 0.0
    finally:
        torch.set_flush_denormal(False)
