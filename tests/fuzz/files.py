"""Files with changed bytes, read in children that may die; what they die of is kept."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from corpus.formats import MEMBERS, npy
from corpus.make import FILES, FOLDER, opened

from fuzz.mutations import mutated

TESTS = Path(__file__).resolve().parents[1]
#: After this long without an answer a child hangs, however busy the machine is.
PATIENCE = 120
#: One input in so many is also read through the engines, and quantized to another file.
THOROUGH = 8


@dataclass
class Seed:
    """A good model: its files, and the one that a user gives ("" for their folder)."""

    files: dict[str, bytes]
    given: str


@dataclass
class Figures:
    """What became of the inputs of a format."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    crashes: list[dict] = field(default_factory=list)
    slowest_seconds: float = 0
    slowest_input: str = ""
    largest_bytes: int = 0
    largest_input: str = ""

    def note(self, name, answer):
        """Count an input."""
        self.inputs += 1
        if answer["kind"] in ("read", "refused"):
            setattr(self, answer["kind"], getattr(self, answer["kind"]) + 1)
        if answer.get("seconds", 0) > self.slowest_seconds:
            self.slowest_seconds, self.slowest_input = answer["seconds"], name
        if answer.get("bytes", 0) > self.largest_bytes:
            self.largest_bytes, self.largest_input = answer["bytes"], name


def parquet():
    """Return Parquet files as the package writes them; their bytes differ between versions of pyarrow."""
    import polars as pl  # noqa: PLC0415 - only here

    import aq2_pipeline  # noqa: PLC0415

    weights = (np.arange(96, dtype=np.float32) - 40) / 8
    rows = {"layer_name": ["a.w", "b"], "shape": [[3, 32], [96]], "dtype": ["F32", "F16"], "weights": [weights] * 2}
    table = pl.DataFrame(rows)
    made = []
    for scheme in ("int4_g32_asym", "q4_0"):
        frame = table.select("layer_name", "shape", "dtype", quantized=pl.col("weights").aq2.quantize(scheme))
        chunked = frame.with_columns(
            chunk=pl.lit(None, pl.Int32), start=pl.lit(None, pl.Int64), tensor_shape=pl.lit(None, pl.List(pl.Int64))
        )
        made += [frame, chunked] if scheme == "q4_0" else [frame]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.parquet")
        for frame in made:
            aq2_pipeline.sink_parquet(frame, path, metadata={"k": "v"})
            yield path.read_bytes()


def deflated():
    """Return an archive that is really compressed; its bytes differ between builds of zlib."""
    import io  # noqa: PLC0415 - only here
    import zipfile  # noqa: PLC0415

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in [*MEMBERS, ("long.npy", npy(shape="(66,)", data=bytes(264)))]:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), raw, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def seeds():
    """Return format -> good models."""
    found = {name: [] for name in ("safetensors", "index", "gguf", "onnx", "onnx-external", "npz", "parquet")}
    for entry in sorted({"/".join(path.split("/")[:2]) for path in FILES if path.startswith("good/")}):
        target = opened(entry)
        if target != entry or entry not in FILES:
            files = {
                path.removeprefix(f"{entry}/"): text for path, text in FILES.items() if path.startswith(f"{entry}/")
            }
            given = target.removeprefix(entry).removeprefix("/")
            found["onnx-external" if given else "index"].append(Seed(files, given))
        else:
            suffix = entry.rpartition(".")[2]
            found[suffix].append(Seed({f"m.{suffix}": FILES[entry]}, f"m.{suffix}"))
    found["npz"].append(Seed({"m.npz": deflated()}, "m.npz"))
    found["parquet"] += [Seed({"m.parquet": text}, "m.parquet") for text in parquet()]
    return found


def changed(models, name, seed, k):
    """Return the k-th input of a format: a model of which one file is changed. The same for the same numbers."""
    rng = random.Random(zlib.crc32(f"{name} {seed} {k}".encode()))  # noqa: S311 - nothing secret
    model = rng.choice(models)
    victim = rng.choice(sorted(model.files))
    other = rng.choice([text for one in models for text in one.files.values()])
    return Seed(model.files | {victim: mutated(rng, model.files[victim], other)}, model.given)


