"""`classmith serve`, `worker` and `recover`: settings from options and environment, then the process itself."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from models.errors import Unavailable
from service.cli.output import WRONG_USE, CommandFailed
from service.settings import InvalidSettings, Settings, misspelt, read_settings


def serve(asked: argparse.Namespace) -> int:
    """Serve HTTP until told to stop."""
    from service.serving.server import serve as run

    return _run(run, asked)


def work(asked: argparse.Namespace) -> int:
    """Take jobs until told to stop."""
    from service.serving.server import work as run

    return _run(run, asked)


def recover(asked: argparse.Namespace) -> int:
    """Mend a damaged embedded store, and say what could not be kept."""
    from service.recovery import recover as mend

    def run(settings: Settings) -> int:
        if settings.redis_url:
            raise InvalidSettings("Tasks are in Redis (CLASSMITH_REDIS_URL): it recovers by its append-only file.")
        for one in mend(settings.state_dir):
            print(one)
        return 0

    return _run(run, asked)


def _run(run: Callable[[Settings], int], asked: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(asked).items() if name in Settings.model_fields and value is not None}
    for warning in misspelt(os.environ):
        print(f"classmith: warning: {warning}", file=sys.stderr)
    try:
        return run(read_settings(**given))
    except InvalidSettings as error:
        raise CommandFailed(str(error), WRONG_USE) from error
    except Unavailable as error:
        raise CommandFailed(error.message) from error
