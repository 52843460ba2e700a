"""Quantize a file of any size in a process that may have 1 GiB: `python examples/08_bigger_than_memory.py [MB]`."""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

MB, COLUMNS = 2**20, 2048
LIMIT = 1024 * MB  # of everything that the process may write to
#: `aq2`, which at its end says the most memory that it has had: kB, on Linux.
COMMAND = """
import atexit, resource
from aq2_pipeline.cli import main
atexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
main()
"""


def write_model(path: Path, megabytes: int) -> None:
    """Write a model of float32, half of it one tensor, a MB at a time: no more of it is ever in memory."""
    rows = megabytes * MB // (4 * COLUMNS)
    header, end = {}, 0
    for name, n_rows in {"embed.weight": rows // 2, **{f"blk.{k}.weight": rows // 16 for k in range(8)}}.items():
        begin, end = end, end + 4 * n_rows * COLUMNS
        header[name] = {"dtype": "F32", "shape": [n_rows, COLUMNS], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for size in np.diff([*range(0, end, MB), end]):
            file.write(rng.standard_normal(size // 4, np.float32))


def aq2(*arguments: object) -> float:
    """Run the command in a process that cannot have more than the limit, and return the MB that it has had."""
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        check=True,
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    )
    return int(done.stdout.split()[-1]) / 1024


size = int(sys.argv[1]) if len(sys.argv) > 1 else 256
with tempfile.TemporaryDirectory() as folder:
    paths = [Path(folder, f"{size}.safetensors") for size in (1, size)]
    for path, megabytes in zip(paths, (1, size), strict=True):
        write_model(path, megabytes)
    for target, scheme in (("model.gguf", "q4_k"), ("model.parquet", "int4_g64")):
        options = ("--scheme", scheme, "--memory", "440MB", "--threads", 2)
        before, peak = (aq2("quantize", path, Path(folder, target), *options) for path in paths)
        print(f"{size} MB to {target}: {peak:.0f} MB resident, of which {before:.0f} are there for 1 MB, too")
        # The largest tensor and what its codes decode to would be as large as the file.
        assert peak - before < size / 2
