"""ArrowQuantV2: the three older interfaces give the bytes of the Arrow functions."""

import warnings

import numpy as np
import pyarrow as pa

import aq2_pipeline
from aq2_pipeline import ArrowQuantV2

rng = np.random.default_rng(0)
weights = {f"layer.{k}.weight": rng.normal(size=(1024, 1024)).astype(np.float32) for k in range(4)}
quantizer = ArrowQuantV2(mode="diffusion")

# Arrow: a table in, a table out.
table = pa.table(
    {
        "layer_name": list(weights),
        "weights": pa.array([w.ravel() for w in weights.values()], pa.large_list(pa.float32())),
        "shape": pa.array([w.shape for w in weights.values()], pa.list_(pa.int64())),
    }
)
arrow = quantizer.quantize_arrow(table, bit_width=4).to_pydict()
assert [len(data) for data in arrow["quantized_data"]] == [1024 * 1024 // 2] * 4

# Batch: a dict of arrays, read in place; progress is told in this thread.
told = []
batch = quantizer.quantize_batch_with_progress(
    weights, bit_width=4, progress_callback=lambda name, fraction: told.append((name, fraction))
)
assert told == [(name, (k + 1) / 4) for k, name in enumerate(weights)]
assert [batch[name]["quantized_data"] for name in weights] == arrow["quantized_data"]

# Legacy: lists. It warns, and gives the same bytes after the time that turning lists into arrays takes.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    legacy = quantizer.quantize({name: w.tolist() for name, w in weights.items()}, bit_width=4)
assert all(legacy[name]["quantized_data"] == batch[name]["quantized_data"] for name in weights)

# All of them are `quantize` with the scheme that the policy chose.
for name, w in weights.items():
    scheme = aq2_pipeline.policy_scheme(name, w.shape, 4, "diffusion")
    assert batch[name]["scheme"] == scheme
    assert aq2_pipeline.quantize([w], scheme)[0]["quantized_data"].as_py() == batch[name]["quantized_data"]

# Both inverses give the same values.
decoded = quantizer.dequantize_batch(batch)
restored = quantizer.dequantize_arrow(quantizer.quantize_arrow(table, bit_width=4))
for k, name in enumerate(weights):
    assert decoded[name].shape == (1024, 1024)
    assert np.array_equal(decoded[name].ravel(), restored["weights"][k].values.to_numpy())

print({name: (layer["scheme"], len(layer["quantized_data"])) for name, layer in batch.items()})
