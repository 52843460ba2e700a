"""How many cores this process may use: its affinity, and the quota of its control groups on Linux."""

from __future__ import annotations

import functools
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["n_cores", "quota"]


def n_cores() -> int:
    """Return the cores of this process, at least 1.

    The affinity is asked each time; the quota is read once. A part of a core
    counts for nothing, as Rust's `available_parallelism` has it and with it
    Polars: a thread more would be throttled.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    limit = quota()
    return cores if limit is None else max(1, min(cores, int(limit)))


class _Mount(NamedTuple):
    """Where a hierarchy of control groups is seen: the group at its top, the folder, its kind and options."""

    group: str
    folder: str
    kind: str
    options: list[str]


@functools.cache
def quota(root: Path = Path("/")) -> float | None:
    """Return the cores that the control groups leave this process; None where they leave all.

    Parameters
    ----------
    root : Path
        The root of the file system; tests have their own.

    Notes
    -----
    The smallest quota of the process' own group and its ancestors counts:
    `cpu.max` of version 2, `cpu.cfs_quota_us` and `cpu.cfs_period_us` of
    version 1 (man 7 cgroups; Documentation/admin-guide/cgroup-v2.rst).
    """
    try:
        found = [value for folder in _folders(root) if (value := _read(folder)) is not None]
    except (OSError, ValueError, IndexError):  # a system that has none, or keeps them from us
        return None
    return min(found, default=None)


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders of the process' groups and of their ancestors."""
    mounts = list(_mounts((root / "proc/self/mountinfo").read_text()))
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in mounts:
            if mount.kind != ("cgroup" if controllers else "cgroup2") or (controllers and "cpu" not in mount.options):
                continue
            path = PurePosixPath(group)
            inside = path.relative_to(mount.group) if path.is_relative_to(mount.group) else PurePosixPath()
            top = root / mount.folder.lstrip("/")
            yield from (top / part for part in (inside, *inside.parents))


def _mounts(text: str) -> Iterator[_Mount]:
    """Yield the control groups among the lines of `mountinfo` (man 5 proc)."""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            fields = [field.replace("\\040", " ") for field in left.split(" ")]
            yield _Mount(fields[3], fields[4], kind, options.split(","))


def _read(folder: Path) -> float | None:
    """Return the quota that a group has by itself, in cores."""
    try:
        if (folder / "cpu.max").exists():
            limit, period = (folder / "cpu.max").read_text().split()
            return None if limit == "max" else int(limit) / int(period)
        limit, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if int(limit) < 0 else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
