"""Settings of every test."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "aq2",
    deadline=None,  # the first example compiles; nothing here measures time
    derandomize=True,  # the same examples everywhere; the nightly profile explores
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("nightly", settings.get_profile("aq2"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "aq2"))
