"""The command that repeats a measurement, as cards and files of figures say it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from models import metamodel


def command_line(name: str, folders: Sequence[Path], options: Mapping[str, object]) -> str:
    """``training NAME FOLDER... --option value ...``: without those that are None or False; True has no value.

    A meta-model that ships is named from the repository's root, wherever that is.
    """
    words = ["training", name, *map(_place, folders)]
    for option, value in options.items():
        if value is not None and value is not False:
            words += [f"--{option}"] if value is True else [f"--{option}", str(value)]
    return shlex.join(words)


def _place(folder: Path) -> str:
    ships = folder.resolve().parent == metamodel.ZOO.resolve()
    return f"models/zoo/{folder.name}" if ships else str(folder)