class Child:
    """A process that reads files until it dies; then there is another."""

    def __init__(self, good):
        self.good, self.process, self.n_started = good, None, 0

    def start(self):
        """Start it, and wait until it has read the good files."""
        path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(TESTS / "fuzz" / "reading.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=os.environ | {"PYTHONPATH": path, "POLARS_MAX_THREADS": "2", "AQ2_NUM_THREADS": "2"},
        )
        self.n_started += 1
        answer = self.ask(self.good, 600)
        if "ready" not in answer:
            message = f"the child does not start: {answer}"
            raise RuntimeError(message)

    def ask(self, message, patience=PATIENCE):
        """Return the answer to a message, or how the child ended."""
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], patience)
            line = self.process.stdout.readline() if ready else b""
        except BrokenPipeError:
            ready, line = True, b""
        return json.loads(line) if line else self._end(hung=not ready)

    def _end(self, *, hung):
        if hung:
            self.process.kill()
        code = self.process.wait(60)
        self.errors.seek(0)
        text = self.errors.read()[-2000:].decode(errors="replace")
        self._close()
        if hung:
            return {"kind": "hang", "text": f"no answer in {PATIENCE} s"}
        if code == -signal.SIGPROF:
            return {"kind": "time-out", "text": "more than 5 s of the processor"}
        return {"kind": "death", "text": f"ended with {code}: {text}"}

    def read(self, path, *, thorough):
        """Return what a file came to."""
        if self.process is None:
            self.start()
        return self.ask({"path": str(path), "thorough": thorough})

    def stop(self):
        """Let it end."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self._close()

    def _close(self):
        for file in (self.process.stdin, self.process.stdout, self.errors):
            with suppress(BrokenPipeError):  # what was not sent to a dead child
                file.close()
        self.process = None


def write(model, folder):
    """Write a model's files, and no others; return the path that a user gives."""
    for old in folder.iterdir():
        if old.is_file():
            old.unlink()
    for name, text in model.files.items():
        (folder / name).write_bytes(text)
    return folder / model.given if model.given else folder


def keep(model, name, folder):
    """Keep an input that something died of; return where."""
    if len(model.files) == 1:
        (given,) = model.files
        path = folder / f"{name}{Path(given).suffix}"
        path.write_bytes(model.files[given])
        return path
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    write(model, path)
    return path


def fuzz(budget, seed=0, *, formats=None, kept=FOLDER / "bad", workers=2):
    """Read changed files for as long as a budget allows.

    Parameters
    ----------
    budget : callable
        ``budget(k)``: whether the k-th input of each format is still tried.
    seed : int
        Of the whole run.
    formats : sequence of str, optional
    kept : Path
        Where inputs go that something died of.
    workers : int
        Children at the same time.

    Returns
    -------
    dict of str to Figures
        Of each format.
    """
    models = {name: found for name, found in seeds().items() if formats is None or name in formats}
    figures, lock, numbers = {name: Figures() for name in models}, threading.Lock(), iter(range(1 << 60))

    def work(folder):
        good = []
        for name, found in models.items():
            at = folder / f"good-{name}"
            at.mkdir()
            good.append(str(write(found[-1], at)))
        place = folder / "input"
        place.mkdir()
        child = Child(good)
        try:
            child.start()
            while True:
                with lock:
                    k = next(numbers)
                if not budget(k):
                    return
                for name, found in models.items():
                    one(child, name, found, k, place)
        finally:
            child.stop()

    def one(child, name, found, k, place):
        label = f"87-fuzz-{name}-{seed}-{k}"
        model = changed(found, name, seed, k)
        answer = child.read(write(model, place), thorough=k % THOROUGH == 0)
        with lock:
            figures[name].note(label, answer)
            if answer["kind"] not in ("read", "refused"):
                keep(model, label, kept)
                figures[name].crashes.append({"input": label, "kind": answer["kind"], "text": answer["text"]})

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        for number in range(workers):
            Path(folder, str(number)).mkdir()
        for job in [pool.submit(work, Path(folder, str(number))) for number in range(workers)]:
            job.result()
    return figures


def until(seconds):
    """Return a budget of time, which begins when it is first asked: children take a while to start."""
    ends = []

    def budget(_k):
        ends[:] = ends or [time.monotonic() + seconds]
        return time.monotonic() < ends[0]

    return budget
