"""Settings of every test."""

from __future__ import annotations

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
