"""The rooms of the house and what each may import, as a table; and habits that a reader relies on."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import aq2_pipeline

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aq2_pipeline"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

#: Rooms as they are named below: a module, or a folder with all that is in it.
FUNCTIONS = {"functions", "policy", "schemes", "layout", "errors"}
LEFT_OF_WRAPPER = FUNCTIONS | {
    "arguments",
    "arrow",
    "build",
    "codecs",
    "columns",
    "floats",
    "ops",
    "shapes",
    "tensors",
    "threads",
    "layers",
    "state_dicts",
    "weights",
}
LEFT_OF_FILES = LEFT_OF_WRAPPER | {"udfs.python", "io"}

#: room -> the rooms that it may import. `aq2_pipeline` itself is the room "".
MAY_IMPORT = {
    "": {
        "comparing",
        "differing",
        "duckdb",
        "errors",
        "functions",
        "io",
        "quantizer",
        "threads",
        "udfs.polars",
        "udfs.pyarrow",
        "udfs.python",
        "version",
        "warming",
    },
    "errors": set(),
    "version": set(),
    "layout": set(),
    "cores": set(),
    "threads": {"cores"},
    "kernels": {"kernels"},
    "codecs": {"kernels"},
    "families": {"codecs"},
    "rotations": {"codecs", "errors", "kernels"},
    "schemes": {"codecs", "errors", "families", "rotations"},
    "floats": set(),
    "weights": {"errors", "floats"},
    "windows": set(),
    "views": {"windows"},
    "shapes": set(),
    "arrow": {"build", "layout", "errors", "shapes", "views", "weights"},
    "build": {"layout", "weights"},
    "columns": {"arrow", "errors", "layout", "tensors", "weights", "windows"},
    "tensors": {"errors", "layout"},
    "pieces": {"arrow", "build", "codecs", "schemes", "errors", "kernels", "weights"},
    "importances": {"arrow", "errors", "pieces", "schemes", "weights"},
    "encoding": {
        "importances",
        "arrow",
        "build",
        "columns",
        "codecs",
        "errors",
        "pieces",
        "schemes",
        "shapes",
        "threads",
        "kernels",
        "weights",
    },
    "decoding": {"arrow", "weights", "build", "codecs", "errors", "pieces", "schemes", "threads", "kernels"},
    "statistics": {"arrow", "weights", "build", "codecs", "errors", "pieces", "schemes", "threads", "kernels"},
    "ops": {
        "columns",
        "schemes",
        "arrow",
        "build",
        "layout",
        "errors",
        "pieces",
        "encoding",
        "decoding",
        "statistics",
        "threads",
        "tensors",
        "windows",
        "weights",
    },
    "policy": {"schemes", "errors"},
    "functions": {"ops", "policy", "schemes", "layout", "errors"},
    "udfs": set(),
    "arguments": {"functions", "errors", "layout", "threads"},
    "udfs.polars": {"arguments", "functions", "errors", "schemes", "udfs.polars_forks"},
    "udfs.polars_forks": {"errors"},
    "udfs.sql": {"functions", "errors"},
    "udfs.duckdb": {"functions", "errors", "udfs.sql"},
    "udfs.duckdb_native": {"functions", "ops", "schemes", "codecs", "kernels", "errors", "version", "udfs.sql"},
    "udfs.pyarrow": {"functions", "errors", "layout"},
    "udfs.python": {"arguments", "columns", "functions", "errors", "schemes", "layout", "tensors"},
    "warming": {"errors", "functions", "layout", "schemes"},
    "polars": {"udfs.polars"},
    "duckdb": {"udfs.duckdb", "udfs.duckdb_native"},
    "layers": LEFT_OF_WRAPPER,
    "state_dicts": LEFT_OF_WRAPPER,
    "quantizer": LEFT_OF_WRAPPER,
    "io": LEFT_OF_FILES | {"decoding", "differences", "stored", "version"},
    "comparing": LEFT_OF_FILES | {"differences"},
    "picture": {"errors", "io", "weights"},
    "stored": {
        "build",
        "decoding",
        "differences",
        "errors",
        "kernels",
        "pieces",
        "schemes",
        "threads",
        "weights",
    },
    "differences": {"kernels", "threads", "weights"},
    "differing": LEFT_OF_FILES | {"differences"},
    "console": set(),
    "signals": set(),
    "cli": LEFT_OF_FILES | {"", "comparing", "console", "demo", "differing", "picture", "signals"},
    "demo": LEFT_OF_FILES | {""},
}

#: room -> what it may import that others wrote; "*" is every room's share.
THIRD_PARTY = {
    "*": {"numpy", "pyarrow"},
    "": {"duckdb", "polars", "pyarrow"},  # for type checkers
    "errors": set(),
    "cores": set(),
    "threads": set(),
    "windows": {"numpy"},
    "views": {"numpy"},
    "shapes": {"pyarrow"},
    "floats": {"numpy"},
    "weights": {"numpy"},
    "version": set(),
    "policy": set(),
    "schemes": {"numpy"},
    "layout": {"pyarrow"},
    "codecs": {"numpy"},
    "kernels": {"numpy", "numba", "llvmlite"},
    "udfs.polars": {"polars", "pyarrow"},
    "udfs.polars_forks": set(),
    "udfs.sql": {"pyarrow"},
    "udfs.duckdb": {"duckdb", "pyarrow"},
    "udfs.duckdb_native": {"llvmlite", "numba", "numpy", "pyarrow"},
    "duckdb": {"duckdb"},
    "udfs.pyarrow": {"pyarrow"},
    "io": {"numpy", "pyarrow", "polars", "safetensors"},
    "comparing": {"numpy", "polars", "pyarrow"},
    "console": {"rich", "typer"},
    "differing": {"numpy", "polars", "pyarrow"},
    "picture": {"matplotlib", "numpy", "polars"},
    "cli": {"polars", "typer"},  # polars for type checkers
    "demo": {"duckdb", "polars", "pyarrow", "numpy"},
}


def room_of(module: str) -> str:
    """Return the room of a module's name without the package."""
    parts = module.split(".")
    for known in (module, ".".join(parts[:2]), parts[0]):
        if known in MAY_IMPORT:
            return known
    message = f"the module {module!r} has no room: add it to the table"
    raise AssertionError(message)


