"""What a measurement was made on: processor, memory, versions, date."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.benchmarks.peers import PEERS
from tests.benchmarks.table import n_cores

#: Peers that are no row of their table.
OTHERS = ("pywhispercpp",)
OURS = ("aq2-pipeline", "numpy", "numba", "llvmlite", "pyarrow", "polars", "duckdb")


def _lines(path):
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


def _field(lines, name):
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _version(distribution):
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def describe():
    """Return facts by name."""
    cpu = _field(_lines("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()
    memory = _field(_lines("/proc/meminfo"), "MemTotal")
    size = f", {int(memory.split()[0]) / 2**20:.0f} GB of memory" if memory else ""
    peers = {*OTHERS, *(peer.distribution for peer in PEERS)} - {"", *OURS}
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{n_cores()} cores of {cpu}{size}",
        "system": f"{platform.system()} {platform.machine()}, {python}",
        "versions": {name: _version(name) for name in OURS},
        "peers": {name: _version(name) for name in sorted(peers)},
    }
