"""What commands print: answers on standard output, as text or JSON; reasons and progress on standard error."""

from __future__ import annotations

import json
import sys

FAILED, WRONG_USE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130


class CommandFailed(Exception):
    """A command ends with a reason, in one line, and an exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def complain(message: str, status: int) -> int:
    """Print a reason; returns the status."""
    print(f"classmith: {message}", file=sys.stderr)
    return status


def print_json(value: object) -> int:
    """Print JSON; returns success."""
    print(json.dumps(value, indent=1, ensure_ascii=False))
    return 0


def wants_progress() -> bool:
    """Somebody is looking at standard error."""
    return sys.stderr.isatty()
