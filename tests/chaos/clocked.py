"""`classmith` under a wall clock that a test can set: python -m tests.chaos.clocked FILE COMMAND ...

FILE holds the offset in seconds, a double, and may change at any time. The monotonic clock is left alone, as it is when
an operator or NTP sets a machine's clock.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path

OFFSET = struct.Struct("d")


def set_clock(path: Path, offset_s: float) -> None:
    """From now on the processes under this file see another time."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(OFFSET.pack(offset_s))


def follow(path: Path) -> None:
    """Put this process's wall clock under the file."""
    with path.open("rb") as file:
        shown = mmap.mmap(file.fileno(), OFFSET.size, access=mmap.ACCESS_READ)
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + OFFSET.unpack_from(shown)[0]
    time.time_ns = lambda: real_ns() + round(OFFSET.unpack_from(shown)[0] * 1e9)


if __name__ == "__main__":
    follow(Path(sys.argv[1]))
    from service.cli import main

    sys.exit(main(sys.argv[2:]))
