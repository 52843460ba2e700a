"""Files that a model's own file names: beside it or below, and nowhere else."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from aq2_pipeline.io.limits import limits, to_change
from aq2_pipeline.io.paths import Stamp, bad_file, open_regular, stamp_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_location", "file_at", "stamp_at"]

#: A URL's scheme, or a drive.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def check_location(path: Path, location: str, layer: str) -> None:
    """Refuse by its spelling what is no relative path inside the folder of the model `path`.

    Raises
    ------
    FormatError
        Naming the tensor and the location; no file is touched.
    """
    reason, hint, most = None, "external data is beside the model", limits().name_bytes
    if not location or "\0" in location:
        reason = "is no path"
    elif len(os.fsencode(location)) > most:
        location, reason, hint = location[:64] + "...", f"has more than {most} bytes", to_change("name_bytes")
    elif _SCHEME.match(location):
        reason = "is a URL, or has a drive"
    elif location[0] in "/\\":
        reason = "is an absolute path"
    elif ".." in re.split(r"[/\\]", location):
        reason = "leads out of the model's folder"
    if reason:
        raise bad_file(path, f"the location {location!r} {reason}", hint, layer)


def file_at(path: Path, location: str, layer: str) -> Path:
    """Return the file at a location that `check_location` has let pass; none is opened.

    Raises
    ------
    FormatError
        If it is missing, or a symbolic link leads out of the model's folder.
    """
    target = path.parent / location
    try:
        resolved, folder = target.resolve(strict=True), path.parent.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        told = error.strerror if isinstance(error, OSError) else error
        raise bad_file(path, f"the external file {location!r} cannot be read: {told}", None, layer) from None
    if not resolved.is_relative_to(folder):
        reason = f"the external file {location!r} is a link that leads out of the model's folder"
        raise bad_file(path, reason, "put the file itself there", layer)
    return target


def stamp_at(file: Path) -> Stamp:
    """Return the stamp of a regular file.

    Raises
    ------
    FormatError
        If it is none.
    OSError
        If it may not be read.
    """
    with open_regular(file) as opened:
        return stamp_of(opened)
