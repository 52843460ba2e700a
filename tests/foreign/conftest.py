"""Tests against packages that plain pip does not install: collected only where they are there."""

import importlib.util
import os

NEEDS = {
    "test_diffusion_policy.py": ("onnxruntime", "terrain_diffusion", "onnx"),
    "test_torch.py": ("torch",),
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