def module_name(path: Path) -> str:
    """Return a file's module without the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


class Imports(ast.NodeVisitor):
    """Collect what a file imports, anywhere in it: our modules, and others' packages."""

    def __init__(self, path: Path) -> None:
        self.ours: set[str] = set()
        self.others: set[str] = set()
        self.visit(ast.parse(path.read_text()))

    def add(self, name: str) -> None:
        """Add one imported module."""
        package, _, module = name.partition(".")
        if package == "aq2_pipeline":
            self.ours.add(module)
        elif package not in sys.stdlib_module_names:
            self.others.add(package)

    def visit_Import(self, node: ast.Import) -> None:
        """`import a.b`."""
        for alias in node.names:
            self.add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """`from a import b`: b may be a module or a name in a."""
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            path = PACKAGE.parent / name.replace(".", "/")
            is_module = path.with_suffix(".py").exists() or path.is_dir()
            self.add(name if is_module else node.module)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_room_imports_only_what_its_row_allows(path):
    """A module imports, of ours, only the rooms of its row, or its own."""
    room = room_of(module_name(path))
    found = {room_of(module) for module in Imports(path).ours}
    assert found - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_room_knows_only_its_engine(path):
    """A module imports, of others, only the packages of its row."""
    room = room_of(module_name(path))
    assert Imports(path).others <= THIRD_PARTY.get(room, THIRD_PARTY["*"])


def test_the_table_has_no_room_that_is_gone():
    """Every row of the tables is a module or a folder."""
    names = {module_name(path) for path in MODULES} | {module_name(path).split(".")[0] for path in MODULES}
    assert set(MAY_IMPORT) <= names
    assert set(THIRD_PARTY) - {"*"} <= names


def test_the_fence_sees_every_kind_of_import(tmp_path):
    """Imports in functions, under TYPE_CHECKING and in parentheses are found."""
    path = tmp_path / "module.py"
    path.write_text(
        "import os, numba.core\nfrom aq2_pipeline import ops\nif TYPE_CHECKING:\n    from duckdb import x\n"
        "def f():\n    from aq2_pipeline.kernels.rows import (\n        encode_rows,\n    )\n"
    )
    imports = Imports(path)
    assert imports.ours == {"ops", "kernels.rows"}
    assert imports.others == {"numba", "duckdb"}


def test_importing_the_package_loads_no_engine_but_polars():
    """`import aq2_pipeline` brings polars, and neither duckdb nor numba nor a kernel, and no extra."""
    code = "import aq2_pipeline, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "polars" in loaded
    heavy = {"duckdb", "_duckdb", "numba", "llvmlite", "torch", "safetensors", "typer", "rich", "matplotlib"}
    heavy |= {"ml_dtypes", "onnx"}
    assert not loaded & heavy
    assert not {name for name in loaded if name.startswith("aq2_pipeline.kernels")}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_are_short_and_say_what_they_are(path):
    """At most 400 lines, and a first docstring."""
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", aq2_pipeline.__all__)
def test_public_names_exist_and_are_documented(name):
    """What `__all__` says is there, with a docstring of its own."""
    value = getattr(aq2_pipeline, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        public = [member for key, member in vars(value).items() if not key.startswith("_") and callable(member)]
        assert all(inspect.getdoc(member) for member in public)


def test_every_public_function_is_exported():
    """The one table of functions is the package's, and nothing is in `__all__` twice."""
    assert set(aq2_pipeline.functions.FUNCTIONS) <= set(aq2_pipeline.__all__)
    assert len(set(aq2_pipeline.__all__)) == len(aq2_pipeline.__all__)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT / "tests")))
def test_every_test_states_its_fact(path):
    """A test function has a docstring of one sentence; property tests are never skipped."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            docstring = ast.get_docstring(node)
            assert docstring, f"{path.name}: {node.name}"
            assert docstring.split("\n\n")[0].count("\n") <= 1, f"{path.name}: {node.name}"
    if "hypothesis" in Imports(path).others:
        assert not re.search(r"mark\.(skip|xfail)|pytest\.(skip|xfail)", path.read_text())


def test_no_room_for_rubbish():
    """No module is named for everything and nothing."""
    assert not {path.stem for path in MODULES} & {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
