"""The default number of threads: affinity, control groups of both versions, the variable and the call."""

from __future__ import annotations

import os
import warnings

import pytest

import aq2_pipeline
from aq2_pipeline import InputValueError, cores, threads

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V2_IN_A_CONTAINER = "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
V1 = (
    "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "32 25 0:28 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n"
)
CPU = "sys/fs/cgroup/cpu,cpuacct"


@pytest.fixture
def quota(tmp_path):
    """Return a function that lays out files and asks for the quota."""

    def ask(cgroup, mountinfo, files):
        told = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo} | files
        for name, text in told.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return cores.quota.__wrapped__(tmp_path)

    return ask


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "files", "expected"),
    [
        ("0::/a/b\n", V2, {"sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", V2, {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        (
            "0::/a/b\n",
            V2,
            {"sys/fs/cgroup/a/b/cpu.max": "800000 100000\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"},
            3.0,
        ),
        ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/docker/abc/x\n", V2_IN_A_CONTAINER, {"sys/fs/cgroup/x/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/../other\n", V2_IN_A_CONTAINER, {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        (
            "5:memory:/m\n4:cpu,cpuacct:/a\n0::/\n",
            V1,
            {f"{CPU}/a/cpu.cfs_quota_us": "250000\n", f"{CPU}/a/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        (
            "4:cpu,cpuacct:/a\n",
            V1,
            {f"{CPU}/a/cpu.cfs_quota_us": "-1\n", f"{CPU}/a/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        ("4:cpu,cpuacct:/a\n", V1, {}, None),
        ("0::/a\n", V2, {"sys/fs/cgroup/a/cpu.max": "rubbish"}, None),
        ("rubbish\n", V2, {}, None),
        ("0::/a\n", "rubbish\n", {"sys/fs/cgroup/a/cpu.max": "100000 100000\n"}, None),
    ],
)
def test_the_smallest_quota_of_a_group_and_its_ancestors_counts(quota, cgroup, mountinfo, files, expected):
    """Both versions, mounted at their root or inside a container; what cannot be read limits nothing."""
    assert quota(cgroup, mountinfo, files) == expected


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    """Where there is no /proc nothing is limited."""
    assert cores.quota.__wrapped__(tmp_path) is None


@pytest.mark.parametrize(("given", "expected"), [(None, 3), (8.0, 3), (2.9, 2), (0.5, 1)])
def test_a_quota_is_rounded_down(monkeypatch, given, expected):
    """The cores are those of the affinity, and no more than whole cores of the quota, and at least one."""
    monkeypatch.setattr(cores, "quota", lambda: given)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 5}, raising=False)
    assert cores.n_cores() == expected


@pytest.fixture
def limit(monkeypatch):
    """Return a function that sets the variable; the limit of the process is the default again afterwards."""
    monkeypatch.setattr(threads, "_limit", None)
    threads._warn_of.cache_clear()
    return lambda value: monkeypatch.setenv("AQ2_NUM_THREADS", value)


def test_a_call_beats_the_process_and_that_the_variable(limit):
    """`set_threads` beats `AQ2_NUM_THREADS`, which beats the cores; None takes it back."""
    limit("3")
    assert aq2_pipeline.thread_limit() == 3
    aq2_pipeline.set_threads(5)
    assert aq2_pipeline.thread_limit() == 5
    aq2_pipeline.set_threads(None)
    assert aq2_pipeline.thread_limit() == 3
    limit("")
    assert aq2_pipeline.thread_limit() == cores.n_cores()


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "4,2", "\u00b2"])
def test_a_wrong_variable_is_told_once(limit, value):
    """One warning names the value; the cores are used."""
    limit(value)
    with pytest.warns(RuntimeWarning, match="is no number of threads from 1") as told:
        assert aq2_pipeline.thread_limit() == cores.n_cores()
    assert repr(value) in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert aq2_pipeline.thread_limit() == cores.n_cores()


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", True])
def test_a_wrong_number_of_threads_is_refused(n):
    """`set_threads` takes an integer from 1, or None, and leaves the limit as it was."""
    before = aq2_pipeline.thread_limit()
    with pytest.raises(InputValueError, match="is no number of threads"):
        aq2_pipeline.set_threads(n)
    assert aq2_pipeline.thread_limit() == before
