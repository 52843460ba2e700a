"""What a policy does to the output of a real diffusion U-Net: `python tests/foreign/diffusion.py` prints the tables.

The initializers of the ONNX file in the package `adaptive-terrain-diffusion` are
quantized, decoded and put back; onnxruntime runs the model at seven noise
levels on fixed noise; the output is compared with the float model's.
"""

from __future__ import annotations

import argparse
import importlib.resources
import itertools
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from aq2_pipeline import ArrowQuantV2, policy

SIGMAS = (0.02, 0.1, 0.5, 2.0, 10.0, 40.0, 80.0)
UNIFORM = [f"int4_{g}{a}" for g in ("g16", "g32", "g64", "g128", "g256", "channel", "tensor") for a in ("", "_asym")]


def model_path():
    """Return where the package has its ONNX model."""
    return str(importlib.resources.files("terrain_diffusion") / "weights/terrain_consistency_unet_difficulty100.onnx")


def load_model():
    """Return the package's ONNX model."""
    return onnx.load(model_path())


@dataclass
class Inputs:
    """Fixed noise on a clean sample, or noise alone."""

    difficulty: float = 50.0
    seed: int = 0
    batch: int = 2
    clean: bool = True


class Bench:
    """The float model's outputs, and what quantized weights make of them."""

    def __init__(self, inputs):
        self.model, self.inputs = load_model(), inputs
        self.tensors = {t.name: t for t in self.model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
        self.weights = {name: numpy_helper.to_array(t) for name, t in self.tensors.items()}
        # What a checkout of the model's weights holds: parameters, and the norms that the exporter renamed. The
        # graph's other constants (time-step frequencies, axes) are code, not weights.
        self.weights = {n: w for n, w in self.weights.items() if n.startswith("network.") or w.ndim == 3}
        rng = np.random.default_rng(inputs.seed)
        first, noise = (rng.standard_normal((inputs.batch, 1, 128, 128), dtype=np.float32) for _ in range(2))
        session = self._session({})
        sample = self._run(session, first * np.float32(80), 80.0) if inputs.clean else np.float32(0)
        self.noisy = [sample + noise * np.float32(sigma) for sigma in SIGMAS]
        self.outputs = [self._run(session, x, sigma) for x, sigma in zip(self.noisy, SIGMAS, strict=True)]

    def _session(self, decoded):
        """Put weights into the file itself: `add_initializer` does not replace those of convolutions."""
        before = {name: self.tensors[name].raw_data for name in decoded}
        for name, values in decoded.items():
            self.tensors[name].raw_data = np.ascontiguousarray(values, np.float32).tobytes()
        try:
            options = onnxruntime.SessionOptions()
            return onnxruntime.InferenceSession(
                self.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        finally:
            for name, data in before.items():
                self.tensors[name].raw_data = data

    def _run(self, session, noisy, sigma):
        n = len(noisy)
        feed = {
            "noisy": np.ascontiguousarray(noisy, np.float32),
            "sigma": np.full(n, sigma, np.float32),
            "difficulty": np.full(n, self.inputs.difficulty, np.float32),
        }
        return session.run(None, feed)[0].astype(np.float64)

    def quantized(self, mode="base", bits=4, scheme=None):
        """Quantize under a policy, or every parameter of rank 2 and more with one scheme."""
        layers = {n: w for n, w in self.weights.items() if scheme is None or (n.startswith("network.") and w.ndim > 1)}
        return ArrowQuantV2(mode=mode).quantize_batch(layers, bits, scheme=scheme)

    def sqnr(self, layers):
        """Return the output's SQNR in dB at each sigma."""
        session = self._session(ArrowQuantV2().dequantize_batch(layers))
        return [
            10 * np.log10((y * y).sum() / ((y - self._run(session, x, sigma)) ** 2).sum())
            for x, y, sigma in zip(self.noisy, self.outputs, SIGMAS, strict=True)
        ]


def cost(layers, least_rank=2):
    """Return (bytes, bits a weight) of the tensors of at least that rank."""
    chosen = [r for r in layers.values() if len(r["shape"]) >= least_rank]
    n_bytes = sum(len(r["quantized_data"]) + 4 * (r["scales"].size + r["zero_points"].size) for r in chosen)
    return n_bytes, 8 * n_bytes / sum(int(np.prod(r["shape"])) for r in chosen)


def row(name, bench, layers):
    """Return a line of a Markdown table."""
    values = bench.sqnr(layers)
    n_bytes, bits = cost(layers)
    cells = " | ".join(f"{v:.1f}" for v in values)
    return f"| {name} | {np.mean(values):.2f} | {cells} | {bits:.3f} | {n_bytes:,} |"


def variants(rules):
    """Yield the policy without each rule, and with another scheme or threshold in it."""
    for k, rule in enumerate(rules[:-1]):
        yield f"without: {rule.reason.split(':')[0]}", rules[:k] + rules[k + 1 :]
    small = next(k for k, rule in enumerate(rules) if rule.max_size == 20_000)
    for size in (10_000, 16_384, 18_432, 30_000, 40_000):
        yield f"small is {size:,}", (*rules[:small], replace(rules[small], max_size=size), *rules[small + 1 :])
    unspared = tuple(rule for rule in rules if rule.max_size not in (1024, 20_000))
    yield "no rule about small", unspared
    yield "no rule about small or ends", tuple(rule for rule in unspared if not rule.reason.startswith("ends"))
    emb = replace(rules[small], names=("*emb_layers*", "*time_emb_proj*", "*adaLN*"), max_size=None)
    yield "emb_layers at 8 bits too", (*rules[:-1], emb, rules[-1])
    for scheme in ("int6_g64", "int8_g128"):
        yield f"small as {scheme}", (*rules[:small], replace(rules[small], scheme=scheme), *rules[small + 1 :])
    for scheme in ("int{b}_g32", "int{b}_g128"):
        others = (replace(r, scheme=scheme) if r.scheme == "int{b}_g64" else r for r in rules)
        yield f"the rest as {scheme.format(b=4)}", tuple(others)


def table(title, bench, runs):
    """Print a Markdown table of runs: (name, quantized layers)."""
    print(f"\n{title}\n")
    print(f"| weights | mean dB | {' | '.join(map(str, SIGMAS))} | bits/weight | bytes |")
    print("|---" * (len(SIGMAS) + 4) + "|")
    for name, layers in runs:
        print(row(name, bench, layers), flush=True)


def ablations(bench):
    """Yield runs of the policy's variants."""
    for name, rules in variants(policy.POLICIES["diffusion"]):
        with mock.patch.dict(policy.POLICIES, diffusion=rules):
            yield name, bench.quantized("diffusion")


def other_inputs(batch):
    """Print the means for other seeds, inputs and difficulties."""
    print("\nOther inputs, mean dB:\n")
    print("| inputs | base | int4_g64 | int4_g16 | diffusion |", "|---" * 5 + "|", sep="\n")
    others = [Inputs(seed=1), Inputs(clean=False), Inputs(difficulty=49 / 99), Inputs(difficulty=1.0, seed=2)]
    for inputs in others:
        inputs.batch = batch
        bench = Bench(inputs)
        runs = (bench.quantized(), bench.quantized(scheme="int4_g64"), bench.quantized(scheme="int4_g16"))
        means = [np.mean(bench.sqnr(layers)) for layers in (*runs, bench.quantized("diffusion"))]
        print(f"| {inputs} | " + " | ".join(f"{m:.2f}" for m in means) + " |", flush=True)


def main():
    """Print the tables of docs/explanation/policies.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=2, help="samples a sigma")
    parser.add_argument("--only", choices=["schemes", "widths", "rules", "inputs"], help="one of the tables")
    asked = parser.parse_args()
    bench = Bench(Inputs(batch=asked.batch))
    if asked.only in (None, "schemes"):
        policies = [(mode, bench.quantized(mode)) for mode in ("diffusion", "base")]
        uniform = ((scheme, bench.quantized(scheme=scheme)) for scheme in UNIFORM)
        table("Four bits, dB at each sigma:", bench, itertools.chain(policies, uniform))
    if asked.only in (None, "widths"):
        cases = itertools.product((2, 3, 5, 6, 8), ("base", "diffusion"))
        table("Other widths:", bench, ((f"{mode} {bits}", bench.quantized(mode, bits)) for bits, mode in cases))
    if asked.only in (None, "rules"):
        table("Without one rule, or with another:", bench, ablations(bench))
    if asked.only in (None, "inputs"):
        other_inputs(asked.batch)


if __name__ == "__main__":
    main()
