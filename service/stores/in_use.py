"""Who uses a state directory: services, side by side, or `classmith recover`, alone.

A lock of the operating system, which ends with its process, however that ends. Where there is none (Windows, which
refuses to replace a file that is open; some network file systems), nothing is held and nobody is refused.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import IO

from models.errors import Unavailable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".in-use"
HELD = (errno.EAGAIN, errno.EACCES)


def use(folder: Path, *, alone: bool = False) -> IO[bytes]:
    """Hold the directory until what this returns is closed; raises Unavailable where others keep it from us."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = (folder / NAME).open("ab")
    except OSError as error:
        raise Unavailable(f"{folder} cannot be written ({error.strerror}); check its disk and its rights.") from error
    if fcntl is None:
        return held
    try:
        fcntl.flock(held, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in HELD:
            return held
        held.close()
        message = f"A service runs on {folder}; stop it first." if alone else f"{folder} is being mended; start later."
        raise Unavailable(message) from error
    return held
