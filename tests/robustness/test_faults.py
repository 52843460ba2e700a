"""Faults F1 to F12: kills, full disks, failing writes, memory caps, threads, signals, forks, odd surroundings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from robustness.harness import in_child
from robustness.interrupts import ENGINES, SURFACES, TOLD, contents, interrupt, stop_command, write_model

from aq2_pipeline import FormatError
from aq2_pipeline.io.convert import quantize_file
from aq2_pipeline.io.recipes import Recipe
from aq2_pipeline.io.writing import files as writing

ROOT = Path(__file__).parents[2]
#: Targets of each kind: a file that is composed, a file laid out beforehand, a folder.
TARGETS = {"q.parquet": None, "q.gguf": None, "folder": "compressed-tensors"}

#: In a process of its own: `forked(action)` runs an action in a child and returns how it ended; `command(...)` is the
#: command as its users call it; `at_line(n, act)` acts at the n-th line of what writes files, and counts lines.
FORKING = """
import os, shutil, signal, sys
from pathlib import Path
import aq2_pipeline
from aq2_pipeline import cli
from aq2_pipeline.io.folders import compressed_tensors
from aq2_pipeline.io import beside, convert
from aq2_pipeline.io.gguf import sink as gguf_sink
from aq2_pipeline.io.parquet import groups
from aq2_pipeline.io.parquet import sink as parquet_sink
from aq2_pipeline.io.writing import sinks
from aq2_pipeline.io.writing import staging
from aq2_pipeline.io.safetensors import layout as tensor_files
from aq2_pipeline.io.writing import files as writing
from robustness.interrupts import contents, write_model

WATCHED = (beside, convert, gguf_sink, groups, parquet_sink, sinks, staging, writing, shutil)
WATCHED = {module.__file__ for module in WATCHED}
root = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ["ROOT"])
source = root / "model.safetensors"
tensor_files.SHARD_BYTES = 3000
write_model(source, 4, 64)

def command(target, scheme, *more):
    to = ["--to", "compressed-tensors"] if "." not in target else []
    sys.argv = ["aq2", "quantize", str(source), str(root / "out" / target), "--scheme", scheme, *to, *more]
    cli.main()

