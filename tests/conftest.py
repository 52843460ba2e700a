"""Settings of every test."""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

from aq2_pipeline.io.limits import set_limits

settings.register_profile(
    "aq2",
    deadline=None,  # the first example compiles; nothing here measures time
    derandomize=True,  # the same examples everywhere; the nightly profile explores
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("nightly", settings.get_profile("aq2"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "aq2"))


@pytest.fixture
def default_limits():
    """Go back to the default limits of readers after a test that changes them."""
    yield
    set_limits()


#: Files that take long, the longest first: two processes share the files, and neither is to begin a long one last.
LONG = (
    "test_block_formats", "test_golden", "test_generic_cpu", "test_faults", "test_fuzz", "test_duckdb_native",
    "test_searches", "test_cold_start", "test_quality", "test_docs", "test_memory", "test_loads", "test_examples",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Begin with the files that take long; the others keep their order."""
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


def pytest_collection_finish():
    """Spare the collector what stays to the end, thousands of tests and what they import, at each compilation."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """Hand back what was spared: DuckDB's binding complains of objects that are not collected when the process ends."""
    gc.unfreeze()
