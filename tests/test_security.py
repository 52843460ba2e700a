"""SECURITY.md is held to: its tests are there, and reading files asks the system for nothing but the files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import aq2_pipeline

ROOT = Path(__file__).parents[1]
PACKAGE = Path(aq2_pipeline.__file__).parent

#: What runs code of others, unpacks, or talks to other machines.
NEVER = "pickle marshal shelve dill cloudpickle joblib tarfile jinja2 urllib http ftplib "
NEVER += "requests httpx asyncio xmlrpc smtplib ssl webbrowser yaml code runpy"
#: The host's name tells temporary files of machines apart; a child tries what a new DuckDB can do; `aq2 demo` takes its
#: model out of an installed package.
ONLY_IN = {
    "socket": {"io/writing/files.py"},
    "subprocess": {"udfs/duckdb_native/installing.py"},
    "zipfile": {"demo.py"},
}


def test_the_tests_that_it_names_are_there():
    """Every test and file of tests that SECURITY.md names exists."""
    text = (ROOT / "SECURITY.md").read_text()
    there = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 30
    assert named <= there, named - there
    assert all((ROOT / path).exists() for path in re.findall(r"`(tests/\S+)`", text))


def test_no_module_imports_what_runs_code_of_others():
    """No module imports pickle, archives, templates or a protocol, evaluates text, or loads NumPy's files."""
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                first = node.module if isinstance(node, ast.ImportFrom) else ""
                modules = {first or alias.name for alias in node.names}
                tops = {module.split(".")[0] for module in modules if module}
                assert not tops & set(NEVER.split()), f"{name}: {tops}"
                assert all(name in ONLY_IN[top] for top in tops & set(ONLY_IN)), f"{name}: {tops}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "np.load", "os.system", "os.popen", "__import__"}, (
                    f"{name}: {called}"
                )


WATCHED = """
import os, sys
from pathlib import Path
from aq2_pipeline import Aq2Error
from aq2_pipeline.io.tables.frames import reader
from aq2_pipeline.io.opening import open_source

folder = Path(sys.argv[1])
bad = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.", "marshal.",
       "ctypes.dlopen", "shutil.", "os.remove", "os.rename", "os.mkdir", "os.link", "os.symlink", "tempfile.", "exec")
seen = []

def watch(event, arguments):
    if not watching:
        return
    if event.startswith(bad):
        seen.append((event, str(arguments)[:200]))
    if event == "open":
        path, mode, flags = arguments
        inside = isinstance(path, int) or Path(os.fsdecode(path)).resolve().is_relative_to(folder)
        if not inside or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append((event, str(arguments)[:200]))

def read_all():
    n = 0
    for path in sorted(folder.glob("*/*")):
        try:
            open_source(path)
            for raw in (False, True):
                n += sum(len(batch) for batch in aq2_pipeline.open_reader(path, raw=raw))
        except (Aq2Error, OSError):
            pass
    return n

import aq2_pipeline
watching = False
sys.addaudithook(watch)
n = read_all()  # imports what reading needs
watching = True
assert read_all() == n > 0
print(len(seen), seen[:5])
"""


def test_reading_files_asks_the_system_for_nothing_else():
    """Over the whole corpus, Python's audit events are opens for reading inside it: no socket, process or pickle."""
    folder = ROOT / "tests" / "corpus"
    done = subprocess.run([sys.executable, "-c", WATCHED, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0 []"
