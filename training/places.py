"""Where a command is to write: looked at before anything is read or measured, which takes minutes or hours."""

from __future__ import annotations

import os
from pathlib import Path

from training.data.folders import DataError


def refuse_unwritable(path: Path, *, is_folder: bool = False) -> None:
    """Raise DataError where no file (or folder) can be written; folders above it may be missing, and none is made."""
    there = next(place for place in (path, *path.parents) if place.exists())
    if there.is_dir() != (is_folder or there != path):
        raise DataError(f"{there} is {'a' if there.is_dir() else 'no'} folder; give another place to write to.")
    if not os.access(there, os.W_OK):
        raise DataError(f"{there} may not be written to; give another place.")