def forked(action, *arguments):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for number in (1, 2):
                os.dup2(os.open(root / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            action(*arguments)
            code = 0
        except SystemExit as error:
            code = error.code or 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def at_line(n, act):
    count = [0]
    def local(frame, event, argument):
        if event == "line":
            count[0] += 1
            if count[0] == n:
                sys.settrace(None)
                act()
        return local
    sys.settrace(lambda frame, event, argument: local if frame.f_code.co_filename in WATCHED else None)
    return count

def reset(target, good):
    shutil.rmtree(root / "out", ignore_errors=True)
    for path, data in good.items():
        (root / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "out" / path).write_bytes(data)

def made(target, scheme):  # here, not in a child, so that kernels are there for all children
    reset(target, {})
    (root / "out").mkdir()
    try:
        command(target, scheme, "--json")
    except SystemExit as error:
        assert not error.code
    return contents(root / "out")

def lines_of(target, good, scheme):
    def counted():
        count = at_line(0, None)
        try:
            command(target, scheme)
        finally:
            sys.settrace(None)
            (root / "count").write_text(str(count[0]))
    reset(target, good)
    assert forked(counted) == 0
    return int((root / "count").read_text())

def points(n, step):
    return sorted({*range(1, n, max(n // step, 1)), *range(max(n - 40, 1), n + 1, 4)})
"""


def swept(tmp_path, code, **environment):
    """Run code after `FORKING` in a process of its own."""
    return in_child(FORKING + code, 600, ROOT=str(tmp_path), **environment)  # 25 s where six work on two cores


# --- F1, F2: kill -9 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_fault_05_01_kill_at_any_line_loses_no_file(tmp_path, target):
    """A kill -9 of the command over a good file leaves it or the new one, whole; the rest goes the next time."""
    code = f"""
target, schemes = {target!r}, ("q8_0", "q4_0") if {target!r}.endswith("gguf") else ("int8_g32", "int4_g32")
new, old = made(target, schemes[1]), made(target, schemes[0])
def killed(n):
    at_line(n, lambda: os.kill(os.getpid(), signal.SIGKILL))
    command(target, schemes[1])
n_lines, left = lines_of(target, old, schemes[1]), 0
kinds = set()
for n in points(n_lines, 14):
    reset(target, old)
    assert forked(killed, n) in (-9, 0)
    now = contents(root / "out")
    kept = {{path: data for path, data in now.items() if ".tmp-" not in path}}
    assert kept in (old, new), (n, sorted(now))
    kinds.add(kept == new)
    left += len(now) > len(kept)
    if n % 4 == 0:
        assert forked(command, target, schemes[1], *["--resume"] * (n % 2)) == 0
        assert contents(root / "out") == new, n
assert kinds == {{False, True}}
assert left > 3
"""
    swept(tmp_path, code)


def test_fault_05_01_kill_between_two_names_gives_the_folder_back(tmp_path):
    """Where a system cannot exchange two names at once, a kill or an interrupt between them loses nothing."""
    code = """
writing._exchanged = lambda one, other: False
new, old = made("folder", "int4_g32"), made("folder", "int8_g32")
rename = Path.rename
def stop(act):
    def renamed(self, to):
        if self.name == "exchanged" and Path(to).name == "folder":
            act()
        return rename(self, to)
    Path.rename = renamed
    command("folder", "int4_g32")
def interrupted():
    raise KeyboardInterrupt
reset("folder", old)
assert forked(stop, lambda: os.kill(os.getpid(), signal.SIGKILL)) == -9
assert not (root / "out" / "folder").exists()
writing.remove_stale(root / "out" / "folder")
assert contents(root / "out") == old
assert forked(stop, interrupted) == 130
assert contents(root / "out") == old
assert forked(command, "folder", "int4_g32") == 0
assert contents(root / "out") == new
"""
    swept(tmp_path, code)


def test_fault_05_02_resume_of_shards_redoes_only_what_is_missing(tmp_path):
    """A command that is killed after each shard and taken up writes each layer once, and the bytes of a clean run."""
    code = """
new = made("folder", "int4_g32")
assert sum(path.endswith(".safetensors") for path in new) == 4, sorted(new)
add = staging.Staging.add
def killed_after(n):
    def added(self, row, specs, pieces):
        with (root / "added").open("a") as file:
            file.write(row["layer_name"] + "\\n")
        result = add(self, row, specs, pieces)
        if len(self.rows) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    staging.Staging.add = added
    command("folder", "int4_g32", "--resume")
reset("folder", {})
(root / "out").mkdir()
for n in (1, 2, 3):
    assert forked(killed_after, n) == -9
assert forked(killed_after, 0) == 0, (root / "log").read_text()
assert (root / "added").read_text().split() == [f"layer.{k}.weight" for k in range(4)]
assert contents(root / "out") == new
"""
    swept(tmp_path, code)


# --- F3, F4: full disks and failing writes ---------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_fault_05_03_full_disk_names_the_target(tmp_path, target):
    """A file that may not grow is one message with the target and the bytes that it takes; the old one stays."""
    code = f"""
import resource
target, schemes = {target!r}, ("q8_0", "q4_0") if {target!r}.endswith("gguf") else ("int8_g32", "int4_g32")
old = made(target, schemes[0])
def limited(n):
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
    command(target, schemes[1])
for n in (700, 2000):
    assert forked(limited, n) == 1, n
    told = (root / "log").read_text()
    assert contents(root / "out") == old, n
print(told)
"""
    told = swept(tmp_path, code)
    assert f"aq2: '{tmp_path}/out/{target}': File too large" in told
    assert re.search(r"\d+ bytes are needed", told) or target == "q.parquet"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("call", ["fsync", "replace", "rename", "truncate"])
def test_fault_05_04_whatever_fails_at_the_end_keeps_the_old_file(tmp_path, monkeypatch, target, call):
    """An error of fsync or of a rename, at any of its calls, names the target; the old one stays, nothing temporary."""
    write_model(tmp_path / "model.safetensors", 3, 64)
    (tmp_path / "out").mkdir()
    schemes = ("q8_0", "q4_0") if target.endswith("gguf") else ("int8_g32", "int4_g32")
    convert = partial(quantize_file, tmp_path / "model.safetensors", tmp_path / "out" / target, to=TARGETS[target])
    convert(Recipe(schemes[1]))
    new = contents(tmp_path / "out")
    convert(Recipe(schemes[0]))
    old, told = contents(tmp_path / "out"), []
    for n in range(20):
        with monkeypatch.context() as patch:
            failing = Failing(n)
            if call == "fsync":
                patch.setattr(os, "fsync", failing.instead_of(os.fsync))
            elif call == "truncate":
                patch.setattr(os, "ftruncate", failing.instead_of(os.ftruncate))
            else:
                patch.setattr(Path, call, failing.instead_of(getattr(Path, call)))
            if call == "rename":
                patch.setattr(writing, "_exchanged", lambda *_: False)
            try:
                convert(Recipe(schemes[1]))
            except OSError as error:
                told.append((error.errno, str(error.filename)))
            now = contents(tmp_path / "out")
            assert now in (old, new)
            assert failing.failed or now == new
            if now == new:
                break
    out = str(tmp_path / "out")
    assert all(number == 5 and name.startswith(out) and ".tmp-" not in name for number, name in told), told
    assert told or call == "truncate" or (call == "rename" and "." in target) or (call == "replace" and n == 0)


class Failing:
    """A function whose n-th call fails as a broken disk does."""

    def __init__(self, n):
        self.left, self.failed = n, False

    def instead_of(self, function):
        def call(*arguments, **keywords):
            self.left -= 1
            if self.left == -1:
                self.failed = True
                name = [str(arguments[0])] if isinstance(arguments[0], Path) else []  # as the system's errors have it
                raise OSError(5, "Input/output error", *name)
            return function(*arguments, **keywords)

        return call


def test_fault_05_04_devices_are_no_targets():
    """`/dev/full` is refused before anything is written, and a full standard output ends the command with a message."""
    with pytest.raises(OSError, match="no regular file"), writing.replacing("/dev/full"):
        pass
    code = "from aq2_pipeline.cli import main; main()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "schemes"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


# --- F5: memory caps -------------------------------------------------------------------------------------------------


def test_fault_05_05_memory_caps_end_in_a_result_or_a_memory_error(tmp_path):
    """Whatever the cap on a layer that is whole, there is a result or a MemoryError that names it and its bytes."""
    write_model(tmp_path / "model.safetensors", 1, 4096)
    code = """
import os, resource
from pathlib import Path
from aq2_pipeline.io.convert import quantize_file
from aq2_pipeline.io.recipes import Recipe
root, seen = Path(os.environ["ROOT"]), []
recipe = Recipe("int8_tensor")
quantize_file(root / "model.safetensors", root / "q.parquet", recipe)
good = (root / "q.parquet").read_bytes()
with open("/proc/self/status") as file:
    now = next(int(line.split()[1]) for line in file if line.startswith("VmSize")) << 10
for megabytes in (10, 50, 70, 90, 120, 160, 260, 600):
    resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), resource.RLIM_INFINITY))
    try:
        quantize_file(root / "model.safetensors", root / "q.parquet", recipe)
        seen.append("done")
    except MemoryError as error:
        assert "'layer.0.weight'" in str(error), error
        assert "67108864 bytes" in str(error), error
        seen.append("refused")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (root / "q.parquet").read_bytes() == good
    assert sorted(path.name for path in root.iterdir()) == ["model.safetensors", "q.parquet"]
print(seen[0], seen[-1])
"""
    assert in_child(code, ROOT=str(tmp_path)) == "refused done\n"


@pytest.mark.parametrize("limit", ["RLIMIT_DATA", "RLIMIT_AS"])
def test_fault_05_05_two_gigabytes_are_enough_for_columns_and_files(tmp_path, limit):
    """Under 2 GiB of data, or of addresses on the pyarrow path, 256 MB of weights are quantized, and a file is."""
    write_model(tmp_path / "model.safetensors", 8, 1024)
    code = f"""
import os, resource
resource.setrlimit(resource.{limit}, (2 << 30, 2 << 30))
import numpy as np, pyarrow as pa, aq2_pipeline
from pathlib import Path
from aq2_pipeline.io.convert import quantize_file
from aq2_pipeline.io.recipes import Recipe
values = np.tile(np.linspace(-1, 1, 1 << 20, dtype=np.float32), 64)
column = pa.LargeListArray.from_arrays(np.arange(0, 65, 16) << 20, pa.array(values), type=aq2_pipeline.layout.FLOATS)
print(aq2_pipeline.quantize(column, 4).nbytes >> 20)
root = Path(os.environ["ROOT"])
print(len(quantize_file(root / "model.safetensors", root / "q.parquet", Recipe("int4_g128")).layers))
"""
    threads = {"OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "2", "AQ2_NUM_THREADS": "2"}
    assert in_child(code, ROOT=str(tmp_path), **threads) == "34\n8\n"


# --- F6: threads -----------------------------------------------------------------------------------------------------


def test_fault_05_06_sixteen_threads_on_every_engine_at_once():
    """Polars, DuckDB's two paths on eight cursors, and Python, each with another scheme, give what each gives alone."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--storm", "--cases", "48"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["wrong"] == 0


def test_fault_05_06_first_calls_of_eight_threads_compile_once(tmp_path):
    """Eight threads that are first to use a scheme, with nothing in the cache, get the bytes of a later call."""
    code = """
import threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import aq2_pipeline
from aq2_pipeline.kernels import _jit
compiled, dispatched = [], _jit.Kernel._dispatched
def counted(self):
    compiled.append(self)
    return dispatched(self)
_jit.Kernel._dispatched = counted
values, barrier = np.linspace(-1, 1, 4096, dtype=np.float32), threading.Barrier(8)
def call(_):
    barrier.wait()
    return aq2_pipeline.quantize(values, "int5_g16")
with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(call, range(8)))
assert all(one.equals(aq2_pipeline.quantize(values, "int5_g16")) for one in found)
assert len(set(compiled)) == len(compiled)
"""
    in_child(code, NUMBA_CACHE_DIR=str(tmp_path))


# --- F7, F8: signals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SURFACES)
def test_fault_05_07_interrupt_is_answered_and_leaves_a_working_surface(name):
    """Ctrl-C is a KeyboardInterrupt, or what the engine makes of one; nothing is left, and the next call is right."""
    *answers, terminated = interrupt(name, 2, longest=0.4)
    for answer in answers:
        assert answer.left == []
        assert answer.seconds < 10  # on a busy machine; `python -m tests.robustness.interrupts` measures
        assert answer.told.startswith("KeyboardInterrupt") or (name in ENGINES and any(t in answer.told for t in TOLD))
    assert terminated.told == "exit -15"


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_fault_05_08_signals_end_the_command_with_their_code(signal_name):
    """Ctrl-C ends the command with 130, a termination with 143, without a traceback or a file of its own."""
    import signal  # noqa: PLC0415 - the number is asked for by name

    number = getattr(signal, signal_name)
    for answer in stop_command(number, "folder", 2, seed=1, longest=0.5, n_layers=96, pause=0.02):
        assert answer.left == []
        assert answer.told in (f"exit {128 + number}", f"exit {-number}")


@pytest.mark.parametrize("target", ["q.parquet", "folder"])
def test_fault_05_07_interrupt_at_any_line_leaves_no_file(tmp_path, target):
    """An interrupt at any line of what writes files leaves the old target or the new one, and nothing else."""
    code = f"""
target, schemes = {target!r}, ("int8_g32", "int4_g32")
new, old = made(target, schemes[1]), made(target, schemes[0])
def interrupted(n):
    def act():
        raise KeyboardInterrupt
    at_line(n, act)
    command(target, schemes[1])
n_lines, kinds = lines_of(target, old, schemes[1]), set()
for n in points(n_lines, 12):
    reset(target, old)
    code = forked(interrupted, n)
    now = contents(root / "out")
    assert now in (old, new), (n, code, sorted(now))
    assert code == 130, (n, code, (root / "log").read_text())
    kinds.add(now == new)
assert False in kinds
"""
    swept(tmp_path, code)


# --- F9: exceptions of users -----------------------------------------------------------------------------------------


def test_fault_05_09_a_thousand_exceptions_of_a_callback_take_no_memory():
    """What a callback raises a thousand times is passed on, and neither memory nor descriptors grow."""
    code = """
import gc, os
import numpy as np
from aq2_pipeline import ArrowQuantV2, InputValueError
class Unlucky:
    def __del__(self):
        raise LookupError("in a finalizer")
import sys
sys.unraisablehook = lambda _: None
def memory():
    gc.collect()
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
weights = {f"layer.{k}": np.ones(20_000, np.float32) for k in range(3)}
bad = weights | {"layer.1": np.full(20_000, np.nan, np.float32)}
quantizer = ArrowQuantV2()
def once(k):
    unlucky = Unlucky()
    def failing(name, fraction, held=np.ones(100_000)):
        if k % 2:
            raise RuntimeError(name, unlucky)
        return False
    try:
        quantizer.quantize_batch_with_progress(weights, bit_width=4, progress_callback=failing)
    except Exception as error:
        told = type(error).__name__
    try:
        quantizer.quantize_batch(bad, bit_width=4)
    except InputValueError as error:
        assert error.layer == "layer.1"
    return told
for k in range(100):
    once(k)
before, files = memory(), len(os.listdir("/proc/self/fd"))
assert {once(k) for k in range(1000)} == {"RuntimeError", "Aq2Error"}
assert memory() - before < 8 << 10, memory() - before
assert len(os.listdir("/proc/self/fd")) == files
"""
    in_child(code)


# --- F10: forks ------------------------------------------------------------------------------------------------------


def test_fault_05_10_files_and_the_wrapper_work_in_forked_and_spawned_children(tmp_path):
    """After use, forked children and spawned processes convert a file, and quantize with the wrapper, as before."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import hashlib, multiprocessing, os, sys
from pathlib import Path
import numpy as np
from aq2_pipeline import ArrowQuantV2
from aq2_pipeline.io.convert import quantize_file
from aq2_pipeline.io.recipes import Recipe

def work(folder, k):
    folder = Path(folder)
    quantize_file(folder / "model.safetensors", folder / f"{k}.parquet", Recipe("int4_g64"))
    layers = ArrowQuantV2().quantize_batch({"w": np.arange(3000, dtype=np.float32)}, bit_width=4)
    return hashlib.sha256((folder / f"{k}.parquet").read_bytes() + layers["w"]["quantized_data"]).hexdigest()

if __name__ == "__main__":
    found = {work(sys.argv[1], "here")}
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            found |= {pool.apply_async(work, (sys.argv[1], f"{method}{k}")).get(100) for k in range(2)}
    print(len(found))
"""
    )
    write_model(tmp_path / "model.safetensors", 3, 64)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=200, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


# --- F11: files that shrink ------------------------------------------------------------------------------------------


def test_fault_05_11_source_that_is_cut_while_it_is_read(tmp_path, monkeypatch):
    """A file that is cut during a run is a FormatError that names it, and no target; a map is said to trust it."""
    write_model(tmp_path / "model.safetensors", 4, 64)

    def cut(_name, _more, _layer):
        os.truncate(tmp_path / "model.safetensors", 20_000)

    from aq2_pipeline.io import convert  # noqa: PLC0415 - its chunks are made small

    monkeypatch.setattr(convert, "CHUNK_WEIGHTS", 1 << 10)
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        quantize_file(tmp_path / "model.safetensors", tmp_path / "q.parquet", Recipe("int4_g64"), progress=cut)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    from aq2_pipeline.io.safetensors.source import scan_safetensors  # noqa: PLC0415 - the whole text is there

    told = " ".join((scan_safetensors.__doc__ or "").split())
    assert re.search("mmap : bool .* nobody shortens .*SIGBUS", told), told


# --- F12: odd surroundings -------------------------------------------------------------------------------------------

SURROUNDINGS = {
    "no home": {"HOME": None, "XDG_CACHE_HOME": None},
    "no folder for temporary files": {"TMPDIR": "/proc/nothing"},
    "locale C": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "cache that cannot be written": {"NUMBA_CACHE_DIR": "/proc/nothing"},
    "an odd terminal": {"TERM": "dumb", "COLUMNS": "x"},
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_fault_05_12_odd_surroundings_change_nothing(tmp_path, name):
    """The command works without a home, a temporary folder, a cache or a locale, and names of any letters survive."""
    write_model(tmp_path / "é模.safetensors", 2, 64)
    quantize_file(tmp_path / "é模.safetensors", tmp_path / "expected.parquet", Recipe("int4_g64"))
    environment = {key: value for key, value in os.environ.items() if key not in SURROUNDINGS[name]}
    environment |= {key: value for key, value in SURROUNDINGS[name].items() if value is not None}
    code = "from aq2_pipeline.cli import main; main()"
    paths = [os.fsencode(tmp_path / "é模.safetensors"), os.fsencode(tmp_path / "ü.parquet")]
    command = [sys.executable, "-c", code, "quantize", *paths, "--scheme", "int4_g64"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ü.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()


def test_fault_05_12_names_that_are_no_utf_8(tmp_path):
    """Files whose names are any bytes are read, written and listed, and never break a message or JSON."""
    source, target, back = (os.path.join(os.fsencode(tmp_path), name) for name in (b"\xff.safetensors", b"\xfe.parquet", b"\xfd.gguf"))  # fmt: skip # noqa: E501, PTH118
    write_model(Path(os.fsdecode(source)), 2, 64)
    code = "import sys; from aq2_pipeline.cli import main; main()"
    for more in (["quantize", source, target, "--scheme", "q8_0"], ["convert", target, back], ["inspect", back, "--json"], ["inspect", target]):  # fmt: skip # noqa: E501
        done = subprocess.run([sys.executable, "-c", code, *more], capture_output=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        if "--json" in more:
            assert os.fsencode(json.loads(done.stdout)["file"]) == back


def test_fault_05_12_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """Files are the same whatever the clock says, and a clock that goes back a year between two reads disturbs none."""
    import time  # noqa: PLC0415 - only here

    write_model(tmp_path / "model.safetensors", 3, 64)
    quantize_file(tmp_path / "model.safetensors", tmp_path / "expected.parquet", Recipe("int4_g64"))
    moments = iter([4e9, 1e8] * 10_000)
    monkeypatch.setattr(time, "time", lambda: next(moments))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(moments) * 1e9))
    quantize_file(tmp_path / "model.safetensors", tmp_path / "q.parquet", Recipe("int4_g64"))
    assert (tmp_path / "q.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()
