"""The documentation is true: its code runs, its generated pages are fresh, its links resolve, nothing is left out."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import operator
import pkgutil
import re
from pathlib import Path

import pytest

import aq2_pipeline
from aq2_pipeline import codecs, errors, policy, schemes
from aq2_pipeline.functions import FUNCTIONS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
MODULES = sorted(module.name for module in pkgutil.walk_packages(aq2_pipeline.__path__, "aq2_pipeline."))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path):
    return str(path.relative_to(ROOT))


def generator():
    """Return docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(path):
    """Return the fragments that a page's headings make, as GitHub spells them."""
    text = FENCE.sub("", path.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["aq2_pipeline", *(name for name in MODULES if not name.endswith(".__main__"))])
def test_the_examples_in_docstrings_run(name):
    """Every doctest gives what it shows."""
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False)
    report = io.StringIO()
    for example in finder.find(module, module.__name__):
        runner.run(example, out=report.write)
    assert runner.failures == 0, report.getvalue()


def test_the_public_functions_have_examples():
    """Each has a doctest in Python's documentation, or, of an engine's set-up, in the adapter's."""
    shown = [getattr(aq2_pipeline, name) for name in FUNCTIONS]
    shown += [aq2_pipeline.ArrowQuantV2, importlib.import_module("aq2_pipeline.duckdb").register]
    assert [f.__name__ for f in shown if not doctest.DocTestParser().get_examples(f.__doc__)] == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_code_of_a_page_runs(path, tmp_path, monkeypatch):
    """Python blocks run in order in one namespace; an `output` block is what the block before it printed.

    `sql` blocks run on the page's connection `con`.
    """
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    printed = ""
    text = path.read_text()
    for block in FENCE.finditer(text):
        language, code = block.groups()
        if language == "python":
            code = "\n" * text.count("\n", 0, block.start(2)) + code  # a traceback shows the page's lines
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, str(path), "exec"), namespace)  # noqa: S102 - our own page
            printed = out.getvalue()
        elif language == "sql":
            namespace["con"].execute(code).fetchall()
        elif language == "output":
            assert code.split() == printed.split()
        else:
            assert language in {"text", "sh"}, f"a block says what it is: {code}"
    if "con" in namespace:
        namespace["con"].close()


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_links_of_a_page_resolve(path):
    """Every link goes to a file that is there, and to a heading in it."""
    for link in LINK.findall(FENCE.sub("", path.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, fragment = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), link
        if fragment:
            assert fragment in anchors(found), link


def test_every_page_is_reached_from_the_index():
    """docs/index.md links every page beside it."""
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(index.read_text())}
    pages = {path for path in (ROOT / "docs").rglob("*.md") if path != index}
    assert pages <= linked, pages - linked


def test_the_generated_pages_are_fresh():
    """What docs/generate.py would write is what is there."""
    stale = [name_of(path) for path, text in generator().pages().items() if path.read_text() != text]
    assert not stale, "run: python docs/generate.py"


def test_nothing_is_undocumented():
    """Every function, scheme family, policy and error is on its reference page, and every export in the docs."""
    reference = ROOT / "docs" / "reference"
    for page, names in {
        "functions": FUNCTIONS,
        "schemes": [family.template.replace("{group}", "<group>") for family in schemes.FAMILIES],
        "policies": [*policy.POLICIES, *policy.ALIASES],
        "errors": [error.__name__ for error in (errors.Aq2Error, *errors.Aq2Error.__subclasses__())],
    }.items():
        text = (reference / f"{page}.md").read_text()
        assert [name for name in names if name not in text] == []
    everything = "".join(path.read_text() for path in PAGES)
    assert [name for name in aq2_pipeline.__all__ if name not in everything] == []


def test_the_page_of_formats_has_every_format_method_and_fallback():
    """Each block format and codebook is named, each method explained, and the fallbacks are those of the table."""
    text = (ROOT / "docs" / "explanation" / "formats.md").read_text()
    table = [
        line.split("|")[1:4] for line in text.splitlines() if re.match(r"\| (`|the others).*\| (16|32|64|256) \|", line)
    ]
    told = {
        name: (int(block), other.strip(" `")) for names, block, other in table for name in re.findall(r"\w+", names)
    }
    for family in schemes.FAMILIES:
        assert family.template.startswith("int") or f"`{family.template.removesuffix('_{group}')}`" in text
        assert [method for method in family.methods if f"\n| `{method}` |" not in text] == []
        if family.block > 1:
            assert told.get(family.template, told["others"]) == (family.block, family.fallback)


def test_every_method_of_the_wrapper_is_documented():
    """The public methods of ArrowQuantV2 are named in the how-to guides."""
    guides = "".join(path.read_text() for path in (ROOT / "docs" / "how-to").glob("*.md"))
    methods = [name for name in vars(aq2_pipeline.ArrowQuantV2) if not name.startswith("_")]
    assert [name for name in methods if name not in guides] == []


def test_the_kernels_signatures_are_documented():
    """The guide to adding a scheme, and `codecs`, show what kernels are called with."""
    guide = (ROOT / "docs" / "how-to" / "add-a-scheme.md").read_text()
    for codec in {family.codec for family in schemes.FAMILIES}:
        for role in ("encode", "decode", "error"):
            kernel = operator.attrgetter(getattr(codec, f"{role}_name"))(importlib.import_module(codec.module))
            call = f"`{role}({', '.join(inspect.signature(kernel.py_func).parameters)}) -> status`"
            assert call in guide
            assert call in codecs.__doc__


def test_every_command_is_documented():
    """Each command of `aq2` has a heading, and no heading is left of one that is gone."""
    typer = pytest.importorskip("typer")
    cli = pytest.importorskip("aq2_pipeline.cli")
    commands = {f"aq2 {name}" for name in typer.main.get_command(cli.app).commands}
    text = (ROOT / "docs" / "reference" / "command.md").read_text()
    assert set(re.findall(r"^## (aq2 \w+)$", text, re.MULTILINE)) == commands
