"""classmith: run the service or a worker, make and use classifiers, look at meta-models, measure a running service.

Exit status: 0 done, 1 refused or failed (the reason is on standard error), 2 used wrongly, 3 no service answers,
130 interrupted.

    eval "$(classmith completion bash)"     completion of commands, options, files and task ids (bash, zsh, fish, ...)
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence

from service.cli.output import FAILED, INTERRUPTED, CommandFailed, complain
from service.cli.parser import make_parser, offer_completion


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # the name of a file may be in any encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = make_parser(__doc__)
    offer_completion(parser)
    asked = parser.parse_args(arguments)
    command: Callable[..., int] = asked.command
    try:
        return command(asked)
    except CommandFailed as error:
        return complain(str(error), error.status)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, e.g. `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
