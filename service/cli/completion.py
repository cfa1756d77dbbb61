"""`classmith completion SHELL`: the lines that make a shell ask this command what could come next."""

from __future__ import annotations

import argparse

from argcomplete.shell_integration import shellcode


def show(asked: argparse.Namespace) -> int:
    """Print them; meant for ``eval`` in the shell's start file."""
    print(shellcode(["classmith"], shell=asked.shell))
    return 0
