"""kill -9 at random moments of a conversion over an earlier good file: how many files are lost.

`python -m tests.robustness.crashes [--tries 20] [--write-report FILE]`. After each kill the target must be the earlier
one or the new one, whole; what else is left goes at the next start, whose result must be that of a run that nobody
killed; every second next start takes the killed run up.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.robustness.interrupts import COMMAND, contents, write_model

#: name of a target -> what the command is told of it: a file, a file of other offsets, and a folder of shards.
TARGETS = {"q.parquet": [], "q.gguf": [], "folder": ["--to", "compressed-tensors"]}
SCHEMES = ("int8_g32", "int4_g32")
GGUF_SCHEMES = ("q8_0", "q4_0")


def _command(folder: Path, target: str, scheme: str) -> list[str]:
    paths = [str(folder / "model.safetensors"), str(folder / "out" / target)]
    return [*COMMAND, "quantize", *paths, "--scheme", scheme, *TARGETS[target]]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)


def crash(target: str, tries: int, seed: int = 0, n_layers: int = 24, side: int = 1 << 10) -> dict[str, Any]:
    """Return what kills led to."""
    rng = random.Random(seed)  # noqa: S311 - moments
    found = {"tries": 0, "old": 0, "new": 0, "lost": 0, "left_then": 0, "left_at_the_end": 0, "wrong": 0}
    schemes = GGUF_SCHEMES if target.endswith(".gguf") else SCHEMES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "out").mkdir()
        write_model(folder / "model.safetensors", n_layers, side)
        good = []
        for scheme in (schemes[1], schemes[0]):  # the last is there when the kills begin
            start = time.monotonic()
            _run(_command(folder, target, scheme))
            longest = time.monotonic() - start
            good.append(contents(folder / "out"))
        new, old = good
        command = _command(folder, target, schemes[1])
        for k in range(tries):
            _kill(command, rng, longest)
            now = contents(folder / "out")
            found["tries"] += 1
            kept = {path: data for path, data in now.items() if ".tmp-" not in path}
            found["old" if kept == old else "new" if kept == new else "lost"] += 1
            found["left_then"] += len(now) > len(kept)
            _run(command + ["--resume"] * (k % 2))
            now = contents(folder / "out")
            found["wrong"] += {path: data for path, data in now.items() if ".tmp-" not in path} != new
            found["left_at_the_end"] += any(".tmp-" in path for path in now)
            _run(_command(folder, target, schemes[0]))
    return found


def _kill(command: list[str], rng: random.Random, longest: float) -> None:
    """Kill a run: mostly once its first layer is written, else anywhere."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        if rng.random() < 0.9:
            process.stderr.readline()
            time.sleep(rng.uniform(0, 0.3))
        else:
            time.sleep(rng.uniform(0, longest))
        process.send_signal(signal.SIGKILL)


def main() -> None:
    """Print a line a target, and write a report if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--only", default="")
    parser.add_argument("--write-report", type=Path)
    given = parser.parse_args()
    found = {}
    for target in TARGETS:
        if given.only in target:
            found[target] = crash(target, given.tries)
            print(target, json.dumps(found[target]), flush=True)
    if given.write_report:
        report = {
            "command": f"python -m tests.robustness.crashes --tries {given.tries} --write-report",
            "targets": found,
        }
        given.write_report.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
