"""Time from Ctrl-C to its answer, surface by surface.

`python -m tests.robustness.interrupts [--tries 20] [--only NAME] [--write-report FILE]`. A child works on and is
sent SIGINT at random moments; it says when it got the interrupt and what files are left, and goes on as before. The
command is a process for each try, from the signal to its end, and is terminated, too. Clocks are CLOCK_MONOTONIC, which
processes share.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

N_WEIGHTS = 1 << 21
#: Slow enough that an interrupt meets a kernel nearly always; of the searches one of the slowest.
SLOW = "int4_g32:mse"
COMMAND = [sys.executable, "-c", "from aq2_pipeline.cli import main; main()"]
#: Surfaces whose engine decides when an interrupt is answered, and as what: at the end of a morsel or vector.
ENGINES = ("polars-eager", "polars-lazy", "duckdb-arrow", "duckdb-native")
#: How DuckDB tells it, where its own thread or a function of ours got the signal.
TOLD = ("KeyboardInterrupt", "Query interrupted")


class Answer(NamedTuple):
    """What one signal led to.

    Attributes
    ----------
    seconds : float
        From the signal to the exception, or to the end of the process.
    told : str
        The exception's class and text, or the exit code.
    left : list of str
        Files that should not be there.
    """

    seconds: float
    told: str
    left: list[str]


# --- The child -------------------------------------------------------------------------------------------------------


def _weights() -> Any:
    import numpy as np  # noqa: PLC0415 - only children need it

    return np.random.default_rng(0).normal(0, 0.02, N_WEIGHTS).astype(np.float32)


def _column(row_length: int) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    values = pa.array(_weights())
    offsets = pa.array(range(0, N_WEIGHTS + 1, row_length), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, values)


def _core(_folder: Path) -> Any:
    import aq2_pipeline  # noqa: PLC0415

    column = _column(N_WEIGHTS)
    return lambda: aq2_pipeline.quantize(column, SLOW)


def _wrapper(_folder: Path) -> Any:
    from aq2_pipeline import ArrowQuantV2  # noqa: PLC0415

    weights, quantizer = _weights(), ArrowQuantV2()
    layers = {f"layer.{k}": weights[: N_WEIGHTS // 4] for k in range(8)}
    return lambda: quantizer.quantize_batch(layers, scheme=SLOW)


def _polars_eager(_folder: Path) -> Any:
    import polars as pl  # noqa: PLC0415

    import aq2_pipeline  # noqa: F401, PLC0415 - registers the namespace

    frame = pl.DataFrame({"w": pl.from_arrow(_column(1 << 14))})
    return lambda: frame.select(pl.col("w").aq2.quantize(SLOW))


def _polars_lazy(_folder: Path) -> Any:
    import polars as pl  # noqa: PLC0415

    import aq2_pipeline  # noqa: F401, PLC0415 - registers the namespace

    frame = pl.LazyFrame({"w": pl.from_arrow(_column(1 << 14))})
    return lambda: frame.select(pl.col("w").aq2.quantize(SLOW)).collect(engine="streaming")


def _duckdb(path: str) -> Any:
    def made(_folder: Path) -> Any:
        import duckdb  # noqa: PLC0415
        import pyarrow as pa  # noqa: PLC0415

        import aq2_pipeline.duckdb  # noqa: PLC0415

        con = aq2_pipeline.duckdb.connect() if path == "native" else duckdb.connect()
        aq2_pipeline.register(con)
        con.execute("SET enable_progress_bar = false")
        con.register("given", pa.table({"w": _column(1 << 8)}))
        con.execute("CREATE TABLE t AS FROM given")
        query = f"SELECT sum(octet_length(aq2_quantize(w, '{SLOW}').quantized_data)) FROM t"  # noqa: S608
        return lambda: con.execute(query).fetchall()

    return made


def _files(folder: Path) -> Any:
    from aq2_pipeline.io.convert import quantize_file  # noqa: PLC0415
    from aq2_pipeline.io.recipes import Recipe  # noqa: PLC0415

    write_model(folder / "model.safetensors", 2)
    return lambda: quantize_file(folder / "model.safetensors", folder / "q.parquet", Recipe(SLOW))


SURFACES = {
    "core": _core,
    "wrapper": _wrapper,
    "files": _files,
    "polars-eager": _polars_eager,
    "polars-lazy": _polars_lazy,
    "duckdb-arrow": _duckdb("arrow"),
    "duckdb-native": _duckdb("native"),
}


def write_model(path: Path, n_layers: int, side: int = 1 << 10) -> None:
    """Write a safetensors file of square float32 layers."""
    import numpy as np  # noqa: PLC0415

    size = 4 * side * side
    header = {
        f"layer.{k}.weight": {"dtype": "F32", "shape": [side, side], "data_offsets": [size * k, size * (k + 1)]}
        for k in range(n_layers)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = np.random.default_rng(0).normal(0, 0.02, side * side).astype(np.float32)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for k in range(n_layers):
            file.write(np.roll(values, k).data)


def child(name: str, folder: Path) -> None:
    """Work, answer interrupts with a line each, and check that the surface works afterwards."""
    work = SURFACES[name](folder)
    expected = _shown(work())
    there = sorted(path.name for path in folder.iterdir())
    while True:
        errors: list[tuple[float, BaseException]] = []
        try:
            try:
                print("ready", flush=True)
                while True:
                    work()
            except BaseException as error:  # noqa: BLE001 - which class it is, is what is asked
                errors.append((time.monotonic(), error))
                time.sleep(0.05)
        except KeyboardInterrupt as error:  # Polars hands one signal over twice
            errors.append((time.monotonic(), error))
        at, error = errors[0]
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        left = sorted({path.name for path in folder.iterdir()} - set(there))
        errors.clear()
        del error
        print(json.dumps({"at": at, "told": told, "left": left}), flush=True)
        assert _shown(work()) == expected, "another result after an interrupt"


def _shown(result: Any) -> str:
    """Return a short text that tells two results apart."""
    if hasattr(result, "hash_rows"):
        return str(result.unnest("w")["scales"].explode().hash().sum())
    if hasattr(result, "field"):
        return str(result.field("scales").values.sum() if hasattr(result.field("scales").values, "sum") else result[0])
    if isinstance(result, dict):
        return str({name: (len(layer["quantized_data"]), layer["scales"].sum()) for name, layer in result.items()})
    return str(getattr(result, "target_bytes", result))


# --- The parent ------------------------------------------------------------------------------------------------------


def interrupt(name: str, tries: int, seed: int = 0, longest: float = 1.0) -> list[Answer]:
    """Return what interrupts of a working surface led to; the last is a termination, which ends the child."""
    rng = random.Random(seed)  # noqa: S311 - moments
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", name, "--folder", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                for _ in range(tries):
                    _expect_ready(process)
                    time.sleep(rng.uniform(0, longest))
                    at = time.monotonic()
                    process.send_signal(signal.SIGINT)
                    told = json.loads(process.stdout.readline())
                    answers.append(Answer(told["at"] - at, told["told"], told["left"]))
                _expect_ready(process)
                at = time.monotonic()
                process.terminate()
                code = process.wait(60)
                answers.append(Answer(time.monotonic() - at, f"exit {code}", []))
            finally:
                process.kill()
    return answers


def _expect_ready(process: Any) -> None:
    line = process.stdout.readline()
    if line != "ready\n":
        message = f"the child said {line!r}"
        raise RuntimeError(message)


def stop_command(
    number: int, target: str, tries: int, seed: int = 0, longest: float = 2.0, n_layers: int = 64, pause: float = 0.2
) -> list[Answer]:
    """Return what a signal to the command led to, at random moments of a conversion over an earlier target."""
    rng = random.Random(seed)  # noqa: S311 - moments
    answers = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model.safetensors", n_layers)
        arguments = ["quantize", str(folder / "model.safetensors"), str(folder / target), "--scheme", SLOW]
        arguments += ["--to", "compressed-tensors"] * ("." not in target)
        subprocess.run([*COMMAND, *arguments], check=True, capture_output=True)
        good = contents(folder)
        for _ in range(tries):
            with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
                assert process.stdout is not None
                if rng.random() < 0.8:  # else anywhere, the imports included
                    process.stdout.readline()  # the first layer is done
                    time.sleep(rng.uniform(0, pause))
                else:
                    time.sleep(rng.uniform(0, longest))
                at = time.monotonic()
                process.send_signal(number)
                text = process.stdout.read()
                code = process.wait(60)
                seconds = time.monotonic() - at
            now = contents(folder)
            left = sorted(now.keys() ^ good.keys()) + [
                path for path in good.keys() & now.keys() if good[path] != now[path]
            ]
            told = f"exit {code}" + (": traceback" if b"Traceback" in text and code == 1 else "")
            answers.append(Answer(seconds, told, left))
    return answers


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, by its path in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(IsADirectoryError):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def summary(answers: list[Answer]) -> dict[str, Any]:
    """Return the figures of a surface."""
    seconds = [answer.seconds for answer in answers]
    told: dict[str, int] = {}
    for answer in answers:
        told[answer.told] = told.get(answer.told, 0) + 1
    return {
        "tries": len(answers),
        "median_ms": round(1e3 * statistics.median(seconds)),
        "worst_ms": round(1e3 * max(seconds)),
        "told": told,
        "files_left": sum(len(answer.left) for answer in answers),
    }


def main() -> None:
    """Print a table, and write a report if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--only", default="")
    parser.add_argument("--write-report", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    found = {}
    for name in SURFACES:
        if given.only in name:
            found[name] = summary(interrupt(name, given.tries)[:-1])
            print(name, json.dumps(found[name]), flush=True)
    for signal_name in ("SIGINT", "SIGTERM"):
        name = f"command {signal_name}"
        if given.only in name:
            number = getattr(signal, signal_name)
            answers = stop_command(number, "q.parquet", given.tries, longest=1.2, n_layers=96, pause=0.1)
            found[name] = summary(answers)
            print(name, json.dumps(found[name]), flush=True)
    if given.write_report:
        command = "python -m tests.robustness.interrupts --write-report"
        machine = {"python": platform.python_version(), "system": platform.system(), "cores": os.cpu_count()}
        report = {"command": command, "machine": machine, "surfaces": found}
        given.write_report.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
