"""Files of 1, 3 and 10 GB to Parquet, GGUF and compressed-tensors: peak memory, and the rate against its parts.

`python -m tests.benchmarks.files [--gigabytes 1 3 10] [--runs 5] [--folder FOLDER] [--write-report FILE]`.
The model is made layer by layer from a seed: each layer holds the same weights, turned. The parts, each alone: reading
the file, the kernel over as many weights, writing as many bytes as the target has, with fsync. Command and parts are
measured in turns, and their medians count; peaks are the highest. Commands are child processes under `ulimit -d` 2 GiB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

GIGABYTE = 10**9
LIMIT = 2 << 30
SHAPE = (2048, 2048)
#: name -> the target's name, the command's arguments, and the scheme whose kernel is a part.
RUNS = {
    "parquet int4_g128": ("m.parquet", ["--scheme", "int4_g128"], "int4_g128"),
    "gguf q4_k": ("m.gguf", ["--scheme", "q4_k"], "q4_k"),
    "compressed-tensors int4_g128": ("m", ["--scheme", "int4_g128", "--to", "compressed-tensors"], "int4_g128"),
}
PARTS = ("reading", "kernel", "writing")
_READ = 1 << 24


def write_model(path: Path, n_bytes: int) -> None:
    """Write a safetensors file of float32 layers."""
    size = math.prod(SHAPE)
    layers = max(n_bytes // (4 * size), 1)
    piece = np.random.default_rng(0).normal(0, 0.02, size).astype(np.float32)
    header = {
        f"model.layers.{k}.mlp.up_proj.weight": {
            "dtype": "F32",
            "shape": list(SHAPE),
            "data_offsets": [4 * size * k, 4 * size * (k + 1)],
        }
        for k in range(layers)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for k in range(layers):
            file.write(np.roll(piece, k).data)


def run(source: Path, target: Path, arguments: list[str]) -> tuple[float, float]:
    """Return the seconds and the peak resident megabytes of the command."""
    program = [sys.executable, "-c", "from aq2_pipeline.cli import main; main()"]
    command = [*program, "quantize", str(source), str(target), *arguments, "--json"]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))

    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=limited) as child:  # noqa: PLW1509
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(child.returncode)
    return time.perf_counter() - start, usage.ru_maxrss / 1e3


def reading(path: Path) -> float:
    """Return the seconds that reading the file takes."""
    buffer, start = memoryview(bytearray(_READ)), time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def kernel(scheme: str, n_weights: int) -> float:
    """Return the seconds that quantizing as many weights takes, on all threads: measured over 2^26 of them."""
    import pyarrow as pa  # noqa: PLC0415

    import aq2_pipeline  # noqa: PLC0415

    values = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32)
    column = pa.array([values], pa.large_list(pa.float32()))
    shape = pa.array([[2048, 2048]], pa.large_list(pa.int64()))
    aq2_pipeline.quantize(column, scheme, shape)
    start, n = time.perf_counter(), 16
    for _ in range(n):
        aq2_pipeline.quantize(column, scheme, shape)
    return (time.perf_counter() - start) * n_weights / (n << 22)


def writing(folder: Path, n_bytes: int) -> float:
    """Return the seconds that writing as many bytes takes, to the disk."""
    piece = np.random.default_rng(0).bytes(_READ)
    path, start = folder / "written", time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for at in range(0, n_bytes, _READ):
            file.write(piece[: n_bytes - at])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


class Round(NamedTuple):
    """What was measured one after the other: the seconds of the command and of its parts, and its peak in megabytes."""

    seconds: tuple[float, ...]
    peak: float


def measure(source: Path, target: Path, arguments: list[str], scheme: str) -> Round:
    """Measure the command and its parts once."""
    read = reading(source)
    seconds, peak = run(source, target, arguments)
    size = size_of(target)
    shutil.rmtree(target) if target.is_dir() else target.unlink()  # both write to pages that were just given back
    written = writing(target.parent, size)
    return Round((seconds, read, kernel(scheme, source.stat().st_size // 4), written), peak)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of a folder's files."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def main() -> None:
    """Print a table, and write a report if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 3, 10])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which the medians count")
    parser.add_argument("--write-report", type=Path)
    given = parser.parse_args()
    report: dict[str, dict[str, float]] = {}
    print("| source | target | seconds | read + kernel + write | rate against these | peak memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    for gigabytes in given.gigabytes:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            folder = Path(name)
            source = folder / "model.safetensors"
            write_model(source, int(gigabytes * GIGABYTE))
            for told, (target, arguments, scheme) in RUNS.items():
                if given.only not in told:
                    continue
                rounds = [measure(source, folder / target, arguments, scheme) for _ in range(given.runs)]
                seconds, *parts = map(median, zip(*(one.seconds for one in rounds), strict=True))
                peak = max(one.peak for one in rounds)
                told_parts = " + ".join(f"{part:.1f}" for part in parts)
                rate = sum(parts) / seconds
                cells = (f"{gigabytes} GB", told, f"{seconds:.1f}", told_parts, f"{rate:.2f}", f"{peak:.0f} MB")
                print(f"| {' | '.join(cells)} |", flush=True)
                report[f"{gigabytes:g} GB, {told}"] = {
                    "peak_mb": round(peak),
                    "seconds": round(seconds, 1),
                    "rate_against_parts": round(rate, 2),
                    **{f"{name}_seconds": round(part, 1) for name, part in zip(PARTS, parts, strict=True)},
                }
    if given.write_report:
        command = f"python -m tests.benchmarks.files --gigabytes {' '.join(f'{g:g}' for g in given.gigabytes)}"
        about = {
            "command": f"{command} --write-report",
            "runs": given.runs,
            "cores": os.cpu_count(),
            "ulimit_d_bytes": LIMIT,
        }
        given.write_report.write_text(json.dumps({**about, "conversions": report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
